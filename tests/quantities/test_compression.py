"""Cushions and their companions against explicit Jacobian matrices."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from genbound.errors import GenboundError
from genbound.evaluation.loop import evaluate, measure
from genbound.network.problem import Problem
from genbound.quantities import jacobian_norms
from genbound.quantities.compression import CompressionOptions
from genbound.structure.site_jacobians import SitePass

D = torch.float64
NUM = 5


class Residual(nn.Module):
    """conv-bn, relu, a residual block with one convolution, a strided convolution with bias, a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)
        self.block = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.block_norm = nn.BatchNorm2d(3)
        self.down = nn.Conv2d(3, 2, (3, 2), stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        a = self.act(self.norm(self.stem(x)))
        a = torch.relu(self.block_norm(self.block(a)) + a)
        return self.head(torch.relu(self.down(a)).flatten(1))


def residual():
    torch.manual_seed(0)
    net = Residual().to(D)
    with torch.no_grad():
        for norm in (net.norm, net.block_norm):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return net.eval(), torch.randn(NUM, 2, 5, 4, dtype=D)


def plain():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(D)
    return net, torch.randn(NUM, 4, dtype=D)


def wide():
    """More coordinates than are measured exactly."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1), nn.Tanh(),
        nn.Conv2d(6, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(144, 40), nn.Tanh(), nn.Linear(40, 40),
    ).to(D)  # fmt: skip
    with torch.no_grad():
        net[9].weight[:] = net[9].weight[:1] + 0.1 * net[9].weight  # nearly of rank one
    return net, torch.randn(12, 2, 6, 6, dtype=D)


def problem(net, x, **arguments):
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    return Problem(net, init, (x, torch.arange(len(x)) % 3), batch_size=2, **arguments)


def jacobian(function, z):
    return torch.func.jacrev(function)(z).reshape(-1, z.numel()).detach()


def reference(maps, points, positions, channels):
    """Cushions and spread from dense Jacobians. ``maps[i][j](z, n)`` is x_j as a function of x_i for sample n."""
    cushions, betas = [], []
    for i, point in enumerate(points):
        best, spread = 1 / math.sqrt(channels[i]), 1.0
        for j in maps.get(i, {}):
            for n in range(len(point)):
                matrix = jacobian(lambda z, n=n, i=i, j=j: maps[i][j](z, n), point[n])
                size = matrix.norm() * point[n].norm() / math.sqrt(positions[i])
                best = min(best, float((matrix @ point[n].flatten()).norm() / size))
                mass = matrix.square().sum(0).view(channels[i], positions[i]).sum(0)
                spread = max(spread, float((positions[i] * mass.max() / mass.sum()).sqrt()))
        cushions.append(best)
        betas.append(spread)
    return cushions, betas


def residual_reference(net, x):
    relu = torch.relu
    z0 = net.norm(net.stem(x)).detach()
    a0 = relu(z0)
    z1 = net.block_norm(net.block(a0)).detach()
    a1 = relu(z1 + a0)
    z2 = net.down(a1).detach()

    def to_one(z, n):
        return net.block_norm(net.block(relu(z)[None]))[0]

    maps = {
        0: {1: to_one},
        1: {2: lambda z, n: net.down(relu(z + a0[n])[None])[0]},
        2: {3: lambda z, n: net.head(relu(z).flatten())},
    }
    maps[0][2] = lambda z, n: net.down(relu(to_one(z, n) + relu(z))[None])[0]
    maps[0][3] = lambda z, n: maps[2][3](maps[0][2](z, n), n)
    maps[1][3] = lambda z, n: maps[2][3](maps[1][2](z, n), n)
    return maps, [z0, z1, z2, net(x).detach()], [x, a0, a1, relu(z2).flatten(1)], (a0, a1)


def matrix_of(linear, x):
    """The matrix of a linear map on one sample's input."""
    return jacobian(lambda z: linear(z[None])[0], x)


def test_residual_network_against_dense_jacobians():
    net, x = residual()
    found = measure(problem(net, x), "compression", exact=10**6)
    maps, points, inputs, _ = residual_reference(net, x)
    cushions, betas = reference(maps, points, [20, 20, 4, 1], [3, 3, 2, 3])
    layers = {"stem": 0, "block": 1, "down": 2, "head": 3}
    assert list(found["layers"]) == [f"{name}.weight" for name in layers]
    operations = [
        lambda x: net.norm(net.stem(x)),
        lambda x: net.block_norm(net.block(x)),
        net.down,
        net.head,
    ]
    for name, i in layers.items():
        row = found["layers"][f"{name}.weight"]
        matrix = matrix_of(operations[i], inputs[i][0])
        expected = min(
            float((matrix @ inputs[i][n].flatten()).norm() / matrix.norm() / inputs[i][n].norm()) for n in range(NUM)
        )
        assert row["layer_cushion"] == pytest.approx(expected, rel=1e-10)
        assert row["interlayer_cushion"] == pytest.approx(cushions[i], rel=1e-10)
        assert row["interlayer_cushion_sem"] == 0
        assert row["beta"] == pytest.approx(betas[i], rel=1e-10)
    assert [found["layers"][f"{n}.weight"]["conv_factor"] for n in layers] == [3, 3, math.sqrt(2), 1]
    assert found["layers"]["down.weight"]["positions"] == 4


def test_kernel_norm_of_the_layer_cushion():
    net, x = residual()
    found = measure(problem(net, x), "compression", num_draws=0)["layers"]["stem.weight"]
    scale = net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()
    kernel = (net.stem.weight * scale.view(-1, 1, 1, 1)).norm()
    linear = nn.functional.conv2d(x, net.stem.weight, padding=1) * scale.view(-1, 1, 1)
    expected = float((linear.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1) / kernel).min().detach())
    assert found["layer_cushion_kernel"] == pytest.approx(expected, rel=1e-10)


