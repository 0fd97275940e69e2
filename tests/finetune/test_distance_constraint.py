"""The balls: every layer ends inside, at the nearest point, in every precision and under every wrapper."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from genbound.errors import GenboundError
from genbound.finetune import DistanceConstraint, relative_radii, stage_radii


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.ln = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        h = self.up(self.bn(self.conv(x)).relu()).mean((2, 3))
        return self.fc(self.ln(h))


def network(seed=0, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net().to(dtype)


def start_of(model):
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().clone() for name, value in state.items()}


def perturb(model, size, seed=1):
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (size * torch.randn(parameter.shape, generator=stream)).to(parameter.dtype)


def row_sums(v, kind):
    """Absolute sums by output unit, written out from torch's documented layouts."""
    if kind == "up":  # [in 4, out / groups 3, 2, 2], 2 groups: output g * 3 + o has inputs 2g, 2g + 1
        return torch.stack([v[2 * g : 2 * g + 2, o].abs().sum() for g in range(2) for o in range(3)])
    return v.abs().flatten(1).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["frobenius", "mars"])
@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.3])
def test_every_layer_ends_in_its_ball(norm, radius, dtype):
    model = network(dtype=dtype)
    init = start_of(model)
    perturb(model, 0.5)
    biases = {name: p.clone() for name, p in model.named_parameters() if p.dim() < 2}
    assert DistanceConstraint(init, radius, norm).project(model) == 3
    for name, parameter in model.named_parameters():
        v = (parameter.double() - init[name].double()).detach()
        if parameter.dim() >= 2:
            size = v.norm() if norm == "frobenius" else row_sums(v, name.split(".")[0]).max()
            assert size <= radius
            if dtype in (torch.float32, torch.float64):
                assert size == pytest.approx(radius, rel=2e-2 if radius < 0.01 else 1e-5)
        else:
            assert torch.equal(parameter, biases[name])


def test_what_is_inside_is_not_touched():
    model = network()
    init = start_of(model)
    perturb(model, 0.1)
    before = start_of(model)
    for norm in ("frobenius", "mars"):
        for radius in (1e3, float("inf")):
            assert DistanceConstraint(init, radius, norm).project(model) == 0
    assert all(torch.equal(before[name], value) for name, value in start_of(model).items())
    constraint = DistanceConstraint(init, 0.2)
    constraint.project(model)
    after = start_of(model)
    assert constraint.project(model) == 0  # a second projection finds nothing to do
    assert all(torch.equal(after[name], value) for name, value in start_of(model).items())


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
@pytest.mark.parametrize("seed", range(4))
def test_the_projection_is_the_constrained_optimum(norm, seed):
    rng = np.random.default_rng(seed)
    start, weight, radius = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)) * 2, 0.8
    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
    DistanceConstraint({"weight": torch.from_numpy(start)}, radius, norm).project(model)
    if norm == "frobenius":
        room = [{"type": "ineq", "fun": lambda w: radius**2 - ((w.reshape(2, 3) - start) ** 2).sum()}]
        parameters, objective = weight.ravel(), lambda w: ((w - weight.ravel()) ** 2).sum()
        found = scipy.optimize.minimize(
            objective, start.ravel(), constraints=room, options={"ftol": 1e-14, "maxiter": 500}
        )
        optimum = found.x.reshape(2, 3)
        assert len(parameters) == 6
    else:  # w = start + a - b with a, b >= 0 and sum(a + b) <= r for each row: a quadratic programme
        optimum = np.zeros((2, 3))
        for row in range(2):
            target = weight[row] - start[row]
            found = scipy.optimize.minimize(
                lambda ab, t=target: ((ab[:3] - ab[3:] - t) ** 2).sum(),
                np.zeros(6),
                bounds=[(0, None)] * 6,
                constraints=[{"type": "ineq", "fun": lambda ab: radius - ab.sum()}],
                options={"ftol": 1e-14, "maxiter": 500},
            )
            optimum[row] = start[row] + found.x[:3] - found.x[3:]
    np.testing.assert_allclose(model.weight.detach().numpy(), optimum, atol=1e-5)


