"""A network by itself, the checks of its forward pass, and passes over it: no layers need be known."""

import dataclasses

import pytest
import torch
from cases import CASES
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.data.samples import as_samples
from genbound.errors import GenboundError
from genbound.network.layers import Layer, select_layers
from genbound.network.layers_by_shape import layers_by_shape
from genbound.network.network import Network
from genbound.network.tape import Tape
from genbound.network.weights import BaseProblem, WeightProblem

D = torch.float64


def make(model=None, inputs=None, targets=None, **options) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(D) if model is None else model
        inputs = torch.randn(7, 4, dtype=D) if inputs is None else inputs
    targets = torch.arange(len(inputs)) % 3 if targets is None else targets
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    return Network(model, init, (inputs, targets), **options)


def test_the_forward_pass_is_the_models():
    network = make()
    x = network.batch(range(7)).inputs
    with torch.no_grad():
        assert torch.equal(network.forward(network.params, x), network.model(x))
        assert torch.equal(network.forward(network.init, x), torch.zeros(7, 3, dtype=D))
    assert (network.num_samples, network.num_outputs, network.num_classes) == (7, 3, 3)


@pytest.mark.parametrize(
    ("dtype", "wanted", "measured"),
    [
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, None, torch.float32),
        (torch.float64, torch.float32, torch.float32),
    ],
)
def test_weights_and_inputs_have_one_type(dtype, wanted, measured):
    network = make(nn.Linear(4, 3).to(dtype), torch.randn(5, 4, dtype=D), dtype=wanted)
    tensors = [*network.params.values(), *network.init.values(), network.batch([0]).inputs]
    assert {t.dtype for t in tensors} == {network.dtype} == {measured}


def test_weights_are_copies():
    network = make()
    with torch.no_grad():
        network.model[0].weight.zero_()
    assert network.params["0.weight"].abs().min() > 0


def test_the_loss_is_limited_in_its_range_for_as_many_classes_as_there_are():
    assert make().loss is make().loss
    assert make(loss_range="clip:2").loss.range == 2
    assert make(loss_range="bounded:0.1").loss.range == pytest.approx(2.302585092994046)
    with pytest.raises(GenboundError, match="1/K = 0.333"):
        make(loss_range="bounded:0.4")


def test_runs_hold_samples_that_can_be_stacked():
    data = [(torch.randn(1, length, 2, dtype=D), torch.tensor([0])) for length in (3, 5, 3, 5, 3)]

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            return self.inner(x).mean(1)

    model = Pooled().to(D)
    network = Network(model, dict(model.named_parameters()), data, batch_size=2)
    assert network.indices == [0, 2, 4, 1, 3]  # by length, as they come among equals
    assert list(network.batches(range(5))) == [[0, 1], [2], [3, 4]]
    assert list(network.batches(range(5), 8)) == [[0, 1, 2], [3, 4]]
    assert network.shared_run(3) == [0, 1]


def test_the_layers_are_found_on_a_network_as_on_a_problem():
    for name in ("time_first", "encoder_tied", "twice", "lstm"):
        problem = CASES[name].problem()
        assert select_layers(problem, CASES[name].pattern) == problem.layers
        model, init, inputs, targets = CASES[name].parts()
        data = {"labels": targets, **inputs} if isinstance(inputs, dict) else (inputs, targets)
        network = Network(model, init, data, CASES[name].loss, batch_size=3, dtype=D)
        assert select_layers(network, CASES[name].pattern) == problem.layers


