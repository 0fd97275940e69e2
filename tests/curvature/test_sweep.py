"""Second directional derivatives from tangents: against double backward, nested forward mode and the dense truth."""

import random

import pytest
import torch
from cases import CASES, Apply, D, labels
from test_undisturbed import same, state
from torch import nn
from torch.func import jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from genbound.curvature import rules as operations
from genbound.curvature.probes import probe_directions
from genbound.curvature.sweep import Sweep, Unsupported, can_sweep, separate_cost
from genbound.curvature.traces import (
    dense_remainder_trace,
    gauss_newton_trace,
    joint_trace,
    separate_traces,
    sweep_directions,
)
from genbound.estimators.random import BLOCK, grouped, row_of, row_signs
from genbound.network.problem import Problem

# A weight that acts more than once or otherwise than by a linear map or a convolution: the double backward pass stays.
REFUSED = {
    "encoder_tied", "lstm", "gru", "lstm_cell", "siamese", "siamese_added", "twice", "einsum", "standardised",
    "weight_norm", "left_product", "scaled_addmm", "embedding",
}  # fmt: skip
SWEPT = [name for name in CASES if name not in REFUSED]


def close(got, expected, tolerance=1e-10, size=0.0):
    """To rounding, relative to the largest of what is expected, or to what it was summed up from."""
    assert got.shape == expected.shape
    size = max(size, float(expected.abs().max()))
    assert float((got - expected).abs().max()) <= tolerance * size


def own_directions(sweep, seed=0):
    """Weight directions of every sample's own, and how they move the layers' results."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(len(sweep), *sweep.problem.params[name].shape, dtype=D, generator=generator)
        for name in sweep.uses
    }
    return weights, {name: sweep.uses[name].perturb(v) for name, v in weights.items()}


def double_backward(tape, us, part):
    """``u^T (part) u`` of every sample along the joint direction, by the route that sweeps replace."""
    products = tape.activation_products({name: [u] for name, u in us.items()}, list(us), part)
    return sum(tape.inner(name, [u], products[name]) for name, u in us.items())


# -- networks of the table ----------------------------------------------------------------------------------------


def test_who_can_be_swept(problems):
    """By name: a case that fell out would leave the tests below green."""
    assert {name for name in CASES if not can_sweep(problems(name))} == REFUSED


@pytest.mark.parametrize("name", SWEPT)
def test_agrees_with_a_double_backward_pass(name, problems):
    """Both parts, all layers along one joint direction and each layer alone, for every sample."""
    problem = problems(name)
    for run in problem.batches(range(problem.num_samples)):
        tape, sweep = problem.tape(run), Sweep(problem, run)
        close(sweep.outputs, tape.outputs.detach(), 1e-14)
        weights, us = own_directions(sweep)
        assert set(us) == {layer for layer in tape.layers if tape.uses[layer]}
        for layer, v in weights.items():  # the two find the layers on different ways
            close(us[layer], tape.uses[layer][0].perturb(v), 1e-14)
        for chosen in [list(us), *([layer] for layer in us)]:
            directions = {layer: us[layer] for layer in chosen}
            remainder, hessian = (double_backward(tape, directions, part) for part in ("remainder", "hessian"))
            close(sweep.hessian(directions), hessian, size=float(remainder.abs().max()))
            close(sweep.remainder(directions), remainder)
            if set(chosen) <= tape.piecewise_linear:
                assert not sweep.remainder(directions).any()


@pytest.mark.parametrize("name", ["mlp_gelu", "tokens", "bounded", "conv_1d"])
def test_agrees_with_the_dense_truth(name, problems):
    """v'Hv from the block itself, and the traces of H and of H - G from all of a layer's unit weights."""
    problem, truth = problems(name), CASES[name].truth()
    run = next(iter(problem.batches(range(problem.num_samples))))
    sweep, tape = Sweep(problem, run), problem.tape(run)
    weights, us = own_directions(sweep)
    gauss_newton = gauss_newton_trace(tape)
    for i, layer in enumerate(tape.layers):
        blocks, use = truth.blocks(layer)[run], sweep.uses[layer]
        v = weights[layer].flatten(1)
        close(sweep.hessian({layer: us[layer]}), torch.einsum("ni,nij,nj->n", v, blocks, v))
        units = torch.eye(v.shape[1], dtype=D).view(-1, *problem.params[layer].shape)
        perturbations = [use.perturb(unit) for unit in units]
        hessian = sum(sweep.hessian({layer: u}) for u in perturbations)
        remainder = sum(sweep.remainder({layer: u}) for u in perturbations)
        expected = blocks.diagonal(dim1=1, dim2=2).sum(1)
        close(hessian, expected)
        close(remainder, expected - gauss_newton[:, i], size=float(gauss_newton[:, i].abs().max()))


def test_single_precision_agrees(problems):
    problem = problems("mlp_gelu", dtype=torch.float32)
    exact, rounded = (Sweep(p, range(7)) for p in (problems("mlp_gelu"), problem))
    _, us = own_directions(exact)
    for part in (Sweep.remainder, Sweep.hessian):
        found = part(rounded, {layer: u.float() for layer, u in us.items()})
        assert found.dtype == D
        close(found, part(exact, us), 1e-5)


def test_a_layer_that_does_not_reach_the_output_adds_nothing(problems):
    sweep = Sweep(problems("unused"), range(5))
    assert list(sweep.uses) == ["used.weight"]
    spare = {"spare.weight": torch.randn(5, 3, dtype=D, generator=torch.Generator().manual_seed(0))}
    _, us = own_directions(sweep)
    assert not sweep.hessian(spare).any() and not sweep.remainder(spare).any()
    assert torch.equal(sweep.hessian({**us, **spare}), sweep.hessian(us))


def test_separate_cost_by_hand(problems):
    """Linear, GELU, linear, GELU, linear: five operations, and the layers start at the first, third and fifth."""
    assert separate_cost(problems("mlp_gelu")) == pytest.approx(1 + 3 / 5 + 1 / 5)


@pytest.mark.parametrize("name", ["mlp_gelu", "encoder"])
def test_a_tangent_is_dropped_after_its_last_use(name, problems):
    """What a sweep holds at a time is what the forward pass held, not all of it."""
    steps = Sweep(problems(name), range(3)).steps
    last = [i for step in steps for i in step.last]
    assert len(last) == len(set(last)) and set(last) == {i for step in steps for i in step.inputs}
    for n, step in enumerate(steps):
        assert not set(step.last) & {i for later in steps[n + 1 :] for i in later.inputs}


# -- single operations --------------------------------------------------------------------------------------------


def ramp(*shape, low=-1.0, high=1.0):
    return torch.linspace(low, high, max(1, torch.Size(shape).numel()), dtype=D).view(shape)


SCALES, MIXED, KEPT = ramp(6, low=0.5, high=2), ramp(6, 6), torch.tensor([True, False, False, True, False, True])
Elementwise, Affine, Product, Sum = operations.Elementwise, operations.Affine, operations.Product, operations.Sum
Nested, Joined, Softmax, LayerNorm = operations.Nested, operations.Joined, operations.Softmax, operations.LayerNorm


def layer_norm(x, axes, weight=None, bias=None):
    """Written out: torch's own forward-mode derivative of a forward-mode derivative of it is wrong."""
    dims = tuple(range(-axes, 0))
    centred = x - x.mean(dims, keepdim=True)
    y = centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()
    return y if weight is None else y * weight + bias


