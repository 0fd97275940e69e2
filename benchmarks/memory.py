"""Peak memory of one thing in a process of its own, in bytes, above what the loaded problem holds.

``python -m benchmarks.memory WHAT [HEAD]`` prints it.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch

import genbound
from benchmarks import models

QUANTITIES = ("losses", "hessian_trace", "max_quadratic_form", "max_positive_trace", "noise_stability")
SAMPLES = 32


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def training_step(problem) -> None:
    """Forward, backward and AdamW on one batch, as fine-tuning does."""
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


def in_process(what: str, *head: str) -> int:
    """Start another process, so that the peak of one thing does not hide that of the next."""
    command = [sys.executable, "-m", "benchmarks.memory", what, *head]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    problem = models.large_head(sys.argv[2]) if len(sys.argv) > 2 else models.minilm(SAMPLES)
    with torch.no_grad():  # the libraries' own buffers
        problem.forward(problem.params, problem.batch([0]).inputs)
    before, what = _peak(), sys.argv[1]
    if what == "training_step":
        training_step(problem)
    else:
        genbound.evaluate(problem, [what])
    print(_peak() - before)


if __name__ == "__main__":
    main()
