"""What a run leaves behind: checkpoints that describe themselves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from genbound.checkpoints import huggingface
from genbound.checkpoints.sidecar import write_sidecar
from genbound.files import temporary_name
from genbound.finetune.start import Start

DATA_FILE = '''"""The training samples of this run, with the labels that it saw."""

from pathlib import Path

from genbound.finetune.training_data import samples_of_run


def train():
    return samples_of_run(Path(__file__).parent)
'''


def save_network(model: Any, folder: Path, start: Start) -> None:
    """Write a checkpoint: a Hugging Face directory with its tokenizer, or ``model.safetensors`` with a sidecar.

    The folder appears whole or not at all.
    """
    temporary = temporary_name(folder)
    temporary.mkdir(parents=True)
    if hasattr(model, "save_pretrained"):
        with huggingface.quiet():
            model.save_pretrained(temporary)
            if (tokenizer := start.tokenizer()) is not None:
                tokenizer.save_pretrained(temporary)
    else:
        kept = dict(model.named_parameters()) | dict(model.named_buffers())  # tied weights once
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in kept.items() if name in model.state_dict()},
            temporary / "model.safetensors",
        )
        if start.spec is not None:
            write_sidecar(temporary, model=start.spec)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def write_data_file(out: Path) -> None:
    """A data function for ``genbound evaluate``: the samples trained on, with the labels trained on."""
    (out / "data.py").write_text(DATA_FILE, encoding="utf-8")


def describe_checkpoint(out: Path, record: dict[str, Any]) -> None:
    """Say beside the fine-tuned checkpoint what it is measured with; the folder may be moved as a whole."""
    write_sidecar(
        out / "finetuned", model=record["model"], init="../pretrained", data="run:..",
        test_data=record["test_data"], head_weights=record["settings"]["head_weights"],
    )  # fmt: skip
