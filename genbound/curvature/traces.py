r"""Traces of every layer's block, sample by sample: the exact Gauss-Newton part and probes of the rest.

Unless told otherwise all are ``[N, L]`` in float64 for N samples and L layers, in the order of the tape's layers. Their
unit is that of the loss by that of a weight squared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from genbound.curvature.krylov_control import KrylovControl
from genbound.curvature.layer_block import LayerBlock
from genbound.curvature.probes import Layers, along_signs, perturbed, probe_directions, probe_signs
from genbound.curvature.sweep import Sweep
from genbound.estimators.random import Row, row_signs
from genbound.network.tape import Tape, basis, filled


def gauss_newton_trace(tape: Tape) -> Tensor:
    r"""Exact :math:`\mathrm{Tr}\, J_i^\top (\nabla_f^2 \ell) J_i = \sum_c s_c \|J_i^\top S_c\|^2`, ``[N, L]``.

    Cost: one backward pass to the activations for each output coordinate (one fewer for cross-entropy), for all layers
    together.
    """
    factor = tape.network.loss.output_factor(tape.outputs.detach(), tape.targets)
    total = torch.zeros(len(tape), len(tape.layers), dtype=torch.float64, device=tape.outputs.device)
    for column in basis(tape.outputs, factor.last_vanishes):
        sign = 1.0 if factor.signs is None else (factor.signs * column).flatten(1).sum(1, keepdim=True).double()
        total += sign * _squared_norms(tape, factor.columns(column))
    return total


def sampled_gauss_newton_trace(tape: Tape, rows: Sequence[Row], seed: int) -> Tensor:
    r"""One unbiased draw of the same, from a random combination of the columns for each sample, ``[N, L]``.

    Args:
        tape: of N samples.
        rows: where the random numbers of each come from.
        seed: of all of them.

    Cost: one backward pass (two where the loss is not convex), whatever the number of outputs.
    """
    factor = tape.network.loss.output_factor(tape.outputs.detach(), tape.targets)
    like = tape.outputs.detach()
    *positions, width = like.shape[1:]
    signs = row_signs(rows, seed, "output", math.prod(positions), width, like).view(like.shape)
    if factor.signs is None:
        return _squared_norms(tape, factor.columns(signs))
    positive = _squared_norms(tape, factor.columns(signs * (factor.signs > 0)))
    return positive - _squared_norms(tape, factor.columns(signs * (factor.signs < 0)))


def at_results(tape: Tape, vs: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """What a direction of each layer's weight does to the results of its uses: layer -> one tensor for each use."""
    return {name: [use.perturb(v) for use in tape.uses[name]] for name, v in vs.items()}


def gauss_newton_forms(
    tape: Tape, us: Mapping[str, list[Tensor]], cotangents: Iterable[Tensor] | None = None
) -> Tensor:  # fmt: skip
    r"""Each layer's :math:`v^\top J_i^\top (\nabla_f^2 \ell) J_i v = \sum_c s_c \langle J_i^\top S_c, v\rangle^2`.

    Args:
        tape: of N samples.
        us: layer -> what v does to its results (:func:`at_results`); L of them.
        cotangents: random combinations of the columns, ``[N, *output]`` each; the result is then their mean square,
            unbiased where the loss is convex. ``None`` takes the columns themselves.

    Returns:
        ``[N, L]`` in float64, in the loss's unit.

    Cost: one backward pass to the activations for each column (one fewer for cross-entropy) or combination, for all
    layers together. None for a loss of two scores' difference whose gradient was taken on the tape: it is in proportion
    to the only column.
    """
    factor = tape.network.loss.output_factor(tape.outputs.detach(), tape.targets)
    total = torch.zeros(len(tape), len(us), dtype=torch.float64, device=tape.outputs.device)
    weights = list(basis(tape.outputs, factor.last_vanishes)) if cotangents is None else list(cotangents)
    for weight in weights:
        sign = 1.0
        if factor.signs is not None and cotangents is None:
            sign = (factor.signs * weight).flatten(1).sum(1, keepdim=True).double()
        column = factor.columns(weight)
        if cotangents is None and factor.last_vanishes and len(weights) == 1 and tape.has_gradients("remainder"):
            gradients, times = tape.gradients("remainder"), _times(column, tape.output_gradient())
        else:
            gradients, times = tape.backward(column, list(us)), 1.0
        inner = [tape.inner(name, us[name], filled(gradients[name], us[name])) for name in us]
        total += sign * (times * torch.stack(inner, 1).detach()).square()
    return total if cotangents is None else total / len(weights)


