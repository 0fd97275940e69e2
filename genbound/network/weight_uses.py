r"""The ways a weight acts in a forward pass, each as a linear map from the weight to what the operation returns.

A *use* knows the operation's result ``z`` by its place in the autograd graph, how a perturbation ``V`` of the
weight perturbs ``z`` (:meth:`perturb`), and the adjoint of that map (:meth:`adjoint`). ``V`` is either one tensor
of the weight's shape, shared by all samples, or one per sample, ``[N, *shape]``; results keep the shape of ``z``.

A use that is not recognised is a :class:`LeafUse`: the weight itself stands for ``z``. That is always right, and
needs samples one at a time because they all share the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

from genbound.estimators.gram_root import gram_root


class Use:
    """How a weight acts at one place of a forward pass of N samples: a linear map from the weight to a result z.

    Attributes:
        edge: place of z in the autograd graph, if there is one.
        kind: ``linear``, ``convolution``, ``embedding``, or ``weight`` where z is the weight itself.
        by_sample: every row of z belongs to one sample.
    """

    edge: GradientEdge | None
    kind: str
    by_sample = True

    def perturb(self, v: Tensor) -> Tensor:
        """What a perturbation of the weight adds to z.

        Args:
            v: ``[*shape]``, shared by the samples, or one for each, ``[N, *shape]``.

        Returns:
            Of the shape of z.
        """
        raise NotImplementedError

    def adjoint(self, q: Tensor) -> Tensor:
        """The adjoint of :meth:`perturb` for each sample on its own: ``q``, of the shape of z, to ``[N, *shape]``."""
        raise NotImplementedError

    def per_sample(self, z: Tensor) -> Tensor:
        """The rows of ``z`` that belong to each sample, ``[N, numbers of z for a sample]``."""
        raise NotImplementedError

    def squared_norm(self, g: Tensor) -> Tensor:
        """``||A^* g||^2`` of each sample's part of ``g``, of the shape of z: ``[N]``, in the type of ``g``."""
        return self.adjoint(g).flatten(1).square().sum(1)


@dataclass
class LeafUse(Use):
    """The weight itself as the place of perturbation: any operation, one sample at a time."""

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
    """``z = x W^T [rows, out]``, several rows to a sample.

    Attributes:
        inputs: x, as ``[N, T, in]``.
        transposed: the weight is stored ``[in, out]``.
        samples_first: the rows of z are ordered sample by sample; otherwise position by position, as in time-first
            recurrent and attention layers.
    """

    edge: GradientEdge
    inputs: Tensor
    transposed: bool
    samples_first: bool
    kind = "linear"

    @property
    def num_positions(self) -> int:
        """T, rows to a sample."""
        return self.inputs.shape[1]

    def _rows(self, z: Tensor) -> Tensor:
        """``[N, T, out]`` to the row order of the operation."""
        return (z if self.samples_first else z.transpose(0, 1)).reshape(-1, z.shape[-1])

    def root(self) -> Tensor:
        """``R [N, T, T]`` with ``R R^T = X X^T``, taken once."""
        if self._root is None:
            self._root = gram_root(self.inputs)
        return self._root

    _root = None

    def spread(self, g: Tensor, root: Tensor | None = None) -> Tensor:
        """Perturb by weights of which only the action on the samples' own inputs X is drawn: ``R g``.

        Args:
            g: independent numbers of variance 1, ``[N, T, out]``.
            root: R, ``[N, T, T]``; ``None`` means :meth:`root`.

        Returns:
            Of the shape of z, with the covariance that independent weights of variance 1 give.
        """
        return self._rows((self.root() if root is None else root) @ g)

    def per_position(self, z: Tensor) -> Tensor:
        """``[rows, out]`` to ``[N, T, out]``."""
        num, positions, _ = self.inputs.shape
        if self.samples_first:
            return z.reshape(num, positions, -1)
        return z.reshape(positions, num, -1).transpose(0, 1)

    def per_sample(self, z: Tensor) -> Tensor:
        return self.per_position(z).flatten(1)

    def perturb(self, v: Tensor) -> Tensor:
        return self._rows(self.inputs @ (v if self.transposed else v.mT))

    def perturb_low_rank(self, a: Tensor, b: Tensor) -> Tensor:
        """Perturb by the per-sample weight ``sum_s b_s a_s^T`` without forming it.

        Args:
            a: ``[N, s, in]`` of the stored weight.
            b: ``[N, s, out]`` likewise.

        Returns:
            Of the shape of z.
        """
        if self.transposed:  # the factors follow the stored weight's axes
            a, b = b, a
        return self._rows((self.inputs @ a.mT) @ b)

    def variance(self, shape: torch.Size) -> Tensor:
        """Of the result's entries, in its shape, under independent weights of variance 1."""
        return self._rows(self.inputs.square().sum(-1, keepdim=True)).expand(-1, shape[-1]).reshape(shape)

    def adjoint(self, q: Tensor) -> Tensor:
        q = self.per_position(q)
        return self.inputs.mT @ q if self.transposed else q.mT @ self.inputs

    def squared_norm(self, g: Tensor) -> Tensor:
        """``||sum_t g_t x_t^T||^2`` per sample, through whichever of the two products is cheaper."""
        g = self.per_position(g)
        positions, d_in, d_out = self.num_positions, self.inputs.shape[-1], g.shape[-1]
        if positions * (d_in + d_out) < d_in * d_out:
            return ((g @ g.mT) * (self.inputs @ self.inputs.mT)).sum((1, 2))
        return (g.mT @ self.inputs).square().sum((1, 2))

    def compressed(self) -> tuple[LinearUse, Tensor]:
        """The same use in an orthonormal basis of each sample's own inputs, and that basis ``[N, in, r]``.

        With fewer positions than inputs, every Krylov vector of the block lives in ``range(X^T)``; there the
        weight has ``out x r`` entries instead of ``out x in``.
        """
        basis, coordinates = torch.linalg.qr(self.inputs.mT.double())
        dtype = self.inputs.dtype
        use = LinearUse(self.edge, coordinates.mT.to(dtype), False, self.samples_first)
        return use, basis.to(dtype)

    def compress_weight(self, v: Tensor, basis: Tensor) -> Tensor:
        """A weight ``[*shape]`` in the bases ``[N, in, r]`` of :meth:`compressed`: ``[N, out, r]``."""
        return (v.mT if self.transposed else v) @ basis


