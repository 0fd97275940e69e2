"""One range C of the loss for several runs: the largest that any of them has observed.

An observed C belongs to a run, and bounds grow with it: two runs would differ by what their largest losses happen to
be. A leading term in proportion to a power of C is put on the largest C of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from genbound.bounds import BOUNDS
from genbound.bounds.base import against_gap, unknown_of_all
from genbound.formatting import digits
from genbound.results.gap import REWEIGHTED, UNITS, losses, vacuous_from
from genbound.results.results import Results
from genbound.results.rows import Row

SIDES = ("value", "lower", "upper")
NOISY = "noisy_label_distance"  # its C, its gap and its constant predictor are those of the reweighted loss


def observed_ranges(runs: Mapping[str, Results]) -> dict[str, float]:
    """Run -> its observed C, in the unit of the loss; runs whose C is given, or that measured no loss, have none."""
    ranges = {name: run.config.get("loss_range") or {} for name, run in runs.items()}
    return {name: c["value"] for name, c in ranges.items() if c.get("kind") == "observed" and c.get("value")}


def on_common_range(runs: Mapping[str, Results]) -> tuple[dict[str, Results], str]:
    """The runs with their bounds on the largest observed C, and what was done, as a sentence.

    Runs with one C are left as they are, and the sentence is empty.
    """
    ranges = observed_ranges(runs)
    if len(set(ranges.values())) < 2:
        return dict(runs), ""
    most = max(ranges.values())
    reweighted = {name: losses(runs[name]).get("reweighted_range") for name in ranges}
    largest = max((c for c in reweighted.values() if c), default=None)
    found = dict(runs)
    for name, own in ranges.items():
        noisy = 1.0 if not reweighted[name] or largest is None else largest / reweighted[name]
        bounds = {
            bound: _scaled(bound, row, noisy if bound == NOISY else most / own, runs[name])
            if _contains_range(bound, runs[name])
            else row
            for bound, row in runs[name].bounds.items()
        }
        found[name] = replace(runs[name], bounds=bounds)
    names = dict.fromkeys(b for run in runs.values() for b in run.bounds if _contains_range(b, run))
    each = ", ".join(f"{digits(value)} in {name}" for name, value in list(ranges.items())[:3])
    more = f" and {len(ranges) - 3} more" if len(ranges) > 3 else ""
    return found, (
        f"C is the largest loss seen in any of the runs, {digits(most)} ({each}{more}); "
        f"what contains C is rescaled to it: {', '.join(names) or 'nothing here'}."
    )


def _contains_range(bound: str, run: Results) -> bool:
    """Whether a run's bound has its observed C in it; as the published scripts compute it, it has one of its own."""
    if bound not in BOUNDS or run.quantities.get(BOUNDS[bound].maximum_over or "", {}).get("loss_range") is not None:
        return False
    return BOUNDS[bound].range_power > 0


def _scaled(name: str, row: Row, ratio: float, run: Results) -> Row:
    """A bound's row with C times a ratio; its other forms, which are no powers of C, are left out."""
    factor = ratio ** BOUNDS[name].range_power
    if factor == 1 or (row["value"] is None and row["log10"] is None):
        return row
    scaled = {side: None if row[side] is None else factor * row[side] for side in SIDES}
    log10 = None if row["log10"] is None else row["log10"] + math.log10(factor)
    found = Row(row, **scaled, log10=log10, forms={"main_term": Row(log10=log10)})
    if "over_samples" in row:
        found["over_samples"] = {side: factor * value for side, value in row["over_samples"].items()}
    # The gap and the constant predictor of the row are those that it was held against before.
    unit = REWEIGHTED if name == NOISY else UNITS.get(row["bounds"])
    gap = None if unit is None else losses(run).get(unit.gap)
    if row.get("gap_ratio") and row["value"]:
        gap = row["value"] / row["gap_ratio"]
    found |= against_gap(found["value"], gap)
    limit = None if unit is None else vacuous_from(run, unit)
    if not row["vacuous"] and limit is not None and found["value"] is not None:
        found["vacuous"] = found["value"] >= limit
    found |= unknown_of_all(found)
    return found
