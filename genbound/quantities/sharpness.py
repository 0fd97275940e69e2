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
and ``log_sum_origin``, the same with w in the place of v; ``…_above`` are both at the upper end of the bracket. An
alpha that does not exist is null with the reason: no corner raises the error by enough, or the box
:math:`|u_i| \le \epsilon` alone does.

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
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from genbound.estimators.random import normal
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, stream
from genbound.quantities.catalogue.sharpness import SharpnessOptions
from genbound.quantities.perturbed_error import (
    check_loss,
    flattened,
    mean_error,
    mean_error_and_gradient,
    perturbed_names,
    sample_groups,
)
from genbound.quantities.side_by_side import side_by_side

T = TypeVar("T")

NAME = "sharpness"
START = {"alpha": 2.0**-10, "magnitude_alpha": 2.0**-6}  # first trial
STEP = 4.0  # between the first two trials, squared for each further one until alpha is bracketed
SMALLEST, LARGEST = 2.0**-40, 2.0**20
ROUNDING = 1e-9  # a rise of just the displacement is none too many


def measure(problem: Problem, context: Context) -> Measured:
    """Both alphas, each found by a search, and the sums and norms that the bounds need with them."""
    options: SharpnessOptions = context.options
    ascent = _Ascent(problem, context, sample_groups(problem, options.num_samples)[0])
    weights = flattened(problem, problem.params)
    displacement = weights - flattened(problem, problem.init)
    searches = {kind: _search(kind, options) for kind in START}
    summary: dict[str, Any] = {}
    for found in side_by_side(searches, ascent.rises).values():
        summary |= found
    for name, reference in (("log_sum_init", displacement), ("log_sum_origin", weights)):
        for end in ("", "_above"):
            alpha = summary[f"magnitude_alpha{end}"]
            sizes = None if alpha is None else box(weights, "magnitude_alpha", alpha, options.epsilon)
            summary[f"{name}{end}"] = None if sizes is None else log_sum(sizes, reference)
        summary[f"{name}_reason"] = summary["magnitude_alpha_reason"]
    return Measured(
        summary
        | {
            "epsilon": options.epsilon,
            "displacement": options.displacement,
            "num_parameters": weights.numel(),
            "norm_displacement": float(displacement.norm()),
            "norm_weights": float(weights.norm()),
            "error": ascent.base,
            "num_samples": len(ascent.positions),
        }
    )


def box(weight: Tensor, kind: str, alpha: float, epsilon: float) -> Tensor:
    """Largest size of each entry's perturbation, in the unit of the weights.

    Args:
        weight: any shape.
        kind: ``alpha`` or ``magnitude_alpha``.
        alpha: in the unit of the weights, or relative to them.
        epsilon: size where a weight is zero, if they are relative.

    Returns:
        The weight's shape, or one number ``[]`` for all entries.
    """
    return weight.new_tensor(alpha) if kind == "alpha" else alpha * weight.abs() + epsilon


def log_sum(sizes: Tensor, reference: Tensor) -> float:
    r"""The sum over the entries of a box and a vector r.

    .. math:: \sum_i \ln((\|b\|^2 + 2\ln(2\omega)\|r\|^2)/(\omega b_i^2))

    Args:
        sizes: b ``[omega]``, in the unit of the weights.
        reference: r ``[omega]``, in the same unit.
    """
    prior = float(sizes.square().mean()) + 2 * math.log(2 * sizes.numel()) * float(reference.square().mean())
    return float((math.log(prior) - sizes.square().log()).sum())


