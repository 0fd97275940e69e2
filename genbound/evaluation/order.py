"""In what order quantities are measured: what takes least comes first, so that the first numbers are soon there.

No number depends on the order: random streams are named by what they are for, and a quantity reads none but those that
it requires.
"""

from __future__ import annotations

from collections.abc import Mapping

from genbound.quantities import QUANTITIES

FIRST = "losses"  # the range of the loss and the gap, which most rows of the table are made of


def cheapest_first(gradients: Mapping[str, float]) -> list[str]:
    """Quantities by their forecast costs, each behind what it requires.

    Args:
        gradients: quantity -> its forecast cost, all that they require among them. Those of equal cost stay in order.
    """
    left, order = list(gradients), list[str]()
    while left:
        ready = [name for name in left if not set(QUANTITIES[name].requires) & set(left)]
        order.append(min(ready, key=lambda name: (name != FIRST, gradients[name])))
        left.remove(order[-1])
    return order
