r"""What the forward pass executed, read from autograd's own record of it.

Two questions are answered here from the executed operations, never from module names:

* *How is each weight used?* A weight that enters one ``addmm``, ``mm`` or ``convolution`` acts as a linear map
  :math:`z = A(W)`, and everything about its Hessian block can be had from :math:`z`.
* *Is the output piecewise linear in the weight?* If every operation between the weight and the output is affine
  or piecewise linear in what depends on the weight (a product only where one operand depends on it), then
  :math:`\nabla^2_W f_c = 0` wherever it exists, the block equals its Gauss-Newton part, and for a convex loss it
  is positive semidefinite. What each operation is: :mod:`genbound.network.operations`; one that is not there counts as
  curved.

The condition is decided jointly for all uses of a weight: a weight used twice in sequence meets itself in a
product and is curved; two parallel uses that are only added are not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from genbound.network.operation import Operation
from genbound.network.operations import of_node, operation

LEAF = "AccumulateGrad"
BY_INDEX = ("embedding", "index", "index_select", "gather")  # what they take may be up to the samples


class Graph:
    """The executed operations between some weights and an output.

    Args:
        output: the network's output, ``[N, ...]``, on a live autograd graph.
        weights: name -> leaf tensor ``[*shape]`` that requires grad.

    Attributes:
        order: all operations, every operation after its operands.
        consumers: operation -> list of (operation that uses it, operand position).
        leaves: weight name -> its leaf node (absent where the weight was not used).
        curved_by: weight name -> name of the first operation that is curved in it.
        made_of_weights: operations on weights alone: no sample, index or constant enters them.
    """

    def __init__(self, output: Tensor, weights: dict[str, Tensor]):
        self.order = [] if output.grad_fn is None else _topological_order(output.grad_fn)
        self.consumers: dict[Node, list[tuple[Node, int]]] = {node: [] for node in self.order}
        for node in self.order:
            for position, (operand, _) in enumerate(node.next_functions):
                if operand is not None:
                    self.consumers[operand].append((node, position))
        names = {id(weight): name for name, weight in weights.items()}
        self.leaves = {
            names[id(_weight(node))]: node
            for node in self.order
            if operation(node) == LEAF and id(_weight(node)) in names
        }
        self.curved_by = self._find_curved()
        self.made_of_weights: set[Node] = set()
        for node in self.order:
            operands = [operand for operand, _ in node.next_functions]
            chosen = of_node(node).name in BY_INDEX
            if operation(node) == LEAF or operands and not chosen and self.made_of_weights.issuperset(operands):
                self.made_of_weights.add(node)

    def _find_curved(self) -> dict[str, str]:
        bit = {node: 1 << i for i, node in enumerate(self.leaves.values())}
        depends: dict[Node, int] = {}
        curved = 0
        found: dict[str, str] = {}
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

    def upstream(self, node: Node) -> set[Node]:
        """All operations whose result the operation depends on."""
        seen, stack = set(), [node]
        while stack:
            for operand, _ in stack.pop().next_functions:
                if operand is not None and operand not in seen:
                    seen.add(operand)
                    stack.append(operand)
        return seen


def result_shape(node: Any) -> tuple[int, ...]:
    """Shape of an operation's (first) result."""
    return tuple(int(size) for size in node._input_metadata[0].shape)


def _curved_operands(node: Node, masks: list[int], everything: int) -> int:
    """Bit mask of the weights that this operation is curved in."""
    row = of_node(node)
    if row.flat or operation(node) == LEAF:
        return 0
    if row.meets is None or _in_training(node, row):
        return everything
    first, second = (masks[i] if i < len(masks) else 0 for i in row.meets)
    return first & second


def _weight(leaf: Any) -> Tensor:
    """The tensor that a leaf node stands for; the annotations of torch do not know of it."""
    return leaf.variable


def _in_training(node: Any, row: Operation) -> bool:
    """A batch norm by the statistics of the samples themselves, which is no product."""
    return row.name == "batch_norm" and bool(node._saved_training)


def _topological_order(root: Node) -> list[Node]:
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
