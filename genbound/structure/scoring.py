"""Which weights give a network's scores, followed forwards through one pass.

Below autograd every operation is seen with what it is given. A tensor that depends on the inputs carries the weights of
the last product on its way; a product with another weight puts that in their place. Where tensors meet, what they carry
is joined: of two heads side by side both give the scores. The names of layers and their order play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.checkpoints.heads import Scoring
from genbound.data.sample_parts import stored_parts
from genbound.network.operations import UNKNOWN, of_aten
from genbound.structure.call_record import tensors, written

LOOKUPS = ("embedding", "index", "index_select", "gather")  # products with rows of the unit matrix


def scoring_of(weights: Mapping[str, Tensor], inputs: Any, forward: Callable[[], Tensor]) -> Scoring:
    """How the scores come from the weights.

    Args:
        weights: the parameters that the pass uses, by name, of any shape.
        inputs: of the pass.
        forward: runs it, in evaluation mode, and gives the scores.

    Returns:
        Without ``last`` where nothing was seen, as in a compiled network.

    **Cost**: one forward pass, all of whose results are kept.
    """
    followed = _Followed(weights, inputs)
    with torch.no_grad(), followed:
        scores = forward()
    return followed.of([scores])[0] or Scoring()


class _Followed(TorchDispatchMode):
    """What the tensors of a pass carry, by the memory that they lie in; they are kept, so that none is used again."""

    def __init__(self, weights: Mapping[str, Tensor], inputs: Any):
        super().__init__()
        self._weights, self._kept = weights, []
        self._carried: dict[int, Scoring] = {}  # of what depends on the inputs
        self._named: dict[int, frozenset[str]] = {}  # of parameters, and of what is made of them alone
        for name, weight in weights.items():
            for place in self._places(weight):
                self._named[place] = self._named.get(place, frozenset()) | {name}
        for place in self._places(inputs):
            self._carried[place] = Scoring()

    def _places(self, values: Any) -> list[int]:
        parts = [part for tensor in tensors(values) for part in stored_parts(tensor) if part.numel()]
        self._kept += parts
        return [part.untyped_storage().data_ptr() for part in parts]

    def of(self, values: Any) -> tuple[Scoring | None, frozenset[str]]:
        """What tensors carry, ``None`` where none depends on the inputs; and the parameters among them."""
        places = self._places(values)
        found = [self._carried[place] for place in places if place in self._carried]
        named = [self._named[place] for place in places if place in self._named and place not in self._carried]
        carried = Scoring(*(frozenset().union(*part) for part in zip(*found, strict=True))) if found else None
        return carried, frozenset().union(*named)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if of_aten(func).name == "like":  # these take the size only
            return out
        carried, named = self.of((args, kwargs))
        changed = (out, [a for a, said in zip(args, func._schema.arguments, strict=False) if written(said)])
        if carried is not None:
            matrices = frozenset(name for name in named if self._weights[name].dim() >= 2)
            if matrices and _multiplies(func):
                carried = Scoring(matrices, named, carried.before | carried.last)
            else:
                carried = carried._replace(beside=carried.beside | named)
            self._carried |= dict.fromkeys(self._places(changed), carried)
        elif named:
            self._named |= dict.fromkeys(self._places(changed), named)
        return out


def _multiplies(func: Any) -> bool:
    """A product that sums, or an operation that may be one, such as a whole recurrent layer in one kernel."""
    row = of_aten(func)
    if torch.Tag.pointwise in func.tags or row.elementwise:
        return False
    return row.meets is not None or row.name in LOOKUPS or row is UNKNOWN
