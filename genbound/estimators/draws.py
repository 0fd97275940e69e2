"""Many random draws of every sample, on passes that samples share.

A *draw* is one random value of a sample, with a number for every column (a layer, say). A *pass* gives a draw of each
of its rows at once: it is a recorded forward pass of a batch. Samples that get equally many draws share passes. Where
few samples get many draws, a pass holds copies of each, and the rows of a sample are different draws of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from genbound.estimators.measured import Part
from genbound.estimators.random import Row, row_of


@dataclass
class Moments:
    """Running mean and spread of the draws of N samples.

    Attributes:
        count: draws of each sample so far ``[N]``.
        mean: their mean ``[N, columns]``, in the unit of a draw.
        squares: sum of their squared deviations from the mean ``[N, columns]``, in the unit's square.
    """

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, num: int, columns: int) -> Moments:
        """Of ``num`` samples that have no draws yet."""
        return cls(np.zeros(num, dtype=int), np.zeros((num, columns)), np.zeros((num, columns)))

    def add(self, samples: np.ndarray, draws: np.ndarray) -> None:
        """One more draw of some samples.

        Args:
            samples: their numbers ``[n]``, each once.
            draws: ``[n, columns]``.
        """
        self.count[samples] += 1
        delta = draws - self.mean[samples]
        self.mean[samples] += delta / self.count[samples, None]
        self.squares[samples] += delta * (draws - self.mean[samples])

    def part(self) -> Part:
        """The arrays by name, as they are stored."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}


class Pass(Protocol):
    """What gives a draw of each of its rows at once; ``positions`` are the samples of the rows, copies included."""

    positions: Sequence[int]


def as_drawn(draws: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """The draws as they are."""
    return draws


@dataclass(frozen=True)
class Sampler:
    """One kind of draw: how it is made, for whichever samples need it.

    Attributes:
        kind: first word of the names of its random streams. Kinds of different names are independent.
        passes: ``positions -> (pass, the columns that it fills)``. Several passes may fill different columns of one
            sample.
        draw: ``(pass, rows) -> [rows, filled columns]``, a draw of each row from the random numbers that belong to it.
        width: number of columns of a draw.
        batch_size: rows that a pass has room for.
        finish: ``(draws [N, draws, width], their positions) -> [N, draws, columns]``, what is kept of a draw once all
            its columns are filled.
    """

    kind: str
    passes: Callable[[list[int]], Iterable[tuple[Any, np.ndarray]]]
    draw: Callable[[Any, list[Row]], Tensor]
    width: int
    batch_size: int
    finish: Callable[[np.ndarray, Sequence[int]], np.ndarray] = as_drawn

    def moments(self, positions: Sequence[int], counts: Sequence[int] | np.ndarray) -> Moments:
        """Mean and spread of ``counts[i]`` draws of ``positions[i]``, a row each."""
        columns = self.finish(np.zeros((1, 1, self.width)), positions[:1]).shape[-1]
        moments = Moments.empty(len(positions), columns)
        self.add_to(moments, positions, counts)
        return moments

    def add_to(self, moments: Moments, positions: Sequence[int], counts: Sequence[int] | np.ndarray) -> None:
        """The same, added to the moments of other draws of these positions."""
        alike: dict[int, list[int]] = {}
        for place, num in enumerate(counts):
            if num:
                alike.setdefault(int(num), []).append(place)
        for num, places in sorted(alike.items()):
            draws = self.draws([positions[place] for place in places], num)
            for i in range(num):
                moments.add(np.array(places), draws[:, i])

    def draws(self, positions: Sequence[int], num: int) -> np.ndarray:
        """``num`` draws of each of the positions, ``[N, num, columns]``."""
        values, place = np.zeros((len(positions), num, self.width)), {p: i for i, p in enumerate(positions)}
        copies = copies_in_a_pass(num, len(positions), self.batch_size)
        # How many copies of a sample there were in the passes that fill the same columns.
        copies_seen: defaultdict[tuple[int, int], count[int]] = defaultdict(count)
        for one, columns in self.passes([p for p in positions for _ in range(copies)]):
            places = np.array([place[p] for p in one.positions])
            copy = np.array([next(copies_seen[columns[0], p]) for p in one.positions])
            numbers = [start + copy for start in range(0, num, copies)]
            rows = [
                [row_of(self.kind, p, int(d), num) for p, d in zip(one.positions, own, strict=True)] for own in numbers
            ]
            # Read back together: an accelerator is waited for once a pass.
            found = torch.stack([self.draw(one, own) for own in rows]).cpu().numpy()
            for own, drawn in zip(numbers, found, strict=True):
                values[places[:, None], own[:, None], columns] = drawn
        return self.finish(values, positions)


def copies_in_a_pass(num: int, samples: int, room: int) -> int:
    """Copies of each sample in a pass: the largest divisor of its ``num`` draws for which ``samples`` have room."""
    return max(c for c in range(1, num + 1) if num % c == 0 and (c == 1 or c * samples <= room))
