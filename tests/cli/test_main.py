"""The command line: tables on stdout, files in DIR, and one line on stderr with status 2 when something is wrong."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genbound.bounds import BOUNDS
from genbound.cli.inspection import _duration
from genbound.cli.main import main, run
from genbound.evaluation.loading import DTYPES
from genbound.quantities import QUANTITIES

NETS = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.fc = nn.Linear(5, 3)
        self.calls = 0

    def features(self, x):
        return self.body(x).tanh()

    def forward(self, x):
        return self.fc(self.features(x))

class Random(Net):
    def forward(self, x):
        return self.fc(F.dropout(self.features(x), 0.1, training=True))

class Stateful(Net):
    def forward(self, x):
        self.calls += 1
        return self.fc(self.features(x) * self.calls)

class Interacting(Net):
    def forward(self, x):
        return self.fc(F.batch_norm(self.features(x), None, None, training=True))

class Transposed(Net):
    def forward(self, x):
        return super().forward(x).mT

class NoTensor(Net):
    def forward(self, x):
        return "scores"

class Broken(Net):
    def forward(self, x):
        raise KeyError("no such layer")

class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()

def data(n=20, k=3):
    stream = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=stream), torch.arange(n) % k

def test():
    stream = torch.Generator().manual_seed(1)
    return torch.randn(9, 4, generator=stream), torch.arange(9) % 3

def out_of_range():
    return data(k=5)

def empty():
    return []

def float_labels():
    x, y = data()
    return x, y.float()

def wrong_width():
    x, y = data()
    return x[:, :3], y
"""
CHEAP = ["--measures", "losses,displacement_norm,hessian_trace,max_quadratic_form,hessian_distance"]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "nets.py").write_text(NETS)
    stream = torch.Generator().manual_seed(0)
    shapes = {"body.weight": (5, 4), "body.bias": (5,), "fc.weight": (3, 5), "fc.bias": (3,)}
    for name in ("tuned", "init"):
        state = {key: torch.randn(shape, generator=stream) for key, shape in shapes.items()}
        save_file(state, folder / f"{name}.safetensors")
        if name == "tuned":
            state["fc.weight"][1, 1] = float("nan")
            save_file(state, folder / "nan.safetensors")
    x, y = torch.randn(20, 4, generator=stream).numpy(), np.arange(20) % 3
    np.savez(folder / "train.npz", x=x, y=y)
    return folder


