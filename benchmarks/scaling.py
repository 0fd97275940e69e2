"""``python -m benchmarks.scaling``: how the cost of the estimators grows.

It is measured over the number of samples, of classes and of layers and the length of sequences. A small transformer
encoder with random weights; one size is varied at a time. Times are processor seconds, beside those of a gradient over
the same samples. Writes benchmarks/scaling.json and docs/images/performance_scaling.png.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import genbound
from benchmarks.clock import gradient, seconds, typical
from benchmarks.models import ROOT
from genbound.quantities.quadratic_brackets import screen

BASE = {"samples": 64, "classes": 4, "layers": 4, "length": 16}
GRID = {
    "samples": (32, 64, 128, 256, 512),
    "classes": (2, 10, 30, 64, 100, 300, 1000),
    "layers": (2, 4, 8, 16),
    "length": (8, 16, 32, 64, 128),
}
OUT = Path(__file__).parent / "scaling.json"
FIGURE = ROOT / "docs" / "images" / "performance_scaling.png"
COLORS = {
    "gradient": "#555555",
    "hessian_trace": "#0072B2",
    "max_quadratic_form, screening": "#D55E00",
    "noise_stability, draw": "#009E73",
}


class Encoder(nn.Module):
    def __init__(self, classes: int, layers: int, width: int = 64):
        super().__init__()
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(1))


def build(samples: int, classes: int, layers: int, length: int) -> genbound.Problem:
    torch.manual_seed(0)
    model = Encoder(classes, layers)
    init = {name: p.detach() + 0.01 * torch.randn_like(p) for name, p in model.named_parameters()}
    data = (torch.randn(samples, length, 64), torch.randint(0, classes, (samples,)))
    return genbound.Problem(model, init, data, batch_size=16)


def costs(problem: genbound.Problem) -> dict[str, float]:
    from genbound.curvature.noise_by_row import Normals, noisy_losses

    def draw() -> None:
        for start in range(0, problem.num_samples, problem.batch_size):
            rows = [(p, ("scaling", p // 16), p % 16) for p in range(start, start + problem.batch_size)]
            noisy_losses(problem, rows, Normals(rows, 0, next(iter(problem.params.values()))), (0.01, -0.01))

    fixed = {
        "hessian_trace": {"num_pilot": 2, "max_probes": 2, "exact_products": 0, "layer_sem": 1e-9, "total_sem": 1e-9}
    }
    import genbound.quantities.remainder_probes as trace

    trace.SMALL = 0  # a fixed number of probes
    return {
        "gradient": typical(gradient(problem), 3),
        "hessian_trace": seconds(lambda: genbound.evaluate(problem, ["hessian_trace"], options=fixed)),
        "max_quadratic_form, screening": sum(seconds(lambda s=shard: screen(problem, s)) for shard in problem.shards()),
        "noise_stability, draw": typical(draw, 3),
    }


def slope(x, y) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def plot(rows: dict) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), sharey=True)
    for axis, (name, found) in zip(axes, rows.items(), strict=True):
        x = [int(size) for size in found]
        for what in COLORS:
            y = [cost[what] for cost in found.values()]
            axis.loglog(x, y, "o-", ms=3.5, color=COLORS[what], label=what)
            axis.annotate(f"{slope(x[-3:], y[-3:]):.1f}", (x[-1], y[-1]), (4, -3), textcoords="offset points",
                          color=COLORS[what], fontsize=8)  # fmt: skip
        axis.set_xlabel({"length": "sequence length"}.get(name, name))
        axis.set_xlim(right=x[-1] * 1.6)
        axis.set_xticks(x, [str(size) for size in x], fontsize=7)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.25, which="both", lw=0.5)
    axes[0].set_ylabel("processor seconds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    rows: dict = {}
    costs(build(**BASE))  # warms up
    for name, sizes in GRID.items():
        rows[name] = {}
        for size in sizes:
            rows[name][size] = costs(build(**{**BASE, name: size}))
            print(name, size, {k: round(v, 3) for k, v in rows[name][size].items()}, flush=True)
    OUT.write_text(json.dumps({"base": BASE, "rows": rows}, indent=1) + "\n")
    plot(rows)


if __name__ == "__main__":
    main()
