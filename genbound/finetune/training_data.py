"""The samples of a run with the labels that it is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from genbound.data import Samples, load_data
from genbound.errors import GenboundError
from genbound.finetune.label_noise.draw import flip_labels, named_matrix


def all_labels(samples: Samples) -> torch.Tensor:
    """The labels of all samples, in order: ``[n]``, or ``[n, ...]`` where a sample has several."""
    return torch.cat([batch.targets for batch in samples.batches(range(len(samples)), 256)])


def noisy_labels(labels: torch.Tensor, noise: str | None, num_classes: int, seed: int) -> torch.Tensor:
    """The labels to train on.

    Args:
        labels: as the data have them.
        noise: see :class:`~genbound.finetune.settings.Settings`; ``None`` leaves them.
        num_classes: K.
        seed: of the draw.
    """
    if noise is None:
        return labels
    if labels.ndim != 1 or labels.is_floating_point():
        raise GenboundError("--noise is for data with one class for each sample")
    if noise.startswith("labels:"):
        return _observed(noise.removeprefix("labels:"), len(labels), num_classes)
    return torch.from_numpy(flip_labels(labels.numpy(), named_matrix(noise, num_classes), seed))


def _observed(file: str, count: int, num_classes: int) -> torch.Tensor:
    try:
        found = np.load(file, allow_pickle=False) if file.endswith(".npy") else np.loadtxt(file, ndmin=1)
        whole = found.astype(np.int64)
    except (OSError, ValueError) as error:
        raise GenboundError(f"--noise labels:{file} cannot be read: {error}") from error
    if found.shape != (count,) or (found != whole).any() or found.min() < 0 or found.max() >= num_classes:
        raise GenboundError(
            f"--noise labels:{file} must hold one class below {num_classes} for each of the {count} samples"
        )
    return torch.from_numpy(whole)


def samples_of_run(folder: str | Path) -> Samples:
    """The training samples of a finished run, with the labels that it saw.

    ``data.py`` in the run's folder calls this, for scripts; ``genbound evaluate`` reads the data SPEC ``run:FOLDER``.
    """
    from genbound.finetune.start import text_reader

    # Who runs data.py has named it; what the run was given is the same person's.
    return load_data(f"run:{Path(folder).resolve()}", text_reader(Path(folder, "finetuned"), trust_remote_code=True))
