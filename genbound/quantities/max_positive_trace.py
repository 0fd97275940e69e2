r"""The largest :math:`\mathrm{Tr}\,H_i^+[\ell(f_W(x), y)]` over the samples, per layer's own block.

* A positive semidefinite block's trace is its Gauss-Newton trace: exact for every sample. Where ``hessian_trace`` has
  probed it, because the outputs are many, it is exact for the candidates below, or an estimate if that takes too long.
* A small block, or that of few samples, is formed densely in the basis of the sample's own inputs, and decomposed:
  exact.
* A larger one is an **estimate**, and labelled so. The *candidates* are the samples with the largest traces and the
  largest spread of the trace's probes. Quadratures of one probe each leave the *finalists*, to which the largest trace
  is added, and fresh probes choose among these. Fresh probes again measure the chosen sample: the maximum of noisy
  estimates would be biased upward. A sample that was not a candidate may be larger, so the value is a lower estimate of
  the maximum. It is no less than the largest trace that is exactly known: :math:`\mathrm{Tr}\,H^+\ge\mathrm{Tr}\,H`.

The chosen sample is measured by :mod:`genbound.estimators.positive_trace`: every probe z has a certified bracket of
:math:`z^\top H^+ z`, and the large eigenvalues are taken out of the probes. ``lower`` and ``upper`` are the means of
the brackets' ends. They are certain of these probes alone: ``sem`` is what the draw of the probes adds, to either
side. ``value`` is the middle. For a Gauss-Newton trace random combinations of the outputs take the place of
quadratures and of probes, and ``lower`` and ``upper`` are their mean.

Cost:
    Exact blocks: nothing beyond ``hessian_trace``, or k backward passes and two double ones where that measured other
    samples (chosen by size), or one double backward pass for each dimension of the block.
    Gauss-Newton parts of more than 64 outputs: a backward pass of each candidate for each output, or 560 of one sample
    in all where that is more than ``dense_products``.
    Estimates: 600 double backward passes of one sample for each layer at most, fewer where the brackets close sooner.
Variance:
    ``sem`` is the standard error over the last probes, widened as Student's law asks for so few; 0 where the trace is
    exact.

References:
    Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl., 2017.
    Meyer, Musco, Musco & Woodruff, Hutch++: optimal stochastic trace estimation, SOSA 2021 (the large eigenvalues).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch

from genbound.curvature.layer_block import LayerBlock, dense_blocks
from genbound.curvature.traces import gauss_newton_trace, sampled_gauss_newton_trace
from genbound.estimators.disk_table import Table
from genbound.estimators.draws import Sampler
from genbound.estimators.estimate import student
from genbound.estimators.lanczos import Lanczos
from genbound.estimators.positive_trace import TraceBracket, positive_trace
from genbound.estimators.random import rademacher
from genbound.network.layers import Layer
from genbound.network.problem import Problem
from genbound.network.tape import Tape
from genbound.quantities.base import Context, Measured, Part, stacked, stream
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions
from genbound.quantities.catalogue.max_positive_trace import MaxPositiveTraceOptions
from genbound.quantities.trace_look import first_look_gradients, look_by_sample

NAME = "max_positive_trace"
FRESH = 4  # probes of each finalist
SCREENING = 10  # Lanczos steps of the quadratures that choose the sample
BACKWARD = 0.4  # products with the Hessian that a backward pass is reckoned at
ROOM = 2**28  # bytes of the Krylov bases that are held at a time


def _probes(operator: LayerBlock, shape: tuple[int, ...], source: torch.Generator) -> torch.Tensor:
    """Sign probes of the weight, one for each row of the pass, in the basis of its sample's inputs ``[N, d]``."""
    return _seen(operator, rademacher((len(operator.tape), *shape), source, operator.like))


def _seen(operator: LayerBlock, probes: torch.Tensor) -> torch.Tensor:
    """What the blocks see of directions of the weight ``[N, *shape]``, ``[N, d]``."""
    return operator.start(probes).reshape(len(operator.tape), -1).double()


def _quadratures(operator: LayerBlock, starts: torch.Tensor) -> np.ndarray:
    """About ``z^T H^+ z`` for each row z of ``starts [N, d]``, by Gauss quadrature; ``[N]``."""
    run = Lanczos(operator.product, starts)
    for _ in range(min(SCREENING, operator.dimension)):
        run.step(operator.precision)
    return np.array([run.positive_part(i) for i in range(len(starts))])


