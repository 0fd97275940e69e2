r"""How a network is composed of its layers, read from the executed operations, and each layer's effective operator.

The operations between the input and the output are decomposed into series and sums, a tree in JSON (:class:`Structure`).
A composition of maps with Lipschitz constants :math:`c_i` in the Euclidean norm has the constant :math:`\prod c_i`, a sum of
branches :math:`\sum_b c_b`; a concatenation :math:`(\sum_b c_b^2)^{1/2}`, which is counted as a sum (a little larger).

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

There is no tree where no useful constant exists: products of two parts that both depend on the input (attention, gates),
layer norm (its constant :math:`\max|\gamma|/\sqrt\varepsilon` says nothing), or an operation that is not known here (choices by
a mask among them: the mask may depend on the input, and then they jump). What a network detaches from the graph counts as
constant.

Cost: two forward passes of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.network.graph import NORMALIZATIONS, PRODUCTS, Graph, operation
from genbound.network.uses import ConvolutionUse, LinearUse, find_uses
from genbound.structure.operators import Operator, as_operator

Node = dict[str, Any]
INPUT = "<input>"
MOST_NODES = 5000  # a tree repeats shared parts: densely connected branches would need exponentially many

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
_MERGES = frozenset({"Add", "Sub", "Cat", "Stack", "Maximum", "Minimum"})
_LINEAR = frozenset({"Addmm", "Mm", "Convolution"})
_BIAS = {"Addmm": 0, "Convolution": 2}  # operand position


@dataclass(frozen=True)
class Fold:
    """An evaluation-mode batch norm right behind a layer: names of its parameters and buffers (``None``: it has none)."""

    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float


@dataclass(frozen=True)
class EffectiveLayer:
    """A layer as the linear map that it is, with its batch norm folded in, for both models.

    Attributes:
        trained, init, displacement: the same map with the three weights, one for each size that it is used at.
        trained_bias, init_bias: ``[out]``, or ``None`` where nothing is added.
        folded: a batch norm is in the numbers.
        kind: ``linear``, ``convolution``, or ``matrix``: the stored matrix, because the use is not recognised.
    """

    trained: tuple[Operator, ...]
    init: tuple[Operator, ...]
    displacement: tuple[Operator, ...]
    trained_bias: Tensor | None
    init_bias: Tensor | None
    folded: bool
    kind: str


@dataclass
class Structure:
    """What :func:`read_structure` finds.

    Attributes:
        tree: JSON, ``None`` where no Lipschitz constant is known. Nodes: ``{"op": "layer", "name"}``; ``{"op": "series",
            "children"}``, first executed first; ``{"op": "sum", "children"}``; ``{"op": "identity"}``; ``{"op": "scale",
            "lipschitz", "what"}`` with the constant in the Euclidean norm as ``l2``, that in the sup norm as ``sup``, and
            ``lipschitz``, the larger one, valid in both (so that an average counts 1); ``init_lipschitz`` where the
            pretrained model has another.
        reason: why there is no tree.
        activations: activation functions in the order they first appear.
        positively_homogeneous: no bias, and only linear and ReLU-like operations.
        zero_preserving: every step other than a layer maps 0 to 0 (a step that adds something unknown does not).
        notes: what was done about pooling, concatenation and batch norm.
        folds: layer -> the batch norm folded into it.
    """

    tree: Node | None = None
    reason: str = ""
    activations: list[str] = field(default_factory=list)
    positively_homogeneous: bool = True
    zero_preserving: bool = True
    notes: list[str] = field(default_factory=list)
    folds: dict[str, Fold] = field(default_factory=dict)
    _problem: Any = None
    _uses: dict[str, list] = field(default_factory=dict)
    _biases: dict[str, str] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Layers on all branches; a weight that is used twice counts twice."""
        return count(self.tree, "layer") if self.tree else len(self._uses)

    @property
    def plain(self) -> bool:
        return self.tree is not None and count(self.tree, "sum") == 0

    def num_operators(self, name: str) -> int:
        """At how many places a layer's weight acts."""
        return max(1, len(self._uses.get(name, ())))

    def effective(self, name: str) -> EffectiveLayer:
        """A layer's operators in float64. Computed anew at every call: they can be large."""
        problem, uses = self._problem, self._uses.get(name, [])
        known = [use for use in uses if isinstance(use, LinearUse | ConvolutionUse)]
        fold, bias = self.folds.get(name), self._biases.get(name)
        trained = [as_operator(use, problem.params[name]) for use in known or [None]]
        init = [as_operator(use, problem.init[name]) for use in known or [None]]
        biases: list[Tensor | None] = [
            None if bias is None else w[bias].double() for w in (problem.params, problem.init)
        ]
        if fold is not None:
            for i, (operators, params, buffers) in enumerate(
                ((trained, problem.params, problem.buffers), (init, problem.init, problem.init_buffers))
            ):
                scale = (buffers[fold.variance].double() + fold.eps).rsqrt()
                if fold.gamma is not None:
                    scale = scale * params[fold.gamma].double()
                operators[:] = [operator.scale_outputs(scale) for operator in operators]
                before = -buffers[fold.mean].double() if biases[i] is None else biases[i] - buffers[fold.mean].double()
                biases[i] = scale * before + (0.0 if fold.beta is None else params[fold.beta].double())
        moved = [a.with_weight(a.weight - b.weight) for a, b in zip(trained, init, strict=True)]
        kind = trained[0].kind if known else "matrix"
        return EffectiveLayer(
            tuple(trained), tuple(init), tuple(moved), biases[0], biases[1], fold is not None, kind
        )  # fmt: skip


