"""What is known before anything is measured, and the catalogues, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tabulate import tabulate

from genbound.bounds import BOUNDS
from genbound.quantities import QUANTITIES


def catalogue(what: str | None = None) -> str:
    """One line for each quantity and bound."""
    rows = []
    if what in (None, "quantities"):
        for q in QUANTITIES.values():
            needs = ["model and data" if q.needs_data else "weights", *q.requires]
            rows.append([q.name, q.summary, ", ".join(needs), q.reference])
    if what in (None, "bounds"):
        rows += [[b.name, b.summary, ", ".join(b.requires), b.reference] for b in BOUNDS.values()]
    return tabulate(rows, ["name", "what it is", "needs", "reference"], tablefmt="plain")


def describe(pair: Any, problem: Any, measures: Iterable[str] | None, options: Mapping[str, Mapping[str, Any]]) -> str:
    """The report of ``genbound inspect``."""
    from genbound.evaluation.selection import resolve

    names, _ = resolve(measures)
    lines = [f"architecture   {pair.rule}"]
    lines += [f"{what:<14} {pair.provenance[what]['path']}  sha256 {pair.provenance[what]['sha256'][:12]}…"
              for what in ("checkpoint", "init")]  # fmt: skip
    lines += [
        f"head           {', '.join(pair.head) or 'none found'}; policy {pair.head_policy}. {pair.head_note}".rstrip()
    ]
    lines += pair.alignment.lines()
    lines += [f"note           {note}" for note in pair.notes if not note.startswith("resized")]
    lines += [f"low rank       {len(pair.factors)} displacements are kept as two factors"] if pair.factors else []
    if problem.data is None:
        lines += ["", f"{problem.reason}; of the weights alone:", ""]
        rows = [[layer.name, " x ".join(map(str, layer.shape))] for layer in problem.layers]
        return "\n".join([*lines, tabulate(rows, ["layer", "shape"], tablefmt="simple", disable_numparse=True)])
    lines += [
        f"data           {problem.data.spec}: {len(problem.data)} samples, {problem.num_samples} to be measured, "
        f"n = {problem.num_data}",
        f"loss           {problem.loss.name}; loss range {problem.loss_range_spec}; {problem.num_outputs} outputs",
        f"numbers        {str(problem.dtype).removeprefix('torch.')} on {problem.device}; attention in its plain form",
        "",
    ]
    rows = [
        [
            layer.name, layer.kind, " x ".join(map(str, layer.shape)),
            "yes" if layer.positive_semidefinite else f"no: {layer.curved_by or 'loss'}",
            "" if layer.by_batch else "one sample a pass",
        ]
        for layer in problem.layers
    ]  # fmt: skip
    head = ["layer", "kind", "shape", "block is PSD", ""]
    lines += [tabulate(rows, head, tablefmt="simple", disable_numparse=True), "", *_cost(problem, names, options)]
    return "\n".join(lines)


def _cost(problem: Any, names: list[str], options: Mapping[str, Mapping[str, Any]]) -> list[str]:
    from genbound.evaluation.forecast import forecast

    cost = forecast(problem, names, options)
    rows = [
        [name, f"{g:.1f}", _duration(g * cost.seconds_per_gradient)] for name, g in cost.gradients.items()
    ] + [["all", f"{sum(cost.gradients.values()):.1f}", _duration(cost.seconds)]]  # fmt: skip
    return [
        f"A gradient over the measured samples takes {_duration(cost.seconds_per_gradient)}. Forecast, "
        "within a factor of about 3:",
        "",
        tabulate(rows, ["quantity", "gradients", "time"], tablefmt="simple", disable_numparse=True),
        "",
        f"Peak memory of the tensors: about {cost.peak_bytes / 2**20:.0f} MiB at batch size {problem.batch_size}.",
    ]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
