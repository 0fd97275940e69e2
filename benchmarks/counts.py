"""How much work each quantity does, in passes and derivatives rather than seconds: a benchmark that CI can run.

The network is a small one with a curved and a piecewise linear part, and so are the samples: without the further draws
that ``noise_stability`` takes of such. Counted are *samples passed*, those of every forward pass of the network,
*derivatives*, calls of ``torch.autograd.grad``, and *products* of one sample with the Hessian block of one layer. They
are the same on every machine, up to decisions that rounding may tip: a stored count may be missed by five per cent.

``python -m benchmarks.counts`` shows the counts beside the stored ones, ``--update`` stores them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate
from torch import nn

import genbound
from genbound.curvature.layer_block import LayerBlock
from genbound.network.network import Network

STORED = Path(__file__).with_suffix(".json")
SLACK = 0.05  # by which a count may miss the stored one
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "max_quadratic_form found": {"max_quadratic_form": {"maximum": "found", "num_promising": 8, "num_checked": 8}},
    "default evaluation": {"noise_stability": {"small_perturbations": 1}},
}
FITTED = "of a fitted network"  # whose labels are its own answers
COUNTED = (
    "losses", "hessian_trace", "max_quadratic_form", "max_quadratic_form found", "max_positive_trace", "flatness",
    f"flatness {FITTED}", "sharpness", "fisher_rao_norm", "relative_flatness", "default evaluation",
)  # fmt: skip


@dataclass
class Counts:
    """Work that was done: samples passed through the network, calls for derivatives, products of single samples."""

    samples: int = 0
    derivatives: int = 0
    products: int = 0


def small_problem(fitted: bool = False, **options: Any) -> genbound.Problem:
    """Four layers, three of them curved, on 40 of 60 samples, with labels of any kind or the network's own answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        ).double()
        init = {name: 0.8 * p.detach() for name, p in model.named_parameters()}
        inputs = torch.randn(60, 6, dtype=torch.float64)
        data = (inputs, model(inputs).argmax(1) if fitted else torch.arange(60) % 3)
    return genbound.Problem(model, init, data, num_samples=40, **options)


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what is done inside."""
    found, forward, grad, product = Counts(), Network.forward, torch.autograd.grad, LayerBlock.product

    def counted_forward(self: Network, *arguments: Any, **named: Any) -> torch.Tensor:
        outputs = forward(self, *arguments, **named)
        found.samples += len(outputs)
        return outputs

    def counted_grad(*arguments: Any, **named: Any) -> Any:
        found.derivatives += 1
        return grad(*arguments, **named)

    def counted_product(self: LayerBlock, vectors: torch.Tensor) -> torch.Tensor:
        found.products += len(vectors)
        return product(self, vectors)

    with (
        mock.patch.object(Network, "forward", counted_forward),
        mock.patch("torch.autograd.grad", counted_grad),
        mock.patch.object(LayerBlock, "product", counted_product),
    ):
        yield found


def count(name: str) -> Counts:
    """The work of one of :data:`COUNTED`, with that of the quantities that it builds on."""
    problem = small_problem(fitted=name.endswith(FITTED))
    with counting() as found:
        genbound.evaluate(problem, None if name.startswith("default") else [name.split()[0]], options=OPTIONS.get(name))
    return found


def stored() -> dict[str, Counts]:
    """The counts of the version that stored them last."""
    return {name: Counts(**counts) for name, counts in json.loads(STORED.read_text(encoding="utf-8")).items()}


def changed(found: Counts, before: Counts) -> list[str]:
    """What differs by more than :data:`SLACK`, in words."""
    pairs = [(kind, asdict(found)[kind], asdict(before)[kind]) for kind in asdict(found)]
    return [f"{now} {kind} in place of {then}" for kind, now, then in pairs if abs(now - then) > SLACK * then]


def main(arguments: list[str]) -> None:
    """Count, show and perhaps store."""
    found = {name: count(name) for name in COUNTED}
    known = stored() if STORED.exists() else {}
    rows = [[name, *asdict(c).values(), *asdict(known.get(name, Counts())).values()] for name, c in found.items()]
    kinds = list(asdict(Counts()))
    print(tabulate(rows, ["quantity", *kinds, *(f"stored {kind}" for kind in kinds)]))
    if "--update" in arguments:
        entries = {name: asdict(counts) for name, counts in found.items()}
        STORED.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
