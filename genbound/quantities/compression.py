r"""Noise stability of the layers: what the compression bound of Arora, Ge, Neyshabur & Zhang is made of.

Write :math:`A_i` for the linear part of layer i (a BatchNorm right behind it folded in), :math:`x_i` for its output,
:math:`\phi` for the activation, :math:`J_{ij}` for the Jacobian of the map from :math:`x_i` to :math:`x_j`, and take
every minimum over the measured samples:

.. math::
   \text{layer cushion}\quad & \mu_i = \min_x \frac{\|A_i \phi(x_{i-1})\|}{\|A_i\|_F \|\phi(x_{i-1})\|} \\
   \text{interlayer cushion}\quad & \mu_{ij} = \min_x \frac{\sqrt{n_i}\, \|J_{ij} x_i\|}{\|J_{ij}\|_F \|x_i\|}, \qquad
   \mu_{i\to} = \min\{ h_i^{-1/2}, \min_{j>i} \mu_{ij} \} \\
   \text{contraction}\quad & c = \max_{x, i} \|x_i\| / \|\phi(x_i)\| \\
   \text{smoothness}\quad & 1/\rho_i = \max_{x, \eta, j}
   \frac{\|M_{ij}(x_i + \eta) - M_{ij}(x_i) - J_{ij}\eta\| \, \|x_i\|}{\|\eta\| \, \|x_j\|} \\
   \text{well-distributed Jacobian}\quad & \beta_i = \max_{x, j, p}
   \sqrt{n_i}\, \|[J_{ij}]_{p}\|_F / \|J_{ij}\|_F

:math:`h_i` is the number of channels and :math:`n_i = n_1 n_2` the number of positions of the layer's output (1 for a
vector). :math:`[J_{ij}]_p` are the columns of the Jacobian at position p. All are ratios without unit.
:math:`\|A_i\|_F` is the norm of the unrolled matrix of a convolution; ``layer_cushion_kernel`` has the norm of the
(folded) kernel instead. ``conv_factor`` is :math:`\lceil\kappa/s\rceil`, the geometric mean over the axes of a kernel
that is not square.

Departures from the paper, which speaks of plain networks without biases:

* With biases :math:`J_{ij} x_i \ne x_j`. The true Jacobian-vector product is taken, and smoothness compares with
  :math:`M(x) + J\eta` where the paper has :math:`J(x + \eta)`. Without biases both are the same.
* Layers are taken in the order of execution. Pairs of which the later does not depend on the earlier are skipped. An
  activation belongs to the layer executed last before it; in a residual network it acts on the sum.
* The noise of smoothness is Gaussian, of ``noise`` times the norm of :math:`x_i` (the paper's figures inject noise of
  10 % of the norm), not the noise of the compression itself. ``smoothness`` is over ``num_draws`` such draws.
* ``zeta`` drops that fraction of the samples for each number and each layer separately. So the fraction dropped for all
  of them together may be larger than ``zeta``.

A sample whose Jacobian vanishes constrains nothing and is passed over.

Cost:
    On the ``num_samples`` samples it looks at, about ``L (num_probes / 5 + 2 + 3 num_draws)`` forward passes' worth
    for L layers. Half as many passes have a forward-mode derivative, the others none. Then
    ``2 candidates * num_refined`` partial backward passes on single samples for each layer at most, and mostly a third
    of them (see below). It is quadratic in the depth, hence few samples.
Variance:
    Norms of Jacobians are exact for outputs of at most ``exact`` coordinates. Others are estimated from random signs
    w: :math:`E\|J^\top w\|^2 = \|J\|_F^2`. The extremum over the samples of noisy ratios would be biased. So
    ``num_probes`` probes only choose the samples, targets and positions that may attain it, ``candidates`` of them
    for each layer, and independent probes measure those: 16, then twice as many in each round, ``num_refined`` at most.
    A candidate has enough of them when its relative standard error is ``error`` (5 %), or when it is worse than another
    one, or than what the number is without it, by four standard errors. The standard error of the reported one is
    beside it (``interlayer_cushion_sem``, ``beta_sem``). Relative to the value it is about ``1 / sqrt(2 r m)`` after m
    probes of a Jacobian with r equal singular values: with ``num_refined`` = 64 it may be up to 9 % if r is 1. The
    least of tied candidates is low by about one standard error. :math:`\beta_i`, of a position that was chosen
    beforehand, is rather low too.

References:
    Arora, Ge, Neyshabur & Zhang, Stronger generalization bounds for deep nets via a compression approach, ICML 2018
    (definitions of sections 3 and 4 restated; the text itself was not at hand to compare the wording).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from genbound.estimators.random import normal
from genbound.network.problem import Problem
from genbound.network.weight_uses import ConvolutionUse
from genbound.quantities.base import Context, Measured, Part, stack
from genbound.quantities.catalogue.compression import CompressionOptions
from genbound.quantities.jacobian_norms import (
    Candidate,
    ChosenSamples,
    Norm,
    column_masses,
    ratio,
    refined_norms,
    used_layers,
)
from genbound.structure.output_sites import Site, has_attention
from genbound.structure.site_jacobians import SitePass, sample_norms

MOSTLY = 1 / 3  # of the random signs that candidates may have, what they mostly get


def measure(problem: Problem, context: Context) -> Measured:
    """The cushions of every layer: a pilot chooses the candidates, and draws of their own measure those."""
    options: CompressionOptions = context.options
    samples = ChosenSamples(problem, context)
    parts = context.map("pilot", samples.runs(range(samples.num)), lambda numbers: _pilot(samples, numbers))
    pilot = {key: stack(parts, key) for key in parts[0]}
    outputs = pilot.pop("output")
    dropped = int(options.zeta * samples.num + 1e-9)
    first = samples.site_pass([0])
    candidates = _candidates(first, pilot, dropped, options.candidates)
    limits = {c.key: 1.0 if c.number == "beta" else 1 / math.sqrt(_channels(first, c.layer)) for c in candidates}
    norms = refined_norms(context, samples, candidates, limits)
    rows = {site.name: _row(first, i, pilot, norms, dropped, options) for i, site in enumerate(first.sites)}
    contractions = [row["contraction"] for row in rows.values()]
    known = [row["smoothness"] for row in rows.values() if row["smoothness"] is not None]
    return Measured({
        "layers": rows,
        "contraction": None if None in contractions else max(contractions),
        "smoothness": min(known) if known else None,
        "smoothness_reason": "" if known else "; ".join(sorted({row["smoothness_reason"] for row in rows.values()})),
        "noise": options.noise,
        "num_draws": options.num_draws,
        "max_output_l2": float(outputs.max()),
        "num_samples": samples.num,
        "zeta": options.zeta,
    })  # fmt: skip


class _Extremes:
    """The extreme over the later layers of a ratio, for n samples and L layers, and where it is attained.

    Attributes:
        values: ``[n, L]``.
        targets: the later layer ``[n, L]``; -1 where there is none.
        details: what else is known of it ``[n, L]``.
    """

    def __init__(self, num: int, layers: int, start: float, is_better: Callable, detail: type):
        self._is_better = is_better
        self.values, self.targets = np.full((num, layers), start), np.full((num, layers), -1)
        self.details: np.ndarray = np.zeros((num, layers), dtype=detail)

    def add(self, layer: int, target: int, values: np.ndarray, details: np.ndarray) -> None:
        """The ratios of one pair of layers ``[n]``, with their details ``[n]``."""
        better = self._is_better(values, self.values[:, layer])
        self.values[better, layer], self.targets[better, layer] = values[better], target
        self.details[better, layer] = details[better]


def _pilot(samples: ChosenSamples, numbers: Sequence[int]) -> Part:
    """Everything but the final norms of Jacobians, and for each sample and layer where those may be extreme.

    The arrays are ``[n, L]``, that of ``output`` ``[n]``.
    """
    run = samples.site_pass(numbers)
    layers, stretches = len(run.sites), _stretches(run)
    cushion, beta = _Extremes(run.num, layers, np.inf, np.less, float), _Extremes(run.num, layers, 0.0, np.greater, int)
    for j in range(1, layers):
        for i, mass in column_masses(samples, run, numbers, j):
            norm, positions, stretch = np.sqrt(mass.sum(1)), mass.shape[1], stretches[:, i, j]
            cushion.add(i, j, ratio(np.sqrt(positions) * stretch, norm, np.inf), stretch)
            if positions > 1:
                beta.add(i, j, ratio(np.sqrt(positions * mass.max(1)), norm, 0.0), mass.argmax(1))
    return {
        "layer": _layer_cushions(run),
        "cushion": cushion.values, "target": cushion.targets, "stretch": cushion.details,
        "beta": beta.values, "beta_target": beta.targets, "pixel": beta.details,
        "contraction": _contractions(run),
        "roughness": _roughness(samples, run, numbers),
        "output": sample_norms(run.tape.outputs.detach(), run.num),
    }  # fmt: skip


def _stretches(run: SitePass) -> np.ndarray:
    r""":math:`\|J_{ij} x_i\| / \|x_i\|` of every sample and pair of layers, ``[n, L, L]``; 0 where there is no path."""
    found = np.zeros((run.num, len(run.sites), len(run.sites)))
    for i, output in enumerate(run.outputs):
        for j, tangent in enumerate(run.push(i, output), i + 1):
            if tangent is not None:
                found[:, i, j] = ratio(sample_norms(tangent, run.num), run.norms[i], 0.0)
    return found


def _layer_cushions(run: SitePass) -> np.ndarray:
    """The layer cushion of every sample ``[n, L]``."""
    values = np.full((run.num, len(run.sites)), np.inf)
    for i, site in enumerate(run.sites):
        weight = run.problem.params[site.name]
        norm = math.sqrt(site.operator_square(weight))
        inputs = sample_norms(site.use.inputs, run.num)
        values[:, i] = ratio(sample_norms(site.linear_part(weight), run.num), norm * inputs, np.inf)
    return values


def _contractions(run: SitePass) -> np.ndarray:
    """How much the activation behind each layer shrinks its output, ``[n, L]``; 1 where there is none."""
    values = np.ones((run.num, len(run.sites)))
    for i, site in enumerate(run.sites):
        if site.name in run.contractions:
            values[:, i] = run.contractions[site.name].cpu().numpy()
    return values


def _roughness(samples: ChosenSamples, run: SitePass, numbers: Sequence[int]) -> np.ndarray:
    r""":math:`1 / \rho` of every sample and layer ``[n, L]``, the largest over later layers and draws."""
    options, values = samples.options, np.zeros((run.num, len(run.sites)))
    for i, site in enumerate(run.sites[:-1]):
        for draw in range(options.num_draws):
            noise = samples.draw(normal, ("noise", site.name, draw), numbers, run.outputs[i])
            scale = options.noise * run.norms[i] / sample_norms(noise, run.num)
            flat = noise.reshape(run.num, -1)
            noise = (flat * torch.as_tensor(scale).to(flat).unsqueeze(1)).view_as(noise)
            later = zip(run.moved(i, noise), run.push(i, noise), strict=True)
            for j, (moved, tangent) in enumerate(later, i + 1):
                if tangent is not None:
                    rest = sample_norms((moved - tangent).view_as(run.outputs[j]) - run.outputs[j], run.num)
                    values[:, i] = np.maximum(values[:, i], ratio(rest, options.noise * run.norms[j], 0.0))
    return values


def _candidates(run: SitePass, pilot: Part, dropped: int, count: int) -> list[Candidate]:
    """For each layer and number the ``count`` most extreme samples behind those that are dropped."""
    found = []
    for i in range(pilot["layer"].shape[1]):
        positions = _positions(run, i)
        for number, targets, sign in (("cushion", "target", 1), ("beta", "beta_target", -1)):
            values = pilot[number][:, i]
            for n in np.argsort(sign * values, kind="stable")[dropped:][:count].tolist():
                target = int(pilot[targets][n, i])
                if target >= 0 and np.isfinite(values[n]):
                    position = int(pilot["pixel"][n, i]) if number == "beta" else 0
                    factor = positions if number == "beta" else float(pilot["stretch"][n, i]) * math.sqrt(positions)
                    found.append(Candidate(number, i, target, n, position, factor))
    return found


def _positions(run: SitePass, layer: int) -> int:
    return run.sites[layer].pixels(run.outputs[layer]).shape[1]


def _channels(run: SitePass, layer: int) -> int:
    return run.outputs[layer].numel() // run.num // _positions(run, layer)


def _row(
    run: SitePass, layer: int, pilot: Part, norms: Mapping[Candidate, Norm], dropped: int, options: CompressionOptions
) -> dict[str, Any]:
    """What is reported of a layer; ``run`` is a pass of any sample, and the pilot's arrays are ``[n, L]``."""
    problem, site, pilot = run.problem, run.sites[layer], {key: values[:, layer] for key, values in pilot.items()}
    positions, channels = _positions(run, layer), _channels(run, layer)
    layer_cushion = _extreme(pilot["layer"], dropped)
    operator = math.sqrt(site.operator_square(problem.params[site.name]))
    own = {candidate: candidate.estimate(norm) for candidate, norm in norms.items() if candidate.layer == layer}
    cushion, cushion_sem, target = _interlayer_cushion(channels, own)
    beta, beta_sem = max(
        [(1.0, 0.0), *(found for candidate, found in own.items() if candidate.number == "beta")],
        key=lambda found: found[0],
    )
    smoothness, reason = _smoothness(pilot["roughness"], dropped, layer == len(run.sites) - 1, problem, options)
    return {
        "layer_cushion": _finite(layer_cushion),
        "layer_cushion_kernel": _finite(layer_cushion * operator / _kernel_norm(problem, site)),
        "interlayer_cushion": float(cushion),
        "interlayer_cushion_sem": float(cushion_sem),
        "interlayer_target": None if target is None else run.sites[target].name,
        "conv_factor": _conv_factor(site),
        "beta": float(beta),
        "beta_sem": float(beta_sem),
        "contraction": _finite(_extreme(pilot["contraction"], dropped, largest=True)),
        "smoothness": smoothness,
        "smoothness_reason": reason,
        "channels": channels,
        "positions": positions,
    }


def _interlayer_cushion(
    channels: int, found: Mapping[Candidate, tuple[float, float]]
) -> tuple[float, float, int | None]:
    """The least over the candidates, its standard error, and the later layer that attains it, if one does."""
    cushion, sem, target = 1 / math.sqrt(channels), 0.0, None
    for candidate, (value, own_sem) in found.items():
        if candidate.number == "cushion" and value < cushion:
            cushion, sem, target = value, own_sem, candidate.target
    return cushion, sem, target


def _extreme(values: np.ndarray, dropped: int, largest: bool = False) -> float:
    """The extreme value after the worst samples are dropped."""
    ordered = np.sort(values)
    return float(ordered[len(ordered) - 1 - dropped] if largest else ordered[dropped])


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _smoothness(
    roughness: np.ndarray, dropped: int, last: bool, problem: Problem, options: CompressionOptions
) -> tuple[float | None, str]:
    """The smoothness of a layer, or ``None`` and the reason why it has none."""
    if last:
        return None, "no layer follows"
    if options.num_draws == 0:
        return None, "no noise was drawn (num_draws 0)"
    worst = _extreme(roughness, dropped, largest=True)
    if worst <= 100 * torch.finfo(problem.dtype).eps / options.noise:
        return None, f"the layers that follow are affine at noise of {options.noise:g} times the output's norm"
    return 1 / worst, ""


