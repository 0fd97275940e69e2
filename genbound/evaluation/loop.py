"""The one loop: the quantities that are needed, then the bounds, then the results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genbound.data.label_confusion import check_confusion
from genbound.engines.base import Engine, TimeBudgetSpent
from genbound.engines.in_process import InProcess
from genbound.engines.run_directory import writing_to
from genbound.errors import GenboundError, did_you_mean, first_line
from genbound.estimators import Estimate, Interval
from genbound.evaluation.agreement import agree_on
from genbound.evaluation.asked import Asked, Found
from genbound.evaluation.effort import plan
from genbound.evaluation.forecast import expected_gradients
from genbound.evaluation.order import cheapest_first
from genbound.evaluation.provenance import data_entry
from genbound.evaluation.recognition import identities
from genbound.evaluation.sealed import digest_of_measured
from genbound.evaluation.selection import Selection, select
from genbound.evaluation.stage import StoredContext, measure_stages, open_store, why_not
from genbound.evaluation.store import DiskStore
from genbound.evaluation.telling import Telling, shown
from genbound.network.memory import give_back
from genbound.network.network import Network
from genbound.network.own_modes import own_modes
from genbound.network.weights import BaseProblem, as_array
from genbound.quantities import QUANTITIES
from genbound.quantities.catalogue import FORMER_NAMES
from genbound.results.events import Listener
from genbound.results.progress import Plan
from genbound.results.results import Results, samples_frame, to_plain


@own_modes()
def evaluate(
    problem: BaseProblem,
    measures: str | Iterable[str] | None = None,
    seed: int = 0,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    confusion: np.ndarray | None = None,
    delta: float = 0.05,
    progress: bool | str = False,
    time_budget: float | None = None,
    config: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    effort: str = "standard",
    listen: Listener | None = None,
) -> Results:
    """Measure quantities and compute bounds.

    Args:
        problem: a :class:`~genbound.network.problem.Problem`, or two sets of weights without a network.
        measures: names of quantities and bounds, one by itself or several; ``None`` means everything that applies.
        seed: of all randomness.
        options: quantity name -> its options.
        out: directory where finished parts are kept and continued from; ``None`` keeps nothing.
        confusion: label noise ``F[y, z] = P(observed z | true y)``, for ``noisy_label_distance``.
        delta: failure probability of bounds that state one.
        progress: show on standard error how far it is, and on a terminal the table as it grows; ``"verbose"`` says of
            each quantity what it took.
        time_budget: seconds after which no further part is started.
        config: more entries for the results' ``config``.
        engine: what computes the parts (:func:`genbound.engines.open_engine.open_engine`); ``None`` means this process.
        effort: what quantities that nobody named may take (:mod:`genbound.evaluation.effort`): ``quick``, ``standard``
            or ``thorough``.
        listen: hears what is measured and known so far (:mod:`genbound.results.events`).

    Returns:
        :class:`~genbound.results.results.Results`. Quantities that could not be measured are named in ``notes`` with
        the reason. Of several processes only the one that leads has the samples' own values and networks that were
        made.

    Raises:
        GenboundError: an argument is wrong; one line says which, and what would mend it.
    """
    started = time.monotonic()
    planned = plan(problem, select(measures, options or {}), effort)
    selection = planned.selection
    _check(delta, time_budget)
    confusion = None if confusion is None else check_confusion(confusion, problem.num_classes)
    engine = engine or InProcess()
    asked = Asked(problem, planned, seed, confusion, delta, {**to_plain(dict(config or {})), "effort": effort}, started)
    with writing_to(out, engine):
        agree_on(problem, engine, asked.by_name())
        with shown(progress if engine.leads else False, listen) as listener:
            telling = Telling(asked, listener if engine.leads else None)
            found = _measure(problem, selection, seed, out, time_budget, confusion, engine, telling)
    # What looks at all samples of the data is the work of one.
    concluded = replace(asked.conclude(found), data=engine.settle(lambda: data_entry(problem, found.measured)))
    if not engine.leads:
        return concluded
    return replace(
        concluded,
        samples=_samples(problem, found),
        networks=_networks(problem, found),
        network_config=_network_config(problem),
    )


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

    Raises:
        GenboundError: there is no such quantity or option, or it cannot be measured on this problem.
    """
    name = FORMER_NAMES.get(name, name)
    if name not in QUANTITIES:
        hint = did_you_mean(name, QUANTITIES)
        raise GenboundError(f"unknown quantity {name!r}{hint}; `genbound list quantities` shows all {len(QUANTITIES)}")
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
    if "lower" in row and "sem" not in row:
        return Interval(row["value"], row["lower"], row["upper"], row.get("sample"))
    sides = row.get("lower"), row.get("upper")
    return Estimate(row["value"], row.get("sem", 0.0), row.get("num_samples", 0), row.get("data_sem", 0.0), *sides)


