"""Where finished parts of a measurement live: on disk, so that nothing computed is lost, or in memory.

On disk a quantity's parts lie in ``DIR/parts/NAME-DIGEST/``; the digest names everything that the numbers depend on, so
parts of one configuration are never read by another. Files appear whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from genbound.errors import GenboundError
from genbound.estimators.measured import Measured, Part
from genbound.files import write_atomically, write_json


class MemoryStore:
    """Keeps nothing."""

    def part(self, name: str) -> Part | None:
        """A stored part, ``None`` if there is none."""
        return None

    def save_part(self, name: str, part: Part) -> None:
        """Store a part."""
        pass

    def measured(self) -> Measured | None:
        """What the quantity found, if it was measured before."""
        return None

    def save_measured(self, measured: Measured) -> None:
        """Store what the quantity found."""
        pass


class DiskStore(MemoryStore):
    """The parts of one quantity in one configuration."""

    def __init__(self, root: Path, quantity: str, digest: str):
        self.folder = root / "parts" / f"{quantity}-{digest[:16]}"

    def _read(self, name: str) -> Part | None:
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except Exception as error:
            raise GenboundError(
                f"stored part {path} cannot be read ({type(error).__name__}): delete it and run again"
            ) from error

    def part(self, name: str) -> Part | None:
        """A stored part, ``None`` if there is none."""
        return self._read(name)

    def save_part(self, name: str, part: Part) -> None:
        """Store a part as ``NAME.npz``."""

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, allow_pickle=False, **part)

        write_atomically(self.folder / f"{name}.npz", write)

    def measured(self) -> Measured | None:
        """What the quantity found, if its summary is there."""
        path = self.folder / "summary.json"
        if not path.exists():
            return None
        try:
            arrays = (self._read(name) or {} for name in ("samples", "data", "weights"))
            return Measured(json.loads(path.read_text()), *arrays)
        except ValueError as error:
            raise GenboundError(f"stored summary {path} cannot be read: delete it and run again") from error

    def save_measured(self, measured: Measured) -> None:
        """The summary is written last: it says that the quantity is done. Its stages are then not needed any more."""
        self.save_part("samples", measured.samples)
        self.save_part("data", measured.data)
        self.save_part("weights", measured.weights)
        write_json(self.folder / "summary.json", measured.summary)
        for path in self.folder.iterdir():
            if path.name not in ("summary.json", "samples.npz", "data.npz", "weights.npz"):
                path.unlink() if path.is_file() else shutil.rmtree(path)
