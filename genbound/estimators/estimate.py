r"""Numbers with their errors, and the stratified mean that most of them come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo value.

    Attributes:
        value: unbiased estimate (exact where ``sem`` is 0).
        sem: standard error of the mean over the random draws.
        num_samples: data samples it was measured on.
        data_sem: what the choice of those samples among all training samples adds; 0 when all were measured.
        lower, upper: between them lies what these very draws have, where it is not known exactly; ``sem`` comes to
            either side. ``None`` where it is the value.
    """

    value: float
    sem: float
    num_samples: int
    data_sem: float = 0.0
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Interval:
    """A certified value: the truth over the samples measured lies in ``[lower, upper]``.

    Attributes:
        value: ``upper``, the side that keeps an upper bound one.
        lower: certified lower side.
        upper: certified upper side.
        sample: index in the data of the sample that attains the maximum, where there is one.
    """

    value: float
    lower: float
    upper: float
    sample: int | None = None


@dataclass(frozen=True)
class Sampled:
    """Values of N samples, each with random noise of its own, and their mean.

    Attributes:
        value: mean over the samples ``[...]``.
        sem: its standard error over the noise ``[...]``; the choice of the samples is not in it.
        samples: the values ``[N, ...]``, all in one unit.
        noise: variance of each of them ``[N, ...]``, in the unit's square.
        freedom: degrees of freedom of the squared standard error ``[...]``; infinite where it is known.
    """

    value: np.ndarray
    sem: np.ndarray
    samples: np.ndarray
    noise: np.ndarray
    freedom: np.ndarray

    @classmethod
    def of(cls, samples: np.ndarray, noise: np.ndarray, spread: np.ndarray | float = 0.0) -> Sampled:
        """From the samples' values and the variances of their independent noises, both ``[N, ...]``.

        ``spread`` is the sum over the samples of the squared variances, each over its degrees of freedom ``[...]``.
        """
        freedom = _freedom(noise.sum(0), spread)
        return cls(samples.mean(0), np.sqrt(noise.sum(0)) / len(samples), samples, noise, freedom)

    @property
    def widened(self) -> np.ndarray:
        """The standard error ``[...]``, wider where it is known from few draws: :func:`student`."""
        return self.sem * student(self.freedom)

    def __add__(self, other: Sampled) -> Sampled:
        """The sum of two measurements of the same samples that are independent of each other."""
        return Sampled(
            self.value + other.value,
            np.hypot(self.sem, other.sem),
            self.samples + other.samples,
            self.noise + other.noise,
            _freedom(self.sem**2 + other.sem**2, self.sem**4 / self.freedom + other.sem**4 / other.freedom),
        )


def _freedom(variance: np.ndarray, spread: np.ndarray | float) -> np.ndarray:
    r"""Satterthwaite's degrees of freedom of a sum of variances, :math:`(\sum_s v_s)^2 / \sum_s v_s^2/\nu_s`.

    Args:
        variance: the sum ``[...]``.
        spread: the sum below ``[...]``; 0 of variances that are known.
    """
    square = np.asarray(variance, float) ** 2
    return np.divide(square, spread, out=np.full_like(square, np.inf), where=(spread > 0) & (square > 0))


def stratum_variances(counts: np.ndarray, squares: np.ndarray, doubles: np.ndarray | None = None) -> np.ndarray:
    r"""Variance of one draw in every stratum, :math:`s_s^2 = \frac{1}{m_s - 1}\sum_d (y_{sd} - \bar y_s)^2`.

    A stratum with a single draw takes the mean of the ``doubles``. That is right in the mean over all those strata,
    not for each.

    Args:
        counts: draws per stratum ``[S]``; 1 only where there are doubles.
        squares: sum of squared deviations from the stratum's mean ``[S, ...]``.
        doubles: strata with two draws that stand for those with one, chosen without a look at any draw ``[S]``.

    Returns:
        ``[S, ...]``.
    """
    single = counts == 1
    variances = squares / np.maximum(counts - 1, 1).reshape(-1, *[1] * (squares.ndim - 1))
    if single.any():
        variances[single] = variances[doubles].mean(0)
    return variances


