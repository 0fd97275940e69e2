r"""How much noise all weights of the network bear: the sigma of PAC-Bayes bounds, by search.

For the error :math:`\hat E` on the measured samples and one draw of noise shared by all of them, :math:`\sigma` is the
largest standard deviation (never a variance) with

.. math:: \mathbb E_U [\hat E(w + U)] \le \hat E(w) + 0.1, \qquad
   U_i \sim \mathcal N(0, s_i^2), \qquad s_i = \sigma
   \;\text{ or, magnitude-aware, }\; s_i = \sqrt{\sigma^2 v_i^2 + \epsilon^2}

with :math:`v = w - w^0`, and :math:`w_i` in the place of :math:`v_i` for the variant whose prior is at the origin (it needs
the same in noise and denominator: public code keeps :math:`v_i` there). The noise is on all weights and biases and on
the affine parameters of normalisations, on :math:`\omega` numbers in all. The magnitude-aware bounds also need

.. math:: \texttt{log\_sum\_init} = \sum_i \ln \frac{\epsilon^2 + (\sigma^2 + 1) \|v\|^2 / \omega}{\epsilon^2 + \sigma^2 v_i^2}

(twice the KL divergence for the isotropic prior that is optimal), and ``log_sum_origin``, the same with w, each with its own
:math:`\sigma`. A sigma that does not exist is null with the reason: the error stays within reach of the displacement for any
noise, or the magnitude-aware noise breaks the network through :math:`\epsilon` alone.

Sigma is in the unit of the weights, the magnitude-aware ones are relative to them.

Cost:
    ``num_coarse`` forward passes for each of the first few trials of sigma, ``num_draws`` for each of the about six after
    them, for each of the three.
Variance:
    The mean rise at the sigma found is reported with its standard error over the draws (``sem_error``, ``…_sem_error``).
    All trials use the same normals, so that the rise is a nearly monotone function of sigma; sigma is the lower end of
    an interval of ratio ``1 + tolerance`` at whose upper end the rise is too large.

References:
    Jiang, Neyshabur, Mobahi, Krishnan & Bengio, Fantastic generalization measures and where to find them, ICLR 2020
    (formulas re-derived; public code passes sigma squared where a standard deviation is meant).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genbound.errors import GenboundError
from genbound.estimators.random import normal
from genbound.quantities.base import Context, Measured, Part, Quantity, stack, stream

NAME = "flatness"
START, STEP = 2.0**-6, 4.0  # first trial, and the factor of the trials until the rise is bracketed
SMALLEST, LARGEST = 2.0**-40, 2.0**20


@dataclass(frozen=True)
class FlatnessOptions:
    """Options of ``flatness``.

    Attributes:
        displacement: largest mean rise of the error.
        tolerance: relative width of the interval that sigma is searched to.
        num_draws: draws of the noise.
        num_coarse: draws while sigma is only bracketed, to a factor of 4; the first ones of the same.
        epsilon: floor of the magnitude-aware standard deviation.
    """

    displacement: float = 0.1
    tolerance: float = 0.05
    num_draws: int = 10
    num_coarse: int = 3
    epsilon: float = 1e-3

    def __post_init__(self):
        if not 0 < self.displacement < 1:
            raise GenboundError(f"displacement {self.displacement:g} is a rise of the error: 0 < displacement < 1")
        if not self.tolerance > 0 or not self.epsilon > 0:
            raise GenboundError("tolerance and epsilon must be positive")
        if not 2 <= self.num_coarse <= self.num_draws:
            raise GenboundError("2 <= num_coarse <= num_draws is needed: a mean of one draw has no standard error")


def _error(problem, params) -> float:
    wrong = 0.0
    for run in problem.batches(range(problem.num_samples)):
        batch = problem.batch(run)
        with torch.no_grad():
            outputs = problem.forward(params, batch.inputs)
        # Noise can make the outputs overflow, which no prediction survives.
        finite = torch.isfinite(outputs).flatten(1).all(1)
        errors = problem.loss.error(outputs.nan_to_num(), batch.targets).double()
        wrong += float(torch.where(finite, errors, torch.ones_like(errors)).sum())
    return wrong / problem.num_samples


def _names(problem) -> list[str]:
    return [name for name, p in problem.params.items() if p.is_floating_point()]


def _deviations(problem, kind: str, sigma: float, epsilon: float) -> dict[str, Tensor | float]:
    if kind == "sigma":
        return {name: sigma for name in _names(problem)}
    reference = {
        name: problem.params[name] - (problem.init[name] if kind == "magnitude_sigma" else 0.0)
        for name in _names(problem)
    }
    return {name: (sigma**2 * v.square() + epsilon**2).sqrt() for name, v in reference.items()}


def _search(problem, context: Context, kind: str, base: float) -> dict[str, float | str | None]:
    """The largest sigma, with the rise there and its standard error; or a null and why."""
    options: FlatnessOptions = context.options
    trials = 0

    def rise(sigma: float, num_draws: int) -> tuple[float, float]:
        nonlocal trials
        scale = _deviations(problem, kind, sigma, options.epsilon)

        def draw(index: int) -> Part:
            source = stream(context, NAME, "draw", index)  # the same normals for every sigma and variant
            moved = {
                name: problem.params[name] + scale[name] * normal(tuple(p.shape), source, p)
                for name, p in problem.params.items()
                if name in scale
            }
            return {"error": np.array([_error(problem, {**problem.params, **moved})])}

        errors = stack(context.map(f"{kind}-{trials}", range(num_draws), draw), "error")
        trials += 1
        return float(errors.mean() - base), float(errors.std(ddof=1) / math.sqrt(num_draws))

    def search(start: float, step: float, ratio: float, num_draws: int) -> dict[str, float | str | None]:
        """Bracket sigma by steps of a constant factor, then halve the bracket's logarithm down to the ratio."""
        low, high, at_low, value = None, None, (math.nan, math.nan), start
        while low is None or high is None or high / low > ratio:
            found = rise(value, num_draws)
            if found[0] <= options.displacement:
                low, at_low = value, found
            else:
                high = value
            if high is None:
                value *= step
            elif low is None:
                value /= step
            else:
                value = math.sqrt(low * high)
            if high is None and value > LARGEST:
                return _missing(f"the error rises by {found[0]:.2g} only, whatever the noise")
            if low is None and value < SMALLEST:
                return _missing(f"the error rises by {found[0]:.2g} under any noise")
        return {"sigma": low, "rise": at_low[0], "sem": at_low[1], "reason": ""}

    if kind != "sigma":
        floor = rise(0.0, options.num_draws)
        if floor[0] > options.displacement:
            return _missing(f"noise of standard deviation {options.epsilon:g} alone raises the error by {floor[0]:.2g}")
    coarse = search(START, STEP, STEP, options.num_coarse)
    if coarse["sigma"] is None:
        return coarse
    return search(coarse["sigma"] * math.sqrt(STEP), math.sqrt(STEP), 1 + options.tolerance, options.num_draws)


