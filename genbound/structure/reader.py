r"""How a network is composed of its layers, read from the executed operations, and each layer's effective operator.

The operations between the input and the output are decomposed into series and sums, a tree in JSON
(:class:`Structure`). A composition of maps with Lipschitz constants :math:`c_i` in the Euclidean norm has the constant
:math:`\prod c_i`, a sum of branches :math:`\sum_b c_b`; a concatenation :math:`(\sum_b c_b^2)^{1/2}`, which is counted
as a sum (a little larger).

What the steps between the layers contribute: :mod:`genbound.structure.steps`.

There is no tree where no useful constant exists: products of two parts that both depend on the input (attention,
gates), layer norm (its constant :math:`\max|\gamma|/\sqrt\varepsilon` says nothing), or an operation that the table
does not know. Nor is there one where an operation is given what was made from the input off autograd's graph: a mask by
a comparison, places by a sort, a detached factor. Such a choice may jump, and such a factor is no constant. Nor where
the samples differ in shape: a convolution's norm grows with the map and a mean's constant falls.

Cost: two forward passes of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from torch.autograd.graph import Node as GraphNode

from genbound.network.graph import LEAF, result_shape
from genbound.network.operations import named, of_node, operation
from genbound.structure.constants import NoConstant
from genbound.structure.executed import ExecutedPass, operand
from genbound.structure.steps import Steps
from genbound.structure.tree import MOST_NODES, Fold, Node, Structure, add_init, count, series

if TYPE_CHECKING:
    from genbound.network.problem import Problem

_BIAS = {"addmm": 0, "convolution": 2}  # operand position


def read_structure(problem: Problem) -> Structure:
    """Read the composition and the operators of a problem's network from a forward pass of its largest sample.

    The tree is that of the fine-tuned model. Scale steps whose constant is another one at the initialisation (a batch
    norm that is not folded, a learned factor) carry it as ``init_lipschitz``.
    """
    reader = _Reader(problem, problem.params, problem.buffers)
    structure = reader.read()
    if structure.tree is not None and count(structure.tree, "scale"):
        pretrained = _Reader(problem, problem.init, problem.init_buffers).read().tree
        if pretrained is not None:
            add_init(structure.tree, pretrained)
    borrowed = [n for f in structure.folds.values() for n in (f.mean, f.variance) if n in problem.borrowed_buffers]
    if borrowed:
        structure.notes.append(
            f"the initialisation has no {borrowed[0]}"
            + (f" and {len(borrowed) - 1} more running statistics" if len(borrowed) > 1 else "")
            + ": those of the fine-tuned model are folded into it"
        )
    return structure


class _Reader:
    """One forward pass of one sample and the walk through it."""

    def __init__(self, problem: Problem, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]):
        self.run = ExecutedPass(problem, params, buffers)
        self.structure = Structure(_problem=problem, _uses=self.run.uses)
        self.steps = Steps(self.run, self.structure)
        self.num_nodes = 0
        for node, name in self.run.layer_of.items():
            self._find_bias_and_fold(node, name)

    # -- layers ----------------------------------------------------------------------------------------------------

    def _find_bias_and_fold(self, node: GraphNode, name: str) -> None:
        """The vector that is added behind a layer, and the batch norm that follows it, if they are its alone."""
        kind = of_node(node).name
        bias = None if kind == "mm" else self.run.parameter(node, _BIAS[kind])
        if bias is not None:
            self.structure._biases[name] = bias
        if len(self.structure._uses.get(name, ())) != 1:
            return
        node = self.run.only_consumer(node)
        while node is not None and of_node(node).name == "view" and bias is None:
            node = self.run.only_consumer(node)
        if node is None:
            return
        if of_node(node).name == "add" and kind == "mm":
            added = self.run.parameter(node, 1)
            if (
                added is not None
                and self.run.weights[added].shape == result_shape(node)[-1:]
                and node._saved_alpha == 1
            ):
                self.structure._biases[name] = added
                return
        if of_node(node).name == "batch_norm" and not node._saved_training and operand(node, 0) in self.run.layer_of:
            mean, variance = self.run.buffer(node._saved_running_mean), self.run.buffer(node._saved_running_var)
            if mean is not None and variance is not None:
                self.structure.folds[name] = Fold(
                    self.run.parameter(node, 1), self.run.parameter(node, 2), mean, variance, float(node._saved_eps)
                )

    # -- the tree --------------------------------------------------------------------------------------------------

    def read(self) -> Structure:
        found = self.structure
        biases = [self.run.weights[name] for name in found._biases.values()]
        if any(bool(b.detach().any()) for b in biases) or found.folds:
            found.positively_homogeneous = False
        try:
            self._refuse()
            self._find_dominators()
            found.tree = series(self._between(self.run.source, self.run.output.grad_fn))
        except NoConstant as why:
            found.reason, found.positively_homogeneous, found.zero_preserving = str(why), False, False
        if self.run.num_inputs > 1:
            found.notes.append("the network has several inputs: the tree is about the first one")
        if found.folds:
            found.notes.append(f"batch norm is folded into {len(found.folds)} layers")
        return found

    def _refuse(self) -> None:
        """The reason that says most, wherever it is in the network."""
        rows = {of_node(node) for node in self.run.graph.order}
        softmax = {node for node in self.run.graph.order if of_node(node).sweep == "softmax"}
        products = [node for node in self.run.graph.order if of_node(node).name in ("bmm", "mul") and self._mixes(node)]
        if softmax and any(self.run.graph.upstream(node) & softmax for node in products):
            raise NoConstant(named("attention").lipschitz.reason)
        for name in ("attention", "layer_norm", "group_norm"):
            if named(name) in rows:
                raise NoConstant(named(name).lipschitz.reason)
        if self.run.num_inputs == 0:
            raise NoConstant("the network has no floating-point input (token numbers are no vectors)")
        if self.run.source is None:
            raise NoConstant("the output does not depend on the network's first floating-point input")
        if self.run.record.left:
            raise NoConstant(
                "a number that depends on the input leaves torch (item(), bool(), if), "
                "and nobody sees what becomes of it"
            )
        for node in self.run.graph.order:
            parts = [o for o, _ in node.next_functions if o in self.run.depends]
            if node in self.run.depends and len(parts) > 1 and of_node(node).meets:
                raise NoConstant(
                    "the product of two parts that depend on the input (a gate, squeeze-excitation) "
                    "is not globally Lipschitz"
                )
        if not self.run.problem.alike():
            raise NoConstant("the samples differ in shape, and constants of one shape are not those of another")

    def _mixes(self, node: GraphNode) -> bool:
        """Two operands are activations, not weights or constants.

        Token numbers have no path from the input.
        """
        operands = [o for o, _ in node.next_functions if o is not None]
        if self.run.source is not None:
            operands = [o for o in operands if o in self.run.depends]
        return len([o for o in operands if operation(o) not in (LEAF, "T")]) > 1

    def _find_dominators(self) -> None:
        """Immediate dominators: the last operation that every path from the input to a node passes."""
        self.dominator, self.level = {self.run.source: None}, {self.run.source: 0}
        for node in self.run.graph.order:
            if node in self.run.depends and node is not self.run.source:
                operands = self.run.operands(node)
                common = operands[0]
                for other in operands[1:]:
                    common = self._common(common, other)
                self.dominator[node], self.level[node] = common, self.level[common] + 1

    def _common(self, a: GraphNode, b: GraphNode) -> GraphNode:
        while a is not b:
            if self.level[a] < self.level[b]:
                b = self.dominator[b]
            else:
                a = self.dominator[a]
        return a

    def _between(self, first: GraphNode, last: GraphNode) -> list[Node]:
        """The steps after ``first`` up to and with ``last``; every path to ``last`` passes ``first``."""
        steps: list[Node] = []
        node = last
        while node is not first:
            self.num_nodes += 1
            if self.num_nodes > MOST_NODES:
                raise NoConstant("the branches are connected too densely to be written as series and sums")
            operands = self.run.operands(node)
            if len(operands) == 1:
                steps += reversed(self.steps.of(node))
                node = operands[0]
                continue
            common = self.dominator[node]
            behind = self.steps.branches(node)
            branches = [self._between(common, o) + after for o, after in zip(operands, behind, strict=True)]
            if note := of_node(node).branches:
                self.structure.note(note)
            steps.append({"op": "sum", "children": [series(branch) for branch in branches]})
            node = common
        return steps[::-1]
