r"""How ``hessian_trace`` probes what the Gauss-Newton part leaves of a sample's trace, the *remainder*.

Every sample has its *first* probes. A *plan* says which probes it gets beside them, and of which kind
(:mod:`genbound.estimators.trace_plan`). Where much work is ahead, a *pilot* comes before the plan: more probes of a
few samples, which are not used again. The *draws* are then what the plan says.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from genbound.curvature.half_precision import half_is_faster
from genbound.curvature.krylov_control import KrylovControl
from genbound.curvature.sweep import Sweep, separate_cost
from genbound.curvature.sweep_trial import can_sweep
from genbound.curvature.traces import (
    joint_trace,
    joint_trace_controlled,
    joint_trace_in_half,
    joint_trace_twice,
    probe_trace,
    separate_traces,
)
from genbound.estimators.allocation import choose_pilot, expect, shrink
from genbound.estimators.draw_spread import Bounds
from genbound.estimators.draws import Moments, Sampler, as_drawn, copies_in_a_pass
from genbound.estimators.estimate import Sampled
from genbound.estimators.random import Row
from genbound.estimators.trace_plan import BACKWARD, JOINT, Plan, Sweeps, control_passes, plan_probes, with_total
from genbound.estimators.two_levels import two_level_moments
from genbound.network.problem import SHARD, Problem
from genbound.network.tape import Tape
from genbound.quantities.base import Context, Part, stack
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions
from genbound.quantities.chosen_samples import ERROR_SHARE, data_sem_of

PILOT = 128  # most samples of the pilot
LARGE = 2**20  # weights of a network whose products rule the time of a sweep
LEAST_PASSES = 4  # of a sweep, of which one is taken in both precisions
HARDEST = 8  # samples of the pilot that sweeps are tried on
TRIED = 16  # joint sweeps of each of them
CONTROLLED = 4  # hardest samples that controls are tried on
LADDER = (1, 2, 4, 8)  # vectors of the controls that are tried
DEAR = 10  # times the pilot's own cost: work before which it pays
TYPICAL = 0.8  # variance of a joint sweep over that of a double backward probe, where nothing is measured
SMALL = 2**28  # samples x weights x probes that take no more than about half a minute: small problems get better errors


def tapes_by_column(problem: Problem) -> Callable[[Sequence[int]], Iterator[tuple[Tape, np.ndarray]]]:
    """``positions -> (tape, columns of its layers among all layers)``."""
    column = {layer.name: i for i, layer in enumerate(problem.layers)}

    def passes(positions: Sequence[int]) -> Iterator[tuple[Tape, np.ndarray]]:
        for tape in problem.tapes(positions):
            yield tape, np.array([column[name] for name in tape.layers], dtype=int)

    return passes


class Probes:
    """The kinds of probe of the remainder, for the layers that have one.

    A layer that the output is piecewise linear in has no remainder of its own, but cross-layer blocks with the
    others. So sweeps leave it out.

    Args:
        problem: what is measured.
        seed: of all random numbers.
        curved: which layers have a remainder ``[L]``.
    """

    def __init__(self, problem: Problem, seed: int, curved: np.ndarray):
        self._problem, self._seed = problem, seed
        self._columns = np.flatnonzero(curved)
        self._names = [problem.layers[i].name for i in self._columns]

    def backward(self, kind: str, finish: Callable) -> Sampler:
        """Double backward probes, a column for every layer; ``finish`` as in ``Sampler``."""
        return self._sampler(
            kind, tapes_by_column(self._problem), len(self._problem.layers),
            lambda tape, rows: probe_trace(tape, "remainder", rows, self._seed), finish,
        )  # fmt: skip

    def separate(self, kind: str, finish: Callable = as_drawn) -> Sampler:
        """Separate sweeps, a column for every layer."""
        return self._sampler(
            kind, self._sweeps(self._columns), len(self._problem.layers),
            lambda sweep, rows: separate_traces(sweep, self._names, rows, self._seed), finish,
        )  # fmt: skip

    def joint(self, kind: str, control: KrylovControl | None = None) -> Sampler:
        """Joint sweeps, one column; with the control of the only sample that they are of."""
        return self._sampler(
            kind, self._sweeps([0]), 1,
            lambda sweep, rows: joint_trace(sweep, self._names, rows, self._seed, control)[:, None],
        )  # fmt: skip

    def joint_in_half(self, kind: str, control: KrylovControl | None = None) -> Sampler:
        """Joint sweeps in half precision, and what the first of each pass lack: two columns, see ``two_levels``."""
        compared: list[weakref.ref] = []

        def draw(sweep: Sweep, rows: list[Row]) -> Tensor:
            first = not compared or compared[-1]() is not sweep
            if first:
                compared[:] = [weakref.ref(sweep)]
            return joint_trace_in_half(sweep, self._names, rows, self._seed, first, control)

        return self._sampler(kind, self._sweeps([0, 1]), 2, draw)

    def joint_moments(
        self, kind: str, positions: Sequence[int], counts: np.ndarray, vectors: np.ndarray, half: bool
    ) -> Moments:
        """Mean and spread of ``counts[i]`` joint sweeps of ``positions[i]``, one column.

        They are taken in half precision where that pays, with the same random numbers, and with a control of
        ``vectors[i]``, where that is not 0.
        """
        found = Moments.empty(len(positions), 1)
        for num, several in sorted({(int(c), int(k)) for c, k in zip(counts, vectors, strict=True) if c}):
            places = np.flatnonzero((counts == num) & (vectors == several))
            # A control is one sample's: so are the passes.
            for group in places[:, None] if several else [places]:
                own = [positions[int(place)] for place in group]
                control = self._control(own[0], several) if several else None
                mean, squares = self._joint(kind, own, num, control, half)
                found.count[group], found.mean[group, 0], found.squares[group, 0] = num, mean, squares
        return found

    def _joint(
        self, kind: str, own: list[int], num: int, control: KrylovControl | None, half: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sum of squared deviations of ``num`` joint sweeps of each of these samples."""
        passes = num // copies_in_a_pass(num, len(own), self._problem.batch_size)
        if not half or passes < LEAST_PASSES:
            part = self.joint(kind, control).moments(own, [num] * len(own))
            return part.mean[:, 0], part.squares[:, 0]
        draws = self.joint_in_half(kind, control).draws(own, num)
        return two_level_moments(draws[..., 0], draws[..., 1])

    def _control(self, position: int, num: int) -> KrylovControl:
        return KrylovControl(self._problem, position, self._names, num)

    def controlled(self, kind: str, position: int, nums: Sequence[int]) -> Sampler:
        """Joint sweeps of one sample without and with a control of so many vectors, a column for each."""
        control = self._control(position, max(nums))
        return self._sampler(
            kind, self._sweeps(range(1 + len(nums))), 1 + len(nums),
            lambda sweep, rows: joint_trace_controlled(sweep, self._names, rows, self._seed, control, nums),
        )  # fmt: skip

    def joint_twice(self, kind: str) -> Sampler:
        """Joint sweeps without and with part of their mean taken, two columns of the same draws."""
        return self._sampler(
            kind, self._sweeps([0, 1]), 2, lambda sweep, rows: joint_trace_twice(sweep, self._names, rows, self._seed)
        )

    def _sweeps(
        self, columns: Sequence[int] | np.ndarray
    ) -> Callable[[Sequence[int]], Iterator[tuple[Sweep, np.ndarray]]]:
        filled = np.array(columns)
        return lambda positions: ((Sweep(self._problem, run), filled) for run in self._problem.batches(positions))

    def _sampler(self, kind: str, passes: Callable, width: int, draw: Callable, finish: Callable = as_drawn) -> Sampler:
        shares = self._problem.shares

        def counted(draws: np.ndarray, positions: Sequence[int]) -> np.ndarray:
            """Draws by how much their samples count."""
            return finish(draws * shares[np.asarray(positions)][:, None, None], positions)

        return Sampler(f"hessian_trace {kind}", passes, draw, width, self._problem.batch_size, counted)


