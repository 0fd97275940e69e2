r"""How wide the intervals of single maxima may be, so that the sum of their roots is known to a tolerance.

The theorem's bound is in proportion to :math:`S = \sum_i \sqrt{m_i}` with :math:`m_i \in [l_i, u_i]`. It is known to
the relative width t where :math:`\sum \sqrt{u_i} - \sum \sqrt{l_i} \le t \sum \sqrt{u_i}`. That is so if each
:math:`\sqrt{u_i} - \sqrt{l_i} \le t \sqrt{u_i}`, that is :math:`l_i \ge (1 - t)^2 u_i`. What some are narrower by,
others may be wider by.
"""

from __future__ import annotations

import numpy as np

LOOSEST = 0.25  # relative width of a root, whatever there is to spare: a row of its own still says something


def widths_for_sum(lower: np.ndarray, upper: np.ndarray, left: np.ndarray, tolerance: float) -> np.ndarray:
    r"""Relative widths ``(u - l) / u`` that the maxima which are left may have.

    Let the others be narrower than t by :math:`s = \sum_{\text{others}} (t \sqrt{u_j} - \sqrt{u_j} + \sqrt{l_j})`.
    Those left may then be wider by a share :math:`\max(s, 0) / \sum_{\text{left}} \sqrt{u_i}` of their roots. Their
    upper sides only fall until they are as narrow as that, so that the sum holds then. And if some of them are narrow
    enough and count among the others, s is not negative either, so that the rest may go on from there.

    Args:
        lower: sides of every maximum ``[L]``, not negative.
        upper: likewise.
        left: those that may be narrowed yet ``[L]``.
        tolerance: t, of the sum.

    Returns:
        ``[L]``: one number for all that are left, 0 for the others.
    """
    roots = np.sqrt(upper)
    spare = float((np.sqrt(lower) - (1 - tolerance) * roots)[~left].sum())
    total = float(roots[left].sum())
    width = tolerance if total == 0 else min(tolerance + max(spare, 0.0) / total, max(LOOSEST, tolerance))
    return np.where(left, 1 - (1 - width) ** 2, 0.0)
