r"""The linear maps that weights act by, at the sizes that a forward pass used, and their exact norms.

A :class:`Matrix` is applied to every row of its input, a :class:`Convolution` to maps of one size; both know their
adjoint. Neither assembles the matrix of a convolution. Row sums of the unrolled operator are one product with a vector
of ones (with :math:`|K|` for the sup norm, :math:`K^2` for squared row norms), so that positions at the border count
the taps that see real entries and no others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genbound.network.weight_uses import ConvolutionUse, LinearUse, Use


@dataclass(frozen=True)
class Matrix:
    """``x -> W x`` on each of ``copies`` rows of a sample.

    Attributes:
        weight: ``[out, in]``.
        copies: rows of one sample (tokens); the operator on all of them is block diagonal.
    """

    weight: Tensor
    copies: int = 1
    kind = "linear"
    transposed = False
    groups = 1

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Of one row: ``(in,)``."""
        return (self.weight.shape[1],)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of one row: ``(out,)``."""
        return (self.weight.shape[0],)

    @property
    def blocks(self) -> Tensor:
        """The diagonal blocks of the operator, ``[1, out, in]``."""
        return self.weight.unsqueeze(0)

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.weight.device

    def with_weight(self, weight: Tensor) -> Matrix:
        """The same map with another weight, ``[out, in]``."""
        return replace(self, weight=weight)

    def scale_outputs(self, scale: Tensor) -> Matrix:
        """The map whose outputs are multiplied by ``scale [out]``."""
        return replace(self, weight=self.weight * scale.unsqueeze(1))

    def output_rows(self) -> Tensor:
        """``[out, …]``: the weights of each output channel."""
        return self.weight

    def apply(self, x: Tensor) -> Tensor:
        """``W x`` for ``x [..., in]``: ``[..., out]``."""
        return x @ self.weight.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """``W^T y`` for ``y [..., out]``: ``[..., in]``."""
        return y @ self.weight

    def describe(self) -> dict[str, float | int]:
        """Sizes for ``layer_norms``, those of all copies together where they are of a whole sample."""
        out, d_in = self.weight.shape
        return {
            "in_channels": d_in, "out_channels": out, "kernel_side": 1, "kernel_taps": 1, "groups": 1, "stride": 1,
            "input_size": d_in * self.copies, "output_size": out * self.copies, "input_resolution": 1,
            "input_positions": 1, "output_positions": self.copies, "frequencies": 1,
        }  # fmt: skip


@dataclass(frozen=True)
class Convolution:
    """A convolution on maps of one size, zero padded; strided, dilated, grouped or transposed.

    Attributes:
        weight: ``[out, in / groups, *kernel]``; transposed: ``[in, out / groups, *kernel]``.
        in_shape: ``(channels, *spatial)`` of its input.
        copies: maps of one sample.
    """

    weight: Tensor
    in_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    copies: int = 1
    kind = "convolution"

    def _settings(self) -> tuple:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.weight.device

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sides of the kernel."""
        return tuple(self.weight.shape[2:])

    @property
    def out_shape(self) -> tuple[int, ...]:
        """``(channels, *spatial)`` of its output."""
        return tuple(self.apply(self.weight.new_zeros(1, *self.in_shape)).shape[1:])

    @property
    def blocks(self) -> Tensor | None:
        """A 1x1 convolution is its matrix at every position that it reads."""
        if math.prod(self.kernel) > 1 or any(self.padding) or any(self.output_padding):
            return None
        return self._by_group().flatten(2)

    def _by_group(self) -> Tensor:
        """``[groups, out / groups, in / groups, *kernel]``."""
        if self.transposed:
            return self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return self.weight.unflatten(0, (self.groups, -1))

    def with_weight(self, weight: Tensor) -> Convolution:
        """The same map with another weight, of the same shape."""
        return replace(self, weight=weight)

    def scale_outputs(self, scale: Tensor) -> Convolution:
        """The map whose output channels are multiplied by ``scale [out]``."""
        if not self.transposed:
            return replace(self, weight=self.weight * scale.view(-1, *[1] * (self.weight.dim() - 1)))
        by_group = self.weight.unflatten(0, (self.groups, -1))
        scale = scale.view(self.groups, 1, -1, *[1] * (self.weight.dim() - 2))
        return replace(self, weight=(by_group * scale).flatten(0, 1))

    def output_rows(self) -> Tensor:
        """``[out, …]``: the weights of each output channel."""
        return self._by_group().flatten(0, 1)

    def apply(self, x: Tensor) -> Tensor:
        """The output ``[N, *out_shape]`` of ``x [N, *in_shape]``."""
        return torch.ops.aten.convolution(x, self.weight, None, *self._settings())

    def adjoint(self, y: Tensor) -> Tensor:
        """``[N, *in_shape]`` for ``y [N, *out_shape]``."""
        # Only the shape of the input is read.
        like = torch.empty(1, dtype=y.dtype, device=y.device).expand(len(y), *self.in_shape)
        return torch.ops.aten.convolution_backward(
            y.contiguous(), like, self.weight, None, *self._settings(), (True, False, False)
        )[0]

    def describe(self) -> dict[str, float | int]:
        """Sizes for ``layer_norms``, those of all copies together where they are of a whole sample."""
        out = self.out_shape
        return {
            "in_channels": self.in_shape[0],
            "out_channels": out[0],
            "kernel_side": _geometric_mean(self.kernel),
            "kernel_taps": math.prod(self.kernel),
            "groups": self.groups,
            "stride": _geometric_mean(self.stride),
            "input_size": math.prod(self.in_shape) * self.copies,
            "output_size": math.prod(out) * self.copies,
            "input_resolution": _geometric_mean(self.in_shape[1:]),
            "input_positions": math.prod(self.in_shape[1:]),
            "output_positions": math.prod(out[1:]) * self.copies,
            "frequencies": self._frequencies(),
        }

    def _frequencies(self) -> int:
        """Of the smallest circular convolution that this one, or its adjoint if it is transposed, is a part of."""
        sides = self.out_shape[1:] if self.transposed else self.in_shape[1:]
        return math.prod(n + d * (k - 1) for n, d, k in zip(sides, self.dilation, self.kernel, strict=True))