class Pilot:
    """Probes of a few samples, a third of them the hardest, that say what probes of all samples will be worth.

    Args:
        problem: what is measured.
        context: of the measurement.
        probes: the kinds of probe.
        sizes: what the samples' spreads grow with ``[N]``.
    """

    def __init__(self, problem: Problem, context: Context, probes: Probes, sizes: np.ndarray):
        self._problem, self._context, self._probes = problem, context, probes
        self._num = context.options.num_pilot
        self.positions, hard = choose_pilot(sizes, _pilot_samples(problem))
        self._hardest = sorted(hard[:HARDEST])

    def passes(self) -> float:
        """Time that it takes, in forward passes of one sample."""
        return len(self.positions) * self._num * BACKWARD

    def improve(self, variances: np.ndarray) -> None:
        """Bring in what the pilot's samples show.

        Args:
            variances: expected, of one double backward probe ``[N, L + 1]``; those of the pilot's samples are
                overwritten.
        """
        backward = self._probes.backward("pilot", lambda draws, _: with_total(draws))
        items = [self.positions[i : i + SHARD] for i in range(0, len(self.positions), SHARD)]
        self._found = self._squares("pilot", items, backward, self._num) / (self._num - 1)
        variances[self.positions] = shrink(self._found, variances[self.positions], self._num)

    def added_to(self, known: Sweeps) -> Sweeps:
        """What is known of sweeps, with what those of the hardest samples are worth, measured when it is asked for."""
        return replace(known, ratios=self._separate_ratios, joint=self._joint_ratio)

    def _separate_ratios(self) -> tuple[np.ndarray, float]:
        squares = self._squares("pilot_separate", [self._hardest], self._probes.separate("pilot apart"), self._num)
        place = {p: i for i, p in enumerate(self.positions)}
        before = self._found[[place[p] for p in self._hardest], :-1].sum(0)
        after = squares.sum(0) / (self._num - 1)
        return np.divide(after, before, out=np.ones(len(before)), where=before > 0), separate_cost(self._problem)

    def _joint_ratio(self) -> float:
        squares = self._squares("pilot_joint", [self._hardest], self._probes.joint_twice("pilot joint"), TRIED)
        whole, mean = squares.sum(0)
        return mean / whole if whole > 0 else 1.0

    def _squares(self, stage: str, items: list[list[int]], sampler: Sampler, num: int) -> np.ndarray:
        """Sums of squared deviations of ``num`` draws of every sample of the items, ``[samples, columns]``."""
        parts = self._context.map(stage, items, lambda at: sampler.moments(at, [num] * len(at)).part())
        return stack(parts, "squares")


