"""Trees by hand, refusals with their reasons, and the implied Lipschitz constant against measured Jacobians."""

import math

import pytest
import torch
from structured_nets import NETS, Apply, D, head, make
from torch import nn
from torch.nn import functional as F

from genbound import Problem
from genbound.evaluation.loop import evaluate
from genbound.structure.reader import read_structure
from genbound.structure.tree import lipschitz

MEASURES = ["structure", "spectral_norm", "layer_norms"]


@pytest.mark.parametrize("name", NETS)
def test_the_tree_bounds_the_jacobian(name):
    """For both models, in the Euclidean norm (with either constant for averages) and in the sup norm."""
    problem = make(*NETS[name])
    found = evaluate(problem, MEASURES).quantities
    tree = found["structure"]["tree"]
    assert tree is not None, found["structure"]["reason"]
    spectral = {n: (row["upper"], row["init"]["upper"]) for n, row in found["spectral_norm"]["layers"].items()}
    mars = {n: (row["weight"]["mars"], row["init"]["mars"]) for n, row in found["layer_norms"]["layers"].items()}
    models = ((problem.params, problem.buffers), (problem.init, problem.init_buffers))
    inputs = torch.cat(
        [problem.batch(range(4)).inputs, *(torch.randn(6, *NETS[name][1], dtype=D) * s for s in (0.3, 4))]
    )
    for which, (params, buffers) in enumerate(models):
        node = tree if which == 0 else _at_init(tree)
        bound = lipschitz(node, {n: v[which] for n, v in spectral.items()})
        sharp = lipschitz(node, {n: v[which] for n, v in spectral.items()}, "l2")
        sup = lipschitz(node, {n: v[which] for n, v in mars.items()}, "sup")
        assert sharp <= bound
        assert sup <= lipschitz(node, {n: v[which] for n, v in mars.items()})

        def output(z, params=params, buffers=buffers):
            return problem.forward(params, z.unsqueeze(0), buffers)[0].flatten()

        for x in inputs:
            jacobian = torch.autograd.functional.jacobian(output, x).flatten(1)
            assert float(torch.linalg.matrix_norm(jacobian, 2)) <= sharp * (1 + 1e-9)
            assert float(jacobian.abs().sum(1).max()) <= sup * (1 + 1e-9)


def _at_init(node):
    node = dict(node)
    if "init_lipschitz" in node:
        node |= {key: node["init_lipschitz"] for key in ("lipschitz", "l2", "sup")}
    if "children" in node:
        node["children"] = [_at_init(child) for child in node["children"]]
    return node


def layer(name: str) -> dict:
    return {"op": "layer", "name": name}


def test_a_plain_net():
    found = read_structure(make(*NETS["perceptron"]))
    assert found.tree == {"op": "series", "children": [layer("0.weight"), layer("2.weight"), layer("4.weight")]}
    assert (found.depth, found.plain, found.reason, found.activations) == (3, True, "", ["relu", "tanh"])
    assert not found.positively_homogeneous and found.zero_preserving


def test_positive_homogeneity():
    bias_free = make(
        lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.LeakyReLU(), nn.Linear(4, 2, bias=False)), (3,)
    )
    assert read_structure(bias_free).positively_homogeneous
    for bias in (False, True):
        convolutions = make(
            lambda bias=bias: nn.Sequential(
                nn.Conv2d(2, 4, 3, bias=bias), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, bias=False)
            ),
            (2, 4, 4),
        )
        assert read_structure(convolutions).positively_homogeneous is not bias
    for last in (nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU6())):
        problem = make(lambda last=last: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), last), (3,))
        assert not read_structure(problem).positively_homogeneous


