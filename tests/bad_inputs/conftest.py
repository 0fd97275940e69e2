"""The folder that the tests of refusals run in."""

from pathlib import Path

import numpy as np
import pytest
from damaged import NETS, net
from safetensors.torch import save_file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a good checkpoint, a network and data, as the current directory."""
    monkeypatch.chdir(tmp_path)
    save_file(net().state_dict(), "good.safetensors")
    Path("nets.py").write_text(NETS)
    np.savez("good.npz", x=np.ones((4, 4), np.float32), y=np.arange(4) % 3)
    return tmp_path
