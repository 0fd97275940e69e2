"""How far a run is: what `genbound status` says while it measures, when it was stopped, and when it is done."""

import json
import subprocess
import sys
import time

import pytest

from genbound.cli.main import main
from genbound.engines.base import TimeBudgetSpent
from genbound.engines.in_process import InProcess
from genbound.engines.run_directory import writing_to
from genbound.errors import GenboundError
from genbound.results.progress import PLAN, SPENT, Plan, status
from tests.attack.stored_run import arguments, write_files


def cells(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_run_from_its_beginning_to_its_end(tmp_path, capsys, monkeypatch):
    write_files(tmp_path)
    out, whole = tmp_path / "run", InProcess.map

    def two_parts(self, stage, items, function):
        if not stage.title.startswith("hessian_trace"):
            return whole(self, stage, items, function)
        assert "A run is measuring: process" in status(out)
        for index in range(2):
            stage.keep(index, function(items[index]))
        raise TimeBudgetSpent

    with pytest.raises(GenboundError, match="no run was begun there"):
        status(out)
    monkeypatch.setattr(InProcess, "map", two_parts)
    assert main(arguments(tmp_path, out, "--time-budget", "1000")) == 0
    (out / "results.json").unlink()
    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert cells(said, "losses")[:3] == ["done", "", ""]
    assert cells(said, "hessian_trace")[:3] == ["begun", "gauss_newton (number 1)", "2 of 3"]
    assert "left" in said and "No run is measuring: the same command continues." in said
    monkeypatch.undo()
    assert main(arguments(tmp_path, out)) == 0
    said = status(out)
    assert cells(said, "hessian_trace")[:3] == ["done", "", ""] and "Everything is measured." in said
    capsys.readouterr()


def test_a_run_that_loads_is_no_run_that_was_never_begun(tmp_path):
    with writing_to(tmp_path, InProcess()):
        assert "A run is loading: process" in (said := status(tmp_path)) and "not decided yet" in said
        Plan(tmp_path, {"one": 1.0})
        assert "A run is measuring: process" in status(tmp_path)
    time.sleep(0.02)  # file times are that coarse
    with writing_to(tmp_path, InProcess()):
        assert "A run is loading: process" in (said := status(tmp_path)) and "of the run before it" in said
        time.sleep(0.02)
        Plan(tmp_path, {"one": 1.0})
        assert "A run is measuring: process" in status(tmp_path)
    assert "No run is measuring" in status(tmp_path)


def test_results_of_an_earlier_run_are_not_those_of_a_later_one(tmp_path):
    """The later one, with other options perhaps, was stopped before it wrote its own."""
    (tmp_path / "parts").mkdir()
    Plan(tmp_path, {"one": 1.0})
    time.sleep(0.02)  # file times are that coarse
    (tmp_path / "results.json").write_text("{}")
    assert "results.json is there" in status(tmp_path)
    time.sleep(0.02)
    Plan(tmp_path, {"two": 1.0})
    assert "results.json is of a run before this one: the same command continues" in status(tmp_path)


def test_failures_reasons_and_forecasts(tmp_path):
    (tmp_path / "parts" / "one-0").mkdir(parents=True)
    plan = Plan(tmp_path, {"one": 10.0, "two": 20.0, "three": 0.0})
    plan.note("one", folder="one-0")
    plan.note("three", reason="does not apply: it is | flat")
    plan.fail("two: the disk is full")
    assert "how long they take shows" in status(tmp_path)
    (tmp_path / "parts" / "one-0" / "summary.json").write_text(json.dumps({"seconds": 30.0}))
    said = status(tmp_path)
    assert "1 of 2 quantities are left: about 60 s" in said and "ended with: two: the disk is full" in said
    assert cells(said, "one")[::3] == ["done", "30 s"] and cells(said, "two")[0] == "waiting" and "\\| flat" in said
    (tmp_path / "parts" / "two-0").mkdir()
    (tmp_path / "parts" / "two-0" / SPENT).write_text("61.0")
    plan.note("two", folder="two-0")
    assert "1 of 2 quantities are left, and what is under way takes longer than its forecast" in status(tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"quantities": 3}', '{"quantities": {"a": {"folder": "../../x"}}}'])
def test_damaged_notes_end_in_one_line_or_a_poorer_report(tmp_path, damage, capsys):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / PLAN).write_text(damage)
    assert main(["status", str(tmp_path)]) == (0 if "folder" in damage else 2)
    capsys.readouterr()


def test_nothing_is_noted_without_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Plan(None, {"one": 1.0}).fail("it")
    assert not list(tmp_path.iterdir())


def test_status_needs_no_torch_and_no_lock(tmp_path):
    with writing_to(tmp_path):
        Plan(tmp_path, {"losses": 1.0})
        code = "import sys; from genbound.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
        command = [sys.executable, "-c", code, "status", str(tmp_path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.endswith("False\n") and "A run is measuring" in said.stdout
