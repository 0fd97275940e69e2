"""Rows of ``max_quadratic_form``: gradients a layer, against Lanczos for every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks import models, peers
from benchmarks.clock import gradient, seconds, typical
from benchmarks.rows.row import ERROR, Row, ours_to_error, row


def minilm_quadratic_form() -> Iterator[Row]:
    problem = models.minilm(128)
    unit, layers = typical(gradient(problem), 2), len(problem.layers)
    from genbound.quantities.quadratic_brackets import screen

    screened = sum(seconds(lambda s=shard: screen(problem, s)) for shard in problem.shards()) / unit / layers
    spent, ours = ours_to_error(problem, "max_quadratic_form", tolerance_of="layer")
    each = spent / unit / layers
    entries = ours["layers"].values()
    closed = sum(e["upper"] - e["lower"] <= ERROR * e["upper"] for e in entries)
    yield row(
        "max_quadratic_form: MiniLM/SST-2, screening of all samples", f"{screened:.2f} gradients a layer", "<= 1",
        screened <= 1, "one product of every sample with every layer's own block", gradients=screened,
    )  # fmt: skip
    yield row(
        "max_quadratic_form: MiniLM/SST-2, to 1 % on every layer", f"{each:.2f} gradients a layer", "<= 3",
        each <= 3 and closed == layers, f"{closed} of {layers} layers closed to 1 %", gradients=each, closed=closed,
    )  # fmt: skip
    # The peer: Lanczos for every sample and layer on that layer's Hessian of that one sample, here on a few of them.
    chosen, products, cost = np.random.default_rng(0), [], []
    for _ in range(12):
        layer = problem.layers[int(chosen.integers(layers))]
        position = int(chosen.integers(problem.num_samples))
        if not problem.displacement[layer.name].any():
            continue
        products.append(peers.lanczos_products(problem, layer.name, position, ERROR, 100))
        cost.append(_sample_product(problem, layer.name, position))
    peer = float(np.mean(np.array(products) * np.array(cost))) * problem.num_samples * layers
    yield row(
        "max_quadratic_form: MiniLM/SST-2, against Lanczos for every sample", f"{peer / spent:.0f}x", ">= 20x",
        peer / spent >= 20, f"peer extrapolated from {len(products)} pairs of sample and layer, "
        f"{np.mean(products):.0f} products each",
        ratio=peer / spent,
    )  # fmt: skip


def _sample_product(problem, name: str, position: int) -> float:
    """Seconds for one product with curvlinops' Hessian of one sample in one layer."""
    from curvlinops import HessianLinearOperator

    model = peers.Plain(problem.model)
    for key, p in model.named_parameters():
        p.requires_grad_(key.removeprefix("model.") == name)
    batch = problem.batch([position])
    inputs = peers.Inputs(batch.inputs) if isinstance(batch.inputs, dict) else batch.inputs
    weight = [p for p in model.parameters() if p.requires_grad]
    with peers.plain_attention():
        hessian = HessianLinearOperator(
            model, torch.nn.CrossEntropyLoss(), weight, [(inputs, batch.targets)], check_deterministic=False,
            num_data=1, batch_size_fn=lambda x: x.size(0),
        )  # fmt: skip
        return typical(lambda: hessian @ [problem.displacement[name]], 2)


def exact_quadratic_form(network: str) -> Callable[[], Iterator[Row]]:
    def measure() -> Iterator[Row]:
        problem = models.cifar(network, 128)
        unit = typical(gradient(problem), 2)
        spent, _ = ours_to_error(problem, "max_quadratic_form")
        each = spent / unit / len(problem.layers)
        yield row(
            f"max_quadratic_form: {network}/CIFAR-10, exact", f"{each:.2f} gradients a layer", "<= 0.5", each <= 0.5,
            f"{len(problem.layers)} layers", gradients=each,
        )  # fmt: skip

    return measure
