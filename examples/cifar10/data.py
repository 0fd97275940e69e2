"""CIFAR-10 for the two networks: which images each task has, and how they are scaled.

The environment variable ``CIFAR10`` names a directory with ``cifar10_train.npz`` and ``cifar10_test.npz``, each holding
``x`` (uint8, N×32×32×3) and ``y`` (labels 0..9).
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

NUM_TRAIN = 1500  # fine-tuning samples
PIXELS = 96  # side that EfficientNet sees; it was trained at 224
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # of CIFAR-10's channels


class Images(Dataset):
    """Images of some classes as they are stored; scaling waits until one is asked for."""

    def __init__(self, split: str, classes: range, transform, num: int | None = None):
        if "CIFAR10" not in os.environ:
            raise RuntimeError("set the environment variable CIFAR10 to the directory of cifar10_train.npz")
        with np.load(Path(os.environ["CIFAR10"]) / f"cifar10_{split}.npz") as file:
            pixels, labels = file["x"], file["y"]
        chosen = np.flatnonzero(np.isin(labels, list(classes)))
        if num is not None:  # a fixed choice, the same number of each class
            order = np.random.default_rng(0).permutation(chosen)
            each = num // len(classes)
            chosen = np.sort(np.concatenate([order[labels[order] == label][:each] for label in classes]))
        self.pixels = torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(labels[chosen]) - classes[0]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices) -> tuple[torch.Tensor, torch.Tensor]:
        """The samples at these indices: inputs N×3×H×W and labels counted from 0."""
        return self.transform(self.pixels[indices].float()), self.labels[indices]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = self.batch([index])
        return inputs[0], labels[0]


def standardized(pixels: torch.Tensor) -> torch.Tensor:
    """For ResNet-20: zero mean and unit variance in each channel."""
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def enlarged(pixels: torch.Tensor) -> torch.Tensor:
    """For EfficientNet-Lite0: enlarged, and scaled as for its ImageNet weights."""
    large = interpolate(pixels, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)
    return (large - 127) / 128


def resnet20_pretraining() -> Images:
    """5,000 images of the classes 0-4: airplane, automobile, bird, cat, deer."""
    return Images("train", range(5), standardized)


def resnet20_train() -> Images:
    """1,500 images of the classes 5-9: dog, frog, horse, ship, truck."""
    return Images("train", range(5, 10), standardized, NUM_TRAIN)


def resnet20_test() -> Images:
    return Images("test", range(5, 10), standardized)


def efficientnet_lite0_train() -> Images:
    """1,500 images of all ten classes."""
    return Images("train", range(10), enlarged, NUM_TRAIN)


def efficientnet_lite0_whole() -> Images:
    """All images of all ten classes that the file has."""
    return Images("train", range(10), enlarged)


def efficientnet_lite0_test() -> Images:
    return Images("test", range(10), enlarged)
