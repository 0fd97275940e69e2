r"""How far every layer moved: :math:`\|v_i\|_F = \|W_i - W_i^{(s)}\|_F`.

Needs the weights alone. Unit: that of the weights. Exact; cost negligible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genbound.quantities.base import Context, Measured, Quantity
from genbound.quantities.summary import Reading

if TYPE_CHECKING:
    from genbound.network.weights import BaseProblem


def measure(problem: BaseProblem, context: Context) -> Measured:
    """The norm of every layer's displacement and of its pretrained weight, and that of all together."""
    layers, total = {}, 0.0
    for layer in problem.layers:
        norm = problem.displacement.norm(layer.name)
        total += norm**2
        layers[layer.name] = {"value": norm, "init_norm": float(problem.init[layer.name].double().norm())}
    return Measured({"layers": layers, "total": {"value": total**0.5}})


QUANTITY = Quantity(
    "displacement_norm",
    "Frobenius norm of each layer's displacement from its initialisation",
    measure,
    needs_data=False,
    reading=Reading(fixed=True, fall_when_better=("*",), of_the_start=("*.init_norm",), by_layer=True),
)
