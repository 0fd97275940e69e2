r"""Whether autograd sees all that a network does with its weights, tried before anything is measured.

A part of a network may run under ``torch.no_grad``, go through ``.data`` or ``detach``, or be a ``Function`` that can
be differentiated once only. Its derivative is zero or wrong, and autograd says nothing. So derivatives are held
against differences: of a random combination :math:`\phi = \langle c, f_W \rangle` of the outputs of at most two
samples,

.. math:: \nabla\phi \cdot u_i \approx \frac{\phi(W + h u_i) - \phi(W - h u_i)}{2h}, \qquad
    (\nabla^2\phi\, u)_i \approx \frac{\nabla_i\phi(W + h u) - \nabla_i\phi(W - h u)}{2h},

the first for each layer along a direction of its own, the second for all layers along one. Likewise of the loss in the
outputs.
A weight that autograd does not know must leave the outputs where they are when it is moved. Combinations of the outputs
stand for the loss because a loss may be flat at the samples tried. Passes are in double precision, unless the network
computes in single precision whatever it is given. Where a difference meets a kink, another direction and step are
tried; second derivatives in single precision are not held against anything where there are kinks.

Cost: four forward passes of at most two samples for each layer, and about twelve gradients of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.data.sample_parts import map_tensors
from genbound.errors import GenboundError
from genbound.estimators.random import generator, normal
from genbound.network.graph import Graph
from genbound.network.loss_functions import Loss
from genbound.network.operation import Kind
from genbound.network.operations import named, of_aten, operation

if TYPE_CHECKING:
    from genbound.network.network import Network

TRIALS = 3  # directions, with smaller and smaller steps: a kink is met by one of them at most, so most must agree
LARGEST = 2**31  # bytes of weights up to which a copy in double precision is made


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

    def leave_kinks(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Go a little aside, for a network that stands on a kink exactly; the combination and its gradients there."""
        self.weights = self.moved({name: self.direction(name, TRIALS) for name in self.weights}, 1e-3)
        value, gradients = self.gradients(self.weights)
        return value, {name: g.detach() for name, g in gradients.items()}

    def gradients(self, weights: Mapping[str, Tensor], second: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The combination, and its gradients in the layers that autograd knows, on the graph if ``second``."""
        with torch.enable_grad():
            leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
            value = self.value(leaves)
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
    with torch.no_grad():
        trial = _trial(network, names)
        value, gradients = trial.gradients(trial.weights)
        known = {name: g.detach() for name, g in gradients.items()}
        _check_unknown(trial, [name for name in names if name not in known])
        wrong = [name for name in known if not _first_agrees(trial, name, known[name])]
        if wrong:
            value, known = trial.leave_kinks()
            wrong = [name for name in wrong if name in known and not _first_agrees(trial, name, known[name])]
        if wrong:
            if trial.executed.rounds:
                return (
                    f"the network rounds and hands gradients past it (in {_listed(wrong)}): curvature is that of the "
                    "surrogate that it is differentiated by, not of what it computes",
                )
            raise GenboundError(
                f"the derivative in layer {wrong[0]} is not that of what the network computes (moving the weight says "
                "so): "
                f"part of it is hidden from autograd by {_culprits(value, trial)}; let it be differentiated"
            )
        if trial.precision is DOUBLE or not trial.executed.kinks:  # steps of single precision do not pass kinks by
            if _second_differs(trial, known) and (wrong := _second_differs(trial, trial.leave_kinks()[1])):
                raise GenboundError(
                    f"the second derivative in layer {wrong[0]} is not that of what the network computes (differences "
                    "of first derivatives say so): it is cut by "
                    f"{_culprits(trial.gradients(trial.weights)[0], trial)}; let it be differentiated twice"
                )
    return ()


def _check_unwritten(network: Network, names: Sequence[str]) -> None:
    """Refuse layers that a pass writes into: the passes so far have counted up the version of the network's copy."""
    written = [name for name in names if network.params[name]._version]
    if written:
        raise GenboundError(
            f"the network's own pass changes layer {written[0]} in place (as max_norm of an embedding does), so what "
            "is measured would not be what moves: build the model without that, or leave the layer out with --layers"
        )


def check_loss_derivatives(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss whose first or second derivative in the ``outputs [N, ...]`` is cut.

    Raises:
        GenboundError: naming the loss.
    """
    outputs = outputs.detach().double()
    first, second = [], []
    for trial in range(TRIALS):
        u = normal(tuple(outputs.shape), generator(trial, "derivative_checks", "loss"), outputs)
        for scale in (1.0, 0.1):  # a loss may be flat where the network is sure
            at, step = scale * outputs, 10.0 ** (-5 - trial)
            ends = [at + sign * step * u for sign in (1, -1)]
            with torch.no_grad():
                sides = [loss.per_sample(end, targets).double().sum() for end in ends]
            g, product = _loss_derivatives(loss, at, targets, u)
            slopes = [_loss_derivatives(loss, end, targets, u)[0] for end in ends]
            change = (slopes[0] - slopes[1]) / (2 * step)
            wanted = float(sides[0] - sides[1]) / (2 * step)
            # A loss of nearly zero comes from outputs that are not small, and has their rounding.
            rounding = 1e-14 * float(sides[0].abs() + at.norm()) / step
            # At a minimum the gradient is zero, and what a difference makes of it is far below the step's own change.
            slack = 1e-2 * step * float(change.norm() * u.norm()) + rounding
            first.append(abs(float((g * u).sum()) - wanted) <= 1e-2 * (float(g.norm()) + abs(wanted)) + slack)
            allowed = 1e-2 * float(change.norm()) + 1e-3 * float(g.norm()) + 1e-13 / step
            second.append(product is None or float((product - change).norm()) <= allowed)
    for order, agrees in (("first", first), ("second", second)):
        if any(not any(agrees[i::2]) for i in (0, 1)):
            raise GenboundError(
                f"the {order} derivative of the loss {loss.name} is not that of its values: part of it is hidden from "
                "autograd (torch.no_grad, .detach(), .data, .item(), or a Function that is differentiated once only); "
                "let it be differentiated"
            )


def _loss_derivatives(loss: Loss, at: Tensor, targets: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradient of the summed losses in the outputs, and their Hessian times ``u``, zero where autograd knows none.

    ``None`` in place of the product where torch says itself that there is none.
    """
    zero = torch.zeros_like(at)
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        total = loss.per_sample(at, targets).sum()
        if not total.requires_grad:
            return zero, zero
        gradient = torch.autograd.grad(total, at, create_graph=True, allow_unused=True)[0]
        if gradient is None or not gradient.requires_grad:
            return (zero if gradient is None else gradient), zero
        try:
            product = torch.autograd.grad((gradient * u).sum(), at, allow_unused=True)[0]
        except RuntimeError:
            return gradient.detach(), None
    return gradient.detach(), zero if product is None else product


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


def _first_agrees(trial: _Trial, name: str, gradient: Tensor) -> bool:
    agreed = 0
    for number in range(TRIALS):
        u, step = trial.direction(name, number), trial.precision.first * 10.0**-number
        ends = [trial.value(trial.moved({name: u}, sign * step)).double() for sign in (1, -1)]
        wanted, found = float(ends[0] - ends[1]) / (2 * step), float((gradient.double() * u.double()).sum())
        rounding = 20 * torch.finfo(trial.precision.dtype).eps * float((trial.own * trial.cotangent).abs().sum()) / step
        size = abs(wanted) + float(gradient.double().norm()) * float(u.double().norm()) / math.sqrt(u.numel())
        agreed += abs(found - wanted) <= trial.precision.close * size + rounding
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
        except RuntimeError:
            return []  # torch says itself that there is no second derivative; what needs none can still be measured
        sides = [trial.gradients(trial.moved(directions, sign * step))[1] for sign in (1, -1)]
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
    _, gradients = trial.gradients(trial.weights, second=True)
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
