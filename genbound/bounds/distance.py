r"""Distances from the initialisation: plain measures to set beside the bounds, in four norms.

``distance_frobenius`` is the Euclidean distance :math:`(\sum_i\|v_i\|_F^2)^{1/2}` over the layers;
``distance_spectral``, ``distance_mars`` and ``distance_two_one`` add up :math:`\|\cdot\|` of each layer's displacement
as an operator: its largest singular value (β of Long & Sedghi), its largest row sum (Gouk et al.) and the sum of its
rows' Euclidean norms (Bartlett et al.), which a layer has as many of as places that it is applied at: it grows with the
length of a text and the size of an image. ``distance_spectral_matrix``, ``distance_mars_matrix`` and
``distance_two_one_matrix`` are the same sums of the weights as they are stored, flattened behind the first axis, which
need no model. ``main_term`` is the value; ``sum_of_squares`` is :math:`\sum_i\|\cdot\|^2`, the convention of Jiang et
al. 2020.

They bound neither the loss nor the error and do not depend on n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.forms import Form, bound_value
from genbound.bounds.logs import add, log
from genbound.bounds.reading import of_largest


def _value(lower: list[float], upper: list[float], exponent: float) -> BoundValue:
    r"""Distance :math:`(\sum_i d_i^p)^{1/p}` from logarithms of the layers' distances."""
    sides = {"lower": lower, "upper": upper}
    forms: dict[str, Form] = {"sum_of_squares": lambda: add(*(2 * d for d in upper))}
    return bound_value(lambda side: add(*(exponent * d for d in sides[side])) / exponent, forms)


def _frobenius(evidence: Evidence) -> BoundValue:
    rows = evidence.per_layer("displacement_norm")
    found = [log(evidence.number("displacement_norm", "layers", name, "value")) for name in rows]
    return _value(found, found, 2.0)


def _spectral(evidence: Evidence) -> BoundValue:
    rows = evidence.per_layer("spectral_norm")
    lower, upper = (
        [log(evidence.number("spectral_norm", "layers", name, "displacement", side)) for name in rows]
        for side in ("lower", "upper")
    )
    return replace(_value(lower, upper, 1.0), note=of_largest(evidence, "spectral_norm"))


def _matrix_spectral(evidence: Evidence) -> BoundValue:
    lower, upper = (
        [
            log(evidence.number("matrix_norms", "layers", name, "displacement", "spectral", side))
            for name in evidence.per_layer("matrix_norms")
        ]
        for side in ("lower", "upper")
    )
    return _value(lower, upper, 1.0)


def _layer_norm(norm: str, quantity: str = "layer_norms") -> Callable[[Evidence], BoundValue]:
    def compute(evidence: Evidence) -> BoundValue:
        rows = evidence.per_layer(quantity)
        found = [log(evidence.number(quantity, "layers", name, "displacement", norm)) for name in rows]
        return replace(_value(found, found, 1.0), note=of_largest(evidence, quantity))

    return compute


def _has_layers(quantity: str) -> Callable[[Evidence], str | None]:
    return lambda evidence: None if evidence.per_layer(quantity) else f"{quantity} has no layers"


DISTANCE_FROBENIUS = Bound(
    "distance_frobenius",
    "Euclidean distance of the layers from their initialisation",
    "Nagarajan & Kolter 2019",
    ("displacement_norm",),
    _frobenius,
    _has_layers("displacement_norm"),
    bounds="distance",
    kind="norm",
)
DISTANCE_SPECTRAL = Bound(
    "distance_spectral",
    "sum over layers of the displacement's operator norm",
    "Long & Sedghi 2020",
    ("spectral_norm",),
    _spectral,
    _has_layers("spectral_norm"),
    bounds="distance",
    kind="norm",
)
DISTANCE_MARS = Bound(
    "distance_mars",
    "sum over layers of the displacement's largest row sum",
    "Gouk, Hospedales & Pontil 2021",
    ("layer_norms",),
    _layer_norm("mars"),
    _has_layers("layer_norms"),
    bounds="distance",
    kind="norm",
)
DISTANCE_TWO_ONE = Bound(
    "distance_two_one",
    "sum over layers of the displacement's rows' Euclidean norms",
    "Bartlett, Foster & Telgarsky 2017",
    ("layer_norms",),
    _layer_norm("two_one"),
    _has_layers("layer_norms"),
    bounds="distance",
    kind="norm",
)
DISTANCE_SPECTRAL_MATRIX = Bound(
    "distance_spectral_matrix",
    "sum over layers of the stored displacement's spectral norm; needs no model",
    "Long & Sedghi 2020",
    ("matrix_norms",),
    _matrix_spectral,
    _has_layers("matrix_norms"),
    bounds="distance",
    kind="norm",
)
DISTANCE_MARS_MATRIX = Bound(
    "distance_mars_matrix",
    "sum over layers of the stored displacement's largest row sum; needs no model",
    "Gouk, Hospedales & Pontil 2021",
    ("matrix_norms",),
    _layer_norm("mars", "matrix_norms"),
    _has_layers("matrix_norms"),
    bounds="distance",
    kind="norm",
)
DISTANCE_TWO_ONE_MATRIX = Bound(
    "distance_two_one_matrix",
    "sum over layers of the stored displacement's rows' Euclidean norms; needs no model",
    "Bartlett, Foster & Telgarsky 2017",
    ("matrix_norms",),
    _layer_norm("two_one", "matrix_norms"),
    _has_layers("matrix_norms"),
    bounds="distance",
    kind="norm",
)
