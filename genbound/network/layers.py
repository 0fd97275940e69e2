r"""The only place that decides what "layer i" is.

A layer is a floating-point parameter with at least two dimensions, named as in ``named_parameters()``. A tied weight
has one name and is one layer. A weight that is only ever looked up or added (word and position embeddings, class
tokens) is left out unless ``--layers`` names it; one that also acts as a linear map is a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from genbound.errors import GenboundError
from genbound.estimators.random import generator, normal
from genbound.network.graph import Graph, result_shape
from genbound.network.operation import Kind
from genbound.network.operations import of_node
from genbound.network.read_pass import ReadPass
from genbound.network.tape import Tape
from genbound.network.weight_uses import Use

if TYPE_CHECKING:
    from genbound.network.network import Network


WEIGHT_AT = {"addmm": 2, "mm": 1, "convolution": 1}  # operand in which a map has its weight


@dataclass(frozen=True)
class Layer:
    """One layer and what the executed operations say about it.

    Attributes:
        name: parameter name.
        kind: ``linear``, ``convolution``, ``embedding``, ``weight`` (used by an operation that is handled in weight
            space) or ``unused``.
        shape: of the parameter.
        num_uses: how often one forward pass uses it.
        positive_semidefinite: its Hessian block is known to be so for every sample.
        curved_by: first executed operation that makes the output curved in this weight; empty if none does.
        by_batch: samples can share a forward pass.
        samples_first: order of the rows of the operation that uses it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    num_uses: int
    positive_semidefinite: bool
    curved_by: str
    by_batch: bool
    samples_first: bool

    @property
    def num_weights(self) -> int:
        """How many numbers the weight has."""
        return torch.Size(self.shape).numel()


def _is_table(tape: ReadPass, name: str) -> bool:
    """The weight is only looked up, added or joined to others: it is a table of vectors, not a linear map.

    What is made of weights alone is still a weight (``cat([Wq, Wk])``, ``W.T + dW.T``), and so is a sum of the weight's
    own shape (``W + dW``): what is done with them decides. So it does where something is joined to a weight of which
    the record does not say whether it is a constant (frozen rows of a head) or of the samples.
    """
    if not tape.uses[name]:
        return False
    consumers, made_of_weights, found = tape.graph.consumers, tape.graph.made_of_weights, False
    pending = list(consumers[tape.graph.leaves[name]])
    while pending:
        node, _ = pending.pop()
        row = of_node(node)
        if row.joins and (node in made_of_weights or _is_sum(node, tape.weights[name].shape)):
            pending += consumers[node]
        elif row.name == "embedding" or row.joins:
            if row.joins and _is_applied(tape.graph, node):
                return False
            found = True
        elif row.kind is Kind.ROUTE:
            pending += consumers[node]
        else:
            return False
    return found


def _is_sum(node: Node, shape: torch.Size) -> bool:
    """Whether an operation adds to a weight of this shape, and not that to every sample."""
    return of_node(node).kind is Kind.LINEAR and result_shape(node) == shape


def _is_applied(graph: Graph, node: Node) -> bool:
    """Whether a result comes to stand, as it is or joined to more, where linear maps and convolutions have a weight."""
    pending = list(graph.consumers[node])
    while pending:
        consumer, position = pending.pop()
        row = of_node(consumer)
        if WEIGHT_AT.get(row.name) == position:
            return True
        if row.joins or row.kind is Kind.ROUTE:
            pending += graph.consumers[consumer]
    return False


def select_layers(
    network: Network, pattern: str | Iterable[str] | None = None, excluded: Sequence[str] = ()
) -> tuple[Layer, ...]:
    """Find the layers of a network from what a forward pass executes.

    Args:
        network: whose weights are looked through.
        pattern: ``*`` wildcards, comma separated or one after the other; only matching parameters, embeddings included.
        excluded: parameters that are not layers (an excluded head).

    Cost: two or three forward and four to six backward passes over at most four samples.
    """
    wanted = patterns(pattern)
    candidates = candidates_for(network.params, wanted, excluded)
    run, last = network.spread_run(3), network.num_samples - 1
    tape, *others = (Tape(network, r, dict.fromkeys(candidates, True)) for r in (run, *([last],) * (last not in run)))
    return layers_in(tape, wanted, _row_orders(network, run, tape), others, fixed_tables(network.model))


def layers_in(
    tape: ReadPass,
    wanted: Sequence[str],
    orders: Mapping[str, bool | None],
    others: Sequence[ReadPass] = (),
    fixed: Collection[str] = (),
) -> tuple[Layer, ...]:
    """The layers among the weights that a pass was read with.

    Args:
        tape: the pass.
        wanted: the patterns that its weights were named by, if any.
        orders: weight -> order of the rows of its operations; ``None`` where samples must be passed one at a time.
        others: of samples of other shapes, whose code may be another: a block is positive semidefinite in all or not.
        fixed: tables that nobody trains; a network may look them up where autograd does not see it.
    """
    if not wanted and not any(tape.uses.values()):
        raise GenboundError(
            "no weight has a gradient path to the model's output: is the output detached, or computed under "
            "torch.no_grad()?"
        )
    unseen = {name for name in fixed if not tape.uses.get(name)}
    kept = [name for name in tape.layers if wanted or not (name in unseen or _is_table(tape, name))]
    if not kept:
        raise GenboundError("every weight is an embedding: name the ones to measure with --layers")
    return tuple(_describe(tape, name, orders[name], others) for name in kept)


