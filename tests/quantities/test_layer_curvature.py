"""Forms and traces of the mean loss's Hessian, Gauss-Newton and Fisher blocks against the dense operator."""

import numpy as np
import pytest
from cases import CASES

import genbound
from genbound.estimators.estimate import data_sem
from genbound.quantities.catalogue import QUANTITIES

CHOSEN = [
    (name, curvature)
    for name in ("mlp_gelu", "tokens", "squared_error", "multi_label", "twice")
    for curvature in ("hessian", "ggn", "fisher")
] + [("bounded", "ggn"), ("custom_loss", "hessian")]


def found_of(problem, seed=0, **options):
    results = genbound.evaluate(problem, ["layer_curvature"], seed, options={"layer_curvature": options})
    return results.quantities["layer_curvature"], results


@pytest.mark.parametrize(("name", "curvature"), CHOSEN)
def test_against_the_dense_blocks(name, curvature, problems):
    problem = problems(name)
    found, _ = found_of(problem, curvature=curvature)
    whole = genbound.hessian_operator(problem, curvature=curvature)
    dense, v = whole @ np.eye(whole.shape[0]), whole.flatten(problem.displacement)
    forms = traces = 0.0
    for layer, place in whole.layers.items():
        row, block = found["layers"][layer], dense[place, place]
        forms, traces = forms + v[place] @ block @ v[place], traces + np.trace(block)
        assert row["value"] == pytest.approx(v[place] @ block @ v[place], rel=1e-9, abs=1e-12)
        assert row["curvature"] == curvature and row["data_sem"] == 0
        if curvature == "hessian":
            assert row["trace"] is None
        else:
            assert row["trace"] == pytest.approx(np.trace(block), rel=1e-9, abs=1e-12) and row["trace_sem"] == 0
    assert found["total"]["value"] == pytest.approx(forms, rel=1e-9)
    assert found["total"]["joint"] == pytest.approx(v @ dense @ v, rel=1e-9)
    assert curvature == "hessian" or found["total"]["trace"] == pytest.approx(traces, rel=1e-9)


@pytest.mark.parametrize("curvature", ["ggn", "fisher"])
def test_sampled_traces(curvature, problems):
    problem = problems("tokens")
    exact, _ = found_of(problem, curvature=curvature)
    values, sems = [], []
    for seed in range(8):
        drawn, _ = found_of(problem, seed, curvature=curvature, exact_outputs=1, num_factors=8)
        values.append(drawn["total"]["trace"])
        sems.append(drawn["total"]["trace_sem"])
    assert min(sems) > 0
    assert abs(np.mean(values) - exact["total"]["trace"]) < 4 * np.sqrt(np.mean(np.square(sems)) / 8)


def test_the_name_of_the_curvature_is_printed_and_no_bound_reads_it(problems):
    for curvature, called in (("ggn", "Gauss-Newton"), ("fisher", "Fisher"), ("hessian", "Hessian")):
        _, results = found_of(problems("mlp_gelu"), curvature=curvature)
        assert f"{called} matrix C of the mean loss" in results.to_markdown() and results.bounds == {}
        assert results.config["options"]["layer_curvature"]["curvature"] == curvature


def test_a_part_of_the_data():
    problem = CASES["mlp_gelu"].problem(num_samples=4)
    found, results = found_of(problem, curvature="ggn")
    sample = results.samples.pivot(index="sample", columns="layer", values="layer_curvature_trace")
    n = problem.num_data
    for layer, row in found["layers"].items():
        assert row["trace"] == pytest.approx(sample[layer].mean(), rel=1e-12)
        assert row["trace_data_sem"] == pytest.approx(data_sem(sample[layer].to_numpy(), np.zeros(4), n), rel=1e-9)
    numbers = {n.where: n for n in QUANTITIES["layer_curvature"].reading.numbers(found)}
    assert numbers["total.trace"].data_sem == found["total"]["trace_data_sem"]
    assert numbers["total.joint"].data_sem is None


def test_refusals(problems):
    with pytest.raises(genbound.GenboundError, match="no negative log-likelihood"):
        found_of(problems("clipped"), curvature="fisher")
    with pytest.raises(genbound.GenboundError, match="did you mean ggn"):
        found_of(problems("mlp_gelu"), curvature="gnn")


def test_one_flag_for_both_quantities(capsys):
    """``--curvature`` is heard by the one that is measured, and refused where neither is."""
    from genbound.evaluation.selection import select

    given = {"layer_curvature": {"curvature": "ggn"}, "hessian_spectrum": {"curvature": "ggn"}}
    chosen = select(["layer_curvature"], given)
    assert list(chosen.options) == ["layer_curvature"] and chosen.options["layer_curvature"].curvature == "ggn"
    with pytest.raises(
        genbound.GenboundError,
        match="layer_curvature.curvature, hessian_spectrum.curvature is given",
    ):
        select(None, given)
