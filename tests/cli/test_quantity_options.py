"""``--set`` reaches every option of every quantity, from the command line and from the config file."""

import json
from dataclasses import fields

import pytest
import torch
from safetensors.torch import save_file

from genbound.cli.main import main
from genbound.quantities import QUANTITIES

CODE = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))

def data():
    stream = torch.Generator().manual_seed(0)
    return torch.randn(12, 3, generator=stream), torch.arange(12) % 2
"""


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    """``call(measures, *more)``: (status, options that the run records, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    stream = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}
    for name in ("tuned", "start"):
        save_file({k: torch.randn(s, generator=stream) for k, s in shapes.items()}, tmp_path / f"{name}.safetensors")

    def run(measures, *more, command="evaluate"):
        files = ["tuned.safetensors", "start.safetensors", "--model", "net.py:build", "--data", "net.py:data"]
        status = main([command, *files, "--measures", measures, *more, *(["--out", "run"] * (command == "evaluate"))])
        stored = tmp_path / "run" / "results.json"
        options = json.loads(stored.read_text())["config"]["options"] if stored.exists() else None
        return (status, options, *capsys.readouterr())

    return run


def test_the_command_line(call):
    status, options, _, _ = call(
        "noise_stability,margin", "--set", "hessian_trace.layer_sem=0.5", "--set", "noise_stability.sigmas=0.01,0.02",
        "--set", "noise_stability.num_shared=2", "--margin-percentile", "10",
    )  # fmt: skip
    assert status == 0 and options["hessian_trace"]["layer_sem"] == 0.5
    assert options["noise_stability"]["sigmas"] == [0.01, 0.02] and options["noise_stability"]["num_shared"] == 2
    assert options["margin"] == {"percentile": 10.0}


@pytest.mark.parametrize("text", ["set: {margin: {percentile: 20}}", "set: {margin.percentile: '20'}"])
def test_the_config_file_and_what_wins(call, tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"{text}\n")
    assert call("margin", "--config", "c.yaml")[1]["margin"]["percentile"] == 20
    assert call("margin", "--config", "c.yaml", "--set", "margin.percentile=30")[1]["margin"]["percentile"] == 30
    assert call("margin", "--config", "c.yaml", "--margin-percentile", "40")[1]["margin"]["percentile"] == 40
    (tmp_path / "short.yaml").write_text("margin-percentile: 50\n")
    assert call("margin", "--config", "short.yaml", "--set", "margin.percentile=60")[1]["margin"]["percentile"] == 60


def test_what_the_command_line_leaves_open_is_as_the_file_says(call, tmp_path):
    (tmp_path / "c.yaml").write_text("set:\n  noise_stability:\n    sigmas: [0.1]\n    num_shared: 3\n")
    options = call("noise_stability", "--config", "c.yaml", "--set", "noise_stability.num_shared=2")[1]
    assert options["noise_stability"]["sigmas"] == [0.1] and options["noise_stability"]["num_shared"] == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "margn.percentile=5"], ["there is no quantity 'margn' (did you mean margin?)", "list options"]),
        (["--set", "margin.percentil=5"], ["no option 'percentil' (did you mean percentile?)"]),
        (["--set", "margin.percentile=low"], ["margin.percentile must be a number, not 'low'"]),
        (["--set", "margin.percentile=200"], ["margin", "between 0 and 100"]),
        (["--set", "hessian_trace.layer_sem=0"], ["hessian_trace: layer_sem 0 must be positive"]),  # not even measured
        (["--set", "margin.percentile"], ["QUANTITY.OPTION=VALUE"]),
        (["--set", "margin=5"], ["QUANTITY.OPTION=VALUE"]),
        (["--set", "max_quadratic_form.convention=theory"], ["did you mean theorem?"]),
        (["--set", "margin.percentile=5", "--margin-percentile", "6"],
         ["--set margin.percentile=5 and --margin-percentile 6 contradict each other"]),
        (["--set", "margin.percentile=5", "--set", "margin.percentile=6"], ["contradict each other"]),
    ],
)  # fmt: skip
def test_what_is_refused(call, more, words):
    status, options, out, err = call("margin", *more)
    assert status == 2 and options is None and out == ""
    assert err.startswith("genbound: error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_the_same_thing_said_twice_is_fine(call):
    status, options, _, _ = call("margin", "--set", "margin.percentile=7", "--margin-percentile", "7")
    assert status == 0 and options["margin"]["percentile"] == 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("set: 5", ["set must hold"]), ("set: [margin.percentile=5]", ["set must hold"]),
        ("set: {margin: 5}", ["set margin in c.yaml", "QUANTITY.OPTION"]),
        ("set: {margn: {percentile: 5}}", ["set margn.percentile in c.yaml", "did you mean margin?"]),
        ("set: {margin: {percentile: true}}", ["must be a number"]),
        ("set: {margin.percentile: 5}\nmargin-percentile: 6", ["contradict each other"]),
    ],
)  # fmt: skip
def test_config_files_that_are_refused(call, tmp_path, content, words):
    (tmp_path / "c.yaml").write_text(content)
    status, options, _, err = call("margin", "--config", "c.yaml")
    assert status == 2 and options is None and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_inspect_takes_the_same(call):
    status, _, out, _ = call("margin", "--set", "margin.percentile=7", command="inspect")
    assert status == 0 and "margin" in out
    assert call("margin", "--set", "margin.percentil=7", command="inspect")[0] == 2


def test_list_options(capsys):
    assert main(["list", "options"]) == 0
    out = capsys.readouterr().out
    for name, quantity in QUANTITIES.items():
        for option in fields(quantity.options):
            (line,) = [line for line in out.splitlines() if line.startswith(f"{name}.{option.name} ")]
            assert option.metadata["meaning"] in line
    assert main(["list", "options", "margin"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["option", "margin.percentile"]
    assert main(["list", "options", "losses"]) == 0 and "no options" in capsys.readouterr().out
    assert main(["list", "options", "margn"]) == 2 and "did you mean margin?" in capsys.readouterr().err
    assert main(["list", "bounds", "margin"]) == 2


def test_help_shows_the_short_forms_with_their_defaults(capsys):
    assert main(["evaluate", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("--sigmas", "[default: 0.001,0.002,0.005,0.01,0.02]", "(margin.percentile)", "genbound list options"):
        assert words in out


def test_an_option_without_effect_is_said_to_be(call):
    status, _, out, _ = call("margin", "--set", "hessian_trace.layer_sem=0.5")
    assert status == 0 and "An option of what is not measured has no effect: hessian_trace.layer_sem" in out
    _, _, out, _ = call("margin", "--set", "hessian_trace.layer_sem=0.5", command="inspect")
    assert "An option of what is not measured has no effect: hessian_trace.layer_sem" in out.replace("\n", " ")
    assert "no effect" not in call("margin", "--margin-percentile", "10")[2]
