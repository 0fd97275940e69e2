r"""The look at some samples that ``hessian_trace`` begins with: their Gauss-Newton parts, and some probes of the rest.

It is one pass over them. The remainder is exact where that takes few products; else it has two or more double backward
probes of every sample, which say how much it varies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from genbound.curvature.traces import (
    dense_remainder_trace,
    further_product,
    gauss_newton_trace,
    remainder_dimension,
    remainder_probes,
    sampled_gauss_newton_trace,
)
from genbound.estimators.draw_spread import Bounds
from genbound.estimators.draws import Sampler
from genbound.estimators.estimate import Sampled, stratum_variances
from genbound.estimators.random import Row, row_of
from genbound.estimators.trace_plan import with_total
from genbound.network.derivative_trial import is_large
from genbound.network.problem import SHARD, Problem
from genbound.quantities.base import Context, Part, stack
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions
from genbound.quantities.remainder_probes import tapes_by_column

NAME = "hessian_trace"
SMALL_NETWORK = 2**16  # weights of a network that takes well below a millisecond for a product
DEAR_FEW = 32  # first probes of all samples of a large network, where each is dear, at the least


@dataclass(frozen=True)
class FirstLook:
    """What the pass over the N samples finds, for L layers; each sample's by how much it counts.

    Attributes:
        gauss_newton: the Gauss-Newton part, with the total in the last column ``[N, L + 1]``.
        curved: layers that have a remainder ``[L]``.
        products: Hessian products on single samples that an exact remainder takes.
        sizes: norm of every sample's loss gradient in the output, which the spread of its remainder grows with ``[N]``.
        probes: the first double backward probes of every sample ``[N, D, L]``.
        bounds: what the products that these are made from tell of their spread.
        longest: which probe of each sample has the largest product ``[N]``.
    """

    gauss_newton: Sampled
    curved: np.ndarray
    products: int
    sizes: np.ndarray
    probes: np.ndarray
    bounds: Bounds
    longest: np.ndarray

    @property
    def remainder(self) -> Sampled:
        """What the first probes say of the remainder, with the total in the last column."""
        probes, (num, draws, _) = with_total(self.probes), self.probes.shape
        squares = probes.var(1, ddof=1) * (draws - 1)
        variances, freedom = self.bounds.variances(np.full(num, draws), squares, np.arange(num))
        noise = variances / draws
        return Sampled.of(probes.mean(1), noise, (noise**2 / freedom).sum(0))


def first_look(
    problem: Problem, context: Context, options: HessianTraceOptions, stage: str, num: int | None = None
) -> FirstLook:
    """The pass over the measured samples that has their Gauss-Newton parts and ``num`` first probes of each."""
    num = num_first_probes(problem, options) if num is None else num
    parts = context.map(stage, problem.shards(), lambda shard: _look_at(problem, context.seed, options, shard, num))
    counts, shares = np.full(problem.num_samples, options.num_factors), problem.shares
    noise = stratum_variances(counts, stack(parts, "squares")) / counts[:, None] * shares[:, None] ** 2
    spread = (noise**2).sum(0) / (options.num_factors - 1)
    norms = stack(parts, "norms")
    return FirstLook(
        Sampled.of(stack(parts, "mean") * shares[:, None], noise, spread),
        np.logical_or.reduce([part["curved"] for part in parts]),
        sum(int(part["products"]) for part in parts),
        stack(parts, "sizes") * shares,
        stack(parts, "first") * shares[:, None, None],
        Bounds.of(norms * shares[:, None, None] ** 2, stack(parts, "diagonal") * shares[:, None] ** 2),
        norms.sum(2).argmax(1),
    )


def look_by_sample(problem: Problem, seed: int, options: HessianTraceOptions) -> Callable[[range], Part]:
    """What the same pass finds of every sample of a shard by itself, for those who want no mean of them.

    Returns:
        ``shard -> arrays [n, L]``: ``value``, the trace; ``sem`` of its Gauss-Newton part, which is all of it where a
        block is positive semidefinite by structure; and ``probe_std`` of the first probes.
    """
    num = num_first_probes(problem, options)

    def look(shard: range) -> Part:
        part = _look_at(problem, seed, options, shard, num)
        counts = np.full(len(shard), options.num_factors)
        noise = stratum_variances(counts, part["squares"][:, :-1]) / counts[:, None]
        value = part["mean"][:, :-1] + part["first"].mean(1)
        return {"value": value, "sem": np.sqrt(noise), "probe_std": part["first"].std(1, ddof=1)}

    return look


def closer_look(problem: Problem, context: Context, look: FirstLook) -> FirstLook:
    """The same with one product more of the samples that may rule the error, which tells how far their probes spread.

    Cost: two double backward probes of each of these; there are fewer than 1 /
    :data:`~genbound.estimators.draw_spread.RULES`.
    """
    ruling, draws = np.flatnonzero(look.bounds.ruling).tolist(), look.probes.shape[1]

    def multiply(at: list[int]) -> Part:
        squares = np.zeros((len(at), len(problem.layers)))
        for tape, columns in tapes_by_column(problem)(at):
            rows = np.array([at.index(p) for p in tape.positions])
            numbers = [_first_numbers(p, int(look.longest[p]), draws) for p in tape.positions]
            squares[np.ix_(rows, columns)] = further_product(tape, numbers, context.seed).cpu().numpy()
        return {"squares": squares * problem.shares[at, None] ** 2}

    if not ruling:
        return look
    parts = context.map("products", [ruling[i : i + SHARD] for i in range(0, len(ruling), SHARD)], multiply)
    return replace(look, bounds=look.bounds.raised(stack(parts, "squares")))


def _first_numbers(position: int, draw: int, draws: int) -> Row:
    """Where the random numbers of a first probe come from."""
    return row_of(f"{NAME} first", position, draw, draws)


def _look_at(problem: Problem, seed: int, options: HessianTraceOptions, shard: range, num_first: int) -> Part:
    """The first look at a shard of the samples."""
    layers = len(problem.layers)
    exact = problem.num_outputs <= options.exact_outputs
    (values, diagonal), (first, norms) = np.zeros((2, len(shard), layers)), np.zeros((2, len(shard), num_first, layers))
    curved, products, sizes = np.zeros(layers, bool), 0, np.zeros(len(shard))
    for tape, columns in tapes_by_column(problem)(shard):
        rows = np.array([p - shard[0] for p in tape.positions])
        curved[columns] |= [name not in tape.piecewise_linear for name in tape.layers]
        products += len(tape) * remainder_dimension(tape)
        sizes[rows] = tape.output_gradient().flatten(1).norm(dim=1).double().cpu().numpy()
        if exact:
            values[np.ix_(rows, columns)] = gauss_newton_trace(tape).cpu().numpy()
        numbers = [[_first_numbers(p, draw, num_first) for p in tape.positions] for draw in range(num_first)]
        probed, squares, own = (found.cpu().numpy() for found in remainder_probes(tape, numbers, seed))
        for draw in range(num_first):
            first[rows[:, None], draw, columns] = probed[:, draw]
            norms[rows[:, None], draw, columns] = squares[:, draw]
        diagonal[np.ix_(rows, columns)] = own
    part: Part = {"curved": curved, "products": np.array(products), "sizes": sizes, "first": first}
    part |= {"norms": norms, "diagonal": diagonal}
    if exact:
        return part | {"mean": with_total(values), "squares": np.zeros((len(shard), layers + 1))}
    drawn = _sampled_gauss_newton(problem, seed).moments(shard, [options.num_factors] * len(shard))
    return part | {"mean": drawn.mean, "squares": drawn.squares}


def num_first_probes(problem: Problem, options: HessianTraceOptions) -> int:
    """Probes that every sample gets with its Gauss-Newton part: two, or enough that few samples know their spread."""
    least = min(options.least_probes, DEAR_FEW) if is_large(problem) else options.least_probes
    return max(2, -(-least // problem.num_samples))


def _sampled_gauss_newton(problem: Problem, seed: int) -> Sampler:
    """Draws of the Gauss-Newton part from random combinations of the output coordinates."""
    return Sampler(
        "gauss_newton", tapes_by_column(problem),
        lambda tape, rows: sampled_gauss_newton_trace(tape, rows, seed),
        len(problem.layers), problem.batch_size, lambda draws, _: with_total(draws),
    )  # fmt: skip


def exact_remainder(problem: Problem, context: Context) -> Sampled:
    """The remainder of every sample from its blocks' diagonals, ``[N, L + 1]`` with the total in the last column."""

    def diagonals(shard: range) -> Part:
        values = np.zeros((len(shard), len(problem.layers)))
        for tape, columns in tapes_by_column(problem)(shard):
            rows = np.array([p - shard[0] for p in tape.positions])
            values[np.ix_(rows, columns)] = dense_remainder_trace(tape).cpu().numpy()
        return {"mean": with_total(values)}

    values = stack(context.map("dense_remainder", problem.shards(), diagonals), "mean") * problem.shares[:, None]
    return Sampled.of(values, np.zeros_like(values))


def affordable_products(problem: Problem, options: HessianTraceOptions) -> float:
    """Most Hessian products on single samples that an exact remainder may take; each costs about a pass."""
    weights = sum(p.numel() for p in problem.params.values())
    return options.exact_products * min(1.0, SMALL_NETWORK / weights)


def first_look_gradients(problem: Problem, options: HessianTraceOptions) -> float:
    """Likewise what :func:`first_look` takes."""
    return cost_of(problem, options, num_first_probes(problem, options))


def cost_of(problem: Problem, options: HessianTraceOptions, probes: float) -> float:
    """Likewise what the Gauss-Newton part takes with so many double backward probes of every sample."""
    outputs = problem.num_outputs if problem.num_outputs <= options.exact_outputs else options.num_factors
    curved = any(layer.curved_by for layer in problem.layers)
    backward, probe = (1.0, 2.0) if any(layer.kind == "convolution" for layer in problem.layers) else (0.4, 1.2)
    return 0.5 + backward * outputs + (probe * probes if curved else 0.0)