def test_steps_that_shift_do_not_keep_zero():
    def build(last):
        return lambda: nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), last, nn.Linear(2, 2, bias=False))

    assert read_structure(make(build(nn.ReLU6()), (3,))).zero_preserving
    for last in (nn.Sigmoid(), nn.BatchNorm1d(2), Apply(lambda m, x: x + 1), Apply(lambda m, x: 1 - x)):
        assert not read_structure(make(build(last), (3,))).zero_preserving
    scaled = read_structure(make(build(Scaled()), (3,)))
    assert scaled.zero_preserving and "learned factor" in str(scaled.tree)
    assert "constant factor" in str(read_structure(make(build(Apply(lambda m, x: 3 * x)), (3,))).tree)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.7, dtype=D))

    def forward(self, x):
        return self.factor * x


def test_a_residual_block_with_a_projection():
    found = read_structure(make(*NETS["residual"]))
    branch = {"op": "series", "children": [layer("3.conv1.weight"), layer("3.conv2.weight")]}
    first, block, mean, last = found.tree["children"]
    assert (first, last) == (layer("0.weight"), layer("6.weight"))
    assert block == {"op": "sum", "children": [branch, layer("3.shortcut.0.weight")]}
    assert (mean["op"], mean["lipschitz"], mean["l2"], mean["sup"]) == ("scale", 1, pytest.approx(1 / 3), 1)
    assert (found.depth, found.plain) == (5, False)
    assert set(found.folds) == {"0.weight", "3.conv1.weight", "3.conv2.weight", "3.shortcut.0.weight"}


def test_an_identity_shortcut():
    found = read_structure(make(lambda: Apply(lambda m, x: (x + m.a(x))[:, :2], a=nn.Linear(3, 3)), (3,)))
    assert found.tree == {"op": "sum", "children": [{"op": "identity"}, layer("a.weight")]}


def test_a_batch_norm_in_front_is_a_step():
    problem = make(lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), (3,))
    scale, _ = read_structure(problem).tree["children"]

    def largest(params, buffers):
        return float((params["0.weight"].abs() / (buffers["0.running_var"] + 1e-5).sqrt()).max())

    assert scale["what"] == "unfolded batch norm"
    assert scale["lipschitz"] == pytest.approx(largest(problem.params, problem.buffers))
    assert scale["init_lipschitz"] == pytest.approx(largest(problem.init, problem.init_buffers))


@pytest.mark.parametrize(
    ("pool", "constant"),
    [(nn.MaxPool2d(3, 2), 2), (nn.MaxPool2d(3, 1), 3), (nn.MaxPool2d((3, 2), (1, 2)), 3**0.5), (nn.MaxPool2d(2), 1)],
)
def test_overlapping_max_pools_reach_their_constant(pool, constant):
    """One entry far above all others is seen by as many windows as can hold it."""
    problem = make(lambda: _pooled(pool), (1, 7, 7))
    tree = read_structure(problem).tree
    assert (lipschitz(tree, {"2.weight": 1.0})) == pytest.approx(constant)
    x = torch.zeros(1, 1, 7, 7, dtype=D)
    spike = max(float((pool(x + 5 * e) - pool(x + 4 * e)).norm()) for e in torch.eye(49, dtype=D).view(49, 1, 1, 7, 7))
    assert spike == pytest.approx(constant)


def _pooled(pool):
    features = pool(torch.zeros(1, 1, 7, 7)).numel()
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(features, 2))


