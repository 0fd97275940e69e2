r"""Traces of every layer's block, sample by sample: the exact Gauss-Newton part and probes of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genbound.curvature.krylov import LayerOperator
from genbound.curvature.tape import Tape, basis
from genbound.estimators.probes import make_probe, num_signs
from genbound.estimators.random import generator, rademacher
from genbound.problem import BLOCK


def gauss_newton_trace(tape: Tape) -> Tensor:
    r"""Exact :math:`\mathrm{Tr}\, J_i^\top (\nabla_f^2 \ell) J_i = \sum_c s_c \|J_i^\top S_c\|^2`, ``[N, L]`` in float64.

    Cost: one backward pass to the activations for each output coordinate (one fewer for cross-entropy), for all layers together.
    """
    factor = tape.problem.loss.output_factor(tape.outputs.detach(), tape.targets)
    total = torch.zeros(len(tape), len(tape.layers), dtype=torch.float64, device=tape.outputs.device)
    for column in basis(tape.outputs, factor.last_vanishes):
        sign = 1.0 if factor.signs is None else (factor.signs * column).flatten(1).sum(1, keepdim=True).double()
        total += sign * _squared_norms(tape, factor.columns(column))
    return total


def sampled_gauss_newton_trace(tape: Tape, seed: int, draws: Sequence[int]) -> Tensor:
    r"""One unbiased draw of the same, from a random combination of the columns for each sample, ``[N, L]``.

    ``draws`` numbers each row's draw: rows that are copies of a sample take different ones.

    Cost: one backward pass (two where the loss is not convex), whatever the number of outputs.
    """
    factor = tape.problem.loss.output_factor(tape.outputs.detach(), tape.targets)
    like, size = tape.outputs.detach(), tuple(tape.outputs.shape[1:])
    # One stream a sample: padding a batch to another length leaves the earlier positions' signs as they were.
    keys = zip(draws, tape.positions, strict=True)
    signs = torch.stack([rademacher(size, generator(seed, "gauss_newton", draw, p), like) for draw, p in keys])
    if factor.signs is None:
        return _squared_norms(tape, factor.columns(signs))
    positive = _squared_norms(tape, factor.columns(signs * (factor.signs > 0)))
    return positive - _squared_norms(tape, factor.columns(signs * (factor.signs < 0)))


def _squared_norms(tape: Tape, cotangent: Tensor) -> Tensor:
    gradients = tape.backward(cotangent, tape.layers)
    return torch.stack([tape.squared_norm(name, gradients[name]) for name in tape.layers], 1)


def remainder_dimension(tape: Tape) -> int:
    """Products per sample that :func:`dense_remainder_trace` takes."""
    return sum(LayerOperator(tape, name).dimension for name in tape.layers if name not in tape.piecewise_linear)


def dense_remainder_trace(tape: Tape) -> Tensor:
    r"""Exact :math:`\mathrm{Tr}\,R_i` from the block's own diagonal, ``[N, L]``.

    Cost: a double backward pass for every dimension of every curved block; for small ones.
    """
    result = torch.zeros(len(tape), len(tape.layers), dtype=torch.float64, device=tape.outputs.device)
    for i, name in enumerate(tape.layers):
        if name not in tape.piecewise_linear:
            operator = LayerOperator(tape, name, "remainder")
            for j in range(operator.dimension):
                unit = torch.zeros(len(tape), operator.dimension, dtype=torch.float64, device=result.device)
                unit[:, j] = 1
                result[:, i] += operator.product(unit)[:, j].double()
    return result


def probe_trace(tape: Tape, part: str, seed: int, key: tuple, draws: Sequence[int]) -> Tensor:
    r"""One draw of :math:`z_i^\top (P z)_i` for every layer and sample, P the Hessian or its remainder, ``[N, L]``.

    The layers are probed together, so a draw holds zero-mean cross-layer terms. Layers that the part vanishes on
    (piecewise linear ones, for the remainder) are skipped and exactly 0. ``draws`` numbers each row's draw: rows that are
    copies of a sample take different ones.

    Cost: one double backward pass to the activations for all layers and samples together.
    """
    names = list(tape.layers)
    active = [n for n in names if tape.uses[n] and (part == "hessian" or n not in tape.piecewise_linear)]
    result = torch.zeros(len(tape), len(tape.layers), dtype=torch.float64, device=tape.outputs.device)
    if not active:
        return result
    # One stream a block of samples holds the signs of all its samples and layers, whichever of them are on this tape.
    sizes = [num_signs(tuple(tape.weights[name].shape)) for name in names]
    like = tape.outputs.detach()
    signs = torch.empty(len(tape), sum(sizes), dtype=like.dtype, device=like.device)
    blocks: dict[tuple[int, int], list[int]] = {}
    for row, (position, draw) in enumerate(zip(tape.positions, draws, strict=True)):
        blocks.setdefault((draw, position // BLOCK), []).append(row)
    for (draw, block), rows in blocks.items():
        members = [tape.positions[row] % BLOCK for row in rows]
        signs[rows] = rademacher((BLOCK, sum(sizes)), generator(seed, *key, draw, block), like, members)
    directions: dict[str, list[Tensor]] = {}
    for name, own in zip(names, signs.split(sizes, 1), strict=True):
        if name in active:
            probe = make_probe(tuple(tape.weights[name].shape), own)
            directions[name] = [probe.perturb(use) for use in tape.uses[name]]
    products = tape.activation_products(directions, active, part)
    for i, name in enumerate(tape.layers):
        if name in directions:
            result[:, i] = tape.inner(name, directions[name], products[name])
    return result
