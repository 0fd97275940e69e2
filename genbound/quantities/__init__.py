"""The catalogue of quantities: one file each, one row here."""

from genbound.quantities import (
    compression,
    displacement_norm,
    fisher_rao,
    flatness,
    hessian_trace,
    init_activations,
    input_norm,
    layer_norms,
    losses,
    margin,
    max_positive_trace,
    max_quadratic_form,
    noise_stability,
    path_norm,
    sharpness,
    spectral_norm,
    structure,
)
from genbound.quantities.base import Measured, Quantity

QUANTITIES: dict[str, Quantity] = {
    module.QUANTITY.name: module.QUANTITY
    for module in (
        losses,
        displacement_norm,
        structure,
        spectral_norm,
        layer_norms,
        input_norm,
        init_activations,
        margin,
        hessian_trace,
        noise_stability,
        max_quadratic_form,
        max_positive_trace,
        compression,
        flatness,
        sharpness,
        path_norm,
        fisher_rao,
    )
}

__all__ = ["QUANTITIES", "Measured", "Quantity"]
