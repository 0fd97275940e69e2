"""How often a certified network disagrees with the fine-tuned one on unlabelled inputs, and which of them are new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from genbound.data.samples import Batch
from genbound.network.problem import Problem
from genbound.posterior.disagreement import disagreement, why_no_disagreement
from genbound.quantities.base import Context, Part, data_shards, stack


def on_unlabelled(
    problem: Problem, context: Context, width: int, probability: Callable[[Batch], Tensor]
) -> dict[str, Any]:  # fmt: skip
    """``disagreement``, of ``num_unlabelled`` inputs, of which ``num_unlabelled_seen`` are those of training samples.

    Args:
        problem: whose unlabelled inputs; nothing is found where there are none, or no single answers.
        context: of the measurement.
        width: most inputs in a pass.
        probability: of another answer than the label's ``[N]``, for a batch.

    Cost: a forward pass beside those of ``probability``, and each training sample is read for its inputs' digest.
    """
    samples = problem.unlabelled
    if samples is None or why_no_disagreement(problem) is not None:
        return {}

    def part(shard: range) -> Part:
        return {"value": disagreement(problem, shard, width, probability), "key": samples.input_keys(shard)}

    parts = context.map("unlabelled", data_shards(len(samples)), part)
    trained = context.map("trained", data_shards(len(problem.data)), lambda s: {"key": problem.data.input_keys(s)})
    found, seen = stack(parts, "value"), np.isin(stack(parts, "key"), stack(trained, "key"))
    return {
        "disagreement": float(found.mean()), "num_unlabelled": len(found), "num_unlabelled_seen": int(seen.sum()),
    }  # fmt: skip
