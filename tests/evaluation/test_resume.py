"""A run that is killed continues from its finished parts and ends in the same numbers, bit for bit."""

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
from safetensors.torch import save_file

import genbound
from genbound.cli.main import main
from genbound.evaluation.stage import StoredContext

NET = """
import time, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.Tanh())
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        time.sleep({pause})
        return self.fc(self.body(x))

def make():
    return Net()

def data():
    stream = torch.Generator().manual_seed(0)
    return torch.randn(150, 4, generator=stream), torch.arange(150) % 3
"""
MEASURES = "losses,hessian_trace,noise_stability,max_quadratic_form,hessian_distance"


@pytest.fixture
def folder(tmp_path):
    def net(name, pause):
        (tmp_path / name).write_text(NET.format(pause=pause))

    net("nets.py", 0)
    sys.path.insert(0, str(tmp_path))
    try:
        import nets

        torch_state = torch.get_rng_state()
        torch.manual_seed(0)
        for file in ("tuned", "init"):
            save_file(nets.make().state_dict(), tmp_path / f"{file}.safetensors")
        torch.set_rng_state(torch_state)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("nets", None)
    return tmp_path


def arguments(folder, out, *more):
    return [
        "evaluate", str(folder / "tuned.safetensors"), str(folder / "init.safetensors"), "--model",
        f"{folder / 'nets.py'}:make", "--data", f"{folder / 'nets.py'}:data", "--out", str(out), "--samples", "150",
        "--dtype", "float64", "--measures", MEASURES, "--sigmas", "0.5,1", *more,
    ]  # fmt: skip


def stored(out):
    content = json.loads((out / "results.json").read_text())
    return content["quantities"], content["bounds"]


def stamps(out, quantity="*"):
    return {p: p.stat().st_mtime_ns for p in sorted(Path(out).glob(f"parts/{quantity}-*/summary.json"))}


