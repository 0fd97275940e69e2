"""A row of the table, and what its measurements share."""

from __future__ import annotations

import time

import numpy as np

import genbound

ERROR = 0.01  # relative standard error at which costs are compared
Row = dict


def row(what: str, obtained: str, target: str, reached: bool, note: str, **numbers) -> Row:
    return {"what": what, "obtained": obtained, "target": target, "reached": bool(reached), "note": note, **numbers}


def ours_to_error(problem, name: str, **options) -> tuple[float, dict]:
    start = time.process_time()
    results = genbound.evaluate(problem, [name], options={name: options})
    return time.process_time() - start, results.quantities[name]


def known_to(draws: np.ndarray) -> str:
    """Relative standard error of a cost that is proportional to the variance of these draws, heavy tails included."""
    num, away = len(draws), draws - draws.mean()
    kurtosis = (away**4).mean() / (away**2).mean() ** 2
    return f"+- {100 * np.sqrt(max(kurtosis - (num - 3) / (num - 1), 2 / (num - 1)) / num):.0f} %"
