"""A map-style collection of samples: tensors, lists, torch data sets, and iterables of batches."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from genbound.data.sample_parts import (
    Inputs,
    checked,
    inputs_and_labels,
    leaves,
    map_tensors,
    raw_bytes,
    split_pair,
    stack,
)
from genbound.errors import GenboundError
from genbound.user_code import describe, rng_untouched

SomeSamples = TypeVar("SomeSamples", bound="Samples")
ShapeKey = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


class MapStyle(Protocol):
    """What has a length and is read by place: a list of samples, or a ``Dataset`` of torch or Hugging Face."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


@dataclass(frozen=True)
class Batch:
    """Samples that share one forward pass.

    Attributes:
        inputs: what the model is called with, tensors ``[N, ...]``; a tuple gives positional, a dict gives keyword
            arguments.
        targets: their labels, ``[N]`` classes, ``[N, T]`` one a token, or numbers ``[N, ...]``.
        indices: their places in the data set.
    """

    inputs: Inputs
    targets: Tensor
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)


class Samples:
    """A collection of samples that can be read by index, in any order, any number of times.

    Subclasses give ``_item``; those that can stack or hash faster override the rest.

    Args:
        length: how many samples there are.
        spec: where they come from, for the record.

    Attributes:
        label2id: class names and indices, where the labels were names; pass it on when reading held-out
            samples, which may lack a class.

    Example:
        >>> samples = as_samples((torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])))
        >>> [batch.indices for batch in samples.batches(range(3), size=2)]
        [[0, 1], [2]]
    """

    label2id: Mapping[str, int] | None = None

    def __init__(self, length: int, spec: str = ""):
        if length < 1:
            raise GenboundError(f"the data{spec and ' ' + repr(spec)} are empty: give at least one sample")
        self._length, self.spec = length, spec

    def __len__(self) -> int:
        return self._length

    def _item(self, i: int) -> tuple[Inputs, Tensor]:
        raise NotImplementedError

    def shape_key(self, i: int) -> Hashable:
        """Samples with equal keys can be stacked into one batch."""
        return ()

    def size(self, i: int) -> int:
        """How long a sample is, where samples differ: those of like length are measured together."""
        return 0

    def batch(self, indices: Iterable[int]) -> Batch:
        """The samples at ``indices``, stacked in this order."""
        indices = [int(i) for i in indices]
        inputs, targets = zip(*(self._item(i) for i in indices), strict=True)
        return Batch(stack(inputs), torch.stack(targets), indices)

    def shown(self, i: int) -> str:
        """What a reader recognises sample ``i`` by, its text or its file; empty where it has neither."""
        return ""

    def label(self, i: int) -> int | float | None:
        """The label of sample ``i`` as it counts in the loss; ``None`` where it is not one number."""
        target = self.batch([i]).targets[0]
        return target.item() if target.ndim == 0 else None

    def batches(self, indices: Iterable[int], size: int) -> Iterator[Batch]:
        """Runs of consecutive ``indices``, at most ``size`` long, split where the shape changes."""
        if size < 1:
            raise GenboundError(f"batch size {size} is not positive")
        for _, run in itertools.groupby((int(i) for i in indices), key=self.shape_key):
            while chunk := list(itertools.islice(run, size)):
                yield self.batch(chunk)

    def head(self: SomeSamples, count: int | None) -> SomeSamples:
        """The first ``count`` samples (all of them for ``None``)."""
        first = copy.copy(self)
        first._length = len(self) if count is None else min(count, len(self))
        return first

    def input_keys(self, indices: Iterable[int]) -> np.ndarray:
        """64 bits of each sample's inputs ``[n]``: equal inputs have equal ones, whatever the label."""
        keys = []
        for i in indices:
            found = hashlib.blake2b(digest_size=8)
            for name, tensor in leaves(self.batch([i]).inputs):
                found.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
                found.update(raw_bytes(tensor))
            keys.append(int.from_bytes(found.digest(), "big"))
        return np.array(keys, np.uint64)

    def digest(self) -> str:
        """SHA-256 of all inputs and labels: equal samples have equal digests, however they are stored."""
        sha = hashlib.sha256()
        for i in range(len(self)):
            inputs, target = self._item(i)
            for name, tensor in (*leaves(inputs), ("target", target)):
                sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
                sha.update(raw_bytes(tensor))
        return sha.hexdigest()

    def content_digest(self) -> str:
        """SHA-256 of all that a pass is given: of samples that are made of others, how they are made counts too."""
        return self.digest()


