r"""Brackets of :math:`v^\top H^+ v` from a few products with a symmetric H, for many H at once.

:math:`v^\top H^+ v = \tfrac12 (v^\top H v + v^\top |H| v)` and :math:`|H| = (H^2)^{1/2}`. Gauss quadrature of a function whose
even derivatives have one sign is one-sided, which :math:`\sqrt{x}` and :math:`x^{-1/2}` on the spectrum of :math:`H^2` are:

* with :math:`f = \sqrt x` from the start vector v it is an **upper** bound of :math:`v^\top |H| v`; one node gives
  :math:`\|v\| \|Hv\|`;
* with :math:`f = x^{-1/2}` from the start vector Hv it is a **lower** bound of :math:`(Hv)^\top |H|^{-1} (Hv) = v^\top |H| v`; one
  node gives :math:`\|Hv\|^3 / \|H^2 v\|`.

Both rules are read from one Lanczos run of H: p products hold the moments :math:`v^\top H^j v`, j up to 2p, enough for
:math:`\lfloor (p+1)/2 \rfloor` nodes of the first rule and :math:`\lfloor p/2 \rfloor` of the second. Each side only improves with p.
(Quadrature of :math:`\max(x, 0)` on H itself would not be one-sided.)

References:
    Golub & Meurant, Matrices, Moments and Quadrature with Applications, Princeton University Press, 2010.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# Stated allowance for rounding in the products, relative to ||v|| ||Hv||.
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4}


def rounding(dtype: torch.dtype) -> float:
    return ROUNDING.get(dtype, 5e-2)


class Lanczos:
    r"""Lanczos tridiagonalisation of N symmetric operators side by side, with full reorthogonalisation in float64.

    Args:
        product: maps ``[N, d]`` to ``[N, d]``, each row through its own operator.
        start: ``[N, d]``, not zero.

    Attributes:
        alpha: diagonals, one ``[N]`` array a step.
        beta: off-diagonals; ``beta[-1]`` is the norm of the residual after the last step.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], start: Tensor):
        self._product = product
        start = start.double()
        self.norm = start.norm(dim=1)
        self._basis = [start / self.norm.clamp(min=torch.finfo(torch.float64).tiny).unsqueeze(1)]
        self.alpha: list[np.ndarray] = []
        self.beta: list[np.ndarray] = []
        self._scale = torch.zeros_like(self.norm)

    @property
    def num_products(self) -> int:
        return len(self.alpha)

    def step(self, precision: float) -> None:
        """One more product. A residual below ``precision`` times the largest norm seen ends that row's recursion."""
        q = self._basis[-1]
        w = self._product(q).double()
        self._scale = torch.maximum(self._scale, w.norm(dim=1))
        alpha = (q * w).sum(1)
        for _ in range(2):  # once is not enough in floating point
            for b in self._basis:
                w = w - (b * w).sum(1, keepdim=True) * b
        beta = w.norm(dim=1)
        beta = torch.where(beta > precision * self._scale, beta, torch.zeros_like(beta))
        self._basis.append(
            w / torch.where(beta > 0, beta, torch.ones_like(beta)).unsqueeze(1) * (beta > 0).unsqueeze(1)
        )
        self.alpha.append(alpha.cpu().numpy())
        self.beta.append(beta.cpu().numpy())

    def tridiagonal(self, row: int, extended: bool) -> np.ndarray:
        """The row's tridiagonal matrix, up to where its recursion ended; ``extended`` keeps the last residual."""
        alpha = [a[row] for a in self.alpha]
        beta = [b[row] for b in self.beta]
        steps = next((i + 1 for i, b in enumerate(beta) if b == 0), len(alpha))
        ended = steps < len(alpha) or beta[steps - 1] == 0
        alpha, beta = alpha[:steps], beta[:steps]
        if ended or not extended:
            return np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
        return np.diag([*alpha, 0.0]) + np.diag(beta, 1) + np.diag(beta, -1)

    def ended(self, row: int) -> bool:
        """The start vector's Krylov space is exhausted: functions of the tridiagonal matrix are exact."""
        return any(b[row] == 0 for b in self.beta)

    def bracket(self, row: int) -> tuple[float, float]:
        r"""``[lower, upper]`` of :math:`v^\top H^+ v` for one row, without any allowance for rounding."""
        square = float(self.norm[row]) ** 2
        if square == 0:
            return 0.0, 0.0
        if self.ended(row):
            value = square * _positive_part(self.tridiagonal(row, extended=False))
            return value, value
        t = self.tridiagonal(row, extended=True)
        products = self.num_products
        form = t[0, 0]
        first = np.zeros(len(t))
        first[0] = 1.0
        upper = 0.5 * (form + _gauss(t, first, (products + 1) // 2, np.sqrt))
        lower = max(0.0, form)
        if products >= 2:
            magnitude = _gauss(t, t @ first, products // 2, lambda x: x**-0.5)
            lower = max(lower, 0.5 * (form + magnitude))
        return square * lower, square * upper

    def positive_part(self, row: int) -> float:
        r"""Gauss quadrature of :math:`v^\top H^+ v` on H itself: accurate, not one-sided."""
        return float(self.norm[row]) ** 2 * _positive_part(self.tridiagonal(row, extended=False))


def _positive_part(t: np.ndarray) -> float:
    values, vectors = np.linalg.eigh(t)
    return float((vectors[0] ** 2 * np.maximum(values, 0)).sum())


def _gauss(t: np.ndarray, start: np.ndarray, nodes: int, function: Callable[[np.ndarray], np.ndarray]) -> float:
    """Gauss quadrature of ``start' f(t^2) start`` with at most ``nodes`` nodes, from a dense Lanczos run on t."""
    norm = float(np.linalg.norm(start))
    if norm == 0:
        return 0.0
    basis, alpha, beta = [start / norm], [], []
    largest = np.linalg.norm(t, 2) ** 2
    for k in range(nodes):
        w = t @ (t @ basis[-1])
        alpha.append(float(basis[-1] @ w))
        for _ in range(2):
            for b in basis:
                w = w - (b @ w) * b
        size = float(np.linalg.norm(w))
        if k == nodes - 1 or size <= 1e-14 * largest:
            break
        beta.append(size)
        basis.append(w / size)
    values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
    keep = values > 1e-15 * largest  # a node at zero carries nothing under either rule's one-sidedness
    return norm**2 * float((vectors[0][keep] ** 2 * function(values[keep])).sum())
