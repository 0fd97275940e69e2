r"""Did a bound move? Two stored runs, number by number: exact ones to rounding, random ones to their error bars.

A number regressed if

.. math:: |x - x_0| - a > k \sqrt{\mathrm{sem}^2 + \mathrm{sem}_0^2},

with a the change that is allowed (rounding by default, or what a tolerance says) and k such that, of all runs that
differ from the baseline in the seed alone, a fraction ``false_alarm`` at most is flagged:
:math:`k = \Phi^{-1}(1 - \alpha/2m)` for m random numbers (Bonferroni). A certain interval regressed if it lies beside
the other one. Bounds are arithmetic: at equal seed they agree to rounding, at another one as far as the errors of what
was measured reach.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
from scipy.stats import norm
from tabulate import tabulate

from genbound.errors import GenboundError
from genbound.files import write_json
from genbound.formatting import digits
from genbound.results.comparison import conditions
from genbound.results.observations import Observation, observe
from genbound.results.results import Results, load_results, to_plain

# What rounding may do on another machine or with other batches, relative.
ROUNDING = {"float64": 1e-9}
DEFAULT_ROUNDING = 1e-5
FALSE_ALARM = 1e-3
RULE = re.compile(r"^(?P<sign>[+-]?)(?P<size>\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(?P<unit>%|sem)?$")


@dataclass(frozen=True)
class Tolerance:
    """How far one measure may move.

    Attributes:
        size: allowed change; relative, absolute, or (``unit`` "sem") the k of this measure alone.
        unit: ``"%"`` (``size`` is a fraction then), ``""`` or ``"sem"``.
        sign: ``"+"`` if only growth is a regression, ``"-"`` if only decline is, ``""`` for both.
        ignore: not compared at all.
    """

    size: float = 0.0
    unit: str = ""
    sign: str = ""
    ignore: bool = False

    @classmethod
    def parse(cls, text: str | float) -> Tolerance:
        """``5%``, ``+5%`` (fail if it grew by more than 5 %), ``-0.01``, ``4sem``, ``ignore``."""
        text = str(text).strip()
        if text == "ignore":
            return cls(ignore=True)
        match = RULE.match(text)
        if match is None or (match["unit"] == "sem" and match["sign"]):
            raise GenboundError(
                f"tolerance {text!r} is not understood: write 5%, +5% (growth only), -5%, 0.01, 4sem or ignore"
            )
        size = float(match["size"])
        return cls(size / 100 if match["unit"] == "%" else size, match["unit"] or "", match["sign"])

    def allowed(self, expected: Observation) -> float:
        """The change that is allowed beyond the errors, in the value's unit (decades where that is a logarithm)."""
        if self.unit == "sem":
            return 0.0
        if not expected.logarithm:
            return self.size * abs(expected.number) if self.unit == "%" else self.size
        if self.unit == "%":
            grown = 1 + self.size if self.sign != "-" else 1 / max(1e-300, 1 - self.size)
            return math.log10(grown)
        return math.log10(1 + self.size / 10**expected.number) if expected.number < 300 else 0.0


