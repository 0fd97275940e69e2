"""What is measured of one fine-tuned network: the gap, the measures, what costs nothing, and noise stability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import Task
from torch.nn.functional import cross_entropy

import genbound
from genbound.data import Samples
from genbound.evaluation.loop import evaluate
from genbound.finetune.predictions import predict

# C of every row, stated in advance: -ln(1e-7), above what a loss in float32 is where the network is not sure beyond all
# measure. Losses are min(l, C); how many samples that changes is stored.
RANGE = 16.0
SIX = ("pitas2017", "arora2018", "long2020", "gouk2021", "li2021", "neyshabur2018")  # the talk's table
DISTANCES = ("distance_frobenius", "distance_spectral", "distance_mars")
UNROLLED = "distance_two_one"  # grows with the size of a sample: of texts, that of the longest
PLAIN = ("hessian_distance", "hessian_trace", *DISTANCES, "fisher_rao")
# Divide by the margin, which 95 % of the training samples exceed and hardly any network's held-out samples.
BY_MARGIN = ("pitas2017", "arora2018", "neyshabur2018", "bartlett2017", "path_norm")
EVERY = (*PLAIN, UNROLLED, "path_norm", "trace_distance", *SIX, "bartlett2017")
# The six and the path norm do not exist for attention; a trace for every sample costs a transformer hours.
MEASURES = {"cifar10": EVERY, "cifar5": EVERY, "resnet50": EVERY, "digits": EVERY}
# How closely the largest forms are known; attention's blocks take some hundred products a layer to know them closer.
TOLERANCE, ROUGHER = 0.05, 0.25
CERTIFICATES = ("pac_bayes_certificate", "compression_certificate")
LEVEL = 0.95
COMPRESSION = 8  # samples of the compression bound's cushions, quadratic in the depth, where a network is deep
INVERSE_ROOT = "inverse root of the trace"
SHAPES = ("equal", INVERSE_ROOT, "norm of the layer")
FORWARD = 256  # samples of a pass that no derivative is taken of


def losses(model: Any, samples: Samples) -> dict[str, np.ndarray]:
    """Of every sample ``[N]``: the loss, whether it is wrong, the margin (score of the label less the best other)."""
    logits, labels = predict(model, samples)
    logits = logits.double()
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    full = cross_entropy(logits, labels, reduction="none")
    return {
        "loss": full.clamp(max=RANGE).numpy(),
        "above": (full > RANGE).numpy(),
        "wrong": (logits.argmax(1) != labels).double().numpy(),
        "margin": (logits.gather(1, labels[:, None])[:, 0] - others).numpy(),
    }


def on(found: dict[str, np.ndarray]) -> dict[str, float]:
    """What is stored of a set's losses."""
    values = found["loss"]
    return {
        "loss": float(values.mean()),
        "loss_sem": float(values.std(ddof=1) / math.sqrt(len(values))),
        "error": float(found["wrong"].mean()),
        "largest_loss": float(values.max()),
        "above_range": int(found["above"].sum()),
        "num": len(values),
    }


def trivial(training: dict[str, np.ndarray], measurement: dict[str, np.ndarray], pair: Any, steps: int) -> dict:
    """What costs nothing: of the training samples, of the weights, and the gap on the measurement samples.

    The last is the plain rival of whatever needs labelled samples that training did not see.
    """
    square = sum(
        float((value.double() - pair.init[name].double()).square().sum())
        for name, value in pair.model.state_dict().items()
        if name in pair.init and value.is_floating_point()
    )
    return {
        "training loss": float(training["loss"].mean()),
        "training error": float(training["wrong"].mean()),
        "margin": float(np.percentile(training["margin"], 5)),
        "spread of the training losses": float(training["loss"].std(ddof=1)),
        "distance": math.sqrt(square),
        "steps": float(steps),
        "gap on the measurement samples": float(measurement["loss"].mean() - training["loss"].mean()),
    }


