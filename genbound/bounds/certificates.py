r"""Certificates: numbers that hold with probability 1 - δ over the draw of the training (or test) sample.

``pac_bayes_certificate``. For a prior P that did not see the n training samples and every posterior Q at once, with
probability :math:`1 - \delta_B` (Langford & Seeger 2001; Maurer 2004, n ≥ 8)

.. math:: R(Q) \le \mathrm{kl}^{-1}\Big(\hat R(Q),\; \frac{\mathrm{KL}(Q\|P) + \ln(2\sqrt n/\delta_B)}{n}\Big).

Choosing each of G priors from a fixed grid of K widths adds :math:`G \ln K` to the divergence. Of
:math:`\hat R(Q)` only M independent trials are known: with probability :math:`1 - \delta_M` it is at most
:math:`\mathrm{kl}^{-1}(k/M, \ln(1/\delta_M)/M)`. A tenth of δ is :math:`\delta_M`, the rest :math:`\delta_B`; where the
Gibbs error is known exactly, all of δ is :math:`\delta_B`. No constant is dropped. R(Q) is the error of the *noisy*
network, drawn anew for every input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable, log10_of
from genbound.bounds.reading import VIOLATED
from genbound.estimators.kl_inverse import kl_inverse
from genbound.formatting import rounded_up

MONTE_CARLO = 0.1  # its part of delta
DISAGREEMENT = 0.1  # the part of delta of the disagreement on unlabelled inputs, where that is asked for


def pac_bayes_kl(mean: float, num_trials: int | None, nats: float, num_data: int, delta: float) -> float:
    """The certificate from what was measured: a number in [0, 1], the safe end.

    Args:
        mean: of the trials, or the exact Gibbs error.
        num_trials: M; ``None`` where the mean is exact.
        nats: divergence of the posterior, and what the choice of the prior costs.
        num_data: n.
        delta: failure probability, in all.

    Example:
        >>> round(pac_bayes_kl(0.2, None, 131 + 5.5, 6920, 0.05), 3)
        0.29
    """
    ours = delta if num_trials is None else (1 - MONTE_CARLO) * delta
    if num_trials is not None:
        mean = kl_inverse(mean, -math.log(MONTE_CARLO * delta) / num_trials)
    return kl_inverse(mean, (nats + math.log(2 * math.sqrt(num_data) / ours)) / num_data)


def _pac_bayes(evidence: Evidence) -> BoundValue:
    found = evidence.quantities["gibbs_error"]
    if found.get("reason"):
        raise NotAvailable(found["reason"])
    check_whole(found, evidence.num_data, "the Gibbs error")
    values = {kind: _certified(evidence, found, kind) for kind in ("error", "loss")}
    forms: dict[str, Mapping[str, Any]] = {}
    if values["loss"] is not None:
        note = f"of the loss divided by its range {found['loss_range']:.3g}"
        forms["bounded_loss"] = {"log10": log10_of(values["loss"]), "note": note}
    value = values["error"]
    if value is None:
        return BoundValue(None, note="the loss has no 0-1 error: see the form bounded_loss", forms=forms)
    forms["main_term"] = {"log10": log10_of(value)}
    forms |= of_the_network(found, evidence.delta, lambda delta: _certified(evidence, found, "error", delta))
    losses = evidence.quantities["losses"]
    constant = losses.get("constant_error")
    note = _said(evidence, found) + of_itself(forms)
    return BoundValue(value, value, value, log10_of(value), note, forms, 0.0, constant)


def _certified(evidence: Evidence, found: Mapping[str, Any], kind: str, delta: float | None = None) -> float | None:
    if found[kind] is None:
        return None
    exact = kind == "error" and found["exact"]
    trials = None if exact else found["num_trials"]
    return pac_bayes_kl(
        found[kind], trials, found["kl"] + found["log_union"], found["num_data"], delta or evidence.delta
    )


def drawn(found: Mapping[str, Any], delta: float) -> tuple[float, float]:
    """The certificate's standard error over the draws of its trials, and what the choice of the noise may cost it.

    A pilot that errs by a standard error for the noise it takes, and by as much for the best, costs two of them.

    Args:
        found: the summary of ``gibbs_error``.
        delta: failure probability, in all.
    """
    kind = "loss" if found.get("error") is None else "error"
    mean, trials = found.get(kind), found.get("num_trials")
    if mean is None or not trials or (kind == "error" and found["exact"]):
        return 0.0, 0.0

    def at(error: float) -> float:
        nats = found["kl"] + found["log_union"]
        return pac_bayes_kl(min(1.0, mean + error), trials, nats, found["num_data"], delta)

    pilot = found.get("num_pilot", trials)
    sem, of_pilot = (at(math.sqrt(mean * (1 - mean) / num)) - at(0.0) for num in (trials, pilot))
    return sem, 2 * of_pilot


def _said(evidence: Evidence, found: Mapping[str, Any]) -> str:
    """What the certificate is of, and under which assumptions."""
    delta = evidence.delta
    if found["exact"]:
        spent = f"delta = {delta:g}; Gibbs error {found['error']:.3g}, exact"
    else:
        parts = f"{(1 - MONTE_CARLO) * delta:.3g} + {MONTE_CARLO * delta:.3g}"
        spent = f"delta = {parts} (Monte Carlo); Gibbs error {found['error']:.3g} of {found['num_trials']} trials"
    return (
        f"bounds the error of the noisy network; {spent}; KL {found['kl']:.3g} + {found['log_union']:.3g} nats for the "
        f"choice of {found['num_groups']} priors, {centred(found)}{flipped(evidence)}"
    )


def of_the_network(
    found: Mapping[str, Any], delta: float, certified: Callable[[float], float | None]
) -> dict[str, Mapping[str, Any]]:
    """The form that is about the fine-tuned network itself, where unlabelled inputs are there.

    It errs where the certified network errs, or where the two disagree; both parts hold with 1 - delta together.

    Args:
        found: the summary, with ``disagreement``, ``num_unlabelled`` and ``num_unlabelled_seen``.
        delta: in all.
        certified: the certificate at a failure probability.
    """
    if "disagreement" not in found or (value := certified((1 - DISAGREEMENT) * delta)) is None:
        return {}
    num, seen = found["num_unlabelled"], found.get("num_unlabelled_seen", 0)
    if seen == num:
        return {"network": {"log10": None, "note": "all unlabelled inputs are those of training samples"}}
    apart = kl_inverse(found["disagreement"], -math.log(DISAGREEMENT * delta) / num)
    parts = f"{(1 - DISAGREEMENT) * delta:.3g} + {DISAGREEMENT * delta:.3g}"
    note = (
        f"bounds the error of the fine-tuned network: {rounded_up(value)} and {rounded_up(apart)}, at most, of "
        f"disagreement with the certified one on {num} unlabelled inputs; delta = {parts}"
    )
    if seen:
        note = f"{VIOLATED}{seen} of {num} unlabelled inputs are those of training samples; {note}"
    return {"network": {"log10": log10_of(min(1.0, value + apart)), "note": note}}


def of_itself(forms: Mapping[str, Mapping[str, Any]]) -> str:
    """What a row's note says of the fine-tuned network; nothing where no unlabelled inputs are there."""
    if "network" not in forms:
        return ""
    log10, note = forms["network"]["log10"], forms["network"]["note"]
    if log10 is None or note.startswith(VIOLATED):  # of the form alone: the row's own assumptions are not broken
        return f"; form network: {note.removeprefix(VIOLATED).split(';')[0]}"
    return f"; the fine-tuned network itself: at most {rounded_up(10**log10)} (form network)"


