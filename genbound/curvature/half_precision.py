"""Whether products in bfloat16 are the faster ones here: processors and accelerators have units for them, or have not.

Half precision rounds to three digits. Nothing is measured in it alone: its draws are put right by exact ones
(:mod:`genbound.estimators.two_levels`).
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch

PAYS = 0.75  # of the time of a product in single precision
ROWS, WIDTH = 512, 384  # of the products that are timed
REPEATS = 5


@lru_cache
def half_is_faster(device: torch.device) -> bool:
    """Whether a product in bfloat16, both factors rounded first, takes well less time than in single precision.

    It is timed once in a process, in a few milliseconds; a run keeps the first answer for all of its processes.
    """
    source = torch.Generator().manual_seed(0)
    a, b = (torch.randn(ROWS, width, generator=source).to(device) for width in (WIDTH, ROWS))
    return _seconds(a, b, half=True) < PAYS * _seconds(a, b, half=False)


def _seconds(a: torch.Tensor, b: torch.Tensor, half: bool) -> float:
    """The fastest of a few."""
    found = []
    with torch.no_grad(), torch.autocast(a.device.type, torch.bfloat16, enabled=half):
        for _ in range(REPEATS + 1):
            begin = time.perf_counter()
            float((a.mT @ b)[0, 0])  # waits for an accelerator
            found.append(time.perf_counter() - begin)
    return min(found[1:])
