r"""PAC-Bayes bound for fine-tuning under distance constraints (Li & Zhang, NeurIPS 2021).

For a 1-Lipschitz loss in :math:`[0, C_2]`, inputs of norm at most :math:`C_1`, largest width H, L layers,
:math:`B_i\ge\max(1,\|W_i\|_2)` and :math:`D_i\ge\|v_i\|_F`, with probability :math:`1-2\delta` and for a fixed ε

.. math::
   L \le \hat L + \varepsilon + C_2\sqrt{\frac{\tfrac{36}{\varepsilon^2}C_1^2H\ln(4LHC_1)\big(\sum_i\prod_{j\ne i}B_j\big)^2\sum_iD_i^2
   + 3\ln(n/\delta) + 8}{n}}.

The statement is from memory and reproduced by a derivation (docs/bounds): the fraction is the divergence for Gaussian noise that moves the
output by at most ε/2. The factor :math:`C_1` inside the logarithm needs :math:`C_1\ge1`. A loss with Lipschitz constant κ multiplies
:math:`C_1` outside the logarithm.

``value`` is ``main_term``: the minimum over ε where the first term under the root is all there is, :math:`2\sqrt{C_2}(K/n)^{1/4}` with
K the fraction times ε² (κ = 1). It falls like :math:`n^{-1/4}`.

Forms:
    main_term: as above, matrices unrolled (the theorem is for dense layers).
    main_term_kernel: with the kernels' Frobenius norms and the largest number of channels for H.
    paper: the minimum of the right side over ε. ε then depends on the data, which the theorem does not allow.
    epsilon_grid: the same with :math:`\varepsilon = 2^{j/4}` and δ divided among the grid's points.
    tight: derived: Gaussian noise of one standard deviation σ from a grid on all layers,
        :math:`2\kappa\Delta(\sigma) + C_2\sqrt{((\sum_iD_i^2/(2\sigma^2) + h(\eta))/(1-\eta) + \ln(2\sqrt n\,3(j+1)(j+2)/\delta))/(2n)}`, where Δ is
        the change of the output (:func:`genbound.bounds.composition.perturb`) that the noise exceeds with probability η. It needs no radii:
        it holds at the observed norms, because only σ is chosen.

All are measures: :math:`C_1` is the largest norm seen, and the first forms take norms from the data for radii.
"""

from __future__ import annotations

import math

import numpy as np

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.composition import compose, perturb
from genbound.bounds.forms import bound_value
from genbound.bounds.gaussian_noise import FAILURES, STEPS, bias_noise, entropy, noise_norms, require_noise_everywhere
from genbound.bounds.logs import ZERO, add, log
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
    r"""The smallest :func:`at_epsilon` over :math:`\varepsilon=2^{j/4}` with weights :math:`(2/3)/((|j|+1)(|j|+2))` for δ."""
    best = 0.5 * log(loss_range) + 0.25 * (k - log(num_data))
    centre = 0 if k == ZERO else round(best * STEPS / math.log10(2))
    found = []
    for j in range(centre - 160, centre + 5):
        share = (2 / 3) / ((abs(j) + 1) * (abs(j) + 2))
        found.append(at_epsilon(j / STEPS * math.log10(2), k, loss_range, num_data, delta * share))
    return min(found)


def _tight(evidence: Evidence) -> float:
    require_noise_everywhere(evidence)
    tree, upper, n = tree_of(evidence), spectral(evidence, "upper"), evidence.num_data
    loss_range, lipschitz = evidence.bounded_range(), evidence.lipschitz()
    radius, moved = log(evidence.number("input_norm", "max_l2")), norms(evidence, "frobenius", "displacement")
    biases = bias_noise(evidence, dict.fromkeys(moved, 0.0), radius)
    events = len(moved) + len(biases.scales)
    squares = add(*(2 * d for d in moved.values()), *biases.squares())
    # Noise so small that the loss moves by less than 1e-4 of its range: a smaller one only costs divergence.
    noisiest, shaken = noise_norms(evidence, min(FAILURES), events), biases.norms(evidence, min(FAILURES), events)
    tiny = -300.0  # the change is linear in noise as small as that
    small = [{name: norm + tiny for name, norm in found.items()} for found in (noisiest, shaken)]
    slope = log(2 * lipschitz / loss_range) + perturb(tree, upper, small[0], radius, biases.shifts, small[1])[1] - tiny
    j = np.arange(max(0, math.ceil((slope + 4) * STEPS / math.log10(2))) + 1)
    sigma = -j / STEPS * math.log10(2)
    best = math.inf
    for failure in FAILURES:
        tau, shaken = noise_norms(evidence, failure, events), biases.norms(evidence, failure, events)
        noise, shaking = ({name: sigma + norm for name, norm in found.items()} for found in (tau, shaken))
        change = perturb(tree, upper, noise, radius, biases.shifts, shaking)[1]
        divergence = add(squares - math.log10(2) - 2 * sigma, log(entropy(failure))) - log(1 - failure)
        union = np.log(2 * math.sqrt(n) * len(FAILURES) * (j + 1.0) * (j + 2.0) / evidence.delta)
        root = 0.5 * (add(divergence, np.log10(union)) - log(2 * n))
        best = min(best, float(np.min(add(log(2 * lipschitz) + change, log(loss_range) + root))))
    return best


def _li(evidence: Evidence) -> BoundValue:
    tree, layers, n = tree_of(evidence), depth(evidence), evidence.num_data
    radius, loss_range = log(evidence.number("input_norm", "max_l2")), evidence.bounded_range()
    moved, width = norms(evidence, "operator_frobenius", "displacement"), widest(evidence)

    def k(side: str, frobenius: dict[str, float], h: float) -> float:
        radii = {name: max(0.0, s) for name, s in spectral(evidence, side).items()}
        products = add(*compose(tree, radii).gains.values())
        return float(numerator(products, add(*(2 * d for d in frobenius.values())), radius, layers, h))

    def kernel() -> float:
        channels = max(*sizes(evidence, "in_channels").values(), *sizes(evidence, "out_channels").values())
        return main_term(k("upper", norms(evidence, "frobenius", "displacement"), channels), loss_range, n)

    def full(function) -> float:
        require(outside(evidence, "activations"))
        scaled = k("upper", moved, width) + 2 * log(evidence.lipschitz())
        return function(scaled, loss_range, n, evidence.delta)

    forms = {
        "main_term_kernel": kernel,
        "paper": (lambda: full(best_epsilon), "minimum over epsilon, which the theorem wants fixed in advance"),
        "epsilon_grid": lambda: full(epsilon_grid),
        "tight": lambda: _tight(evidence),
    }
    note = unverified(outside(evidence, "activations"))
    return bound_value(lambda side: main_term(k(side, moved, width), loss_range, n), forms, note)


LI2021 = Bound(
    "li2021",
    "PAC-Bayes bound with the displacement's Frobenius norms and products of spectral norms, leading term",
    REFERENCE,
    ("structure", "spectral_norm", "layer_norms", "input_norm", "losses"),
    _li,
    has_structure,
)
