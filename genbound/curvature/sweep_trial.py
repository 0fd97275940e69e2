"""Whether sweeps of tangents give what double backward passes do, tried on a few samples of a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from genbound.curvature.probes import probe_directions
from genbound.curvature.rules import Unsupported
from genbound.curvature.sweep import Sweep
from genbound.estimators.random import row_of, row_signs
from genbound.network.refusals import is_unsupported
from genbound.network.tape import Tape
from genbound.network.weight_watch import act_once

if TYPE_CHECKING:
    from genbound.network.problem import Problem

_TRIED: WeakKeyDictionary[Problem, bool] = WeakKeyDictionary()


def can_sweep(problem: Problem) -> bool:
    """Whether tangents give what a double backward pass does; tried once, on a few samples in one random direction."""
    if problem not in _TRIED:
        _TRIED[problem] = act_once(problem) and _agree(problem)
    return _TRIED[problem]


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
        layers = {name: (tape.weights[name].detach(), tape.uses[name]) for name in used}
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
    except Unsupported:
        return False
    except RuntimeError as error:
        if not is_unsupported(error):
            raise
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
    tangent = sweep.tangent({name: us[0] for name, us in trial.directions.items()})
    if tangent is not None:
        found[0] = (tangent * trial.cotangent).flatten(1).sum(1)
    found[1] = sweep.remainder({name: us[0] for name, us in trial.bent.items()})
    return found
