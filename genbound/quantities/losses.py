r"""Loss and 0-1 error on the training and test samples, and the gap between them.

:math:`\hat L` is the mean over all training samples given (not a mean of batch means, and not only over the samples
that the costly quantities are measured on). The best constant predictor's loss and error on the same labels are
reported beside them: a bound that cannot exclude it says nothing.

For sequences the loss of a sample is the mean over its labelled tokens, and :math:`\hat L` the mean over sequences.
``train_loss_per_token`` stands beside it, in which every token counts alike: long sequences more.

``largest_loss`` is over the training samples, ``largest_seen_loss`` and ``smallest_seen_loss`` over the test samples
too. Where the loss has no range of its own, C is the largest one; if the smallest is below zero (a log-density has no
floor), the distance between the two.

Where the confusion matrix F of the labels is given, the reweighted loss
:math:`\bar\ell(f, y) = [F^{-1}(\ell(f, 1), \dots, \ell(f, K))^\top]_y` has a mean, a range and a best constant
predictor of its own (``reweighted_train_loss``, ``reweighted_range``, ``reweighted_constant_loss``). The range goes
from the smallest entry (or 0) to the largest, of every class and not of the observed label alone, over the training and
test samples; or is the largest that there can be where the loss has a range. ``reweighted_gap`` is the test loss less
the reweighted training loss, for test labels that are not flipped.

``num_test_seen`` is how many test samples have the very inputs of a training sample that was given, whatever its label;
unknown where the samples given are not the training samples.

Cost: one forward pass over the training and test data; with test data each sample is read once more, for its inputs'
digest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genbound.data.label_confusion import SINGULAR
from genbound.data.sample_parts import IGNORED
from genbound.data.samples import Batch, Samples
from genbound.network.finite_losses import check_finite
from genbound.network.loss_functions import Loss
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, data_shards, stack


def measure(problem: Problem, context: Context) -> Measured:
    """Losses, errors and margins over all training and test samples given."""
    train = _measure_all(problem, context, "train", problem.data, sized=True)
    test = None if problem.test_data is None else _measure_all(problem, context, "test", problem.test_data)
    constant_loss, constant_error = _constant(problem, train)
    seen = [train] if test is None else [train, test]
    summary = {
        "train_loss": float(train.loss.mean()),
        "train_loss_sem": _sem(train.loss, problem.num_data),
        "train_error": train.mean_error(),
        "train_loss_per_token": train.loss_per_token(),
        "largest_loss": float(train.loss.max()),
        "largest_seen_loss": max(float(part.loss.max()) for part in seen),
        "smallest_seen_loss": min(float(part.loss.min()) for part in seen),
        "num_train": len(train.loss),
        **_compare(train, test),
        "num_test_seen": None if test is None or problem.other_samples else int(np.isin(test.key, train.key).sum()),
        "constant_loss": constant_loss,
        "constant_error": constant_error,
        **_reweighted(problem, context.confusion, train, test),
    }
    return Measured(summary, {"loss": train.loss[problem.indices]}, {"margin": train.margin, "size": train.size})


@dataclass(frozen=True)
class _Losses:
    """What is known of the N samples of a data set, in their order.

    Attributes:
        loss: ``[N]``.
        error: 0 or 1, or a part of 1 where a sample has several labels ``[N]``; NaN where the loss has no error.
        margin: score of the label less the best other score ``[N]``; NaN where there is none.
        tokens: positions that bear a label ``[N]``.
        reweighted: the reweighted loss of the sample's label ``[N]``; NaN where there is none.
        reweighted_least, reweighted_most: the reweighted loss of any class ``[N]``, likewise.
        size: norm of the loss's gradient in the output ``[N]``; NaN where nobody needs it.
        key: of the sample's inputs ``[N]``, zero where nothing is compared.
        target: all labels, of every position, in no order.
    """

    loss: np.ndarray
    error: np.ndarray
    margin: np.ndarray
    tokens: np.ndarray
    reweighted: np.ndarray
    reweighted_least: np.ndarray
    reweighted_most: np.ndarray
    size: np.ndarray
    key: np.ndarray
    target: np.ndarray

    def mean_error(self) -> float | None:
        """``None`` where a sample has no error."""
        return None if np.isnan(self.error).any() else float(self.error.mean())

    def loss_per_token(self) -> float | None:
        """The mean over tokens, each counted alike; ``None`` where a sample is no sequence."""
        return float((self.loss * self.tokens).sum() / self.tokens.sum()) if self.tokens.max() > 1 else None


def _measure_all(problem: Problem, context: Context, stage: str, samples: Samples, sized: bool = False) -> _Losses:
    inverse = _inverse(context.confusion)
    parts = context.map(stage, data_shards(len(samples)), lambda s: _measure_shard(problem, samples, s, inverse, sized))
    return _Losses(**{key: stack(parts, key) for key in parts[0]})


def _measure_shard(problem: Problem, samples: Samples, shard: range, inverse: np.ndarray | None, sized: bool) -> Part:
    parts, order = [], []
    # In order of length, so that a batch of sequences is hardly padded.
    for batch in samples.batches(sorted(shard, key=samples.size), problem.batch_size):
        parts.append(_measure_batch(problem, problem.to_device(batch), samples.spec, inverse, sized))
        order += list(batch.indices)
    back = np.argsort(order, kind="stable")
    per_sample = {key: stack(parts, key)[back] for key in parts[0] if key != "target"}
    compared = problem.test_data is not None and not problem.other_samples
    per_sample["key"] = samples.input_keys(shard) if compared else np.zeros(len(shard), np.uint64)
    return per_sample | {"target": stack(parts, "target")}


def _measure_batch(problem: Problem, batch: Batch, spec: str, inverse: np.ndarray | None, sized: bool) -> Part:
    """The fields of :class:`_Losses` for a batch of the data that ``spec`` names; ``inverse`` is F⁻¹ ``[K, K]``."""
    loss, targets = problem.loss, batch.targets
    with torch.no_grad():
        outputs = problem.forward(problem.params, batch.inputs)
        loss.check_targets(outputs, targets)
        losses = loss.per_sample(outputs, targets).double().cpu()
    check_finite(losses, batch.indices, spec)
    unknown = np.full(len(batch), np.nan)
    has_margin = bool(loss.classes) and targets.dim() == 1
    every = unknown[:, None]
    if inverse is not None and has_margin:
        every = _every_class(problem.loss, outputs) @ inverse.T
    label = targets.long().clamp(min=0).cpu().numpy() if every.shape[1] > 1 else np.zeros(len(batch), dtype=int)
    return {
        "loss": losses.numpy(),
        "error": unknown if loss.error is None else loss.error(outputs, targets).double().cpu().numpy(),
        "margin": _margins(outputs, targets).cpu().numpy() if has_margin else unknown,
        "tokens": _tokens(targets).cpu().numpy(),
        "reweighted": every[np.arange(len(batch)), label],
        "reweighted_least": every.min(1),
        "reweighted_most": every.max(1),
        "size": loss.output_gradient(outputs, targets).flatten(1).norm(dim=1).double().cpu().numpy()
        if sized
        else unknown,
        "target": targets.flatten().double().cpu().numpy(),
    }


def _inverse(confusion: np.ndarray | None) -> np.ndarray | None:
    """F⁻¹ ``[K, K]``; ``None`` where there is no F, or none that can be inverted."""
    return None if confusion is None or np.linalg.cond(confusion) > SINGULAR else np.linalg.inv(confusion)


def _every_class(loss: Loss, outputs: Tensor) -> np.ndarray:
    """The loss of every sample as if its label were each of the classes in turn, ``[N, K]``."""
    labels = range(outputs.shape[-1])
    losses = [loss.per_sample(outputs, torch.full_like(outputs[:, 0], k, dtype=torch.long)) for k in labels]
    return torch.stack(losses, 1).double().cpu().numpy()


def _reweighted(
    problem: Problem, confusion: np.ndarray | None, train: _Losses, test: _Losses | None
) -> dict[str, float | str | None]:
    """What is known of the reweighted loss; nothing where no confusion matrix is given or none can be inverted."""
    inverse = _inverse(confusion)
    if inverse is None:
        return {}
    if np.isnan(train.reweighted_most).any():
        return {"reason": "the reweighted loss needs class scores, and one label for every sample"}
    # Of a loss in [0, C] the positive entries of a row of F^-1 say how far it goes up, the negative ones how far down.
    span = problem.loss.range * float(inverse.clip(min=0).sum(1).max() + (-inverse).clip(min=0).sum(1).max())
    if not np.isfinite(span):
        seen = [train] if test is None else [train, test]
        span = max(np.nanmax(s.reweighted_most) for s in seen) - min(
            0.0, *(np.nanmin(s.reweighted_least) for s in seen)
        )
    mean = float(train.reweighted.mean())
    return {
        "reweighted_train_loss": mean,
        "reweighted_range": float(span),
        "reweighted_constant_loss": _reweighted_constant(problem.loss, train.target, inverse),
        "reweighted_gap": None if test is None else float(test.loss.mean() - mean),
    }


def _reweighted_constant(loss: Loss, targets: np.ndarray, inverse: np.ndarray) -> float:
    """The best constant predictor's loss on the classes' frequencies before the labels were flipped, as F says."""
    labels = targets[targets != IGNORED].astype(int)
    p = (np.bincount(labels, minlength=len(inverse)) / len(labels) @ inverse).clip(min=0)
    return _constant_loss(p / p.sum(), loss, len(p))


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
        return {
            **dict.fromkeys(names),
            "num_test": 0,
            "num_test_wrong": None,
            "generalization_gap": None,
            "error_gap": None,
        }
    num, error, train_error = len(test.loss), test.mean_error(), train.mean_error()
    values = (
        float(test.loss.mean()),
        test.loss_per_token(),
        float(test.loss.std(ddof=1) / np.sqrt(num)) if num > 1 else None,
        error,
    )
    return {
        **dict(zip(names, values, strict=True)),
        "num_test": num,
        "num_test_wrong": int(test.error.sum()) if np.isin(test.error, (0.0, 1.0)).all() else None,
        "generalization_gap": float(test.loss.mean() - train.loss.mean()),
        "error_gap": None if error is None or train_error is None else error - train_error,
    }


def _sem(values: np.ndarray, num_data: int) -> float:
    """Standard error of the mean over the whole training set, from the losses ``[N]`` of the part that was given."""
    num = len(values)
    return 0.0 if num >= num_data or num < 2 else float(values.std(ddof=1) / np.sqrt(num) * np.sqrt(1 - num / num_data))


def _constant(problem: Problem, train: _Losses) -> tuple[float | None, float | None]:
    """What the best predictor that ignores its input reaches on these labels, in the loss and in 0-1 error."""
    p = problem.loss.class_frequencies(train.target, problem.num_classes)
    if p is None:
        return None, None
    if len(train.target) > len(train.loss):  # of several labels a sample the range is that of their mean
        return min(_entropy(p), problem.loss.range), float(1 - p.max())
    return _constant_loss(p, problem.loss, max(len(p), problem.num_classes)), float(1 - p.max())


def _constant_loss(p: np.ndarray, loss: Loss, num_classes: int) -> float:
    r"""The least mean loss in nats that one distribution q of the classes reaches, of their frequencies ``[K]``.

    Without a range that is their entropy. Of :math:`\min(\ell, C)` the best q gives up some of the rarest classes,
    which cost C each, and has the others' frequencies among themselves. Of smoothed probabilities those that would lie
    below the floor are at it, and the others in proportion to their frequencies.
    """
    p, ceiling = np.sort(p[p > 0])[::-1], loss.range
    if not np.isfinite(ceiling):
        return _entropy(p)
    if loss.name.startswith("bounded"):
        floor, found = math.exp(-ceiling), []
        for m in range(1, len(p) + 1):  # classes above the floor
            q = np.full(len(p), floor)
            q[:m] = p[:m] / p[:m].sum() * (1 - (num_classes - m) * floor)
            found.append(-(p * np.log(q)).sum() if q[m - 1] >= floor * (1 - 1e-12) else math.inf)
        return float(min(found))
    kept = np.cumsum(p)
    return float((-np.cumsum(p * np.log(p)) + kept * np.log(kept) + (1 - kept).clip(min=0) * ceiling).min())


def _entropy(p: np.ndarray) -> float:
    """Of the frequencies ``[K]``, in nats."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
