"""Root mean squares of the pretrained network's activations, against a forward pass by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from genbound import Problem, evaluate
from genbound.evaluation.stage import StoredContext

DTYPE = torch.float64


def measured(model, init, x, **options):
    labels = torch.arange(len(x)) % 2
    return evaluate(Problem(model, init, (x, labels), **options), ["init_activations"]).quantities["init_activations"]


@pytest.mark.parametrize("batch_size", [3, 100])
def test_by_hand(batch_size):
    """50 samples (1, 0) and 50 (0, 1): rms sqrt(1/2).

    ReLU of [[1, 1], [0, 1], [-2, 0]] x is (1, 0, 0) and (1, 1, 0): 1.
    """
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).to(DTYPE)
    init = {
        "0.weight": torch.tensor([[1, 1], [0, 1], [-2, 0]], dtype=DTYPE),
        "2.weight": torch.zeros(2, 3, dtype=DTYPE),
    }
    x = torch.eye(2, dtype=DTYPE).repeat(50, 1)
    found = measured(model, init, x, batch_size=batch_size)
    assert found["num_samples"] == 100
    assert found["layers"]["0.weight"] == {"value": pytest.approx(0.5**0.5), "width": 2}
    assert found["layers"]["2.weight"] == {"value": pytest.approx(1.0), "width": 3}


def test_convolutions_and_the_pretrained_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 2)
    ).to(DTYPE)
    state = {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    names = dict(model.named_parameters())
    x = torch.randn(11, 2, 6, 6, dtype=DTYPE)
    found = measured(
        model.eval(), {n: state[n] for n in names}, x, batch_size=4, num_samples=2,
        init_buffers={n: v for n, v in state.items() if n not in names},
    )["layers"]  # fmt: skip
    model.load_state_dict(state)
    with torch.no_grad():
        hidden = model[:3](x)
        inputs = {"0.weight": x, "3.weight": hidden, "5.weight": model[3:5](hidden)}
    for name, value in inputs.items():
        values = value.flatten(1).numpy()
        expected = np.sqrt((values**2).mean(0)).max()
        assert found[name] == {"value": pytest.approx(expected, rel=1e-12), "width": values.shape[1]}


def test_not_where_no_bound_reads_it():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2, dtype=DTYPE))

        def forward(self, x):
            return (x.unsqueeze(1) * self.weight.sin()).sum(2)

    x = torch.eye(2, dtype=DTYPE)
    results = evaluate(Problem(Gate(), {"weight": x}, (x, torch.arange(2))), ["init_activations"])
    assert "init_activations" not in results.quantities and "row sums" in results.notes["init_activations"]


def test_not_for_token_numbers():
    """A pass over a large text corpus would serve no bound."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)).to(DTYPE)
    init = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    results = evaluate(
        Problem(model, init, (torch.arange(8).view(4, 2) % 5, torch.arange(4) % 2)), ["init_activations"]
    )
    assert "token numbers" in results.notes["init_activations"]


def small(x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[-1], 3), nn.ReLU(), nn.Linear(3, 2)).to(DTYPE)
    init = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    return model, init


def test_shards_add_up(monkeypatch):
    """Any number of them, and no more than their sums have room for."""
    x = torch.randn(100, 4, dtype=DTYPE, generator=torch.Generator().manual_seed(1))
    whole, counts = measured(*small(x), x), []
    mapped = StoredContext.map

    def counted(self, stage, items, function):
        counts.append([len(item) for item in items])
        return mapped(self, stage, items, function)

    monkeypatch.setattr(StoredContext, "map", counted)
    monkeypatch.setattr("genbound.quantities.base.DATA_SHARD", 16)
    cut = measured(*small(x), x)
    monkeypatch.setattr("genbound.quantities.init_activations.MOST", 3 * 8 * (4 + 3))
    few = measured(*small(x), x)
    assert [len(c) for c in counts] == [7, 3] and [sum(c) for c in counts] == [100, 100]
    for found in (cut, few):
        for name, row in whole["layers"].items():
            assert found["layers"][name] == {"value": pytest.approx(row["value"], rel=1e-14), "width": row["width"]}


@pytest.mark.parametrize("shard", [16, 512])
def test_samples_of_other_sizes_have_no_common_coordinates(monkeypatch, shard):
    """In one batch or in two shards: the layer that sees the size has no value, the one behind the mean has one.

    Where they are among the measured ones there is no structure, and none of this is asked for.
    """
    monkeypatch.setattr("genbound.quantities.base.DATA_SHARD", shard)

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv1d(1, 3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).mean(-1))

    torch.manual_seed(0)
    model = Pooled().to(DTYPE)
    init = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    samples = [(torch.randn(1, 1, 4 + (i > 15), dtype=DTYPE), torch.tensor([i % 2])) for i in range(32)]
    everything = evaluate(Problem(model, init, samples), ["losses", "init_activations"])
    assert "samples differ in shape" in everything.notes["init_activations"]
    problem = Problem(model, init, samples, num_samples=1)
    rows = evaluate(problem, ["init_activations"]).quantities["init_activations"]["layers"]
    assert rows["conv.weight"]["value"] is None and rows["conv.weight"]["reason"]
    model.load_state_dict(init)
    with torch.no_grad():
        seen = torch.cat([torch.relu(model.conv(x)).mean(-1) for x, _ in samples])
    assert rows["fc.weight"]["value"] == pytest.approx(float(seen.square().mean(0).max().sqrt()), rel=1e-12)
