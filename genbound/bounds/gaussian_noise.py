r"""Gaussian noise on weights: its norm as an operator, and the PAC-Bayes bound for a network that it hardly moves.

Noise norms, for unit standard deviation and failure probability η over all d layers:

* dense layer with a inputs and b outputs: :math:`\tau = \sqrt a + \sqrt b + \sqrt{2\ln(d/\eta)}` (Gordon's inequality
  for the mean and the concentration of a 1-Lipschitz function of Gaussians, as collected by Davidson and Szarek);
* convolution, noise on the kernel: :math:`\tau = \sqrt t(\sqrt2(\sqrt a+\sqrt b) + \sqrt{2\ln(Md/\eta)})` with t taps
  (k² of a square kernel of side k), channels a and b, and M the number of positions of the zero-padded map: along each
  axis n + r(k - 1) of a map of side n and dilation r (of a transposed convolution the output's map counts). Derivation:
  the zero-padded or strided operator is a submatrix of the circular one on the padded map, which the Fourier transform
  makes block diagonal with blocks :math:`F_\omega = \sum_s e^{i\omega s}K_s`. Real and imaginary part of
  :math:`F_\omega` are matrices of independent Gaussians with variances :math:`c_\omega^2` and :math:`t-c_\omega^2`, so
  :math:`E\|F_\omega\| \le (|c_\omega| + \sqrt{t-c_\omega^2})(\sqrt a+\sqrt b) \le \sqrt{2t}(\sqrt a+\sqrt b)`;
  :math:`\|F_\omega\|` is :math:`\sqrt t`-Lipschitz in the kernel (Cauchy-Schwarz over the taps); a union over the M
  frequencies and d layers gives the last term. With g groups each block has a/g and b/g channels and there are g times
  as many.

A bias that training moved has noise as well, a Gaussian vector of norm at most :math:`\sqrt b + \sqrt{2\ln(d/\eta)}` at
every position; d then counts layers and such biases. Batch norm is folded into weights and biases of both networks:
prior and posterior live on the folded ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from genbound.bounds.base import Evidence, NotAvailable
from genbound.bounds.composition import layer_names, perturb, sizes_before
from genbound.bounds.logs import TWO, ZERO, add, log
from genbound.bounds.reading import learned_steps, sizes, spectral, tree_of

FAILURES = (0.5, 0.1, 0.01)  # values of η that are searched
STEPS = 4  # grid of standard deviations: 2^(-j/4)


def dense_norm(inputs: float, outputs: float, layers: int, failure: float) -> float:
    """Operator norm that unit Gaussian noise on a dense layer exceeds with probability at most ``failure / layers``."""
    return math.sqrt(inputs) + math.sqrt(outputs) + math.sqrt(2 * math.log(layers / failure))


def convolution_norm(
    taps: float, inputs: float, outputs: float, frequencies: float, layers: int, failure: float, groups: float = 1
) -> float:
    """The same for standard Gaussian noise on a convolution's kernel.

    Args:
        taps: of the kernel, along all axes.
        inputs: input channels.
        outputs: output channels.
        frequencies: of the padded map, as many as it has positions.
        layers: number of layers d.
        failure: η.
        groups: of the convolution.
    """
    mean = math.sqrt(2) * (math.sqrt(inputs / groups) + math.sqrt(outputs / groups))
    return math.sqrt(taps) * (mean + math.sqrt(2 * math.log(frequencies * groups * layers / failure)))


def noise_norms(evidence: Evidence, failure: float, events: int, dense: bool = True) -> dict[str, float]:
    """Layer -> log10 of the norm of unit noise on its kernel.

    Args:
        evidence: the evidence.
        failure: η.
        events: number d of layers and biases with noise, among which η is divided.
        dense: use the sharper norm for dense layers; else they count as 1x1 convolutions of a 1x1 map.
    """
    names = layer_names(tree_of(evidence))
    found = {}
    for name in names:

        def size(key: str, name: str = name) -> float:
            return evidence.number("layer_norms", "layers", name, key)

        inputs, outputs = size("in_channels"), size("out_channels")
        taps, frequencies, groups = size("kernel_taps"), size("frequencies"), size("groups")
        if dense and taps == frequencies == groups == 1:
            tau = dense_norm(inputs, outputs, events, failure)
        else:
            tau = convolution_norm(taps, inputs, outputs, frequencies, events, failure, groups)
        found[name] = log(tau)
    return found


def entropy(probability: float) -> float:
    """Binary entropy in nats."""
    p = probability
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def grid_term(half_square: float, failure: float, j: int, num_data: int, delta: float) -> float:
    r"""Log10 of :math:`\sqrt{((K+h(\eta))/(1-\eta) + \ln(2\sqrt n\,3(j+1)(j+2)/\delta))/(2n)}`.

    The PAC-Bayes bound (Maurer's form, relaxed by Pinsker) for a Gaussian posterior with divergence K that is
    restricted to a set of mass :math:`1-\eta`: the restriction costs :math:`(K + h)/(1-\eta)` with the binary entropy
    h. The standard deviation is the j-th of
    a grid and η one of three values: :math:`\sum_j 1/((j+1)(j+2)) = 1` pays for the choice.

    Args:
        half_square: log10 of K.
        failure: η.
        j: index in the grid.
        num_data: n.
        delta: failure probability.
    """
    union = math.log(2 * math.sqrt(num_data) * len(FAILURES) * (j + 1) * (j + 2) / delta)
    divergence = add(half_square, log(entropy(failure))) - log(1 - failure)
    return 0.5 * (add(divergence, log(union)) - log(2 * num_data))


def prior_scales(evidence: Evidence) -> dict[str, float]:
    """Layer -> log10 of its pretrained operator norm; 0 (a scale of 1) where the pretrained layer is zero.

    The scale is a choice that knows only the pretrained weights. It makes the noise covariant under rescalings of
    layers that leave the network's function alone.
    """
    return {name: 0.0 if s == ZERO else s for name, s in spectral(evidence, "upper", "init").items()}


def require_noise_everywhere(evidence: Evidence) -> None:
    """Refuse what noise on weights and biases does not reach: steps that shift, and learned steps between layers."""
    if evidence.quantities["structure"].get("zero_preserving") is False:
        raise NotAvailable("a step of the network does not keep zero")
    learned = learned_steps(evidence)
    if learned:
        raise NotAvailable(f"no noise is on {', '.join(learned)}")


@dataclass(frozen=True)
class BiasNoise:
    """Noise on the biases that training moved, beside that on the weights; all layer -> log10.

    Attributes:
        shifts: norm of what the fine-tuned bias adds to the whole output.
        scales: standard deviation on a moved bias, relative to the grid's σ.
        distances: norm of a moved bias's displacement.
        positions: root of the number of positions that a moved bias acts on.
    """

    shifts: dict[str, float]
    scales: dict[str, float]
    distances: dict[str, float]
    positions: dict[str, float]

    def norms(self, evidence: Evidence, failure: float, events: int) -> dict[str, float]:
        """Layer -> log10 of the norm, on its whole output, of noise on its bias with σ = 1.

        Args:
            evidence: the evidence.
            failure: η: a norm is exceeded with probability ``failure / events``.
            events: number of layers and biases with noise.
        """
        channels = sizes(evidence, "out_channels")
        return {
            name: scale
            + self.positions[name]
            + log(math.sqrt(channels[name]) + math.sqrt(2 * math.log(events / failure)))
            for name, scale in self.scales.items()
        }

    def squares(self) -> list[float]:
        """Squared distances in units of the standard deviation."""
        return [2 * (self.distances[name] - scale) for name, scale in self.scales.items()]


def bias_noise(evidence: Evidence, weight_scales: dict[str, float], start: float) -> BiasNoise:
    r"""The scale of the noise on a moved bias is that of the weights times :math:`A^0/\sqrt{positions}`.

    :math:`A^0` bounds the input of the layer in the *pretrained* network: a choice that knows only the pretrained
    weights and the inputs' largest norm. The noise of a bias then moves the output by no more than that of its layer's
    weights, and rescaling layers changes nothing. A bias that training left alone has no noise.
    """
    names, positions = layer_names(tree_of(evidence)), sizes(evidence, "output_positions")
    shifts, initial, moved = (
        {name: log(evidence.number("layer_norms", "layers", name, key)) for name in names}
        for key in ("bias_norm", "init_bias_norm", "displacement_bias_vector_norm")
    )
    before = sizes_before(tree_of(evidence), spectral(evidence, "upper", "init"), start, initial)
    roots = {name: 0.5 * log(positions[name]) for name in names}
    scales = {
        name: weight_scales[name] + (0.0 if before[name] == ZERO else before[name] - roots[name])
        for name in names
        if moved[name] > ZERO
    }
    return BiasNoise(shifts, scales, moved, roots)


def margin_stable_bound(evidence: Evidence, tolerance: float, frobenius: dict[str, float], dense: bool = True) -> float:
    r"""Log10 of a bound on the error beyond the margin loss, with a prior at the pretrained weights.

    Noise of standard deviation :math:`\sigma s_i^0` on layer i moves the output by at most Δ
    (:func:`~genbound.bounds.composition.perturb` with :math:`u_i = \sigma s_i^0\tau_i`) with probability
    :math:`1-\eta`. If Δ is below the tolerance, margins move by less than half of γ, and the bound is :func:`grid_term`
    with :math:`K = \sum_i\|v_i\|^2/(2\sigma^2 (s_i^0)^2)`. Δ grows and K falls with σ, so that for each η the largest σ
    of the grid :math:`2^{-j/4}` below the tolerance is the best.

    Args:
        evidence: the evidence.
        tolerance: log10 of the largest change of the output, in Euclidean norm.
        frobenius: layer -> log10 of the displacement's Frobenius norm.
        dense: see :func:`noise_norms`.
    """
    require_noise_everywhere(evidence)
    tree, upper, scales = tree_of(evidence), spectral(evidence, "upper"), prior_scales(evidence)
    start = log(evidence.number("input_norm", "max_l2"))
    biases = bias_noise(evidence, scales, start)
    events = len(upper) + len(biases.scales)
    squares = add(*(2 * (frobenius[name] - scales[name]) for name in frobenius), *biases.squares())

    def at(failure: float) -> float:
        """The bound for one η."""
        tau, shaken = noise_norms(evidence, failure, events, dense), biases.norms(evidence, failure, events)

        def change(j: int) -> float:
            sigma = -j / STEPS * TWO
            noise = {name: sigma + scales[name] + tau[name] for name in tau}
            moved = {name: sigma + norm for name, norm in shaken.items()}
            return float(perturb(tree, upper, noise, start, biases.shifts, moved)[1])

        j = _first(lambda index: change(index) <= tolerance)
        half_square = squares - TWO + 2 * j / STEPS * TWO
        return grid_term(half_square, failure, j, evidence.num_data, evidence.delta)

    return min(at(failure) for failure in FAILURES)


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest j ≥ 0 for which a monotone condition holds."""
    high = 1
    while not holds(high - 1):
        high *= 2
        if high > 2**40:
            raise NotAvailable("no noise is small enough")
    low = high // 2 - 1 if high > 1 else -1
    high -= 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