class Transposed(nn.Module):
    """A transposed convolution in two groups and a weight stored [in, out], each with a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)
        self.weight, self.last = nn.Parameter(torch.randn(6, 3)), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.up(x))).mean((2, 3)) @ self.weight)


def test_norms_of_transposed_weights():
    torch.manual_seed(0)
    net = Transposed().to(D)
    for norm in (net.norm, net.last):
        nn.init.uniform_(norm.weight, 0.5, 2)
        norm.running_var.uniform_(0.5, 2)
    net.eval()
    x = torch.randn(NUM, 4, 3, 3, dtype=D)
    found = measure(problem(net, x), "compression", num_draws=0)["layers"]
    with torch.no_grad():
        scale = (net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()).view(2, 1, 3, 1, 1)
        kernel = (net.up.weight.view(2, 2, 3, 3, 3) * scale).norm()
        matrix = matrix_of(lambda z: net.norm(net.up(z)), x[0])
        last = matrix_of(lambda z: net.last(z @ net.weight), torch.randn(6, dtype=D))
    row = found["up.weight"]
    assert row["layer_cushion_kernel"] / row["layer_cushion"] == pytest.approx(float(matrix.norm() / kernel), rel=1e-10)
    features = torch.relu(net.norm(net.up(x))).mean((2, 3)).detach()
    expected = float(((features @ last.mT).norm(dim=1) / features.norm(dim=1)).min() / last.norm())
    assert found["weight"]["layer_cushion"] == pytest.approx(expected, rel=1e-10)
    assert found["weight"]["layer_cushion_kernel"] == pytest.approx(expected, rel=1e-10)


def test_contraction_is_that_of_the_activation_on_the_sum():
    net, x = residual()
    found = measure(problem(net, x), "compression", num_draws=0)
    _, (z0, z1, z2, _), _, (a0, a1) = residual_reference(net, x)
    pairs = [(z0, a0), (z1 + a0, a1), (z2, torch.relu(z2))]
    expected = [float((z.flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)).max().detach()) for z, a in pairs]
    values = [row["contraction"] for row in found["layers"].values()]
    assert values == pytest.approx([*expected, 1.0], rel=1e-10)
    assert found["contraction"] == pytest.approx(max(expected), rel=1e-10)
    assert found["max_output_l2"] == pytest.approx(float(net(x).norm(dim=1).max().detach()), rel=1e-10)


def test_smoothness_follows_the_curvature_of_a_smooth_network():
    """For x -> tanh(x) the remainder is quadratic: a tenth of the noise makes the network ten times smoother."""
    net, x = plain()
    rough = measure(problem(net, x), "compression", noise=1e-2)["layers"]
    fine = measure(problem(net, x), "compression", noise=1e-3)["layers"]
    for name in ("0.weight", "2.weight"):
        assert fine[name]["smoothness"] / rough[name]["smoothness"] == pytest.approx(10, rel=0.1)
    assert fine["4.weight"]["smoothness"] is None
    assert fine["4.weight"]["smoothness_reason"] == "no layer follows"


def test_smoothness_of_a_known_remainder():
    """One sample, a network x -> W2 (W1 x)^2: the remainder is W2 eta^2 whatever the point."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 1), nn.Linear(1, 3)

        def forward(self, x):
            return self.second(self.first(x).square())

    torch.manual_seed(0)
    net = Square().to(D)
    x = torch.randn(1, 3, dtype=D)
    found = measure(problem(net, x), "compression", noise=0.1)["layers"]["first.weight"]
    z = net.first(x).detach()
    output = net.second(z.square()).detach()
    # |eta| = 0.1 |z| in one dimension, so the remainder is known without the sign of eta.
    remainder = (net.second.weight.detach()[:, 0] * (0.1 * z.item()) ** 2).norm()
    assert found["smoothness"] == pytest.approx(float(0.1 * output.norm() / remainder), rel=1e-9)


