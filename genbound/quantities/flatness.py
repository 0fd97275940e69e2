r"""How much noise all weights of the network bear: the sigma of PAC-Bayes bounds, by search.

For the error :math:`\hat E` on the measured samples, :math:`\sigma` is the largest standard deviation (never a
variance) with

.. math:: \mathbb E_U [\hat E(w + U)] \le \hat E(w) + 0.1, \qquad
   U_i \sim \mathcal N(0, s_i^2), \qquad s_i = \sigma
   \;\text{ or, magnitude-aware, }\; s_i = \sqrt{\sigma^2 v_i^2 + \epsilon^2}

with :math:`v = w - w^0`. The variant whose prior is at the origin has :math:`w_i` in the place of :math:`v_i`, in
noise and denominator alike (public code keeps :math:`v_i` in the latter). The noise is on all weights and biases and
on the affine parameters of normalisations, on :math:`\omega` numbers in all. The magnitude-aware bounds also need

.. math::

   \texttt{log\_sum\_init} = \sum_i \ln \frac{\epsilon^2 + (\sigma^2 + 1) \|v\|^2 / \omega}{\epsilon^2 + \sigma^2 v_i^2}

(twice the KL divergence for the isotropic prior that is optimal), and ``log_sum_origin``, the same with w. Each has its
own :math:`\sigma`. The public code scales the noise by :math:`|w_i|` and keeps :math:`v_i` in the denominator, which is
no divergence: ``log_sum_published`` is that sum with :math:`\sigma` of the noise scaled by :math:`|w_i|`, and
``log_sum_published_origin`` has :math:`\|w\|^2` in the numerator.

A sigma that does not exist is null with the reason: no noise raises the error by enough, or the magnitude-aware noise
does so through :math:`\epsilon` alone.

Sigma is in the unit of the weights, the magnitude-aware ones are relative to them.

Cost:
    A draw is one forward pass of ``GROUP`` samples. The measured samples are dealt out to groups, each draw takes the
    next group, and its rise is against the same group without noise. Most of the variance is between draws. So many
    draws on few samples cost less than few draws on many, at the same standard error. There are about 50 draws for
    each of the three sigmas: ``num_coarse`` for each of the trials that bracket it to a factor of 4, then ``num_draws``
    for each of about three that aim at the crossing with the slope seen so far. The plain sigma takes three or four
    trials to bracket. The others begin where their noise has its mean square, and take two.
Variance:
    The mean rise at the sigma found is reported with its standard error over the draws (``sem_error``,
    ``…_sem_error``). All trials use the same normals, so that the rise is a nearly monotone function of sigma. Sigma is
    the lower end of an interval of ratio ``1 + tolerance``, at whose upper end the rise is too large.

References:
    Jiang, Neyshabur, Mobahi, Krishnan & Bengio, Fantastic generalization measures and where to find them, ICLR 2020
    (formulas re-derived; public code passes sigma squared where a standard deviation is meant).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from genbound.estimators.random import normal
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, stack, stream
from genbound.quantities.catalogue.flatness import FlatnessOptions
from genbound.quantities.perturbed_error import (
    GROUP,
    check_loss,
    flattened,
    mean_error,
    perturbed_names,
    sample_groups,
)
from genbound.quantities.side_by_side import side_by_side

T = TypeVar("T")

NAME = "flatness"
START, STEP = 2.0**-6, 4.0  # first trial, and the factor of the trials until the rise is bracketed
SMALLEST, LARGEST = 2.0**-40, 2.0**20
KINDS = {"sigma": "", "magnitude_sigma": "magnitude_", "magnitude_sigma_origin": "magnitude_origin_"}


def measure(problem: Problem, context: Context) -> Measured:
    """The three sigmas, each found by a search, and the sums and norms that the bounds need with them."""
    options: FlatnessOptions = context.options
    groups = sample_groups(problem)
    parts = context.map("base", groups, lambda group: {"error": np.array([mean_error(problem, problem.params, group)])})
    bases = stack(parts, "error").tolist()
    base = sum(error * len(group) for error, group in zip(bases, groups, strict=True)) / problem.num_samples
    weights = flattened(problem, problem.params)
    displacement = weights - flattened(problem, problem.init)
    summary: dict[str, float | int | str | None] = {}
    sigmas: dict[str, float | None] = {}
    plain = side_by_side({"sigma": _search(options)}, _Rises(problem, context, bases, "trials"))
    searches = {
        kind: _search(options, _like(plain["sigma"], reference, options))
        for kind, reference in (("magnitude_sigma", displacement), ("magnitude_sigma_origin", weights))
    }
    for kind, found in (plain | side_by_side(searches, _Rises(problem, context, bases, "magnitude trials"))).items():
        prefix, sigmas[kind] = KINDS[kind], found.sigma
        summary |= {
            kind: found.sigma, f"{prefix}rise": found.rise, f"{prefix}sem_error": found.sem,
            f"{prefix}reason": found.reason,
        }  # fmt: skip
    for name, kind, prior, noise in (
        ("log_sum_init", "magnitude_sigma", displacement, displacement),
        ("log_sum_origin", "magnitude_sigma_origin", weights, weights),
        ("log_sum_published", "magnitude_sigma_origin", displacement, displacement),
        ("log_sum_published_origin", "magnitude_sigma_origin", weights, displacement),
    ):
        sigma = sigmas[kind]
        summary[name] = None if sigma is None else log_sum(prior, noise, sigma, options.epsilon)
    return Measured(
        summary
        | {
            "epsilon": options.epsilon,
            "displacement": options.displacement,
            "num_parameters": weights.numel(),
            "norm_displacement": float(displacement.norm()),
            "norm_weights": float(weights.norm()),
            "error": base,
            "num_draws": options.num_draws,
            "num_samples": problem.num_samples,
        }
    )


@dataclass(frozen=True)
class _Trial:
    """The mean rise of the error at one sigma, and its standard error over the draws."""

    sigma: float
    rise: float
    sem: float


class _Asked(NamedTuple):
    """A sigma, and how many draws of the noise its rise is the mean of."""

    sigma: float
    num_draws: int


_Search = Generator[_Asked, _Trial, T]  # asks for mean rises of the error


class _Rises:
    """The mean rises of the error as functions of sigma. Every call is a stage of draws that are stored.

    Args:
        problem: what is measured.
        context: of the measurement.
        bases: error of each group of samples without noise.
        stage: what the stages are called.
    """

    def __init__(self, problem: Problem, context: Context, bases: Sequence[float], stage: str):
        self._problem, self._context, self._bases, self._stage = problem, context, bases, stage
        self._groups = sample_groups(problem)
        self._last: tuple[tuple[str, float], dict[str, Tensor | float]] | None = None

    def __call__(self, number: int, asked: Mapping[str, _Asked]) -> dict[str, _Trial]:
        items = [(kind, sigma, index) for kind, (sigma, draws) in asked.items() for index in range(draws)]
        rises = iter(stack(self._context.map(f"{self._stage} {number}", items, lambda item: self._draw(*item)), "rise"))
        found = {}
        for kind, (sigma, draws) in asked.items():
            values = np.array([next(rises) for _ in range(draws)])
            found[kind] = _Trial(sigma, float(values.mean()), float(values.std(ddof=1) / math.sqrt(draws)))
        return found

    def _deviations(self, kind: str, sigma: float) -> dict[str, Tensor | float]:
        """Standard deviation of every entry's noise, of the parameters' shapes or one for all entries."""
        if self._last is None or self._last[0] != (kind, sigma):  # its draws come one after the other
            self._last = (kind, sigma), self._made(kind, sigma)
        return self._last[1]

    def _made(self, kind: str, sigma: float) -> dict[str, Tensor | float]:
        problem, names = self._problem, perturbed_names(self._problem)
        if kind == "sigma":
            return dict.fromkeys(names, sigma)
        init = problem.init if kind == "magnitude_sigma" else dict.fromkeys(names, 0.0)
        references = {name: problem.params[name] - init[name] for name in names}
        epsilon = self._context.options.epsilon
        return {name: (sigma**2 * v.square() + epsilon**2).sqrt() for name, v in references.items()}

    def _draw(self, kind: str, sigma: float, index: int) -> Part:
        """The rise of the error of the next group of samples."""
        problem, deviations = self._problem, self._deviations(kind, sigma)
        source = stream(self._context, NAME, "draw", index)  # the same normals for every sigma and kind
        moved = {
            name: problem.params[name]
            + deviation * normal(tuple(problem.params[name].shape), source, problem.params[name])
            for name, deviation in deviations.items()
        }
        group = index % len(self._groups)
        error = mean_error(problem, {**problem.params, **moved}, self._groups[group])
        return {"rise": np.array([error - self._bases[group]])}


@dataclass
class _Bracket:
    """Where the rise passes the target: the last trial within reach of it, and the last one beyond."""

    target: float
    low: _Trial | None = None
    high: _Trial | None = None

    def add(self, trial: _Trial) -> None:
        if trial.rise <= self.target:
            self.low = trial
        else:
            self.high = trial

    @property
    def closed(self) -> bool:
        return self.low is not None and self.high is not None

    @property
    def ends(self) -> tuple[_Trial, _Trial]:
        """Both, of a bracket that is closed."""
        if self.low is None or self.high is None:
            raise ValueError("the bracket is open")
        return self.low, self.high

    @property
    def width(self) -> float:
        """Logarithm of the ratio of both sigmas."""
        low, high = self.ends
        return math.log(high.sigma / low.sigma)

    def why_open(self) -> str:
        if self.low is not None:
            return f"the error rises by {self.low.rise:.2g} only, whatever the noise"
        rise = math.inf if self.high is None else self.high.rise
        return f"the error rises by {rise:.2g} under any noise"


@dataclass(frozen=True)
class _Found:
    """A sigma with the rise there and its standard error, or the reason why there is none."""

    sigma: float | None = None
    rise: float | None = None
    sem: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Start:
    """Where a search begins.

    Attributes:
        sigma: of the first trial.
        floor: whether the noise at sigma 0 may be too much already.
    """

    sigma: float = START
    floor: bool = False


def _like(plain: _Found, reference: Tensor, options: FlatnessOptions) -> _Start:
    """Noise in proportion to a reference ``[omega]`` that has the mean square of the plain noise which was found.

    At sigma 0 it is plain noise of standard deviation epsilon, with the same normals: less than what was found is not
    too much.
    """
    size = float(reference.double().square().mean().sqrt())
    if plain.sigma is None or size == 0:
        return _Start(floor=True)
    square = max(plain.sigma**2 - options.epsilon**2, (0.5 * plain.sigma) ** 2)
    return _Start(min(max(math.sqrt(square) / size, SMALLEST), LARGEST), floor=options.epsilon > plain.sigma)


def _search(options: FlatnessOptions, start: _Start = _Start()) -> _Search[_Found]:  # noqa: B008 (nobody changes it)
    """The largest sigma at which the error rises by the displacement at most."""
    if start.floor and (floor := (yield _Asked(0.0, options.num_draws)).rise) > options.displacement:
        return _Found(reason=f"noise of standard deviation {options.epsilon:g} alone raises the error by {floor:.2g}")
    bracket = yield from _bracket(options, start.sigma)
    if bracket.closed:
        bracket = yield from _close_in(bracket, options)
    if not bracket.closed:
        return _Found(reason=bracket.why_open())
    low, _ = bracket.ends
    return _Found(low.sigma, low.rise, low.sem)


def _bracket(options: FlatnessOptions, sigma: float) -> _Search[_Bracket]:
    """Sigmas of ratio ``STEP`` around the crossing, with few draws each; open if there is none."""
    bracket = _Bracket(options.displacement)
    while not bracket.closed and SMALLEST <= sigma <= LARGEST:
        bracket.add((yield _Asked(sigma, options.num_coarse)))
        sigma = sigma * STEP if bracket.high is None else sigma / STEP
    return bracket


def _close_in(coarse: _Bracket, options: FlatnessOptions) -> _Search[_Bracket]:
    """Sigmas of ratio ``1 + tolerance`` around the crossing, with all draws each; open if there is none."""
    target, width = options.displacement, math.log(1 + options.tolerance)  # widths are in logarithms
    low, high = coarse.ends
    slope = math.log(high.rise / max(low.rise, target / 16)) / math.log(STEP)
    slope = min(max(slope, 0.5), 4.0)  # in logarithms; about 2 while the loss is quadratic
    bracket, sigma = _Bracket(target), _aim(low, slope, target)
    for step in count(1):
        trial = yield _Asked(sigma, options.num_draws)
        bracket.add(trial)
        if not bracket.closed:
            # Just beyond where the crossing seems to be; farther each time, so that a plateau ends too.
            least, side = 0.45 * width * 2.0 ** (step - 1), 1 if bracket.high is None else -1
            aimed = side * math.log(_aim(trial, slope, target) / trial.sigma) + 0.45 * width
            sigma = trial.sigma * math.exp(side * max(least, aimed))
            if not SMALLEST <= sigma <= LARGEST:
                return bracket
        elif bracket.width <= width:
            return bracket
        else:
            sigma = _between(bracket, width, halve=step % 3 == 0)
    raise AssertionError("counting does not end")


def _aim(trial: _Trial, slope: float, target: float) -> float:
    """Where the rise meets the target if it is a power of sigma, at most a factor of STEP away."""
    factor = (target / max(trial.rise, target / 1e3)) ** (1 / slope)
    return trial.sigma * min(max(factor, 1 / STEP), STEP)


def _between(bracket: _Bracket, width: float, halve: bool) -> float:
    """Inside the bracket, such that the crossing is likely to be left in an interval of the wanted width."""
    low, high = bracket.ends
    start, length = math.log(low.sigma), bracket.width
    fraction = (bracket.target - low.rise) / (high.rise - low.rise)
    if halve or length <= 2 * width:
        return math.exp(start + 0.5 * length)
    offset = 0.45 * width if fraction < 0.5 else -0.45 * width  # towards the farther end
    return math.exp(start + min(max(fraction * length + offset, 0.4 * width), length - 0.4 * width))


def log_sum(prior: Tensor, noise: Tensor, sigma: float, epsilon: float) -> float:
    r"""The sum over the entries of two vectors p and r, which are one where it is a divergence.

    .. math:: \sum_i \ln((\epsilon^2 + (\sigma^2 + 1)\|p\|^2/\omega) / (\epsilon^2 + \sigma^2 r_i^2))

    Args:
        prior: p ``[omega]``, in the unit of the weights.
        noise: r, likewise.
        sigma: relative to it, without unit.
        epsilon: in the unit of the weights.
    """
    numerator = epsilon**2 + (sigma**2 + 1) * float(prior.double().square().mean())
    return float((math.log(numerator) - (epsilon**2 + sigma**2 * noise.double().square()).log()).sum())


def applies_to(problem: Problem) -> str | None:
    """The loss must know which answers are wrong."""
    return check_loss("sigma", problem)


def forecast(problem: Problem, options: FlatnessOptions) -> float:
    """Gradients over the measured samples; a forward pass is a third of one.

    There are three searches of three fine trials each, after four coarse ones for the first and two for the others.
    """
    draws = (4 + 2 * 2) * options.num_coarse + 3 * 3 * options.num_draws
    return draws * min(1.0, GROUP / problem.num_samples) / 3