def check_whole(found: Mapping[str, Any], num_data: int, what: str) -> None:
    """Refuse what was not measured on all samples of the training set, but those that the prior saw."""
    seen = found.get("num_prior", 0)
    if found["num_data"] + seen != num_data:
        raise NotAvailable(f"{what} is of {found['num_data'] + seen} samples and n is {num_data}")


def flipped(evidence: Evidence) -> str:
    """Which labels a certificate from the training set is about, where some of them are known to be flipped."""
    return "" if evidence.confusion is None else "; of labels that are flipped as those of the training samples are"


def centred(found: Mapping[str, Any]) -> str:
    """Where the prior is centred, and what is assumed of that."""
    if not found.get("num_prior", 0):
        return "centred at the start; if the samples are independent and the start did not see them"
    return (
        f"centred at a prior that saw {found['num_prior']} other samples; n = {found['num_data']}; if the samples are "
        "independent and neither the start nor the prior saw these"
    )


PAC_BAYES_CERTIFICATE = Bound(
    "pac_bayes_certificate",
    "PAC-Bayes-kl certificate of the error of the network with Gaussian noise, from the training set alone",
    "Maurer 2004; Langford & Caruana 2002",
    ("gibbs_error", "losses"),
    _pac_bayes,
    bounds="error",
    kind="certificate",
)
