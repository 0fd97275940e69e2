r"""One layer's own block as an operator on vectors, one vector for each sample of a tape.

A vector is a weight direction, flattened. Where a layer acts once as a linear map on fewer rows than it has inputs, the
vectors are taken in an orthonormal basis of the sample's own inputs (``out x r`` numbers instead of ``out x in``): all
of the block's range lies there, and what the start vector has outside does not matter to any function of the block.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genbound.network.tape import Tape
from genbound.network.weight_uses import LinearUse


class LayerBlock:
    """The Hessian block of one layer for each of the N samples of a tape.

    Args:
        tape: of the samples.
        name: of the layer.
        part: ``hessian``, or ``remainder`` for what it has beside its Gauss-Newton part.

    Attributes:
        dimension: length of a vector.
        precision: relative size below which a residual is rounding.
        like: an empty tensor in the type of the pass, on the device of the layer, of its vectors and products.
    """

    def __init__(self, tape: Tape, name: str, part: str = "hessian"):
        self.tape, self.name, self.part = tape, name, part
        self.precision = 1e-12 if tape.outputs.dtype == torch.float64 else 1e-6
        self._uses, self._basis = tape.uses[name], None
        self._shape = tuple(tape.weights[name].shape)
        self.like = tape.outputs.detach().new_empty(0, device=tape.weights[name].device)
        if len(self._uses) == 1 and isinstance(self._uses[0], LinearUse):
            use = self._uses[0]
            if use.num_positions < use.inputs.shape[-1]:
                compressed, self._basis = use.compressed()
                self._original, self._uses = use, [compressed]
                outputs = self._shape[1] if use.transposed else self._shape[0]
                self._shape = (outputs, self._basis.shape[-1])
        self.dimension = torch.Size(self._shape).numel()

    def narrowed(self, tape: Tape, rows: Sequence[int]) -> LayerBlock:
        """The same block for some of the samples, on a smaller tape but in the very same basis.

        Args:
            tape: a pass of those samples alone.
            rows: their places on this block's tape.
        """
        kept = copy.copy(self)
        kept.tape, kept._uses = tape, tape.uses[self.name]
        if self._basis is not None:
            # The smaller batch may be padded less; the samples' own inputs are the same, in the old basis.
            kept._original, kept._basis = kept._uses[0], self._basis[rows]
            kept._uses = [replace(self._uses[0], edge=kept._original.edge, inputs=kept._original.inputs @ kept._basis)]
        return kept

    def start(self, v: Tensor) -> Tensor:
        """The part of a weight direction that the blocks can see, ``[N, dimension]``.

        Args:
            v: in the shape of the weight, shared by all samples, or ``[N, *shape]``.
        """
        if self._basis is not None:
            return self._original.compress_weight(v, self._basis).flatten(1)
        return v.flatten(1) if v.dim() > len(self._shape) else v.reshape(1, -1).expand(len(self.tape), -1)

    def product(self, vectors: Tensor) -> Tensor:
        """Every sample's block times its own vector, ``[N, dimension] -> [N, dimension]``."""
        v = vectors.to(self.tape.outputs.dtype).unflatten(1, self._shape)
        us = [use.perturb(v) for use in self._uses]
        qs = self.tape.activation_products({self.name: us}, [self.name], self.part)[self.name]
        total = self._uses[0].adjoint(qs[0])
        for use, q in zip(self._uses[1:], qs[1:], strict=True):
            total = total + use.adjoint(q)
        return total.flatten(1)

    def columns(self) -> Iterator[Tensor]:
        """The columns of the blocks one after another, each ``[N, dimension]`` in float64.

        Cost: a double backward pass for each.
        """
        for j in range(self.dimension):
            unit = torch.zeros(len(self.tape), self.dimension, dtype=torch.float64, device=self.like.device)
            unit[:, j] = 1
            yield self.product(unit).double()


def dense_blocks(block: LayerBlock) -> Tensor:
    """The blocks of all samples of a tape as matrices, ``[N, dimension, dimension]`` in float64, made symmetric."""
    blocks = torch.stack(list(block.columns()), 2)
    return 0.5 * (blocks + blocks.mT)
