"""The verdict in a few words: what a card, or a row of several runs, has room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from genbound.formatting import gap_text, rounded_up, value_text
from genbound.results.likeness import of_one_network
from genbound.results.regression import Check, check
from genbound.results.verdict import DRIVER, GAP, GUARANTEE, certified, driving_layer, leading, whose

if TYPE_CHECKING:
    from genbound.results.results import Results

MOST = 3  # bounds that are named
FAILED = ("regression", "missing")
LOWER = "Lower, of one checkpoint as far as is known"


def in_short(results: Results) -> dict[str, str]:
    """The questions of :func:`~genbound.results.verdict.answers` that have an answer of a few words, with it."""
    name = leading(results)
    found = {GUARANTEE: _guarantee(results)} if results.bounds else {}
    if name is not None:
        found[GAP] = _against_gap(results.bounds[name])
    driver = driving_layer(results)
    if driver is not None:
        found[DRIVER] = f"{driver[0]} ({100 * driver[1]:.0f} %)"
    return found


def change(results: Results, baseline: Results) -> tuple[str, str]:
    """Whether a run is worse than an earlier one, by its bounds.

    Args:
        results: the later run.
        baseline: the earlier one.

    Returns:
        The answer in a few words, and what it rests on.
    """
    found = check(results, baseline, same_network=of_one_network(results, baseline))
    apart = [row.where for row in found.rows if row.measure == "configuration"]
    if apart:
        return "Not to be told", f"They were measured differently: {', '.join(apart)}."
    better, same = (_moves(found, results, statuses) for statuses in (("improved",), ("ok",)))
    worse, lower = (_moves(found, results, FAILED, fell) for fell in (False, True))
    said = [
        f"{word}: {', '.join(moves[:MOST])}{f' and {len(moves) - MOST} more' if len(moves) > MOST else ''}."
        for word, moves in (("Worse", worse), ("Better", better), (LOWER, lower))
        if moves
    ]
    said += [f"The same within the errors: {len(same)} bound{'s' * (len(same) > 1)}."] if same else []
    unknown = [row for row in found.rows if row.measure == leading(results) and row.status == "skipped"]
    if unknown and not worse:
        return "Not to be told", " ".join([f"{unknown[0].measure}: {unknown[0].note}.", *said])
    if not said:
        return "Not to be told", "They have no value of a bound in common."
    return "Yes" if worse else "No, better" if better else "Not to be told" if lower else "No", " ".join(said)


def _moves(found: Check, results: Results, statuses: tuple[str, ...], fell: bool | None = None) -> list[str]:
    """The bounds whose value moved like this, the leading one first, each with its change.

    ``fell`` takes those alone that fell, or that did not.
    """
    rows = [row for row in found.rows if row.measure in results.bounds and not row.where and row.status in statuses]
    rows = [row for row in rows if fell is None or row.fell is fell]
    rows.sort(key=lambda row: row.measure != leading(results))
    return [f"{row.measure} ({row.difference or row.note})" for row in rows]


def _against_gap(row: Mapping[str, Any]) -> str:
    if row.get("below_gap"):
        return "Below the measured gap"
    return value_text(row) if row.get("gap_ratio") is None else f"{gap_text(row)} × the measured gap"


def _guarantee(results: Results) -> str:
    rows = [row for row in results.bounds.values() if row["value"] is not None]
    if guaranteed := certified(results).values():
        best = min(guaranteed, key=lambda row: row["value"])
        return "None that says anything" if best["vacuous"] else f"Yes: {whose(best)} ≤ {rounded_up(best['value'])}"
    return "Under assumptions" if any(row["kind"] == "bound" for row in rows) else "No"
