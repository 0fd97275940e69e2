"""What a network's output looks like in memory changes no number: every quantity, every layout."""

import pytest
import torch
from cases import CASES, Case
from layout_nets import LAYOUTS, contiguous
from small_nets import D

import genbound
from genbound.network.tape import basis

CHEAP = {
    "noise_stability": {"sigmas": (0.01,), "relative_sem": 5.0},
    "hessian_trace": {"layer_sem": 5.0, "total_sem": 5.0},
}


def numbers(value, where=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{where}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{where}/{index}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, value


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_quantity_of_a_view_is_that_of_its_copy(name):
    case = CASES[f"output_{name}"]
    view, copy = case, Case(contiguous(LAYOUTS[name]), case.layers)
    model, _, inputs, _ = view.parts()
    assert not model(inputs.to(D)).is_contiguous() or name == "channels_last"
    found, expected = (genbound.evaluate(c.problem(), options=CHEAP) for c in (view, copy))
    assert found.notes == expected.notes and list(found.quantities) == list(expected.quantities)
    assert len(found.quantities) > 10
    trace = found.quantities["hessian_trace"]["layers"]
    assert all(row["value"] != 0 for row in trace.values())
    pairs = dict(numbers(expected.quantities))
    for where, value in numbers(found.quantities):
        assert value == pytest.approx(pairs[where], rel=1e-8, abs=1e-12), where


@pytest.mark.parametrize("name", LAYOUTS)
def test_unit_vectors_of_the_output_are_unit_vectors(name):
    model, _, inputs, _ = CASES[f"output_{name}"].parts()
    output = model(inputs.to(D))
    found = torch.stack([c[0].reshape(-1) for c in basis(output)])
    assert torch.equal(found, torch.eye(output[0].numel(), dtype=output.dtype))
