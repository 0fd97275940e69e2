"""The catalogue of quantities: one file each, one row here."""

from genbound.quantities import (
    displacement_norm,
    hessian_trace,
    losses,
    max_positive_trace,
    max_quadratic_form,
    noise_stability,
)
from genbound.quantities.base import Measured, Quantity

QUANTITIES: dict[str, Quantity] = {
    module.QUANTITY.name: module.QUANTITY
    for module in (
        losses,
        displacement_norm,
        hessian_trace,
        noise_stability,
        max_quadratic_form,
        max_positive_trace,
    )
}

__all__ = ["QUANTITIES", "Measured", "Quantity"]
