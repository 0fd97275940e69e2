"""The training samples of a ``genbound finetune`` run, with the labels that it saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from genbound.data.npz import npz_arrays
from genbound.data.samples import Batch, Samples
from genbound.data.spec import FUNCTION, DataSpec, Reader
from genbound.errors import GenboundError


class Relabelled(Samples):
    """The samples at some places of others, with other labels.

    Attributes:
        noise_rate: share of the labels that a run flipped, where they are those that it trained on.
    """

    noise_rate = 0.0

    def __init__(self, samples: Samples, labels: Any, places: list[int] | None = None):
        self._samples, self._places = samples, list(range(len(samples))) if places is None else places
        self.labels = torch.as_tensor(labels)
        if len(self.labels) != len(samples):
            raise GenboundError(f"{len(self.labels)} labels for {len(samples)} samples: give one for each")
        super().__init__(len(self._places), samples.spec)
        self.label2id = samples.label2id

    def _item(self, i: int) -> tuple[Any, torch.Tensor]:
        place = self._places[i]
        return self._samples._item(place)[0], self.labels[place]

    def shape_key(self, i: int) -> Hashable:
        """That of the sample's place."""
        return self._samples.shape_key(self._places[i])

    def size(self, i: int) -> int:
        """That of the sample's place."""
        return self._samples.size(self._places[i])

    def shown(self, i: int) -> str:
        """As the sample's place says."""
        return self._samples.shown(self._places[i])

    def batch(self, indices: Iterable[int]) -> Batch:
        """Inputs of the samples at these places, with their other labels."""
        indices = [int(i) for i in indices]
        places = [self._places[i] for i in indices]
        return Batch(self._samples.batch(places).inputs, self.labels[places], indices)

    def digest(self) -> str:
        """SHA-256 of the samples' own digest, the places and the labels."""
        return self._digest(self._samples.digest())

    def content_digest(self) -> str:
        """Likewise of their content."""
        return self._digest(self._samples.content_digest())

    def _digest(self, inner: str) -> str:
        return hashlib.sha256(f"{inner}|{self._places}|{self.labels.tolist()}".encode()).hexdigest()


def inner_spec(spec: DataSpec, reader: Reader) -> tuple[DataSpec, Reader]:
    """The SPEC of the samples that a run was given, and the reader with the run's class numbers.

    Args:
        spec: ``run:FOLDER``.
        reader: what the checkpoint says; whether it allows code.

    Raises:
        GenboundError: no record of a run, or one that names code: ``run.json`` may have come with the checkpoint.
    """
    file = spec.path / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        said, names = record["data"], record["label2id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GenboundError(
            f"data {spec.text!r}: {str(file)!r} is no record of a run of genbound finetune ({type(error).__name__}); "
            "give the run's folder"
        ) from error
    if not isinstance(said, str) or not isinstance(names, Mapping | None):
        raise GenboundError(f"{str(file)!r} names no data that can be read again; give --data")
    inner = DataSpec.parse(said)
    if inner.scheme == "run":
        raise GenboundError(f"{str(file)!r} names another run's samples ({said!r}); give --data")
    if inner.scheme == FUNCTION and not reader.trust_remote_code:
        raise GenboundError(
            f"{str(file)!r} would run code (data: {said!r}), which you have not asked for: read that code, then allow "
            "it with --trust-remote-code (trust_remote_code=True)"
        )
    return inner, replace(reader, label2id=names)


def relabelled(spec: DataSpec, samples: Samples) -> Samples:
    """The part of the samples that the run trained on, with the labels that it saw, as ``labels.npz`` has them.

    Raises:
        GenboundError: the samples are not those that the run was given.
    """
    file = DataSpec(spec.text, "npz", str(spec.path / "labels.npz")).existing_file()
    arrays, _ = npz_arrays(file, "train", "observed")
    labels, places = torch.as_tensor(arrays["observed"]), torch.as_tensor(arrays["train"])
    if places.ndim != 1 or places.is_floating_point() or not bool(((places >= 0) & (places < len(samples))).all()):
        raise GenboundError(f"{str(file)!r} names places that the {len(samples)} samples do not have; restore it")
    _check_same(spec, Relabelled(samples, labels))
    found = Relabelled(samples, labels, places.tolist())
    rate = json.loads((spec.path / "run.json").read_text(encoding="utf-8")).get("noise_rate")
    found.noise_rate = float(rate) if isinstance(rate, int | float) else 0.0
    return found


def _check_same(spec: DataSpec, samples: Samples) -> None:
    """Refuse other samples than the run was given, which may lie by now where its own lay.

    Args:
        spec: ``run:FOLDER``; ``settings.json`` in there has their digest.
        samples: all that the run was given, with the labels that it saw.
    """
    try:
        stored = json.loads((spec.path / "settings.json").read_text(encoding="utf-8")).get("data")
    except FileNotFoundError:  # a run with --certify had none
        return
    except (OSError, ValueError, AttributeError) as error:
        raise GenboundError(f"{str(spec.path / 'settings.json')!r} cannot be read ({error}); restore it") from error
    if stored is not None and samples.digest() != stored:
        raise GenboundError(
            f"{samples.spec!r} holds other samples than the run in {str(spec.path)!r} was trained on: restore them, or "
            f"say in {str(spec.path / 'run.json')!r} (data) where they are"
        )
