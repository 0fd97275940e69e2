r"""How the network is composed of its layers.

A Lipschitz constant, and every bound made of layer norms, multiplies along this structure.

The tree, the constants of what is not a layer, and why some networks have none are described in
:mod:`genbound.structure.reader`. ``tree`` is null with a ``reason`` where there is no useful global constant.

Cost: two forward passes of one sample. Exact.
"""

from __future__ import annotations

from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured
from genbound.structure.reader import read_structure


def measure(problem: Problem, context: Context) -> Measured:
    """The tree and what else was read from the executed operations; of the samples only the shapes matter."""
    found = read_structure(problem)
    return Measured(
        {
            "tree": found.tree,
            "reason": found.reason,
            "depth": found.depth,
            "plain": found.plain,
            "positively_homogeneous": found.positively_homogeneous,
            "zero_preserving": found.zero_preserving,
            "activations": found.activations,
            "folded_batch_norms": sorted(found.folds),
            "notes": found.notes,
        }
    )
