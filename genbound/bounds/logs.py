"""Arithmetic in base-10 logarithms, minus infinity for zero: 150 layers of norm 1e4 have a product of 1e600."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

LN10 = math.log(10.0)
ZERO = -math.inf
TWO = math.log10(2.0)
Logs = Mapping[str, Any]  # layer -> log10 of a number, or of an array of them


def log(value: float) -> float:
    """Base-10 logarithm; of zero, minus infinity."""
    return math.log10(value) if value > 0 else ZERO


def add(*logs: Any) -> Any:
    """Logarithm of the sum of the numbers (or arrays) with these logarithms.

    Example:
        >>> float(round(add(log(2.0), log(3.0), ZERO), 12)) == round(log(5.0), 12)
        True
    """
    total: Any = ZERO
    for term in logs:
        total = np.logaddexp(np.multiply(total, LN10), np.multiply(term, LN10)) / LN10
    return total


def power(exponent: float) -> float | None:
    """10 to the exponent; ``None`` where a float overflows."""
    return 10.0**exponent if exponent < 308 else None


def ln(exponent: float) -> float:
    """Natural logarithm of the number with this base-10 logarithm."""
    return exponent * LN10
