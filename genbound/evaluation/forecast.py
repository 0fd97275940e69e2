"""What an evaluation would cost, from units of work that are timed on one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genbound.evaluation.effort import Plan
from genbound.evaluation.selection import get_options
from genbound.evaluation.unit_costs import factors, reading_seconds, unit_seconds
from genbound.network.memory import peak_bytes
from genbound.network.problem import Problem
from genbound.quantities import QUANTITIES


@dataclass(frozen=True)
class Forecast:
    """Expected cost.

    Attributes:
        seconds_per_gradient: measured: one forward and backward pass over all measured samples.
        gradients: quantity -> how many such gradients it is expected to take.
        seconds_of: quantity -> what it is expected to take, by the units that its work is made of.
        peak_bytes: expected peak of memory: weights, their copies, and a double backward pass with what is freed of it
            and not reused.
    """

    seconds_per_gradient: float
    gradients: dict[str, float]
    seconds_of: dict[str, float]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """All quantities together."""
        return sum(self.seconds_of.values())


def forecast(problem: Problem, names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> Forecast:
    """Time a few units of work on one batch and add up what the quantities will need.

    Args:
        problem: what they would be measured on.
        names: quantities.
        options: quantity -> its options, where they are not the defaults.
    """
    return _timed(problem, {name: get_options(name, options.get(name, {})) for name in names})


def forecast_of(problem: Problem, planned: Plan) -> Forecast:
    """The cost of what is measured of a plan; quantities that do not apply cost nothing.

    Args:
        problem: what they would be measured on.
        planned: what is measured.
    """
    return _timed(problem, {name: o for name, o in planned.selection.options.items() if name in planned.gradients})


def _timed(problem: Problem, options: Mapping[str, Any]) -> Forecast:
    """The forecast of quantities with these options."""
    seconds = unit_seconds(problem)
    gradient, factor = seconds["gradient"] * problem.num_samples, factors(seconds)
    expected = {name: expected_gradients(problem, name, given) for name, given in options.items()}
    reading = reading_seconds(problem)
    seconds_of = {
        name: count * factor[QUANTITIES[name].unit] * gradient + QUANTITIES[name].readings * reading
        for name, count in expected.items()
    }
    run = next(problem.batches(range(problem.num_samples)))
    return Forecast(gradient, expected, seconds_of, peak_bytes(problem, run, problem.samples_first))


def expected_gradients(problem: Problem, name: str, options: Any) -> float:
    """What a quantity mostly takes, in gradients over the measured samples."""
    quantity = QUANTITIES[name]
    return (quantity.usual or quantity.gradients)(problem, options)
