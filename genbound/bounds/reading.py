"""What bounds read from the evidence: the structure, the layers' norms and sizes, and what a theorem does not cover."""

from __future__ import annotations

from genbound.bounds.base import Evidence, NotAvailable
from genbound.bounds.composition import Tree, layer_names, nodes, scales
from genbound.bounds.logs import log

UNVERIFIED = "assumption unverified: "  # begins a note that takes a row out of what is guaranteed
VIOLATED = "assumption violated: "  # so does this
LEARNED = ("learned factor", "PReLU", "unfolded batch norm")  # steps of the structure


def tree_of(evidence: Evidence) -> Tree:
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
    """``applies_to`` of bounds that divide by the margin."""
    gamma = evidence.number("margin", "value")
    if gamma > 0:
        return None
    percentile = evidence.quantities["margin"].get("percentile")
    which = "margin" if percentile is None else f"margin (percentile {percentile:g} of the training samples)"
    return f"the {which} is {gamma:.3g}: the bound needs a positive one"


def depth(evidence: Evidence) -> int:
    """Number of layers on all branches; a weight that is used twice counts twice."""
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
    """Whether a layer adds something that does not depend on its input, after batch norm is folded into it."""
    rows = evidence.quantities["layer_norms"]["layers"]
    return any((rows.get(name, {}).get("bias_norm") or 0.0) > 0 for name in layer_names(tree_of(evidence)))


def of_largest(evidence: Evidence, quantity: str) -> str:
    """That a value grows with a sample's size, and of which of several sizes it is; nothing where there is one.

    Stored runs that do not say so (``alike``) were not looked at for that.
    """
    measured = evidence.quantities[quantity]
    if measured.get("alike", True):
        return ""
    places = [int(row.get("output_positions", 0)) for row in measured.get("layers", {}).values()]
    at = f"at the {max(places)} places of" if any(places) else "of"
    return f"the samples differ in shape: {at} the largest one measured"


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


def learned_steps(evidence: Evidence) -> list[str]:
    """Steps between the layers that have parameters of their own: no displacement of a layer knows how those moved."""
    steps = [n for n in nodes(tree_of(evidence)) if n["op"] == "scale"]
    found = [n.get("what", "") for n in steps if "init_lipschitz" in n or n.get("what") in LEARNED]
    return [f"a learned step between the layers ({what})" for what in dict.fromkeys(found)]


def require(sentence: str) -> None:
    """Raise :class:`NotAvailable` with the sentence, if there is one."""
    if sentence:
        raise NotAvailable(sentence)


def unverified(sentence: str) -> str:
    """The sentence as a doubt beside a value; nothing where there is none."""
    return f"{UNVERIFIED}{sentence}" if sentence else ""
