r"""The alpha of PAC-Bayes sharpness, by search: the box around the weights whose worst corner the network bears.

For the error :math:`\hat E` on the measured samples, :math:`\alpha` is the largest size with

.. math:: \max_{|u_i| \le b_i} \hat E(w + u) \le \hat E(w) + 0.1, \qquad
   b_i = \alpha \;\text{ or, magnitude-aware, }\; b_i = \alpha |w_i| + \epsilon

over all weights and biases and the affine parameters of normalisations, :math:`\omega` numbers in all: what
``flatness`` asks of mean perturbations, of the worst one. The maximum is sought by projected ascent of the loss along
the sign of its gradient: from w to the corner that the gradient points at, then by steps of the box's half-width, cut
off at the box. Where the gradient is zero altogether, its signs are drawn.

The search comes from above. The first corner, which the gradient at w points at, is shrunk until it no longer raises
the error by that much. At the size reached the ascent looks for a worse perturbation, which is shrunk in its turn, and
so on until the ascent finds none. The samples and the corner that every ascent begins with are the same at all sizes.

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
    Passes over ``num_samples`` samples at most. Shrinking a perturbation takes forward passes alone: some seven for the
    first corner, some four for each worse one. An ascent is ``num_steps`` forward passes, with backward passes in all
    but the last, and ends at the first perturbation that raises the error by enough; only the last ascent for each
    alpha, which finds none, is whole. A pass ends with the batch in which so many samples are wrong that the others
    cannot matter. Together some 20 gradients of 64 samples; 38 where no perturbation of any size is bad enough.
Variance:
    None: nothing is drawn but for a gradient that is zero. Alpha is the lower end of an interval of ratio
    ``1 + tolerance`` at most, at whose upper end ``alpha_above`` the rise is too large.

References:
    Jiang, Neyshabur, Mobahi, Krishnan & Bengio, Fantastic generalization measures and where to find them, ICLR 2020;
    the box relative to the weights is that of Keskar et al., On large-batch training for deep learning, ICLR 2017.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, TypeVar

from torch import Tensor

from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured
from genbound.quantities.catalogue.sharpness import SharpnessOptions
from genbound.quantities.perturbed_error import check_loss, flattened, sample_groups
from genbound.quantities.side_by_side import side_by_side
from genbound.quantities.worst_corner import LARGEST, SMALLEST, STEP, Ascent, Asked, Ends, box

T = TypeVar("T")

START = {"alpha": 2.0**-10, "magnitude_alpha": 2.0**-6}  # first size of the first corner


def measure(problem: Problem, context: Context) -> Measured:
    """Both alphas, each found by a search, and the sums and norms that the bounds need with them."""
    options: SharpnessOptions = context.options
    ascent = Ascent(problem, context, sample_groups(problem, options.num_samples)[0])
    weights = flattened(problem, problem.params)
    displacement = weights - flattened(problem, problem.init)
    searches = {kind: _search(kind, options) for kind in START}
    summary: dict[str, Any] = {}
    for found in side_by_side(searches, ascent.ends).values():
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


def log_sum(sizes: Tensor, reference: Tensor) -> float:
    r"""The sum over the entries of a box and a vector r.

    .. math:: \sum_i \ln((\|b\|^2 + 2\ln(2\omega)\|r\|^2)/(\omega b_i^2))

    Args:
        sizes: b ``[omega]``, in the unit of the weights.
        reference: r ``[omega]``, in the same unit.
    """
    prior = float(sizes.square().mean()) + 2 * math.log(2 * sizes.numel()) * float(reference.square().mean())
    return float((math.log(prior) - sizes.square().log()).sum())


_Search = Generator[Asked, Ends, T]  # asks at which sizes perturbations raise the error by too much


def _search(kind: str, options: SharpnessOptions) -> _Search[dict[str, float | str | None]]:
    """The interval in which the largest rise passes the displacement, with the rises at its ends; or nulls and why."""
    low, high = yield Asked(START[kind], ascend=False)
    if high is None:  # whatever the size of the first corner: others may do
        low, high = yield from _any_size(START[kind])
    while high is not None and low is not None and high.size > SMALLEST:
        # As small as may be: the smaller the box, the less is found in it, and no ascent need follow.
        size = max(high.size / (1 + options.tolerance), SMALLEST)
        found = yield Asked(size, ascend=True)
        if found.high is None and found.low is not None:
            low = found.low
            return _none(kind, "") | dict(zip(_entries(kind), (low.size, high.size, low.rise, high.rise), strict=True))
        low, high = found
    if high is None:
        rise_found = 0.0 if low is None else low.rise
        return _none(kind, f"the error rises by {rise_found:.2g} only, in the worst corner found of any box")
    if kind != "alpha" and high.size == 0:
        return _none(
            kind, f"perturbations of size {options.epsilon:g} alone raise the error by {high.rise:.2g} or more"
        )
    return _none(kind, f"the error rises by {high.rise:.2g} in however small a box")


def _any_size(start: float) -> _Search[Ends]:
    """What ascents in larger and larger boxes find."""
    size, factor = start, STEP
    while True:
        found = yield Asked(size, ascend=True)
        if found.high is not None or size == LARGEST:
            return found
        size, factor = min(size * factor, LARGEST), factor**2


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
    """The cost in gradients, at most: five ascents for each alpha find nothing, at any size, and the first corner none.

    Where there is an alpha, it takes less even if the ascents find something six times.
    """
    found = 5 / 3 + 2 * (2 + 5 * _whole(options))
    return found * min(1.0, options.num_samples / problem.num_samples)


def usual(problem: Problem, options: SharpnessOptions) -> float:
    """Likewise where there is an alpha, with some room.

    For each alpha the first corner is shrunk, an ascent finds nothing, and two others find something after half of
    their steps, which is shrunk. Beside them there is the gradient at w, the error there and a floor.
    """
    halvings = math.ceil(math.log2(max(math.log(STEP) / math.log(1 + options.tolerance), 1)))
    found = 5 / 3 + 2 * ((4 + halvings) / 3 + _whole(options) + 2 * (0.5 * _whole(options) + 4 / 3))
    return found * min(1.0, options.num_samples / problem.num_samples)


def _whole(options: SharpnessOptions) -> float:
    """Gradients of an ascent that finds nothing: its last pass is forward."""
    return options.num_steps - 2 / 3
