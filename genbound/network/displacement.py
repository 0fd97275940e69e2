r"""How far the weights moved, layer by layer: :math:`v = W - W^{(s)}`, as a matrix or as two factors of low rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor


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
        self._dense, self.factors = dict(dense), dict(factors or {})

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
        known, dense = {}, {}
        for name in names:
            trained = params[name].to(dtype=dtype)
            if factors and name in factors:
                left, right = (f.to(device=trained.device, dtype=trained.dtype) for f in factors[name])
                known[name] = (left, right)
            else:
                dense[name] = trained - init[name].to(dtype=dtype)
        return cls(dense, known)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.factors:
            left, right = self.factors[name]
            return left @ right
        return self._dense[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.factors, **self._dense})

    def __len__(self) -> int:
        return len({**self.factors, **self._dense})

    def norm(self, name: str) -> float:
        r"""Frobenius norm, in the weights' unit.

        Of factors it comes from their Gram matrices, :math:`\operatorname{Tr}(L^\top L\,R R^\top)`.
        """
        if name in self.factors:
            left, right = (factor.double() for factor in self.factors[name])
            return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())
        return float(self._dense[name].double().norm())
