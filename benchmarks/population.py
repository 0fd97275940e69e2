"""What the choice of samples by size saves, and whether its stated errors cover the value on all samples.

Two small networks, one of words with eight classes and one of pictures, are trained for a while. Then the trace is
measured on ``--samples`` of their 400 samples over many seeds, chosen by size and drawn alike, and compared with the
exact value on all. ``python -m benchmarks.population`` prints the table; ``--noise`` has noise stability too, which
takes longer.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

import genbound

N, SIGMAS = 400, (0.003, 0.03)
Trained = tuple[nn.Module, dict[str, Tensor], Tensor, Tensor]


class Text(nn.Module):
    """One block of attention over words, and eight classes."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.up, self.head = nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x):
        e = self.words(x)
        weights = (self.query(e) @ self.key(e).mT / math.sqrt(8)).softmax(-1)
        return self.head(F.gelu(self.up(e + weights @ self.value(e))).mean(1))


class Image(nn.Module):
    """Two convolutions, and five classes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6 * 9, 5)

    def forward(self, x):
        return self.head(F.silu(self.second(F.silu(self.first(x)))).flatten(1))


def text(stream):
    x = torch.randint(0, 40, (N, 6), generator=stream)
    scores = torch.randn(40, 8, generator=stream)[x].sum(1)
    return Text(), x, (scores + torch.randn(N, 8, generator=stream)).argmax(1), 30


def image(stream):
    y = torch.randint(0, 5, (N,), generator=stream)
    x = torch.randn(5, 1, 6, 6, generator=stream)[y] + 1.5 * torch.randn(N, 1, 6, 6, generator=stream)
    return Image(), x.double(), y, 12


def train(kind: str) -> Trained:
    """A network of that kind in float64, its start, inputs and labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x, y, epochs = {"text": text, "image": image}[kind](torch.Generator().manual_seed(0))
        net = net.double()
        init = {name: p.detach().clone() for name, p in net.named_parameters()}
        steps = torch.optim.Adam(net.parameters(), lr=5e-3)
        for run in (run for _ in range(epochs) for run in torch.randperm(N).split(40)):
            steps.zero_grad()
            F.cross_entropy(net(x[run]), y[run]).backward()
            steps.step()
    return net.eval(), init, x, y


def problem_of(trained: Trained, num: int | None = None, seed: int = 0) -> genbound.Problem:
    """The problem with ``num`` samples measured; ``None`` means all."""
    net, init, x, y = trained
    return genbound.Problem(net, init, (x, y), num_samples=num, sample_seed=seed, batch_size=64)


def error_of(row: dict[str, Any]) -> float:
    """Standard error of a number over draws and choice of samples."""
    return float(np.hypot(row["sem"], row["data_sem"]))


def coverage(
    trained: Trained, seeds: int, num: int, noise: bool = False, choice: str = "size", error: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Errors and stated errors over seeds, both relative to the value on all samples.

    The columns are the total trace, the layers' and, with ``noise``, the noise stabilities; ``[seeds, columns]`` each.
    ``error`` is the one that is asked for, of as many samples and draws as that takes.
    """
    names = ["hessian_trace", "noise_stability"] if noise else ["hessian_trace"]
    exact = {"hessian_trace": {"exact_products": 10**9}}
    if noise:
        exact["noise_stability"] = {"sigmas": SIGMAS, "relative_sem": 0.01, "max_perturbations": 1024}
    usual = {"hessian_trace": {"choice": choice, "error": error} | ({"exact_products": 1} if error else {})}
    if noise:
        usual["noise_stability"] = {"sigmas": SIGMAS, "error": error}

    def rows(problem: genbound.Problem, seed: int, options: dict[str, Any]) -> tuple[list[float], list[float]]:
        found = genbound.evaluate(problem, names, seed, options=options).quantities
        trace = found["hessian_trace"]
        every = [trace["total"], *trace["layers"].values(), *(found["noise_stability"]["sigmas"] if noise else [])]
        return [row["value"] for row in every], [error_of(row) for row in every]

    truth, own = map(np.array, rows(problem_of(trained), 0, exact))
    found = [rows(problem_of(trained, num, seed), seed, usual) for seed in range(seeds)]
    values, stated = (np.array(part) for part in zip(*found, strict=True))
    return (values - truth) / np.abs(truth), np.hypot(stated, own) / np.abs(truth)


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--noise", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for kind in ("text", "image"):
        for choice in ("size", "uniform"):
            errors, stated = coverage(train(kind), given.seeds, given.samples, given.noise, choice)
            covered = (np.abs(errors) <= 2 * stated).mean(0)
            median = np.median(stated, axis=0)
            layers = covered[1 : -len(SIGMAS) if given.noise else None]
            table.append([kind, choice, errors[:, 0].std(), median[0], covered[0], layers.min()])
            table[-1] += list(covered[-len(SIGMAS) :]) * given.noise
    head = ["network", "choice", "error of the total", "stated", "covered by 2", "least covered layer"]
    head += [f"noise {sigma:g}" for sigma in SIGMAS] * given.noise
    print(tabulate(table, head, tablefmt="github", floatfmt=".3f"))


if __name__ == "__main__":
    main()
