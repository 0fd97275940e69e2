"""Which samples are measured: a map-style collection of samples, from files, functions or tensors."""

import copy
import hashlib
import itertools
import json
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from genbound.data_files import encode_labels, parse_options, read_npz, read_table
from genbound.errors import GenboundError
from genbound.sample_parts import Inputs, checked, inputs_and_labels, leaves, map_tensors, split_pair, stack
from genbound.user_code import call_user, describe, rng_untouched


@dataclass(frozen=True)
class Batch:
    """Samples that share one forward pass.

    Attributes:
        inputs: what the model is called with; a tuple gives positional, a dict gives keyword arguments.
        targets: their labels, first axis the samples.
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

    def batch(self, indices: Iterable[int]) -> Batch:
        """The samples at ``indices``, stacked in this order."""
        indices = [int(i) for i in indices]
        inputs, targets = zip(*(self._item(i) for i in indices), strict=True)
        return Batch(stack(inputs), torch.stack(targets), indices)

    def batches(self, indices: Iterable[int], size: int) -> Iterator[Batch]:
        """Runs of consecutive ``indices``, at most ``size`` long, split where the shape changes."""
        if size < 1:
            raise GenboundError(f"batch size {size} is not positive")
        for _, run in itertools.groupby((int(i) for i in indices), key=self.shape_key):
            while chunk := list(itertools.islice(run, size)):
                yield self.batch(chunk)

    def head(self, count: int | None) -> "Samples":
        """The first ``count`` samples (all of them for ``None``)."""
        first = copy.copy(self)
        first._length = len(self) if count is None else min(count, len(self))
        return first

    def digest(self) -> str:
        """SHA-256 of all inputs and labels: equal samples have equal digests, however they are stored."""
        sha = hashlib.sha256()
        for i in range(len(self)):
            inputs, target = self._item(i)
            for name, tensor in (*leaves(inputs), ("target", target)):
                sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
                # Viewed as bytes, because NumPy has no bfloat16.
                sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        return sha.hexdigest()


class TensorSamples(Samples):
    """Samples that are stacked already: the first axis of every tensor counts them."""

    def __init__(self, inputs: Any, targets: Any, spec: str = ""):
        self.inputs, self.targets = checked(*split_pair((inputs, targets), "the data"), "the data", stacked=True)
        super().__init__(len(self.targets), spec)

    def _item(self, i: int) -> tuple[Inputs, Tensor]:
        return map_tensors(self.inputs, lambda tensor: tensor[i]), self.targets[i]

    def batch(self, indices: Iterable[int]) -> Batch:
        indices = [int(i) for i in indices]
        return Batch(map_tensors(self.inputs, lambda tensor: tensor[indices]), self.targets[indices], indices)


class ListSamples(Samples):
    """Samples that keep their own shapes: a list of ``(inputs, target)``, or a map-style ``Dataset``.

    A data set is read when a sample is asked for. It must give the same sample each time: one with random
    augmentation is refused, because the quantities would chase a moving target.
    """

    def __init__(self, items: Sequence | torch_data.Dataset, spec: str = ""):
        super().__init__(len(items), spec)
        self._items, self._keys = items, {}
        self._stored = isinstance(items, list)
        if self._stored:
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
    def from_batches(cls, batches: Iterable, spec: str = "", limit: int | None = None) -> "ListSamples":
        """Split an iterable of batches into samples; it is read once, so a generator will do."""
        items, where = [], spec or "the data"
        try:
            for number, batch in enumerate(batches):
                place = f"batch {number} of {where}"
                inputs, targets = checked(*split_pair(batch, place), place, stacked=True)
                # Cloned: a view would keep the whole batch alive, and a generator may refill its buffers.
                items += [
                    (map_tensors(inputs, lambda t, i=i: t[i].clone()), targets[i].clone()) for i in range(len(targets))
                ]
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
    def _key(item: tuple[Inputs, Tensor]) -> Hashable:
        return tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in leaves(item))

    def shape_key(self, i: int) -> Hashable:
        if i not in self._keys:
            self._keys[i] = self._key(self._item(i))
        return self._keys[i]


class TextSamples(Samples):
    """Sentences, or pairs of them, tokenised once each and padded to the longest of their batch.

    Args:
        texts: the sentences.
        pairs: second sentences, or ``None``.
        labels: class indices.
        tokenizer: a transformers tokenizer. One without a padding token pads with its end-of-text token.
        max_length: longest sequence in tokens, longer ones are cut; by default what the tokenizer
            says the model takes, and 512 where it says nothing.
    """

    def __init__(self, texts, pairs, labels, tokenizer, max_length: int | None = None, spec: str = ""):
        if tokenizer is None:
            raise GenboundError(
                "text needs a tokenizer and none lies beside the checkpoint: copy tokenizer.json and "
                "tokenizer_config.json into its directory"
            )
        super().__init__(len(texts), spec)
        for what, column in (("second texts", pairs), ("labels", labels)):
            if column is not None and len(column) != len(texts):
                raise GenboundError(f"{len(texts)} texts but {len(column)} {what}: give one for each text")
        known = tokenizer.model_max_length
        self.max_length = max_length or (known if known and known < 1_000_000 else 512)
        self._texts, self._pairs, self._tokenizer = texts, pairs, tokenizer
        self._labels = torch.as_tensor(labels)
        self._tokens: dict[int, dict[str, list[int]]] = {}

    def batch(self, indices: Iterable[int]) -> Batch:
        indices = [int(i) for i in indices]
        self._tokenize([i for i in dict.fromkeys(indices) if i not in self._tokens])
        rows = [self._tokens[i] for i in indices]
        return Batch({name: self._pad(name, rows) for name in rows[0]}, self._labels[indices], indices)

    def _tokenize(self, indices: list[int]) -> None:
        if not indices:
            return
        texts = [self._texts[i] for i in indices]
        pairs = None if self._pairs is None else [self._pairs[i] for i in indices]
        encoded = self._tokenizer(texts, pairs, truncation=True, max_length=self.max_length, padding=False)
        for place, i in enumerate(indices):
            self._tokens[i] = {name: values[place] for name, values in encoded.items()}
            if not self._tokens[i]["input_ids"]:
                raise GenboundError(f"sample {i} of {self.spec or 'the texts'} has no tokens; remove empty texts")

    def _pad(self, name: str, rows: list[dict[str, list[int]]]) -> Tensor:
        # By hand, because tokenizer.pad refuses the many causal models that have no padding token.
        tokenizer = self._tokenizer
        token = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        value = {"input_ids": token or 0, "token_type_ids": tokenizer.pad_token_type_id}.get(name, 0)
        width = max(len(row[name]) for row in rows)
        fill = [[value] * (width - len(row[name])) for row in rows]
        if tokenizer.padding_side == "left":
            return torch.tensor([blank + row[name] for blank, row in zip(fill, rows, strict=True)])
        return torch.tensor([row[name] + blank for blank, row in zip(fill, rows, strict=True)])

    def digest(self) -> str:
        sha = hashlib.sha256(f"text|{self.max_length}|".encode())
        for i in range(len(self)):
            pair = None if self._pairs is None else self._pairs[i]
            sha.update(json.dumps([self._texts[i], pair, self._labels[i].tolist()]).encode())
        return sha.hexdigest()


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
    spec = spec or type(obj).__name__
    with rng_untouched():  # a DataLoader draws a seed from torch's global generator
        if isinstance(obj, torch_data.DataLoader) and _covers_dataset(obj):
            if obj.collate_fn is torch_data.default_collate:
                return ListSamples(obj.dataset, spec).head(limit)
            return ListSamples.from_batches(_in_order(obj), spec, limit)
        if isinstance(obj, torch_data.IterableDataset):
            one_each = (torch_data.default_collate([sample]) for sample in obj)
            return ListSamples.from_batches(one_each, spec, limit)
        # datasets.Dataset is map-style without being a torch Dataset.
        indexable = hasattr(obj, "__getitem__") and hasattr(obj, "__len__")
        if indexable and not isinstance(obj, list | tuple | str | bytes | Tensor | np.ndarray):
            return ListSamples(obj, spec).head(limit)
        if isinstance(obj, Iterable) and not isinstance(obj, str | bytes | Tensor | np.ndarray):
            return ListSamples.from_batches(obj, spec, limit)
    raise GenboundError(
        f"data of type {type(obj).__name__} have no labels or no samples; give a Dataset, an iterable of "
        "(inputs, labels) batches, or a pair of tensors"
    )


def load_data(
    spec: Any,
    tokenizer: Any = None,
    base_dir: str | os.PathLike = ".",
    label2id: Mapping[str, int] | None = None,
) -> Samples:
    """Read the samples that a data SPEC names.

    Args:
        spec: ``npz:FILE[?x=NAME&y=NAME]`` (uint8 images N×H×W×3 become float N×3×H×W divided by 255),
            ``csv:|jsonl:|parquet:FILE?text=COL[&text_pair=COL]&label=COL[&max_length=N]``,
            ``FILE.py:function`` or ``pkg.mod:function``, each also with
            ``samples=N`` for the first N. What is no string goes to :func:`as_samples`.
        tokenizer: for text.
        base_dir: what relative paths start from.
        label2id: the model's class names; labels that are strings are numbered in sorted order without it.

    Raises:
        GenboundError: the SPEC, the file or its content cannot be used; the message names the mend.
    """
    if not isinstance(spec, str):
        return as_samples(spec)
    place, _, query = spec.partition("?")
    scheme, colon, file = place.partition(":")
    path = Path(base_dir, file).expanduser()
    if scheme == "npz":
        options = parse_options(spec, query, ("x", "y", "samples"))
        inputs, targets = read_npz(path, options.get("x"), options.get("y"))
        return TensorSamples(inputs, targets, spec).head(options.get("samples"))
    if scheme in ("csv", "jsonl", "parquet"):
        options = parse_options(spec, query, ("text", "text_pair", "label", "max_length", "samples"))
        return _text_samples(spec, scheme, path, options, tokenizer, label2id)
    if scheme in ("imagefolder", "hf"):
        raise GenboundError(
            f"data {spec!r}: {scheme}: is planned but not there yet; write a function that returns the "
            "Dataset and say FILE.py:function, or save the arrays and say npz:FILE"
        )
    if colon and (scheme.endswith(".py") or all(part.isidentifier() for part in scheme.split("."))) and file:
        options = parse_options(spec, query, ("samples",))
        return as_samples(call_user(place, base_dir, "data function"), spec, options.get("samples"))
    raise GenboundError(
        f"data {spec!r} is not understood: use npz:FILE, csv:FILE?text=COL&label=COL (or jsonl:, parquet:), "
        "FILE.py:function or pkg.mod:function"
    )


def _text_samples(spec, scheme, path, options, tokenizer, label2id) -> TextSamples:
    for name in ("text", "label"):
        if name not in options:
            raise GenboundError(f"data {spec!r} does not say which column is the {name}: add {name}=COL after '?'")
    names = [options["text"], options["label"]] + ([options["text_pair"]] if "text_pair" in options else [])
    table = {name: column[: options.get("samples")] for name, column in read_table(scheme, path, names).items()}
    for name in (options["text"], options.get("text_pair")):
        for row, text in enumerate(table.get(name, ())):
            if not isinstance(text, str):
                raise GenboundError(
                    f"{str(path)!r}: column {name!r} of sample {row} holds {type(text).__name__}, no text"
                )
    labels = encode_labels(table[options["label"]], str(path), label2id)
    pairs = table.get(options.get("text_pair"))
    samples = TextSamples(table[options["text"]], pairs, labels, tokenizer, options.get("max_length"), spec)
    samples.label2id = {
        **(label2id or {}),
        **dict(zip(map(str, table[options["label"]]), labels.tolist(), strict=True)),
    }
    return samples


def _covers_dataset(loader: torch_data.DataLoader) -> bool:
    """Whether the loader gives each sample of a map-style data set once, whatever the order."""
    plain = type(loader.batch_sampler) is torch_data.BatchSampler
    sampler = loader.sampler
    if type(sampler) is torch_data.RandomSampler:
        return plain and not sampler.replacement and sampler.num_samples == len(loader.dataset)
    return plain and type(sampler) is torch_data.SequentialSampler


def _in_order(loader: torch_data.DataLoader) -> Iterator:
    for start in range(0, len(loader.dataset), loader.batch_size):
        stop = min(start + loader.batch_size, len(loader.dataset))
        yield loader.collate_fn([loader.dataset[i] for i in range(start, stop)])
