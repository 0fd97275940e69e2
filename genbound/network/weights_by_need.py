"""Weights that stay as they are stored, half precision or a file mapped into memory, until one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class WeightsByNeed(Mapping):
    """Name -> weight in the type and on the device that is measured in, made each time that it is asked for.

    Args:
        stored: name -> weight as it is stored, which nobody changes.
        made: what makes the one of the other, given the name.

    Attributes:
        stored: as given.
    """

    def __init__(self, stored: Mapping[str, Tensor], made: Callable[[Tensor, str], Tensor]):
        self.stored, self._made = dict(stored), made

    def __getitem__(self, name: str) -> Tensor:
        return self._made(self.stored[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored
