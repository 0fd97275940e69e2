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
vector), :math:`[J_{ij}]_p` the columns of the Jacobian at position p. All are ratios without unit. :math:`\|A_i\|_F` is
the norm of the unrolled matrix of a convolution; ``layer_cushion_kernel`` has the norm of the (folded) kernel instead.
``conv_factor`` is :math:`\lceil\kappa/s\rceil`, the geometric mean over the axes of a kernel that is not square.

Departures from the paper, which speaks of plain networks without biases:

* With biases :math:`J_{ij} x_i \ne x_j`: the true Jacobian-vector product is taken, and smoothness compares
  with :math:`M(x) + J\eta` where the paper has :math:`J(x + \eta)`; without biases both are the same.
* Layers are taken in the order of execution; pairs of which the later does not depend on the earlier are skipped. An
  activation belongs to the layer executed last before it (in a residual network it acts on the sum).
* The noise of smoothness is Gaussian, scaled to ``noise`` times the norm of :math:`x_i` (the paper's figures inject
  noise of 10 % of the norm), not the noise of the compression itself; ``smoothness`` is over ``num_draws`` such draws.
* ``zeta`` drops that fraction of the samples for each number and each layer separately, so that the fraction dropped
  for all of them together may be larger than ``zeta``.

A sample whose Jacobian vanishes constrains nothing and is passed over.

Cost:
    On the ``num_samples`` samples it looks at, about ``L (num_probes / 5 + 2 + 3 num_draws)`` forward passes' worth for
    L layers (half as many passes with a forward-mode derivative, the others without), beside the refinement:
    ``candidates * num_refined`` partial backward passes on single samples for each layer. It is quadratic in the depth,
    hence few samples.
Variance:
    Norms of Jacobians are exact for outputs of at most ``exact`` coordinates; others are estimated from random signs w,
    :math:`E\|J^\top w\|^2 = \|J\|_F^2`. The extremum over the samples of noisy ratios would be biased, so
    ``num_probes`` probes only choose the samples, targets and positions that may attain it (``candidates`` for each
    layer), and independent probes, ``num_refined`` of them, measure those. The standard error of the reported one is
    beside it (``interlayer_cushion_sem``, ``beta_sem``); relative to the value it is at most
    ``1 / sqrt(2 num_refined)``, and ``1 / sqrt(2 r num_refined)`` for a Jacobian with r equal singular values. The
    least of tied candidates is low by about one standard error; :math:`\beta_i`, of a position that was chosen
    beforehand, is rather low too.

References:
    Arora, Ge, Neyshabur & Zhang, Stronger generalization bounds for deep nets via a compression approach, ICML 2018
    (definitions of sections 3 and 4 restated; the text itself was not at hand to compare the wording).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from genbound.estimators.random import BLOCK, normal, rademacher
from genbound.network.weight_uses import ConvolutionUse
from genbound.quantities.base import Context, Measured, Part, stack, stream
from genbound.quantities.catalogue.compression import CompressionOptions
from genbound.structure.output_sites import Site, find_sites, has_attention
from genbound.structure.output_watch import OutputWatch

NAME = "compression"


