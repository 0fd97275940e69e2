r"""The ways a weight acts in a forward pass, each as a linear map from the weight to what the operation returns.

A *use* knows the operation's result ``z`` by its place in the autograd graph, how a perturbation ``V`` of the
weight perturbs ``z`` (:meth:`perturb`), and the adjoint of that map (:meth:`adjoint`). ``V`` is either one tensor
of the weight's shape, shared by all samples, or one per sample, ``[N, *shape]``; results keep the shape of ``z``.

A use that is not recognised is a :class:`LeafUse`: the weight itself stands for ``z``. That is always right, and
needs samples one at a time because they all share the weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

from genbound.network.graph import Graph, operation


def _is_transposition(node) -> bool:
    """Of a matrix, in any spelling: ``t()``, ``.mT``, ``transpose(0, 1)``, ``.T``, ``permute(1, 0)``."""
    name = operation(node)
    if name == "Transpose":  # saved as unsigned numbers: -1 is 2^64 - 1
        return node._saved_dim0 % 2 != node._saved_dim1 % 2
    if name == "Permute":
        return [d % 2 for d in node._saved_dims] == [1, 0]
    return name == "T"


# Added to the diagonal of X X^T, relative to each entry and in units of the rounding of a sum over T positions: duplicate
# positions make it singular. It adds that fraction of variance: in float32 2e-6 T, 5e-5 for 25 positions and 1e-3 for 512.
JITTER = 16


def _factored(x: Tensor) -> Tensor:
    """In a type that LAPACK factors: single precision for the half ones."""
    return x.float() if x.element_size() < 4 else x


def gram_root(x: Tensor) -> Tensor:
    """``R`` with ``R R^T = X X^T``, lower triangular, ``[..., T, T]``: a continuous function of X."""
    dtype, x = x.dtype, _factored(x)
    gram, limits = x @ x.mT, torch.finfo(x.dtype)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal.mul_(1 + JITTER * limits.eps * x.shape[-2]).add_(limits.tiny)
    return torch.linalg.cholesky_ex(gram)[0].to(dtype)


def gram_root_derivative(root: Tensor, x: Tensor, moved: Tensor) -> Tensor:
    r"""Derivative of :func:`gram_root` along ``moved``: :math:`R' = R\,\Phi(R^{-1}(X'X^\top + XX'^\top)R^{-\top})`.

    :math:`\Phi` takes the lower triangle with half of the diagonal (Smith, Differentiation of the Cholesky algorithm, 1995); R is the root at x.
    """
    dtype, root = root.dtype, _factored(root)
    change = _factored(moved) @ _factored(x).mT
    change = torch.linalg.solve_triangular(root, change + change.mT, upper=False)
    change = torch.linalg.solve_triangular(root, change.mT, upper=False)
    return (root @ (change.tril() - 0.5 * torch.diag_embed(change.diagonal(dim1=-2, dim2=-1)))).to(dtype)


@dataclass
class LeafUse:
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

    def squared_norm(self, g: Tensor) -> Tensor:
        return g.reshape(1, -1).square().sum(1)


@dataclass
class LinearUse:
    """``z = x W^T`` on the rows of ``x``, several rows to a sample.

    ``inputs`` is ``[N, T, in]``. ``samples_first`` tells how the rows of ``z`` are ordered: sample by sample, or
    position by position as in time-first recurrent and attention layers. ``transposed`` marks a weight stored
    ``[in, out]``.
    """

    edge: GradientEdge
    inputs: Tensor
    transposed: bool
    samples_first: bool
    kind = "linear"
    by_sample = True

    @property
    def num_positions(self) -> int:
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
        """Perturb by weights of which only the action on the samples' own inputs X is drawn: ``R g`` with ``R R^T = X X^T``.

        ``g [N, T, out]`` are independent numbers of variance 1; the result has the covariance that independent weights give.
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
        """Perturb by the per-sample weight ``sum_s b_s a_s^T`` without forming it: ``a [N,s,in], b [N,s,out]``."""
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
        return (v.mT if self.transposed else v) @ basis


@dataclass
class ConvolutionUse:
    """``z = x * W``: a convolution in one to three dimensions, strided, padded, dilated, grouped or transposed.

    Per-sample weights run as one convolution with ``N`` times the groups.
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
    by_sample = True

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

    def squared_norm(self, g: Tensor) -> Tensor:
        return self.adjoint(g).flatten(1).square().sum(1)


@dataclass
class EmbeddingUse:
    """``z = W[index]``: a lookup."""

    edge: GradientEdge
    indices: Tensor
    num: int
    samples_first: bool
    shape: tuple[int, ...]
    kind = "embedding"
    by_sample = True

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

    def squared_norm(self, g: Tensor) -> Tensor:
        return self.adjoint(g).flatten(1).square().sum(1)


Use = LeafUse | LinearUse | ConvolutionUse | EmbeddingUse


def find_uses(graph: Graph, name: str, weight: Tensor, num: int, samples_first: bool) -> list[Use]:
    """The uses of one weight in a forward pass of ``num`` samples.

    Falls back to a single :class:`LeafUse` where an operation is not recognised, where the rows of the operation
    cannot be split among the samples, or where one use feeds another: then the derivative of the second use's
    input enters the block, which the sum over uses would miss.
    """
    leaf = graph.leaves.get(name)
    if leaf is None:
        return []
    fallback: list[Use] = [LeafUse(GradientEdge(leaf, 0), tuple(weight.shape))]
    uses, pending = [], [(node, position, False) for node, position in graph.consumers[leaf]]
    while pending:
        node, position, transposed = pending.pop()
        if weight.dim() == 2 and not transposed and _is_transposition(node):
            pending += [(node, position, True) for node, position in graph.consumers[node]]
            continue
        use = _recognise(node, position, transposed, weight, num, samples_first)
        if use is None:
            return fallback
        uses.append(use)
    if len(uses) > 1:
        nodes = {use.edge.node for use in uses}
        if any(graph.upstream(node) & nodes for node in nodes):
            return fallback
    return uses


def _recognise(node, position: int, transposed: bool, weight: Tensor, num: int, samples_first: bool) -> Use | None:
    name, edge = operation(node), GradientEdge(node, 0)
    if name in ("Addmm", "Mm"):
        if name == "Addmm" and (position != 2 or node._saved_alpha != 1):
            return None
        if name == "Mm" and position != 1:
            return None
        inputs = (node._saved_mat1 if name == "Addmm" else node._saved_self).detach()
        if inputs.shape[0] % num:
            return None
        if samples_first:
            inputs = inputs.unflatten(0, (num, -1))
        else:
            inputs = inputs.unflatten(0, (-1, num)).transpose(0, 1)
        return LinearUse(edge, inputs, not transposed, samples_first)
    if name == "Convolution" and position == 1 and not transposed:
        inputs = node._saved_input.detach()
        if inputs.shape[0] % num:
            return None
        return ConvolutionUse(
            edge, inputs, num, samples_first, tuple(weight.shape), node._saved_stride, node._saved_padding,
            node._saved_dilation, node._saved_transposed, node._saved_output_padding, node._saved_groups,
        )  # fmt: skip
    if name == "Embedding" and not transposed:
        if node._saved_scale_grad_by_freq or math.prod(node._saved_indices.shape) % num:
            return None
        return EmbeddingUse(edge, node._saved_indices, num, samples_first, tuple(weight.shape))
    return None
