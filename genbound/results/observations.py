"""Every number of a run that a regression check compares, with what is known of its error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from genbound.bounds import BOUNDS
from genbound.results.results import Results

# How something was computed, not what was found; or a copy of another entry (relative_rss and the Hessian approximation
# follow from noise stability and traces); the standard deviation over a handful of shared draws has no error bar of its
# own.
IGNORED = (
    "num_*", "sample", "quantiles", "failure_probability", "std", "relative_rss", "leaves_quadratic_regime_at",
    "hessian_approximation", "*_sem", "data_sem", "sem", "seed", "seconds", "control_slope",
)  # fmt: skip
# What does not depend on which training samples were drawn for measuring: weights, or the whole training set.
WHOLE = frozenset(
    ("losses", "displacement_norm", "structure", "spectral_norm", "layer_norms", "input_norm", "margin", "path_norm")
)
# Bounds whose interval is two standard errors to either side, not a certain one.
TWO_SEM = ("trace_distance", "noisy_label_distance")
# The largest of noisy estimates, where ``exact`` does not say otherwise: which samples become candidates is itself a
# draw, and moves the value by tens of per cent, which the sem does not cover.
SELECTED = "max_positive_trace"
# The most extreme of a few random draws, or of candidates that they choose: likewise.
EXTREME = {("compression", "smoothness"), ("compression", "beta")}


@dataclass(frozen=True)
class Observation:
    """One number.

    Attributes:
        measure: quantity or bound.
        where: layer, sigma or entry; empty if there is only one.
        value: ``None`` where it does not exist, for ``reason``.
        sem: standard error over the draws, 0 if nothing was drawn.
        data_sem: what the choice of samples adds; ``None`` if it does but nobody knows how much.
        lower, upper: a certain interval.
        slack: difference of a logarithm between two seeds that says nothing.
        selected: the extreme over random draws, which another seed moves by as much as no error bar knows.
        logarithm: ``value`` is a base-10 logarithm.
        is_bound: computed, not measured.
    """

    measure: str
    where: str
    value: float | None
    sem: float = 0.0
    data_sem: float | None = 0.0
    lower: float | None = None
    upper: float | None = None
    slack: float = 0.0
    selected: bool = False
    logarithm: bool = False
    is_bound: bool = False
    reason: str = ""

    @property
    def name(self) -> str:
        """``measure:where``, or the measure alone."""
        return f"{self.measure}:{self.where}" if self.where else self.measure


def observe(results: Results) -> dict[str, Observation]:
    """All numbers of a run by name."""
    found = [o for name, summary in results.quantities.items() for o in _quantity(name, summary)]
    found += [o for name, row in results.bounds.items() for o in _bound(name, row, results)]
    return {o.name: o for o in found}


def _quantity(name: str, summary: Mapping[str, Any]) -> Iterator[Observation]:
    if name == "flatness":
        yield from _flatness(summary)
        return
    if name == "sharpness":
        yield from _sharpness(summary)
        return
    for layer, row in (summary.get("layers") or {}).items():
        yield from _walk(name, layer, row)
    for row in summary.get("sigmas") or ():
        yield from _walk(name, f"sigma={row['sigma']:g}", {k: v for k, v in row.items() if k != "sigma"})
    rest = {k: v for k, v in summary.items() if k not in ("layers", "sigmas", "tree")}
    yield from _walk(name, "", rest)


def _walk(measure: str, where: str, node: Mapping[str, Any]) -> Iterator[Observation]:
    whole = measure in WHOLE
    if "lower" in node and "upper" in node:
        if node["upper"] is not None:
            value = node.get("value", node["upper"])
            yield Observation(measure, where, value, 0.0, 0.0 if whole else None, node["lower"], node["upper"])
        node = {k: v for k, v in node.items() if k not in ("value", "lower", "upper")}
    for key, value in node.items():
        if any(fnmatch(key, pattern) for pattern in IGNORED):
            continue
        place = ".".join(part for part in (where, "" if key == "value" else key) if part)
        if isinstance(value, Mapping):
            yield from _walk(measure, place, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            prefix = "" if key == "value" else f"{key}_"
            # Of losses the sem speaks of other data than these, which do not change here.
            sem = 0.0 if whole else node.get(f"{prefix}sem") or 0.0
            data = 0.0 if whole else node.get(f"{prefix}data_sem")
            if measure == "fisher_rao" and key == "value" and value:
                data = node["squared_sem"] / (2 * value)
            selected = (measure == SELECTED and not node.get("exact", True)) or (measure, key) in EXTREME
            yield Observation(measure, place, float(value), sem, data, selected=selected)


FLATNESS = {
    "sigma": ("sigma", "sem_error"),
    "magnitude_sigma": ("magnitude_sigma", "magnitude_sem_error"),
    "magnitude_sigma_origin": ("magnitude_sigma_origin", "magnitude_origin_sem_error"),
    "log_sum_init": ("magnitude_sigma", "magnitude_sem_error"),
    "log_sum_origin": ("magnitude_sigma_origin", "magnitude_origin_sem_error"),
}


def _relative_sem(summary: Mapping[str, Any], sigma: str, sem: str) -> float:
    """Relative error of a sigma found by search.

    It has two parts: the error of the rise there, which grows at least in proportion to sigma, and the interval that
    the search stopped at.
    """
    if summary.get(sigma) is None or summary.get(sem) is None:
        return 0.0
    return math.hypot(summary[sem] / summary["displacement"], 0.05)


def _flatness(summary: Mapping[str, Any]) -> Iterator[Observation]:
    for key, (sigma, sem) in FLATNESS.items():
        if summary.get(key) is not None:
            yield Observation(
                "flatness", key, summary[key], abs(summary[key]) * _relative_sem(summary, sigma, sem), None
            )
    for key in ("norm_displacement", "norm_weights"):
        if summary.get(key) is not None:
            yield Observation("flatness", key, summary[key])


def _sharpness(summary: Mapping[str, Any]) -> Iterator[Observation]:
    """The brackets that the searches ended with; what else is measured follows from them and from the weights."""
    for key in ("alpha", "magnitude_alpha"):
        if summary.get(key) is not None:
            alpha = summary[key]
            yield Observation("sharpness", key, alpha, 0.0, None, lower=alpha, upper=summary[f"{key}_above"])
    for key in ("norm_displacement", "norm_weights"):
        if summary.get(key) is not None:
            yield Observation("sharpness", key, summary[key])


def _bound(name: str, row: Mapping[str, Any], results: Results) -> Iterator[Observation]:
    requires = BOUNDS[name].requires if name in BOUNDS else ()
    data = 0.0 if name in BOUNDS and set(requires) <= WHOLE else None
    values = {"": row["log10"]} | {
        form: entry.get("log10") for form, entry in row["forms"].items() if form != "main_term"
    }
    if row["value"] is not None and row["log10"] is None:
        yield Observation(name, "", row["value"], data_sem=data, is_bound=True)  # zero has no logarithm
        values.pop("")
    sem, lower, upper = 0.0, row["lower"], row["upper"]
    if name in TWO_SEM and row["value"] and upper is not None:
        sem, lower, upper = (upper - lower) / 4 / row["value"] / math.log(10), None, None
    flatness = results.quantities.get("flatness", {})
    traces = results.quantities.get(SELECTED, {}).get("layers", {}).values() if SELECTED in requires else ()
    selected = "compression" in requires or any(not row.get("exact", True) for row in traces)
    for form, log10 in values.items():
        if log10 is None and form:
            continue
        if "flatness" in requires:
            # With the root of 1/sigma^2 the bound's relative error is sigma's; the least known of the three serves all.
            pairs = [_relative_sem(flatness, *pair) for pair in set(FLATNESS.values())]
            sem = max(pairs) / math.log(10)
        sides = [math.log10(s) if s and not form and s > 0 else None for s in (lower, upper)]
        # A form that has no interval of its own shares the relative width of the value's.
        wide = 1e-12 if lower is None or not lower or upper is None else math.log10(upper / lower)
        slack = wide if form and log10 else 0.0
        reason = row["note"] if log10 is None else ""
        yield Observation(
            name, form, log10, sem, data, *sides, slack=slack, selected=selected, logarithm=True, is_bound=True,
            reason=reason,
        )  # fmt: skip
