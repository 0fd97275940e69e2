r"""The squared path norm: over all paths from an input to an output, the sum of the products of the squared weights.

.. math:: f_{w^2}(\mathbf 1) = \sum_{\text{paths}} \; \prod_{e \in \text{path}} w_e^2

It is the sum of the outputs of the network with squared weights for an input of ones. BatchNorm in evaluation mode is
folded first: right behind a layer :math:`z = W x + b` it makes the weights :math:`s W` and the bias
:math:`s (b - m) + t`, elsewhere it is a layer of its own with weight :math:`s` and bias :math:`t - s m`. Biases are
squared too, as in public code: a bias is the weight of an edge from a unit that is always 1. What is not a weight stays
as it is: averages keep :math:`1/n`, constant factors keep their value, max-pooling takes the maximum. Activations pass
everything on, as ReLU does with what is not negative.

The forward pass is watched at the operator level, so that residual connections and concatenations need no special
model. Every intermediate tensor carries the logarithm of a common factor and is scaled to a maximum of 1: a deep
network does not overflow. ``log10_squared`` is the result; ``value``, the squared norm itself, is null where float64
cannot hold it.

Where the measured samples differ in shape, ``alike`` is false.

Cost: one forward pass on the largest sample's shape, in float64. Exact up to rounding. Unit: product of squared
weights.

References:
    Neyshabur, Tomioka & Srebro, Norm-based capacity control in neural networks, COLT 2015. Jiang et al., Fantastic
    generalization measures and where to find them, ICLR 2020 (the measure, with these squared parameters).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured
from genbound.structure.output_sites import has_attention
from genbound.structure.path_sums import PathSums, UnsupportedOperation


def log_path_norm(problem: Problem) -> float:
    """Natural logarithm of the squared path norm.

    Raises:
        UnsupportedOperation: the network does something that is no sum over paths.
    """
    inputs = problem.largest().inputs
    if not isinstance(inputs, Tensor):
        raise UnsupportedOperation("inputs that are several tensors")
    ones = torch.ones_like(inputs, dtype=torch.float64)
    params = {name: p.double() if p.is_floating_point() else p for name, p in problem.params.items()}
    sums = PathSums(ones)
    with torch.no_grad(), sums:
        output = problem.forward(params, ones)
        found = sums.get(output)
    if found is None:
        raise UnsupportedOperation("an output that does not depend on the input")
    total = float(found.values.sum())
    return -math.inf if total == 0 else found.log + math.log(total)


def measure(problem: Problem, context: Context) -> Measured:
    """The squared norm, from one forward pass on sums over paths."""
    log = log_path_norm(problem)
    value = math.exp(log) if log < math.log(torch.finfo(torch.float64).max) else None
    log10 = log / math.log(10) if math.isfinite(log) else None
    return Measured({"log10_squared": log10, "value": value, "alike": problem.alike()})


def applies_to(problem: Problem) -> str | None:
    """The network must be piecewise linear and its input a floating-point tensor."""
    inputs = problem.batch([0]).inputs
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return "a path norm starts at numbers; these inputs are not one floating-point tensor"
    tape = problem.tape([0])
    if has_attention(tape):
        return "a path norm is a sum over paths of weights, which softmax attention is not"
    if tape.curved_by:
        name, by = next(iter(tape.curved_by.items()))
        return f"a path norm needs a piecewise linear network; {by} is curved in {name}"
    try:
        log_path_norm(problem)
    except UnsupportedOperation as error:
        return f"no path norm is defined for the operation {error}"
    except (RuntimeError, TypeError, ValueError) as error:
        return f"the network cannot run on sums over paths: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return None
