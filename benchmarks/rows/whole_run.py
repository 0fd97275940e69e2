"""Rows of a whole evaluation: its time, and the peak memory of every quantity."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import genbound
from benchmarks import memory as peak
from benchmarks import models
from benchmarks.clock import typical
from benchmarks.rows.row import Row, row
from genbound.network.forward import scores
from genbound.results.events import Begun, Finished
from genbound.results.results import Results


def epoch_seconds(problem: genbound.Problem, steps: int = 12, size: int = 32) -> float:
    """Processor seconds of an epoch of fine-tuning over all samples of the data, from a few steps of AdamW."""
    num = len(problem.data)
    order = torch.randperm(num, generator=torch.Generator().manual_seed(0)).tolist()
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=0.0)
    problem.model.train()
    for p in problem.model.parameters():
        p.requires_grad_()
    batches = [problem.data.batch(order[size * step : size * (step + 1)]) for step in range(steps)]

    def train() -> None:
        for batch in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(scores(problem.model(**batch.inputs)), batch.targets).backward()
            optimizer.step()

    spent = typical(train, 1) * num / size / steps
    problem.model.eval().requires_grad_(False)
    return spent


def errors(results: Results) -> str:
    """What is known of the values on all training samples, and with which relative error."""
    found = results.quantities
    said = [f"trace {_share(q['total'])} from {q['total']['num_samples']} samples" for q in _of(found, "hessian_trace")]
    said += [f"noise at {r['sigma']:g} {_share(r)}" for q in _of(found, "noise_stability") for r in q["sigmas"]]
    said += [q["note"] for q in _of(found, "max_quadratic_form")]
    return "; ".join(said) or "no row has a number that is estimated"


def _of(quantities: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [quantities[name]] if name in quantities else []


def _share(row: dict[str, Any]) -> str:
    return f"{math.hypot(row['sem'], row['data_sem']) / abs(row['value']):.1%}"


RUNS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "first bound, hessian_distance over all samples": (
        "<= 1 epoch", 1.0,
        {"measures": ["hessian_distance"], "options": {"max_quadratic_form": {"maximum": "found"}}},
    ),
    "--effort quick": ("<= 0.5 epochs", 0.5, {"effort": "quick"}),
    "every default row, --error 0.1": (
        "<= 2 epochs", 2.0, {"options": {name: {"error": 0.1} for name in ("hessian_trace", "noise_stability")}},
    ),
}  # fmt: skip


def minilm_evaluate(kind: str) -> Callable[[], Iterator[Row]]:
    """One of :data:`RUNS` on the default 256 samples of MiniLM/SST-2, in epochs that are timed in the same process."""

    def measure() -> Iterator[Row]:
        epoch, (target, most, asked) = epoch_seconds(models.minilm(256)), RUNS[kind]
        problem, seconds, begun = models.minilm(256), dict[str, float](), [0.0]

        def listen(event: Any) -> None:
            if isinstance(event, Begun):
                begun[0] = time.process_time()
            if isinstance(event, Finished):
                now = time.process_time()
                seconds[event.name] = now - begun[0]
                begun[0] = now  # of what costs next to nothing no beginning is told

        start = time.process_time()
        results = genbound.evaluate(problem, listen=listen, **asked)
        spent = (time.process_time() - start) / epoch
        parts = ", ".join(f"{k} {v / epoch:.2f}" for k, v in sorted(seconds.items(), key=lambda kv: -kv[1])[:6])
        yield row(
            f"evaluate: MiniLM/SST-2, {kind}", f"{spent:.2f} epochs", target, spent <= most,
            f"an epoch of {len(problem.data)} sentences takes {epoch:.0f} s; of it {parts}. {errors(results)}",
            epochs=spent, epoch_seconds=epoch, seconds=seconds,
        )  # fmt: skip

    return measure


def memory() -> Iterator[Row]:
    """Of every quantity, on a MiniLM that was fine-tuned."""
    used = peak.peaks(models.minilm(peak.SAMPLES))
    step = used.pop(peak.STEP)
    for name, most in used.items():
        yield row(
            f"peak memory of {name}: MiniLM/SST-2, batches of 16", f"{most / step:.2f} training steps", "<= 2",
            most <= 2 * step, f"{most / 2**20:.0f} MiB; a step of AdamW {step / 2**20:.0f} MiB; above the loaded pair",
            ratio=most / step,
        )  # fmt: skip


def large_outputs(kind: str) -> Callable[[], Iterator[Row]]:
    """Of the quantity that takes most, for one of the heads of many outputs."""

    def measure() -> Iterator[Row]:
        used = peak.head_peaks(kind)
        step = used.pop(peak.STEP)
        worst = max(used, key=used.get)
        parts = ", ".join(f"{name} {most / step:.2f}" for name, most in used.items())
        products = peak.FEW["max_quadratic_form"]["max_products"]
        yield row(
            f"peak memory with {kind}: BERT-base widths, {models.BLOCKS} blocks, batches of 16",
            f"{used[worst] / step:.2f} training steps", "<= 2", used[worst] <= 2 * step,
            f"{worst}, {used[worst] / 2**20:.0f} MiB; a step of AdamW {step / 2**20:.0f} MiB; above the loaded pair. "
            f"{parts}; random weights, 16 samples of 32 tokens, few draws; the searches (of at most {products} "
            "products) of the first block's widest layer and the head", ratio=used[worst] / step, used=used,
        )  # fmt: skip

    return measure