class _Ascent:
    """Looks for the worst corner of boxes around the weights.

    Args:
        problem: what is measured.
        context: of the measurement.
        positions: the samples whose error counts.

    Attributes:
        base: their error without a perturbation.
    """

    def __init__(self, problem: Problem, context: Context, positions: Sequence[int]):
        self.positions = positions
        self._problem, self._context, self._options = problem, context, context.options
        (part,) = context.map(
            "base", [positions], lambda p: {"error": np.array([mean_error(problem, problem.params, p)])}
        )
        self.base = float(part["error"][0])

    def rises(self, number: int, trials: Mapping[str, _Asked]) -> dict[str, float]:
        """Kind -> largest rise of the error found in its box. Every call is a stored stage."""
        parts = self._context.map(
            f"trials {number}",
            list(trials.items()),
            lambda item: {"rise": np.array([self._worst_rise(item[0], *item[1])])},
        )
        return {kind: float(part["rise"][0]) for kind, part in zip(trials, parts, strict=True)}

    def _worst_rise(self, kind: str, alpha: float, steps: int) -> float:
        """Largest rise that ascent finds in the box; the first one beyond the displacement ends it."""
        params, epsilon = self._problem.params, self._options.epsilon
        sizes = {name: box(params[name], kind, alpha, epsilon) for name in perturbed_names(self._problem)}
        moves, worst = {name: sign * sizes[name] for name, sign in self._corner.items()}, 0.0
        for step in range(1, steps + 1):
            moved = {**params, **{name: params[name] + move for name, move in moves.items()}}
            if step == steps:
                return max(worst, mean_error(self._problem, moved, self.positions) - self.base)
            found, gradient = mean_error_and_gradient(self._problem, moved, self.positions)
            worst = max(worst, found - self.base)
            if worst > self._options.displacement + ROUNDING:
                break
            ahead = self._signs(step, gradient)
            moves = {
                name: (move + sizes[name] * ahead[name]).clamp(-sizes[name], sizes[name])
                for name, move in moves.items()
            }
        return worst

    @cached_property  # all trials start from it; a run that is continued may need none
    def _corner(self) -> dict[str, Tensor]:
        """Signs of the gradient at w."""
        return self._signs(0, mean_error_and_gradient(self._problem, self._problem.params, self.positions)[1])

    def _signs(self, step: int, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """Where to ascend: the gradient's signs, or where all of it is zero drawn ones, the same in every trial."""
        if any(bool(g.any()) for g in gradient.values()):
            return {name: g.sign() for name, g in gradient.items()}
        source = stream(self._context, NAME, "corner", step)
        return {name: normal(tuple(g.shape), source, g).sign() for name, g in gradient.items()}


class _Asked(NamedTuple):
    """A size of the box, and how many perturbations the ascent may look at."""

    alpha: float
    steps: int


_Search = Generator[_Asked, float, T]  # asks for rises of the error


class _Trial(NamedTuple):
    """A size, and the largest rise of the error found there."""

    alpha: float
    rise: float


def _bracket(steps: int, start: float, width: float, most: float) -> _Search[tuple[_Trial | None, _Trial | None]]:
    """Two sizes of that ratio: the rise is at most ``most`` at the lower one, and more at the upper one.

    One is ``None`` if there is no such size.
    """
    low, high, alpha, factor = None, None, start, STEP
    while True:
        trial = _Trial(alpha, (yield _Asked(alpha, steps)))
        low, high = (low, trial) if trial.rise > most else (trial, high)
        if low is not None and high is not None:
            if high.alpha <= low.alpha * width:
                return low, high
            alpha = math.sqrt(low.alpha * high.alpha)
        elif alpha in (SMALLEST, LARGEST):
            return low, high
        else:
            alpha = min(alpha * factor, LARGEST) if high is None else max(alpha / factor, SMALLEST)
            factor **= 2


def _search(kind: str, options: SharpnessOptions) -> _Search[dict[str, float | str | None]]:
    """The interval in which the largest rise passes the displacement, with the rises at its ends; or nulls and why."""
    most, whole = options.displacement + ROUNDING, options.num_steps
    if kind != "alpha" and (floor := (yield _Asked(0.0, whole))) > most:
        return _none(kind, f"perturbations of size {options.epsilon:g} alone raise the error by {floor:.2g} or more")
    low, high = yield from _bracket(1, START[kind], STEP, most)
    start = START[kind] if low is None or high is None else low.alpha
    low, high = yield from _bracket(whole, start, 1 + options.tolerance, most)
    if high is None:
        rise_found = 0.0 if low is None else low.rise
        return _none(kind, f"the error rises by {rise_found:.2g} only, in the worst corner found of any box")
    if low is None:
        return _none(kind, f"the error rises by {high.rise:.2g} in however small a box")
    return _none(kind, "") | dict(zip(_entries(kind), (low.alpha, high.alpha, low.rise, high.rise), strict=True))


def _entries(kind: str) -> tuple[str, str, str, str]:
    """Where the summary has the sizes at the lower and the upper end, and the rises there."""
    prefix = kind.removesuffix("alpha")
    return kind, f"{kind}_above", f"{prefix}rise", f"{prefix}rise_above"


def _none(kind: str, reason: str) -> dict[str, float | str | None]:
    return {**dict.fromkeys(_entries(kind)), f"{kind}_reason": reason}


def applies_to(problem: Problem) -> str | None:
    """The loss must know which answers are wrong."""
    return check_loss("alpha", problem)


def forecast(problem: Problem, options: SharpnessOptions) -> float:
    """The cost in gradients, at most.

    It is twice five passes, a trial that ends at once, one at the lower end and the halvings; then a floor, and the
    gradient at w.
    """
    halvings = math.ceil(math.log2(max(math.log(STEP) / math.log(1 + options.tolerance), 1)))
    whole = options.num_steps - 2 / 3  # the last pass of a trial is forward
    found = 4 / 3 + whole + 2 * (5 / 3 + 1 + (1 + halvings) * whole)
    return found * min(1.0, options.num_samples / problem.num_samples)