def most_probes(problem: Problem, options: HessianTraceOptions) -> int:
    """Double backward probes a sample on the average, or as much time in sweeps, that the layers' errors may take.

    The total's may take as much again. A small problem has more.
    """
    weights = sum(layer.num_weights for layer in problem.layers)
    return max(options.max_probes, min(options.small_probes, SMALL // (problem.num_samples * weights)))


def pilot_probes(problem: Problem, options: HessianTraceOptions, most: float) -> float:
    """The pilot's probes a sample, on the average; there is none where ``most`` probes a sample are not worth it."""
    share = min(1.0, _pilot_samples(problem) / problem.num_samples)
    return options.num_pilot * share if most >= DEAR * options.num_pilot * share else 0.0


def _pilot_samples(problem: Problem) -> int:
    """How many samples the pilot looks at, if there are so many."""
    return min(PILOT, max(PILOT // 4, problem.num_samples // 4))


def plan_remainder(
    problem: Problem, context: Context, probes: Probes, known: Sampled, sizes: np.ndarray, bounds: Bounds,
    first: np.ndarray,
) -> Plan:  # fmt: skip
    """Which probes every sample gets, from its first ones, and from a pilot where much work is ahead.

    What a sample gets depends on the spread of other samples' first probes and on the pilot, not on its own. One
    exception is the number of its joint sweeps, where it has some and much work is ahead; their weight does not depend
    on it. The other is the size of the values that the wanted errors are relative to: it biases them by about twice the
    squared relative error.

    Args:
        problem: what is measured.
        context: of the measurement.
        probes: the kinds of probe.
        known: the Gauss-Newton part, with the total in the last column.
        sizes: norm of every sample's loss gradient in the output, which its spread grows with ``[N]``.
        bounds: of the spread of every sample's probes.
        first: the first double backward probes of every sample ``[N, D, L]``.
    """
    options, num, num_first = context.options, problem.num_samples, first.shape[1]
    first = with_total(first)
    spread = first.var(1, ddof=1)
    looked = known + Sampled.of(first.mean(1), spread / num_first)
    targets = _wanted_errors(options, known, looked, _left_by_choice(problem, looked))
    variances = expect(sizes, spread)
    budget = most_probes(problem, options)
    swept = can_sweep(problem)
    sweeps = Sweeps(None, lambda: TYPICAL, cache(lambda: try_controls(context, probes, sizes)), trial_passes(num))
    plan = plan_probes(variances, targets, num_first, budget, sweeps if swept else None)
    pilot = Pilot(problem, context, probes, sizes)
    if num * plan.passes() < DEAR * pilot.passes():
        return plan
    pilot.improve(variances)
    # Where a sample has few draws, these would be fewest just where its own probes agreed by chance.
    own = bounds.values[:, -1]
    return plan_probes(variances, targets, num_first, budget, pilot.added_to(sweeps) if swept else None, own)


def try_controls(context: Context, probes: Probes, sizes: np.ndarray) -> dict[int, float]:
    """Vectors of a control -> variance that it leaves of a joint sweep, on the hardest samples, with draws of its own.

    Draws go to samples in proportion to their spread: so the ratio is that of the samples' added up.
    """
    hardest = choose_pilot(sizes, 3 * CONTROLLED)[1]  # a third of them are the hardest

    def tried(position: int) -> Part:
        return probes.controlled("control", position, LADDER).moments([position], [TRIED]).part()

    spread = np.sqrt(stack(context.map("control", sorted(hardest), tried), "squares")).sum(0)
    return {num: float((s / spread[0]) ** 2) if spread[0] else 1.0 for num, s in zip(LADDER, spread[1:], strict=True)}


def trial_passes(num: int) -> float:
    """Time of :func:`try_controls` in forward passes of one sample, where ``num`` are measured."""
    return min(CONTROLLED, num) * (float(control_passes(np.array(max(LADDER)))) + TRIED * JOINT)


def sampled_on(problem: Problem, counted: Sampled) -> Sampled:
    """Values by how much their samples count, as the samples' own; the mean stays that over the data."""
    shares = problem.shares[:, None]
    return replace(counted, samples=counted.samples / shares, noise=counted.noise / shares**2)


def _left_by_choice(problem: Problem, looked: Sampled) -> np.ndarray:
    """Standard errors that the choice of the samples leaves, whatever is drawn, ``[L + 1]``."""
    own = sampled_on(problem, looked)
    return data_sem_of(problem, own.samples, own.noise)


def _wanted_errors(options: HessianTraceOptions, known: Sampled, looked: Sampled, left: np.ndarray) -> np.ndarray:
    """Standard errors that the remainder's means may have, ``[L + 1]``.

    Args:
        options: of ``hessian_trace``.
        known: the Gauss-Newton part.
        looked: a first estimate of all.
        left: what the choice of the samples leaves ``[L + 1]``; a quarter of it is always good enough.
    """
    magnitude = np.abs(looked.value)
    # Of the samples' own values, free of the probes' noise.
    square = (looked.samples**2 - looked.noise).mean(0)
    typical = np.sqrt(np.maximum(square, 0))[:-1]
    least = np.full(len(typical), 0.01 * magnitude[:-1].max())
    layers = options.layer_sem * np.maximum.reduce([magnitude[:-1], 0.1 * typical, least])
    # Layers of opposite sign may cancel in the total: then it is the layers that set the scale.
    total = max(options.total_sem * magnitude[-1], 0.25 * options.total_sem * magnitude[:-1].sum())
    if options.error:  # what the choice of the samples does not use up of it
        total = np.sqrt(max((options.error * magnitude[-1]) ** 2 - left[-1] ** 2, (0.1 * total) ** 2))
    wanted = np.maximum(np.append(layers, total), ERROR_SHARE * left)
    return np.sqrt(np.maximum(wanted**2 - known.sem**2, (0.5 * wanted) ** 2))


def _takes_half(problem: Problem, context: Context) -> bool:
    """Whether joint sweeps are drawn in half precision: where it is the faster one, of networks with large products.

    It is timed once for the whole run and stored: processes that found different answers, or a run that goes on
    elsewhere, would otherwise not have the same draws.
    """
    options = context.options
    if options.sweeps != "auto":
        return bool(options.sweeps == "half")
    large = sum(layer.num_weights for layer in problem.layers) >= LARGE
    if not large or problem.dtype != torch.float32:
        return False
    (found,) = context.map("precision", [0], lambda _: {"half": np.array(half_is_faster(problem.device))})
    return bool(found["half"])


def draw_remainder(
    problem: Problem, context: Context, probes: Probes, plan: Plan, first: np.ndarray, bounds: Bounds
) -> Sampled:
    """The remainder of every sample by the plan's probes, ``[N, L + 1]`` with the total in the last column.

    ``first [N, D, L]`` are the probes that every sample had already: some of the double backward ones. ``bounds`` are
    of their spread.
    """
    num_first, columns = first.shape[1], first.shape[2] + 1
    backward, separate = (kind("draws", plan.less_joint) for kind in (probes.backward, probes.separate))
    half = _takes_half(problem, context)

    def draw(shard: range) -> Part:
        positions, own = list(shard), Moments.empty(len(shard), columns)
        counts, apart = plan.counts[positions], plan.separate[positions]
        backward.add_to(own, positions, (counts - num_first) * ~apart)
        separate.add_to(own, positions, counts * apart)
        together = probes.joint_moments("joint", positions, plan.joint[positions], plan.vectors[positions], half)
        return own.part() | {"joint_mean": together.mean[:, 0], "joint_squares": together.squares[:, 0]}

    parts = context.map("draws", problem.shards(), draw)
    own = Moments(*(stack(parts, key) for key in ("count", "mean", "squares")))
    samples = np.flatnonzero(~plan.separate)
    for i in range(num_first):
        own.add(samples, plan.less_joint(first[samples, i], samples))
    return plan.combine(own, stack(parts, "joint_mean"), stack(parts, "joint_squares"), bounds)