def same_inputs(one: Samples, other: Samples) -> bool:
    """Whether both have the same inputs in the same order; they are read up to the first difference."""

    def read(samples: Samples, i: int) -> list[tuple[str, str, torch.Size, bytes]]:
        return [(name, str(x.dtype), x.shape, raw_bytes(x)) for name, x in leaves(samples.batch([i]).inputs)]

    return len(one) == len(other) and all(read(one, i) == read(other, i) for i in range(len(one)))


class TensorSamples(Samples):
    """Samples that are stacked already: the first axis of every tensor counts them."""

    def __init__(self, inputs: Any, targets: Any, spec: str = ""):
        self.inputs, self.targets = checked(*split_pair((inputs, targets), "the data"), "the data", stacked=True)
        super().__init__(len(self.targets), spec)

    def _item(self, i: int) -> tuple[Inputs, Tensor]:
        return map_tensors(self.inputs, lambda tensor: tensor[i]), self.targets[i]

    def batch(self, indices: Iterable[int]) -> Batch:
        """The samples at ``indices``, by one indexing operation for each tensor."""
        indices = [int(i) for i in indices]
        return Batch(map_tensors(self.inputs, lambda tensor: tensor[indices]), self.targets[indices], indices)


class ListSamples(Samples):
    """Samples that keep their own shapes: a list of ``(inputs, target)``, or a map-style ``Dataset``.

    A data set is read when a sample is asked for. It must give the same sample each time: one with random
    augmentation is refused, because the quantities would chase a moving target.
    """

    def __init__(self, items: MapStyle, spec: str = ""):
        super().__init__(len(items), spec)
        self._items: MapStyle = items
        self._keys: dict[int, ShapeKey] = {}
        self._stored = isinstance(items, list)
        if isinstance(items, list):
            self._items = [self._taken_apart(item, i) for i, item in enumerate(items)]
        else:
            self._refuse_moving_target()

    def _refuse_moving_target(self) -> None:
        with rng_untouched():
            for i in range(min(8, len(self))):
                once, again = self._item(i), self._item(i)
                if self._key(once) != self._key(again) or not all(
                    torch.equal(a, b) for (_, a), (_, b) in zip(leaves(once), leaves(again), strict=True)
                ):
                    raise GenboundError(
                        f"{self._where(i)} differs each time it is read: switch off random augmentation"
                    )

    @classmethod
    def from_batches(cls, batches: Iterable, spec: str = "", limit: int | None = None) -> ListSamples:
        """Split an iterable of batches into samples; it is read once, so a generator will do."""
        items, where = [], spec or "the data"
        try:
            for number, batch in enumerate(batches):
                place = f"batch {number} of {where}"
                inputs, targets = checked(*split_pair(batch, place), place, stacked=True)
                # Cloned: a view would keep the whole batch alive, and a generator may refill its buffers.
                items += [(_taken(inputs, i), targets[i].clone()) for i in range(len(targets))]
                if limit is not None and len(items) >= limit:
                    break
        except GenboundError:
            raise
        except Exception as error:
            raise GenboundError(f"reading {where} raised {describe(error)}") from error
        return cls(items[:limit], spec)

    def _where(self, i: int) -> str:
        return f"sample {i} of {self.spec or type(self._items).__name__}"

    def _item(self, i: int) -> tuple[Inputs, Tensor]:
        if self._stored:
            return self._items[i]
        try:
            item = self._items[i]
        except GenboundError:
            raise
        except Exception as error:
            raise GenboundError(f"{self._where(i)} raised {describe(error)}") from error
        return self._taken_apart(item, i)

    def _taken_apart(self, item: Any, i: int) -> tuple[Inputs, Tensor]:
        return checked(*split_pair(item, self._where(i)), self._where(i), stacked=False)

    @staticmethod
    def _key(item: tuple[Inputs, Tensor]) -> ShapeKey:
        return tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in leaves(item))

    def shape_key(self, i: int) -> ShapeKey:
        """Types and shapes of the sample's tensors."""
        if i not in self._keys:
            self._keys[i] = self._key(self._item(i))
        return self._keys[i]

    def size(self, i: int) -> int:
        """How many numbers the sample has, labels included."""
        return sum(math.prod(shape) for _, _, shape in self.shape_key(i))


