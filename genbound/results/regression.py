r"""Did a bound move? Two stored runs, number by number: exact ones to rounding, random ones to their error bars.

A number regressed if

.. math:: |x - x_0| - a > k \sqrt{\mathrm{sem}^2 + \mathrm{sem}_0^2},

with a the change that is allowed (rounding by default, or what a tolerance says) and k such that, of all runs that
differ from the baseline in the seed alone, a fraction ``false_alarm`` at most is flagged:
:math:`k = \Phi^{-1}(1 - \alpha/2m)` for m random numbers (Bonferroni). A certain interval regressed if it lies beside
the other one. Bounds are arithmetic: of one checkpoint they agree to rounding at equal seed; at another seed, or of
another checkpoint, they move as far as the errors of what was measured reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from scipy.stats import norm

from genbound.errors import GenboundError
from genbound.files import write_json
from genbound.results.cells import markdown_table
from genbound.results.checksums import renew_checksum
from genbound.results.common_range import observed_ranges
from genbound.results.judgement import Row, Terms, as_text, judge
from genbound.results.likeness import unlike
from genbound.results.observations import Observation, observe
from genbound.results.results import Results, load_results, to_plain
from genbound.results.tolerance import Tolerance, refuse_unknown, tolerance_of

# What rounding may do on another machine or with other batches, relative.
ROUNDING = {"float64": 1e-9}
DEFAULT_ROUNDING = 1e-5
FALSE_ALARM = 1e-3


@dataclass(frozen=True)
class Check:
    """What ``check`` found.

    Attributes:
        rows: one a comparison.
        k: how many combined standard errors a random number may move.
        num_random: number of random numbers compared.
        remarks: what is worth knowing and no regression.
    """

    rows: tuple[Row, ...]
    k: float
    num_random: int
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing regressed."""
        return not self.failures

    @property
    def failures(self) -> list[Row]:
        """The rows that failed."""
        return [row for row in self.rows if row.failed]

    def __bool__(self) -> bool:
        return self.passed

    def to_frame(self) -> pd.DataFrame:
        """One row a comparison."""
        return pd.DataFrame([vars(row) for row in self.rows])

    def to_markdown(self, verbose: bool = False) -> str:
        """The readable diff: what regressed, then how much was compared.

        Args:
            verbose: a line for every number that regressed; otherwise one for each measure, with its worst.
        """
        if not self.rows:
            return "\n".join(self.remarks)
        diff = self._diff(self.failures if verbose else _furthest(self.failures))
        return "\n".join([*diff, self._verdict(), *self._improved(), *self._left_out(), *self.remarks])

    def _diff(self, rows: Sequence[Row]) -> list[str]:
        if not rows:
            return []
        head = ["measure", "where", "expected", "obtained", "difference", "why"]
        body = [[r.measure, r.where, r.expected, r.obtained, r.difference, r.note or r.status] for r in rows]
        left = ["", "--verbose shows every number."] if len(rows) < len(self.failures) else []
        return [markdown_table(body, head), *left, ""]

    def _improved(self) -> list[str]:
        better = _furthest(row for row in self.rows if row.status == "improved")
        named = [f"{row.measure}{f', {row.where}' if row.where else ''} ({row.difference})" for row in better]
        return [f"Better than the baseline: {'; '.join(named)}."] if named else []

    def _verdict(self) -> str:
        compared = sum(row.status in ("ok", "improved", "regression", "missing") for row in self.rows)
        if not compared and self.passed:
            return "No number was compared."
        failed = f"{len(self.failures)} of {compared} numbers regressed"
        random = f"{self.num_random} random ones at k = {self.k:.2f} combined standard errors"
        better = sum(row.status == "improved" for row in self.rows)
        agreed = f"{compared - better} numbers agree" + (f", {better} are better" if better else "")
        return f"{failed if self.failures else agreed} ({random})."

    def _left_out(self) -> list[str]:
        skipped = Counter(row.note for row in self.rows if row.status == "skipped")
        lines = [f"Not compared: {count} numbers: {note}." for note, count in skipped.items()]
        new = list(dict.fromkeys(row.measure for row in self.rows if row.status == "new"))
        return [*lines, f"New, not in the baseline: {', '.join(new)}; --update adds them."] if new else lines


