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
    draws on few samples cost less than few draws on many, at the same standard error. Each of the three sigmas takes
    about 25 draws (:mod:`genbound.quantities.sigma_search`): ``num_coarse`` for each of two or three trials until the
    rise is near, the others of ``num_draws`` there, and mostly all of them once more. The magnitude-aware sigmas begin
    where their noise has the mean square of the plain noise that was found.
Variance:
    The mean rise at the sigma found is reported with its standard error over the draws (``sem_error``,
    ``…_sem_error``). All trials use the same normals, so that the rise is a nearly monotone function of sigma. Sigma is
    where the power law that the search found meets ``displacement``, within about ``tolerance`` of where the same draws
    would meet it; then ``rise`` is ``displacement``. Where there is no such law it is the lower end of an interval of
    ratio ``1 + tolerance``, at whose upper end the rise is too large, and ``rise`` is less.

References:
    Jiang, Neyshabur, Mobahi, Krishnan & Bengio, Fantastic generalization measures and where to find them, ICLR 2020
    (formulas re-derived; public code passes sigma squared where a standard deviation is meant).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
from genbound.quantities.sigma_search import LARGEST, SMALLEST, Asked, Found, Start, Wanted, search

NAME = "flatness"
START = 2.0**-6  # first trial
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
    wanted = Wanted(options.displacement, options.tolerance, options.num_coarse, options.num_draws)
    plain = side_by_side({"sigma": search(wanted, Start(START))}, _Rises(problem, context, bases, "rises"))
    searches = {
        kind: search(wanted, _like(plain["sigma"], reference, options))
        for kind, reference in (("magnitude_sigma", displacement), ("magnitude_sigma_origin", weights))
    }
    for kind, found in (plain | side_by_side(searches, _Rises(problem, context, bases, "magnitude rises"))).items():
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
            "tolerance": options.tolerance,
            "num_parameters": weights.numel(),
            "norm_displacement": float(displacement.norm()),
            "norm_weights": float(weights.norm()),
            "error": base,
            "num_draws": options.num_draws,
            "num_samples": problem.num_samples,
        }
    )


class _Rises:
    """The rises of the error in every draw, as functions of sigma. Every call is a stage of draws that are stored.

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

    def __call__(self, number: int, asked: Mapping[str, Asked]) -> dict[str, np.ndarray]:
        items = [(kind, one.sigma, draw) for kind, one in asked.items() for draw in range(one.first, one.last)]
        rises = stack(self._context.map(f"{self._stage} {number}", items, lambda item: self._draw(*item)), "rise")
        ends = np.cumsum([one.last - one.first for one in asked.values()])
        return dict(zip(asked, np.split(rises, ends[:-1]), strict=True))

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


def _like(plain: Found, reference: Tensor, options: FlatnessOptions) -> Start:
    """Noise in proportion to a reference ``[omega]`` that has the mean square of the plain noise which was found.

    At sigma 0 it is plain noise of standard deviation epsilon, with the same normals: less than what was found is not
    too much.
    """
    size, floor = float(reference.double().square().mean().sqrt()), f"noise of standard deviation {options.epsilon:g}"
    if plain.sigma is None or size == 0:
        return Start(START, floor)
    square = max(plain.sigma**2 - options.epsilon**2, (0.5 * plain.sigma) ** 2)
    sigma = min(max(math.sqrt(square) / size, SMALLEST), LARGEST)
    return Start(sigma, floor if options.epsilon > plain.sigma else "")


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
    """Gradients over the measured samples, at most; a forward pass is a third of one.

    Each of three searches has four trials of few draws, and all draws at three sigmas, where samples are so few that
    their error rises by steps.
    """
    return _forecast(problem, 4 * options.num_coarse + 3 * options.num_draws)


def usual(problem: Problem, options: FlatnessOptions) -> float:
    """Likewise what it mostly takes: half of the searches stop at the first sigma that has all draws."""
    return _forecast(problem, options.num_coarse + 1.3 * options.num_draws)


def _forecast(problem: Problem, draws: float) -> float:
    """With so many draws for each search, and a pass over all samples without noise."""
    return (1 + len(KINDS) * draws * min(1.0, GROUP / problem.num_samples)) / 3
