"""``correlate`` of runs on the disk: which are given, and what is stated of them."""

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
