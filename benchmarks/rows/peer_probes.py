"""The peers' estimators of a trace, from curvlinops' products."""

from __future__ import annotations

import statistics

import numpy as np
import torch

from benchmarks import peers
from benchmarks.clock import seconds

AT_ONCE = 8  # vectors that the peers multiply together


class PeerProbes:
    """Products with curvlinops' Hessian: ``num`` Rademacher probes.

    What its estimators need for an error follows from them. It takes several vectors at once, which share the passes
    that do not depend on them.

    Attributes:
        product: seconds for one vector's product.
        values: ``z_i^T (H z)_i`` of every probe and layer, ``[num, L]``.
    """

    def __init__(self, problem, num: int, keep: bool = False):
        self._generator = torch.Generator().manual_seed(0)
        self._sizes = [layer.num_weights for layer in problem.layers]
        self._probes, self._images, values, spent = [], [], [], []
        with peers.plain_attention():
            self._hessian = peers.curvlinops_hessian(problem)
            for start in range(0, num, AT_ONCE):
                z = self._signs(min(AT_ONCE, num - start))
                image: list[torch.Tensor] = []
                spent.append(seconds(lambda z=z, image=image: image.append(self._hessian @ z)) / z.shape[1])
                values += torch.stack([part.sum(0) for part in (z * image[0]).split(self._sizes)], 1).tolist()
                if keep:
                    self._probes += z.to(torch.int8).unbind(1)
                    self._images += image[0].unbind(1)
        self.product, self.values = statistics.median(spent), np.array(values)

    def _signs(self, num: int) -> torch.Tensor:
        return torch.randint(0, 2, (sum(self._sizes), num), generator=self._generator) * 2.0 - 1

    def _times(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._hessian @ part for part in vectors.split(AT_ONCE, 1)], 1)

    def left_by_sketch(self, largest: int) -> dict[int, np.ndarray]:
        """What every probe gives outside a sketch of rank k, ``[num]``, for some k.

        A sketch takes k products and k more with the basis of its range; one nested sketch serves all k.
        """
        with peers.plain_attention():
            basis = torch.linalg.qr(self._times(self._signs(largest)))[0]
            image = self._times(basis)
        plain = np.array([float((z * hz).sum()) for z, hz in zip(self._probes, self._images, strict=True)])
        inside = torch.stack([basis.T @ z.float() for z in self._probes])
        across = torch.stack([image.T @ z.float() for z in self._probes])
        core, found = basis.T @ image, {}
        for k in (k for k in (0, 2, 4, 8, 16, 32, 64) if k <= largest):
            q, hq = inside[:, :k], across[:, :k]
            found[k] = plain - (2 * (q * hq).sum(1) - (q * (q @ core[:k, :k])).sum(1)).numpy()
        return found


def xtrace_products(left: dict[int, float]) -> int | None:
    """Products of XTrace for the error that ``left`` is relative to; ``None`` if the largest sketch does not suffice.

    With m vectors it takes 2 m products and leaves the variance outside a sketch of m - 1, divided by m.
    """
    ranks = [k for k in left if k]
    for m in range(2, max(ranks) + 2):
        if np.exp(np.interp(np.log(m - 1), np.log(ranks), np.log([left[k] for k in ranks]))) <= m:
            return 2 * m
    return None
