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

In a large network one sample is passed, and of each weight no more than some columns are moved and differentiated, at
equal distances from each other: so all layers' derivatives are kept, beside a copy of some of the weights.
Layers that are called alike but for their numbers (``layers.3.mlp.weight``) and have one shape are tried together,
along a direction of them all: they are copies of one module, whose code is the same. First derivatives that are hidden
in one of many layers may stay below the tolerance then, which a remark says; second derivatives are compared layer by
layer all the same.

Cost: four forward passes of at most two samples for each layer or group, and about eight gradients of them, once for
each 2 GiB of a large network's weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genbound.errors import GenboundError
from genbound.formatting import few
from genbound.network.derivative_trial import DOUBLE, SINGLE, Trial, is_large
from genbound.network.graph import Graph
from genbound.network.kept_value_checks import check_kept_values
from genbound.network.loss_derivative_checks import check_loss_derivatives
from genbound.network.operations import operation
from genbound.network.refusals import is_about_types, is_unsupported

if TYPE_CHECKING:
    from genbound.network.network import Network

LARGEST = 2**31  # bytes of weights up to which a copy in double precision is made


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
    check_kept_values(network)
    check_loss_derivatives(network.loss, *_sample_outputs(network))
    wrong: list[str] = []
    with torch.no_grad():
        trial, alike = _trial(network, names), _alike(network, names)
        if wrong := _first_wrong(trial, names, [[name] for name in names] if alike is None else alike):
            return (
                f"the network rounds and hands gradients past it (in {few(wrong)}): curvature is that of the "
                "surrogate that it is differentiated by, not of what it computes",
            )
        # Steps of single precision do not pass kinks by.
        seconds = trial.precision is DOUBLE or not trial.executed.kinks
        for run in trial.runs(names) if seconds else ():
            _check_second(trial, run)
    remarks = () if seconds else (
        "second derivatives were not checked: a part of the network computes in single precision, whose steps meet its "
        "kinks",
    )  # fmt: skip
    if alike is not None and len(alike) < len(names):
        return (
            f"the network is large: first derivatives of its {len(names)} layers were checked in {len(alike)} groups "
            "of layers that are alike, so that a part of one that autograd does not see may have passed",
            *remarks,
        )
    return remarks


def _alike(network: Network, names: Sequence[str]) -> list[list[str]] | None:
    """The layers in groups of one shape whose names differ in numbers alone; ``None`` for a network that is not large.

    Layers of one group are copies of one module in a stack of blocks.
    """
    if not is_large(network):
        return None
    groups: dict[tuple[str, torch.Size], list[str]] = {}
    for name in names:
        groups.setdefault((re.sub(r"\d+", "#", name), network.params[name].shape), []).append(name)
    return list(groups.values())


def _first_wrong(trial: Trial, names: Sequence[str], units: Sequence[Sequence[str]]) -> list[str]:
    """Layers whose first derivative is wrong on purpose, because the network rounds.

    Args:
        trial: the network.
        names: the layers whose derivatives are taken.
        units: the same, those together that are tried along one direction.

    Raises:
        GenboundError: one is wrong for no such reason, or cut.
    """
    value, known = trial.all_gradients(names)
    _check_unknown(trial, [name for name in names if name not in known])

    def disagreeing(tried: Sequence[Sequence[str]]) -> list[list[str]]:
        there = [[name for name in unit if name in known] for unit in tried]
        return [unit for unit in there if unit and not _first_agrees(trial, unit, known)]

    wrong = disagreeing(units)
    if wrong:
        trial.leave_kinks(names)
        value, known = trial.all_gradients(names)
        wrong = disagreeing(wrong)
    if wrong and not trial.executed.rounds:
        raise GenboundError(
            f"the derivative in layer {wrong[0][0]} is not that of what the network computes (moving the weight says "
            f"so): part of it is hidden from autograd by {_culprits(value, trial)}; let it be differentiated"
        )
    return [unit[0] for unit in wrong]


def _check_second(trial: Trial, names: Sequence[str]) -> None:
    """Refuse second derivatives in these layers that are not those of what the network computes."""
    wrong = _second_differs(trial, trial.gradients(trial.weights, names)[1])
    if wrong:
        trial.leave_kinks(names)
        wrong = _second_differs(trial, trial.gradients(trial.weights, names)[1])
    if wrong:
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


def _trial(network: Network, names: Sequence[str]) -> Trial:
    """In double precision if the network can be run so."""
    bytes_ = 2 * sum(p.numel() * p.element_size() for p in network.params.values())
    if network.dtype == torch.float64 or bytes_ <= LARGEST:
        try:
            trial = Trial(network, names, DOUBLE)
        except Exception as error:
            if not is_about_types(error):
                raise
            trial = None
        if trial is not None and trial.executed.types == {torch.float64}:
            return trial
    return Trial(network, names, SINGLE)


def _check_unknown(trial: Trial, names: Sequence[str]) -> None:
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


def _first_agrees(trial: Trial, names: Sequence[str], gradients: Mapping[str, Tensor]) -> bool:
    """Whether differences along a random direction of these layers are those that the gradients foretell."""
    agreed = 0
    for number in range(trial.trials):
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


def _second_differs(trial: Trial, known: Mapping[str, Tensor]) -> list[str]:
    """Layers whose second derivative disagrees with differences of first ones in every trial."""
    wrong: set[str] = set(known)
    for number in range(trial.trials):
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


def _products(trial: Trial, directions: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Layer -> Hessian of the combination times the joint direction."""
    _, gradients = trial.gradients(trial.weights, directions, second=True)
    leaves = {name: trial.leaves[name] for name in directions}
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs := [(g, directions[name]) for name, g in gradients.items() if g.requires_grad]:
        moving, along = zip(*pairs, strict=True)
        found = torch.autograd.grad(moving, list(leaves.values()), along, allow_unused=True)
    for (name, leaf), product in zip(leaves.items(), found, strict=True):
        yield name, torch.zeros_like(leaf) if product is None else product


def _culprits(value: Tensor, trial: Trial) -> str:
    """What may hide a derivative: the user's own functions among the executed operations, if there are any."""
    if value.grad_fn is None:
        return "torch.no_grad, .detach() or .data"
    names = dict.fromkeys(operation(node) for node in Graph(value, trial.leaves).order)
    own = [name.removesuffix("Backward") for name in names if name.endswith("Backward")]
    return f"the Function {few(own)}" if own else "torch.no_grad, .detach() or .data"
