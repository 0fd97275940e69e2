"""The loss beside the fine-tuned weights: on the line through both sets of weights, and on a plane through them."""

import numpy as np
import pytest
import torch
from cases import CASES, D
from torch import nn
from torch.func import functional_call

import genbound
from genbound.estimators.estimate import data_sem
from genbound.quantities.catalogue import QUANTITIES
from genbound.quantities.loss_plane import random_direction
from genbound.quantities.moved_loss import displacement_of

CHOSEN = ["mlp_gelu", "conv_silu", "encoder_tied", "tokens", "squared_error", "bounded"]


def direct(name, t, everything=True):
    """The mean loss at W0 + t (W - W0), by the dense truth's own loss."""
    truth, init = CASES[name].truth(), CASES[name].parts()[1]
    names = truth.params if everything else truth.layers
    weights = {n: init[n].double() + t * (truth.params[n] - init[n].double()) for n in names}
    with torch.no_grad():
        return float(torch.stack([truth.sample_loss(i, weights) for i in range(len(truth.inputs))]).mean())


def point(found, t):
    return next(row for row in found["points"] if row["t"] == t)


@pytest.mark.parametrize("name", CHOSEN)
def test_losses_of_the_path(name, problems):
    found = genbound.measure(problems(name), "loss_path", points=(-0.5, 0.25, 1.5))
    assert [row["t"] for row in found["points"]] == [-0.5, 0.0, 0.25, 1.0, 1.5]
    for row in found["points"]:
        assert row["value"] == pytest.approx(direct(name, row["t"]), rel=1e-10)


@pytest.mark.parametrize("name", [n for n in CHOSEN if n != "conv_silu"])  # its pooling has a kink beside W
def test_the_parabola_has_the_derivatives_of_the_loss(name, problems, truths):
    """Second-order differences of the truth in float64, along all weights."""
    found = genbound.measure(problems(name), "loss_path", points=())
    h = 1e-4
    low, mid, high = (direct(name, 1 + d) for d in (-h, 0, h))
    assert found["slope"] == pytest.approx((high - low) / (2 * h), rel=1e-4, abs=1e-6)
    assert found["curvature"] == pytest.approx((high - 2 * mid + low) / h**2, rel=1e-4, abs=1e-5)
    assert point(found, 1.0)["parabola"] == point(found, 1.0)["value"]
    expected = mid - found["slope"] + 0.5 * found["curvature"]
    assert point(found, 0.0)["parabola"] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["mlp_gelu", "encoder_tied"])
def test_layers_alone_move_along_the_form_of_the_operator(name, problems):
    problem = problems(name)
    found = genbound.measure(problem, "loss_path", points=(0.5,), moves="layers")
    operator = genbound.hessian_operator(problem)
    v = operator.flatten(problem.displacement)
    assert found["curvature"] == pytest.approx(float(v @ (operator @ v)), rel=1e-10)
    assert point(found, 0.0)["value"] == pytest.approx(direct(name, 0.0, everything=False), rel=1e-10)


def linear_squares(**arguments):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    init = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    return genbound.Problem(model, init, (torch.randn(9, 3, dtype=D), torch.randn(9, 2, dtype=D)), "squared_error",
                            **arguments)  # fmt: skip


def test_a_quadratic_loss_is_its_own_parabola():
    found = genbound.measure(linear_squares(), "loss_path")
    for row in found["points"]:
        assert row["parabola"] == pytest.approx(row["value"], rel=1e-10) and row["data_sem"] == 0
    assert found["of_all_data"]


def test_the_error_of_a_part_of_the_data():
    whole, part = linear_squares(), linear_squares(num_samples=5)
    losses = np.array([genbound.measure(linear_squares(num_samples=9), "loss_path")["points"][0]["value"]])
    assert losses == genbound.measure(whole, "loss_path")["points"][0]["value"]
    found = genbound.measure(part, "loss_path", points=())
    batch = part.batch(range(5))
    values = part.loss.per_sample(part.forward(part.params, batch.inputs), batch.targets).detach().numpy()
    sem = data_sem(values, np.zeros(5), 9)
    assert point(found, 1.0)["data_sem"] == pytest.approx(sem, rel=1e-10) and not found["of_all_data"]
    numbers = {n.where: n for n in QUANTITIES["loss_path"].reading.numbers(found)}
    assert numbers["t=1"].data_sem == point(found, 1.0)["data_sem"]
    assert numbers["curvature"].data_sem is None


def test_a_network_that_did_not_move():
    model, init, inputs, targets = CASES["mlp_gelu"].parts()
    init = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = genbound.measure(genbound.Problem(model, init, (inputs, targets)), "loss_path")
    assert found["slope"] == found["curvature"] == 0
    assert len({row["value"] for row in found["points"]}) == 1


