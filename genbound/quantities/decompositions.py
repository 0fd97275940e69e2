"""What norms and spectra of the weights take, in gradients: as much for any samples, and much beside few of them.

Counted are multiplications, as the operations of a network are: a gradient takes three times those of a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch.utils.flop_counter import FlopCounterMode

from genbound.estimators.operator_norm import DENSE_MATRIX
from genbound.network.problem import Problem

PRODUCTS = 190  # with an operator and its adjoint, of which a norm takes so many at most
# Seconds of a multiplication, beside those of a gradient of samples in batches: of large matrices in float64, 1 to
# 1.4 on fully connected networks of widths 256 to 1,024; of one input alone in float64, 5 to 9 on convolutional ones.
DOUBLE, ALONE = 1.25, 6.0
SLOW = 500  # and eigenvalues of smaller matrices: twice as slow at this side

_passes: WeakKeyDictionary[Problem, tuple[float, float]] = WeakKeyDictionary()


def in_gradients(problem: Problem, multiplications: float) -> float:
    """Gradients over the measured samples that take as long."""
    return multiplications / (3 * of_a_pass(problem) * problem.num_samples)


def of_a_pass(problem: Problem) -> float:
    """Multiplications of a forward pass of one sample. Cost: that pass, once."""
    return _counted(problem)[0]


def of_convolutions(problem: Problem) -> float:
    """Those among them that are convolutions'."""
    return _counted(problem)[1]


def _counted(problem: Problem) -> tuple[float, float]:
    if problem not in _passes:
        batch = problem.batch([0])
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            problem.forward(problem.params, batch.inputs)
        weights = sum(layer.num_weights for layer in problem.layers)
        by_operation = counted.get_flop_counts().get("Global", {})
        convolutions = sum(flops for operation, flops in by_operation.items() if "convolution" in str(operation))
        # Operations that it does not know count nothing.
        _passes[problem] = max(counted.get_total_flops() / 2, float(weights)), convolutions / 2
    return _passes[problem]


def of_eigenvalues(shape: Sequence[int]) -> float:
    """Those of a matrix: its Gram matrix over the smaller side, and the eigenvalues of that."""
    side, other = sorted((shape[0], math.prod(shape[1:])))
    return DOUBLE * (side**2 * other + 2 / 3 * side**3 * (1 + SLOW / side))


def of_norm(shape: Sequence[int]) -> float:
    """Those of the 2-norm of a matrix, which has its eigenvalues taken or products where it is large."""
    if min(shape[0], math.prod(shape[1:])) <= DENSE_MATRIX:
        return of_eigenvalues(shape)
    return ALONE * PRODUCTS * math.prod(shape)