# What becomes of two moving inputs [N, 6], and the rule that it must go through.
VECTORS = {
    "gelu": (Elementwise, lambda a, b: F.gelu(a)),
    "gelu_tanh": (Elementwise, lambda a, b: F.gelu(a, approximate="tanh")),
    "tanh": (Elementwise, lambda a, b: a.tanh()),
    "silu": (Elementwise, lambda a, b: F.silu(a)),
    "sigmoid": (Elementwise, lambda a, b: a.sigmoid()),
    "exp": (Elementwise, lambda a, b: a.exp()),
    "log": (Elementwise, lambda a, b: (1.5 + a).log()),
    "log1p": (Elementwise, lambda a, b: a.log1p()),
    "sqrt": (Elementwise, lambda a, b: (1 + a).sqrt()),
    "rsqrt": (Elementwise, lambda a, b: (1 + a).rsqrt()),
    "reciprocal": (Elementwise, lambda a, b: (1 + a).reciprocal()),
    "square": (Elementwise, lambda a, b: a.square()),
    "pow": (Elementwise, lambda a, b: a.pow(3)),
    "pow_of_each_entry": (Elementwise, lambda a, b: (1 + a).pow(SCALES)),
    "pow_as_exponent": (Nested, lambda a, b: 2.0**a),
    "pow_both": (Nested, lambda a, b: (1 + a) ** b),
    "erf": (Elementwise, lambda a, b: a.erf()),
    "sin": (Elementwise, lambda a, b: a.sin()),
    "cos": (Elementwise, lambda a, b: a.cos()),
    "softplus": (Elementwise, lambda a, b: F.softplus(a, beta=3.0, threshold=2.0)),
    "mish": (Elementwise, lambda a, b: F.mish(a)),
    "elu": (Elementwise, lambda a, b: F.elu(a, alpha=0.5)),
    "selu": (Elementwise, lambda a, b: F.selu(a)),
    "hardswish": (Elementwise, lambda a, b: F.hardswish(3 * a)),
    "relu": (Elementwise, lambda a, b: (a - 0.1).relu()),
    "leaky_relu": (Elementwise, lambda a, b: F.leaky_relu(a, 0.2)),
    "hardtanh": (Elementwise, lambda a, b: F.hardtanh(a, -0.1, 0.3)),
    "relu6": (Elementwise, lambda a, b: F.relu6(5 * a)),
    "clamp": (Elementwise, lambda a, b: a.clamp(-0.1, 0.3)),
    "clamp_min": (Elementwise, lambda a, b: a.clamp_min(0.1)),
    "clamp_by_tensors": (Elementwise, lambda a, b: a.clamp(ramp(6, low=-0.2, high=0), SCALES)),
    "threshold": (Elementwise, lambda a, b: F.threshold(a, 0.1, 0.7)),
    "abs": (Elementwise, lambda a, b: a.abs()),
    "softmax": (Softmax, lambda a, b: a.softmax(-1)),
    "softmax_inner_axis": (Softmax, lambda a, b: a.view(-1, 2, 3).softmax(1)),
    "softmin": (Softmax, lambda a, b: F.softmin(3 * a, -1)),
    "log_softmax": (Nested, lambda a, b: a.log_softmax(-1)),
    "layer_norm": (LayerNorm, lambda a, b: F.layer_norm(a, (6,)), lambda a, b: layer_norm(a, 1)),
    "layer_norm_weights": (
        LayerNorm,
        lambda a, b: F.layer_norm(a, (6,), SCALES, MIXED[0]),
        lambda a, b: layer_norm(a, 1, SCALES, MIXED[0]),
    ),
    "layer_norm_positions": (
        LayerNorm,
        lambda a, b: F.layer_norm(a.view(-1, 2, 3), (3,), SCALES[:3], SCALES[3:]),
        lambda a, b: layer_norm(a.view(-1, 2, 3), 1, SCALES[:3], SCALES[3:]),
    ),
    "layer_norm_two_axes": (
        LayerNorm,
        lambda a, b: F.layer_norm(a.view(-1, 2, 3), (2, 3), SCALES.view(2, 3), MIXED[0].view(2, 3)),
        lambda a, b: layer_norm(a.view(-1, 2, 3), 2, SCALES.view(2, 3), MIXED[0].view(2, 3)),
    ),
    "rms_norm": (Elementwise, lambda a, b: F.rms_norm(a, (6,))),
    "normalize": (Nested, lambda a, b: F.normalize(a)),
    "batch_norm": (Affine, lambda a, b: F.batch_norm(a, ramp(6), SCALES, SCALES, ramp(6))),
    "mul": (Product, lambda a, b: a * b),
    "mul_itself": (Product, lambda a, b: a * a),
    "mul_column": (Product, lambda a, b: a * b[:, :1]),
    "mul_outer": (Product, lambda a, b: a[:, :2, None] * b[:, None, :3]),
    "mul_constant": (Affine, lambda a, b: a * SCALES),
    "mul_mask": (Affine, lambda a, b: a * (a > 0.1)),
    "bmm": (Product, lambda a, b: torch.bmm(a.view(-1, 2, 3), b.view(-1, 3, 2))),
    "matmul": (Product, lambda a, b: a.view(-1, 1, 2, 3) @ b.view(-1, 1, 2, 3).mT),
    "matmul_constant": (Affine, lambda a, b: a @ MIXED),
    "matmul_constant_left": (Affine, lambda a, b: ramp(2, 2) @ a.view(-1, 2, 3)),
    "einsum": (Product, lambda a, b: torch.einsum("nij,nkj->nik", a.view(-1, 2, 3), b.view(-1, 2, 3))),
    "addmm": (Affine, lambda a, b: torch.addmm(SCALES, a, MIXED, beta=0.3)),
    "addmm_alpha": (Nested, lambda a, b: torch.addmm(SCALES, a, MIXED, alpha=0.3)),
    "addmm_added": (Nested, lambda a, b: torch.addmm(a, b, MIXED, beta=0.3)),
    "baddbmm": (Product, lambda a, b: torch.baddbmm(ramp(1, 2, 2), a.view(-1, 2, 3), b.view(-1, 3, 2), beta=0.5)),
    "baddbmm_left": (Affine, lambda a, b: torch.baddbmm(ramp(1), a.view(-1, 2, 3), ramp(1, 3, 2).expand(len(a), 3, 2))),
    "baddbmm_right": (
        Affine,
        lambda a, b: torch.baddbmm(ramp(1), ramp(1, 2, 3).expand(len(a), 2, 3), a.view(-1, 3, 2)),
    ),
    "baddbmm_alpha": (Nested, lambda a, b: torch.baddbmm(ramp(1), a.view(-1, 2, 3), b.view(-1, 3, 2), alpha=2)),
    "baddbmm_added": (Nested, lambda a, b: torch.baddbmm(a[:, :4].view(-1, 2, 2), a.view(-1, 2, 3), b.view(-1, 3, 2))),
    "attention": (Softmax, lambda a, b: F.scaled_dot_product_attention(*(x.view(-1, 1, 3, 2) for x in (a, b, a)))),
    "div": (Affine, lambda a, b: a / 3),
    "div_tensor": (Affine, lambda a, b: a / SCALES),
    "div_moving": (Nested, lambda a, b: a / (1 + b.square())),
    "div_of_a_constant": (Nested, lambda a, b: SCALES / (1 + a.square())),
    "add": (Sum, lambda a, b: a + b),
    "add_itself": (Sum, lambda a, b: a + a),
    "add_alpha": (Sum, lambda a, b: torch.add(a, b, alpha=-2.5)),
    "add_column": (Sum, lambda a, b: a[:, :1] + SCALES),
    "add_to_a_constant": (Sum, lambda a, b: torch.add(SCALES, a, alpha=3)),
    "sub": (Sum, lambda a, b: a - b),
    "sub_alpha": (Sum, lambda a, b: torch.sub(a, b, alpha=0.3)),
    "sub_from_a_constant": (Sum, lambda a, b: SCALES - a),
    "sub_from_a_number": (Nested, lambda a, b: 1 - a),
    "neg": (Affine, lambda a, b: -a),
    "sum": (Affine, lambda a, b: a.sum(1, keepdim=True) * b),
    "mean": (Affine, lambda a, b: a.mean(1, keepdim=True) - b),
    "masked_fill": (Affine, lambda a, b: a.masked_fill(KEPT, -2.0)),
    "masked_fill_by_itself": (Affine, lambda a, b: a.masked_fill(a > b, -2.0)),
    "where": (Affine, lambda a, b: torch.where(a > b, a, torch.full((), 0.7, dtype=D))),
    "where_not": (Affine, lambda a, b: torch.where(a > b, torch.full((), 0.7, dtype=D), a)),
    "where_wider": (Affine, lambda a, b: torch.where(KEPT, a[:, :1], torch.full((), 0.7, dtype=D))),
    "where_both": (Nested, lambda a, b: torch.where(a > 0.1, 0.3 * a, b)),
    "cat": (Joined, lambda a, b: torch.cat([a[:, :2], torch.ones(len(a), 1, dtype=D), b[:, :3]], 1)),
    "cat_itself": (Joined, lambda a, b: torch.cat([a[:, :3], a[:, :3]], 1)),
    "cat_constant": (Joined, lambda a, b: torch.cat([a, torch.ones(len(a), 2, dtype=D)], 1)),
    "stack": (Joined, lambda a, b: torch.stack([a[:, :3], b[:, 3:], a[:, 3:]], 1)),
    "split": (Affine, lambda a, b: (p := a.split([2, 2, 2], 1))[0] * p[2]),
    "chunk": (Affine, lambda a, b: torch.cat([*(p := a.chunk(2, 1)), p[1].tanh()], 1)),
    "unbind": (Affine, lambda a, b: torch.stack(a.unbind(1)[::-1], 1) * b),
    "select": (Affine, lambda a, b: a * b.select(1, 2)[:, None]),
    "slice": (Affine, lambda a, b: a[:, 1:5:2]),
    "permute": (Affine, lambda a, b: a.view(-1, 2, 3).permute(0, 2, 1).tanh()),
    "view": (Affine, lambda a, b: a.view(-1, 2, 3).mT.contiguous().view(-1, 6)),
    "reshape_of_strides": (Affine, lambda a, b: a.view(-1, 2, 3).mT.tanh().reshape(-1, 6)),
    "expand": (Affine, lambda a, b: a[:, :1].expand(-1, 6)),
    "unsqueeze": (Affine, lambda a, b: a.unsqueeze(1).squeeze(1)),
    "repeat": (Affine, lambda a, b: a[:, :3].repeat(1, 2)),
    "index": (Affine, lambda a, b: a[:, torch.tensor([0, 2, 2, 5])]),
    "index_select": (Affine, lambda a, b: a.index_select(1, torch.tensor([0, 2, 2, 5]))),
    "gather_in_order": (Affine, lambda a, b: a.gather(1, b.argsort(1))),
    "diagonal": (Affine, lambda a, b: a.view(-1, 2, 3).diagonal(0, 1, 2)),
    "unfold": (Affine, lambda a, b: a.unfold(1, 3, 1)),
    "roll": (Affine, lambda a, b: a.roll(1, 1)),
    "flip": (Affine, lambda a, b: a.flip(1)),
    "pad": (Affine, lambda a, b: F.pad(a, (1, 2))),
    "relu_": (Elementwise, lambda a, b: (a - 0.1).relu_()),
    "silu_": (Elementwise, lambda a, b: F.silu(a, inplace=True)),
    "clamp_": (Elementwise, lambda a, b: a.clamp_(-0.1, 0.3)),
    "add_": (Sum, lambda a, b: a.add_(b)),
    "add_product_": (Sum, lambda a, b: a.add_(b * b)),
    "sub_alpha_": (Sum, lambda a, b: a.sub_(b, alpha=2)),
    "mul_": (Product, lambda a, b: a.mul_(b)),
    "mul_constant_": (Affine, lambda a, b: a.mul_(0.3)),
    "div_": (Nested, lambda a, b: a.div_(1 + b.square())),
    "masked_fill_": (Affine, lambda a, b: a.masked_fill_(KEPT, -2.0)),
    "index_put_": (Nested, lambda a, b: (a.__setitem__(a < 0.1, 0.3), a)[1]),
    "erfcx": (Nested, lambda a, b: torch.special.erfcx(a)),
    "logcumsumexp": (Nested, lambda a, b: a.logcumsumexp(1)),
    "logsumexp": (Nested, lambda a, b: a.logsumexp(1, keepdim=True) * b),
    "logsigmoid": (Nested, lambda a, b: F.logsigmoid(a)),
    "prelu": (Nested, lambda a, b: F.prelu(a, ramp(1, low=0.2))),
    "prod": (Nested, lambda a, b: a.prod(1, keepdim=True) + b),
    "std": (Nested, lambda a, b: a.std(1, keepdim=True) * b),
    "sort": (Nested, lambda a, b: a.sort(1)[0]),
    "topk": (Nested, lambda a, b: a.topk(3, 1)[0]),
    "maximum": (Nested, lambda a, b: torch.maximum(a, b)),
    "lerp": (Nested, lambda a, b: torch.lerp(a, b, a)),
    "addcmul": (Nested, lambda a, b: torch.addcmul(a, a, b, value=0.4)),
}

