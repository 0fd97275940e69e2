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

# The measured gap that a value is held against, by its unit.
GAPS = {"loss": "generalization_gap", "error": "error_gap"}


class NotAvailable(Exception):
    """A number that a bound needs does not exist; the message is the reason that the table prints."""


@dataclass(frozen=True)
class Evidence:
    """Everything a bound may use, as plain numbers.

    Attributes:
        num_data: size n of the training set.
        loss_range: C, the loss lies in [least_loss, least_loss + C].
        quantities: name -> summary, as stored in results.json.
        layers: rows of results.json's ``layers``.
        confusion: label noise F with ``F[y, z] = P(observed z | true y)``, if given.
        delta: failure probability for bounds that state one.
        loss_lipschitz: Lipschitz constant of the loss in the Euclidean norm of the outputs, ``None`` if unknown.
        num_samples: training samples that the costly quantities were measured on, ``None`` if unknown.
        least_loss: what the loss is counted from, 0 unless losses go below.
    """

    num_data: int
    loss_range: float
    quantities: Mapping[str, Mapping[str, Any]]
    layers: Sequence[Mapping[str, Any]] = ()
    confusion: np.ndarray | None = None
    delta: float = 0.05
    loss_lipschitz: float | None = None
    num_samples: int | None = None
    least_loss: float = 0.0

    def per_layer(self, quantity: str) -> Mapping[str, Mapping[str, Any]]:
        """Layer -> what a summary says of it."""
        return self.quantities[quantity]["layers"]

    def number(self, quantity: str, *keys: str) -> float:
        """A number of a summary, or :class:`NotAvailable` where it is missing or not finite."""
        found: Any = self.quantities.get(quantity, {})
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(found, int | float) or not math.isfinite(found):
            summary = self.quantities.get(quantity, {})
            reason = summary.get(f"{keys[-1]}_reason") or summary.get("reason") or ""
            # The name of an entry says nothing to who reads a table, where the reason says all.
            missing = f" has no {' of '.join(reversed(keys))}"
            raise NotAvailable(quantity + (f": {reason}" if reason else missing))
        return float(found)

    def bounded_range(self) -> float:
        """The loss's range C, or :class:`NotAvailable`."""
        if not math.isfinite(self.loss_range):
            raise NotAvailable("needs a bounded loss: measure losses, or give --loss-range clip:C")
        return self.loss_range

    def lipschitz(self) -> float:
        """The loss's Lipschitz constant, or :class:`NotAvailable`."""
        if self.loss_lipschitz is None or not math.isfinite(self.loss_lipschitz):
            raise NotAvailable("needs a loss that is Lipschitz in the outputs, with a known constant")
        return self.loss_lipschitz


