r"""The alpha of PAC-Bayes sharpness, by search: the box around the weights whose worst corner the network bears.

For the error :math:`\hat E` on the measured samples, :math:`\alpha` is the largest size with

.. math:: \max_{|u_i| \le b_i} \hat E(w + u) \le \hat E(w) + 0.1, \qquad
   b_i = \alpha \;\text{ or, magnitude-aware, }\; b_i = \alpha |w_i| + \epsilon

over all weights and biases and the affine parameters of normalisations, :math:`\omega` numbers in all: what
``flatness`` asks of mean perturbations, of the worst one. The maximum is sought by projected ascent of the loss along
the sign of its gradient: from w to the corner that the gradient points at, then by steps of the box's half-width, cut
off at the box. Where the gradient is zero altogether, its signs are drawn.

Ascent finds a *lower* estimate of the maximum, so that ``alpha`` is an **upper estimate**: a worse corner that it
missed makes the true one smaller, and no error bar says by how much. ``alpha_above``, the upper end of the bracket, is
certain: at that size a perturbation was found that raises the error by more, by ``rise_above``. Both speak of the
samples searched on; the worst case of few samples is worse than that of many.

The magnitude-aware bounds also need, with :math:`v = w - w^0` and :math:`c = 2 \ln 2\omega`,

.. math:: \texttt{log\_sum\_init} = \sum_i \ln \frac{\tfrac1\omega\|b\|^2 + c \|v\|^2/\omega}{b_i^2}

(twice the KL divergence of noise of standard deviation :math:`b_i/\sqrt c` and the isotropic prior that is optimal),
and ``log_sum_origin``, the same with w in the place of v. An alpha that does not exist is null with the reason: no
corner raises the error by enough, or the box :math:`|u_i| \le \epsilon` alone does.

Alpha is in the unit of the weights, the magnitude-aware one relative to them.

Cost:
    A trial is ``num_steps`` forward passes of at most ``num_samples`` samples, with backward passes in all but the
    last; it ends at the first perturbation that raises the error by enough. For each alpha some five trials of a single
    pass find the factor of 4 that it is in, and six whole ones halve that: 45 gradients of 64 samples at most for both.
Variance:
    None: nothing is drawn but for a gradient that is zero.

References:
    Jiang, Neyshabur, Mobahi, Krishnan & Bengio, Fantastic generalization measures and where to find them, ICLR 2020;
    the box relative to the weights is that of Keskar et al., On large-batch training for deep learning, ICLR 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import count

import numpy as np
from torch import Tensor

from genbound.estimators.random import normal
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, stream
from genbound.quantities.catalogue.sharpness import SharpnessOptions
from genbound.quantities.perturbed_error import check_loss, error, error_and_gradient, flat, groups, names

NAME = "sharpness"
START = {"alpha": 2.0**-10, "magnitude_alpha": 2.0**-6}  # first trial
STEP = 4.0  # between the first two trials, squared for each further one until alpha is bracketed
SMALLEST, LARGEST = 2.0**-40, 2.0**20
ROUNDING = 1e-9  # a rise of just the displacement is none too many


def box(weight: Tensor, kind: str, alpha: float, epsilon: float) -> Tensor | float:
    """Largest size of each entry's perturbation."""
    return alpha if kind == "alpha" else alpha * weight.abs() + epsilon


def log_sum(sizes: Tensor, reference: Tensor) -> float:
    r""":math:`\sum_i \ln((\|b\|^2 + 2\ln(2\omega)\|r\|^2)/(\omega b_i^2))` of the box's sizes b and a vector r."""
    prior = float(sizes.square().mean()) + 2 * math.log(2 * sizes.numel()) * float(reference.square().mean())
    return float((math.log(prior) - sizes.square().log()).sum())


Signs = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]