KERNEL = ramp(4, 4, 3, 3)
# The same of two moving maps [N, 4, 4, 4].
MAPS = {
    "conv2d": (Affine, lambda a, b: F.conv2d(a, KERNEL, SCALES[:4], padding=1)),
    "conv2d_strided_groups": (Affine, lambda a, b: F.conv2d(a, KERNEL[:, :1], stride=2, padding=1, groups=4)),
    "conv_transpose2d": (Affine, lambda a, b: F.conv_transpose2d(a, KERNEL, SCALES[:4])),
    "conv1d": (Affine, lambda a, b: F.conv1d(a.flatten(2), KERNEL[..., 0], padding=1).view_as(a)),
    "max_pool2d": (Affine, lambda a, b: F.max_pool2d(a, 2)),
    "max_pool2d_overlapping": (Affine, lambda a, b: F.max_pool2d(a, 3, 1, 1)),
    "max_pool2d_dilated": (Affine, lambda a, b: F.max_pool2d(a, 2, 1, 0, 2)),
    "max_pool2d_channels_last": (Affine, lambda a, b: F.max_pool2d(a.to(memory_format=torch.channels_last), 2)),
    "max_pool1d": (Affine, lambda a, b: F.max_pool1d(a.flatten(2), 2).view(-1, 4, 2, 4)),
    "avg_pool2d": (Affine, lambda a, b: F.avg_pool2d(a, 2)),
    "avg_pool2d_borders": (Affine, lambda a, b: F.avg_pool2d(a, 3, 1, 1, count_include_pad=False)),
    "adaptive_avg_pool2d": (Affine, lambda a, b: F.adaptive_avg_pool2d(a, 2)),
    "batch_norm": (Affine, lambda a, b: F.batch_norm(a, ramp(4), SCALES[:4], SCALES[2:], ramp(4))),
    "batch_norm_plain": (Affine, lambda a, b: F.batch_norm(a, ramp(4), SCALES[:4])),
    "batch_norm_relu_": (Elementwise, lambda a, b: F.relu(F.batch_norm(a, ramp(4), SCALES[:4]), inplace=True)),
    "group_norm": (Nested, lambda a, b: F.group_norm(a, 2, SCALES[:4], SCALES[2:])),
    "layer_norm_channels": (
        LayerNorm,
        lambda a, b: F.layer_norm(a.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2),
        lambda a, b: layer_norm(a.permute(0, 2, 3, 1), 1).permute(0, 3, 1, 2),
    ),
    "softmax_channels": (Softmax, lambda a, b: (3 * a).softmax(1)),
    "gelu_channels_last": (Elementwise, lambda a, b: F.gelu(a.to(memory_format=torch.channels_last))),
    "gated_by_pooled": (Product, lambda a, b: a * b.mean((2, 3), keepdim=True).sigmoid()),
    "nearest": (Affine, lambda a, b: F.interpolate(a[..., :2, :2], scale_factor=2)),
    "bilinear": (Affine, lambda a, b: F.interpolate(a[..., :3, :3], size=4, mode="bilinear")),
    "bicubic": (Nested, lambda a, b: F.interpolate(a[..., :3, :3], size=4, mode="bicubic")),
    "pixel_shuffle": (Affine, lambda a, b: F.pixel_shuffle(a, 2).view_as(a)),
    "pad": (Affine, lambda a, b: F.pad(a[..., :2, :2], (1, 1, 1, 1))),
    "add_relu_": (Elementwise, lambda a, b: F.relu(a.add_(b), inplace=True)),
}
SINGLE = [*(("vectors", name) for name in VECTORS), *(("maps", name) for name in MAPS)]


