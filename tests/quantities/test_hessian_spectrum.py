"""The Hessian's spectrum against dense Hessians in float64."""

import numpy as np
import pytest
import torch
from cases import CASES

import genbound
from genbound.evaluation.selection import select
from genbound.quantities import hessian_spectrum
from genbound.quantities.catalogue import QUANTITIES

CHOSEN = ["mlp_gelu", "tokens", "squared_error", "bounded", "unused"]


def contains(row, value):
    return row["lower"] <= value + 1e-12 and value - 1e-12 <= row["upper"]


@pytest.mark.parametrize("name", CHOSEN)
def test_ends_of_the_layers_and_of_all(name, problems, truths):
    problem, truth = problems(name), truths(name)
    found = genbound.evaluate(problem, ["hessian_spectrum"]).quantities["hessian_spectrum"]
    whole = np.linalg.eigvalsh(truth.joint_hessian_of_mean(range(problem.num_samples))[0])
    assert contains(found["total"], whole[-1]) and contains(found["total"]["smallest"], whole[0])
    assert found["total"]["dimension"] == len(whole) and found["curvature"] == "hessian"
    assert found["total"]["value"] == pytest.approx(whole[-1], rel=1e-3, abs=1e-9)
    for layer, row in found["layers"].items():
        values = torch.linalg.eigvalsh(truth.blocks(layer).mean(0)).numpy()
        assert contains(row, values[-1]) and contains(row["smallest"], values[0])
        assert row["value"] <= row["upper"] and row["lower"] <= row["value"]


def test_gauss_newton_has_no_negative_eigenvalue_and_says_its_name(problems):
    problem = problems("mlp_gelu")
    results = genbound.evaluate(
        problem, ["hessian_spectrum"], options={"hessian_spectrum": {"curvature": "ggn", "scope": "total"}}
    )
    found = results.quantities["hessian_spectrum"]
    assert found["layers"] == {} and found["curvature"] == found["total"]["curvature"] == "ggn"
    assert found["total"]["smallest"]["value"] >= -1e-10
    dense = genbound.hessian_operator(problem, curvature="ggn") @ np.eye(found["total"]["dimension"])
    assert contains(found["total"], np.linalg.eigvalsh(dense)[-1])
    text = results.to_markdown()
    assert "Gauss-Newton spectrum, all layers" in text and "Hessian spectrum" not in text


def test_fisher_is_refused_for_what_is_no_likelihood(problems):
    with pytest.raises(genbound.GenboundError, match="no negative log-likelihood"):
        genbound.measure(problems("bounded"), "hessian_spectrum", curvature="fisher")


def test_a_seed_is_a_draw_and_both_agree(problems):
    a, b = (
        genbound.evaluate(problems("mlp_gelu"), ["hessian_spectrum"], seed).quantities["hessian_spectrum"]["total"]
        for seed in (0, 1)
    )
    assert a["weights"] != b["weights"]
    assert max(a["lower"], b["lower"]) <= min(a["upper"], b["upper"])


def test_room_for_the_basis_changes_nothing_but_rounding(problems, monkeypatch):
    problem = problems("mlp_gelu")
    wide = genbound.evaluate(problem, ["hessian_spectrum"]).quantities["hessian_spectrum"]["total"]
    monkeypatch.setattr(hessian_spectrum, "KRYLOV_BYTES", 8 * wide["dimension"] * 32)
    narrow = genbound.evaluate(problem, ["hessian_spectrum"]).quantities["hessian_spectrum"]["total"]
    assert narrow["num_products"] == wide["num_products"]
    np.testing.assert_allclose(narrow["nodes"], wide["nodes"], atol=1e-8)
    monkeypatch.setattr(hessian_spectrum, "KRYLOV_BYTES", 8 * wide["dimension"])
    with pytest.raises(genbound.GenboundError, match="more than .* GiB"):
        genbound.evaluate(problem, ["hessian_spectrum"])


def test_single_precision():
    exact = CASES["mlp_gelu"].truth()
    problem = CASES["mlp_gelu"].problem(dtype=torch.float32)
    found = genbound.evaluate(problem, ["hessian_spectrum"]).quantities["hessian_spectrum"]["total"]
    whole = np.linalg.eigvalsh(exact.joint_hessian_of_mean(range(problem.num_samples))[0])
    assert contains(found, whole[-1]) and contains(found["smallest"], whole[0])


def test_what_is_compared(problems):
    found = genbound.evaluate(problems("mlp_gelu"), ["hessian_spectrum"]).quantities["hessian_spectrum"]
    numbers = {n.where: n for n in QUANTITIES["hessian_spectrum"].reading.numbers(found)}
    assert set(numbers) == {f"{place}{end}" for place in ("total", *found["layers"]) for end in ("", ".smallest")}
    assert numbers["total"].lower == found["total"]["lower"] and numbers["total"].data_sem is None


def test_plots(problems):
    from genbound.figures.spectrum import plot_largest_eigenvalues

    results = genbound.evaluate(problems("mlp_gelu"), ["hessian_spectrum"])
    found = results.quantities["hessian_spectrum"]
    assert results.plots() == ["spectrum", "largest_eigenvalues"]
    ax = results.plot("largest_eigenvalues")
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == sorted((row["value"] for row in found["layers"].values()), reverse=True)
    assert "1 of 3 layers" in plot_largest_eigenvalues(results, most=2).get_xlabel()
    ax = results.plot("spectrum")
    assert ax.get_yscale() == "log" and "Hessian matrix in" in ax.get_xlabel()
    pytest.importorskip("plotly")
    from genbound.figures.interactive import FIGURES

    assert list(FIGURES["largest_eigenvalues"](results).data[0].x) == widths
    assert FIGURES["spectrum"](results).data[1].x[0] == found["total"]["smallest"]["value"]


@pytest.mark.parametrize("given", [{"num_probes": 1}, {"num_steps": 1}, {"scope": "some"}, {"curvature": "gnn"}])
def test_refusals(given, problems):
    with pytest.raises(genbound.GenboundError):
        genbound.measure(problems("mlp_gelu"), "hessian_spectrum", **given)


def test_a_short_form_without_its_quantity_is_refused():
    with pytest.raises(genbound.GenboundError, match="add --measures default,hessian_spectrum"):
        select(None, {"hessian_spectrum": {"curvature": "ggn"}})
