"""Digests of a run's files beside them, as ``sha256sum`` writes them: whoever reads the files says if one has changed.

A results.json may be edited by hand, so it has no checksum inside, and another content stops nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from genbound.errors import tell
from genbound.files import write_atomically

NAME = "SHA256SUMS"
READ = 2**20  # bytes that are looked at together


def remove_checksums(folder: Path) -> set[str]:
    """Before files are written anew: a run that is killed meanwhile must leave none that are wrong.

    Returns:
        What there were digests of.
    """
    names = set(_read(folder))
    (folder / NAME).unlink(missing_ok=True)
    return names


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of these files of a directory."""
    text = "".join(f"{_digest(folder / name)}  {name}\n" for name in names if (folder / name).is_file())
    write_atomically(folder / NAME, lambda path: path.write_text(text, encoding="utf-8"))


def renew_checksum(file: Path) -> None:
    """A file was written anew on purpose: its digest, where there is one beside it, is that of the new content."""
    known = _read(file.parent)
    if file.name in known:
        write_checksums(file.parent, known)


def is_changed(file: Path) -> bool:
    """Whether a file is not as it was written, as far as the digests beside it know."""
    written = _read(file.parent).get(file.name)
    return written is not None and written != _digest(file)


def tell_if_changed(file: Path) -> None:
    """Say on standard error if a file is not as it was written."""
    if is_changed(file):
        tell(f"{file} is not as genbound wrote it (see {NAME} beside it): it was edited, or damaged")


def _read(folder: Path) -> dict[str, str]:
    try:
        rows = [line.split("  ", 1) for line in (folder / NAME).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return {}
    return {row[1]: row[0] for row in rows if len(row) == 2}


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    with open(file, "rb") as content:
        while some := content.read(READ):
            found.update(some)
    return found.hexdigest()
