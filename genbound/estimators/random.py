"""Random numbers: one stream for each (seed, quantity, draw, block of samples), and none of the global ones."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, *key: str | int) -> torch.Generator:
    """The stream that belongs to a key. Streams of different keys are independent."""
    digest = hashlib.sha256(repr((int(seed), *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rademacher(shape: tuple[int, ...], stream: torch.Generator, like: Tensor, rows: list[int] | None = None) -> Tensor:
    """Independent signs, drawn on the CPU so that every device sees the same ones.

    Only the given rows of the first axis are unpacked from the stream's bits; they are what they would be among all.
    """
    num, columns = shape[0], math.prod(shape[1:])
    words = torch.empty((num, -(-columns // 64)), dtype=torch.int64).random_(-(2**63), None, generator=stream)
    words = words if rows is None else words[rows]
    bits = torch.from_numpy(np.unpackbits(words.numpy().view(np.uint8), axis=1, count=columns))
    return bits.to(device=like.device, dtype=like.dtype).mul_(2).sub_(1).view(len(words), *shape[1:])


def normal(shape: tuple[int, ...], stream: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=stream, dtype=torch.float32).to(device=like.device, dtype=like.dtype)
