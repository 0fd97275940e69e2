"""Is it the same number? Against the peers' draws, in other precisions, and compiled."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

import genbound
from benchmarks import models, peers
from benchmarks.clock import typical
from benchmarks.rows.peer_probes import PeerProbes
from benchmarks.rows.row import Row, ours_to_error, row


def minilm_agreement(num: int = 16, probes: int = 400) -> Iterator[Row]:
    problem = models.minilm(num)
    options = {"layer_sem": 0.01, "total_sem": 0.005, "max_probes": 512}
    ours = genbound.evaluate(problem, ["hessian_trace"], options={"hessian_trace": options}).quantities["hessian_trace"]
    values = PeerProbes(problem, probes).values
    values = np.column_stack([values, values.sum(1)])
    entries = [*ours["layers"].values(), ours["total"]]
    mean, sem = values.mean(0), values.std(0, ddof=1) / np.sqrt(probes)
    z = (mean - [e["value"] for e in entries]) / np.hypot(sem, [e["sem"] for e in entries])
    yield row(
        f"hessian_trace: MiniLM/SST-2, {num} samples, every layer against {probes} probes of curvlinops",
        f"{np.abs(z).max():.1f} errors at most", "<= 4", np.abs(z).max() <= 4,
        f"mean square {np.mean(z[:-1] ** 2):.2f} over {len(z) - 1} layers, total {z[-1]:+.1f}; relative error of the "
        f"total {100 * sem[-1] / mean[-1]:.1f} % there, {100 * entries[-1]['sem'] / entries[-1]['value']:.1f} % here",
        z=z.tolist(),
    )  # fmt: skip
    sigma = 0.005
    noise = genbound.evaluate(
        problem,
        ["noise_stability"],
        options={"noise_stability": {"sigmas": (sigma,), "relative_sem": 0.02, "max_perturbations": 512}},
    )
    entry = noise.quantities["noise_stability"]["sigmas"][0]
    base = models.measured_loss(problem)
    plain = np.array([peers.shared_one_sided(problem, sigma, draw) for draw in range(probes)]) - base
    sem = plain.std(ddof=1) / np.sqrt(probes)
    z = (plain.mean() - entry["value"]) / np.hypot(sem, entry["sem"])
    yield row(
        f"noise_stability: MiniLM/SST-2, {num} samples, against {probes} shared one-sided draws",
        f"{abs(z):.1f} errors",
        "<= 4", abs(z) <= 4, f"{entry['value']:.5f} +- {entry['sem']:.5f} here, {plain.mean():.5f} +- {sem:.5f} there",
        z=float(z),
    )  # fmt: skip


def minilm_precision(num: int = 32) -> Iterator[Row]:
    options = {"hessian_trace": {"num_pilot": 2, "max_probes": 4, "layer_sem": 1e-9, "total_sem": 1e-9}}
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        problem = models.minilm(num, dtype=dtype)
        spent, ours = ours_to_error(problem, "hessian_trace", **options["hessian_trace"])
        found[dtype] = spent, ours["total"]["value"], [e["value"] for e in ours["layers"].values()]
    seconds32, exact = found[torch.float32][0], found[torch.float64]
    for dtype in (torch.float32, torch.bfloat16):
        spent, total, layers = found[dtype]
        error = abs(total - exact[1]) / abs(exact[1])
        worst = np.max(np.abs(np.subtract(layers, exact[2])) / np.max(np.abs(exact[2])))
        yield row(
            f"hessian_trace: MiniLM/SST-2 in {str(dtype).removeprefix('torch.')} against float64, same probes",
            f"{error:.1e} relative error", "<= 1e-3", error <= 1e-3, f"layers to {worst:.1e} of the largest; time "
            f"{spent / seconds32:.2f} of float32's, float64 {exact[0] / seconds32:.2f}", error=error,
            time=spent / seconds32,
        )  # fmt: skip


def minilm_compiled(num: int = 64) -> Iterator[Row]:
    problem = models.minilm(num)
    batch = problem.batch(list(range(num - 16, num)))
    compiled = torch.compile(problem.model, dynamic=False)

    def run(model: torch.nn.Module) -> None:
        with torch.no_grad(), peers.plain_attention():
            model(**batch.inputs)

    start = time.perf_counter()
    run(compiled)
    waited = time.perf_counter() - start
    ratio = typical(lambda: run(compiled), 9) / typical(lambda: run(problem.model), 9)
    yield row(
        "torch.compile: MiniLM/SST-2, a forward pass", f"{ratio:.2f} of the time", "< 1", ratio < 1,
        f"compilation takes {waited:.0f} s for each shape of a batch", ratio=ratio, compilation=waited,
    )  # fmt: skip