class Between(nn.Module):
    """A function of two layers' results with a curved operation before it and behind it.

    So that both ways are seen: its tangent by what comes behind, the adjoint that it passes on by what came before.
    """

    def __init__(self, function, on_maps):
        super().__init__()
        self.function, self.on_maps = function, on_maps
        size = function(*(torch.rand(2, 4, 4, 4, dtype=D) if on_maps else torch.rand(2, 6, dtype=D) for _ in range(2)))
        if on_maps:
            self.first, self.second = (nn.Conv2d(2, 4, 3, padding=1) for _ in range(2))
            self.mid, self.last = nn.Conv2d(size.shape[1], 3, 2), nn.Linear(3, 3)
        else:
            self.first, self.second = nn.Linear(4, 6), nn.Linear(4, 6)
            self.mid, self.last = nn.Linear(size.flatten(1).shape[1], 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.function(F.gelu(self.first(x)), F.gelu(self.second(x)))
        if self.on_maps:
            return self.last(F.silu(self.mid(h)).mean((2, 3)))
        return self.last(F.silu(self.mid(h.flatten(1))))


def problem_of(model, x, seed=1, **arguments):
    """With weights large enough to curve, and the initialisation at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel() if p.dim() > 1 else 4
            p.copy_(1.5 * torch.randn(p.shape, dtype=D, generator=generator) / fan**0.5)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    return Problem(model, init, (x, labels(len(x), 3)), dtype=D, **{"batch_size": 5, **arguments})


def derivatives(model, x, us):
    """The output and its first two derivatives along ``us``, added to the layers' results, by forward mode twice."""

    def outputs(t):
        hooks = [
            model.get_submodule(name.removesuffix(".weight")).register_forward_hook(lambda m, i, out, u=u: out + t * u)
            for name, u in us.items()
        ]
        try:
            with sdpa_kernel(SDPBackend.MATH):  # as in Problem.forward
                return model(x)
        finally:
            for hook in hooks:
                hook.remove()

    zero, one = torch.zeros((), dtype=D), torch.ones((), dtype=D)
    (f, first), (_, second) = jvp(lambda t: jvp(outputs, (t,), (one,)), (zero,), (one,))
    return f.detach(), first.detach(), second.detach()


def inputs_of(on_maps, num=5):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*((num, 2, 4, 4) if on_maps else (num, 4)), dtype=D, generator=generator)


