r"""The compression certificate: Occam's bound with an exact binomial tail (Blumer et al. 1987; Langford 2005).

The quantised network's displacement has the probability :math:`\Pi(\hat\theta) = e^{-\text{nats}}` under a prior that
did not see the training sample. Give every network its share :math:`\delta\,\Pi(\hat\theta)` of the failure
probability: with probability :math:`1 - \delta`, for all of them at once,

.. math:: R(\hat\theta) \le \max\{p : P[\mathrm{Bin}(n, p) \le \hat k] \ge \delta\,\Pi(\hat\theta)\}

with :math:`\hat k` the errors on the n training samples. No constant is dropped. Losses in [0, 1], and errors that are
fractions, have Chernoff's bound :math:`\mathrm{kl}^{-1}(\cdot, (\text{nats} + \ln(1/\delta))/n)` in its place. It is
about the quantised network, which is deterministic, and not about the fine-tuned one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable, log10_of
from genbound.bounds.certificates import centred, check_whole, flipped, of_itself, of_the_network
from genbound.estimators.binomial_tail import binomial_upper
from genbound.estimators.kl_inverse import kl_inverse


def occam(mean: float, num: int, nats: float, delta: float, counted: bool = True) -> float:
    """The certificate from what was measured: a number in [0, 1], the safe end.

    Args:
        mean: of the error, or of a loss in [0, 1], over the training samples.
        num: training samples.
        nats: length of the network's description.
        delta: failure probability.
        counted: every sample has 0 or 1.

    Example:
        >>> round(occam(0.0, 10, 0.0, 0.05), 6)  # 1 - 0.05 ** (1 / 10)
        0.258866
    """
    level = math.log(delta) - nats
    return binomial_upper(round(mean * num), num, level) if counted else kl_inverse(mean, -level / num)


def _compression(evidence: Evidence) -> BoundValue:
    found, delta = evidence.quantities["quantized_error"], evidence.delta
    if found.get("reason"):
        raise NotAvailable(found["reason"])
    check_whole(found, evidence.num_data, "the quantised network's error")
    n = found["num_data"]
    forms: dict[str, Mapping[str, Any]] = {}
    if found["loss"] is not None:
        note = f"of the loss divided by its range {found['loss_range']:.3g}"
        limit = occam(found["loss"], n, found["nats"], delta, counted=False)
        forms["bounded_loss"] = {"log10": log10_of(limit), "note": note}
    if found["error"] is None:
        return BoundValue(None, note="the loss has no 0-1 error: see the form bounded_loss", forms=forms)
    value = occam(found["error"], n, found["nats"], delta, found["right_or_wrong"])
    forms["main_term"] = {"log10": log10_of(value)}
    forms |= of_the_network(
        found, delta, lambda part: occam(found["error"], n, found["nats"], part, found["right_or_wrong"])
    )
    constant = evidence.quantities["losses"].get("constant_error")
    note = _said(evidence, found) + of_itself(forms)
    return BoundValue(value, value, value, log10_of(value), note, forms, 0.0, constant)


def _said(evidence: Evidence, found: Mapping[str, Any]) -> str:
    """What the certificate is of, and under which assumptions."""
    return (
        f"bounds the error of the quantised network, the checkpoint quantized_error beside the results; delta = "
        f"{evidence.delta:g}; training error {found['error']:.3g}; {found['nats']:.3g} nats describe "
        f"{found['num_groups']} tensors, {centred(found)}{flipped(evidence)}"
    )


COMPRESSION_CERTIFICATE = Bound(
    "compression_certificate",
    "Occam certificate of the error of the quantised network, from the training set alone",
    "Langford 2005; Lotfi et al. 2022",
    ("quantized_error", "losses"),
    _compression,
    bounds="error",
    kind="certificate",
)
