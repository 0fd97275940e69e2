"""The two networks of examples/cifar10: what they are, and that every quantity and bound is there for them."""

import runpy
from pathlib import Path

import pytest
import torch

import genbound
from genbound.estimators.operator_norm import operator_norm
from genbound.structure.reader import read_structure

EXAMPLE = Path(__file__).parents[1] / "examples" / "cifar10"
SLIDE = ["pitas2017", "arora2018", "long2020", "gouk2021", "li2021", "neyshabur2018"]


def network(name, **arguments):
    torch.manual_seed(0)
    return runpy.run_path(str(EXAMPLE / f"{name}.py"))["build"](**arguments).eval()


def untrained(name, pixels, num=2):
    """A problem of random weights and images."""
    net = network(name)
    init = {key: p.detach() * 0.9 for key, p in net.named_parameters()}
    torch.manual_seed(1)
    return genbound.Problem(net, init, (torch.randn(num, 3, pixels, pixels), torch.arange(num)), batch_size=num)


@pytest.fixture(scope="module")
def problems():
    return {"resnet20": untrained("resnet20", 16), "efficientnet_lite0": untrained("efficientnet_lite0", 32)}


def test_architectures():
    """The published sizes: 0.27 M without the projections' 2,560 weights and 192 scales and shifts, and 4.65 M."""
    resnet, efficient = network("resnet20", num_classes=10), network("efficientnet_lite0", num_classes=1000)
    assert sum(p.numel() for p in resnet.parameters()) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert sum(p.numel() for p in efficient.parameters()) == 4_652_008
    assert {"_conv_stem.weight", "_blocks.0._project_conv.weight", "_blocks.15._bn2.running_var", "_fc.bias"} <= set(
        efficient.state_dict()
    )


def test_padding_of_strided_convolutions():
    """At stride 2 an even side is padded behind only: output 0 of a kernel of 3 sees the inputs 0, 1, 2."""
    namespace = runpy.run_path(str(EXAMPLE / "efficientnet_lite0.py"))
    for kernel, seen in ((3, [0, 1, 2]), (5, [0, 1, 2, 3])):
        layer = namespace["Convolution"](1, 1, kernel, stride=2)
        x = torch.zeros(1, 1, 8, 8, requires_grad=True)
        out = layer(x)
        assert out.shape == (1, 1, 4, 4)
        (gradient,) = torch.autograd.grad(out[0, 0, 0, 0], x)
        assert gradient[0, 0].abs().sum(0).nonzero().flatten().tolist() == seen


@pytest.mark.parametrize(("name", "count"), [("resnet20", 22), ("efficientnet_lite0", 50)])
def test_every_layer_is_positive_semidefinite(problems, name, count):
    layers = problems[name].layers
    assert len(layers) == count
    assert all(layer.positive_semidefinite for layer in layers)


@pytest.mark.parametrize("name", ["resnet20", "efficientnet_lite0"])
def test_structure(problems, name):
    """All layers are in the tree, and all but the head have their batch norm folded in."""
    structure = read_structure(problems[name])
    names = [layer.name for layer in problems[name].layers]
    assert structure.depth == len(names)
    assert set(structure.folds) == set(names[:-1])


@pytest.mark.parametrize("block", [1, 3, 8])
def test_depthwise_norms_against_the_svd(problems, block):
    """A depthwise convolution is one matrix a channel: assembled from unit images of all channels at once."""
    structure = read_structure(problems["efficientnet_lite0"])
    (operator,) = structure.effective(f"_blocks.{block}._depthwise_conv.weight").trained
    channels, height, width = operator.in_shape
    units = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width).expand(-1, channels, -1, -1)
    matrices = operator.apply(units).flatten(2).permute(1, 2, 0)  # channels x out x in
    truth = float(torch.linalg.svdvals(matrices).max())
    found = operator_norm(operator, torch.Generator().manual_seed(0), dense=0)
    assert found.lower <= truth <= found.upper <= 1.01 * found.lower


def evaluate(name, monkeypatch, shared, num_samples, measures=None):
    monkeypatch.setenv("CIFAR10", str(shared / "data"))
    data = runpy.run_path(str(EXAMPLE / "data.py"))
    net = network(name)
    init = {key: p.detach() * 0.9 for key, p in net.named_parameters()}
    train = data[f"{name}_train"]()
    problem = genbound.Problem(net, init, train, num_samples=num_samples)
    assert problem.num_data == 1500
    assert train.labels.bincount().tolist() == [1500 // net.state_dict()[list(net.state_dict())[-1]].shape[0]] * (
        problem.num_classes
    )
    return genbound.evaluate(problem, measures)


def test_real_images(monkeypatch, shared):
    results = evaluate("resnet20", monkeypatch, shared, 4, ["hessian_distance", "gouk2021"])
    assert results.bounds["hessian_distance"]["log10"] + 3 < results.bounds["gouk2021"]["log10"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "efficientnet_lite0"])
def test_whole_table(name, monkeypatch, shared):
    """Untrained weights: margins may be negative, and a bound that needs them then says so; no other may be missing."""
    results = evaluate(name, monkeypatch, shared, 4)
    assert not results.notes
    for key in SLIDE:
        bound = results.bounds[key]
        assert bound["log10"] is not None or "margin" in bound["note"] or "cushion" in bound["note"], (key, bound)
    for row in results.quantities["spectral_norm"]["layers"].values():
        assert row["lower"] <= row["upper"] <= 1.01 * row["lower"] * (1 + 1e-9)
