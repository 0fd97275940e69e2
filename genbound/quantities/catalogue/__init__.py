"""The catalogue of quantities: one file each, one row here, and no torch.

A row whose measuring takes a file of its own stands here, named like that file in :mod:`genbound.quantities`.
"""

from collections.abc import Mapping
from typing import Any

from genbound.quantities import displacement_norm, margin
from genbound.quantities.base import Quantity
from genbound.quantities.catalogue import (
    compression,
    fisher_rao_norm,
    flatness,
    gibbs_error,
    hessian_spectrum,
    hessian_trace,
    init_activations,
    input_norm,
    layer_curvature,
    layer_norms,
    loss_path,
    loss_plane,
    losses,
    matrix_norms,
    max_positive_trace,
    max_quadratic_form,
    noise_stability,
    power_law,
    quantized_error,
    relative_flatness,
    sharpness,
    spectral_norm,
    squared_path_norm,
    structure,
)
from genbound.quantities.summary import Reading

QUANTITIES: dict[str, Quantity] = {
    module.QUANTITY.name: module.QUANTITY
    for module in (
        losses,
        displacement_norm,
        matrix_norms,
        power_law,
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
        relative_flatness,
        sharpness,
        squared_path_norm,
        fisher_rao_norm,
        loss_path,
        loss_plane,
        hessian_spectrum,
        layer_curvature,
        gibbs_error,
        quantized_error,
    )
}

# What quantities were called that had the name of a bound: stored results and scripts have these names.
FORMER_NAMES = {"path_norm": "squared_path_norm", "fisher_rao": "fisher_rao_norm"}


def with_present_names(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries by the names of quantities, from before or after they were renamed."""
    return {FORMER_NAMES.get(name, name): entry for name, entry in entries.items()}


def reading_of(name: str) -> Reading:
    """How the summary of a stored quantity is read, also of one that this version does not have."""
    return QUANTITIES[name].reading if name in QUANTITIES else Reading()
