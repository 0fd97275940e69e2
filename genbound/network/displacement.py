r"""How far the weights moved, layer by layer: :math:`v = W - W^{(s)}`, as a matrix or as two factors of low rank.

The matrices of a small network are kept. Those of a large one would be as much again as its weights: each is made when
it is asked for, from the two weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

KEPT = 2**28  # bytes of all differences, or of all initial weights in another type, up to which they are kept


class Differences(Mapping):
    """Layer -> difference of two weights, made when it is asked for.

    Args:
        params, init: name -> weight ``[*shape]``.
        names: the layers.
        dtype: what the differences are in; ``None`` means the weights' own type. They are taken before they are
            rounded to a half type, in which two near weights are the same.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        init: Mapping[str, Tensor],
        names: Iterable[str],
        dtype: torch.dtype | None = None,
    ):
        self._params, self._init, self._names, self._dtype = params, init, tuple(names), dtype

    def __getitem__(self, name: str) -> Tensor:
        tuned, start = self._params[name], self._init[name]
        if self._dtype is None or self._dtype.itemsize >= 4:
            return tuned.to(dtype=self._dtype) - start.to(dtype=self._dtype)
        return (tuned.float() - start.to(tuned.device).float()).to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def as_kept(self) -> Mapping[str, Tensor]:
        """The same, computed now if all of them are small."""
        weights = [self._params[name] for name in self._names]
        size = sum(w.numel() * (w.element_size() if self._dtype is None else self._dtype.itemsize) for w in weights)
        return dict(self) if size <= KEPT else self


class Displacement(Mapping):
    """Layer -> displacement. Those of low rank are kept as two factors and multiplied out when they are asked for.

    Args:
        dense: layer -> difference of the two weights.
        factors: layer -> ``(left [out, r], right [r, in])`` with ``v = left @ right``; these layers need no entry in
            ``dense``.

    Example:
        >>> import torch
        >>> v = Displacement({}, {"fc.weight": (torch.ones(3, 1), torch.ones(1, 2))})
        >>> v["fc.weight"].shape, round(v.norm("fc.weight") ** 2, 4)
        (torch.Size([3, 2]), 6.0)
    """

    def __init__(self, dense: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]] | None = None):
        self._dense, self.factors = dense, dict(factors or {})

    @classmethod
    def between(
        cls,
        params: Mapping[str, Tensor],
        init: Mapping[str, Tensor],
        names: Iterable[str],
        factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Displacement:
        """From ``init`` to ``params``.

        Args:
            params, init: name -> weight ``[*shape]``.
            names: the layers.
            factors: layer -> ``(left [out, r], right [r, in])`` that it moved by, whatever the two weights say.
            dtype: what the differences are in; ``None`` means the weights' own type.
        """
        names = tuple(names)
        known = {}
        for name in names:
            if factors and name in factors:
                like = params[name]
                left, right = (f.to(device=like.device, dtype=dtype or like.dtype) for f in factors[name])
                known[name] = (left, right)
        dense = Differences(params, init, [name for name in names if name not in known], dtype)
        return cls(dense.as_kept(), known)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.factors:
            left, right = self.factors[name]
            return left @ right
        return self._dense[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.factors, *self._dense]))  # by names alone: asking for one makes it

    def __len__(self) -> int:
        return len({*self.factors, *self._dense})

    def __contains__(self, name: object) -> bool:
        return name in self.factors or name in self._dense

    @cached_property
    def moved(self) -> frozenset[str]:
        """Layers whose displacement is not zero."""
        return frozenset(name for name in self if bool(self[name].any()))

    def of(self, names: Iterable[str]) -> Displacement:
        """The same of some layers alone, nothing of which is made now."""
        chosen = tuple(names)
        dense = _Some(self._dense, [name for name in chosen if name not in self.factors])
        return Displacement(dense, {name: self.factors[name] for name in chosen if name in self.factors})

    def norm(self, name: str) -> float:
        r"""Frobenius norm, in the weights' unit.

        Of factors it comes from their Gram matrices, :math:`\operatorname{Tr}(L^\top L\,R R^\top)`.
        """
        if name in self.factors:
            left, right = (factor.double() for factor in self.factors[name])
            return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())
        return float(self._dense[name].double().norm())


class _Some(Mapping):
    """Some entries of a mapping, looked up when they are asked for."""

    def __init__(self, whole: Mapping[str, Tensor], names: Iterable[str]):
        self._whole, self._names = whole, tuple(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names
