"""Rows of bounds as users read them: attributes, what older runs lack, and the table's marks."""

import json

import pytest
from handmade import bound, run

import genbound


def test_entries_are_attributes_fresh_and_loaded(tmp_path):
    given = {"first": bound(0.622, 0.6207, 0.6225, note="a doubt")}
    fresh = run(given)
    fresh.save(tmp_path)
    for results in (fresh, genbound.load_results(tmp_path)):
        row = results.bounds["first"]
        assert (row.value, row.lower, row.upper, row.note) == (0.622, 0.6207, 0.6225, "a doubt")
        assert row.forms["main_term"].log10 == row["log10"] == row.log10
        with pytest.raises(AttributeError, match="there is no entry 'upside': there are value, lower"):
            row.upside  # noqa: B018
    assert genbound.load_results(tmp_path).bounds == fresh.bounds


def test_a_run_that_was_stored_before_has_its_gaps_and_norms(tmp_path):
    """The gap of the run made by hand is 0.2 in the loss; path norms were called measures of the error."""
    run({"low": bound(0.1), "path_norm": bound(0.01, unit="error", vacuous=True)}).save(tmp_path)
    file = tmp_path / "results.json"
    stored = json.loads(file.read_text())
    for row in stored["bounds"].values():
        for entry in ("gap_ratio", "below_gap"):
            del row[entry]
    stored["bounds"]["path_norm"] |= {"kind": "measure", "bounds": "error", "vacuous": True}
    file.write_text(json.dumps(stored))
    results = genbound.load_results(tmp_path)
    assert results.bounds["low"].gap_ratio == pytest.approx(0.5) and results.bounds["low"].below_gap
    norm = results.bounds["path_norm"]
    assert (norm.kind, norm.bounds, norm.vacuous, norm.gap_ratio, norm.below_gap) == ("norm", "norm", None, None, None)
    assert "| 0.5, below the gap |" in results.to_markdown()
    assert genbound.compare([results]).cells()[1][0][-1] == "below the gap"
    assert genbound.check(results, run({"low": bound(0.1), "path_norm": bound(0.01)}))


def test_the_representation_fits_a_screen():
    text = repr(run({f"bound_{i}": bound(float(i + 1)) for i in range(40)}))
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 120
    assert "256 of n = 1000 training samples" in text and "bound_0: 1 (measure)" in text and "and 22 more" in text


def test_a_column_for_each_quantity_or_every_entry():
    """By-products are left out: the norm of the start, how exact a maximum is, what has several names."""
    results = run()
    results.quantities["layer_norms"] = {"layers": {"a.weight": {"bias_norm": 0.5}}}
    layers, every = results.layers(), results.layers(every=True)
    bounds = ["max_quadratic_form", "max_quadratic_form_lower", "max_quadratic_form_upper"]
    assert list(layers.columns[5:]) == ["displacement_norm", "hessian_trace", "hessian_trace_sem", *bounds]
    more = {"displacement_norm_init_norm", "max_quadratic_form_exact", "max_quadratic_form_sample"}
    assert set(every.columns) - set(layers.columns) == {*more, "layer_norms_bias_norm"}