def test_a_loss_that_overflows_is_no_number():
    problem = linear_squares(dtype=torch.float32)
    found = genbound.measure(problem, "loss_path", points=(1e30,))
    assert point(found, 1e30)["value"] is None and point(found, 0.0)["value"] is not None
    plane = genbound.measure(problem, "loss_plane", along=(1e30,), across=())
    assert [x is None for x in plane["loss"][0]] == [False, False, True]


class HiddenShift(nn.Module):
    """A weight that is no layer, and that autograd does not see."""

    def __init__(self):
        super().__init__()
        self.head, self.shift = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.head(x) + self.shift.detach()


def test_a_slope_that_autograd_does_not_see_is_refused():
    torch.manual_seed(0)
    model = HiddenShift().double()
    init = {n: p.detach() - 2.0 for n, p in model.named_parameters()}
    data = (torch.randn(9, 3, dtype=D), torch.randn(9, 2, dtype=D))
    problem = genbound.Problem(model, init, data, "squared_error")
    with pytest.raises(genbound.GenboundError, match="hidden from autograd.*loss_path.moves=layers"):
        genbound.measure(problem, "loss_path")
    assert genbound.measure(problem, "loss_path", moves="layers")["slope"] != 0


def test_running_statistics_are_named():
    model, init, inputs, targets = CASES["conv_relu"].parts()
    buffers = {n: b + 1 if b.is_floating_point() else b for n, b in model.named_buffers()}
    assert buffers
    problem = genbound.Problem(model, init, (inputs, targets), init_buffers=buffers)
    assert "running statistics stay" in genbound.measure(problem, "loss_path", points=())["note"]
    assert genbound.measure(CASES["mlp_gelu"].problem(), "loss_path", points=())["note"] == ""


# -- the plane --------------------------------------------------------------------------------------------------------


def test_losses_of_the_plane(problems):
    problem = problems("mlp_gelu")
    found = genbound.measure(problem, "loss_plane", along=(0.5,), across=(-1.0, 0.5))
    assert (found["along"], found["across"]) == ([0.0, 0.5, 1.0], [-1.0, 0.0, 0.5])
    model, _, inputs, targets = CASES["mlp_gelu"].parts()

    class Given:
        seed = 0

    v, d = displacement_of(problem, "all"), random_direction(problem, Given)
    for b, row in zip(found["across"], found["loss"], strict=True):
        for t, value in zip(found["along"], row, strict=True):
            weights = {n: p + (t - 1) * v[n] + b * d.get(n, 0.0) for n, p in problem.params.items()}
            with torch.no_grad():
                loss = nn.functional.cross_entropy(functional_call(model, weights, (inputs.to(D),)), targets)
            assert value == pytest.approx(float(loss), rel=1e-10)
    path = genbound.measure(problem, "loss_path", points=(0.5,))
    assert found["loss"][1] == pytest.approx([row["value"] for row in path["points"]], rel=1e-12)


def test_the_random_direction_has_the_norms_of_the_filters(problems):
    problem = problems("conv_silu")

    class Given:
        seed = 3

    d = random_direction(problem, Given)
    assert set(d) == {layer.name for layer in problem.layers}
    for name, step in d.items():
        torch.testing.assert_close(step.flatten(1).norm(dim=1), problem.params[name].flatten(1).norm(dim=1))
    assert not torch.equal(
        next(iter(d.values())), next(iter(random_direction(problem, type("S", (), {"seed": 4})).values()))
    )


# -- on request -------------------------------------------------------------------------------------------------------


def test_they_are_measured_where_they_are_asked_for_alone():
    from genbound.evaluation.selection import resolve, select

    default, bounds = resolve(None)
    assert not {"loss_path", "loss_plane"} & set(default) and set(default) < set(QUANTITIES)
    assert resolve(["default", "loss_path"]) == ([n for n in QUANTITIES if n in {*default, "loss_path"}], bounds)
    assert resolve(["loss_path"]) == (["loss_path"], [])
    given = {"loss_path": {"moves": "layers"}}
    assert select(["loss_path"], given).options["loss_path"].moves == "layers"
    for measures in (None, ["losses"]):
        with pytest.raises(genbound.GenboundError, match="loss_path.moves is given.*add --measures default,loss_path"):
            select(measures, given)


@pytest.mark.parametrize("given", [{"points": (float("inf"),)}, {"moves": "some"}])
def test_refusals(given, problems):
    with pytest.raises(genbound.GenboundError):
        genbound.measure(problems("mlp_gelu"), "loss_path", **given)
