"""The rule of every single operation, against forward mode twice."""

import pytest
import torch
from cases import D
from sweeping import close, inputs_of, own_directions, problem_of
from torch import nn
from torch.func import jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from genbound.curvature.rules import Affine, Elementwise, Joined, LayerNorm, Nested, Product, Softmax, Sum
from genbound.curvature.sweep import Sweep
from genbound.curvature.sweep_trial import can_sweep


def ramp(*shape, low=-1.0, high=1.0):
    return torch.linspace(low, high, max(1, torch.Size(shape).numel()), dtype=D).view(shape)


SCALES, MIXED, KEPT = ramp(6, low=0.5, high=2), ramp(6, 6), torch.tensor([True, False, False, True, False, True])


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
