r"""How far every layer moved: :math:`\|v_i\|_F = \|W_i - W_i^{(s)}\|_F`.

Needs the weights alone. Exact; cost negligible.
"""

from __future__ import annotations

from dataclasses import dataclass

from genbound.quantities.base import Context, Measured, Quantity

NAME = "displacement_norm"


@dataclass(frozen=True)
class DisplacementNormOptions:
    """``displacement_norm`` has no options."""


def measure(problem, context: Context) -> Measured:
    layers, total = {}, 0.0
    for layer in problem.layers:
        v, w0 = problem.displacement[layer.name].double(), problem.init[layer.name].double()
        square = float(v.square().sum())
        total += square
        layers[layer.name] = {"value": square**0.5, "init_norm": float(w0.norm())}
    return Measured({"layers": layers, "total": {"value": total**0.5}})


QUANTITY = Quantity(
    NAME,
    "Frobenius norm of each layer's displacement from its initialisation",
    measure,
    DisplacementNormOptions,
    needs_data=False,
)
