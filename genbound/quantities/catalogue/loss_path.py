"""``loss_path``, measured in :mod:`genbound.quantities.loss_path`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from genbound.errors import GenboundError
from genbound.formatting import digits
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import option
from genbound.quantities.summary import Number, Reading, Summary

MOVED = ("all", "layers")


@dataclass(frozen=True)
class LossPathOptions:
    """Options of ``loss_path``."""

    points: tuple[float, ...] = option(
        tuple(i / 8 for i in range(-2, 13)),
        "places t of the weights W0 + t v at which the loss is taken; 0 and 1 always are",
    )
    moves: str = option("all", "which weights move: all, or the layers (the others stay as fine-tuned)", choices=MOVED)

    def __post_init__(self) -> None:
        if not all(math.isfinite(t) for t in self.points):
            raise GenboundError("points must be finite numbers")


def _describe(summary: Summary) -> list[str]:
    start, end = (next(p for p in summary["points"] if p["t"] == t) for t in (0.0, 1.0))
    found = (
        f"Loss along the displacement: {_number(start['value'])} at the initialisation, {_number(end['value'])} at the"
        f" fine-tuned weights, where its slope is {digits(summary['slope'])} and its curvature v'Hv ="
        f" {digits(summary['curvature'])}"
    )
    return [f"{found}; from these the parabola says {digits(start['parabola'])} at the initialisation."]


def _number(value: float | None) -> str:
    return "not finite" if value is None else digits(value)


def _observe(summary: Summary) -> Iterator[Number]:
    for point in summary["points"]:
        if point["value"] is not None:
            yield Number(f"t={point['t']:g}", point["value"], 0.0, point["data_sem"])
    of_all = 0.0 if summary["of_all_data"] else None
    yield from (Number(name, summary[name], 0.0, of_all) for name in ("slope", "curvature"))


QUANTITY = Quantity(
    "loss_path",
    "loss along the straight line from the initialisation to the fine-tuned weights and beyond, with its parabola",
    later("genbound.quantities.loss_path:measure"),
    LossPathOptions,
    on_request=True,
    gradients=later("genbound.quantities.loss_path:forecast"),
    unit="forward",
    reference="Goodfellow, Vinyals & Saxe 2015",
    reading=Reading(describe=_describe, observe=_observe, plots=("loss_path",)),
)
