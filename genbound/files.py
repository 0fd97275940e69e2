"""Files that appear whole or not at all, and settings in YAML."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from genbound.errors import GenboundError, first_line

# What settings need at most. Reading YAML takes milliseconds a line.
MOST_BYTES, MOST_NODES, MOST_DEPTH = 1 << 17, 5000, 20
LONGEST_NAME = 120  # of a file, in characters: file systems take 255 bytes
FORGOTTEN = 3600  # seconds after which another machine's temporary file belongs to nobody
_HOST = re.sub(r"\W", "_", socket.gethostname(), flags=re.ASCII)[:32] or "host"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the target, flush to the disk, and move into place.

    Args:
        path: the target; folders that are missing are made.
        write: writes the content into the file that it is given.

    Raises:
        GenboundError: the disk is full, or nothing can be written there.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> GenboundError:
    """What is said of a file that the system does not take."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    mend = "make room" if full else "give a place that can be written to"
    reason = error.strerror or first_line(error)
    return GenboundError(
        f"{path} cannot be written ({reason}): {mend}; what was finished before is kept, the same command continues"
    )


def temporary_name(path: Path) -> Path:
    """A name beside a file that nobody else takes, on no machine that shares the disk: it ends in host and process."""
    return path.with_name(f".{path.name}.{_HOST}-{secrets.token_hex(4)}.{os.getpid()}")


def is_being_written(path: Path) -> bool:
    """Whether this is the temporary file of a process that lives, and of another one.

    Processes of other machines cannot be looked for: theirs live as long as their file was written to in the last hour.
    """
    writer = _writer(path)
    if writer in (None, (_HOST, os.getpid())):
        return False
    host, process = writer
    try:
        if host != _HOST:
            return time.time() - path.stat().st_mtime < FORGOTTEN
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError, FileNotFoundError):
        return False
    except PermissionError:  # it lives, and is somebody else's
        return True
    return True


def remove_left_over(folder: Path, *names: str) -> None:
    """Remove what killed processes left behind of the files of these names, which may have wildcards."""
    for name in names:
        for path in folder.glob(f".{name}.*"):
            if _writer(path) is not None and not is_being_written(path):
                path.unlink(missing_ok=True)


def _writer(path: Path) -> tuple[str, int] | None:
    """Host and process whose temporary file this is; ``None`` where it is no such file."""
    found = re.fullmatch(r"\..+?(?:\.(\w+)-[0-9a-f]{8})?\.([0-9]+)", path.name)
    return (found[1] or _HOST, int(found[2])) if found else None


def file_name(name: str) -> str:
    """A name out of somebody's file as the name of a file of ours: no folders, nothing hidden, at most 120 characters.

    Names that would become one carry a digest of what they were.
    """
    found = re.sub(r"[^\w.,+=()-]", "_", name).lstrip(".")
    if found == name.replace(" ", "_") and len(found) <= LONGEST_NAME:
        return found
    return f"{found[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def json_text(value: Any) -> str:
    """Plain values as indented JSON; a number that is not finite is refused, because JSON has none."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Write plain values as :func:`json_text` has them."""
    text = json_text(value) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_yaml(path: Path, where: str, what: str, may_be_empty: bool = False) -> dict[Any, Any]:
    """The entries of a YAML file.

    Args:
        path: the file.
        where: how the messages name it.
        what: what its entries are.
        may_be_empty: a file without entries has none, and is no mistake.

    Raises:
        GenboundError: the file cannot be read, or holds something else than ``name: value`` lines.
    """
    import yaml

    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 10} KiB")
        text = path.read_text(encoding="utf-8")
        _check_nodes(yaml.parse(text, yaml.SafeLoader))
        content = yaml.safe_load(text)
    except OSError as error:
        raise GenboundError(f"{where} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # also of bytes that are no UTF-8
        raise GenboundError(f"{where} is no valid YAML: {error}") from error
    if content is None and may_be_empty:
        return {}
    if not isinstance(content, dict):
        raise GenboundError(f"{where} must hold {what} as `name: value` lines")
    return content


def _check_nodes(events: Iterable[Any]) -> None:
    """Refuse a text that becomes more, or deeper, than settings are: an alias counts as all that it stands for."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        kind = type(event).__name__
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MOST_DEPTH:
                raise ValueError(f"it nests more than {MOST_DEPTH} values in one another")
            continue
        if kind == "AliasEvent":
            anchor, size = None, sizes.get(event.anchor, 1)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, size = open_nodes.pop()
        else:
            anchor, size = getattr(event, "anchor", None), 1
        if anchor is not None:
            sizes[anchor] = size
        open_nodes[-1] = (open_nodes[-1][0], open_nodes[-1][1] + size)
        if open_nodes[-1][1] > MOST_NODES:
            raise ValueError(f"it holds more than {MOST_NODES} values")
