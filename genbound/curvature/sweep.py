r"""Second directional derivatives of the output from tangents alone: no backward pass for each direction.

Along a direction that moves the layers' results by u (for one layer, :math:`W + \varepsilon U` with u = U x) the
remainder of a sample's Hessian is a sum over the executed operations n,

.. math:: U^\top R\, U = \sum_n g_n \cdot F_n''(x_n)[t_n, t_n],

where :math:`t_n` are the tangents of the operation's inputs, which one forward sweep carries from the layers to the
output, :math:`F_n''` is the operation's own second derivative, and
:math:`g_n = \partial(g_f \cdot f) / \partial(\text{result of } n)`, taken once for all directions. A direction costs
about one forward pass, where a double backward pass costs four; affine and piecewise linear operations add nothing to
the sum. Where several layers move, what a layer's own U makes of its input's tangent is left out, as it is by double
backward passes here: it belongs to the cross-layer blocks, and has mean zero for directions that are independent.

A forward pass is recorded at the level of executed operations, and the part of it that depends on a layer is kept as a
list of steps (:mod:`genbound.curvature.rule_of` finds their derivatives). Layers must act once each, as a linear map or a
convolution on samples that come first in every result; :func:`can_sweep` tries it against the double backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from genbound.curvature.own_noise import split_own_noise
from genbound.curvature.probes import probe_directions
from genbound.curvature.rule_of import at, find_rule
from genbound.curvature.rules import Rule
from genbound.errors import GenboundError
from genbound.estimators.random import row_of, row_signs
from genbound.network.loss_functions import output_form
from genbound.network.tape import Tape
from genbound.network.weight_uses import Use
from genbound.network.weight_watch import WeightWatch, act_once, taken_apart

if TYPE_CHECKING:
    from genbound.network.layers import Layer
    from genbound.network.problem import Problem


class Unsupported(GenboundError):
    """The forward pass holds something that tangents are not carried through; the message says what."""


@dataclass
class Step:
    """One executed operation: the numbers of its moving inputs and of its result, and its rule.

    ``layer`` is the layer whose weight it applies, if any, and ``adjoint`` then that of its result. ``last`` are the
    inputs that no later step needs. ``apart`` and ``passes`` are what :mod:`genbound.curvature.own_noise` finds.
    """

    rule: Rule | None
    inputs: tuple[int, ...]
    output: int
    shape: torch.Size
    layer: str | None
    last: tuple[int, ...] = ()
    adjoint: Tensor | None = None
    apart: bool = False
    passes: bool = False


@dataclass(frozen=True)
class _Call:
    """An operation that depends on a layer, as it was executed.

    Attributes:
        func: the operation, with its ``args`` as they were before it ran and its ``kwargs``.
        places: which arguments depend on a layer, see :func:`~genbound.curvature.rule_of.at`.
        inputs: their numbers.
        result: what it returned, the part numbered ``part`` if that was a list.
        number: of the result.
        layer: whose weight it applies.
    """

    func: Any
    args: Sequence
    kwargs: Mapping[str, Any]
    places: list[tuple[int, ...]]
    inputs: tuple[int, ...]
    result: Tensor
    part: int | None
    number: int
    layer: str | None


class _Recorder:
    """Keeps the operations of a watched forward pass that depend on a layer's result."""

    def __init__(self):
        self._results: list[Tensor] = []  # kept, so that no identity is given twice
        self.numbers: dict[int, int] = {}
        self.calls: list[_Call] = []
        self.uses: dict[str, Use] = {}

    def visit(self, func: Any, args: Sequence, kwargs: Mapping[str, Any], found: tuple[Layer, Use] | None) -> Any:
        """Run an operation and keep it if it depends on a layer."""
        if func.overloadpacket is torch.ops.aten.detach:
            return func(*args, **kwargs)  # a constant to every derivative
        places, before = self._places(args), args
        if places and func._schema.is_mutable:
            before = self._before_writing(func, args, places)
        out = func(*args, **kwargs)
        layer = None if found is None else self._meet(*found)
        if places or layer is not None:
            inputs = tuple(self.numbers[id(at(args, place))] for place in places)
            for part, result in enumerate(out) if isinstance(out, list | tuple) else [(None, out)]:
                if isinstance(result, Tensor) and result.is_complex():
                    raise Unsupported(f"{func.overloadpacket.__name__} gives complex numbers")
                if isinstance(result, Tensor) and result.is_floating_point():
                    number = self._number(result)
                    self.calls.append(_Call(func, before, kwargs, places, inputs, result, part, number, layer))
        return out

    def _places(self, args: Sequence) -> list[tuple[int, ...]]:
        """Where the arguments are that depend on a layer: those that are tensors, then those in lists."""
        lists = [(i, a) for i, a in enumerate(args) if isinstance(a, list | tuple)]
        places = [((i,), a) for i, a in enumerate(args)] + [((i, j), b) for i, a in lists for j, b in enumerate(a)]
        return [place for place, value in places if isinstance(value, Tensor) and id(value) in self.numbers]

    @staticmethod
    def _before_writing(func: Any, args: Sequence, places: list[tuple[int, ...]]) -> Sequence:
        """The arguments of an operation in place, which still have their values when it has run."""
        name = func.overloadpacket.__name__
        if not name.endswith("_") or (0,) not in places:
            raise Unsupported(f"{name} writes into its arguments")
        return (args[0].clone(), *args[1:])

    def _meet(self, layer: Layer, use: Use) -> str:
        if layer.name in self.uses:
            raise Unsupported(f"{layer.name} acts more than once")
        self.uses[layer.name] = use
        return layer.name

    def _number(self, result: Tensor) -> int:
        self.numbers[id(result)] = number = len(self._results)
        self._results.append(result)
        return number


