r"""The sharpest bracket of :math:`v^\top H^+ v` that p products with a symmetric H allow, for many H at once.

:math:`v^\top H^+ v = \int \max(x, 0)\, d\mu(x)` for the spectral measure :math:`\mu` of H at v. p Lanczos steps give
its moments up to order 2p and no more. All measures with these moments and p + 1 atoms form a one-parameter family: the
spectral measures of

.. math::

   \hat T(a) = \begin{pmatrix} T_p & \beta_p e_p \\ \beta_p e_p^\top & a \end{pmatrix}, \qquad
   a \in \mathbb R \cup \{\infty\},

the Gauss-Radau rules with one node anywhere. Both extremes of :math:`g(a) = e_1^\top \hat T(a)^+ e_1` over this family
are extremes over *all* measures with these moments:

* the **lower** one is the rule with a node at the kink, 0;
* the **upper** one is the maximum of g. On the circle of all a, g rises from the rule with the node at 0 to one maximum
  and falls back.

The proof counts the double contacts of a polynomial of degree 2p with the function max(x, 0). It is written out in
docs/quadratic_form.md. With one product the bracket is
:math:`[\max(0, v^\top H v),\ \tfrac12 (v^\top H v + \|v\| \|Hv\|)]`. Each side only improves with p. Gauss quadrature
of max(x, 0) itself is not one-sided.

References:
    Golub & Meurant, Matrices, Moments and Quadrature with Applications, Princeton University Press, 2010.
    Greenbaum, Behavior of slightly perturbed Lanczos and conjugate-gradient recurrences, Linear Algebra and its
    Applications, 1989 (what the recursion means once orthogonality is lost).
    Karlin & Studden, Tchebycheff Systems: with Applications in Analysis and Statistics, Interscience, 1966.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import LinAlgError, eigh_tridiagonal
from scipy.optimize import minimize_scalar
from torch import Tensor

# Stated allowance for rounding in the products, relative to ||v|| ||Hv||.
# Measured on a six-layer transformer in float32: 2.5e-6 at worst.
ROUNDING = {torch.float64: 1e-11, torch.float32: 2e-5}

BLOCK = 16  # basis vectors that are stored together
LEAST = 4  # basis vectors that are kept whatever they take: a step needs the last two


def rounding(dtype: torch.dtype) -> float:
    """Allowance for rounding in products of this dtype, relative to ``||v|| ||Hv||``."""
    return ROUNDING.get(dtype, 5e-2)


class Lanczos:
    r"""Lanczos tridiagonalisation of N symmetric operators side by side, reorthogonalised in float64.

    The numbers stay where the vectors are until they are asked for, all together: no step waits for an accelerator.

    Every new vector is made orthogonal to all before it, as long as those are ``keep`` at most. Beyond that the first
    ones stay, which the large eigenvalues settle in, and of the later ones the last few. What is lost with the others
    is orthogonality to them and not the numbers' meaning: the recursion is then that of a matrix with copies of
    eigenvalues, at the start vector's weights, up to the rounding of the products (Greenbaum 1989), which the certified
    brackets allow for anyway. Copies cost steps: the brackets narrow later.

    Args:
        product: maps ``[N, d]`` to ``[N, d]``, each row through its own operator.
        start: ``[N, d]``, not zero.
        keep: basis vectors of each row that there is room for, ``8 N d`` bytes each; ``None`` means all.

    Attributes:
        norm: of every start vector ``[N]``.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], start: Tensor, keep: int | None = None):
        self._product, self._keep = product, keep if keep is None else max(keep, LEAST)
        start = start.double()
        self.norm = start.norm(dim=1)
        self._last = start / self.norm.clamp(min=torch.finfo(torch.float64).tiny).unsqueeze(1)
        # Of at most BLOCK basis vectors each, [N, BLOCK, d]: products with them are matrix products.
        self._blocks: list[Tensor] = []
        self._alphas: list[Tensor] = []
        self._betas: list[Tensor] = []
        self._read: tuple[np.ndarray, ...] | None = None
        self._scale = torch.zeros_like(self.norm)

    @property
    def num_products(self) -> int:
        """Products taken so far."""
        return len(self._alphas)

    def _numbers(self) -> tuple[np.ndarray, ...]:
        """Diagonals and off-diagonals ``[steps, N]``; norms of the start and largest norms of a product ``[N]``."""
        if self._read is None or len(self._read[0]) < self.num_products:
            read = torch.stack([*self._alphas, *self._betas, self.norm, self._scale]).cpu().numpy()
            self._read = read[: self.num_products], read[self.num_products : -2], read[-2], read[-1]
        return self._read

    @property
    def alpha(self) -> np.ndarray:
        """Diagonals, ``[steps, N]``."""
        return self._numbers()[0]

    @property
    def beta(self) -> np.ndarray:
        """Off-diagonals, ``[steps, N]``; ``beta[-1]`` is the norm of the residual after the last step."""
        return self._numbers()[1]

    def step(self, precision: float) -> None:
        """One more product. A residual below ``precision`` times the largest norm seen ends that row's recursion."""
        q, slot = self._last, self._slot()
        group, place = divmod(slot, BLOCK)
        if group == len(self._blocks):
            size = BLOCK if self._keep is None else min(BLOCK, self._keep - slot)
            self._blocks.append(q.new_zeros(len(q), size, q.shape[1]))
        self._blocks[group][:, place] = q
        # A copy: from here on it changes in place, for a vector may take as much as the network.
        w = self._product(q).to(torch.float64, copy=True)
        self._scale = torch.maximum(self._scale, w.norm(dim=1))
        alpha = (q * w).sum(1)
        w.addcmul_(q, alpha.unsqueeze(1), value=-1)
        beta = w.norm(dim=1)
        for _ in range(2):
            before = beta
            for block in self._blocks:
                w.unsqueeze(1).baddbmm_((block @ w.unsqueeze(2)).mT, block, alpha=-1)
            beta = w.norm(dim=1)
            # Once is enough where a sweep takes little away; an accelerator would have to be waited for to know.
            if beta.device.type == "cpu" and bool((beta > 0.7 * before).all()):
                break
        beta = torch.where(beta > precision * self._scale, beta, torch.zeros_like(beta))
        w.div_(torch.where(beta > 0, beta, torch.ones_like(beta)).unsqueeze(1)).mul_((beta > 0).unsqueeze(1))
        self._last = w
        self._alphas.append(alpha)
        self._betas.append(beta)

    def _slot(self) -> int:
        """Where the next basis vector goes: behind the others, or in place of the oldest of the last few."""
        number = self.num_products
        if self._keep is None or number < self._keep:
            return number
        last_few = min(BLOCK, self._keep // 2)
        first = self._keep - last_few
        return first + (number - first) % last_few

    def select(self, rows: list[int], product: Callable[[Tensor], Tensor]) -> Lanczos:
        """The same recursion for some of the rows only, continued with a product for them; this one ends with it."""
        kept = object.__new__(Lanczos)
        kept._product, kept.norm, kept._scale = product, self.norm[rows], self._scale[rows]
        kept._keep, kept._last, kept._blocks = self._keep, self._last[rows], []
        while self._blocks:  # one by one, so that hardly more than one of them is there twice
            kept._blocks.append(self._blocks.pop(0)[rows])
        kept._alphas, kept._betas = [a[rows] for a in self._alphas], [b[rows] for b in self._betas]
        kept._read = None
        return kept

    def _steps(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The row's diagonal and off-diagonal up to where its recursion ended; the last beta is the residual."""
        alpha, beta = self.alpha[:, row], self.beta[:, row]
        steps = next((i + 1 for i, b in enumerate(beta) if b == 0), len(alpha))
        return alpha[:steps], beta[:steps]

    def ended(self, row: int) -> bool:
        """The start vector's Krylov space is exhausted: functions of the tridiagonal matrix are exact."""
        return bool((self.beta[:, row] == 0).any())

    def bracket(self, row: int) -> tuple[float, float]:
        r"""``[lower, upper]`` of :math:`v^\top H^+ v` for one row, without any allowance for rounding."""
        square = float(self._numbers()[2][row]) ** 2
        if square == 0:
            return 0.0, 0.0
        alpha, beta = self._steps(row)
        if beta[-1] == 0:
            value = square * _positive_part(alpha, beta[:-1])
            return value, value
        if len(alpha) == 1:  # the extremes in closed form
            return square * max(0.0, alpha[0]), square * 0.5 * (alpha[0] + np.hypot(alpha[0], beta[0]))
        lower, upper = _Rules(alpha, beta).extremes()
        return square * lower, square * upper

    def certified(self, row: int, dtype: torch.dtype) -> tuple[float, float]:
        """The bracket, widened by what products of this dtype may have rounded at the largest operator norm seen."""
        lower, upper = self.bracket(row)
        norm, scale = (float(numbers[row]) for numbers in self._numbers()[2:])
        square = norm**2
        allowance = rounding(dtype) * square * np.hypot(self.alpha[0][row], self.beta[0][row])
        allowance += 2 * torch.finfo(dtype).eps * square * scale
        return max(0.0, lower - allowance), upper + allowance

    def ritz_pairs(self, row: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """What the row's Krylov space knows of the operator's eigenvalues; all its basis vectors must have been kept.

        Returns:
            Ritz values ``[steps]``, norms of their residuals ``[steps]`` and orthonormal vectors ``[steps, d]``.
        """
        alpha, beta = self._steps(row)
        values, vectors = tridiagonal_eigh(alpha, beta[:-1]) if len(alpha) > 1 else (alpha, np.ones((1, 1)))
        basis = torch.cat([block[row] for block in self._blocks])[: len(alpha)]
        return values, np.abs(beta[-1] * vectors[-1]), torch.as_tensor(vectors.T.copy()).to(basis) @ basis

    def positive_part(self, row: int) -> float:
        r"""Gauss quadrature of :math:`v^\top H^+ v`: accurate, not one-sided."""
        alpha, beta = self._steps(row)
        return float(self._numbers()[2][row]) ** 2 * _positive_part(alpha, beta[:-1])


def tridiagonal_eigh(diagonal: np.ndarray, off_diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues ``[k]`` and eigenvectors ``[k, k]`` (columns) of a symmetric tridiagonal matrix of any size.

    LAPACK's relatively robust representations, the default, fail for some matrices of entries near 1e30 in the builds
    of older versions of scipy. QL steps take their place there.
    """
    try:
        return eigh_tridiagonal(diagonal, off_diagonal)
    except LinAlgError:
        return eigh_tridiagonal(diagonal, off_diagonal, lapack_driver="stev")


def _positive_part(diagonal: np.ndarray, off_diagonal: np.ndarray) -> float:
    """``e_1^T T^+ e_1`` of a symmetric tridiagonal matrix."""
    if len(diagonal) == 1:
        return max(0.0, float(diagonal[0]))
    values, vectors = tridiagonal_eigh(diagonal, off_diagonal)
    return float((vectors[0] ** 2 * np.maximum(values, 0)).sum())


class _Rules:
    """The rules for max(x, 0) that all measures with the same moments have: one more node, anywhere.

    Args:
        alpha: diagonal of the tridiagonal matrix ``[p]``.
        beta: its off-diagonal ``[p]``; the last number couples the further diagonal entry a, which is free.
    """

    def __init__(self, alpha: np.ndarray, beta: np.ndarray):
        self._alpha, self._beta = alpha, beta
        self._nodes, vectors = tridiagonal_eigh(alpha, beta[:-1])
        self._weights = beta[-1] ** 2 * vectors[-1] ** 2
        self._size = float(np.abs(self._nodes).max() + beta[-1])
        self._gauss = _positive_part(alpha, beta[:-1])  # the Gauss rule, that of a = infinity

    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest one over a.

        The rules are run through by the node that they have nearest to the kink. As it moves from 0 to the next Gauss
        node on either side, a goes from the rule with a node at 0 to infinity.
        """
        # With a Gauss node at the kink the Gauss rule itself is the lower one.
        at_kink = np.abs(self._nodes).min() <= 1e-14 * self._size
        lower = self._gauss if at_kink else self._with_node(0.0)
        right = float(self._nodes[self._nodes > 0].min(initial=np.inf))
        left = float(self._nodes[self._nodes < 0].max(initial=-np.inf))
        return lower, max(lower, self._gauss, self._largest_up_to(right), self._largest_up_to(left))

    def _largest_up_to(self, side: float) -> float:
        """The largest rule with a node between the kink and the next Gauss node on a side, which may be infinite.

        A coarse search in the logarithm of the node's distance from both ends comes before the fine one, for the
        maximum may lie close to an end.
        """

        def rule(s: float) -> float:
            if np.isfinite(side):
                return self._with_node(side / (1 + np.exp(-s)))
            return self._with_node(np.sign(side) * self._size * np.exp(s))

        grid = np.linspace(-24, 24, 25)
        values = [rule(s) for s in grid]
        best = int(np.argmax(values))
        around = (grid[best] - 2, grid[best] + 2)
        fine = minimize_scalar(lambda s: -rule(s), bounds=around, method="bounded", options={"xatol": 1e-5})
        return max(values[best], -float(fine.fun))

    def _with_node(self, node: float) -> float:
        """The rule with this node: its last diagonal entry is ``node + sum w_i / (nodes_i - node)``."""
        gap = self._nodes - node
        gap = np.where(gap == 0, np.finfo(float).tiny, gap)
        last = node + float((self._weights / gap).sum())
        if not np.isfinite(last):
            return self._gauss
        return _positive_part(np.append(self._alpha, last), self._beta)