def _times(column: Tensor, gradient: Tensor) -> Tensor:
    """What a gradient of each sample in two scores, a multiple of (1, -1), is to be multiplied by: ``[N, 1]``."""
    column, gradient = column.flatten(1).double(), gradient.flatten(1).double()
    return (column * gradient).sum(1, keepdim=True) / gradient.square().sum(1, keepdim=True).clamp(min=1e-300)


def remainder_forms(tape: Tape, us: Mapping[str, list[Tensor]], signs: Tensor) -> tuple[Tensor, Tensor]:
    r"""Estimates of each layer's :math:`v_i^\top R_i v_i`, and of :math:`|u_i|\,|q_i|` above it.

    A product with all layers' directions at once, each under a random sign, holds the layer's own and those of the
    others with signs of mean zero. The mean over the draws leaves a part of these. u is what the direction does to the
    layer's result, q the layer's part of the product there.

    Args:
        tape: of N samples.
        us: layer -> what v does to its results (:func:`at_results`); L of them.
        signs: 1 or -1 for each draw and layer, ``[draws, L]``.

    Returns:
        Two ``[N, L]`` in float64, in the loss's unit. The first is unbiased, the second too large by what is left.

    Cost: a double backward pass to the activations for each draw, for all layers together.
    """
    means = {name: [torch.zeros_like(u) for u in own] for name, own in us.items()}
    for draw in signs.tolist():
        signed = {
            name: own if sign == 1 else [-u for u in own] for (name, own), sign in zip(us.items(), draw, strict=True)
        }
        products = tape.activation_products(signed, list(us), "remainder")
        for name, sign in zip(us, draw, strict=True):
            for mean, q in zip(means[name], products[name], strict=True):
                mean.add_(q, alpha=sign / len(signs))
    forms = torch.stack([_inner(tape, name, us[name], means[name]) for name in us], 1)
    squares = [_inner(tape, name, us[name], us[name]) * _inner(tape, name, means[name], means[name]) for name in us]
    return forms, torch.stack(squares, 1).sqrt()


def _inner(tape: Tape, name: str, us: Sequence[Tensor], qs: Sequence[Tensor]) -> Tensor:
    """As :meth:`Tape.inner`, added up in the tape's type, single precision at the least: for estimates."""
    total = torch.zeros(len(tape), dtype=torch.float64, device=tape.outputs.device)
    for use, u, q in zip(tape.uses[name], us, qs, strict=True):
        rows = [each.float() if each.itemsize < 4 else each for each in (use.per_sample(u), use.per_sample(q))]
        total = total + torch.linalg.vecdot(*rows).double().to(total.device)
    return total


def _squared_norms(tape: Tape, cotangent: Tensor) -> Tensor:
    gradients = tape.backward(cotangent, tape.layers)
    return torch.stack([tape.squared_norm(name, gradients[name]) for name in tape.layers], 1)


def remainder_dimension(tape: Tape) -> int:
    """How many products for each sample :func:`dense_remainder_trace` takes: the dimensions of the curved blocks."""
    return sum(LayerBlock(tape, name).dimension for name in tape.layers if name not in tape.piecewise_linear)


def dense_remainder_trace(tape: Tape) -> Tensor:
    r"""Exact :math:`\mathrm{Tr}\,R_i` from the block's own diagonal, ``[N, L]``.

    Cost: a double backward pass for every dimension of every curved block; for small ones.
    """
    result = torch.zeros(len(tape), len(tape.layers), dtype=torch.float64, device=tape.outputs.device)
    for i, name in enumerate(tape.layers):
        if name not in tape.piecewise_linear:
            for j, column in enumerate(LayerBlock(tape, name, "remainder").columns()):
                result[:, i] += column[:, j].to(result.device)
    return result


def probe_trace(tape: Tape, part: str, rows: Sequence[Row], seed: int) -> Tensor:
    r"""One draw of :math:`z_i^\top (P z)_i` for every layer and sample, P the Hessian or its remainder, ``[N, L]``.

    The layers are probed together, so a draw holds zero-mean cross-layer terms. Layers that the part vanishes on
    (piecewise linear ones, for the remainder) are skipped and exactly 0.

    Args:
        tape: of N samples.
        part: ``hessian`` or ``remainder``.
        rows: where the random numbers of each sample come from: rows that are copies of a sample take different ones.
        seed: of all of them.

    Cost: one double backward pass to the activations for all layers and samples together.
    """
    layers = _moved_layers(tape, part)
    directions = probe_directions(layers, rows, seed, tape.outputs.detach())
    return _forms(tape, directions, tape.activation_products(directions, list(layers), part))


