"""Peak memory of a training step and of quantities, in bytes, above what the loaded problem holds.

``python -m benchmarks.memory [HEAD]`` prints it. A step, and a run of the quantities one after the other, have a
process each. It is forked off the one that loaded the pair, and has run once on a network of a few weights: modules of
genbound and pages of libraries count for neither side. Linux alone, with one thread.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import genbound
from benchmarks import models
from genbound.results.events import Finished

QUANTITIES = ("losses", "hessian_trace", "max_quadratic_form", "max_positive_trace", "noise_stability")
STEP = "training_step"
SAMPLES = 32


def _resident(what: str) -> int:
    """Bytes of this process that are resident: now (``VmRSS``), or the most there were (``VmHWM``)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def _baseline() -> int:
    """What is resident once freed memory is given back; the most there were is counted from here on."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def training_step(problem: genbound.Problem) -> None:
    """Forward, backward and AdamW on one batch, twice, as fine-tuning does."""
    model = problem.model.train()
    for p in model.parameters():
        p.requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    batch = problem.batch(list(range(problem.num_samples))[-problem.batch_size :])  # the longest sentences
    for _ in range(2):
        optimizer.zero_grad()
        problem.loss.per_sample(
            problem.forward(dict(model.named_parameters()), batch.inputs), batch.targets
        ).mean().backward()
        optimizer.step()


def _warm_up() -> None:
    """Run all of it on a network of a few weights."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    tiny = genbound.Problem(model, init, (torch.randn(4, 3), torch.arange(4) % 2))
    genbound.evaluate(tiny, list(QUANTITIES))
    training_step(tiny)


def in_process(run: Callable[[], dict[str, int]]) -> dict[str, int]:
    """What ``run`` finds in a process of its own."""
    torch.set_num_threads(1)  # those of a pool do not live on in a forked process
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            _warm_up()
            os.write(writing, json.dumps(run()).encode())
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found = pipe.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit("benchmarks: the process that was measured has failed")
    return json.loads(found)


def step_peak(problem: genbound.Problem) -> dict[str, int]:
    """Of a training step."""
    before = _baseline()
    training_step(problem)
    return {STEP: _resident("VmHWM") - before}


def quantity_peaks(problem: genbound.Problem, names: Sequence[str], **asked: Any) -> dict[str, int]:
    """Of quantities that are measured in one run, and of what they require; ``asked`` are arguments of ``evaluate``."""
    before, found = _baseline(), dict[str, int]()

    def listen(event: Any) -> None:
        if isinstance(event, Finished):
            found[event.name] = _resident("VmHWM") - before
            Path("/proc/self/clear_refs").write_text("5")

    results = genbound.evaluate(problem, list(names), listen=listen, **asked)
    if missing := [name for name in names if name not in results.quantities]:
        raise RuntimeError(f"not measured: {', '.join(missing)}")
    return found


def peaks(problem: genbound.Problem) -> dict[str, int]:
    """What a step and each of the five quantities take."""
    return in_process(lambda: step_peak(problem)) | in_process(lambda: quantity_peaks(problem, QUANTITIES))


# Fewer draws and products than by default. What a pass holds does not depend on how many there are, but the vectors of
# max_quadratic_form do, up to 1 GiB of them.
FEW = {
    "hessian_trace": {"max_probes": 1, "small_probes": 1, "exact_products": 0, "least_probes": 32},
    "noise_stability": {"max_perturbations": 1, "small_perturbations": 1, "num_shared": 2, "least_pairs": 32,
                        "max_shared_samples": 8, "sigmas": (0.001, 0.005, 0.02)},
    "max_quadratic_form": {"max_products": 48},
    "max_positive_trace": {"candidates": 4, "num_probes": 5},
}  # fmt: skip
DRAWN = ("losses", "hessian_trace", "noise_stability")
SEARCHES = ("max_quadratic_form", "max_positive_trace")


def head_peaks(kind: str) -> dict[str, int]:
    """Likewise of one of :data:`~benchmarks.models.HEADS`: all its layers but for the searches, which are of two."""
    whole = models.large_head(kind)
    some = models.with_layers(whole, models.SEARCHED)

    def run() -> dict[str, int]:
        found = quantity_peaks(whole, DRAWN, options={name: FEW[name] for name in FEW if name not in SEARCHES})
        searched = quantity_peaks(some, SEARCHES, options={name: FEW[name] for name in ("hessian_trace", *SEARCHES)})
        return found | {name: searched[name] for name in SEARCHES}

    return in_process(lambda: step_peak(whole)) | in_process(run)


if __name__ == "__main__":
    print(head_peaks(sys.argv[1]) if len(sys.argv) > 1 else peaks(models.minilm(SAMPLES)))
