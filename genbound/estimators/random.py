"""Random numbers: one stream for each (seed, quantity, draw, block of samples), and none of the global ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from genbound.estimators.device_normals import normals_of


def generator(seed: int, *key: str | int) -> torch.Generator:
    """The stream that belongs to a seed and a key. Streams of different keys are independent."""
    digest = hashlib.sha256(repr((int(seed), *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# Members of a group of random numbers that share a stream: fixed, so that the batch size changes nothing.
BLOCK = 16

# The eight signs that the bits of a byte stand for: one look-up instead of a chain of conversions.
SIGNS_OF_BYTE = torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)).float().mul_(2).sub_(1)

# A row of a pass that has random numbers of its own: the key of a stream, and which of its BLOCK members.
Row = tuple[tuple, int]


def row_of(kind: str, position: int, draw: int, num: int) -> Row:
    """Where the random numbers of a sample's draw come from, one of ``num``: the same for every batch.

    Groups are the same draw of 16 neighbouring samples, or 16 draws of a sample that gets many.
    """
    if num < BLOCK:
        return (kind, position // BLOCK, draw), position % BLOCK
    return (kind, "many", position, draw // BLOCK), draw % BLOCK


def grouped(rows: Sequence[Row]) -> dict[tuple, tuple[list[int], list[int]]]:
    """Stream's key -> which rows it serves, and as which members."""
    groups: dict[tuple, tuple[list[int], list[int]]] = {}
    for place, (key, member) in enumerate(rows):
        places, members = groups.setdefault(key, ([], []))
        places.append(place)
        members.append(member)
    return groups


def row_signs(rows: Sequence[Row], seed: int, name: str, positions: int, width: int, like: Tensor) -> Tensor:
    """Independent signs, position by position: more positions only continue the earlier ones.

    Every row has a SplitMix64 stream of its own (Steele, Lea & Flood, OOPSLA 2014): a function of its number alone. Its
    words are computed where they are needed, on the device of ``like`` and the same on each, all rows at once.

    Args:
        rows: where each row's signs come from.
        seed: of all randomness.
        name: of the layer that they are for: its signs are independent of those of other layers.
        positions: of a row.
        width: signs of a position.
        like: has the device and dtype of what is wanted.

    Returns:
        ``[rows, positions, width]``, each -1 or 1.
    """
    if not positions:  # no row of the sample reaches the layer
        return like.new_empty(len(rows), 0, width)
    words = _row_words(rows, seed, name, positions * -(-width // 64), like.device)
    bytes_ = words.view(torch.uint8).view(len(rows), positions, -1).int()
    signs = embedding(bytes_, SIGNS_OF_BYTE.to(like.device)).flatten(2)[..., :width]
    return signs.to(device=like.device, dtype=like.dtype)


def row_normals(rows: Sequence[Row], seed: int, name: str, positions: int, width: int, like: Tensor) -> Tensor:
    """Likewise standard normal numbers, for accelerators: made there, with no transfer, and the same on each.

    They are others than those that are drawn for a processor, whose generator is the faster one there.
    """
    words = _row_words(rows, seed, f"normals of {name}", positions * -(-width // 2), like.device)
    return normals_of(words).view(len(rows), positions, -1)[..., :width].to(like.dtype)


def _row_words(rows: Sequence[Row], seed: int, name: str, num: int, device: torch.device) -> Tensor:
    """The first words of every row's stream, int64 ``[rows, num]``."""
    starts = [hashlib.sha256(repr((int(seed), *key, member, name)).encode()).digest()[:8] for key, member in rows]
    start = np.frombuffer(b"".join(starts), dtype="<u8")
    if is_host(device):
        return torch.from_numpy(_words(start, num).view(np.int64))
    return words_on(torch.from_numpy(start.view(np.int64).copy()).to(device), num)


STEP = 0x9E3779B97F4A7C15
MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST = 31


def is_host(device: torch.device) -> bool:
    """Numpy makes the words there, several times faster than signed arithmetic of torch, and torch the normals."""
    return device.type == "cpu"


def _words(start: np.ndarray, num: int) -> np.ndarray:
    """The first words of SplitMix64 streams, ``[rows] -> [rows, num]``, in unsigned integers."""
    words = start[:, None] + np.arange(1, num + 1, dtype=np.uint64) * np.uint64(STEP)
    for shift, factor in MIXES:
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(LAST)
    return words


def words_on(start: Tensor, num: int) -> Tensor:
    """The same bits from signed integers, the only ones of 64 bits that every device multiplies: they wrap alike.

    Args:
        start: of each stream, int64 ``[rows]``, on the device.
        num: words of each.

    Returns:
        int64 ``[rows, num]``, on the device.
    """

    def signed(number: int) -> int:
        return number - (1 << 64) if number >> 63 else number

    def shifted(words: Tensor, shift: int) -> Tensor:
        return (words >> shift) & ((1 << (64 - shift)) - 1)  # zeros come in from the left, whatever the sign was

    words = start[:, None] + torch.arange(1, num + 1, device=start.device) * signed(STEP)
    for shift, factor in MIXES:
        words = (words ^ shifted(words, shift)) * signed(factor)
    return words ^ shifted(words, LAST)


def rademacher(shape: tuple[int, ...], stream: torch.Generator, like: Tensor) -> Tensor:
    """Independent signs of this shape, in the dtype of ``like``, each -1 or 1.

    They are drawn on the CPU, so that every device sees the same ones.
    """
    num, columns = shape[0], math.prod(shape[1:])
    words = torch.empty((num, -(-columns // 64)), dtype=torch.int64).random_(-(2**63), None, generator=stream)
    signs = embedding(words.view(torch.uint8).int(), SIGNS_OF_BYTE).flatten(1)[:, :columns]
    return signs.to(device=like.device, dtype=like.dtype).reshape(num, *shape[1:])


def normal(shape: tuple[int, ...], stream: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers of this shape, in float32 and then the dtype of ``like``.

    On a processor they are the stream's own. For an accelerator the stream tells where the counter starts, and they are
    made there (:mod:`genbound.estimators.device_normals`): others, but the same on each.
    """
    if is_host(like.device):
        return torch.randn(shape, generator=stream, dtype=torch.float32).to(like.dtype)
    start = torch.empty(1, dtype=torch.int64).random_(-(2**63), None, generator=stream).to(like.device)
    num = math.prod(shape)
    return normals_of(words_on(start, -(-num // 2))).view(-1)[:num].view(shape).to(like.dtype)
