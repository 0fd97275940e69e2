"""Rows of a whole evaluation: its time, and the peak memory of every quantity."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

import genbound
from benchmarks import memory as peak
from benchmarks import models
from benchmarks.clock import typical
from benchmarks.rows.row import Row, row


def minilm_evaluate(num: int = 1000) -> Iterator[Row]:
    problem = models.minilm(num)
    steps, sentences = 20, len(problem.data)
    order = torch.randperm(sentences, generator=torch.Generator().manual_seed(0)).tolist()
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=0.0)
    problem.model.train()
    for p in problem.model.parameters():
        p.requires_grad_()

    def train() -> None:
        for step in range(steps):
            batch = problem.data.batch(order[16 * step : 16 * step + 16])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(problem.model(**batch.inputs).logits, batch.targets).backward()
            optimizer.step()

    epochs = typical(train, 1) * 2 * sentences / 16 / steps
    problem = models.minilm(num)
    start = time.process_time()
    results = genbound.evaluate(problem)
    spent = time.process_time() - start
    parts = {k: round(v) for k, v in sorted(results.cost["seconds"].items(), key=lambda kv: -kv[1]) if v >= 1}
    yield row(
        f"evaluate: MiniLM/SST-2, every default quantity, {num} samples", f"{spent / epochs:.2f} of two epochs", "< 1",
        spent < epochs,
        f"two epochs on {sentences} sentences take {epochs:.0f} s, evaluate {spent:.0f} s; wall seconds: {parts}",
        ratio=spent / epochs, seconds=spent, epochs_seconds=epochs,
    )  # fmt: skip


def memory() -> Iterator[Row]:
    step = peak.in_process("training_step")
    for name in peak.QUANTITIES:
        used = peak.in_process(name)
        yield row(
            f"peak memory of {name}: MiniLM/SST-2, batches of 16", f"{used / step:.2f} training steps", "<= 2",
            used <= 2 * step, f"{used / 2**20:.0f} MiB; a step of AdamW {step / 2**20:.0f} MiB; above the loaded pair",
            ratio=used / step,
        )  # fmt: skip


def large_outputs() -> Iterator[Row]:
    for kind in models.HEADS:
        step = peak.in_process("training_step", kind)
        used = {name: peak.in_process(name, kind) for name in peak.QUANTITIES}
        worst = max(used, key=used.get)
        yield row(
            f"peak memory with {kind}, batches of 16", f"{used[worst] / step:.2f} training steps", "<= 2",
            used[worst] <= 2 * step, f"most of five quantities: {worst}, {used[worst] / 2**20:.0f} MiB; a step of "
            f"AdamW {step / 2**20:.0f} MiB; above the loaded pair", ratio=used[worst] / step, used=used,
        )  # fmt: skip
