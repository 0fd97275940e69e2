"""What a run is asked for, and the samples and labels that this comes to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genbound.data import Samples, load_data
from genbound.data.run_folder import Relabelled
from genbound.errors import GenboundError
from genbound.files import write_atomically
from genbound.finetune.settings import Settings
from genbound.finetune.start import Start, build_start, text_reader
from genbound.finetune.training_data import all_labels, noisy_labels


@dataclass(frozen=True)
class RunSpec:
    """What a run is asked for; see :func:`~genbound.finetune.run.finetune` for the fields."""

    init: Any
    data: Any
    out: Path
    model: Any = None
    test_data: Any = None
    num_classes: int | None = None
    settings: Settings = field(default_factory=Settings)
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Task:
    """The samples of a run and the labels that it sees.

    Attributes:
        samples: all training samples.
        clean: their labels as the data have them, ``[n]`` class numbers.
        observed: the labels to train on, ``[n]``.
        num_classes: K.
        train, held_out: places of the samples that are trained on and of those that are set aside.
        test: samples to report the accuracy on, if there are any.
    """

    samples: Samples
    clean: Tensor
    observed: Tensor
    num_classes: int
    train: list[int]
    held_out: list[int]
    test: Samples | None = None

    def part(self, places: list[int], clean: bool = False) -> Samples:
        """The samples at these places, with the labels that are trained on or with the clean ones."""
        return Relabelled(self.samples, self.clean if clean else self.observed, places)

    @property
    def noise_rate(self) -> float:
        """Share of the labels that the run sees wrong."""
        return float((self.observed != self.clean).float().mean())

    @property
    def inputs(self) -> Any:
        """Of the first sample."""
        return self.samples.batch([0]).inputs

    @property
    def has_images(self) -> bool:
        """The inputs are images as transformers names them."""
        inputs = self.inputs
        return isinstance(inputs, dict) and "pixel_values" in inputs

    def write(self, file: Path) -> None:
        """Keep the labels and the division of the samples; :mod:`~genbound.finetune.training_data` reads them back."""
        arrays: dict[str, Any] = {
            "observed": self.observed.numpy(), "given": self.clean.numpy(), "train": np.array(self.train),
            "held_out": np.array(self.held_out, dtype=int),
        }  # fmt: skip

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as stream:
                np.savez(stream, **arrays)

        write_atomically(file, write)


def read_task(spec: RunSpec) -> Task:
    """Read the samples, draw the noise and set samples aside.

    Raises:
        GenboundError: the labels are not one class a sample, or do not fit what is asked for.
    """
    samples = _read(spec, spec.data, None)
    clean = all_labels(samples)
    if clean.is_floating_point() or clean.ndim != 1:
        raise GenboundError("genbound finetune is for classification: every sample needs one class number")
    settings, num_classes = spec.settings, _num_classes(spec, samples, clean)
    observed = noisy_labels(clean, settings.noise, num_classes, settings.seed)
    order = np.random.default_rng([settings.seed, 1]).permutation(len(samples)).tolist()
    count = round(settings.validation * len(samples))
    if settings.validation and not 0 < count < len(samples):
        raise GenboundError(
            f"--validation {settings.validation:g} of {len(samples)} samples leaves nothing to train or to validate on"
        )
    test = None if spec.test_data is None else _read(spec, spec.test_data, samples)
    return Task(samples, clean, observed, num_classes, sorted(order[count:]), sorted(order[:count]), test)


def start_of(spec: RunSpec, task: Task, init: Any = None) -> Start:
    """The network with the weights of INIT, or of a checkpoint that the run has written."""
    return build_start(
        spec.init if init is None else init, spec.model, task.num_classes, task.samples.label2id, task.has_images,
        spec.settings.seed, spec.trust_remote_code, spec.settings.head_weights, task.inputs,
    )  # fmt: skip


def _read(spec: RunSpec, data: Any, training: Samples | None) -> Samples:
    """Samples with the tokenizer of INIT; held-out ones with the class numbers of the training samples."""
    if not isinstance(data, str):
        return load_data(data)
    names = None if training is None else training.label2id
    return load_data(data, replace(text_reader(spec.init, spec.trust_remote_code), label2id=names))


def _num_classes(spec: RunSpec, samples: Samples, clean: Tensor) -> int:
    seen = max(int(clean.max()) + 1, len(set((samples.label2id or {}).values())), 2)
    if spec.num_classes is not None and spec.num_classes < seen:
        raise GenboundError(f"--classes {spec.num_classes} is too few: the data have label {seen - 1}")
    return spec.num_classes or seen
