"""What a quantity is: a measurement on a problem, in stages whose parts merge and can be stored.

A quantity's ``measure`` maps stages over shards of the samples (or over layers) with ``context.map``; each part is a
small dictionary of arrays that is stored as soon as it is there and read back when a run continues. What is done with
the collected parts is plain arithmetic. Random numbers come from streams named by (seed, quantity, stage, draw, block),
so neither the order of the parts nor what else is measured changes a value.

What else is to be known of a quantity stands in its row, too: its options, and how its stored summary is read, printed
and drawn (:mod:`genbound.quantities.summary`). Options are checked, and stored runs compared, without torch. So the
catalogue is read without torch: a quantity is one file that imports none at its top. Where measuring needs torch there,
or more than a page, the row is a file of its own in :mod:`genbound.quantities.catalogue`, and names the functions that
measure with :func:`later`. To store these facts with the results would not do instead: how a number is printed and what
its error is are functions, a baseline may be edited by hand, and runs stored long ago have no facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from genbound.estimators.disk_table import Table, new_table
from genbound.estimators.measured import Measured, Part
from genbound.quantities.measure_options import NoOptions
from genbound.quantities.summary import Reading

if TYPE_CHECKING:
    import torch

    from genbound.network.problem import Problem


State = TypeVar("State")
DATA_SHARD = 512  # samples of a whole data set whose statistics are stored together


class Context(Protocol):
    """What a measurement is given beside the problem."""

    seed: int
    options: Any
    measured: Mapping[str, Measured]
    confusion: np.ndarray | None

    def map(self, stage: str, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """Apply the function to every item, keeping finished parts."""
        ...

    def reduce(
        self,
        stage: str,
        items: Sequence[Any],
        function: Callable[[Any], Part],
        merge: Callable[[State, Any, Part], State],
        start: State,
    ) -> State:
        """Likewise ``state = merge(state, item, part)`` in the order of the items; few parts are in memory at a time.

        All of them are merged before anything else is mapped.
        """
        ...


@dataclass(frozen=True)
class later:  # noqa: N801 (it stands for a function)
    """The function ``module:name``, imported when it is first called."""

    where: str

    def __call__(self, *arguments: Any) -> Any:
        """Import the function and call it."""
        return self.found()(*arguments)

    def found(self) -> Callable[..., Any]:
        """The function itself."""
        module, _, name = self.where.partition(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True)
class Quantity:
    """A row of the QUANTITIES table.

    Attributes:
        name: how it is called everywhere.
        summary: one line for ``genbound list``.
        measure: ``(problem, context) -> Measured``.
        options: dataclass of its options, each an :func:`~genbound.quantities.measure_options.option`.
        requires: quantities whose results it reads.
        reads_data_of: those of them of which it reads nothing but what they know of every training sample.
        needs_data: needs a model and samples, not the weights alone.
        reads_test_data: ``options -> bool``, whether its value depends on the test data too.
        reads_confusion: it finds more where the confusion matrix of the labels is given.
        gradients: ``(problem, options) -> float``, forecast cost in gradients over the measured samples: what it may
            take, which a default evaluation's budget goes by.
        usual: likewise what it mostly takes, where that is another number: what the forecast of time goes by.
        unforeseen: ``(problem, options) -> str``, what that number cannot know and how far it may be off for it, in a
            sentence; empty where there is nothing to say.
        unit: what most of it is made of, which the forecast times (:data:`genbound.evaluation.unit_costs.NOMINAL`).
        readings: what it takes whatever the samples, in readings of all weights, for the forecast of time alone.
        of_weights: what it takes is the same for any samples.
        over_all: it looks at all samples of the data, and not at the measured ones.
        lighter: values of options with which it takes less, the dearest first: what a default evaluation falls back on.
        no_extra: values of options with which it takes no more of a small problem than of others: what takes seconds
            then is measured with the usual ones.
        on_request: it is measured where it is named, and not with everything.
        applies_to: ``problem -> None`` if it exists for the network, else a sentence that says why not.
        reference: where it comes from.
        reading: how its stored summary is read.
    """

    name: str
    summary: str
    measure: Callable[[Any, Context], Measured]
    options: type = NoOptions
    requires: tuple[str, ...] = ()
    reads_data_of: tuple[str, ...] = ()
    needs_data: bool = True
    reads_test_data: Callable[[Any], bool] = lambda options: False
    reads_confusion: bool = False
    on_request: bool = False
    of_weights: bool = False
    over_all: bool = False
    lighter: tuple[Mapping[str, Any], ...] = ()
    no_extra: Mapping[str, Any] = field(default_factory=dict)
    gradients: Callable[[Any, Any], float] = lambda problem, options: 0.0
    usual: Callable[[Any, Any], float] | None = None
    unforeseen: Callable[[Any, Any], str] = lambda problem, options: ""
    unit: str = "gradient"
    readings: float = 0.0
    applies_to: Callable[[Any], str | None] = lambda problem: None
    reference: str = ""
    reading: Reading = Reading()


def stream(context: Context, quantity: str, *key: str | int) -> torch.Generator:
    """The random numbers of one draw, named by its key."""
    from genbound.estimators.random import generator

    return generator(context.seed, quantity, *key)


def data_shards(num: int) -> list[range]:
    """The numbers below ``num``, all samples of a data set, in runs whose statistics are stored together."""
    return [range(start, min(start + DATA_SHARD, num)) for start in range(0, num, DATA_SHARD)]


def stack(parts: Sequence[Part], name: str) -> np.ndarray:
    """Per-sample arrays ``[n, ...]`` of all parts, one after another."""
    return np.concatenate([part[name] for part in parts])


def stacked(
    context: Context, stage: str, items: Sequence[Sequence[int]], function: Callable[[Any], Part]
) -> dict[str, Table]:
    """Per-sample arrays of all items, one after another: ``[N]``, or tables ``[N, L]``, large ones on the disk.

    Args:
        context: of the measurement.
        stage: of it.
        items: positions of the N samples.
        function: what is measured of an item's n samples: arrays ``[n]`` or ``[n, L]``.
    """
    num, found = sum(map(len, items)), {}

    def put(start: int, item: Sequence[int], part: Part) -> int:
        for name, values in part.items():
            if name not in found:
                width = values.shape[1:]
                found[name] = new_table(num, width[0], values.dtype) if width else np.zeros(num, values.dtype)
            found[name][start : start + len(item)] = values
        return start + len(item)

    context.reduce(stage, items, function, put, 0)
    return found


def per_layer(problem: Problem, values: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """``{"value": [L], "sem": [L], …}`` to ``layer -> {"value": …, "sem": …}`` with plain numbers."""
    return {
        layer.name: {key: plain(array[i]) for key, array in values.items()} for i, layer in enumerate(problem.layers)
    }


def plain(value: Any) -> Any:
    """A numpy scalar as the Python number that JSON knows."""
    return value.item() if isinstance(value, np.generic) else value
