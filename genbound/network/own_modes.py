"""Measuring computes in the modes of torch that it needs, whatever its caller has switched on around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

AUTOCASTING = ("cpu", "cuda", "xpu", "mps")


@contextlib.contextmanager
def own_modes() -> Iterator[None]:
    """Record gradients, and compute in the type of the weights.

    Under ``torch.no_grad()`` second derivatives would be zero without a word, and ``torch.autocast`` would round every
    product to half precision. A model that switches these itself does so still.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in AUTOCASTING:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