def _missing(reason: str) -> dict[str, float | str | None]:
    return {"sigma": None, "rise": None, "sem": None, "reason": reason}


def log_sum(reference: Tensor, sigma: float, epsilon: float) -> float:
    r""":math:`\sum_i \ln((\epsilon^2 + (\sigma^2 + 1)\|r\|^2/\omega) / (\epsilon^2 + \sigma^2 r_i^2))` of a vector r."""
    squares = reference.double().square()
    numerator = epsilon**2 + (sigma**2 + 1) * float(squares.mean())
    return float((math.log(numerator) - (epsilon**2 + sigma**2 * squares).log()).sum())


def measure(problem, context: Context) -> Measured:
    options: FlatnessOptions = context.options
    base = float(
        context.map("base", [0], lambda _: {"error": np.array([_error(problem, problem.params)])})[0]["error"][0]
    )
    weights = torch.cat([problem.params[name].flatten().double() for name in _names(problem)])
    displacement = weights - torch.cat([problem.init[name].flatten().double() for name in _names(problem)])
    summary: dict[str, float | int | str | None] = {}
    for kind, prefix in (
        ("sigma", ""),
        ("magnitude_sigma", "magnitude_"),
        ("magnitude_sigma_origin", "magnitude_origin_"),
    ):
        found = _search(problem, context, kind, base)
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


def applies_to(problem) -> str | None:
    if problem.loss.error is None:
        return f"sigma is searched for a rise of the 0-1 error, which {problem.loss.name} does not have"
    return None


QUANTITY = Quantity(
    NAME,
    "largest weight noise that raises the training error by 0.1 at most, plain and magnitude-aware",
    measure,
    FlatnessOptions,
    gradients=lambda problem, options: 3 * (4 * options.num_coarse + 6 * options.num_draws) / 3,
    applies_to=applies_to,
    reference="Jiang et al. 2020",
)
