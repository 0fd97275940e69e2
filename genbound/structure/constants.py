r"""Lipschitz constants of executed operations, where the table leaves them to the operation as it was called.

Each is a pair: in the Euclidean norm of all entries together, and in the sup norm.

* max-pooling with windows of k at stride s: an entry lies in at most :math:`m = \prod_{dims} \lceil k/s \rceil`
  windows, and a maximum moves by no more than the entry that moves most in its window, so that
  :math:`\|\Delta\|_2^2 \le m \|\delta\|_2^2`: the constant is :math:`\sqrt m`, that is :math:`\lceil k/s\rceil` for a
  square window. It is attained (one entry far above all others). With dilation, s becomes s / gcd(s, d).
* average pooling is linear and separable: the product of the 2-norms of its factors.
* the mean over n entries: :math:`1/\sqrt n`, and 1 in the sup norm.
* whatever puts entries in places: :math:`\sqrt m` where one entry is put in m places at most.
* interpolation has no negative weights: :math:`\sqrt{rc}` with the largest sums of its rows and columns (Schur's test).
* the cumulative sum of n entries: :math:`1/(2\sin\frac{\pi}{4n+2})`, the norm of the triangle of ones.
* log-softmax of n entries: its derivative :math:`I - 1p^\top` is a projection, with the norm
  :math:`\sqrt n\,\|p\|_2 \le \sqrt n`.
* evaluation-mode batch norm is diagonal: :math:`\max|\gamma|/\sqrt{\mathrm{var}+\varepsilon}`.
* GELU and other smooth activations: the largest absolute value of the derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genbound.network.operations import operation
from genbound.structure.pooling import adaptive_windows, spread, windows

if TYPE_CHECKING:
    from genbound.structure.executed import Executed


class NoConstant(Exception):
    """Why a network has no useful Lipschitz constant."""


@dataclass(frozen=True)
class Constant:
    """Of one operation, in the operand that depends on the input.

    Attributes:
        l2, sup: the constants in the Euclidean and in the sup norm, without unit.
        what: how the tree calls the step.
        homogeneous, keeps_zero: as in :class:`~genbound.network.operation.Operation`.
        learned: a parameter is in the constant: the step stays in the tree, at the initialisation it may be another.
        label: of the activation, where it is not that of the row.
        notes: what was done.
    """

    l2: float
    sup: float
    what: str = ""
    homogeneous: bool = True
    keeps_zero: bool = True
    learned: bool = False
    label: str = ""
    notes: tuple[str, ...] = ()


Function = Callable[["Executed"], Constant]


# -- what is added, multiplied or put in ----------------------------------------------------------------------------


def added(op: Executed) -> Constant:
    """The factor of the summand."""
    alpha = abs(float(getattr(op.node, "_saved_alpha", 1)))
    scaled = op.moving[0] == (0 if op.row.name == "rsub" else 1)
    constant = alpha if scaled else 1.0
    return Constant(constant, constant, "factor of a summand", op.adds_bias, op.adds_bias)


def factor(op: Executed) -> Constant:
    """The largest factor."""
    position, name, divides = op.moving[0], operation(op.node), op.row.name == "div"
    if position == 1 and divides:
        raise NoConstant("division by a part that depends on the input is not globally Lipschitz")
    if getattr(op.node, "_saved_rounding_mode", None) is not None:
        raise NoConstant("a quotient that is rounded jumps")
    other = op.node._saved_other if position == 0 else op.node._saved_self
    if other is None:
        raise NoConstant(f"operation {name}: its factor was not recorded")
    if op.varies:
        raise NoConstant(f"operation {name}: its factor is another one for every sample")
    other = torch.as_tensor(other).detach().double().abs()
    constant = 1 / float(other.min()) if divides else float(other.max())
    learned = op.node.next_functions[1 - position][0] is not None
    if learned and op.ratio != 1:
        raise NoConstant(
            "a learned factor that repeats its operand acts as a matrix, and no layer was recognised there"
        )
    return Constant(constant, constant, "learned factor" if learned else "constant factor", learned=True)


def prelu(op: Executed) -> Constant:
    """The largest slope, at least 1."""
    constant = max(1.0, float(op.node._saved_weight.detach().abs().max()))
    return Constant(constant, constant, learned=True)


def batch_norm(op: Executed) -> Constant:
    """The largest scale, in evaluation mode; none in training mode."""
    node = op.node
    if node._saved_training:
        raise NoConstant("batch norm without running statistics has no Lipschitz constant")
    scale = (node._saved_running_var.double() + node._saved_eps).rsqrt()
    if node._saved_weight is not None:
        scale = scale * node._saved_weight.detach().double()
    constant, note = float(scale.abs().max()), "a batch norm that does not follow a layer is a step of its own"
    return Constant(constant, constant, "unfolded batch norm", False, False, True, notes=(note,))


def padded(op: Executed) -> Constant:
    """1; it keeps zero if zeros are put in."""
    zero = float(op.call.argument(2, "value", 0)) == 0
    return Constant(1, 1, homogeneous=zero, keeps_zero=zero)


def filled(op: Executed) -> Constant:
    """1; it keeps zero if zeros are put in."""
    value = op.call.argument(2, "value", 0)
    zero = not bool(torch.as_tensor(value).any())
    return Constant(1, 1, homogeneous=zero, keeps_zero=zero)


def chosen(op: Executed) -> Constant:
    """1 in each operand; it keeps zero if the others are zero."""
    zero = not any(bool(value.any()) for value in op.call.fixed)
    return Constant(1, 1, homogeneous=zero, keeps_zero=zero)


# -- where entries are put ------------------------------------------------------------------------------------------


def repeated(op: Executed) -> Constant:
    """The root of the number of copies; 1 in the sup norm."""
    return Constant(math.sqrt(op.ratio), 1, f"repeated {op.ratio:g} times")


def placed(op: Executed) -> Constant:
    """The root of the most places that one entry is put in; 1 in the sup norm."""
    return Constant(math.sqrt(most := _most_places(op)), 1, f"an entry is put in {most} places")


def nearest(op: Executed) -> Constant:
    """The root of the most copies of one entry; 1 in the sup norm."""
    return Constant(math.sqrt(_most_places(op)), 1, "nearest upsampling")


def picked(op: Executed) -> Constant:
    """The root of how often one entry is picked; 1 in the sup norm."""
    if op.varies:
        raise NoConstant(f"operation {operation(op.node)}: the places that it picks are others for every sample")
    most = _most_places(op)
    return Constant(math.sqrt(most), 1, f"an entry is picked {most} times")


def restrided(op: Executed) -> Constant:
    """The root of how often one place in memory is read; 1 in the sup norm."""
    reads = np.unique(np.tensordot(op.call.args[2], np.indices(op.call.args[1]), 1), return_counts=True)[1]
    return Constant(math.sqrt(reads.max(initial=1)), 1, f"an entry is put in {reads.max(initial=1)} places")


def _most_places(op: Executed) -> int:
    """How often the entry that is put in most places is put somewhere.

    An entry's number is found again wherever it is put; what is put in beside entries does not change its sign with
    them.
    """
    numbers = torch.arange(1, 1 + math.prod(op.operand_shape), dtype=torch.float64).view(op.operand_shape)
    numbers = numbers.to(op.call.args[0].device)
    found, turned = (op.call.func(x, *op.call.args[1:], **op.call.kwargs) for x in (numbers, -numbers))
    moved = found[(found == -turned) & (found > 0)]
    return max(1, int(torch.bincount(moved.long()).max())) if moved.numel() else 1


# -- sums and averages ----------------------------------------------------------------------------------------------


def total(op: Executed) -> Constant:
    """The root of the number n of entries that are added; n in the sup norm."""
    entries = 1 / op.ratio
    return Constant(math.sqrt(entries), entries, f"sum over {entries:g} entries")


def mean(op: Executed) -> Constant:
    """1 over the root of the number of entries; 1 in the sup norm."""
    entries = 1 / op.ratio
    note = f"a mean over {entries:g} entries has the constant {entries**-0.5:.4g}; the tree counts 1 beside it"
    return Constant(entries**-0.5, 1, f"mean over {entries:g} entries", notes=(note,) if entries != 1 else ())


def cumulative_sum(op: Executed) -> Constant:
    """The norm of the triangle of ones; n in the sup norm."""
    entries = op.operand_shape[op.call.argument(1, "dim", 0)] if op.operand_shape else 1
    return Constant(0.5 / math.sin(math.pi / (4 * entries + 2)), entries, f"cumulative sum over {entries} entries")


def interpolated(op: Executed) -> Constant:
    """The root of the largest sums of its rows and of its columns; that of the rows in the sup norm."""
    ones = torch.ones(op.operand_shape, dtype=torch.float64, device=op.call.args[0].device, requires_grad=True)
    with torch.enable_grad():
        rows = op.call.func(ones, *op.call.args[1:], **op.call.kwargs)
        columns = torch.autograd.grad(rows.sum(), ones)[0]
    sup = float(rows.detach().max())
    return Constant(math.sqrt(sup * float(columns.max())), sup, "interpolation" if op.row.name != "fold" else "fold")


def average_pool(op: Executed) -> Constant:
    """The product of the norms of its windows' matrices along the axes."""
    node, dims = op.node, int(operation(op.node)[len("AvgPool")])
    kernel = spread(node._saved_kernel_size, dims)
    stride = spread(tuple(node._saved_stride) or kernel, dims)
    padding, divisor = spread(node._saved_padding, dims), node._saved_divisor_override
    factors = [
        windows(i, o, k, s, p, bool(node._saved_count_include_pad), divisor is None)
        for i, o, k, s, p in zip(op.operand_shape[-dims:], op.shape[-dims:], kernel, stride, padding, strict=True)
    ]
    if divisor is not None:
        factors[0] = factors[0] / float(divisor)
    return _separable(factors)


