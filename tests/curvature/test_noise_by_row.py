"""Noise on the weights of every row on its own, drawn in activation space."""

import numpy as np
import pytest
import torch
from torch import nn

import genbound
from genbound.curvature import noise_by_row
from genbound.curvature.noise_by_row import Normals, can_move_rows, noise_directions, noisy_losses
from genbound.curvature.sweep import Sweep
from genbound.curvature.sweep_trial import can_sweep
from genbound.estimators import random
from genbound.network.problem import Problem


class Swapped(nn.Module):
    """Positions and channels exchanged without a copy: torch multiplies by the expanded weight in a batch."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.mT)


class WeightFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x):
        return self.weight @ x


LAYERS = {
    # Fewer positions than inputs: Cholesky. More: full weights.
    "linear, few positions": (nn.Linear(12, 3), (4, 12)),
    "linear, many positions": (nn.Linear(2, 3), (5, 2)),
    "linear, not contiguous, few positions": (Swapped(nn.Linear(12, 3)), (12, 4)),
    "linear, not contiguous, many positions": (Swapped(nn.Linear(2, 3, bias=False)), (2, 5)),
    "convolution, few positions": (nn.Conv2d(4, 3, 3, stride=2), (4, 5, 5)),
    "convolution, many positions": (nn.Conv2d(1, 2, 3, padding=1), (1, 5, 5)),
    "groups, few positions": (nn.Conv2d(8, 4, 3, groups=2, stride=3, padding=1), (8, 6, 6)),
    "depthwise": (nn.Conv2d(3, 3, 3, groups=3, dilation=2, padding=2), (3, 5, 5)),
    "one dimension": (nn.Conv1d(3, 2, 3, padding=1), (3, 6)),
    "transposed": (nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 3, 3)),
}


def single(layer, shape, num=3):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(layer, nn.Flatten()).double()
    for p in model.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(num, *shape, generator=generator, dtype=torch.float64)
    y = torch.randn(model(x).shape, generator=generator, dtype=torch.float64)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    return Problem(model, init, (x, y), loss="squared_error")


@pytest.mark.parametrize("name", LAYERS)
def test_rise_of_a_quadratic_loss_is_half_the_variance_times_the_trace(name):
    problem, sigma, draws = single(*LAYERS[name]), 0.1, 64
    base = problem.loss.per_sample(
        problem.forward(problem.params, problem.batch(range(3)).inputs), problem.batch(range(3)).targets
    )
    rises = []
    for draw in range(draws):
        rows = [(p, ("test", draw, copy), 5 * copy + p) for copy in range(3) for p in range(3)]
        normals = Normals(rows, 0, problem.params)
        pair = noisy_losses(problem, rows, normals, (sigma, -sigma))
        rises.append((0.5 * (pair[0] + pair[1]) - base.repeat(3)).detach().view(3, 3))
    rises = torch.cat(rises).numpy()  # [draws, samples]
    trace = np.array([_trace(problem, p) for p in range(3)])
    sem = rises.std(0, ddof=1) / np.sqrt(len(rises))
    assert (np.abs(rises.mean(0) - 0.5 * sigma**2 * trace) <= 4 * sem).all()
    assert (sem < 0.2 * rises.mean(0)).all()
    # Samples, copies and draws are independent: no correlation beyond chance.
    assert np.abs(np.corrcoef(rises.T) - np.eye(3)).max() < 4 / np.sqrt(len(rises))


def _trace(problem, position):
    """Trace of one sample's Hessian in the weight, by torch.func."""
    name = problem.layers[0].name
    batch = problem.batch([position])

    def loss(weight):
        return problem.loss.per_sample(
            problem.forward({**problem.params, name: weight}, batch.inputs), batch.targets
        ).sum()

    hessian = torch.func.hessian(loss)(problem.params[name])
    return float(hessian.reshape(problem.params[name].numel(), -1).trace())


def test_pair_has_the_same_noise_but_for_its_sign():
    """One linear layer: outputs of the pair lie symmetrically around the undisturbed ones."""
    problem = single(*LAYERS["linear, few positions"])
    rows = [(p, ("pair", 0), p) for p in range(3)]
    normals, outputs = Normals(rows, 0, problem.params), []
    forward = problem.forward

    def watched(params, inputs):
        outputs.append(forward(params, inputs))
        return outputs[-1]

    problem.forward = watched
    for sigma in (0.0, 0.3, -0.3):
        noisy_losses(problem, rows, normals, (sigma,))
    torch.testing.assert_close(outputs[1] + outputs[2], 2 * outputs[0], rtol=0, atol=1e-12)
    assert not torch.allclose(outputs[1], outputs[0], atol=1e-2)


