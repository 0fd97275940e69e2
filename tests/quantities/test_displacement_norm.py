"""The norm of every layer's displacement, by hand and by its definition."""

import pytest
from shared_problems import linear

import genbound


def test_displacement_norm():
    problem = linear([[3.0, 0.0], [0.0, 4.0]], [[1.0, 1.0]], [0], init=0.0)
    results = genbound.evaluate(problem, ["displacement_norm"])
    assert genbound.measure(problem, "displacement_norm")["weight"].value == pytest.approx(5.0)
    assert results.quantities["displacement_norm"]["total"]["value"] == pytest.approx(5.0)
    assert results.quantities["displacement_norm"]["layers"]["weight"]["init_norm"] == 0.0


@pytest.mark.parametrize("name", ["encoder_tied", "conv_relu"])
def test_displacement_norm_against_the_definition(name, problems, truths):
    found, truth = genbound.measure(problems(name), "displacement_norm"), truths(name)
    for layer in truth.layers:
        assert found[layer].value == pytest.approx(float(truth.v[layer].norm()), rel=1e-12)
