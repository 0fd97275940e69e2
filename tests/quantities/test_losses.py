"""Losses, errors and the generalization gap, by hand and against the reference."""

import math

import numpy as np
import pytest
import torch
from cases import D
from shared_problems import linear
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.data.samples import ListSamples


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


def flipped(**changes):
    """Three classes of which each is taken for either other one with 20 %."""
    f = np.full((3, 3), 0.2) + 0.4 * np.eye(3)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 12, dtype=D), nn.ReLU(), nn.Linear(12, 3, dtype=D))
    with torch.no_grad():
        net[2].weight.mul_(20)
    x = torch.randn(12, 2, dtype=D)
    y = net(x).argmax(1)
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    return net, x, y, f, genbound.Problem(net, init, (x, y), batch_size=5, **changes)


def test_the_reweighted_loss_of_a_network_that_fits():
    """F^-1 is 2.5 I less 0.5 everywhere: 2.5 l_y - 0.5 (l_1 + l_2 + l_3), in every class and not the observed alone."""
    net, x, y, f, problem = flipped()
    losses = -net(x).detach().log_softmax(1)
    reweighted = 2.5 * losses - 0.5 * losses.sum(1, keepdim=True)
    results = genbound.evaluate(problem, ["noisy_label_distance", "trace_distance"], confusion=f)
    found = results.quantities["losses"]
    assert found["reweighted_range"] == pytest.approx(float(reweighted.max() - reweighted.min()), rel=1e-9)
    assert reweighted.min() < 0
    assert found["reweighted_train_loss"] == pytest.approx(float(reweighted[range(12), y].mean()), rel=1e-9)
    p = (2.5 * torch.bincount(y, minlength=3) / 12 - 0.5).clamp(min=0)
    p = p[p > 0] / p.sum()
    assert found["reweighted_constant_loss"] == pytest.approx(float(-(p * p.log()).sum()), rel=1e-6)
    noisy, trace = (results.bounds[name]["value"] for name in ("noisy_label_distance", "trace_distance"))
    ratio = math.sqrt(3 * found["reweighted_range"] / float(losses[range(12), y].max()))
    assert noisy / trace == pytest.approx(ratio, rel=1e-9)
    assert noisy > 5 * trace


def test_a_loss_with_a_range_has_a_reweighted_one():
    """The largest row sum of what is positive in F^-1 is 2, of what is negative 1."""
    problem, f = flipped(loss_range="clip:3")[-1], flipped()[3]
    results = genbound.evaluate(problem, ["losses"], confusion=f)
    assert results.quantities["losses"]["reweighted_range"] == pytest.approx(9.0, rel=1e-12)


def test_the_confusion_matrix_is_part_of_what_is_stored(tmp_path):
    problem, f = flipped()[-1], flipped()[3]
    plain = genbound.evaluate(problem, ["losses"], out=tmp_path)
    assert "reweighted_range" not in plain.quantities["losses"]
    ranges = [
        genbound.evaluate(problem, ["losses"], out=tmp_path, confusion=matrix).quantities["losses"]["reweighted_range"]
        for matrix in (f, np.eye(3))
    ]
    assert ranges[0] != ranges[1]
    singular = genbound.evaluate(problem, ["losses"], confusion=np.full((3, 3), 1 / 3))
    assert "reweighted_range" not in singular.quantities["losses"]


def test_the_observed_range_is_over_every_sample_seen():
    """The test sample's loss ln(1 + e^3) is above that of the training sample, and bounds have that C."""
    x, y = [[1.0, 0.0]], [0]
    test = (torch.tensor([[3.0, 0.0]], dtype=D), torch.tensor([1]))
    alone, both = (linear([[1.0, 0.0], [0.0, 1.0]], x, y, test_data=data) for data in (None, test))
    results = genbound.evaluate(both, ["hessian_distance"])
    assert results.config["loss_range"]["value"] == pytest.approx(math.log(1 + math.exp(3)), rel=1e-12)
    assert results.config["loss_range"]["over"] == "training and test"
    assert "(observed: the largest loss of all training and test samples, so" in results.to_markdown()
    before = genbound.evaluate(alone, ["hessian_distance"])
    assert before.config["loss_range"]["value"] == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-12)
    assert "the largest training loss, for there are no test samples" in before.to_markdown()
    grown = results.bounds["hessian_distance"]["value"] / before.bounds["hessian_distance"]["value"]
    ranges = [run.config["loss_range"]["value"] for run in (results, before)]
    assert grown == pytest.approx(math.sqrt(ranges[0] / ranges[1]), rel=1e-9)


def test_test_samples_that_training_saw():
    """The same inputs count, whatever the label; a guarantee is not made of them, and no bound of the training set."""
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    y, eye = (x[:, 1] > x[:, 0]).long(), [[1.0, 0.0], [0.0, 1.0]]
    new = torch.randn(30, 2, generator=torch.Generator().manual_seed(1), dtype=D)
    mixed = (torch.cat([new, x[3:5]]), torch.zeros(32, dtype=torch.long))
    found = genbound.evaluate(linear(eye, x, y, test_data=mixed), ["test_set_bound"])
    assert found.quantities["losses"]["num_test_seen"] == 2
    note = found.bounds["test_set_bound"]["note"]
    assert note.startswith("assumption violated: 2 of 32 test samples have the inputs of training samples")
    assert "No guarantee" in found.summary() and "Guaranteed" not in found.summary()
    clean = genbound.evaluate(linear(eye, x, y, test_data=(new, (new[:, 1] > new[:, 0]).long())), ["test_set_bound"])
    assert clean.quantities["losses"]["num_test_seen"] == 0 and "Guaranteed: test_set_bound" in clean.summary()
    same = genbound.evaluate(linear(eye, x, y, test_data=(x, y)), ["test_set_bound"]).bounds["test_set_bound"]
    assert same["value"] is None and "training never saw" in same["note"]
    other = genbound.measure(linear(eye, x, y, test_data=mixed, num_data=90, other_samples=True), "losses")
    assert other["num_test_seen"] is None


def test_texts_of_any_padding_have_one_key():
    """A sample alone, in a batch with longer ones, and in a list: the inputs decide."""
    samples = ListSamples([(torch.ones(n), torch.tensor(0)) for n in (2, 3, 2)])
    first, longer, same = samples.input_keys(range(3))
    assert first == same != longer
