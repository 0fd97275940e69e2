"""What a network says of samples, and how often it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genbound.data import Samples
from genbound.data.sample_parts import map_tensors
from genbound.errors import GenboundError, first_line
from genbound.finetune.settings import Settings
from genbound.finetune.task import Task
from genbound.network.forward import call_arguments, evaluation_mode, scores
from genbound.user_code import rng_untouched


@torch.no_grad()
def predict(model: nn.Module, samples: Samples, device: str = "cpu", size: int = 128) -> tuple[Tensor, Tensor]:
    """Logits ``[n, K]`` in float32 and labels ``[n]`` of all samples in their order, in evaluation mode.

    Samples of like length share a pass: in the order of a file 38 % of MRPC and 57 % of SST-2 would be padding.

    Args:
        model: is moved to the device.
        samples: n of them.
        device: where to run.
        size: samples in a forward pass.
    """
    found = []
    model.to(device)
    order = sorted(range(len(samples)), key=samples.size)
    for batch in samples.batches(order, size):
        inputs = map_tensors(batch.inputs, lambda t: t.to(device))
        with evaluation_mode(model):  # of each pass: what one keeps is not for the next
            found.append((answer(model, inputs).float().cpu(), batch.targets))
    logits, labels = zip(*found, strict=True)
    back = torch.tensor(order).argsort()
    return torch.cat(logits)[back], torch.cat(labels)[back]


def answer(model: Callable[..., Any], inputs: Any) -> Tensor:
    """The scores ``[N, ..., K]`` of a batch; its numbers are cast to float32, in which the network is trained.

    Raises:
        GenboundError: the network cannot read the batch.
    """
    args, kwargs = call_arguments(map_tensors(inputs, lambda t: t.float() if t.is_floating_point() else t))
    try:
        return scores(model(*args, **kwargs))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise GenboundError(
            f"the network cannot read the samples ({type(error).__name__}: {first_line(error)}): do their kind of "
            "numbers, shapes, lengths and token numbers fit it?"
        ) from error


def check_outputs(model: nn.Module, task: Task, settings: Settings) -> None:
    """Try the largest sample, and refuse outputs that do not fit the classes, before any training.

    There may be more of them, but not where F corrects the loss of each.
    """
    largest = max(task.train, key=task.samples.size)
    logits, _ = predict(model, task.part([largest]), settings.device)
    wanted = max(int(task.observed.max()) + 1, int(task.clean.max()) + 1, task.num_classes)
    if logits.ndim != 2 or logits.shape[1] < wanted:
        raise GenboundError(
            f"the network gives {tuple(logits.shape[1:])} outputs for a sample, and there are "
            f"{wanted} classes: one for each is needed"
        )
    if settings.confusion is not None and logits.shape[1] != task.num_classes:
        raise GenboundError(
            f"the network gives {logits.shape[1]} outputs for a sample, and F of --confusion {settings.confusion} is "
            f"for {task.num_classes} classes: add --classes {logits.shape[1]}, or give a network with as many outputs"
        )


@torch.no_grad()
def check_last_batch(model: nn.Module, task: Task, settings: Settings) -> None:
    """Refuse, before any training, a last batch of one sample where the network needs more, as batch normalisation may.

    A body that is frozen normalises as in evaluation.
    """
    count, size = len(task.train), settings.batch_size
    if count % size != 1 % size or settings.trained == "head":
        return
    batch = task.part([min(task.train, key=task.samples.size)]).batch([0])
    inputs = map_tensors(batch.inputs, lambda t: t.to(settings.device))
    buffers = {name: buffer.clone() for name, buffer in model.to(settings.device).train().named_buffers()}
    try:
        with rng_untouched():
            answer(lambda *args, **kwargs: torch.func.functional_call(model, buffers, args, kwargs), inputs)
    except GenboundError as error:
        raise GenboundError(
            f"{count} training samples in batches of {size} leave a batch of one, and the network cannot be trained on "
            f"that ({first_line(error.__cause__ or error)}): give another --batch-size"
        ) from error


def accuracies(model: nn.Module, task: Task, device: str) -> dict[str, float]:
    """On the labels that were trained on, on the given ones, on those held out, and on the test samples."""
    parts = {
        "train_observed": task.part(task.train),
        "train_given": task.part(task.train, clean=True) if task.noise_rate else None,
        "validation": task.part(task.held_out) if task.held_out else None,
        "test": task.test,
    }
    found = {}
    for name, part in parts.items():
        if part is not None:
            logits, labels = predict(model, part, device)
            found[name] = float((logits.argmax(-1) == labels).float().mean())
    return found
