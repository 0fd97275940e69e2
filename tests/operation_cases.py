"""Tiny uses of every operation of the table, with what is known about them by hand.

A case is a function of ``z [N, *shape]``, a layer's result, that gives ``[N, ...]`` and executes the operation of its
row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

D = torch.float64


def same(z: Tensor) -> Tensor:
    return z


@dataclass(frozen=True)
class Case:
    """A use of an operation.

    Attributes:
        row: name of the operation's row.
        function: from ``z [N, *shape]``.
        shape: of a sample's z.
        sums: what the function makes of sums over paths; the default is the function itself.
        curved: it is curved in z, whatever the row says (both factors depend on z).
        no_constant: words of the reason why there is no Lipschitz constant, where the row has a way to one.
        no_paths: words of the reason why there is no path norm, where the row has a way.
        cautious: the structure does not see that it is homogeneous or keeps zero.
        aside: something else happens beside the operation, which readers of single operations would see as well.
        unswept: no sweep, because its gradient vanishes or samples are handled one by one.
        unmoved: no noise by row either: where the gradient vanishes, nothing tells which rows belong to a sample.
        twin: the same function in operations that torch differentiates twice.
        tolerance: of derivatives.
    """

    row: str
    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...] = (6,)
    sums: Callable[[Tensor], Tensor] | None = None
    curved: bool = False
    no_constant: str = ""
    no_paths: str = ""
    cautious: bool = False
    aside: bool = False
    unswept: bool = False
    unmoved: bool = False
    twin: Callable[[Tensor], Tensor] | None = None
    tolerance: float = 1e-10


def ramp(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    return torch.linspace(low, high, torch.Size(shape).numel(), dtype=D).view(shape)


SCALES, MIXED, LINE = ramp(6, low=0.5, high=2), ramp(6, 6), (2, 6)
KEPT = torch.tensor([True, False, False, True, False, True])
FEW, MAP, BLOCK = torch.tensor([0, 2, 2, 5]), (2, 4, 4), (1, 2, 2, 4)
KERNEL, BIAS = ramp(3, 2, 2), ramp(3)
MEAN, VARIANCE = ramp(6), ramp(6, low=0.3, high=1)


def halves(z: Tensor) -> tuple[Tensor, Tensor]:
    return z[:, :3], z[:, 3:]


def normalised(z: Tensor) -> Tensor:
    return F.batch_norm(z, MEAN, VARIANCE, SCALES, MEAN, eps=0.1)


def normalised_sums(z: Tensor, times: int = 1) -> Tensor:
    """As one layer: ``z * scale**times + shift`` with both squared."""
    scale, shift = SCALES / (VARIANCE + 0.1).sqrt(), 0.0
    for _ in range(times):
        z, shift = z * scale**2, (shift - MEAN) * scale + MEAN
    return z + shift**2


def matrices(z: Tensor) -> Tensor:
    return z.view(-1, 2, 3)


OFF_GRAPH = {"no_constant": "off its graph", "aside": True}  # something is made from z behind autograd's back
MEETS = {"curved": True, "no_constant": "product of two parts", "no_paths": "curved"}

CASES = [
    # -- routes ------------------------------------------------------------------------------------------------------
    Case("view", lambda z: z.view(-1, 2, 3)),
    Case("view", lambda z: z.view(-1, 2, 3).mT.reshape(-1, 6)),
    Case("transpose", lambda z: matrices(z).mT),
    Case("transpose", lambda z: matrices(z).permute(0, 2, 1)),
    Case("squeeze", lambda z: z.unsqueeze(1).squeeze(1)),
    Case("select", lambda z: z.select(1, 2)[:, None]),
    Case("slice", lambda z: z[:, 1:5:2]),
    Case("split", lambda z: torch.cat(z.chunk(2, 1)[::-1], 1)),
    Case("split", lambda z: z.split([2, 4], 1)[1]),
    Case("split", lambda z: torch.cat(torch.unsafe_split(z, 4, 1), 1)),
    Case("unbind", lambda z: torch.stack(z.unbind(1)[::-1], 1)),
    Case("clone", lambda z: z.clone()),
    Case("to_copy", lambda z: torch.ops.aten._to_copy(z)),
    Case("roll", lambda z: z.roll(1, 1)),
    Case("as_strided", lambda z: z.as_strided(z.shape, z.stride())),
    Case("as_strided", lambda z: z.as_strided((len(z), 3), (6, 2)), no_paths="how entries lie in memory"),
    Case("as_strided", lambda z: z.as_strided((len(z), 2, 2), (4, 1, 2)), (4,), no_paths="how entries lie in memory"),
    Case("as_strided", lambda z: z.as_strided((len(z), 3, 2), (4, 1, 1)), (4,), no_paths="how entries lie in memory"),
    Case("flip", lambda z: z.flip(1)),
    Case("flip", lambda z: matrices(z).rot90(1, (1, 2))),
    Case("diagonal", lambda z: matrices(z).diagonal(0, 1, 2)),
    Case("triangle", lambda z: matrices(z).tril()),
    Case("triangle", lambda z: matrices(z).triu(1)),
    Case("pixel_shuffle", lambda z: F.pixel_shuffle(z.view(-1, 4, 2, 2), 2), (16,)),
    Case("pixel_shuffle", lambda z: F.pixel_unshuffle(z, 2), MAP),
    Case("pixel_shuffle", lambda z: F.channel_shuffle(z.view(-1, 4, 2, 2), 2), (16,)),
    Case("expand", lambda z: z[:, :1].expand(-1, 6)),
    Case("expand", lambda z: z.repeat_interleave(2, 1)),
    Case("repeat", lambda z: z.repeat(1, 3)),
    Case("nearest", lambda z: F.interpolate(z, size=(6, 5)), MAP),
    Case("nearest", lambda z: F.interpolate(z, size=9, mode="nearest-exact"), LINE),
    Case("mirror_pad", lambda z: F.pad(z, (2, 1), mode="reflect"), LINE),
    Case("mirror_pad", lambda z: F.pad(z, (2, 1, 3, 1), mode="replicate"), MAP),
    Case("windows", lambda z: z.unfold(1, 3, 1)),
    Case("windows", lambda z: F.unfold(z, 2, padding=1), MAP),
    Case("constant_pad", lambda z: F.pad(z, (1, 2))),
    Case("constant_pad", lambda z: F.pad(z, (-1, 2), value=0.7), sums=lambda z: F.pad(z, (-1, 2), value=0.49)),
    Case("index", lambda z: z[:, FEW]),
    Case("index", lambda z: z[:, KEPT]),
    Case("index", lambda z: z[torch.arange(len(z))[:, None], z.argsort(1)], **OFF_GRAPH, no_paths="sort"),
    Case("index_select", lambda z: z.index_select(1, FEW)),
    Case("gather", lambda z: z.gather(1, FEW.expand(len(z), 4))),
    Case("gather", lambda z: z.gather(1, z.argsort(1)), **OFF_GRAPH, no_paths="sort"),
    Case("masked_fill", lambda z: z.masked_fill(KEPT, 0.0)),
    Case("masked_fill", lambda z: z.masked_fill(KEPT, -2.0), sums=lambda z: z.masked_fill(KEPT, 4.0)),
    Case("masked_fill", lambda z: z.masked_fill(z > 0.1, 0.0), **OFF_GRAPH, no_paths="gt"),
    Case("masked_fill", lambda z: F.relu(z.masked_fill(KEPT, -torch.inf)), no_paths="not finite", aside=True,
         cautious=True),
    Case("where", lambda z: torch.where(KEPT[:3], *halves(z))),
    Case("where", lambda z: torch.where(KEPT, z, 0.7), sums=lambda z: torch.where(KEPT, z, 0.49)),
    Case("where", lambda z: torch.where(KEPT, 0.0 * SCALES, z[:, :1])),
    Case("where", lambda z: torch.where(z > 0.1, z, 0.0), **OFF_GRAPH, no_paths="gt"),
    Case("where", lambda z: torch.where(z > 0.1, z, 0.5 * z), **OFF_GRAPH, no_paths="gt"),
    Case("cat", lambda z: torch.cat(halves(z)[::-1], 1)),
    Case("cat", lambda z: torch.cat([z, SCALES.expand(len(z), 6)], 1),
         sums=lambda z: torch.cat([z, SCALES[None] ** 2], 1)),
    Case("cat", lambda z: torch.cat([z, 0 * SCALES.expand(len(z), 6)], 1)),
    Case("cat", lambda z: torch.cat([z, 2 * z, SCALES.expand(len(z), 6)], 1),
         sums=lambda z: torch.cat([z, 2 * z, SCALES[None] ** 2], 1), aside=True),
    Case("stack", lambda z: torch.stack(halves(z), 1)),
    # -- affine ------------------------------------------------------------------------------------------------------
    Case("add", lambda z: torch.add(*halves(z))),
    Case("add", lambda z: torch.add(*halves(z), alpha=-2.5), sums=lambda z: z[:, :3] + 2.5 * z[:, 3:]),
    Case("add", lambda z: z + SCALES, sums=lambda z: z + SCALES**2),
    Case("add", lambda z: z[:, :1] + SCALES, sums=lambda z: z[:, :1] + SCALES**2),
    Case("add", lambda z: z[:, :1] + z),
    Case("add", lambda z: torch.add(SCALES, z, alpha=3), sums=lambda z: SCALES**2 + 3 * z),
    Case("add", lambda z: z + z.detach(), **OFF_GRAPH, sums=lambda z: 2 * z, cautious=True),
    Case("add", lambda z: z + 1, sums=lambda z: z + 1),
    Case("sub", lambda z: torch.sub(*halves(z)), sums=lambda z: z[:, :3] + z[:, 3:]),
    Case("sub", lambda z: z - 2.0, sums=lambda z: z + 4),
    Case("rsub", lambda z: 1 - z, sums=lambda z: 1 + z),
    Case("rsub", lambda z: torch.rsub(*halves(z), alpha=2), sums=lambda z: 2 * z[:, :3] + z[:, 3:]),
    Case("rsub", lambda z: torch.rsub(z, 3.0, alpha=2), sums=lambda z: 2 * z + 9),
    Case("neg", lambda z: -z, sums=same),
    Case("sum", lambda z: z.sum(1, keepdim=True)),
    Case("mean", lambda z: matrices(z).mean(2)),
    Case("cumsum", lambda z: z.cumsum(1)),
    Case("cumsum", lambda z: matrices(z).cumsum(-2)),
    Case("average_pool", lambda z: F.avg_pool2d(z, 3, 1, 1), MAP),
    Case("average_pool", lambda z: F.avg_pool3d(z, (1, 2, 2)), BLOCK),
    Case("adaptive_average_pool", lambda z: F.adaptive_avg_pool2d(z, 3), MAP),
    Case("linear_upsampling", lambda z: F.interpolate(z, size=9, mode="linear"), LINE),
    Case("linear_upsampling", lambda z: F.interpolate(z, size=(5, 7), mode="bilinear", align_corners=True), MAP),
    Case("bicubic_upsampling", lambda z: F.interpolate(z, size=(5, 7), mode="bicubic"), MAP),
    Case("fold", lambda z: F.fold(z.view(-1, 4, 6), (3, 4), (2, 2)), (24,)),
    # -- products ----------------------------------------------------------------------------------------------------
    Case("mul", lambda z: z * SCALES, sums=lambda z: z * SCALES**2),
    Case("mul", lambda z: -3 * z, sums=lambda z: 3 * z),
    Case("mul", lambda z: z[:, :1] * SCALES, sums=lambda z: z[:, :1] * SCALES**2),
    Case("mul", lambda z: torch.mul(*halves(z)), **MEETS),
    Case("mul", lambda z: z * (z > 0.1), no_constant="off its graph", no_paths="gt"),
    Case("mul", lambda z: z * z.detach(), no_constant="off its graph", no_paths="both"),
    Case("div", lambda z: z / 3),
    Case("div", lambda z: z / SCALES, sums=lambda z: z / SCALES**2),
    Case("div", lambda z: torch.div(z, 0.3, rounding_mode="floor"), no_constant="jumps", no_paths="rounds",
         unswept=True, unmoved=True),
    Case("div", lambda z: z[:, :3] / (2 + z[:, 3:].abs()), **MEETS, aside=True),
    Case("mm", lambda z: z @ MIXED, sums=lambda z: z @ MIXED**2),
    Case("bmm", lambda z: torch.bmm(matrices(z), MIXED[:3, :2].expand(len(z), 3, 2)),
         sums=lambda z: matrices(z) @ MIXED[:3, :2] ** 2),
    Case("bmm", lambda z: torch.bmm(matrices(z), matrices(z).mT), **MEETS),
    Case("addmm", lambda z: torch.addmm(SCALES, z, MIXED), sums=lambda z: SCALES**2 + z @ MIXED**2),
    Case("addmm", lambda z: torch.addmm(SCALES, z, MIXED, alpha=0.3), no_paths="factor"),
    Case("baddbmm", lambda z: torch.baddbmm(MIXED[:1, :2, None], matrices(z), MIXED[:3, :2].expand(len(z), 3, 2)),
         sums=lambda z: MIXED[:1, :2, None] ** 2 + matrices(z) @ MIXED[:3, :2] ** 2),
    Case("mv", lambda z: torch.mv(z, SCALES)[:, None], sums=lambda z: (z @ SCALES**2)[:, None]),
    Case("addmv", lambda z: torch.addmv(SCALES[:1], z, SCALES)[:, None],
         sums=lambda z: (SCALES[0] ** 2 + z @ SCALES**2)[:, None]),
    Case("dot", lambda z: torch.stack([torch.dot(x, SCALES) for x in z])[:, None],
         sums=lambda z: (z @ SCALES**2)[:, None], unswept=True),
    Case("convolution", lambda z: F.conv1d(z, KERNEL, BIAS), LINE, lambda z: F.conv1d(z, KERNEL**2, BIAS**2)),
    Case("prelu", lambda z: F.prelu(z, torch.tensor([-1.5], dtype=D)), sums=same),
    Case("batch_norm", normalised, sums=normalised_sums),
    Case("batch_norm", lambda z: normalised(F.relu(z)), sums=normalised_sums, aside=True),
    Case("batch_norm", lambda z: normalised(normalised(z)), sums=lambda z: normalised_sums(z, 2)),
    # -- piecewise linear --------------------------------------------------------------------------------------------
    Case("relu", F.relu),
    Case("relu", lambda z: (1 * z).relu_(), aside=True),
    Case("leaky_relu", lambda z: F.leaky_relu(z, -1.7), sums=same),
    Case("rrelu", lambda z: F.rrelu(z, 0.2, 1.4), sums=same, twin=lambda z: F.leaky_relu(z, 0.8), unswept=True),
    Case("threshold", lambda z: F.threshold(z, 0.0, 0.0)),
    Case("threshold", lambda z: F.threshold(1 * z, 0.0, 0.0, inplace=True), aside=True),
    Case("threshold", lambda z: F.threshold(z, -0.4, -0.4), sums=same),
    Case("threshold", lambda z: F.threshold(z, 0.4, 0.4), sums=same),
    Case("threshold", lambda z: F.threshold(z, 0.1, 0.7), sums=same, no_constant="jumps from 0.1 to 0.7"),
    Case("hardtanh", lambda z: F.hardtanh(z, -0.1, 0.3), sums=same),
    Case("hardtanh", F.relu6, sums=same),
    Case("clamp", lambda z: z.clamp(-0.1, 0.3), sums=same),
    Case("clamp", lambda z: z.clamp(min=0)),
    Case("clamp", lambda z: z[:, :1].clamp(max=SCALES), no_paths="cannot run", aside=True),
    Case("clamp_min", lambda z: z.clamp_min(0.1), sums=same),
    Case("clamp_max", lambda z: z.clamp_max(0.1), sums=same),
    Case("abs", torch.abs),
    Case("hardsigmoid", lambda z: F.hardsigmoid(3 * z), aside=True, twin=lambda z: (z / 2 + 0.5).clamp(0, 1),
         tolerance=1e-7),  # torch's own slope is a sixth in single precision
    Case("softshrink", lambda z: F.softshrink(z, 0.3)),
    Case("hardshrink", lambda z: F.hardshrink(z, 0.3), sums=same),
    Case("rounding", lambda z: torch.round(3 * z), aside=True, unswept=True, unmoved=True),
    Case("rounding", torch.sign, unswept=True, unmoved=True),
    Case("maximum", lambda z: torch.maximum(*halves(z))),
    Case("maximum", lambda z: torch.maximum(z, 0 * SCALES)),
    Case("maximum", lambda z: torch.fmax(z, SCALES), sums=lambda z: torch.maximum(z, SCALES**2)),
    Case("minimum", lambda z: torch.minimum(*halves(z)), sums=lambda z: torch.maximum(*halves(z))),
    Case("amax", lambda z: matrices(z).amax(1)),
    Case("amin", lambda z: matrices(z).amin(1), sums=lambda z: matrices(z).amax(1)),
    Case("max", lambda z: matrices(z).max(2)[0]),
    Case("min", lambda z: matrices(z).min(2)[0], sums=lambda z: matrices(z).amax(2)),
    Case("gather", lambda z: z.gather(1, z.max(1, keepdim=True)[1]), **OFF_GRAPH, no_paths="largest"),
    Case("sort", lambda z: z.sort(1)[0]),
    Case("topk", lambda z: z.topk(3, 1)[0]),
    Case("kthvalue", lambda z: z.kthvalue(2, 1, keepdim=True)[0]),
    Case("kthvalue", lambda z: matrices(z).median(2)[0]),
    Case("max_pool", lambda z: F.max_pool2d(z, 3, 1, 1), MAP),
    Case("max_pool", lambda z: F.max_pool2d(z, 2, dilation=2, stride=1), MAP),
    Case("max_pool", lambda z: F.max_pool3d(z, (1, 2, 2)), BLOCK),
    Case("adaptive_max_pool", lambda z: F.adaptive_max_pool2d(z, 3), MAP),
    # -- curved, entry by entry --------------------------------------------------------------------------------------
    Case("tanh", torch.tanh),
    Case("sigmoid", torch.sigmoid),
    Case("gelu", F.gelu),
    Case("gelu", lambda z: F.gelu(z, approximate="tanh")),
    Case("silu", F.silu),
    Case("mish", F.mish),
    Case("elu", lambda z: F.elu(z, 1.6)),
    Case("elu", F.selu),
    Case("celu", lambda z: F.celu(z, 0.5)),
    Case("softplus", F.softplus),
    Case("softplus", lambda z: F.softplus(z, 3.0, 2.0), no_constant="jumps"),
    Case("hardswish", lambda z: F.hardswish(z)),
    Case("log_sigmoid", F.logsigmoid),
    Case("sin", torch.sin),
    Case("cos", torch.cos),
    Case("erf", torch.erf),
    Case("atan", torch.atan),
    Case("asinh", torch.asinh),
    Case("exp", torch.exp),
    Case("expm1", torch.expm1),
    Case("log", lambda z: (z.abs() + 0.5).log(), aside=True),
    Case("log", lambda z: (z.abs() + 0.5).log2(), aside=True),
    Case("log1p", lambda z: z.abs().log1p(), aside=True),
    Case("sqrt", lambda z: (z.abs() + 0.5).sqrt(), aside=True),
    Case("rsqrt", lambda z: (z.abs() + 0.5).rsqrt(), aside=True),
    Case("reciprocal", lambda z: (z.abs() + 0.5).reciprocal(), aside=True),
    Case("pow", lambda z: z**2),
    Case("pow", lambda z: 2.0**z, aside=True),
    # -- curved in several entries -----------------------------------------------------------------------------------
    Case("softmax", lambda z: z.softmax(1)),
    Case("safe_softmax", lambda z: torch._safe_softmax(z, 1)),
    Case("log_softmax", lambda z: matrices(z).log_softmax(1)),
    Case("logsumexp", lambda z: matrices(z).logsumexp(1)),
    Case("vector_norm", lambda z: torch.linalg.vector_norm(matrices(z), dim=1)),
    Case("vector_norm", lambda z: torch.linalg.vector_norm(matrices(z), 1, dim=1), cautious=True),
    Case("vector_norm", lambda z: torch.linalg.vector_norm(matrices(z), 3, dim=1), no_constant="a norm of order 3"),
    Case("layer_norm", lambda z: F.layer_norm(z, (6,), SCALES, MEAN)),
    Case("group_norm", lambda z: F.group_norm(z, 2, SCALES, MEAN)),
    Case("glu", lambda z: F.glu(z, 1)),
    Case("prod", lambda z: matrices(z).prod(2)),
    Case("spread", lambda z: matrices(z).std(2)),
    Case("spread", lambda z: matrices(z).var(2)),
]  # fmt: skip

# Rows that no function of a layer's result executes by itself.
APART = {
    "like": "takes only the size of its operand",
    "detach": "is not on the graph; above it appears beside other operations",
    "embedding": "looks up rows of a weight",
    "addbmm": "adds up over the samples",
    "attention": "a problem runs attention in its plain form",
}
