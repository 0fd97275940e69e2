"""The samples of a run with the labels that it is trained on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genbound.data import Batch, Reader, Samples, load_data
from genbound.errors import GenboundError
from genbound.finetune.label_noise.draw import flip_labels, named_matrix


class Relabelled(Samples):
    """The samples at some places of others, with other labels."""

    def __init__(self, samples: Samples, labels: Any, places: list[int] | None = None):
        self._samples, self._places = samples, list(range(len(samples))) if places is None else places
        self.labels = torch.as_tensor(labels)
        if len(self.labels) != len(samples):
            raise GenboundError(f"{len(self.labels)} labels for {len(samples)} samples: give one for each")
        super().__init__(len(self._places), samples.spec)
        self.label2id = samples.label2id

    def _item(self, i: int) -> tuple[Any, torch.Tensor]:
        place = self._places[i]
        return self._samples._item(place)[0], self.labels[place]

    def shape_key(self, i: int) -> Hashable:
        """That of the sample's place."""
        return self._samples.shape_key(self._places[i])

    def batch(self, indices: Iterable[int]) -> Batch:
        """Inputs of the samples at these places, with their other labels."""
        indices = [int(i) for i in indices]
        places = [self._places[i] for i in indices]
        return Batch(self._samples.batch(places).inputs, self.labels[places], indices)

    def digest(self) -> str:
        """SHA-256 of the samples' own digest, the places and the labels."""
        import hashlib

        text = f"{self._samples.digest()}|{self._places}|{self.labels.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()


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
    except (OSError, ValueError) as error:
        raise GenboundError(f"--noise labels:{file} cannot be read: {error}") from error
    if found.shape != (count,) or (found != found.astype(int)).any() or found.min() < 0 or found.max() >= num_classes:
        raise GenboundError(
            f"--noise labels:{file} must hold one class below {num_classes} for each of the {count} samples"
        )
    return torch.from_numpy(found.astype(np.int64))


def samples_of_run(folder: str | Path) -> Samples:
    """The training samples of a finished run, with the labels that it saw.

    ``data.py`` in the run's folder calls this, so that ``genbound evaluate`` measures on them.
    """
    import json

    from genbound.finetune.start import tokenizer_of

    folder = Path(folder)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    with np.load(folder / "labels.npz", allow_pickle=False) as stored:
        labels, places = stored["observed"], stored["train"].tolist()
    tokenizer = tokenizer_of(folder / "finetuned")
    samples = load_data(record["data"], Reader(tokenizer, label2id=record["label2id"]))
    return Relabelled(samples, labels, places)
