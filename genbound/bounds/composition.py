r"""Norms of layers composed over the structure of a network, in base-10 logarithms.

The structure is a tree: ``layer``, ``series`` (first executed first), ``sum``, ``identity`` and ``scale`` (a step with a
Lipschitz constant, such as an overlapping max-pool). 1-Lipschitz steps that keep zero are left out of it.

:func:`compose` gives the Lipschitz constant K of the network in the layers' norms :math:`s_i` (a plain network:
:math:`\prod_i s_i`; a residual block: shortcut plus branch) and its **gains** :math:`T_i = \partial K / \partial s_i`, the norm from
the network's input to the layer's input times the norm from the layer's output to the network's output. In a plain network
:math:`T_i = \prod_{j\ne i} s_j`, so sums such as :math:`\prod_j s_j^2 \sum_i \|v_i\|^2/s_i^2` are written
:math:`\sum_i \|v_i\|^2 T_i^2`: nothing is divided by a norm, each term grows with every norm (an upper norm gives an upper value)
and the residual form is the same formula.

:func:`perturb` carries (A, Δ), bounds of an activation's Euclidean norm and of its change when layer i is perturbed by a matrix of norm
at most :math:`u_i`: start (B, 0); a layer :math:`\Delta \leftarrow (s+u)\Delta + uA,\ A \leftarrow sA`, plus the norm of a bias in A
and that of its perturbation in Δ; a step with constant c multiplies both by c; the branches of a sum add up. In a plain network without
biases :math:`\Delta = B[\prod(s_i+u_i) - \prod s_i]`, here without the cancellation of that difference.

All numbers are base-10 logarithms, minus infinity for zero: 150 layers of norm 1e4 have a product of 1e600.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from genbound.bounds.base import BoundValue, Evidence, NotAvailable

LN10 = math.log(10.0)
ZERO = -math.inf
LEARNED = ("learned factor", "PReLU", "unfolded batch norm")  # steps of the structure
Logs = Mapping[str, Any]  # layer -> log10 of a number, or of an array of them


# -- logarithms -------------------------------------------------------------------------------------------------


def log(value: float) -> float:
    """Base-10 logarithm; of zero, minus infinity."""
    return math.log10(value) if value > 0 else ZERO


def add(*logs: Any) -> Any:
    """Logarithm of the sum of the numbers (or arrays) with these logarithms.

    Example:
        >>> float(round(add(log(2.0), log(3.0), ZERO), 12)) == round(log(5.0), 12)
        True
    """
    total: Any = ZERO
    for term in logs:
        total = np.logaddexp(np.multiply(total, LN10), np.multiply(term, LN10)) / LN10
    return total


def power(exponent: float) -> float | None:
    """10 to the exponent; ``None`` where a float overflows."""
    return 10.0**exponent if exponent < 308 else None


def ln(exponent: float) -> float:
    """Natural logarithm of the number with this base-10 logarithm."""
    return exponent * LN10


# -- trees ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Composition:
    """Logarithms of a network's Lipschitz constant and of its layers' gains (a layer used twice has the sum)."""

    lipschitz: float
    gains: dict[str, float]


def compose(tree: Mapping[str, Any], before: Logs, after: Logs | None = None, per_sum: float = 0.0) -> Composition:
    """Lipschitz constant and gains.

    Args:
        tree: the structure.
        before: layer -> log10 of its norm, for what is executed before a layer (and for the Lipschitz constant).
        after: the same for what is executed after it; by default the same norms.
        per_sum: log10 of a factor that every sum of branches costs.
    """
    downstream = before if after is None else after
    first, _, gains = _compose(tree, before, downstream, per_sum)
    return Composition(float(first), {name: float(gain) for name, gain in gains.items()})


def _compose(node: Mapping[str, Any], before: Logs, after: Logs, per_sum: float) -> tuple[Any, Any, dict[str, Any]]:
    """Lipschitz constants in the norms ``before`` and ``after``, and the gains."""
    kind = node["op"]
    if kind == "layer":
        return before[node["name"]], after[node["name"]], {node["name"]: 0.0}
    if kind in ("identity", "scale"):
        constant = log(float(node.get("lipschitz", 1.0)))
        return constant, constant, {}
    parts = [_compose(child, before, after, per_sum) for child in node["children"]]
    gains: dict[str, Any] = {}
    if kind == "sum":
        for _, _, inner in parts:
            for name, gain in inner.items():
                gains[name] = add(gains.get(name, ZERO), gain + per_sum)
        return add(*(p[0] for p in parts)) + per_sum, add(*(p[1] for p in parts)) + per_sum, gains
    if kind != "series":
        raise NotAvailable(f"the structure has an unknown node {kind!r}")
    upstream = 0.0
    downstreams = [0.0]
    for _, down, _ in reversed(parts[1:]):
        downstreams.append(downstreams[-1] + down)
    for (up, _, inner), downstream in zip(parts, reversed(downstreams), strict=True):
        for name, gain in inner.items():
            gains[name] = add(gains.get(name, ZERO), gain + upstream + downstream)
        upstream = upstream + up
    return upstream, sum(p[1] for p in parts), gains


def downstream(tree: Mapping[str, Any], norms: Logs, per_sum: float = 0.0) -> dict[str, float]:
    """Layer -> log10 of the constant from its output to the network's: the gains with nothing upstream; as :func:`compose`."""
    found: dict[str, float] = {}

    def walk(node, gain):
        if node["op"] == "layer":
            found[node["name"]] = float(add(found.get(node["name"], ZERO), gain))
            return norms[node["name"]]
        if node["op"] in ("identity", "scale"):
            return log(float(node.get("lipschitz", 1.0)))
        if node["op"] == "sum":
            return add(*(walk(child, gain + per_sum) for child in node["children"])) + per_sum
        if node["op"] != "series":
            raise NotAvailable(f"the structure has an unknown node {node['op']!r}")
        start = gain
        for child in reversed(node["children"]):
            gain = gain + walk(child, gain)
        return gain - start

    walk(tree, 0.0)
    return found


