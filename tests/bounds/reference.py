"""The bounds of the comparison once more, from their formulas.

With dense unrolled matrices, autograd for gains, and no logarithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

DELTA, GRID = 0.05, range(900)
sqrt, ln = math.sqrt, math.log


@dataclass
class Layer:
    """One layer of both networks, batch norm folded in.

    Attributes:
        matrix, init: unrolled operators ``[outputs, inputs]``.
        kernel, kernel_init: stored weights ``[out, in / groups, …]``.
        bias, bias_init: one number for every output coordinate.
        inputs, sides, groups: input channels, sides of the input map (none: dense) and groups.
    """

    matrix: np.ndarray
    init: np.ndarray
    kernel: np.ndarray
    kernel_init: np.ndarray
    bias: np.ndarray
    bias_init: np.ndarray
    inputs: int
    sides: tuple[int, ...] = ()
    groups: int = 1

    @property
    def outputs(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel.shape[2:])

    def row_sum(self, matrix, bias) -> float:
        return float((np.abs(matrix).sum(1) + np.abs(bias)).max())

    def noise(self, events: int, eta: float, dense: bool) -> float:
        if dense and self.kernel.ndim == 2:
            return sqrt(self.inputs) + sqrt(self.outputs) + sqrt(2 * ln(events / eta))
        frequencies = self.groups * math.prod(n + k - 1 for n, k in zip(self.sides, self.kernel.shape[2:], strict=True))
        root = sqrt(self.inputs / self.groups) + sqrt(self.outputs / self.groups)
        return sqrt(self.taps) * (sqrt(2) * root + sqrt(2 * ln(frequencies * events / eta)))


@dataclass
class Network:
    """Layers and how they are composed, written out by hand.

    Attributes:
        layers: the layers.
        constant: norms -> Lipschitz constant, a polynomial (torch).
        perturb: ``(norms, noise, B, biases, bias noise) -> Δ``.
        before: ``(norms, B, biases) -> [A]`` at every layer's input.
        doubled: ``constant`` with the factor 2 of every layer and sum of Gouk et al.
        behind: norms -> the same from every layer's output to the network's.
    """

    layers: list[Layer]
    constant: object
    perturb: object
    before: object
    doubled: object
    behind: object
    plain: bool
    biased: bool

    def gains(self, norms) -> np.ndarray:
        leaf = torch.tensor(np.asarray(norms, dtype=float), requires_grad=True)
        return torch.autograd.grad(self.constant(leaf), leaf)[0].numpy()


def frobenius(*matrices) -> np.ndarray:
    return np.array([sqrt((m**2).sum()) for m in matrices])


def spectral(*matrices) -> np.ndarray:
    return np.array([np.linalg.norm(m, 2) for m in matrices])


def entropy(p: float) -> float:
    return -p * ln(p) - (1 - p) * ln(1 - p)


def reference(net: Network, x: np.ndarray, margin: float, n: int, loss_range: float, kappa: float, hidden) -> dict:
    """Bound -> form -> value; a form that must be null is absent.

    ``hidden`` has the pretrained network's inputs of every layer, ``[samples, width]``.
    """
    layers, d, clean = net.layers, len(net.layers), net.plain and not net.biased
    moved = [a.matrix - a.init for a in layers]
    s, s0 = spectral(*(a.matrix for a in layers)), spectral(*(a.init for a in layers))
    t, beta = net.gains(s), spectral(*moved)
    v, w = frobenius(*moved), frobenius(*(a.matrix for a in layers))
    kernels = frobenius(*(a.kernel - a.kernel_init for a in layers))
    flat = x.reshape(len(x), -1)
    radius, rms = np.linalg.norm(flat, axis=1).max(), sqrt((flat**2).sum() / len(x))
    width, channels = (
        max(max(pair) for pair in pairs)
        for pairs in ([a.matrix.shape for a in layers], [(a.inputs, a.outputs) for a in layers])
    )
    tail = 3 * sqrt(ln(2 / DELTA) / (2 * n))
    found = {}

    # noise on weights and on the biases that moved
    b, b0, bv = (frobenius(*parts) for parts in ([a.bias for a in layers], [a.bias_init for a in layers],
                 [a.bias - a.bias_init for a in layers]))  # fmt: skip
    positions = np.array([len(a.bias) / a.outputs for a in layers])
    events = d + int((bv > 0).sum())
    inputs = np.array(net.before(s0, radius, b0)) / np.sqrt(positions)

    def noises(eta, dense, scale):
        weights = scale * np.array([a.noise(events, eta, dense) for a in layers])
        vectors = np.array([sqrt(a.outputs) + sqrt(2 * ln(events / eta)) for a in layers])
        return weights, (bv > 0) * scale * inputs * np.sqrt(positions) * vectors

    def price(scale, sigma, eta, j):
        kl = ((kernels / scale) ** 2).sum() + (bv**2 / positions / (scale * inputs) ** 2).sum()
        kl = (kl / (2 * sigma**2) + entropy(eta)) / (1 - eta)
        return sqrt((kl + ln(2 * sqrt(n) * 3 * (j + 1) * (j + 2) / DELTA)) / (2 * n))

    def search(scale, dense, value):
        least = math.inf
        for eta in (0.5, 0.1, 0.01):
            weights, shifts = noises(eta, dense, scale)
            for j in GRID:
                sigma = 2 ** (-j / 4)
                change = net.perturb(s, sigma * weights, radius, b, sigma * shifts)
                least = min(least, value(change, price(scale, sigma, eta, j)))
        return least

    def stable(change, cost):
        return cost if change <= margin / (2 * sqrt(2)) else math.inf

    # Neyshabur et al., Pitas et al.
    def main(f, h):
        return sqrt(radius**2 * d**2 * h * ln(d * h) * ((f * t) ** 2).sum() / (margin**2 * n))

    def divergence(f):
        return 42**2 * d**2 * radius**2 * width * ln(4 * d * width) * ((f * t) ** 2).sum() / (2 * margin**2)

    def four(kl):
        return 4 * sqrt((kl + ln(6 * n * d * n ** (1 / (2 * d)) / DELTA)) / (n - 1))

    found["neyshabur2018"] = {
        "main_term": main(v, width), "main_term_kernel": main(kernels, channels), "main_term_origin": main(w, width),
        "init_rigorous": search(s0, True, stable),
    }  # fmt: skip
    if clean:
        found["neyshabur2018"] |= {"paper": four(divergence(w)), "paper_at_init": four(divergence(v))}
    elif not net.biased:
        found["neyshabur2018"] |= {"residual": four(divergence(w))}
    spread = 42 * sum(
        sqrt(a.taps) * (sqrt(a.inputs) + sqrt(a.outputs) + sqrt(2 * ln(4 * math.prod(a.sides) * d))) for a in layers
    )
    square = (radius * spread) ** 2 * ((kernels * t) ** 2).sum()
    found["pitas2017"] = {
        "main_term": sqrt(square / n) / margin, "consistent": sqrt((square + ln(n / DELTA)) / n) / margin,
        "rigorous": search(s0, False, stable),
    } | ({"explicit": four(square / (2 * margin**2))} if clean else {})  # fmt: skip

    # Bartlett et al.
    rows = np.array([np.linalg.norm(m, axis=1).sum() for m in moved])
    size = ((rows * t) ** (2 / 3)).sum() ** 1.5 * sqrt(n) * rms / margin
    found["bartlett2017"] = {"main_term": size / n}
    if not net.biased:
        inner = 2 * size * sqrt(ln(2 * width**2))
        found["bartlett2017"] |= {"dudley": 8 / n**1.5 + 36 * ln(n) * inner / n + tail}
        if 3 * inner < n:
            found["bartlett2017"] |= {"optimal_alpha": 24 * inner / n * (1 + ln(n / (3 * inner))) + tail}

    # Long & Sedghi
    count, total = sum(a.kernel.size for a in layers), beta.sum()
    exponent = max(0.0, s0.max() - 1) * d + total
    b_l, confidence = radius * kappa * total * math.exp(exponent), ln(1 / DELTA)
    forms = {
        "exponential": loss_range * (b_l * sqrt(count / n) + sqrt(confidence / n)),
        "fast": loss_range * (count * (ln(b_l) + ln(n)) + confidence) / n,
    }
    if radius * kappa * total * math.exp(total) >= 5:
        forms["square_root"] = loss_range * sqrt((count * ln(b_l) + confidence) / n)

    def cover(constant):
        entropies = [(j, loss_range * 2 ** (-j / 4)) for j in range(200)]
        return min(
            2 * e + loss_range * sqrt((count * ln(1 + 2 * constant / e) + ln((j + 1) * (j + 2) / DELTA)) / (2 * n))
            for j, e in entropies
        )

    forms |= {"minimum": min(forms.values())}
    forms |= {"main_term": loss_range * radius * total * math.exp(exponent) * sqrt(count / n)}
    if clean:
        forms |= {"chaining": 32.47 * b_l * sqrt(count / n) + loss_range * sqrt(confidence / (2 * n))}
        forms |= {"cover": cover(b_l)}
    if not net.biased:
        forms |= {"cover_per_layer": cover(radius * kappa * (beta * net.gains(s0 + beta)).sum())}
    found["long2020"] = forms

    # Gouk et al.
    biases = [(a.bias - a.bias_init, a.bias, a.bias_init) for a in layers]
    matrices = [(m, a.matrix, a.init) for m, a in zip(moved, layers, strict=True)]
    distance, tuned, start = (
        np.array([a.row_sum(m[i], c[i]) for a, m, c in zip(layers, matrices, biases, strict=True)]) for i in range(3)
    )
    coordinates, peak = flat.shape[1], np.abs(x).max()
    if net.biased:
        coordinates, peak = coordinates + 1, max(peak, 1.0)
        tuned, start = np.maximum(tuned, 1), np.maximum(start, 1)

    def first(before, after):
        total = 0.0
        for i in range(d):  # linear in each norm: the coefficient is the value at 1 without that at 0
            norms = [torch.tensor([*before[:i], value, *after[i + 1 :]]) for value in (1.0, 0.0)]
            total += distance[i] * float(net.doubled(norms[0]) - net.doubled(norms[1]))
        return 4 * sqrt(ln(2 * coordinates)) * layers[-1].outputs * peak * total / sqrt(n)

    largest = np.maximum(tuned, start)
    extra = int(net.biased)
    sizes = np.array([max(extra, sqrt((h**2).mean(0).max())) * sqrt(ln(2 * (h.shape[1] + extra))) for h in hidden])
    data = 4 * layers[-1].outputs * (distance * sizes * net.behind(tuned)).sum() / sqrt(n)
    found["gouk2021"] = {
        "data_dependent": kappa * data + loss_range * tail,
        "main_term": first(largest, largest),
        "constant_2": kappa * first(largest, largest) / 2 + loss_range * tail,
        "asymmetric": kappa * first(start, tuned) / 2 + loss_range * tail,
    }
    if net.plain:
        found["gouk2021"] |= {"paper": kappa * first(largest, largest) + loss_range * tail}
    if clean:
        norms, columns = np.maximum(w, frobenius(*(a.init for a in layers))), [a.matrix.shape[1] for a in layers]
        product = np.prod(2 * norms * np.sqrt(columns))
        terms = sum(v[j] / (norms[j] * sqrt(np.prod(np.array(columns[: j + 1], dtype=float)))) for j in range(d))
        value = 2 * sqrt(2) * layers[-1].outputs * radius / sqrt(n) * product * terms
        found["gouk2021"] |= {"frobenius": kappa * value + loss_range * tail}

    # Li & Zhang
    products = net.gains(np.maximum(1, s)).sum()

    def numerator(f, h, scale=1.0):
        return 36 * (radius * scale) ** 2 * h * ln(4 * d * h * max(1, radius)) * products**2 * (f**2).sum()

    found["li2021"] = {
        "main_term": 2 * sqrt(loss_range) * (numerator(v, width) / n) ** 0.25,
        "main_term_kernel": 2 * sqrt(loss_range) * (numerator(kernels, channels) / n) ** 0.25,
        "tight": search(np.ones(d), True, lambda change, cost: 2 * kappa * change + loss_range * cost),
    }
    if clean:
        epsilon, k = np.exp(np.linspace(-5, 25, 200001)), numerator(v, width, kappa)
        values = epsilon + loss_range * np.sqrt((k / epsilon**2 + 3 * ln(n / DELTA) + 8) / n)
        found["li2021"] |= {"paper": values.min()}
    found["distance_spectral"] = {"main_term": total, "sum_of_squares": (beta**2).sum()}
    found["distance_two_one"] = {"main_term": rows.sum(), "sum_of_squares": (rows**2).sum()}
    return found