# -- the steps of an evaluation ---------------------------------------------------------------------------------------


def _measure(
    problem: BaseProblem,
    selection: Selection,
    seed: int,
    out: str | Path | None,
    time_budget: float | None,
    confusion: np.ndarray | None,
    engine: Engine,
    telling: Telling,
) -> Found:
    deadline = None if time_budget is None else time.monotonic() + time_budget
    # To hash all samples is the work of one; the others take its word.
    known = engine.settle(lambda: {} if out is None else identities(problem, Path(out)))
    gradients = _gradients(problem, selection)
    gradients = {name: gradients[name] for name in engine.settle(lambda: cheapest_first(gradients))}
    found, noted = Found(), Plan(out if engine.leads else None, gradients)
    telling.planned(gradients)
    for name in gradients:
        options, quantity = selection.options[name], QUANTITIES[name]
        reason = why_not(problem, name, found.measured)
        if reason:
            found.notes[name] = reason
            noted.note(name, reason=reason)
            telling.finished(name, found)
            continue
        given = confusion if quantity.reads_confusion else None
        depends = (
            known.get(quantity.reads_test_data(options)), name, seed, selection.behind(name),
            None if given is None else given.tolist(),
            [
                digest_of_measured(found.measured[required], required in quantity.reads_data_of)
                for required in quantity.requires if out is not None
            ],
        )  # fmt: skip
        store = open_store(out if engine.stores else None, name, *depends)
        context = StoredContext(
            name, seed, options, found.measured, store, deadline, given, engine=engine,
            advanced=partial(telling.advanced, name), tidied=partial(give_back, problem),
        )  # fmt: skip
        if isinstance(store, DiskStore):
            noted.note(name, folder=store.folder.name)
        begin = time.monotonic()
        telling.begun(name)
        try:
            found.measured[name], found.seconds[name] = measure_stages(problem, context)
            found.earlier += max(0.0, found.seconds[name] - (time.monotonic() - begin))
        except TimeBudgetSpent:
            found.notes[name] = (
                f"the time budget of {time_budget:g} s was spent; "
                + ("with --out, its" if out is None else "its")
                + " finished parts are kept and the same command continues from them"
            )
        except Exception as error:
            noted.fail(f"{name}: {first_line(error)}")
            raise
        telling.finished(name, found)
    return found


def _gradients(problem: BaseProblem, selection: Selection) -> dict[str, float]:
    """Quantity -> its forecast cost in gradients; nothing where there is no network to take them of."""
    if not isinstance(problem, Network):
        return dict.fromkeys(selection.options, 0.0)
    return {name: float(expected_gradients(problem, name, given)) for name, given in selection.options.items()}


def _networks(problem: BaseProblem, found: Found) -> dict[str, dict[str, np.ndarray]]:
    """Networks that quantities made, by the quantity's name: the folders of their checkpoints."""
    if not isinstance(problem, Network):
        return {}
    made = {name: measured.weights for name, measured in found.measured.items() if measured.weights}
    return {name: _whole(problem, weights) for name, weights in made.items()}


def _network_config(problem: BaseProblem) -> dict[str, Any] | None:
    """What transformers calls the model: of a merged adapter no file says it."""
    model = problem.model if isinstance(problem, Network) else None
    config: Any = getattr(model, "config", None)
    if not type(model).__module__.startswith("transformers.") or not hasattr(config, "to_json_string"):
        return None
    return {**json.loads(config.to_json_string()), "architectures": [type(model).__name__]}


def _whole(problem: Network, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state of a network with these tensors in place of its own."""
    state = problem.state({name: torch.from_numpy(array) for name, array in weights.items()})
    return {name: as_array(tensor.detach()) for name, tensor in state.items()}


def _samples(problem: BaseProblem, found: Found) -> Any:
    """The per-sample values as a table, ``None`` where no sample was measured."""
    if not problem.num_samples:
        return None
    arrays = {name: measured.samples for name, measured in found.measured.items() if measured.samples}
    indices = list(problem.indices)
    if problem.data is not None:
        own = [i for named in arrays.values() for i in named.get("sample", np.array([], int)).tolist()]
        every = list(dict.fromkeys([*indices, *own]))
        labels = [problem.data.label(i) for i in every]
        if None not in labels:
            arrays["label"] = {"value": np.asarray(labels), "sample": np.array(every)}
    return samples_frame(indices, [layer.name for layer in problem.layers], arrays)


def _check(delta: float, time_budget: float | None) -> None:
    if not 0 < delta < 1:
        raise GenboundError(f"delta {delta:g} must lie between 0 and 1: it is a failure probability")
    if time_budget is not None and not time_budget >= 0:
        raise GenboundError(f"time budget {time_budget:g} is negative")
