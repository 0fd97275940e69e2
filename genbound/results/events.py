"""What an evaluation tells while it measures, for whoever shows it: a display, a log, a notebook.

Events come one after another in the thread that measures, in the process that leads. Who listens must be quick, and
sees no number that the finished results would not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from genbound.results.results import Results


@dataclass(frozen=True)
class Planned:
    """Nothing is measured yet.

    Attributes:
        gradients: quantity -> its forecast cost in gradients over the measured samples, in the order in which they are
            measured; those that will be passed over, because they do not apply, among them.
    """

    gradients: Mapping[str, float]


@dataclass(frozen=True)
class Begun:
    """The measuring of a quantity begins.

    Attributes:
        name: of the quantity.
    """

    name: str


@dataclass(frozen=True)
class Advanced:
    """Some parts of a stage are done, of all processes together as far as this one knows.

    Attributes:
        name: of the quantity.
        stage: what is computed.
        done: parts that are there; at the beginning of a stage those that an earlier run has stored.
        total: parts of the stage. How many stages follow is known when they begin.
    """

    name: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Finished:
    """A quantity is measured, or passed over.

    Attributes:
        name: of the quantity.
        reason: why it was not measured; empty if it was.
        seconds: what it took, in earlier calls too.
        known: ``reason -> Results``: all that is known so far, made when it is called for; every quantity that is to
            come bears the reason as its note. Per-sample values, networks and the samples' digest are not among it.
    """

    name: str
    reason: str
    seconds: float
    known: Callable[[str], Results]


Event: TypeAlias = Planned | Begun | Advanced | Finished
Listener: TypeAlias = Callable[[Event], None]
