"""One forward pass of one sample, and what its executed operations were given."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import Node as GraphNode

from genbound.network.applied_weights import find_uses
from genbound.network.graph import Graph, result_shape
from genbound.network.operation import Operation
from genbound.network.operations import of_node, operation
from genbound.network.weight_uses import ConvolutionUse, LinearUse
from genbound.structure.call_record import Call, CallRecord
from genbound.structure.constants import NoConstant

if TYPE_CHECKING:
    from genbound.network.problem import Problem

INPUT = "<input>"


class ExecutedPass:
    """One forward pass of one sample.

    Args:
        problem: whose largest sample it is.
        params: name -> weight in its own shape.
        buffers: name -> buffer.

    Attributes:
        problem, buffers: as given.
        weights: the floating-point weights as leaves of the graph.
        output: the scores, ``[1, ...]``, in the network's unit.
        graph: the executed operations.
        record: what they were called with.
        names: leaf of the graph -> name of the weight.
        source: the operation that the network's first floating-point input enters by, ``None`` if it enters none.
        depends: the operations whose results depend on that input.
        num_inputs: floating-point tensors among the inputs.
        uses: layer -> how its weight acts.
        layer_of: operation -> the weight that it applies, measured as a layer or not.
        measured: the names of the layers.
    """

    def __init__(self, problem: Problem, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]):
        self.problem, self.buffers = problem, buffers
        self.weights = {n: p.detach().requires_grad_() for n, p in params.items() if p.is_floating_point()}
        self.record = CallRecord()
        with torch.enable_grad(), self.record:
            inputs, leaf, self.num_inputs = _with_gradient(problem.largest().inputs)
            self.record.follow(inputs)
            self.output = problem.forward({**params, **self.weights}, inputs, buffers)
        self.graph = Graph(self.output, self.weights if leaf is None else {**self.weights, INPUT: leaf})
        self.names = {node: name for name, node in self.graph.leaves.items()}
        self.measured = {layer.name for layer in problem.layers}
        self.source = self.graph.leaves.get(INPUT)
        self._find_layers()
        self.depends: set = set()
        for node in self.graph.order:
            if node is self.source or any(o in self.depends for o, _ in node.next_functions if o is not None):
                self.depends.add(node)

    def _find_layers(self) -> None:
        self.uses: dict[str, list] = {}
        self.layer_of: dict = {}
        for name, weight in self.weights.items():
            uses = find_uses(self.graph, name, weight, 1, True) if weight.dim() >= 2 else []
            if uses and name in self.measured:
                self.uses[name] = uses
            for use in uses:
                if isinstance(use, LinearUse | ConvolutionUse):
                    self.layer_of[use.edge.node] = name

    def only_consumer(self, node: GraphNode) -> GraphNode | None:
        """The operation that alone uses a result, ``None`` if there are several."""
        found = self.graph.consumers[node]
        return found[0][0] if len(found) == 1 else None

    def operands(self, node: GraphNode) -> list[GraphNode]:
        """Those that depend on the input."""
        return [o for o, _ in node.next_functions if o in self.depends]

    def parameter(self, node: GraphNode, position: int) -> str | None:
        """Name of the parameter that is the operand itself."""
        return self.names.get(operand(node, position))

    def buffer(self, tensor: Tensor | None) -> str | None:
        """The name of the network's buffer that a tensor is."""
        if tensor is None or tensor.layout != torch.strided:
            return None
        dense = ((n, b) for n, b in self.buffers.items() if b.layout == torch.strided)
        return next((n for n, b in dense if b.data_ptr() == tensor.data_ptr()), None)


@dataclass
class Executed:
    """One operation of a pass that depends on the input.

    Attributes:
        run: the pass.
        node: in autograd's record.
        biases: names of the parameters that are looked at as the biases of layers.
    """

    run: ExecutedPass
    node: GraphNode
    biases: Collection[str] = ()

    @cached_property
    def row(self) -> Operation:
        """What is known of the operation."""
        return of_node(self.node)

    @cached_property
    def moving(self) -> list[int]:
        """Positions of the operands that depend on the input."""
        return [i for i, (o, _) in enumerate(self.node.next_functions) if o in self.run.depends]

    @cached_property
    def call(self) -> Call:
        """What it was called with.

        Raises:
            NoConstant: it was not seen.
        """
        found = self.run.record.find(self.node, self.row)
        if found is None:
            raise NoConstant(f"operation {operation(self.node)}: what it was called with was not seen")
        return found

    @property
    def hidden(self) -> bool:
        """Something that it was given depends on the input in a way that autograd does not record."""
        return sum(self.call.moving) > len(self.moving)

    @property
    def varies(self) -> bool:
        """Something that it was given, beside those operands, depends on the sample."""
        return sum(self.call.varying) > len(self.moving)

    @property
    def adds_bias(self) -> bool:
        """It adds a parameter that is looked at with its layer."""
        return self.row.name == "add" and self.run.parameter(self.node, 1) in self.biases

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the (first) result."""
        return result_shape(self.node)

    @property
    def operand_shape(self) -> tuple[int, ...]:
        """Of the first operand that depends on the input."""
        return operand_shape(self.node, self.moving[0])

    @property
    def ratio(self) -> float:
        """Entries of the result for each entry of that operand."""
        return self.copies(self.moving[0])

    def copies(self, position: int) -> float:
        """Entries of the result for each entry of an operand."""
        return math.prod(self.shape) / math.prod(operand_shape(self.node, position))


def operand(node: GraphNode, position: int) -> GraphNode | None:
    """The operation that an operand comes from."""
    return node.next_functions[position][0] if position < len(node.next_functions) else None


def _with_gradient(inputs: Any) -> tuple[Any, Tensor | None, int]:
    """The inputs with their first floating-point tensor on the graph, that leaf, and the number of such tensors."""
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
            return leaf.clone()  # a network may work in place
        if isinstance(value, Mapping):
            return {key: convert(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return tuple(convert(v) for v in value)
        return value

    return convert(inputs), leaf, number


def operand_shape(node: GraphNode, position: int = 0) -> tuple[int, ...]:
    """The shape of an operand."""
    operand, output = node.next_functions[position]
    return tuple(int(size) for size in operand._input_metadata[output].shape)
