"""Noise on a weight as what it does to a sample: against the weight itself, moved by hand."""

import pytest
import torch
from posterior_nets import moved
from torch import nn
from torch.func import jacrev
from torch.nn import functional as F

import genbound
from genbound.estimators.gram_root import checked_gram_root
from genbound.posterior.acting_noise import Action, WeightCalls
from genbound.posterior.curvature import measure_curvature
from genbound.posterior.gaussian import best_width
from genbound.posterior.groups import changed_groups
from genbound.posterior.moved_network import MovedNetwork
from genbound.posterior.noise import Posterior


class Reader(nn.Module):
    """Words that occur twice, a map at every position, and a weight that the other positions see again."""

    def __init__(self, words=40, width=12, classes=3):
        super().__init__()
        self.words, self.first = nn.Embedding(words, width), nn.Linear(width, 32)
        self.norm, self.second = nn.LayerNorm(32), nn.Linear(32, 10, bias=False)
        self.head = nn.Linear(10, classes)

    def forward(self, words):
        x = torch.tanh(self.norm(self.first(self.words(words))))
        return self.head(torch.relu(self.second(x)).mean(1))


class Seer(nn.Module):
    """Convolutions of a few positions: of patches with a border and a step, and of single points with a step."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.point = nn.Conv2d(6, 8, 1, stride=2, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.point(torch.tanh(self.wide(x)))).flatten(2).mean(2))


def reader(num=30, seed=0, **arguments):
    torch.manual_seed(seed)
    net, init = moved(Reader(**arguments))
    words = torch.randint(5, (num, 4))  # of so few that most occur twice
    return genbound.Problem(net, init, (words, torch.randint(3, (num,))), dtype=torch.float64)


def seer(num=20):
    torch.manual_seed(1)
    net, init = moved(Seer())
    return genbound.Problem(net, init, (torch.randn(num, 4, 4, 4), torch.randint(3, (num,))), dtype=torch.float64)


def rows_of(name, problem, params, inputs):
    """What a weight is applied to in one sample ``[T, in]``, by the network's own modules."""
    seen, module = [], problem.model.get_submodule(name.rpartition(".")[0])
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    problem.forward(params, inputs)
    handle.remove()
    x = seen[0]
    if isinstance(module, nn.Conv2d):
        return F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)[0].T
    if isinstance(module, nn.Embedding):
        return F.one_hot(x.flatten(), module.num_embeddings).double()
    return x.flatten(0, -2)


@pytest.mark.parametrize(
    "problem, names",
    [(reader(), ["words.weight", "first.weight", "second.weight"]), (seer(), ["wide.weight", "point.weight"])],
)
def test_it_is_the_weight_itself_that_is_noisy(problem, names):
    """Normals that stand for a known E give the very outputs of the network whose weights are moved by E.

    They are g = R^-1 X E^T for the inputs X of that moved network. R R^T = X S X^T, so that for standard normal g the
    noise R g has the covariance of X E^T. An embedding's are the rows of E, each at its word's first position.
    """
    groups = changed_groups(problem)
    network = MovedNetwork(problem, groups, names)
    assert set(network.acting) == set(names) and network.vectorised
    batch, stream = problem.batch(range(5)), torch.Generator().manual_seed(2)
    randn = lambda *shape: torch.randn(*shape, generator=stream, dtype=torch.float64)  # noqa: E731
    own = {g.name: g.tuned + 0.1 * randn(5, *g.tuned.shape) for g in groups if g.name not in names}
    roots, given = {}, {}
    for name, act in network.acting.items():
        size = problem.params[name].numel() // act.width
        roots[name] = 0.3 * (1 + randn(size).abs()) if act.is_table else 0.2 * randn(size, size)
        given[name] = randn(5, size, act.width)  # standard normals of E^T = M (normals)
    by_hand, normals = [], {name: [] for name in names}
    for i in range(5):
        inputs, params = batch.inputs[i : i + 1], {**problem.params, **{n: t[i] for n, t in own.items()}}
        for name, act in network.acting.items():
            root = torch.diag(roots[name]) if act.is_table else roots[name]
            noise = root @ given[name][i]
            weight = problem.params[name]
            params[name] = weight + (noise if act.is_table else noise.T.reshape(weight.shape))
        for name, act in network.acting.items():
            x = rows_of(name, problem, params, inputs)
            if act.is_table:
                normals[name].append(given[name][i][batch.inputs[i]])
            else:
                scaled = x @ roots[name]
                root = checked_gram_root(scaled)
                normals[name].append(torch.linalg.solve_triangular(root, scaled @ given[name][i], upper=False))
                assert torch.allclose(root @ root.T, scaled @ scaled.T, rtol=1e-12)
        by_hand.append(problem.forward(params, inputs)[0])
    found = network.outputs(batch.inputs, {**own, **{n: torch.stack(g) for n, g in normals.items()}}, roots)
    assert torch.allclose(found, torch.stack(by_hand), rtol=1e-8)


