r"""A root of :math:`XX^\top`.

It makes noise with the covariance that the rows X give it, from as many random numbers as there are rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Added to the diagonal of X X^T, relative to each entry and in units of the rounding of a sum over T positions:
# duplicate positions make it singular. It adds that fraction of variance: in float32 2e-6 T, 5e-5 for 25 positions and
# 1e-3 for 512.
JITTER = 16


def _factored(x: Tensor) -> Tensor:
    """In a type that LAPACK factors: single precision for the half ones."""
    return x.float() if x.element_size() < 4 else x


def gram_root(x: Tensor) -> Tensor:
    """``R`` with ``R R^T = X X^T``, lower triangular: a continuous function of X.

    Args:
        x: ``[..., T, in]``.

    Returns:
        ``[..., T, T]`` in the type and unit of ``x``.
    """
    return torch.linalg.cholesky_ex(_gram(_factored(x)))[0].to(x.dtype)


def _gram(x: Tensor) -> Tensor:
    """``X X^T`` with as much added to its diagonal as a factorisation needs."""
    gram, limits = x @ x.mT, torch.finfo(x.dtype)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal.mul_(1 + JITTER * limits.eps * x.shape[-2]).add_(limits.tiny)
    return gram


def checked_gram_root(x: Tensor) -> Tensor:
    """:func:`gram_root`, not a number where the factorisation did not go through.

    Args:
        x: ``[..., T, in]``.

    Returns:
        ``[..., T, T]`` in the type and unit of ``x``.
    """
    root, failed = torch.linalg.cholesky_ex(_gram(_factored(x)))
    return torch.where(failed[..., None, None] == 0, root, torch.nan).to(x.dtype)


def gram_root_derivative(root: Tensor, x: Tensor, moved: Tensor) -> Tensor:
    r"""Derivative of :func:`gram_root` along ``moved``: :math:`R' = R\,\Phi(R^{-1}(X'X^\top + XX'^\top)R^{-\top})`.

    :math:`\Phi` takes the lower triangle with half of the diagonal (Smith, Differentiation of the Cholesky algorithm,
    1995).

    Args:
        root: the root at ``x``, ``[..., T, T]``.
        x: ``[..., T, in]``.
        moved: direction in which ``x`` moves, of its shape.

    Returns:
        ``[..., T, T]``.
    """
    dtype, root = root.dtype, _factored(root)
    change = _factored(moved) @ _factored(x).mT
    change = torch.linalg.solve_triangular(root, change + change.mT, upper=False)
    change = torch.linalg.solve_triangular(root, change.mT, upper=False)
    return (root @ (change.tril() - 0.5 * torch.diag_embed(change.diagonal(dim1=-2, dim2=-1)))).to(dtype)
