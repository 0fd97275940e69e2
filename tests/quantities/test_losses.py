"""Losses, errors and the generalization gap, by hand and against the reference."""

import math

import pytest
import torch
from cases import D
from shared_problems import linear
from torch.nn import functional as F

import genbound


def test_losses_by_hand():
    """Identity network, scores (1, 0), (0, 2), (0, 0): -log softmax by hand, in batches of two samples and one."""
    x = [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    test = (torch.tensor([[3.0, 0.0]], dtype=D), torch.tensor([1]))
    problem = linear([[1.0, 0.0], [0.0, 1.0]], x, [0, 0, 1], batch_size=2, test_data=test)
    found = genbound.measure(problem, "losses")
    each = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2)), math.log(2)]
    assert found["train_loss"] == pytest.approx(sum(each) / 3, rel=1e-12)  # not the mean of batch means
    assert found["train_error"] == pytest.approx(2 / 3)  # a tie goes to the first class
    assert found["largest_loss"] == pytest.approx(each[1], rel=1e-12)
    assert found["test_loss"] == pytest.approx(math.log(1 + math.exp(3)), rel=1e-12)
    assert found["generalization_gap"] == pytest.approx(found["test_loss"] - found["train_loss"], rel=1e-12)
    assert found["error_gap"] == pytest.approx(1 / 3)
    p = 2 / 3
    assert found["constant_loss"] == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-12)
    assert found["constant_error"] == pytest.approx(1 / 3)
    assert found["train_loss_sem"] == 0.0


def test_losses_are_over_all_the_data_not_the_measured_part():
    x, y = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), [0, 1, 0, 1, 1, 0, 0, 1, 1]
    whole = genbound.measure(linear([[1.0, 0.0], [0.0, 1.0]], x, y), "losses")
    part = genbound.measure(linear([[1.0, 0.0], [0.0, 1.0]], x, y, num_samples=3), "losses")
    assert whole["train_loss"] == part["train_loss"] and part["num_train"] == 9
    of_more = genbound.measure(linear([[1.0, 0.0], [0.0, 1.0]], x, y, num_data=100), "losses")
    values = F.cross_entropy(x.double(), torch.tensor(y), reduction="none").numpy()
    expected = values.std(ddof=1) / 3 * math.sqrt(1 - 9 / 100)
    assert of_more["train_loss_sem"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["tokens", "bounded", "clipped", "multi_label", "squared_error", "custom_loss"])
def test_losses_against_the_reference(name, problems, truths):
    found = genbound.measure(problems(name), "losses")
    expected = truths(name).losses()
    assert found["train_loss"] == pytest.approx(float(expected.mean()), rel=1e-12)
    assert found["largest_loss"] == pytest.approx(float(expected.max()), rel=1e-12)


def test_bounded_cross_entropy_and_its_range():
    problem = linear([[1.0], [0.0], [0.0]], [[-50.0], [50.0]], [0, 0], loss_range="bounded:0.01")
    results = genbound.evaluate(problem, ["losses"])
    # p = 0 gives -ln 0.01, p = 1 gives -ln(0.01 + 0.97)
    assert results.quantities["losses"]["largest_loss"] == pytest.approx(-math.log(0.01), rel=1e-9)
    assert results.quantities["losses"]["train_loss"] == pytest.approx(-(math.log(0.01) + math.log(0.98)) / 2, rel=1e-9)
    assert results.config["loss_range"] == {"value": pytest.approx(-math.log(0.01)), "kind": "bounded:0.01"}


def test_token_error_and_loss_count_the_labelled_positions():
    x = torch.zeros(2, 3, 1)
    y = torch.tensor([[0, 1, -100], [1, -100, -100]])
    found = genbound.measure(linear([[1.0], [0.0]], x, y), "losses")
    assert found["train_error"] == pytest.approx(0.75)  # (1/2 + 1) / 2: sequences, not tokens
    assert found["train_loss"] == pytest.approx(math.log(2))
