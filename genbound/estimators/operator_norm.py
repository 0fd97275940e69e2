r"""The 2-norm of a linear operator that is only known by its products, with both sides bounded.

Let A be the smaller one of :math:`M^\top M` and :math:`MM^\top`, and d its size. Let :math:`\lambda_1 = \|M\|_2^2`, and
let the start vector b be uniform on the unit sphere. After k Lanczos steps the largest Ritz value
:math:`\xi \le \lambda_1` is the maximum of :math:`\langle A p(A)b, p(A)b\rangle / \|p(A)b\|^2` over the polynomials p
of degree below k. Two upper bounds follow from :math:`b_1`, the component of b along the top eigenvector:

* a-priori (Kuczynski and Wozniakowski). :math:`\langle (A - \xi) p(A)b, p(A)b\rangle \le 0` for every p, so that
  :math:`b_1^2 (\lambda_1 - \xi) p(\lambda_1)^2 \le \max_{0 \le x \le \xi} (\xi - x) p(x)^2`. With
  :math:`\sqrt{1-t}\,p(\xi t) = T_{2k-1}(\sqrt{1-t})`, T the Chebyshev polynomial, the right side is :math:`\xi`, and
  for t > 1 the square of the left one is :math:`\sinh^2((2k-1)\operatorname{arsinh}\sqrt{t-1})`, hence

  .. math:: \lambda_1 \le \xi \cosh^2\Bigl(\frac{\operatorname{arsinh}(1/|b_1|)}{2k-1}\Bigr).

* a-posteriori (van Dorsselaer, Hochstenbach and van der Vorst). The next Lanczos vector is :math:`p_k(A)b` with
  :math:`\|p_k(A) b\| = 1`, so that :math:`|b_1|\,p_k(\lambda_1) \le 1`, and :math:`p_k` grows beyond :math:`\xi`.

The density of :math:`b_1` is at most :math:`\sqrt{(d-1)/2\pi}` (its value at 0, with Gautschi's inequality; d >= 3),
hence :math:`P(|b_1| \le \tau) \le \tau\sqrt{2(d-1)/\pi}`. Both bounds hold on the one event :math:`|b_1| > \tau`, so
the smaller one is taken after every step without a further union. The first alone needs about 93 steps for 1 % at
d = 16384 and a failure probability of 1e-9. In the published form the first bound reads
:math:`P(\xi < (1-\varepsilon)\lambda_1) \le 1.648\sqrt d\,e^{-\sqrt\varepsilon(2k-1)}`; the derivation here gives the
constant :math:`2\sqrt{2/\pi} = 1.596`, and :math:`\operatorname{artanh}\sqrt\varepsilon \ge \sqrt\varepsilon` in the
exponent.

References:
    Kuczynski & Wozniakowski, Estimating the largest eigenvalue by the power and Lanczos algorithms with a random start,
    SIAM J. Matrix Anal. Appl. 13, 1992. Derived here; rate and constant agree with the published form.
    van Dorsselaer, Hochstenbach & van der Vorst, Computing probabilistic bounds for extreme eigenvalues of symmetric
    matrices with the Lanczos method, SIAM J. Matrix Anal. Appl. 22, 2000. Derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

FAILURE = 1e-9
ROUNDING = 1e-10  # allowance for float64 rounding in a Krylov run, relative to the norm
EXACT_ROUNDING = 1e-12  # the same for an assembled operator
DENSE = 512  # up to this size of the smaller side an operator is assembled
DENSE_MATRIX = 1536  # the same for a matrix that is there already
MEMORY = 2**30  # bytes for the Krylov basis; beyond, the basis is not kept
BLOCK = 64  # unit vectors in one product

Product = Callable[[Tensor], Tensor]  # of the smaller one of M^T M and M M^T with a vector


class LinearOperator(Protocol):
    """A linear map between tensors.

    Attributes:
        in_shape, out_shape: of one vector on either side.
        blocks: ``[g, o, i]`` if the map is block diagonal with (copies of) these matrices, else ``None``.
        device: where it computes, in float64.
    """

    @property
    def in_shape(self) -> tuple[int, ...]:  # noqa: D102
        ...

    @property
    def out_shape(self) -> tuple[int, ...]:  # noqa: D102
        ...

    @property
    def blocks(self) -> Tensor | None:  # noqa: D102
        ...

    @property
    def device(self) -> torch.device:  # noqa: D102
        ...

    def apply(self, x: Tensor) -> Tensor:
        """``[N, *in_shape] -> [N, *out_shape]``."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """``[N, *out_shape] -> [N, *in_shape]``."""
        ...


@dataclass(frozen=True)
class NormBracket:
    """``lower <= ||M||_2 <= upper``; the upper side may hold with the requested probability only.

    Attributes:
        lower, upper: in the unit of M's entries.
        method: ``svd`` (exact up to rounding), ``lanczos``, ``chebyshev`` (Lanczos without a stored basis) or ``zero``.
        num_products: products with M and with its adjoint, together.
    """

    lower: float
    upper: float
    method: str
    num_products: int = 0


def operator_norm(
    operator: LinearOperator,
    generator: torch.Generator,
    failure: float = FAILURE,
    tolerance: float = 0.01,
    *,
    dense: int = DENSE,
    memory: int = MEMORY,
) -> NormBracket:
    r"""The 2-norm of an operator, bracketed to ``upper <= (1 + tolerance) lower``.

    Args:
        operator: in float64.
        generator: of the start vector.
        failure: probability that ``upper`` is too small. Only methods other than ``svd`` use it.
        tolerance: relative width at which to stop.
        dense: the operator is assembled up to this size of its smaller side.
        memory: bytes that the Krylov basis may take.

    Cost: ``2 min(d_in, d_out)`` products if assembled. Else at most about
    :math:`\operatorname{arsinh}(\sqrt{2d/\pi}/\mathtt{failure}) / \sqrt{2\,\mathtt{tolerance}}` products and as many
    vectors of the smaller side. Beyond ``memory`` twice as many products, and no stored vectors.
    """
    blocks = operator.blocks
    if blocks is None:
        if min(math.prod(operator.in_shape), math.prod(operator.out_shape)) <= max(dense, 2):
            return _exact(*_gram(operator))
        return _krylov(operator, generator, failure, tolerance, memory)
    if min(blocks.shape[1:]) <= DENSE_MATRIX:
        gram = blocks @ blocks.mT if blocks.shape[1] <= blocks.shape[2] else blocks.mT @ blocks
        return _exact(gram, 0)
    # Each block is certified on its own.
    found = [_krylov(_Matrix(block), generator, failure / len(blocks), tolerance, memory) for block in blocks]
    if len(found) == 1:
        return found[0]
    lower, upper = max(f.lower for f in found), max(f.upper for f in found)
    return NormBracket(lower, upper, "lanczos", sum(f.num_products for f in found))


class _Matrix:
    """One matrix as an operator."""

    blocks: Tensor | None = None

    def __init__(self, matrix: Tensor):
        self.matrix, self.device = matrix, matrix.device
        self.out_shape: tuple[int, ...] = (matrix.shape[0],)
        self.in_shape: tuple[int, ...] = (matrix.shape[1],)

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix


def _exact(gram: Tensor, num_products: int) -> NormBracket:
    """From the smaller one of ``M M^T`` and ``M^T M``, or those of all blocks ``[..., d, d]``."""
    value = float(torch.linalg.eigvalsh(gram).max().clamp(min=0)) ** 0.5
    if value == 0:
        return NormBracket(0.0, 0.0, "zero", num_products)
    return NormBracket(value * (1 - EXACT_ROUNDING), value * (1 + EXACT_ROUNDING), "svd", num_products)


def _gram(operator: LinearOperator) -> tuple[Tensor, int]:
    """``M M^T`` or ``M^T M``, the smaller one, column block by column block."""
    square, size, shape = _square(operator)
    rows = []
    for start in range(0, size, BLOCK):
        unit = torch.zeros(min(BLOCK, size - start), size, dtype=torch.float64, device=operator.device)
        unit[:, start:].fill_diagonal_(1)
        rows.append(square(unit.unflatten(1, shape)).flatten(1))
    return torch.cat(rows), 2 * size


def _square(operator: LinearOperator) -> tuple[Product, int, tuple[int, ...]]:
    """The product with the smaller one of ``M^T M`` and ``M M^T``, its size and the shape of its vectors."""
    d_in, d_out = math.prod(operator.in_shape), math.prod(operator.out_shape)
    if d_in <= d_out:
        return lambda x: operator.adjoint(operator.apply(x)), d_in, operator.in_shape
    return lambda y: operator.apply(operator.adjoint(y)), d_out, operator.out_shape


def start_component(size: int, failure: float) -> float:
    r"""The :math:`\tau` with :math:`P(|b_1| \le \tau) \le` ``failure``.

    The vector b is uniform on the sphere of this dimension, which is at least 3.
    """
    return failure / math.sqrt(2 * (size - 1) / math.pi)


def a_priori_factor(steps: int, component: float, excess: float = 0.0) -> float:
    r"""``sqrt(lambda_1 / xi)`` at most, after ``steps`` steps from a start vector with :math:`|b_1| >` ``component``.

    ``excess`` is :math:`\langle (A/\xi - 1) p(A)b, p(A)b\rangle` where that could not be shown to be negative.
    """
    return math.cosh(math.asinh(math.sqrt(max(0.0, 1 + excess)) / component) / (2 * steps - 1))


def _krylov(
    operator: LinearOperator, generator: torch.Generator, failure: float, tolerance: float, memory: int
) -> NormBracket:
    square, size, shape = _square(operator)

    def product(x: Tensor) -> Tensor:
        return square(x.view(1, *shape)).reshape(-1)

    component = start_component(size, failure)
    steps = next(k for k in range(1, 10**6) if a_priori_factor(k, component) <= 1 + tolerance)
    # In float64: single precision would make a component below 1e-9 likelier than on the sphere.
    start = torch.randn(size, generator=generator, dtype=torch.float64).to(operator.device)
    start = start / start.norm()
    if steps * size * 8 > memory:
        return _without_basis(product, start, steps, component)
    return _with_basis(product, start, min(steps, size), component, tolerance)


class _Recursion:
    """Lanczos from a unit vector, with full reorthogonalisation.

    Args:
        product: with the operator, of size d.
        start: ``[d]``.
        most: steps that there is room for.

    Attributes:
        alpha: diagonal of the tridiagonal matrix, a number for every step.
        beta: its off-diagonal; the last number is the norm of the residual.
        ended: the residual is rounding: the space holds every further Krylov vector.
    """

    def __init__(self, product: Product, start: Tensor, most: int):
        self._product, self._next = product, start
        self._basis = torch.empty(most, len(start), dtype=torch.float64, device=start.device)
        self.alpha: list[float] = []
        self.beta: list[float] = []
        self.ended = False

    def step(self) -> None:
        """One more product."""
        k = len(self.alpha) + 1
        self._basis[k - 1] = self._next if k == 1 else self._next / self.beta[-1]
        w = self._product(self._basis[k - 1])
        self.alpha.append(float(self._basis[k - 1] @ w))
        before = float(w.norm())
        w -= self._basis[:k].mT @ (self._basis[:k] @ w)
        after = float(w.norm())
        if after < 0.5 * before:  # cancellation: once is then not enough in floating point
            w -= self._basis[:k].mT @ (self._basis[:k] @ w)
            after = float(w.norm())
        self.beta.append(after)
        self.ended = after <= 1e-13 * max(self.alpha) or max(self.alpha) == 0
        self._next = w


def _with_basis(product: Product, start: Tensor, steps: int, component: float, tolerance: float) -> NormBracket:
    """Lanczos until both sides are close enough, or for all steps that the a-priori bound asks for."""
    run, lower, upper = _Recursion(product, start, steps), 0.0, 0.0
    for k in range(1, steps + 1):
        run.step()
        if run.ended or k == steps or k % 4 == 0:
            ritz = _largest(run.alpha, run.beta[:-1])
            if ritz <= 0:
                return NormBracket(0.0, 0.0, "zero", 2 * k)
            lower = upper = math.sqrt(ritz)
            if not run.ended and k < len(start):  # else the bound is that at infinitely many steps
                upper = lower * a_priori_factor(k, component)
                upper = min(upper, math.sqrt(a_posteriori(run.alpha, run.beta, ritz, component, upper**2)))
            lower, upper = lower * (1 - ROUNDING), upper * (1 + ROUNDING)
            if upper <= (1 + tolerance) * lower:
                break
    return NormBracket(lower, upper, "lanczos", 2 * len(run.alpha))


def _largest(alpha: list[float], beta: list[float]) -> float:
    """Largest eigenvalue of a tridiagonal matrix with k diagonal and k - 1 off-diagonal entries."""
    return float(np.linalg.eigvalsh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))[-1])


def a_posteriori(alpha: list[float], beta: list[float], ritz: float, component: float, largest: float) -> float:
    """The root of ``p_k(x) = 1 / component`` beyond the Ritz value, or ``largest`` if it lies farther."""
    target = -math.log(component)

    def log_polynomial(x: float) -> float:
        total, ratio = 0.0, math.inf
        for j, (a, b) in enumerate(zip(alpha, beta, strict=True)):
            ratio = (x - a - (beta[j - 1] / ratio if j else 0.0)) / b
            if ratio <= 0:  # only by rounding, next to the Ritz value
                return -math.inf
            total += math.log(ratio)
        return total

    low, high = ritz, largest
    if log_polynomial(high) < target:
        return largest
    for _ in range(60):  # keeps high on the safe side
        middle = 0.5 * (low + high)
        low, high = (low, middle) if log_polynomial(middle) >= target else (middle, high)
    return high


def _without_basis(product: Product, start: Tensor, steps: int, component: float) -> NormBracket:
    r"""Three vectors: Lanczos without reorthogonalisation finds :math:`\xi`, then the Chebyshev polynomial is applied.

    The a-priori bound does not need the optimality of :math:`\xi`. It needs :math:`\langle (A/\xi - 1)y, y\rangle`
    for the one polynomial y = p(A)b of its proof, and that is computed. So lost orthogonality can widen the bracket,
    not break it.
    """
    alpha, beta = _three_terms(product, start, steps)
    used = len(alpha)
    ritz = _largest(alpha, beta[: used - 1])
    if ritz <= 0:
        return NormBracket(0.0, 0.0, "zero", 2 * used)
    # sqrt(1-t) q_k(t) = T_{2k-1}(sqrt(1-t)):  q_0 = q_1 = 1,  q_{k+1} = 2 (1 - 2t) q_k - q_{k-1}
    old, q = start, start
    for _ in range(steps - 1):
        old, q = q, 2 * (q - product(q) * (2 / ritz)) - old
    excess = float(product(q) @ q) / ritz - float(q @ q)
    upper = math.sqrt(ritz) * a_priori_factor(steps, component, max(excess, 0.0)) if math.isfinite(excess) else math.inf
    # Paige: without orthogonality too, a Ritz value leaves the spectrum by rounding only.
    return NormBracket(math.sqrt(ritz) * (1 - 1e-8), upper * (1 + ROUNDING), "chebyshev", 2 * (used + steps))


def _three_terms(product: Product, start: Tensor, steps: int) -> tuple[list[float], list[float]]:
    """Diagonal and off-diagonal of Lanczos without reorthogonalisation, until the residual is rounding."""
    alpha: list[float] = []
    beta: list[float] = []
    previous, v = torch.zeros_like(start), start
    for _ in range(steps):
        w = product(v)
        alpha.append(float(v @ w))
        w = w - alpha[-1] * v - (beta[-1] if beta else 0.0) * previous
        size = float(w.norm())
        if size <= 1e-13 * max(alpha):
            break
        beta.append(size)
        previous, v = v, w / size
    return alpha, beta
