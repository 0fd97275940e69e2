r"""The ways a weight acts in a forward pass, each as a linear map from the weight to what the operation returns.

A :class:`Use` knows the operation's result ``z`` by its place in autograd's record, how a perturbation ``V`` of the
weight perturbs ``z`` (:meth:`Use.perturb`), and the adjoint of that map (:meth:`Use.adjoint`). Which operations act in
which way is what :mod:`genbound.network.applied_weights` knows.

A use that is not recognised is a :class:`LeafUse`: the weight itself stands for ``z``. That is always right, and
needs samples one at a time because they all share the weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

from genbound.estimators.gram_root import gram_root


def split_rows(z: Tensor, num: int, samples_first: bool) -> Tensor:
    """``[rows, ...]``, in order sample by sample or position by position, to ``[num, rows / num, ...]``: a view."""
    return z.unflatten(0, (num, -1)) if samples_first else z.unflatten(0, (-1, num)).transpose(0, 1)


def join_rows(z: Tensor, samples_first: bool) -> Tensor:
    """The inverse of :func:`split_rows`: ``[N, T, ...]`` to ``[N T, ...]`` in the order of the operation."""
    return (z if samples_first else z.transpose(0, 1)).flatten(0, 1)


class Use(ABC):
    """A linear map A from a weight to the result z of an operation on N samples.

    Where a perturbation V of the weight has the weight's unit, ``A V`` has that of z.

    Attributes:
        edge: place of z in autograd's record; ``None`` where nothing was recorded.
        kind: of the operation.
        by_sample: every entry of z belongs to one sample, so that samples can share a pass.
    """

    edge: GradientEdge | None
    kind: ClassVar[str]
    by_sample: ClassVar[bool] = True

    @property
    def place(self) -> GradientEdge:
        """:attr:`edge`, of a use that is known to be recorded."""
        if self.edge is None:
            raise ValueError("the pass of this use was not recorded")
        return self.edge

    @abstractmethod
    def perturb(self, v: Tensor) -> Tensor:
        """``A V``, in the shape of z, for ``V [*shape]`` that all samples share or ``V [N, *shape]``."""

    @abstractmethod
    def adjoint(self, q: Tensor) -> Tensor:
        """``A* q`` of every sample, ``[N, *shape]``, for ``q`` in the shape of z."""

    @abstractmethod
    def per_sample(self, z: Tensor) -> Tensor:
        """The entries of every sample, ``[N, entries]``, of a tensor in the shape of z."""

    def squared_norm(self, g: Tensor) -> Tensor:
        """``||A* g||^2`` of every sample, ``[N]``, for ``g`` in the shape of z."""
        return self.adjoint(g).flatten(1).square().sum(1)

    def gram(self, q: Tensor) -> Tensor:
        """``A A* q``, in the shape of z, for ``q`` in the shape of z: with every sample's own weight ``A* q``."""
        return self.perturb(self.adjoint(q))


@dataclass
class LeafUse(Use):
    """The weight itself as the place of perturbation: any operation, one sample at a time (N is 1).

    Attributes:
        shape: of the weight.
    """

    edge: GradientEdge
    shape: tuple[int, ...]
    kind = "weight"
    by_sample = False

    def perturb(self, v: Tensor) -> Tensor:
        return v.reshape(self.shape)

    def adjoint(self, q: Tensor) -> Tensor:
        return q.reshape(1, *self.shape)

    def per_sample(self, z: Tensor) -> Tensor:
        return z.reshape(1, -1)


