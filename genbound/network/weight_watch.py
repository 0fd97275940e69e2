"""Finds the layers in a running forward pass, operation by operation, below autograd.

Only a weight that acts by a linear map or a convolution, on the rows of samples that share the pass, is found; whoever relies on
it checks that every layer was.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from genbound.network.weight_uses import ConvolutionUse, LinearUse

aten = torch.ops.aten
LINEAR = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default})


class LayerWatch:
    """Recognises the operations in which a problem's layers act on ``num`` samples.

    Used as a context around the pass: torch's fused encoder layer, which hides the products that are watched for, is taken apart.
    """

    def __init__(self, problem, num: int):
        self._weights = {problem.params[layer.name].untyped_storage().data_ptr(): layer for layer in problem.layers}
        self._params, self._num = problem.params, num

    def __enter__(self):
        self._fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        return self

    def __exit__(self, *error):
        torch.backends.mha.set_fastpath_enabled(self._fused)

    def touches(self, values: Iterable) -> bool:
        """A layer's weight, or a view of it, is among the values."""
        return any(isinstance(v, Tensor) and v.untyped_storage().data_ptr() in self._weights for v in values)

    def find(self, func, args):
        """``(layer, use)`` of the layer whose weight the operation applies, or ``None``."""
        if func in LINEAR:
            inputs, weight = args[-2:]
            layer = self._weights.get(weight.untyped_storage().data_ptr())
            if layer is None or not (weight.dim() == 2 or weight.stride(0) == 0):
                return None
            own, weight = self._params[layer.name], weight if weight.dim() == 2 else weight[0]
            rows, num = inputs.reshape(-1, inputs.shape[-1]), self._num  # what is not contiguous goes through bmm
            rows = rows.unflatten(0, (num, -1) if layer.samples_first else (-1, num))
            stored_transposed = weight.stride() == own.stride() and weight.shape == own.shape
            return layer, LinearUse(None, rows if layer.samples_first else rows.transpose(0, 1), stored_transposed, layer.samples_first)  # fmt: skip
        if func is aten.convolution.default:
            layer = self._weights.get(args[1].untyped_storage().data_ptr())
            if layer is None:
                return None
            stride, padding, dilation, transposed, output_padding, groups = args[3:9]
            return layer, ConvolutionUse(
                None, args[0], self._num, layer.samples_first, layer.shape, stride, padding, dilation, transposed,
                output_padding, groups,
            )  # fmt: skip
        return None


def act_once(problem) -> bool:
    """Whether every layer of a problem acts once, as a linear map or a convolution on samples that share the pass."""
    return all(
        layer.kind == "unused" or (layer.by_batch and layer.num_uses == 1 and layer.kind in ("linear", "convolution"))
        for layer in problem.layers
    )
