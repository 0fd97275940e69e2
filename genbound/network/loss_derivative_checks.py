r"""Whether autograd sees all that a loss does with the outputs, tried by differences before anything is measured."""

from __future__ import annotations

import torch
from torch import Tensor

from genbound.errors import GenboundError
from genbound.estimators.random import generator, normal
from genbound.network.loss_functions import Loss
from genbound.network.own_loss import in_double
from genbound.network.refusals import is_unsupported

TRIALS = 3  # directions, with smaller and smaller steps: a kink is met by one of them at most


def check_loss_derivatives(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss whose first or second derivative in the ``outputs [N, ...]`` is cut.

    Raises:
        GenboundError: naming the loss.
    """
    taken = in_double(loss, outputs, targets)
    # What the values of a loss are rounded to, and a step beside which that is little.
    eps, longest, shrink = (1e-14, 1e-5, 0.1) if taken is loss else (3e-7, 1e-2, 0.3)
    loss, outputs = taken, outputs.detach().double()
    first, second = [], []
    for trial in range(TRIALS):
        u = normal(tuple(outputs.shape), generator(trial, "derivative_checks", "loss"), outputs)
        for scale in (1.0, 0.1):  # a loss may be flat where the network is sure
            at, step = scale * outputs, longest * shrink**trial
            ends = [at + sign * step * u for sign in (1, -1)]
            with torch.no_grad():
                sides = [loss.per_sample(end, targets).double().sum() for end in ends]
            g, product = _loss_derivatives(loss, at, targets, u)
            slopes = [_loss_derivatives(loss, end, targets, u)[0] for end in ends]
            change = (slopes[0] - slopes[1]) / (2 * step)
            wanted = float(sides[0] - sides[1]) / (2 * step)
            # A loss of nearly zero comes from outputs that are not small, and has their rounding.
            rounding = eps * float(sides[0].abs() + at.norm()) / step
            # At a minimum the gradient is zero, and what a difference makes of it is far below the step's own change.
            slack = 1e-2 * step * float(change.norm() * u.norm()) + rounding
            first.append(abs(float((g * u).sum()) - wanted) <= 1e-2 * (float(g.norm()) + abs(wanted)) + slack)
            allowed = 1e-2 * float(change.norm()) + 1e-3 * float(g.norm()) + 10 * eps / step
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
        except RuntimeError as error:
            if not is_unsupported(error):
                raise
            return gradient.detach(), None
    return gradient.detach(), zero if product is None else product
