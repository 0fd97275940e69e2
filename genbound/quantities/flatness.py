r"""How much noise all weights of the network bear: the sigma of PAC-Bayes bounds, by search.

For the error :math:`\hat E` on the measured samples, :math:`\sigma` is the largest standard deviation (never a
variance) with

.. math:: \mathbb E_U [\hat E(w + U)] \le \hat E(w) + 0.1, \qquad
   U_i \sim \mathcal N(0, s_i^2), \qquad s_i = \sigma
   \;\text{ or, magnitude-aware, }\; s_i = \sqrt{\sigma^2 v_i^2 + \epsilon^2}

with :math:`v = w - w^0`, and :math:`w_i` in the place of :math:`v_i` for the variant whose prior is at the origin (it
needs the same in noise and denominator: public code keeps :math:`v_i` there). The noise is on all weights and biases
and on the affine parameters of normalisations, on :math:`\omega` numbers in all. The magnitude-aware bounds also need

.. math::

   \texttt{log\_sum\_init} = \sum_i \ln \frac{\epsilon^2 + (\sigma^2 + 1) \|v\|^2 / \omega}{\epsilon^2 + \sigma^2 v_i^2}

(twice the KL divergence for the isotropic prior that is optimal), and ``log_sum_origin``, the same with w, each with
its own :math:`\sigma`. A sigma that does not exist is null with the reason: the error stays within reach of the
displacement for any noise, or the magnitude-aware noise breaks the network through :math:`\epsilon` alone.

Sigma is in the unit of the weights, the magnitude-aware ones are relative to them.

Cost:
    A draw is one forward pass of ``GROUP`` samples: the measured samples are dealt out to groups, each draw takes the
    next group, and its rise is against the same group without noise. Most of the variance is between draws, so that
    many draws on few samples cost less than few draws on many at the same standard error. About 50 draws for each of
    the three sigmas: ``num_coarse`` for each of the three or four trials that bracket it to a factor of 4, then
    ``num_draws`` for each of about three that aim at the crossing with the slope seen so far.
Variance:
    The mean rise at the sigma found is reported with its standard error over the draws (``sem_error``,
    ``…_sem_error``). All trials use the same normals, so that the rise is a nearly monotone function of sigma; sigma is
    the lower end of an interval of ratio ``1 + tolerance`` at whose upper end the rise is too large.

References:
    Jiang, Neyshabur, Mobahi, Krishnan & Bengio, Fantastic generalization measures and where to find them, ICLR 2020
    (formulas re-derived; public code passes sigma squared where a standard deviation is meant).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from genbound.estimators.random import normal
from genbound.network.problem import Problem
from genbound.quantities import perturbed_error
from genbound.quantities.base import Context, Measured, Part, stack, stream
from genbound.quantities.catalogue.flatness import FlatnessOptions
from genbound.quantities.perturbed_error import GROUP, check_loss, flat, names

NAME = "flatness"
START, STEP = 2.0**-6, 4.0  # first trial, and the factor of the trials until the rise is bracketed
SMALLEST, LARGEST = 2.0**-40, 2.0**20


def _deviations(problem, kind: str, sigma: float, epsilon: float) -> dict[str, Tensor | float]:
    if kind == "sigma":
        return {name: sigma for name in names(problem)}
    reference = {
        name: problem.params[name] - (problem.init[name] if kind == "magnitude_sigma" else 0.0)
        for name in names(problem)
    }
    return {name: (sigma**2 * v.square() + epsilon**2).sqrt() for name, v in reference.items()}


@dataclass(frozen=True)
class _Trial:
    """The mean rise of the error at one sigma, and its standard error over the draws."""

    sigma: float
    rise: float
    sem: float


def _search(problem, context: Context, kind: str, bases: list[float]) -> dict[str, float | str | None]:
    """The largest sigma, with the rise there and its standard error; or a null and why."""
    options: FlatnessOptions = context.options
    groups, target = perturbed_error.groups(problem), options.displacement
    trials = 0

    def trial(sigma: float, num_draws: int) -> _Trial:
        nonlocal trials
        scale = _deviations(problem, kind, sigma, options.epsilon)

        def draw(index: int) -> Part:
            source = stream(context, NAME, "draw", index)  # the same normals for every sigma and variant
            moved = {
                name: problem.params[name] + scale[name] * normal(tuple(p.shape), source, p)
                for name, p in problem.params.items()
                if name in scale
            }
            group = index % len(groups)
            error = perturbed_error.error(problem, {**problem.params, **moved}, groups[group])
            return {"rise": np.array([error - bases[group]])}

        rises = stack(context.map(f"{kind}-{trials}", range(num_draws), draw), "rise")
        trials += 1
        return _Trial(sigma, float(rises.mean()), float(rises.std(ddof=1) / math.sqrt(num_draws)))

    if kind != "sigma":
        floor = trial(0.0, options.num_draws)
        if floor.rise > target:
            return _missing(
                f"noise of standard deviation {options.epsilon:g} alone raises the error by {floor.rise:.2g}"
            )
    low, high = None, None
    found = trial(START, options.num_coarse)
    while True:
        low, high = (found, high) if found.rise <= target else (low, found)
        if low is not None and high is not None:
            break
        value = found.sigma * STEP if high is None else found.sigma / STEP
        if not SMALLEST <= value <= LARGEST:
            return _no_sigma(found, high is None)
        found = trial(value, options.num_coarse)
    slope = math.log(high.rise / max(low.rise, target / 16)) / math.log(STEP)
    slope = min(max(slope, 0.5), 4.0)  # in logarithms; about 2 while the loss is quadratic

    width = math.log(1 + options.tolerance)  # of the bracket to end with, in logarithms
    value, low, high, step = _aim(low, slope, target), None, None, 0
    while low is None or high is None or math.log(high.sigma / low.sigma) > width:
        found = trial(value, options.num_draws)
        low, high = (found, high) if found.rise <= target else (low, found)
        step += 1
        if low is None or high is None:
            # Just beyond where the crossing seems to be; farther each time, so that a plateau ends too.
            least, side = 0.45 * width * 2.0 ** (step - 1), 1 if high is None else -1
            aimed = side * math.log(_aim(found, slope, target) / found.sigma) + 0.45 * width
            value = found.sigma * math.exp(side * max(least, aimed))
            if not SMALLEST <= value <= LARGEST:
                return _no_sigma(found, high is None)
        else:
            value = _between(low, high, target, width, halve=step % 3 == 0)
    return {"sigma": low.sigma, "rise": low.rise, "sem": low.sem, "reason": ""}


def _aim(trial: _Trial, slope: float, target: float) -> float:
    """Where the rise meets the target if it is a power of sigma, at most a factor of STEP away."""
    factor = (target / max(trial.rise, target / 1e3)) ** (1 / slope)
    return trial.sigma * min(max(factor, 1 / STEP), STEP)


def _between(low: _Trial, high: _Trial, target: float, width: float, halve: bool) -> float:
    """Inside the bracket, such that the crossing is likely to be left in an interval of the wanted width."""
    start, length = math.log(low.sigma), math.log(high.sigma / low.sigma)
    fraction = (target - low.rise) / (high.rise - low.rise)
    if halve or length <= 2 * width:
        return math.exp(start + 0.5 * length)
    offset = 0.45 * width if fraction < 0.5 else -0.45 * width  # towards the farther end
    return math.exp(start + min(max(fraction * length + offset, 0.4 * width), length - 0.4 * width))


def _no_sigma(trial: _Trial, rising: bool) -> dict[str, float | str | None]:
    return _missing(
        f"the error rises by {trial.rise:.2g} " + ("only, whatever the noise" if rising else "under any noise")
    )


def _missing(reason: str) -> dict[str, float | str | None]:
    return {"sigma": None, "rise": None, "sem": None, "reason": reason}


def log_sum(reference: Tensor, sigma: float, epsilon: float) -> float:
    r"""The sum over the entries of a vector r.

    .. math:: \sum_i \ln((\epsilon^2 + (\sigma^2 + 1)\|r\|^2/\omega) / (\epsilon^2 + \sigma^2 r_i^2))
    """
    squares = reference.double().square()
    numerator = epsilon**2 + (sigma**2 + 1) * float(squares.mean())
    return float((math.log(numerator) - (epsilon**2 + sigma**2 * squares).log()).sum())


def measure(problem, context: Context) -> Measured:
    """The three sigmas, each found by a search, and the sums and norms that the bounds need with them."""
    options: FlatnessOptions = context.options
    groups = perturbed_error.groups(problem)
    parts = context.map(
        "base", groups, lambda group: {"error": np.array([perturbed_error.error(problem, problem.params, group)])}
    )
    bases = stack(parts, "error").tolist()
    base = sum(error * len(group) for error, group in zip(bases, groups, strict=True)) / problem.num_samples
    weights = flat(problem, problem.params)
    displacement = weights - flat(problem, problem.init)
    summary: dict[str, float | int | str | None] = {}
    for kind, prefix in (
        ("sigma", ""),
        ("magnitude_sigma", "magnitude_"),
        ("magnitude_sigma_origin", "magnitude_origin_"),
    ):
        found = _search(problem, context, kind, bases)
        summary[kind] = found["sigma"]
        summary[f"{prefix}rise"], summary[f"{prefix}sem_error"] = found["rise"], found["sem"]
        summary[f"{prefix}reason"] = found["reason"]
    for name, kind, reference in (
        ("log_sum_init", "magnitude_sigma", displacement),
        ("log_sum_origin", "magnitude_sigma_origin", weights),
    ):
        sigma = summary[kind]
        summary[name] = None if sigma is None else log_sum(reference, sigma, options.epsilon)
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


def applies_to(problem: Problem) -> str | None:
    """The loss must know which answers are wrong."""
    return check_loss("sigma", problem)


def forecast(problem, options: FlatnessOptions) -> float:
    """Three searches of four coarse and three fine trials, and two floors; a forward pass is a third of a gradient."""
    draws = 3 * (4 * options.num_coarse + 3 * options.num_draws) + 2 * options.num_draws
    return draws * min(1.0, GROUP / problem.num_samples) / 3
