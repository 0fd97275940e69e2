r"""The mean of what a layer's own noise adds where a sweep first meets it, in place of one draw of it.

Behind a layer the tangent is t = s + o: s from further up, and o = U x from the layer's own random weights U, which
are independent of s. Until the next curved operation F both are only moved about, so that

.. math:: E\bigl[g \cdot F''[t, t] \,\big|\, s\bigr] = g \cdot F''[s, s] + E\bigl[g \cdot F''[o, o]\bigr],

and the last term needs no draw: for a function of single entries it is a sum over their variances, the squared norms of
the layer's inputs, and for a product whose two factors come from different layers it is zero. What is then left to
chance is s alone. On MiniLM that is 0.65 to 0.8 of the variance of a joint draw; of a layer's own draw it is what
happens beyond the first curved operation.

The condition is that s and o are independent: where a layer's noise also arrives by another way (a residual connection
around a curved operation, a gate by the layer's own result), its part is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genbound.curvature.rules import Elementwise, Product, Rule, Sum

if TYPE_CHECKING:
    from genbound.curvature.sweep import Step
    from genbound.network.weight_uses import Use

Variances = Mapping[str, Tensor]  # layer -> variance of its own noise in every entry of a result


def split_own_noise(steps: Sequence[Step], uses: Mapping[str, Use], num: int) -> dict[str, Tensor]:
    """Mark the steps of a sweep that see the noise without its last part, and those that hand it on to them.

    Sets ``apart`` of curved steps, and ``passes`` of steps behind whose result a step that is apart may look for the
    tangent without own noise.

    Args:
        steps: in the order of execution, with the adjoints of their results.
        uses: layer -> how its weight acts.
        num: samples of the pass.

    Returns:
        Layer -> mean of what its own noise adds in steps that are apart, for weights of variance 1: ``[num]`` in
        float64 and the loss's unit. Layers that add nothing are left out.

    Cost: elementwise operations on the results of the layers, once for all draws.
    """
    means = _take_apart(steps, uses, num)
    wanted: set[int] = set()
    for step in reversed(steps):
        step.passes = step.output in wanted
        if step.apart or step.passes and step.layer is None:
            wanted.update(step.inputs)
    return means


def _take_apart(steps: Sequence[Step], uses: Mapping[str, Use], num: int) -> dict[str, Tensor]:
    """Set ``apart``, and give the means of what that leaves out."""
    own: dict[int, Variances] = {}  # of every result
    behind: dict[int, frozenset[str]] = {}  # result -> layers whose noise it has otherwise
    means: dict[str, Tensor] = {}
    for step in steps:
        mine = [own.get(i, {}) for i in step.inputs]
        rest = [behind.get(i, frozenset()) for i in step.inputs]
        every = frozenset().union(*mine, *rest)
        carried: Variances = {}
        if step.layer is None and any(mine):
            carried = _carried(step.rule, step.shape, mine, rest)
            step.apart = step.curved and _separable(step.rule, mine, rest)
            if step.apart and isinstance(step.rule, Elementwise):
                for name, variance in mine[0].items():
                    mean = (step.rule.second * variance).reshape(num, -1).sum(1).double()
                    means[name] = means[name] + mean if name in means else mean
        behind[step.output] = every - carried.keys()
        if step.layer is not None and step.layer not in every:
            carried = {step.layer: uses[step.layer].variance(step.shape)}
        own[step.output] = carried
        for i in step.last:
            own.pop(i, None)
    return means


def _carried(
    rule: Rule, shape: torch.Size, mine: Sequence[Variances], rest: Sequence[frozenset[str]]
) -> dict[str, Tensor]:
    """Own noise that is nothing but moved, scaled or added to what does not depend on it, in a result of this shape."""
    if isinstance(rule, Sum):
        factors = rule.factors
        several = sum(len(own) for own in mine) > len(frozenset().union(*mine))
        if several or frozenset().union(*mine) & frozenset().union(*rest):
            return {}
        return {
            name: (variance * factor**2).expand(shape)
            for own, factor in zip(mine, factors, strict=True)
            for name, variance in own.items()
        }
    if len(mine) != 1:
        return {}
    moved = {name: rule.variance(variance) for name, variance in mine[0].items()}
    return {} if any(v is None for v in moved.values()) else moved


def _separable(rule: Rule, mine: Sequence[Variances], rest: Sequence[frozenset[str]]) -> bool:
    """Whether own noise is independent of the rest, and its mean known."""
    if isinstance(rule, Elementwise):
        return True
    if isinstance(rule, Product) and len(mine) == 2:
        return not (mine[0].keys() & (mine[1].keys() | rest[1]) or mine[1].keys() & (mine[0].keys() | rest[0]))
    return False
