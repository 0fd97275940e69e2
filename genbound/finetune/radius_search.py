"""Choose the radii by the accuracy on held-out samples *with their observed labels*.

This is for users who do not know how large the balls should be. Under noise that leaves the right label the most likely
one, that accuracy rises with the accuracy on clean labels, so no clean label is needed to choose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from genbound.engines.base import Engine
from genbound.engines.whole_runs import share_runs
from genbound.finetune.settings import Settings

AUTO = "auto"
# Share of each layer's pretrained norm, largest norm of the head: from nearly free to nearly fixed.
CANDIDATES = (("30%", 3.0), ("10%", 1.0), ("3%", 0.3), ("1%", 0.1))
HELD_OUT = 0.2


def choose_radius(
    settings: Settings, run: Callable[[Settings, str], dict[str, Any]], engine: Engine
) -> tuple[Settings, dict[str, float]]:
    """Fine-tune once with every candidate, and take the one with the best validation accuracy; the tightest of equals.

    Args:
        settings: of the run; ``radius`` is ``auto``. A ``head_radius`` that is given stays.
        run: fine-tunes with some settings under a name, and returns the record.
        engine: whose processes share the candidates.

    Returns:
        The settings with the chosen radii, and the validation accuracy of every candidate.
    """
    tried: dict[str, Settings] = {}
    trials: list[tuple[Settings, str]] = []
    for radius, head in CANDIDATES:
        head = head if settings.head_radius is None else settings.head_radius
        name = f"{radius}, head {head:g}"
        tried[name] = replace(settings, radius=radius, head_radius=head)
        trial = replace(tried[name], validation=settings.validation or HELD_OUT)
        trials.append((trial, f"{radius.removesuffix('%')}pc"))
    records = share_runs(engine, "radius search", trials, lambda trial: run(*trial))
    found = {name: record["accuracy"]["validation"] for name, record in zip(tried, records, strict=True)}
    best = max(reversed(found), key=found.__getitem__)
    return tried[best], found
