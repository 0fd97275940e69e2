r"""Norms of layers composed over the structure of a network, in base-10 logarithms.

The structure is a tree: ``layer``, ``series`` (first executed first), ``sum``, ``identity`` and ``scale`` (a step with
a Lipschitz constant, such as an overlapping max-pool). 1-Lipschitz steps that keep zero are left out of it.

:func:`compose` gives the Lipschitz constant K of the network in the layers' norms :math:`s_i` (a plain network:
:math:`\prod_i s_i`; a residual block: shortcut plus branch) and its **gains** :math:`T_i = \partial K / \partial s_i`,
the norm from the network's input to the layer's input times the norm from the layer's output to the network's output.
In a plain network :math:`T_i = \prod_{j\ne i} s_j`, so sums such as :math:`\prod_j s_j^2 \sum_i \|v_i\|^2/s_i^2` are
written :math:`\sum_i \|v_i\|^2 T_i^2`: nothing is divided by a norm, each term grows with every norm (an upper norm
gives an upper value) and the residual form is the same formula.

:func:`perturb` carries (A, Δ), bounds of an activation's Euclidean norm and of its change when layer i is perturbed by
a matrix of norm at most :math:`u_i`: start (B, 0); a layer
:math:`\Delta \leftarrow (s+u)\Delta + uA,\ A \leftarrow sA`, plus the norm of a bias in A and that of its perturbation
in Δ; a step with constant c multiplies both by c; the branches of a sum add up. In a plain network without biases
:math:`\Delta = B[\prod(s_i+u_i) - \prod s_i]`, here without the cancellation of that difference.

All numbers are base-10 logarithms, minus infinity for zero: 150 layers of norm 1e4 have a product of 1e600.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from genbound.bounds.base import NotAvailable
from genbound.bounds.logs import ZERO, Logs, add, log

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Composition:
    """Logarithms of a network's Lipschitz constant and of its layers' gains (a layer used twice has the sum)."""

    lipschitz: float
    gains: dict[str, float]


def compose(tree: Tree, before: Logs, after: Logs | None = None, per_sum: float = 0.0) -> Composition:
    """Lipschitz constant and gains.

    Args:
        tree: the structure.
        before: layer -> log10 of its norm, for what is executed before a layer (and for the Lipschitz constant).
        after: the same for what is executed after it; by default the same norms.
        per_sum: log10 of a factor that every sum of branches costs.
    """
    first, _, gains = _compose(tree, before, before if after is None else after, per_sum)
    return Composition(float(first), {name: float(gain) for name, gain in gains.items()})


def _compose(node: Tree, before: Logs, after: Logs, per_sum: float) -> tuple[Any, Any, dict[str, Any]]:
    """Lipschitz constants in the norms ``before`` and ``after``, and the gains."""
    kind = _kind(node)
    if kind == "layer":
        return before[node["name"]], after[node["name"]], {node["name"]: 0.0}
    if kind == "step":
        return _constant(node), _constant(node), {}
    parts = [_compose(child, before, after, per_sum) for child in node["children"]]
    gains: dict[str, Any] = {}
    if kind == "sum":
        for _, _, inner in parts:
            for name, gain in inner.items():
                gains[name] = add(gains.get(name, ZERO), gain + per_sum)
        return add(*(p[0] for p in parts)) + per_sum, add(*(p[1] for p in parts)) + per_sum, gains
    upstream: Any = 0.0
    downstreams: list[Any] = [0.0]
    for _, down, _ in reversed(parts[1:]):
        downstreams.append(downstreams[-1] + down)
    for (up, _, inner), downstream in zip(parts, reversed(downstreams), strict=True):
        for name, gain in inner.items():
            gains[name] = add(gains.get(name, ZERO), gain + upstream + downstream)
        upstream = upstream + up
    return upstream, sum(p[1] for p in parts), gains


def downstream(tree: Tree, norms: Logs, per_sum: float = 0.0) -> dict[str, float]:
    """Layer -> log10 of the constant from its output to the network's, its gain with nothing upstream."""
    found: dict[str, float] = {}

    def walk(node: Tree, gain: Any) -> Any:
        """The node's constant, given the one of what follows it."""
        kind = _kind(node)
        if kind == "layer":
            found[node["name"]] = float(add(found.get(node["name"], ZERO), gain))
            return norms[node["name"]]
        if kind == "step":
            return _constant(node)
        if kind == "sum":
            return add(*(walk(child, gain + per_sum) for child in node["children"])) + per_sum
        start = gain
        for child in reversed(node["children"]):
            gain = gain + walk(child, gain)
        return gain - start

    walk(tree, 0.0)
    return found