def _kernel_norm(problem: Problem, site: Site) -> float:
    """Frobenius norm of the kernel with the folded scale of its output channels."""
    weight = problem.params[site.name].double()
    if site.scale is not None:
        channels = site.scale.double()[0].flatten(1)[:, 0] if site.scale.dim() > 2 else site.scale.double()[0]
        if not site.use.transposed:  # [out, ...]
            weight = weight * channels.view(-1, *[1] * (weight.dim() - 1))
        elif isinstance(site.use, ConvolutionUse):  # [in, out / groups, ...]
            scale = channels.view(site.use.groups, 1, -1, *[1] * (weight.dim() - 2))
            weight = weight.unflatten(0, (site.use.groups, -1)) * scale
        else:  # [in, out]
            weight = weight * channels
    return float(weight.norm())


def _conv_factor(site: Site) -> float:
    if not isinstance(site.use, ConvolutionUse):
        return 1.0
    sides = site.use.shape[2:]
    factors = [math.ceil(k / s) for k, s in zip(sides, site.use.stride, strict=True)]
    return math.prod(factors) ** (1 / len(factors))


def applies_to(problem: Problem) -> str | None:
    """Every layer must be one linear map of the samples, used once, outside attention."""
    for layer in problem.layers:
        if layer.kind == "unused":
            continue
        if layer.kind not in ("linear", "convolution") or not layer.by_batch or not layer.samples_first:
            return f"cushions need layers that are linear maps of each sample; {layer.name} is used otherwise"
        if layer.num_uses != 1:
            return f"cushions need layers that are used once; {layer.name} is used {layer.num_uses} times"
    names = used_layers(problem)
    if not names:
        return "no layer is used"
    if has_attention(problem.tape([0], names)):
        return "the compression bound is for networks of layers and activations, not for softmax attention"
    try:
        run = SitePass(problem, names, [0])
        run.push(0, run.outputs[0])
    except KeyError as error:
        return f"the output of layer {error.args[0]} is not that of a convolution or matrix product that can be watched"
    except NotImplementedError as error:
        return f"an operation has no forward-mode derivative: {str(error).splitlines()[0]}"
    return None


def forecast(problem: Problem, options: CompressionOptions) -> float:
    """In gradients over the measured samples, with factors measured on a residual network of 20 layers."""
    return _gradients(problem, options, 1.0)


def usual(problem: Problem, options: CompressionOptions) -> float:
    """Likewise where candidates are decided as early as they mostly are."""
    return _gradients(problem, options, MOSTLY)


def _gradients(problem: Problem, options: CompressionOptions, part: float) -> float:
    """With this part of the signs that candidates may have."""
    count, num = len(problem.layers), min(options.num_samples, problem.num_samples)
    refined = part * options.candidates * 2 * options.num_refined / max(1, num)
    share = num / max(1, problem.num_samples)
    return share * count * (options.num_probes / 5 + 1.2 + options.num_draws + refined / 5)
