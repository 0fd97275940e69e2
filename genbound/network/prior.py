"""Where a certificate's prior is centred: at the start, or at weights that saw only some of the training samples."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genbound.errors import GenboundError
from genbound.estimators.all_finite import all_finite

if TYPE_CHECKING:
    from genbound.network.network import Network

Factors = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Prior:
    """A centre that some samples were used for.

    Attributes:
        params, buffers: name -> value at the centre.
        samples: places in the data of the samples that it saw; ``None`` if nobody said which.
        factors: weight -> the two factors of its displacement from the start ``[out, r]``, ``[r, in]``, of an adapter.
        choices: from how many priors, fixed before, this one was chosen after the other samples had been seen.
    """

    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    samples: frozenset[int] | None
    factors: Factors = field(default_factory=dict)
    choices: int = 1

    @classmethod
    def of(
        cls, network: Network, tensors: Mapping[str, Tensor], samples: Iterable[int] | None,
        factors: Factors | None = None, choices: int = 1,
    ) -> Prior:  # fmt: skip
        """From a state of the same network.

        Args:
            network: whose weights it is a centre for.
            tensors: name -> parameter and buffer. A buffer that is not there has the value of the start.
            samples: places in the data.
            factors: of an adapter.
            choices: from how many priors it was chosen.

        Raises:
            GenboundError: a weight is absent or does not fit, a sample is not in the data, or there is no choice.
        """
        if choices < 1:
            raise GenboundError(f"a prior is chosen from 1 or more, not from {choices}")
        known = None if samples is None else frozenset(int(i) for i in samples)
        if known and not 0 <= min(known) <= max(known) < len(network.data):
            wrong = min(known) if min(known) < 0 else max(known)
            raise GenboundError(
                f"the prior's samples have number {wrong}, and the data have {len(network.data)}: count from 0, in the "
                "order of the data"
            )
        params = {name: _fitting(name, p, tensors.get(name)) for name, p in network.params.items()}
        buffers = {
            name: _fitting(name, b, tensors.get(name, network.init_buffers[name]))
            for name, b in network.buffers.items()
        }
        pairs = {
            name: (left.detach().to(params[name], copy=True), right.detach().to(params[name], copy=True))
            for name, (left, right) in (factors or {}).items()
            if name in params
        }
        return cls(params, buffers, known, pairs, choices)

    def digest(self) -> str:
        """SHA-256 of everything that a measurement depends on."""
        state = hashlib.sha256(repr(None if self.samples is None else sorted(self.samples)).encode())
        if self.choices > 1:
            state.update(f"one of {self.choices}".encode())
        factors = {f"{name} {side}": f for name, pair in self.factors.items() for side, f in enumerate(pair)}
        for name, tensor in sorted({**self.params, **self.buffers, **factors}.items()):
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return state.hexdigest()


def adapter_remark(prior: Prior | None, adapted: Collection[str]) -> str:
    """That the prior says nothing of factors that an adapter moved; empty where it does.

    Args:
        prior: the centre of certificates.
        adapted: weights that an adapter moved.
    """
    lacking = [] if prior is None else [name for name in adapted if name not in prior.factors]
    if not lacking:
        return ""
    return (
        f"the prior is no adapter with {lacking[0]}{_others(len(lacking) - 1)}, which one moved here: in certificates "
        "noise is on the whole weight, of many more coordinates than its two factors, so that they are likely to be "
        "vacuous; name the adapter as its training began, or as it had seen the prior's samples (docs/certificates.md)"
    )


def _others(num: int) -> str:
    return f" and {num:,} other{'s' * (num > 1)}" if num else ""


def _fitting(name: str, like: Tensor, found: Tensor | None) -> Tensor:
    if found is None or found.shape != like.shape:
        shape = (
            "is not in it" if found is None else f"has shape {tuple(found.shape)} there and {tuple(like.shape)} here"
        )
        raise GenboundError(f"the prior is no checkpoint of this network: {name} {shape}")
    found = found.detach().to(device=like.device, dtype=like.dtype, copy=True)
    if found.is_floating_point() and not all_finite(found):
        raise GenboundError(f"{name} of the prior has NaN or infinite entries: the checkpoint is damaged")
    return found
