r"""Norms of each weight as it is stored, of both models and of the difference: what needs no network.

The matrix of a weight is the stored tensor flattened behind its first axis, :math:`K \in \mathbb R^{a \times b}`.
Nothing is folded into it, and nothing is known of how it is used: the operator of a convolution, or of a layer with
batch norm behind it, has other norms (``spectral_norm``, ``layer_norms``). So these numbers are the same with and
without a model.

=================  =====================================================================================================
``frobenius``      :math:`\|K\|_F`
``spectral``       :math:`\|K\|_2`, as an interval ``lower``, ``upper`` within 1 %
``mars``           :math:`\max_r \sum_c |K_{rc}|`
``two_one``        :math:`\sum_r \|K_r\|_2`
``stable_rank``    :math:`\|K\|_F^2 / \|K\|_2^2`, between 1 and the rank, of the fine-tuned weight; 0 if that is zero
=================  =====================================================================================================

A row is an index of the first axis: an output in torch's own layers, an input where a kind of layer stores inputs first
(transposed convolutions, GPT-2's ``Conv1D``).

Cost: an eigenvalue problem of the smaller side for each of three matrices, or about 190 products where it is above
1536. Exact but for the interval, whose upper side fails with a probability of at most 1e-9 for all matrices together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from genbound.estimators.operator_norm import FAILURE, operator_norm
from genbound.network.problem import Problem
from genbound.network.weights import BaseProblem
from genbound.quantities.base import Context, Measured, Part, stream
from genbound.quantities.decompositions import in_gradients, of_norm
from genbound.quantities.measure_options import NoOptions
from genbound.structure.layer_matrices import Matrix

NAME = "matrix_norms"
MODELS = ("weight", "init", "displacement")


def measure(problem: BaseProblem, context: Context) -> Measured:
    """The norms of every layer's stored weight, for both models and the displacement."""
    names = [layer.name for layer in problem.layers]
    parts = context.map("layers", names, lambda name: _sides(problem, context, name))
    return Measured({"layers": {name: _row(problem, name, part) for name, part in zip(names, parts, strict=True)}})


def _matrices(problem: BaseProblem, name: str) -> dict[str, Tensor]:
    """The stored matrices of a layer ``[a, b]`` in float64."""
    weight, init = (tensors[name].double().flatten(1) for tensors in (problem.params, problem.init))
    return dict(zip(MODELS, (weight, init, weight - init), strict=True))


def _sides(problem: BaseProblem, context: Context, name: str) -> Part:
    """The interval of each spectral norm ``[2]``, which is what costs."""
    failure, part = FAILURE / (len(MODELS) * len(problem.layers)), {}
    for model, matrix in _matrices(problem, name).items():
        found = operator_norm(Matrix(matrix), stream(context, NAME, name, model), failure)
        part[model] = np.array([found.lower, found.upper])
    return part


def _row(problem: BaseProblem, name: str, part: Part) -> dict[str, Any]:
    """What is reported of one layer."""
    row: dict[str, Any] = {m: _norms(matrix, *part[m].tolist()) for m, matrix in _matrices(problem, name).items()}
    return {**row, "stable_rank": _stable_rank(row["weight"])}


def _norms(matrix: Tensor, lower: float, upper: float) -> dict[str, Any]:
    """The norms of one matrix ``[a, b]``, of whose spectral norm both sides are known."""
    return {
        "spectral": {"value": upper, "lower": lower, "upper": upper},
        "frobenius": float(matrix.norm()),
        "mars": float(matrix.abs().sum(1).max()),
        "two_one": float(matrix.norm(dim=1).sum()),
    }


def _stable_rank(norms: dict[str, Any]) -> dict[str, float]:
    """The interval that the spectral norm leaves; at least 1 for a matrix that is not zero."""
    square, spectral = norms["frobenius"] ** 2, norms["spectral"]
    if square == 0:
        return dict.fromkeys(("value", "lower", "upper"), 0.0)
    lower, upper = (max(1.0, square / spectral[side] ** 2) for side in ("upper", "lower"))
    return {"value": lower, "lower": lower, "upper": upper}


def forecast(problem: Problem, options: NoOptions) -> float:
    """In gradients over the measured samples: a norm of each of three matrices."""
    return in_gradients(problem, len(MODELS) * sum(of_norm(layer.shape) for layer in problem.layers))
