"""The table of the operations that torch executes: what each is, under the names that it has on every level.

Whoever reads a pass asks here and nowhere else: the block (:mod:`genbound.network.graph`), the layers, the structure,
the rules of the sweep, the observer of activations, and the sums over paths. An operation that a reader cannot answer
for has the reason in its row; one that is not in the table is :data:`UNKNOWN` to all of them. The table in words:
docs/operations.md.
"""

from __future__ import annotations

import re
from typing import Any

from torch.autograd.graph import Node

from genbound.network.operation import Kind, No, Operation

JUMPS = No("it jumps")
GROWS = No("its slope has no limit")
GATE = No("a product of two parts that depend on the input is not globally Lipschitz")
NOT_RECOGNISED = No("it applies a matrix, which counts where it is recognised as a layer")
UNMEASURED = No("no constant has been worked out for it")
CURVED = No("it is curved")
ORDER = No("what it hands on depends on an order that is not that of the sums")
SHIFTED = No("it shifts what it is given, and paths have no edge for that")
NEGATIVE = No("some of its fixed weights are negative")


def _row(kind: Kind, name: str, nodes: str, aten: str, functions: str, settings: dict, more: dict) -> Operation:
    return Operation(
        name, kind, tuple(nodes.split()), tuple(aten.split()), tuple(functions.split()), **{**settings, **more}
    )


def _route(name: str, nodes: str, aten: str, functions: str = "", **more: Any) -> Operation:
    """Every entry of the operand goes to one place at most, unless told otherwise."""
    return _row(
        Kind.ROUTE, name, nodes, aten, functions, {"lipschitz": (1, 1), "sweep": "moves", "paths": "apply"}, more
    )


def _linear(name: str, nodes: str, aten: str, functions: str = "", **more: Any) -> Operation:
    return _row(Kind.LINEAR, name, nodes, aten, functions, {"sweep": "affine", "paths": "apply"}, more)


def _product(
    name: str, nodes: str, aten: str, functions: str = "", meets: tuple[int, int] = (0, 1), **more: Any
) -> Operation:
    settings = {"meets": meets, "lipschitz": NOT_RECOGNISED, "sweep": "nested", "paths": "matrix"}
    return _row(Kind.PRODUCT, name, nodes, aten, functions, settings, more)


def _bend(name: str, nodes: str, aten: str, functions: str = "", **more: Any) -> Operation:
    """A piecewise linear function of single entries, with slopes of at most 1 unless told otherwise."""
    settings = {"elementwise": True, "lipschitz": (1, 1), "sweep": "bend", "paths": "pass", "label": name}
    return _row(Kind.PIECEWISE, name, nodes, aten, functions, settings, more)


def _choice(name: str, nodes: str, aten: str, functions: str = "", **more: Any) -> Operation:
    """Hands on some of its entries, chosen by their order: no result moves by more than the entry that moves most."""
    return _row(Kind.PIECEWISE, name, nodes, aten, functions, {"lipschitz": "ordered", "paths": "larger"}, more)


def _smooth(name: str, nodes: str, aten: str, functions: str = "", **more: Any) -> Operation:
    """A curved function of single entries."""
    settings = {"elementwise": True, "homogeneous": False, "sweep": "smooth", "paths": CURVED}
    return _row(Kind.CURVED, name, nodes, aten, functions, settings, more)


def _curved(name: str, nodes: str, aten: str, functions: str = "", **more: Any) -> Operation:
    return _row(Kind.CURVED, name, nodes, aten, functions, {"homogeneous": False, "paths": CURVED}, more)


BY_CALL: dict[str, Any] = {"homogeneous": None, "keeps_zero": None}
JOINED = {
    "branches": "a concatenation is counted as a sum",
    "lipschitz": "chosen",
    "sweep": "joined",
    "paths": "join",
    **BY_CALL,
}
EXTREME = {
    "branches": "a maximum or minimum of branches is counted as a sum",
    "elementwise": True,
    "lipschitz": "chosen",
    **BY_CALL,
}
ADDED = {"branches": "", "elementwise": True, "lipschitz": "added", "paths": "add", **BY_CALL}
BY_MASK = {"elementwise": True, "paths": "fill", **BY_CALL}
REPEATED = {"lipschitz": "repeated"}
CLAMP = {"lipschitz": "clamp", **BY_CALL}
ORDERED = {"paths": ORDER}
LIKE_SOFTMAX = {"lipschitz": (0.5, 0.5), "keeps_zero": False, "label": "softmax", "sweep": "softmax"}