def stratified_mean(counts: np.ndarray, means: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Mean over equally weighted strata and its standard error.

    .. math:: \bar y = \frac1S \sum_s \bar y_s, \qquad \mathrm{sem}^2 = \frac1{S^2}\sum_s \frac{s_s^2}{m_s} .

    Args:
        counts: draws per stratum ``[S]``.
        means: mean of each stratum's draws ``[S, ...]``.
        variances: of one draw in each stratum ``[S, ...]`` (:func:`stratum_variances`).

    Returns:
        ``(mean [...], sem [...])``. Unbiased for any number of draws per stratum that was fixed beforehand.
    """
    counts = counts.reshape(-1, *[1] * (means.ndim - 1)).astype(float)
    return means.mean(0), np.sqrt((variances / counts).sum(0)) / len(means)


def stratified_freedom(counts: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Degrees of freedom of the squared error of :func:`stratified_mean`, with the same arguments: ``[...]``.

    Infinite where some strata have one draw: then there are many, and their doubles know their spread.
    """
    if counts.min() < 2:
        return np.full(variances.shape[1:], np.inf)
    along = counts.reshape(-1, *[1] * (variances.ndim - 1))
    each = variances / along
    return _freedom(each.sum(0), (each**2 / (along - 1)).sum(0))


def data_sem(values: np.ndarray, noise: np.ndarray, num_data: int) -> np.ndarray:
    """Standard error that comes from measuring ``N`` of ``num_data`` samples, drawn without replacement.

    Args:
        values: per-sample values ``[N, ...]``.
        noise: variance of each value's own Monte Carlo noise ``[N, ...]``, taken off the spread.
        num_data: size of the training set.

    Returns:
        ``[...]``, in the unit of the values. It is widened where few samples tell it (:func:`effective_freedom`).
    """
    num = len(values)
    if num >= num_data or num < 2:
        return np.zeros(values.shape[1:])
    squares = (values - values.mean(0)) ** 2
    spread = np.maximum(squares.sum(0) / (num - 1) - noise.mean(0), 0.0)
    freedom = effective_freedom(squares, np.full(num, 1 - 1 / num))
    return np.sqrt(spread / num * (1 - num / num_data)) * student(freedom)


def means_by_column(columns: Iterable[tuple[np.ndarray, np.ndarray | None]], num_data: int) -> dict[str, np.ndarray]:
    """Means over N of ``num_data`` samples with their errors, one column after the other: tables may lie on the disk.

    A column is added up by itself, pairwise. So the bits do not depend on where its table lies, nor on the others.

    Args:
        columns: values of the samples, and the variances of their own noise (``None``: they have none), ``[N]`` each.
        num_data: size of the training set.

    Returns:
        ``value``, ``sem`` over the noise and ``data_sem``, ``[C]`` each, in the unit of the values.
    """
    rows = []
    for values, noise in columns:
        noise = np.zeros(len(values)) if noise is None else noise
        mean = Sampled.of(values, noise)
        rows.append((mean.value, mean.sem, data_sem(values, noise, num_data)))
    return dict(zip(("value", "sem", "data_sem"), np.array(rows, float).reshape(-1, 3).T, strict=True))


def effective_freedom(squares: np.ndarray, free: np.ndarray) -> np.ndarray:
    r"""Degrees of freedom of a variance that samples with heavy tails tell.

    Of :math:`V = \sum_s u_s` with u in proportion to the squared deviations they are :math:`2V^2 / \mathrm{Var} V`,
    which :math:`2 V^2 / \sum_s u_s^2` estimates with the errors of u around zero. Half of that, the number of samples
    that make the most of V, also makes up for skewed values: their mean is low just where a rare large one was missed,
    and V is too. Of normal values it is a third of their number.

    Args:
        squares: what each sample adds to the variance ``[N, ...]``.
        free: degrees of freedom of each, (n - 1) / n where the mean is that of n of them ``[N]``.

    Returns:
        ``[...]``, 1 at least; infinite where nothing varies.
    """
    along = free.reshape(-1, *[1] * (squares.ndim - 1))
    spread = (squares**2 / along).sum(0)
    return np.maximum(_freedom(squares.sum(0), spread), 1.0)


def student(freedom: np.ndarray | float) -> np.ndarray:
    """What widens a standard error that itself is known from few draws.

    1.96 of the widened errors cover 95 %, as for a normal mean with a known error.

    Args:
        freedom: degrees of freedom of the variance, draws less means taken ``[...]``; one at least.

    Returns:
        ``[...]``, factors of at least 1, without unit.

    Example:
        >>> student(9).round(3), student(np.inf)
        (np.float64(1.154), np.float64(1.0))
    """
    few = np.minimum(np.asarray(freedom, float), 1e6)
    return np.where(np.isinf(freedom), 1.0, stdtrit(few, 0.975) / ndtri(0.975))[()]
