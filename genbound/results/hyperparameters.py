r"""How well one number tells the order of another where hyper-parameters are held fixed.

What depends on the runs' hyper-parameters alone (:class:`Pairs`) is found once and shared by all measures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Settings = Sequence[Mapping[str, Any]]
SIGNS = 3  # a sign is one of three


def varied(settings: Settings) -> list[str]:
    """Hyper-parameters that every run states and that are not the same in all of them."""
    names = [name for name in settings[0] if all(name in s for s in settings)]
    return [name for name in names if len({_key(s[name]) for s in settings}) > 1]


def _key(value: Any) -> str:
    """What tells two values apart: 1 and 1.0 are the same."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value) if number else value)


def _codes(keys: Iterable[Any]) -> np.ndarray:
    """A number for each different key, in the order in which they come ``[n]``."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys])


@dataclass(frozen=True)
class Environments:
    """Pairs of runs that differ in one hyper-parameter alone, P of them, in the order of the runs.

    Attributes:
        first, second: the runs ``[P]``.
        others: which setting of the other hyper-parameters a pair has ``[P]``.
        change: which change of this one, from one value to another, it is at that setting ``[P]``.
    """

    first: np.ndarray
    second: np.ndarray
    others: np.ndarray
    change: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """The pairs of runs by their hyper-parameters.

    Attributes:
        settings: of n runs.
        gap: of n runs.
    """

    settings: Settings
    gap: np.ndarray

    @cached_property
    def names(self) -> list[str]:
        """The hyper-parameters that vary."""
        return varied(self.settings)

    @cached_property
    def environments(self) -> dict[str, Environments]:
        """Of each hyper-parameter that some pair differs in alone."""
        found = {name: self._environments(name) for name in self.names}
        return {name: pairs for name, pairs in found.items() if len(pairs.first)}

    def _environments(self, name: str) -> Environments:
        own = _codes(_key(s[name]) for s in self.settings)
        others = _codes(tuple(_key(s[other]) for other in self.names if other != name) for s in self.settings)
        members = [np.flatnonzero(others == code) for code in range(others.max() + 1)]
        pairs = [np.stack([group[i] for i in np.triu_indices(len(group), 1)]) for group in members if len(group) > 1]
        both = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), int)
        both = both[:, own[both[0]] != own[both[1]]]
        first, second = both[:, np.lexsort(both[::-1])]
        low, high = np.minimum(own[first], own[second]), np.maximum(own[first], own[second])
        n = len(own)
        change = np.unique((others[first] * n + low) * n + high, return_inverse=True)[1]
        return Environments(first, second, others[first], change)

    @cached_property
    def cells(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each set of at most two hyper-parameters: ordered pairs, and by number which values both runs have.

        A pair with equal gaps, or alone with its values, says nothing and is left out.
        """
        n, found = len(self.gap), []
        differs = (self.gap[:, None] != self.gap[None]).ravel()
        for chosen in itertools.chain.from_iterable(itertools.combinations(self.names, size) for size in range(3)):
            codes = _codes(tuple(_key(s[name]) for name in chosen) for s in self.settings)
            cell = (codes[:, None] * (codes.max() + 1) + codes[None]).ravel()
            keep = differs & (np.bincount(cell[differs], minlength=cell.max() + 1) > 1)[cell]
            if keep.any():
                kept = np.flatnonzero(keep).astype(np.int64 if n > 2**15 else np.int32)
                found.append((kept, np.unique(cell[keep], return_inverse=True)[1].astype(np.int32)))
        return found

    # -- what a measure has of them --------------------------------------------------------------------------------

    def granulated_kendall(self, measure: np.ndarray) -> tuple[float, dict[str, float]]:
        r"""Granulated Kendall coefficient :math:`\Psi` and its part :math:`\psi_i` of each hyper-parameter.

        :math:`\psi_i` is the mean, over all settings of the others, of Kendall's coefficient among the runs that differ
        in hyper-parameter i alone; :math:`\Psi` is the mean of the :math:`\psi_i`. Runs of equal hyper-parameters
        (repetitions) are not compared with each other. NaN without such runs.

        References:
            Jiang, Neyshabur, Mobahi, Krishnan & Bengio, Fantastic generalization measures and where to find them,
                ICLR 2020.
        """
        parts = {}
        for name, pairs in self.environments.items():
            sums = np.bincount(pairs.others, self._agreement(measure, pairs))
            counts = np.bincount(pairs.others)
            parts[name] = float(np.mean(sums[counts > 0] / counts[counts > 0]))
        return (float(np.mean(list(parts.values()))) if parts else math.nan), parts

    def _agreement(self, measure: np.ndarray, pairs: Environments) -> np.ndarray:
        """1 where the measure orders a pair like the gap, -1 where otherwise, 0 where either is equal ``[P]``."""
        of_measure, of_gap = (np.sign(side[pairs.first] - side[pairs.second]) for side in (measure, self.gap))
        return of_measure * of_gap

    def robust_sign_error(self, measure: np.ndarray) -> tuple[float, str]:
        r"""Largest error over environments in telling which of two runs has the larger gap, and that environment.

        An environment is a change of one hyper-parameter from one value to another while all others stay at theirs; it
        consists of the pairs of runs, one at either value, so of several only where runs are repeated. Its error is the
        mean of :math:`\frac12 (1 - \mathrm{sgn}\,\Delta\mu\;\mathrm{sgn}\,\Delta g)`: 0 if the measure is always right,
        ½ for a coin, 1 if it is always wrong. NaN without such pairs.

        References:
            Dziugaite, Drouin, Neal, Rajkumar, Caballero, Wang, Mitliagkas & Roy, In search of robust measures of
                generalization, NeurIPS 2020 (without their weights for the noise of the gap).
        """
        worst, where = math.nan, ""
        for name, pairs in self.environments.items():
            errors = 0.5 - 0.5 * np.bincount(pairs.change, self._agreement(measure, pairs)) / np.bincount(pairs.change)
            if not errors.max() <= worst:
                place = np.flatnonzero((errors == errors.max())[pairs.change])[0]
                worst = float(errors.max())
                where = self._environment(name, int(pairs.first[place]), int(pairs.second[place]))
        return worst, where

    def _environment(self, name: str, i: int, j: int) -> str:
        """``NAME low → high at OTHER=value, …`` of a pair of runs."""
        ends = sorted((self.settings[i][name], self.settings[j][name]), key=_by_kind)
        others = ", ".join(f"{other}={self.settings[i][other]}" for other in self.names if other != name)
        return f"{name} {ends[0]} → {ends[1]}" + (f" at {others}" if others else "")

    def conditional_mutual_information(self, measure: np.ndarray) -> float:
        r"""What the order of the measure says of the order of the gap, given hyper-parameters: 0 nothing, 1 everything.

        With the signs :math:`V_\mu, V_g` of the differences over all ordered pairs of runs, and :math:`U_S` the values
        of the hyper-parameters S of both,

        .. math:: \mathcal K = \min_{|S| \le 2} \frac{I(V_\mu; V_g \mid U_S)}{H(V_g \mid U_S)}.

        Pairs with equal gaps are left out, and sets S under which the gap's order is certain.

        References:
            Jiang et al., ICLR 2020, section 2.2.3 (from the definition; the empty S is included).
        """
        of_measure, of_gap = (np.sign(s[:, None] - s[None]).astype(np.int8).ravel() + 1 for s in (measure, self.gap))
        joint, values = SIGNS * of_measure + of_gap, []
        for pairs, cell in self.cells:
            counts = np.bincount(cell * SIGNS**2 + joint[pairs], minlength=SIGNS**2 * (cell.max() + 1))
            table = counts.reshape(-1, SIGNS, SIGNS).astype(float)
            of_gaps, total = _entropy(table.sum(1)), table.sum((1, 2))
            shared = np.maximum(0.0, of_gaps + _entropy(table.sum(2)) - _entropy(table.reshape(-1, SIGNS**2)))
            entropy = float(total @ of_gaps)
            if entropy > 0:
                values.append(float(total @ shared) / entropy)
        return min(values) if values else math.nan


def _by_kind(value: Any) -> tuple[bool, Any]:
    """Numbers by size, before anything else by its text."""
    number = isinstance(value, int | float)
    return not number, value if number else str(value)


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Of the distribution in each row, in nats ``[R]``."""
    share = counts / counts.sum(-1, keepdims=True)
    return -(share * np.log(np.where(share > 0, share, 1.0))).sum(-1)
