"""Rows of ``noise_stability``: forward passes to an error, against shared one-sided draws."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

import genbound
from benchmarks import models, peers
from benchmarks.clock import forward, typical
from benchmarks.rows.row import ERROR, Row, known_to, row


def minilm_noise(num: int = 256, draws: int = 64, target: float = 50) -> Iterator[Row]:
    problem = models.minilm_alone(num)
    sigma, unit = 0.005, typical(forward(problem), 3)
    start = time.process_time()
    # The trace, which the mean of the control comes from, is part of the cost.
    results = genbound.evaluate(problem, ["noise_stability"], options={
        "hessian_trace": {"total_sem": 0.9 * ERROR, "layer_sem": 10.0, "max_probes": 4096},
        "noise_stability": {"sigmas": (sigma,), "relative_sem": 1.25 * ERROR, "max_perturbations": 512},
    })  # fmt: skip
    spent, ours = time.process_time() - start, results.quantities["noise_stability"]
    share = results.cost["seconds"]["hessian_trace"] / (
        results.cost["seconds"]["hessian_trace"] + results.cost["seconds"]["noise_stability"]
    )
    entry = ours["sigmas"][0]
    spent *= max(1.0, (entry["sem"] / entry["value"] / ERROR) ** 2)
    shared = [peers.shared_one_sided(problem, sigma, draw) for draw in range(draws)]
    passes = (np.std(shared, ddof=1) / (ERROR * entry["value"])) ** 2
    peer = passes * typical(lambda: peers.shared_one_sided(problem, sigma, 0), 3)
    yield row(
        f"noise_stability: MiniLM/SST-2, {num} samples, sigma {sigma:g}, mean to 1 %", f"{peer / spent:.0f}x",
        f">= {target:g}x", peer / spent >= target,
        f"genbound {spent / unit:.0f} forward passes of time, {100 * share:.0f} % of it for the "
        f"trace; one shared one-sided draw a pass: {passes:.0f} passes, known to {known_to(np.array(shared))}, "
        f"extrapolated by 1/m", ratio=peer / spent, passes=spent / unit, peer_passes=float(passes),
    )  # fmt: skip


def minilm_noise_1024() -> Iterator[Row]:
    yield from minilm_noise(1024, target=100)


def minilm_draw() -> Iterator[Row]:
    from genbound.curvature.noise_by_row import Normals, noisy_losses

    problem = models.minilm(256)
    unit = typical(forward(problem), 3)

    def draws() -> None:
        for start in range(0, problem.num_samples, problem.batch_size):
            rows = [(p, ("row", p // 16), p % 16) for p in range(start, start + problem.batch_size)]
            normals = Normals(rows, 0, problem.params[problem.layers[0].name])
            for s in (0.001, 0.002, 0.005, 0.01, 0.02):
                noisy_losses(problem, rows, normals, (s, -s))

    each = typical(draws, 1) / unit / 10
    yield row(
        "noise_stability: MiniLM/SST-2, time of a draw", f"{each:.2f} forward passes", "<= 1.2", each <= 1.2,
        "an independent U for every sample, on the default grid of five sigmas", passes=each,
    )  # fmt: skip