def perturb(
    tree: Tree, norms: Logs, noise: Logs, start: float, biases: Logs | None = None, bias_noise: Logs | None = None
) -> tuple[Any, Any]:
    """Bounds (A, Δ) of the output's norm and of its change, as logarithms.

    Args:
        tree: the structure.
        norms: layer -> log10 of its operator norm.
        noise: layer -> log10 of its perturbation's operator norm, a number or an array.
        start: log10 of the largest norm of an input.
        biases: layer -> log10 of the norm of what its bias adds to the whole output.
        bias_noise: layer -> log10 of the norm of that sum's perturbation.
    """

    def walk(node: Tree, size: Any, change: Any) -> tuple[Any, Any]:
        kind = _kind(node)
        if kind == "layer":
            name = node["name"]
            s, u = norms[name], noise[name]
            shift, moved = ((given or {}).get(name, ZERO) for given in (biases, bias_noise))
            return add(s + size, shift), add(add(s, u) + change, u + size, moved)
        if kind == "step":
            return size + _constant(node), change + _constant(node)
        if kind == "sum":
            parts = [walk(child, size, change) for child in node["children"]]
            return add(*(p[0] for p in parts)), add(*(p[1] for p in parts))
        for child in node["children"]:
            size, change = walk(child, size, change)
        return size, change

    return walk(tree, start, ZERO)


def sizes_before(tree: Tree, norms: Logs, start: float, biases: Logs) -> dict[str, float]:
    """Layer -> log10 of a bound on the norm of its input, the largest of its uses; arguments as in :func:`perturb`."""
    found: dict[str, float] = {}

    def walk(node: Tree, size: Any) -> Any:
        kind = _kind(node)
        if kind == "layer":
            name = node["name"]
            found[name] = max(found.get(name, ZERO), float(size))
            return add(norms[name] + size, biases.get(name, ZERO))
        if kind == "step":
            return size + _constant(node)
        if kind == "sum":
            return add(*(walk(child, size) for child in node["children"]))
        for child in node["children"]:
            size = walk(child, size)
        return size

    walk(tree, start)
    return found


def nodes(tree: Tree) -> Iterator[Tree]:
    """Every node of a tree, each before its children, in the order of execution."""
    yield tree
    for child in tree.get("children", ()):
        yield from nodes(child)


def layer_names(tree: Tree) -> list[str]:
    """The layers of a tree in the order of execution, each once."""
    return list(dict.fromkeys(node["name"] for node in nodes(tree) if node["op"] == "layer"))


def scales(tree: Tree) -> list[str]:
    """What the steps with a Lipschitz constant above 1 are."""
    return [str(n.get("what", "a scale")) for n in nodes(tree) if n["op"] == "scale" and n["lipschitz"] > 1]


def _kind(node: Tree) -> str:
    """``layer``, ``step`` (a node without weights or children), ``sum`` or ``series``."""
    kind = node["op"]
    if kind not in ("layer", "identity", "scale", "sum", "series"):
        raise NotAvailable(f"the structure has an unknown node {kind!r}")
    return "step" if kind in ("identity", "scale") else kind


def _constant(step: Tree) -> float:
    """Log10 of the Lipschitz constant of a step."""
    return log(float(step.get("lipschitz", 1.0)))
