r"""Each layer's own block C of the curvature of the mean loss: its form along the displacement, and its trace.

.. math:: v_i^\top C_i v_i, \qquad \mathrm{Tr}\, C_i, \qquad C_i = \frac1N \sum_x C_i(x)

for C the Hessian, its Gauss-Newton part or Fisher's information (:mod:`genbound.estimators.curvature_kinds`). They
stand beside the bounds, which speak of the Hessian of single samples alone and read none of this.

Forms are exact for all three. The traces of the Gauss-Newton part and of Fisher's information are exact for up to
``exact_outputs`` outputs. The trace of the Hessian is not measured here: it is ``hessian_trace``, which has its own way
to it. ``total`` sums the layers' own blocks; its ``joint`` is the form of the whole matrix along all displacements, the
blocks between layers included.

Cost:
    For the Hessian a double backward pass a layer; otherwise min(k, L) backward passes for all forms, and a backward
    pass for each of the k outputs (or each random combination) for all traces.
Variance:
    None where exact. Otherwise that of ``num_factors`` random combinations of the outputs for each sample.

References:
    Martens, New insights and perspectives on the natural gradient method, JMLR 21, 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from genbound.curvature.fisher import check_likelihood, fisher_share
from genbound.curvature.mean_products import MeanCurvature
from genbound.curvature.traces import gauss_newton_trace, sampled_gauss_newton_trace
from genbound.estimators.draws import Sampler
from genbound.estimators.estimate import Sampled, data_sem, stratum_variances
from genbound.estimators.random import Row
from genbound.estimators.trace_plan import with_total
from genbound.network.loss_functions import output_form
from genbound.quantities.base import Context, Measured, Part, per_layer, stack
from genbound.quantities.catalogue.layer_curvature import LayerCurvatureOptions
from genbound.quantities.remainder_probes import tapes_by_column

if TYPE_CHECKING:
    from genbound.network.problem import Problem
    from genbound.network.tape import Tape


def measure(problem: Problem, context: Context) -> Measured:
    """The forms of all samples, their traces where they are measured here, and the form of the whole matrix."""
    options: LayerCurvatureOptions = context.options
    if options.curvature == "fisher":
        check_likelihood(problem.loss)
    parts = context.map("forms", problem.shards(), lambda shard: {"form": _forms(problem, options, shard)})
    forms = with_total(stack(parts, "form"))
    (joint,) = context.map("joint", [options.curvature], lambda curvature: {"form": _joint(problem, curvature)})
    summary = {"value": forms.mean(0), "data_sem": data_sem(forms, np.zeros_like(forms), problem.num_data)}
    samples = {"value": forms[:, :-1]}
    if options.curvature == "hessian":
        summary |= dict.fromkeys(("trace", "trace_sem", "trace_data_sem"), np.full(forms.shape[1], None))
    else:
        trace = _traces(problem, context)
        spread = data_sem(trace.samples, trace.noise, problem.num_data)
        summary |= {"trace": trace.value, "trace_sem": trace.sem, "trace_data_sem": spread}
        samples["trace"] = trace.samples[:, :-1]
    told = {"curvature": options.curvature, "num_samples": problem.num_samples}
    total: dict[str, Any] = {key: None if array[-1] is None else float(array[-1]) for key, array in summary.items()}
    rows = {name: row | told for name, row in per_layer(problem, summary).items()}
    total |= told | {"joint": float(joint["form"])}
    return Measured({"layers": rows, "total": total, "curvature": options.curvature}, samples)


def _forms(problem: Problem, options: LayerCurvatureOptions, shard: range) -> np.ndarray:
    """``v_i^T C_i(x) v_i`` of every sample and layer, ``[n, L]``, in the unit of the loss."""
    found = np.zeros((len(shard), len(problem.layers)))
    for tape, columns in tapes_by_column(problem)(shard):
        rows = [p - shard[0] for p in tape.positions]
        vs = problem.displacement.of(tape.layers)
        if options.curvature == "hessian":
            forms = {name: tape.product(name, v)[0] for name, v in vs.items()}
        else:
            share = _share(tape, options.curvature)
            forms = {
                name: share * output_form(problem.loss, tape.outputs, tape.targets, u)
                for name, u in tape.output_derivatives(vs).items()
            }
        for column, name in zip(columns, tape.layers, strict=True):
            found[rows, column] = forms[name].detach().cpu().numpy()
    return found


def _share(tape: Tape, curvature: str) -> Tensor:
    """What the curvature is of every sample's Gauss-Newton part, ``[N]`` in float64."""
    if curvature == "fisher":
        return fisher_share(tape.network.loss, tape.outputs.detach().double(), tape.targets)
    return torch.ones(len(tape), dtype=torch.float64, device=tape.outputs.device)


def _joint(problem: Problem, curvature: str) -> np.ndarray:
    """The form of the whole matrix along the displacements of all layers."""
    matrix = MeanCurvature(problem, [layer.name for layer in problem.layers], curvature)
    v = matrix.flatten(problem.displacement)
    return (v.double() @ matrix.products(v.unsqueeze(0))[0]).cpu().numpy()


def _traces(problem: Problem, context: Context) -> Sampled:
    """``Tr C_i(x)`` of every sample, ``[N, L + 1]`` with the total in the last column."""
    options: LayerCurvatureOptions = context.options
    parts: list[Part]
    if problem.num_outputs <= options.exact_outputs:
        parts = context.map("traces", problem.shards(), lambda shard: {"mean": _exact_traces(problem, options, shard)})
        values = with_total(stack(parts, "mean"))
        return Sampled.of(values, np.zeros_like(values))

    def draw(tape: Tape, rows: list[Row]) -> Tensor:
        return _share(tape, options.curvature)[:, None] * sampled_gauss_newton_trace(tape, rows, context.seed)

    sampler = Sampler(
        "layer_curvature", tapes_by_column(problem), draw, len(problem.layers), problem.batch_size,
        lambda draws, _: with_total(draws),
    )  # fmt: skip

    def drawn(shard: Sequence[int]) -> dict[str, Any]:
        moments = sampler.moments(shard, [options.num_factors] * len(shard))
        return {"mean": moments.mean, "squares": moments.squares}

    parts = context.map("drawn_traces", problem.shards(), drawn)
    counts = np.full(problem.num_samples, options.num_factors)
    return Sampled.of(stack(parts, "mean"), stratum_variances(counts, stack(parts, "squares")) / counts[:, None])


def _exact_traces(problem: Problem, options: LayerCurvatureOptions, shard: range) -> np.ndarray:
    found = np.zeros((len(shard), len(problem.layers)))
    for tape, columns in tapes_by_column(problem)(shard):
        rows = np.array([p - shard[0] for p in tape.positions])
        values = _share(tape, options.curvature)[:, None] * gauss_newton_trace(tape)
        found[np.ix_(rows, columns)] = values.cpu().numpy()
    return found


def forecast(problem: Problem, options: LayerCurvatureOptions) -> float:
    """Gradients over the measured samples; a backward pass to the activations is about 0.4 of one."""
    if options.curvature == "hessian":
        return 4.0 + 2.0 * len(problem.layers)
    outputs = problem.num_outputs if problem.num_outputs <= options.exact_outputs else options.num_factors
    return 4.0 + 0.4 * (outputs + min(problem.num_outputs, len(problem.layers)))
