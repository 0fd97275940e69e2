r"""The 2-norm of each layer as the linear map that it is, :math:`\|\mathrm{op}(W_i)\|_2`.

It is measured for both models and for the difference.

A convolution is the operator on maps of the size that the network feeds it, with its stride, padding, dilation and
groups. A linear layer that is applied to every token is its matrix. Batch norm right behind a layer is folded in, for
each model with its own statistics, before the difference is taken. A layer that is used at several sizes has the
largest of its norms. A weight whose use is not recognised as linear has the norm of its stored matrix, flattened behind
the first axis; its ``kind`` is ``matrix``. Without a network there is no operator: ``matrix_norms`` has the norms of
the stored weights. Where there are convolutions and the measured samples differ in shape, ``alike`` is false, and the
convolutions are those on the largest.

``lower <= norm <= upper`` with ``upper <= 1.01 lower``; ``value`` is ``upper``. Small operators are exact up to
rounding (``svd``). Others come from Lanczos with a random start. There ``upper`` fails with a probability of at most
1e-9, for all operators of the network together (:mod:`genbound.estimators.operator_norm` has the theorems).

Cost: at most about 190 products with a layer and its adjoint for each of the three operators, in float64 on one input:
no pass over the data. Exact in the sense of the bracket; no Monte Carlo error beside the failure probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genbound.estimators.operator_norm import FAILURE, operator_norm
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, stream
from genbound.quantities.decompositions import ALONE, PRODUCTS, in_gradients, of_convolutions, of_norm
from genbound.quantities.measure_options import NoOptions
from genbound.structure.reader import read_structure
from genbound.structure.tree import EffectiveLayer

NAME = "spectral_norm"
MODELS = ("trained", "init", "displacement")
TOLERANCE = 0.01


def measure(problem: Problem, context: Context) -> Measured:
    """The bracket of every layer's norm, for both models and the displacement, layer by layer."""
    structure = read_structure(problem)
    names = [layer.name for layer in problem.layers]
    failure = FAILURE / (len(MODELS) * sum(structure.num_operators(name) for name in names))
    parts = context.map("layers", names, lambda name: _brackets(context, name, structure.effective(name), failure))
    rows = {name: _row(part) for name, part in zip(names, parts, strict=True)}
    alike = all(row["kind"] != "convolution" for row in rows.values()) or problem.alike()
    return Measured({"layers": rows, "failure_probability": FAILURE, "alike": alike})


def _brackets(context: Context, name: str, layer: EffectiveLayer, failure: float) -> Part:
    """For each model the sides of the largest of a layer's norms ``[2]``, and the method that found it.

    ``failure`` is the probability that the upper side is too small for one operator.
    """
    part: Part = {"kind": np.array(layer.kind), "folded": np.array(layer.folded)}
    for model in MODELS:
        found = [
            operator_norm(operator, stream(context, NAME, name, model, i), failure, TOLERANCE)
            for i, operator in enumerate(getattr(layer, model))
        ]
        part[model] = np.array([max(f.lower for f in found), max(f.upper for f in found)])
        part[f"{model}_method"] = np.array(max(found, key=lambda f: f.upper).method)
    return part


def _row(part: Part) -> dict[str, Any]:
    """What is reported of one layer."""
    bracket = {model: {"lower": float(part[model][0]), "upper": float(part[model][1])} for model in MODELS}
    return {
        "value": bracket["trained"]["upper"],
        **bracket["trained"],
        "sample": None,
        "init": bracket["init"],
        "displacement": bracket["displacement"],
        "method": str(part["trained_method"]),
        "kind": str(part["kind"]),
        "folded": bool(part["folded"]),
    }


def forecast(problem: Problem, options: NoOptions) -> float:
    """In gradients over the measured samples: norms of matrices, and products of one input with convolutions."""
    found = sum(of_norm(layer.shape) for layer in problem.layers if layer.kind != "convolution")
    return in_gradients(problem, len(MODELS) * (found + ALONE * PRODUCTS * of_convolutions(problem)))
