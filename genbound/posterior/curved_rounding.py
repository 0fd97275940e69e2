r"""Integers that leave little of a vector in a curved metric and have a short description.

.. math:: \tfrac12 (v - \Delta q)^\top A \, (v - \Delta q) + \text{nats}(q)

is brought down one integer at a time: the nearest integers are best where A is a multiple of one, and where directions
differ in curvature an error in a steep one is made up for in others. Any integers may be taken, their description pays
for them. A symbol costs what its frequency in the last sweep says; the code itself
(:mod:`genbound.estimators.universal_code`) is only asked at the end.
"""

from __future__ import annotations

import numpy as np

SWEEPS = 4
STEPS_TRIED = np.array([-2, -1, 1, 2])


def rounded(wanted: np.ndarray, step: float, metric: np.ndarray) -> np.ndarray:
    """Integers ``[d]``, from the nearest ones on.

    Args:
        wanted: v ``[d]``.
        step: Δ.
        metric: A ``[d, d]``, positive semidefinite, in nats.
    """
    integers = np.rint(wanted / step).astype(np.int64)
    slope = metric @ (wanted - step * integers)  # of half the form
    for _ in range(SWEEPS):
        cost, most = _costs(integers)
        moved = 0
        for j in range(len(integers)):
            tried = np.append(STEPS_TRIED, -integers[j])
            tried = tried[np.abs(integers[j] + tried) <= most]
            if not len(tried):
                continue
            rise = -step * tried * slope[j] + 0.5 * step**2 * tried**2 * metric[j, j]
            rise += cost[integers[j] + tried + most] - cost[integers[j] + most]
            best = int(rise.argmin())
            if rise[best] < -1e-9:
                integers[j] += tried[best]
                slope -= step * tried[best] * metric[:, j]
                moved += 1
        if not moved:
            break
    return integers


def _costs(integers: np.ndarray) -> tuple[np.ndarray, int]:
    """``(nats of every symbol from -most to most, most)`` by the frequencies of integers ``[d]``."""
    most = int(np.abs(integers).max())
    counts = np.bincount(integers + most, minlength=2 * most + 1)
    counts = counts + counts[::-1]  # a symbol and its negative are alike
    return -np.log((counts + 1) / (2 * len(integers) + len(counts))), most
