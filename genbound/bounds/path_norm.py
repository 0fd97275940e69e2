r"""Path norm over the margin, as a norm (Neyshabur, Tomioka & Srebro, COLT 2015; Jiang et al., ICLR 2020).

.. math:: \sqrt{\frac{\sum_{\text{paths}}\prod_{w\in\text{path}}w^2}{\gamma^2n}},

where the sum over all paths from an input to an output (and from the biases) is the network with squared weights
evaluated at ones. ``value`` is ``main_term``, that expression: it has no constants and bounds nothing as it stands.
``squared`` is the sum itself. It does not change under rescalings that leave a ReLU network's function alone.
"""

from __future__ import annotations

from dataclasses import replace

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.forms import Form, absent, bound_value
from genbound.bounds.logs import log
from genbound.bounds.reading import of_largest, positive_margin

REFERENCE = "Neyshabur, Tomioka & Srebro 2015"


def _path_norm(evidence: Evidence) -> BoundValue:
    squared, n = evidence.number("squared_path_norm", "log10_squared"), evidence.num_data
    margin = log(evidence.number("margin", "value"))

    forms: dict[str, Form] = {
        "paper": absent("a norm: the theorem's constants, exponential in the depth, are left out"),
        "squared": lambda: squared,
    }
    value = bound_value(lambda side: 0.5 * (squared - log(n)) - margin, forms)
    return replace(value, note=of_largest(evidence, "squared_path_norm"))


PATH_NORM = Bound(
    "path_norm",
    "root of the squared path norm over the margin and the root of n",
    REFERENCE,
    ("squared_path_norm", "margin", "losses"),
    _path_norm,
    positive_margin,
    bounds="norm",
    kind="norm",
)
