"""How a certificate comes about: what is seen on the samples, and what each step of the proof adds to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from genbound.bounds.certificates import DISAGREEMENT, MONTE_CARLO
from genbound.bounds.clopper1934heldout import held_out_limit
from genbound.bounds.langford2005occam import occam
from genbound.estimators.kl_inverse import kl_inverse
from genbound.figures.style import BLUE, GREEN, GREY, ORANGE, VERMILION, legend_below, new_axes
from genbound.formatting import rounded_up
from genbound.results.results import Results

SEEN, ALTERED, DRAWN, SURELY, CHOICE, LENGTH, APART = (
    "training error", "noise or rounding", "Monte Carlo", "δ", "choice of priors", "KL or code length",
    "disagreement",
)  # fmt: skip
TOGETHER = "error with noise or rounding"  # on samples on which the network's own error is not known
HELD_OUT = "test error"
COLOURS = {
    SEEN: BLUE, TOGETHER: BLUE, HELD_OUT: "#003B5C", ALTERED: "#56B4E9", DRAWN: ORANGE, SURELY: GREY, CHOICE: "#CC79A7",
    LENGTH: VERMILION, APART: GREEN,
}  # fmt: skip
NAMES = {
    "pac_bayes_certificate": "noisy network", "compression_certificate": "quantised network",
    "test_set_bound": "network, by test samples",
}  # fmt: skip
ITSELF = {"pac_bayes_certificate": "network, by noise", "compression_certificate": "network, by rounding"}

Parts = dict[str, float]


def parts_of(results: Results) -> dict[str, Parts]:
    """What every certificate of the error consists of: what it is about -> part -> how much, in the order of the proof.

    The parts of each add up to its value. The bounds are those of :mod:`genbound.bounds`, with one term after another.
    """
    found = {NAMES[row]: parts(results) for row, parts in PARTS.items() if _value(results, row) is not None}
    for row, name in ITSELF.items():
        form = results.bounds[row]["forms"].get("network") if _value(results, row) is not None else None
        if form is not None and form["log10"] is not None:
            found[name] = _of_the_network(results, row, results.config["delta"], 10 ** form["log10"])
    return found


def has_certificate(results: Results) -> bool:
    """Whether a training set certifies anything here."""
    return any(_value(results, row) is not None for row in ITSELF)


def plot_certificate(results: Results, ax: Any = None) -> Any:
    """Every certificate as a bar of its parts, with a line at the error of the best constant prediction.

    Args:
        results: a run that has a certificate.
        ax: where to draw.
    """
    bars = parts_of(results)
    ax = new_axes(7.2, 1.7 + 0.42 * len(bars)) if ax is None else ax
    for place, parts in enumerate(bars.values()):
        left = 0.0
        for part, amount in parts.items():
            ax.barh(place, amount, left=left, color=COLOURS[part], height=0.62, edgecolor="white", lw=0.5)
            left += amount
        ax.annotate(f"≤ {rounded_up(left)}", (left, place), xytext=(4, 0), textcoords="offset points", va="center",
                    fontsize="small")  # fmt: skip
    for part in [part for part in COLOURS if any(part in parts for parts in bars.values())]:
        ax.barh([math.nan], [math.nan], color=COLOURS[part], label=part)
    if (constant := constant_error(results)) is not None:
        ax.axvline(constant, ls=":", color="black", lw=1.2, label="best constant prediction")
    ax.set_yticks(range(len(bars)), list(bars), fontsize="small")
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlim(0, min(1.12, 1.12 * max([constant or 0.0, *(sum(parts.values()) for parts in bars.values())])))
    ax.set_xlabel("0–1 error, and what the guarantee adds to it")
    legend_below(ax)
    return ax


def constant_error(results: Results) -> float | None:
    """The error of the best constant prediction, from which on a certificate says nothing."""
    return results.quantities.get("losses", {}).get("constant_error")


def _value(results: Results, row: str) -> float | None:
    found = results.bounds.get(row)
    return None if found is None else found["value"]


# -- the parts --------------------------------------------------------------------------------------------------------


def _pac_bayes(results: Results, delta: float | None = None) -> Parts:
    found, delta = results.quantities["gibbs_error"], delta or results.config["delta"]
    parts, level = _altered(results, found), found["error"]
    ours = delta
    if not found["exact"]:
        ours = (1 - MONTE_CARLO) * delta
        level = kl_inverse(found["error"], -math.log(MONTE_CARLO * delta) / found["num_trials"])
        parts[DRAWN] = level - found["error"]
    n, nats = found["num_data"], math.log(2 * math.sqrt(found["num_data"]) / ours)
    return parts | _steps(
        level,
        {
            SURELY: kl_inverse(level, nats / n),
            CHOICE: kl_inverse(level, (nats + found["log_union"]) / n),
            LENGTH: kl_inverse(level, (found["kl"] + found["log_union"] + math.log(2 * math.sqrt(n) / ours)) / n),
        },
    )


def _compression(results: Results, delta: float | None = None) -> Parts:
    found, delta = results.quantities["quantized_error"], delta or results.config["delta"]
    limits = [
        occam(found["error"], found["num_data"], nats, delta, found["right_or_wrong"]) for nats in (0.0, found["nats"])
    ]
    return _altered(results, found) | _steps(found["error"], {SURELY: limits[0], LENGTH: limits[1]})


def _test_set(results: Results) -> Parts:
    losses = results.quantities["losses"]
    level = math.log(results.config["delta"])
    limit = held_out_limit(losses["test_error"], losses.get("num_test_wrong"), losses["num_test"], level)
    return {HELD_OUT: losses["test_error"]} | _steps(losses["test_error"], {SURELY: limit})


PARTS = {"pac_bayes_certificate": _pac_bayes, "compression_certificate": _compression, "test_set_bound": _test_set}


def _altered(results: Results, found: Mapping[str, Any]) -> Parts:
    """The error that the certificate starts from, apart into the network's own and what noise or rounding adds to it.

    With a prior the samples are only some, on which the network's own error is not known.
    """
    own = results.quantities.get("losses", {}).get("train_error")
    if own is None or found.get("num_prior", 0) or own > found["error"]:
        return {TOGETHER: found["error"]}
    return {SEEN: own, ALTERED: found["error"] - own}


def _steps(level: float, limits: Mapping[str, float]) -> Parts:
    """What each limit adds to the one before."""
    parts = {}
    for name, limit in limits.items():
        parts[name], level = limit - level, limit
    return parts


def _of_the_network(results: Results, row: str, delta: float, value: float) -> Parts:
    parts = (_pac_bayes if row == "pac_bayes_certificate" else _compression)(results, (1 - DISAGREEMENT) * delta)
    return parts | {APART: value - sum(parts.values())}
