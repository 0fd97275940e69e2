"""The catalogue of quantities: one file each, one row here, and no torch.

A row whose measuring takes a file of its own stands here, named like that file in :mod:`genbound.quantities`.
"""

from genbound.quantities import displacement_norm, margin
from genbound.quantities.base import Quantity
from genbound.quantities.catalogue import (
    compression,
    fisher_rao,
    flatness,
    hessian_trace,
    init_activations,
    input_norm,
    layer_norms,
    loss_path,
    loss_plane,
    losses,
    max_positive_trace,
    max_quadratic_form,
    noise_stability,
    path_norm,
    sharpness,
    spectral_norm,
    structure,
)
from genbound.quantities.summary import Reading

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
        loss_path,
        loss_plane,
    )
}


def reading_of(name: str) -> Reading:
    """How the summary of a stored quantity is read, also of one that this version does not have."""
    return QUANTITIES[name].reading if name in QUANTITIES else Reading()
