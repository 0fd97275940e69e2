"""The data of the demo: scikit-learn's handwritten digits (1,797 real 8×8 images, no download).

Pretraining sees the digits 0–4, fine-tuning the digits 5–9: the same kind of image, other classes.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

NUM_TRAIN = 300


def digits(first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images N×1×8×8 in [0, 1] of the five digits from ``first`` on, and their labels 0..4."""
    images, labels = load_digits(return_X_y=True)
    chosen = (labels >= first) & (labels < first + 5)
    x = torch.tensor(images[chosen], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return x, torch.tensor(labels[chosen] - first, dtype=torch.int64)


def _split() -> tuple[TensorDataset, TensorDataset]:
    x, y = digits(5)
    train, test = train_test_split(torch.arange(len(y)), train_size=NUM_TRAIN, stratify=y, random_state=0)
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def pretraining() -> TensorDataset:
    """The digits 0–4."""
    return TensorDataset(*digits(0))


def train() -> TensorDataset:
    """The 300 images of the digits 5–9 that fine-tuning sees (a fixed stratified choice)."""
    return _split()[0]


def test() -> TensorDataset:
    """The other images of the digits 5–9."""
    return _split()[1]
