"""The catalogue of bounds: one file a paper, one row here. Nothing in this folder imports torch."""

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.ju2022hessian import HESSIAN_DISTANCE, NOISY_LABEL_DISTANCE, TRACE_DISTANCE

BOUNDS: dict[str, Bound] = {
    bound.name: bound
    for bound in (
        HESSIAN_DISTANCE,
        TRACE_DISTANCE,
        NOISY_LABEL_DISTANCE,
    )
}

__all__ = ["BOUNDS", "Bound", "BoundValue", "Evidence"]
