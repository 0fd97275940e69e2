"""Going on in smaller batches where memory runs out: what is measured does not depend on the batches."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import TypeVar

import torch

from genbound.errors import GenboundError, tell
from genbound.network.network import Network
from genbound.network.weights import BaseProblem

T = TypeVar("T")
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
_WANTED = re.compile(r"tried to allocate ([\d.]+ ?(?:[KMGT]i?B|bytes))", re.IGNORECASE)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed, on any device; also where another error was raised because of it."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS):
            return True
        error = error.__cause__
    return False


def wanted(error: BaseException) -> str:
    """How much the allocation that failed asked for, in brackets; empty where the error does not say."""
    found = _WANTED.search(str(error))
    if found is None:
        return ""
    number, _, unit = found[1].partition(" ")
    return (
        f" (tried to allocate {int(number) / 2**30:.3g} GiB)" if unit == "bytes" else f" (tried to allocate {found[1]})"
    )


def with_less_memory(problem: BaseProblem, name: str, compute: Callable[[], T]) -> T:
    """What ``compute`` gives; where memory runs out, in batches of half the size, as often as that helps.

    Args:
        problem: its ``batch_size`` is halved, and stays so.
        name: of what is measured, for the messages.
        compute: called anew from its beginning; random numbers are named, so it draws the same ones.

    Raises:
        GenboundError: there is not enough memory for one sample.
    """
    while True:
        try:
            return compute()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _halve(problem, name, error)
        # The error is gone here, and with it the tensors of the pass that failed.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _halve(problem: BaseProblem, name: str, error: BaseException) -> None:
    size = problem.batch_size if isinstance(problem, Network) else 1
    if size == 1:
        raise GenboundError(
            f"{name}: the memory is not enough for one sample{wanted(error)}; give the process more (--memory and "
            "--batch-size cannot go below one sample), or shorter samples. With --out, what was finished is kept and "
            "the same command continues"
        ) from error
    problem.batch_size = size // 2
    tell(
        f"{name}: out of memory in batches of {size}{wanted(error)}: going on in batches of {size // 2} "
        "(--batch-size or --memory say so from the start)"
    )