def measured(task: Task, pair: Any, samples: Samples, num_data: int, seen: bool, folder: Path) -> dict[str, Any]:
    """Every measure on some samples, with the n and C of all rows.

    Args:
        task: whose measures.
        pair: the network and its start.
        samples: that everything is measured on.
        num_data: n, of the training set.
        seen: they are training samples.
        folder: where finished parts are kept, to continue from.

    Returns:
        ``bounds``: name -> value, log10 and why there is none; ``growth``: how the Hessian measure grows with the
        number of samples; ``traces`` and ``maxima`` of the layers.
    """
    problem = genbound.Problem(
        pair.model, pair.init, samples, num_data=num_data, other_samples=not seen, loss_range=f"clip:{RANGE:g}",
        head=pair.head, init_buffers=pair.init_buffers, provenance=pair.provenance,
    )  # fmt: skip
    names, options = measures(task.name, seen)
    results = evaluate(problem, ["losses", *names], seed=0, options=options, out=folder)
    bounds = {
        name: {"value": row["value"], "log10": row["log10"], "note": row["note"] if row["value"] is None else ""}
        for name, row in results.bounds.items()
    }
    trace = results.quantities.get("hessian_trace", {})
    if trace.get("total"):
        bounds["hessian_trace"] = {"value": trace["total"]["value"], "log10": None, "note": ""}
    maximum = results.quantities["max_quadratic_form"]
    return {
        "bounds": bounds,
        "num_samples": len(samples),
        "n": results.config["num_data"],
        "C": results.config["loss_range"]["value"],
        "traces": {name: row["value"] for name, row in trace.get("layers", {}).items()},
        "trace_sems": {name: row["sem"] for name, row in trace.get("layers", {}).items()},
        "total_trace_sem": trace["total"]["sem"] if trace.get("total") else None,
        "maxima": {name: row["value"] for name, row in maximum["layers"].items()},
        "growth": growth(results.samples, num_data),
    }


def certificates(pair: Any, samples: Samples, folder: Path) -> dict[str, Any]:
    """The errors that the training samples themselves certify, at 95 %; of a noisy and of a quantised network.

    Args:
        pair: the network and its start, which has seen none of the samples.
        samples: all that it was trained on.
        folder: where finished parts are kept.
    """
    problem = genbound.Problem(
        pair.model, pair.init, samples, num_data=len(samples), head=pair.head, init_buffers=pair.init_buffers,
        provenance=pair.provenance,
    )  # fmt: skip
    found = evaluate(problem, list(CERTIFICATES), seed=0, delta=1 - LEVEL, out=folder).bounds
    return {name: {"value": found[name]["value"], "note": found[name]["note"]} for name in CERTIFICATES}


def measures(task: str, seen: bool) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """What is measured of a task's networks on training (``seen``) or measurement samples, and with which options.

    The smallest network has everything on both; a deep one what divides by the margin on training samples alone.
    """
    names = MEASURES.get(task, PLAIN)
    options = {"max_quadratic_form": {"tolerance": tolerance(task), "tolerance_of": "layer"}}
    if task == "digits" or names is PLAIN:
        return list(names), options
    kept = [name for name in names if seen or name not in BY_MARGIN]
    return kept, {**options, **({"compression": {"num_samples": COMPRESSION}} if seen else {})}


def tolerance(task: str) -> float:
    """How much smaller than its stored value a layer's largest form may be, as a share of it."""
    return TOLERANCE if task in MEASURES else ROUGHER


def growth(table: Any, num_data: int) -> list[tuple[int, float, float]]:
    r""":math:`\sum_i \sqrt{C \max_m v_i^\top H_i^+ v_i}/\sqrt n` over the first m of the samples: m, at least, at most.

    m doubles; the samples stand in a random order that is the same for all networks of a task. Only the samples that
    may be the largest of all are known closely, so the two sides are apart where fewer are looked at.
    """
    sides = [
        table.pivot(index="sample", columns="layer", values=f"max_quadratic_form_{side}").to_numpy(float)
        for side in ("lower", "upper")
    ]
    order = np.random.default_rng(1).permutation(len(sides[0]))
    sizes = [2**k for k in range(3, 20) if 2**k < len(order)] + [len(order)]
    return [(m, *(hessian_measure(values[order[:m]].max(0), num_data) for values in sides)) for m in sizes]