@pytest.mark.parametrize(("kind", "name"), SINGLE)
def test_single_operations(kind, name):
    rule, function, *twin = (MAPS if kind == "maps" else VECTORS)[name]
    model, x = Between(function, kind == "maps").to(D), inputs_of(kind == "maps")
    problem = problem_of(model, x)
    sweep = Sweep(problem, range(5))
    assert rule in {type(step.rule) for step in sweep.steps}
    _, us = own_directions(sweep)
    model.function = twin[0] if twin else function
    for chosen in (us, {"first.weight": us["first.weight"]}):
        f, first, second = derivatives(model, x, chosen)
        p, y = f.softmax(-1), problem.batch(range(5)).targets
        remainder = ((p - F.one_hot(y, 3)) * second).sum(1)
        form = (p * first.square()).sum(1) - (p * first).sum(1).square()
        assert float(remainder.abs().max()) > 1e-4 < float(form.max())
        close(sweep.remainder(chosen), remainder, size=float(form.max()))
        close(sweep.hessian(chosen), remainder + form, size=float(remainder.abs().max()))
    model.function = function
    assert can_sweep(problem)


def test_the_written_out_layer_norm_is_torchs():
    x = inputs_of(False).repeat(1, 6).view(5, 4, 6)
    close(layer_norm(x, 1, SCALES, MIXED[0]), F.layer_norm(x, (6,), SCALES, MIXED[0]), 1e-14)
    close(layer_norm(x, 2), F.layer_norm(x, (4, 6)), 1e-14)


# -- agree, or refuse ---------------------------------------------------------------------------------------------


