r"""The trace of the positive part of a symmetric matrix that is known by its products.

.. math:: \mathrm{Tr}\,H^+ = \sum_k y_k^\top H^+ y_k + \mathbb E\,[z^\top P H^+ P z], \qquad P = I - YY^\top

for any orthonormal columns y and probes z with :math:`E[zz^\top] = I` that are independent of them. A few large
eigenvalues would rule the probes' spread. So one Lanczos run of a probe of its own comes first, and Y are those of its
Ritz vectors whose positive values have settled. Their own terms cost nothing more: the residuals bracket them.

Each :math:`z^\top P H^+ P z` is bracketed by the steps of its run (:mod:`genbound.estimators.lanczos`). The interval
that comes out is certain of the probes that were drawn. What their draw adds is the standard error.

References:
    Meyer, Musco, Musco & Woodruff, Hutch++: optimal stochastic trace estimation, SOSA 2021 (taking the large
    eigenvalues out). Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix
    Anal. Appl., 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genbound.estimators.estimate import student
from genbound.estimators.lanczos import Lanczos, rounding

SETTLED = 0.1  # residual of a Ritz value, relative to it
CLOSED = 0.02  # width of a probe's bracket, relative to the trace, at which its steps end
FIRST_LOOK = 5  # steps after which the brackets are looked at; then whenever they have doubled

Start = tuple[Callable[[Tensor], Tensor], Tensor]  # products with H and probes, side by side: [N, d] -> [N, d], [N, d]


@dataclass(frozen=True)
class TraceBracket:
    """A trace by probes, in the unit of the matrix.

    Attributes:
        lower, upper: an interval that is certain of the probes drawn.
        sem: standard error over the probes, to either side of it.
    """

    lower: float
    upper: float
    sem: float

    @property
    def value(self) -> float:
        """The middle of the interval."""
        return 0.5 * (self.lower + self.upper)


def positive_trace(
    first: Start, probes: Sequence[Start], steps: int, precision: float, dtype: torch.dtype
) -> TraceBracket:
    """The trace of the positive part.

    Args:
        first: a single probe, whose run finds the large eigenvalues.
        probes: the others, two at least.
        steps: of each run, at most.
        precision: relative size below which a residual is rounding.
        dtype: of the products.
    """
    vectors, inside = _large(first, steps, precision, dtype)
    outside = np.concatenate([
        _brackets((product, z - (z @ vectors.mT) @ vectors), inside[1], steps, precision, dtype)
        for product, z in probes
    ])  # fmt: skip
    sem = outside.mean(1).std(ddof=1) / np.sqrt(len(outside))
    lower, upper = inside + outside.mean(0)
    return TraceBracket(float(lower), float(upper), float(sem * student(len(outside) - 1)))


def _large(first: Start, steps: int, precision: float, dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
    """Vectors ``[k, d]`` that hold the large eigenvalues, and the ends of their share of the trace ``[2]``."""
    run = Lanczos(*first)
    for _ in range(steps):
        run.step(precision)
    values, residuals, vectors = run.ritz_pairs(0)
    allowance = rounding(dtype) * np.abs(values).max()
    kept = (values > allowance) & (residuals <= SETTLED * values)
    values, residuals = values[kept], residuals[kept]
    # As the bracket of one product: the residual couples a Ritz vector to all others.
    upper = 0.5 * (values + np.hypot(values, residuals)) + allowance
    ends = np.array([np.maximum(values - allowance, 0).sum(), upper.sum()])
    return vectors[torch.as_tensor(kept, device=vectors.device)], ends


def _brackets(start: Start, known: float, steps: int, precision: float, dtype: torch.dtype) -> np.ndarray:
    """The bracket of every probe ``[N, 2]``, where it first is narrow against the trace, ``known`` of it beforehand.

    Each probe's steps are its own affair, so that it does not matter which ones run side by side.
    """
    run, found, open_rows = Lanczos(*start), np.zeros((len(start[1]), 2)), list(range(len(start[1])))
    looks = {FIRST_LOOK * 2**i for i in range(steps)} | {steps}
    for step in range(1, steps + 1):
        run.step(precision)
        if step in looks:
            found[open_rows] = [run.certified(row, dtype) for row in open_rows]
            open_rows = [row for row in open_rows if found[row, 1] - found[row, 0] > CLOSED * (known + found[row, 1])]
            if not open_rows:
                break
    return found
