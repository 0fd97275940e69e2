"""The curvature of the mean loss as an operator that scipy's sparse solvers take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from genbound.curvature.mean_products import MeanCurvature
from genbound.errors import GenboundError, did_you_mean
from genbound.network.own_modes import own_modes

if TYPE_CHECKING:
    from genbound.network.problem import Problem


class HessianOperator(LinearOperator):
    """A symmetric matrix ``[d, d]`` in float64 that is only ever multiplied; :func:`hessian_operator` makes one.

    Attributes:
        layers: layer -> where its entries lie in a vector, in the order of the stored weight.
        curvature: which one, of :data:`~genbound.estimators.curvature_kinds.CURVATURES`.
    """

    def __init__(self, products: MeanCurvature):
        super().__init__(np.dtype(np.float64), (products.dimension, products.dimension))
        self._products, self.layers, self.curvature = products, dict(products.places), products.curvature

    @own_modes()
    def _matmat(self, columns: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(np.ascontiguousarray(np.asarray(columns, dtype=np.float64).T))
        return self._products.products(rows).T.cpu().numpy()

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        return self._matmat(np.asarray(vector).reshape(-1, 1))[:, 0]

    def _adjoint(self) -> HessianOperator:
        return self

    _transpose = _adjoint

    def flatten(self, weights: Mapping[str, Tensor]) -> np.ndarray:
        """Weights of the operator's layers, ``layer -> [*shape]``, as a vector ``[d]`` in float64."""
        return self._products.flatten(weights).double().cpu().numpy()

    def unflatten(self, vector: np.ndarray) -> dict[str, Tensor]:
        """A vector ``[d]`` as weights in float64, ``layer -> [*shape]``."""
        return self._products.unflatten(torch.from_numpy(np.array(vector, dtype=np.float64)))


def hessian_operator(
    problem: Problem, layer: str | Iterable[str] | None = None, curvature: str = "hessian"
) -> HessianOperator:
    r"""The curvature of the mean loss over the measured samples, as a ``scipy.sparse.linalg.LinearOperator``.

    .. math:: C = \frac1N \sum_x C(x)

    It is exact: nothing is drawn. Products are computed in the problem's dtype and added up in float64, so they are as
    exact as that dtype is; ask for ``Problem(…, dtype=torch.float64)`` where a solver needs more. A vector's entries
    are those of the layers' weights, one layer after another.

    Args:
        problem: whose measured samples, N of them.
        layer: one layer, whose own block it is; several, or ``None`` for all: then the matrix has the blocks *between*
            the layers too. ``operator.layers`` says which rows and columns are whose.
        curvature: ``hessian``, ``ggn`` (its Gauss-Newton part) or ``fisher`` (labels drawn from the network's own
            predictions); see :mod:`genbound.estimators.curvature_kinds`.

    Returns:
        Symmetric, ``[d, d]``, in the loss's unit by the square of the weights'.

    Raises:
        GenboundError: there is no such layer or curvature, or the problem is two sets of weights without a network.

    Cost: a product is two or three backward passes and a forward pass over the measured samples. Several columns at
    once (``operator @ matrix``) share the forward pass.

    Example:
        >>> import torch, genbound
        >>> from scipy.sparse.linalg import eigsh
        >>> model = torch.nn.Linear(3, 2, bias=False).double()
        >>> init = {"weight": torch.zeros(2, 3).double()}
        >>> x = torch.eye(3).double().repeat(2, 1)
        >>> problem = genbound.Problem(model, init, (x, torch.arange(6) % 2))
        >>> operator = genbound.hessian_operator(problem, "weight")
        >>> operator.shape, bool(eigsh(operator, k=1, return_eigenvectors=False)[0] <= 0.5 / 3)
        ((6, 6), True)
    """
    if not problem.num_samples:
        raise GenboundError(f"two sets of weights have no Hessian: {problem.reason}")
    known = [found.name for found in problem.layers]
    wanted = known if layer is None else [layer] if isinstance(layer, str) else list(layer)
    for name in wanted:
        if name not in known:
            raise GenboundError(
                f"there is no layer {name!r}{did_you_mean(name, known)}; the layers are {', '.join(known[:4])}"
                f"{', …' if len(known) > 4 else ''}"
            )
    if not wanted or len(set(wanted)) < len(wanted):
        raise GenboundError("name each layer once, and at least one")
    return HessianOperator(MeanCurvature(problem, wanted, curvature))