@dataclass(frozen=True)
class Row:
    """One comparison: ``status`` is ``ok``, ``regression``, ``missing``, ``new`` or ``skipped``."""

    measure: str
    where: str
    expected: str
    obtained: str
    difference: str
    status: str
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether this comparison is a regression or lacks its number."""
        return self.status in ("regression", "missing")


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

    def to_markdown(self) -> str:
        """The readable diff: what regressed, then how much was compared."""
        lines = []
        if self.failures:
            head = ["measure", "where", "expected", "obtained", "difference", "why"]
            body = [
                [r.measure, r.where, r.expected, r.obtained, r.difference, r.note or r.status] for r in self.failures
            ]
            lines += [tabulate(body, head, tablefmt="github", disable_numparse=True), ""]
        compared = sum(row.status in ("ok", "regression", "missing") for row in self.rows)
        skipped = [row for row in self.rows if row.status == "skipped"]
        new = [row for row in self.rows if row.status == "new"]
        verdict = (
            f"{len(self.failures)} of {compared} numbers regressed" if self.failures else f"{compared} numbers agree"
        )
        lines.append(f"{verdict} ({self.num_random} random ones at k = {self.k:.2f} combined standard errors).")
        for note in dict.fromkeys(row.note for row in skipped):
            lines.append(f"Not compared: {sum(r.note == note for r in skipped)} numbers: {note}.")
        if new:
            names = list(dict.fromkeys(row.measure for row in new))
            lines.append(f"New, not in the baseline: {', '.join(names)}; --update adds them.")
        return "\n".join([*lines, *self.remarks])


def check(
    results: Results | str | Path,
    baseline: Results | str | Path,
    *,
    tolerances: Mapping[str, str | float | Tolerance] | None = None,
    update: bool = False,
    false_alarm: float = FALSE_ALARM,
    k: float | None = None,
    rounding: float | None = None,
) -> Check:
    """Compare a run with a baseline.

    Args:
        results: what was measured, or where it is stored.
        baseline: what is expected: a run or a results.json under any name.
        tolerances: ``measure`` or ``measure:where`` (both may have wildcards) -> what may happen to it; see
            :meth:`Tolerance.parse`. The last that fits wins.
        update: write the results as the new baseline after comparing.
        false_alarm: largest probability that a run which differs in its seed alone is flagged.
        k: combined standard errors that a random number may move, in place of those that ``false_alarm`` gives.
        rounding: relative difference that rounding may make; by default 1e-9 in float64, else 1e-5.

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
    if isinstance(baseline, Results):
        if update:
            raise GenboundError("a baseline in memory cannot be updated: give its file")
        return _compare(results, baseline, rules, false_alarm, k, rounding)
    path = Path(baseline)
    file = path / "results.json" if path.is_dir() else path
    if not file.exists():
        if not update:
            raise GenboundError(f"there is no baseline {file}: write it with --update, look at it and commit it")
        write_json(file, to_plain(results.to_json()))
        return Check((), 0.0, 0, (f"Wrote the baseline {file}.",))
    found = _compare(results, load_results(file), rules, false_alarm, k, rounding)
    if update:
        write_json(file, to_plain(results.to_json()))
        found = replace(found, remarks=(*found.remarks, f"Updated the baseline {file}."))
    return found


def _compare(
    results: Results, baseline: Results, rules: Mapping[str, Tolerance], false_alarm: float, k: float | None,
    rounding: float | None,
) -> Check:  # fmt: skip
    rows = [
        Row("configuration", key, str(expected)[:60], str(obtained)[:60], "", "regression", "measured differently")
        for (key, expected), obtained in zip(conditions(baseline).items(), conditions(results).values(), strict=True)
        if key != "layer partition" and expected != obtained
    ]
    lost, rows_of_layers = _layers(results, baseline)
    rows += rows_of_layers
    before, now = (
        {name: o for name, o in observe(r).items() if not any(_of_layer(o.where, layer) for layer in lost)}
        for r in (baseline, results)
    )
    if rounding is None:
        rounding = max(ROUNDING.get(str(r.config.get("dtype")), DEFAULT_ROUNDING) for r in (results, baseline))
    same_samples = _same_samples(results, baseline)
    same_seed = results.config.get("seed") == baseline.config.get("seed")
    random = [n for n, o in before.items() if n in now and _sem(o, now[n], same_samples)]
    k_used = k if k is not None else float(norm.isf(false_alarm / 2 / max(1, len(random))))
    for name, expected in before.items():
        rule = _rule(rules, expected)
        if rule is not None and rule.ignore:
            rows.append(Row(expected.measure, expected.where, "", "", "", "skipped", "a tolerance says to ignore them"))
            continue
        rows.append(_row(expected, now.get(name), rule, k_used, rounding, same_seed, same_samples, results))
    for name, o in now.items():
        if name not in before and o.value is not None:
            rows.append(Row(o.measure, o.where, "", _text(o), "", "new"))
    remarks = []
    if results.checkpoint.get("sha256") != baseline.checkpoint.get("sha256"):
        remarks.append("The checkpoint's weights are not those of the baseline.")
    return Check(tuple(rows), k_used, len(random), tuple(remarks))


def _layers(results: Results, baseline: Results) -> tuple[set[str], list[Row]]:
    before, now = ({row["name"]: tuple(row["shape"]) for row in r.layer_rows} for r in (baseline, results))
    rows = [
        Row("layer", n, f"shape {list(before[n])}", "absent", "", "missing", "this layer is gone")
        for n in before
        if n not in now
    ]
    rows += [
        Row("layer", n, "absent", f"shape {list(now[n])}", "", "regression", "this layer is new")
        for n in now
        if n not in before
    ]
    rows += [
        Row("layer", n, f"shape {list(before[n])}", f"shape {list(now[n])}", "", "regression", "its shape differs")
        for n in before
        if n in now and now[n] != before[n]
    ]
    return {row.where for row in rows}, rows


def _of_layer(where: str, layer: str) -> bool:
    return where == layer or where.startswith(layer + ".")


