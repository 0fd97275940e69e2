"""A loss without a floor at zero, as a log-density: its range goes from its smallest to its largest value."""

import math

import pytest
import torch
from torch import nn

import genbound
from genbound.errors import GenboundError


def problem(shift, **arguments):
    """A network that predicts log-variance and mean; its loss less ``shift``, which moves no derivative."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
        x, targets = torch.randn(6, 3), torch.randn(6)
        test = torch.randn(4, 3), torch.randn(4)

    def density(outputs, targets):
        return 0.5 * (outputs[:, 0] + (targets - outputs[:, 1]) ** 2 * torch.exp(-outputs[:, 0])) + 1 - shift

    init = {n: p.detach() + 0.1 for n, p in model.named_parameters()}
    return genbound.Problem(model, init, (x, targets), density, test_data=test, dtype=torch.float64, **arguments)


def evaluated(shift):
    return genbound.evaluate(problem(shift), ["hessian_distance", "trace_distance"])


@pytest.fixture(scope="module")
def plain():
    return evaluated(0.0)


def seen(results):
    losses = results.quantities["losses"]
    return losses["smallest_seen_loss"], losses["largest_seen_loss"]


@pytest.mark.parametrize("below", ["some", "all"])
def test_the_range_is_from_the_smallest_to_the_largest(plain, below):
    low, high = seen(plain)
    assert low > 0
    results = evaluated((low + high) / 2 if below == "some" else high + 1)
    least, most = seen(results)
    c = results.config["loss_range"]
    assert c["value"] == pytest.approx(high - low) and c["least"] == least < 0
    assert "counted from the smallest, -" in results.to_markdown()
    maxima = [row["upper"] for row in results.quantities["max_quadratic_form"]["layers"].values()]
    wanted = sum(math.sqrt((most - least) * m) for m in maxima) / math.sqrt(6)
    assert results.bounds["hessian_distance"].value == pytest.approx(wanted)
    # The form with epsilon bounds the loss counted from its smallest value, which is never negative.
    train = results.quantities["losses"]["train_loss"]
    epsilon = 0.1 * (train - least) + 1.1 * math.sqrt(1.1 / 0.2) * wanted
    assert results.bounds["hessian_distance"].forms["epsilon_0.1"].log10 == pytest.approx(math.log10(epsilon))


def test_the_bounds_do_not_know_how_far_below_zero_a_loss_lies(plain):
    low, high = seen(plain)
    one, other = evaluated(high + 1), evaluated(high + 40)
    for name in ("hessian_distance", "trace_distance"):
        assert one.bounds[name].value == pytest.approx(other.bounds[name].value, rel=1e-6)
        # A loss above zero keeps zero for its floor.
        assert plain.bounds[name].value == pytest.approx(
            one.bounds[name].value * math.sqrt(high / (high - low)), rel=0.05
        )


def test_a_ceiling_alone_is_no_range():
    with pytest.raises(GenboundError, match=r"goes below 0, and clip:2 needs one in \[0, C\]: add a constant"):
        problem(40.0, loss_range="clip:2")
