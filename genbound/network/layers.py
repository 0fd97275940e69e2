r"""The only place that decides what "layer i" is.

A layer is a floating-point parameter with at least two dimensions, named as in ``named_parameters()``. A tied weight has
one name and is one layer. A weight that is only ever looked up or added (word and position embeddings, class tokens)
is left out unless ``--layers`` names it; one that also acts as a linear map is a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from genbound.errors import GenboundError
from genbound.estimators.random import generator, normal
from genbound.network.graph import Graph, operation


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
        return torch.Size(self.shape).numel()


_ROUTES = frozenset(
    {
        "Expand",
        "Slice",
        "Select",
        "View",
        "UnsafeView",
        "Unsqueeze",
        "Squeeze",
        "Index",
        "IndexSelect",
        "Repeat",
        "Clone",
    }
)


def _is_table(graph: Graph, name: str) -> bool:
    """The weight is only looked up, added or concatenated: it is a table of vectors, not a linear map."""
    pending, found = list(graph.consumers[graph.leaves[name]]), False
    while pending:
        node, _ = pending.pop()
        if operation(node) in _ROUTES:
            pending += graph.consumers[node]
        elif operation(node) in ("Embedding", "Add", "Cat"):
            found = True
        else:
            return False
    return found


def select_layers(problem, pattern: str | None = None, excluded: Sequence[str] = ()) -> tuple[Layer, ...]:
    """Find the layers of a problem from what a forward pass executes.

    Args:
        problem: a problem whose weights and samples are in place.
        pattern: ``*`` wildcards, comma separated; only matching parameters, embeddings included.
        excluded: parameters that are not layers (an excluded head).

    Cost: a few forward and backward passes over at most three samples.
    """
    candidates = [name for name, p in problem.params.items() if p.dim() >= 2 and p.is_floating_point()]
    wanted = [part.strip() for part in (pattern or "").split(",") if part.strip()]
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
        raise GenboundError("the model has no weight with two or more dimensions: there is no layer to measure")

    run = problem.shared_run(3)
    orders = _row_order(problem, run, candidates)
    tape = problem.tape(run, candidates)
    if not wanted and not any(tape.uses.values()):
        raise GenboundError(
            "no weight has a gradient path to the model's output: is the output detached, or computed under torch.no_grad()?"
        )
    layers = []
    for name in candidates:
        uses = tape.uses[name]
        table = bool(uses) and _is_table(tape.graph, name)
        if table and not wanted:
            continue
        kind = "embedding" if table else uses[0].kind if uses else "unused"
        layers.append(
            Layer(
                name=name,
                kind=kind,
                shape=tuple(problem.params[name].shape),
                num_uses=len(tape.graph.consumers[tape.graph.leaves[name]]) if uses else 0,
                positive_semidefinite=name in tape.positive_semidefinite,
                curved_by=tape.curved_by.get(name, ""),
                by_batch=orders[name] is not None,
                samples_first=orders[name] is not False,
            )
        )
    if not layers:
        raise GenboundError("every weight is an embedding: name the ones to measure with --layers")
    return tuple(layers)


def _row_order(problem, run: list[int], candidates: list[str]) -> dict[str, bool | None]:
    """How the rows of each weight's operations belong to the samples, found by experiment.

    Multiplying random combinations of the samples' outputs by different powers of two multiplies exactly the rows that
    belong to them (of the outputs, because a loss may be flat in some samples and then says nothing about their rows).
    True: sample by sample; False: position by position; None: neither, or not to be seen on these samples, so that
    samples must be passed one at a time.
    """
    found: dict[str, bool | None] = {name: None for name in candidates}
    if len(run) == 1:
        return {name: True for name in candidates}
    for samples_first in (False, True):  # the later, usual order wins where both fit
        fits = dict.fromkeys(candidates, True)
        for positions in {tuple(run), tuple(run[:2])}:
            with problem.trial_order(samples_first):
                tape = problem.tape(list(positions), candidates)
            if not tape.edges(candidates):
                continue
            outputs, edges = tape.outputs, tape.edges(candidates)
            scale = 2.0 ** torch.arange(len(positions), dtype=outputs.dtype, device=outputs.device)
            # The same combination for every sample: no sample's gradient is small for its loss's sake.
            combination = normal(tuple(outputs.shape[1:]), generator(0, "row_order"), outputs).expand_as(outputs)
            scaling = scale.view(-1, *[1] * (outputs.dim() - 1))
            once = torch.autograd.grad(outputs, edges, combination, retain_graph=True, allow_unused=True)
            scaled = torch.autograd.grad(outputs, edges, scaling * combination, retain_graph=True, allow_unused=True)
            pairs = iter(zip(once, scaled, strict=True))
            for name in candidates:
                for use in tape.uses[name]:
                    a, b = next(pairs)
                    if not use.by_sample:
                        fits[name] = False
                    elif a is not None:
                        a, b = use.per_sample(a) * scale.unsqueeze(1), use.per_sample(b)
                        size = float(a.abs().max())
                        fits[name] &= size > 0 and bool(((a - b).abs() <= 1e-3 * size).all())
        found |= {name: samples_first for name, fit in fits.items() if fit}
    return found
