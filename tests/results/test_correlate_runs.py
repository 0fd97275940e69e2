"""``correlate`` of runs on the disk: which are given, and what is stated of them."""

from pathlib import Path

import pytest
from handmade import bound, losses, run

import genbound
from genbound.cli.main import main
from genbound.errors import GenboundError


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Three runs in runs/, from the directory above it."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        results = run({"good": bound(1.0 + i)})
        results.quantities["losses"] = losses(test=0.2 + 0.1 * i)
        results.save(f"runs/0{i}")
    return [f"runs/0{i}" for i in range(3)]


def test_a_run_given_twice_is_refused(stored, capsys):
    for again in ("runs/00/", "runs/00/results.json", "runs/../runs/00"):
        assert main(["correlate", *stored, again]) == 2
        err = capsys.readouterr().err
        assert "are one run: give each run once" in err and err.count("\n") == 1
    runs = [genbound.load_results(path) for path in stored]
    with pytest.raises(GenboundError, match="are one run"):
        genbound.correlate([*runs, runs[0]])
    assert main(["compare", stored[0], stored[0]]) == 0  # set side by side they mislead nobody


@pytest.mark.parametrize("runs", [("runs/00", "runs/01/", "runs/02/results.json"), ("00", "01", "02")])
def test_hyperparameters_of_a_run_by_its_directory_or_its_name(stored, capsys, runs):
    with open("h.csv", "w") as file:
        file.write("run,depth\n" + "".join(f"{name},{2 + i}\n" for i, name in enumerate(runs)))
    assert main(["correlate", *stored, "--hyperparameters", "h.csv"]) == 0
    assert "granulated kendall" in capsys.readouterr().out


def test_hyperparameters_that_no_run_has_are_refused(stored, capsys):
    table = {"runs/00": {"depth": 1}, "runs/01": {"depth": 2}, "runs/2": {"depth": 3}}
    with pytest.raises(GenboundError, match="no row says what depth is in run 02.*and not 'runs/00'"):
        genbound.correlate(stored, hyperparameters=table)
    runs = [genbound.load_results(path) for path in stored]
    runs[2].config["hyperparameters"] = {"depth": 3}
    assert "granulated_kendall" in genbound.correlate(runs, hyperparameters=table).to_frame()


@pytest.mark.parametrize("command", ["correlate", "plot"])
def test_a_command_whose_output_lies_among_the_runs_can_be_repeated(stored, command, capsys):
    for _ in range(2):
        runs = sorted(f"runs/{path.name}" for path in Path("runs").iterdir())
        assert main([command, *runs, "--out", "runs/out"]) == 0, capsys.readouterr().err
    assert main([command, "runs/out", "--out", "runs/other"]) == 2
    assert "runs/out/results.json does not exist" in capsys.readouterr().err