def test_affine_network_has_no_smoothness_but_a_reason():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).to(D)
    found = measure(problem(net, torch.randn(NUM, 4, dtype=D)), "compression")
    assert found["smoothness"] is None
    assert "affine" in found["smoothness_reason"]


def test_samples_may_be_dropped():
    net, x = plain()
    rows = [measure(problem(net, x[n : n + 1]), "compression")["layers"] for n in range(NUM)]
    dropped = measure(problem(net, x), "compression", zeta=0.2)["layers"]
    for name in dropped:
        cushions = sorted(row[name]["layer_cushion"] for row in rows)
        contractions = sorted(row[name]["contraction"] for row in rows)
        assert dropped[name]["layer_cushion"] == pytest.approx(cushions[1], rel=1e-10)
        assert dropped[name]["contraction"] == pytest.approx(contractions[-2], rel=1e-10)
        assert dropped[name]["interlayer_cushion"] == pytest.approx(
            sorted(row[name]["interlayer_cushion"] for row in rows)[1], rel=1e-10
        )


def test_probes_agree_with_exact_norms_within_their_errors():
    net, x = residual()
    exact = measure(problem(net, x), "compression", exact=10**6, num_draws=0)["layers"]
    deviations = []
    for seed in range(5):
        found = measure(
            problem(net, x), "compression", seed, exact=0, num_draws=0, num_probes=32, num_refined=400, candidates=1
        )["layers"]
        for name in ("stem.weight", "block.weight", "down.weight"):
            row = found[name]
            if row["interlayer_cushion_sem"]:
                deviations.append(
                    (row["interlayer_cushion"] - exact[name]["interlayer_cushion"]) / row["interlayer_cushion_sem"]
                )
    assert len(deviations) >= 5
    assert np.abs(deviations).max() < 4.5
    assert np.sqrt(np.mean(np.square(deviations))) < 2


def test_candidates_are_decided_early(monkeypatch):
    """As good as all signs for all candidates, at the stated errors, for a part of the products."""
    net, x = wide()
    given, pulls, pull = problem(net, x), [], SitePass.pull

    def counted(run, *arguments):
        pulls[-1] += run.num
        return pull(run, *arguments)

    monkeypatch.setattr(SitePass, "pull", counted)
    found = []
    for slow in (False, True):
        if slow:
            monkeypatch.setattr(jacobian_norms, "_undecided", lambda drawn, *_: list(drawn))
        pulls.append(0)
        found.append(measure(given, "compression", num_refined=512, num_draws=0)["layers"])
    assert pulls[0] < 0.5 * pulls[1]
    deviations = []
    for early, late in zip(found[0].values(), found[1].values(), strict=True):
        for key in ("interlayer_cushion", "beta"):
            assert early[f"{key}_sem"] <= 0.05 * early[key]
            if early[f"{key}_sem"] > 0:
                sem = math.hypot(early[f"{key}_sem"], late[f"{key}_sem"])
                deviations.append(abs(early[key] - late[key]) / sem)
    assert len(deviations) >= 3 and max(deviations) < 4


