"""Layers that are parts of a weight are said to be that: their distance is not the one of the weight."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import genbound


def pruned(layer):
    return prune.random_unstructured(layer, "weight", 0.5)


WAYS = {
    "weight norm": (parametrizations.weight_norm, "2 of the layers (0.parametrizations.weight.original0, 0.para"),
    "old weight norm": (nn.utils.weight_norm, "2 of the layers (0.weight_g, 0.weight_v)"),
    "spectral norm": (parametrizations.spectral_norm, "1 of the layers (0.parametrizations.weight.original)"),
    "old spectral norm": (nn.utils.spectral_norm, "1 of the layers (0.weight_orig)"),
    "pruning": (pruned, "1 of the layers (0.weight_orig"),
    "nothing": (lambda layer: layer, ""),
}


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_layers_that_are_parts_of_weights_are_named(tmp_path, way, live):
    wrap, said = WAYS[way]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have the newer of the two ways
        net = nn.Sequential(wrap(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)).eval()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    if live:
        problem = genbound.Problem(net, start, [(torch.randn(6, 4), torch.arange(6) % 3)])
    else:
        torch.save(start, tmp_path / "a.pt")
        problem = genbound.load(tmp_path / "a.pt", tmp_path / "a.pt")
        said = said.replace("1 of", "2 of") if way == "pruning" else said  # the mask, too
    about = [remark for remark in problem.remarks if "of the layers" in remark]
    assert len(about) == bool(said) and all(remark.startswith(said) for remark in about), about
