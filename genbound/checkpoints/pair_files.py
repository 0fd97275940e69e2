"""Two checkpoints as they were read, side by side with what is said about them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from genbound.checkpoints import huggingface
from genbound.checkpoints.pair_spec import PairSpec
from genbound.checkpoints.state_file import StateFile, read_state
from genbound.errors import GenboundError


@dataclass(frozen=True)
class PairFiles:
    """Both checkpoints as read.

    Attributes:
        spec: what is said about them.
        ckpt: the fine-tuned one.
        init: the one it started from.
        numbers: whether the weights were looked at.
    """

    spec: PairSpec
    ckpt: StateFile
    init: StateFile
    numbers: bool = True

    @property
    def provenance(self) -> dict[str, dict[str, str]]:
        """Path and SHA-256 of both."""
        return {"checkpoint": self.ckpt.provenance, "init": self.init.provenance}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done when they were read."""
        return tuple(
            f"{side}: {note}" for side, file in (("CKPT", self.ckpt), ("INIT", self.init)) for note in file.notes
        )

    @property
    def tokenizer_dir(self) -> Path | None:
        """A directory with a tokenizer: CKPT's, or else INIT's."""
        return huggingface.tokenizer_folder(self.ckpt.directory, self.init.directory)

    @property
    def image_dir(self) -> Path | None:
        """A directory with the settings of image preprocessing, likewise."""
        return huggingface.image_folder(self.ckpt.directory, self.init.directory)


def read_pair(spec: PairSpec, numbers: bool = True) -> PairFiles:
    """Read both checkpoints; INIT is the one that is said, or else the base that an adapter names.

    ``numbers`` is as for :func:`~genbound.checkpoints.state_file.read_state`.

    Raises:
        GenboundError: a file that cannot be used, or nothing says what training started from.
    """
    ckpt = read_state(spec.ckpt, spec.entry, spec.ignore or (), numbers)
    init = read_state(_named_base(ckpt) if spec.init is None else spec.init, spec.entry, spec.ignore or (), numbers)
    if init.adapter is not None:
        raise GenboundError(
            f"INIT {str(init.path)!r} is a PEFT adapter; give the base model it was trained on, "
            "which is where its weights start"
        )
    return PairFiles(spec, ckpt, init, numbers)


def _named_base(ckpt: StateFile) -> str:
    """The base model that an adapter names, where it lies on this machine."""
    base = (ckpt.adapter or {}).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise GenboundError(
            "INIT is not given and nothing beside CKPT names it; give the weights that training started from"
        )
    for path in (base, os.path.join(ckpt.directory, base)):
        if os.path.exists(path):
            return path
    raise GenboundError(
        f"the adapter names its base {base!r}, which is not on this machine; "
        f"download it (hf download {base} --local-dir DIR) and give DIR as INIT"
    )
