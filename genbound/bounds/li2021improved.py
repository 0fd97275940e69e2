r"""PAC-Bayes bound for fine-tuning under distance constraints (Li & Zhang, NeurIPS 2021).

For a 1-Lipschitz loss in :math:`[0, C_2]`, inputs of norm at most :math:`C_1`, largest width H, L layers,
:math:`B_i\ge\max(1,\|W_i\|_2)` and :math:`D_i\ge\|v_i\|_F`, with probability :math:`1-2\delta` and for a fixed ε

.. math::
   L \le \hat L + \varepsilon + C_2\sqrt{\frac{
   \tfrac{36}{\varepsilon^2}C_1^2H\ln(4LHC_1)\big(\sum_i\prod_{j\ne i}B_j\big)^2\sum_iD_i^2
   + 3\ln(n/\delta) + 8}{n}}.

The statement is from memory and reproduced by a derivation (docs/bounds): the fraction is the divergence for Gaussian
noise that moves the output by at most ε/2. The factor :math:`C_1` inside the logarithm needs :math:`C_1\ge1`. A loss
with Lipschitz constant κ multiplies :math:`C_1` outside the logarithm.

``value`` is ``main_term``: the minimum over ε where the first term under the root is all there is,
:math:`2\sqrt{C_2}(K/n)^{1/4}` with K the fraction times ε² (κ = 1). It falls like :math:`n^{-1/4}`.

Forms:
    main_term: as above, matrices unrolled (the theorem is for dense layers).
    main_term_kernel: with the kernels' Frobenius norms and the largest number of channels for H.
    paper: the minimum of the right side over ε. ε then depends on the data, which the theorem does not allow.
    epsilon_grid: the same with :math:`\varepsilon = 2^{j/4}` and δ divided among the grid's points.
    tight: derived: Gaussian noise of one standard deviation σ from a grid on all layers, :math:`2\kappa\Delta(\sigma) +
        C_2\sqrt{((\sum_iD_i^2/(2\sigma^2) + h(\eta))/(1-\eta) + \ln(2\sqrt n\,3(j+1)(j+2)/\delta))/(2n)}`, where Δ is
        the change of the output (:func:`genbound.bounds.composition.perturb`) that the noise exceeds with probability
        η. It needs no radii: it holds at the observed norms, because only σ is chosen.

All are measures: :math:`C_1` is the largest norm seen, and the first forms take norms from the data for radii.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.composition import compose, perturb
from genbound.bounds.forms import Form, bound_value
from genbound.bounds.gaussian_noise import (
    FAILURES,
    STEPS,
    BiasNoise,
    bias_noise,
    entropy,
    noise_norms,
    require_noise_everywhere,
)
from genbound.bounds.logs import TWO, ZERO, add, log
from genbound.bounds.reading import (
    depth,
    has_structure,
    norms,
    outside,
    require,
    sizes,
    spectral,
    tree_of,
    unverified,
    widest,
)

REFERENCE = "Li & Zhang 2021"


# -- the theorem ----------------------------------------------------------------------------------------------------


def numerator(products: float, squares: float, radius: float, layers: int, width: float) -> float:
    r"""Log10 of :math:`K = 36C_1^2H\ln(4LHC_1)Q^2\sum D^2`; Q, ΣD² and C₁ as logarithms."""
    inner = math.log(4 * layers * width) + max(0.0, radius) * math.log(10)  # ln(4 L H max(1, C1))
    return log(36 * width * inner) + 2 * (radius + products) + squares


def main_term(k: float, loss_range: float, num_data: int) -> float:
    r"""Log10 of :math:`2\sqrt{C_2}(K/n)^{1/4}`."""
    return log(2 * math.sqrt(loss_range)) + 0.25 * (k - log(num_data))


def at_epsilon(epsilon: float, k: float, loss_range: float, num_data: int, delta: float) -> float:
    r"""Log10 of :math:`\varepsilon + C_2\sqrt{(K/\varepsilon^2+3\ln(n/\delta)+8)/n}`; ε as logarithm."""
    rest = log(3 * math.log(num_data / delta) + 8)
    fraction = ZERO if k == ZERO else k - 2 * epsilon
    return add(epsilon, log(loss_range) + 0.5 * (add(fraction, rest) - log(num_data)))


def best_epsilon(k: float, loss_range: float, num_data: int, delta: float) -> float:
    r"""Log10 of the smallest :func:`at_epsilon`.

    Convex in ln ε: the left and the right side of its derivative's zero are bisected. With t = K/ε² the condition
    :math:`\varepsilon = C_2\,t/\sqrt{n(t+r)}` has ε below :math:`\sqrt{C_2}(K/n)^{1/4}`, since t + r ≥ t.
    """
    if k == ZERO:
        return at_epsilon(ZERO, ZERO, loss_range, num_data, delta)
    high = 0.5 * log(loss_range) + 0.25 * (k - log(num_data))
    low = high - 40.0
    rest = log(3 * math.log(num_data / delta) + 8)
    for _ in range(200):
        middle = (low + high) / 2
        t = k - 2 * middle
        slope = middle - (log(loss_range) + t - 0.5 * (log(num_data) + add(t, rest)))
        low, high = (low, middle) if slope > 0 else (middle, high)
    return at_epsilon(high, k, loss_range, num_data, delta)


def epsilon_grid(k: float, loss_range: float, num_data: int, delta: float) -> float:
    r"""The smallest :func:`at_epsilon` over :math:`\varepsilon=2^{j/4}`.

    Each takes :math:`(2/3)/((|j|+1)(|j|+2))` of δ.
    """
    best = 0.5 * log(loss_range) + 0.25 * (k - log(num_data))
    centre = 0 if k == ZERO else round(best * STEPS / TWO)
    found = []
    for j in range(centre - 160, centre + 5):
        share = (2 / 3) / ((abs(j) + 1) * (abs(j) + 2))
        found.append(at_epsilon(j / STEPS * TWO, k, loss_range, num_data, delta * share))
    return min(found)


# -- derived: noise of one standard deviation ------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    r"""Gaussian noise of one standard deviation σ on the fine-tuned weights, and on the biases that training moved.

    Attributes:
        evidence: the evidence.
        biases: the noise on biases, in units of σ.
        moved: layer -> log10 of :math:`D_i`.
        inputs: log10 of :math:`C_1`.
        scale: κ.
        loss_range: :math:`C_2`, in the unit of the loss.
    """

    evidence: Evidence
    biases: BiasNoise
    moved: dict[str, float]
    inputs: float
    scale: float
    loss_range: float

    @classmethod
    def read(cls, evidence: Evidence) -> Noise:
        """The noise on a network that it reaches everywhere, or :class:`~genbound.bounds.base.NotAvailable`."""
        require_noise_everywhere(evidence)
        loss_range, scale = evidence.bounded_range(), evidence.lipschitz()
        inputs, moved = log(evidence.number("input_norm", "max_l2")), norms(evidence, "frobenius", "displacement")
        biases = bias_noise(evidence, dict.fromkeys(moved, 0.0), inputs)
        return cls(evidence, biases, moved, inputs, scale, loss_range)

    def change(self, sigma: Any, failure: float) -> Any:
        """Log10 of Δ(σ), which the output's change exceeds with probability ``failure`` at most.

        Args:
            sigma: log10 of σ, a number or an array.
            failure: η.
        """
        events = len(self.moved) + len(self.biases.scales)
        weights = noise_norms(self.evidence, failure, events)
        biases = self.biases.norms(self.evidence, failure, events)
        noise, shaking = ({name: sigma + norm for name, norm in unit.items()} for unit in (weights, biases))
        tree, upper = tree_of(self.evidence), spectral(self.evidence, "upper")
        return perturb(tree, upper, noise, self.inputs, self.biases.shifts, shaking)[1]

    def divergence(self, sigma: Any, failure: float) -> Any:
        r"""Log10 of :math:`(\sum_iD_i^2/(2\sigma^2)+h(\eta))/(1-\eta)`; arguments as in :meth:`change`."""
        squares = add(*(2 * distance for distance in self.moved.values()), *self.biases.squares())
        return add(squares - TWO - 2 * sigma, log(entropy(failure))) - log(1 - failure)

    def grid_length(self) -> int:
        r"""How many of :math:`\sigma=2^{-j/4}` to look at.

        The last one moves the loss by 1e-4 of its range: a smaller one saves no more than that and costs divergence.
        """
        tiny = -300.0  # the change is linear in noise as small as that
        slope = log(2 * self.scale / self.loss_range) + self.change(tiny, min(FAILURES)) - tiny
        # Inputs that are all zero are moved by no noise: the largest σ is the best.
        return 1 if slope == ZERO else max(0, math.ceil((slope + 4) * STEPS / TWO)) + 1

    def bound(self, j: np.ndarray, failure: float) -> float:
        r"""Log10 of the smallest :math:`2\kappa\Delta+C_2\sqrt{(K+\ln(2\sqrt n\,3(j+1)(j+2)/\delta))/(2n)}`.

        Args:
            j: indices of :math:`\sigma=2^{-j/4}`, at each of which Δ is :meth:`change` and K is :meth:`divergence`.
            failure: η.
        """
        n, sigma = self.evidence.num_data, -j / STEPS * TWO
        union = np.log(2 * math.sqrt(n) * len(FAILURES) * (j + 1.0) * (j + 2.0) / self.evidence.delta)
        root = 0.5 * (add(self.divergence(sigma, failure), np.log10(union)) - log(2 * n))
        return float(np.min(add(log(2 * self.scale) + self.change(sigma, failure), log(self.loss_range) + root)))


def tight(evidence: Evidence) -> float:
    """Log10 of the smallest :meth:`Noise.bound`."""
    noise = Noise.read(evidence)
    j = np.arange(noise.grid_length())
    return min(noise.bound(j, failure) for failure in FAILURES)


# -- from the evidence ----------------------------------------------------------------------------------------------


def _li(evidence: Evidence) -> BoundValue:
    tree, layers, n = tree_of(evidence), depth(evidence), evidence.num_data
    inputs, loss_range = log(evidence.number("input_norm", "max_l2")), evidence.bounded_range()
    moved, width = norms(evidence, "operator_frobenius", "displacement"), widest(evidence)

    def fraction(distances: dict[str, float], width: float, side: str = "upper") -> float:
        """Log10 of K."""
        gains = compose(tree, {name: max(0.0, norm) for name, norm in spectral(evidence, side).items()}).gains
        squares = add(*(2 * distance for distance in distances.values()))
        return float(numerator(add(*gains.values()), squares, inputs, layers, width))

    def kernel() -> float:
        channels = max(*sizes(evidence, "in_channels").values(), *sizes(evidence, "out_channels").values())
        return main_term(fraction(norms(evidence, "frobenius", "displacement"), channels), loss_range, n)

    def theorem(choose_epsilon: Callable[[float, float, int, float], float]) -> float:
        require(outside(evidence, "activations"))
        scaled = fraction(moved, width) + 2 * log(evidence.lipschitz())
        return choose_epsilon(scaled, loss_range, n, evidence.delta)

    forms: dict[str, Form] = {
        "main_term_kernel": kernel,
        "paper": (lambda: theorem(best_epsilon), "minimum over epsilon, which the theorem wants fixed in advance"),
        "epsilon_grid": lambda: theorem(epsilon_grid),
        "tight": lambda: tight(evidence),
    }
    note = unverified(outside(evidence, "activations"))
    return bound_value(lambda side: main_term(fraction(moved, width, side), loss_range, n), forms, note)


LI2021 = Bound(
    "li2021",
    "PAC-Bayes bound with the displacement's Frobenius norms and products of spectral norms, leading term",
    REFERENCE,
    ("structure", "spectral_norm", "layer_norms", "input_norm", "losses"),
    _li,
    has_structure,
    range_power=0.5,
)
