r"""How an executed operation applies a weight: the one place that recognises it.

A forward pass is read in two ways. Autograd's record of it is read afterwards, node by node (:func:`find_uses`); the
operations themselves are seen while they run (:mod:`genbound.network.weight_watch`). Both describe what they see as an
:class:`Application`, and that gives the *use*, the linear map from the weight to the operation's result
(:mod:`genbound.network.weight_uses`).

The two see one operation differently. A node knows which weight it was given, through transpositions, because the
record leads there; an operation that runs is given some tensor, which is the weight if it is the same numbers in the
same order, as stored or turned over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from genbound.network.graph import Graph
from genbound.network.operations import of_aten, of_node, operation
from genbound.network.weight_uses import ConvolutionUse, EmbeddingUse, LeafUse, LinearUse, Use, split_rows


@dataclass(frozen=True)
class Application:
    """What an executed operation does with a weight.

    Attributes:
        kind: ``linear``, ``convolution`` or ``embedding``.
        inputs: what the weight is applied to. Linear: ``[rows, in]``; convolution: ``[rows, channels, *spatial]``;
            embedding: numbers of rows of the weight, in any shape.
        transposed: a linear map whose weight is stored ``[in, out]``.
        settings: of a convolution: stride, padding, dilation, whether it is transposed, output padding, groups.
    """

    kind: str
    inputs: Tensor
    transposed: bool = False
    settings: tuple = ()

    def use(self, shape: Sequence[int], num: int, samples_first: bool, edge: GradientEdge | None = None) -> Use | None:
        """The map from the weight to the result, ``None`` where the rows cannot be split among the samples.

        Args:
            shape: of the weight as it is stored.
            num: samples in the pass.
            samples_first: the rows are in order sample by sample, otherwise position by position.
            edge: the result's place in autograd's record, if there is one.
        """
        rows = math.prod(self.inputs.shape) if self.kind == "embedding" else self.inputs.shape[0]
        if rows % num:
            return None
        if self.kind == "embedding":
            return EmbeddingUse(edge, self.inputs, num, samples_first, tuple(shape))
        if self.kind == "convolution":
            return ConvolutionUse(edge, self.inputs, num, samples_first, tuple(shape), *self.settings)
        return LinearUse(edge, split_rows(self.inputs, num, samples_first), self.transposed, samples_first)


# -- a running pass ---------------------------------------------------------------------------------------------------


def read_call(func: Any, args: Sequence, kwargs: Mapping[str, Any], weight: Tensor) -> Application | None:
    """What an operation does with a weight as it runs, ``None`` if that is not known.

    Args:
        func: the operation, an overload of ``torch.ops.aten``, with its ``args`` and ``kwargs``.
        weight: as it is stored, in any shape.
    """
    if func.namespace != "aten" or func._overloadname != "default":  # others take their arguments otherwise
        return None
    name = of_aten(func).name
    if name in ("mm", "addmm", "bmm") and kwargs.get("alpha", 1) == 1:
        inputs, matrix = args[-2:]
        if matrix.dim() == 3 and (len(matrix) == 1 or matrix.stride(0) == 0):
            matrix = matrix[0]  # inputs that are not contiguous are multiplied as a batch, each by the same matrix
        as_stored = _is(matrix, weight)
        if as_stored or weight.dim() == 2 and _is(matrix, weight.mT):
            inputs = inputs if inputs.layout == torch.strided else inputs.to_dense()
            return Application("linear", inputs.reshape(-1, inputs.shape[-1]), as_stored)
    elif name == "convolution" and _is(args[1], weight):
        return Application("convolution", args[0], settings=tuple(args[3:9]))
    elif name == "embedding" and _is(args[0], weight):
        scaled_by_frequency = len(args) > 3 and args[3]
        return None if scaled_by_frequency else Application("embedding", args[1])
    return None


def _is(given: Tensor, weight: Tensor) -> bool:
    """The same numbers in the same order, in memory as well."""
    if given.layout != torch.strided or given.shape != weight.shape or given.data_ptr() != weight.data_ptr():
        return False
    return all(a == b for a, b, size in zip(given.stride(), weight.stride(), given.shape, strict=True) if size > 1)


# -- the record of a pass ---------------------------------------------------------------------------------------------


def find_uses(graph: Graph, name: str, weight: Tensor, num: int, samples_first: bool) -> list[Use]:
    """The uses of one weight in a recorded forward pass.

    Falls back to a single :class:`~genbound.network.weight_uses.LeafUse` where an operation is not recognised, where
    the rows of the operation cannot be split among the samples, or where one use feeds another: then the derivative of
    the second use's input enters the block, which the sum over uses would miss.

    Args:
        graph: the record.
        name: of the weight in it.
        weight: as it is stored.
        num: samples in the pass.
        samples_first: order of the rows of its operations, see :meth:`Application.use`.
    """
    leaf = graph.leaves.get(name)
    if leaf is None:
        return []
    fallback: list[Use] = [LeafUse(GradientEdge(leaf, 0), tuple(weight.shape))]
    uses: list[Use] = []
    nodes: set[Node] = set()
    pending = [(node, position, False) for node, position in graph.consumers[leaf]]
    while pending:
        node, position, turned = pending.pop()
        if weight.dim() == 2 and not turned and _is_transposition(node):
            pending += [(node, position, True) for node, position in graph.consumers[node]]
            continue
        application = read_node(node, position, turned)
        edge = GradientEdge(node, 0)
        use = None if application is None else application.use(weight.shape, num, samples_first, edge)
        if use is None:
            return fallback
        uses.append(use)
        nodes.add(node)
    if len(uses) > 1 and any(graph.upstream(node) & nodes for node in nodes):
        return fallback
    return uses


def read_node(node: Any, position: int, turned: bool) -> Application | None:
    """What a recorded operation does with the weight that is its operand at a position, ``None`` if that is not known.

    Args:
        node: of autograd's record.
        position: of the weight among its operands.
        turned: it is the weight's transpose.
    """
    name = of_node(node).name
    if name == "addmm" and position == 2 and node._saved_alpha == 1:
        return Application("linear", node._saved_mat1.detach(), not turned)
    if name == "mm" and position == 1:
        return Application("linear", node._saved_self.detach(), not turned)
    if name == "convolution" and position == 1 and not turned:
        settings = (
            node._saved_stride, node._saved_padding, node._saved_dilation, node._saved_transposed,
            node._saved_output_padding, node._saved_groups,
        )  # fmt: skip
        return Application("convolution", node._saved_input.detach(), settings=settings)
    if name == "embedding" and not turned and not node._saved_scale_grad_by_freq:
        return Application("embedding", node._saved_indices)
    return None


def _is_transposition(node: Any) -> bool:
    """Of a matrix, in any spelling: ``t()``, ``.mT``, ``transpose(0, 1)``, ``.T``, ``permute(1, 0)``."""
    name = operation(node)
    if name == "Transpose":  # saved as unsigned numbers: -1 is 2^64 - 1
        return node._saved_dim0 % 2 != node._saved_dim1 % 2
    if name == "Permute":
        return [d % 2 for d in node._saved_dims] == [1, 0]
    return name == "T"
