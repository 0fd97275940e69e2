r"""Second directional derivatives of the output from tangents alone: no backward pass for each direction.

Along a direction that moves the layers' results by u (for one layer, :math:`W + \varepsilon U` with u = U x) the
remainder of a sample's Hessian is a sum over the executed operations n,

.. math:: U^\top R\, U = \sum_n g_n \cdot F_n''(x_n)[t_n, t_n],

where :math:`t_n` are the tangents of the operation's inputs, which one forward sweep carries from the layers to the
output, :math:`F_n''` is the operation's own second derivative, and :math:`g_n = \partial(g_f \cdot f) /
\partial(\text{result of } n)`, taken once for all directions. A direction costs about one forward pass, where a double
backward pass costs four; affine and piecewise linear operations add nothing to the sum. Where several layers move, what
a layer's own U makes of its input's tangent is left out, as it is by double backward passes here: it belongs to the
cross-layer blocks, and has mean zero for directions that are independent.

A forward pass is recorded at the level of executed operations (:mod:`genbound.curvature.recording`), and the part of it
that leads from a layer to the output is kept as a list of steps (:mod:`genbound.curvature.rule_of` knows their
derivatives). Whether that gives what the double backward pass does is tried by
:func:`~genbound.curvature.sweep_trial.can_sweep`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genbound.curvature.own_noise import split_own_noise
from genbound.curvature.recording import Call, record
from genbound.curvature.rule_of import find_rule
from genbound.curvature.rules import Rule
from genbound.network.loss_functions import output_form

if TYPE_CHECKING:
    from genbound.network.problem import Problem

# Layer -> from the tangent of its input to the derivative of how its result is perturbed, in the operation's shapes.
Bends = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass
class Step:
    """One executed operation on the way from a layer to the output.

    Attributes:
        rule: its derivatives; ``None`` where none of its inputs depends on a layer.
        inputs: numbers of the inputs that do.
        output: number of its result.
        shape, dtype, device: of its result.
        layer: whose weight it applies, if any.
        last: the inputs that no later step needs.
        adjoint: of its result, in its shape, in the loss's unit by that of the result; known of layers.
        apart, passes: what :mod:`genbound.curvature.own_noise` finds.
    """

    rule: Rule | None
    inputs: tuple[int, ...]
    output: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    layer: str | None
    last: tuple[int, ...] = ()
    adjoint: Tensor | None = None
    apart: bool = False
    passes: bool = False

    @property
    def curved(self) -> bool:
        """Its second derivative does not vanish."""
        return self.rule is not None and self.rule.curved

    def tangent(self, tangents: Sequence[Tensor | None]) -> Tensor | None:
        """Of the result, from those of the inputs; ``None`` is an exact zero."""
        return self.rule.tangent(tangents) if _any_moves(tangents) else None


def _zeros(step: Step) -> Tensor:
    """Zeros in the shape and type of a step's result: in a half precision network some are in single precision."""
    return torch.zeros((), dtype=step.dtype, device=step.device).expand(step.shape)


def _any_moves(tangents: Sequence[Tensor | None]) -> bool:
    return any(t is not None for t in tangents)


