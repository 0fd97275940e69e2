r"""How many draws each stratum gets.

It is decided from a pilot round whose draws are not used again, or from other strata's draws.

A pilot of a few draws knows each stratum's spread badly, and what is lost by it is large. After a pilot of two draws
a stratum, draws in proportion to its spread must be a multiple of what the best allocation needs. What is known of
the spread beforehand helps: a sample's remainder is its loss's gradient in the output times a curvature that differs
much less. :func:`expect` makes an expectation of the first draws of strata that resemble it. :func:`shrink` weighs it
against a pilot by how well they agree.
"""

from __future__ import annotations

import numpy as np

MOST_TRUST = 64.0  # draws that the sizes may count for
DOUBLES = 64  # strata with two draws that tell the spread of those with one
NEAR = 12  # strata on either side that a stratum is compared with


def shrink(variances: np.ndarray, expected: np.ndarray, num: int) -> np.ndarray:
    r"""Pilot variances pulled towards what is expected.

    Let a stratum's variance be its expectation :math:`e_s` times a factor whose own variance is :math:`\tau^2`. Then
    the best linear mixture of the pilot's :math:`s^2` and the expected :math:`e_s` counts the latter as
    :math:`2 / \tau^2` draws. :math:`\tau^2` is what the ratios :math:`s_s^2 / e_s` scatter beyond the
    :math:`2 / (m - 1)` of normal draws: expectations that explain nothing get almost no weight. The ratios are taken
    around their mean. The level that is mixed in is the expectations' own, which is better known than that of a few
    large strata.

    Args:
        variances: pilot variance of one draw ``[S, L]``.
        expected: what it is expected to be ``[S, L]``.
        num: draws of the pilot in each stratum.

    Returns:
        ``[S, L]``.
    """
    total = expected.sum(0)
    if num < 2 or len(variances) < 8 or not total.any():
        return variances
    weight = expected / np.maximum(total, 1e-300)
    factor = np.divide(variances.sum(0), total, out=np.zeros_like(total), where=total > 0)
    ratio = np.divide(variances, expected * factor, out=np.zeros_like(variances), where=expected * factor > 0)
    scatter = (weight * (ratio - 1) ** 2).sum(0)
    own = num - 1
    trust = 2 / np.maximum((scatter - 2 / own) / (1 + 2 / own), 2 / MOST_TRUST)
    return (own * variances + trust * expected) / (own + trust)


def _coarse(sizes: np.ndarray) -> np.ndarray:
    """Sizes to half an octave: comparing them, rounding changes nothing."""
    return np.round(2 * np.log2(np.maximum(sizes, 1e-30)))


