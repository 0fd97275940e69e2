r"""The margin of the training samples and a low percentile of it.

.. math:: m(x, y) = f(x)_y - \max_{j \ne y} f(x)_j

``value`` is the percentile :math:`\gamma` of the margins of all training samples given (linear interpolation), with its
sign. It is negative where more than that part is misclassified. Bounds with :math:`1/\gamma` then do not exist, and
``inverse_square`` is null. ``margin_loss`` is the fraction of samples with a margin of at most :math:`\gamma`, the
empirical term that belongs to a margin bound. Unit: that of the scores.

Exact. Cost: none beyond that of ``losses``, whose forward passes give the margins too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genbound.errors import GenboundError
from genbound.quantities.base import Context, Measured, Quantity
from genbound.quantities.measure_options import option
from genbound.quantities.summary import Reading

if TYPE_CHECKING:
    from genbound.network.problem import Problem


@dataclass(frozen=True)
class MarginOptions:
    """Options of ``margin``."""

    percentile: float = option(
        5.0, "of the training margins, between 0 and 100; its value is the margin γ", flag="--margin-percentile"
    )

    def __post_init__(self) -> None:
        if not isinstance(self.percentile, int | float) or not 0 <= self.percentile <= 100:
            raise GenboundError(f"margin percentile {self.percentile} is not between 0 and 100")


def measure(problem: Problem, context: Context) -> Measured:
    """The margins' percentile, and what stands beside it, from the margins of ``losses``."""
    margins = context.measured["losses"].data["margin"]
    margins = margins[~np.isnan(margins)]
    gamma = float(np.percentile(margins, context.options.percentile))
    return Measured(
        {
            "percentile": float(context.options.percentile),
            "value": gamma,
            "margin_loss": float(np.mean(margins <= gamma)),
            "minimum": float(margins.min()),
            "median": float(np.median(margins)),
            "num_samples": len(margins),
            "inverse_square": gamma**-2 if gamma > 0 else None,
        }
    )


def applies_to(problem: Problem) -> str | None:
    """The loss must have classes, and a sample one label."""
    if not problem.loss.classes:
        return f"a margin needs class scores, and the loss {problem.loss.name} has none"
    batch = problem.batch([0])
    if batch.targets.dim() != 1:
        return "a margin needs one label a sample, and these samples have one for every position"
    if problem.num_classes < 2:
        return "a margin needs at least two classes"
    return None


QUANTITY = Quantity(
    "margin",
    "a low percentile of the training margins",
    measure,
    MarginOptions,
    requires=("losses",),
    reads_data_of=("losses",),
    applies_to=applies_to,
    reading=Reading(fixed=True),
)
