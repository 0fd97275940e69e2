"""The best of several runs on one test set: what its bound is once the choice among them is paid for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from genbound.bounds.clopper1934heldout import TEST_SET_BOUND, held_out_limit
from genbound.formatting import digits, rounded_up
from genbound.results.results import Results


def best_of_each_test_set(runs: Mapping[str, Results]) -> list[str]:
    """A sentence for every test set that several runs were measured on.

    Each run's ``test_set_bound`` holds for a network that was chosen before the test samples were seen. The least of M
    of them was chosen after; with a failure probability of delta / M each, all M hold at once, and so the least.

    Args:
        runs: name -> results. Those that do not say which test samples they have are left out.
    """
    groups: dict[tuple[str, float], dict[str, Mapping[str, Any]]] = {}
    for name, run in runs.items():
        digest, delta = run.data.get("test_sha256"), run.config.get("delta")
        row = run.bounds.get(TEST_SET_BOUND.name)
        if digest and delta and row is not None and row["value"] is not None:
            groups.setdefault((digest, delta), {})[name] = run.quantities["losses"]
    return [_said(delta, group) for (_, delta), group in groups.items() if len(group) > 1]


def _said(delta: float, losses: Mapping[str, Mapping[str, Any]]) -> str:
    many = len(losses)
    limits = {
        name: held_out_limit(row["test_error"], row.get("num_test_wrong"), row["num_test"], math.log(delta / many))
        for name, row in losses.items()
    }
    best = min(limits, key=lambda name: limits[name])
    return (
        f"These {many} runs share {losses[best]['num_test']} test samples: the error of the best, {best}, is at "
        f"most {rounded_up(limits[best])} (test_set_bound with delta / {many} = {digits(delta / many)}), for it was "
        "chosen by these samples. A certificate from the training set pays for all networks of one start at once, but "
        "for its Monte Carlo part."
    )
