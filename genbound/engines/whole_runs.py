"""Runs that have nothing to do with each other, as trainings of several candidates are: each process takes the next."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from genbound.engines.base import Engine, Part, Stage

Item = TypeVar("Item")
COMPANIONS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # what a training loop finds the others by


@contextmanager
def alone() -> Iterator[None]:
    """Let what is called take this process for one that was started by itself: a training is not split."""
    kept = {name: os.environ.pop(name) for name in COMPANIONS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def share_runs(
    engine: Engine, title: str, items: Sequence[Item], run: Callable[[Item], dict[str, Any]]
) -> list[dict[str, Any]]:
    """What each run gives, in the order of the items, in every process.

    Args:
        engine: whose processes share them.
        title: what users call them.
        items: one a run.
        run: gives a record that JSON can hold. What has to be kept it keeps itself, where it continues from.
    """

    def recorded(item: Item) -> Part:
        with alone():
            return {"record": np.frombuffer(json.dumps(run(item)).encode(), np.uint8)}

    parts = engine.map(Stage(title, key=f"{title}, {len(items)} runs"), items, recorded)
    return [json.loads(part["record"].tobytes()) for part in parts]
