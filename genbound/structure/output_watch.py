r"""Watches the outputs of layers while a network runs, adds noise to one, or carries a derivative from it onwards.

Functions are watched as the network calls them (``torch.conv2d``, ``F.linear``, ``F.relu`` …), before they are
decomposed: how many axes an input has changes nothing. Which of them are layers is what
:class:`~genbound.network.weight_watch.WeightWatch` finds inside them. Derivatives are forward-mode: one pass with dual
numbers gives :math:`J_{ij} u` from layer i to every later layer j.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genbound.network.operations import of_function
from genbound.network.weight_watch import WeightedFunctions, WeightWatch

if TYPE_CHECKING:
    from genbound.network.layers import Layer
    from genbound.network.problem import Problem
    from genbound.network.weight_uses import Use


class OutputWatch(WeightedFunctions):
    """The outputs of the layers in one forward pass, at the problem's own weights.

    Args:
        problem: whose layers are watched.
        folded: layer -> whether the batch norm behind it belongs to it; other layers are passed over.
        num: samples in the pass, which come first in every tensor.
        noise: ``(layer, what is added to its output)``, of as many entries as that.
        tangent: ``(layer, direction at its output)``; the pass must run inside ``forward_ad.dual_level()``.

    Attributes:
        outputs: layer -> its output, in the shape and unit that it has in the network.
        tangents: layer -> derivative of its output in the direction, where it depends on the layer.
        contractions: layer -> ``||x|| / ||phi(x)||`` per sample, ``[num]``, the largest over the activations that are
            executed after this layer and before the next one.
    """

    def __init__(
        self,
        problem: Problem,
        folded: Mapping[str, bool],
        num: int,
        noise: tuple[str, Tensor] | None = None,
        tangent: tuple[str, Tensor] | None = None,
    ):
        self._met: list[str] = []
        super().__init__(WeightWatch(problem, num, partial(_note, self._met)))
        self.folded, self.num, self.noise, self.tangent = folded, num, noise, tangent
        self.outputs: dict[str, Tensor] = {}
        self.tangents: dict[str, Tensor] = {}
        self.contractions: dict[str, Tensor] = {}
        self._last: str | None = None
        self._pending: tuple[str, Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, row = kwargs or {}, of_function(func)
        given = args[0] if args else kwargs.get("input")
        if row.watched and self.tangent is None and self._last is not None and self._by_sample(given):
            before = self._norm(given)
            out = func(*args, **kwargs)
            self._contract(before, self._norm(out))
            return out
        self._met.clear()
        out = self.run(func, args, kwargs)
        if (name := self._layer()) is not None:
            if not self.folded[name]:
                return self._finish(name, out)
            self._pending = (name, out)
        elif row.name == "batch_norm" and self._pending is not None and given is self._pending[1]:
            name, self._pending = self._pending[0], None
            return self._finish(name, out)
        return out

    def _layer(self) -> str | None:
        """The one layer that acted in the last function; a derivative of its action is more than one operation."""
        met = {name for name in self._met if name in self.folded}
        return met.pop() if len(met) == 1 else None

    def _by_sample(self, x: Tensor | None) -> bool:
        return x is not None and x.dim() > 0 and len(x) % self.num == 0

    def _norm(self, x: Tensor) -> Tensor:
        return x.reshape(self.num, -1).double().norm(dim=1)

    def _contract(self, before: Tensor, after: Tensor) -> None:
        ratio = torch.where(before > 0, before / after, torch.ones_like(before))
        known = self.contractions.get(self._last)
        self.contractions[self._last] = ratio if known is None else torch.maximum(known, ratio)

    def _finish(self, name: str, output: Tensor) -> Tensor:
        if self.noise is not None and self.noise[0] == name:
            output = output + self.noise[1].view_as(output)
        if self.tangent is not None:
            moved = forward_ad.unpack_dual(output).tangent
            if moved is not None:
                self.tangents[name] = moved.clone()
            if self.tangent[0] == name:
                output = forward_ad.make_dual(output, self.tangent[1].view_as(output))
        else:
            self.outputs[name] = output.clone()  # operations in place may follow
        self._last = name
        return output


def _note(met: list[str], func: Any, args: Sequence, kwargs: Mapping[str, Any], found: tuple[Layer, Use] | None) -> Any:
    """Run an operation and note the layer that it applies."""
    if found is not None:
        met.append(found[0].name)
    return func(*args, **kwargs)
