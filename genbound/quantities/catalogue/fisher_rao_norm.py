"""``fisher_rao_norm``, measured in :mod:`genbound.quantities.fisher_rao_norm`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from genbound.quantities.base import Quantity, later
from genbound.quantities.summary import Number, Reading, Summary, every_number


def _observe(summary: Summary) -> Iterator[Number]:
    """The norm's own error is that of its square over twice the norm."""
    for number in every_number(summary, Reading()):
        if number.where or not number.value:
            yield number
        else:
            yield replace(number, data_sem=summary["squared_sem"] / (2 * number.value))


QUANTITY = Quantity(
    "fisher_rao_norm",
    "Fisher-Rao norm of the weights",
    later("genbound.quantities.fisher_rao_norm:measure"),
    gradients=lambda problem, options: 3.0,
    reference="Liang, Poggio, Rakhlin & Stokes 2019",
    reading=Reading(fall_when_better=("*",), observe=_observe),
)