@dataclass
class LinearUse(Use):
    """``z = x W^T`` on the rows of ``x``, T of them to a sample.

    ``z`` is ``[N T, out]``, or has more axes with as many rows.

    Attributes:
        inputs: ``x`` by samples, ``[N, T, in]``.
        transposed: the weight is stored ``[in, out]``.
        samples_first: order of the rows of z: sample by sample, or position by position as in time-first recurrent and
            attention layers.
    """

    edge: GradientEdge | None
    inputs: Tensor
    transposed: bool
    samples_first: bool
    kind = "linear"
    _root = None

    @property
    def num_positions(self) -> int:
        """T, rows of one sample."""
        return self.inputs.shape[1]

    def _join(self, z: Tensor) -> Tensor:
        return join_rows(z, self.samples_first)

    def per_position(self, z: Tensor) -> Tensor:
        """A tensor in the shape of z as ``[N, T, out]``."""
        return split_rows(z.reshape(-1, z.shape[-1]), len(self.inputs), self.samples_first)

    def per_sample(self, z: Tensor) -> Tensor:
        return self.per_position(z).flatten(1)

    def perturb(self, v: Tensor) -> Tensor:
        return self._join(self.inputs @ (v if self.transposed else v.mT))

    def perturb_low_rank(self, a: Tensor, b: Tensor) -> Tensor:
        """Perturb by the samples' weights ``sum_s b_s a_s^T`` without forming them.

        Args:
            a: ``[N, s, columns]`` of the weight as it is stored.
            b: ``[N, s, rows]`` of it.
        """
        if self.transposed:
            a, b = b, a
        return self._join((self.inputs @ a.mT) @ b)

    def root(self) -> Tensor:
        """``R [N, T, T]`` with ``R R^T = x x^T``, taken once."""
        if self._root is None:
            self._root = gram_root(self.inputs)
        return self._root

    def spread(self, g: Tensor, root: Tensor | None = None) -> Tensor:
        """Perturb by weights of which only the action on the samples' own inputs is drawn.

        That action is ``R g`` with ``R R^T = x x^T``.

        Args:
            g: independent numbers of variance 1, ``[N, T, out]``.
            root: in place of :meth:`root`, ``[N, T, T]``.

        Returns:
            ``[N T, out]``, with the covariance that independent weights of variance 1 give.
        """
        return self._join((self.root() if root is None else root) @ g)

    def variance(self, shape: torch.Size) -> Tensor:
        """Of every entry of z under independent weights of variance 1, in its ``shape``."""
        return self._join(self.inputs.square().sum(-1, keepdim=True)).expand(-1, shape[-1]).reshape(shape)

    def adjoint(self, q: Tensor) -> Tensor:
        q = self.per_position(q)
        return self.inputs.mT @ q if self.transposed else q.mT @ self.inputs

    def squared_norm(self, g: Tensor) -> Tensor:
        """``||sum_t g_t x_t^T||^2`` of every sample, ``[N]``, through whichever of the two products is cheaper."""
        g = self.per_position(g)
        positions, d_in, d_out = self.num_positions, self.inputs.shape[-1], g.shape[-1]
        if positions * (d_in + d_out) < d_in * d_out:
            return ((g @ g.mT) * (self.inputs @ self.inputs.mT)).sum((1, 2))
        return (g.mT @ self.inputs).square().sum((1, 2))

    def gram(self, q: Tensor) -> Tensor:
        if self.num_positions < self.inputs.shape[-1]:
            return self._join((self.inputs @ self.inputs.mT) @ self.per_position(q)).reshape(q.shape)
        return super().gram(q).reshape(q.shape)

    def compressed(self) -> tuple[LinearUse, Tensor]:
        """The same use in an orthonormal basis of each sample's own inputs, and that basis ``[N, in, r]``.

        With fewer positions than inputs, every Krylov vector of the block lives in ``range(x^T)``; there the
        weight has ``out x r`` entries instead of ``out x in``.
        """
        basis, coordinates = torch.linalg.qr(self.inputs.mT.double())
        dtype = self.inputs.dtype
        use = LinearUse(self.edge, coordinates.mT.to(dtype), False, self.samples_first)
        return use, basis.to(dtype)

    def compress_weight(self, v: Tensor, basis: Tensor) -> Tensor:
        """A weight as it is stored, shared or ``[N, *shape]``, in a basis ``[N, in, r]``: ``[N, out, r]``."""
        return (v.mT if self.transposed else v) @ basis


