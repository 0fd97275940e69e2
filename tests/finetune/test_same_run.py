"""A run is found again and read again as what it was: its samples, what decides it, and how far it had come."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import genbound
from genbound.errors import GenboundError
from genbound.finetune.settings import Settings

pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate")
from genbound.finetune import finetune  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
"""


def write_samples(file, seed, count=60):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=stream)
    y = (x[:, :3] + 0.3 * torch.randn(count, 3, generator=stream)).argmax(1)
    np.savez(file, x=x.numpy(), y=y.numpy())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The present directory: samples, a pretrained checkpoint and the network's code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NET)
    write_samples("train.npz", 0)
    write_samples("test.npz", 1)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    save_file(net.state_dict(), "init.safetensors")
    return tmp_path


def run(out, at="", num_classes=None, test="test.npz", **options):
    settings = Settings(**{"epochs": 2, "batch_size": 16, "lr": 0.01} | options)
    return finetune(
        f"{at}init.safetensors", f"npz:{at}train.npz", out, model=f"{at}nets.py:make", test_data=f"npz:{at}{test}",
        num_classes=num_classes, settings=settings,
    )  # fmt: skip


def weights(out):
    return load_file(os.path.join(out, "finetuned", "model.safetensors"))


def same(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_its_samples_are_found_from_elsewhere_and_others_are_refused(folder, monkeypatch):
    run("out")
    here = genbound.load("out/finetuned", trust_remote_code=True)
    (folder / "elsewhere").mkdir()
    write_samples("elsewhere/train.npz", 5)
    monkeypatch.chdir("elsewhere")
    there = genbound.load("../out/finetuned", trust_remote_code=True)
    assert there.data.digest() == here.data.digest()
    # A record of before says the place as it was given: whatever lies there now is compared.
    file = folder / "out" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": "npz:train.npz"}))
    with pytest.raises(GenboundError, match="holds other samples than the run in"):
        genbound.load("../out/finetuned", trust_remote_code=True)
    monkeypatch.chdir(folder)
    assert genbound.load("out/finetuned", trust_remote_code=True).data.digest() == here.data.digest()


def test_a_missing_file_is_named_as_it_was_given(folder):
    with pytest.raises(GenboundError, match="no data file 'none.npz'; check the path in 'npz:none.npz'"):
        run("out", test="none.npz")


class Killed(BaseException):
    pass


def killed(monkeypatch, step, out, **options):
    """The run, killed behind the checkpoint of a step, or for ``None`` when all is trained."""
    from genbound.finetune import run as run_module
    from genbound.finetune.trainer import Marks

    def on_save(self, args, state, control, **kwargs):
        mark(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise Killed

    def save_network(model, place, start):
        if step is None and place.name == "finetuned":
            raise Killed
        save(model, place, start)

    mark, save = Marks.on_save, run_module.save_network
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Marks, "on_save", on_save)
        patch.setattr(run_module, "save_network", save_network)
        run(out, **options)


NOISY = {
    "lr": 0.03, "epochs": 30, "validation": 0.3, "noise": "symmetric:0.3", "schedule": "constant", "early_stopping": 2,
    "seed": 7,
}  # fmt: skip


def test_early_stopping_goes_on_counting(folder, monkeypatch):
    whole = run("whole", **NOISY)
    epochs = int(whole["epochs_run"])
    assert 3 <= epochs < 30
    for step in (3 * (epochs - 1), 3 * epochs, None):  # an epoch before it stops; at the stop; when all is trained
        out = f"out{step}"
        killed(monkeypatch, step, out, **NOISY)
        again = run(out, **NOISY)
        assert (again["epochs_run"], again["accuracy"]) == (epochs, whole["accuracy"]) and same(out, "whole")


def test_the_best_epoch_is_found_from_elsewhere(folder, monkeypatch):
    options = NOISY | {"epochs": 6, "early_stopping": 20, "at": f"{folder}/"}
    whole = run("whole", **options)
    assert whole["accuracy"]["validation"] == pytest.approx(whole["best_accuracy"])
    killed(monkeypatch, 18, "out", **options)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run("../out", **options)["accuracy"] == whole["accuracy"] and same("../out", "../whole")


@pytest.mark.parametrize(("save_steps", "step"), [(3, 3), (2, 4), (2, 9)])
def test_weights_and_history_do_not_show_that_a_run_was_continued(folder, monkeypatch, save_steps, step):
    """From the end of an epoch, from within one, and from the last step; validation and dropout draw numbers."""
    (folder / "nets.py").write_text(NET.replace("nn.ReLU()", "nn.Sequential(nn.ReLU(), nn.Dropout(0.3))"))
    options = {"epochs": 3, "validation": 0.2, "save_steps": save_steps}
    whole = run("whole", **options)
    killed(monkeypatch, step, "out", **options)
    again = run("out", **options)
    assert again["history"] == whole["history"] and len(whole["history"]) == 6 and same("out", "whole")


@pytest.mark.parametrize("batch_size", [16, 60], ids=["within", "with the last step"])
def test_a_run_that_diverges_says_so_and_leaves_no_network(folder, batch_size):
    with pytest.raises(GenboundError, match="the training has diverged .its .*: lower --lr"):
        run("out", lr=1e38, clip=0, schedule="constant", epochs=1, batch_size=batch_size)
    assert not (folder / "out" / "finetuned").exists()


def loss_of(out):
    stored, data = np.load(os.path.join(out, "labels.npz")), np.load("train.npz")
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    net.load_state_dict(weights(out))
    x, y = torch.from_numpy(data["x"][stored["train"]]), torch.from_numpy(stored["observed"][stored["train"]])
    return torch.nn.functional.cross_entropy(net(x), y).item()


@pytest.mark.parametrize("epochs", [40, 3])
def test_a_run_that_has_stopped_at_its_loss_does_not_train_on(folder, monkeypatch, epochs):
    """Also where it got there with its very last step."""
    run("before", epochs=3, schedule="constant")
    options = {"epochs": epochs, "stop_loss": 0.5 if epochs == 40 else loss_of("before") + 1e-6, "schedule": "constant"}
    whole = run("whole", **options)
    assert whole["stop_loss_reached"] and whole["steps"] < 160 and (epochs == 40 or whole["steps"] == 12)
    killed(monkeypatch, None, "out", **options)
    again = run("out", **options)
    assert (again["steps"], again["stop_loss_reached"]) == (whole["steps"], True) and same("out", "whole")


def test_with_early_stopping_the_network_that_reached_the_loss_is_kept(folder):
    record = run("out", **NOISY | {"epochs": 60, "early_stopping": 50, "stop_loss": 0.4})
    assert record["stop_loss_reached"] and record["best_accuracy"] > record["accuracy"]["validation"]
    assert loss_of("out") <= 0.4


def test_what_decides_the_result_is_compared(folder):
    np.savetxt("F.csv", np.full((3, 3), 0.1) + 0.7 * np.eye(3), delimiter=",")
    run("out", num_classes=3, confusion="F.csv")
    stamp = os.stat("out/finetuned").st_mtime_ns
    run("out", confusion="F.csv")  # of as many classes as the labels show
    np.savetxt("F.csv", np.full((3, 3), 0.2) + 0.4 * np.eye(3), delimiter=",")
    with pytest.raises(GenboundError, match="holds a run with other settings .matrix: "):
        run("out", confusion="F.csv")
    np.savetxt("F.csv", np.full((3, 3), 0.1) + 0.7 * np.eye(3), delimiter=",")
    (folder / "nets.py").write_text(NET.replace("ReLU", "Tanh"))
    with pytest.raises(GenboundError, match="holds a run with other settings .code: "):
        run("out", confusion="F.csv")
    (folder / "nets.py").write_text(NET)
    with pytest.raises(GenboundError, match="num_classes: 3 -> 4"):
        run("out", num_classes=4)
    # A run of before had not said these.
    file = folder / "out" / "settings.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({name: said[name] for name in said if name not in ("num_classes", "matrix", "code")}))
    run("out", confusion="F.csv")
    assert os.stat("out/finetuned").st_mtime_ns == stamp


@pytest.mark.parametrize("options", [{"radius": "auto"}, {"confusion": "anchor"}], ids=str)
def test_it_is_continued_from_another_directory(folder, monkeypatch, options):
    """Where files of the run and the network's own have other names."""
    options = options | {"epochs": 1, "noise": "symmetric:0.2"}
    killed(monkeypatch, None, "out", **options)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run("../out", at="../", **options)
    assert (folder / "out" / "run.json").exists()


def test_what_is_damaged_is_told_and_what_is_lost_is_made_again(folder):
    import shutil

    run("out")
    run("again")
    shutil.rmtree("out/finetuned")
    run("out")
    assert same("out", "again")
    (folder / "out" / "settings.json").write_text('{"epochs"')
    with pytest.raises(GenboundError, match="settings.json' cannot be read"):
        run("out")


def test_one_run_writes_to_a_folder_at_a_time(folder):
    from concurrent.futures import ThreadPoolExecutor

    from genbound.engines.run_directory import writing_to

    with writing_to("out"), ThreadPoolExecutor(1) as other:
        with pytest.raises(GenboundError, match="another run is writing to"):
            other.submit(run, "out").result()
    run("out")
    assert not {".lock", "parts"} & set(os.listdir("out"))


@pytest.mark.parametrize("options", [{"sam": 0.05}, {"noise_stability": 0.05}, {}], ids=str)
def test_both_passes_of_a_perturbed_step_mix_alike(folder, monkeypatch, options):
    from genbound.finetune import trainer

    drawn = []

    def mix(*args):
        drawn.append(args[-1])
        return mixed(*args)

    mixed = trainer.mix
    monkeypatch.setattr(trainer, "mix", mix)
    steps = run("out", mixup=0.5, **options)["steps"]
    passes = 2 if options else 1
    assert len(drawn) == passes * steps
    assert all(one is two for one, two in zip(drawn[::passes], drawn[passes - 1 :: passes], strict=True))
    assert len({one.share for one in drawn}) == steps
