"""What torch, a model or a loss says it cannot do, in our one line."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator

from torch.func import functional_call

from genbound.errors import GenboundError, first_line

NO_DERIVATIVE = re.compile(
    r"derivative for '?(?:aten::)?(\w+?)(?:_backward)?'? is not implemented|forward AD with (\w+)"
)
UNSUPPORTED = re.compile("not implemented|not support|unsupported|NYI|once_differentiable", re.IGNORECASE)
NOT_VECTORISED = re.compile("vmap|batching rule|functorch|doesn't have storage", re.IGNORECASE)
ABOUT_TYPES = re.compile(r"\bd?types?\b|float|double|\bhalf\b", re.IGNORECASE)
FLEXIBLE = re.compile("flex_?attention", re.IGNORECASE)
USE_PLAIN_ATTENTION = (
    "torch's flex_attention cannot be differentiated twice (on a CPU not even once): give a --model that has "
    "F.scaled_dot_product_attention with a mask in its place (in transformers: attn_implementation='sdpa')"
)
TAKE_OUT_INFERENCE = (
    "the model has torch.inference_mode in its forward, and what is computed there has no derivative: take it out; who "
    "calls the model decides whether gradients are recorded"
)
TAKE_OUT_IN_PLACE = (
    "the model writes over numbers that its own derivative needs (an operation whose name ends in _, out= or an "
    "assignment to a slice of them), so that it has no gradient: let it write into a copy"
)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Say in one line what the model, its loss, or torch for them, refuses while a network is measured.

    Raises:
        GenboundError: with what was refused and what would mend it. An error of genbound's own stays what it is.
    """
    try:
        yield
    except GenboundError:
        raise
    except Exception as error:
        if (line := refused_by_torch(error) or _raised_by_the_user(error)) is None:
            raise
        raise GenboundError(line) from error


def refused_by_torch(error: Exception) -> str | None:
    """The line for what torch is known to refuse, ``None`` for any other error."""
    said = str(error)
    if FLEXIBLE.search(said):
        return USE_PLAIN_ATTENTION
    if "Inference tensors cannot be" in said:
        return TAKE_OUT_INFERENCE
    if "modified by an inplace operation" in said:
        return TAKE_OUT_IN_PLACE
    if (found := NO_DERIVATIVE.search(said)) is not None:
        operation = found.group(1) or found.group(2)
        return (
            f"torch has no derivative of {operation} of the order that is needed: give a --model (or a --loss) that "
            "computes it by plain operations, or measure with --measures what needs no derivatives"
        )
    return None


def is_unsupported(error: Exception) -> bool:
    """Whether torch says that it has no such operation, or no derivative of it: another way may do without."""
    return refused_by_torch(error) is not None or UNSUPPORTED.search(str(error)) is not None


def is_not_vectorised(error: Exception) -> bool:
    """Whether torch says that something has no vectorised form: samples alone may do without."""
    return is_unsupported(error) or isinstance(error, NotImplementedError) or bool(NOT_VECTORISED.search(str(error)))


def is_about_types(error: Exception) -> bool:
    """Whether a model says that it takes no numbers of another precision; by an assertion, perhaps without a word."""
    return (
        is_unsupported(error) or isinstance(error, TypeError | AssertionError) or bool(ABOUT_TYPES.search(str(error)))
    )


def _raised_by_the_user(error: Exception) -> str | None:
    """The line for an error out of the model or the loss, ``None`` for one that is none of theirs."""
    frames = [(frame.f_code, frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(code is functional_call.__code__ for code, _ in frames):
        part = "model"
    elif any(code.co_name == "per_sample" and name == "genbound.network.own_loss" for code, name in frames):
        part = "loss"
    else:
        return None
    return (
        f"the {part} raised {type(error).__name__} on some of the samples: {first_line(error)}; check these "
        f"samples, or let the {part} take them"
    )
