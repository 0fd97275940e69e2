"""What decides the result of a run, as its folder keeps it: the same command finds its run, another one is refused."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genbound.checkpoints.vision import LIBRARIES
from genbound.data.run_folder import Relabelled
from genbound.errors import GenboundError
from genbound.files import write_json
from genbound.finetune.label_noise.draw import given_matrix
from genbound.finetune.settings import Settings, differences
from genbound.finetune.start import Start
from genbound.finetune.task import RunSpec, Task
from genbound.version import __version__

FILE = "settings.json"
ADDED = ("num_classes", "matrix", "code", "tokens")  # a run of before did not say these, and is taken at its word
NAMING_FILES = ("rule", "noise", "confusion")


def identity_of(spec: RunSpec, task: Task, start: Start) -> dict[str, Any]:
    """All that decides the result, files by what they hold."""
    matrix = given_matrix(spec.settings, task.num_classes)
    return {
        **spec.settings.record(), "init": start.sha256, "data": Relabelled(task.samples, task.observed).digest(),
        "rule": start.rule, "test_data": None if task.test is None else task.test.digest(),
        "num_classes": task.num_classes, "matrix": None if matrix is None else _digest(matrix.tobytes()),
        "tokens": _tokens(task), "code": _code(start.spec), "genbound": __version__,
    }  # fmt: skip


def _tokens(task: Task) -> str:
    """SHA-256 of what the network is given: of texts the tokens, which INIT's tokenizer makes of them."""
    given = [task.samples.content_digest(), None if task.test is None else task.test.content_digest()]
    return _digest(repr(given).encode())


def continued(
    out: Path, identity: dict[str, Any], traces: Sequence[str] = ("checkpoints", "prior", "run.json")
) -> dict[str, Any] | None:
    """The record of the run in a folder if it is finished; ``None`` where there is nothing of it, or a part.

    Args:
        out: the folder; it gets the identity where it has none.
        identity: see :func:`identity_of`.
        traces: what another run has left that did not say what it was.

    Raises:
        GenboundError: the folder holds another run, or what it says cannot be read.
    """
    file = out / FILE
    if file.is_file():
        stored = {**{name: identity[name] for name in ADDED}, **Settings().record(), **_read(file)}
        if changed := differences(_placed(stored), _placed(identity)):
            raise GenboundError(
                f"{str(out)!r} holds a run with other settings ({'; '.join(changed[:4])}): give another --out, "
                "or remove it"
            )
        if (out / "run.json").is_file() and (out / "finetuned").is_dir():
            return _read(out / "run.json")
    elif found := [name for name in traces if (out / name).exists()]:
        raise GenboundError(f"{str(out)!r} holds {found[0]} but no {FILE}: give another --out, or remove it")
    write_json(file, _placed(identity))
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise GenboundError(
            f"{str(file)!r} cannot be read ({error}): restore it, give another --out, or remove the folder"
        ) from error


def _placed(identity: dict[str, Any]) -> dict[str, Any]:
    """With whole paths: the same file has another name from another directory."""
    return identity | {name: _whole(identity.get(name)) for name in NAMING_FILES}


def _whole(text: Any) -> Any:
    """``labels:FILE``, ``--model FILE:name`` or ``FILE`` with the file's whole path; anything else as it is."""
    found = re.fullmatch(r"(labels:|--model )?(.*?)(:\w+)?", text or "", re.DOTALL)
    if found is None or not found[2] or not Path(found[2]).expanduser().is_file():
        return text
    return f"{found[1] or ''}{Path(found[2]).expanduser().resolve()}{found[3] or ''}"


def _code(spec: str | None) -> str | None:
    """SHA-256 of the user's file that builds the network; of a library's network there is none."""
    source = (spec or "").rpartition(":")[0]
    file = source if source.endswith(".py") else getattr(sys.modules.get(source), "__file__", None)
    return None if source in LIBRARIES or not file else _digest(Path(file).expanduser().read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
