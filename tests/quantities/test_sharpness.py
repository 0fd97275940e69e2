"""The search for alpha, against linear classifiers whose worst perturbation is known."""

import math

import pytest
import torch
from cases import D
from torch import nn

from benchmarks.counts import small_problem
from genbound.errors import GenboundError
from genbound.evaluation.loop import evaluate, measure
from genbound.network.network import Network
from genbound.network.problem import Problem
from genbound.quantities import QUANTITIES, sharpness
from genbound.quantities.sharpness import SharpnessOptions, log_sum
from genbound.results.observations import observe

WEIGHT = torch.tensor([[-1.0, -0.5, -0.25], [1.0, 0.5, 0.25]], dtype=D)
UNEVEN = torch.tensor([[0.1, 0.0, -0.25], [1.0, 0.5, 0.25]], dtype=D)


def classifier(weight=WEIGHT, num=40, bias=None, **arguments):
    """Two classes whose inputs have opposite signs: the corner -sign(label) is the worst for all samples at once.

    The margin (w_1 - w_0) . |x| falls by sum_i (b_0i + b_1i) |x_i| in the box b.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Linear(3, 2, bias=False).to(D)
        size, sign = torch.rand(num, 3, dtype=D) + 0.01, torch.arange(num) % 2
    with torch.no_grad():
        net.weight.copy_(weight)
    x = size * (2 * sign - 1)[:, None]
    init = {"weight": torch.zeros(2, 3, dtype=D)}
    return Problem(net, init, (x, sign), batch_size=64, **arguments), size


def first_beyond(sizes, displacement=0.1):
    """Errors come one by one at the samples' own sizes: the largest alpha is that of the first one too many."""
    return float(sizes.sort().values[math.floor(displacement * len(sizes) + 1e-9)])


def test_alpha_of_a_linear_classifier():
    problem, x = classifier()
    found = measure(problem, "sharpness", tolerance=1e-3)
    expected = first_beyond((x @ (WEIGHT[1] - WEIGHT[0])) / (2 * x.sum(1)))
    assert found["alpha"] <= expected <= found["alpha_above"] <= found["alpha"] * (1 + 1e-3)
    assert found["rise"] == pytest.approx(0.1) and found["rise_above"] == pytest.approx(0.125)
    assert found["error"] == 0 and found["num_parameters"] == 6


def test_magnitude_aware_box():
    problem, x = classifier()
    found = measure(problem, "sharpness", tolerance=1e-3)
    moved = x @ (WEIGHT[1] - WEIGHT[0])  # also sum_i (|w_0i| + |w_1i|) |x_i|: alone alpha would be 1 for all samples
    expected = first_beyond(1 - 2e-3 * x.sum(1) / moved)
    assert found["magnitude_alpha"] <= expected <= found["magnitude_alpha_above"] * (1 + 1e-12)
    found = measure(classifier(UNEVEN)[0], "sharpness", tolerance=1e-3)
    margin, size = x @ (UNEVEN[1] - UNEVEN[0]), x @ UNEVEN.abs().sum(0)
    expected = first_beyond((margin - 2e-3 * x.sum(1)) / size)
    assert found["magnitude_alpha"] <= expected <= found["magnitude_alpha_above"]


def test_ascent_finds_worse_than_chance():
    """A network that is not linear: nine of ten corners drawn in the box are not as bad as the one found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 3)).to(D)
        x = torch.randn(60, 10, dtype=D)
        y = net(x).argmax(1)
        init = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
        problem = Problem(net, init, (x, y), batch_size=60)
        found = measure(problem, "sharpness")
        assert 0 < found["rise"] <= 0.1 + 1e-9 < found["rise_above"]
        drawn = []
        for _ in range(50):
            moved = {k: p + found["alpha_above"] * torch.randn_like(p).sign() for k, p in problem.params.items()}
            drawn.append(float((problem.forward(moved, x).argmax(1) != y).double().mean()))
    assert sum(rise >= found["rise_above"] for rise in drawn) <= 5


def test_monotone_in_the_displacement():
    found = [measure(classifier(UNEVEN)[0], "sharpness", displacement=d, tolerance=0.01) for d in (0.05, 0.2, 0.5)]
    for key in ("alpha", "magnitude_alpha"):
        assert found[0][key] < found[1][key] < found[2][key]


@pytest.mark.parametrize("factor", [1e-3, 30.0])
def test_scales_with_the_weights(factor):
    found = [measure(classifier(f * WEIGHT)[0], "sharpness", tolerance=1e-3)["alpha"] for f in (1.0, factor)]
    assert found[1] / found[0] == pytest.approx(factor, rel=2e-3)


def test_more_ascent_finds_no_larger_alpha():
    """Each further step can only find worse perturbations of the same box."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(D)
        x = torch.randn(60, 4, dtype=D)
        init = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
        problem = Problem(net, init, (x, net(x).argmax(1)), batch_size=60)
    found = [measure(problem, "sharpness", num_steps=steps, tolerance=0.01)["alpha"] for steps in (1, 8)]
    assert found[1] <= found[0] * 1.01