def hessian_measure(maxima: np.ndarray, num_data: int) -> float:
    """The bound's main term from the largest form of every layer ``[L]``."""
    return float(np.sqrt(RANGE * maxima.clip(min=0)).sum() / math.sqrt(num_data))


def stability(task: Task, pair: Any, samples: Samples, measured: dict[str, Any], seed: int) -> dict[str, Any]:
    r"""The rise of the loss under noise beside :math:`\frac12\sum_i\sigma_i^2\,\mathrm{Tr}H_i`, shape by shape.

    A shape says how the layers' :math:`\sigma_i` stand to each other: equal; :math:`\propto 1/\sqrt{\mathrm{Tr} H_i}`,
    of the layers whose trace (or estimate of it) is positive, where each of them adds the same;
    :math:`\propto \|W_i\|_F/\sqrt{d_i}`, the root mean square of its weights. Each is scaled so that the layers of
    positive trace add as much as with equal ones of the same sigma. Probed traces have errors; the approximation has at
    most their weighted sum.

    Args:
        task, pair, samples: of the measurement.
        measured: what was measured on the same samples, with the traces of the mean loss's Hessian.
        seed: of the noise.
    """
    problem = genbound.Problem(
        pair.model, pair.init, samples, loss_range=f"clip:{RANGE:g}", head=pair.head, init_buffers=pair.init_buffers
    )
    traces, sems = measured["traces"], measured["trace_sems"]
    names = [layer.name for layer in problem.layers if layer.name in traces]
    positive = [name for name in names if traces[name] > 0]
    weights = {name: problem.params[name].detach() for name in names}
    shapes = {
        "equal": dict.fromkeys(names, 1.0),
        INVERSE_ROOT: {name: traces[name] ** -0.5 for name in positive},
        "norm of the layer": {name: float(w.norm()) / math.sqrt(w.numel()) for name, w in weights.items()},
    }
    total, rows = sum(traces[name] for name in positive), []
    base = _mean_losses(problem, {})
    for shape, relative in shapes.items():
        scale = math.sqrt(total / sum(relative[name] ** 2 * traces[name] for name in positive))
        for sigma in task.sigmas:
            own = {name: sigma * scale * value for name, value in relative.items()}
            rises = _rises(problem, weights, own, base, seed, task.pairs)
            error = sum(0.5 * own[name] ** 2 * sems[name] for name in own)
            if shape == "equal":
                error = min(error, 0.5 * (sigma * scale) ** 2 * measured["total_trace_sem"])
            rows.append(
                {
                    "shape": shape,
                    "sigma": sigma,
                    "layers": len(own),
                    "rise": float(np.mean(rises)),
                    "sem": float(np.std(rises, ddof=1) / math.sqrt(len(rises))),
                    "approximation": sum(0.5 * own[name] ** 2 * traces[name] for name in own),
                    "approximation_sem": error,
                }
            )
    return {"rows": rows, "layers": len(names), "num_samples": len(samples), "pairs": task.pairs}


def _rises(problem: Any, weights: dict, own: dict[str, float], base: float, seed: int, pairs: int) -> list[float]:
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(pairs):
        noise = {
            name: own[name] * torch.randn(w.shape, generator=generator) for name, w in weights.items() if name in own
        }
        moved = [_mean_losses(problem, {n: weights[n] + sign * u for n, u in noise.items()}) for sign in (1, -1)]
        found.append(sum(moved) / 2 - base)
    return found


@torch.no_grad()
def _mean_losses(problem: Any, moved: dict[str, torch.Tensor]) -> float:
    total, count = 0.0, 0
    for run in problem.batches(range(problem.num_samples), FORWARD):
        batch = problem.batch(run)
        outputs = problem.forward({**problem.params, **moved}, batch.inputs)
        total += float(problem.loss.per_sample(outputs, batch.targets).double().sum())
        count += len(run)
    return total / count


def relative_rss(rows: Sequence[dict[str, Any]]) -> float:
    r""":math:`\sum(I - A)^2/\sum I^2` over a grid of sigmas: the talk's relative residual sum of squares."""
    return sum((r["rise"] - r["approximation"]) ** 2 for r in rows) / sum(r["rise"] ** 2 for r in rows)
