"""The answer in a few sentences: is there a guarantee, how does the measure stand to the gap, what drives it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from genbound.bounds.reading import UNVERIFIED, VIOLATED
from genbound.formatting import digits, gap_text, rounded_up, surely, value_text
from genbound.results.gap import UNITS, measured_gap, vacuous_from

if TYPE_CHECKING:
    from genbound.results.results import Results

# The project's own rows, the one that says most first.
OURS = ("noisy_label_distance", "hessian_distance", "trace_distance", "zhang2024")
GUARANTEE, GAP, DRIVER = "Is it a guarantee?", "How does it stand to the gap?", "Which layer drives it?"
RESTS, SHARPER = "What does it rest on?", "What would sharpen it?"
WORSE = "Did it get worse?"  # than an earlier run: two runs answer that (glance.change)
OTHER_NETWORKS = ("error of the noisy network", "error of the quantised network")  # than the checkpoint
LONGEST = 90  # characters of a sample that are shown


def verdict(results: Results) -> list[str]:
    """What a reader wants to know first, a sentence or two each; empty where there are no bounds.

    Args:
        results: a run, fresh or stored.

    Returns:
        Whether there is a guarantee; how the leading measure stands to the measured gap; the layer and the sample that
        carry most of it; what it rests on; what would sharpen it.
    """
    return list(answers(results).values())


def answers(results: Results) -> dict[str, str]:
    """The verdict by the questions that it answers; a question without an answer is left out."""
    if not results.bounds:
        return {}
    name = leading(results)
    said = {GUARANTEE: _guarantee(results)}
    if name is not None:
        said |= {GAP: _against_gap(results, name), DRIVER: _driver(results), RESTS: _rests_on(results, name)}
    return {question: line for question, line in {**said, SHARPER: _sharper(results, name)}.items() if line}


def leading(results: Results) -> str | None:
    """The row that the verdict is about: the project's own first, then the first measure that has a value."""
    valued = [
        name for name, row in results.bounds.items() if row["value"] is not None and row["kind"] in ("bound", "measure")
    ]
    return next((name for name in (*OURS, *valued) if name in valued), None)


def short_rows(results: Results) -> list[str]:
    """The rows of the short table, in the order of the whole one: ours, certificates, the smallest competitor.

    Empty where none of these has a value, as without a model.
    """
    name = leading(results)
    kept = {name} | {other for other, row in results.bounds.items() if row["kind"] == "certificate"}
    rivals = {
        other: row["value"]
        for other, row in results.bounds.items()
        if name is not None and other not in (*OURS, *kept) and row["value"] is not None
        and row["kind"] in ("bound", "measure") and row["bounds"] == results.bounds[name]["bounds"]
    }  # fmt: skip
    kept |= {min(rivals, key=lambda other: rivals[other])} if rivals else set()
    found = [other for other in results.bounds if other in kept]
    return found if any(results.bounds[other]["value"] is not None for other in found) else []


# -- the sentences ----------------------------------------------------------------------------------------------------


def _guarantee(results: Results) -> str:
    rows = certified(results)
    if rows:
        best = min(rows, key=lambda name: rows[name]["value"])
        if rows[best]["vacuous"]:
            value = rounded_up(rows[best]["value"])
            return f"No guarantee that says anything: {best} is {value}, no better than the best constant prediction."
        said = f"Guaranteed: {best}, at most {rounded_up(rows[best]['value'])} ({whose(rows[best])})"
        return said + _how_surely(results, len(rows)) + "."
    stated = [n for n, row in results.bounds.items() if row["kind"] == "bound" and row["value"] is not None]
    if stated:
        return f"No certificate. Under the assumptions that their notes state, these are bounds: {', '.join(stated)}."
    certificates = {name: row for name, row in results.bounds.items() if row["kind"] == "certificate"}
    broken = next((name for name, row in certificates.items() if row["value"] is not None), None)
    if broken is not None:
        return f"No guarantee: {broken}, {certificates[broken]['note'].split(';')[0]}."
    if certificates:
        return "No guarantee: no certificate has a value; the notes say why."
    return "No guarantee: none of the rows is a certificate, each is a measure or a norm."


def whose(row: Mapping[str, Any]) -> str:
    """What a certificate bounds, with the network where that is not the checkpoint."""
    return next((said for said in OTHER_NETWORKS if said in row["note"]), row["bounds"])


def certified(results: Results) -> dict[str, Mapping[str, Any]]:
    """The certificates that have a value, and no assumption that is broken or that nobody could verify."""
    rows = {n: row for n, row in results.bounds.items() if row["kind"] == "certificate" and row["value"] is not None}
    return {
        name: row for name, row in rows.items() if not any(doubt in row["note"] for doubt in (UNVERIFIED, VIOLATED))
    }


def _how_surely(results: Results, num: int) -> str:
    """With which probability the least of several certificates holds: each of them fails with delta."""
    delta = results.config.get("delta")
    if num < 2 or delta is None:
        return ""
    return f", the least of {num} and so with probability {surely(num * delta)} (each alone: {surely(delta)})"