@dataclass(frozen=True)
class BoundValue:
    """One bound's value.

    Attributes:
        value: the number to compare, ``None`` where it does not exist or overflows.
        lower, upper: what the error of the measured quantities makes of it.
        log10: base-10 logarithm of the value.
        note: reason where there is no value; doubts where there is one.
        forms: other forms of the same bound, name -> ``{"log10": …}``, with a ``note`` where there is a doubt or a
            reason.
        empirical: what the value is to be added to where that is not the training loss or error: the margin loss.
        constant: what the best constant predictor reaches, where that is not the loss or error of the training labels.
        at_least: what it grows with was searched for and not proved: a lower estimate, whatever its interval.
        added: what the theorem adds to the value and the empirical term: a rise of the error, a fraction left out.
        gap: what the value is held against, where that is not the measured gap in its unit.
    """

    value: float | None
    lower: float | None = None
    upper: float | None = None
    log10: float | None = None
    note: str = ""
    forms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    empirical: float | None = None
    constant: float | None = None
    gap: float | None = None
    added: float = 0.0
    at_least: bool = False

    @classmethod
    def missing(cls, note: str) -> BoundValue:
        """No value, for this reason."""
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
        bounds: ``loss`` or ``error``: the unit of what it bounds; ``distance`` or ``norm`` bounds neither.
        kind: ``certificate``; ``bound``: holds under stated assumptions, constants included; ``measure``: the leading
            term of a bound; or ``norm``: bounds nothing.
        maximum_over: the quantity whose extremes over the measured samples it grows with; ``None`` if it has none. From
            some of the training samples it is at least its value.
        range_power: the power of the loss's range C that the value is in proportion to; 0 if it does not contain C.
        interval_sems: standard errors from the value to an end of its interval; 0 where the interval is certain.
        shares_error_of: numbers, as ``quantity:entry``. The largest of their relative standard errors is the bound's
            too.
    """

    name: str
    summary: str
    reference: str
    requires: tuple[str, ...]
    compute: Callable[[Evidence], BoundValue]
    applies_to: Callable[[Evidence], str | None] = lambda evidence: None
    bounds: str = "loss"
    kind: str = "measure"
    interval_sems: float = 0.0
    shares_error_of: tuple[str, ...] = ()
    maximum_over: str | None = None
    range_power: float = 0.0

    def evaluate(self, evidence: Evidence) -> dict[str, Any]:
        """The row of results.json for this bound."""
        missing = [name for name in self.requires if name not in evidence.quantities]
        reason = None
        if missing:
            reasons = [evidence.quantities.get("_missing", {}).get(name, "") for name in missing]
            reason = f"needs {', '.join(missing)}" + "".join(f": {r}" for r in dict.fromkeys(reasons) if r)
        structure = evidence.quantities.get("structure", {})
        if missing and "structure" in self.requires and structure.get("tree", {}) is None:
            reason = structure["reason"]  # the network's own reason comes before what could not be measured for it
        try:
            reason = reason or self.applies_to(evidence)
            found = BoundValue.missing(reason) if reason else self.compute(evidence)
        except NotAvailable as absent:
            found = BoundValue.missing(str(absent))
        losses, unit = evidence.quantities.get("losses", {}), GAPS.get(self.bounds, "")
        gap = losses.get(unit) if found.gap is None else found.gap
        if self.kind == "certificate":  # it bounds the whole error, and not what is to be added to the training error
            gap = None
        row = {
            "value": found.value,
            "lower": found.lower,
            "upper": found.upper,
            "log10": found.log10,
            "bounds": self.bounds,
            "kind": self.kind,
            "vacuous": _vacuous(self, found, evidence),
            **against_gap(found.value, gap),
            "note": found.note,
            "reference": self.reference,
            "forms": {name: dict(form) for name, form in found.forms.items()},
            **self._of_some(found, evidence),
        }
        return row | unknown_of_all(row)

    def _of_some(self, found: BoundValue, evidence: Evidence) -> dict[str, Any]:
        """What holds of a value that grows with what was not looked at; its upper side is not known then."""
        sizes = self._sizes(evidence)
        if found.value is None or not (sizes or found.at_least):
            return {}
        interval = {"lower": found.lower, "upper": found.upper}
        return {"at_least": True, "upper": None, "over_samples": interval, **sizes}

    def _sizes(self, evidence: Evidence) -> dict[str, int]:
        """Of how many of the samples it has the maximum, where that is not all of them."""
        if self.maximum_over is None or self.maximum_over not in evidence.quantities:
            return {}
        summary = evidence.quantities[self.maximum_over]
        measured = summary.get("num_samples") or evidence.num_samples
        if measured is None or measured >= evidence.num_data or summary.get("split") == "test":
            return {}
        return {"num_samples": measured, "num_data": evidence.num_data}


def log10_of(value: float) -> float | None:
    """Base-10 logarithm of a value; ``None`` where it is not positive."""
    return math.log10(value) if value > 0 else None


def against_gap(value: float | None, gap: float | None) -> dict[str, Any]:
    """``gap_ratio`` and ``below_gap`` of a value, in the unit of the gap that was measured; ``None`` without a gap.

    A gap that is not positive has no ratio, and no value is below it.
    """
    if value is None or gap is None:
        return {"gap_ratio": None, "below_gap": None}
    return {"gap_ratio": value / gap if gap > 0 else None, "below_gap": value < gap}


def unknown_of_all(row: Mapping[str, Any]) -> dict[str, None]:
    """What a row says of its value that a larger one would not: unknown where the value is only a lower limit."""
    small = {"below_gap": True, "vacuous": False} if row.get("at_least") else {}
    return {name: None for name, said in small.items() if row[name] is said}


def _vacuous(bound: Bound, found: BoundValue, evidence: Evidence) -> bool | None:
    """Whether the empirical term plus the bound is no better than the best constant predictor, in the same unit."""
    if (found.value is None and found.log10 is None) or bound.bounds not in GAPS:
        return None
    losses = evidence.quantities.get("losses", {})
    empirical = losses.get("train_loss" if bound.bounds == "loss" else "train_error")
    constant = losses.get("constant_loss" if bound.bounds == "loss" else "constant_error")
    if found.empirical is not None:
        empirical = found.empirical
    if found.constant is not None:
        constant = found.constant
    if empirical is None or constant is None:
        return None
    return bool(found.value is None or empirical + found.value + found.added >= constant)
