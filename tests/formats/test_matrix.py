"""Every format gives the numbers of the plain in-memory pair."""

import warnings

import pytest
import torch
from cases_of_formats import CASES
from safetensors.torch import load_file, save_file
from transformers_formats import bert

import genbound

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("name", CASES)
def test_format(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, while they build and save
        case = CASES[name](tmp_path)
    data = case.data
    if type(case.model).__name__.endswith(("CausalLM", "LMHeadModel")):
        # A data set keeps labels beside their tokens, where transformers wants them.
        data = {**data, "labels": torch.cat([torch.full((len(data["labels"]), 1), -100), data["labels"][:, :-1]], 1)}
        case.data["labels"][:, -1] = -100
    found = genbound.load(case.ckpt, case.init, data=data, **case.options)
    truth = genbound.Problem(case.model, case.start, case.data, loss=case.loss)
    assert [layer.name for layer in found.layers] == [layer.name for layer in truth.layers]
    for quantity in ("displacement_norm", "hessian_trace"):
        got, expected = (genbound.measure(problem, quantity, seed=3) for problem in (found, truth))
        assert got.keys() == expected.keys()
        for layer in expected:
            assert got[layer].value == pytest.approx(expected[layer].value, rel=1e-4, abs=1e-5), (quantity, layer)
    got, expected = (genbound.measure(problem, "losses") for problem in (found, truth))
    assert got["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
    told = " ".join([*map(str, found.provenance.values()), *found.provenance["notes"], *found.provenance["alignment"]])
    for word in case.says:
        assert word in told


def test_results_say_what_was_done_about_the_files(tmp_path):
    case = bert(tmp_path)
    file = case.ckpt / "model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file({**half, "foo.weight": torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    for data in (case.data, None):
        problem = genbound.load(case.ckpt, case.init, data=data, **case.options)
        results = genbound.evaluate(problem, "displacement_norm")
        said = " ".join(results.config["remarks"])
        assert f"CKPT: {len(half)} of {len(half) + 1} tensors are float16, widened to float32" in said
        assert "CKPT has 1 tensor (foo.weight) that the model does not use." in results.to_markdown()


def test_there_are_enough():
    assert len(CASES) >= 25
