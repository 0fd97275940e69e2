"""Per-sample, per-layer curvature products against the dense truth, and who is claimed positive semidefinite."""

import pytest
import torch
from cases import CASES, D
from sequence_nets import encoder
from small_nets import Apply, labels, mlp
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.curvature.layer_block import LayerBlock, dense_blocks
from genbound.curvature.traces import dense_remainder_trace, gauss_newton_trace
from genbound.network.operations import OPERATIONS
from genbound.network.problem import Problem


@pytest.fixture(scope="session")
def truths():
    kept = {}

    def get(name):
        return kept.setdefault(name, None) or kept.__setitem__(name, CASES[name].truth()) or kept[name]

    return get


def close(got, expected, tolerance=1e-10):
    size = max(1.0, float(expected.abs().max()))
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * size


@pytest.mark.parametrize("name", CASES)
def test_layers_are_found(name, problems):
    case, problem = CASES[name], problems(name)
    assert tuple(layer.name for layer in problem.layers) == case.layers
    assert tuple(layer.name for layer in problem.layers if not layer.by_batch) == case.single


@pytest.mark.parametrize("name", CASES)
def test_positive_semidefinite_is_claimed_exactly_where_it_can_be_seen(name, problems, truths):
    problem, truth = problems(name), truths(name)
    claimed = tuple(layer.name for layer in problem.layers if layer.positive_semidefinite)
    assert claimed == CASES[name].psd
    for layer in claimed:
        size = float(truth.blocks(layer).abs().max())
        assert truth.smallest_eigenvalue(layer) >= -1e-12 * max(size, 1.0)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("twice", "same.weight"), ("encoder_tied", "words.weight"), ("hard_swish", "first.weight"),
     ("relu_gate", "first.weight"), ("bounded", "4.weight"), ("custom_loss", "4.weight"),
     ("siamese", "twin.weight"), ("mlp_gelu", "0.weight")],
)  # fmt: skip
def test_counter_examples_really_are_indefinite(name, layer, truths):
    """Otherwise the test above would pass for want of a negative eigenvalue."""
    assert truths(name).smallest_eigenvalue(layer) < -1e-3


@pytest.mark.parametrize("name", CASES)
def test_losses(name, problems, truths):
    problem, truth = problems(name), truths(name)
    got = torch.cat([tape.losses.detach() for tape in (problem.tape(run) for run in _runs(problem))])
    close(got, truth.losses())


def _runs(problem):
    return list(problem.batches(range(problem.num_samples)))


@pytest.mark.parametrize("name", CASES)
def test_products(name, problems, truths):
    """v'Hv, Hv, for the displacement and for another direction in every sample."""
    problem, truth = problems(name), truths(name)
    for tape in problem.tapes(range(problem.num_samples)):
        rows = torch.tensor(tape.positions)
        for layer in tape.layers:
            shape, blocks = problem.params[layer].shape, truth.blocks(layer)[rows]
            shared = problem.displacement[layer]
            form, product = tape.product(layer, shared)
            close(product.flatten(1), torch.einsum("nij,j->ni", blocks, shared.flatten()))
            close(form, truth.forms(layer)[rows])
            own = torch.randn(len(tape), *shape, dtype=D, generator=torch.Generator().manual_seed(0))
            form, product = tape.product(layer, own)
            expected = torch.einsum("nij,nj->ni", blocks, own.flatten(1))
            close(product.flatten(1), expected)
            close(form, (expected * own.flatten(1)).sum(1))


@pytest.mark.parametrize("name", CASES)
def test_traces(name, problems, truths):
    """Gauss-Newton trace plus trace of the remainder is the trace, sample by sample."""
    problem, truth = problems(name), truths(name)
    for tape in problem.tapes(range(problem.num_samples)):
        got = gauss_newton_trace(tape) + dense_remainder_trace(tape)
        expected = torch.stack([truth.traces(layer) for layer in tape.layers], 1)[tape.positions]
        close(got, expected)