def perturb(
    tree: Mapping[str, Any],
    norms: Logs,
    noise: Logs,
    start: float,
    biases: Logs | None = None,
    bias_noise: Logs | None = None,
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

    def walk(node, size, change):
        if node["op"] == "layer":
            name = node["name"]
            s, u = norms[name], noise[name]
            shift, moved = ((given or {}).get(name, ZERO) for given in (biases, bias_noise))
            return add(s + size, shift), add(add(s, u) + change, u + size, moved)
        if node["op"] in ("identity", "scale"):
            constant = log(float(node.get("lipschitz", 1.0)))
            return size + constant, change + constant
        if node["op"] == "sum":
            parts = [walk(child, size, change) for child in node["children"]]
            return add(*(p[0] for p in parts)), add(*(p[1] for p in parts))
        if node["op"] != "series":
            raise NotAvailable(f"the structure has an unknown node {node['op']!r}")
        for child in node["children"]:
            size, change = walk(child, size, change)
        return size, change

    return walk(tree, start, ZERO)


def sizes_before(tree: Mapping[str, Any], norms: Logs, start: float, biases: Logs) -> dict[str, float]:
    """Layer -> log10 of a bound on the norm of its input, the largest of its uses; arguments as in :func:`perturb`."""
    found: dict[str, float] = {}

    def walk(node, size):
        if node["op"] == "layer":
            name = node["name"]
            found[name] = max(found.get(name, ZERO), float(size))
            return add(norms[name] + size, biases.get(name, ZERO))
        if node["op"] in ("identity", "scale"):
            return size + log(float(node.get("lipschitz", 1.0)))
        if node["op"] == "sum":
            return add(*(walk(child, size) for child in node["children"]))
        for child in node["children"]:
            size = walk(child, size)
        return size

    walk(tree, start)
    return found


def layer_names(tree: Mapping[str, Any]) -> list[str]:
    """The layers of a tree in the order of execution, each once."""
    return list(dict.fromkeys(node["name"] for node in _walk(tree) if node["op"] == "layer"))


def scales(tree: Mapping[str, Any]) -> list[str]:
    """What the steps with a Lipschitz constant above 1 are."""
    return [str(n.get("what", "a scale")) for n in _walk(tree) if n["op"] == "scale" and n["lipschitz"] > 1]


def learned_steps(evidence: Evidence) -> list[str]:
    """Steps between the layers that have parameters of their own: no displacement of a layer knows how those moved."""
    steps = [n for n in _walk(tree_of(evidence)) if n["op"] == "scale"]
    found = [n.get("what", "") for n in steps if "init_lipschitz" in n or n.get("what") in LEARNED]
    return [f"a learned step between the layers ({what})" for what in dict.fromkeys(found)]


def _walk(node: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    yield node
    for child in node.get("children", ()):
        yield from _walk(child)


# -- what bounds read from the evidence ---------------------------------------------------------------------------


def tree_of(evidence: Evidence) -> Mapping[str, Any]:
    """The structure, or :class:`NotAvailable` with the reason why there is none."""
    structure = evidence.quantities["structure"]
    if structure["tree"] is None:
        raise NotAvailable(structure.get("reason") or "no global Lipschitz constant is known")
    if not layer_names(structure["tree"]):
        raise NotAvailable("the structure has no layers")
    return structure["tree"]


def has_structure(evidence: Evidence) -> str | None:
    """``applies_to`` of bounds that need a global Lipschitz constant."""
    tree_of(evidence)
    return None


def has_margin(evidence: Evidence) -> str | None:
    """``applies_to`` of bounds that need a global Lipschitz constant and a positive margin."""
    tree_of(evidence)
    return positive_margin(evidence)


def positive_margin(evidence: Evidence) -> str | None:
    gamma = evidence.number("margin", "value")
    if gamma > 0:
        return None
    percentile = evidence.quantities["margin"].get("percentile")
    which = "margin" if percentile is None else f"margin (percentile {percentile:g} of the training samples)"
    return f"the {which} is {gamma:.3g}: the bound needs a positive one"


def depth(evidence: Evidence) -> int:
    return int(evidence.number("structure", "depth"))


def spectral(evidence: Evidence, side: str, which: str = "weight") -> dict[str, float]:
    """Layer -> log10 of the ``lower`` or ``upper`` operator norm of its ``weight``, ``init`` or ``displacement``."""
    keys = (side,) if which == "weight" else (which, side)
    names = layer_names(tree_of(evidence))
    return {name: log(evidence.number("spectral_norm", "layers", name, *keys)) for name in names}


def norms(evidence: Evidence, norm: str, which: str) -> dict[str, float]:
    """Layer -> log10 of a norm (``frobenius``, ``mars``, …) of its ``weight``, ``init`` or ``displacement``."""
    names = layer_names(tree_of(evidence))
    return {name: log(evidence.number("layer_norms", "layers", name, which, norm)) for name in names}


def sizes(evidence: Evidence, key: str) -> dict[str, float]:
    """Layer -> one of its sizes (``input_size``, ``out_channels``, …)."""
    return {name: evidence.number("layer_norms", "layers", name, key) for name in layer_names(tree_of(evidence))}


def widest(evidence: Evidence) -> float:
    """The largest number of inputs or outputs that an (unrolled) layer has."""
    return max(*sizes(evidence, "input_size").values(), *sizes(evidence, "output_size").values())


def has_biases(evidence: Evidence) -> bool:
    rows = evidence.quantities["layer_norms"]["layers"]
    return any((rows.get(name, {}).get("bias_norm") or 0.0) > 0 for name in layer_names(tree_of(evidence)))


def outside(evidence: Evidence, *covered: str) -> str:
    """What the network has that a theorem for plain networks of linear layers and ReLU does not cover, as a sentence.

    Args:
        evidence: the evidence.
        covered: what the theorem at hand covers nevertheless: ``sums``, ``biases``, ``activations``, ``scales``.
    """
    structure = evidence.quantities["structure"]
    found = []
    if "sums" not in covered and not structure["plain"]:
        found.append("sums of branches")
    if "biases" not in covered and has_biases(evidence):
        found.append("biases (folded batch norm has them too)")
    elif "activations" not in covered and not structure["positively_homogeneous"]:
        found.append("activations or biases that are not positively homogeneous")
    if "scales" not in covered:
        found += scales(tree_of(evidence))
    if structure.get("zero_preserving") is False:
        found.append("steps that do not keep zero")
    found += learned_steps(evidence)
    return "the theorem does not cover " + ", ".join(dict.fromkeys(found)) if found else ""


def require(sentence: str) -> None:
    """Raise :class:`NotAvailable` with the sentence, if there is one."""
    if sentence:
        raise NotAvailable(sentence)


def unverified(sentence: str) -> str:
    return f"assumption unverified: {sentence}" if sentence else ""


# -- what bounds give back ----------------------------------------------------------------------------------------


def form(value: float, note: str = "") -> dict[str, Any]:
    """A form from its logarithm. Zero has no logarithm: the note says that it is zero."""
    value = float(value)
    notes = [note] if note else []
    if math.isnan(value) or value == math.inf:
        return {"log10": None, "note": "; ".join([*notes, "not finite"])}
    if value == ZERO:
        return {"log10": None, "note": "; ".join([*notes, "zero"])}
    return {"log10": value} | ({"note": note} if note else {})


def forms_of(functions: Mapping[str, Callable[[], float] | tuple[Callable[[], float], str]]) -> dict[str, dict]:
    """Name -> form. A function that raises :class:`NotAvailable` gives a null form with the reason."""
    found = {}
    for name, entry in functions.items():
        function, note = entry if isinstance(entry, tuple) else (entry, "")
        try:
            found[name] = form(function(), note)
        except NotAvailable as absent:
            found[name] = {"log10": None, "note": str(absent)}
    return found


def bound_value(
    main: Callable[[str], float],
    forms: Mapping[str, Callable[[], float] | tuple[Callable[[], float], str]],
    note: str = "",
    empirical: float | None = None,
) -> BoundValue:
    """The value of a bound whose headline is its leading term.

    Args:
        main: side (``lower`` or ``upper``) -> log10 of the leading term.
        forms: the other forms.
        note: doubts.
        empirical: the empirical term, where it is not the training loss or error.
    """
    lower, upper = float(main("lower")), float(main("upper"))
    if math.isnan(upper) or upper == math.inf:
        raise NotAvailable("the value is not finite")
    named = {"main_term": form(upper, note)} | forms_of(forms)
    for name, entry in named.items():
        if name.startswith("main_term") and note:
            entry.setdefault("note", note)
    exponent = None if upper == ZERO else upper
    return BoundValue(power(upper), power(lower), power(upper), exponent, note, named, empirical)
