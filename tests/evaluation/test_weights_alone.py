"""Without a network or samples, what is left out and what is picked is so all the same."""

import pytest
import torch
from torch import nn

import genbound


@pytest.fixture
def pair(tmp_path):
    torch.manual_seed(0)
    init = {"e.weight": torch.randn(4, 3), "fc.weight": torch.randn(2, 4), "fc.bias": torch.zeros(2)}
    tuned = {name: p + torch.randn_like(p) for name, p in init.items()}
    for name, state in (("tuned", tuned), ("init", init)):
        torch.save(state, tmp_path / f"{name}.pt")
    distances = {name: float((tuned[name] - init[name]).norm()) for name in tuned}
    return [str(tmp_path / f"{name}.pt") for name in ("tuned", "init")], distances


def test_head_and_layers(pair):
    files, far = pair
    for options, names in (
        ({}, ("e.weight", "fc.weight")),
        ({"head": "exclude"}, ("e.weight",)),
        ({"layers": "fc.*"}, ("fc.weight",)),
    ):
        found = genbound.evaluate(genbound.load(*files, **options), ["distance_frobenius"])
        assert tuple(found.quantities["displacement_norm"]["layers"]) == names
        distance = sum(far[name] ** 2 for name in names) ** 0.5
        assert found.bounds["distance_frobenius"]["value"] == pytest.approx(distance)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.tied, self.head = nn.Embedding(5, 3), nn.Embedding(4, 3), nn.Linear(3, 4)
        self.head.weight = self.tied.weight

    def forward(self, x):
        return self.head(self.table(x).mean(1))


def test_tables_are_no_layers_where_a_model_says_which_they_are(tmp_path, monkeypatch):
    """As with samples: an embedding is none, one that is the head's weight too is."""
    (tmp_path / "tagger.py").write_text(
        "from torch import nn\n"
        "class Tagger(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table, self.tied, self.head = nn.Embedding(5, 3), nn.Embedding(4, 3), nn.Linear(3, 4)\n"
        "        self.head.weight = self.tied.weight\n"
        "    def forward(self, x):\n"
        "        return self.head(self.table(x).mean(1))\n"
    )
    torch.manual_seed(0)
    for name in ("tuned", "init"):
        torch.save(Tagger().state_dict(), tmp_path / f"{name}.pt")
    files = [str(tmp_path / f"{name}.pt") for name in ("tuned", "init")]
    problem = genbound.load(*files, model=f"{tmp_path}/tagger.py:Tagger")
    assert [layer.name for layer in problem.layers] == ["tied.weight"]
    problem = genbound.load(*files, model=f"{tmp_path}/tagger.py:Tagger", layers="table.weight")
    assert [layer.name for layer in problem.layers] == ["table.weight"]
