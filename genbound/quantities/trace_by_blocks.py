r"""``hessian_trace`` on very many samples: one block of them after the other, of which sums are kept.

A block is measured as a problem of its own, with first probes, a plan and draws of its own. So only one block's arrays
``[n, L]`` are in memory, whatever the number N of all samples is. With B blocks the standard errors that are asked for
of a block are :math:`\sqrt B` times those of the whole: its errors are independent of the others'. What is known of
every sample goes to tables on the disk. A block's random numbers do not depend on the others'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from genbound.estimators import disk_table
from genbound.estimators.disk_table import Table, new_table
from genbound.estimators.estimate import Sampled
from genbound.estimators.trace_plan import Plan
from genbound.network.problem import SHARD, Problem
from genbound.quantities.base import Context
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions
from genbound.quantities.chosen_samples import Round, data_sem_of
from genbound.quantities.remainder_probes import sampled_on

Trace = tuple[Sampled, Plan | None]  # of samples and layers, and how they were probed


def is_too_large(problem: Problem) -> bool:
    """Whether the samples are so many that they are measured by blocks."""
    return problem.num_samples * len(problem.layers) > disk_table.MOST


def blocks_of(problem: Problem) -> list[range]:
    """The measured samples, as positions, cut into blocks whose tables are small; each is of whole shards."""
    size = max(1, disk_table.MOST // 2 // len(problem.layers) // SHARD) * SHARD
    return [range(s, min(s + size, problem.num_samples)) for s in range(0, problem.num_samples, size)]


def measure_by_blocks(
    problem: Problem, context: Context, measure: Callable[[Problem, Context], Trace]
) -> tuple[dict[str, np.ndarray], dict[str, Table]]:
    """What is found of L layers and N samples.

    Args:
        problem: what is measured.
        context: of the measurement.
        measure: what gives the traces of a block.

    Returns:
        ``value``, ``sem`` and ``data_sem`` of every layer and, in the last place, their total ``[L + 1]``; and of every
        sample ``value``, ``sem``, ``probe_std [N, L]`` and ``num_probes [N]``; of chosen ones ``sample`` and
        ``weight [N]``.
    """
    num, layers, blocks = problem.num_samples, len(problem.layers), blocks_of(problem)
    value_of, sem_of, std_of = (new_table(num, layers) for _ in range(3))
    probes_of = np.zeros(num, int)
    total, noise = np.zeros(num), np.zeros(num)
    values, variances, spreads = [], [], []
    for number, block in enumerate(blocks):
        part = problem.part(block)
        trace, plan = measure(part, _block_of(context, number, len(blocks)))
        share = len(block) / num
        values.append(share * trace.value)
        variances.append((share * trace.sem) ** 2)
        spreads.append(variances[-1] ** 2 / trace.freedom)
        own, rows = sampled_on(part, trace), slice(block.start, block.stop)
        value_of[rows], sem_of[rows] = own.samples[:, :-1], np.sqrt(own.noise[:, :-1])
        total[rows], noise[rows] = own.samples[:, -1], own.noise[:, -1]
        if plan is not None:
            std_of[rows] = plan.deviation / part.shares[:, None]
            probes_of[rows] = plan.counts + plan.joint
    each = ((value_of[:, i], sem_of[:, i] ** 2) for i in range(layers))
    left = [*(data_sem_of(problem, *one) for one in each), data_sem_of(problem, total, noise)]
    value, variance, spread = (np.array([math.fsum(column) for column in np.transpose(rows)])
                               for rows in (values, variances, spreads))  # fmt: skip
    freedom = np.divide(variance**2, spread, out=np.full(layers + 1, np.inf), where=spread > 0)
    samples: dict[str, Table] = {"value": value_of, "sem": sem_of, "num_probes": probes_of, "probe_std": std_of}
    if problem.choice is not None:
        samples |= {"sample": np.array(problem.indices), "weight": problem.shares}
    nothing = np.zeros((0, layers + 1))
    found = Sampled(value, np.sqrt(variance), nothing, nothing, freedom)
    return {"value": value, "sem": found.widened, "data_sem": np.array(left)}, samples


def _block_of(context: Context, number: int, num: int) -> Round:
    """The context of one of ``num`` blocks: stages, random numbers and wanted errors of its own."""
    options: HessianTraceOptions = context.options
    own = replace(
        options, layer_sem=options.layer_sem * math.sqrt(num), total_sem=options.total_sem * math.sqrt(num),
        exact_products=options.exact_products // num, error=0.0,
    )  # fmt: skip
    return Round(context, number, own, "block")
