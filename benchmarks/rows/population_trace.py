"""The trace over all training samples: what a relative error of 10 % costs, draws and choice of samples together.

The peers multiply the mean Hessian of some samples by probes, and say nothing of the samples' choice. They are charged
with what the best split would take: m samples drawn alike of n, all of them multiplied by each of p probes, where

    variance = S^2 (1/m - 1/n) + (a + b/m) / p,    cost = m p products on single samples.

S^2 is the spread of the samples' traces; a probe's variance is a + b/m for the mean of m samples, where a is what a
shared probe leaves however many there are. All three are measured; so is the cost of a product, of which the peers are
charged with no more than two gradients (what eight vectors at once take them).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

import genbound
from benchmarks import models
from benchmarks.clock import gradient, typical
from benchmarks.rows.row import Row, row
from genbound.curvature.traces import gauss_newton_trace, probe_trace
from genbound.estimators.random import row_of
from genbound.results.results import Results

ERROR = 0.1
PRODUCT = 2.0  # gradients, at most


def best_split(spread: float, shared: float, own: float, wanted: float, num: int, once: float = 0.0) -> tuple[int, int]:
    """The samples and probes of least cost.

    Args:
        spread: variance of the samples' traces.
        shared: variance of a probe of the mean of very many samples.
        own: what it has beyond that for one sample.
        wanted: variance that is asked for.
        num: samples that there are.
        once: what a sample costs beside its probes, in probes.
    """
    samples = np.arange(1, num + 1)
    left = wanted - spread * (1 / samples - 1 / num)
    probes = np.where(left > 0, np.ceil((shared + own / samples) / np.maximum(left, 1e-300)), np.inf)
    best = int(np.argmin(samples * (probes + once)))
    return int(samples[best]), int(probes[best])


def probe_variances(problem: genbound.Problem, num: int) -> tuple[float, float, float]:
    """``shared`` and ``own`` of :func:`best_split`, and the seconds of a product for one sample, from joint probes.

    Two batches' forms of one probe have the shared part in common, and nothing else. Batches have the problem's size.
    """
    names = [layer.name for layer in problem.layers]
    runs = [run for run in problem.batches(range(problem.num_samples)) if len(run) == problem.batch_size]
    source, values = torch.Generator().manual_seed(0), np.zeros((num, len(runs)))
    start = time.process_time()
    for column, run in enumerate(runs):
        batch = problem.batch(run)
        source.manual_seed(0)  # the same probes for every batch
        for draw in range(num):
            weights = {name: problem.params[name].detach().requires_grad_() for name in names}
            outputs = problem.forward({**problem.params, **weights}, batch.inputs)
            loss = problem.loss.per_sample(outputs, batch.targets).mean()
            first = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            signs = [torch.randint(0, 2, g.shape, generator=source).to(g) * 2 - 1 for g in first]
            second = torch.autograd.grad(first, list(weights.values()), signs)
            values[draw, column] = sum(float((z * hz).sum()) for z, hz in zip(signs, second, strict=True))
    product = (time.process_time() - start) / (num * len(runs) * problem.batch_size)
    covariance = np.cov(values.T)
    shared = max(float(covariance[~np.eye(len(runs), dtype=bool)].mean()), 0.0)
    return shared, max(float(np.diag(covariance).mean()) - shared, 0.0) * problem.batch_size, product


def spread_of(problem: genbound.Problem, results: Results) -> float:
    """Variance of the traces of single samples over all, from two draws of each that genbound measured, by weight.

    What two independent draws have in common is the sample's trace: their own noise is not in it.
    """
    table = results.samples.dropna(subset="hessian_trace").groupby("sample")["hessian_trace_weight"].first()
    whole = problem.over_all()
    place = {index: position for position, index in enumerate(whole.indices)}
    weight = {place[index]: float(w) for index, w in table.items()}
    values, weights = [], []
    for tape in whole.tapes(sorted(weight)):
        exact = gauss_newton_trace(tape).sum(1)
        rows = [[row_of("spread", p, draw, 2) for p in tape.positions] for draw in range(2)]
        values += torch.stack([exact + probe_trace(tape, "remainder", own, 1).sum(1) for own in rows], 1).tolist()
        weights += [weight[p] for p in tape.positions]
    return float(np.cov(np.array(values).T, aweights=weights, ddof=0)[0, 1])


def minilm_population(probes: int = 12) -> Iterator[Row]:
    """genbound's ``--error 0.1`` on MiniLM/SST-2, against the peers' best split."""
    problem = models.minilm(128)
    unit = typical(gradient(problem), 1) / problem.num_samples
    start = time.process_time()
    results = genbound.evaluate(problem, ["hessian_trace"], options={"hessian_trace": {"error": ERROR}})
    yield population_row(problem, results, time.process_time() - start, unit, probes)


def population_row(problem: genbound.Problem, results: Results, spent: float, unit: float, probes: int) -> Row:
    """The row.

    Args:
        problem: with some samples measured, on which the peers' probes are taken.
        results: of genbound, with the error asked for.
        spent: seconds that these took.
        unit: seconds of a gradient on one sample.
        probes: of the peers.
    """
    total, num = results.quantities["hessian_trace"]["total"], len(problem.data)
    shared, own, product = probe_variances(problem, probes)
    spread, wanted = spread_of(problem, results), (ERROR * total["value"]) ** 2
    samples, draws = best_split(spread, shared, own, wanted, num)
    charged = min(PRODUCT, product / unit)
    theirs = samples * draws * charged
    ratio, losses = theirs / (spent / unit), results.cost["seconds"]["losses"] / sum(results.cost["seconds"].values())
    obtained = np.hypot(total["sem"], total["data_sem"]) / abs(total["value"])
    return row(
        f"hessian_trace, total over all {num}: MiniLM/SST-2, to {ERROR:.0%}", f"{ratio:.1f}x", ">= 20x", ratio >= 20,
        f"genbound {spent / unit:.0f} gradients on single samples ({spent / unit / num:.2f} of a pass over all; "
        f"{losses:.0%} of it the pass that "
        f"has the losses of all; obtained {obtained:.1%} from {total['num_samples']} samples with "
        f"{results.quantities['hessian_trace']['num_probes']} probes); best peer {draws} probes on {samples} samples "
        f"drawn alike, {charged:.1f} gradients a product; standard deviations: {spread**0.5:.0f} between samples, "
        f"{shared**0.5:.0f} of a shared probe and {own**0.5:.0f} of a sample's own, trace {total['value']:.0f}",
        ratio=ratio, spread=spread, shared=shared, own=own, product_gradients=product / unit,
    )  # fmt: skip