def test_a_word_that_occurs_twice_has_one_noise():
    problem = reader()
    network = MovedNetwork(problem, changed_groups(problem), ["words.weight"])
    weight = problem.params["words.weight"]
    normals = torch.randn(1, 4, 12, dtype=torch.float64)
    words = torch.tensor([[3, 1, 3, 3]])
    found = network.outputs(words, {"words.weight": normals}, {"words.weight": torch.tensor(0.7, dtype=weight.dtype)})
    own = weight.clone()
    own[3] += 0.7 * normals[0, 0]
    own[1] += 0.7 * normals[0, 1]
    assert torch.allclose(found, problem.forward({**problem.params, "words.weight": own}, words), rtol=1e-12)


@pytest.mark.parametrize("make, name", [(reader, "second.weight"), (reader, "words.weight"), (seer, "point.weight")])
def test_the_curvature_of_a_row(make, name):
    """Mean over outputs of the dense Gauss-Newton block's parts on the input side; and its trace."""
    problem = make()
    groups = changed_groups(problem)
    network = MovedNetwork(problem, groups, [name])
    every, weight = list(range(len(problem.data))), problem.params[name]
    width = network.acting[name].width
    dense = torch.zeros(weight.numel(), weight.numel(), dtype=torch.float64)
    for i in every:
        batch = problem.to_device(problem.data.batch([i]))
        outputs = lambda w, x=batch.inputs: problem.forward({**problem.params, name: w}, x)[0]  # noqa: E731
        jacobian, p = jacrev(outputs)(weight).flatten(1), outputs(weight).softmax(0)
        dense += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(every)
    blocks = dense.view(*(len(weight), weight[0].numel()) * 2)
    over = "iaja->ij" if network.acting[name].is_table else "aiaj->ij"
    row = torch.einsum(over, blocks) / width
    found = measure_curvature(problem, network, groups, every, [], torch.Generator())[name]
    axes = torch.eye(len(row), dtype=row.dtype) if found.axes is None else found.axes
    values = torch.as_tensor(found.spectrum.values)
    expected = torch.diag(row.diagonal()) if found.axes is None else row
    assert torch.allclose((axes * values) @ axes.T, expected, atol=1e-6 * float(row.abs().max()))
    assert set(found.spectrum.counts) == {width}
    flat = measure_curvature(problem, network, groups, every, [], torch.Generator(), by_row=False)[name]
    assert flat.spectrum.values[0] * weight.numel() == pytest.approx(float(dense.trace()), rel=1e-5)


class Twice(nn.Module):
    """One weight at two places, one whose transpose is used, and one that is only looked at."""

    def __init__(self):
        super().__init__()
        self.words, self.turned, self.seen = nn.Embedding(40, 8), nn.Linear(40, 8), nn.Linear(8, 8)

    def forward(self, words):
        x = self.words(words)
        x = x @ self.words.weight.T @ self.turned.weight.T
        return self.seen(x.to(self.seen.weight.dtype)).mean(1)[:, :3] + self.seen.weight.dim()


