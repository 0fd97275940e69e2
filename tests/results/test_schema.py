"""Stored results that are damaged, misshapen or of other versions: one clear line, or the right table."""

import copy
import json
import random

import pandas as pd
import pytest
import torch
from handmade import run
from torch import nn

import genbound
from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.results.checksums import NAME

MEASURES = ["losses", "displacement_norm", "hessian_trace", "max_quadratic_form", "hessian_distance", "trace_distance"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A directory of two real runs and one made by hand."""
    folder = tmp_path_factory.mktemp("stored")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(), torch.randn(14, 3).double()
        init = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    labels = torch.arange(14) % 2
    problem = genbound.Problem(model, init, (x, labels), test_data=(-x, labels), num_samples=10)
    for seed in (0, 1):
        genbound.evaluate(problem, MEASURES, seed=seed).save(folder / f"run{seed}")
    run().save(folder / "handmade")
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    """A copy without digests: what is read is what stands there."""
    import shutil

    shutil.copytree(stored, tmp_path / "runs")
    for sums in tmp_path.glob(f"runs/*/{NAME}"):
        sums.unlink()
    return tmp_path / "runs"


def written(folder, change):
    """The first run with its content changed."""
    file = folder / "run0" / "results.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


def at(*path):
    def change(value):
        def apply(content):
            for key in path[:-1]:
                content = content[key]
            if value is ABSENT:
                del content[path[-1]]
            else:
                content[path[-1]] = value

        return apply

    return change


ABSENT = object()
LAYER = ("quantities", "hessian_trace", "layers", "0.weight")
BOUND = ("bounds", "hessian_distance")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (at(*LAYER, "value")(float("nan")), "NaN"),
        (at(*LAYER, "value")(float("inf")), "Infinity"),
        (at(*LAYER, "value")(-float("inf")), "Infinity"),
        (at(*LAYER, "value")("large"), "hessian_trace.layers.0.weight.value is 'large', not a number"),
        (at(*LAYER, "value")(1e308), "hessian_trace.layers.0.weight.value is 1e+308"),
        (at(*LAYER, "sem")(-1.0), "hessian_trace.layers.0.weight.sem is -1.0"),
        (at(*LAYER)([1, 2]), "hessian_trace.layers.0.weight is [1, 2]"),
        (at(*LAYER, "num_samples")({}), "num_samples is {}"),
        (at(*BOUND, "value")("x"), "bounds.hessian_distance.value is 'x'"),
        (at(*BOUND, "forms")(ABSENT), "lacks the entry forms"),
        (at(*BOUND, "vacuous")("no"), "vacuous is 'no', not true or false"),
        (at(*BOUND, "note")(None), "note is None, not a text"),
        (at("config", "num_samples")(ABSENT), "config is [" ),
        (at("config", "num_data")(-3), "config.num_data is -3, not at least 0"),
        (at("config", "num_data")(10**30), "no number in JSON"),
        (at("config", "loss_range")(None), "config.loss_range is None"),
        (at("config", "delta")(2), "config.delta is 2, not between 0 and 1"),
        (at("layers")({}), "layers is {}, not a list"),
        (at("layers", 0, "shape")("4 x 3"), "layers[0].shape is '4 x 3', not a list"),
        (at("quantities")(None), "quantities is None"),
        (at("quantities", "losses", "train_loss")(ABSENT), "train_loss"),
        (at("cost", "seconds")([]), "cost.seconds is []"),
        (at("genbound")(1), "genbound is 1, not a text"),
        (at("schema_version")(None), "schema version None"),
    ],
)  # fmt: skip
def test_one_line_names_the_entry(folder, capsys, change, words):
    file = written(folder, change)
    with pytest.raises(GenboundError) as raised:
        genbound.load_results(folder / "run0")
    assert words in str(raised.value) and str(file) in str(raised.value) and "restore" in str(raised.value)
    for arguments in (
        ["compare", str(folder / "run0"), str(folder / "run1")],
        ["check", str(folder / "run1"), "--baseline", str(file)],
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err


def test_a_text_that_cannot_be_written_is_made_one_that_can(folder):
    """Half a surrogate pair has no bytes: tables and files could not hold it."""
    written(folder, at(*BOUND, "note")("a \ud800 b"))
    results = genbound.load_results(folder / "run0")
    assert results.to_markdown().encode("utf-8") and genbound.compare([results]).to_markdown().encode("utf-8")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "1", '"a"', "{}", "[" * 100_000, "\xff", '{"schema_version": 1}']
)
def test_what_is_no_results_file(folder, text):
    (folder / "run0" / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(GenboundError, match=r"results\.json"):
        genbound.load_results(folder / "run0")


def test_whole_files_and_older_ones_are_read(folder, stored, capsys):
    """Entries that came later may be missing, entries that are not known may be there."""
    for name in ("run0", "run1", "handmade"):
        assert genbound.load_results(stored / name).to_markdown() == genbound.load_results(folder / name).to_markdown()

    def older(content):
        del content["notes"]
        for key in ("samples_sha256", "remarks", "head_note", "batch_size", "torch"):
            content["config"].pop(key, None)
        for row in content["layers"]:
            del row["num_uses"]
        for row in content["bounds"].values():
            del row["gap_ratio"], row["below_gap"]
        content["quantities"]["of_the_future"] = {"layers": {"0.weight": {"value": 1, "what": [None, {"a": "b"}]}}}

    file = written(folder, older)
    assert main(["compare", str(folder / "run0"), str(folder / "run1")]) == 0
    assert main(["check", str(folder / "run0"), "--baseline", str(file)]) == 0
    assert not capsys.readouterr().err


def test_files_that_changed_are_named(stored, tmp_path, capsys):
    import shutil

    shutil.copytree(stored / "run0", tmp_path / "run")
    genbound.load_results(tmp_path / "run")
    assert not capsys.readouterr().err
    file = tmp_path / "run" / "results.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 7'))
    assert genbound.load_results(tmp_path / "run").config["seed"] == 7
    assert "it was edited, or damaged" in capsys.readouterr().err
    assert main(["check", str(stored / "run0"), "--baseline", str(file), "--update"]) == 0
    capsys.readouterr()
    genbound.load_results(tmp_path / "run")  # written on purpose
    assert not capsys.readouterr().err


@pytest.mark.parametrize("known", [True, False])
def test_damaged_samples_are_refused(stored, tmp_path, known):
    import shutil

    shutil.copytree(stored / "run0", tmp_path / "run")
    file, rng = tmp_path / "run" / "samples.parquet", random.Random(0)
    if not known:
        (tmp_path / "run" / NAME).unlink()
    raw = file.read_bytes()
    for _ in range(30):
        place = rng.randrange(len(raw))
        file.write_bytes(raw[:place] + bytes([rng.randrange(256)]) + raw[place + rng.randrange(1, 4) :])
        with pytest.raises(GenboundError, match=r"samples\.parquet"):
            genbound.load_results(tmp_path / "run")
            assert not known  # a digest sees every change; the reader alone not those of a value
            raise GenboundError("samples.parquet")
    pd.DataFrame({"sample": [0.5], "other": [1]}).to_parquet(file)
    with pytest.raises(GenboundError, match=r"samples\.parquet"):
        genbound.load_results(tmp_path / "run")


VALUES = [float("nan"), float("inf"), None, 0, -1, 1e308, -1e308, 1e299, 1e-320, "x", [], {}, True, 10**30, ABSENT]


def places(content, where=()):
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*where, key)
        if isinstance(value, dict | list):
            yield from places(value, (*where, key))


@pytest.mark.parametrize("num", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_whatever_stands_there_nothing_breaks(folder, capsys, num):
    rng, file = random.Random(num), folder / "run0" / "results.json"
    whole = json.loads(file.read_text())
    everywhere = list(places(whole))
    runs = [str(folder / "run0"), str(folder / "run1")]
    commands = [
        ["compare", *runs], ["compare", *runs, "--allow-mixed", "--reference", runs[0]], ["correlate", *runs],
        ["check", runs[0], "--baseline", runs[1]], ["check", runs[1], "--baseline", str(file)],
        ["export", *runs, "--out", str(folder / "all.csv")],
    ]  # fmt: skip
    for _ in range(num):
        content, where, value = copy.deepcopy(whole), rng.choice(everywhere), rng.choice(VALUES)
        at(*where)(value)(content)
        file.write_text(json.dumps(content))
        for command in commands:
            status, (_, err) = main(command), capsys.readouterr()
            assert status in (0, 1, 2) and "unexpected" not in err, (where, value, command, err)
            assert status != 2 or err.count("\n") == 1, err
