r"""Whether autograd sees all that a network does with its weights, tried before anything is measured.

A part of a network may run under ``torch.no_grad``, go through ``.data`` or ``detach``, or be a ``Function`` that can
be differentiated once only. Its derivative is zero or wrong, and autograd says nothing. So derivatives are held
against differences: of a random combination :math:`\phi = \langle c, f_W \rangle` of the outputs of at most two
samples,

.. math:: \nabla\phi \cdot u_i \approx \frac{\phi(W + h u_i) - \phi(W - h u_i)}{2h}, \qquad
    (\nabla^2\phi\, u)_i \approx \frac{\nabla_i\phi(W + h u) - \nabla_i\phi(W - h u)}{2h},

the first for each layer along a direction of its own, the second for all layers along one. Likewise of the loss in the
outputs (:mod:`genbound.network.loss_derivative_checks`).
A weight that autograd does not know must leave the outputs where they are when it is moved. Combinations of the outputs
stand for the loss because a loss may be flat at the samples tried. Passes are in double precision, unless the network
computes in single precision whatever it is given. Where a difference meets a kink, another direction and step are
tried; second derivatives in single precision are not held against anything where there are kinks.

In a large network layers that are called alike but for their numbers (``layers.3.mlp.weight``) and have one shape are
tried together, along a direction of them all: they are copies of one module, whose code is the same. So no more than a
group's gradients are in memory at a time. First derivatives that are hidden in one of many layers may stay below the
tolerance then, which a remark says; second derivatives are compared layer by layer all the same.

Cost: four forward passes of at most two samples for each layer or group, and about twelve gradients of them, for each
group where there are groups.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.data.sample_parts import map_tensors
from genbound.errors import GenboundError
from genbound.estimators.random import generator, normal
from genbound.network.graph import Graph
from genbound.network.loss_derivative_checks import check_loss_derivatives
from genbound.network.operation import Kind
from genbound.network.operations import named, of_aten, operation
from genbound.network.refusals import is_unsupported

if TYPE_CHECKING:
    from genbound.network.network import Network

TRIALS = 3  # directions, with smaller and smaller steps: a kink is met by one of them at most, so most must agree
LARGEST = 2**31  # bytes of weights up to which a copy in double precision is made
LARGE = 2**25  # weights above which layers that are alike are tried together


@dataclass(frozen=True)
class Precision:
    """How derivatives and differences are compared in one floating-point type.

    Attributes:
        dtype: of the passes.
        first, second: largest step relative to the weights, for first and second derivatives.
        close: allowed difference of a first derivative, relative to it.
        tolerance: allowed difference of a second derivative, likewise.
        floor: allowed difference of a second derivative, relative to the first: what rounding makes of the difference.
    """

    dtype: torch.dtype
    first: float
    second: float
    close: float
    tolerance: float
    floor: float


DOUBLE = Precision(torch.float64, 1e-6, 1e-8, 1e-4, 1e-2, 1e-3)
SINGLE = Precision(torch.float32, 1e-2, 1e-2, 0.05, 0.05, 0.05)


class _Executed(TorchDispatchMode):
    """What a pass executes: whether it rounds (a straight-through estimator's does), has kinks, and in which types."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = self.kinks = False
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        row = of_aten(func)
        self.rounds |= row is named("rounding")
        self.kinks |= row.kind is Kind.PIECEWISE
        if isinstance(out, Tensor) and out.is_floating_point():
            self.types.add(out.dtype)
        return out


class _Trial:
    """A network at other weights than its own: a random combination of the outputs of a few samples.

    Args:
        network: what is tried.
        names: its layers.
        precision: of the passes.
    """

    def __init__(self, network: Network, names: Sequence[str], precision: Precision):
        self.network, self.precision = network, precision
        batch = network.batch(network.shared_run(2)[:2])
        self.inputs = map_tensors(batch.inputs, self._cast)
        self.others = {name: self._cast(p) for name, p in network.params.items() if name not in set(names)}
        self.buffers = {name: self._cast(b) for name, b in network.buffers.items()}
        self.weights = {name: self._cast(network.params[name]).detach() for name in names}
        self.executed = _Executed()
        with torch.no_grad(), self.executed:
            outputs = self.outputs(self.weights)
        self.cotangent = normal(tuple(outputs.shape), generator(0, "derivative_checks"), outputs)
        self.own = outputs

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.precision.dtype) if tensor.is_floating_point() else tensor

    def outputs(self, weights: Mapping[str, Tensor]) -> Tensor:
        """``[N, ...]`` at these weights of the layers."""
        return self.network.forward({**self.others, **weights}, self.inputs, self.buffers)

    def value(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The combination of the outputs, a scalar on the graph if the weights are."""
        return (self.outputs(weights) * self.cotangent).sum()

    def direction(self, name: str, trial: int) -> Tensor:
        """Of the weight's own size, so that a step is a relative one; of size 1 for a weight of zeros."""
        weight = self.weights[name]
        size = float(weight.square().mean().sqrt()) or 1.0
        return size * normal(tuple(weight.shape), generator(trial, "derivative_checks", name), weight)

    def moved(self, directions: Mapping[str, Tensor], step: float) -> dict[str, Tensor]:
        """The weights, those of the directions moved by ``step`` times them."""
        return self.weights | {name: self.weights[name] + step * u for name, u in directions.items()}

    def leave_kinks(self, names: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Go a little aside, for a network that stands on a kink exactly; the combination and its gradients there."""
        chosen = list(names)
        self.weights = self.moved({name: self.direction(name, TRIALS) for name in chosen}, 1e-3)
        return self.gradients(self.weights, chosen)

    def gradients(
        self, weights: Mapping[str, Tensor], names: Iterable[str], second: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The combination, and its gradients in those of these layers that autograd knows, on the graph if ``second``.

        Args:
            weights: of all layers.
            names: the layers whose gradients are wanted.
            second: whether the gradients are to be differentiated again.
        """
        with torch.enable_grad():
            leaves = {name: weights[name].detach().requires_grad_() for name in names}
            value = self.value({**weights, **leaves})
            if not value.requires_grad:
                return value, {}
            found = torch.autograd.grad(value, list(leaves.values()), create_graph=second, allow_unused=True)
        self.leaves = leaves
        return value, {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def check_derivatives(network: Network, names: Sequence[str]) -> tuple[str, ...]:
    """Refuse a network or a loss whose derivatives are not those of what it computes.

    Args:
        network: whose passes can be run.
        names: its layers.

    Returns:
        Remarks about the numbers: where forward pass and derivative disagree on purpose.

    Raises:
        GenboundError: a derivative is cut or wrong; the message names the layer and what may hide it.
    """
    _check_unwritten(network, names)
    check_loss_derivatives(network.loss, *_sample_outputs(network))
    wrong: list[str] = []
    with torch.no_grad():
        trial, alike = _trial(network, names), _alike(network, names)
        # Each layer by itself from one gradient of them all, or each group by itself from a gradient of its own.
        for together, units in [(names, [[name] for name in names])] if alike is None else [(g, [g]) for g in alike]:
            wrong += _first_wrong(trial, together, units)
        if wrong:
            return (
                f"the network rounds and hands gradients past it (in {_listed(wrong)}): curvature is that of the "
                "surrogate that it is differentiated by, not of what it computes",
            )
        if trial.precision is DOUBLE or not trial.executed.kinks:  # steps of single precision do not pass kinks by
            for together in [names] if alike is None else alike:
                _check_second(trial, together)
    if alike is not None and len(alike) < len(names):
        return (
            f"the network is large: first derivatives of its {len(names)} layers were checked in {len(alike)} groups "
            "of layers that are alike, so that a part of one that autograd does not see may have passed",
        )
    return ()


def _alike(network: Network, names: Sequence[str]) -> list[list[str]] | None:
    """The layers in groups of one shape whose names differ in numbers alone; ``None`` for a network that is not large.

    Layers of one group are copies of one module in a stack of blocks.
    """
    if sum(p.numel() for p in network.params.values()) <= LARGE:
        return None
    groups: dict[tuple[str, torch.Size], list[str]] = {}
    for name in names:
        groups.setdefault((re.sub(r"\d+", "#", name), network.params[name].shape), []).append(name)
    return list(groups.values())


def _first_wrong(trial: _Trial, names: Sequence[str], units: Sequence[Sequence[str]]) -> list[str]:
    """Layers whose first derivative is wrong on purpose, because the network rounds.

    Args:
        trial: the network.
        names: the layers whose derivatives are taken.
        units: the same, those together that are tried along one direction.

    Raises:
        GenboundError: one is wrong for no such reason, or cut.
    """
    value, known = trial.gradients(trial.weights, names)
    _check_unknown(trial, [name for name in names if name not in known])

    def disagreeing(tried: Sequence[Sequence[str]]) -> list[list[str]]:
        there = [[name for name in unit if name in known] for unit in tried]
        return [unit for unit in there if unit and not _first_agrees(trial, unit, known)]

    wrong = disagreeing(units)
    if wrong:
        value, known = trial.leave_kinks(names)
        wrong = disagreeing(wrong)
    if wrong and not trial.executed.rounds:
        raise GenboundError(
            f"the derivative in layer {wrong[0][0]} is not that of what the network computes (moving the weight says "
            f"so): part of it is hidden from autograd by {_culprits(value, trial)}; let it be differentiated"
        )
    return [unit[0] for unit in wrong]


def _check_second(trial: _Trial, names: Sequence[str]) -> None:
    """Refuse second derivatives in these layers that are not those of what the network computes."""
    known = trial.gradients(trial.weights, names)[1]
    if _second_differs(trial, known) and (wrong := _second_differs(trial, trial.leave_kinks(names)[1])):
        raise GenboundError(
            f"the second derivative in layer {wrong[0]} is not that of what the network computes (differences of first "
            f"derivatives say so): it is cut by {_culprits(trial.gradients(trial.weights, names)[0], trial)}; let it "
            "be differentiated twice"
        )


def _check_unwritten(network: Network, names: Sequence[str]) -> None:
    """Refuse layers that a pass writes into: the passes so far have counted up the version of the weight."""
    written = [name for name in names if network.params[name]._version != network.versions[name]]
    if written:
        raise GenboundError(
            f"the network's own pass changes layer {written[0]} in place (as max_norm of an embedding does), so what "
            "is measured would not be what moves: build the model without that, or leave the layer out with --layers"
        )


def _sample_outputs(network: Network) -> tuple[Tensor, Tensor]:
    batch = network.batch(network.shared_run(2)[:2])
    with torch.no_grad():
        return network.forward(network.params, batch.inputs), batch.targets


def _trial(network: Network, names: Sequence[str]) -> _Trial:
    """In double precision if the network can be run so."""
    bytes_ = 2 * sum(p.numel() * p.element_size() for p in network.params.values())
    if network.dtype == torch.float64 or bytes_ <= LARGEST:
        try:
            trial = _Trial(network, names, DOUBLE)
        except Exception:  # whatever a model says to inputs of another type
            trial = None
        if trial is not None and trial.executed.types == {torch.float64}:
            return trial
    return _Trial(network, names, SINGLE)


def _check_unknown(trial: _Trial, names: Sequence[str]) -> None:
    """A weight that autograd does not know must not move the outputs."""
    for name in names:
        for number, step in enumerate((trial.precision.first, 1e3 * trial.precision.first)):
            outputs = trial.outputs(trial.moved({name: trial.direction(name, number)}, step))
            if not torch.allclose(outputs, trial.own, rtol=1e-12, atol=1e-14 * float(trial.own.abs().max())):
                raise GenboundError(
                    f"layer {name} moves the network's output, but no derivative reaches it: it is used under "
                    "torch.no_grad, or through .detach() or .data; let it be differentiated, or leave it out with "
                    "--layers"
                )


def _first_agrees(trial: _Trial, names: Sequence[str], gradients: Mapping[str, Tensor]) -> bool:
    """Whether differences along a random direction of these layers are those that the gradients foretell."""
    agreed = 0
    for number in range(TRIALS):
        step = trial.precision.first * 10.0**-number
        us = {name: trial.direction(name, number) for name in names}
        ends = [trial.value(trial.moved(us, sign * step)).double() for sign in (1, -1)]
        wanted, found, square = float(ends[0] - ends[1]) / (2 * step), 0.0, 0.0
        for name, u in us.items():
            found += float((gradients[name].double() * u.double()).sum())
            square += float(gradients[name].double().norm()) ** 2 * float(u.double().norm()) ** 2 / u.numel()
        rounding = 20 * torch.finfo(trial.precision.dtype).eps * float((trial.own * trial.cotangent).abs().sum()) / step
        agreed += abs(found - wanted) <= trial.precision.close * (abs(wanted) + math.sqrt(square)) + rounding
        if agreed == 2:
            return True
    return False


def _second_differs(trial: _Trial, known: Mapping[str, Tensor]) -> list[str]:
    """Layers whose second derivative disagrees with differences of first ones in every trial."""
    wrong: set[str] = set(known)
    for number in range(TRIALS):
        step = trial.precision.second * 10.0 ** (-number / 2)
        directions = {name: trial.direction(name, number) for name in known}
        try:
            products = dict(_products(trial, directions))
        except RuntimeError as error:
            if not is_unsupported(error):
                raise
            return []  # torch says itself that there is no second derivative; what needs none can still be measured
        sides = [trial.gradients(trial.moved(directions, sign * step), known)[1] for sign in (1, -1)]
        for name in set(wrong):
            zero = torch.zeros_like(known[name])
            wanted = (sides[0].get(name, zero) - sides[1].get(name, zero)).double() / (2 * step)
            gap = float((products[name].double() - wanted).norm())
            allowed = trial.precision.tolerance * float(wanted.norm())
            if gap <= allowed + trial.precision.floor * float(known[name].double().norm()):
                wrong.discard(name)
        if not wrong:
            return []
    return [name for name in known if name in wrong]


def _products(trial: _Trial, directions: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Layer -> Hessian of the combination times the joint direction."""
    _, gradients = trial.gradients(trial.weights, directions, second=True)
    with torch.enable_grad():
        slope = sum((g * directions[name]).sum() for name, g in gradients.items())
    leaves = {name: trial.leaves[name] for name in directions}
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if isinstance(slope, Tensor) and slope.requires_grad:
        found = torch.autograd.grad(slope, list(leaves.values()), allow_unused=True)
    for (name, leaf), product in zip(leaves.items(), found, strict=True):
        yield name, torch.zeros_like(leaf) if product is None else product


def _culprits(value: Tensor, trial: _Trial) -> str:
    """What may hide a derivative: the user's own functions among the executed operations, if there are any."""
    if value.grad_fn is None:
        return "torch.no_grad, .detach() or .data"
    names = dict.fromkeys(operation(node) for node in Graph(value, trial.leaves).order)
    own = [name.removesuffix("Backward") for name in names if name.endswith("Backward")]
    return f"the Function {_listed(own)}" if own else "torch.no_grad, .detach() or .data"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
