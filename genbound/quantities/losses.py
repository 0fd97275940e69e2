r"""Loss and 0-1 error on the training and test samples, and the gap between them.

:math:`\hat L` is the mean over all training samples given (not a mean of batch means, and not only over the samples
that the costly quantities are measured on). The best constant predictor's loss and error on the same labels are
reported beside them: a bound that cannot exclude it says nothing.

For sequences the loss of a sample is the mean over its labelled tokens, and :math:`\hat L` the mean over sequences.
``train_loss_per_token`` stands beside it, in which every token counts alike: long sequences more.

Cost: one forward pass over the training and test data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genbound.data.sample_parts import IGNORED
from genbound.data.samples import Batch, Samples
from genbound.network.loss_functions import check_finite
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, data_shards, stack


def measure(problem: Problem, context: Context) -> Measured:
    """Losses, errors and margins over all training and test samples given."""
    train = _measure_all(problem, context, "train", problem.data)
    test = None if problem.test_data is None else _measure_all(problem, context, "test", problem.test_data)
    constant_loss, constant_error = _constant(problem, train.target)
    summary = {
        "train_loss": float(train.loss.mean()),
        "train_loss_sem": _sem(train.loss, problem.num_data),
        "train_error": train.mean_error(),
        "train_loss_per_token": train.loss_per_token(),
        "largest_loss": float(train.loss.max()),
        "num_train": len(train.loss),
        **_compare(train, test),
        "constant_loss": constant_loss,
        "constant_error": constant_error,
    }
    return Measured(summary, {"loss": train.loss[problem.indices]}, {"margin": train.margin})


@dataclass(frozen=True)
class _Losses:
    """What is known of the N samples of a data set, in their order.

    Attributes:
        loss: ``[N]``.
        error: 0 or 1, or a part of 1 where a sample has several labels ``[N]``; NaN where the loss has no error.
        margin: score of the label less the best other score ``[N]``; NaN where there is none.
        tokens: positions that bear a label ``[N]``.
        target: all labels, of every position, in no order.
    """

    loss: np.ndarray
    error: np.ndarray
    margin: np.ndarray
    tokens: np.ndarray
    target: np.ndarray

    def mean_error(self) -> float | None:
        """``None`` where a sample has no error."""
        return None if np.isnan(self.error).any() else float(self.error.mean())

    def loss_per_token(self) -> float | None:
        """The mean over tokens, each counted alike; ``None`` where a sample is no sequence."""
        return float((self.loss * self.tokens).sum() / self.tokens.sum()) if self.tokens.max() > 1 else None


def _measure_all(problem: Problem, context: Context, stage: str, samples: Samples) -> _Losses:
    parts = context.map(stage, data_shards(len(samples)), lambda shard: _measure_shard(problem, samples, shard))
    return _Losses(**{key: stack(parts, key) for key in parts[0]})


def _measure_shard(problem: Problem, samples: Samples, shard: range) -> Part:
    parts, order = [], []
    # In order of length, so that a batch of sequences is hardly padded.
    for batch in samples.batches(sorted(shard, key=samples.size), problem.batch_size):
        parts.append(_measure_batch(problem, problem.to_device(batch), samples.spec))
        order += list(batch.indices)
    back = np.argsort(order, kind="stable")
    per_sample = {key: stack(parts, key)[back] for key in ("loss", "error", "margin", "tokens")}
    return per_sample | {"target": stack(parts, "target")}


def _measure_batch(problem: Problem, batch: Batch, spec: str) -> Part:
    """The fields of :class:`_Losses` for a batch of the data that ``spec`` names."""
    loss, targets = problem.loss, batch.targets
    with torch.no_grad():
        outputs = problem.forward(problem.params, batch.inputs)
    loss.check_targets(outputs, targets)
    losses = loss.per_sample(outputs, targets).double().cpu()
    check_finite(losses, batch.indices, spec)
    unknown = np.full(len(batch), np.nan)
    has_margin = bool(loss.classes) and targets.dim() == 1
    return {
        "loss": losses.numpy(),
        "error": unknown if loss.error is None else loss.error(outputs, targets).double().cpu().numpy(),
        "margin": _margins(outputs, targets).cpu().numpy() if has_margin else unknown,
        "tokens": _tokens(targets).cpu().numpy(),
        "target": targets.flatten().double().cpu().numpy(),
    }


def _margins(outputs: Tensor, targets: Tensor) -> Tensor:
    """Score of the label less the best other score ``[N]``; NaN where there is no label or no other class."""
    scores = outputs.double()
    if scores.shape[1] < 2:
        return torch.full_like(scores[:, 0], torch.nan)
    label = targets.long().clamp(min=0).unsqueeze(1)
    others = scores.scatter(1, label, -torch.inf).amax(1)
    return torch.where(targets == IGNORED, torch.nan, scores.gather(1, label).squeeze(1) - others)


def _tokens(targets: Tensor) -> Tensor:
    """How many positions of each sample bear a label, ``[N]``."""
    if targets.is_floating_point():
        return torch.ones(len(targets), dtype=torch.float64)
    return (targets != IGNORED).reshape(len(targets), -1).sum(1).double()


def _compare(train: _Losses, test: _Losses | None) -> dict[str, float | int | None]:
    """What the test samples say; ``None`` and no samples where there are none."""
    names = ("test_loss", "test_loss_per_token", "test_loss_sem", "test_error")
    if test is None:
        return {**dict.fromkeys(names), "num_test": 0, "generalization_gap": None, "error_gap": None}
    num, error = len(test.loss), test.mean_error()
    values = (
        float(test.loss.mean()),
        test.loss_per_token(),
        float(test.loss.std(ddof=1) / np.sqrt(num)) if num > 1 else None,
        error,
    )
    return {
        **dict(zip(names, values, strict=True)),
        "num_test": num,
        "generalization_gap": float(test.loss.mean() - train.loss.mean()),
        "error_gap": None if error is None else error - train.mean_error(),
    }


def _sem(values: np.ndarray, num_data: int) -> float:
    """Standard error of the mean over the whole training set, from the losses ``[N]`` of the part that was given."""
    num = len(values)
    return 0.0 if num >= num_data or num < 2 else float(values.std(ddof=1) / np.sqrt(num) * np.sqrt(1 - num / num_data))


def _constant(problem: Problem, targets: np.ndarray) -> tuple[float | None, float | None]:
    """What the best predictor that ignores its input reaches on these labels, in the loss and in 0-1 error."""
    loss = problem.loss
    if loss.classes:
        _, counts = np.unique(targets[targets != IGNORED], return_counts=True)
        p = counts / counts.sum()
        entropy = float(-(p * np.log(p)).sum())
        # A truncated or bounded loss is never above its range, whatever is predicted.
        return min(entropy, loss.range), float(1 - p.max())
    return None, None