@dataclass
class ConvolutionUse(Use):
    """``z = x * W``: a convolution in one to three dimensions, strided, padded, dilated, grouped or transposed.

    Per-sample weights run as one convolution with ``N`` times the groups.

    Attributes:
        inputs: x, ``[rows, channels, *spatial]``.
        num: N.
        samples_first: order of the rows, several of which may belong to a sample.
        shape: of the weight.
    """

    edge: GradientEdge
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

    def _fold(self, x: Tensor) -> Tensor:
        """``[rows, C, ...]`` to ``[T, N * C, ...]``: the samples become groups."""
        x = x.unflatten(0, (self.num, -1) if self.samples_first else (-1, self.num))
        x = x.transpose(0, 1) if self.samples_first else x
        return x.flatten(1, 2)

    def _unfold(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.num, -1))
        x = x.transpose(0, 1) if self.samples_first else x
        return x.flatten(0, 1)

    def per_sample(self, z: Tensor) -> Tensor:
        z = z.unflatten(0, (self.num, -1) if self.samples_first else (-1, self.num))
        return (z if self.samples_first else z.transpose(0, 1)).flatten(1)

    def perturb(self, v: Tensor) -> Tensor:
        if v.dim() == len(self.shape):
            return torch.ops.aten.convolution(
                self.inputs, v, None, self.stride, self.padding, self.dilation, self.transposed,
                self.output_padding, self.groups,
            )  # fmt: skip
        out = torch.ops.aten.convolution(
            self._fold(self.inputs), v.flatten(0, 1), None, self.stride, self.padding, self.dilation,
            self.transposed, self.output_padding, self.groups * self.num,
        )  # fmt: skip
        return self._unfold(out)

    def variance(self, shape: torch.Size) -> Tensor:
        """Of the result's entries, in its shape, under independent weights of variance 1."""
        ones = self.inputs.new_ones(self.shape)
        return torch.ops.aten.convolution(
            self.inputs.square(), ones, None, self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups,
        ).reshape(shape)  # fmt: skip

    def adjoint(self, q: Tensor) -> Tensor:
        weight = torch.empty(1, dtype=q.dtype, device=q.device).expand(self.num * self.shape[0], *self.shape[1:])
        _, grad, _ = torch.ops.aten.convolution_backward(
            self._fold(q).contiguous(), self._fold(self.inputs).contiguous(), weight, None, self.stride,
            self.padding, self.dilation, self.transposed, self.output_padding, self.groups * self.num,
            (False, True, False),
        )  # fmt: skip
        return grad.unflatten(0, (self.num, -1))


@dataclass
class EmbeddingUse(Use):
    """``z = W[indices]``: a lookup.

    Attributes:
        indices: numbers of rows of the weight, in any shape.
        num: N.
        samples_first: order of the indices, several of which may belong to a sample.
        shape: of the weight.
    """

    edge: GradientEdge
    indices: Tensor
    num: int
    samples_first: bool
    shape: tuple[int, ...]
    kind = "embedding"

    def _index(self) -> Tensor:
        """``[N, T]`` of row numbers."""
        flat = self.indices.reshape(-1)
        return flat.view(self.num, -1) if self.samples_first else flat.view(-1, self.num).T

    def per_sample(self, z: Tensor) -> Tensor:
        z = z.reshape(-1, self.shape[1])
        z = z.unflatten(0, (self.num, -1) if self.samples_first else (-1, self.num))
        return (z if self.samples_first else z.transpose(0, 1)).flatten(1)

    def perturb(self, v: Tensor) -> Tensor:
        if v.dim() == 2:
            return F.embedding(self.indices, v)
        rows = v.gather(1, self._index().unsqueeze(-1).expand(-1, -1, self.shape[1]))
        rows = rows if self.samples_first else rows.transpose(0, 1)
        return rows.reshape(*self.indices.shape, self.shape[1])

    def adjoint(self, q: Tensor) -> Tensor:
        index = self._index().unsqueeze(-1).expand(-1, -1, self.shape[1])
        out = torch.zeros(self.num, *self.shape, dtype=q.dtype, device=q.device)
        return out.scatter_add_(1, index, self.per_sample(q).view(index.shape))
