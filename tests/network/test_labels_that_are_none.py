"""Samples without a label, and labels that a loss has no meaning for, are refused in one line."""

import pytest
import torch
from torch import nn

from genbound import Problem
from genbound.errors import GenboundError


def problem(outputs, labels, **options):
    model = nn.Linear(3, outputs)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    return Problem(model, init, (torch.randn(len(labels), 3), labels), **options)


@pytest.mark.parametrize("kind", [torch.long, torch.float32])
def test_one_score_without_a_label(kind):
    labels = torch.tensor([[0], [1], [-100], [1]], dtype=kind)
    with pytest.raises(GenboundError, match="1 of 4 samples looked at together have no label"):
        problem(1, labels)


def test_a_sequence_without_a_label():
    model = nn.Linear(3, 2)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    labels = torch.tensor([[0, -100], [-100, -100]])
    with pytest.raises(GenboundError, match="1 of 2 samples looked at together have no label"):
        Problem(model, init, (torch.randn(2, 2, 3), labels))


@pytest.mark.parametrize("labels", [[[1, -1]], [[0, 2]], [[-100, 1]]])
def test_labels_of_several_that_are_no_shares(labels):
    with pytest.raises(GenboundError, match="is not between 0 and 1"):
        problem(2, torch.tensor(labels * 4, dtype=torch.float32), loss="multi_label")
    problem(2, torch.tensor([[0.0, 0.3]] * 4), loss="multi_label")