def _written(function):
    """A function that writes into its arguments and returns nothing, as one of its first argument."""
    return lambda a, b: (function(a, b), a)[1]


def _late(a, b):
    """The input of a ReLU is changed after it; autograd allows it, because it keeps the result."""
    h = a.relu()
    a += h @ MIXED
    return a


# What is easily carried wrong, on the results of two layers: right, or can_sweep must see that it is not.
RISKY = {
    "padded_with_a_number": lambda a, b: F.pad(a, (1, 1), value=2.0),
    "write_into_a_view": _written(lambda a, b: a[:, :3].mul_(0.1)),
    "zero_in_a_view": _written(lambda a, b: a[:, 0].zero_()),
    "rows_of_another": _written(lambda a, b: a[:, :3].copy_(b[:, 3:])),
    "view_of_what_is_written": lambda a, b: ((v := a[:, :3]), a.mul_(0.1), v)[2],
    "input_changed_later": _late,
    "constant_buffer": lambda a, b: torch.zeros_like(a.detach()).add_(a * b),
    "slices_of_a_buffer": lambda a, b: ((z := torch.zeros(len(a), 6, dtype=D)).__setitem__(slice(None), a), z)[1],
    "power_in_place": lambda a, b: a.pow_(2),
    "filled": lambda a, b: a.fill_(1.0) * b,
    "overwritten": lambda a, b: a.copy_(b),
    "partly_detached": lambda a, b: a - 0.7 * a.detach(),
    "straight_through": lambda a, b: a + (a.round() - a).detach(),
    "complex_numbers": lambda a, b: torch.fft.rfft(a).real,
    "wider_exponent": lambda a, b: (1 + a[:, :1].square()).pow(SCALES),
    "wider_bound": lambda a, b: a[:, :1].clamp(min=ramp(6, low=-0.5, high=0.5)),
    "instance_norm": lambda a, b: F.instance_norm(a.view(-1, 2, 3)),
    "layer_norm_by_weights": lambda a, b: torch.cat(
        [F.layer_norm(x, (6,), y)[None] for x, y in zip(a, b, strict=True)]
    ),
    "glu": lambda a, b: F.glu(a),
    "position_first": lambda a, b: (a.view(-1, 3, 2).transpose(0, 1).contiguous() ** 2).transpose(0, 1),
    "one_by_one": lambda a, b: torch.stack([torch.dot(x, y) for x, y in zip(a, b, strict=True)])[:, None],
    "cosine": lambda a, b: F.cosine_similarity(a, b)[:, None] * b,
    "solve": lambda a, b: torch.linalg.solve(a[:, :4].view(-1, 2, 2) + 3 * torch.eye(2, dtype=D), b.view(-1, 2, 3)),
}


def around(function, activation):
    def run(net, x):
        return net.last(activation(net.mid(function(net.first(x), net.second(x)).flatten(1))))

    size = function(torch.rand(2, 6, dtype=D), torch.rand(2, 6, dtype=D)).flatten(1).shape[1]
    return Apply(run, first=nn.Linear(4, 6), second=nn.Linear(4, 6), mid=nn.Linear(size, 5), last=nn.Linear(5, 3)).to(D)


def agrees(problem, positions):
    """Whether remainder and Hessian are those of the double backward pass, along a direction in all layers."""
    tape, sweep = problem.tape(positions), Sweep(problem, positions)
    _, us = own_directions(sweep)
    us = {layer: u for layer, u in us.items() if tape.uses[layer]}
    expected = [double_backward(tape, us, part) for part in ("remainder", "hessian")]
    size = max(float(e.abs().max()) for e in expected)
    assert size > 1e-3
    found = sweep.remainder(us), sweep.hessian(us)
    return all(float((f - e).abs().max()) <= 1e-9 * size for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("activation", [F.silu, F.relu], ids=["curved", "piecewise"])
@pytest.mark.parametrize("name", RISKY)
def test_agrees_or_is_refused(name, activation):
    """Where no layer is curved, a wrong tangent still spoils the Gauss-Newton part of the Hessian."""
    problem = problem_of(around(RISKY[name], activation), inputs_of(False))
    assert not can_sweep(problem) or agrees(problem, range(5))


def test_agrees_or_is_refused_where_the_first_samples_have_no_gradient():
    """0 agrees with 0: the trial must not depend on the loss."""
    model, x = around(RISKY["padded_with_a_number"], F.silu), inputs_of(False, 10)
    problem_of(model, x)  # its weights
    scores = model(x).detach()
    y = torch.cat([scores[:5].argmin(1), scores[5:].argmax(1)])
    losses = F.cross_entropy(scores, y, reduction="none")
    assert losses[:5].min() > losses[5:].max()
    clip = f"clip:{float(losses[:5].min() + losses[5:].max()) / 2}"
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    problem = Problem(model, init, (x, y), dtype=D, batch_size=5, loss_range=clip)
    assert not can_sweep(problem) or agrees(problem, range(5, 10))


@pytest.mark.parametrize(
    ("name", "said"),
    [("twice", "same.weight acts more than once"), ("siamese", "twin.weight acts more than once")],
)
def test_a_refusal_says_why(name, said, problems):
    with pytest.raises(Unsupported, match=said):
        Sweep(problems(name), [0, 1])


def test_writing_into_a_constant_is_refused():
    problem = problem_of(around(RISKY["slices_of_a_buffer"], F.silu), inputs_of(False))
    with pytest.raises(Unsupported, match="copy_ writes into its arguments"):
        Sweep(problem, [0, 1])


# -- traces -------------------------------------------------------------------------------------------------------

DRAWS = 400
PROBED = ["mlp_gelu", "conv_silu", "gpt_conv1d", "softmax_gate", "tokens"]


def drawn(problem, positions, function):
    """``[draws, ...]`` of one sweep."""
    sweep, names = Sweep(problem, positions), [layer.name for layer in problem.layers]
    return torch.stack([
        function(sweep, names, [row_of("test", p, draw, DRAWS) for p in positions], 0) for draw in range(DRAWS)
    ])  # fmt: skip


def within_error(draws, expected, errors=4.5):
    """Of the mean over the first axis; exact where the draws do not spread."""
    sem = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= errors * sem + 1e-10 * (1 + expected.abs())).all()
    return sem