def count(node: Node, op: str) -> int:
    """How many nodes of a kind a tree has."""
    return (node["op"] == op) + sum(count(child, op) for child in node.get("children", ()))


def lipschitz(node: Node, norms: Mapping[str, float], scale: str = "lipschitz") -> float:
    """The constant that a tree implies, from the layers' norms; ``scale`` chooses the field of the scale nodes."""
    if node["op"] == "layer":
        return norms[node["name"]]
    if node["op"] == "scale":
        return node.get(scale, node["lipschitz"])
    parts = [lipschitz(child, norms, scale) for child in node.get("children", ())]
    return sum(parts) if node["op"] == "sum" else math.prod(parts)


class _NoConstant(Exception):
    """Why a network has no useful Lipschitz constant."""


def read_structure(problem) -> Structure:
    """Read the composition and the operators of a problem's network from a forward pass of its first sample.

    The tree is that of the fine-tuned model. Scale steps whose constant is another one at the initialisation (a batch
    norm that is not folded, a learned factor) carry it as ``init_lipschitz``.
    """
    if problem.data is None:
        return Structure(reason="there is no network to run", _problem=problem)  # every weight is its stored matrix
    reader = _Reader(problem, problem.params, problem.buffers)
    structure = reader.read()
    if structure.tree is not None and count(structure.tree, "scale"):
        pretrained = _Reader(problem, problem.init, problem.init_buffers).read().tree
        if pretrained is not None:
            _add_init(structure.tree, pretrained)
    borrowed = [n for f in structure.folds.values() for n in (f.mean, f.variance) if n in problem.borrowed_buffers]
    if borrowed:
        structure.notes.append(
            f"the initialisation has no {borrowed[0]}"
            + (f" and {len(borrowed) - 1} more running statistics" if len(borrowed) > 1 else "")
            + ": those of the fine-tuned model are folded into it"
        )
    return structure


def _add_init(node: Node, other: Node) -> None:
    if node["op"] != other["op"]:
        return  # a factor that is exactly 1 in one of the models
    if node["op"] == "scale" and other["lipschitz"] != node["lipschitz"]:
        node["init_lipschitz"] = other["lipschitz"]
    if len(node.get("children", ())) == len(other.get("children", ())):
        for child, twin in zip(node.get("children", ()), other.get("children", ()), strict=True):
            _add_init(child, twin)