def start(folder, out):
    environment = {**os.environ, "PYTHONPATH": str(Path(genbound.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "genbound", *arguments(folder, out)], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_when(process, ready, limit=60):
    begin = time.monotonic()
    while not ready():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() - begin < limit
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_runs_continue(folder, capsys):
    undisturbed, out = folder / "whole", folder / "killed"
    assert main(arguments(folder, undisturbed)) == 0
    parts = out / "parts"
    # Once in the middle of a quantity, once after the first ones are finished.
    kill_when(start(folder, out), lambda: list(parts.glob("hessian_trace-*/*-1.npz")) or stamps(out, "hessian_trace"))
    assert not (out / "results.json").exists()
    first = stamps(out, "losses")
    assert first
    kill_when(
        start(folder, out), lambda: list(parts.glob("noise_stability-*/*-1.npz")) or stamps(out, "noise_stability")
    )
    finished = stamps(out)
    assert first.items() <= finished.items() and len(finished) >= 2
    assert not (out / "results.json").exists()
    assert main(arguments(folder, out)) == 0
    assert stored(out) == stored(undisturbed)
    assert finished.items() <= stamps(out).items()  # nothing that was finished was measured again
    assert (out / "layers.csv").read_text() == (undisturbed / "layers.csv").read_text()
    assert not list(out.glob("parts/*/.*")) and not list(out.glob("parts/*/*-0.npz"))
    capsys.readouterr()


def stop_after(monkeypatch, num):
    """Press Ctrl-C when so many stages are computed."""
    computed, usual = [], StoredContext.map

    def counted(self, stage, items, function):
        if len(computed) == num:
            raise KeyboardInterrupt
        computed.append(stage)
        return usual(self, stage, items, function)

    monkeypatch.setattr(StoredContext, "map", counted)


def test_an_interrupted_run_prints_what_it_knows_and_continues(folder, monkeypatch, capsys):
    out = folder / "run"
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        assert main(arguments(folder, out)) == 130
    table, said = capsys.readouterr()
    assert "interrupted" in said and not (out / "results.json").exists()
    assert "150 training samples" in table and "noise_stability: not measured: the run was stopped before" in table
    before = stamps(out)
    assert 0 < len(before) < len(MEASURES.split(",")) - 1
    assert main(arguments(folder, out)) == 0
    assert "the run was stopped before" not in capsys.readouterr().out
    assert before.items() <= stamps(out).items()


def test_a_run_that_is_stopped_before_anything_is_known_prints_nothing(folder, monkeypatch, capsys):
    stop_after(monkeypatch, 0)
    assert main(arguments(folder, folder / "run")) == 130
    assert capsys.readouterr().out == ""


def test_parts_of_another_configuration_are_never_read(folder, capsys):
    out, measures = folder / "run", ("--measures", "losses,hessian_trace,max_quadratic_form")
    assert main(arguments(folder, out, *measures)) == 0
    first, before = stored(out), stamps(out)
    assert main(arguments(folder, out, *measures, "--seed", "1", "--samples", "40")) == 0
    fresh = folder / "fresh"
    assert main(arguments(folder, fresh, *measures, "--seed", "1", "--samples", "40")) == 0
    assert stored(out) == stored(fresh) != first
    assert main(arguments(folder, out, *measures)) == 0
    assert stored(out) == first and before.items() <= stamps(out).items()
    capsys.readouterr()


def test_changing_the_sigmas_measures_the_noise_stability_alone(folder, capsys):
    out = folder / "run"
    assert main(arguments(folder, out)) == 0
    before = stamps(out)
    assert main([*arguments(folder, out), "--sigmas", "0.7"]) == 0
    after = stamps(out)
    new = [path.parent.name.rpartition("-")[0] for path in after if path not in before]
    assert new == ["noise_stability"] and before.items() <= after.items()
    assert [row["sigma"] for row in stored(out)[0]["noise_stability"]["sigmas"]] == [0.7]
    capsys.readouterr()


@pytest.mark.parametrize(
    "change", [("--loss-range", "clip:1"), ("--dtype", "float32"), ("--layers", "body.*"), ("--num-data", "900")]
)
def test_whatever_changes_a_number_changes_where_its_parts_lie(folder, capsys, change):
    out = folder / "run"
    assert main([*arguments(folder, out), "--measures", "hessian_trace"]) == 0
    before = stamps(out)
    assert main([*arguments(folder, out), "--measures", "hessian_trace", *change]) == 0
    assert len(stamps(out)) == 2 * len(before)
    capsys.readouterr()


def test_changed_files_are_measured_again(folder, capsys):
    out = folder / "run"
    assert main([*arguments(folder, out), "--measures", "losses"]) == 0
    first = stored(out)
    (folder / "nets.py").write_text(NET.format(pause=0).replace("manual_seed(0)", "manual_seed(1)"))
    assert main([*arguments(folder, out), "--measures", "losses"]) == 0
    assert stored(out) != first
    capsys.readouterr()


def test_who_else_is_drawn_and_whose_samples_they_are_is_part_of_what_was_measured():
    model, samples = torch.nn.Linear(4, 3), (torch.randn(12, 4), torch.arange(12) % 3)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def digest(**arguments):
        return genbound.Problem(model, init, samples, num_data=12, **arguments).digests()[False]

    assert digest() == digest(sample_seed=0, other_samples=False)
    assert len({digest(), digest(sample_seed=1), digest(other_samples=True)}) == 3  # of the same 12 samples


def test_a_time_budget_keeps_what_is_finished(folder, capsys):
    out = folder / "run"
    assert main([*arguments(folder, out), "--time-budget", "0"]) == 0
    quantities, bounds = stored(out)
    assert "hessian_trace" not in quantities and "budget" in bounds["hessian_distance"]["note"]
    assert main(arguments(folder, out)) == 0
    assert main(arguments(folder, folder / "whole")) == 0
    assert stored(out) == stored(folder / "whole")
    capsys.readouterr()


def test_the_cost_counts_all_calls(folder, capsys):
    """A run with no time left, the one that goes on, and one that finds everything: the total never falls."""
    out = folder / "run"
    assert main(arguments(folder, out, "--measures", "losses,hessian_trace")) == 0
    first = json.loads((out / "results.json").read_text())["cost"]["seconds"]
    assert main(arguments(folder, out, "--measures", "losses,hessian_trace")) == 0
    again = json.loads((out / "results.json").read_text())["cost"]["seconds"]
    assert again["hessian_trace"] == first["hessian_trace"] and again["total"] > first["hessian_trace"]
    capsys.readouterr()


def test_parts_of_a_killed_run_count(folder, capsys):
    """What the store was told of earlier calls is added to what this one takes."""
    from genbound.evaluation.store import DiskStore

    store = DiskStore(folder / "run", "hessian_trace", "a" * 64)
    store.save_part("pilot-0", {"x": np.zeros(1)})
    store.spend(5.25)
    assert DiskStore(folder / "run", "hessian_trace", "a" * 64).spent() == 5.25
    (store.folder / "seconds").write_text("not a number")
    assert store.spent() == 0.0
