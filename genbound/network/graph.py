r"""What the forward pass executed, read from autograd's own record of it.

Two questions are answered here from the executed operations, never from module names:

* *How is each weight used?* A weight that enters one ``addmm``, ``mm`` or ``convolution`` acts as a linear map
  :math:`z = A(W)`, and everything about its Hessian block can be had from :math:`z`.
* *Is the output piecewise linear in the weight?* If every operation between the weight and the output is affine
  or piecewise linear in what depends on the weight (a product only where one operand depends on it), then
  :math:`\nabla^2_W f_c = 0` wherever it exists, the block equals its Gauss-Newton part, and for a convex loss it
  is positive semidefinite. An operation that is not in the tables below counts as curved.

The condition is decided jointly for all uses of a weight: a weight used twice in sequence meets itself in a
product and is curved; two parallel uses that are only added are not.
"""

from __future__ import annotations

import re

from torch import Tensor

# Affine or piecewise linear jointly in all operands that carry gradients.
PIECEWISE_LINEAR = frozenset(
    """Add Sub Rsub Neg T Transpose Permute View UnsafeView ReshapeAlias Expand Squeeze Unsqueeze Select Slice Split
    SplitWithSizes Unbind Cat Stack Clone Alias Mean Sum Index IndexSelect Gather Embedding ConstantPadNd
    ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D AvgPool2D AvgPool3D AdaptiveAvgPool2D
    AdaptiveAvgPool3D MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D Relu LeakyRelu Threshold Hardtanh
    Clamp ClampMin ClampMax Abs Maximum Minimum Max Min Amax Amin Where MaskedFill ToCopy Repeat Roll Flip Diagonal
    Tril Triu PixelShuffle Im2Col Col2Im UpsampleNearest1D UpsampleNearest2D UpsampleBilinear2D UpsampleBicubic2D
    AccumulateGrad""".split()
)
# A product of the operands at these two positions; the others are added.
PRODUCTS = {
    "Mul": (0, 1), "Mm": (0, 1), "Bmm": (0, 1), "Mv": (0, 1), "Dot": (0, 1), "PreluKernel": (0, 1),
    "Convolution": (0, 1), "Addmm": (1, 2), "Baddbmm": (1, 2), "Addbmm": (1, 2), "Addmv": (1, 2),
}  # fmt: skip
# A product of the first two operands in evaluation mode, curved in training mode.
NORMALIZATIONS = frozenset({"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"})


def operation(node) -> str:
    """``AddmmBackward0`` -> ``Addmm``; the name of the executed operation.

    A user's own ``autograd.Function`` is called ``NameBackward`` without a number, and keeps that name: it may be called
    like a built-in operation and be another one.
    """
    return re.sub(r"Backward\d+$", "", node.name()).removeprefix("torch::autograd::")


class Graph:
    """The executed operations between some weights and an output.

    Args:
        output: the network's output, on a live autograd graph.
        weights: name -> leaf tensor that requires grad.

    Attributes:
        order: all operations, every operation after its operands.
        consumers: operation -> list of (operation that uses it, operand position).
        leaves: weight name -> its leaf node (absent where the weight was not used).
        curved_by: weight name -> name of the first operation that is curved in it.
    """

    def __init__(self, output: Tensor, weights: dict[str, Tensor]):
        self.order = _topological_order(output.grad_fn)
        self.consumers: dict = {node: [] for node in self.order}
        for node in self.order:
            for position, (operand, _) in enumerate(node.next_functions):
                if operand is not None:
                    self.consumers[operand].append((node, position))
        names = {id(weight): name for name, weight in weights.items()}
        self.leaves = {
            names[id(node.variable)]: node
            for node in self.order
            if operation(node) == "AccumulateGrad" and id(node.variable) in names
        }
        self.curved_by = self._find_curved()

    def _find_curved(self) -> dict[str, str]:
        bit = {node: 1 << i for i, node in enumerate(self.leaves.values())}
        depends: dict = {}
        curved, found = 0, {}
        names = list(self.leaves)
        for node in self.order:
            masks = [0 if operand is None else depends[operand] for operand, _ in node.next_functions]
            everything = bit.get(node, 0)
            for mask in masks:
                everything |= mask
            depends[node] = everything
            bent = _curved_operands(node, masks, everything) & ~curved
            if bent:
                curved |= bent
                found |= {name: operation(node) for i, name in enumerate(names) if bent >> i & 1}
        return found

    def upstream(self, node) -> set:
        """All operations whose result the operation depends on."""
        seen, stack = set(), [node]
        while stack:
            for operand, _ in stack.pop().next_functions:
                if operand is not None and operand not in seen:
                    seen.add(operand)
                    stack.append(operand)
        return seen


def _curved_operands(node, masks: list[int], everything: int) -> int:
    """Bit mask of the weights that this operation is curved in."""
    name = operation(node)
    if name in PIECEWISE_LINEAR:
        return 0
    pair = PRODUCTS.get(name)
    if name in NORMALIZATIONS and not node._saved_training:
        pair = (0, 1)
    if pair is not None:
        first, second = (masks[i] if i < len(masks) else 0 for i in pair)
        return first & second
    if name == "Div":
        return masks[1] if len(masks) > 1 else 0
    return everything


def _topological_order(root) -> list:
    """Depth-first post-order without recursion: a network may be thousands of operations deep."""
    order, done, stack = [], set(), [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack += [(operand, False) for operand, _ in node.next_functions if operand is not None]
    return order
