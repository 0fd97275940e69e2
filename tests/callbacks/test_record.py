"""What a callback measures at the end of training is what the sidecar says, as a later evaluation reads it."""

import pytest
import torch
from torch import nn

import genbound
from genbound.callbacks.record import Record
from genbound.errors import GenboundError

LOSS = """
def halved(outputs, targets):
    return 0.5 * (outputs - targets).square().sum(1)
"""


def trained():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    x, y = torch.randn(9, 4, generator=generator), torch.randn(9, 2, generator=generator)
    return model, (x, y)


def test_it_measures_with_the_settings_of_the_sidecar(tmp_path):
    (tmp_path / "loss.py").write_text(LOSS)
    model, (x, y) = trained()
    record = Record({"loss": "loss.py:halved", "num_data": 1000, "layers": "2.*"}, ["losses", "displacement_norm"], 9)
    record.begin(model)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    record.write(tmp_path)
    found = record.evaluate(model, (x, y), None, tmp_path)
    assert found.quantities["losses"]["train_loss"] == pytest.approx(
        0.5 * (model(x) - y).square().sum(1).mean().item(), rel=1e-6
    )
    assert found.config["num_data"] == 1000 and [row["name"] for row in found.layer_rows] == ["2.weight"]
    norm = found.quantities["displacement_norm"]["layers"]["2.weight"]["value"]
    assert norm == pytest.approx(0.1 * 10**0.5, rel=1e-6)
    again = genbound.load_results(tmp_path / "genbound")
    assert again.config["loss"] == found.config["loss"] and again.config["loss"].startswith("halved")


def test_a_head_measured_from_elsewhere_is_refused_before_training():
    with pytest.raises(GenboundError, match="head='zero'"):
        Record({"head": "zero"}, ["losses"], 8)
    Record({"head": "zero"}, None, 8)
    Record({"head": "init"}, ["losses"], 8)