@pytest.mark.parametrize("name", LAYERS)
def test_a_stacked_pass_is_the_single_passes(name):
    problem = single(*LAYERS[name])
    rows, sigmas = [(p, ("stack", 1), 2 * p) for p in range(3)], (0.3, -0.3, 0.1)
    normals = Normals(rows, 0, problem.params)
    alone = torch.cat([noisy_losses(problem, rows, normals, (sigma,)) for sigma in sigmas])
    torch.testing.assert_close(noisy_losses(problem, rows, normals, sigmas), alone, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


@pytest.fixture(params=["processor", "accelerator"])
def made(request, monkeypatch):
    """Where normals are made."""
    for module in (random, noise_by_row):
        monkeypatch.setattr(module, "is_host", lambda device: request.param == "processor")


def test_a_whole_group_of_normals_is_the_same_as_its_members(made):
    like, rows = {"layer": torch.zeros(1)}, [(p, ("stream", 0), p) for p in range(16)]
    whole = Normals(rows, 3, like)("layer", 4, 6)
    torch.testing.assert_close(Normals(rows[5:9], 3, like)("layer", 4, 6), whole[5:9], rtol=0, atol=0)


def test_normals_of_a_longer_padding_continue_those_of_a_shorter_one(made):
    rows = [(7, ("stream", 2), 3), (9, ("stream", 2), 5)]
    like = dict.fromkeys(("layer", "other"), torch.zeros(1, dtype=torch.float64))
    short, long = Normals(rows, 1, like)("layer", 4, 6), Normals(rows, 1, like)("layer", 9, 6)
    torch.testing.assert_close(long[:, :4], short, rtol=0, atol=0)
    assert not torch.equal(Normals(rows, 2, like)("layer", 4, 6), short)
    assert not torch.equal(Normals(rows, 1, like)("other", 4, 6), short)


def test_a_weight_on_the_left_of_a_batch_of_products_is_moved_itself():
    problem = single(WeightFirst(), (4, 5), num=20)
    summary = genbound.evaluate(problem, ["noise_stability"]).quantities["noise_stability"]
    for row in summary["sigmas"]:
        assert abs(row["value"] - row["hessian_approximation"]) <= 4 * (row["sem"] + row["hessian_approximation_sem"])


def test_the_fused_encoder_layer_is_taken_apart_and_left_as_it_was():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(block, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(24, 3))
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    problem = Problem(model, init, (torch.randn(20, 3, 8), torch.arange(20) % 3))
    assert can_move_rows(problem)
    assert torch.backends.mha.get_fastpath_enabled()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


def test_a_weight_that_is_used_twice_is_moved_itself():
    torch.manual_seed(0)
    model = Twice().double()
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    problem = Problem(model, init, (torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 2))
    assert not can_move_rows(problem)
    summary = genbound.evaluate(problem, ["noise_stability"]).quantities["noise_stability"]
    assert summary["noise"] == "per block of 16 samples"
    for row in summary["sigmas"][:2]:
        assert abs(row["value"] - row["hessian_approximation"]) <= 4 * (row["sem"] + row["hessian_approximation_sem"])


def _by_token(positions):
    return nn.Sequential(
        nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.Tanh(), nn.Flatten(),
        nn.Linear(8 * positions, 3),
    ), (positions, 6)  # fmt: skip


def _by_pixel(size):
    """The first convolution's noise is on its weights where the map has more than 27 positions."""
    small = (size + 1) // 2
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2), nn.GELU(),
        nn.Flatten(), nn.Linear(6 * small * small, 3),
    ), (3, size, size)  # fmt: skip


# Below and above the number of inputs: Cholesky, and full weights.
@pytest.mark.parametrize("network", [_by_token(4), _by_token(9), _by_pixel(4), _by_pixel(7)])
def test_the_second_order_term_of_a_draw_is_what_tangents_give(network):
    """(l(W + sU) + l(W - sU)) / 2 - l(W) = s^2 c + O(s^4) for the same normals.

    The noise is drawn at the moved inputs.
    """
    generator = torch.Generator().manual_seed(2)
    model, shape = network[0].double(), network[1]
    for p in model.parameters():
        p.data = 0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    problem = Problem(model, init, (x, torch.arange(5) % 3))
    assert can_sweep(problem)
    rows = [(p, ("test", 0), p) for p in range(5)]
    normals = Normals(rows, 0, problem.params)
    sweep = Sweep(problem, range(5))
    term = 0.5 * sweep.hessian(*noise_directions(sweep, normals))
    base = problem.loss.per_sample(sweep.outputs, sweep.targets)

    def error(sigma):
        rise = noisy_losses(problem, rows, normals, (sigma, -sigma)).mean(0) - base
        return (rise / sigma**2 - term).abs().max()

    assert error(3e-4) < 1e-4 * term.abs().max()
    assert float(error(6e-4)) == pytest.approx(4 * float(error(3e-4)), rel=0.05)  # the next order is the fourth
