"""Every stored file, damaged in every way that a disk knows: the numbers are the same, and the user is told."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from stored_run import arguments, write_files
from torch import nn

import genbound
from genbound.cli.main import main
from genbound.evaluation.sealed import NOTHING, Damaged, read_part, write_part
from genbound.evaluation.stage import open_store

MEASURES = ["losses", "displacement_norm", "hessian_trace", "noise_stability"]


def make_problem():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(12, 3).double()
        init = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    return genbound.Problem(model, init, (x, torch.arange(12) % 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``(problem, directory of its finished run, what was found)``."""
    problem, out = make_problem(), tmp_path_factory.mktemp("run")
    results = genbound.evaluate(problem, MEASURES, out=out)
    results.save(out)
    return problem, out, results


def flipped(raw: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(raw))
    return raw[:place] + bytes([raw[place] ^ (1 << rng.randrange(8))]) + raw[place + 1 :]


DAMAGES = {
    "a flipped bit": flipped,
    "cut": lambda raw, rng: raw[: rng.randrange(len(raw) - 1)],  # by two bytes or more: the last may be a line's end
    "empty": lambda raw, rng: b"",
    "zeros in the middle": lambda raw, rng: raw[: len(raw) // 3] + bytes(len(raw) // 3) + raw[len(raw) // 3 * 2 :],
    "longer": lambda raw, rng: raw + raw[-20:],
    "something else": lambda raw, rng: rng.randbytes(100),
    "absent": None,
}


def damage(path: Path, name: str, rng: random.Random) -> None:
    change = DAMAGES[name]
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes(), rng))


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_parts_are_measured_again_and_named(run, tmp_path, name, capsys):
    problem, finished, results = run
    rng = random.Random(name)
    for file in sorted(finished.glob("parts/*/*")):
        out = tmp_path / f"{file.parent.name}-{file.name}"
        shutil.copytree(finished, out)
        damage(out / file.relative_to(finished), name, rng)
        assert genbound.evaluate(problem, MEASURES, out=out).quantities == results.quantities
        told = capsys.readouterr().err.splitlines()
        if name == "absent" and file.name == "summary.json":  # it says that the quantity is done: nothing was
            assert not told
        else:
            assert len(told) == 1 and "measured again" in told[0] and str(out / file.relative_to(finished)) in told[0]
        assert genbound.evaluate(problem, MEASURES, out=out).quantities == results.quantities
        assert not capsys.readouterr().err


def test_damaged_answers_are_written_again(run, tmp_path, capsys):
    problem, finished, results = run
    shutil.copytree(finished, tmp_path / "run")
    (answers,) = (tmp_path / "run").glob("parts/answers-*")
    damage(answers, "a flipped bit", random.Random(0))
    assert genbound.evaluate(problem, MEASURES, out=tmp_path / "run").quantities == results.quantities
    assert "written again" in capsys.readouterr().err


def test_files_that_changed_places_are_damaged(run, tmp_path, capsys):
    problem, finished, results = run
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    one, other = (next(out.glob(f"parts/{name}-*/summary.json")) for name in ("hessian_trace", "losses"))
    texts = one.read_text(), other.read_text()
    one.write_text(texts[1])
    other.write_text(texts[0])
    assert genbound.evaluate(problem, MEASURES, out=out).quantities == results.quantities
    assert capsys.readouterr().err.count("measured again") == 2


def test_a_damaged_part_of_a_stage_is_computed_again(tmp_path, capsys):
    store = open_store(tmp_path, "losses", "digest")
    store.save_part("train-0", {"x": torch.ones(3).numpy()})
    path = next(tmp_path.glob("parts/*/train-0.npz"))
    for seed in range(50):
        raw = path.read_bytes()
        path.write_bytes(flipped(raw, random.Random(seed)))
        assert store.part("train-0") is None and "train-0.npz is damaged" in capsys.readouterr().err
        path.write_bytes(raw)
    assert store.part("train-0")["x"].tolist() == [1, 1, 1]
    assert store.part("train-0", behind="1" * 64) is None  # it was planned by other findings: no damage


def test_a_part_is_an_archive_for_everybody(tmp_path):
    import numpy as np

    write_part(tmp_path / "a.npz", {"x": np.arange(3)}, "here")
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["x"].tolist() == [0, 1, 2]
    assert read_part(tmp_path / "a.npz", "here")[1] == NOTHING
    with pytest.raises(Damaged):
        read_part(tmp_path / "a.npz", "there")


def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    write_files(tmp_path)
    out = tmp_path / "run"
    assert main(arguments(tmp_path, out)) == 0
    before = json.loads((out / "results.json").read_text())["quantities"]
    samples = next(out.glob("parts/hessian_trace-*/samples.npz"))
    samples.unlink()
    capsys.readouterr()
    assert main(arguments(tmp_path, out)) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("genbound: ")]
    assert len(warned) == 1 and str(samples) in warned[0]
    assert json.loads((out / "results.json").read_text())["quantities"] == before


def test_later_stages_belong_to_the_earlier_ones(tmp_path):
    """A pilot that was damaged and comes out otherwise plans other draws: those that were stored are not among them."""
    from genbound.evaluation.stage import StoredContext

    def stages(first):
        context = StoredContext("losses", 0, None, {}, open_store(tmp_path, "losses", "digest"))
        called = []
        context.map("pilot", [0], lambda _: {"x": torch.tensor([first]).numpy()})
        context.map("draws", [0, 1], lambda item: called.append(item) or {"x": torch.tensor([first * item]).numpy()})
        return called

    assert stages(2.0) == [0, 1] and stages(3.0) == []  # the pilot is stored
    next(tmp_path.glob("parts/*/pilot-0.npz")).unlink()
    assert stages(3.0) == [0, 1] and stages(3.0) == []