@dataclass
class ConvolutionUse(Use):
    """``z = x * W``: a convolution in one to three dimensions, strided, padded, dilated, grouped or transposed.

    Weights of every sample's own run as one convolution with N times the groups.

    Attributes:
        inputs: ``x``, ``[maps, channels, *spatial]``.
        num: N; the maps are N times as many as those of one sample.
        samples_first: order of the maps: sample by sample, or position by position.
        shape: of the weight, ``[out, in / groups, *kernel]``; transposed: ``[in, out / groups, *kernel]``.
    """

    edge: GradientEdge | None
    inputs: Tensor
    num: int
    samples_first: bool
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    kind = "convolution"

    def _settings(self, copies: int = 1) -> tuple:
        """What a convolution takes beside its tensors; ``copies`` side by side have as many times the groups."""
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups * copies

    def _fold(self, x: Tensor) -> Tensor:
        """``[maps, C, ...]`` to ``[maps / N, N C, ...]``: the samples become groups."""
        return split_rows(x, self.num, self.samples_first).transpose(0, 1).flatten(1, 2)

    def _unfold(self, x: Tensor) -> Tensor:
        return join_rows(x.unflatten(1, (self.num, -1)).transpose(0, 1), self.samples_first)

    def per_sample(self, z: Tensor) -> Tensor:
        return split_rows(z, self.num, self.samples_first).flatten(1)

    def perturb(self, v: Tensor) -> Tensor:
        if v.dim() == len(self.shape):
            return torch.ops.aten.convolution(self.inputs, v, None, *self._settings())
        folded = torch.ops.aten.convolution(
            self._fold(self.inputs), v.flatten(0, 1), None, *self._settings(self.num)
        )  # fmt: skip
        return self._unfold(folded)

    def variance(self, shape: torch.Size) -> Tensor:
        """Of every entry of z under independent weights of variance 1, in its ``shape``."""
        ones = self.inputs.new_ones(self.shape)
        return torch.ops.aten.convolution(self.inputs.square(), ones, None, *self._settings()).reshape(shape)

    def adjoint(self, q: Tensor) -> Tensor:
        # Only the shape of the weight is read.
        weight = torch.empty(1, dtype=q.dtype, device=q.device).expand(self.num * self.shape[0], *self.shape[1:])
        _, grad, _ = torch.ops.aten.convolution_backward(
            self._fold(q).contiguous(), self._fold(self.inputs).contiguous(), weight, None, *self._settings(self.num),
            (False, True, False),
        )  # fmt: skip
        return grad.unflatten(0, (self.num, -1))


@dataclass
class EmbeddingUse(Use):
    """``z = W[index]``: a lookup.

    Attributes:
        indices: numbers of rows of the weight; in one sequence N times as many as those of one sample.
        num: N.
        samples_first: order of that sequence: sample by sample, or position by position.
        shape: of the weight, ``[rows, width]``.
    """

    edge: GradientEdge | None
    indices: Tensor
    num: int
    samples_first: bool
    shape: tuple[int, ...]
    kind = "embedding"

    def _index(self) -> Tensor:
        """The row that every entry of z comes from, ``[N, T, width]``."""
        index = split_rows(self.indices.reshape(-1), self.num, self.samples_first)
        return index.unsqueeze(-1).expand(-1, -1, self.shape[1])

    def per_sample(self, z: Tensor) -> Tensor:
        return split_rows(z.reshape(-1, self.shape[1]), self.num, self.samples_first).flatten(1)

    def perturb(self, v: Tensor) -> Tensor:
        if v.dim() == 2:
            return F.embedding(self.indices, v)
        rows = join_rows(v.gather(1, self._index()), self.samples_first)
        return rows.reshape(*self.indices.shape, self.shape[1])

    def adjoint(self, q: Tensor) -> Tensor:
        index = self._index()
        out = torch.zeros(self.num, *self.shape, dtype=q.dtype, device=q.device)
        return out.scatter_add_(1, index, self.per_sample(q).view(index.shape))