def _signs(context: Context, step: int, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where to ascend: the signs of the gradient; drawn ones where it is zero altogether, the same in every trial."""
    if any(bool(g.any()) for g in gradient.values()):
        return {name: g.sign() for name, g in gradient.items()}
    source = stream(context, NAME, "corner", step)
    return {name: normal(tuple(g.shape), source, g).sign() for name, g in gradient.items()}


def _worst_rise(problem, sizes, signs: Signs, corner, base: float, positions, displacement: float, steps: int) -> float:
    """Largest rise of the error that ascent finds in the box; the first one beyond the displacement ends it."""
    moves, worst = {name: sign * sizes[name] for name, sign in corner.items()}, 0.0
    for step in range(1, steps + 1):
        moved = {**problem.params, **{name: problem.params[name] + move for name, move in moves.items()}}
        if step == steps:
            return max(worst, error(problem, moved, positions) - base)
        found, gradient = error_and_gradient(problem, moved, positions)
        worst = max(worst, found - base)
        if worst > displacement + ROUNDING:
            break
        ahead = signs(step, gradient)
        moves = {
            name: (move + sizes[name] * ahead[name]).clamp(-sizes[name], sizes[name]) for name, move in moves.items()
        }
    return worst


Found = tuple[float, float]  # a size and the largest rise found there


def _bracket(
    trial: Callable[[float], float], start: float, width: float, most: float
) -> tuple[Found | None, Found | None]:
    """Two sizes of that ratio: the rise is at most ``most`` at the lower one, and more at the upper one.

    One is ``None`` if there is no such size.
    """
    low, high, alpha, factor = None, None, start, STEP
    while True:
        found = (alpha, trial(alpha))
        low, high = (low, found) if found[1] > most else (found, high)
        if low is not None and high is not None:
            if high[0] <= low[0] * width:
                return low, high
            alpha = math.sqrt(low[0] * high[0])
        elif alpha in (SMALLEST, LARGEST):
            return low, high
        else:
            alpha = min(alpha * factor, LARGEST) if high is None else max(alpha / factor, SMALLEST)
            factor **= 2


def _search(kind: str, rise: Callable[[float, int], float], options: SharpnessOptions) -> dict[str, float | str | None]:
    """The interval in which the largest rise passes the displacement, with the rises at its ends; or nulls and why."""
    prefix, most = kind.removesuffix("alpha"), options.displacement + ROUNDING

    def row(low: Found | None, high: Found | None, reason: str = "") -> dict[str, float | str | None]:
        return {
            kind: low and low[0], f"{kind}_above": high and high[0], f"{prefix}rise": low and low[1],
            f"{prefix}rise_above": high and high[1], f"{kind}_reason": reason,
        }  # fmt: skip

    def full(alpha: float) -> float:
        return rise(alpha, options.num_steps)

    if kind != "alpha" and (floor := full(0.0)) > most:
        return row(
            None, None, f"perturbations of size {options.epsilon:g} alone raise the error by {floor:.2g} or more"
        )
    low, high = _bracket(lambda alpha: rise(alpha, 1), START[kind], STEP, most)
    start = START[kind] if low is None or high is None else low[0]
    low, high = _bracket(full, start, 1 + options.tolerance, most)
    if high is None:
        return row(None, None, f"the error rises by {low[1]:.2g} only, in the worst corner found of any box")
    if low is None:
        return row(None, None, f"the error rises by {high[1]:.2g} in however small a box")
    return row(low, high)


def measure(problem, context: Context) -> Measured:
    """Both alphas, each found by a search, and the sums and norms that the bounds need with them."""
    options: SharpnessOptions = context.options
    positions = groups(problem, options.num_samples)[0]
    (part,) = context.map("base", [positions], lambda p: {"error": np.array([error(problem, problem.params, p)])})
    base = float(part["error"][0])

    def signs(step: int, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        return _signs(context, step, gradient)

    @cache  # all trials start from the gradient at w; a run that is continued may need none
    def corner() -> dict[str, Tensor]:
        return signs(0, error_and_gradient(problem, problem.params, positions)[1])

    def rises(kind: str) -> Callable[[float, int], float]:
        stages = count()

        def rise(alpha: float, steps: int) -> float:
            sizes = {name: box(problem.params[name], kind, alpha, options.epsilon) for name in names(problem)}

            def part(alpha: float) -> Part:
                found = _worst_rise(problem, sizes, signs, corner(), base, positions, options.displacement, steps)
                return {"rise": np.array([found])}

            return float(context.map(f"{kind}-{next(stages)}", [alpha], part)[0]["rise"][0])

        return rise

    weights = flat(problem, problem.params)
    displacement = weights - flat(problem, problem.init)
    summary: dict[str, float | int | str | None] = {}
    for kind in START:
        summary |= _search(kind, rises(kind), options)
    alpha = summary["magnitude_alpha"]
    for name, reference in (("log_sum_init", displacement), ("log_sum_origin", weights)):
        summary[name] = (
            None if alpha is None else log_sum(box(weights, "magnitude_alpha", alpha, options.epsilon), reference)
        )
        summary[f"{name}_reason"] = summary["magnitude_alpha_reason"]
    return Measured(
        summary
        | {
            "epsilon": options.epsilon,
            "displacement": options.displacement,
            "num_parameters": weights.numel(),
            "norm_displacement": float(displacement.norm()),
            "norm_weights": float(weights.norm()),
            "error": base,
            "num_samples": len(positions),
        }
    )


def applies_to(problem: Problem) -> str | None:
    """The loss must know which answers are wrong."""
    return check_loss("alpha", problem)


def forecast(problem, options: SharpnessOptions) -> float:
    """The cost in gradients, at most.

    It is twice five passes, a trial that ends at once, one at the lower end and the halvings; then a floor, and the
    gradient at w.
    """
    halvings = math.ceil(math.log2(max(math.log(STEP) / math.log(1 + options.tolerance), 1)))
    whole = options.num_steps - 2 / 3  # the last pass of a trial is forward
    found = 4 / 3 + whole + 2 * (5 / 3 + 1 + (1 + halvings) * whole)
    return found * min(1.0, options.num_samples / problem.num_samples)
