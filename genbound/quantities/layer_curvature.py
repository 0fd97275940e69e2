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

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from genbound.curvature.fisher import check_likelihood, fisher_share
from genbound.curvature.mean_products import MeanCurvature
from genbound.curvature.traces import gauss_newton_trace, sampled_gauss_newton_trace
from genbound.estimators.disk_table import Table
from genbound.estimators.draws import Sampler
from genbound.estimators.estimate import means_by_column, stratum_variances
from genbound.estimators.random import Row
from genbound.estimators.trace_plan import with_total
from genbound.network.loss_functions import output_form
from genbound.quantities.base import Context, Measured, Part, per_layer, stacked
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
    forms = stacked(context, "layers", problem.shards(), lambda shard: _apart(value=_forms(problem, options, shard)))
    (joint,) = context.map("joint", [options.curvature], lambda curvature: {"form": _joint(problem, curvature)})
    means = means_by_column(_columns(forms, "value"), problem.num_data)
    summary, samples = {key: means[key] for key in ("value", "data_sem")}, {"value": forms["value"]}
    if options.curvature == "hessian":
        summary |= dict.fromkeys(("trace", "trace_sem", "trace_data_sem"), np.full(len(means["value"]), None))
    else:
        traces = _traces(problem, context)
        means = means_by_column(_columns(traces, "trace"), problem.num_data)
        summary |= {"trace": means["value"], "trace_sem": means["sem"], "trace_data_sem": means["data_sem"]}
        samples["trace"] = traces["trace"]
    told = {"curvature": options.curvature, "num_samples": problem.num_samples}
    total: dict[str, Any] = {key: None if array[-1] is None else float(array[-1]) for key, array in summary.items()}
    rows = {name: row | told for name, row in per_layer(problem, summary).items()}
    total |= told | {"joint": float(joint["form"])}
    return Measured({"layers": rows, "total": total, "curvature": options.curvature}, samples)


def _apart(**found: np.ndarray) -> Part:
    """A shard's samples' numbers of the layers ``[n, L]``, and of their total, the last column, by themselves ``[n]``.

    So the former may lie on the disk as they are.
    """
    part: Part = {}
    for name, values in found.items():
        part |= {name: values[:, :-1], f"{name} of all": values[:, -1]}
    return part


def _columns(found: Mapping[str, Table], name: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """All samples' numbers ``[N]`` of each layer and, at last, of the total, with the variances of their noise."""
    noise = found.get("noise")
    for i in range(found[name].shape[1]):
        yield found[name][:, i], None if noise is None else noise[:, i]
    yield found[f"{name} of all"], found.get("noise of all")


def _forms(problem: Problem, options: LayerCurvatureOptions, shard: range) -> np.ndarray:
    """``v_i^T C_i(x) v_i`` of every sample and layer, in the unit of the loss, ``[n, L + 1]`` with the total."""
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
    return with_total(found)


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


def _traces(problem: Problem, context: Context) -> dict[str, Table]:
    """``trace``, ``Tr C_i(x)`` of every sample, and where it is drawn ``noise``, its variance, as :func:`_apart`."""
    options: LayerCurvatureOptions = context.options
    if problem.num_outputs <= options.exact_outputs:

        def exactly(shard: range) -> Part:
            return _apart(trace=_exact_traces(problem, options, shard))

        return stacked(context, "exact_traces", problem.shards(), exactly)

    def draw(tape: Tape, rows: list[Row]) -> Tensor:
        return _share(tape, options.curvature)[:, None] * sampled_gauss_newton_trace(tape, rows, context.seed)

    sampler = Sampler(
        "layer_curvature", tapes_by_column(problem), draw, len(problem.layers), problem.batch_size,
        lambda draws, _: with_total(draws),
    )  # fmt: skip

    def drawn(shard: Sequence[int]) -> Part:
        counts = np.full(len(shard), options.num_factors)
        moments = sampler.moments(shard, counts)
        return _apart(trace=moments.mean, noise=stratum_variances(counts, moments.squares) / counts[:, None])

    return stacked(context, "sampled_traces", problem.shards(), drawn)


def _exact_traces(problem: Problem, options: LayerCurvatureOptions, shard: range) -> np.ndarray:
    found = np.zeros((len(shard), len(problem.layers)))
    for tape, columns in tapes_by_column(problem)(shard):
        rows = np.array([p - shard[0] for p in tape.positions])
        values = _share(tape, options.curvature)[:, None] * gauss_newton_trace(tape)
        found[np.ix_(rows, columns)] = values.cpu().numpy()
    return with_total(found)


def forecast(problem: Problem, options: LayerCurvatureOptions) -> float:
    """Gradients over the measured samples; a backward pass to the activations is about 0.4 of one."""
    if options.curvature == "hessian":
        return 4.0 + 2.0 * len(problem.layers)
    outputs = problem.num_outputs if problem.num_outputs <= options.exact_outputs else options.num_factors
    return 4.0 + 0.4 * (outputs + min(problem.num_outputs, len(problem.layers)))
