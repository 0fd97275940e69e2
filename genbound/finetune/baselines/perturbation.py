r"""Training steps whose gradient is taken at perturbed weights: sharpness-aware, or with two-sided noise.

Both passes of a step are of the same batch, mixed alike by mixup; dropout is drawn anew for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Backward = Callable[[], Tensor]


class SharpnessAware:
    r"""The gradient at :math:`W + \rho\, g/\|g\|`, where g is the gradient at W.

    **Cost**: two gradients a step. Under gradient accumulation every part ascends by its own gradient.

    References:
        Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021.
    """

    def __init__(self, rho: float):
        self.rho = rho

    def step(self, model: nn.Module, backward: Backward) -> Tensor:
        """Add the gradient at the perturbed weights to ``p.grad``.

        Args:
            model: the network, left at W.
            backward: takes the gradient of the loss into ``p.grad``; gives the loss, shape ``[]``.

        Returns:
            The loss at W, shape ``[]``.
        """
        with _gradients_set_aside(model) as weights:
            loss = backward()
            gradients = [p.grad for p in weights if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            shift = [None if p.grad is None else p.grad * (self.rho / (norm + 1e-12)) for p in weights]
            for p in weights:
                p.grad = None
            with _shifted(weights, shift), _statistics_kept(model):
                backward()
        return loss


class TwoSidedNoise:
    r"""The mean of the gradients at :math:`W + U` and :math:`W - U`.

    The noise :math:`U\sim N(0,\sigma^2 I)` is on every weight of two or more dimensions.

    In expectation the gradient of :math:`\hat L + \frac{\sigma^2}{2}\mathrm{Tr}\,\nabla^2\hat L`; the first-order terms
    cancel.

    **Cost**: two gradients a step.

    References:
        Zhang, Li & Ju, "Noise Stability Optimization for Finding Flat Minima: A Hessian-based Regularization Approach",
            TMLR 2024.
    """

    def __init__(self, sigma: float):
        self.sigma = sigma

    def step(self, model: nn.Module, backward: Backward) -> Tensor:
        """Add the mean of both gradients to ``p.grad``.

        Args:
            model: the network, left at W.
            backward: takes the gradient of the loss into ``p.grad``; gives the loss, shape ``[]``.

        Returns:
            The mean of both losses, shape ``[]``.
        """
        with _gradients_set_aside(model) as weights:
            noise = [self.sigma * torch.randn_like(p) if p.dim() >= 2 else None for p in weights]
            with _shifted(weights, noise):
                loss = backward()
            with _shifted(weights, [None if u is None else -u for u in noise]), _statistics_kept(model):
                loss = (loss + backward()) / 2
            for p in weights:
                if p.grad is not None:
                    p.grad /= 2
        return loss


@contextlib.contextmanager
def _gradients_set_aside(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Start from no gradients and add those accumulated so far at the end."""
    weights = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad for p in weights]
    for p in weights:
        p.grad = None
    yield weights
    for p, earlier in zip(weights, before, strict=True):
        if earlier is not None:
            p.grad = earlier if p.grad is None else p.grad + earlier


@contextlib.contextmanager
def _shifted(weights: list[nn.Parameter], shift: list[Tensor | None]) -> Iterator[None]:
    """Move the weights and put the very same ones back; subtracting the shift would leave a rounding."""
    kept = [None if u is None else p.detach().clone() for p, u in zip(weights, shift, strict=True)]
    with torch.no_grad():
        for p, u in zip(weights, shift, strict=True):
            if u is not None:
                p.add_(u)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(weights, kept, strict=True):
                if value is not None:
                    p.copy_(value)


@contextlib.contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """One step moves the running statistics once, whatever kind of layer keeps them: every buffer is put back."""
    kept = [(m._buffers, k, b, b.clone()) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, name, buffer, value in kept:
                buffers[name] = buffer.copy_(value)
