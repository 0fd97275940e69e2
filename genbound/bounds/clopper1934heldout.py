r"""The bound from a test set, the yardstick of certificates (Clopper & Pearson 1934; Langford 2005).

Of m held-out samples the network got k wrong, so that with probability 1 - δ its
error is at most :math:`\max\{p : P[\mathrm{Bin}(m, p) \le k] \ge \delta\}`. Errors that are fractions (a part of a
sample's tokens) have Chernoff's bound :math:`\mathrm{kl}^{-1}(\cdot, \ln(1/\delta)/m)` in its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable, log10_of
from genbound.bounds.certificates import PAC_BAYES_CERTIFICATE
from genbound.bounds.langford2005occam import COMPRESSION_CERTIFICATE
from genbound.bounds.reading import VIOLATED
from genbound.estimators.binomial_tail import binomial_upper, trials_for
from genbound.estimators.kl_inverse import kl_inverse
from genbound.formatting import rounded_up


def _test_set(evidence: Evidence) -> BoundValue:
    losses, delta = evidence.quantities["losses"], evidence.delta
    num, error = losses.get("num_test") or 0, losses.get("test_error")
    if not num:
        raise NotAvailable("needs test data: give --test-data")
    if error is None:
        raise NotAvailable("the loss has no 0-1 error")
    wrong = losses.get("num_test_wrong")
    value = held_out_limit(error, wrong, num, math.log(delta))
    note = (
        f"bounds the error of the network itself; delta = {delta:g} for one checkpoint on {num} samples, independent "
        "and not seen in training"
    )
    if seen := losses.get("num_test_seen"):
        if seen == num:
            raise NotAvailable(
                "all test samples have the inputs of training samples: give samples that training never saw"
            )
        note = f"{VIOLATED}{seen} of {num} test samples have the inputs of training samples; {note}"
    forms: dict[str, Mapping[str, Any]] = {"main_term": {"log10": log10_of(value)}}
    for many in (10, 1000):
        form = held_out_limit(error, wrong, num, math.log(delta / many))
        forms[f"best_of_{many}"] = {
            "log10": log10_of(form),
            "note": f"delta / {many}, for the best of {many} checkpoints",
        }
    return BoundValue(value, value, value, log10_of(value), note + _equivalent(evidence, error), forms, 0.0)


def held_out_limit(mean: float, wrong: int | None, num: int, log_level: float) -> float:
    """Upper limit of an error from held-out samples: exact where every sample was right or wrong.

    Args:
        mean: of numbers in [0, 1].
        wrong: how many samples were wrong; ``None`` where some were so in part, or where nobody knows. A mean of
            fractions that happens to be a whole number of samples is no count.
        num: samples.
        log_level: logarithm of the failure probability.
    """
    return kl_inverse(mean, -log_level / num) if wrong is None else binomial_upper(wrong, num, log_level)


def _equivalent(evidence: Evidence, error: float) -> str:
    """How many test samples would give what the best certificate from the training set does; of flipped labels none."""
    if evidence.confusion is not None:
        return ""
    rows = [bound for bound in (PAC_BAYES_CERTIFICATE, COMPRESSION_CERTIFICATE) if _is_measured(bound, evidence)]
    values = [row["value"] for row in (bound.evaluate(evidence) for bound in rows) if row["value"] is not None]
    if not values:
        return ""
    certified = min(values)
    enough = trials_for(certified, error, math.log(evidence.delta))
    if enough is None:
        return "; the training set's certificate is below the test error"
    certificate = rounded_up(certified)
    return f"; {enough} test samples with this error would give the training set's certificate of {certificate}"


def _is_measured(bound: Bound, evidence: Evidence) -> bool:
    return all(name in evidence.quantities for name in bound.requires)


TEST_SET_BOUND = Bound(
    "test_set_bound",
    "exact binomial limit of the error from the test samples, the yardstick of certificates",
    "Clopper & Pearson 1934; Langford 2005",
    ("losses",),
    _test_set,
    bounds="error",
    kind="certificate",
)