@pytest.mark.parametrize("samples_first", [True, False])
def test_a_pass_reads_rows_in_the_order_that_it_is_given(samples_first):
    """Two positions a sample: the gradient of a sample's weights, against a pass of that sample alone."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3, dtype=D)

        def forward(self, x):
            x = x if samples_first else x.transpose(0, 1).contiguous()
            z = self.inner(x.reshape(-1, 4)).view(*x.shape[:2], 3)
            return torch.tanh(z).mean(1 if samples_first else 0)

    network = make(Positions(), torch.randn(3, 2, 4, dtype=D))
    tape = Tape(network, range(3), {"inner.weight": samples_first})
    found = tape.adjoint("inner.weight", tape.backward(tape.output_gradient(), tape.layers)["inner.weight"])
    for n in range(3):
        batch = network.batch([n])
        weight = network.params["inner.weight"].clone().requires_grad_()
        outputs = network.forward({**network.params, "inner.weight": weight}, batch.inputs)
        (own,) = torch.autograd.grad(F.cross_entropy(outputs, batch.targets), weight)
        torch.testing.assert_close(found[n], own, rtol=1e-10, atol=1e-12)
    other = Tape(network, range(3), {"inner.weight": not samples_first})
    mixed = other.adjoint("inner.weight", other.backward(other.output_gradient(), other.layers)["inner.weight"])
    assert not torch.allclose(mixed, found)


def test_second_derivatives_of_a_cotangent_are_those_of_its_product_with_the_outputs():
    network = make()
    tape = Tape(network, [0], {"0.weight": True})
    cotangent, v = torch.tensor([[0.3, -1.2, 0.7]], dtype=D), torch.randn(5, 4, dtype=D)
    before = tape.product("0.weight", v)[0]
    us = [use.perturb(v) for use in tape.uses["0.weight"]]
    products = tape.activation_products({"0.weight": us}, ["0.weight"], cotangent=cotangent)["0.weight"]

    def function(weight):
        return (network.forward({**network.params, "0.weight": weight}, network.batch([0]).inputs) * cotangent).sum()

    hessian = torch.func.hessian(function)(network.params["0.weight"]).reshape(20, 20)
    torch.testing.assert_close(tape.inner("0.weight", us, products)[0], v.flatten() @ hessian @ v.flatten())
    assert torch.equal(tape.product("0.weight", v)[0], before)  # the gradients that are kept stay the loss's own


def test_a_second_derivative_that_is_missing_is_zero_in_the_shape_of_the_result():
    """The outputs are linear in the last layer's result, in which alone they are moved: nothing changes anywhere."""
    tape = Tape(make(), range(3), dict.fromkeys(["0.weight", "2.weight"], True))
    (last,) = tape.uses["2.weight"]
    moved = {"2.weight": [last.perturb(torch.ones(3, 5, dtype=D))]}
    found = tape.activation_products(moved, ["0.weight", "2.weight"], cotangent=torch.ones(3, 3, dtype=D))
    for name, width in (("0.weight", 5), ("2.weight", 3)):
        assert torch.equal(found[name][0], torch.zeros(3, width, dtype=D))


@pytest.mark.parametrize("shape", ["outputs", "data"])
def test_a_refused_network_leaves_the_random_state(shape):
    class Draws(nn.Linear):
        def forward(self, x):
            noise = torch.randn(3, dtype=x.dtype)
            return super().forward(x if shape == "outputs" else x[:, :2]) + noise

    model, state = Draws(4, 3, dtype=D), torch.get_rng_state()
    with pytest.raises(GenboundError, match="stays random" if shape == "outputs" else "cannot run on the data"):
        make(model)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["network", "weights"])
def test_every_problem_answers_what_is_declared_once(kind):
    problem = CASES["mlp_relu"].problem()
    if kind == "weights":
        problem = WeightProblem(problem.params, problem.init, "no network")
    for name in BaseProblem.__annotations__:
        assert hasattr(problem, name), name
    assert all(dataclasses.is_dataclass(layer) and isinstance(layer, Layer) for layer in problem.layers)
    assert len(problem.indices) == problem.num_samples
    assert (problem.reason == "") == (problem.data is not None) == (problem.loss is not None)
    assert problem.digest() == problem.digest()
    assert set(genbound.evaluate(problem, ["displacement_norm"]).quantities) == {"displacement_norm"}


def test_samples_outside_the_training_set_keep_its_size():
    """Seven held-out samples of a network that was trained on five: bounds divide by the root of five."""
    network = make()
    given = network.model, network.init, (network.data.batch(range(7)).inputs, torch.arange(7) % 3)
    assert genbound.Problem(*given, num_data=5, other_samples=True).num_data == 5
    with pytest.raises(GenboundError, match="smaller than the 7 samples given.*other_samples=True"):
        genbound.Problem(*given, num_data=5)
    with pytest.raises(GenboundError, match="num_data is missing"):
        genbound.Problem(*given, other_samples=True)


class Sines(nn.Module):
    """Positions from a table that nobody trains, looked up where autograd does not see it, as in RoFormer."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Linear(4, 3)
        self.places.weight.requires_grad_(False)

    def forward(self, ids):
        with torch.no_grad():
            places = self.places(torch.arange(ids.shape[1]))
        return self.head((self.words(ids) + places).tanh().mean(1))


def test_a_fixed_table_that_autograd_does_not_see_is_no_layer():
    model = Sines()
    init = {name: 0.5 * p.detach() for name, p in model.named_parameters()}
    data = (torch.arange(20).view(4, 5) % 9, torch.arange(4) % 3)
    assert [layer.name for layer in genbound.Problem(model, init, data).layers] == ["head.weight"]
    by_shape, _ = layers_by_shape(model, as_samples(data).batch([0]), True)
    assert [layer.name for layer in by_shape] == ["head.weight"]
    with pytest.raises(GenboundError, match=r"places\.weight moves the network's output, but no derivative reaches it"):
        genbound.Problem(model, init, data, layers="*")