def _against_gap(results: Results, name: str) -> str:
    row = results.bounds[name]
    said = f"{name} is {value_text(row)} in units of the {row['bounds']}"
    gap = measured_gap(results, row["bounds"]) if row["bounds"] in UNITS else None
    if row.get("below_gap"):
        said += f", below the measured gap{_number(gap)}: it did not bound this network"
    elif row.get("at_least") and row.get("gap_ratio") is not None and row["gap_ratio"] < 1:
        said += f", of {_looked_at(row)} below the measured gap{_number(gap)}: {_over_all(row)} it may be above"
    elif row.get("gap_ratio") is not None:
        said += f", {gap_text(row)} times the measured gap{_number(gap)}"
    elif gap is not None:
        said += f"; the measured gap{_number(gap)} is not above zero"
    else:
        said += "; no gap was measured, for there are no test data"
    if row["vacuous"] is not None and not row.get("below_gap"):
        side = "no better than (vacuous)" if row["vacuous"] else "better than (not vacuous)"
        said += f". Added to the training {row['bounds']} it is {side} the best constant prediction"
    elif row.get("at_least") and _limit(results, row) is not None:
        said += f". Whether it is vacuous {_over_all(row)} is not known"
    return said + "."


def _limit(results: Results, row: Mapping[str, Any]) -> float | None:
    """The value from which the row is vacuous; ``None`` where nothing makes it so."""
    unit = UNITS.get(row.get("bounds", ""))
    return None if unit is None else vacuous_from(results, unit)


def _looked_at(row: Mapping[str, Any]) -> str:
    return "these samples" if "num_data" in row else "what was searched"


def _over_all(row: Mapping[str, Any]) -> str:
    """Where a lower limit's value is not known: over all samples, or past what a search has found."""
    return f"over all {row['num_data']}" if "num_data" in row else "past what was searched"


def _number(gap: float | None) -> str:
    return "" if gap is None else f" of {digits(gap)}"


def _driver(results: Results) -> str:
    found = driving_layer(results)
    if found is None:
        return ""
    layer, share = found
    rows = results.quantities["max_quadratic_form"]["layers"]
    said = f"Layer {layer} carries {100 * share:.0f} % of the Hessian distance ({len(rows)} layers)"
    sample = rows[layer].get("sample")
    if sample is None:
        return said + "."
    return f"{said}; its largest sample is number {sample}{_shown(results, sample)}."


def driving_layer(results: Results) -> tuple[str, float] | None:
    """The layer with the largest term of the Hessian distance and its share, a fraction; ``None`` without terms."""
    rows = results.quantities.get("max_quadratic_form", {}).get("layers", {})
    terms = {name: math.sqrt(max(row["upper"] or 0.0, 0.0)) for name, row in rows.items()}
    total = sum(terms.values())
    if not total > 0 or not math.isfinite(total):
        return None
    layer = max(terms, key=lambda name: terms[name])
    return layer, terms[layer] / total


def _shown(results: Results, sample: int) -> str:
    """What is known of a sample: its label, and its text or file."""
    entry: Mapping[str, Any] = (results.data.get("shown") or {}).get(str(sample), {})
    parts = [f"label {entry['label']}"] if entry.get("label") is not None else []
    if entry.get("text"):
        text = " ".join(str(entry["text"]).split())
        parts.append(f"“{text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}”")
    return f" ({', '.join(parts)})" if parts else ""


def _rests_on(results: Results, name: str) -> str:
    row, config = results.bounds[name], results.config
    measured, num_data = row.get("num_samples", config["num_samples"]), row.get("num_data", config["num_data"])
    if not measured:
        return ""
    whole = "all" if measured >= num_data else f"{measured} of the"
    said = f"It rests on {whole} {num_data} training samples"
    if row["lower"] is not None and row["upper"] is not None and row["value"]:
        width = (row["upper"] - row["lower"]) / abs(row["value"])
        said += f"; what was measured is known to {100 * width:.2g} %" if width > 5e-4 else ""
    if not row.get("at_least"):
        return said + "."
    return said + (
        ", so over all samples it may be larger." if "num_data" in row else "; it may be larger: see its note."
    )


def _sharper(results: Results, name: str | None) -> str:
    """What the user can do for a sharper answer, the flags named."""
    return "Sharper with: " + "; ".join(steps) + "." if (steps := list(_steps(results, name))) else ""


def _steps(results: Results, name: str | None) -> Iterator[str]:
    config = results.config
    row: Mapping[str, Any] = results.bounds[name] if name else {}
    if not results.quantities:
        yield "--data, and --model where the checkpoint does not say which network it is"
    if results.quantities.get("losses", {}).get("num_test") in (None, 0) and config["num_samples"]:
        yield "--test-data for the gap"
    if row.get("at_least") and "num_data" in row:
        yield f"--samples {row['num_data']} for the maximum over all samples"
    if config["loss_range"]["kind"] == "observed" and _limit(results, row) is not None:
        yield "--loss-range bounded:PMIN or clip:C for a C that does not hang on the samples seen"
