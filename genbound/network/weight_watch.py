"""Watches a running forward pass, below autograd, for the operations that apply a layer's weight.

:class:`WeightWatch` is the one reader of executed operations that looks for weights. Who wants to act on what it finds
gives it a function: :mod:`genbound.curvature.recording` keeps the operations, :mod:`genbound.curvature.noise_by_row`
adds noise to their results, and :mod:`genbound.structure.output_watch` asks it which functions are layers. Four readers
of a pass are something else:

* :class:`~genbound.network.graph.Graph` reads autograd's record when the pass is over. It alone sees what a double
  backward pass will go through, and a running pass does not see what comes later.
* :class:`~genbound.structure.output_watch.OutputWatch` is above autograd, where functions are still whole and a
  derivative can be put into a result: below, an activation on two axes and one on three are different operations, and
  tangents are calls of their own.
* :class:`~genbound.structure.call_record.CallRecord` keeps what belongs to autograd's nodes, in a pass with gradients.
  It asks of each operation what depends on the input, and of none which weight it applies: the record tells that.
* :class:`~genbound.structure.path_sums.PathSums` computes other numbers in place of the network's. Every weight that it
  meets is squared, a layer's or not, so that there is none to look for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.network.applied_weights import read_call

if TYPE_CHECKING:
    from genbound.network.layers import Layer
    from genbound.network.problem import Problem
    from genbound.network.weight_uses import Use

# Runs an operation ``(func, args, kwargs)`` and returns its result; the last argument is the layer that it applies, and
# how.
Visit = Callable[[Any, Sequence, Mapping[str, Any], "tuple[Layer, Use] | None"], Any]


class WeightWatch(TorchDispatchMode):
    """Hands every executed operation to ``visit``, with the layer that it applies.

    Args:
        problem: whose layers are looked for.
        num: samples in the pass.
        visit: runs each operation in the pass's place.

    Attributes:
        unread: names of the layers whose weight went into an operation that is not known to apply it.
    """

    def __init__(self, problem: Problem, num: int, visit: Visit):
        super().__init__()
        self._layers = {problem.params[layer.name].untyped_storage().data_ptr(): layer for layer in problem.layers}
        self._params, self._num, self._visit = problem.params, num, visit
        self.unread: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        return self._visit(func, args, kwargs, self._find(func, args, kwargs))

    def given(self, values: Iterable[Any]) -> list[Layer]:
        """The layers whose weights, or views of them, are among the values or in lists among them."""
        flat = (b for a in values for b in (a if isinstance(a, list | tuple) else (a,)))
        tensors = (a for a in flat if isinstance(a, Tensor) and a.layout == torch.strided)
        found = (self._layers.get(a.untyped_storage().data_ptr()) for a in tensors)
        return [layer for layer in found if layer is not None]

    def _find(self, func: Any, args: Sequence, kwargs: Mapping[str, Any]) -> tuple[Layer, Use] | None:
        layers = () if func.is_view else self.given(args)
        for layer in layers:
            application = read_call(func, args, kwargs, self._params[layer.name])
            use = None if application is None else application.use(layer.shape, self._num, layer.samples_first)
            if use is not None:
                return layer, use
        self.unread.update(layer.name for layer in layers)
        return None


class WeightedFunctions(TorchFunctionMode):
    """Watches only inside the functions that are given a layer's weight: seeing every operation costs 6 % of a pass."""

    def __init__(self, watch: WeightWatch):
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Sequence, kwargs: Mapping[str, Any]) -> Any:
        """Call a function, under the watch if it is given a layer's weight."""
        with self._watch if self._watch.given((*args, *kwargs.values())) else contextlib.nullcontext():
            return func(*args, **kwargs)


def act_once(problem: Problem) -> bool:
    """Whether every layer of a problem acts once, as a linear map or a convolution on samples that share the pass."""
    return all(
        layer.kind == "unused" or (layer.by_batch and layer.num_uses == 1 and layer.kind in ("linear", "convolution"))
        for layer in problem.layers
    )
