"""What an evaluation may take that nobody has told what to measure, and what is left out of it.

Costs are *gradients*: a forward and a backward pass, over the measured samples or over all samples of the data. What
each quantity takes is its own forecast. What a user asked for by name, or gave an option of, is measured whatever it
takes, and so is what it builds on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from genbound.errors import GenboundError, did_you_mean
from genbound.evaluation.selection import Selection
from genbound.network.problem import Problem
from genbound.network.weights import BaseProblem
from genbound.quantities import QUANTITIES
from genbound.quantities.decompositions import of_a_pass
from genbound.quantities.measure_options import as_text

EFFORTS = ("quick", "standard", "thorough")
# A default evaluation takes at most so many gradients over the measured samples and so many over all samples of the
# data, both together, whichever samples it spends them on; one quantity takes at most a share of that whole.
GRADIENTS, PASSES, SHARE = 100.0, 2.0, 0.25
EPOCH = 0.5  # gradients over the n training samples that a quick evaluation takes at most
SMALL = 2**26  # samples x weights x gradients that take seconds: small problems are measured whole
SECONDS = 2**35  # multiplications that take a second or two: norms and spectra of the weights that take no more are too


@dataclass(frozen=True)
class Plan:
    """What is measured, and what is not.

    Attributes:
        selection: the quantities that are measured, with their options.
        left_out: quantity -> why it is not, what it would take, and what measures it all the same.
        remarks: which options have other values than usual, so that the quantity takes less.
        gradients: quantity -> its forecast in gradients over the measured samples, those left out with it; of
            quantities that do not apply there is none.
    """

    selection: Selection
    left_out: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    gradients: Mapping[str, float] = field(default_factory=dict)


def plan(problem: BaseProblem, selection: Selection, effort: str) -> Plan:
    """What of a selection is measured at an effort.

    Args:
        problem: what it is measured on.
        selection: what was asked for.
        effort: ``thorough`` measures everything; ``standard`` what fits :data:`GRADIENTS` and :data:`PASSES` together,
            each quantity at most a quarter of them; ``quick`` what fits half an epoch, the cheapest first.

    Raises:
        GenboundError: there is no such effort.
    """
    if effort not in EFFORTS:
        hint = did_you_mean(effort, EFFORTS)
        raise GenboundError(f"effort {effort!r} is unknown{hint}: use {', '.join(EFFORTS)}")
    if not isinstance(problem, Problem):
        return Plan(selection)
    return _Planning(problem, selection, effort).plan()


class _Planning:
    """One plan in the making.

    Args:
        problem: what is measured.
        selection: what was asked for.
        effort: one of :data:`EFFORTS`.
    """

    def __init__(self, problem: Problem, selection: Selection, effort: str):
        self._problem, self._selection, self._effort = problem, selection, effort
        # In gradients of single samples: what is left for all quantities, and what one of them takes.
        self._left = GRADIENTS * problem.num_samples + PASSES * len(problem.data)
        self._most = SHARE * self._left

    def plan(self) -> Plan:
        """Go through the quantities: what fits is kept, with other options where that makes it fit."""
        gradients = {
            name: QUANTITIES[name].gradients(self._problem, options)
            for name, options in self._selection.options.items()
            if QUANTITIES[name].applies_to(self._problem) is None
        }
        if self._effort == "thorough":
            return Plan(self._selection, remarks=self._selection.remarks, gradients=gradients)
        if self._effort == "quick":
            self._most = self._left = EPOCH * self._problem.num_data
        options, left_out, remarks = dict(self._selection.options), {}, [*self._selection.remarks]
        for name in self._order(gradients):
            fitting = self._fitting(name)
            if fitting is None:
                left_out[name] = self._why(name, gradients[name])
                del options[name]
                continue
            if fitting != options[name]:
                remarks.append(self._changes(name, options[name], fitting))
            options[name] = fitting
            gradients[name] = QUANTITIES[name].gradients(self._problem, fitting)
            if not self._is_free(name, fitting):
                self._left -= self._cost(name, fitting)
        return Plan(replace(self._selection, options=options), left_out, tuple(remarks), gradients)

    def _order(self, gradients: Mapping[str, float]) -> Iterable[str]:
        """In what order quantities are given room: as in the catalogue, or the cheapest first.

        The losses come first anyway, for the range of the loss and the gap are made of them.
        """
        names = [name for name in gradients if name not in self._selection.asked]
        if self._effort != "quick":
            return names
        return sorted(names, key=lambda name: (name != "losses", gradients[name]))

    def _fitting(self, name: str) -> Any:
        """The options with which a quantity fits into what is left, the usual ones if it does; else ``None``."""
        usual, given = self._selection.options[name], self._selection.given.get(name, {})
        for changes in ({}, *QUANTITIES[name].lighter):
            options = replace(usual, **{key: value for key, value in changes.items() if key not in given})
            if self._fits(name, options):
                return options
        return None

    def _fits(self, name: str, options: Any) -> bool:
        """Whether a quantity may be measured with these options."""
        if self._is_free(name, options) or (self._effort == "quick" and name == "losses"):
            return True
        return self._cost(name, options) <= min(self._most, self._left)

    def _cost(self, name: str, options: Any) -> float:
        """In gradients of single samples."""
        return QUANTITIES[name].gradients(self._problem, options) * self._problem.num_samples

    def _is_free(self, name: str, options: Any) -> bool:
        """Whether a quantity takes seconds: nobody counts these."""
        if self._effort != "standard":
            return False
        if QUANTITIES[name].of_weights:
            return self._cost(name, options) * 3 * of_a_pass(self._problem) <= SECONDS
        weights = sum(layer.num_weights for layer in self._problem.layers)
        return self._cost(name, replace(options, **QUANTITIES[name].no_extra)) * weights <= SMALL

    def _changes(self, name: str, usual: Any, chosen: Any) -> str:
        """What a reader must know of a quantity whose options are not the usual ones; not of those without effect."""
        changed = [key for key, value in vars(usual).items() if getattr(chosen, key) != value]
        with_it = {key: self._cost(name, replace(chosen, **{key: getattr(usual, key)})) for key in changed}
        telling = [key for key in changed if with_it[key] != self._cost(name, chosen)] or changed
        values = [
            f"{key} {as_text(getattr(chosen, key))} in place of {as_text(getattr(usual, key))}" for key in telling
        ]
        return f"{name} is measured with {', '.join(values)}, to take less (--effort thorough for the usual)"

    def _why(self, name: str, gradients: float) -> str:
        """The note of a quantity that is left out."""
        cost = gradients * self._problem.num_samples
        if self._effort == "quick":
            unit, of = float(self._problem.num_data), "epochs (gradients over the n training samples)"
        elif QUANTITIES[name].over_all:
            unit, of = float(len(self._problem.data)), "gradients over all samples"
        else:
            unit, of = float(self._problem.num_samples), "gradients over the measured samples"
        may = max(0.0, min(self._most, self._left))
        return (
            f"left out of --effort {self._effort}: it takes about {_about(cost / unit)} {of} and may take "
            f"{_about(may / unit)}; --effort thorough or --measures default,{name} measures it"
        )


def _about(number: float) -> str:
    """A forecast with two digits, and a comma between thousands."""
    return f"{float(f'{number:.2g}'):,.0f}" if number >= 10 else f"{number:.2g}"
