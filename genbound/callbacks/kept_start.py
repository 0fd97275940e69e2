"""The weights before training of a run that goes on from a checkpoint: as its beginning has kept them.

A training loop has loaded the checkpoint when a callback is first asked. What the model holds then is no start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.sidecar import INIT_FILE, read_sidecar
from genbound.checkpoints.state_file import read_state
from genbound.errors import GenboundError


def kept_start(model: nn.Module, places: Iterable[Path]) -> dict[str, Tensor]:
    """The start of this model, which stays as it is.

    Args:
        model: as it goes on; its own weights are those of a checkpoint.
        places: where the run's beginning may have written a sidecar, the first one counts.

    Raises:
        GenboundError: nowhere, or it is that of another network.
    """
    places = [Path(place) for place in places]
    named = (Path(said) for place in places if (said := read_sidecar(place).get("init")))
    path = next((found for found in named if found.exists()), None)
    if path is None:
        raise GenboundError(
            f"the training goes on from a checkpoint, and the weights before it are not in {places[0]} ({INIT_FILE}): "
            "go on in the folder where it began, copy that file and genbound.yaml from there, or leave this callback "
            "out"
        )
    state = _read(model, path)
    for name, value in model.state_dict().items():
        if name not in state or state[name].shape != value.shape:
            raise GenboundError(
                f"{path} holds the start of another network (it has no {name} of shape {tuple(value.shape)}): go on in "
                "the folder where this training began, or leave this callback out"
            )
    return {name: state[name].detach().clone() for name in model.state_dict()}


def _read(model: Any, path: Path) -> Mapping[str, Tensor]:
    """The state by the model's own names: transformers writes a tied weight once, and may rename others."""
    if path.is_dir() and hasattr(model, "save_pretrained"):
        with huggingface.quiet():
            return type(model).from_pretrained(path).state_dict()
    return read_state(path).tensors
