"""What was asked for, and the results of what is measured so far."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from genbound.bounds import BOUNDS, Evidence
from genbound.estimators.measured import Measured
from genbound.evaluation.effort import Plan
from genbound.evaluation.provenance import config_entries, file_entry, layer_rows, loss_range, peak_memory
from genbound.evaluation.sealed import digest_of
from genbound.network.weights import BaseProblem
from genbound.quantities import QUANTITIES
from genbound.results.results import Results, to_plain
from genbound.version import __version__


@dataclass
class Found:
    """What an evaluation has measured.

    Attributes:
        measured: quantity -> what it found.
        seconds: quantity -> the time that took.
        notes: quantity -> why it was not measured.
        earlier: seconds of all that were spent in earlier calls on the same directory.
    """

    measured: dict[str, Measured] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    earlier: float = 0.0

    @property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Quantity -> its summary, as ``results.json`` stores it, in the order of the catalogue."""
        return {name: self.measured[name].summary for name in QUANTITIES if name in self.measured}


@dataclass(frozen=True)
class Asked:
    """What was asked for, and what follows from what is found.

    Attributes:
        problem: what is measured.
        planned: the quantities and bounds, and what is left out.
        seed: of all randomness.
        confusion: label noise, where there is some.
        delta: failure probability of bounds that state one.
        config: more entries for the results' ``config``.
        started: when the call began, on the monotonic clock.
    """

    problem: BaseProblem
    planned: Plan
    seed: int
    confusion: np.ndarray | None
    delta: float
    config: Mapping[str, Any]
    started: float

    def by_name(self) -> dict[str, str]:
        """What every process of a run must have been asked for, by what users call it."""
        confusion = None if self.confusion is None else self.confusion.tolist()
        options = {name: asdict(given) for name, given in self.planned.selection.options.items()}
        return {
            "seeds": str(self.seed),
            "measures or options": digest_of(options, self.planned.selection.bounds, self.delta),
            "label noise (--confusion)": "none" if confusion is None else digest_of(confusion),
        }

    def conclude(self, found: Found) -> Results:
        """The bounds of what is found, without the samples' own values, their digest and networks that were made."""
        problem, planned = self.problem, self.planned
        found = replace(found, notes={**found.notes, **planned.left_out})
        evidence = _evidence(problem, found, self.confusion, self.delta)
        entries = config_entries(problem, planned.selection, found.measured, self.seed, self.delta)
        return Results(
            config=entries | {"remarks": [*entries["remarks"], *planned.remarks]} | dict(self.config),
            checkpoint=file_entry(problem, "checkpoint"),
            init=file_entry(problem, "init"),
            data={"spec": None if problem.data is None else problem.data.spec, "sha256": None},
            layer_rows=layer_rows(problem),
            quantities=found.summaries,
            bounds=to_plain({name: BOUNDS[name].evaluate(evidence) for name in planned.selection.bounds}),
            notes=found.notes,
            cost=_cost(found, time.monotonic() - self.started),
            genbound=__version__,
        )


def _cost(found: Found, seconds: float) -> dict[str, Any]:
    """The results' ``cost``; ``seconds`` are those of this call."""
    return {"seconds": {**found.seconds, "total": found.earlier + seconds}, "peak_memory_bytes": peak_memory()}


def _evidence(problem: BaseProblem, found: Found, confusion: np.ndarray | None, delta: float) -> Evidence:
    known = loss_range(problem, found.measured)
    largest = known["value"]
    return Evidence(
        num_data=problem.num_data,
        loss_range=float("nan") if largest is None else largest,
        least_loss=known.get("least", 0.0),
        quantities={**found.summaries, "_missing": found.notes},
        layers=layer_rows(problem),
        confusion=confusion,
        delta=delta,
        loss_lipschitz=None if problem.loss is None else problem.loss.lipschitz,
        num_samples=problem.num_samples,
    )
