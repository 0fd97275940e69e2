"""A run from files to files: options, records, resume, and what `evaluate` makes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import genbound
from genbound.cli.main import main
from genbound.errors import GenboundError

pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NET = """
import os, time
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU()
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        time.sleep(float(os.environ.get("PAUSE", 0)) * self.training)
        return self.fc(self.body(x))

def make():
    return Net()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NET)
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(90, 6, generator=stream)
    y = (x[:, :3] + 0.3 * torch.randn(90, 3, generator=stream)).argmax(1)
    np.savez(tmp_path / "train.npz", x=x[:60].numpy(), y=y[:60].numpy())
    np.savez(tmp_path / "test.npz", x=x[60:].numpy(), y=y[60:].numpy())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU())
    save_file({f"body.{name}": value for name, value in body.state_dict().items()}, tmp_path / "init.safetensors")
    return tmp_path


def arguments(folder, out, *more):
    return [
        "finetune", str(folder / "init.safetensors"), "--model", f"{folder / 'nets.py'}:make",
        "--data", f"npz:{folder / 'train.npz'}", "--test-data", f"npz:{folder / 'test.npz'}", "--out", str(out),
        "--epochs", "3", "--batch-size", "16", "--lr", "0.05", *more,
    ]  # fmt: skip


def weights(out):
    return load_file(Path(out) / "finetuned" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def record(out):
    return json.loads((Path(out) / "run.json").read_text())


def test_a_run_and_its_evaluation(folder, capsys):
    out = folder / "run"
    assert main(arguments(folder, out, "--noise", "symmetric:0.4", "--confusion", "known", "--radius", "0.3")) == 0
    assert "test accuracy" in capsys.readouterr().out
    run = record(out)
    assert max(run["distances"][f"body.{i}.weight"] for i in (0, 4)) <= 0.3
    assert run["distances"]["body.0.weight"] == pytest.approx(0.3, rel=1e-3)
    start = load_file(out / "pretrained" / "model.safetensors")
    pretrained = load_file(folder / "init.safetensors")
    assert all(torch.equal(start[name], value) for name, value in pretrained.items() if name in start)
    for name in ("body.0.weight", "body.4.weight", "fc.weight"):
        assert (weights(out)[name].double() - start[name].double()).norm() <= 0.3
    with np.load(out / "labels.npz") as stored:
        assert run["noise_rate"] == pytest.approx((stored["observed"] != stored["given"]).mean())
        assert 0.2 < run["noise_rate"] < 0.6
    # The sidecar knows the model, INIT, and the samples with the labels that were trained on.
    assert (
        main(
            [
                "evaluate",
                str(out / "finetuned"),
                "--measures",
                "losses,displacement_norm",
                "--out",
                str(folder / "measured"),
            ]
        )
        == 0
    )
    measured = json.loads((folder / "measured" / "results.json").read_text())
    said = f"{run['noise_rate']:.1%} of the labels were flipped for the training: "
    assert any(remark.startswith(said) for remark in measured["config"]["remarks"])
    measured = measured["quantities"]
    assert measured["losses"]["train_error"] == pytest.approx(1 - run["accuracy"]["train_observed"])
    assert measured["losses"]["test_error"] == pytest.approx(1 - run["accuracy"]["test"])
    for name, value in run["distances"].items():
        assert measured["displacement_norm"]["layers"][name]["value"] == pytest.approx(value, rel=1e-5)


def test_no_noise_and_no_bound_is_plain_fine_tuning_bit_for_bit(folder, capsys):
    np.savetxt(folder / "identity.csv", np.eye(3), delimiter=",")
    for name, more in {
        "plain": (),
        "robust": ("--radius", "inf", "--confusion", str(folder / "identity.csv"), "--norm-layers", "inf"),
        "mars": ("--radius", "inf", "--norm", "mars", "--confusion", "symmetric:0", "--correction", "forward"),
        "baselines": ("--mixup", "0", "--label-smoothing", "0", "--weight-decay", "0", "--distance-penalty", "0"),
    }.items():
        assert main(arguments(folder, folder / name, *more)) == 0
    assert all(same(weights(folder / "plain"), weights(folder / name)) for name in ("robust", "mars", "baselines"))
    assert main(arguments(folder, folder / "seed", "--seed", "1")) == 0
    assert not same(weights(folder / "plain"), weights(folder / "seed"))
    capsys.readouterr()


BASELINES = [
    ("--sam", "0.05"),
    ("--noise-stability", "0.05"),
    ("--mixup", "0.5"),
    ("--weight-decay", "0.5"),
    ("--label-smoothing", "0.2"),
    ("--distance-penalty", "0.5"),
    ("--validation", "0.25", "--early-stopping", "1"),
    ("--accumulation", "2", "--precision", "bfloat16", "--radius", "0.2", "--norm", "mars"),
    ("--noise", "symmetric:0.3", "--confusion", "dual-t", "--estimation-epochs", "1", "--head-radius", "0.4"),
    (
        "--radius",
        "body.*=10%,fc.*=0.2",
        "--radius-scale",
        "0.5",
        "--correction",
        "forward",
        "--confusion",
        "symmetric-redraw:0.2",
    ),
]


@pytest.mark.parametrize("more", BASELINES, ids=lambda more: more[0].lstrip("-"))
def test_every_baseline_changes_the_result_and_repeats(folder, capsys, more):
    assert main(arguments(folder, folder / "plain")) == 0
    for name in ("once", "again"):
        assert main(arguments(folder, folder / name, *more)) == 0
    assert same(weights(folder / "once"), weights(folder / "again"))
    assert not same(weights(folder / "once"), weights(folder / "plain"))
    capsys.readouterr()


def test_adapters(folder, capsys):
    pytest.importorskip("peft", reason="needs PEFT")
    out = folder / "lora"
    assert main(arguments(folder, out, "--lora", "2", "--radius", "0.2", "--head-radius", "0.5")) == 0
    start, end = load_file(out / "pretrained" / "model.safetensors"), weights(out)
    assert start.keys() == end.keys()
    for name in ("body.0.weight", "body.4.weight"):
        v = end[name].double() - start[name].double()
        assert 0 < v.norm() <= 0.2 and torch.linalg.matrix_rank(v, rtol=1e-4) <= 2
    assert 0 < end["fc.weight"].double().norm() <= 0.5
    assert not torch.equal(start["body.1.running_mean"], end["body.1.running_mean"])  # adapters keep the statistics too
    capsys.readouterr()


def test_the_radius_is_chosen_on_held_out_observed_labels(folder, capsys):
    out = folder / "auto"
    arguments_of_run = arguments(folder, out, "--noise", "symmetric:0.3", "--confusion", "known", "--radius", "auto")
    assert main(arguments_of_run) == 0
    assert "radius, head radius" in capsys.readouterr().out
    run = record(out)
    trials = {path.parent.name: json.loads(path.read_text()) for path in out.glob("search/*/run.json")}
    assert len(trials) == len(run["radius_search"]) == 4
    with np.load(out / "labels.npz") as whole:
        for trial in trials.values():
            name = f"{trial['settings']['radius']}, head {trial['settings']['head_radius']:g}"
            assert run["radius_search"][name] == trial["accuracy"]["validation"]
            assert trial["num_held_out"] == 12 and trial["confusion"] == run["confusion"]
        for file in out.glob("search/*/labels.npz"):
            with np.load(file) as part:
                assert (part["observed"] == whole["observed"]).all()
    best = max(run["radius_search"].values())
    chosen = f"{run['settings']['radius']}, head {run['settings']['head_radius']:g}"
    assert run["radius_search"][chosen] == best and run["num_train"] == 60
    # It is the run that the chosen radii give when they are named.
    named = folder / "named"
    more = ("--radius", run["settings"]["radius"], "--head-radius", str(run["settings"]["head_radius"]))
    assert main(arguments(folder, named, "--noise", "symmetric:0.3", "--confusion", "known", *more)) == 0
    assert same(weights(out), weights(named))
    assert main(arguments_of_run) == 0  # and it is found again
    capsys.readouterr()


def test_runs_inside_a_run_leave_out_what_is_not_theirs(folder, capsys):
    """The run that F is estimated from has no F, and the trials of the radius read theirs."""
    more = ("--radius", "auto", "--radius-scale", "0.5", "--confusion", "dual-t", "--estimation-epochs", "1")
    assert main(arguments(folder, folder / "auto", *more, "--correction", "forward", "--epochs", "1")) == 0
    settings = record(folder / "auto")["settings"]
    assert (settings["radius_scale"], settings["estimation_epochs"], settings["correction"]) == (0.5, 1, "forward")
    trials = [json.loads(path.read_text())["settings"] for path in (folder / "auto").glob("search/*/run.json")]
    assert [(t["radius_scale"], t["correction"]) for t in trials] == 4 * [(0.5, "forward")]
    capsys.readouterr()


def test_early_stopping_keeps_the_best_epoch(folder, capsys):
    out = folder / "stopped"
    assert (
        main(arguments(folder, out, "--validation", "0.25", "--early-stopping", "2", "--epochs", "30", "--lr", "0.5"))
        == 0
    )
    run = record(out)
    seen = [row["eval_accuracy"] for row in run["history"] if "eval_accuracy" in row]
    assert run["epochs_run"] < 30 and len(seen) == run["epochs_run"]
    assert run["accuracy"]["validation"] == pytest.approx(max(seen))
    assert (run["num_train"], run["num_held_out"]) == (45, 15)
    capsys.readouterr()


@pytest.mark.parametrize(
    "more",
    [
        ("--save-steps", "3"),
        ("--sam", "0.05", "--radius", "0.2"),
        ("--lora", "2", "--mixup", "0.5", "--save-steps", "5"),
        ("--group-by-length", "--batch-size", "16", "--save-steps", "3"),
    ],
)
@pytest.mark.slow
def test_killed_runs_continue_to_the_same_checkpoint(folder, capsys, more):
    if "--lora" in more:
        pytest.importorskip("peft", reason="needs PEFT")
    assert main(arguments(folder, folder / "whole", "--epochs", "6", *more)) == 0
    out = folder / "killed"
    command = arguments(folder, out, "--epochs", "6", *more)
    package = str(Path(genbound.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1", "PAUSE": "0.1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "genbound", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    begin = time.monotonic()
    while not list(out.glob("checkpoints/checkpoint-*/whole")):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() - begin < 120
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "run.json").exists()
    # A checkpoint that was being written when the process died is not continued from.
    half = out / "checkpoints" / "checkpoint-99"
    half.mkdir()
    (half / "trainer_state.json").write_text("{}")
    assert main(command) == 0
    assert same(weights(folder / "whole"), weights(out)) and not half.exists()
    assert record(out)["accuracy"] == record(folder / "whole")["accuracy"]
    capsys.readouterr()


def test_a_finished_run_is_not_repeated_and_another_is_refused(folder, capsys):
    out = folder / "run"
    assert main(arguments(folder, out)) == 0
    stamp = (out / "finetuned" / "model.safetensors").stat().st_mtime_ns
    settings = json.loads((out / "settings.json").read_text())
    del settings["group_by_length"]  # as a version without this option wrote it
    (out / "settings.json").write_text(json.dumps(settings))
    assert main(arguments(folder, out)) == 0
    assert (out / "finetuned" / "model.safetensors").stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert main(arguments(folder, out, "--lr", "0.01")) == 2
    error = capsys.readouterr().err
    assert "other settings (lr: 0.05 -> 0.01)" in error and len(error.splitlines()) == 1
    assert (
        main(arguments(folder, out, "--test-data", f"npz:{folder / 'train.npz'}")) == 2
    )  # its accuracy would be another
    assert "test_data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--radius", "far"), "--radius 'far'"),
        (("--radius", "nothing.*=1"), "fits no weight"),
        (("--noise", "symmetric:lots"), "symmetric:0.4"),
        (("--confusion", "symmetric:0.6666666666666666"), "singular"),
        (("--confusion", "known"), "--noise"),
        (("--sam", "0.1", "--noise-stability", "0.1"), "choose one"),
        (("--early-stopping", "2"), "--validation"),
        (("--radius-scale", "0.1"), "--radius-scale is of the radii that --radius gives"),
        (("--correction", "forward"), "add --confusion"),
        (("--confusion", "symmetric:0.1", "--estimation-epochs", "7"), "anchor and dual-t"),
        (("--prior-share", "0.5"), "--prior-share is of the certificate: add --certify"),
        (("--delta", "0.05"), "--delta is of the certificate: add --certify"),
        (("--norm-layers", "0.1", "--trained", "head"), "--trained head leaves all normalisation layers"),
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("--schedule", "zigzag"), "--schedule"),
        (("--classes", "2"), "--classes 2"),
        (("--noise", "labels:none.npy"), "none.npy"),
        (("--confusion", "none.csv"), "none.csv"),
        (("--validation", "0.001"), "--validation"),
        (("--seed", "-1"), "--seed must be 0 or more"),
        (("--device", "xyz"), "device 'xyz' is none that torch knows"),
        (("--device", "meta"), "device 'meta' cannot be used here"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, more, words):
    assert main(arguments(folder, folder / "run", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("genbound: error:") and words in error and len(error.splitlines()) == 1


HIDDEN = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.first, self.fc = nn.Linear(8, 3), nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.fc(self.first(x).relu()).relu())

def make():
    return Net()
"""


def test_the_head_is_what_gives_the_scores(folder, capsys):
    """Neither the layer with a usual name, nor the one that was registered last; unless the option says so."""
    (folder / "nets.py").write_text(HIDDEN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.ModuleDict({"first": nn.Linear(6, 8), "fc": nn.Linear(8, 8)})
    save_file(body.state_dict(), folder / "init.safetensors")  # without the head, which is drawn
    moved = {}
    for name, more in {"found": (), "said": ("--head-weights", "fc.*,out.*")}.items():
        assert main(arguments(folder, folder / name, "--trained", "head", *more)) == 0
        start, end = load_file(folder / name / "pretrained" / "model.safetensors"), weights(folder / name)
        moved[name] = [key for key in record(folder / name)["head"] if not torch.equal(start[key], end[key])]
        assert all(torch.equal(start[key], end[key]) for key in start if key not in moved[name])
    assert moved == {"found": ["out.weight", "out.bias"], "said": ["out.weight", "out.bias", "fc.weight", "fc.bias"]}
    assert "head_weights: fc.*,out.*" in (folder / "said" / "finetuned" / "genbound.yaml").read_text()
    assert main(arguments(folder, folder / "run", "--head-weights", "nothing.*")) == 2
    assert "--head-weights 'nothing.*' matches no weight" in capsys.readouterr().err
    free = ("--radius", "1%", "--head-radius", "0.4")
    assert main(arguments(folder, folder / "near", *free)) == 0
    distances = record(folder / "near")["distances"]
    assert distances["fc.weight"] <= 0.01 * body["fc"].weight.norm() and 0 < distances["out.weight"] <= 0.4
    capsys.readouterr()


def test_a_radius_of_what_the_network_does_not_have_leaves_no_run_behind(folder, capsys):
    (folder / "nets.py").write_text("from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(6, 3))\n")
    save_file(nn.Sequential(nn.Linear(6, 3)).state_dict(), folder / "init.safetensors")
    assert main(arguments(folder, folder / "run", "--norm-layers", "0.1")) == 2
    assert "no normalisation layer" in capsys.readouterr().err
    assert main(arguments(folder, folder / "run")) == 0
    capsys.readouterr()


def test_an_init_of_another_network(folder, capsys):
    save_file({"body.0.weight": torch.zeros(8, 7)}, folder / "init.safetensors")
    assert main(arguments(folder, folder / "run")) == 2
    assert "INIT" in capsys.readouterr().err
    (folder / "init.safetensors").unlink()
    assert main(arguments(folder, folder / "run")) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_from_python_it_leaves_the_random_state_alone(folder):
    from genbound.finetune import Settings, finetune

    before = torch.get_rng_state()
    x, y = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    sys.path.insert(0, str(folder))
    try:
        import nets

        run = finetune(
            folder / "init.safetensors",
            (x, y),
            folder / "run",
            model=nets.make,
            test_data=(x, y),
            settings=Settings(epochs=1),
        )
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("nets", None)
    assert torch.equal(before, torch.get_rng_state())
    assert "0x" not in run["rule"]  # another process must find the same run again
    assert run["accuracy"]["test"] == run["accuracy"]["train_observed"]
    with pytest.raises(GenboundError, match="classification"):
        finetune(folder / "init.safetensors", (x, x[:, 0]), folder / "other", settings=Settings(epochs=1))
