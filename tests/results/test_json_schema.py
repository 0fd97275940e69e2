"""The published JSON Schema says what genbound itself refuses, and results of the first version are still read."""

import copy
import json
from importlib import resources
from pathlib import Path

import pytest
from test_schema import BOUND, LAYER, at, stored  # noqa: F401

import genbound
from genbound.errors import GenboundError
from genbound.results.schema import check_content, json_schema

jsonschema = pytest.importorskip("jsonschema")
OLDER = sorted((Path(__file__).parent / "older").glob("*.json"))


@pytest.fixture(scope="module")
def validator():
    shipped = json.loads(resources.files("genbound.results").joinpath("results.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(shipped)
    return jsonschema.Draft202012Validator(shipped)


def test_the_shipped_file_is_the_table():
    """Write it anew with `python -m tools.results_schema`."""
    shipped = resources.files("genbound.results").joinpath("results.schema.json").read_text("utf-8")
    assert json.loads(shipped) == json_schema()


@pytest.mark.parametrize("name", ["run0", "run1", "handmade"])
def test_what_genbound_writes_is_valid(validator, stored, name):  # noqa: F811
    validator.validate(json.loads((stored / name / "results.json").read_text()))


@pytest.mark.parametrize(
    "change",
    [
        at(*LAYER, "value")("large"),
        at(*LAYER, "value")(1e308),
        at(*LAYER, "sem")(-1.0),
        at(*LAYER)([1, 2]),
        at(*LAYER, "num_samples")({}),
        at(*LAYER, "exact")(1),
        at("quantities", "hessian_trace", "total", "data_sem")(-1),
        at("quantities", "noise_stability")({"sigmas": [{"value": 1.0}]}),
        at("quantities", "noise_stability")({"sigmas": [{"sigma": 0.1, "value": "x"}]}),
        at("quantities", "losses", "deep")({"deeper": {"sem": "x"}}),
        at(*BOUND, "value")("x"),
        at(*BOUND, "vacuous")("no"),
        at(*BOUND, "note")(None),
        at("config", "num_data")(-3),
        at("config", "loss_range")(None),
        at("config", "delta")(2),
        at("layers")({}),
        at("layers", 0, "shape")("4 x 3"),
        at("quantities")(None),
        at("cost", "seconds")([]),
    ],
)
def test_both_refuse(validator, stored, change):  # noqa: F811
    content = json.loads((stored / "run0" / "results.json").read_text())
    change(content)
    with pytest.raises(GenboundError):
        check_content(content, Path("results.json"))
    assert not validator.is_valid(content)


def test_both_ask_for_every_entry(validator, stored):  # noqa: F811
    content = json.loads((stored / "run0" / "results.json").read_text())
    for name in json_schema()["required"]:
        without = copy.deepcopy(content)
        del without[name]
        with pytest.raises(GenboundError):
            check_content(without, Path("results.json"))
        assert not validator.is_valid(without)


@pytest.mark.parametrize("file", OLDER, ids=lambda path: path.stem)
def test_results_of_older_versions_are_read(validator, file):
    content = json.loads(file.read_text())
    validator.validate(content)
    results = genbound.load_results(file)
    assert list(results.bounds) == list(content["bounds"])
    for name, row in content["bounds"].items():
        assert (results.bounds[name]["value"], results.bounds[name]["log10"]) == (row["value"], row["log10"])
    trace = content["quantities"]["hessian_trace"]["layers"]
    assert results.layers()["hessian_trace"].to_dict() == {name: layer["value"] for name, layer in trace.items()}
    assert f"| {next(iter(content['bounds']))} " in results.to_markdown()
    assert genbound.compare([results, results], allow_mixed=True).to_markdown()


def test_there_are_older_results():
    assert OLDER
