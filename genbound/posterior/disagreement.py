"""How often another network answers otherwise than the fine-tuned one, on inputs whose labels nobody needs.

It leads from what is certified, a noisy or a quantised network, to the fine-tuned one: that errs where the other one
errs, or where they disagree. The inputs must be independent of each other and of the training samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from genbound.data.samples import Batch
from genbound.posterior.moved_network import batches_of_one_size

if TYPE_CHECKING:
    from genbound.network.problem import Problem


def why_no_disagreement(problem: Problem) -> str | None:
    """Why the answers on unlabelled inputs cannot be compared; ``None`` where they can."""
    if problem.unlabelled is None:
        return "there are no unlabelled inputs: give --unlabelled SPEC"
    if not problem.loss.classes or problem.num_outputs != problem.num_classes:
        return "the network gives no single class for an input"
    return None


def disagreement(
    problem: Problem, indices: Sequence[int], width: int, probability: Callable[[Batch], Tensor]
) -> np.ndarray:
    """How probable, or whether, the other network disagrees on every input ``[N]``, in no order.

    Args:
        problem: whose unlabelled inputs.
        indices: their places.
        width: most of them in a pass.
        probability: of a wrong answer ``[N]`` for a batch, whose labels are the fine-tuned network's own answers.

    Cost: a forward pass beside those of ``probability``.
    """
    samples, found = problem.unlabelled, []
    assert samples is not None
    for batch in batches_of_one_size(samples, indices, width):
        moved = problem.to_device(batch)
        with torch.no_grad():
            own = problem.forward(problem.params, moved.inputs).argmax(-1)
        answered = Batch(inputs=moved.inputs, targets=own, indices=batch.indices)
        found.append(probability(answered).double().cpu().numpy())
    return np.concatenate(found)
