"""Descriptions of a tensor: what they say is what they stand for, and all of them together are a probability."""

import math

import numpy as np
import pytest
import torch

from genbound.estimators.universal_code import code_nats
from genbound.posterior.coded_tensor import FORMS, STEPS, TensorCode
from genbound.posterior.curved_rounding import rounded

SHAPES = [(6, 5), (2, 7), (4,), (3, 2, 2), ()]


def tensor(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metric_of(size, seed=1):
    root = tensor((size, size), seed).numpy()
    found = root @ root.T
    return found * size / np.trace(found)


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_left_out_is_what_the_tensor_lacks(shape, common, curved):
    if common and not shape:
        return
    wanted = tensor(shape)
    metric = metric_of(wanted.numel()) if curved else None
    code = TensorCode(wanted, common, metric=metric)
    forms = set()
    for weight in (0.1, 3.0, 100.0, 1e4):
        coded = code.best(weight)
        rest = wanted - code.tensor(coded)
        rest = (rest - rest.mean(0, keepdim=True) if common else rest).flatten().numpy()
        assert coded.error == pytest.approx(rest @ rest if metric is None else rest @ metric @ rest, rel=1e-9, abs=1e-9)
        forms.add(coded.form)
    assert "zero" in forms and len(forms) > 1


def test_every_form_is_read_back_from_what_was_counted():
    """A reader who has the integers, the steps and the rank, and nothing else, finds the same tensor and length."""
    wanted = 3 * torch.outer(tensor((2,), 3), tensor((40,), 4)) + 0.01 * tensor((2, 40), 5)
    code = TensorCode(wanted)
    choices = {form: [c for c in code._choices if c.form == form] for form in FORMS}
    start = math.log(len(FORMS))
    assert [c.nats for c in choices["zero"]] == [start]
    for coded in choices["grid"]:
        integers = np.rint(wanted.numpy() / coded.step).astype(int)
        assert coded.step in STEPS
        assert coded.nats == pytest.approx(start + math.log(len(STEPS)) + code_nats(integers))
        torch.testing.assert_close(code.tensor(coded), torch.from_numpy(integers * coded.step))
    for coded in choices["opposite"]:
        first, second = code.tensor(coded)
        torch.testing.assert_close(first, -second)
        integers = ((second - first) / coded.step).numpy()
        np.testing.assert_allclose(integers, np.rint(integers), atol=1e-9)
        assert coded.nats == pytest.approx(start + math.log(len(STEPS)) + code_nats(np.rint(integers).astype(int)))
    for coded in choices["pieces"]:
        pieces = list(code._rounded(coded.step, coded.rank))
        each = [math.log(len(STEPS)) + code_nats(p.left) + code_nats(p.right) for p in pieces]
        assert len(each) == coded.rank and all(p.step in STEPS for p in pieces)
        assert coded.nats == pytest.approx(start + math.log(2) + sum(each))
        total = sum(p.step**2 * np.outer(p.left, p.right) for p in pieces)
        torch.testing.assert_close(code.tensor(coded), torch.from_numpy(total))


def test_a_matrix_of_rank_one_is_described_by_its_factors():
    wanted = torch.outer(tensor((30,), 3), tensor((40,), 4))
    coded = TensorCode(wanted).best(500.0)
    assert coded.form == "pieces" and coded.rank <= 2


def test_two_scores_are_described_by_their_difference():
    wanted = tensor((2, 50))
    common = 10 * tensor((50,), 7)
    coded = TensorCode(wanted + common, common=True).best(100.0)
    assert coded.form == "opposite"
    alone = TensorCode(wanted, common=True).best(100.0)
    assert (coded.nats, coded.step) == (alone.nats, alone.step) and coded.error == pytest.approx(alone.error)


def test_more_weight_never_leaves_more_out():
    code = TensorCode(tensor((5, 4)))
    found = [code.best(weight) for weight in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert all(a.error >= b.error and a.nats <= b.nats for a, b in zip(found, found[1:], strict=False))


def test_integers_that_heed_the_metric_are_better_than_the_nearest():
    """And as good as the best of all, where there are few enough to try all."""
    metric = 400 * metric_of(3, seed=2)
    wanted, step = np.array([0.31, -0.7, 1.2]), 0.5

    def form(integers):
        rest = wanted - step * integers
        return 0.5 * rest @ metric @ rest

    found, nearest = rounded(wanted, step, metric), np.rint(wanted / step)
    grid = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3)
    assert form(found) <= form(nearest)
    assert form(found) + code_nats(found) <= min(form(q) + code_nats(q) for q in grid) + 3


def test_a_steep_direction_is_spared():
    size = 60
    wanted, steep = tensor((2, size), 3), tensor((2 * size,), 4).numpy()
    metric = np.outer(steep, steep)
    metric *= 2 * size / np.trace(metric)
    flat, bent = TensorCode(wanted).best(5.0), TensorCode(wanted, metric=metric).best(5.0)
    assert bent.nats < 0.6 * flat.nats and bent.error < 0.05 * flat.error
