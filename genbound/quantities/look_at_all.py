r"""The pass over all training samples for the largest quadratic form: what it knows of each of them.

It has the norm of the loss's gradient in the output, and Gauss-Newton parts :math:`v_i^\top G_i v_i`: of all layers, of
those whose block is positive semidefinite by structure alone where *scouts* say that the norm tells the others, or of
none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from genbound.curvature.traces import at_results, gauss_newton_forms
from genbound.estimators.disk_table import Table
from genbound.estimators.random import row_of, row_signs
from genbound.network.problem import Problem
from genbound.network.tape import Tape
from genbound.quantities.base import Context, Part, stacked, stream
from genbound.quantities.catalogue.max_quadratic_form import MaxQuadraticFormOptions
from genbound.quantities.promising_samples import size_tells

NAME = "max_quadratic_form"
SHARD = 64  # samples of a look that are stored together
FEW = 2  # outputs of which no combinations are taken: two of them have one column
SCOUTS, MANY = 128, 6  # random samples that say whether a part of all will do, of so many times as many


class Look:
    """What a pass over all N samples has.

    Args:
        columns: of the layers whose Gauss-Newton parts are known.
        found: ``sizes [N]``, norms of the loss's gradient in the output, and ``forms [N, columns]`` if there are any.

    Attributes:
        sizes: ``[N]``.
    """

    def __init__(self, columns: Sequence[int], found: Mapping[str, Table | np.ndarray]):
        self.sizes, self._forms = np.asarray(found["sizes"]), found.get("forms")
        self._place = {column: place for place, column in enumerate(columns)}

    def form(self, number: int) -> np.ndarray | None:
        """Gauss-Newton parts of a layer ``[N]``, ``None`` where they are not known of all samples."""
        return None if self._forms is None or number not in self._place else self._forms[:, self._place[number]]


def columns_looked_at(whole: Problem, context: Context) -> list[int]:
    """The layers whose Gauss-Newton parts are looked at of all samples."""
    options, layers = context.options, whole.layers
    exact, curved = is_exact(whole, options), [i for i, layer in enumerate(layers) if not layer.positive_semidefinite]
    if not (exact or options.num_draws):
        return []
    every = list(range(len(layers)))
    if not has_scouts(whole, options):
        return every
    order = torch.randperm(whole.num_samples, generator=stream(context, NAME, "scouts")).tolist()
    scouts = sorted(order[:SCOUTS])
    runs = [scouts[i : i + SHARD] for i in range(0, SCOUTS, SHARD)]
    seen = stacked(context, "scouts", runs, lambda run: look_at(whole, context, every, run))
    if not size_tells(seen["sizes"], [seen["forms"][:, i] for i in curved]):
        return every
    return [i for i in every if i not in curved] if exact else []


def has_scouts(problem: Problem, options: MaxQuadraticFormOptions) -> bool:
    """Whether scouts are asked: of many samples, where a closer look follows."""
    curved = any(not layer.positive_semidefinite for layer in problem.layers)
    return curved and options.num_joint > 0 and len(problem.data) >= MANY * SCOUTS


def look_at(whole: Problem, context: Context, columns: Sequence[int], positions: Sequence[int]) -> Part:
    """``forms [n, columns]`` and ``sizes [n]``: Gauss-Newton parts, and norms of the loss's gradient in the output."""
    if not columns:
        return {"sizes": _sizes(whole, positions)}
    column, moved = {whole.layers[i].name: c for c, i in enumerate(columns)}, whole.displacement.moved
    forms, sizes = np.zeros((len(positions), len(columns))), np.zeros(len(positions))
    row = {p: i for i, p in enumerate(positions)}
    for tape in whole.tapes(positions, list(column)):
        rows = np.array([row[p] for p in tape.positions])
        sizes[rows] = tape.output_gradient().flatten(1).norm(dim=1).double().cpu().numpy()
        kept = [name for name in tape.layers if name in moved and tape.uses[name]]
        if kept:
            found = gauss_newton_forms(tape, at_results(tape, whole.displacement.of(kept)), combinations(tape, context))
            forms[np.ix_(rows, np.array([column[name] for name in kept]))] = found.cpu().numpy()
    return {"forms": forms, "sizes": sizes}


def _sizes(whole: Problem, positions: Sequence[int]) -> np.ndarray:
    """Norms of the loss's gradient in the output ``[n]``, from a forward pass."""
    sizes, row = np.zeros(len(positions)), {p: i for i, p in enumerate(positions)}
    for run in whole.batches(positions):
        batch = whole.batch(run)
        with torch.no_grad():
            outputs = whole.forward(whole.params, batch.inputs)
        size = whole.loss.output_gradient(outputs, batch.targets).flatten(1).norm(dim=1)
        sizes[[row[p] for p in run]] = size.double().cpu().numpy()
    return sizes


def is_exact(problem: Problem, options: MaxQuadraticFormOptions) -> bool:
    """Whether the Gauss-Newton parts that are looked at are exact."""
    return problem.num_outputs <= options.exact_outputs


def combinations(tape: Tape, context: Context) -> list[torch.Tensor] | None:
    """Random combinations of the outputs, ``[N, *output]`` each; ``None`` where there are few of them."""
    like = tape.outputs.detach()
    if like[0].numel() <= max(FEW, context.options.exact_outputs):
        return None
    *places, width = like.shape[1:]
    num = max(1, context.options.num_draws)
    return [
        row_signs(
            [row_of(f"{NAME} look", p, draw, num) for p in tape.positions],
            context.seed, "output", math.prod(places), width, like,
        ).view(like.shape)
        for draw in range(num)
    ]  # fmt: skip
