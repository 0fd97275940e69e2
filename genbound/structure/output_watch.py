r"""Watches the outputs of layers while a network runs, adds noise to one of them, or carries a derivative from it onwards.

Functions are watched as the network calls them (``torch.conv2d``, ``F.linear``, ``F.relu`` …), before they are decomposed:
how many axes an input has changes nothing. Derivatives are forward-mode: one pass with dual numbers gives
:math:`J_{ij} u` from layer i to every later layer j.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

LINEAR = frozenset(
    """linear matmul mm addmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    _convolution""".split()
)
BATCH_NORM = frozenset({"batch_norm", "native_batch_norm"})
ACTIVATIONS = frozenset(
    """relu relu6 leaky_relu rrelu prelu gelu silu elu selu celu hardtanh hardswish hardsigmoid sigmoid tanh softplus mish
    threshold clamp clamp_min clip""".split()
)


class Observer(TorchFunctionMode):
    """One forward pass under observation.

    Args:
        params: the weights of the forward pass, as they are passed to it.
        folded: layer -> whether the batch norm behind it belongs to it.
        num: samples in the pass, which come first in every tensor.
        noise: ``(layer, what is added to its output)``.
        tangent: ``(layer, direction at its output)``; the pass must run inside ``forward_ad.dual_level()``.

    Attributes:
        outputs: layer -> its output.
        tangents: layer -> derivative of its output in the direction, where it depends on the layer.
        contractions: layer -> ``||x|| / ||phi(x)||`` per sample, the largest over the activations that are executed
            after this layer and before the next one.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        folded: Mapping[str, bool],
        num: int,
        noise: tuple[str, Tensor] | None = None,
        tangent: tuple[str, Tensor] | None = None,
    ):
        super().__init__()
        self.names = {params[name].untyped_storage().data_ptr(): name for name in folded}
        self.folded, self.num, self.noise, self.tangent = folded, num, noise, tangent
        self.outputs: dict[str, Tensor] = {}
        self.tangents: dict[str, Tensor] = {}
        self.contractions: dict[str, Tensor] = {}
        self._last: str | None = None
        self._pending: tuple[str, Tensor] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kind = getattr(func, "__name__", "").strip("_")
        watched = kind in ACTIVATIONS and self.tangent is None and self._last is not None and self._by_sample(args[0])
        before = self._norm(args[0]) if watched else None
        out = func(*args, **(kwargs or {}))
        if watched:
            after = self._norm(out)
            ratio = torch.where(before > 0, before / after, torch.ones_like(before))
            known = self.contractions.get(self._last)
            self.contractions[self._last] = ratio if known is None else torch.maximum(known, ratio)
        elif kind in LINEAR:
            given = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
            name = next((n for a in given if (n := self.names.get(a.untyped_storage().data_ptr())) is not None), None)
            if name is not None and self.folded[name]:
                self._pending = (name, out)
            elif name is not None:
                out = self._finish(name, out)
        elif kind in BATCH_NORM and self._pending is not None and args[0] is self._pending[1]:
            out = self._finish(self._pending[0], out)
            self._pending = None
        return out

    def _by_sample(self, x: Tensor) -> bool:
        return x.dim() > 0 and len(x) % self.num == 0

    def _norm(self, x: Tensor) -> Tensor:
        return x.reshape(self.num, -1).double().norm(dim=1)

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
