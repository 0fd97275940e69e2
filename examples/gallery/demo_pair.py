"""The pair that every example of the gallery measures."""

from pathlib import Path

import torch

import genbound

# Sphinx runs an example in its own folder, under no file name.
DEMO = next(folder / "examples" / "demo" for folder in Path.cwd().parents if (folder / "examples" / "demo").is_dir())


def load(num_samples=64, **settings):
    """The demo's problem."""
    torch.set_num_threads(1)  # sums in a fixed order
    return genbound.load(
        DEMO / "finetuned.safetensors",
        DEMO / "pretrained.safetensors",
        model=f"{DEMO}/model.py:build",
        data=f"{DEMO}/data.py:train",
        test_data=f"{DEMO}/data.py:test",
        num_samples=num_samples,
        **settings,
    )