def test_no_random_feasible_point_is_nearer():
    stream = torch.Generator().manual_seed(0)
    start, weight = torch.randn(3, 5, generator=stream), torch.randn(3, 5, generator=stream) * 2
    for norm, size in (("frobenius", lambda v: v.norm()), ("mars", lambda v: v.abs().sum(1).max())):
        model = nn.Linear(5, 3, bias=False)
        model.load_state_dict({"weight": weight})
        DistanceConstraint({"weight": start}, 1.0, norm).project(model)
        nearest = (model.weight - weight).norm()
        for _ in range(2000):
            v = torch.randn(3, 5, generator=stream)
            v *= torch.rand((), generator=stream) / size(v)
            assert (start + v - weight).norm() >= nearest - 1e-5


def test_normalisation_layers():
    model = network()
    model(torch.randn(16, 2, 5, 5, generator=torch.Generator().manual_seed(0)))  # moves the running variance
    init = start_of(network())
    perturb(model, 0.4)
    distance = 0.05
    moved = DistanceConstraint(init, float("inf"), norm_layers=distance).project(model)
    assert moved == 2

    def scales(weight, variance):
        return weight.double() / (variance.double() + 1e-6).sqrt()

    shift = scales(model.bn.weight, model.bn.running_var) - scales(init["bn.weight"], init["bn.running_var"])
    assert shift.abs().max() <= distance and (shift.abs() > 0.9 * distance).any()
    assert (model.ln.weight - init["ln.weight"]).abs().double().max() <= distance
    assert DistanceConstraint(init, float("inf"), norm_layers=distance).project(model) == 0


def test_radii_by_pattern_stage_and_size():
    model = network()
    init = start_of(model)
    constraint = DistanceConstraint(init, {"fc.*": 2.0, "conv.*": 0.1})
    assert constraint.radii == {"conv.weight": 0.1, "up.weight": float("inf"), "fc.weight": 2.0}
    names = [f"layer{i}.{j}.weight" for i in range(1, 5) for j in range(2)]
    schedule = stage_radii(names, 8.0, 0.5)
    assert [schedule[n] for n in names] == [8, 8, 8, 8, 4, 4, 2, 2]
    by_pattern = stage_radii([*names, "fc.weight"], 8.0, 0.5, [[f"layer{i}.*"] for i in range(1, 5)])
    assert by_pattern == schedule  # the head belongs to no stage: free
    relative = relative_radii(init, 0.1)
    assert relative["fc.weight"] == pytest.approx(0.1 * init["fc.weight"].norm().item())
    assert relative_radii({"head": torch.zeros(2, 2)}, 0.1)["head"] == float("inf")


@pytest.mark.parametrize(
    ("arguments", "words"), [((0.1, "forbenius"), "'forbenius' is unknown"), ((-0.1,), "-0.1 is no"), ((np.nan,), "no")]
)
def test_relative_radii_of_what_is_no_share_or_norm(arguments, words):
    with pytest.raises(GenboundError, match=words):
        relative_radii({"w": torch.ones(2, 2)}, *arguments)


def test_relative_row_sums_are_those_of_the_outputs():
    """By hand: of a transposed convolution, [inputs, outputs per group, ...], and of GPT-2's [inputs, outputs]."""

    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 4.0], [0.0, 0.0]]))

    up = nn.ConvTranspose2d(4, 6, 1, groups=2)
    up.weight.data = torch.arange(12.0).reshape(4, 3, 1, 1)  # group 1: rows 0 1 2, 3 4 5; group 2: 6 7 8, 9 10 11
    model = nn.ModuleDict({"up": up, "gpt": Conv1D(), "fc": nn.Linear(3, 2, bias=False)})
    init = start_of(model)
    found = relative_radii(init, 0.5, "mars", model)
    assert found["up.weight"] == 0.5 * (8 + 11) and found["gpt.weight"] == 0.5 * 6
    assert found["fc.weight"] == pytest.approx(0.5 * float(init["fc.weight"].abs().sum(1).max()))
    zero = {name: torch.zeros_like(w) for name, w in init.items()}
    DistanceConstraint(zero, found, "mars").project(model)
    assert relative_radii(start_of(model), 1.0, "mars", model) == pytest.approx(found, rel=1e-6)
    assert relative_radii(init, 0.5, "frobenius", model) == relative_radii(init, 0.5)