OPERATIONS = (
    # -- every entry of the result is an entry of an operand, or a constant ------------------------------------------
    _route("view", "View UnsafeView ReshapeAlias", "view _unsafe_view _reshape_alias", "view reshape flatten unflatten",
           sweep="view"),
    _route("transpose", "T Transpose Permute", "t transpose permute", "t transpose permute movedim"),
    _route("squeeze", "Squeeze Unsqueeze", "squeeze unsqueeze", "squeeze unsqueeze"),
    _route("select", "Select", "select", "select"),
    _route("slice", "Slice", "slice", "narrow"),
    _route("split", "Split SplitWithSizes UnsafeSplit", "split split_with_sizes unsafe_split", "split chunk"),
    _route("unbind", "Unbind", "unbind", "unbind"),
    _route("clone", "Clone Alias", "clone alias lift_fresh", "clone contiguous"),
    # Adaptive average pooling to one place ends in it where the channels lie last.
    _route("as_strided", "AsStrided", "as_strided", "as_strided", lipschitz="restrided", sweep="nested",
           paths="laid_out"),
    _route("to_copy", "ToCopy", "_to_copy", "to", paths="keep"),
    _route("detach", "", "detach", "detach", lipschitz=No("what is detached is not on the graph"), sweep="constant",
           paths="keep"),
    _route("roll", "Roll", "roll", "roll"),
    _route("flip", "Flip Rot90", "flip rot90", "flip rot90"),
    _route("diagonal", "Diagonal", "diagonal", "diagonal"),
    _route("triangle", "Tril Triu", "tril triu", "tril triu"),
    _route("pixel_shuffle", "PixelShuffle PixelUnshuffle ChannelShuffle",
           "pixel_shuffle pixel_unshuffle channel_shuffle", "pixel_shuffle pixel_unshuffle channel_shuffle"),
    _route("expand", "Expand", "expand", "expand expand_as broadcast_to", **REPEATED),
    _route("repeat", "Repeat", "repeat", "repeat tile", **REPEATED),
    _route("nearest", "UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D "
           "UpsampleNearestExact2D UpsampleNearestExact3D", "upsample_nearest1d upsample_nearest2d upsample_nearest3d "
           "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d", "interpolate",
           lipschitz="nearest"),
    _route("mirror_pad",
           "ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D",
           "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
           lipschitz="placed"),
    _route("windows", "Unfold Im2Col", "unfold im2col", "unfold", lipschitz="placed"),
    _route("constant_pad", "ConstantPadNd", "constant_pad_nd", "pad", lipschitz="padded", **BY_CALL, sweep="pad",
           paths="fill"),
    _route("index", "Index", "index", lipschitz="picked"),
    _route("index_select", "IndexSelect", "index_select", "index_select", lipschitz="picked"),
    _route("gather", "Gather", "gather", "gather", lipschitz="picked"),
    _route("embedding", "Embedding", "embedding", "embedding", lipschitz=No("it looks up rows of a weight")),
    _route("masked_fill", "MaskedFill", "masked_fill", "masked_fill", **BY_MASK, lipschitz="filled",
           sweep="masked_fill"),
    _route("where", "Where", "where", "where", **BY_MASK, lipschitz="chosen", sweep="where",
           branches="a choice between branches is counted as a sum"),
    _route("like", "", "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones "
           "new_full new_empty_strided", lipschitz=No("it takes only the size"), sweep="constant",
           paths="constant"),
    _route("cat", "Cat", "cat", "cat concat concatenate hstack vstack", **JOINED),
    _route("stack", "Stack", "stack", "stack", **JOINED),
    # -- affine ------------------------------------------------------------------------------------------------------
    _linear("add", "Add", "add", "add", **ADDED, sweep="sum"),
    _linear("sub", "Sub", "sub", "sub subtract", **ADDED, sweep="sum"),
    _linear("rsub", "Rsub", "rsub", "rsub", **ADDED, sweep="nested"),
    _linear("neg", "Neg", "neg", "neg negative", elementwise=True, lipschitz=(1, 1), sweep="scale", paths="pass"),
    _linear("sum", "Sum", "sum", "sum", lipschitz="total"),
    _linear("mean", "Mean", "mean", "mean", lipschitz="mean"),
    _linear("cumsum", "Cumsum", "cumsum", "cumsum", lipschitz="cumulative_sum"),
    _linear("average_pool", "AvgPool2D AvgPool3D", "avg_pool1d avg_pool2d avg_pool3d",
            "avg_pool1d avg_pool2d avg_pool3d", lipschitz="average_pool"),
    _linear("adaptive_average_pool", "AdaptiveAvgPool2D AdaptiveAvgPool3D", "_adaptive_avg_pool2d _adaptive_avg_pool3d",
            "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", lipschitz="adaptive_average_pool"),
    _linear("linear_upsampling", "UpsampleLinear1D UpsampleBilinear2D UpsampleTrilinear3D",
            "upsample_linear1d upsample_bilinear2d upsample_trilinear3d", "interpolate", lipschitz="interpolated"),
    _linear("bicubic_upsampling", "UpsampleBicubic2D", "upsample_bicubic2d", "interpolate", lipschitz=UNMEASURED,
            sweep="nested", paths=NEGATIVE),
    _linear("fold", "Col2Im", "col2im", "fold", lipschitz="interpolated"),
    # -- products ----------------------------------------------------------------------------------------------------
    _product("mul", "Mul", "mul", "mul multiply", elementwise=True, lipschitz="factor", sweep="product",
             paths="factor"),
    _product("div", "Div", "div", "div divide", meets=(1, 1), elementwise=True, lipschitz="factor", sweep="div",
             paths="factor"),
    _product("mm", "Mm", "mm", "linear matmul mm", sweep="product"),
    _product("bmm", "Bmm", "bmm", "bmm einsum", sweep="product"),
    _product("addmm", "Addmm", "addmm", "linear addmm", meets=(1, 2), sweep="addmm"),
    _product("baddbmm", "Baddbmm", "baddbmm", "baddbmm", meets=(1, 2), sweep="baddbmm"),
    _product("addbmm", "Addbmm", "addbmm", "addbmm", meets=(1, 2), paths=No("it sums over a batch of matrices")),
    _product("mv", "Mv", "mv", "mv"),
    _product("addmv", "Addmv", "addmv", "addmv", meets=(1, 2)),
    _product("dot", "Dot", "dot", "dot"),
    _product("convolution", "Convolution", "convolution", "conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
             "conv_transpose3d convolution", sweep="convolution", paths="convolution"),
    _product("prelu", "PreluKernel", "_prelu_kernel", "prelu", elementwise=True, lipschitz="prelu", label="PReLU",
             paths="pass"),
    _product("batch_norm", "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm",
             "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit_no_training",
             "batch_norm native_batch_norm", lipschitz="batch_norm", **BY_CALL, sweep="batch_norm", paths="batch_norm"),
    # -- piecewise linear --------------------------------------------------------------------------------------------
    _bend("relu", "Relu", "relu", "relu"),
    _bend("leaky_relu", "LeakyRelu", "leaky_relu", "leaky_relu", lipschitz="leaky_relu", label="leakyrelu"),
    _bend("rrelu", "RreluWithNoise", "rrelu_with_noise", "rrelu", lipschitz="rrelu",
          sweep=No("it writes into one of its arguments")),
    _bend("threshold", "Threshold", "threshold", "threshold", lipschitz="threshold", **BY_CALL),
    _bend("hardtanh", "Hardtanh", "hardtanh", "hardtanh relu6", **CLAMP),
    _bend("clamp", "Clamp", "clamp", "clamp clip", **CLAMP),
    _bend("clamp_min", "ClampMin", "clamp_min", "clamp_min", **CLAMP, label="clampmin"),
    _bend("clamp_max", "ClampMax", "clamp_max", "clamp_max", **CLAMP, label="clampmax"),
    _bend("abs", "Abs", "abs", "abs absolute"),
    _bend("hardsigmoid", "Hardsigmoid", "hardsigmoid", "hardsigmoid", lipschitz=(1 / 6, 1 / 6), homogeneous=False,
          keeps_zero=False, paths=SHIFTED),
    _bend("softshrink", "Softshrink", "softshrink", "softshrink", homogeneous=False, paths=SHIFTED),
    _bend("hardshrink", "Hardshrink", "hardshrink", "hardshrink", lipschitz=JUMPS, homogeneous=False),
    _bend("rounding", "Sign Round Floor Ceil Trunc", "sign round floor ceil trunc", "sign round floor ceil trunc",
          lipschitz=JUMPS, homogeneous=False, label="", paths=JUMPS),
    _choice("maximum", "Maximum Fmax", "maximum fmax", "maximum", **EXTREME),
    _choice("minimum", "Minimum Fmin", "minimum fmin", "minimum", **EXTREME),
    _choice("amax", "Amax", "amax", "amax", label="amax"),
    _choice("amin", "Amin", "amin", "amin", label="amin"),
    _choice("max", "Max", "max", "max", label="max"),
    _choice("min", "Min", "min", "min", label="min"),
    _choice("sort", "Sort", "sort", "sort", **ORDERED),
    _choice("topk", "Topk", "topk", "topk", **ORDERED),
    _choice("kthvalue", "Kthvalue Median", "kthvalue median", "kthvalue median", **ORDERED),
    _choice("max_pool", "MaxPool2DWithIndices MaxPool3DWithIndices", "max_pool2d_with_indices max_pool3d_with_indices",
            "max_pool1d max_pool2d max_pool3d", lipschitz="max_pool", sweep="max_pool", paths="apply"),
    _choice("adaptive_max_pool", "AdaptiveMaxPool2D AdaptiveMaxPool3D", "adaptive_max_pool2d adaptive_max_pool3d",
            "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", lipschitz="adaptive_max_pool",
            sweep="max_pool", paths="apply"),
    # -- curved, entry by entry --------------------------------------------------------------------------------------
    _smooth("tanh", "Tanh", "tanh", "tanh", lipschitz=(1, 1), label="tanh"),
    _smooth("sigmoid", "Sigmoid", "sigmoid", "sigmoid", lipschitz=(0.25, 0.25), keeps_zero=False, label="sigmoid"),
    _smooth("gelu", "Gelu", "gelu", "gelu", lipschitz="gelu", label="GELU"),
    _smooth("silu", "Silu", "silu", "silu", lipschitz="silu", label="SiLU"),
    _smooth("mish", "Mish", "mish", "mish", lipschitz="mish", label="Mish"),
    _smooth("elu", "Elu", "elu", "elu selu", lipschitz="elu", label="ELU"),
    _smooth("celu", "Celu", "celu", "celu", lipschitz="celu", label="CELU"),
    _smooth("softplus", "Softplus", "softplus", "softplus", lipschitz="softplus", keeps_zero=False, label="softplus"),
    _smooth("hardswish", "Hardswish", "hardswish", "hardswish", lipschitz=(1.5, 1.5), label="hardswish"),
    _smooth("log_sigmoid", "LogSigmoid", "log_sigmoid_forward", "log_sigmoid logsigmoid", lipschitz=(1, 1),
            keeps_zero=False, label="logsigmoid", sweep="nested"),
    _smooth("sin", "Sin", "sin", "sin", lipschitz=(1, 1), label="sin"),
    _smooth("cos", "Cos", "cos", "cos", lipschitz=(1, 1), keeps_zero=False, label="cos"),
    _smooth("erf", "Erf", "erf", "erf", lipschitz=(1.1283791670955126,) * 2, label="erf"),
    _smooth("atan", "Atan", "atan", "atan", lipschitz=(1, 1), label="atan"),
    _smooth("asinh", "Asinh", "asinh", "asinh", lipschitz=(1, 1), label="asinh"),
    _smooth("exp", "Exp", "exp", "exp", lipschitz=GROWS, keeps_zero=False),
    _smooth("expm1", "Expm1", "expm1", "expm1", lipschitz=GROWS),
    _smooth("log", "Log Log2", "log log2", "log log2", lipschitz=GROWS, keeps_zero=False),
    _smooth("log1p", "Log1P", "log1p", "log1p", lipschitz=GROWS),
    _smooth("sqrt", "Sqrt", "sqrt", "sqrt", lipschitz=GROWS),
    _smooth("rsqrt", "Rsqrt", "rsqrt", "rsqrt", lipschitz=GROWS, keeps_zero=False),
    _smooth("reciprocal", "Reciprocal", "reciprocal", "reciprocal", lipschitz=GROWS, keeps_zero=False),
    _smooth("pow", "Pow", "pow", "pow square", lipschitz=GROWS, keeps_zero=None),
    # -- curved in several entries -----------------------------------------------------------------------------------
    _curved("softmax", "Softmax", "_softmax softmax", "softmax", **LIKE_SOFTMAX),
    _curved("safe_softmax", "SafeSoftmax", "_safe_softmax", "", **LIKE_SOFTMAX),
    _curved("log_softmax", "LogSoftmax", "_log_softmax", "log_softmax", lipschitz="log_softmax", keeps_zero=False,
            label="logsoftmax"),
    _curved("logsumexp", "Logsumexp", "logsumexp", "logsumexp", lipschitz=(1, 1), keeps_zero=False, label="logsumexp"),
    _curved("vector_norm", "LinalgVectorNorm", "linalg_vector_norm", "norm", lipschitz="vector_norm", homogeneous=True),
    _curved("layer_norm", "NativeLayerNorm", "native_layer_norm", "layer_norm", keeps_zero=False, sweep="layer_norm",
            lipschitz=No("LayerNorm has no useful global Lipschitz constant (only max|γ|/√ε)")),
    _curved("group_norm", "NativeGroupNorm", "native_group_norm", "group_norm", keeps_zero=False,
            lipschitz=No("group normalization has no useful global Lipschitz constant (only max|γ|/√ε)")),
    _curved("glu", "Glu", "glu", "glu", lipschitz=GATE, sweep="glu"),
    _curved("prod", "Prod", "prod", "prod", lipschitz=GATE),
    _curved("spread", "Var Std", "var std", "var std", lipschitz=UNMEASURED),
    _curved("attention", "ScaledDotProductFlashAttention ScaledDotProductFlashAttentionForCpu "
            "ScaledDotProductEfficientAttention ScaledDotProductCudnnAttention", "_scaled_dot_product_flash_attention "
            "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
            "_scaled_dot_product_cudnn_attention", "scaled_dot_product_attention",
            lipschitz=No("softmax attention is not globally Lipschitz")),
)  # fmt: skip

