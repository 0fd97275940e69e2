r"""The exponent of each weight's eigenvalue spectrum: alpha of WeightWatcher.

The eigenvalues :math:`\lambda_1 \le \dots \le \lambda_d` of :math:`K^\top K` are taken for a sample of a distribution
with density proportional to :math:`\lambda^{-\alpha}` above some :math:`\lambda_{\min}`. With the m eigenvalues from
:math:`\lambda_{\min}` on, the most likely exponent is

.. math:: \alpha = 1 + \frac{m}{\sum_{\lambda_j \ge \lambda_{\min}} \ln(\lambda_j / \lambda_{\min})},

and :math:`\lambda_{\min}` is the eigenvalue, of all but the largest, at which the fitted distribution is closest to
the observed one: the smallest :math:`\max_j |F(\lambda_j) - j/m|`, j counted from 0. Definition, estimator and choice
are those of the public WeightWatcher code. A convolution is a matrix ``[out, in]`` for each place of its kernel, and
the eigenvalues of all places are one sample; alpha does not know rows from columns.
Alpha does not change when a weight is multiplied by a number.

Eigenvalues below the rounding of the largest are left out (a matrix of low rank has them). The code above leaves out
those below 1e-5 as they stand.

Cost: the eigenvalues of a matrix of the smaller side. ``alpha_sem``, :math:`(\alpha - 1)/\sqrt m`, is the error for
independent draws at a given :math:`\lambda_{\min}`, which eigenvalues are not.

References:
    Martin & Mahoney, Implicit self-regularization in deep neural networks, JMLR 2021. Martin, Peng & Mahoney,
    Predicting trends in the quality of state-of-the-art neural networks without access to training or testing data,
    Nature Communications 2021. Clauset, Shalizi & Newman, Power-law distributions in empirical data, SIAM Review 2009.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.network.problem import Problem
from genbound.network.weights import BaseProblem
from genbound.quantities.base import Context, Measured, Part
from genbound.quantities.catalogue.power_law import PowerLawOptions
from genbound.quantities.decompositions import in_gradients, of_eigenvalues


@dataclass(frozen=True)
class Tail:
    """A fitted tail.

    Attributes:
        alpha: the exponent.
        sem: its standard error.
        size: m, eigenvalues in the tail.
        smallest: the smallest of them, in the squared unit of the weights.
    """

    alpha: float
    sem: float
    size: int
    smallest: float


def measure(problem: BaseProblem, context: Context) -> Measured:
    """The exponent of every layer, or why it has none."""
    names = [layer.name for layer in problem.layers]
    parts = context.map("layers", names, lambda name: _spectrum(problem.params[name], context.options))
    return Measured({"layers": {n: _row(part, context.options) for n, part in zip(names, parts, strict=True)}})


def _spectrum(weight: Tensor, options: PowerLawOptions) -> Part:
    """The eigenvalues of a weight in ascending order; none where its matrices are too large."""
    side = min(matrices(weight).shape[1:])
    found = eigenvalues(weight) if side <= options.largest else np.zeros(0)
    return {"eigenvalues": found, "side": np.array(side)}


def _row(part: Part, options: PowerLawOptions) -> dict[str, Any]:
    """What is reported of one layer."""
    found, side = part["eigenvalues"], int(part["side"])
    if side > options.largest:
        return {"alpha": None, "reason": f"a matrix of smaller side {side}: see power_law.largest"}
    if len(found) < options.fewest:
        return {"alpha": None, "reason": f"{len(found)} eigenvalues are too few: see power_law.fewest"}
    tail = fit(found)
    if tail is None:
        return {"alpha": None, "reason": "the eigenvalues are equal, which is no tail"}
    return {
        "alpha": tail.alpha, "alpha_sem": tail.sem, "num_tail": tail.size, "smallest": tail.smallest,
        "num_eigenvalues": len(found),
    }  # fmt: skip


def matrices(weight: Tensor) -> Tensor:
    """The matrices of a weight, ``[places of the kernel, out, in]``."""
    return weight.flatten(2).permute(2, 0, 1) if weight.dim() > 2 else weight.unsqueeze(0)


def eigenvalues(weight: Tensor) -> np.ndarray:
    """Those of :math:`K^T K` over the smaller side that are above rounding, ascending, in the weights' squared unit."""
    blocks = matrices(weight).double()
    gram = blocks @ blocks.mT if blocks.shape[1] <= blocks.shape[2] else blocks.mT @ blocks
    found = torch.linalg.eigvalsh(gram).flatten().sort().values.cpu().numpy()
    return found[found > gram.shape[1] * np.finfo(np.float64).eps * found.max(initial=0.0)]


def fit(values: np.ndarray) -> Tail | None:
    """The tail of a sample: ``values`` ascending and positive; ``None`` where no two of the largest differ.

    Example:
        >>> fit(np.array([1.0, np.e, np.e**2])).alpha
        2.0
    """
    num, logs = len(values), np.log(values)
    best, least = None, np.inf
    for start in range(num - 1):
        size, above = num - start, logs[start:] - logs[start]
        if above[-1] <= 0:
            break
        alpha = 1 + size / above.sum()
        distance = np.abs(1 - np.exp((1 - alpha) * above) - np.arange(size) / size).max()
        if distance < least:
            best, least = Tail(float(alpha), float((alpha - 1) / size**0.5), size, float(values[start])), distance
    return best


def forecast(problem: Problem, options: PowerLawOptions) -> float:
    """In gradients over the measured samples: the eigenvalues of every matrix that is not too large."""
    found = 0.0
    for layer in problem.layers:
        if min(layer.shape[:2]) <= options.largest:
            found += math.prod(layer.shape[2:]) * of_eigenvalues(layer.shape[:2])
    return in_gradients(problem, found)
