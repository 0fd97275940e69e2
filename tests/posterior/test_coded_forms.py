"""Which form each tensor has: probabilities that add up to at most one, and short where tensors are alike."""

import itertools
import math

import pytest
import torch

from genbound.posterior.coded_forms import FEW, best_choice, forms_nats, gridded, length
from genbound.posterior.coded_tensor import FORMS, STEPS, TensorCode


@pytest.mark.parametrize("number", [1, 3, 9])
def test_the_probabilities_of_all_sequences_add_up_to_one(number):
    if number <= FEW:
        every = itertools.product(FORMS, repeat=number)
        assert sum(math.exp(-forms_nats(forms)) for forms in every) == pytest.approx(1, rel=1e-9)
        return
    total = 0.0  # sequences with the same counts have the same probability
    for a, b, c in itertools.product(range(number + 1), repeat=3):
        if (d := number - a - b - c) >= 0:
            many = math.factorial(number) / math.prod(map(math.factorial, (a, b, c, d)))
            forms = [form for form, count in zip(FORMS, (a, b, c, d), strict=True) for _ in range(count)]
            total += many * math.exp(-forms_nats(forms))
    assert total == pytest.approx(1, rel=1e-9)


def test_many_tensors_that_stay_cost_little_and_few_are_as_before():
    assert forms_nats(["zero"] * FEW) == pytest.approx(FEW * math.log(4))
    assert forms_nats(["zero"] * 100) < math.log(8) < forms_nats(["zero", "grid"] * 50) < 100 * math.log(4)


def test_a_choice_is_as_long_as_what_it_consists_of():
    """Each tensor's own length, with the forms together in place of ln 4 each."""
    torch.manual_seed(0)
    codes = {f"w{i}": TensorCode(torch.randn(5, 4) * (1.0 if i < 2 else 1e-3)) for i in range(20)}
    choice = best_choice(codes, dict.fromkeys(codes, 30.0))
    forms = [coded.form for coded in choice.values()]
    assert forms.count("zero") == 18 and "zero" not in forms[:2]
    own = sum(coded.nats - math.log(4) for coded in choice.values())
    assert length(choice) == pytest.approx(own + forms_nats(forms)) and length(choice) < own + 20 * math.log(4)


def test_what_others_choose_makes_a_form_cheaper():
    """A tensor between two forms follows the many."""
    one = TensorCode(torch.tensor([0.3, -0.2, 0.1]))
    zero, other = one.best(0.0), one.best(1e6)
    assert zero.form == "zero" and other.form == "grid"
    weights = [w / 10 for w in range(1, 3000) if one.best(w / 10).form == "zero"]
    dear = dict.fromkeys(FORMS, 3.0)
    assert one.best(weights[-1], dear).form == "zero" and one.best(weights[-1], dear | {"grid": 0.1}).form == "grid"


def test_all_tensors_on_one_grid_are_finer_where_the_curvature_is_larger():
    """Steps in proportion to one over its root; a tensor whose integers would all be 0 stays."""
    torch.manual_seed(0)
    codes = {"steep": TensorCode(torch.randn(6, 5)), "flat": TensorCode(torch.randn(6, 5))}
    codes["tiny"] = TensorCode(1e-4 * torch.randn(6, 5))
    found = gridded(codes, {"steep": 100.0, "flat": 1.0, "tiny": 1.0})
    both = [c for c in found if c["steep"].form == c["flat"].form == "grid" and 0.03 < c["flat"].step < 5]
    assert len(both) > 10 and all(c["flat"].step == pytest.approx(10 * c["steep"].step) for c in both)
    assert all(c["tiny"].form == "zero" and c["steep"].step in STEPS for c in both)
    assert not gridded({"still": TensorCode(torch.zeros(3))}, {"still": 1.0})
