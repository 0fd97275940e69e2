"""Layer norms against pencil values and explicit matrices, with batch norm folded into both models."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genbound
from genbound import Problem
from genbound.bounds import gouk2021distance
from genbound.bounds.base import Evidence
from genbound.evaluation.loop import evaluate
from genbound.structure.reader import read_structure

D = torch.float64
MEASURES = ["spectral_norm", "layer_norms", "input_norm", "margin", "structure"]
PARTS = {"weight": "", "init": "init", "displacement": "displacement"}


@pytest.fixture(scope="module")
def pencil():
    """Two layers whose norms are all known by hand: columns or rows of the fine-tuned weights are orthogonal."""
    weights = {"0.weight": [[2, 1], [0, 1], [-2, 1]], "2.weight": [[2, 1, 2], [1, -4, 1]]}
    init = {"0.weight": [[1, 1], [0, 1], [-2, 0]], "2.weight": [[2, 1, 0], [1, -4, 1]]}
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).to(D)
    model.load_state_dict({name: torch.tensor(w, dtype=D) for name, w in weights.items()})
    inputs = torch.tensor([[1.0, 0.0]] * 50 + [[0.0, 1.0]] * 50, dtype=D)
    problem = Problem(model, {n: torch.tensor(w, dtype=D) for n, w in init.items()}, (inputs, torch.zeros(100).long()))
    return evaluate(problem, MEASURES).quantities


ROOT13 = 13**0.5
ROWS = [  # layer, part, largest row sum, spectral, squared Frobenius, sum of row norms
    ("0.weight", "weight", 3, 8**0.5, 11, 2 * 5**0.5 + 1),
    ("0.weight", "init", 2, (1 + ROOT13) / 2, 7, 2**0.5 + 3),
    ("0.weight", "displacement", 1, 1, 2, 2),
    ("2.weight", "weight", 6, 18**0.5, 27, 3 + 18**0.5),
    ("2.weight", "init", 6, 4.277936, 23, 5**0.5 + 18**0.5),
    ("2.weight", "displacement", 2, 2, 4, 2),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "part", "mars", "spectral", "frobenius_squared", "two_one"), ROWS)
def test_pencil_values(pencil, layer, part, mars, spectral, frobenius_squared, two_one):
    norms, row = pencil["layer_norms"]["layers"][layer][part], pencil["spectral_norm"]["layers"][layer]
    bracket = row if part == "weight" else row[part]
    assert norms["mars"] == norms["mars_with_bias"] == mars
    assert bracket["lower"] == pytest.approx(spectral, rel=1e-6)
    assert bracket["upper"] == pytest.approx(spectral, rel=1e-6)
    assert norms["frobenius"] ** 2 == pytest.approx(frobenius_squared)
    assert norms["operator_frobenius"] == pytest.approx(norms["frobenius"])
    assert norms["two_one"] == norms["kernel_two_one"] == pytest.approx(two_one)
    assert row["value"] == row["upper"] and row["method"] == "svd"


def test_weights_without_a_network(tmp_path):
    """Two bare state dicts have norms of stored matrices, a row for each output channel, and none of operators."""
    kernel = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    torch.save({"a.weight": torch.tensor([[2.0, 1], [0, 1], [-2, 1]]), "conv.weight": kernel}, tmp_path / "tuned.pt")
    torch.save(
        {"a.weight": torch.tensor([[1.0, 1], [0, 1], [-2, 0]]), "conv.weight": 0 * kernel}, tmp_path / "start.pt"
    )
    found = evaluate(genbound.load(tmp_path / "tuned.pt", tmp_path / "start.pt"))
    norms = found.quantities["matrix_norms"]["layers"]
    assert norms["a.weight"]["weight"]["mars"] == 3
    assert norms["a.weight"]["displacement"]["two_one"] == 2 and norms["conv.weight"]["displacement"]["two_one"] == 5
    assert norms["a.weight"]["weight"]["spectral"]["upper"] == pytest.approx(8**0.5)
    assert norms["conv.weight"]["weight"]["spectral"]["upper"] == pytest.approx(5)
    expected = {"frobenius": 27**0.5, "spectral_matrix": 1 + 5, "mars_matrix": 1 + 7, "two_one_matrix": 2 + 5}
    for name, value in expected.items():
        assert found.bounds[f"distance_{name}"]["value"] == pytest.approx(value, rel=1e-6)
    for name in ("bartlett2017", "distance_spectral", "distance_mars", "distance_two_one"):
        assert found.bounds[name]["value"] is None and "--model" in found.bounds[name]["note"]


def test_pencil_inputs_and_margins(pencil):
    """Logits (4, 2) and (5, -2), each for half of the samples."""
    assert pencil["input_norm"] == {
        "max_l2": 1, "rms_l2": 1, "max_abs": 1, "max_pixel_l2": 1, "dimension": 2, "resolution": 1, "num_samples": 100,
        "max_output_l2": pytest.approx(29**0.5), "output_dimension": 2,
    }  # fmt: skip
    assert pencil["margin"] == {
        "percentile": 5, "value": 2, "margin_loss": 0.5, "minimum": 2, "median": 4.5, "num_samples": 100,
        "inverse_square": 0.25,
    }  # fmt: skip
    assert pencil["structure"]["positively_homogeneous"] and pencil["structure"]["plain"]


class Net(nn.Module):
    """Convolutions in front of a batch norm (grouped, transposed, and one used alone), and a linear map."""

    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.BatchNorm2d(4)
        self.up, self.bn2 = nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2, bias=False), nn.BatchNorm2d(6)
        self.alone = nn.Conv2d(6, 2, 3)
        self.linear, self.bn3 = nn.Linear(18, 3), nn.BatchNorm1d(3, affine=False)

    def forward(self, x):
        x = F.relu(self.bn1(self.first(x)))
        x = F.relu(self.bn2(self.up(x)))
        return self.bn3(self.linear(F.relu(self.alone(x)).flatten(1)))

    def maps(self):
        """Layer -> the affine map that it is with its batch norm, and the shape of its input."""
        return {
            "first.weight": (lambda x: self.bn1(self.first(x)), (2, 6, 6)),
            "up.weight": (lambda x: self.bn2(self.up(x)), (4, 3, 3)),
            "alone.weight": (self.alone, (6, 5, 5)),
            "linear.weight": (lambda x: self.bn3(self.linear(x)), (18,)),
        }


def random_net(seed: int) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net().to(D).eval()
        for module in (net.bn1, net.bn2, net.bn3):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        return net


def affine(function, shape) -> tuple[torch.Tensor, torch.Tensor]:
    """``(matrix, what is added)`` of an affine map of torch modules, from what it does to unit vectors."""
    size = math.prod(shape)
    with torch.no_grad():
        added = function(torch.zeros(1, *shape, dtype=D)).flatten()
        return function(torch.eye(size, dtype=D).view(size, *shape)).flatten(1).T - added.unsqueeze(1), added


@pytest.fixture(scope="module")
def folded():
    trained, init = random_net(1), random_net(2)
    inputs = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=D)
    problem = Problem(
        trained, dict(init.named_parameters()), (inputs, torch.arange(5) % 3), init_buffers=dict(init.named_buffers())
    )
    return trained, init, problem, evaluate(problem, ["spectral_norm", "layer_norms"]).quantities


@pytest.mark.parametrize("name", ["first.weight", "up.weight", "alone.weight", "linear.weight"])
def test_batch_norm_is_folded_into_both_models(folded, name):
    trained, init, _, found = folded
    matrices = {part: affine(*net.maps()[name]) for part, net in (("weight", trained), ("init", init))}
    matrices["displacement"] = tuple(a - b for a, b in zip(matrices["weight"], matrices["init"], strict=True))
    row, norms = found["spectral_norm"]["layers"][name], found["layer_norms"]["layers"][name]
    for part, (matrix, added) in matrices.items():
        bracket = row if part == "weight" else row[part]
        truth = float(torch.linalg.matrix_norm(matrix, 2))
        assert bracket["lower"] <= truth <= bracket["upper"] <= 1.011 * bracket["lower"]
        assert norms[part]["mars"] == pytest.approx(float(matrix.abs().sum(1).max()))
        assert norms[part]["mars_with_bias"] == pytest.approx(float((matrix.abs().sum(1) + added.abs()).max()))
        assert norms[part]["operator_frobenius"] == pytest.approx(float(matrix.norm()))
        assert norms[part]["two_one"] == pytest.approx(float(matrix.norm(dim=1).sum()))
        key = {"weight": "bias_norm", "init": "init_bias_norm", "displacement": "displacement_bias_norm"}[part]
        assert norms[key] == pytest.approx(float(added.norm()))
    assert (norms["input_size"], norms["output_size"]) == tuple(matrices["weight"][0].shape[::-1])
    assert norms["output_positions"] * norms["out_channels"] == norms["output_size"]
    assert row["folded"] == norms["folded"] == (name != "alone.weight")


def test_sizes(folded):
    row = folded[3]["layer_norms"]["layers"]["first.weight"]
    expected = {"in_channels": 2, "out_channels": 4, "kernel_side": 3, "kernel_taps": 9, "groups": 2, "stride": 2,
                "input_size": 72, "output_size": 36, "input_resolution": 6, "output_positions": 9,
                "input_positions": 36, "frequencies": 64, "num_weights": 36}  # fmt: skip
    assert {key: row[key] for key in expected} == expected


def test_without_initial_statistics_the_model_s_own_stand_in(folded):
    trained, init, problem, _ = folded
    alone = Problem(trained, dict(init.named_parameters()), problem.data)
    assert any("running statistics" in note for note in read_structure(alone).notes)
    assert not any("running statistics" in note for note in read_structure(problem).notes)
    assert alone.digest() != problem.digest()


def test_a_pair_brings_its_initial_statistics(tmp_path):
    for seed, name in ((1, "trained.pt"), (2, "init.pt")):
        torch.save(random_net(seed).state_dict(), tmp_path / name)
    data = (torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(3))
    problem = genbound.load(tmp_path / "trained.pt", tmp_path / "init.pt", Net, data, dtype="float64")
    torch.testing.assert_close(problem.init_buffers["bn1.running_var"], random_net(2).bn1.running_var)
    assert not problem.borrowed_buffers


class Heads(nn.Module):
    """Ten outputs of two layers that stand side by side, of which the second has one."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 9, bias=False), nn.Linear(4, 1, bias=False)

    def forward(self, x):
        return torch.cat([self.one(x), self.two(x)], 1)