def adaptive_average_pool(op: Executed) -> Constant:
    """The product of the norms of its windows' matrices along the axes."""
    dims = int(operation(op.node)[len("AdaptiveAvgPool")])
    sizes = zip(op.operand_shape[-dims:], op.shape[-dims:], strict=True)
    return _separable([adaptive_windows(i, o, lambda n: 1 / n) for i, o in sizes])


def _separable(factors: list[np.ndarray]) -> Constant:
    l2 = math.prod(float(np.linalg.norm(f, 2)) for f in factors)
    sup = math.prod(float(f.sum(1).max()) for f in factors)
    return Constant(1.0 if abs(l2 - 1) < 1e-12 else l2, sup, "average pool", notes=("average-pool",))


# -- the largest ----------------------------------------------------------------------------------------------------


def max_pool(op: Executed) -> Constant:
    """The root of the most windows that an entry lies in; 1 in the sup norm."""
    node, dims = op.node, int(operation(op.node)[len("MaxPool")])
    kernel = tuple(node._saved_kernel_size)
    stride, dilation = tuple(node._saved_stride) or kernel, tuple(node._saved_dilation)
    kernel, stride, dilation = (spread(x, dims) for x in (kernel, stride, dilation))
    coverage = [
        min(math.ceil(k * math.gcd(s, d) / s), o)
        for k, s, d, o in zip(kernel, stride, dilation, op.shape[-dims:], strict=True)
    ]
    size = "x".join(map(str, kernel)) if len(set(kernel)) > 1 else kernel[0]
    return _pooled(coverage, f"overlapping max-pool {size}/{stride[0]}")