@pytest.mark.parametrize("name", PROBED)
def test_traces_are_unbiased(name, problems):
    problem, positions = problems(name), [0, 2, 3]
    tape = problem.tape(positions)
    expected = dense_remainder_trace(tape)
    separate = drawn(problem, positions, separate_traces)
    sem = within_error(separate, expected)
    within_error(drawn(problem, positions, joint_trace), expected.sum(1))
    for i, layer in enumerate(tape.layers):
        assert bool(expected[:, i].any()) == (layer not in tape.piecewise_linear) == bool(separate[..., i].any())
    if name == "mlp_gelu":  # signs on one position in front of a function of single entries: the block is diagonal
        assert float(sem[:, 1].max()) < 1e-12
    assert float((expected.abs() - 9 * sem).max()) > 0  # the errors are small enough to notice a factor of 2


def test_separate_draws_have_no_cross_layer_noise(problems):
    """A layer's draw does not know of the others, and is exactly 0 where the output is piecewise linear in it."""
    problem, positions = problems("mlp_gelu"), [0, 1, 4]
    sweep, names = Sweep(problem, positions), [layer.name for layer in problem.layers]
    rows = [row_of("test", p, 5, 16) for p in positions]
    together, joint = separate_traces(sweep, names, rows, 3), sweep.remainder(sweep_directions(sweep, names, rows, 3))
    for i, layer in enumerate(names):
        alone = separate_traces(sweep, [layer], rows, 3)
        assert torch.equal(alone[:, 0], together[:, i])
        assert torch.equal(joint_trace(sweep, [layer], rows, 3), together[:, i])
    assert together[:, :2].all() and not together[:, 2].any()
    assert float((joint - together.sum(1)).abs().max()) > 1e-3  # the joint draw holds the cross-layer terms


def test_directions_are_those_of_the_tape(problems):
    """Both routes draw the same numbers for the same rows, so that they may be mixed in one estimate."""
    problem, positions = problems("mlp_gelu"), [0, 3]
    tape, sweep = problem.tape(positions), Sweep(problem, positions)
    rows = [row_of("test", p, 0, 4) for p in positions]
    layers = {name: (tape.weights[name].shape, tape.uses[name]) for name in tape.layers}
    expected = probe_directions(layers, rows, 0, tape.outputs.detach())
    for name, u in sweep_directions(sweep, tape.layers, rows, 0).items():
        close(u, expected[name][0], 1e-14)


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "gpt_conv1d", "conv_transposed"])
def test_directions_have_the_covariance_of_independent_weights(name, problems):
    """E[u u'] = A A' for a layer's map A from weights to its result, whichever way the directions are drawn."""
    problem, position = problems(name), 1
    sweep = Sweep(problem, [position] * BLOCK)
    layer = problem.layers[1].name
    draws = torch.cat([
        sweep_directions(sweep, [layer], [row_of("test", position, d, 2000) for d in range(s, s + BLOCK)], 0)[layer]
        .view(BLOCK, -1)
        for s in range(0, 2000, BLOCK)
    ])  # fmt: skip
    single, shape = Sweep(problem, [position]).uses[layer], problem.params[layer].shape
    units = torch.eye(shape.numel(), dtype=D).view(-1, *shape)
    jacobian = torch.stack([single.perturb(unit).flatten() for unit in units])
    expected = jacobian.T @ jacobian
    spread = (expected.diagonal()[:, None] * expected.diagonal()).sqrt() + 1e-12
    assert float(((draws.T @ draws / len(draws) - expected) / spread).abs().max()) < 6 * (2 / len(draws)) ** 0.5


# -- the random numbers of rows -----------------------------------------------------------------------------------

LIKE = torch.zeros(1, dtype=D)


def test_signs_are_signs():
    rows = [row_of("x", p, d, 64) for p in range(3) for d in range(40)]
    signs = row_signs(rows, 0, "layer", 5, 100, LIKE)
    assert signs.shape == (120, 5, 100) and signs.dtype == D
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4.5 / signs.numel() ** 0.5
    # No row, position or column follows another.
    for axes in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        flat = signs.permute(axes).flatten(1)
        gram = (flat @ flat.T / flat.shape[1]).fill_diagonal_(0)
        assert float(gram.abs().max()) < 6 / flat.shape[1] ** 0.5


@pytest.mark.parametrize("width", [1, 63, 64, 65, 200])
def test_more_positions_only_continue_the_earlier_ones(width):
    rows = [row_of("x", p, 0, 4) for p in (3, 40, 5)]
    longer = row_signs(rows, 0, "layer", 9, width, LIKE)
    assert torch.equal(row_signs(rows, 0, "layer", 4, width, LIKE), longer[:, :4])


@pytest.mark.parametrize("num", [1, BLOCK - 1, BLOCK, 50])
def test_rows_do_not_depend_on_their_company(num):
    """A block drawn whole, its rows alone, out of order, repeated, and mixed with those of other blocks."""
    rows = [row_of("x", p, d, num) for p in range(20) for d in range(min(num, 20))]
    whole = row_signs(rows, 1, "layer", 3, 70, LIKE)
    for i in range(0, len(rows), 7):
        assert torch.equal(row_signs([rows[i]], 1, "layer", 3, 70, LIKE), whole[i : i + 1])
    order = random.Random(0).choices(range(len(rows)), k=30)
    assert torch.equal(row_signs([rows[i] for i in order], 1, "layer", 3, 70, LIKE), whole[order])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == len(rows) == len(set(rows))