@pytest.mark.parametrize(
    ("model", "shape", "classes"),
    [
        (nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (2, 5, 5), 3),
        (Heads(), (4,), 10),
    ],
)
def test_the_classes_of_a_bound_are_the_outputs(model, shape, classes):
    """Not the outputs of the layer that is executed last: before a pooling, or beside another one."""
    init = {name: torch.zeros_like(p, dtype=D) for name, p in model.named_parameters()}
    problem = Problem(model.to(D), init, (torch.randn(4, *shape, dtype=D), torch.arange(4) % 2))
    found = gouk2021distance.read(Evidence(4, 1.0, evaluate(problem, ["gouk2021"]).quantities))
    assert found.classes == classes


def test_linear_layers_on_tokens_have_the_norm_of_their_matrix():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2, bias=False)

        def forward(self, x):
            return self.b(F.relu(self.a(x))).mean(1)

    model = Tokens().to(D)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    found = evaluate(Problem(model, init, (torch.randn(4, 6, 3, dtype=D), torch.arange(4) % 2)), MEASURES).quantities
    weight, bias = model.a.weight.detach(), model.a.bias.detach()
    row, norms = found["spectral_norm"]["layers"]["a.weight"], found["layer_norms"]["layers"]["a.weight"]
    assert row["value"] == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)))
    assert norms["weight"]["operator_frobenius"] == pytest.approx(float(weight.norm()) * 6**0.5)
    assert norms["weight"]["two_one"] == pytest.approx(6 * norms["weight"]["kernel_two_one"])
    assert norms["bias_norm"] == pytest.approx(float(bias.norm()) * 6**0.5)
    assert (norms["output_positions"], norms["input_size"]) == (6, 18)
    assert norms["init"]["frobenius"] == row["init"]["upper"] == 0


