"""Forward-mode derivatives, without what torch says of itself when they are first taken.

The first tangent of a process makes torch load rules that it compiles by ``torch.jit.script``, which newer versions
warn of as deprecated. Nobody who measures a network asked for that, and under ``filterwarnings = error`` it would end
the measurement.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


@functools.cache
def load_rules() -> None:
    """Let torch load its rules, once for the process and silently."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*")
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def jvp(function: Callable[..., Any], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """:func:`torch.func.jvp`."""
    load_rules()
    found = torch.func.jvp(function, primals, tangents)
    return found[0], found[1]


def dual_level() -> forward_ad.dual_level:
    """:class:`torch.autograd.forward_ad.dual_level`."""
    load_rules()
    return forward_ad.dual_level()
