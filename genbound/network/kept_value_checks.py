"""Whether a value that a module keeps from an earlier pass stands between a weight and what the network computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genbound.errors import GenboundError
from genbound.network.kept_values import kept_tensors, without

if TYPE_CHECKING:
    from genbound.network.network import Network


def check_kept_values(network: Network) -> None:
    """Refuse a network that was run before and goes by what it kept then in place of its weights.

    A weight that no derivative reaches is looked at where its module keeps tensors: if it is reached without them, they
    were computed from it.

    Raises:
        GenboundError: with the module, the attribute and what would empty it.

    Cost: nothing where no module with weights keeps tensors; else up to three passes of at most two samples for each.
    """
    for path, module in network.model.named_modules():
        kept = kept_tensors(module)
        names = [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)] if kept else []
        weights = {name: network.params[name] for name in names if name in network.params}
        if not weights:
            continue
        unreached, found = weights.keys() - _reached(network, weights), set()
        for attributes in (False, True) if unreached else ():
            try:
                with without(module, kept, attributes):
                    found |= unreached & _reached(network, weights)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # a user's code fails in ways of its own without what is no copy
                continue
        if found:
            raise GenboundError(
                f"{path or 'the model'} keeps a value of its weight {min(found)} from an earlier pass (in "
                f"{', '.join(kept)}) and does not look at the weight any more: give a model that has not been run, or "
                "empty it (often model.train() does)"
            )


def _reached(network: Network, weights: Mapping[str, Tensor]) -> set[str]:
    """Those of the weights that the outputs of a few samples have a derivative in."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items() if weight.is_floating_point()}
    inputs = network.batch(network.spread_run(2)[:2]).inputs
    with torch.enable_grad():
        outputs = network.forward({**network.params, **leaves}, inputs)
        if not leaves or not outputs.requires_grad:
            return set()
        found = torch.autograd.grad(outputs.sum(), list(leaves.values()), allow_unused=True)
    return {name for name, gradient in zip(leaves, found, strict=True) if gradient is not None}