class _Reader:
    """One forward pass of one sample and the walk through it."""

    def __init__(self, problem, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]):
        self.problem, self.buffers = problem, buffers
        self.weights = {n: p.detach().requires_grad_() for n, p in params.items() if p.is_floating_point()}
        inputs, leaf, self.num_inputs = _with_gradient(problem.batch([0]).inputs)
        with torch.enable_grad():
            self.output = problem.forward({**params, **self.weights}, inputs, buffers)
        self.graph = Graph(self.output, self.weights if leaf is None else {**self.weights, INPUT: leaf})
        self.structure = Structure(_problem=problem)
        self.layer_of: dict = {}
        for name, weight in self.weights.items():
            uses = find_uses(self.graph, name, weight, 1, True) if weight.dim() >= 2 else []
            if uses:
                self.structure._uses[name] = uses
            for use in uses:
                if isinstance(use, LinearUse | ConvolutionUse):
                    self.layer_of[use.edge.node] = name
        self.names = {node: name for name, node in self.graph.leaves.items()}
        self.measured = {layer.name for layer in problem.layers}
        self.structure._uses = {n: u for n, u in self.structure._uses.items() if n in self.measured}
        source = self.graph.leaves.get(INPUT)
        self.source, self.depends = source, set()
        for node in self.graph.order:
            if node is source or any(o in self.depends for o, _ in node.next_functions if o is not None):
                self.depends.add(node)
        self.num_nodes = 0
        for node, name in self.layer_of.items():
            self._find_bias_and_fold(node, name)

    # -- layers ----------------------------------------------------------------------------------------------------

    def _find_bias_and_fold(self, node, name: str) -> None:
        """The vector that is added behind a layer, and the batch norm that follows it, if they are its alone."""
        kind = operation(node)
        bias = None if kind == "Mm" else self._parameter(node, _BIAS[kind])
        if bias is not None:
            self.structure._biases[name] = bias
        if len(self.structure._uses.get(name, ())) != 1:
            return
        node = self._only_consumer(node)
        while node is not None and operation(node) in ("View", "UnsafeView", "ReshapeAlias") and bias is None:
            node = self._only_consumer(node)
        if node is None:
            return
        if operation(node) == "Add" and kind == "Mm":
            added = self._parameter(node, 1)
            if added is not None and self.weights[added].shape == _shape(node)[-1:] and node._saved_alpha == 1:
                self.structure._biases[name] = added
                return
        if operation(node) in NORMALIZATIONS and not node._saved_training and self._operand(node, 0) in self.layer_of:
            mean, variance = self._buffer(node._saved_running_mean), self._buffer(node._saved_running_var)
            if mean is not None and variance is not None:
                self.structure.folds[name] = Fold(
                    self._parameter(node, 1), self._parameter(node, 2), mean, variance, float(node._saved_eps)
                )

    def _only_consumer(self, node):
        found = self.graph.consumers[node]
        return found[0][0] if len(found) == 1 else None

    @staticmethod
    def _operand(node, position: int):
        return node.next_functions[position][0] if position < len(node.next_functions) else None

    def _parameter(self, node, position: int) -> str | None:
        return self.names.get(self._operand(node, position))

    def _buffer(self, tensor: Tensor | None) -> str | None:
        if tensor is None:
            return None
        return next((n for n, b in self.buffers.items() if b.data_ptr() == tensor.data_ptr()), None)

    # -- the tree --------------------------------------------------------------------------------------------------

    def read(self) -> Structure:
        found = self.structure
        biases = [self.weights[name] for name in found._biases.values()]
        if any(bool(b.detach().any()) for b in biases) or found.folds:
            found.positively_homogeneous = False
        try:
            self._refuse()
            self._find_dominators()
            found.tree = _series(self._between(self.source, self.output.grad_fn))
        except _NoConstant as why:
            found.reason, found.positively_homogeneous, found.zero_preserving = str(why), False, False
        if self.num_inputs > 1:
            found.notes.append("the network has several inputs: the tree is about the first one")
        if found.folds:
            found.notes.append(f"batch norm is folded into {len(found.folds)} layers")
        return found

    def _refuse(self) -> None:
        """The reason that says most, wherever it is in the network."""
        names = {operation(node) for node in self.graph.order}
        softmax = {node for node in self.graph.order if operation(node) in ("Softmax", "SafeSoftmax")}
        products = [node for node in self.graph.order if operation(node) in ("Bmm", "Mul") and self._mixes(node)]
        attention = softmax and any(self.graph.upstream(node) & softmax for node in products)
        if attention or any("ScaledDotProduct" in name for name in names):
            raise _NoConstant("softmax attention is not globally Lipschitz")
        if "NativeLayerNorm" in names:
            raise _NoConstant("LayerNorm has no useful global Lipschitz constant (only max|γ|/√ε)")
        if "NativeGroupNorm" in names:
            raise _NoConstant("group normalization has no useful global Lipschitz constant (only max|γ|/√ε)")
        if self.num_inputs == 0:
            raise _NoConstant("the network has no floating-point input (token numbers are no vectors)")
        if self.source is None:
            raise _NoConstant("the output does not depend on the network's first floating-point input")
        for node in self.graph.order:
            parts = [o for o, _ in node.next_functions if o in self.depends]
            if node in self.depends and len(parts) > 1 and operation(node) in {*PRODUCTS, "Div"}:
                raise _NoConstant(
                    "the product of two parts that depend on the input (a gate, squeeze-excitation) is not globally Lipschitz"
                )

    def _mixes(self, node) -> bool:
        """Two operands are activations, not weights or constants. (Token numbers have no path from the input.)"""
        operands = [o for o, _ in node.next_functions if o is not None]
        if self.source is not None:
            operands = [o for o in operands if o in self.depends]
        return len([o for o in operands if operation(o) not in ("AccumulateGrad", "T")]) > 1

    def _operands(self, node) -> list:
        return [o for o, _ in node.next_functions if o in self.depends]

    def _find_dominators(self) -> None:
        """Immediate dominators: the last operation that every path from the input to a node passes."""
        self.dominator, self.level = {self.source: None}, {self.source: 0}
        for node in self.graph.order:
            if node in self.depends and node is not self.source:
                operands = self._operands(node)
                common = operands[0]
                for other in operands[1:]:
                    common = self._common(common, other)
                self.dominator[node], self.level[node] = common, self.level[common] + 1

    def _common(self, a, b):
        while a is not b:
            if self.level[a] < self.level[b]:
                b = self.dominator[b]
            else:
                a = self.dominator[a]
        return a

    def _between(self, first, last) -> list[Node]:
        """The steps after ``first`` up to and with ``last``; every path to ``last`` passes ``first``."""
        steps: list[Node] = []
        node = last
        while node is not first:
            self.num_nodes += 1
            if self.num_nodes > MOST_NODES:
                raise _NoConstant("the branches are connected too densely to be written as series and sums")
            operands = self._operands(node)
            if len(operands) == 1:
                steps += reversed(self._step(node))
                node = operands[0]
                continue
            if operation(node) not in _MERGES:
                raise _NoConstant(f"operation {operation(node)}: no Lipschitz constant known")
            common = self.dominator[node]
            branches = [self._between(common, operand) for operand in operands]
            if operation(node) in ("Add", "Sub") and abs(node._saved_alpha) != 1:
                branches[1].append(_scale(abs(float(node._saved_alpha)), "factor of a branch"))
            if operation(node) in ("Cat", "Stack"):
                self._note("a concatenation is counted as a sum")
            elif operation(node) in ("Maximum", "Minimum"):
                self._note("a maximum or minimum of branches is counted as a sum")
            steps.append({"op": "sum", "children": [_series(branch) for branch in branches]})
            node = common
        return steps[::-1]

    def _note(self, text: str) -> None:
        if text not in self.structure.notes:
            self.structure.notes.append(text)

    def _step(self, node) -> list[Node]:
        """What an operation with one operand that depends on the input contributes."""
        name, found = operation(node), self.structure
        if node in self.layer_of:
            layer = self.layer_of[node]
            if layer not in self.measured:
                raise _NoConstant(f"layer {layer} is in the network but not among the layers that are measured")
            # Without a bias a convolution saves the size (0,).
            unnamed = name == "Addmm" or (name == "Convolution" and any(node._saved_bias_sym_sizes_opt or ()))
            if unnamed and layer not in found._biases:
                found.positively_homogeneous = found.zero_preserving = False
            return [{"op": "layer", "name": layer}]
        if name in _LINEAR or name in ("Bmm", "Mv", "Dot"):
            raise _NoConstant(f"a weight is used by an operation {name} that is not recognised as a layer")
        if name in _ROUTES:
            return []
        if name in ("Add", "Sub", "Rsub"):
            known = name == "Add" and self._parameter(node, 1) in found._biases.values()
            found.positively_homogeneous &= known  # a layer's bias is looked at with the layer
            found.zero_preserving &= known
            return []
        if name in _MERGES:  # with constants
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
        if name in NORMALIZATIONS:
            return self._batch_norm(node)
        if name in ("Mul", "Div"):
            return self._factor(node)
        if name in ("Mean", "Sum"):
            return self._mean(node)
        if name in ("Expand", "Repeat"):
            copies = _ratio(node)
            return [] if copies == 1 else [_scale(math.sqrt(copies), f"repeated {copies:g} times", sup=1.0)]
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
            copies = math.prod(
                math.ceil(o / i) for o, i in zip(_shape(node)[2:], _operand_shape(node)[2:], strict=True)
            )
            return [] if copies == 1 else [_scale(math.sqrt(copies), "nearest upsampling", sup=1.0)]
        raise _NoConstant(f"operation {name}: no Lipschitz constant known")

    def _pads_zeros(self, node) -> bool:
        """Whether the padding is zero: its constant is not recorded, but a convolution behind it saves what it is given."""
        for consumer, position in self.graph.consumers[node]:
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
        return [] if l2 == 1 and label != "PReLU" else [_scale(l2, label, sup=sup)]

    def _batch_norm(self, node) -> list[Node]:
        layer = self.layer_of.get(self._operand(node, 0))
        if layer is not None and layer in self.structure.folds:
            return []
        self.structure.positively_homogeneous = self.structure.zero_preserving = False  # its shift
        if node._saved_training:
            raise _NoConstant("batch norm without running statistics has no Lipschitz constant")
        factor = (node._saved_running_var.double() + node._saved_eps).rsqrt()
        if node._saved_weight is not None:
            factor = factor * node._saved_weight.detach().double()
        self._note("a batch norm that does not follow a layer is a step of its own")
        return [_scale(float(factor.abs().max()), "unfolded batch norm")]

    def _factor(self, node) -> list[Node]:
        """Multiplication or division by what does not depend on the input."""
        dependent = next(i for i, (o, _) in enumerate(node.next_functions) if o in self.depends)
        if dependent == 1 and operation(node) == "Div":
            raise _NoConstant("division by a part that depends on the input is not globally Lipschitz")
        other = node._saved_other if dependent == 0 else node._saved_self
        if other is None:
            raise _NoConstant(f"operation {operation(node)}: its factor was not recorded")
        other = torch.as_tensor(other).detach().double().abs()
        if other.numel() > 1 and other.numel() > math.prod(_shape(node)):
            raise _NoConstant(f"operation {operation(node)}: no Lipschitz constant known")
        if math.prod(_operand_shape(node, dependent)) != math.prod(_shape(node)):
            raise _NoConstant("a factor that repeats its operand: no Lipschitz constant known")
        constant = 1 / float(other.min()) if operation(node) == "Div" else float(other.max())
        learned = node.next_functions[1 - dependent][0] is not None
        return [_scale(constant, "learned factor" if learned else "constant factor")]

    def _mean(self, node) -> list[Node]:
        entries = 1 / _ratio(node)
        if entries == 1:
            return []
        if operation(node) == "Mean":
            self._note(
                f"a mean over {entries:g} entries has the constant {entries**-0.5:.4g}; the tree counts 1 beside it"
            )
            return [_scale(entries**-0.5, f"mean over {entries:g} entries", sup=1.0)]
        return [_scale(math.sqrt(entries), f"sum over {entries:g} entries", sup=entries)]

    def _max_pool(self, node) -> list[Node]:
        inputs, outputs = _operand_shape(node), _shape(node)
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
        self._note("max-pool")
        windows = math.prod(coverage)
        return [] if windows <= 1 else [_scale(math.sqrt(windows), what, sup=1.0)]

    def _average_pool(self, node) -> list[Node]:
        inputs, outputs, name = _operand_shape(node), _shape(node), operation(node)
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
        self._note("average-pool")
        if l2 == 1 and sup <= 1:
            return []
        return [_scale(l2, "average pool", sup=sup)]


