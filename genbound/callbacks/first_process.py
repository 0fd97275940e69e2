"""Numbers that the first of several training processes finds, in all of them: each chooses and stops by them itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from genbound.engines.failures import packed, unpacked

Numbers = dict[str, float]


def of_first(leads: bool, measure: Callable[[], Numbers], broadcast: Callable[[Any], Any]) -> Numbers:
    """What the first process measures; what fails there fails everywhere.

    Args:
        leads: this is the first process.
        measure: gives the numbers, there.
        broadcast: what the first process says, in every one.
    """
    found: Numbers = {}
    failure: Exception | None = None
    if leads:
        try:
            found = measure()
        except Exception as error:
            failure = error
    found, chain = broadcast((found, None if failure is None else packed(failure)))
    if chain is not None:
        raise failure or unpacked(chain, "the first process: ")
    return found


def by_torch(value: Any) -> Any:
    """What the first process of torch.distributed says; of a process that is alone the value."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]
