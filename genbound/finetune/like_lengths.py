"""Batches of samples of like length, so that few tokens are padding: the order of an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch.utils.data import Sampler

POOL = 50  # batches that are sorted together: more leave less padding and less to chance


class LikeLengths(Sampler[int]):
    """All places once an epoch, in random batches of like length that come in random order.

    The places are shuffled and cut into pools of 50 batches; each pool is sorted by length and cut into batches, and
    all batches are shuffled. A last one that is not full has random samples. Seed and epoch decide the order, so that a
    run continues as it would have gone on, on every process.

    Args:
        sizes: the length of each sample.
        batch_size: samples in a forward pass.
        seed: of the run.
    """

    def __init__(self, sizes: list[int], batch_size: int, seed: int):
        self._sizes, self._batch_size, self._seed, self._epoch = sizes, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is begun; accelerate says it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[int]:
        draw, size = random.Random(f"{self._seed} {self._epoch}"), self._batch_size
        order = list(range(len(self)))
        draw.shuffle(order)
        full = len(order) // size * size
        batches = []
        for start in range(0, full, POOL * size):
            pool = sorted(order[start : min(start + POOL * size, full)], key=self._sizes.__getitem__)
            batches += [pool[k : k + size] for k in range(0, len(pool), size)]
        draw.shuffle(batches)
        yield from (place for batch in [*batches, order[full:]] for place in batch)