class Sweep:
    """A recorded forward pass of N samples, for tangents.

    Args:
        problem: what is measured.
        positions: which of its samples, one row each.
        cotangent: of the outputs, ``[N, ...]``, in place of the loss's gradient in them.

    Attributes:
        outputs: the network's output ``[N, ...]``.
        targets: labels of the samples, ``[N, ...]``.
        uses: layer -> how its weight acts.
        steps: from the layers to the output, in the order of execution.
        starts: layer -> place of its step; layers that do not reach the output have none.

    Raises:
        Unsupported: a layer acts more than once or in a way that is not known, or an operation writes into its
        arguments.
    """

    def __init__(self, problem: Problem, positions: Sequence[int], cotangent: Tensor | None = None):
        self.problem, self.positions = problem, list(positions)
        batch = problem.batch(self.positions)
        recording = record(problem, batch.inputs, len(self.positions))
        self.outputs, self.targets, self.uses = recording.outputs, batch.targets, recording.uses
        self._end = recording.number
        self.steps = _steps(recording.calls, self._end)
        self.starts = {step.layer: i for i, step in enumerate(self.steps) if step.layer is not None}
        self._weigh(problem.loss.output_gradient(self.outputs, self.targets) if cotangent is None else cotangent)
        self._own: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def shape(self, name: str) -> torch.Size:
        """Of the layer's result, over all samples of the pass."""
        return self.steps[self.starts[name]].shape

    def _weigh(self, cotangent: Tensor) -> None:
        """Every curved operation and every layer learns the adjoint of its result: one sweep, transposed."""
        marked = [step for step in self.steps if step.layer is not None or step.curved]
        if not marked:
            return
        with torch.enable_grad():
            marks = {s.output: _zeros(s).requires_grad_() for s in marked}
            moved = self._carry(marks)
            adjoints = torch.autograd.grad(moved, list(marks.values()), cotangent, allow_unused=True)
        for step, adjoint in zip(marked, adjoints, strict=True):
            adjoint = _zeros(step) if adjoint is None else adjoint
            if step.layer is not None:
                step.adjoint = adjoint
            if step.curved:
                step.rule.weigh(adjoint)

    # -- carrying -----------------------------------------------------------------------------------------------------

    def _carry(self, added: Mapping[int, Tensor], visit: Callable | None = None, apart: bool = False) -> Tensor | None:
        """Carry tangents to the output.

        ``added`` are put in at results by their numbers, and ``visit`` sees every step's inputs. With ``apart`` the
        steps that :func:`~genbound.curvature.own_noise.split_own_noise` marked see them without the noise of the layers
        just before.
        """
        tangents: dict[int, Tensor] = {}
        without: dict[int, Tensor | None] = {}  # own noise, where that is another tangent
        first = next((i for i, step in enumerate(self.steps) if step.output in added), len(self.steps))
        for step in self.steps[first:]:
            moving = [tangents.get(i) for i in step.inputs]
            quiet = [without.get(i, t) for i, t in zip(step.inputs, moving, strict=True)]
            if visit is not None and _any_moves(moving) and (step.curved or step.layer is not None):
                visit(step, quiet if step.apart else moving)
            t = before = step.tangent(moving)
            if apart and step.passes and step.layer is None and any(i in without for i in step.inputs):
                before = step.tangent(quiet)
            if step.output in added:
                t = added[step.output] if t is None else t + added[step.output]
            for i in step.last:
                tangents.pop(i, None)
                without.pop(i, None)
            if t is not None:
                tangents[step.output] = t
                if apart and step.passes:
                    without[step.output] = before
        return tangents.get(self._end)

    def _curvature(
        self, perturbations: Mapping[str, Tensor], bends: Bends | None = None, apart: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The sum over the operations, ``[N]`` in float64, and the tangent of the outputs, ``[N, ...]``."""
        total, bends = torch.zeros(len(self), dtype=torch.float64, device=self.outputs.device), bends or {}

        def visit(step: Step, moving: Sequence[Tensor | None]) -> None:
            if _any_moves(moving) and (found := step.rule.curvature(moving, len(self))) is not None:
                total.add_(found.to(total.device))
            if step.layer in bends:
                total.add_(self._bend(step, bends[step.layer](moving[0])).to(total.device))

        # Layers that have no step do not reach the output.
        steps = {name: self.steps[self.starts[name]] for name in perturbations if name in self.starts}
        with torch.no_grad():
            added = {step.output: perturbations[name].view(step.shape) for name, step in steps.items()}
            moved = self._carry(added, visit, apart)
        return total, moved

    def _bend(self, step: Step, bent: Tensor) -> Tensor:
        """``2 g . u'`` of every sample, ``[N]``, for the derivative ``u'`` of how a layer's result is perturbed."""
        use = self.uses[step.layer]  # which knows the order of the operation's rows
        return 2 * (use.per_sample(step.adjoint) * use.per_sample(bent)).sum(1)

    # -- second derivatives -------------------------------------------------------------------------------------------

    def remainder(self, perturbations: Mapping[str, Tensor]) -> Tensor:
        """``u^T R u`` of every sample, ``[N]`` in float64 and the loss's unit, along one joint direction.

        Args:
            perturbations: layer -> how its result is moved, with as many entries as that, in the order of the
            operation's rows.

        Cost: a forward pass from the first of the layers on.
        """
        return self._curvature(perturbations)[0]

    def mean_remainder(self, perturbations: Mapping[str, Tensor], half: bool = False) -> Tensor:
        """:meth:`remainder` for random directions, with part of the mean over them taken.

        It has the same mean and less spread. What a layer's own noise adds where it is first met is put in by its mean
        (:mod:`genbound.curvature.own_noise`). The perturbations must be those of independent weights of variance 1, of
        which every layer has its own. With ``half`` the products are taken in bfloat16, to three digits.
        """
        if self._own is None:
            with torch.no_grad():
                self._own = split_own_noise(self.steps, self.uses, len(self))
        with torch.autocast(self.outputs.device.type, torch.bfloat16, enabled=half):
            found = self._curvature(perturbations, apart=True)[0]
        for name in perturbations:
            if name in self._own:
                found += self._own[name].to(found.device)
        return found

    def hessian(self, perturbations: Mapping[str, Tensor], bends: Bends | None = None) -> Tensor:
        """``u^T H u`` of every sample, as :meth:`remainder` with the Gauss-Newton part of the outputs' own tangent.

        Args:
            perturbations: as there.
            bends: how the perturbations themselves change with the layers' inputs: layer -> function from the tangent
                of its input to the derivative of ``u``. They add ``2 g . u'``, the second order of
                ``epsilon u(x + epsilon x')``.
        """
        remainder, moved = self._curvature(perturbations, bends)
        if moved is None:
            return remainder
        return remainder + output_form(self.problem.loss, self.outputs, self.targets, moved)

    def tangent(self, perturbations: Mapping[str, Tensor]) -> Tensor | None:
        """First derivative of the outputs along the direction, ``[N, ...]``; ``None`` is an exact zero."""
        return self._curvature(perturbations)[1]


def _steps(calls: list[Call], end: int | None) -> list[Step]:
    """What leads to the result numbered ``end``, in the order of execution; the calls are forgotten one by one."""
    steps: list[Step] = []
    later = {end}
    while calls:
        call = calls.pop()
        if call.number in later:
            rule = find_rule(call) if call.places else None
            last = tuple(set(call.inputs) - later)
            like = call.result
            steps.append(Step(rule, call.inputs, call.number, like.shape, like.dtype, like.device, call.layer, last))
            later.update(call.inputs)
    return steps[::-1]


def separate_cost(problem: Problem) -> float:
    """Forward passes that a sweep for every layer on its own takes, counted in executed operations."""
    sweep = Sweep(problem, problem.shared_run(1))
    return sum(1 - start / len(sweep.steps) for start in sweep.starts.values())