def adaptive_max_pool(op: Executed) -> Constant:
    """The root of the most windows that an entry lies in; 1 in the sup norm."""
    dims = int(operation(op.node)[len("AdaptiveMaxPool")])
    sizes = zip(op.operand_shape[-dims:], op.shape[-dims:], strict=True)
    return _pooled(
        [adaptive_windows(i, o, lambda n: 1.0).sum(0).max() for i, o in sizes], "overlapping adaptive max-pool"
    )


def _pooled(coverage: list, what: str) -> Constant:
    return Constant(math.sqrt(max(1, math.prod(coverage))), 1, what, notes=("max-pool",))


def ordered(op: Executed) -> Constant:
    """1 in either norm."""
    # Sorted entries are no further apart than the entries were, and each that is handed on is one of them.
    return Constant(1, 1, notes=("a choice by order, counted as a max-pool",))


# -- functions of single entries ------------------------------------------------------------------------------------


def clamp(op: Executed) -> Constant:
    """1; it keeps zero if the limits enclose it."""
    low, high = _limits(op.node)
    label = "relu6" if (low, high) == (0, 6) else ""
    return Constant(1, 1, homogeneous=low == 0 and high == math.inf, keeps_zero=low <= 0 <= high, label=label)


def _limits(node) -> tuple[float, float]:
    """The interval that a clamp keeps."""
    hard = operation(node) == "Hardtanh"
    low = getattr(node, "_saved_min_val" if hard else "_saved_min", None)
    high = getattr(node, "_saved_max_val" if hard else "_saved_max", None)
    return (
        -math.inf if low is None else float(torch.as_tensor(low).max()),
        math.inf if high is None else float(torch.as_tensor(high).min()),
    )


