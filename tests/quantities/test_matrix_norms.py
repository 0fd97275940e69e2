"""Norms of stored weights: pencil values, numpy, and that one name has one number with and without a model."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import genbound
from genbound.network.weights import WeightProblem

D = torch.float64
NEEDS_AN_OPERATOR = ["spectral_norm", "layer_norms", "distance_spectral", "distance_mars", "distance_two_one"]


def test_pencil():
    """K = [[3, 4], [0, 0]] from zero: every norm of K and of the displacement is 5 but the row sum, 7; rank one."""
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    problem = WeightProblem({"w": weight}, {"w": torch.zeros(2, 2)}, "no network")
    row = genbound.measure(problem, "matrix_norms")["layers"]["w"]
    for part in ("weight", "displacement"):
        spectral = row[part].pop("spectral")
        assert spectral["lower"] <= 5 <= spectral["upper"] == spectral["value"] == pytest.approx(5)
        assert row[part] == pytest.approx({"frobenius": 5, "mars": 7, "two_one": 5})
    assert row["stable_rank"] == pytest.approx({"value": 1, "lower": 1, "upper": 1})
    assert row["init"]["spectral"]["value"] == row["init"]["mars"] == 0


def test_against_numpy():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (7, 5), "b": (4, 3, 3, 2)}
    params, init = ({n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(2))
    rows = genbound.measure(WeightProblem(params, init, "no network"), "matrix_norms")["layers"]
    for name, row in rows.items():
        k, k0 = (w[name].double().numpy().reshape(shapes[name][0], -1) for w in (params, init))
        for part, matrix in (("weight", k), ("init", k0), ("displacement", k - k0)):
            assert row[part]["spectral"]["value"] == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-10)
            assert row[part]["mars"] == pytest.approx(np.linalg.norm(matrix, np.inf), rel=1e-12)
            assert row[part]["two_one"] == pytest.approx(np.linalg.norm(matrix, axis=1).sum(), rel=1e-12)
        values = np.linalg.svd(k, compute_uv=False)
        assert row["stable_rank"]["value"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-10)


def test_a_weight_of_zeros_has_stable_rank_zero_and_no_mean():
    problem = WeightProblem({"w": torch.zeros(3, 3)}, {"w": torch.zeros(3, 3)}, "no network")
    results = genbound.evaluate(problem, ["stable_rank"])
    assert results.quantities["matrix_norms"]["layers"]["w"]["stable_rank"]["value"] == 0
    assert results.bounds["stable_rank"].value is None and "zero" in results.bounds["stable_rank"].note


class Net(nn.Module):
    """A convolution with batch norm and a transposed one: their operators are not their stored matrices."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.up, self.fc = nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Linear(128, 3)

    def forward(self, x):
        return self.fc(self.up(self.norm(self.conv(x)).relu()).relu().flatten(1))


def test_one_name_has_one_number(tmp_path):
    """Of the same two files with and without a model: every number that both runs have is the same."""
    torch.manual_seed(0)
    for name in ("init", "tuned"):
        net = Net()
        net.norm.running_var.uniform_(0.1, 0.3)
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("tuned", "init")]
    bare = genbound.evaluate(genbound.load(*files))
    data = [(torch.randn(6, 1, 4, 4), torch.arange(6) % 3)]
    whole = genbound.evaluate(genbound.load(*files, model=Net, data=data))
    both = [n for n, row in bare.bounds.items() if row.value is not None and whole.bounds[n].value is not None]
    assert {"distance_spectral_matrix", "distance_mars_matrix", "distance_two_one_matrix", "stable_rank"} <= set(both)
    for name in both:
        for entry in ("value", "lower", "upper"):
            assert bare.bounds[name][entry] == pytest.approx(whole.bounds[name][entry], rel=1e-5), name
    for name, summary in bare.quantities.items():
        assert flat(summary) == pytest.approx(flat(whole.quantities[name]), rel=1e-5, abs=1e-12), name
    for name in NEEDS_AN_OPERATOR:
        assert name not in bare.quantities
    for name in ("distance_spectral", "distance_mars", "distance_two_one"):
        assert bare.bounds[name].value is None and "--model" in bare.bounds[name].note
        assert abs(whole.bounds[name].value / whole.bounds[f"{name}_matrix"].value - 1) > 0.01


def flat(entry, where=""):
    """Every number of a summary by its place."""
    if isinstance(entry, dict):
        return {
            k: v for key, part in entry.items() if key != "_seconds" for k, v in flat(part, f"{where}.{key}").items()
        }
    return {where: entry} if isinstance(entry, int | float) else {}