def test_a_weight_used_at_two_sizes_has_the_larger_norm():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Linear(2, 2)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)) + self.conv(F.avg_pool2d(x, 2)).mean((2, 3)))

    model = Twice().to(D)
    init = {n: p.detach() + 1 for n, p in model.named_parameters()}
    problem = Problem(model, init, (torch.randn(3, 2, 6, 6, dtype=D), torch.arange(3) % 2))
    found = evaluate(problem, ["structure", *MEASURES]).quantities
    large, small = (affine(model.conv, (2, side, side))[0] for side in (6, 3))
    assert found["spectral_norm"]["layers"]["conv.weight"]["value"] == pytest.approx(
        float(torch.linalg.matrix_norm(large, 2))
    )
    assert float(torch.linalg.matrix_norm(large, 2)) > float(torch.linalg.matrix_norm(small, 2))
    assert found["layer_norms"]["layers"]["conv.weight"]["input_size"] == 72
    assert found["structure"]["depth"] == 3


def test_displacement_scales_and_vanishes(folded):
    trained, _, problem, _ = folded
    same = Problem(trained, dict(trained.named_parameters()), problem.data)
    found = evaluate(same, ["spectral_norm", "layer_norms"]).quantities
    for quantity in found.values():
        for row in quantity["layers"].values():
            assert set(row["displacement"].values()) == {0}


def test_spectral_norms_continue_from_finished_layers(folded, tmp_path):
    problem = folded[2]
    first = evaluate(problem, ["spectral_norm"], out=tmp_path).quantities
    assert evaluate(problem, ["spectral_norm"], out=tmp_path).quantities == first
    assert evaluate(problem, ["spectral_norm"], seed=0).quantities == first