UNKNOWN = Operation("unknown", Kind.CURVED, homogeneous=False, keeps_zero=False)

_BY_NODE = {node: row for row in OPERATIONS for node in row.nodes}
_BY_ATEN = {aten: row for row in OPERATIONS for aten in row.aten}
_BY_FUNCTION = {function: row for row in reversed(OPERATIONS) for function in row.functions}


def named(name: str) -> Operation:
    """The row of that name."""
    return next(row for row in OPERATIONS if row.name == name)


def operation(node: Node) -> str:
    """``AddmmBackward0`` -> ``Addmm``; autograd's name of the executed operation.

    A user's own ``autograd.Function`` is called ``NameBackward`` without a number, and keeps that name: it may be
    called like a built-in operation and be another one.
    """
    return re.sub(r"Backward\d+$", "", node.name()).removeprefix("torch::autograd::")


def of_node(node: Node) -> Operation:
    """The row of an operation in autograd's record."""
    return _BY_NODE.get(operation(node), UNKNOWN)


def of_aten(func: Any) -> Operation:
    """The row of an operation below autograd, or of its packet.

    One that writes into its argument has the row of its twin.
    """
    name = getattr(func, "overloadpacket", func).__name__
    return _BY_ATEN.get(name) or _BY_ATEN.get(name.removesuffix("_"), UNKNOWN)


def of_function(func: Any) -> Operation:
    """The row of a function that a network calls."""
    return _BY_FUNCTION.get(getattr(func, "__name__", "").strip("_"), UNKNOWN)
