"""How far a measure may move in a regression check before it is one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from genbound.errors import GenboundError
from genbound.results.observations import Observation

RULE = re.compile(r"^(?P<sign>[+-]?)(?P<size>\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(?P<unit>%|sem)?$")


@dataclass(frozen=True)
class Tolerance:
    """How far one measure may move.

    Attributes:
        size: allowed change; relative, absolute, or (``unit`` "sem") the k of this measure alone.
        unit: ``"%"`` (``size`` is a fraction then), ``""`` or ``"sem"``.
        sign: ``"+"`` if only growth is a regression, ``"-"`` if only decline is, ``""`` for both.
        ignore: not compared at all.
    """

    size: float = 0.0
    unit: str = ""
    sign: str = ""
    ignore: bool = False

    @classmethod
    def parse(cls, text: str | float) -> Tolerance:
        """``5%``, ``+5%`` (fail if it grew by more than 5 %), ``-0.01``, ``4sem``, ``ignore``."""
        text = str(text).strip()
        if text == "ignore":
            return cls(ignore=True)
        match = RULE.match(text)
        if match is None or (match["unit"] == "sem" and match["sign"]):
            raise GenboundError(
                f"tolerance {text!r} is not understood: write 5%, +5% (growth only), -5%, 0.01, 4sem or ignore"
            )
        size = float(match["size"])
        return cls(size / 100 if match["unit"] == "%" else size, match["unit"] or "", match["sign"])

    def allowed(self, expected: Observation, change: float) -> float:
        """How far a change may go its way beyond the errors, in the value's unit (decades where that is a logarithm).

        Half of a value is more decades below it than its one and a half is above.
        """
        if self.unit == "sem":
            return 0.0
        if not expected.logarithm:
            return self.size * abs(expected.number) if self.unit == "%" else self.size
        share = self.size if self.unit == "%" else self.size / 10**expected.number if expected.number < 300 else 0.0
        if change >= 0:
            return math.log10(1 + share)
        return -math.log10(1 - share) if share < 1 else math.inf

    def counted(self, change: float) -> float:
        """The part of a change that can be a regression: growth, decline or both."""
        return max(0.0, change) if self.sign == "+" else min(0.0, change) if self.sign == "-" else change

    def __str__(self) -> str:
        """What a number did that went beyond it."""
        did = {"+": "grew", "-": "fell", "": "moved"}[self.sign]
        return f"{did} by more than " + (f"{100 * self.size:g} %" if self.unit == "%" else f"{self.size:g}")


def tolerance_of(rules: Mapping[str, Tolerance], o: Observation) -> Tolerance | None:
    """The last rule whose pattern fits ``measure`` or ``measure:where``."""
    fitting = [r for pattern, r in rules.items() if fnmatchcase(o.measure, pattern) or fnmatchcase(o.name, pattern)]
    return fitting[-1] if fitting else None
