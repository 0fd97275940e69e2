"""What is known before anything is measured, and the catalogues, as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from genbound.bounds import BOUNDS
from genbound.cli.terminal import Columns
from genbound.errors import GenboundError
from genbound.formatting import duration as _duration
from genbound.quantities import QUANTITIES

if TYPE_CHECKING:
    from genbound.checkpoints.pair import Pair
    from genbound.evaluation.loading import EvaluationSpec
    from genbound.evaluation.selection import Selection
    from genbound.network.layers import Layer
    from genbound.network.placement import DeviceMap
    from genbound.network.problem import Problem
    from genbound.network.weights import WeightProblem


def catalogue(what: str | None = None) -> Columns:
    """One line for each quantity and bound."""
    rows = []
    if what in (None, "quantities"):
        for q in QUANTITIES.values():
            needs = ["model and data" if q.needs_data else "weights", *q.requires]
            needs += ["to be named"] * q.on_request
            rows.append([q.name, q.summary, ", ".join(needs), q.reference])
    if what in (None, "bounds"):
        rows += [[b.name, b.summary, ", ".join(b.requires), b.reference] for b in BOUNDS.values()]
    return Columns(["name", "what it is", "needs", "reference"], rows, "plain")


def describe(
    pair: Pair, problem: Problem | WeightProblem, selection: Selection, effort: str
) -> list[str | Columns]:  # fmt: skip
    """The report of ``genbound inspect``: its lines and tables.

    Args:
        pair: the two checkpoints.
        problem: what would be measured.
        selection: the quantities that were asked for, with their options.
        effort: what those that nobody named may take.
    """
    from genbound.network.weights import WeightProblem

    if isinstance(problem, WeightProblem):
        weights = _table(["layer", "shape"], [[layer.name, _shape(layer)] for layer in problem.layers])
        return [*_of_pair(pair), "", f"{problem.reason}; of the weights alone:", "", weights]
    remarks = [f"note           {remark}" for remark in problem.remarks if remark not in pair.remarks]
    known = [*_of_pair(pair), *_of_data(problem), *remarks]
    return [*known, "", _layers(problem.layers), "", *_cost(problem, selection, effort)]


def describe_shapes(
    pair: Pair, spec: EvaluationSpec, output: str | None, device_map: str | DeviceMap | None
) -> list[str | Columns]:  # fmt: skip
    """Likewise what names and shapes alone say: a pass of tensors without numbers finds the layers.

    Args:
        pair: the two checkpoints, whose weights were not looked at.
        spec: what is said about samples and loss.
        output: which output holds the scores.
        device_map: whose names are checked; no device is asked for.

    Raises:
        GenboundError: there is no model or no data, the map names what the model has not, or the forward pass asks for
            numbers.
    """
    from genbound.evaluation.loading import loss_and_samples
    from genbound.network.device_map import check_device_map
    from genbound.network.layers_by_shape import layers_by_shape
    from genbound.network.loss_functions import get_loss

    if pair.model is None or spec.data is None:
        raise GenboundError("--no-weights runs the model on shapes: give its architecture (--model) and --data")
    check_device_map(pair.model, device_map)
    named, (samples, _, _) = loss_and_samples(pair, pair.model, spec)
    loss = get_loss(named)
    batch = samples.batch(list(range(min(2, len(samples)))))
    layers, shape = layers_by_shape(
        pair.model, batch, loss.convex and spec.loss_range in (None, "observed"),
        pattern=spec.layers, excluded=pair.excluded, output=output,
    )  # fmt: skip
    outputs = " x ".join(map(str, shape[1:])) or "1"
    return [
        *_of_pair(pair),
        f"data           {samples.spec}: {len(samples)} samples",
        f"loss           {loss.name}; outputs of a sample {outputs}",
        "numbers        none were read: nothing is checked",
        "", _layers(layers), "",
    ]  # fmt: skip


def _of_pair(pair: Pair) -> list[str]:
    """Which files, which architecture, which head, and how the names go together."""
    head = f"{', '.join(pair.head) or 'none found'}; policy {pair.head_policy}. {pair.head_note}".rstrip()
    files = [
        f"{what:<14} {pair.provenance[what]['path']}" + (f"  sha256 {digest[:12]}…" if digest else "")
        for what in ("checkpoint", "init")
        for digest in [pair.provenance[what]["sha256"]]
    ]
    notes = [f"note           {note}" for note in pair.notes if not note.startswith("resized")]
    factors = f"low rank       {len(pair.factors)} displacements are kept as two factors"
    return [
        f"architecture   {pair.rule}", *files, f"head           {head}", *pair.alignment.lines(), *notes,
        *([factors] if pair.factors else []),
    ]  # fmt: skip


def _of_data(problem: Problem) -> list[str]:
    """What the network is measured on, and in which numbers."""
    dtype, devices = str(problem.dtype).removeprefix("torch."), ", ".join(map(str, problem.devices))
    return [
        f"data           {problem.data.spec}: {len(problem.data)} samples, {problem.num_samples} to be measured, "
        f"n = {problem.num_data}",
        f"loss           {problem.loss.name}; loss range {problem.loss_range_spec}; {problem.num_outputs} outputs",
        f"numbers        {dtype} on {devices}; attention in its plain form",
    ]


def _layers(layers: Iterable[Layer]) -> Columns:
    rows = [
        [
            layer.name, layer.kind, _shape(layer),
            "yes" if layer.positive_semidefinite else f"no: {layer.curved_by or 'loss'}",
            "" if layer.by_batch else "one sample a pass",
        ]
        for layer in layers
    ]  # fmt: skip
    return _table(["layer", "kind", "shape", "block is PSD", "note"], rows)


def _cost(problem: Problem, selection: Selection, effort: str) -> list[str | Columns]:
    """The forecast of time and memory, of what is measured and of what is left out."""
    from genbound.evaluation.effort import plan
    from genbound.evaluation.forecast import forecast_of

    planned = plan(problem, selection, effort)
    cost = forecast_of(problem, planned)

    def row(name: str, gradients: float, seconds: float, remark: str = "") -> list[str]:
        return [name, f"{gradients:.1f}", _duration(seconds), remark]

    rows = [row(name, gradients, cost.seconds_of[name]) for name, gradients in cost.gradients.items()]
    rows.append(row("all", sum(cost.gradients.values()), cost.seconds))
    options = planned.selection.options
    unforeseen = dict.fromkeys(QUANTITIES[name].unforeseen(problem, options[name]) for name in cost.gradients)
    excepted = " but for what is said below of what is not known yet" * any(unforeseen)
    left = {name: planned.gradients[name] for name in planned.left_out}
    rows += [row(name, n, n * cost.seconds_per_gradient, f"left out of --effort {effort}") for name, n in left.items()]
    return [
        f"A gradient over the measured samples takes {_duration(cost.seconds_per_gradient)}. Forecast where nothing "
        f"else runs, within a factor of about 1.5 in all{excepted}, and less well for a single quantity:",
        "",
        _table(["quantity", "gradients", "time", "note"], rows),
        *_sentences([*planned.remarks, *(said for said in unforeseen if said)]),
        "",
        "Peak memory of weights and passes, with what is freed and kept for later tensors: about "
        f"{cost.peak_bytes / 2**20:.0f} MiB at batch size {problem.batch_size}.",
    ]


def _sentences(remarks: Iterable[str]) -> list[str]:
    said = [f"{remark[0].upper()}{remark[1:]}." for remark in remarks]
    return ["", *said] if said else []


def _table(head: list[str], rows: list[list[str]]) -> Columns:
    """A table, without a last column that says nothing."""
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return Columns(head, rows)


def _shape(layer: Layer) -> str:
    return " x ".join(map(str, layer.shape))
