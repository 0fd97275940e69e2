"""What each executed operation between the layers contributes to the tree.

Steps with constant 1 are left out of it (but for a learned one): ReLU, ReLU6 and other clamps, tanh, reshapes, slices,
padding by constants, pooling with disjoint windows. The constants are in the table of operations, or in
:mod:`genbound.structure.constants` where they depend on how the operation was called.

A batch norm right behind a convolution or a linear map is *folded* into that layer; elsewhere it is a step. An operand
with fewer entries than the result of an operation entry by entry is repeated to fit, which costs the root of the number
of copies.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch.autograd.graph import Node as GraphNode

from genbound.network.operation import No
from genbound.network.operations import operation
from genbound.structure.constants import FUNCTIONS, Constant, NoConstant
from genbound.structure.executed import Executed, ExecutedPass, operand
from genbound.structure.tree import Node, Structure, scale_step


class Steps:
    """The steps of one pass; what they tell of the network is kept in the structure."""

    def __init__(self, run: ExecutedPass, structure: Structure):
        self.run, self.structure = run, structure

    def of(self, node: GraphNode) -> list[Node]:
        """What an operation with one operand that depends on the input contributes."""
        op = self._executed(node)
        if node in self.run.layer_of:
            return [self._layer(op)]
        if op.row.name == "batch_norm" and self.run.layer_of.get(operand(node, 0)) in self.structure.folds:
            return []
        constant = constant_of(op)
        if constant.label:
            self._note_activation(constant.label)
        self._heed(constant)
        small = constant.l2 == 1 and constant.sup <= 1 and not constant.learned
        return [] if small else [scale_step(constant.l2, constant.what, constant.sup)]

    def branches(self, node: GraphNode) -> list[list[Node]]:
        """What an operation puts behind each of its several operands that depend on the input.

        Raises:
            NoConstant: it is no sum of branches.
        """
        op = self._executed(node)
        if op.row.branches is None:
            raise NoConstant(_unknown(op))
        if op.hidden:
            raise NoConstant(_off_graph(op))
        if len(op.moving) < len(node.next_functions):  # it joins constants as well
            self.structure.positively_homogeneous = self.structure.zero_preserving = False
        return [self._branch(op, position) for position in op.moving]

    def _branch(self, op: Executed, position: int) -> list[Node]:
        steps = []
        if op.row.elementwise and op.copies(position) != 1:
            steps.append(scale_step(math.sqrt(op.copies(position)), _repeated(op, position), sup=1.0))
        alpha = abs(float(getattr(op.node, "_saved_alpha", 1)))
        if alpha != 1 and position == (0 if op.row.name == "rsub" else 1):
            steps.append(scale_step(alpha, "factor of a branch"))
        return steps

    def _executed(self, node: GraphNode) -> Executed:
        return Executed(self.run, node, self.structure._biases.values())

    def _layer(self, op: Executed) -> Node:
        layer, found = self.run.layer_of[op.node], self.structure
        if layer not in self.run.measured:
            raise NoConstant(f"layer {layer} is in the network but not among the layers that are measured")
        if op.hidden:
            raise NoConstant(_off_graph(op))
        # Without a bias a convolution saves the size (0,).
        adds = op.row.name == "addmm" or (op.row.name == "convolution" and any(op.node._saved_bias_sym_sizes_opt or ()))
        if adds and layer not in found._biases:
            found.positively_homogeneous = found.zero_preserving = False
        return {"op": "layer", "name": layer}

    def _note_activation(self, label: str) -> None:
        found = self.structure.activations
        if label in found:
            found.remove(label)
        found.insert(0, label)  # the walk goes from the output to the input

    def _heed(self, constant: Constant) -> None:
        self.structure.positively_homogeneous &= constant.homogeneous
        self.structure.zero_preserving &= constant.keeps_zero
        for note in constant.notes:
            self.structure.note(note)


def constant_of(op: Executed) -> Constant:
    """The constant of an operation in its one operand that depends on the input.

    Raises:
        NoConstant: none is known, or it is given something else that depends on the input.
    """
    row = op.row
    if isinstance(row.lipschitz, No):
        raise NoConstant(_unknown(op))
    if op.hidden:
        raise NoConstant(_off_graph(op))
    found = FUNCTIONS[row.lipschitz](op) if isinstance(row.lipschitz, str) else Constant(*row.lipschitz)
    label = found.label or row.label
    copies = op.ratio if row.elementwise else 1
    return replace(
        found,
        l2=float(found.l2) * math.sqrt(copies) if copies != 1 else float(found.l2),
        sup=float(found.sup),
        what=found.what or label or _repeated(op, op.moving[0]),
        homogeneous=found.homogeneous if row.homogeneous is None else row.homogeneous,
        keeps_zero=found.keeps_zero if row.keeps_zero is None else row.keeps_zero,
        label=label,
    )


def _repeated(op: Executed, position: int) -> str:
    return f"repeated {op.copies(position):g} times"


def _off_graph(op: Executed) -> str:
    name = operation(op.node)
    return f"operation {name} is given what was made from the input off its graph (a mask, places, a detached value)"


def _unknown(op: Executed) -> str:
    name, lipschitz = operation(op.node), op.row.lipschitz
    if not isinstance(lipschitz, No):
        return f"operation {name}: no Lipschitz constant known in several operands that depend on the input"
    if op.row.meets:
        return f"a weight is used by an operation {name} that is not recognised as a layer"
    return f"operation {name}: no Lipschitz constant known ({lipschitz.reason})"