def choose_pilot(sizes: np.ndarray, most: int) -> tuple[list[int], list[int]]:
    """Which strata a pilot round visits, and which of them are there for their size.

    A third of them have the largest sizes, where most of the spread is. The others stand at equal distances among all.

    Args:
        sizes: what the strata's spreads grow with ``[S]``.
        most: strata that are visited at most.

    Returns:
        Their numbers in increasing order, and those of the large ones, the largest first.
    """
    num = len(sizes)
    order = np.argsort(-_coarse(sizes), kind="stable").tolist()
    large = order[: most // 3]
    if num <= most:
        return list(range(num)), large
    return sorted({*large, *range(0, num, -(-num // (most - len(large))))}), large


def expect(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values in proportion to the squared size, by the mean factor over the strata next to each in size.

    Each is left out of its own mean: what is decided by it does not depend on its own draws.

    Args:
        sizes: what strata are compared by ``[S]``.
        values: variances of each stratum ``[S, L]``.

    Returns:
        ``[S, L]``; the values themselves if there is one stratum alone.
    """
    num = len(sizes)
    if num == 1:
        return values
    order = np.argsort(sizes, kind="stable")
    largest = float(np.max(sizes)) or 1.0
    square = np.maximum(np.square(sizes[order] / largest), 1e-12)[:, None]
    each = values[order] / square
    sums, neighbours = np.zeros_like(each), np.zeros((num, 1))
    for shift in range(1, min(NEAR, num - 1) + 1):
        for to, of in ((slice(shift, None), slice(None, -shift)), (slice(None, -shift), slice(shift, None))):
            sums[to] += each[of]
            neighbours[to] += 1
    found = np.empty_like(each)
    found[order] = square * sums / neighbours
    return found


def predict(variances: np.ndarray, piloted: np.ndarray, sizes: np.ndarray, num: int) -> np.ndarray:
    r"""Variance of a draw in every stratum from a pilot round in some of them.

    It is expected to be a power of the size, :math:`e_s = c\,a_s^p` with :math:`0 \le p \le 2`. The power is the one of
    largest likelihood if the pilot's variances are :math:`\chi^2` around it: 2 where a draw spreads as its sample's
    gradient, 0 where the sizes explain nothing.

    Args:
        variances: pilot variance of one draw in the piloted strata ``[P, L]``.
        piloted: their numbers ``[P]``.
        sizes: what the standard deviations of all strata grow with ``[S]``.
        num: draws of the pilot in each of its strata.

    Returns:
        ``[S, L]``: in the piloted strata as :func:`shrink` says, elsewhere what the sizes let expect.
    """
    sizes = np.maximum(sizes, 1e-6 * np.max(sizes, initial=0) or 1.0)
    logs = np.log(sizes)[:, None, None]
    powers = np.linspace(0, 2, 21)[:, None]  # [powers, 1]
    factors = (variances[:, None] * np.exp(-logs[piloted] * powers)).mean(0)  # [powers, L]
    with np.errstate(divide="ignore"):  # no spread at all is explained by every power
        best = np.argmin(np.log(factors) + powers * logs[piloted].mean(0), 0)
    found = factors[best, np.arange(len(best))] * np.exp(logs[:, 0] * powers[best, 0])
    found[piloted] = shrink(variances, found[piloted], num)
    return found


def choose_doubles(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which of the strata with a single draw get a second, so that the spread of all of them is known.

    They stand at equal distances in order of size: an eighth of the singles, and at least DOUBLES. The choice does
    not look at any draw, and they are typical of all: their mean variance stands for the mean over all singles.

    Args:
        counts: draws of each stratum ``[S]``.
        sizes: what the strata's spreads grow with ``[S]``.

    Returns:
        ``[S]`` booleans.
    """
    chosen = np.zeros(len(counts), dtype=bool)
    singles = np.flatnonzero(counts == 1)
    singles = singles[np.argsort(_coarse(sizes[singles]), kind="stable")]
    every = max(1, min(8, len(singles) // DOUBLES))
    chosen[singles[every // 2 :: every]] = True
    return chosen


def allocate(
    variances: np.ndarray, targets: np.ndarray, *, minimum: int | np.ndarray, budget: float, granularity: int = 2,
    costs: np.ndarray | float = 1.0,
) -> np.ndarray:  # fmt: skip
    r"""Draws per stratum so that every column of the stratified mean reaches its standard error.

    This is Neyman's allocation, :math:`m_s \propto a_s / \sqrt{c_s}` with :math:`a_s^2 = \sum_l s_{sl}^2 / t_l^2`,
    scaled until the worst column just meets its target. Counts are rounded up to powers of ``granularity``. That is
    coarse, so that rounding errors in the pilot rarely change a decision, and that strata with equal counts fill
    batches.

    Args:
        variances: pilot variance of one draw ``[S, L]``.
        targets: wanted standard error of each column's mean over strata ``[L]``; columns with 0 are ignored.
        minimum: least number of draws in a stratum, or of each.
        budget: cap on the mean cost of a stratum's draws.
        granularity: counts are its powers.
        costs: of one draw in each stratum.

    Returns:
        ``[S]`` integers.
    """
    strata = len(variances)
    use = targets > 0
    if not use.any() or not variances[:, use].any():
        return np.full(strata, minimum, dtype=int)
    scaled = variances[:, use] / targets[use] ** 2
    spread = np.sqrt(scaled.sum(1) / costs)
    spread = np.maximum(spread, 0.1 * spread.mean())  # few pilot draws can miss a spread altogether
    needed = (scaled / spread[:, None]).sum(0).max() / strata**2
    wanted = np.maximum(spread * needed, 1)
    affordable = min(1.0, budget / (wanted * costs).mean())

    def rounded(factor: float) -> np.ndarray:
        powers = np.ceil(np.log(np.maximum(factor * wanted, 1)) / np.log(granularity) - 1e-9).astype(int)
        return np.maximum(granularity**powers, minimum).astype(int)

    def reaches(counts: np.ndarray) -> bool:
        return bool(((scaled / counts[:, None]).sum(0) <= strata**2).all())

    # Rounding up all counts overshoots: the smallest factor that reaches the targets takes about a third fewer draws.
    low, high = 1 / granularity, 1.0
    for _ in range(12 if affordable == 1.0 else 0):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if reaches(rounded(middle)) else (middle, high)
    counts = rounded(high * affordable)
    while (counts * costs).mean() > budget and (counts > minimum).any():
        high *= 0.95
        counts = rounded(high * affordable)
    return counts
