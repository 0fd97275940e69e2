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


@pytest.mark.parametrize("compiled", [False, True])
def test_the_start_has_its_running_statistics(tmp_path, compiled):
    """As a later evaluation reads them from the file of the start; not those that the training ended with."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    start, x = {name: value.clone() for name, value in plain.state_dict().items()}, 3 + 2 * torch.randn(9, 4)
    model = torch.compile(plain) if compiled else plain  # nothing is compiled before the first pass
    record = Record({}, ["init_activations"], 9)
    record.begin(model)
    plain.train()(x)
    record.write(tmp_path)
    found = record.evaluate(model, (x, torch.arange(9) % 2), None, tmp_path)
    problem = genbound.Problem(plain, start, (x, torch.arange(9) % 2), init_buffers=start)
    assert (
        found.quantities["init_activations"]
        == genbound.evaluate(problem, ["init_activations"]).quantities["init_activations"]
    )


def test_a_head_measured_from_elsewhere_is_refused_before_training():
    with pytest.raises(GenboundError, match="head='zero'"):
        Record({"head": "zero"}, ["losses"], 8)
    Record({"head": "zero"}, None, 8)
    Record({"head": "init"}, ["losses"], 8)
