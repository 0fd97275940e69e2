"""Runs a network on sums over paths: every weight that meets such a tensor is squared."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BATCH_NORM = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})
IDENTITY = frozenset(
    "relu leaky_relu _prelu_kernel hardtanh threshold clamp clamp_min abs detach alias clone _to_copy dropout".split()
)
LINEAR = frozenset(
    """view _unsafe_view _reshape_alias permute transpose t expand slice select unsqueeze squeeze mean sum avg_pool1d
    avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool2d constant_pad_nd upsample_nearest1d upsample_nearest2d upsample_bilinear2d pixel_shuffle
    index_select repeat flip roll""".split()
)


class UnsupportedOperation(Exception):
    """An operation that is no sum over paths; the argument is its name."""


@dataclass
class _Scaled:
    """The non-negative tensor ``values * exp(log)``; after a layer, also its linear part and signed bias."""

    values: Tensor
    log: float
    layer: tuple[_Scaled, Tensor | None] | None = None

    def normalised(self) -> _Scaled:
        largest = float(self.values.max()) if self.values.numel() else 0.0
        if largest == 0.0:
            return _Scaled(self.values, -math.inf)
        return _Scaled(self.values / largest, self.log + math.log(largest))

    def __add__(self, other: _Scaled) -> _Scaled:
        log = max(self.log, other.log)
        if log == -math.inf:
            return _Scaled(self.values + other.values, -math.inf)
        a, b = math.exp(self.log - log), math.exp(other.log - log)
        return _Scaled(a * self.values + b * other.values, log).normalised()


class PathSums(TorchDispatchMode):
    """Runs a network on sums over paths: every weight that meets such a tensor is squared."""

    def __init__(self, inputs: Tensor):
        super().__init__()
        # The tensors are kept, so that no other one takes over the identity of one that was freed.
        self.known: dict[int, tuple[Tensor, _Scaled]] = {}
        self.track(inputs, _Scaled(inputs, 0.0))

    def track(self, tensor: Tensor, scaled: _Scaled) -> Tensor:
        """Remember that a tensor stands for ``scaled``, and return it."""
        self.known[id(tensor)] = (tensor, scaled)
        return tensor

    def get(self, tensor) -> _Scaled | None:
        """What a tensor stands for, ``None`` if it is no sum over paths."""
        entry = self.known.get(id(tensor))
        return None if entry is None else entry[1]

    def _save(self, scaled: _Scaled) -> Tensor:
        return self.track(scaled.values, scaled)

    def _layer(self, linear: Tensor, log: float, bias: Tensor | None, view) -> Tensor:
        part = _Scaled(linear, log).normalised()
        total = part if bias is None else part + _Scaled(view(bias).square().expand_as(linear), 0.0).normalised()
        # A tensor of its own: the linear part may serve a BatchNorm.
        return self._save(_Scaled(total.values.clone(), total.log, (part, bias)))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else (arg,))]
        if not any(self.get(a) is not None for a in flat if isinstance(a, Tensor)):
            return func(*args, **kwargs)
        kind = func.overloadpacket.__name__
        kind = kind.removesuffix("_") if not kind.startswith("__") else kind
        first = self.get(args[0]) if isinstance(args[0], Tensor) else None
        if kind in IDENTITY and first is not None:
            return args[0]
        if kind in LINEAR and first is not None:
            out = func(first.values, *args[1:], **kwargs)
            single = out[0] if isinstance(out, tuple) else out
            self.track(single, _Scaled(single, first.log))
            return out
        if kind == "convolution" and first is not None:
            weight, bias = args[1].double(), None if args[2] is None else args[2].double()
            linear = func(first.values, weight.square(), None, *args[3:], **kwargs)
            return self._layer(linear, first.log, bias, lambda b: b.view(-1, *[1] * (linear.dim() - 2)))
        if kind in ("mm", "addmm") and not any(k in kwargs for k in ("alpha", "beta")):
            x, weight = args[-2:]
            if self.get(x) is not None and self.get(weight) is None and (kind == "mm" or self.get(args[0]) is None):
                scaled, bias = self.get(x), args[0].double() if kind == "addmm" else None
                return self._layer(scaled.values @ weight.double().square(), scaled.log, bias, lambda b: b)
        if kind in BATCH_NORM and first is not None:
            return (self._batch_norm(first, *args[1:5], args[7]), *func(*_plain(args), **kwargs)[1:])
        if kind in ("add", "sub", "mul", "div"):
            found = self._arithmetic(kind, *args[:2], kwargs)
            if not func.overloadpacket.__name__.endswith("_"):
                return self._save(found)
            return self.track(args[0], found)  # in place; a part of a tensor does not come here: CopySlices is refused
        if kind == "cat":
            return self._save(self._concatenate(func, args))
        raise UnsupportedOperation(kind)

    def _batch_norm(self, x: _Scaled, weight, bias, mean, variance, eps: float) -> Tensor:
        part, before = x.layer if x.layer is not None else (x, None)
        shape = (-1, *[1] * (part.values.dim() - 2))
        scale = (variance.double() + eps).rsqrt() * (1.0 if weight is None else weight.double())
        shift = (0.0 if before is None else before) - mean.double()
        constant = scale * shift + (0.0 if bias is None else bias.double())
        return self._layer(part.values * scale.square().view(shape), part.log, constant, lambda b: b.view(shape))

    def _arithmetic(self, kind: str, a, b, kwargs) -> _Scaled:
        left, right = self.get(a), self.get(b)
        if kind in ("add", "sub") and kwargs.get("alpha", 1) == 1:
            terms = [
                known if known is not None else _Scaled(value.double().square(), 0.0).normalised()
                for known, value in ((left, a), (right, b))
                if known is not None or isinstance(value, Tensor)
            ]
            if len(terms) == 2:
                return terms[0] + terms[1]
        elif kind == "mul" and (left is None) != (right is None):
            known, other = (left, b) if left is not None else (right, a)
            factor = other.double().square() if isinstance(other, Tensor) and other.dim() else abs(float(other))
            return _Scaled(known.values * factor, known.log).normalised()
        elif kind == "div" and right is None:
            divisor = b.double().square() if isinstance(b, Tensor) and b.dim() else abs(float(b))
            return _Scaled(left.values / divisor, left.log).normalised()
        raise UnsupportedOperation(kind)

    def _concatenate(self, func, args) -> _Scaled:
        parts = [self.get(a) for a in args[0]]
        if any(part is None for part in parts):
            raise UnsupportedOperation("cat of a constant")
        log = max(part.log for part in parts)
        if log == -math.inf:
            return _Scaled(func([part.values for part in parts], *args[1:]), log)
        return _Scaled(func([part.values * math.exp(part.log - log) for part in parts], *args[1:]), log)


def _plain(args):
    """The arguments of a BatchNorm in one type: only the statistics that it returns beside its result are used."""
    return [a.double() if isinstance(a, Tensor) else a for a in args]
