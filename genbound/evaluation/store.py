"""Where finished parts of a measurement live: on disk, so that nothing computed is lost, or in memory.

On disk a quantity's parts lie in ``DIR/parts/NAME-DIGEST/``; the digest names everything that the numbers depend on, so
parts of one configuration are never read by another. Files appear whole or not at all, and bear a checksum: one that is
damaged is measured again. A part also names what the stages before it found, which its own work was planned by; behind
other findings it is not read.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from genbound.errors import tell
from genbound.estimators.measured import Measured, Part
from genbound.evaluation.sealed import (
    NOTHING,
    Damaged,
    digest_of_arrays,
    read_part,
    read_summary,
    sealed_summary,
    write_part,
)
from genbound.files import is_being_written, write_atomically, write_json
from genbound.results.progress import SPENT, STAGES

ARRAYS = ("samples", "data", "weights")  # of what was measured, each a file
FINISHED = ("summary.json", *(f"{name}.npz" for name in ARRAYS))


class MemoryStore:
    """Keeps nothing."""

    keeps = False

    def part(self, name: str, behind: str = NOTHING) -> Part | None:
        """A part that was stored behind these findings, ``None`` if there is none."""
        return None

    def save_part(self, name: str, part: Part, behind: str = NOTHING) -> None:
        """Store a part; ``behind`` is the digest of what the stages before it found."""
        pass

    def measured(self) -> tuple[Measured, float] | None:
        """What the quantity found, and the seconds that took, if it was measured before."""
        return None

    def save_measured(self, measured: Measured, seconds: float) -> None:
        """Store what the quantity found."""
        pass

    def begin(self, stage: str, num: int) -> None:
        """Note that a stage of so many parts has begun."""
        pass

    def spent(self) -> float:
        """Seconds that unfinished calls before this one took."""
        return 0.0

    def spend(self, seconds: float) -> None:
        """Note what all calls took so far."""
        pass


class DiskStore(MemoryStore):
    """The parts of one quantity in one configuration."""

    keeps = True

    def __init__(self, root: Path, quantity: str, digest: str):
        self.folder = root / "parts" / f"{quantity}-{digest[:16]}"
        self._digest = digest

    def _place(self, name: str) -> str:
        return f"{self._digest}/{name}"

    def part(self, name: str, behind: str = NOTHING) -> Part | None:
        """A part that was stored behind these findings, ``None`` if there is none."""
        try:
            part, found_behind = read_part(self.folder / f"{name}.npz", self._place(name))
        except FileNotFoundError:
            return None
        except Damaged as error:
            tell(f"{error}: it is measured again")
            return None
        return part if found_behind == behind else None

    def save_part(self, name: str, part: Part, behind: str = NOTHING) -> None:
        """Store a part as ``NAME.npz``."""
        write_atomically(self.folder / f"{name}.npz", lambda path: write_part(path, part, self._place(name), behind))

    def measured(self) -> tuple[Measured, float] | None:
        """What the quantity found, if its summary and the arrays that it names are there."""
        path = self.folder / "summary.json"
        if not path.exists():
            return None
        try:
            content = read_summary(path, self._place("summary"))
            arrays = [self._finished(name, content[name]) for name in ARRAYS]
        except (Damaged, FileNotFoundError) as error:
            tell(f"{error}: it is measured again")
            return None
        return Measured(content["summary"], *arrays), content["seconds"]

    def begin(self, stage: str, num: int) -> None:
        """Note that a stage of so many parts has begun, for ``genbound status``."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / STAGES, "a", encoding="utf-8") as file:
                file.write(f"{num}\t{stage}\n")

    def spent(self) -> float:
        """Seconds that unfinished calls before this one took, up to their last part; 0 where nothing can be read."""
        try:
            return max(0.0, float((self.folder / SPENT).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return 0.0

    def spend(self, seconds: float) -> None:
        """Note what all calls took so far. It is no result: a note that is lost makes the cost too small."""
        with suppress(OSError):
            (self.folder / SPENT).write_text(f"{seconds:.3f}", encoding="utf-8")

    def _finished(self, name: str, digest: str) -> Part:
        """Arrays that belong to a summary."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            raise Damaged(path, "it is missing")
        part, _ = read_part(path, self._place(name), on_disk=name == "samples")
        if digest_of_arrays(part) != digest:
            raise Damaged(path, "it belongs to another summary")
        return part

    def save_measured(self, measured: Measured, seconds: float) -> None:
        """The summary is written last: it says that the quantity is done. Its stages are then not needed any more."""
        arrays = {name: getattr(measured, name) for name in ARRAYS}
        for name, part in arrays.items():
            self.save_part(name, part)
        digests = {name: digest_of_arrays(part) for name, part in arrays.items()}
        content = {"summary": measured.summary, "seconds": seconds, **digests}
        write_json(self.folder / "summary.json", sealed_summary(content, self._place("summary")))
        for path in self.folder.iterdir():
            if path.name not in FINISHED and not is_being_written(path):
                path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)