@pytest.mark.parametrize("name", CASES)
def test_compressed_operator(name, problems, truths):
    """In the basis of its own inputs a block has the same nonzero spectrum and the same quadratic forms."""
    problem, truth = problems(name), truths(name)
    compressed = 0
    for tape in problem.tapes(range(problem.num_samples)):
        for layer in tape.layers:
            if not tape.uses[layer]:
                continue
            operator, v = LayerBlock(tape, layer), problem.displacement[layer]
            compressed += operator.dimension < v.numel()
            blocks, start = dense_blocks(operator), operator.start(v).double()
            form = torch.einsum("ni,nij,nj->n", start, blocks, start)
            close(form, truth.forms(layer)[tape.positions])
            close(blocks.square().sum((1, 2)), truth.blocks(layer)[tape.positions].square().sum((1, 2)))
            positive = torch.linalg.eigvalsh(blocks).clamp(min=0).sum(1)
            close(positive, truth.positive_traces(layer)[tape.positions])
    if name in ("mlp_gelu", "tokens", "gpt_conv1d", "encoder"):
        assert compressed


@pytest.mark.parametrize("name", ["mlp_gelu", "mlp_relu", "encoder", "conv_relu", "siamese_added", "tokens"])
def test_output_derivatives_by_either_route(name, problems):
    """J v from backward passes of the outputs, or from a derivative of the backward pass: by finite differences."""
    problem = problems(name)
    run = _runs(problem)[0]
    for names in ([layer.name for layer in problem.layers], [problem.layers[0].name]):
        tape = problem.tape(run, names)
        found = tape.output_derivatives({n: problem.displacement[n] for n in names})
        inputs = problem.batch(run).inputs
        for layer in names:
            step = 1e-6 * problem.displacement[layer]
            up = problem.forward({**problem.params, layer: problem.params[layer] + step}, inputs)
            down = problem.forward({**problem.params, layer: problem.params[layer] - step}, inputs)
            close(found[layer], (up - down) / 2e-6, 1e-7)


def test_joint_products_hold_the_cross_layer_blocks(problems, truths):
    """z'(Hz)_i with all layers perturbed at once, as the probes use it, is unbiased because the cross blocks are."""
    problem, truth = problems("mlp_gelu"), truths("mlp_gelu")
    joint, where = truth.joint_hessian_of_mean([0])
    assert joint[where["0.weight"], where["2.weight"]].abs().max() > 1e-3
    tape = problem.tape([0])
    us = {n: [use.perturb(problem.displacement[n]) for use in tape.uses[n]] for n in tape.layers}
    last = "4.weight"  # its input moves with the earlier layers, its own block does not know of that
    qs = tape.activation_products({last: us[last]}, [last])
    own = truth.v[last] @ joint[where[last], where[last]] @ truth.v[last]
    close(tape.inner(last, us[last], qs[last])[0], own)


# -- networks that nobody prepared --------------------------------------------------------------------------------


def problem_of(function, x, y, batch_size=3, **parameters):
    model = Apply(function, **parameters).to(D)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    return Problem(model, init, (x, y), batch_size=batch_size, dtype=D)


def flags(problem):
    return {layer.name: layer.positive_semidefinite for layer in problem.layers}