Operator = Matrix | Convolution


def _geometric_mean(sides: tuple[int, ...]) -> float | int:
    """The side itself where all are equal."""
    return int(sides[0]) if len(set(sides)) == 1 else math.prod(sides) ** (1 / len(sides))


def as_operator(use: Use | None, weight: Tensor) -> Operator:
    """The map of one recorded use of one sample, in float64; the stored matrix where the use is not recognised."""
    weight = weight.detach().double()
    if isinstance(use, LinearUse):
        return Matrix(weight.mT if use.transposed else weight, math.prod(use.inputs.shape[:-1]))
    if isinstance(use, ConvolutionUse):
        return Convolution(
            weight, tuple(use.inputs.shape[1:]), tuple(use.stride), tuple(use.padding), tuple(use.dilation),
            use.transposed, tuple(use.output_padding), use.groups, len(use.inputs),
        )  # fmt: skip
    return Matrix(weight.flatten(1))


def exact_norms(operator: Operator, bias: Tensor | None = None) -> dict[str, float]:
    r"""The norms of one operator that have a formula.

    Args:
        operator: the map; its matrix M (all copies unrolled) has a row for every output coordinate.
        bias: ``[out]``, for ``mars_with_bias``.

    Returns:
        ``frobenius`` and ``l1`` (:math:`\sum|K|`) of the stored weights, ``kernel_two_one``
        :math:`= \sum_o \|K_o\|_2` over the output channels; of M: ``operator_frobenius``, ``mars``
        :math:`= \|M\|_\infty = \max_r \sum_c |M_{rc}|`, ``mars_with_bias`` (the bias as one more column), ``two_one``
        :math:`= \sum_r \|M_r\|_2`.

    Cost: two products.
    """
    weight, ones = operator.weight, torch.ones(1, *operator.in_shape, dtype=torch.float64, device=operator.device)
    sums = operator.with_weight(weight.abs()).apply(ones)[0].flatten(1) if operator.kind == "convolution" else None
    if sums is None:
        sums, squares = weight.abs().sum(1, keepdim=True), weight.square().sum(1, keepdim=True)
    else:
        squares = operator.with_weight(weight.square()).apply(ones)[0].flatten(1).clamp(min=0)
    shift = 0.0 if bias is None else bias.abs().unsqueeze(1)
    return {
        "frobenius": float(weight.norm()),
        "operator_frobenius": float(operator.copies * squares.sum()) ** 0.5,
        "mars": float(sums.max()),
        "mars_with_bias": float((sums + shift).max()),
        "two_one": float(operator.copies * squares.sqrt().sum()),
        "kernel_two_one": float(operator.output_rows().flatten(1).norm(dim=1).sum()),
        "l1": float(weight.abs().sum()),
    }
