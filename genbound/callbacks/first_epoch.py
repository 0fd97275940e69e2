"""A certificate's prior at no cost: the weights within the first epoch, and the samples that were handed out by then.

Such weights have not seen the samples that come later in the order, whatever training makes of them. What is counted as
seen is what the sampler has handed out: batches that were fetched ahead are in it, so a sample that was seen never
counts as unseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

from genbound.checkpoints.sidecar import save_spec
from genbound.data.sample_numbers import write_seen
from genbound.errors import GenboundError
from genbound.user_code import rng_untouched

FOLDER, SAMPLES = "genbound_prior", "genbound_prior.npz"
SETTINGS = ("prior", "prior_samples", "prior_choices")
MOST_LABELS = 64  # that are kept to recognise the data by
# Orders that do not hang on what is in the samples. Those of equal length first, or hard ones first, do.
SHUFFLING = ("RandomSampler", "SeedableRandomSampler")


class FirstEpoch:
    """Listens to a sampler until the weights are to be kept.

    Args:
        loader: of the training samples, before its first epoch.
        share: of the first epoch, in (0, 1).
        accumulation: batches of an optimizer step.

    Attributes:
        step: the optimizer step after which the weights are to be kept.

    Raises:
        GenboundError: the order of the samples is not known, or hangs on what is in them.
    """

    def __init__(self, loader: Any, share: float, accumulation: int = 1):
        batches: Any = getattr(loader, "batch_sampler", None)
        plain: Any = getattr(batches, "sampler", None)
        name = type(plain).__name__
        if name not in SHUFFLING or not isinstance(getattr(loader, "dataset", None), Sized):
            raise GenboundError(
                f"prior={share:g} needs samples that are shuffled at random and counted, and their order comes from "
                f"{name if plain is not None else type(loader).__name__}: shuffle them, or leave prior out"
            )
        self._dataset, self._batches, self._plain = loader.dataset, batches, plain
        self._heard = _Heard(plain)
        self._batches.sampler = self._heard
        self.step = max(1, math.floor(share * len(batches) / accumulation))

    def seen(self) -> list[int]:
        """The samples handed out so far, in order; from now on nobody listens.

        Raises:
            GenboundError: none were, because the loader takes them from elsewhere.
        """
        self._batches.sampler = self._plain
        found = sorted(set(self._heard.given))
        if not found:
            raise GenboundError("the training loader did not take its samples from its sampler: leave prior out")
        return found

    def write_seen(self, file: Path) -> None:
        """Write the samples handed out so far, and some labels that tell the data from others."""
        size = len(self._dataset)
        places = range(0, size, max(1, math.ceil(size / MOST_LABELS)))
        with rng_untouched():  # reading a sample may draw its augmentation
            labels = {i: label for i in places if (label := _label(self._dataset[i])) is not None}
        write_seen(file, self.seen(), size, labels)


def keep_prior(folder: Path, listener: FirstEpoch) -> None:
    """Write which samples were seen, and name the prior, whose weights lie there already, in the sidecar."""
    listener.write_seen(folder / SAMPLES)
    save_spec(folder, prior=FOLDER, prior_samples=SAMPLES)


def check_share(share: float | None) -> None:
    """Refuse a share of the first epoch that is none.

    Raises:
        GenboundError: it is not in (0, 1).
    """
    if share is not None and not 0 < share < 1:
        raise GenboundError(f"prior={share!r} is no share of the first epoch: give a number between 0 and 1")


class _Heard:
    """A sampler that keeps what it hands out, and is the other one otherwise."""

    def __init__(self, sampler: Any):
        self._sampler = sampler
        self.given: list[int] = []

    def __iter__(self) -> Iterator[int]:
        for place in self._sampler:
            self.given.append(int(place))
            yield place

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


def _label(row: Any) -> int | None:
    """The class of a row of a data set, where it is one whole number."""
    found: Any
    if isinstance(row, dict):
        found = row.get("labels", row.get("label"))
    else:
        found = row[-1] if isinstance(row, list | tuple) and row else None
    found = found.item() if hasattr(found, "item") and getattr(found, "ndim", 1) == 0 else found
    return found if isinstance(found, int) and not isinstance(found, bool) else None
