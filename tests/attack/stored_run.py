"""A small run on the disk that tests damage, kill, and start twice."""

import os
import subprocess
import sys
from pathlib import Path

import genbound

NETS = """
import time, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        time.sleep({pause})
        return self.fc(nn.functional.gelu(self.body(x)))

def data():
    stream = torch.Generator().manual_seed(0)
    return torch.randn(150, 4, generator=stream), torch.arange(150) % 3
"""
MEASURES = "losses,displacement_norm,hessian_trace,max_quadratic_form,hessian_distance"


def write_files(folder: Path, pause: float = 0.0) -> None:
    import torch
    from safetensors.torch import save_file

    (folder / "nets.py").write_text(NETS.format(pause=pause))
    shapes = {"body.weight": (5, 4), "body.bias": (5,), "fc.weight": (3, 5), "fc.bias": (3,)}
    for seed, name in enumerate(("tuned", "init")):
        stream = torch.Generator().manual_seed(seed)
        save_file({n: torch.randn(s, generator=stream) for n, s in shapes.items()}, folder / f"{name}.safetensors")


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "evaluate", str(folder / "tuned.safetensors"), str(folder / "init.safetensors"), "--model",
        f"{folder / 'nets.py'}:Net", "--data", f"{folder / 'nets.py'}:data", "--out", str(out), "--dtype", "float64",
        "--measures", MEASURES, *more,
    ]  # fmt: skip


def start(folder: Path, out: Path, *more: str) -> subprocess.Popen:
    """The same run in a process of its own."""
    root = str(Path(genbound.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-m", "genbound", *arguments(folder, out, *more)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
