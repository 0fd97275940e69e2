"""The one loop: the quantities that are needed, then the bounds, then the results."""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from genbound.bounds import BOUNDS, Evidence
from genbound.errors import GenboundError
from genbound.estimators import Estimate, Interval
from genbound.evaluation.store import DiskStore, MemoryStore
from genbound.network.layers import Layer
from genbound.network.weights import BaseProblem
from genbound.quantities import QUANTITIES, Measured
from genbound.quantities.base import Part
from genbound.results.results import Results, samples_frame, to_plain
from genbound.version import __version__

PARTS = 3  # of stored parts: raised when a quantity keeps other arrays than before, so that older ones are not read


class TimeBudgetSpent(Exception):
    """The time budget ran out between two parts; what is finished is stored."""


@dataclass
class _Context:
    """What a measurement is given: its options, earlier quantities, and a map that keeps finished parts."""

    name: str
    seed: int
    options: Any
    measured: Mapping[str, Measured]
    store: MemoryStore
    progress: bool
    deadline: float | None
    seconds: float = field(default=0.0)

    def map(self, stage: str, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        parts = []
        bar = tqdm(
            items, desc=f"{self.name}: {stage}", unit="part", delay=2, leave=False, file=sys.stderr,
            disable=not self.progress, dynamic_ncols=True,
        )  # fmt: skip
        for index, item in enumerate(bar):
            part = self.store.part(f"{stage}-{index}")
            if part is None:
                if self.deadline is not None and time.monotonic() > self.deadline:
                    raise TimeBudgetSpent
                part = function(item)
                self.store.save_part(f"{stage}-{index}", part)
            parts.append(part)
        return parts


def get_options(name: str, given: Mapping[str, Any]) -> Any:
    """A quantity's options from keyword arguments, refusing those it does not have."""
    kind = QUANTITIES[name].options
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise GenboundError(
            f"{name} has no option {unknown[0]!r}; its options are {', '.join(sorted(known)) or 'none'}"
        )
    values = {key: tuple(v) if isinstance(v, list | np.ndarray) else v for key, v in given.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise GenboundError(f"options of {name} are wrong: {error}") from error


def resolve(measures: Iterable[str] | None) -> tuple[list[str], list[str]]:
    """``(quantities in the order they are measured, bounds)`` that a selection of either needs."""
    if measures is None:
        return list(QUANTITIES), list(BOUNDS)
    wanted = list(dict.fromkeys(measures))
    if not wanted:
        raise GenboundError("no measures are named: leave them out for all, or see `genbound list`")
    for name in wanted:
        if name not in QUANTITIES and name not in BOUNDS:
            raise GenboundError(
                f"unknown measure {name!r}: `genbound list` shows them ({', '.join([*QUANTITIES, *BOUNDS])})"
            )
    needed = {name for name in wanted if name in QUANTITIES}
    for name in wanted:
        if name in BOUNDS:
            needed |= set(BOUNDS[name].requires)
    while True:
        more = {r for name in needed for r in QUANTITIES[name].requires} - needed
        if not more:
            break
        needed |= more
    return [name for name in QUANTITIES if name in needed], [name for name in BOUNDS if name in wanted]


def evaluate(
    problem: BaseProblem,
    measures: Iterable[str] | None = None,
    seed: int = 0,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    confusion: np.ndarray | None = None,
    delta: float = 0.05,
    progress: bool = False,
    time_budget: float | None = None,
    config: Mapping[str, Any] | None = None,
) -> Results:
    """Measure quantities and compute bounds.

    Args:
        problem: a :class:`~genbound.network.problem.Problem`, or two sets of weights without a network.
        measures: names of quantities and bounds; ``None`` means everything that applies.
        seed: of all randomness.
        options: quantity name -> its options.
        out: directory where finished parts are kept and continued from; ``None`` keeps nothing.
        confusion: label noise ``F[y, z] = P(observed z | true y)``, for ``noisy_label_distance``.
        delta: failure probability of bounds that state one.
        progress: show progress bars on standard error.
        time_budget: seconds after which no further part is started.
        config: more entries for the results' ``config``.

    Returns:
        :class:`~genbound.results.results.Results`. Quantities that could not be measured are named in ``notes`` with the reason.
    """
    names, bound_names = resolve(measures)
    if not 0 < delta < 1:
        raise GenboundError(f"delta {delta:g} must lie between 0 and 1: it is a failure probability")
    if time_budget is not None and not time_budget >= 0:
        raise GenboundError(f"time budget {time_budget:g} is negative")
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise GenboundError(f"{out} is a file: give a directory for the results")
    options = dict(options or {})
    for name in options:
        if name not in QUANTITIES:
            raise GenboundError(f"options are given for {name!r}, which is no quantity")
    chosen = {name: get_options(name, options.get(name, {})) for name in names}
    started, deadline = time.monotonic(), None if time_budget is None else time.monotonic() + time_budget
    digests = {flag: problem.digest(flag) for flag in (False, True)}
    measured: dict[str, Measured] = {}
    notes: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in names:
        quantity = QUANTITIES[name]
        if quantity.needs_data and problem.data is None:
            notes[name] = problem.reason
            continue
        lacking = [r for r in quantity.requires if r not in measured]
        if lacking:
            notes[name] = f"needs {', '.join(lacking)}, which was not measured"
            continue
        reason = quantity.applies_to(problem)
        if reason is not None:
            notes[name] = f"does not apply: {reason}"
            continue
        key = (PARTS, digests[quantity.reads_test_data], name, seed, _asdict(chosen, name))
        digest = hashlib.sha256(repr(key).encode()).hexdigest()
        store = MemoryStore() if out is None else DiskStore(Path(out), name, digest)
        begin = time.monotonic()
        found = store.measured()
        if found is None:
            context = _Context(name, seed, chosen[name], measured, store, progress, deadline)
            try:
                with torch.random.fork_rng(devices=[]):
                    found = quantity.measure(problem, context)
            except TimeBudgetSpent:
                notes[name] = (
                    f"the time budget of {time_budget:g} s was spent; run again to continue from its finished parts"
                )
                continue
            spent = time.monotonic() - begin
            found = replace(found, summary=to_plain(found.summary))
            store.save_measured(replace(found, summary={**found.summary, "_seconds": spent}))
        else:
            spent = found.summary.get("_seconds", 0.0)
        found = replace(found, summary={k: v for k, v in found.summary.items() if k != "_seconds"})
        measured[name], seconds[name] = found, spent
    loss_range = _loss_range(problem, measured)
    quantities = {name: m.summary for name, m in measured.items()}
    rows = [_layer_row(layer) for layer in problem.layers]
    evidence = Evidence(
        num_data=problem.num_data,
        loss_range=loss_range["value"] if loss_range["value"] is not None else float("nan"),
        quantities={**quantities, "_missing": notes},
        layers=rows,
        confusion=_check_confusion(confusion, problem),
        delta=delta,
        loss_lipschitz=None if problem.loss is None else problem.loss.lipschitz,
    )
    bounds = {name: BOUNDS[name].evaluate(evidence) for name in bound_names}
    samples = None
    if problem.num_samples:
        arrays = {name: m.samples for name, m in measured.items() if m.samples}
        samples = samples_frame(list(problem.indices), [layer.name for layer in problem.layers], arrays)
    provenance = problem.provenance
    return Results(
        config=to_plain(
            {
                "seed": seed, "num_samples": problem.num_samples, "num_data": problem.num_data, "loss_range": loss_range,
                "samples_sha256": _samples_digest(problem),
                "loss": None if problem.loss is None else problem.loss.name,
                "convention": getattr(chosen.get("max_quadratic_form"), "convention", "theorem"),
                "head": provenance.get("head_policy", "init"), "head_note": provenance.get("head_note", ""),
                "dtype": str(problem.dtype).removeprefix("torch."),
                "device": str(problem.device), "attention": "math",
                "batch_size": problem.batch_size, "delta": delta,
                "options": {name: asdict(o) for name, o in chosen.items() if name in measured},
                "torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version(),
                **(config or {}),
            }
        ),
        checkpoint=dict(provenance.get("checkpoint", {"path": None, "sha256": None})),
        init=dict(provenance.get("init", {"path": None, "sha256": None})),
        data=_data_provenance(problem),
        layer_rows=rows,
        quantities=quantities,
        bounds=to_plain(bounds),
        notes=notes,
        cost={"seconds": {**seconds, "total": time.monotonic() - started}, "peak_memory_bytes": peak_memory()},
        genbound=__version__,
        samples=samples,
    )  # fmt: skip


def measure(problem: BaseProblem, name: str, seed: int = 0, **options: Any) -> dict[Any, Any]:
    """Measure one quantity.

    Args:
        problem: what to measure it on.
        name: a row of ``genbound list quantities``.
        seed: of all randomness.
        options: the quantity's own options; others are refused.

    Returns:
        layer -> :class:`~genbound.estimators.Estimate` or :class:`~genbound.estimators.Interval`;
        for ``noise_stability`` sigma -> Estimate; the summary itself where a layer or the network has several numbers.
    """
    if name not in QUANTITIES:
        raise GenboundError(f"unknown quantity {name!r}: use one of {', '.join(QUANTITIES)}")
    # A quantity that another one needs is measured with that one's defaults.
    results = evaluate(problem, [name], seed, options={name: options})
    if name not in results.quantities:
        raise GenboundError(f"{name} cannot be measured: {results.notes.get(name, 'no data')}")
    return as_values(results.quantities[name])


def as_values(summary: Mapping[str, Any]) -> dict[Any, Any]:
    """A quantity's stored summary as estimates and intervals."""
    if "sigmas" in summary:
        return {row["sigma"]: _as_value(row) for row in summary["sigmas"]}
    if "layers" in summary and all("value" in row for row in summary["layers"].values()):
        return {name: _as_value(row) for name, row in summary["layers"].items()}
    return dict(summary)


def _as_value(row: Mapping[str, Any]) -> Estimate | Interval:
    if "lower" in row:
        return Interval(row["value"], row["lower"], row["upper"], row.get("sample"))
    return Estimate(row["value"], row.get("sem", 0.0), row.get("num_samples", 0), row.get("data_sem", 0.0))


def _asdict(chosen: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options of a quantity and of all it builds on."""
    found = {name: asdict(chosen[name])}
    for required in QUANTITIES[name].requires:
        found |= _asdict(chosen, required)
    return found


def _layer_row(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name, "kind": layer.kind, "shape": list(layer.shape),
        "positive_semidefinite": layer.positive_semidefinite, "curved_by": layer.curved_by or None,
        "num_uses": layer.num_uses,
    }  # fmt: skip


def _loss_range(problem: BaseProblem, measured: Mapping[str, Measured]) -> dict[str, Any]:
    if problem.loss_range_spec != "observed":
        return {"value": problem.loss.range, "kind": problem.loss_range_spec}
    value = measured["losses"].summary["largest_loss"] if "losses" in measured else None
    return {"value": value, "kind": "observed"}


def _check_confusion(confusion: Any, problem: BaseProblem) -> np.ndarray | None:
    if confusion is None:
        return None
    confusion = np.asarray(confusion, dtype=float)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise GenboundError(
            f"the label confusion matrix has shape {confusion.shape}: it must be square, one row a true class"
        )
    if not np.isfinite(confusion).all() or (confusion < 0).any() or not np.allclose(confusion.sum(1), 1, atol=1e-6):
        raise GenboundError("the rows of the label confusion matrix must be probabilities that add up to 1")
    if problem.num_classes is not None and len(confusion) != problem.num_classes:
        raise GenboundError(
            f"the label confusion matrix is for {len(confusion)} classes, the model has {problem.num_classes}"
        )
    return confusion


def _samples_digest(problem: BaseProblem) -> str | None:
    """Which training samples were measured: two runs with the same ones differ by their draws alone."""
    if not problem.num_samples:
        return None
    return hashlib.sha256(repr(sorted(int(i) for i in problem.indices)).encode()).hexdigest()


def _data_provenance(problem: BaseProblem) -> dict[str, Any]:
    if problem.data is None:
        return {"spec": None, "sha256": None}
    return {"spec": problem.data.spec, "sha256": problem.data.digest()}


def peak_memory() -> int:
    """Largest resident size of the process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