def fixed_tables(model: nn.Module) -> list[str]:
    """Weights of embeddings that need no gradient, such as the sines of RoFormer's positions."""
    tables = ((path, m) for path, m in model.named_modules() if isinstance(m, nn.Embedding))
    return [f"{path}.weight" for path, m in tables if not m.weight.requires_grad]


def patterns(pattern: str | Iterable[str] | None) -> list[str]:
    """The patterns of ``--layers``, comma separated or one after the other."""
    parts = pattern.split(",") if isinstance(pattern, str) else pattern or ()
    return [part.strip() for part in parts if part.strip()]


def candidates_for(params: Mapping[str, Tensor], wanted: Sequence[str], excluded: Sequence[str]) -> list[str]:
    """Names of the weights that may be layers: of two dimensions, named by a pattern if there is one."""
    candidates = [name for name, p in params.items() if p.dim() >= 2 and p.is_floating_point()]
    for part in wanted:
        if not any(fnmatchcase(name, part) for name in candidates):
            raise GenboundError(
                f"--layers {part!r} matches no weight; the weights are {', '.join(candidates[:4])}"
                f"{', …' if len(candidates) > 4 else ''}"
            )
    if wanted:
        candidates = [name for name in candidates if any(fnmatchcase(name, part) for part in wanted)]
    candidates = [name for name in candidates if name not in set(excluded)]
    if not candidates:
        raise GenboundError("the checkpoint has no weight with two or more dimensions: there is no layer to measure")
    return candidates


def _describe(tape: ReadPass, name: str, order: bool | None, others: Sequence[ReadPass]) -> Layer:
    """What a pass with this layer says about it; its curvature is that of any pass."""
    uses, passes = tape.uses[name], (tape, *others)
    return Layer(
        name=name,
        kind="embedding" if _is_table(tape, name) else uses[0].kind if uses else "unused",
        shape=tuple(tape.weights[name].shape),
        num_uses=len(tape.graph.consumers[tape.graph.leaves[name]]) if uses else 0,
        positive_semidefinite=all(name in one.positive_semidefinite for one in passes),
        curved_by=next((one.curved_by[name] for one in passes if one.curved_by.get(name)), ""),
        by_batch=order is not None,
        samples_first=order is not False,
    )


def _row_orders(network: Network, run: list[int], tape: Tape) -> dict[str, bool | None]:
    """How the rows of each weight's operations belong to the samples, found by experiment.

    True: sample by sample; False: position by position; None: neither, or not to be seen on these samples, so that
    samples must be passed one at a time.

    Args:
        network: whose weights are looked through.
        run: positions that share a pass.
        tape: their pass, of all weights that may be layers.
    """
    if len(run) == 1:  # no two can share a pass; copies of one do, each with noise of its own
        run = run * max(2, min(3, network.batch_size))
        try:
            tape = Tape(network, run, dict.fromkeys(tape.layers, True))
        except torch.OutOfMemoryError:
            raise
        except (GenboundError, RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            # A network that takes one sample alone says so in its own way.
            return dict.fromkeys(tape.layers)
    fitting = _fitting(tape)
    if len(run) > 2:
        fewer = _fitting(Tape(network, run[:2], dict.fromkeys(tape.layers, True)))
        fitting = {order: names & fewer[order] for order, names in fitting.items()}
    found: dict[str, bool | None] = dict.fromkeys(tape.layers)
    for order, names in fitting.items():  # the later, usual order wins where both fit
        found |= dict.fromkeys(names, order)
    return found


def _fitting(tape: Tape) -> dict[bool, set[str]]:
    """The layers of a tape whose rows belong to the samples position by position, and sample by sample.

    Multiplying random combinations of the samples' outputs by different powers of two multiplies exactly the rows that
    belong to them (of the outputs, because a loss may be flat in some samples and then says nothing about their rows).
    """
    if not tape.edges(tape.layers):
        return {False: set(tape.layers), True: set(tape.layers)}
    outputs = tape.outputs
    scale = 2.0 ** torch.arange(len(tape), dtype=outputs.dtype, device=outputs.device)
    # The same combination for every sample: no sample's gradient is small for its loss's sake.
    combination = normal(tuple(outputs.shape[1:]), generator(0, "row_order"), outputs).expand_as(outputs)
    once = tape.backward(combination, tape.layers)
    scaled = tape.backward(scale.view(-1, *[1] * (outputs.dim() - 1)) * combination, tape.layers)

    def fits(name: str, order: bool) -> bool:
        uses = tape.uses_in_order(name, order)
        return all(_rows_follow(use, a, b, scale) for use, a, b in zip(uses, once[name], scaled[name], strict=True))

    return {order: {name for name in tape.layers if fits(name, order)} for order in (False, True)}


def _rows_follow(use: Use, once: Tensor | None, scaled: Tensor | None, scale: Tensor) -> bool:
    """Whether gradients at a use's result, of its shape, are multiplied by ``scale [N]`` sample by sample."""
    if not use.by_sample:
        return False
    if once is None or scaled is None:
        return once is None
    expected, found = use.per_sample(once) * scale.to(once.device).unsqueeze(1), use.per_sample(scaled)
    size = float(expected.abs().max()) if expected.numel() else 0.0  # none of the samples reach it
    return size > 0 and bool(((expected - found).abs() <= 1e-3 * size).all())
