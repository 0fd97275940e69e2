"""What the tests of sweeps share: networks, directions and draws."""

import torch
from cases import D
from small_nets import labels

from genbound.curvature.sweep import Sweep
from genbound.estimators.random import row_of
from genbound.network.problem import Problem


def close(got, expected, tolerance=1e-10, size=0.0):
    """To rounding, relative to the largest of what is expected, or to what it was summed up from."""
    assert got.shape == expected.shape
    size = max(size, float(expected.abs().max()))
    assert float((got - expected).abs().max()) <= tolerance * size


def own_directions(sweep, seed=0):
    """Weight directions of every sample's own, and how they move the layers' results."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(len(sweep), *sweep.problem.params[name].shape, dtype=D, generator=generator)
        for name in sweep.uses
    }
    return weights, {name: sweep.uses[name].perturb(v) for name, v in weights.items()}


def double_backward(tape, us, part):
    """``u^T (part) u`` of every sample along the joint direction, by the route that sweeps replace."""
    products = tape.activation_products({name: [u] for name, u in us.items()}, list(us), part)
    return sum(tape.inner(name, [u], products[name]) for name, u in us.items())


def problem_of(model, x, seed=1, **arguments):
    """With weights large enough to curve, and the initialisation at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel() if p.dim() > 1 else 4
            p.copy_(1.5 * torch.randn(p.shape, dtype=D, generator=generator) / fan**0.5)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    return Problem(model, init, (x, labels(len(x), 3)), dtype=D, **{"batch_size": 5, **arguments})


def inputs_of(on_maps, num=5):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*((num, 2, 4, 4) if on_maps else (num, 4)), dtype=D, generator=generator)


DRAWS = 400


def drawn(problem, positions, function):
    """``[draws, ...]`` of one sweep."""
    sweep, names = Sweep(problem, positions), [layer.name for layer in problem.layers]
    return torch.stack([
        function(sweep, names, [row_of("test", p, draw, DRAWS) for p in positions], 0) for draw in range(DRAWS)
    ])  # fmt: skip
