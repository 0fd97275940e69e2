"""How far a measure may move in a regression check before it is one."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from genbound.bounds import BOUNDS
from genbound.errors import GenboundError, did_you_mean
from genbound.quantities.catalogue import QUANTITIES
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
    fitting = [rule for pattern, rule in rules.items() if _fits(pattern, o)]
    return fitting[-1] if fitting else None


def refuse_unknown(rules: Mapping[str, Tolerance], found: Collection[Observation]) -> None:
    """Raise where a pattern fits none of the observations, and no measure that the runs happen to lack."""
    measures = {o.measure for o in found}
    lacking = (BOUNDS.keys() | QUANTITIES.keys()) - measures
    for pattern in rules:
        if any(_fits(pattern, o) for o in found) or any(fnmatchcase(m, pattern.split(":")[0]) for m in lacking):
            continue
        hint = did_you_mean(pattern, sorted(measures | lacking | {o.name for o in found}))
        raise GenboundError(f"tolerance of {pattern!r} fits no number of these runs{hint}")


def _fits(pattern: str, o: Observation) -> bool:
    return fnmatchcase(o.measure, pattern) or fnmatchcase(o.name, pattern)