def test_no_error_is_small_enough():
    net, x = wide()
    all_signs = measure(problem(net, x), "compression", num_refined=32, num_draws=0, error=0)["layers"]
    some = measure(problem(net, x), "compression", num_refined=32, num_draws=0, error=10)["layers"]
    sems = [[row["interlayer_cushion_sem"] for row in rows.values()] for rows in (all_signs, some)]
    assert sum(sems[0]) < sum(sems[1])


def test_batches_and_seeds():
    net, x = residual()
    options = {"exact": 0, "num_refined": 8}
    first = measure(problem(net, x), "compression", 1, **options)
    assert measure(problem(net, x), "compression", 1, **options) == first
    other = Problem(net, {n: torch.zeros_like(p) for n, p in net.named_parameters()}, (x, torch.arange(NUM) % 3))
    for name, row in measure(other, "compression", 1, **options)["layers"].items():
        for key, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(first["layers"][name][key], rel=1e-8), key


def test_measuring_disturbs_nothing():
    net, x = residual()
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    measure(problem(net, x), "compression")
    assert torch.equal(random, torch.get_rng_state())
    assert net.training and net.norm.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        z = self.project(x)
        return self.head(torch.softmax(z @ z.mT, -1).bmm(z).mean(1))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x) + torch.relu(self.layer(2 * x)))


@pytest.mark.parametrize(
    ("net", "shape", "words"), [(Attention(), (NUM, 3, 4), "softmax attention"), (Shared(), (NUM, 4), "used")]
)
def test_does_not_apply(net, shape, words):
    found = evaluate(problem(net.to(D), torch.randn(shape, dtype=D)), ["compression"])
    assert "compression" not in found.quantities
    assert words in found.notes["compression"]


@pytest.mark.parametrize(
    "options", [{"zeta": 1.0}, {"num_probes": 0}, {"num_refined": 1}, {"noise": 0.0}, {"error": -0.1}]
)
def test_refuses(options):
    with pytest.raises(GenboundError):
        CompressionOptions(**options)


class Tokens(nn.Module):
    """A residual block on six tokens of four numbers, by layers on every token or by convolutions of one tap."""

    def __init__(self, convolve: bool):
        super().__init__()

        def layer(a, b):
            return nn.Conv1d(a, b, 1) if convolve else nn.Linear(a, b)

        self.up, self.down, self.head = layer(4, 7), layer(7, 4), nn.Linear(24, 3)
        self.convolve = convolve

    def forward(self, x):  # N x 4 x 6, so that the tokens of a linear layer are not contiguous
        x = x if self.convolve else x.transpose(1, 2)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head((x if self.convolve else x.transpose(1, 2)).flatten(1))


def test_a_layer_on_every_token_is_a_convolution_of_one_tap():
    torch.manual_seed(0)
    x = torch.randn(12, 4, 6, dtype=torch.float64)
    convolution, linear = Tokens(True).double(), Tokens(False).double()
    state = convolution.state_dict()
    linear.load_state_dict(
        {k: v.squeeze(-1) if k.startswith(("up", "down")) and v.dim() > 2 else v for k, v in state.items()}
    )
    found = [measure(problem(net, x), "compression", exact=10**6) for net in (convolution, linear)]
    for name, row in found[0]["layers"].items():
        twin = found[1]["layers"][name]
        for key in (
            "layer_cushion",
            "interlayer_cushion",
            "beta",
            "contraction",
            "channels",
            "positions",
            "conv_factor",
        ):
            assert twin[key] == pytest.approx(row[key], rel=1e-10), (name, key)
    assert 0 < found[1]["smoothness"] < 1e6


def test_extrema_over_some_of_the_samples():
    torch.manual_seed(0)
    x = torch.randn(40, 4, 6, dtype=torch.float64)
    net = Tokens(True).double()
    some = measure(problem(net, x), "compression", num_samples=10, exact=10**6, num_draws=0)
    same = measure(problem(net, x[::4]), "compression", exact=10**6, num_draws=0)
    every = measure(problem(net, x), "compression", num_samples=40, exact=10**6, num_draws=0)
    assert some["num_samples"] == 10 and every["num_samples"] == 40
    for name, row in some["layers"].items():
        assert row["layer_cushion"] == pytest.approx(same["layers"][name]["layer_cushion"], rel=1e-12)
        assert row["interlayer_cushion"] == pytest.approx(same["layers"][name]["interlayer_cushion"], rel=1e-12)
        assert row["layer_cushion"] >= every["layers"][name]["layer_cushion"]