def test_what_is_used_otherwise_is_drawn_itself():
    torch.manual_seed(0)
    net, init = moved(Twice())
    problem = genbound.Problem(net, init, (torch.randint(40, (12, 2)), torch.arange(12) % 3))
    network = MovedNetwork(problem, changed_groups(problem), ["words.weight", "turned.weight", "seen.weight"])
    assert set(network.acting) == {"seen.weight"}
    assert network.acting["seen.weight"] == Action(2, 8, False)


def test_a_weight_that_another_one_is_applied_to_is_drawn_itself():
    """Learned queries go through a linear layer as its input: noise on them is multiplied by its weight."""
    queries, layer = torch.randn(40, 64), nn.Linear(64, 8)
    image, kernel = torch.randn(1, 3, 9, 9), torch.randn(2, 3, 3, 3)
    calls = WeightCalls({"queries": queries, "image": image})
    with calls, torch.no_grad():
        layer(queries)
        F.conv2d(image, kernel, None, 1, 0, 1, 1)
    assert calls.unread == {"queries", "image"} and not calls.actions


def test_a_bias_does_not_keep_its_weight_from_acting():
    """Both are in one call: the bias, which cannot act, is drawn itself."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 2))
    init = {name: p.detach() + 1.0 for name, p in net.named_parameters()}
    problem = genbound.Problem(net, init, (torch.randn(40, 20), torch.randint(2, (40,))))
    groups = changed_groups(problem)
    assert set(MovedNetwork(problem, groups, [group.name for group in groups]).acting) == {"0.weight", "2.weight"}


def test_a_pass_that_uses_a_weight_otherwise_is_refused():
    weight = torch.randn(3, 3)
    calls = WeightCalls({"w": weight})
    with calls:
        F.linear(torch.randn(2, 3), weight)
    calls.check()
    with calls:
        F.linear(torch.randn(2, 3), weight)
    with pytest.raises(RuntimeError, match="not added once for each weight: w"):
        calls.check()
    other = WeightCalls({"w": weight})
    with other:
        F.linear(torch.randn(2, 3), weight)
        weight.T.contiguous()
    with pytest.raises(RuntimeError, match="w"):
        other.check()


def test_a_longer_sample_begins_with_the_same_normals_and_other_keys_have_others():
    problem = reader()
    groups = changed_groups(problem)
    posterior = Posterior(groups, {g.name: best_width(1.0, _flat(g), 10.0) for g in groups}, {}, {"second.weight"})
    short, long = (
        posterior.normals(0, [("x", 0), ("x", 1)], {"second.weight": Action(t, 10, False)})["second.weight"]
        for t in (3, 7)
    )
    assert torch.equal(short, long[:, :3]) and not torch.equal(long[0], long[1])
    assert abs(float(long.mean())) < 4 / long.numel() ** 0.5


def _flat(group):
    from genbound.posterior.gaussian import Spectrum

    return Spectrum.flat(1.0, group.size)


def test_both_ways_find_one_gibbs_error(monkeypatch):
    """The same posterior, one variance a tensor, with noise on results and with noise on the weights."""
    monkeypatch.setattr("genbound.posterior.curvature.SIGNS", 10**6)  # its trace is exact both ways
    problem = reader(num=60, seed=3)
    options = {"covariance": "tensor", "taus": (1.0,), "cost": 1e-9, "max_passes": 30}
    acting = genbound.evaluate(problem, ["gibbs_error"], 0, options={"gibbs_error": options}).quantities["gibbs_error"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genbound.posterior.moved_network.MovedNetwork._watched", lambda *_: {})
        drawn = genbound.evaluate(problem, ["gibbs_error"], 1, options={"gibbs_error": options})
    drawn = drawn.quantities["gibbs_error"]
    assert acting["kl"] == pytest.approx(drawn["kl"], rel=1e-5) and acting["num_trials"] == drawn["num_trials"] == 1800
    assert abs(acting["error"] - drawn["error"]) < 4 * (2**0.5) * drawn["error_sem"]
