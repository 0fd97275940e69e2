r"""What a few products know of a sample's remainder: a control for its random draws.

Let R be the remainder of one sample's Hessian in the weights of several layers, the blocks between them included. Let Q
have k orthonormal columns that span the Krylov space :math:`g, Rg, \dots, R^{k-1} g` of the loss's gradient g, and
:math:`P = QQ^\top`. With RQ at hand,

.. math:: z^\top R z = \underbrace{z^\top (PR + RP - PRP)\, z}_{c(z)} + z^\top (I - P) R (I - P)\, z,
   \qquad E[c(z)] = \mathrm{Tr}(Q^\top R Q).

A draw less :math:`c(z) - E[c]` has the same mean, and the spread of what R has outside of Q alone. The remainder of a
fine-tuned network is large along few directions, and the gradient points to them.

Nothing has the size of the weights. Where z = A(W) is a layer's result, all these vectors are :math:`A^* a` for some a
in the shape of z. So :math:`\langle A^* a, V \rangle = a \cdot A(V)` needs only how V perturbs z, which is what a sweep
is given anyway, and :math:`A A^* a` is a product with the Gram matrix of the layer's inputs.

References:
    Gambhir, Stathopoulos & Orginos, Deflation as a method of variance reduction for estimating the trace of a matrix
    inverse, SIAM Journal on Scientific Computing, 2017. Meyer, Musco, Musco & Woodruff, Hutch++: optimal stochastic
    trace estimation, SOSA 2021 (where Q comes from random vectors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genbound.network.memory import vector_room
from genbound.network.problem import Problem

Vector = dict[str, Tensor]  # layer -> a, in the shape of its result

EXHAUSTED = 1e-4  # of a vector is left beside those before it: the space is exhausted, or what is left is rounding
HELD = 4  # vectors that are held at a time for each of the k


class KrylovControl:
    r"""The control of one sample's draws.

    Args:
        problem: with the network.
        position: of the sample.
        names: layers that move, each of which acts once.
        num: vectors at most. There are fewer where the Krylov space is exhausted or the memory does not hold them, and
            none where the gradient vanishes.

    Attributes:
        num: k, how many there are.

    Cost: a product, that is a double backward pass of one sample, for each vector.
    """

    def __init__(self, problem: Problem, position: int, names: Sequence[str], num: int):
        self._tape = problem.tape([position], names)
        gradients = self._tape.backward(self._tape.output_gradient(), names)
        start = {name: gs[0] for name, gs in gradients.items() if gs and gs[0] is not None}
        size = sum(a.numel() * a.element_size() for a in start.values())
        self._names = list(start)
        self._vectors: list[Vector] = []
        self._moves: list[Vector] = []  # A A* of each vector
        self._products: list[Vector] = []
        self._add(start, min(num, vector_room(problem.memory_budget) // max(HELD * size, 1)))
        self.num = len(self._vectors)
        self._inner, self._gram = self._table(self._products), self._table(self._vectors)
        del self._tape, self._moves  # the graph is let go
        # Layer -> [entries, k] of the vectors and of the products.
        self._columns = [
            {name: torch.stack([vector.pop(name).flatten() for vector in vectors], 1) for name in self._names}
            for vectors in ((self._vectors, self._products) if self.num else ())
        ]

    def values(self, perturbations: Mapping[str, Tensor], num: int) -> Tensor:
        """:math:`c(z) - E[c]` of every row, ``[rows]`` in float64 and the loss's unit.

        Args:
            perturbations: layer -> how random weights perturb its result, ``[rows, entries]``.
            num: vectors that are used, the first of all.

        Cost: two inner products of every row with each vector.
        """
        rows = next(iter(perturbations.values()))
        along, across = self._inner.new_zeros(2, len(rows), min(num, self.num))
        for total, columns in zip((along, across), self._columns, strict=False):
            for name, column in columns.items():
                total += (perturbations[name] @ column[:, :num]).to(total.device)
        inner, gram = self._inner[:num, :num], self._gram[:num, :num]
        found = 2 * (along * across).sum(1) - ((along @ inner) * along).sum(1)
        return found - (2 * inner.trace() - (inner * gram).sum())

    def _add(self, new: Vector, num: int) -> None:
        """Up to ``num`` Lanczos vectors from ``new`` on, each made orthogonal to all before it."""
        before = self._norm(new)
        while len(self._vectors) < num:
            for _ in range(2):
                for vector, move in zip(self._vectors, self._moves, strict=True):
                    share = _dot(new, move)
                    new = {name: a - share * vector[name] for name, a in new.items()}
            norm = self._norm(new)
            if norm <= EXHAUSTED * before:
                return
            self._vectors.append({name: a / norm for name, a in new.items()})
            self._moves.append(self._moved(self._vectors[-1]))
            self._products.append(self._product(self._moves[-1]))
            new = self._products[-1]
            before = self._norm(new)

    def _moved(self, vector: Vector) -> Vector:
        """``A A* a``: how weights ``A* a`` perturb the results."""
        return {name: self._tape.uses[name][0].gram(a) for name, a in vector.items()}

    def _product(self, move: Vector) -> Vector:
        us = {name: [u] for name, u in move.items()}
        return {name: q for name, (q,) in self._tape.activation_products(us, self._names, "remainder").items()}

    def _norm(self, vector: Vector) -> float:
        return max(_dot(vector, self._moved(vector)), 0.0) ** 0.5

    def _table(self, vectors: Sequence[Vector]) -> Tensor:
        """``<A* a_i, Q_j>``, which is symmetric, ``[k, k]`` in float64."""
        found = [[_dot(vector, move) for move in self._moves] for vector in vectors]
        table = torch.tensor(found, dtype=torch.float64, device=self._tape.outputs.device).view(len(found), len(found))
        return 0.5 * (table + table.mT)


def _dot(a: Vector, u: Vector) -> float:
    parts = [(a[name].double() * u[name].double()).sum() for name in a]
    return float(sum(part.to(parts[0].device) for part in parts))
