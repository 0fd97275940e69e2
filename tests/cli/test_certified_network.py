"""The network that a certificate is about: written beside the results, or said not to be."""

import copy

import numpy as np
import torch
from torch import nn

from genbound.cli.main import main

NET = """
from torch import nn

def make():
    return nn.Linear(4, 2)
"""


def test_without_a_folder_the_quantised_network_is_said_not_to_be_written(tmp_path, capsys):
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    init = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net.weight += 0.5
    (tmp_path / "nets.py").write_text(NET)
    torch.save(net.state_dict(), tmp_path / "tuned.pt")
    torch.save(init, tmp_path / "start.pt")
    np.savez(tmp_path / "train.npz", x=torch.randn(20, 4).numpy(), y=np.arange(20) % 2)
    said = ["evaluate", str(tmp_path / "tuned.pt"), str(tmp_path / "start.pt"), "--data", f"npz:{tmp_path}/train.npz"]
    said += ["--model", f"{tmp_path}/nets.py:make", "--measures"]
    line = "the checkpoint quantized_error was not written: --out DIR keeps it"
    assert main([*said, "compression_certificate"]) == 0 and line in capsys.readouterr().err
    assert main([*said, "compression_certificate", "--out", str(tmp_path / "out")]) == 0
    assert line not in capsys.readouterr().err
    assert (tmp_path / "out" / "quantized_error" / "model.safetensors").is_file()
    assert main([*said, "pac_bayes_certificate"]) == 0 and line not in capsys.readouterr().err