class _SampleBlock:
    """One sample's block H of a layer. Vectors go through it side by side, as copies of the sample in a pass.

    Args:
        problem: what is measured.
        layer: whose block.
        position: of the sample.
    """

    def __init__(self, problem: Problem, layer: Layer, position: int):
        self._problem, self._layer, self._position = problem, layer, position
        self._single = LayerBlock(problem.tape([position], [layer.name]), layer.name)

    def operators(self, num: int, steps: int) -> list[LayerBlock]:
        """Passes with room for ``num`` vectors in all and a Krylov basis of ``steps`` for each, all in one basis."""
        most = min(self._problem.batch_size if self._layer.by_batch else 1, num)
        most = max(1, min(most, ROOM // (8 * steps * self._single.dimension)))
        passes = -(-num // most)
        return [self._copies(size) for size in ((num + i) // passes for i in range(passes))]

    def _copies(self, num: int) -> LayerBlock:
        if num == 1:
            return self._single
        tape = self._problem.tape([self._position] * num, [self._layer.name])
        return self._single.narrowed(tape, [0] * num)

    def quadratures(self, num: int, source: torch.Generator) -> np.ndarray:
        """``z^T H^+ z`` for that many probes, ``[num]``."""
        operators = self.operators(num, SCREENING)
        return np.concatenate([_quadratures(op, _probes(op, self._layer.shape, source)) for op in operators])

    def trace(self, options: MaxPositiveTraceOptions, source: torch.Generator) -> TraceBracket:
        """The trace of ``H^+``."""
        steps = min(options.num_steps, self._single.dimension)
        operators = [self._single, *self.operators(options.num_probes, steps)]
        precision = self._single.precision
        starts = [(op.product, _probes(op, self._layer.shape, source)) for op in operators]
        return positive_trace(starts[0], starts[1:], steps, precision, self._single.tape.outputs.dtype)


def measure(problem: Problem, context: Context) -> Measured:
    """The largest trace of every layer, each by a search over the samples; the steps of all layers go side by side."""
    layers, known = problem.layers, _traces(problem, context)
    searches = [_Search(problem, context, i, known) for i in range(len(layers))]
    parts = context.map("layers", list(range(len(layers))), lambda i: searches[i].at_once())
    estimated = [i for i, part in enumerate(parts) if "likely" in part]
    if estimated:
        chosen = _choose(context, searches, {i: parts[i]["likely"].tolist() for i in estimated})
        found = context.map("measure", estimated, lambda i: searches[i].estimate(chosen[i]))
        for i, part in zip(estimated, found, strict=True):
            parts[i] = part
    rows = {
        layer.name: {
            **{key: float(part[key]) for key in ("value", "lower", "upper", "sem")},
            "num_samples": problem.num_samples,
            "sample": problem.indices[int(part["position"])],
            "method": str(part["method"]),
            "exact": bool(part["exact"]),
        }
        for layer, part in zip(layers, parts, strict=True)
    }
    note = "" if all(row["exact"] for row in rows.values()) else (
        "estimates are lower estimates of the maximum: samples that were not candidates may be larger"
    )  # fmt: skip
    return Measured({"layers": rows, "note": note})


def _traces(problem: Problem, context: Context) -> Mapping[str, Table]:
    """What is known of every sample's traces, tables ``[N, L]``: from ``hessian_trace`` if it measured these samples.

    Else from a first look at them: a maximum is not over samples that were chosen by size.
    """
    measured = context.measured["hessian_trace"]
    if "sample" not in measured.samples and len(measured.samples["value"]) == problem.num_samples:
        return measured.samples
    return stacked(context, "traces", problem.shards(), look_by_sample(problem, context.seed, HessianTraceOptions()))


def _choose(context: Context, searches: Sequence[_Search], likely: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """The sample of each layer that is measured: by two rounds, in which samples and layers are each by themselves.

    Args:
        context: of the measurement.
        searches: of all layers.
        likely: number of a layer -> its candidates.
    """
    items = [(i, p) for i, positions in likely.items() for p in positions]
    parts = context.map("screen", items, lambda item: {"value": searches[item[0]].screen(item[1])})
    values: dict[int, list[tuple[int, float]]] = {i: [] for i in likely}
    for (i, p), part in zip(items, parts, strict=True):
        values[i].append((p, float(part["value"])))
    finalists = {
        i: _with([p for p, _ in sorted(found, key=lambda pair: -pair[1])[: context.options.finalists]], searches[i].top)
        for i, found in values.items()
    }
    items = [(i, p) for i, positions in finalists.items() for p in positions if len(positions) > 1]
    parts = context.map("choose", items, lambda item: {"value": searches[item[0]].mean(item[1])}) if items else []
    means = {item: float(part["value"]) for item, part in zip(items, parts, strict=True)}
    return {
        i: max(positions, key=lambda p: max(means.get((i, p), 0.0), searches[i].floor(p)))
        for i, positions in finalists.items()
    }


def _with(positions: list[int], another: int) -> list[int]:
    """The positions and another one, once."""
    return list(dict.fromkeys([*positions, another]))


class _Search:
    """The search for one layer's largest trace, by the first way that is affordable.

    Args:
        problem: what is measured.
        context: of the measurement.
        number: of the layer.
        known: of all samples' traces.
    """

    def __init__(self, problem: Problem, context: Context, number: int, known: Mapping[str, Table]):
        self._problem, self._context, self._options = problem, context, context.options
        self._number, self._layer, self._name = number, problem.layers[number], problem.layers[number].name
        self._all = known

    def at_once(self) -> Part:
        """The largest trace where it is known or formed densely; else ``likely``, the candidates of an estimate."""
        every = range(self._problem.num_samples)
        if self._layer.positive_semidefinite:
            return self._gauss_newton()
        if self._layer.kind == "unused":
            return _part(TraceBracket(0.0, 0.0, 0.0), 0, "unused", True)
        if self._affordable(every):
            return _largest(self._dense(every), every, "dense", True)
        # A probe's spread is about the Frobenius norm of the remainder: no bound of its trace, but it grows with it.
        likely = sorted(_with(self._candidates(self._known("value") + self._known("probe_std")), self.top))
        if self._affordable(likely):
            return _largest(self._dense(likely), likely, "dense for candidates", False)
        return {"likely": np.array(likely)}

    def screen(self, position: int) -> np.ndarray:
        """A quadrature of one probe of a candidate; of its Gauss-Newton part the mean of as many combinations."""
        if self._layer.positive_semidefinite:
            return self._combined("screen", position, SCREENING).mean()
        (operator,) = self._operators([position])
        probe = rademacher((1, *self._layer.shape), self._stream("screen", position), operator.like)
        return _quadratures(operator, _seen(operator, probe))[0]

    def mean(self, position: int) -> np.ndarray:
        """The mean of fresh quadratures of a finalist, or of combinations."""
        if self._layer.positive_semidefinite:
            return self._combined("choose", position, FRESH * SCREENING).mean()
        block = _SampleBlock(self._problem, self._layer, position)
        return block.quadratures(FRESH, self._stream("choose", position)).mean()

    def estimate(self, position: int) -> Part:
        """The trace of the chosen sample, by fresh probes or combinations again."""
        if self._layer.positive_semidefinite:
            draws = self._combined("measure", position, self._options.num_probes * self._options.num_steps)
            mean, sem = float(draws.mean()), draws.std(ddof=1) / np.sqrt(len(draws)) * student(len(draws) - 1)
            return _part(TraceBracket(mean, mean, float(sem)), position, "gauss-newton by combinations", False)
        block = _SampleBlock(self._problem, self._layer, position)
        found, least = block.trace(self._options, self._stream("measure", position)), self.floor(self.top)
        position = self.top if found.value < least else position
        found = replace(found, lower=max(found.lower, least), upper=max(found.upper, least))
        return _part(found, position, "stochastic Lanczos quadrature", False)

    @property
    def top(self) -> int:
        """The sample with the largest trace, as far as that is known."""
        return int(self._known("value").argmax())

    def floor(self, position: int) -> float:
        """What the trace of a sample's positive part is at least: its trace, where that is no estimate."""
        probes = self._all.get("num_probes")
        exact = probes is not None and not probes[position] and not self._known("sem")[position]
        return max(0.0, float(self._known("value")[position])) if exact else 0.0

    def _combined(self, stage: str, position: int, num: int) -> np.ndarray:
        """So many Gauss-Newton traces of a sample, each from a random combination of the outputs, ``[num]``."""

        def passes(positions: Sequence[int]) -> Iterator[tuple[Tape, np.ndarray]]:
            return ((tape, np.array([0])) for tape in self._problem.tapes(positions, [self._name]))

        sampler = Sampler(
            f"{NAME} {stage} {self._number}", passes,
            lambda tape, rows: sampled_gauss_newton_trace(tape, rows, self._context.seed), 1, self._problem.batch_size,
        )  # fmt: skip
        return sampler.draws([position], num)[0, :, 0]

    def _gauss_newton(self) -> Part:
        """Exact traces where they are known, or of the largest few; ``likely`` where the outputs are too many."""
        values, noise = self._known("value"), self._known("sem")
        if not noise.any():
            return _largest(values, range(len(values)), "gauss-newton", True)
        likely = sorted(self._candidates(values + 4 * noise))
        if _column_products(self._problem, len(likely)) > self._options.dense_products:
            return {"likely": np.array(likely)}
        tapes = self._problem.tapes(likely, [self._name])
        exact = np.concatenate([gauss_newton_trace(tape)[:, 0].cpu().numpy() for tape in tapes])
        return _largest(exact, likely, "gauss-newton of candidates", False)

    def _known(self, key: str) -> np.ndarray:
        """What is known of every sample's trace ``[N]``, read when it is wanted: a table may lie on the disk."""
        return self._all[key][:, self._number]

    def _candidates(self, scores: np.ndarray) -> list[int]:
        """The samples with the largest scores ``[N]``, the largest first."""
        return [int(p) for p in np.argsort(-scores, kind="stable")[: self._options.candidates]]

    def _affordable(self, positions: Sequence[int]) -> bool:
        """Whether the products of these samples are few enough; a block's dimension grows with a sequence's length."""
        shortest = next(self._operators(positions[:1])).dimension
        if len(positions) * shortest > self._options.dense_products:
            return False
        spent = accumulate(len(op.tape) * op.dimension for op in self._operators(positions))
        return all(products <= self._options.dense_products for products in spent)

    def _dense(self, positions: Sequence[int]) -> np.ndarray:
        """Exact traces of these samples, ``[n]``."""
        eigenvalues = (torch.linalg.eigvalsh(dense_blocks(op)) for op in self._operators(positions))
        return np.concatenate([values.clamp(min=0).sum(1).cpu().numpy() for values in eigenvalues])

    def _operators(self, positions: Sequence[int]) -> Iterator[LayerBlock]:
        return (LayerBlock(tape, self._name) for tape in self._problem.tapes(positions, [self._name]))

    def _stream(self, stage: str, *key: int) -> torch.Generator:
        return stream(self._context, NAME, stage, self._number, *key)


def _largest(values: np.ndarray, positions: Sequence[int], method: str, exact: bool) -> Part:
    best = int(values.argmax())
    return _part(TraceBracket(float(values[best]), float(values[best]), 0.0), positions[best], method, exact)


def _part(found: TraceBracket, position: int, method: str, exact: bool) -> Part:
    numbers = {"value": found.value, "lower": found.lower, "upper": found.upper, "sem": found.sem, "position": position}
    return {key: np.array(number) for key, number in numbers.items()} | {
        "method": np.array(method), "exact": np.array(exact),
    }  # fmt: skip


def _column_products(problem: Problem, num: int) -> float:
    """Products that the exact Gauss-Newton parts of so many samples take as long as: a backward pass an output each."""
    return BACKWARD * num * problem.num_outputs


def forecast(problem: Problem, options: MaxPositiveTraceOptions) -> float:
    """Gradients over the measured samples; a product on one sample is about a gradient of it.

    Products go to the candidates' probes, the finalists' and those of the estimate. A block that is small enough is
    taken whole, a product for each of its dimensions. Gauss-Newton parts that ``hessian_trace`` probes take a backward
    pass of every candidate for each output, or one for each combination. Samples that ``hessian_trace`` was not
    measured on get a first look.
    """
    num = problem.num_samples
    screening = SCREENING * (options.candidates + FRESH * options.finalists)
    searched = (screening + (1 + options.num_probes) * options.num_steps) / num
    curved = [layer.num_weights for layer in problem.layers if not layer.positive_semidefinite]
    exact = _column_products(problem, min(options.candidates, num))
    combined = BACKWARD * (screening + options.num_probes * options.num_steps)
    parts = exact if exact <= options.dense_products else combined
    probed = problem.num_outputs > HessianTraceOptions().exact_outputs
    convex = len(problem.layers) - len(curved) if probed else 0
    look = first_look_gradients(problem, HessianTraceOptions()) if num < len(problem.data) else 0.0
    found = convex * parts / num
    return look + found + sum(float(size) if num * size <= options.dense_products else searched for size in curved)
