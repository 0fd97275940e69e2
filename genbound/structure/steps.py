r"""What each executed operation that is not a layer contributes to the tree.

Steps that are not layers:

* constant 1, left out of the tree: ReLU, ReLU6 and other clamps, tanh, reshapes, slices, padding by constants, pooling
  with disjoint windows.
* the mean over n entries: :math:`1/\sqrt n`, and 1 in the sup norm.
* max-pooling with windows of k at stride s: an entry lies in at most :math:`m = \prod_{dims} \lceil k/s \rceil` windows, and
  a maximum moves by no more than the entry that moves most in its window, so that
  :math:`\|\Delta\|_2^2 \le m \|\delta\|_2^2`: the constant is :math:`\sqrt m`, that is :math:`\lceil k/s\rceil` for a square window. It
  is attained (one entry far above all others). With dilation, s becomes s / gcd(s, d).
* average pooling is linear and separable: the product of the 2-norms of its factors.
* GELU and other smooth activations: the largest absolute value of the derivative.
* evaluation-mode batch norm is diagonal. Right behind a convolution or a linear map it is *folded* into that layer;
  elsewhere the step is :math:`\max|\gamma|/\sqrt{\mathrm{var}+\varepsilon}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from genbound.network.operations import of_node, operation
from genbound.structure.executed import ExecutedPass, operand, operand_shape, ratio, shape
from genbound.structure.tree import MERGES, NoConstant, Node, Structure, scale_step

# Constant 1 in the Euclidean and in the sup norm, and not worth a word.
_ROUTES = frozenset(
    """T Transpose Permute View UnsafeView ReshapeAlias Squeeze Unsqueeze Select Slice Split SplitWithSizes Unbind Clone
    Alias ToCopy Neg Roll Flip Diagonal Tril Triu PixelShuffle""".split()
)
# (constant, positively homogeneous, zero at zero)
_ACTIVATIONS = {
    "Relu": (1.0, True, True), "Abs": (1.0, True, True), "Hardtanh": (1.0, False, False), "Tanh": (1.0, False, True),
    "Clamp": (1.0, False, False), "ClampMin": (1.0, False, False), "ClampMax": (1.0, False, False),
    "Sigmoid": (0.25, False, False), "Hardsigmoid": (1 / 6, False, False), "Softplus": (1.0, False, False),
    "Hardswish": (1.5, False, True), "Softmax": (0.5, False, False), "Amax": (1.0, True, True), "Amin": (1.0, True, True),
    "Sin": (1.0, False, True), "LogSigmoid": (1.0, False, False),
}  # fmt: skip
_SMOOTH = {"Gelu": torch.nn.functional.gelu, "Silu": torch.nn.functional.silu, "Mish": torch.nn.functional.mish}
_NAMES = {"Gelu": "GELU", "Silu": "SiLU", "Elu": "ELU", "Mish": "Mish", "PReLU": "PReLU", "CELU": "CELU"}
_LINEAR = frozenset({"Addmm", "Mm", "Convolution"})


class Steps:
    """The steps of one pass; what they tell of the network is kept in the structure."""

    def __init__(self, run: ExecutedPass, structure: Structure):
        self.run, self.structure = run, structure

    def of(self, node) -> list[Node]:
        """What an operation with one operand that depends on the input contributes."""
        name, found = operation(node), self.structure
        if node in self.run.layer_of:
            layer = self.run.layer_of[node]
            if layer not in self.run.measured:
                raise NoConstant(f"layer {layer} is in the network but not among the layers that are measured")
            # Without a bias a convolution saves the size (0,).
            unnamed = name == "Addmm" or (name == "Convolution" and any(node._saved_bias_sym_sizes_opt or ()))
            if unnamed and layer not in found._biases:
                found.positively_homogeneous = found.zero_preserving = False
            return [{"op": "layer", "name": layer}]
        if name in _LINEAR or name in ("Bmm", "Mv", "Dot"):
            raise NoConstant(f"a weight is used by an operation {name} that is not recognised as a layer")
        if name in _ROUTES:
            return []
        if name in ("Add", "Sub", "Rsub"):
            known = name == "Add" and self.run.parameter(node, 1) in found._biases.values()
            found.positively_homogeneous &= known  # a layer's bias is looked at with the layer
            found.zero_preserving &= known
            return []
        if name in MERGES:  # with constants
            alone = len(node.next_functions) == 1
            found.positively_homogeneous &= alone
            found.zero_preserving &= alone
            return []
        if name in _ACTIVATIONS:
            constant, homogeneous, zero = _ACTIVATIONS[name]
            if name.startswith(("Clamp", "Hardtanh")):
                low, high = _limits(node)
                zero, homogeneous = low <= 0 <= high, low == 0 and high == math.inf
                label = "relu6" if (low, high) == (0, 6) else name.lower()
                return self._activation(label, 1.0, 1.0, homogeneous, zero)
            return self._activation(name, constant, constant, homogeneous, zero)
        if name == "SafeSoftmax":
            return self._activation("Softmax", 0.5, 0.5, False, False)
        if name in _SMOOTH:
            approximate = {"approximate": node._saved_approximate} if name == "Gelu" else {}
            constant = _largest_slope(lambda x: _SMOOTH[name](x, **approximate))
            return self._activation(name, constant, constant, False, True)
        if name == "LeakyRelu":
            constant = max(1.0, abs(float(node._saved_negative_slope)))
            return self._activation(name, constant, constant, True, True)
        if name == "PreluKernel":
            constant = max(1.0, float(node._saved_weight.detach().abs().max()))
            return self._activation("PReLU", constant, constant, True, True)
        if name == "Celu":
            return self._activation("CELU", 1.0, 1.0, False, True)
        if name == "Elu":
            scale, slope = float(node._saved_scale), float(node._saved_alpha) * float(node._saved_input_scale)
            constant = abs(scale) * max(1.0, abs(slope))
            return self._activation(name, constant, constant, False, True)
        if of_node(node).name == "batch_norm":
            return self._batch_norm(node)
        if name in ("Mul", "Div"):
            return self._factor(node)
        if name in ("Mean", "Sum"):
            return self._mean(node)
        if name in ("Expand", "Repeat"):
            copies = ratio(node)
            return [] if copies == 1 else [scale_step(math.sqrt(copies), f"repeated {copies:g} times", sup=1.0)]
        if name == "ConstantPadNd":
            zero = self._pads_zeros(node)
            found.positively_homogeneous &= zero
            found.zero_preserving &= zero
            return []
        if name.startswith(("MaxPool", "AdaptiveMaxPool")):
            return self._max_pool(node)
        if name.startswith(("AvgPool", "AdaptiveAvgPool")):
            return self._average_pool(node)
        if name.startswith("UpsampleNearest"):
            copies = math.prod(math.ceil(o / i) for o, i in zip(shape(node)[2:], operand_shape(node)[2:], strict=True))
            return [] if copies == 1 else [scale_step(math.sqrt(copies), "nearest upsampling", sup=1.0)]
        raise NoConstant(f"operation {name}: no Lipschitz constant known")

    def _pads_zeros(self, node) -> bool:
        """Whether the padding is zero: its constant is not recorded, but a convolution behind it saves what it is given."""
        for consumer, position in self.run.graph.consumers[node]:
            if operation(consumer) == "Convolution" and position == 0:
                border = consumer._saved_input.detach().clone()
                inner = border
                for i, (before, after) in enumerate(zip(node._saved_pad[::2], node._saved_pad[1::2], strict=True)):
                    size = border.shape[-1 - i]
                    if not (0 <= before <= size and 0 <= after <= size):
                        return False  # a negative margin cuts off
                    inner = inner.narrow(-1 - i, before, size - before - after)
                inner.zero_()
                return not border.any()
        return False

    def _activation(self, name: str, l2: float, sup: float, homogeneous: bool, zero: bool) -> list[Node]:
        label, found = _NAMES.get(name, name.lower()), self.structure
        if label in found.activations:
            found.activations.remove(label)
        found.activations.insert(0, label)  # the walk goes from the output to the input
        found.positively_homogeneous &= homogeneous
        found.zero_preserving &= zero
        # A learned slope stays in the tree: at the initialisation it may be another one.
        return [] if l2 == 1 and label != "PReLU" else [scale_step(l2, label, sup=sup)]

    def _batch_norm(self, node) -> list[Node]:
        layer = self.run.layer_of.get(operand(node, 0))
        if layer is not None and layer in self.structure.folds:
            return []
        self.structure.positively_homogeneous = self.structure.zero_preserving = False  # its shift
        if node._saved_training:
            raise NoConstant("batch norm without running statistics has no Lipschitz constant")
        factor = (node._saved_running_var.double() + node._saved_eps).rsqrt()
        if node._saved_weight is not None:
            factor = factor * node._saved_weight.detach().double()
        self.structure.note("a batch norm that does not follow a layer is a step of its own")
        return [scale_step(float(factor.abs().max()), "unfolded batch norm")]

    def _factor(self, node) -> list[Node]:
        """Multiplication or division by what does not depend on the input."""
        dependent = next(i for i, (o, _) in enumerate(node.next_functions) if o in self.run.depends)
        if dependent == 1 and operation(node) == "Div":
            raise NoConstant("division by a part that depends on the input is not globally Lipschitz")
        other = node._saved_other if dependent == 0 else node._saved_self
        if other is None:
            raise NoConstant(f"operation {operation(node)}: its factor was not recorded")
        other = torch.as_tensor(other).detach().double().abs()
        if other.numel() > 1 and other.numel() > math.prod(shape(node)):
            raise NoConstant(f"operation {operation(node)}: no Lipschitz constant known")
        if math.prod(operand_shape(node, dependent)) != math.prod(shape(node)):
            raise NoConstant("a factor that repeats its operand: no Lipschitz constant known")
        constant = 1 / float(other.min()) if operation(node) == "Div" else float(other.max())
        learned = node.next_functions[1 - dependent][0] is not None
        return [scale_step(constant, "learned factor" if learned else "constant factor")]

    def _mean(self, node) -> list[Node]:
        entries = 1 / ratio(node)
        if entries == 1:
            return []
        if operation(node) == "Mean":
            self.structure.note(
                f"a mean over {entries:g} entries has the constant {entries**-0.5:.4g}; the tree counts 1 beside it"
            )
            return [scale_step(entries**-0.5, f"mean over {entries:g} entries", sup=1.0)]
        return [scale_step(math.sqrt(entries), f"sum over {entries:g} entries", sup=entries)]

    def _max_pool(self, node) -> list[Node]:
        inputs, outputs = operand_shape(node), shape(node)
        if operation(node).startswith("Adaptive"):
            dims = int(operation(node)[len("AdaptiveMaxPool")])
            coverage = [
                _adaptive(i, o, lambda n: 1.0).sum(0).max()
                for i, o in zip(inputs[-dims:], outputs[-dims:], strict=True)
            ]
            what = "overlapping adaptive max-pool"
        else:
            kernel = tuple(node._saved_kernel_size)
            stride, dilation = tuple(node._saved_stride) or kernel, tuple(node._saved_dilation)
            dims = int(operation(node)[len("MaxPool")])
            kernel, stride, dilation = (_spread(x, dims) for x in (kernel, stride, dilation))
            coverage = [
                min(math.ceil(k * math.gcd(s, d) / s), o)
                for k, s, d, o in zip(kernel, stride, dilation, outputs[-dims:], strict=True)
            ]
            what = (
                f"overlapping max-pool {'x'.join(map(str, kernel)) if len(set(kernel)) > 1 else kernel[0]}/{stride[0]}"
            )
        self.structure.note("max-pool")
        windows = math.prod(coverage)
        return [] if windows <= 1 else [scale_step(math.sqrt(windows), what, sup=1.0)]

    def _average_pool(self, node) -> list[Node]:
        inputs, outputs, name = operand_shape(node), shape(node), operation(node)
        if name.startswith("Adaptive"):
            dims = int(name[len("AdaptiveAvgPool")])
            factors = [_adaptive(i, o, lambda n: 1 / n) for i, o in zip(inputs[-dims:], outputs[-dims:], strict=True)]
        else:
            dims = int(name[len("AvgPool")])
            kernel = _spread(tuple(node._saved_kernel_size), dims)
            stride = _spread(tuple(node._saved_stride) or kernel, dims)
            padding = _spread(tuple(node._saved_padding), dims)
            divisor = node._saved_divisor_override
            factors = [
                _window(i, o, k, s, p, bool(node._saved_count_include_pad), divisor is None)
                for i, o, k, s, p in zip(inputs[-dims:], outputs[-dims:], kernel, stride, padding, strict=True)
            ]
            if divisor is not None:
                factors[0] = factors[0] / float(divisor)
        l2 = math.prod(float(np.linalg.norm(f, 2)) for f in factors)
        sup = math.prod(float(f.sum(1).max()) for f in factors)
        if abs(l2 - 1) < 1e-12:
            l2 = 1.0
        self.structure.note("average-pool")
        if l2 == 1 and sup <= 1:
            return []
        return [scale_step(l2, "average pool", sup=sup)]


def _limits(node) -> tuple[float, float]:
    """The interval that a clamp keeps."""
    hard = operation(node) == "Hardtanh"
    low = getattr(node, "_saved_min_val" if hard else "_saved_min", None)
    high = getattr(node, "_saved_max_val" if hard else "_saved_max", None)
    return (
        -math.inf if low is None else float(torch.as_tensor(low).max()),
        math.inf if high is None else float(torch.as_tensor(high).min()),
    )


def _spread(values: tuple[int, ...], dims: int) -> tuple[int, ...]:
    return tuple(int(v) for v in (values * dims if len(values) == 1 else values))


def _adaptive(size: int, out: int, weight: Callable[[int], float]) -> np.ndarray:
    """``[out, size]``: the windows of adaptive pooling along one axis."""
    matrix = np.zeros((out, size))
    for o in range(out):
        first, last = o * size // out, -((-(o + 1) * size) // out)
        matrix[o, first:last] = weight(last - first)
    return matrix


def _window(
    size: int, out: int, kernel: int, stride: int, padding: int, count_padding: bool, divide: bool
) -> np.ndarray:
    """``[out, size]``: average pooling along one axis."""
    matrix = np.zeros((out, size))
    for o in range(out):
        first = o * stride - padding
        last = min(first + kernel, size + padding)
        counted = last - first
        first, last = max(first, 0), min(last, size)
        if not count_padding:
            counted = last - first
        matrix[o, first:last] = 1 / counted if divide else 1.0
    return matrix


def _largest_slope(function: Callable[[Tensor], Tensor]) -> float:
    """Largest absolute derivative of a smooth activation; 1e-6 covers the grid's spacing of 2.5e-4."""
    x = torch.linspace(-12, 12, 96001, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(function(x).sum(), x)
    return float(slope.abs().max()) + 1e-6
