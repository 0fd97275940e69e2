"""Rows of ``hessian_trace``: seconds to an error, against the best peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks import models, peers
from benchmarks.clock import gradient, seconds, typical
from benchmarks.rows.peer_probes import PeerProbes, xtrace_products
from benchmarks.rows.row import ERROR, Row, known_to, ours_to_error, row

LAYER_ERROR = 0.07  # to which every layer is run, its cost at ERROR following by the law of both sides


def trace_rows(
    problem, label: str, target: float, layer_target: float, probes: int = 32, largest: int = 16,
    layer_error: float = LAYER_ERROR, most: int = 32,
) -> Iterator[Row]:  # fmt: skip
    unit = typical(gradient(problem), 2)
    spent, ours = ours_to_error(problem, "hessian_trace", total_sem=ERROR, layer_sem=10.0, max_probes=4096)
    # The exact part and every sample's first probes are paid once, whatever the error.
    once, _ = ours_to_error(problem, "hessian_trace", total_sem=10.0, layer_sem=10.0, max_probes=1)
    layers_spent, ours_layers = ours_to_error(
        problem, "hessian_trace", total_sem=10.0, layer_sem=layer_error, max_probes=most
    )
    total = ours["total"]
    reached = total["sem"] / abs(total["value"])
    spent *= max(1.0, (reached / ERROR) ** 2)
    peer = PeerProbes(problem, probes, keep=True)
    pyhessian = seconds(lambda: peers.pyhessian_trace(problem, 1))
    with peers.plain_attention():
        operator = peers.eigenthings_hessian(problem)
        eigenthings = seconds(lambda: operator.matvec(torch.ones(operator.size)))
    product, values = min(peer.product, pyhessian, eigenthings), peer.values
    draws = peer.left_by_sketch(largest)
    left = {k: float(found.var(ddof=1)) / (ERROR * total["value"]) ** 2 for k, found in draws.items()}
    hutchpp, rank = min((2 * k + num, k) for k, num in left.items())
    xtrace = xtrace_products(left)
    best = min(hutchpp, xtrace or hutchpp)
    found = f"XTrace {xtrace}" if xtrace else f"XTrace more than {2 * largest + 2}"
    ratio = best * product / spent
    yield row(
        f"hessian_trace, total: {label}, {problem.num_samples} samples", f"{ratio:.0f}x", f">= {target:g}x",
        ratio >= target,
        f"genbound {spent / unit:.1f} gradients for 1 % (obtained {100 * reached:.2f} %); best peer {best:.0f} "
        f"products of {product / unit:.1f} gradients, PyHessian's of {pyhessian / unit:.1f}, hessian-eigenthings' of "
        f"{eigenthings / unit:.1f} (Hutchinson {left[0]:.0f}, "
        f"Hutch++ {hutchpp:.0f} at rank {rank}, {found}; rank {largest} leaves {100 * left[largest] / left[0]:.0f} % "
        f"of the variance), known to {known_to(draws[rank])}, extrapolated by 1/m",
        ratio=ratio, gradients=spent / unit, peer_products=best, product_gradients=product / unit,
        left_by_sketch=left, value=total["value"], sem=total["sem"], peer_mean=float(values.sum(1).mean()),
        peer_sem=float(values.sum(1).std(ddof=1) / np.sqrt(probes)), seconds=spent, gradient_seconds=unit,
    )  # fmt: skip
    names = list(ours_layers["layers"])
    value = np.array([ours_layers["layers"][n]["value"] for n in names])
    sem = np.array([ours_layers["layers"][n]["sem"] for n in names])
    scale = np.maximum(np.abs(value), 0.01 * np.abs(value).max())
    # Probes beyond those of this run would follow the same law.
    each = once + (layers_spent - once) * np.maximum((sem / scale / ERROR) ** 2, 0.2)
    theirs = values.var(0, ddof=1) / (ERROR * scale) ** 2 * product
    median = float(np.median(theirs / each))
    yield row(
        f"hessian_trace, median layer: {label}, {problem.num_samples} samples", f"{median:.0f}x",
        f">= {layer_target:g}x",
        median >= layer_target, f"against Hutchinson's joint probes; layers from {np.min(theirs / each):.0f}x to "
        f"{np.max(theirs / each):.0f}x; genbound's layers to {100 * np.median(sem / scale):.1f} % in the median, "
        f"{layers_spent / unit:.1f} gradients, of which {once / unit:.1f} whatever the error",
        ratio=median, gradients=layers_spent / unit, once=once / unit,
    )  # fmt: skip


def minilm_trace() -> Iterator[Row]:
    yield from trace_rows(models.minilm_alone(512), "MiniLM/SST-2", 60, 100, probes=32, largest=8)


def minilm_trace_1024() -> Iterator[Row]:
    yield from trace_rows(models.minilm_alone(1024), "MiniLM/SST-2", 90, 200, probes=16, largest=4)


def minilm_trace_2048() -> Iterator[Row]:
    yield from trace_rows(models.minilm_alone(2048), "MiniLM/SST-2", 100, 100, probes=16, largest=4)


def minilm_trace_128() -> Iterator[Row]:
    yield from trace_rows(models.minilm_alone(128), "MiniLM/SST-2", 25, 12, probes=128)


def fitted_trace() -> Iterator[Row]:
    problem = models.fitted(256)
    loss = models.measured_loss(problem)
    # Here the part that is computed exactly would be most of the time for the other rows' errors.
    yield from trace_rows(
        problem, f"MiniLM well fitted (loss {loss:.4f})", 1000, 1000, largest=32, layer_error=0.02, most=512
    )


def exact_trace(network: str) -> Callable[[], Iterator[Row]]:
    def measure() -> Iterator[Row]:
        problem = models.cifar(network, 128)
        unit = typical(gradient(problem), 2)
        spent, ours = ours_to_error(problem, "hessian_trace")
        gradients = spent / unit
        peer = PeerProbes(problem, 12)
        product, values = peer.product, peer.values
        mean, sem = values.sum(1).mean(), values.sum(1).std(ddof=1) / np.sqrt(len(values))
        yield row(
            f"hessian_trace: {network}/CIFAR-10, exact, all layers", f"{gradients:.1f} gradients", "<= 12",
            gradients <= 12, f"{problem.num_outputs} classes, sem {ours['total']['sem']:g}; curvlinops' probes: "
            f"{(mean - ours['total']['value']) / sem:+.1f} of their sem away, {product / unit:.1f} gradients each",
            gradients=gradients, value=ours["total"]["value"], peer_mean=float(mean), peer_sem=float(sem),
        )  # fmt: skip

    return measure
