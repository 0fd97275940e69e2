"""Draws from a Gaussian posterior: an independent one for every sample."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genbound.estimators.random import generator
from genbound.posterior.acting_noise import Action
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
        acting: groups whose noise is drawn as what it does to a sample (:mod:`genbound.posterior.acting_noise`). Their
            axes are those of a row of the noise, ``[in, in]``; all rows are alike and independent.
        log_union: what choosing the priors' widths costs, in nats; not a number where nobody said.
    """

    groups: Sequence[Group]
    widths: Mapping[str, Width]
    axes: Mapping[str, Tensor]
    acting: Collection[str] = ()
    log_union: float = math.nan

    @classmethod
    def of(
        cls, groups: Sequence[Group], curvatures: Mapping[str, Curvature], widths: Mapping[str, Width],
        acting: Collection[str] = (), log_union: float = math.nan,
    ) -> Posterior:  # fmt: skip
        """From the curvature's axes and the widths along them."""
        axes = {name: found.axes for name, found in curvatures.items() if found.axes is not None}
        return cls(groups, widths, axes, acting, log_union)

    @property
    def kl(self) -> float:
        """Divergence from the priors, in nats."""
        return sum(width.kl for width in self.widths.values())

    @property
    def size(self) -> int:
        """Coordinates that are noisy."""
        return sum(group.size for group in self.groups)

    def draw(self, seed: int, keys: Sequence[tuple[str | int, ...]]) -> dict[str, Tensor]:
        """Tensors from the posterior, independent for each key, of the groups that are not acting.

        Args:
            seed: of all randomness.
            keys: N names of streams.

        Returns:
            Group -> ``[N, *shape]``.
        """
        groups = [group for group in self.groups if group.name not in self.acting]
        found = {group.name: torch.empty(len(keys), *group.tuned.shape) for group in groups}
        for place, key in enumerate(keys):
            stream = generator(seed, *key)
            for group in groups:
                torch.randn(group.tuned.shape, generator=stream, out=found[group.name][place])
        return {group.name: group.tuned + self._spread(group, found[group.name].to(group.tuned)) for group in groups}

    def normals(
        self, seed: int, keys: Sequence[tuple[str | int, ...]], actions: Mapping[str, Action]
    ) -> dict[str, Tensor]:
        """Standard normals of the acting groups, independent for each key.

        Args:
            seed: of all randomness.
            keys: N names of streams.
            actions: how every acting group acts on a sample.

        Returns:
            Group -> ``[N, T, out]``.
        """
        tuned = {group.name: group.tuned for group in self.groups}
        return {
            name: torch.stack([_by_position(generator(seed, *key, name), act) for key in keys]).to(tuned[name])
            for name, act in actions.items()
        }

    @cached_property
    def roots(self) -> dict[str, Tensor]:
        """Of the covariance of a row of the noise of every acting group, for the network that is moved by it."""
        found = {}
        for group in self.groups:
            if group.name in self.acting:
                deviations = torch.as_tensor(self.widths[group.name].variances).sqrt()
                axes = self.axes.get(group.name)
                root = deviations.squeeze() if axes is None else axes.double().cpu() * deviations
                found[group.name] = root.to(group.tuned.device)
        return found

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
        variances = self.widths[group.name].variances  # of as many coordinates each
        return float(variances.mean() ** 0.5)

    def covariance_action(self, name: str, directions: Tensor) -> Tensor:
        """``Sigma x`` for directions ``[..., d]`` in one group's tensor."""
        width = self.widths[name]
        variances = torch.as_tensor(width.variances).to(directions)
        if name not in self.axes:
            return directions * variances
        axes = self.axes[name].to(directions)
        return (directions @ axes * variances) @ axes.T


def _by_position(stream: torch.Generator, action: Action) -> Tensor:
    """Standard normals ``[T, out]``: of a longer sample they begin with the same ones.

    Torch draws them in groups of 16, and those of an incomplete last group otherwise.
    """
    width = -(-action.width // 16) * 16
    return torch.randn(action.positions, width, generator=stream)[:, : action.width]
