"""What a bound is: arithmetic on measured numbers, with no torch and no randomness.

A new bound is one file with a :class:`Bound`, one row in ``genbound/bounds/__init__.py``, one row of laws and a pencil
value in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Evidence:
    """Everything a bound may use, as plain numbers.

    Attributes:
        num_data: size n of the training set.
        loss_range: C, the loss lies in [0, C].
        quantities: name -> summary, as stored in results.json.
        layers: rows of results.json's ``layers``.
        confusion: label noise F with ``F[y, z] = P(observed z | true y)``, if given.
        delta: failure probability for bounds that state one.
    """

    num_data: int
    loss_range: float
    quantities: Mapping[str, Mapping[str, Any]]
    layers: Sequence[Mapping[str, Any]] = ()
    confusion: np.ndarray | None = None
    delta: float = 0.05

    def per_layer(self, quantity: str) -> Mapping[str, Mapping[str, Any]]:
        return self.quantities[quantity]["layers"]


@dataclass(frozen=True)
class BoundValue:
    """One bound's value.

    Attributes:
        value: the number to compare, ``None`` where it does not exist or overflows.
        lower, upper: what the error of the measured quantities makes of it.
        log10: base-10 logarithm of the value.
        note: reason where there is no value; doubts where there is one.
        forms: other forms of the same bound, name -> ``{"log10": …}``.
    """

    value: float | None
    lower: float | None = None
    upper: float | None = None
    log10: float | None = None
    note: str = ""
    forms: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @classmethod
    def missing(cls, note: str) -> BoundValue:
        return cls(None, note=note)


@dataclass(frozen=True)
class Bound:
    """A row of the BOUNDS table.

    Attributes:
        name: how it is called everywhere.
        summary: one line for ``genbound list``.
        reference: authors and year.
        requires: quantities it reads.
        compute: ``Evidence -> BoundValue``.
        applies_to: ``Evidence -> None`` if it applies, else a sentence that says why not.
        bounds: ``loss`` or ``error``: the unit of what it bounds.
        kind: ``measure`` or ``certificate``.
    """

    name: str
    summary: str
    reference: str
    requires: tuple[str, ...]
    compute: Callable[[Evidence], BoundValue]
    applies_to: Callable[[Evidence], str | None] = lambda evidence: None
    bounds: str = "loss"
    kind: str = "measure"

    def evaluate(self, evidence: Evidence) -> dict[str, Any]:
        """The row of results.json for this bound."""
        missing = [name for name in self.requires if name not in evidence.quantities]
        reason = None
        if missing:
            reasons = [evidence.quantities.get("_missing", {}).get(name, "") for name in missing]
            reason = f"needs {', '.join(missing)}" + "".join(f": {r}" for r in dict.fromkeys(reasons) if r)
        else:
            reason = self.applies_to(evidence)
        found = BoundValue.missing(reason) if reason else self.compute(evidence)
        return {
            "value": found.value,
            "lower": found.lower,
            "upper": found.upper,
            "log10": found.log10,
            "bounds": self.bounds,
            "kind": self.kind,
            "vacuous": _vacuous(self, found, evidence),
            "note": found.note,
            "reference": self.reference,
            "forms": {name: dict(form) for name, form in found.forms.items()},
        }


def _vacuous(bound: Bound, found: BoundValue, evidence: Evidence) -> bool | None:
    """Whether the empirical term plus the bound is no better than the best constant predictor, in the same unit."""
    if found.log10 is None:
        return None
    losses = evidence.quantities.get("losses", {})
    empirical = losses.get("train_loss" if bound.bounds == "loss" else "train_error")
    constant = losses.get("constant_loss" if bound.bounds == "loss" else "constant_error")
    if empirical is None or constant is None:
        return None
    return bool(found.value is None or empirical + found.value >= constant)


def log10(value: float) -> float | None:
    """Base-10 logarithm; of zero, ``None``."""
    return math.log10(value) if value > 0 else None


def relative_form(value: float) -> dict[str, float | None]:
    return {"log10": log10(value)}
