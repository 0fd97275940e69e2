"""Which samples share a pass where all of a pass are padded to its longest: few passes, and little padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALONE = 0.75  # of an average sample's work, that a pass takes beside its samples'


def even_runs(sizes: Sequence[float], most: int) -> list[range]:
    """Places of the samples of each pass, in their order, so that the passes take least.

    A pass takes as many times its largest size as it has samples, and :data:`ALONE` of the mean size beside. Of samples
    of one size there are as few passes as hold them.

    Args:
        sizes: of the samples, in increasing order ``[n]``.
        most: samples of a pass.

    Cost: ``n * most`` comparisons.
    """
    each = np.asarray(sizes, float)
    beside = ALONE * each.mean() if len(each) else 0.0
    best, begin = [0.0], [0]
    for end in range(1, len(each) + 1):
        starts = np.arange(max(0, end - most), end)
        took = np.array(best)[starts] + (end - starts) * each[end - 1] + beside
        at = int(np.argmin(took))
        best.append(float(took[at]))
        begin.append(int(starts[at]))
    runs, end = list[range](), len(each)
    while end:
        runs.append(range(begin[end], end))
        end = begin[end]
    return runs[::-1]
