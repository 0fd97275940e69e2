"""A good pair of checkpoints and data, and what a refusal of the command line must be."""

import re
from pathlib import Path

from torch import nn

from genbound.cli.main import main

NETS = """import torch
from torch import nn
def net():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
"""


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def state(**more):
    return {**net().state_dict(), **more}


def refused(capsys, *arguments, words):
    status = main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    last = lines[-1]
    assert status == 2 and last.startswith("genbound: error: "), lines
    assert "unexpected" not in last and "Traceback" not in "".join(lines)
    assert len([line for line in lines if line.startswith("genbound: error")]) == 1
    for word in words:
        assert re.search(word, last), f"{word!r} not in {last!r}"


def make(path, content=""):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content) if isinstance(content, str) else path.write_bytes(content)
