"""Second directional derivatives from tangents: against double backward and the dense truth."""

import pytest
import torch
from cases import CASES, D
from sweeping import close, double_backward, own_directions
from test_undisturbed import same, state
from torch import nn

from genbound.curvature.rules import Unsupported
from genbound.curvature.sweep import Sweep, separate_cost
from genbound.curvature.sweep_trial import can_sweep
from genbound.curvature.traces import (
    gauss_newton_trace,
    joint_trace,
    separate_traces,
)
from genbound.estimators.random import row_of
from genbound.network.problem import Problem

# A weight that acts more than once or otherwise than by a linear map or a convolution: the double backward pass stays.
REFUSED = {
    "encoder_tied", "lstm", "gru", "lstm_cell", "siamese", "siamese_added", "twice", "einsum", "standardised",
    "weight_norm", "left_product", "scaled_addmm", "embedding",
}  # fmt: skip
SWEPT = [name for name in CASES if name not in REFUSED]


# -- networks of the table ----------------------------------------------------------------------------------------


def test_who_can_be_swept(problems):
    """By name: a case that fell out would leave the tests below green."""
    assert {name for name in CASES if not can_sweep(problems(name))} == REFUSED


@pytest.mark.parametrize("name", SWEPT)
def test_agrees_with_a_double_backward_pass(name, problems):
    """Both parts, all layers along one joint direction and each layer alone, for every sample."""
    problem = problems(name)
    for run in problem.batches(range(problem.num_samples)):
        tape, sweep = problem.tape(run), Sweep(problem, run)
        close(sweep.outputs, tape.outputs.detach(), 1e-14)
        weights, us = own_directions(sweep)
        assert set(us) == {layer for layer in tape.layers if tape.uses[layer]}
        for layer, v in weights.items():  # the two find the layers on different ways
            close(us[layer], tape.uses[layer][0].perturb(v), 1e-14)
        for chosen in [list(us), *([layer] for layer in us)]:
            directions = {layer: us[layer] for layer in chosen}
            remainder, hessian = (double_backward(tape, directions, part) for part in ("remainder", "hessian"))
            close(sweep.hessian(directions), hessian, size=float(remainder.abs().max()))
            close(sweep.remainder(directions), remainder)
            if set(chosen) <= tape.piecewise_linear:
                assert not sweep.remainder(directions).any()


@pytest.mark.parametrize("name", ["mlp_gelu", "tokens", "bounded", "conv_1d"])
def test_agrees_with_the_dense_truth(name, problems):
    """v'Hv from the block itself, and the traces of H and of H - G from all of a layer's unit weights."""
    problem, truth = problems(name), CASES[name].truth()
    run = next(iter(problem.batches(range(problem.num_samples))))
    sweep, tape = Sweep(problem, run), problem.tape(run)
    weights, us = own_directions(sweep)
    gauss_newton = gauss_newton_trace(tape)
    for i, layer in enumerate(tape.layers):
        blocks, use = truth.blocks(layer)[run], sweep.uses[layer]
        v = weights[layer].flatten(1)
        close(sweep.hessian({layer: us[layer]}), torch.einsum("ni,nij,nj->n", v, blocks, v))
        units = torch.eye(v.shape[1], dtype=D).view(-1, *problem.params[layer].shape)
        perturbations = [use.perturb(unit) for unit in units]
        hessian = sum(sweep.hessian({layer: u}) for u in perturbations)
        remainder = sum(sweep.remainder({layer: u}) for u in perturbations)
        expected = blocks.diagonal(dim1=1, dim2=2).sum(1)
        close(hessian, expected)
        close(remainder, expected - gauss_newton[:, i], size=float(gauss_newton[:, i].abs().max()))


def test_single_precision_agrees(problems):
    problem = problems("mlp_gelu", dtype=torch.float32)
    exact, rounded = (Sweep(p, range(7)) for p in (problems("mlp_gelu"), problem))
    _, us = own_directions(exact)
    for part in (Sweep.remainder, Sweep.hessian):
        found = part(rounded, {layer: u.float() for layer, u in us.items()})
        assert found.dtype == D
        close(found, part(exact, us), 1e-5)


def test_a_layer_that_does_not_reach_the_output_adds_nothing(problems):
    sweep = Sweep(problems("unused"), range(5))
    assert list(sweep.uses) == ["used.weight"]
    spare = {"spare.weight": torch.randn(5, 3, dtype=D, generator=torch.Generator().manual_seed(0))}
    _, us = own_directions(sweep)
    assert not sweep.hessian(spare).any() and not sweep.remainder(spare).any()
    assert torch.equal(sweep.hessian({**us, **spare}), sweep.hessian(us))


def test_separate_cost_by_hand(problems):
    """Linear, GELU, linear, GELU, linear: five operations, and the layers start at the first, third and fifth."""
    assert separate_cost(problems("mlp_gelu")) == pytest.approx(1 + 3 / 5 + 1 / 5)


@pytest.mark.parametrize("name", ["mlp_gelu", "encoder"])
def test_a_tangent_is_dropped_after_its_last_use(name, problems):
    """What a sweep holds at a time is what the forward pass held, not all of it."""
    steps = Sweep(problems(name), range(3)).steps
    last = [i for step in steps for i in step.last]
    assert len(last) == len(set(last)) and set(last) == {i for step in steps for i in step.inputs}
    for n, step in enumerate(steps):
        assert not set(step.last) & {i for later in steps[n + 1 :] for i in later.inputs}


