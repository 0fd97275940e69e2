"""Several checkpoints of one start in one command: the numbers of each alone, and a table that compares them."""

import shutil

import pytest

from genbound.cli.main import main
from genbound.results.comparison import compare
from genbound.results.runs import told_apart
from tests.attack.stored_run import arguments, write_files
from tests.engines.stored_bytes import stored


@pytest.fixture
def folder(tmp_path):
    write_files(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / f"{'tuned' if name == 'a' else 'init'}.safetensors", tmp_path / name / "net.safetensors")
    return tmp_path


def command(folder, *ckpts):
    first, _, *rest = arguments(folder, folder / "all")
    return [first, *map(str, ckpts), *rest]


def test_each_has_the_numbers_that_it_has_alone(folder, capsys):
    ckpts = [folder / name / "net.safetensors" for name in ("a", "b")]
    assert main(command(folder, *ckpts)) == 0
    said = capsys.readouterr().out
    assert said.count(" against ") == 2 and "| bound" in said.rpartition(" against ")[2]
    assert compare([folder / "all" / name / "net.safetensors" for name in ("a", "b")]).to("md") in said
    assert main(["evaluate", str(ckpts[0]), *arguments(folder, folder / "one")[2:]]) == 0
    found = stored(folder / "all" / "a" / "net.safetensors")
    assert found == stored(folder / "one") and (folder / "all" / "b" / "net.safetensors" / "results.json").exists()
    capsys.readouterr()


def test_one_that_cannot_be_measured_stops_only_itself(folder, capsys):
    ckpts = [folder / "absent.safetensors", folder / "a" / "net.safetensors"]
    assert main(command(folder, *ckpts)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("genbound: error")]
    assert "1 of 2 checkpoints" in line and "absent" in line
    assert (folder / "all" / "net.safetensors" / "results.json").exists()


def test_names_tell_paths_apart():
    assert told_apart([("x", "a"), ("x", "b")]) == ["a", "b"]
    assert told_apart([("x", "a"), ("y", "a")]) == ["x/a", "y/a"]
    assert told_apart([("x", "a"), ("x", "a")]) == ["x/a (1)", "x/a (2)"]
