"""What a config may ask of the libraries that read it, held against the weights that lie beside it.

A library builds whatever its config says, module by module, before anybody sees that the weights belong to something
much smaller. So the numbers are looked at first, wherever they stand in the file.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from genbound.errors import GenboundError

MOST_BYTES = 16 << 20
MOST_DEPTH = 30
SECONDS = 10
# Numbers of parts that are built one by one, each with at least a tensor of its own.
PARTS = re.compile(r"layers?\b|layers?_|_layers?|depth|blocks?|stages?|repeats?")
# Numbers of rows, columns or parts that share a tensor.
ROWS = re.compile(r"labels?$|experts?|heads?$|^r$|_r$|^rank|frequency$|num_vectors|vector_length|classes$")
MOST_LIKELY = 1024  # of these, whatever the file holds
MATCH = "import json, re, sys; p, n = json.load(sys.stdin); [re.fullmatch(f'(.*\\\\.)?({x})', y) for x in p for y in n]"


def read_json(file: Path) -> Any:
    """The content of a JSON file that is no larger than configs are.

    Raises:
        GenboundError: too large, or no JSON.
    """
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise GenboundError(f"{str(file)!r} is no valid JSON ({error}); restore it from the original") from error


def check_config(content: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse numbers that no model with these weights can have, before a library is asked to build it.

    Args:
        content: of the config, with whatever is nested in it.
        tensors: the weights beside it, of any shape.
        file: the config, for the message.

    Raises:
        GenboundError: with the name and the number.
    """
    parts = 2 * len(tensors) + 100
    rows = max(MOST_LIKELY, *(size for tensor in tensors.values() for size in tensor.shape), parts)
    for name, value in _numbers(content, file):
        sized = name.endswith(("_size", "_dim", "_id", "_ids", "_idx", "_index", "_eps"))
        limit = parts if PARTS.search(name) and not sized else rows if ROWS.search(name) and not sized else 1 << 40
        if abs(value) > limit:
            raise GenboundError(
                f"{str(file)!r} has {name} = {str(value)[:30]}, which no model of {len(tensors)} tensors has; restore "
                "it from the original"
            )


def _numbers(content: Any, file: Path, name: str = "", depth: int = 0) -> Iterator[tuple[str, float]]:
    """Every number in the file with the name it stands under."""
    if depth > MOST_DEPTH:
        raise GenboundError(f"{str(file)!r} is nested more than {MOST_DEPTH} times; restore it from the original")
    if isinstance(content, bool):
        return
    if isinstance(content, int | float):
        if math.isfinite(content) and not re.search("length|theta", name):
            yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            if key not in ("label2id", "id2label"):  # the users' own names
                yield from _numbers(value, file, name if str(key).isdigit() else str(key), depth + 1)
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, file, name, depth + 1)


def check_patterns(patterns: Iterable[str], names: Iterable[str], file: Path) -> None:
    """Refuse patterns that cannot be matched with the names in reasonable time: they may take ages to fail.

    They are tried in a process of its own, which is the one way to stop a match.

    Raises:
        GenboundError: they take longer, or are no patterns.
    """
    said = [pattern for pattern in patterns if not re.fullmatch(r"[\w.]*", pattern)]
    if not said:
        return
    given = json.dumps([said, list(names)])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", MATCH], input=given, text=True, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise GenboundError(
            f"{str(file)!r}: matching {said[0][:60]!r} with the names of the layers takes more than {SECONDS} s; name "
            "the layers in a list"
        ) from error
    if done.returncode:
        raise GenboundError(f"{str(file)!r}: {said[0][:60]!r} is no pattern of names; restore it from the original")
