"""The verdict above the table: every sentence can be read off the numbers put in."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from handmade import bound, run
from torch import nn

import genbound
from genbound.data.texts import TextSamples
from genbound.results.glance import in_short
from genbound.results.verdict import GAP, GUARANTEE, short_rows, verdict


def said(results):
    return "\n".join(verdict(results))


def test_a_measure_is_no_guarantee_and_stands_against_the_gap():
    """The gap of the run made by hand is 0.2 in the loss and 0.05 in the error."""
    text = said(run({"hessian_distance": bound(0.5, 0.49, 0.5, vacuous=False)}))
    assert "No guarantee" in text and "hessian_distance is 0.50 [0.49, 0.50] in units of the loss, 2.5 times" in text
    assert "the measured gap of 0.2. Added to the training loss it is better than (not vacuous)" in text
    assert "known to 2 %" in text


def test_a_value_below_the_gap_did_not_bound():
    text = said(run({"hessian_distance": bound(0.1)}))
    assert "below the measured gap of 0.2: it did not bound this network" in text and "vacuous" not in text


def test_some_of_the_samples_do_not_show_that_it_failed():
    """Nor that it says something: over all samples it may be above the gap, and vacuous."""
    some = {"at_least": True, "upper": None, "num_samples": 64, "num_data": 300}
    results = run({"hessian_distance": bound(0.1, vacuous=False) | some})
    row, text = results.bounds["hessian_distance"], said(results)
    assert row.below_gap is row.vacuous is None
    assert "of these samples below the measured gap of 0.2: over all 300 it may be above" in text
    assert "Whether it is vacuous over all 300 is not known." in text and "did not bound" not in text
    assert "| ≥ 0.5 " in results.to_markdown() and in_short(results)[GAP] == "≥ 0.5 × the measured gap"
    assert "gap" not in genbound.compare([results]).doubt("hessian_distance")
    searched = run({"hessian_distance": bound(0.1, vacuous=False) | {"at_least": True, "upper": None}})
    assert "of what was searched below the measured gap of 0.2: past what was searched it may be" in said(searched)


def test_a_certificate_comes_first():
    rows = {"hessian_distance": bound(0.5), "best": bound(0.31, unit="error") | {"kind": "certificate"}}
    rows["worse"] = bound(0.4, unit="error") | {"kind": "certificate"}
    results = run(rows)
    assert verdict(results)[0] == (
        "Guaranteed: best, at most 0.31 (error), the least of 2 and so with probability 0.9 (each alone: 0.95)."
    )
    results.config["delta"] = 0.0001  # to three digits, 0.9998 would be certain
    assert verdict(results)[0].endswith("the least of 2 and so with probability 0.9998 (each alone: 0.9999).")
    results.bounds.pop("worse")
    assert verdict(results)[0] == "Guaranteed: best, at most 0.31 (error)."
    results.bounds["worse"] = results.bounds["best"]
    assert short_rows(results) == ["hessian_distance", "best", "worse"]


@pytest.mark.parametrize(
    ("delta", "said"), [(0.0001, "0.9998 (each alone: 0.9999)"), (1e-8, "0.99999998 (each alone: 0.99999999)"),
                        (0.6, "0 (each alone: 0.4)")]
)  # fmt: skip
def test_no_probability_is_rounded_up(delta, said):
    results = run({name: bound(0.3, unit="error") | {"kind": "certificate"} for name in ("a", "b")})
    results.config["delta"] = delta
    assert verdict(results)[0].endswith(f"and so with probability {said}.")


def test_certificates_that_guarantee_nothing_are_not_denied():
    row = bound(None, unit="error", note="needs test data") | {"kind": "certificate"}
    assert verdict(run({"a": row}))[0] == "No guarantee: no certificate has a value; the notes say why."
    note = "assumption violated: 5 of 9 test samples have the inputs of training samples; delta"
    broken = run({"a": row, "b": row | bound(0.1, unit="error", note=note) | {"kind": "certificate"}})
    assert verdict(broken)[0] == f"No guarantee: b, {note.split(';')[0]}."
    assert in_short(broken)[GUARANTEE] == "No"


def test_the_layer_and_the_sample_that_carry_most():
    results = run()
    rows = results.quantities["max_quadratic_form"]["layers"]
    rows["a.weight"] |= {"upper": 9.0, "sample": 5}
    rows["b.weight"] |= {"upper": 1.0}
    results.data["shown"] = {"5": {"label": 1, "text": "a  long\nline " + "x" * 200}}
    text = said(results)
    assert "Layer a.weight carries 75 % of the Hessian distance (2 layers); its largest sample is number 5" in text
    assert "(label 1, “a long line xxx" in text and "…”)" in text


def test_some_of_the_samples_and_no_test_data_say_what_would_help():
    row = bound(0.5, 0.49) | {"at_least": True, "upper": None, "num_samples": 64, "num_data": 300}
    results = run({"hessian_distance": row})
    results.quantities["losses"] |= {"num_test": 0, "generalization_gap": None, "error_gap": None}
    results.bounds["hessian_distance"] |= {"gap_ratio": None, "below_gap": None}
    text = said(results)
    assert (
        "no gap was measured" in text and "64 of the 300 training samples, so over all samples it may be larger" in text
    )
    assert "--test-data for the gap" in text and "--samples 300" in text


def test_the_short_table_has_ours_and_the_smallest_rival_of_its_unit():
    rows = {
        "hessian_distance": bound(0.5), "rival": bound(3.0), "huge": bound(1e9),
        "other_unit": bound(0.01, unit="error"),
        "plain": bound(0.001, unit="distance") | {"kind": "norm"}, "absent": bound(None),
    }  # fmt: skip
    results = run(rows)
    assert short_rows(results) == ["hessian_distance", "rival"]
    short, whole = results.to_markdown(every=False), results.to_markdown()
    assert "huge" not in short and "4 more rows: --all" in short
    assert all(f"| {name} " in whole for name in rows) and "more rows" not in whole


def test_weights_alone_say_what_is_missing():
    results = run({"distance_frobenius": bound(1.5, unit="distance") | {"kind": "norm"}}, num_samples=0)
    results.quantities = {}
    assert "--data" in said(results) and short_rows(results) == []
    assert "distance_frobenius" in results.to_markdown(every=False)  # with nothing to choose from, all of it


def test_certificates_without_a_value_do_not_hide_the_norms():
    """As without a model: then the table is the whole one."""
    rows = {"best": bound(None, unit="error"), "distance_frobenius": bound(1.5, unit="distance")}
    results = run(
        {name: row | {"kind": kind} for (name, row), kind in zip(rows.items(), ("certificate", "norm"), strict=True)}
    )
    assert short_rows(results) == []
    assert "| distance_frobenius " in results.to_markdown(every=False)


def test_no_bounds_no_verdict():
    assert verdict(run({})) == [] and run({}).summary() == ""


class Words:
    """A tokenizer of single letters."""

    pad_token_id, eos_token_id, pad_token_type_id, padding_side, model_max_length = 0, 0, 0, "right", 16

    def __call__(self, texts, pairs, **_):
        return {"input_ids": [[ord(c) % 7 for c in text] for text in texts]}


def test_samples_show_themselves():
    texts = TextSamples(["ab", "cde"], ["x", "y"], torch.tensor([1, 0]), Words())
    assert texts.shown(1) == "cde / y" and texts.label(0) == 1
    pair = genbound.Problem(*_network()).data
    assert pair.shown(0) == "" and pair.label(2) in (0, 1)


def _network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    init = {name: torch.randn_like(p) for name, p in net.state_dict().items()}
    return net, init, (torch.randn(8, 3), torch.arange(8) % 2)


def test_labels_and_the_largest_samples_are_stored(tmp_path):
    net, init, data = _network()
    results = genbound.evaluate(genbound.Problem(net, init, data), ["hessian_distance"])
    results.save(tmp_path)
    table = pd.read_parquet(tmp_path / "samples.parquet")
    assert np.array_equal(table["label"], data[1].numpy()[table["sample"]])
    rows = json.loads((tmp_path / "results.json").read_text())
    largest = {str(row["sample"]) for row in rows["quantities"]["max_quadratic_form"]["layers"].values()}
    assert set(rows["data"]["shown"]) == largest
    assert all(entry["label"] == int(data[1][int(i)]) for i, entry in rows["data"]["shown"].items())
    assert genbound.load_results(tmp_path).summary() == results.summary() != ""


@pytest.mark.parametrize("flags, printed", [([], "more rows: --all"), (["--all"], "| distance_two_one")])
def test_the_command_prints_the_short_table_or_all(tmp_path, monkeypatch, capfd, flags, printed):
    from genbound.cli.main import main

    net, init, (x, y) = _network()
    monkeypatch.chdir(tmp_path)
    torch.save(net.state_dict(), "tuned.pt")
    torch.save(init, "init.pt")
    np.savez("train.npz", x=x.numpy(), y=y.numpy())
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))\n"
    )
    arguments = ["evaluate", "tuned.pt", "init.pt", "--model", "nets.py:build", "--data", "npz:train.npz", "-q"]
    assert main([*arguments, *flags]) == 0
    out, err = capfd.readouterr()
    assert printed in out and "> **Is it a guarantee?** No guarantee" in out and err == ""


def test_the_command_prints_json(tmp_path, monkeypatch, capfd):
    from genbound.cli.main import main

    net, init, _ = _network()
    monkeypatch.chdir(tmp_path)
    torch.save(net.state_dict(), "tuned.pt")
    torch.save(init, "init.pt")
    assert main(["evaluate", "tuned.pt", "init.pt", "--json", "-q", "--measures", "displacement_norm"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["schema_version"] == 1 and found["quantities"]["displacement_norm"]["layers"]