def threshold(op: Executed) -> Constant:
    """1 where the value that is put in is the threshold itself; otherwise it jumps."""
    limit, value = (float(op.call.argument(*given, 0)) for given in ((1, "threshold"), (2, "value")))
    if limit != value:
        raise NoConstant(f"operation Threshold: no Lipschitz constant known (it jumps from {limit:g} to {value:g})")
    return Constant(1, 1, homogeneous=limit == 0, keeps_zero=limit <= 0)


def leaky_relu(op: Executed) -> Constant:
    """The slope below zero, at least 1."""
    return _slope(op.node._saved_negative_slope)


def rrelu(op: Executed) -> Constant:
    """The largest slope that may be drawn, at least 1."""
    return _slope(max(abs(float(op.node._saved_lower)), abs(float(op.node._saved_upper))))


def elu(op: Executed) -> Constant:
    """The larger of the slopes on both sides of zero."""
    node = op.node
    constant = abs(float(node._saved_scale)) * _slope(float(node._saved_alpha) * float(node._saved_input_scale)).l2
    return Constant(constant, constant)


def _slope(below: float) -> Constant:
    constant = max(1.0, abs(float(below)))
    return Constant(constant, constant)


def celu(op: Executed) -> Constant:
    """1 for a positive alpha; otherwise its slope has no limit."""
    if not float(op.node._saved_alpha) > 0:
        raise NoConstant("operation Celu: no Lipschitz constant known (its slope has no limit)")
    return Constant(1, 1)


def softplus(op: Executed) -> Constant:
    """1, unless it turns into a line where it is still away from it: then it jumps."""
    if float(op.node._saved_threshold) < 20:  # at the usual 20 by 2e-9, which is rounding
        raise NoConstant("operation Softplus: no Lipschitz constant known (it jumps at its threshold)")
    return Constant(1, 1)


def gelu(op: Executed) -> Constant:
    """1.129, its largest slope."""
    approximate = op.node._saved_approximate
    return _steepest(f"gelu {approximate}", lambda x: F.gelu(x, approximate=approximate))


def silu(op: Executed) -> Constant:
    """1.100, its largest slope."""
    return _steepest("silu", F.silu)


def mish(op: Executed) -> Constant:
    """1.089, its largest slope."""
    return _steepest("mish", F.mish)


_SLOPES: dict[str, float] = {}


def _steepest(name: str, function: Callable[[Tensor], Tensor]) -> Constant:
    """Largest absolute derivative of a smooth activation; 1e-6 covers the grid's spacing of 2.5e-4."""
    if name not in _SLOPES:
        x = torch.linspace(-12, 12, 96001, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(function(x).sum(), x)
        _SLOPES[name] = float(slope.abs().max()) + 1e-6
    return Constant(_SLOPES[name], _SLOPES[name])


# -- of several entries ---------------------------------------------------------------------------------------------


def log_softmax(op: Executed) -> Constant:
    """The root of the number of entries; 2 in the sup norm."""
    entries = op.operand_shape[op.call.argument(1, "dim", -1)] if op.operand_shape else 1
    return Constant(math.sqrt(entries), 2)


def vector_norm(op: Executed) -> Constant:
    """1 for the Euclidean norm of n entries, root n for their sum, 1 for the largest; root n, n, 1 in the sup norm."""
    entries = 1 / op.ratio
    known = {1.0: (math.sqrt(entries), entries), 2.0: (1.0, math.sqrt(entries)), math.inf: (1.0, 1.0)}
    order = float(op.node._saved_ord)
    if order not in known:
        raise NoConstant(f"a norm of order {order:g}: no Lipschitz constant known")
    return Constant(*known[order], f"norm of {entries:g} entries")


FUNCTIONS: dict[str, Function] = {
    function.__name__: function
    for function in (
        added, factor, prelu, batch_norm, padded, filled, chosen, repeated, placed, nearest, picked, restrided, total,
        mean, cumulative_sum, interpolated, average_pool, adaptive_average_pool, max_pool, adaptive_max_pool, ordered,
        clamp, threshold, leaky_relu, rrelu, elu, celu, softplus, gelu, silu, mish, log_softmax, vector_norm,
    )
}  # fmt: skip