def test_attached_to_an_optimizer_it_holds_after_every_step():
    model = network()
    init = start_of(model)
    constraint = DistanceConstraint(init, 0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    handle = constraint.attach(optimizer, model)
    x, y = torch.randn(8, 2, 4, 4), torch.arange(8) % 3
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert all(value <= 0.05 for value in constraint.distances(model).values())
    handle.remove()
    optimizer.step()
    assert max(constraint.distances(model).values()) > 0.05


def test_wrappers_and_ties_are_seen_through():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

    model = Tied()
    init = {name: value.detach().clone() for name, value in model.state_dict().items()}  # both names
    perturb(model, 1.0)
    wrapped = Wrapped(model)
    constraint = DistanceConstraint(init, 0.5)
    assert constraint.project(wrapped) == 1
    assert (model.head.weight - init["head.weight"]).norm() <= 0.5


@pytest.mark.parametrize("radius", [{"head.*": 0.1, "*": 9.0}, {"head.weight": 0.1}, {"embedding.weight": 0.1}])
def test_a_tied_weight_is_within_the_least_radius_of_its_names(radius):
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    init = {name: value.detach().clone() for name, value in model.state_dict().items()}
    perturb(model, 1.0)
    constraint = DistanceConstraint(init, radius)
    assert constraint.project(model) == 1
    assert list(constraint.distances(model).values()) == [pytest.approx(0.1, rel=1e-5)]


def test_a_layer_that_starts_elsewhere():
    model, zeros = nn.Linear(4, 2), torch.zeros(2, 4)
    DistanceConstraint({"weight": zeros}, 0.1).project(model)  # a head kept near zero
    assert model.weight.norm().item() == pytest.approx(0.1, rel=1e-6) and model.weight.double().norm() <= 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (({"w": torch.zeros(2, 2)}, -1.0), "no number >= 0"),
        (({"w": torch.zeros(2, 2)}, float("nan")), "no number >= 0"),
        (({"w": torch.zeros(2, 2)}, {"v*": 1.0}), "fits no weight"),
        (({"w": torch.zeros(2, 2)}, 1.0, "spectral"), "unknown"),
        (({"b": torch.zeros(2)}, 1.0), "nothing to constrain"),
        (({"w": torch.zeros(2, 2)}, 1.0, "mars", -1.0), "norm_layers"),
    ],
)
def test_mistakes(arguments, words):
    with pytest.raises(GenboundError, match=words):
        DistanceConstraint(*arguments)


def test_models_that_do_not_belong_to_the_init():
    with pytest.raises(GenboundError, match="does not have"):
        DistanceConstraint({"other": torch.zeros(2, 2), "weight": torch.zeros(2, 4)}, 1.0).project(
            nn.Sequential(nn.Linear(4, 2))
        )
    with pytest.raises(GenboundError, match="has no weight 'other'"):
        DistanceConstraint({"other": torch.zeros(2, 2), "weight": torch.zeros(2, 4)}, 1.0).project(nn.Linear(4, 2))
    with pytest.raises(GenboundError, match="shape"):
        DistanceConstraint({"weight": torch.zeros(3, 4)}, 1.0).project(nn.Linear(4, 2))
    with pytest.raises(GenboundError, match="running_var"):
        DistanceConstraint(
            {"0.weight": torch.zeros(4, 4, 1, 1), "1.weight": torch.ones(4)}, 1.0, norm_layers=1.0
        ).project(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
