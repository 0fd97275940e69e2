"""Losses that are no numbers are refused, with the sample that has them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from genbound.errors import GenboundError


def check_finite(losses: Tensor, indices: Sequence[int], spec: str) -> None:
    """Refuse losses ``[N]`` that are not finite: no derivative of them means anything.

    Raises:
        GenboundError: naming the first such sample, one of ``indices``.
    """
    wrong = (~losses.detach().isfinite()).nonzero()
    if len(wrong):
        raise GenboundError(
            f"the loss of sample {indices[int(wrong[0])]} of {spec or 'the data'} is not finite: its inputs or the "
            "model's output overflow; check that sample, or measure in float64"
        )