@pytest.fixture
def call(base, capsys, monkeypatch, tmp_path):
    """``call("evaluate", …)`` with both checkpoints in place: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(command, *more, model="Net", data="data", ckpt="tuned", init="init"):
        arguments = [command, str(base / f"{ckpt}.safetensors"), str(base / f"{init}.safetensors")]
        arguments += ["--model", f"{base / 'nets.py'}:{model}"] if model else []
        arguments += ["--data", f"{base / 'nets.py'}:{data}"] if data else []
        status = main([*arguments, *map(str, more)])
        return (status, *capsys.readouterr())

    return run


def refused(outcome, *words, folder=None):
    status, out, err = outcome
    lines = [line for line in err.strip().splitlines() if line.startswith("genbound: error:")]
    assert status == 2 and out == "" and len(lines) == 1 and "Traceback" not in err, (status, out, err)
    assert err.strip().splitlines()[-1] == lines[0]
    assert "unexpected" not in lines[0], lines[0]
    for word in words:
        assert word in lines[0], (word, lines[0])
    if folder is not None:
        assert not folder.exists() or not (folder / "results.json").exists()


# -- what works ------------------------------------------------------------------------------------------------------


def test_evaluate(call, tmp_path, base):
    status, out, err = call("evaluate", *CHEAP, "--out", "run", "--test-data", f"{base / 'nets.py'}:test")
    assert status == 0 and "| hessian_distance" in out and "generalization gap" in out and "error" not in err
    folder = tmp_path / "run"
    content = json.loads((folder / "results.json").read_text())
    assert content["schema_version"] == 1 and content["config"]["num_samples"] == 20
    assert set(content["quantities"]) == set(CHEAP[1].split(",")[:4])
    assert content["checkpoint"]["path"].endswith("tuned.safetensors") and len(content["init"]["sha256"]) == 64
    assert [layer["name"] for layer in content["layers"]] == ["body.weight", "fc.weight"]
    written = {
        "results.json",
        "layers.csv",
        "table.md",
        "samples.parquet",
        "SHA256SUMS",
        "layers.png",
        "samples.png",
        "bounds_loss.png",
        "parts",
    }
    assert {path.name for path in folder.iterdir()} == written
    assert {path.name for path in tmp_path.iterdir()} == {"run"}  # nothing outside DIR
    assert (folder / "table.md").read_text().strip() == out.strip()


def test_without_out_nothing_is_written(call, tmp_path):
    status, out, _ = call("evaluate", *CHEAP)
    assert status == 0 and "hessian_distance" in out and not list(tmp_path.iterdir())


def test_the_same_run_twice_gives_the_same_table(call):
    assert call("evaluate", *CHEAP)[1] == call("evaluate", *CHEAP)[1]


def test_weights_alone(call):
    for model, data, words in ((None, None, "--model and --data"), ("Net", None, "--data"), (None, "data", "--model")):
        status, out, _ = call(
            "evaluate", "--measures", "displacement_norm,hessian_trace,hessian_distance", model=model, data=data
        )
        assert status == 0 and words in out


def test_inspect(call, tmp_path):
    status, out, _ = call("inspect", "--measures", "hessian_trace,max_quadratic_form")
    assert status == 0 and not list(tmp_path.iterdir())
    assert "nets.py:Net" in out and "body.weight" in out and "no: Tanh" in out and "hessian_trace" in out
    status, out, _ = call("inspect", data=None)
    assert status == 0 and "--data" in out and "body.weight" in out


def test_list(capsys):
    assert main(["list"]) == 0
    both = capsys.readouterr().out
    assert all(name in both for name in [*QUANTITIES, *BOUNDS])
    assert main(["list", "bounds"]) == 0
    out = capsys.readouterr().out
    assert "hessian_distance" in out and "noise_stability" not in [line.split()[0] for line in out.splitlines()]


def test_a_directory_without_a_command(capsys):
    assert main([]) == 2
    assert "evaluate" in capsys.readouterr().out
    assert main(["--help"]) == 0 and main(["evaluate", "--help"]) == 0 and main(["--version"]) == 0
    capsys.readouterr()


def test_hardly_more_samples_than_asked_for_are_all_measured(call, tmp_path):
    """There are 20 samples: no more than 1.25 times 16, and more than 1.25 times 15."""
    for wanted, measured in (("16", 20), ("15", 15)):
        call("evaluate", *CHEAP, "--out", wanted, "--samples", wanted)
        assert json.loads((tmp_path / wanted / "results.json").read_text())["config"]["num_samples"] == measured


def test_config_file_and_command_line(call, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("measures: [losses, noise_stability]\nsigmas: [0.3]\nseed: 5\nbatch-size: 4\nsamples: 8\n")
    call("evaluate", "--config", file, "--out", "a", "--seed", "7")
    config = json.loads((tmp_path / "a" / "results.json").read_text())["config"]
    assert (config["seed"], config["num_samples"], config["batch_size"]) == (7, 8, 4)
    assert config["options"]["noise_stability"]["sigmas"] == [0.3]


def test_confusion_file(call, tmp_path):
    np.savetxt(tmp_path / "f.csv", np.full((3, 3), 0.1) + 0.7 * np.eye(3), delimiter=",")
    status, out, _ = call("evaluate", "--measures", "trace_distance,noisy_label_distance", "--confusion", "f.csv")
    assert status == 0 and "needs the label confusion" not in out


def test_interruption_keeps_what_is_finished(call, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("genbound.evaluation.loop.evaluate", interrupted)
    status, out, err = call("evaluate", *CHEAP)
    assert status == 130 and "interrupted" in err and out == ""


def test_sigterm_ends_with_a_word_on_how_to_continue(monkeypatch, capsys):
    def terminated(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("genbound.cli.main.select", terminated, raising=False)
    monkeypatch.setattr("genbound.evaluation.selection.select", terminated)
    monkeypatch.setattr("sys.argv", ["genbound", "evaluate", "a", "b"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run()
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capsys.readouterr()
    assert ended.value.code == 143 and out == ""
    assert len(err.splitlines()) == 1 and "terminated" in err and "--out" in err and "continues" in err


def test_help_lists_every_dtype(capsys):
    assert main(["evaluate", "--help"]) == 0
    assert f"[{'|'.join(DTYPES)}]" in capsys.readouterr().out


def test_a_tag_without_a_value_is_refused_before_anything_is_loaded(call):
    refused(call("evaluate", *CHEAP, "--tag", "lr", ckpt="nowhere"), "--tag 'lr'", "NAME=VALUE")


def test_measures_take_wildcards(call):
    status, out, _ = call("evaluate", "--measures", "distance_fro*,hessian_d*", "--json")
    assert status == 0
    assert set(json.loads(out)["bounds"]) == {"distance_frobenius", "hessian_distance"}
    refused(call("evaluate", "--measures", "hesian_*", ckpt="nowhere"), "hesian_*", "genbound list")
    refused(call("evaluate", "--measures", "hesian_trace", ckpt="nowhere"), "did you mean hessian_trace?")


def test_without_bounds_there_is_no_table(call):
    _, out, _ = call("evaluate", "--measures", "losses")
    assert "| bound" not in out and "\n\n\n" not in out and "layers" in out
    _, out, _ = call("evaluate", "--measures", "distance_frobenius", "--all")
    assert "| bound" in out and "\n\n\n" not in out


def test_long_times_are_hours():
    said = [_duration(seconds) for seconds in (0.5, 100, 600, 90 * 60, 91 * 60, 3 * 86400)]
    assert said == ["500 ms", "100 s", "10 min", "90 min", "1.5 h", "72.0 h"]


def test_debug_shows_the_traceback(call):
    status, _, err = call("evaluate", *CHEAP, "--debug", model="Broken")
    assert status == 2 and "Traceback" in err and err.strip().splitlines()[-1].startswith("genbound: error:")


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words"),
    [("Random", ["random"]), ("Stateful", ["state"]), ("Interacting", ["influence each other"]),
     ("Transposed", ["first axis"]), ("NoTensor", ["str", "logits"]), ("Broken", ["KeyError", "no such layer"]),
     ("Missing", ["Missing"]), ("Detached", ["gradient"])],
)  # fmt: skip
def test_models_that_cannot_be_measured(call, tmp_path, model, words):
    refused(call("evaluate", *CHEAP, "--out", "run", model=model), *words, folder=tmp_path / "run")


@pytest.mark.parametrize(
    ("data", "words"),
    [("out_of_range", ["out of range", "3 classes"]), ("empty", ["empty"]), ("float_labels", ["labels"]),
     ("wrong_width", ["the model cannot run"]), ("missing", ["missing"])],
)  # fmt: skip
def test_data_that_cannot_be_measured(call, tmp_path, data, words):
    refused(call("evaluate", *CHEAP, "--out", "run", data=data), *words, folder=tmp_path / "run")


def test_weights_that_cannot_be_measured(call):
    refused(call("evaluate", *CHEAP, ckpt="nan"), "fc.weight", "NaN")
    refused(call("evaluate", *CHEAP, init="nan"), "fc.weight", "NaN")
    refused(call("evaluate", *CHEAP, ckpt="nowhere"), "nowhere")


@pytest.mark.parametrize(
    "arguments",
    [["--measures", "hesian_trace"], ["--samples", "0"], ["--samples", "-3"], ["--samples", "many"],
     ["--batch-size", "0"], ["--num-data", "3"], ["--num-data", "0"], ["--sigmas", "0"], ["--sigmas", "a"],
     ["--sigmas", "0.2,0.1"], ["--sigmas", ""], ["--tolerance", "0"], ["--tolerance", "2"], ["--loss-range", "clip:0"],
     ["--loss-range", "clip"], ["--loss-range", "bounded:0.5"], ["--loss-range", "free"], ["--layers", "nothing*"],
     ["--head", "maybe"], ["--dtype", "float7"], ["--device", "abacus"], ["--device", "cuda:99"],
     ["--device", "cpu", "--device-map", "auto"], ["--loss", "hinge"],
     ["--config", "nowhere.yaml"], ["--confusion", "nowhere.csv"], ["--convention", "mine"], ["--delta", "2"],
     ["--delta", "0"], ["--paper-batch-size", "0"], ["--nonsense"], ["--seed", "x"], ["--time-budget", "-1"],
     ["--measures", ""], ["--loss", "squared_error"], ["--loss", "multi_label"]],
    ids=" ".join,
)  # fmt: skip
def test_arguments_that_make_no_sense(call, tmp_path, arguments):
    measures = [] if "--measures" in arguments else [*CHEAP[:1], CHEAP[1] + ",noise_stability"]
    refused(call("evaluate", *measures, *arguments, "--out", "run"), folder=tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "words"),
    [("sample: 3", ["unknown option", "sample"]), ("- a\n- b", ["name: value"]), ("a: [", ["YAML"]),
     ("samples: many", ["many"]), ("samples: [1, 2]", []), ("seed: true", []), ("debug: true", ["debug"]),
     ("", ["name: value"])],
)  # fmt: skip
def test_config_files_that_make_no_sense(call, tmp_path, content, words):
    (tmp_path / "c.yaml").write_text(content)
    refused(call("evaluate", *CHEAP, "--config", "c.yaml", "--out", "run"), *words, folder=tmp_path / "run")


def test_confusion_files_that_make_no_sense(call, tmp_path):
    np.savetxt(tmp_path / "small.csv", np.eye(2), delimiter=",")
    np.savetxt(tmp_path / "rows.csv", 2 * np.eye(3), delimiter=",")
    np.savetxt(tmp_path / "flat.csv", np.ones((2, 3)) / 3, delimiter=",")
    (tmp_path / "text.csv").write_text("a,b\nc,d\n")
    for name, word in (("small", "2 classes"), ("rows", "add up to 1"), ("flat", "square"), ("text", "matrix")):
        refused(call("evaluate", *CHEAP, "--confusion", f"{name}.csv", "--out", "run"), word, folder=tmp_path / "run")


def test_out_that_cannot_be_a_directory(call, tmp_path):
    (tmp_path / "run").write_text("a file")
    refused(call("evaluate", *CHEAP, "--out", "run"), "run")
    assert (tmp_path / "run").read_text() == "a file"
