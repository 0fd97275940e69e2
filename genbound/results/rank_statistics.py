r"""How well one number tells the order of another: correlations, and the measures that control for hyper-parameters.

All functions take values along the last axis and are vectorised over the others.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

Statistic = Callable[..., np.ndarray]


def pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation; NaN where either is constant."""
    x, y = (a - a.mean(axis, keepdims=True) for a in (np.asarray(x, float), np.asarray(y, float)))
    scale = np.sqrt((x * x).sum(axis) * (y * y).sum(axis))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (x * y).sum(axis) / scale, np.nan)


def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's correlation of ranks, ties with their mean rank."""
    return pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def kendall(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    r"""Kendall's :math:`\tau_b`, which corrects for ties."""
    x, y = (np.moveaxis(np.asarray(a, float), axis, -1) for a in (x, y))
    dx, dy = (np.sign(a[..., :, None] - a[..., None, :]) for a in (x, y))
    scale = np.sqrt((dx * dx).sum((-1, -2)) * (dy * dy).sum((-1, -2)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (dx * dy).sum((-1, -2)) / scale, np.nan)


STATISTICS: dict[str, Statistic] = {"pearson": pearson, "spearman": spearman, "kendall": kendall}


def bootstrap_interval(
    statistic: Statistic,
    x: np.ndarray,
    y: np.ndarray,
    num_resamples: int,
    generator: np.random.Generator,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval over resampled pairs.

    Resamples in which one side is constant have no coefficient and are left out.
    """
    chunk = max(1, 2**21 // len(x) ** 2)
    values = []
    for start in range(0, num_resamples, chunk):
        index = generator.integers(0, len(x), (min(chunk, num_resamples - start), len(x)))
        values.append(statistic(x[index], y[index]))
    found = np.concatenate(values)
    found = found[np.isfinite(found)]
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def permutation_p_value(
    statistic: Statistic, x: np.ndarray, y: np.ndarray, num_resamples: int, generator: np.random.Generator
) -> float:
    """Two-sided p-value.

    It is over all permutations where they are no more than ``num_resamples``, else (count + 1)/(resamples + 1).
    """
    found = stats.permutation_test(
        (x,), lambda x, axis=-1: statistic(x, np.broadcast_to(y, x.shape), axis), permutation_type="pairings",
        vectorized=True, n_resamples=num_resamples, batch=max(1, 2**21 // len(x) ** 2), rng=generator,
    )  # fmt: skip
    return float(found.pvalue)


# -- over hyper-parameters ---------------------------------------------------------------------------------------------

Settings = Sequence[Mapping[str, Any]]


def varied(settings: Settings) -> list[str]:
    """Hyper-parameters that every run states and that are not the same in all of them."""
    names = [name for name in settings[0] if all(name in s for s in settings)]
    return [name for name in names if len({repr(s[name]) for s in settings}) > 1]


def pairs_by_hyperparameter(settings: Settings) -> dict[str, list[tuple[int, int]]]:
    """Hyper-parameter -> pairs of runs that differ in it alone."""
    names, found = varied(settings), defaultdict(list)
    for i, j in itertools.combinations(range(len(settings)), 2):
        differing = [name for name in names if settings[i][name] != settings[j][name]]
        if len(differing) == 1:
            found[differing[0]].append((i, j))
    return {name: found[name] for name in names if name in found}


def granulated_kendall(measure: np.ndarray, gap: np.ndarray, settings: Settings) -> tuple[float, dict[str, float]]:
    r"""Granulated Kendall coefficient :math:`\Psi` and its part :math:`\psi_i` of each hyper-parameter.

    :math:`\psi_i` is the mean, over all settings of the others, of Kendall's coefficient among the runs that differ in
    hyper-parameter i alone; :math:`\Psi` is the mean of the :math:`\psi_i`. Runs of equal hyper-parameters
    (repetitions) are not compared with each other. NaN without such runs.

    References:
        Jiang, Neyshabur, Mobahi, Krishnan & Bengio, Fantastic generalization measures and where to find them,
            ICLR 2020.
    """
    names, parts = varied(settings), {}
    for name, pairs in pairs_by_hyperparameter(settings).items():
        groups = defaultdict(list)
        for i, j in pairs:
            others = tuple(repr(settings[i][other]) for other in names if other != name)
            groups[others].append(np.sign(measure[i] - measure[j]) * np.sign(gap[i] - gap[j]))
        parts[name] = float(np.mean([np.mean(signs) for signs in groups.values()]))
    return (float(np.mean(list(parts.values()))) if parts else math.nan), parts


def conditional_mutual_information(measure: np.ndarray, gap: np.ndarray, settings: Settings, most: int = 2) -> float:
    r"""What the order of the measure says of the order of the gap, given hyper-parameters: 0 nothing, 1 everything.

    With the signs :math:`V_\mu, V_g` of the differences over all ordered pairs of runs, and :math:`U_S` the values of
    the hyper-parameters S of both,

    .. math:: \mathcal K = \min_{|S| \le 2} \frac{I(V_\mu; V_g \mid U_S)}{H(V_g \mid U_S)}.

    Pairs with equal gaps are left out, and sets S under which the gap's order is certain.

    References:
        Jiang et al., ICLR 2020, section 2.2.3 (from the definition; the empty S is included).
    """
    pairs = [(i, j) for i, j in itertools.permutations(range(len(gap)), 2) if gap[i] != gap[j]]
    if not pairs:
        return math.nan
    signs = [(int(np.sign(measure[i] - measure[j])), int(np.sign(gap[i] - gap[j]))) for i, j in pairs]
    names, values = varied(settings), []
    for size in range(min(most, len(names)) + 1):
        for chosen in itertools.combinations(names, size):
            groups = defaultdict(list)
            for (i, j), pair in zip(pairs, signs, strict=True):
                groups[tuple((repr(settings[i][n]), repr(settings[j][n])) for n in chosen)].append(pair)
            entropy = sum(len(g) * _entropy([v for _, v in g]) for g in groups.values())
            shared = sum(len(g) * _information(g) for g in groups.values())
            if entropy > 0:
                values.append(shared / entropy)
    return float(min(values)) if values else math.nan


def _entropy(items: Sequence[Any]) -> float:
    _, counts = np.unique(np.asarray([repr(item) for item in items]), return_counts=True)
    return float(stats.entropy(counts))


def _information(pairs: Sequence[tuple[int, int]]) -> float:
    return max(0.0, _entropy([a for a, _ in pairs]) + _entropy([b for _, b in pairs]) - _entropy(pairs))


def robust_sign_error(measure: np.ndarray, gap: np.ndarray, settings: Settings) -> tuple[float, str]:
    r"""Largest error over environments in telling which of two runs has the larger gap, and that environment.

    An environment is a change of one hyper-parameter from one value to another while all others stay at theirs; it
    consists of the pairs of runs, one at either value, so of several only where runs are repeated. Its error is the
    mean of :math:`\frac12 (1 - \mathrm{sgn}\,\Delta\mu\;\mathrm{sgn}\,\Delta g)`: 0 if the measure is always right, ½
    for a coin, 1 if it is always wrong. NaN without such pairs.

    References:
        Dziugaite, Drouin, Neal, Rajkumar, Caballero, Wang, Mitliagkas & Roy, In search of robust measures of
            generalization, NeurIPS 2020 (without their weights for the noise of the gap).
    """
    names, worst, where = varied(settings), math.nan, ""
    for name, pairs in pairs_by_hyperparameter(settings).items():
        groups = defaultdict(list)
        for i, j in pairs:
            low, high = sorted((settings[i][name], settings[j][name]), key=lambda v: (isinstance(v, str), v))
            others = ", ".join(f"{other}={settings[i][other]}" for other in names if other != name)
            environment = f"{name} {low} → {high}" + (f" at {others}" if others else "")
            groups[environment].append(0.5 * (1 - np.sign(measure[i] - measure[j]) * np.sign(gap[i] - gap[j])))
        for environment, errors in groups.items():
            if not float(np.mean(errors)) <= worst:
                worst, where = float(np.mean(errors)), environment
    return worst, where
