r"""Fisher-Rao norm, as a norm (Liang, Poggio, Rakhlin & Stokes, AISTATS 2019).

.. math::
   \frac{\|w\|_{fr}}{\sqrt n},\qquad \|w\|_{fr} = (L+1)\sqrt{\mathbb E\,\langle\partial\ell/\partial f, f\rangle^2}

for a ReLU network of L hidden layers without biases, where the inner product of the weights with the gradient is L + 1
times that of the output. ``value`` is ``main_term``, the norm over the root of n: a bound of this form (up to
constants) is known for linear networks only. ``norm`` is the norm itself, ``parametric`` the norm by its definition
:math:`\sqrt{\mathbb E\,\langle w,\nabla_w\ell\rangle^2}`, which needs no homogeneity. It does not change under
rescalings that leave a ReLU network's function alone.
"""

from __future__ import annotations

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.forms import Form, absent, bound_value
from genbound.bounds.logs import log

REFERENCE = "Liang, Poggio, Rakhlin & Stokes 2019"


def _fisher_rao(evidence: Evidence) -> BoundValue:
    norm, n = log(evidence.number("fisher_rao_norm", "value")), evidence.num_data

    differs = evidence.quantities["fisher_rao_norm"].get("identity_holds") is False
    note = "biases, normalisation, embeddings or activations break its homogeneity: see parametric" if differs else ""
    forms: dict[str, Form] = {
        "paper": absent("a norm: a bound with this norm is known for linear networks only"),
        "norm": lambda: norm,
        "parametric": lambda: log(evidence.number("fisher_rao_norm", "parametric")),
    }
    return bound_value(lambda side: norm - 0.5 * log(n), forms, note)


FISHER_RAO = Bound(
    "fisher_rao",
    "Fisher-Rao norm over the root of n",
    REFERENCE,
    ("fisher_rao_norm", "losses"),
    _fisher_rao,
    bounds="norm",
    kind="norm",
)
