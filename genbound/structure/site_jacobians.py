r"""The Jacobians between the sites of one forward pass.

:math:`x_i` is the output of site i (:mod:`genbound.structure.output_sites`), and :math:`J_{ij}` the Jacobian of the map
from it to the output of a later site j. Products with it come from a forward-mode derivative, products with its
transpose from a backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genbound.network.forward_mode import dual_level
from genbound.network.problem import Problem
from genbound.structure.output_sites import Site, find_sites
from genbound.structure.output_watch import OutputWatch


def sample_norms(z: Tensor, num: int) -> np.ndarray:
    """Euclidean norm of each of ``num`` samples' part of a tensor ``[num, ...]``; ``[num]``."""
    return z.reshape(num, -1).double().norm(dim=1).cpu().numpy()


class SitePass:
    """One forward pass of some samples: the sites, their outputs, and what the operations in between did.

    Args:
        problem: what is measured.
        names: of the layers whose outputs are sites.
        positions: of the ``num`` samples.

    Attributes:
        tape: the pass, with its graph.
        sites: in the order of execution.
        outputs: of every site, ``[num, ...]``.
        norms: of every site's output, ``[num]``.
        contractions: layer -> ratio of the norms before and after the activation behind it ``[num]``, where one is.
    """

    def __init__(self, problem: Problem, names: Sequence[str], positions: Sequence[int]):
        self.problem, self.positions, self.num = problem, list(positions), len(positions)
        self.tape = problem.tape(self.positions, names)
        self.sites = find_sites(self.tape)
        self._folded = {site.name: site.folded for site in self.sites}
        self._inputs = problem.batch(self.positions).inputs
        clean = self._watch()
        # In the shape that the graph has them in, which is where derivatives are pulled back to.
        self.outputs = [clean.outputs[site.name].reshape(_shape(site)) for site in self.sites]
        self.contractions = clean.contractions
        self.norms = [sample_norms(z, self.num) for z in self.outputs]

    def moved(self, i: int, noise: Tensor) -> list[Tensor]:
        """Output of every later site, as the network has it, once noise ``[num, ...]`` is added to that of site i."""
        outputs = self._watch(noise=(self.sites[i].name, noise)).outputs
        return [outputs[site.name] for site in self.sites[i + 1 :]]

    def push(self, i: int, direction: Tensor) -> list[Tensor | None]:
        """``J_ij u`` at every later site for a direction u ``[num, ...]``; ``None`` if it does not depend on site i."""
        if i == len(self.sites) - 1:
            return []
        with dual_level():
            tangents = self._watch(tangent=(self.sites[i].name, direction)).tangents
        return [tangents.get(site.name) for site in self.sites[i + 1 :]]

    def upstream(self, j: int) -> list[int]:
        """Earlier sites that site j depends on."""
        nodes = self.tape.graph.upstream(self.sites[j].edge.node)
        return [i for i in range(j) if self.sites[i].edge.node in nodes]

    def pull(self, j: int, cotangent: Tensor, earlier: Sequence[int]) -> list[Tensor]:
        """``J_ij^T w`` at earlier sites, each in the shape of its output, for w in the shape of site j's."""
        edges = [self.sites[i].edge for i in earlier]
        return list(torch.autograd.grad([self.sites[j].edge], edges, [cotangent], retain_graph=True))

    def _watch(self, noise: tuple[str, Tensor] | None = None, tangent: tuple[str, Tensor] | None = None) -> OutputWatch:
        watch = OutputWatch(self.problem, self._folded, self.num, noise, tangent)
        with torch.no_grad(), watch:
            self.problem.forward(self.problem.params, self._inputs)
        return watch


def _shape(site: Site) -> tuple[int, ...]:
    return tuple(int(size) for size in site.edge.node._input_metadata[site.edge.output_nr].shape)