class Sweep:
    """A recorded forward pass of some samples, for tangents.

    Args:
        problem: what is measured.
        positions: which of its samples, one row each.
        cotangent: of the outputs, in place of the loss's gradient in them.

    Attributes:
        outputs: the network's output ``[N, ...]``.
        uses: layer -> how its weight acts.
        starts: layer -> its step.

    Raises:
        Unsupported: a layer acts more than once, or an operation writes into its arguments.
    """

    def __init__(self, problem: Problem, positions: Sequence[int], cotangent: Tensor | None = None):
        self.problem, self.positions = problem, list(positions)
        batch = problem.batch(self.positions)
        recorder = _Recorder()
        watch = WeightWatch(problem, len(self.positions), recorder.visit)
        with torch.no_grad(), taken_apart(), watch:
            self.outputs = problem.forward(problem.params, batch.inputs)
        if lost := sorted(watch.unread - recorder.uses.keys()):
            raise Unsupported(
                f"layer {lost[0]} is used by other operations for some samples than for the first ones: "
                "leave it out with --layers"
            )
        self.targets, self.uses, calls = batch.targets, recorder.uses, recorder.calls
        self._end = recorder.numbers.get(id(self.outputs))
        del recorder, watch  # with all results but those that the calls hold
        self.steps = self._steps(calls)
        self.starts = {step.layer: i for i, step in enumerate(self.steps) if step.layer is not None}
        self._weigh(problem.loss.output_gradient(self.outputs, self.targets) if cotangent is None else cotangent)
        self._own: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def _steps(self, calls: list[_Call]) -> list[Step]:
        """What leads to the output, in the order of execution; the calls are forgotten one by one, from the end."""
        steps: list[Step] = []
        later = {self._end}
        while calls:
            call = calls.pop()
            if call.number in later:
                rule = None
                if call.places:
                    rule = find_rule(call.func, call.args, call.kwargs, call.places, call.result, call.part)
                last = tuple(set(call.inputs) - later)
                steps.append(Step(rule, call.inputs, call.number, call.result.shape, call.layer, last))
                later.update(call.inputs)
        return steps[::-1]

    def shape(self, name: str) -> torch.Size:
        """Of the layer's result, over all samples of the pass."""
        return self.steps[self.starts[name]].shape

    def _weigh(self, cotangent: Tensor) -> None:
        """Every curved operation and every layer learns the adjoint of its result: one sweep, transposed."""
        marked = [s for s in self.steps if s.layer is not None or s.rule is not None and s.rule.curved]
        if not marked:
            return
        with torch.enable_grad():
            marks = {s.output: self.outputs.new_zeros(()).expand(s.shape).requires_grad_() for s in marked}
            moved = self._carry(marks)
            adjoints = torch.autograd.grad(moved, list(marks.values()), cotangent, allow_unused=True)
        for step, adjoint in zip(marked, adjoints, strict=True):
            adjoint = self.outputs.new_zeros(step.shape) if adjoint is None else adjoint
            if step.layer is not None:
                step.adjoint = adjoint
            if step.rule is not None and step.rule.curved:
                step.rule.weigh(adjoint)

    def _carry(self, added: Mapping[int, Tensor], visit: Callable | None = None, apart: bool = False) -> Tensor | None:
        """Carry tangents to the output; ``added`` are put in at results by their numbers.

        ``visit`` sees the inputs of every step that is curved or applies a layer. With ``apart`` the steps that
        :func:`split_own_noise` marked see them without the noise of the layers just before.
        """
        tangents: dict[int, Tensor] = {}
        without: dict[int, Tensor | None] = {}
        first = next((i for i, step in enumerate(self.steps) if step.output in added), len(self.steps))
        for step in self.steps[first:]:
            moving = [tangents.get(i) for i in step.inputs]
            seen = [without.get(i, m) for i, m in zip(step.inputs, moving, strict=True)] if without else moving
            t = None
            if any(m is not None for m in moving):
                if visit is not None and (step.rule.curved or step.layer is not None):
                    visit(step, seen if step.apart else moving)
                t = step.rule.tangent(moving)
            before = t
            if apart and step.passes and step.layer is None and any(i in without for i in step.inputs):
                before = step.rule.tangent(seen) if any(m is not None for m in seen) else None
            if step.output in added:
                t = added[step.output] if t is None else t + added[step.output]
            for i in step.last:
                tangents.pop(i, None)
                without.pop(i, None)
            if apart and step.passes and t is not None:
                without[step.output] = before
            if t is not None:
                tangents[step.output] = t
        return tangents.get(self._end)

    def remainder(self, perturbations: Mapping[str, Tensor]) -> Tensor:
        """``u^T R u`` of every sample for the joint direction that moves the layers' results by these.

        Args:
            perturbations: layer -> ``u``, of the shape of its result.

        Returns:
            ``[N]`` in float64, in the loss's unit.

        Cost: a forward pass from the first of the layers on.
        """
        return self._curvature(perturbations, {})[0]

    def mean_remainder(self, perturbations: Mapping[str, Tensor]) -> Tensor:
        """:meth:`remainder` for random directions, with part of the mean over them taken: of equal mean, less spread.

        What a layer's own noise adds where it is first met is put in by its mean (:mod:`genbound.curvature.own_noise`).
        The perturbations must be those of independent weights of variance 1, of which every layer has its own.
        """
        if self._own is None:
            with torch.no_grad():
                self._own = split_own_noise(self.steps, self.uses, len(self))
        found = self._curvature(perturbations, {}, True)[0]
        for name in perturbations:
            if name in self._own:
                found += self._own[name]
        return found

    def hessian(self, perturbations: Mapping[str, Tensor], bends: Mapping[str, Callable] | None = None) -> Tensor:
        """``u^T H u`` of every sample likewise, with the Gauss-Newton part of the outputs' own tangent.

        ``bends`` tell how the perturbations themselves change with the layers' inputs: layer -> function from the
        tangent of its input to the derivative of ``u``. They add ``2 g . u'``, the second order of
        ``epsilon u(x + epsilon x')``.
        """
        remainder, moved = self._curvature(perturbations, bends or {})
        return (
            remainder
            if moved is None
            else remainder + output_form(self.problem.loss, self.outputs, self.targets, moved)
        )

    def _curvature(
        self, perturbations: Mapping[str, Tensor], bends: Mapping[str, Callable], apart: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        total = torch.zeros(len(self), dtype=torch.float64, device=self.outputs.device)

        def visit(step: Step, moving: list) -> None:
            found = None
            if any(m is not None for m in moving):
                found = step.rule.curvature(moving, len(self))
            if found is not None:
                total.add_(found)
            if step.layer in bends:
                use = self.uses[step.layer]  # which knows the order of the operation's rows
                bent = use.per_sample(bends[step.layer](moving[0]))
                total.add_(2 * (use.per_sample(step.adjoint) * bent).sum(1))

        added = {}
        for name, u in perturbations.items():
            if name in self.starts:  # others do not reach the output
                step = self.steps[self.starts[name]]
                added[step.output] = u.view(step.shape)
        with torch.no_grad():
            moved = self._carry(added, visit, apart)
        return total, moved


_TRIED: WeakKeyDictionary[Problem, bool] = WeakKeyDictionary()


def can_sweep(problem: Problem) -> bool:
    """Whether tangents give what a double backward pass does: tried once, on a few samples along one direction."""
    if problem not in _TRIED:
        _TRIED[problem] = act_once(problem) and _agree(problem)
    return _TRIED[problem]


def separate_cost(problem: Problem) -> float:
    """Forward passes that a sweep for every layer on its own takes, counted in executed operations."""
    sweep = Sweep(problem, problem.shared_run(1))
    return sum(1 - start / len(sweep.steps) for start in sweep.starts.values())


@dataclass(frozen=True)
class _Trial:
    """Random directions: ``cotangent [N, ...]`` of the outputs, and for each layer the perturbation of its result.

    A random combination of the outputs stands for the loss, which may have no derivatives on the samples tried.
    """

    cotangent: Tensor
    directions: dict[str, list[Tensor]]
    curved: tuple[str, ...]

    @classmethod
    def draw(cls, tape: Tape) -> _Trial:
        rows = [row_of("try", position, 0, 1) for position in tape.positions]
        like, used = tape.outputs.detach(), [name for name in tape.layers if tape.uses[name]]
        layers = {name: (tape.weights[name].shape, tape.uses[name]) for name in used}
        return cls(
            row_signs(rows, 0, "outputs", 1, like[0].numel(), like).view(like.shape),
            probe_directions(layers, rows, 0, like),
            tuple(name for name in used if name not in tape.piecewise_linear),
        )

    @property
    def bent(self) -> dict[str, list[Tensor]]:
        """The directions of the layers that the output is curved in."""
        return {name: self.directions[name] for name in self.curved}


def _agree(problem: Problem) -> bool:
    """Whether first and second derivatives along random directions are the same by tangents and by backward passes."""
    positions = problem.shared_run(4)
    try:
        tape = problem.tape(positions)
        trial = _Trial.draw(tape)
        wanted = _by_backward_passes(tape, trial)
        found = _by_tangents(Sweep(problem, positions, trial.cotangent), trial)
    except (Unsupported, NotImplementedError, RuntimeError):
        return False
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(tape.outputs.dtype, 0.1)
    return bool(((found - wanted).abs() <= tolerance * wanted.abs().amax(1, keepdim=True)).all())


def _by_backward_passes(tape: Tape, trial: _Trial) -> Tensor:
    """First and second derivative of every sample, ``[2, N]`` in float64."""
    wanted = torch.zeros(2, len(tape), dtype=torch.float64, device=tape.outputs.device)
    gradients = tape.backward(trial.cotangent, list(trial.directions))
    for name, us in trial.directions.items():
        filled = [torch.zeros_like(u) if g is None else g for g, u in zip(gradients[name], us, strict=True)]
        wanted[0] += tape.inner(name, us, filled)
    products = tape.activation_products(trial.bent, trial.curved, cotangent=trial.cotangent)
    for name, us in trial.bent.items():
        wanted[1] += tape.inner(name, us, products[name])
    return wanted


def _by_tangents(sweep: Sweep, trial: _Trial) -> Tensor:
    """The same by one sweep for each."""
    found = torch.zeros(2, len(sweep), dtype=torch.float64, device=sweep.outputs.device)
    _, tangent = sweep._curvature({name: us[0] for name, us in trial.directions.items()}, {})
    if tangent is not None:
        found[0] = (tangent * trial.cotangent).flatten(1).sum(1)
    found[1] = sweep.remainder({name: us[0] for name, us in trial.bent.items()})
    return found