def test_a_zero_gradient_has_a_corner_drawn():
    """All losses above the ceiling: no gradient anywhere, yet the errors are there to be found."""
    given, _ = classifier(loss_range="clip:1e-6")
    first, again, other = (measure(given, "sharpness", seed, num_steps=8) for seed in (0, 0, 1))
    assert first["alpha"] > 0 and first["rise_above"] > 0.1
    assert first == again
    exact = measure(classifier()[0], "sharpness")
    assert first["alpha"] >= exact["alpha"] and other["alpha"] >= exact["alpha"]  # drawn corners are not the worst


def test_no_alpha_has_a_reason():
    found = measure(classifier(-WEIGHT)[0], "sharpness")  # wrong everywhere: nothing can be worse
    assert found["alpha"] is None and found["rise"] is None and "of any box" in found["alpha_reason"]
    assert found["log_sum_init"] is None and found["log_sum_init_reason"] == found["magnitude_alpha_reason"]
    found = measure(classifier(1e-6 * WEIGHT)[0], "sharpness")
    assert found["alpha"] > 0 and found["magnitude_alpha"] is None
    assert "size 0.001 alone" in found["magnitude_alpha_reason"]
    tie = torch.zeros(2, 3, dtype=D)  # equal scores: class 0 is said, and the least perturbation turns it over
    tie[1] = 1e-13 * torch.ones(3, dtype=D)
    found = measure(classifier(tie)[0], "sharpness")
    assert found["alpha"] is None and "however small" in found["alpha_reason"]


def test_a_tie_that_the_least_relative_perturbation_breaks():
    """Equal rows: class 0 is said, and however little one of them grows the other class is."""
    found = measure(classifier(torch.ones(2, 3, dtype=D))[0], "sharpness", epsilon=1e-30)
    assert found["alpha"] is None and found["magnitude_alpha"] is None
    assert "however small a box" in found["magnitude_alpha_reason"]
    assert found["log_sum_init_reason"] == found["magnitude_alpha_reason"]


def test_log_sum_is_twice_a_kl_divergence():
    """N(w, b_i^2 / c) from N(w0, s^2) with the s that is best: by the textbook formula, at s and around it."""
    torch.manual_seed(0)
    v, sizes = torch.randn(7, dtype=D), torch.rand(7, dtype=D) + 0.1
    posterior = sizes.square() / (2 * math.log(14))

    def kl(prior):
        return 0.5 * float((posterior / prior + v.square() / prior - 1 - (posterior / prior).log()).sum())

    best = float((posterior + v.square()).mean())
    assert log_sum(sizes, v) == pytest.approx(2 * kl(best), rel=1e-12)
    assert kl(best) < min(kl(0.99 * best), kl(1.01 * best))


def test_log_sums_of_a_network():
    found = measure(classifier()[0], "sharpness")
    a, c, w = found["magnitude_alpha"], 2 * math.log(12), WEIGHT.flatten().tolist()
    top = sum((a * abs(x) + 1e-3) ** 2 for x in w) / 6 + c * sum(x**2 for x in w) / 6
    expected = sum(math.log(top / (a * abs(x) + 1e-3) ** 2) for x in w)
    assert found["log_sum_origin"] == found["log_sum_init"] == pytest.approx(expected, rel=1e-12)  # init is zero
    assert found["norm_weights"] == pytest.approx(math.sqrt(2 * 1.3125))


def test_searches_on_no_more_samples_than_it_may():
    problem, x = classifier(num=200)
    found = measure(problem, "sharpness", num_samples=50, tolerance=1e-3)
    ratio = (x @ (WEIGHT[1] - WEIGHT[0])) / (2 * x.sum(1))
    assert found["num_samples"] == 50
    assert found["alpha"] <= first_beyond(ratio[::4]) <= found["alpha_above"]


def test_same_every_time_and_nothing_disturbed():
    problem, _ = classifier()
    weight, state = problem.model.weight.detach().clone(), torch.get_rng_state()
    assert measure(problem, "sharpness", 0) == measure(problem, "sharpness", 1)  # nothing is drawn
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(weight, problem.model.weight) and problem.model.weight.grad is None
    assert problem.params["weight"].grad is None and not problem.params["weight"].requires_grad


def test_batches_change_nothing():
    problem, _ = classifier()
    other = Problem(problem.model, problem.init, problem.data, batch_size=7)
    assert measure(other, "sharpness") == measure(problem, "sharpness")