def remainder_probes(tape: Tape, rows: Sequence[Sequence[Row]], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""D draws of :func:`probe_trace` of the remainder R, and what their products Rz tell of their spread.

    Args:
        tape: of N samples.
        rows: of every draw, where the random numbers of each sample come from.
        seed: of all of them.

    Returns:
        The draws and :math:`\|(Rz)_i\|^2`, ``[N, D, L]`` each; and, unbiased from two or more draws, the sums of the
        squares of R's diagonal in every layer ``[N, L]``. Of weights that are so large that their probes have a low
        rank, where no entry counts, that is 0.

    Cost: D double backward passes, and for each about that of multiplying the layers' gradients with their inputs.
    """
    layers, sums = _moved_layers(tape, "remainder"), dict[str, Tensor]()
    empty = torch.zeros(len(tape), len(rows), len(tape.layers), dtype=torch.float64, device=tape.outputs.device)
    draws, norms, diagonal = empty, empty.clone(), empty[:, 0].clone()
    for draw, numbers in enumerate(rows):
        signs = probe_signs(layers, numbers, seed, tape.outputs.detach())
        directions = perturbed(layers, signs)
        products = tape.activation_products(directions, list(layers), "remainder")
        draws[:, draw], norms[:, draw] = _forms(tape, directions, products), _squares(tape, products)
        directions.clear()  # all three are as large as the results of all layers: the next product needs the room
        for name, (weight, uses) in layers.items():
            own = along_signs(tuple(weight.shape), uses, products.pop(name))
            if own is not None:  # z * Rz has the diagonal as its mean, and products of two draws its square
                own = own * signs.pop(name).flatten(1)
                diagonal[:, tape.layers.index(name)] -= own.double().square().sum(1).to(diagonal.device)
                sums[name] = sums[name].add_(own) if name in sums else own
    for name, total in sums.items():
        diagonal[:, tape.layers.index(name)] += total.double().square().sum(1).to(diagonal.device)
    return draws, norms, diagonal / max(len(rows) * (len(rows) - 1), 1)


def further_product(tape: Tape, rows: Sequence[Row], seed: int) -> Tensor:
    r"""What the product along :math:`v = Rz / \|Rz\|` of a draw tells of R's squares off the diagonal, ``[N, L]``.

    It is :math:`\|(Rv)_i\|^2 - \sum_j v_j^2 (Rv)_j^2` with the sum over the entries of layer i. Where R has rank one it
    is the sum of the squares in the layer's rows without the diagonal.

    Cost: two double backward passes, the draw's own again and one along it.
    """
    layers = _moved_layers(tape, "remainder")
    directions = probe_directions(layers, rows, seed, tape.outputs.detach())
    products = tape.activation_products(directions, list(layers), "remainder")
    moves = {name: _moved(tape, name, qs) for name, qs in products.items()}
    further = tape.activation_products(moves, list(layers), "remainder")
    square = _squares(tape, products).sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    found = _squares(tape, further) / square
    for name, (weight, uses) in layers.items():
        pair = [along_signs(tuple(weight.shape), uses, of[name]) for of in (products, further)]
        if pair[0] is not None and pair[1] is not None:
            both = pair[0].double() * pair[1].double() / square.to(weight.device)
            found[:, tape.layers.index(name)] -= both.square().sum(1).to(found.device)
    return found


def _moved_layers(tape: Tape, part: str) -> Layers:
    """The layers that the part does not vanish on."""
    active = [n for n in tape.layers if tape.uses[n] and (part == "hessian" or n not in tape.piecewise_linear)]
    return {name: (tape.weights[name].detach(), tape.uses[name]) for name in active}


def _moved(tape: Tape, name: str, qs: Sequence[Tensor]) -> list[Tensor]:
    """``A A* q``: how the weight ``A* q`` of every sample's own perturbs the results of the layer's uses."""
    uses = tape.uses[name]
    if len(uses) == 1:
        return [uses[0].gram(qs[0])]
    weight = tape.adjoint(name, qs)
    return [use.perturb(weight) for use in uses]


def _forms(tape: Tape, directions: Mapping[str, list[Tensor]], products: Mapping[str, list[Tensor]]) -> Tensor:
    """Inner products of the layers' perturbations with their products, ``[N, L]``."""
    return _by_layer(tape, {name: tape.inner(name, us, products[name]) for name, us in directions.items()})


def _squares(tape: Tape, products: Mapping[str, list[Tensor]]) -> Tensor:
    """Squared norms of the layers' products as weights, ``[N, L]``."""
    return _by_layer(tape, {name: tape.squared_norm(name, qs) for name, qs in products.items()})


def _by_layer(tape: Tape, found: Mapping[str, Tensor]) -> Tensor:
    """Numbers of every sample, and 0 for the layers that have none, ``[N, L]``."""
    zero = torch.zeros(len(tape), dtype=torch.float64, device=tape.outputs.device)
    return torch.stack([found.get(name, zero) for name in tape.layers], 1)


def sweep_directions(sweep: Sweep, names: Sequence[str], rows: Sequence[Row], seed: int) -> dict[str, Tensor]:
    """Random perturbations of the layers' results on a sweep, as :func:`probe_trace` draws them.

    Args:
        sweep: of N samples.
        names: of the layers to move; those that the sweep did not meet are left out.
        rows: where the random numbers of each sample come from.
        seed: of all of them.

    Returns:
        Layer -> perturbation, in the shape of its result.
    """
    layers = {name: (sweep.problem.params[name], [sweep.uses[name]]) for name in names if name in sweep.uses}
    directions = probe_directions(layers, rows, seed, sweep.outputs)
    return {name: own[0] for name, own in directions.items()}


def joint_trace(
    sweep: Sweep, names: Sequence[str], rows: Sequence[Row], seed: int, control: KrylovControl | None = None
) -> Tensor:
    r"""One draw of :math:`z^\top R z` with the layers probed together: of the sum of their traces alone, ``[N]``.

    Args:
        sweep: of N samples.
        names: of the layers to move.
        rows: where the random numbers of each sample come from.
        seed: of all of them.
        control: of the sample that all rows are copies of; its values, whose mean is 0, are taken off.

    Cost: about a forward pass.
    """
    directions = sweep_directions(sweep, names, rows, seed)
    return sweep.mean_remainder(directions) - _known(sweep, directions, control)


def joint_trace_in_half(
    sweep: Sweep, names: Sequence[str], rows: Sequence[Row], seed: int, compared: bool,
    control: KrylovControl | None = None,
) -> Tensor:  # fmt: skip
    """The draw of :func:`joint_trace` in half precision, and what it lacks, ``[N, 2]``; the latter if ``compared``.

    Cost: 0.55 of a sweep on a processor with bfloat16 units, and one more to compare; else the second is not a number.
    """
    directions = sweep_directions(sweep, names, rows, seed)
    half = sweep.mean_remainder(directions, half=True)
    gap = sweep.mean_remainder(directions) - half if compared else torch.full_like(half, torch.nan)
    return torch.stack([half - _known(sweep, directions, control), gap], 1)


def joint_trace_controlled(
    sweep: Sweep, names: Sequence[str], rows: Sequence[Row], seed: int, control: KrylovControl, nums: Sequence[int]
) -> Tensor:
    """The draw of :func:`joint_trace` without and with so many of the control's vectors, ``[N, 1 + len(nums)]``.

    Cost: that of one.
    """
    directions = sweep_directions(sweep, names, rows, seed)
    plain = sweep.mean_remainder(directions)
    return torch.stack([plain, *(plain - _known(sweep, directions, control, num) for num in nums)], 1)


def _known(
    sweep: Sweep, directions: Mapping[str, Tensor], control: KrylovControl | None, num: int | None = None
) -> Tensor | float:
    """The control's values of directions that a sweep takes, ``[N]``; 0 without one."""
    if control is None:
        return 0.0
    rows = {name: sweep.uses[name].per_sample(u) for name, u in directions.items()}
    return control.values(rows, control.num if num is None else num)


def joint_trace_twice(sweep: Sweep, names: Sequence[str], rows: Sequence[Row], seed: int) -> Tensor:
    """The draw as it is and that of :func:`joint_trace`, ``[N, 2]``: what the mean taken in the latter saves.

    Cost: about two forward passes.
    """
    directions = sweep_directions(sweep, names, rows, seed)
    return torch.stack([sweep.remainder(directions), sweep.mean_remainder(directions)], 1)


def separate_traces(sweep: Sweep, names: Sequence[str], rows: Sequence[Row], seed: int) -> Tensor:
    r"""One draw of :math:`z_i^\top R_i z_i` for every layer on its own, ``[N, len(names)]``: no cross-layer terms.

    The arguments are those of :func:`sweep_directions`.

    Cost: a forward pass from each layer to the output; half a pass a layer.
    """
    result = torch.zeros(len(sweep), len(names), dtype=torch.float64, device=sweep.outputs.device)
    for i, name in enumerate(names):  # a layer's directions at a time: they are as large as its result
        for own, u in sweep_directions(sweep, [name], rows, seed).items():
            result[:, i] = sweep.mean_remainder({own: u})
    return result