def _same_samples(results: Results, baseline: Results) -> bool:
    """Whether both measured the same training samples: all of them, or those that the same seed chose."""
    one, other = results.config, baseline.config
    if "samples_sha256" in one and "samples_sha256" in other:
        return one["samples_sha256"] == other["samples_sha256"]
    if one.get("num_samples") != other.get("num_samples"):
        return False
    return one.get("seed") == other.get("seed") or one.get("num_samples") == one.get("num_data")


def _sem(one: Observation, other: Observation, same_samples: bool) -> float:
    """Combined standard error; the choice of samples counts where it differs."""
    data = 0.0 if same_samples else math.hypot(one.data_sem or 0.0, other.data_sem or 0.0)
    return math.sqrt(one.sem**2 + other.sem**2 + data**2)


def _rule(rules: Mapping[str, Tolerance], o: Observation) -> Tolerance | None:
    fitting = [r for pattern, r in rules.items() if fnmatchcase(o.measure, pattern) or fnmatchcase(o.name, pattern)]
    return fitting[-1] if fitting else None


def _row(
    expected: Observation, obtained: Observation | None, rule: Tolerance | None, k: float, rounding: float,
    same_seed: bool, same_samples: bool, results: Results,
) -> Row:  # fmt: skip
    def row(difference: str, status: str, note: str = "") -> Row:
        return Row(expected.measure, expected.where, _text(expected), _text(obtained), difference, status, note)

    if expected.value is None:
        if obtained is None or obtained.value is None:
            return row("", "ok")
        return row("", "new", "the baseline has no value")
    if obtained is None or obtained.value is None:
        reason = obtained.reason if obtained else results.notes.get(expected.measure, "")
        return row("", "missing", f"has no value any more{': ' if reason else ''}{reason}")
    if not same_samples and expected.data_sem is None:
        return row("", "skipped", "other samples were measured (same --seed and --samples compare these too)")
    if not same_seed and (expected.extreme or obtained.extreme):
        return row("", "skipped", "another seed takes the extreme over other draws (same --seed compares these too)")
    sem = _sem(expected, obtained, same_samples)
    if expected.is_bound and same_seed:
        sem = 0.0
    change = obtained.value - expected.value
    exceeds = _beyond(expected, obtained) if not (expected.is_bound and same_seed) else change
    scale = max(1.0, abs(expected.value)) if expected.logarithm else max(abs(expected.value), abs(obtained.value))
    allowed = rounding * scale
    if not same_seed:
        allowed += max(expected.slack, obtained.slack)
    if rule is not None:
        k = rule.size if rule.unit == "sem" else k
        allowed += rule.allowed(expected)
        exceeds = max(0.0, exceeds) if rule.sign == "+" else min(0.0, exceeds) if rule.sign == "-" else exceeds
    failed = not abs(exceeds) - allowed <= k * sem
    return row(
        _difference(expected, change, sem), "regression" if failed else "ok", _why(failed, rule, sem, k, allowed)
    )


def _beyond(expected: Observation, obtained: Observation) -> float:
    """The change, or between certain intervals the gap: none where they overlap."""
    if expected.lower is None or expected.upper is None or obtained.lower is None or obtained.upper is None:
        return obtained.number - expected.number
    return max(0.0, obtained.lower - expected.upper) - max(0.0, expected.lower - obtained.upper)


def _why(failed: bool, rule: Tolerance | None, sem: float, k: float, allowed: float) -> str:
    if not failed:
        return ""
    limit = f"more than {k:.2g} sem" if sem else "more than rounding"
    if rule is not None and rule.unit != "sem":
        sides = {"+": "grew", "-": "fell", "": "moved"}[rule.sign]
        size = f"{100 * rule.size:g} %" if rule.unit == "%" else f"{rule.size:g}"
        return f"{sides} by more than {size}" + (f" and {k:.2g} sem" if sem else "")
    return limit


def _text(o: Observation | None) -> str:
    if o is None or o.value is None:
        return "/"
    if o.logarithm:
        return f"{10**o.value:.6g}" if abs(o.value) < 300 else f"1e{o.value:.6g}"
    if o.sem:
        return f"{o.value:.5g} ± {o.sem:.2g}"
    return f"[{o.lower:.6g}, {o.upper:.6g}]" if o.lower is not None and o.lower != o.upper else f"{o.value:.8g}"


def _difference(expected: Observation, change: float, sem: float) -> str:
    """In standard errors where there are any, and relative."""
    if expected.logarithm:
        relative = f"{100 * (10**change - 1):+.3g} %" if abs(change) < 2 else f"factor 1e{change:+.3g}"
    elif expected.value:
        relative = f"{100 * change / abs(expected.value):+.3g} %"
    else:
        relative = f"{digits(change)}"
    return f"{change / sem:+.1f} sem ({relative})" if sem else relative