class Attention(nn.Module):
    def __init__(self, norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(4) if norm else nn.Identity()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(x)
        return self.out((x + self.attend(x, x, x, need_weights=False)[0]).mean(1))


class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(2, 4, 3), nn.Linear(4, 2), nn.Linear(2, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


REFUSED = {
    "attention": (lambda: Attention(False), (3, 4), "softmax attention is not globally Lipschitz"),
    "attention behind a layer norm": (lambda: Attention(True), (3, 4), "softmax attention is not globally Lipschitz"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (3,), "LayerNorm"),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), *head(4)), (2, 3, 3), "group norm"),
    "squeeze-excitation": (SqueezeExcitation, (2, 5, 5), "squeeze-excitation"),
    "a square": (
        lambda: Apply(lambda m, x: m.a(x) ** 2, a=nn.Linear(3, 2)), (3,), "operation Pow: no Lipschitz constant known",
    ),
    "a quotient": (
        lambda: Apply(lambda m, x: m.a(x) / (1 + x.abs().sum(1, keepdim=True)), a=nn.Linear(3, 2)), (3,), "product",
    ),
    "an inverse": (lambda: Apply(lambda m, x: 1 / (1 + m.a(x).abs()), a=nn.Linear(3, 2)), (3,), "Reciprocal"),
    "a constant": (lambda: Apply(lambda m, x: m.a(torch.zeros_like(x)), a=nn.Linear(3, 2)), (3,), "depend"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name):
    build, shape, reason = REFUSED[name]
    found = evaluate(make(build, shape), MEASURES).quantities
    assert found["structure"]["tree"] is None
    assert reason in found["structure"]["reason"]
    assert not found["structure"]["plain"]
    for quantity in ("spectral_norm", "layer_norms"):  # the layers have norms all the same
        assert all(found[quantity]["layers"].values())


def test_a_layer_that_is_not_measured_is_named():
    found = read_structure(make(*NETS["perceptron"], layers="0.*,4.*"))
    assert found.tree is None
    assert "2.weight" in found.reason and "measured" in found.reason


def test_token_numbers_have_no_tree():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)).to(D)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    problem = Problem(model, init, (torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1])))
    assert "token" in read_structure(problem).reason
    results = evaluate(problem, ["input_norm", "spectral_norm"])
    assert "integers" in results.notes["input_norm"]
    assert list(results.quantities["spectral_norm"]["layers"]) == ["2.weight"]


def test_densely_connected_branches_are_refused_in_time():
    def run(m, x):
        parts = [x]
        for conv in m.convs:
            parts.append(F.relu(conv(torch.cat(parts, 1))))
        return torch.cat(parts, 1).mean((2, 3))[:, :2]

    def build():
        return Apply(run, convs=nn.ModuleList(nn.Conv2d(2 + 2 * i, 2, 1) for i in range(24)))

    assert "densely" in read_structure(make(build, (2, 3, 3))).reason


def test_measuring_disturbs_nothing():
    problem = make(*NETS["residual"])
    model, before = problem.model, {n: t.clone() for n, t in problem.model.state_dict().items()}
    model.train()
    state = torch.get_rng_state()
    digest = problem.digest()
    evaluate(problem, MEASURES)
    assert model.training and all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state()) and problem.digest() == digest
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_smooth_slopes_are_the_known_ones():
    for activation, constant in ((nn.GELU(), 1.128904), (nn.SiLU(), 1.099839), (nn.Mish(), 1.088501)):
        problem = make(lambda a=activation: nn.Sequential(nn.Linear(3, 2, bias=False), a), (3,))
        assert lipschitz(read_structure(problem).tree, {"0.weight": 1.0}) == pytest.approx(constant, abs=5e-6)
    x = 2**0.5  # by hand: GELU'' = phi(x) (2 - x^2)
    by_hand = 0.5 * (1 + math.erf(x / 2**0.5)) + x * math.exp(-1) / (2 * math.pi) ** 0.5
    assert by_hand == pytest.approx(1.128904, abs=1e-6)


@pytest.mark.parametrize(("value", "zero"), [(0.0, True), (0.5, False)])
def test_padding_by_a_constant_keeps_zero_only_if_it_is_zero(value, zero):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 3, 3, stride=2, bias=False), nn.Linear(12, 2, bias=False)

        def forward(self, x):
            x = nn.functional.pad(x, (0, 1, 0, 1), value=value)
            return self.head(torch.relu(self.conv(x)).flatten(1))

    torch.manual_seed(0)
    net = Padded()
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    problem = Problem(net, init, (torch.randn(4, 2, 4, 4), torch.arange(4) % 2))
    structure = read_structure(problem)
    assert structure.tree is not None
    assert structure.zero_preserving is zero
    assert structure.positively_homogeneous is zero
