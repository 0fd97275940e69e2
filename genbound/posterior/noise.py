"""Draws from a Gaussian posterior: an independent one for every sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genbound.estimators.random import generator
from genbound.posterior.curvature import Curvature
from genbound.posterior.gaussian import Width
from genbound.posterior.groups import Group


@dataclass(frozen=True)
class Posterior:
    """``N(tuned, Sigma)`` on the groups' tensors.

    Attributes:
        groups: the tensors.
        widths: group -> prior and posterior widths.
        axes: group -> eigenvectors of its covariance, one a column ``[d, d]``, where it is no multiple of one.
    """

    groups: Sequence[Group]
    widths: Mapping[str, Width]
    axes: Mapping[str, Tensor]

    @classmethod
    def of(cls, groups: Sequence[Group], curvatures: Mapping[str, Curvature], widths: Mapping[str, Width]) -> Posterior:
        """From the curvature's axes and the widths along them."""
        axes = {name: found.axes for name, found in curvatures.items() if found.axes is not None}
        return cls(groups, widths, axes)

    @property
    def kl(self) -> float:
        """Divergence from the priors, in nats."""
        return sum(width.kl for width in self.widths.values())

    @property
    def size(self) -> int:
        """Coordinates that are noisy."""
        return sum(group.size for group in self.groups)

    def draw(self, seed: int, keys: Sequence[tuple[str | int, ...]]) -> dict[str, Tensor]:
        """Tensors from the posterior, independent for each key.

        Args:
            seed: of all randomness.
            keys: N names of streams.

        Returns:
            Group -> ``[N, *shape]``.
        """
        found = {group.name: torch.empty(len(keys), *group.tuned.shape) for group in self.groups}
        for place, key in enumerate(keys):
            stream = generator(seed, *key)
            for group in self.groups:
                torch.randn(group.tuned.shape, generator=stream, out=found[group.name][place])
        return {
            group.name: group.tuned + self._spread(group, found[group.name].to(group.tuned)) for group in self.groups
        }

    def _spread(self, group: Group, normals: Tensor) -> Tensor:
        """Standard normals ``[N, *shape]`` to noise of the group's covariance.

        By its symmetric root: eigenvectors of equal eigenvalues are a matter of rounding, the root is not.
        """
        deviations = torch.as_tensor(self.widths[group.name].variances).sqrt().to(normals)
        if group.name not in self.axes:
            return normals * deviations
        axes = self.axes[group.name]
        return ((normals.flatten(1) @ axes * deviations) @ axes.T).view_as(normals)

    def deviation(self, group: Group) -> float:
        """Root mean square of the noise on one coordinate of the group, in the weights' unit."""
        variances = self.widths[group.name].variances
        return float(variances.mean() ** 0.5)

    def covariance_action(self, name: str, directions: Tensor) -> Tensor:
        """``Sigma x`` for directions ``[..., d]`` in one group's tensor."""
        width = self.widths[name]
        variances = torch.as_tensor(width.variances).to(directions)
        if name not in self.axes:
            return directions * variances
        axes = self.axes[name].to(directions)
        return (directions @ axes * variances) @ axes.T