def test_a_deep_residual_net_takes_seconds():
    """Large maps, where only Lanczos is affordable; the brackets are as narrow as promised."""

    class Block(nn.Module):
        def __init__(self, i, o, stride):
            super().__init__()
            self.a, self.b = nn.Conv2d(i, o, 3, stride, 1), nn.Conv2d(o, o, 3, 1, 1)
            self.s = nn.Conv2d(i, o, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x):
            return F.relu(self.b(F.relu(self.a(x))) + self.s(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1), Block(16, 16, 1), Block(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(32, 10)
        )  # fmt: skip
        init = {n: p.detach() + 0.01 * torch.randn_like(p) for n, p in model.named_parameters()}
        problem = Problem(model, init, (torch.randn(2, 3, 32, 32), torch.tensor([0, 1])))
    found = evaluate(problem, ["spectral_norm"]).quantities["spectral_norm"]
    assert found["failure_probability"] == 1e-9
    assert {row["method"] for row in found["layers"].values()} == {"lanczos", "svd"}
    for row in found["layers"].values():
        for bracket in (row, row["init"], row["displacement"]):
            assert 0 < bracket["lower"] <= bracket["upper"] <= 1.01 * (1 + 1e-9) * bracket["lower"]
        change = row["displacement"]["upper"]
        assert abs(row["upper"] - row["init"]["upper"]) <= change + 0.01 * (row["upper"] + row["init"]["upper"])


class Signals(torch.utils.data.Dataset):
    """Signals of two channels, as long as they say."""

    def __init__(self, lengths):
        draws = torch.Generator().manual_seed(0)
        self.items = [(torch.randn(2, n, dtype=D, generator=draws), n % 3) for n in lengths]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Pooled(nn.Module):
    """A convolution along a signal, its mean, and a head."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 4, 3, padding=1, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean(-1))


@pytest.mark.parametrize("lengths", [(4, 30, 12, 7), (30, 4, 7, 12)])
@pytest.mark.parametrize("ordered", [True, False])
def test_operators_are_those_of_the_largest_sample(lengths, ordered, monkeypatch):
    """Whatever the order of the samples; no bound is made of constants that hold for one length only."""
    if not ordered:  # images are not: their sizes are known when they have been opened
        monkeypatch.setattr("genbound.data.samples.ListSamples.size", lambda self, i: 0)
    torch.manual_seed(0)
    model, init = Pooled().to(D), {name: torch.zeros_like(p) for name, p in Pooled().to(D).named_parameters()}
    problem = Problem(model, init, Signals(lengths))
    wanted = ["distance_two_one", "distance_spectral", "path_norm", "bartlett2017", "li2021", "gouk2021"]
    found = evaluate(problem, ["layer_norms", "squared_path_norm", *wanted], options={"margin": {"percentile": 99}})
    unrolled = torch.autograd.functional.jacobian(lambda x: model.conv(x).flatten(), torch.zeros(1, 2, 30, dtype=D))
    unrolled = unrolled.flatten(1)
    norms = found.quantities["layer_norms"]["layers"]["conv.weight"]
    assert norms["output_positions"] == 30 and norms["input_size"] == 60
    assert norms["displacement"]["two_one"] == pytest.approx(float(unrolled.norm(dim=1).sum()))
    row = found.bounds["distance_two_one"]
    rows = float(unrolled.norm(dim=1).sum() + model.head.weight.detach().norm(dim=1).sum())
    assert row["value"] == pytest.approx(rows) and "30 places" in row["note"]
    norm = float(torch.linalg.matrix_norm(unrolled, 2))
    assert found.quantities["spectral_norm"]["layers"]["conv.weight"]["upper"] == pytest.approx(norm, rel=0.02)
    conv, head = (p.detach().square() for p in (model.conv.weight, model.head.weight))
    paths = F.linear(F.conv1d(torch.ones(1, 2, 30, dtype=D), conv, padding=1).mean(-1), head).sum()
    assert found.quantities["squared_path_norm"]["value"] == pytest.approx(float(paths))
    for name in ("distance_spectral", "path_norm"):
        assert found.bounds[name]["value"] > 0 and "the largest one measured" in found.bounds[name]["note"]
    for name in ("bartlett2017", "li2021", "gouk2021"):
        assert found.bounds[name]["value"] is None and "samples differ in shape" in found.bounds[name]["note"]


def test_samples_of_one_shape_say_nothing_of_the_largest():
    """No note, and a tree."""
    model = Pooled().to(D)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    found = evaluate(Problem(model, init, Signals((8, 8, 8))), ["structure", "distance_two_one", "distance_spectral"])
    assert found.quantities["structure"]["tree"] is not None
    assert found.bounds["distance_two_one"]["note"] == found.bounds["distance_spectral"]["note"] == ""
