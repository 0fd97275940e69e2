r"""How far the weights moved, layer by layer: :math:`v = W - W^{(s)}`, as a matrix or as two factors of low rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor


class Displacement(Mapping):
    """Layer -> displacement. Those of low rank are kept as two factors and multiplied out when they are asked for.

    Args:
        dense: layer -> difference of the two weights.
        factors: layer -> ``(left [out, r], right [r, in])`` with ``v = left @ right``; these layers need no entry in ``dense``.

    Example:
        >>> import torch
        >>> v = Displacement({}, {"fc.weight": (torch.ones(3, 1), torch.ones(1, 2))})
        >>> v["fc.weight"].shape, round(v.norm("fc.weight") ** 2, 4)
        (torch.Size([3, 2]), 6.0)
    """

    def __init__(self, dense: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]] | None = None):
        self._dense, self.factors = dict(dense), dict(factors or {})

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
        r"""Frobenius norm; of factors from their Gram matrices, :math:`\operatorname{Tr}(L^\top L\,R R^\top)`."""
        if name in self.factors:
            left, right = (factor.double() for factor in self.factors[name])
            return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())
        return float(self._dense[name].double().norm())
