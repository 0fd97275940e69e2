"""The composition of a network as a tree, the constant that it implies, and each layer's effective operator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from genbound.network.weight_uses import ConvolutionUse, LinearUse
from genbound.structure.layer_matrices import Operator, as_operator

if TYPE_CHECKING:
    from genbound.network.weights import BaseProblem

Node = dict[str, Any]
MOST_NODES = 5000  # a tree repeats shared parts: densely connected branches would need exponentially many


@dataclass(frozen=True)
class Fold:
    """An evaluation-mode batch norm right behind a layer, by the names of its parameters and buffers.

    ``None`` stands for a parameter that it does not have.
    """

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
    """What :func:`~genbound.structure.reader.read_structure` finds.

    Attributes:
        tree: JSON, ``None`` where no Lipschitz constant is known. Nodes: ``{"op": "layer", "name"}``;
            ``{"op": "series", "children"}``, first executed first; ``{"op": "sum", "children"}``;
            ``{"op": "identity"}``; ``{"op": "scale", "lipschitz", "what"}`` with the constant in the Euclidean norm as
            ``l2``, that in the sup norm as ``sup``, and ``lipschitz``, the larger one, valid in both (so that an
            average counts 1); ``init_lipschitz`` where the pretrained model has another.
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
    _problem: BaseProblem | None = None
    _uses: dict[str, list] = field(default_factory=dict)
    _biases: dict[str, str] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Layers on all branches; a weight that is used twice counts twice."""
        return count(self.tree, "layer") if self.tree else len(self._uses)

    @property
    def plain(self) -> bool:
        """Whether the layers stand one behind the other, without sums of branches."""
        return self.tree is not None and count(self.tree, "sum") == 0

    def note(self, text: str) -> None:
        """Keep a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    def num_operators(self, name: str) -> int:
        """At how many places a layer's weight acts."""
        return max(1, len(self._uses.get(name, ())))

    def effective(self, name: str) -> EffectiveLayer:
        """A layer's operators and biases ``[out]`` in float64, in the weights' unit.

        Computed anew at every call: they can be large.
        """
        problem = self._problem
        known = [use for use in self._uses.get(name, []) if isinstance(use, LinearUse | ConvolutionUse)]
        trained, trained_bias = self._at(name, known, problem.params, problem.buffers)
        init, init_bias = self._at(name, known, problem.init, problem.init_buffers)
        moved = [a.with_weight(a.weight - b.weight) for a, b in zip(trained, init, strict=True)]
        kind = trained[0].kind if known else "matrix"
        return EffectiveLayer(
            tuple(trained), tuple(init), tuple(moved), trained_bias, init_bias, name in self.folds, kind
        )

    def _at(
        self, name: str, uses: Sequence, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> tuple[list[Operator], Tensor | None]:
        """A layer's operators and bias at one model's weights, with its batch norm folded in."""
        operators = [as_operator(use, params[name]) for use in uses or [None]]
        fold, bias = self.folds.get(name), self._biases.get(name)
        added = None if bias is None else params[bias].double()
        if fold is None:
            return operators, added
        scale = (buffers[fold.variance].double() + fold.eps).rsqrt()
        if fold.gamma is not None:
            scale = scale * params[fold.gamma].double()
        before = -buffers[fold.mean].double() if added is None else added - buffers[fold.mean].double()
        shift = 0.0 if fold.beta is None else params[fold.beta].double()
        return [operator.scale_outputs(scale) for operator in operators], scale * before + shift


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


def add_init(node: Node, other: Node) -> None:
    """Add to the fine-tuned model's tree the constants that steps have in the pretrained one, where they differ."""
    if node["op"] != other["op"]:
        return  # a factor that is exactly 1 in one of the models
    if node["op"] == "scale" and other["lipschitz"] != node["lipschitz"]:
        node["init_lipschitz"] = other["lipschitz"]
    if len(node.get("children", ())) == len(other.get("children", ())):
        for child, twin in zip(node.get("children", ()), other.get("children", ()), strict=True):
            add_init(child, twin)


def series(steps: list[Node]) -> Node:
    """The steps one after another, as one node."""
    if len(steps) == 1:
        return steps[0]
    return {"op": "series", "children": steps} if steps else {"op": "identity"}


def scale_step(l2: float, what: str, sup: float | None = None) -> Node:
    """A step with its constants in the Euclidean and the sup norm, and one that is valid in both.

    The two are the same unless ``sup`` is given.
    """
    l2, sup = float(l2), float(l2 if sup is None else sup)
    return {"op": "scale", "lipschitz": max(l2, sup), "what": what, "l2": l2, "sup": sup}