def _furthest(rows: Iterable[Row]) -> list[Row]:
    """The row of each measure that went furthest, with how many more of it there are."""
    measures: dict[str, list[Row]] = {}
    for row in rows:
        measures.setdefault(row.measure, []).append(row)
    found = []
    for of_one in measures.values():
        row = max(of_one, key=lambda row: row.severity)
        more = f" and {len(of_one) - 1} more" if len(of_one) > 1 else ""
        found.append(replace(row, where=(row.where or "value") + more if more else row.where))
    return found


def check(
    results: Results | str | Path,
    baseline: Results | str | Path,
    *,
    tolerances: Mapping[str, str | float | Tolerance] | None = None,
    update: bool = False,
    false_alarm: float = FALSE_ALARM,
    k: float | None = None,
    rounding: float | None = None,
    same_network: bool | None = None,
) -> Check:
    """Compare a run with a baseline.

    Args:
        results: what was measured, or where it is stored.
        baseline: what is expected: a run or a results.json under any name.
        tolerances: ``measure`` or ``measure:where`` (both may have wildcards) -> what may happen to it; see
            :meth:`~genbound.results.tolerance.Tolerance.parse`. The last that fits wins.
        update: write the results as the new baseline after comparing.
        false_alarm: largest probability that a run which differs in its seed alone is flagged.
        k: combined standard errors that a random number may move, in place of those that ``false_alarm`` gives.
        rounding: relative difference that rounding may make; by default 1e-9 in float64, else 1e-5.
        same_network: whether both measured the same weights, so that no number may be better; by default if their
            digests are equal, and of networks in memory, which have none.

    Returns:
        A :class:`Check`, true if nothing regressed.

    Raises:
        GenboundError: there is no baseline (without ``update``), it cannot be read, or a tolerance is wrong.
    """
    results = results if isinstance(results, Results) else load_results(results)
    rules = {name: t if isinstance(t, Tolerance) else Tolerance.parse(t) for name, t in (tolerances or {}).items()}
    if not 0 < false_alarm < 1:
        raise GenboundError(f"false alarm rate {false_alarm:g} must lie between 0 and 1")
    if k is not None and not k > 0 or rounding is not None and not rounding >= 0:
        raise GenboundError("k must be positive and rounding not negative")
    file, before = _baseline(baseline, update)
    if before is None:
        refuse_unknown(rules, list(observe(results).values()))
        found = Check((), 0.0, 0, (f"Wrote the baseline {file}.",))
    else:
        found = _compare(results, before, rules, false_alarm, k, _terms(results, before, rounding, same_network))
        if update:
            found = replace(found, remarks=(*found.remarks, f"Updated the baseline {file}."))
    if update and file is not None:
        write_json(file, to_plain(results.to_json()))
        renew_checksum(file)
    return found


def _baseline(given: Results | str | Path, update: bool) -> tuple[Path | None, Results | None]:
    """``(its file, the baseline)``: no file if it is in memory, no baseline if it is yet to be written."""
    if isinstance(given, Results):
        if update:
            raise GenboundError("a baseline in memory cannot be updated: give its file")
        return None, given
    path = Path(given)
    file = path / "results.json" if path.is_dir() else path
    if file.exists():
        return file, load_results(file)
    if not update:
        raise GenboundError(f"there is no baseline {file}: write it with --update, look at it and commit it")
    return file, None