class Relu(torch.autograd.Function):
    """A user's own function whose name is that of a piecewise linear operation, and which is not one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.pow(2)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


CURVED = {
    "own_function_named_relu": lambda net, x: net.head(Relu.apply(net.first(x))),
    "divided_by_itself": lambda net, x: net.head((h := net.first(x)) / (1 + h.abs())),
    "product_with_itself": lambda net, x: net.head((h := net.first(x)) * h),
    "cube_by_power": lambda net, x: net.head(net.first(x).pow(3)),
    "layer_norm": lambda net, x: net.head(F.layer_norm(net.first(x), (5,))),
    "instance_norm": lambda net, x: net.head(F.instance_norm(net.first(x).view(-1, 1, 5)).flatten(1)),
    "euclidean_norm": lambda net, x: net.head(F.normalize(net.first(x))),
    "log_sum": lambda net, x: net.head(net.first(x).logsumexp(1, keepdim=True).expand(-1, 5)),
    "product_over_features": lambda net, x: net.head(net.first(x).prod(1, keepdim=True).expand(-1, 5)),
    "batched_product": lambda net, x: net.head((net.first(x)[:, None] @ net.first(x)[:, :, None])[:, 0].expand(-1, 5)),
    "glu": lambda net, x: net.head(F.glu(torch.cat([net.first(x), net.first(x)], 1))),
}
FLAT = {
    "mask_times_itself": lambda net, x: net.head((h := net.first(x)) * (h > 0)),
    "divided_by_the_input": lambda net, x: net.head(net.first(x) / (1 + x.abs().sum(1, keepdim=True))),
    "where": lambda net, x: net.head(torch.where(net.first(x) > 0.1, net.first(x), 0.3 * net.first(x))),
    "maxout": lambda net, x: net.head(torch.maximum(net.first(x), -2 * net.first(x))),
    "sorted_by_the_input": lambda net, x: net.head(net.first(x).gather(1, x.argsort(1)[:, [0, 1, 2, 3, 0]])),
    "padded_and_rolled": lambda net, x: net.head(F.pad(net.first(x).roll(1, 1)[:, :3], (1, 1))),
    "relu6_and_clamps": lambda net, x: net.head(F.relu6(net.first(x)).clamp(0.1, 2).clamp(max=1.5)),
    "amax": lambda net, x: net.head(net.first(x).amax(1, keepdim=True).expand(-1, 5)),
}


@pytest.mark.parametrize("name", [*CURVED, *FLAT])
def test_single_operations(name):
    torch.manual_seed(1)
    function = {**CURVED, **FLAT}[name]
    x = torch.randn(7, 4, dtype=D)
    problem = problem_of(function, x, labels(7, 3), first=nn.Linear(4, 5), head=nn.Linear(5, 3))
    assert flags(problem)["first.weight"] == (name in FLAT)
    assert flags(problem)["head.weight"]


def test_curved_operations_are_not_flat():
    flat = {node for row in OPERATIONS if row.flat for node in row.nodes}
    assert not {"Gelu", "Silu", "Softmax", "Sigmoid", "Exp", "Pow", "Prod", "Norm", "Var", "Std"} & flat
    assert not {node for row in OPERATIONS if row.meets for node in row.nodes} & flat


@pytest.mark.parametrize("way", ["T", "mT", "transpose", "permute", "t"])
def test_a_transposed_matrix_shares_passes_whatever_the_spelling(way):
    turn = {
        "T": lambda w: w.T, "mT": lambda w: w.mT, "transpose": lambda w: w.transpose(0, 1),
        "permute": lambda w: w.permute(1, 0), "t": lambda w: w.t(),
    }[way]  # fmt: skip
    torch.manual_seed(0)
    problem = problem_of(lambda net, x: x @ turn(net.w), torch.randn(5, 4, dtype=D), labels(5, 3), w=torch.randn(3, 4))
    assert problem.layers[0].kind == "linear" and problem.layers[0].by_batch


def test_a_transposition_of_an_axis_with_itself_is_none():
    torch.manual_seed(0)
    w, x = torch.randn(3, 3), torch.randn(5, 3, dtype=D)
    problem = problem_of(lambda net, x: torch.tanh(x @ net.w.transpose(0, 0)), x, labels(5, 3), w=w)
    plain = problem_of(lambda net, x: torch.tanh(x @ net.w), x, labels(5, 3), w=w)
    v = torch.randn(3, 3, dtype=D)
    close(*[torch.cat([t.product("w", v)[0] for t in p.tapes(range(5))]) for p in (problem, plain)])


def _checked_against_single_samples(problem):
    """Products of samples that share passes against those of the same samples one at a time."""
    together, alone = {}, {}
    for found, runs in ((together, None), (alone, [[p] for p in range(problem.num_samples)])):
        tapes = problem.tapes(range(problem.num_samples)) if runs is None else (problem.tape(r) for r in runs)
        for tape in tapes:
            for layer in tape.layers:
                form, _ = tape.product(layer, problem.displacement[layer])
                found |= {(layer, p): float(f) for p, f in zip(tape.positions, form, strict=True)}
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        assert abs(together[key] - value) <= 1e-10 * max(1.0, abs(value)), key
    assert any(alone.values())


def ragged(lengths, function, time_first_mean=True, **parameters):
    torch.manual_seed(2)
    items = [(torch.randn(t, 4, dtype=D), torch.tensor(i % 3)) for i, t in enumerate(lengths)]

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return len(items)

        def __getitem__(self, i):
            return items[i]

    model = Apply(function, **parameters).to(D)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    return Problem(model, init, Data(), batch_size=4, dtype=D)


def test_the_first_sample_has_a_shape_of_its_own():
    """What one sample alone cannot show must not be taken from it: uses in weight space, and time-first rows."""
    _checked_against_single_samples(
        ragged([7, 5, 5, 5, 5, 5], lambda net, x: torch.einsum("ntd,hd->nh", x, net.w).tanh() @ net.out,
               w=torch.randn(5, 4), out=torch.randn(5, 3))
    )  # fmt: skip
    _checked_against_single_samples(
        ragged([7, 5, 5, 5, 5, 5],
               lambda net, x: net.head(torch.tanh(net.first(x.transpose(0, 1).contiguous())).mean(0)),
               first=nn.Linear(4, 5), head=nn.Linear(5, 3))
    )  # fmt: skip


@pytest.mark.parametrize("quiet", [(0, 1, 2), (0,), (1, 2), (0, 2)])
def test_row_order_where_the_first_samples_have_no_gradient(quiet):
    """Samples above the ceiling of a clipped loss say nothing about the order of the rows."""
    torch.manual_seed(4)
    x = torch.randn(6, 4, 4, dtype=D)

    def function(net, x):
        return net.head(torch.tanh(net.first(x.transpose(0, 1).contiguous())).mean(0))

    model = Apply(function, first=nn.Linear(4, 5), head=nn.Linear(5, 3)).to(D)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    scores = model(x).detach()
    y = torch.tensor([int(s.argmin() if i in quiet else s.argmax()) for i, s in enumerate(scores)])
    values = F.cross_entropy(scores, y, reduction="none")
    kept = [i for i in range(6) if i not in quiet]
    assert values[kept].max() < values[list(quiet)].min()
    ceiling = float(values[kept].max() + values[list(quiet)].min()) / 2
    problem = Problem(model, init, (x, y), loss_range=f"clip:{ceiling}", batch_size=6, dtype=D)
    _checked_against_single_samples(problem)


def test_row_order_where_one_sample_dwarfs_the_others():
    """A sample with a large gradient must not hide how the rows of the confident ones are ordered."""
    torch.manual_seed(4)
    x = torch.randn(6, 4, 4, dtype=D)

    def function(net, x):
        return 12 * net.head(torch.tanh(net.first(x.transpose(0, 1).contiguous())).mean(0))

    model = Apply(function, first=nn.Linear(4, 5), head=nn.Linear(5, 3)).to(D)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    with torch.no_grad():
        model.head.weight *= 20
    y = model(x).argmax(1)
    _checked_against_single_samples(Problem(model, init, (x, y), batch_size=6, dtype=D))


def test_a_long_chain_of_operations():
    def function(net, x):
        h = net.first(x)
        for _ in range(3000):
            h = (h * 1.0001).relu()
        return net.head(h)

    problem = problem_of(
        function, torch.randn(3, 4, dtype=D), labels(3, 3), first=nn.Linear(4, 5), head=nn.Linear(5, 3)
    )
    assert flags(problem) == {"first.weight": True, "head.weight": True}


def test_single_precision_agrees(truths):
    """The same numbers in float32, to its own rounding."""
    truth = truths("mlp_gelu")
    problem = CASES["mlp_gelu"].problem(dtype=torch.float32)
    for tape in problem.tapes(range(problem.num_samples)):
        for layer in tape.layers:
            form, _ = tape.product(layer, problem.displacement[layer])
            close(form, truth.forms(layer)[tape.positions], 1e-5)


def test_lstm_in_single_precision():
    """The fused kernel of the CPU has no second derivatives: it must be avoided or refused, not give zeros."""
    truth = CASES["lstm"].truth()
    problem = CASES["lstm"].problem(dtype=torch.float32)
    for tape in problem.tapes(range(problem.num_samples)):
        for layer in tape.layers:
            form, _ = tape.product(layer, problem.displacement[layer])
            close(form, truth.forms(layer)[tape.positions], 1e-5)


def test_mlp_builder_gives_equal_nets():
    """The table is deterministic: the problem and the truth are built from the same weights."""
    a, b = (CASES["mlp_relu"].parts()[0] for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert mlp(nn.ReLU)()[1].shape == (7, 5)


def test_half_precision_is_rounded_and_no_more():
    """LAPACK factors no half types: what is factored is so in single precision."""
    torch.manual_seed(0)
    model, inputs, targets = encoder(tied=False)()
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    options = {"hessian_trace": {"exact_products": 0}, "noise_stability": {"sigmas": (0.5,)}}
    found = {
        t: genbound.evaluate(
            Problem(model, init, (inputs, targets), dtype=t), ["noise_stability"], options=options
        ).quantities
        for t in (torch.float64, torch.bfloat16)
    }
    exact, rounded = found[torch.float64], found[torch.bfloat16]
    for path in ("hessian_trace", "total"), ("noise_stability", "sigmas"):
        pair = [quantities[path[0]][path[1]] for quantities in (exact, rounded)]
        one, other = (p[0] if isinstance(p, list) else p for p in pair)
        assert other["value"] == pytest.approx(one["value"], rel=0.1)