def _with_gradient(inputs: Any) -> tuple[Any, Tensor | None, int]:
    """The inputs with their first floating-point tensor on the graph, that leaf, and how many such tensors there are."""
    leaf, number = None, 0

    def convert(value: Any) -> Any:
        nonlocal leaf, number
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                return value
            number += 1
            if leaf is not None:
                return value
            leaf = value.detach().requires_grad_()
            with torch.enable_grad():
                return leaf.clone()  # a network may work in place
        if isinstance(value, Mapping):
            return {key: convert(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return tuple(convert(v) for v in value)
        return value

    return convert(inputs), leaf, number


def _series(steps: list[Node]) -> Node:
    if len(steps) == 1:
        return steps[0]
    return {"op": "series", "children": steps} if steps else {"op": "identity"}


def _scale(l2: float, what: str, sup: float | None = None) -> Node:
    """A step with its constants in the Euclidean and the sup norm (the same unless told), and one that is valid in both."""
    l2, sup = float(l2), float(l2 if sup is None else sup)
    return {"op": "scale", "lipschitz": max(l2, sup), "what": what, "l2": l2, "sup": sup}


def _shape(node) -> tuple[int, ...]:
    """Of an operation's (first) result."""
    return tuple(int(size) for size in node._input_metadata[0].shape)


def _operand_shape(node, position: int = 0) -> tuple[int, ...]:
    operand, output = node.next_functions[position]
    return tuple(int(size) for size in operand._input_metadata[output].shape)


def _ratio(node) -> float:
    """Entries of the result for each entry of the operand."""
    return math.prod(_shape(node)) / math.prod(_operand_shape(node))


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