def _draw(kind, context: Context, key, numbers: list[int], like: Tensor) -> Tensor:
    """Random numbers for the samples with these numbers: a stream for each block, so that batching changes nothing."""
    rows = []
    blocks: dict[int, Tensor] = {}
    for n in numbers:
        if n // BLOCK not in blocks:
            source = stream(context, NAME, *key, n // BLOCK)
            blocks[n // BLOCK] = kind((BLOCK, *_per_sample(like, len(numbers))), source, like)
        rows.append(blocks[n // BLOCK][n % BLOCK])
    return torch.stack(rows).view_as(like)


def _per_sample(z: Tensor, num: int) -> tuple[int, ...]:
    return (z.numel() // num,)


def _norm(z: Tensor, num: int) -> np.ndarray:
    return z.reshape(num, -1).double().norm(dim=1).cpu().numpy()


def _ratio(a: np.ndarray, b: np.ndarray, otherwise: float) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, otherwise), where=b > 0)


def _cotangents(context: Context, site: Site, z: Tensor, numbers: list[int], stage: str, num: int):
    """Directions at a later layer's output, and the weight of each.

    They are all unit vectors if these are few, else random signs.
    """
    dimension = z.numel() // len(numbers)
    if dimension <= context.options.exact:
        for index in range(dimension):
            unit = torch.zeros(len(numbers), dimension, dtype=z.dtype, device=z.device)
            unit[:, index] = 1
            yield unit.view_as(z), 1.0
    else:
        for draw in range(num):
            yield _draw(rademacher, context, (stage, site.name, draw), numbers, z), 1.0 / num


class _Pass:
    """One forward pass of some samples: the sites, their outputs, and what the operations in between did.

    ``numbers`` are places in ``chosen``, the positions of all the samples that are looked at.
    """

    def __init__(self, problem, names: list[str], chosen: list[int], numbers: list[int]):
        self.problem, self.numbers, self.num = problem, numbers, len(numbers)
        positions = [chosen[n] for n in numbers]
        self.tape = problem.tape(positions, names)
        self.sites = find_sites(self.tape)
        self.folded = {site.name: site.folded for site in self.sites}
        self.inputs = problem.batch(positions).inputs
        clean = self.observe()
        # In the shape that the graph has them in, which is where derivatives are pulled back to.
        self.outputs = [clean.outputs[site.name].reshape(_shape(site)) for site in self.sites]
        self.contractions = clean.contractions
        self.norms = [_norm(z, self.num) for z in self.outputs]

    def observe(
        self, noise: tuple[str, Tensor] | None = None, tangent: tuple[str, Tensor] | None = None
    ) -> OutputWatch:
        watch = OutputWatch(self.problem, self.folded, self.num, noise, tangent)
        with torch.no_grad(), watch:
            self.problem.forward(self.problem.params, self.inputs)
        return watch

    def push(self, i: int, direction: Tensor) -> list[Tensor | None]:
        """``J_ij u`` at every later site; ``None`` where the later site does not depend on this one."""
        if i == len(self.sites) - 1:
            return []
        with forward_ad.dual_level():
            tangents = self.observe(tangent=(self.sites[i].name, direction)).tangents
        return [tangents.get(site.name) for site in self.sites[i + 1 :]]

    def upstream(self, j: int) -> list[int]:
        """Earlier sites that site j depends on."""
        nodes = self.tape.graph.upstream(self.sites[j].edge.node)
        return [i for i in range(j) if self.sites[i].edge.node in nodes]

    def pull(self, j: int, cotangent: Tensor, earlier: list[int]) -> list[Tensor]:
        """``J_ij^T w`` at earlier sites."""
        edges = [self.sites[i].edge for i in earlier]
        return list(torch.autograd.grad([self.sites[j].edge], edges, [cotangent], retain_graph=True))


def _shape(site: Site) -> tuple[int, ...]:
    return tuple(int(size) for size in site.edge.node._input_metadata[site.edge.output_nr].shape)


def _runs(problem, chosen: list[int], numbers: list[int]) -> list[list[int]]:
    """The numbered samples in runs that share a forward pass."""
    number = {chosen[n]: n for n in numbers}
    return [[number[p] for p in run] for run in problem.batches(list(number))]


def _layer_cushions(run: _Pass) -> np.ndarray:
    values = np.full((run.num, len(run.sites)), np.inf)
    for i, site in enumerate(run.sites):
        weight = run.problem.params[site.name]
        size = site.use.inputs.reshape(run.num, -1).double().norm(dim=1).cpu().numpy()
        norm = math.sqrt(site.operator_square(weight))
        values[:, i] = _ratio(_norm(site.linear_part(weight), run.num), norm * size, np.inf)
    return values


def _smoothness(run: _Pass, context: Context) -> np.ndarray:
    """``1 / rho`` per sample and layer, the largest over later layers and draws."""
    values = np.zeros((run.num, len(run.sites)))
    for i, site in enumerate(run.sites[:-1]):
        for draw in range(context.options.num_draws):
            noise = _draw(normal, context, ("noise", site.name, draw), run.numbers, run.outputs[i])
            scale = context.options.noise * run.norms[i] / _norm(noise, run.num)
            flat = noise.reshape(run.num, -1)
            noise = (flat * torch.as_tensor(scale).to(flat).unsqueeze(1)).view_as(noise)
            moved = run.observe((site.name, noise)).outputs
            for j, tangent in enumerate(run.push(i, noise), i + 1):
                if tangent is not None:
                    rest = _norm((moved[run.sites[j].name] - tangent).view_as(run.outputs[j]) - run.outputs[j], run.num)
                    values[:, i] = np.maximum(values[:, i], _ratio(rest, context.options.noise * run.norms[j], 0.0))
    return values


def _pilot(problem, names: list[str], context: Context, chosen: list[int], numbers: list[int]) -> Part:
    """Everything but the final norms of Jacobians, and for each sample and layer where those may be extreme."""
    run, options = _Pass(problem, names, chosen, numbers), context.options
    num, count = run.num, len(run.sites)
    pushed = np.zeros((num, count, count))
    for i in range(count):
        for j, tangent in enumerate(run.push(i, run.outputs[i]), i + 1):
            if tangent is not None:
                pushed[:, i, j] = _ratio(_norm(tangent, num), run.norms[i], 0.0)
    cushion, target = np.full((num, count), np.inf), np.full((num, count), -1)
    beta, beta_target = np.zeros((num, count)), np.full((num, count), -1)
    pixel, stretch = np.zeros((num, count), dtype=int), np.zeros((num, count))
    for j in range(1, count):
        earlier = run.upstream(j)
        if not earlier:
            continue
        masses: dict[int, Tensor | float] = dict.fromkeys(earlier, 0.0)
        for w, weight in _cotangents(context, run.sites[j], run.outputs[j], numbers, "pilot", options.num_probes):
            for i, g in zip(earlier, run.pull(j, w, earlier), strict=True):
                masses[i] = masses[i] + weight * run.sites[i].pixels(g).double()
        for i in earlier:
            mass = masses[i].cpu().numpy()
            norm, places = np.sqrt(mass.sum(1)), mass.shape[1]
            value = _ratio(np.sqrt(places) * pushed[:, i, j], norm, np.inf)
            better = value < cushion[:, i]
            cushion[better, i], target[better, i], stretch[better, i] = value[better], j, pushed[better, i, j]
            if places > 1:
                value = _ratio(np.sqrt(places * mass.max(1)), norm, 0.0)
                better = value > beta[:, i]
                beta[better, i], beta_target[better, i], pixel[better, i] = value[better], j, mass.argmax(1)[better]
    contraction = np.ones((num, count))
    for i, site in enumerate(run.sites):
        if site.name in run.contractions:
            contraction[:, i] = run.contractions[site.name].cpu().numpy()
    return {
        "layer": _layer_cushions(run),
        "cushion": cushion, "target": target, "stretch": stretch,
        "beta": beta, "beta_target": beta_target, "pixel": pixel,
        "contraction": contraction,
        "roughness": _smoothness(run, context),
        "output": _norm(run.tape.outputs.detach(), num),
    }  # fmt: skip


def _refine(
    problem, names: list[str], context: Context, chosen: list[int], j: int, wanted: list[tuple[int, int, int]]
) -> Part:
    """Fresh norms of the Jacobians into site j for ``(sample, i, pixel)`` triples.

    Returns ``square``, the squared norm with its variance, and ``share``, the pixel's part of it with its variance.
    """
    rows: dict[int, list[int]] = {}
    for index, (sample, _, _) in enumerate(wanted):
        rows.setdefault(sample, []).append(index)
    found = np.zeros((len(wanted), 4))
    for numbers in _runs(problem, chosen, sorted(rows)):
        run = _Pass(problem, names, chosen, numbers)
        entries = [index for n in numbers for index in rows[n]]
        earlier = sorted({wanted[index][1] for index in entries})
        square, part, weights = [], [], []
        for w, weight in _cotangents(
            context, run.sites[j], run.outputs[j], numbers, "refine", context.options.num_refined
        ):
            pulled = {
                i: run.sites[i].pixels(g).double().cpu().numpy()
                for i, g in zip(earlier, run.pull(j, w, earlier), strict=True)
            }
            masses = [pulled[wanted[e][1]][numbers.index(wanted[e][0])] for e in entries]
            square.append([m.sum() for m in masses])
            part.append([m[wanted[e][2]] for m, e in zip(masses, entries, strict=True)])
            weights.append(weight)
        square, part = np.array(square), np.array(part)
        if weights[0] == 1.0:  # all unit vectors: exact
            total, piece = square.sum(0), part.sum(0)
            found[entries] = np.stack([total, 0 * total, _ratio(piece, total, 0.0), 0 * total], 1)
        else:
            total, piece, draws = square.mean(0), part.mean(0), len(square)
            share = _ratio(piece, total, 0.0)
            spread = (part - share * square).var(0, ddof=1) / draws  # of a ratio of means, to first order
            found[entries] = np.stack([total, square.var(0, ddof=1) / draws, share, _ratio(spread, total**2, 0.0)], 1)
    return {"square": found[:, 0], "square_var": found[:, 1], "share": found[:, 2], "share_var": found[:, 3]}


def _extreme(values: np.ndarray, dropped: int, largest: bool = False) -> float:
    """The extreme value after the worst samples are dropped."""
    ordered = np.sort(values)
    return float(ordered[len(ordered) - 1 - dropped] if largest else ordered[dropped])


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _candidates(values: np.ndarray, targets: np.ndarray, dropped: int, count: int, largest: bool) -> list[int]:
    order = np.argsort(-values if largest else values, kind="stable")[dropped:]
    return [int(n) for n in order[:count] if targets[n] >= 0 and np.isfinite(values[n])]


def measure(problem, context: Context) -> Measured:
    """The cushions of every layer: a pilot chooses the candidates, and draws of their own measure those."""
    options: CompressionOptions = context.options
    names = [layer.name for layer in problem.layers if layer.kind != "unused"]
    num = min(options.num_samples, problem.num_samples)
    chosen = [i * problem.num_samples // num for i in range(num)]
    runs = _runs(problem, chosen, list(range(num)))
    parts = context.map("pilot", runs, lambda run: _pilot(problem, names, context, chosen, run))
    pilot = {key: stack(parts, key) for key in parts[0]}
    dropped = int(options.zeta * num + 1e-9)
    first = _Pass(problem, names, chosen, [0])
    sites, count = first.sites, len(first.sites)

    wanted: dict[int, list[tuple[int, int, int]]] = {}
    where: dict[tuple[str, int], list[tuple[int, int, int]]] = {}  # (number, layer) -> [(sample, target, row)]
    for i in range(count):
        for kind, key, largest in (("cushion", "target", False), ("beta", "beta_target", True)):
            for n in _candidates(pilot[kind][:, i], pilot[key][:, i], dropped, options.candidates, largest):
                j = int(pilot[key][n, i])
                rows = wanted.setdefault(j, [])
                where.setdefault((kind, i), []).append((n, j, len(rows)))
                rows.append((n, i, int(pilot["pixel"][n, i]) if kind == "beta" else 0))
    targets = sorted(wanted)
    refined = dict(
        zip(
            targets,
            context.map("refine", targets, lambda j: _refine(problem, names, context, chosen, j, wanted[j])),
            strict=True,
        )
    )

    layers = {}
    for i, site in enumerate(sites):
        places = site.pixels(first.outputs[i]).shape[1]
        width = first.outputs[i].numel() // places
        cushion, cushion_sem, target = 1 / math.sqrt(width), 0.0, None
        for n, j, row in where.get(("cushion", i), []):
            square, variance = refined[j]["square"][row], refined[j]["square_var"][row]
            if square > 0:
                value = pilot["stretch"][n, i] * math.sqrt(places / square)
                if value < cushion:
                    cushion, cushion_sem, target = value, value * 0.5 * math.sqrt(variance) / square, sites[j].name
        beta, beta_sem = 1.0, 0.0
        for _, j, row in where.get(("beta", i), []):
            share, variance = refined[j]["share"][row], refined[j]["share_var"][row]
            value = math.sqrt(places * share)
            if value > beta:
                beta, beta_sem = value, 0.5 * math.sqrt(places * variance / share)
        smoothness, reason = _inverse(pilot["roughness"][:, i], dropped, i == count - 1, problem, options)
        operator = math.sqrt(site.operator_square(problem.params[site.name]))
        layer_cushion = _extreme(pilot["layer"][:, i], dropped)
        layers[site.name] = {
            "layer_cushion": _finite(layer_cushion),
            "layer_cushion_kernel": _finite(layer_cushion * operator / _kernel_norm(problem, site)),
            "interlayer_cushion": float(cushion),
            "interlayer_cushion_sem": float(cushion_sem),
            "interlayer_target": target,
            "conv_factor": _conv_factor(site),
            "beta": float(beta),
            "beta_sem": float(beta_sem),
            "contraction": _finite(_extreme(pilot["contraction"][:, i], dropped, largest=True)),
            "smoothness": smoothness,
            "smoothness_reason": reason,
            "channels": width,
            "positions": places,
        }
    contractions = [row["contraction"] for row in layers.values()]
    known = [row["smoothness"] for row in layers.values() if row["smoothness"] is not None]
    return Measured(
        {
            "layers": layers,
            "contraction": None if None in contractions else max(contractions),
            "smoothness": min(known) if known else None,
            "smoothness_reason": "" if known else "; ".join(sorted({r["smoothness_reason"] for r in layers.values()})),
            "noise": options.noise,
            "num_draws": options.num_draws,
            "max_output_l2": float(pilot["output"].max()),
            "num_samples": num,
            "zeta": options.zeta,
        }
    )


def _inverse(roughness: np.ndarray, dropped: int, last: bool, problem, options) -> tuple[float | None, str]:
    if last:
        return None, "no layer follows"
    if options.num_draws == 0:
        return None, "no noise was drawn (num_draws 0)"
    worst = _extreme(roughness, dropped, largest=True)
    if worst <= 100 * torch.finfo(problem.dtype).eps / options.noise:
        return None, f"the layers that follow are affine at noise of {options.noise:g} times the output's norm"
    return 1 / worst, ""


def _kernel_norm(problem, site: Site) -> float:
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


def applies_to(problem) -> str | None:
    """Every layer must be one linear map of the samples, used once, outside attention."""
    for layer in problem.layers:
        if layer.kind == "unused":
            continue
        if layer.kind not in ("linear", "convolution") or not layer.by_batch or not layer.samples_first:
            return f"cushions need layers that are linear maps of each sample; {layer.name} is used otherwise"
        if layer.num_uses != 1:
            return f"cushions need layers that are used once; {layer.name} is used {layer.num_uses} times"
    names = [layer.name for layer in problem.layers if layer.kind != "unused"]
    if not names:
        return "no layer is used"
    if has_attention(problem.tape([0], names)):
        return "the compression bound is for networks of layers and activations, not for softmax attention"
    try:
        run = _Pass(problem, names, [0], [0])
        run.push(0, run.outputs[0])
    except KeyError as error:
        return f"the output of layer {error.args[0]} is not that of a convolution or matrix product that can be watched"
    except NotImplementedError as error:
        return f"an operation has no forward-mode derivative: {str(error).splitlines()[0]}"
    return None


def forecast(problem, options: CompressionOptions) -> float:
    """In gradients over the measured samples, with factors measured on a residual network of 20 layers."""
    count, num = len(problem.layers), min(options.num_samples, problem.num_samples)
    refined = options.candidates * 2 * options.num_refined / max(1, num)
    share = num / max(1, problem.num_samples)
    return share * count * (options.num_probes / 5 + 1.2 + options.num_draws + refined / 5)
