"""Finite or not, by the sum and where that overflows by a look at each number."""

import pytest
import torch

from genbound.estimators.all_finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wrong", [None, float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_seen(dtype, wrong):
    tensor = torch.arange(-50, 50).to(dtype).reshape(10, 10)
    if wrong is not None:
        tensor[7, 3] = wrong
    assert all_finite(tensor) == (wrong is None)


def test_infinities_that_cancel_are_seen():
    assert not all_finite(torch.tensor([float("inf"), -float("inf")]))


def test_a_sum_that_overflows_is_no_reason():
    large = torch.finfo(torch.float32).max
    assert all_finite(torch.full((4,), large))
    assert not all_finite(torch.tensor([large, large, float("nan")]))
    assert all_finite(torch.empty(0))