def test_other_names_seeds_and_keys_give_other_signs():
    drawn = [
        row_signs([row_of(kind, position, draw, num)], seed, name, 2, 64, LIKE).flatten()
        for kind, position, draw, num, seed, name in [
            ("x", 0, 0, 4, 0, "a"), ("y", 0, 0, 4, 0, "a"), ("x", 1, 0, 4, 0, "a"), ("x", BLOCK, 0, 4, 0, "a"),
            ("x", 0, 1, 4, 0, "a"), ("x", 0, 0, BLOCK, 0, "a"), ("x", 0, BLOCK, 2 * BLOCK, 0, "a"),
            ("x", 0, 0, 4, 1, "a"), ("x", 0, 0, 4, 0, "b"),
        ]
    ]  # fmt: skip
    gram = torch.stack(drawn) @ torch.stack(drawn).T / 128
    assert float(gram.fill_diagonal_(0).abs().max()) < 0.5


def test_rows_are_grouped_by_their_stream():
    """Few draws: a sample's 16 neighbours share one; many: 16 draws of one sample. Rows keep their places."""
    few = [row_of("x", p, 2, BLOCK - 1) for p in (15, 16, 0)]
    assert few == [(("x", 0, 2), 15), (("x", 1, 2), 0), (("x", 0, 2), 0)]
    assert grouped(few) == {("x", 0, 2): ([0, 2], [15, 0]), ("x", 1, 2): ([1], [0])}
    many = [row_of("x", 7, d, BLOCK) for d in (0, 15)] + [row_of("x", 7, 16, 40)]
    assert many == [(("x", "many", 7, 0), 0), (("x", "many", 7, 0), 15), (("x", "many", 7, 1), 0)]


# -- rows and disturbance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "conv_transposed", "encoder", "time_first", "tokens"])
def test_samples_of_a_batch_do_not_meet(name, problems):
    """Copies of a sample give the same along the same direction, and samples alone what they give together."""
    problem, positions = problems(name), [2, 0, 2, 1, 2]
    sweep = Sweep(problem, positions)
    weights, _ = own_directions(sweep)
    for v in weights.values():
        v[2] = v[0]  # the last copy keeps a direction of its own
    us = {layer: sweep.uses[layer].perturb(v) for layer, v in weights.items()}
    for part in (Sweep.remainder, Sweep.hessian):
        together = part(sweep, us)
        close(together[2], together[0], 1e-12)
        assert abs(float(together[4] - together[0])) > 1e-6
        for i, position in enumerate(positions):
            alone = Sweep(problem, [position])
            found = part(alone, {layer: alone.uses[layer].perturb(v[i : i + 1]) for layer, v in weights.items()})
            close(found[0], together[i], 1e-10, size=float(together.abs().max()))


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "encoder", "tokens"])
def test_draws_do_not_depend_on_which_samples_share_a_pass(name, problems):
    problem, positions = problems(name), [1, 3, 3, 0]
    names = [layer.name for layer in problem.layers]
    rows = [row_of("test", p, d, 4) for p, d in zip(positions, (0, 0, 1, 0), strict=True)]
    together = separate_traces(Sweep(problem, positions), names, rows, 0)
    assert name == "tokens" or not torch.equal(together[1], together[2])  # that one's blocks are diagonal
    for i, position in enumerate(positions):
        alone = separate_traces(Sweep(problem, [position]), names, rows[i : i + 1], 0)
        close(alone[0], together[i], 1e-10, size=float(together.abs().max()))


@pytest.mark.parametrize("name", ["conv_silu", "encoder", "twice"])
def test_nothing_is_disturbed(name):
    """Weights, gradients, flags, modes and the global random numbers; also by a refusal."""
    model, init, inputs, targets = CASES[name].parts()
    model.train()
    next(model.modules()).training = False  # a mixture of modes, as a user may have left them
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 != 0)
        p.grad = torch.full_like(p, 0.5) if i % 2 else None
    data = {"labels": targets, **inputs} if isinstance(inputs, dict) else (inputs, targets)
    problem = Problem(model, init, data, batch_size=3, dtype=D)

    def everything():
        kept = {**problem.params, **problem.buffers}
        return (
            *state(model), {n: t.clone() for n, t in kept.items()}, [t.requires_grad for t in kept.values()],
            torch.backends.mha.get_fastpath_enabled(), torch.utils._python_dispatch._get_current_dispatch_mode(),
        )  # fmt: skip

    before = everything()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            if name == "twice":
                with pytest.raises(Unsupported):
                    Sweep(problem, [0, 1])
                assert torch.is_grad_enabled() == enabled
                continue
            sweep = Sweep(problem, [0, 1, 1])
            assert torch.is_grad_enabled() == enabled
            _, us = own_directions(sweep)
            found = sweep.hessian(us), sweep.remainder(us)
            names = [layer.name for layer in problem.layers]
            rows = [row_of("test", p, d, 4) for p, d in ((0, 0), (1, 0), (1, 1))]
            found += (joint_trace(sweep, names, rows, 0), separate_traces(sweep, names, rows, 0))
            assert not any(f.requires_grad for f in found) and not sweep.outputs.requires_grad
            again = sweep.hessian(us), sweep.remainder(us)
            assert same(found[:2], again)  # nor is the sweep itself used up
    assert can_sweep(problem) == (name != "twice")
    assert same(before, everything())