def curved(num_samples=60, **arguments):
    """A network that is not linear, right on all samples; ascent finds worse than the first magnitude-aware corner."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(4, 30), nn.GELU(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 5)).to(D)
        x = torch.randn(num_samples, 4).to(D)
    init = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    return Problem(net, init, (x, net(x).argmax(1)), **arguments)


def ascended(problem, sizes, steps=4):
    """The largest rise of the error that ascent finds in a box, each of its steps over all samples."""
    moves, worst = {k: torch.zeros_like(v) for k, v in sizes.items()}, 0.0
    x, y = problem.data.inputs, problem.data.targets
    for step in range(steps + 1):
        moved = {k: (problem.params[k] + move).requires_grad_() for k, move in moves.items()}
        output = problem.forward(moved, x)
        if step > 0:
            worst = max(worst, float((output.argmax(1) != y).double().mean()))
        gradient = torch.autograd.grad(nn.functional.cross_entropy(output, y), list(moved.values()))
        moves = {
            k: (moves[k] + sizes[k] * g.sign()).clamp(-sizes[k], sizes[k]) for k, g in zip(moves, gradient, strict=True)
        }
    return worst


@pytest.mark.parametrize("kind", ["alpha", "magnitude_alpha"])
def test_agrees_with_halving_by_whole_ascents(kind):
    problem = curved(batch_size=60)
    found = measure(problem, "sharpness")

    def rise(alpha):
        return ascended(
            problem, {k: sharpness.box(p, kind, alpha, 1e-3).expand_as(p) for k, p in problem.params.items()}
        )

    low, high = 1e-5, 10.0
    assert rise(low) <= 0.1 + 1e-9 < rise(high)
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rise(middle) > 0.1 + 1e-9 else (middle, high)
    assert rise(found[kind]) == pytest.approx(found[kind.replace("alpha", "rise")]) and rise(found[kind]) <= 0.1 + 1e-9
    assert low / 1.1 <= found[kind] <= found[f"{kind}_above"] <= found[kind] * (1.1 + 1e-12)
    assert found[kind] <= high


def test_the_rise_above_is_over_all_samples():
    """All samples turn wrong at once: a pass ends after a quarter of them, and what it knows then is not reported."""
    net = nn.Linear(3, 2, bias=False).to(D)
    with torch.no_grad():
        net.weight.copy_(WEIGHT)
    sign = torch.arange(40) % 2
    x = (2.0 * sign.to(D) - 1)[:, None].expand(40, 3).contiguous()
    found = measure(Problem(net, {"weight": torch.zeros(2, 3, dtype=D)}, (x, sign), batch_size=5), "sharpness")
    assert (found["rise"], found["rise_above"]) == (0, 1) == (found["magnitude_rise"], found["magnitude_rise_above"])


def test_batches_change_nothing_where_passes_end_early():
    assert measure(curved(batch_size=60), "sharpness") == measure(curved(batch_size=4), "sharpness")


@pytest.mark.parametrize(("make", "batch_size"), [(curved, 64), (curved, 8), (small_problem, 40)])
def test_costs_what_is_forecast(monkeypatch, make, batch_size):
    """The last has labels at random: no perturbation of any size is much worse."""
    problem, forward, grad = make(batch_size=batch_size), Network.forward, torch.autograd.grad
    passes, backward = [], []

    def counted_forward(self, *arguments):
        passes.append(forward(self, *arguments))
        return passes[-1]

    def counted_grad(*arguments, **named):
        backward.append(len(passes[-1]))
        return grad(*arguments, **named)

    monkeypatch.setattr(Network, "forward", counted_forward)
    monkeypatch.setattr(torch.autograd, "grad", counted_grad)
    found = measure(problem, "sharpness")
    spent = (sum(map(len, passes)) + 2 * sum(backward)) / 3 / problem.num_samples
    forecasts = QUANTITIES["sharpness"].usual, QUANTITIES["sharpness"].gradients
    usual, most = (count(problem, SharpnessOptions()) for count in forecasts)
    assert 12 < spent <= (most if found["alpha"] is None else usual) and usual < 27 and most < 40


def test_a_run_that_is_continued(tmp_path):
    problem, _ = classifier()
    whole = evaluate(problem, ["sharpness"]).quantities["sharpness"]
    stopped = evaluate(problem, ["sharpness"], out=tmp_path, time_budget=0)
    assert "time budget" in stopped.notes["sharpness"]
    assert evaluate(problem, ["sharpness"], out=tmp_path).quantities["sharpness"] == whole


def test_a_regression_check_compares_brackets():
    found = evaluate(classifier()[0], ["sharpness"])
    seen = observe(found)["sharpness:alpha"]
    assert (seen.lower, seen.upper) == (seen.value, found.quantities["sharpness"]["alpha_above"])


def test_needs_an_error():
    net = nn.Linear(3, 1).to(D)
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    x = torch.ones(4, 3, dtype=D)
    found = evaluate(Problem(net, init, (x, x[:, :1]), "squared_error"), ["sharpness"])
    assert "0-1 error" in found.notes["sharpness"]


@pytest.mark.parametrize(
    "options",
    [{"displacement": 1}, {"tolerance": 0}, {"tolerance": 1e-16}, {"num_steps": 0}, {"num_samples": 0}, {"epsilon": 0}],
)
def test_refuses(options):
    with pytest.raises(GenboundError):
        SharpnessOptions(**options)