def _compare(
    results: Results, baseline: Results, rules: Mapping[str, Tolerance], false_alarm: float, k: float | None,
    terms: Terms,
) -> Check:  # fmt: skip
    """Conditions and layers, then number by number: those of the baseline, then what is new."""
    layers = _layers(results, baseline)
    every = [observe(run) for run in (baseline, results)]
    refuse_unknown(rules, [o for found in every for o in found.values()])
    before, now = (_of_other_layers(found, [row.where for row in layers]) for found in every)
    own = {measure: _terms_of(measure, terms, results, baseline) for measure in {o.measure for o in before.values()}}
    random = [name for name, o in before.items() if name in now and own[o.measure].sem(o, now[name])]
    k = k if k is not None else float(norm.isf(false_alarm / 2 / max(1, len(random))))
    rows = []
    for name, expected in before.items():
        absent = replace(expected, value=None, reason=results.notes.get(expected.measure, ""))
        term = replace(own[expected.measure], k=k)
        rows.append(judge(expected, now.get(name, absent), tolerance_of(rules, expected), term))
    rows += [
        Row(o.measure, o.where, "", as_text(o), "", "new")
        for name, o in now.items()
        if name not in before and o.value is not None
    ]
    remarks = [] if terms.same_weights else ["The checkpoint's weights are not those of the baseline."]
    remarks += _range(results, baseline)
    return Check((*_conditions(results, baseline), *layers, *rows), k, len(random), tuple(remarks))


def _range(results: Results, baseline: Results) -> list[str]:
    """That an observed C moved, and with it what contains it."""
    ranges = observed_ranges({"before": baseline, "now": results})
    before, now = (f"{ranges[run]:.5g}" if run in ranges else "" for run in ("before", "now"))
    if not before or not now or before == now:
        return []
    return [f"C, the largest loss seen, moved from {before} to {now}; genbound compare puts both on one."]


def _terms(results: Results, baseline: Results, rounding: float | None, same_weights: bool | None) -> Terms:
    """On which terms two runs are compared, before it is known how many random numbers they have."""
    if rounding is None:
        rounding = max(ROUNDING.get(str(r.config.get("dtype")), DEFAULT_ROUNDING) for r in (results, baseline))
    same_seed = results.config.get("seed") == baseline.config.get("seed")
    if same_weights is None:
        same_weights = results.checkpoint.get("sha256") == baseline.checkpoint.get("sha256")
    return Terms(same_seed, _same_samples(results, baseline), rounding, same_weights=same_weights)


def _conditions(results: Results, baseline: Results) -> list[Row]:
    """What was measured differently."""
    differing = unlike({"expected": baseline, "obtained": results})
    return [
        Row(
            "configuration", key, str(values["expected"])[:60], str(values["obtained"])[:60], "", "regression",
            "measured differently",
        )
        for key, values in differing.items()
        if key != "layer partition"
    ]  # fmt: skip


def _layers(results: Results, baseline: Results) -> list[Row]:
    """Layers that only one of the runs has, or that have another shape."""
    before, now = ({row["name"]: tuple(row["shape"]) for row in r.layer_rows} for r in (baseline, results))

    def row(name: str, status: str, note: str) -> Row:
        expected, obtained = (f"shape {list(side[name])}" if name in side else "absent" for side in (before, now))
        return Row("layer", name, expected, obtained, "", status, note)

    return [
        *(row(name, "missing", "this layer is gone") for name in before if name not in now),
        *(row(name, "regression", "this layer is new") for name in now if name not in before),
        *(row(n, "regression", "its shape differs") for n in before if n in now and now[n] != before[n]),
    ]


def _of_other_layers(found: Mapping[str, Observation], layers: Sequence[str]) -> dict[str, Observation]:
    """The observations without those of these layers."""
    return {name: o for name, o in found.items() if not any(f"{o.where}.".startswith(f"{layer}.") for layer in layers)}


def _terms_of(measure: str, terms: Terms, results: Results, baseline: Results) -> Terms:
    """The terms of one measure: samples that are chosen by size are others where the checkpoint is another one."""
    one, other = (run.quantities.get(measure, {}).get("samples_sha256") for run in (results, baseline))
    return replace(terms, same_samples=one == other) if one or other else terms


def _same_samples(results: Results, baseline: Results) -> bool:
    """Whether both measured the same training samples: all of them, or those that the same seed chose."""
    one, other = results.config, baseline.config
    if "samples_sha256" in one and "samples_sha256" in other:
        return one["samples_sha256"] == other["samples_sha256"]
    if one.get("num_samples") != other.get("num_samples"):
        return False
    return one.get("seed") == other.get("seed") or one.get("num_samples") == one.get("num_data")