def _taken(inputs: Inputs, i: int) -> Inputs:
    """A copy of one sample of a batch."""
    return map_tensors(inputs, lambda tensor: tensor[i].clone())


def as_samples(obj: Any, spec: str = "", limit: int | None = None) -> Samples:
    """Make samples of what a user holds.

    Args:
        obj: a :class:`Samples`; a pair ``(x, y)`` of tensors or arrays, or one dict that holds all samples; a
            map-style ``Dataset`` (yields samples); a ``DataLoader`` or another iterable (yields batches
            ``(inputs, labels)`` or dicts with ``labels``, ``label`` or ``y``). A shuffling loader is read in
            the order of its data set, so that sample 17 is the same sample in every run.
        spec: where the samples come from, for the record.
        limit: keep only the first samples.

    Raises:
        GenboundError: there are no samples or no labels, or something is not a finite number.
    """
    if isinstance(obj, Samples):
        return obj if limit is None else obj.head(limit)
    if isinstance(obj, Mapping):
        return TensorSamples(*inputs_and_labels(obj, spec or "the data"), spec).head(limit)
    if isinstance(obj, tuple) and len(obj) == 2 and isinstance(obj[1], Tensor | np.ndarray):
        return TensorSamples(*obj, spec).head(limit)
    with rng_untouched():  # a DataLoader draws a seed from torch's global generator
        found = _read(obj, spec or type(obj).__name__, limit)
    if found is None:
        raise GenboundError(
            f"data of type {type(obj).__name__} have no labels or no samples; give a Dataset, an iterable of "
            "(inputs, labels) batches, or a pair of tensors"
        )
    return found


def _read(obj: Any, spec: str, limit: int | None) -> Samples | None:
    """Samples of what is read one by one or in batches; ``None`` for what cannot be read so."""
    if isinstance(obj, torch_data.DataLoader) and _covers_dataset(obj):
        if obj.collate_fn is torch_data.default_collate:
            rows: Any = obj.dataset
            return ListSamples(rows, spec).head(limit)
        return ListSamples.from_batches(_in_order(obj), spec, limit)
    if isinstance(obj, torch_data.IterableDataset):
        one_each = (torch_data.default_collate([sample]) for sample in obj)
        return ListSamples.from_batches(one_each, spec, limit)
    if isinstance(obj, str | bytes | Tensor | np.ndarray):
        return None
    # datasets.Dataset is map-style without being a torch Dataset.
    if hasattr(obj, "__getitem__") and hasattr(obj, "__len__") and not isinstance(obj, list | tuple):
        return ListSamples(obj, spec).head(limit)
    return ListSamples.from_batches(obj, spec, limit) if isinstance(obj, Iterable) else None


def _covers_dataset(loader: torch_data.DataLoader) -> bool:
    """Whether the loader gives each sample of a map-style data set once, whatever the order."""
    plain = type(loader.batch_sampler) is torch_data.BatchSampler
    sampler, rows = loader.sampler, loader.dataset
    if isinstance(sampler, torch_data.RandomSampler) and type(sampler) is torch_data.RandomSampler:
        return plain and not sampler.replacement and sampler.num_samples == len(rows)  # type: ignore[arg-type]
    return plain and type(sampler) is torch_data.SequentialSampler


def _in_order(loader: torch_data.DataLoader) -> Iterator:
    """The loader's batches, with the samples in the order of its data set."""
    rows: Any = loader.dataset
    for places in torch_data.BatchSampler(torch_data.SequentialSampler(rows), loader.batch_size or 1, drop_last=False):
        yield loader.collate_fn([rows[i] for i in places])
