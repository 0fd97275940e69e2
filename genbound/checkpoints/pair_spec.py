"""What is said about two checkpoints: by the user, and where the user leaves something open, by ``genbound.yaml``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from genbound.checkpoints.sidecar import SIDECAR, folder_of, read_sidecar
from genbound.checkpoints.trust import check_code
from genbound.errors import GenboundError

Spec = TypeVar("Spec", bound="PairSpec")


@dataclass(frozen=True)
class PairSpec:
    """What is said about a fine-tuned checkpoint and the one it started from; ``None`` is left open.

    The names are those of the command line's options. A class that says more about the same two checkpoints inherits
    from this one, so that :meth:`completed` fills in its fields as well.

    Attributes:
        ckpt: the fine-tuned checkpoint, see :func:`~genbound.checkpoints.state_file.read_state`.
        init: the checkpoint it was fine-tuned from.
        model: ``hf[:AutoModelFor…]``, ``timm:NAME``, ``torchvision:NAME``, ``FILE.py:factory``, ``pkg.mod:factory``, a
            function that returns a module, or a module.
        head: what the output head counts as at the start: ``init`` (what ``None`` means in the end), ``zero``,
            ``exclude`` or ``seed:N``.
        head_weights: patterns of the weights that form the head; also given as one text with commas.
        ignore: patterns of names in the files to leave out, likewise.
        entry: which entry of a training checkpoint holds the weights.
        trust_remote_code: allow code that the checkpoint's own files name: in its directory, or in ``genbound.yaml``.
        beside: the names of the fields that the sidecar has filled in.

    Raises:
        GenboundError: the head policy is none of these.
    """

    ckpt: str | os.PathLike
    init: str | os.PathLike | None = None
    model: Any = None
    head: str | None = None
    head_weights: Iterable[str] | str | None = None
    ignore: Iterable[str] | str | None = None
    entry: str | None = None
    trust_remote_code: bool = False
    beside: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"init|zero|exclude|seed:\d{1,18}", self.head_policy):
            raise GenboundError(f"head policy {self.head!r} is not understood: use init, zero, exclude or seed:N")
        for name in ("head_weights", "ignore"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _patterns(value))

    def completed(self: Spec) -> Spec:
        """This, with what is left open as ``genbound.yaml`` beside CKPT says.

        The one place where a sidecar is heeded. It fills in what the user leaves open; code that it names needs
        ``trust_remote_code``, see :mod:`~genbound.checkpoints.trust`.

        Raises:
            GenboundError: the file cannot be used, or names code that nobody has allowed.
        """
        said = read_sidecar(self.ckpt)
        heeded = {f.name: said[f.name] for f in fields(self) if f.name in said and getattr(self, f.name) is None}
        check_code(heeded, folder_of(self.ckpt), self.trust_remote_code)
        return replace(self, **heeded, beside=self.beside | set(heeded))

    @property
    def head_policy(self) -> str:
        """``init``, ``zero``, ``exclude`` or ``seed:N``."""
        return "init" if self.head is None else self.head

    @property
    def hub_class(self) -> str | None:
        """The class of transformers that is asked for: empty where the checkpoint names it, ``None`` for others."""
        if self.model is None:
            return ""
        scheme, _, name = self.model.partition(":") if isinstance(self.model, str) else ("", "", "")
        return name if scheme == "hf" else None

    @property
    def model_origin(self) -> str:
        """Where the model is named, for the sentence that says which rule chose it."""
        return SIDECAR if "model" in self.beside else "--model"


def _patterns(value: Iterable[str] | str) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())
