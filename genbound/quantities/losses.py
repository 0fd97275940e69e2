r"""Loss and 0-1 error on the training and test samples, and the gap between them.

:math:`\hat L` is the mean over all training samples given (not a mean of batch means, and not only over the samples
that the costly quantities are measured on). The best constant predictor's loss and error on the same labels are
reported beside them: a bound that cannot exclude it says nothing.

For sequences the loss of a sample is the mean over its labelled tokens, and :math:`\hat L` the mean over sequences;
beside it stands ``train_loss_per_token``, in which every token counts alike (long sequences more).

Cost: one forward pass over the training and test data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from genbound.data.sample_parts import IGNORED
from genbound.network.loss_functions import check_finite
from genbound.quantities.base import Context, Measured, Part, stack

NAME = "losses"
SHARD = 512


def _evaluate(problem, samples) -> Callable[[range], Part]:
    def shard(indices: range) -> Part:
        losses, errors, margins, targets, tokens, order = [], [], [], [], [], []
        # In order of length, so that a batch of sequences is hardly padded.
        for batch in samples.batches(sorted(indices, key=samples.size), problem.batch_size):
            batch = problem.to_device(batch)
            order += list(batch.indices)
            with torch.no_grad():
                outputs = problem.forward(problem.params, batch.inputs)
            problem.loss.check_targets(outputs, batch.targets)
            losses.append(problem.loss.per_sample(outputs, batch.targets).double().cpu())
            check_finite(losses[-1], batch.indices, samples.spec)
            if problem.loss.error is not None:
                errors.append(problem.loss.error(outputs, batch.targets).double().cpu().numpy())
            if problem.loss.classes and batch.targets.dim() == 1:
                margins.append(_margins(outputs, batch.targets).cpu().numpy())
            targets.append(batch.targets.flatten().double().cpu().numpy())
            tokens.append(_tokens(batch.targets).cpu().numpy())
        back = np.argsort(order, kind="stable")
        return {
            "loss": torch.cat(losses).numpy()[back],
            "error": np.concatenate(errors)[back] if errors else np.full(len(indices), np.nan),
            "margin": np.concatenate(margins)[back] if margins else np.full(len(indices), np.nan),
            "target": np.concatenate(targets),
            "tokens": np.concatenate(tokens)[back],
        }

    return shard


def _margins(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Score of the label less the best other score, ``[N]``; NaN where there is no label or no other class."""
    scores = outputs.double()
    if scores.shape[1] < 2:
        return torch.full_like(scores[:, 0], torch.nan)
    label = targets.long().clamp(min=0).unsqueeze(1)
    others = scores.scatter(1, label, -torch.inf).amax(1)
    return torch.where(targets == IGNORED, torch.nan, scores.gather(1, label).squeeze(1) - others)


def _tokens(targets: torch.Tensor) -> torch.Tensor:
    """How many positions of each sample bear a label."""
    if targets.is_floating_point():
        return torch.ones(len(targets), dtype=torch.float64)
    return (targets != IGNORED).reshape(len(targets), -1).sum(1).double()


def _token_mean(parts: list[Part]) -> float | None:
    """The mean over tokens, each counted alike; ``None`` where a sample is no sequence."""
    loss, tokens = stack(parts, "loss"), stack(parts, "tokens")
    return float((loss * tokens).sum() / tokens.sum()) if tokens.max() > 1 else None


def _ranges(total: int) -> list[range]:
    return [range(s, min(s + SHARD, total)) for s in range(0, total, SHARD)]


def measure(problem, context: Context) -> Measured:
    """Losses, errors and margins over all training and test samples given."""
    parts = context.map("train", _ranges(len(problem.data)), _evaluate(problem, problem.data))
    train, error, margin = stack(parts, "loss"), stack(parts, "error"), stack(parts, "margin")
    summary: dict[str, float | int | None] = {
        "train_loss": float(train.mean()),
        "train_loss_sem": _sem(train, problem.num_data),
        "train_error": _mean(error),
        "train_loss_per_token": _token_mean(parts),
        "largest_loss": float(train.max()),
        "num_train": len(train),
        "test_loss": None,
        "test_loss_per_token": None,
        "test_loss_sem": None,
        "test_error": None,
        "num_test": 0,
        "generalization_gap": None,
        "error_gap": None,
    }
    summary["constant_loss"], summary["constant_error"] = _constant(problem, stack(parts, "target"))
    if problem.test_data is not None:
        parts = context.map("test", _ranges(len(problem.test_data)), _evaluate(problem, problem.test_data))
        test, test_error = stack(parts, "loss"), stack(parts, "error")
        summary |= {
            "test_loss": float(test.mean()),
            "test_loss_per_token": _token_mean(parts),
            "test_loss_sem": float(test.std(ddof=1) / np.sqrt(len(test))) if len(test) > 1 else None,
            "test_error": _mean(test_error),
            "num_test": len(test),
            "generalization_gap": float(test.mean() - train.mean()),
        }
        if summary["test_error"] is not None:
            summary["error_gap"] = summary["test_error"] - summary["train_error"]
    return Measured(summary, {"loss": train[problem.indices]}, {"margin": margin})


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).any() else float(values.mean())


def _sem(values: np.ndarray, num_data: int) -> float:
    """Of the training mean over the whole training set, from the part of it that was given."""
    num = len(values)
    return 0.0 if num >= num_data or num < 2 else float(values.std(ddof=1) / np.sqrt(num) * np.sqrt(1 - num / num_data))


def _constant(problem, targets: np.ndarray) -> tuple[float | None, float | None]:
    """What the best predictor that ignores its input reaches on these labels, in the loss and in 0-1 error."""
    loss = problem.loss
    if loss.classes:
        _, counts = np.unique(targets[targets != IGNORED], return_counts=True)
        p = counts / counts.sum()
        entropy = float(-(p * np.log(p)).sum())
        # A truncated or bounded loss is never above its range, whatever is predicted.
        return min(entropy, loss.range), float(1 - p.max())
    return None, None