# -- rows and disturbance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "conv_transposed", "encoder", "time_first", "tokens"])
def test_samples_of_a_batch_do_not_meet(name, problems):
    """Copies of a sample give the same along the same direction, and samples alone what they give together."""
    problem, positions = problems(name), [2, 0, 2, 1, 2]
    sweep = Sweep(problem, positions)
    weights, _ = own_directions(sweep)
    for v in weights.values():
        v[2] = v[0]  # the last copy keeps a direction of its own
    us = {layer: sweep.uses[layer].perturb(v) for layer, v in weights.items()}
    for part in (Sweep.remainder, Sweep.hessian):
        together = part(sweep, us)
        close(together[2], together[0], 1e-12)
        assert abs(float(together[4] - together[0])) > 1e-6
        for i, position in enumerate(positions):
            alone = Sweep(problem, [position])
            found = part(alone, {layer: alone.uses[layer].perturb(v[i : i + 1]) for layer, v in weights.items()})
            close(found[0], together[i], 1e-10, size=float(together.abs().max()))


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "encoder", "tokens"])
def test_draws_do_not_depend_on_which_samples_share_a_pass(name, problems):
    problem, positions = problems(name), [1, 3, 3, 0]
    names = [layer.name for layer in problem.layers]
    rows = [row_of("test", p, d, 4) for p, d in zip(positions, (0, 0, 1, 0), strict=True)]
    together = separate_traces(Sweep(problem, positions), names, rows, 0)
    assert name == "tokens" or not torch.equal(together[1], together[2])  # that one's blocks are diagonal
    for i, position in enumerate(positions):
        alone = separate_traces(Sweep(problem, [position]), names, rows[i : i + 1], 0)
        close(alone[0], together[i], 1e-10, size=float(together.abs().max()))


@pytest.mark.parametrize("name", ["conv_silu", "encoder", "twice"])
def test_nothing_is_disturbed(name):
    """Weights, gradients, flags, modes and the global random numbers; also by a refusal."""
    model, init, inputs, targets = CASES[name].parts()
    model.train()
    next(model.modules()).training = False  # a mixture of modes, as a user may have left them
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 != 0)
        p.grad = torch.full_like(p, 0.5) if i % 2 else None
    data = {"labels": targets, **inputs} if isinstance(inputs, dict) else (inputs, targets)
    problem = Problem(model, init, data, batch_size=3, dtype=D)

    def everything():
        kept = {**problem.params, **problem.buffers}
        return (
            *state(model), {n: t.clone() for n, t in kept.items()}, [t.requires_grad for t in kept.values()],
            torch.backends.mha.get_fastpath_enabled(), torch.utils._python_dispatch._get_current_dispatch_mode(),
        )  # fmt: skip

    before = everything()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            if name == "twice":
                with pytest.raises(Unsupported):
                    Sweep(problem, [0, 1])
                assert torch.is_grad_enabled() == enabled
                continue
            sweep = Sweep(problem, [0, 1, 1])
            assert torch.is_grad_enabled() == enabled
            _, us = own_directions(sweep)
            found = sweep.hessian(us), sweep.remainder(us)
            names = [layer.name for layer in problem.layers]
            rows = [row_of("test", p, d, 4) for p, d in ((0, 0), (1, 0), (1, 1))]
            found += (joint_trace(sweep, names, rows, 0), separate_traces(sweep, names, rows, 0))
            assert not any(f.requires_grad for f in found) and not sweep.outputs.requires_grad
            again = sweep.hessian(us), sweep.remainder(us)
            assert same(found[:2], again)  # nor is the sweep itself used up
    assert can_sweep(problem) == (name != "twice")
    assert same(before, everything())


class Upcasting(nn.Module):
    """Half precision with parts in single precision, as attention's plain form has them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc((self.a(x).float() * self.b(x).float().softmax(-1)).to(x.dtype))


def test_results_in_another_precision_have_adjoints_of_theirs():
    """They were in the outputs' own type, and every trial failed: half precision was never swept."""
    torch.manual_seed(0)
    model = Upcasting()
    init = {name: 0.9 * p.detach() for name, p in model.named_parameters()}
    data = (torch.randn(6, 6), torch.arange(6) % 3)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        problem = Problem(model, init, data, dtype=dtype)
        assert can_sweep(problem)
        sweep = Sweep(problem, range(6))
        generator = torch.Generator().manual_seed(1)
        found[dtype] = sweep.remainder(
            {name: torch.randn(sweep.shape(name), generator=generator).to(dtype) for name in sweep.starts}
        )
    error = (found[torch.bfloat16] - found[torch.float32]).abs().max()
    assert error <= 0.05 * found[torch.float32].abs().max()


def test_a_trial_swallows_no_error_but_that_something_is_not_supported(monkeypatch):
    def fail(error):
        def raising(*_):
            raise error

        monkeypatch.setattr("genbound.curvature.sweep_trial._by_tangents", raising)
        return can_sweep(CASES["mlp_gelu"].problem())

    for message in (
        "derivative for aten::_cdist_backward is not implemented", '"celu" not implemented for \'Half\'',
        "Trying to use forward AD with foo that does not support it",
    ):  # fmt: skip
        assert fail(RuntimeError(message)) is False
    assert fail(NotImplementedError("not implemented")) is False
    for message in ("linalg.vecdot: Expected x and y to have the same dtype", "DefaultCPUAllocator: can't allocate"):
        with pytest.raises(RuntimeError, match=message[:12]):
            fail(RuntimeError(message))
