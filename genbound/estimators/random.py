"""Random numbers: one stream for each (seed, quantity, draw, block of samples), and none of the global ones."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, *key: str | int) -> torch.Generator:
    """The stream that belongs to a key. Streams of different keys are independent."""
    digest = hashlib.sha256(repr((int(seed), *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rademacher(shape: tuple[int, ...], stream: torch.Generator, like: Tensor) -> Tensor:
    """Independent signs, drawn on the CPU so that every device sees the same ones."""
    bits = torch.randint(0, 2, shape, generator=stream, dtype=torch.int8)
    return bits.to(device=like.device, dtype=like.dtype).mul_(2).sub_(1)


def normal(shape: tuple[int, ...], stream: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=stream, dtype=torch.float32).to(device=like.device, dtype=like.dtype)
