"""The protocol: three sets, the plan, cells that processes share, what is measured."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.study.folders import ROOT, STUDY


class Letters:
    """Samples that are letters; some stand twice."""

    def __init__(self, **splits):
        self.splits = splits

    def labels(self, split):
        return np.arange(len(self.splits[split])) % 2

    def contents(self, split):
        return [letter.encode() for letter in self.splits[split]]


def letters(study, **splits):
    source = Letters(**splits)
    wanted = study.tasks.of_files(source, **{name: name for name in study.tasks.SETS})
    return study.tasks.Task("letters", "", source, wanted, None, None, (1, 2), 1, 1, 0.1, 1, 1, (1,))


def test_what_two_sets_share_is_in_the_first_alone(study):
    task = letters(study, training="aabc", measurement="cdex", test="xafd")
    kept = {name: [task.source.splits[name][i] for i in part.places] for name, part in task.parts.items()}
    assert kept == {"training": list("aabc"), "measurement": list("dex"), "test": ["f"]}
    study.tasks.assert_disjoint({name: task.digests(name) for name in study.tasks.SETS})
    with pytest.raises(SystemExit, match="measurement and test sets share 1 sample"):
        study.tasks.assert_disjoint({"training": ["a"], "measurement": ["b", "c"], "test": ["c"]})


def test_a_choice_is_balanced_and_part_of_a_larger_one(study):
    task = letters(study, training="abcdefghijklmnopqrst", measurement="uvw", test="xyz")
    few, more = task.chosen("training", 6), task.chosen("training", 11)
    assert set(few) < set(more) and len(few) == 6 and list(few) == sorted(few)
    assert sorted(task.source.labels("training")[few]) == [0] * 3 + [1] * 3
    assert list(task.chosen("measurement", 9)) == [0, 1, 2]


def test_the_digits_are_three_disjoint_sets(study):
    task = study.tasks.TASKS["digits"]
    digests = {name: task.digests(name) for name in study.tasks.SETS}
    study.tasks.assert_disjoint(digests)
    assert len(digests["training"]) == 200 and len(digests["measurement"]) <= 200 and len(digests["test"]) > 400


def test_the_plan(study):
    for task in study.tasks.TASKS:
        clean = study.plan.clean(task)
        assert len({cell.name for cell in clean}) == len(clean)
        first = [cell for cell in clean if cell.seed == 0]
        assert len(first) >= 30 and clean[: len(first)] == first
        # Every setting is there driven to one loss and for fixed epochs.
        settings = {(c.method, c.strength, c.lr, c.seed): set() for c in clean}
        for c in clean:
            settings[c.method, c.strength, c.lr, c.seed].add(c.stopping)
        assert all(stops == {"loss", "epochs"} for stops in settings.values())
        noisy = study.plan.noisy(task, "correlated", 0.4)
        assert len({cell.name for cell in noisy}) == len(noisy) and {c.seed for c in noisy} >= set(range(5))
        wanted = {"plain", "both", "label_smoothing", "mixup", "sam", "l2sp", "generalised"}
        assert wanted <= {c.method for c in noisy}
        assert {c.stopping for c in noisy if c.method == "plain"} == {"loss", "best"}


HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {study!r})
from run import claimed
with claimed(Path({lock!r})) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_cell_belongs_to_one_process(study, tmp_path):
    """The second one is told so at once; the lock of one that was killed is free."""
    lock = tmp_path / "cell.lock"
    code = HOLDER.format(study=str(STUDY), lock=str(lock))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "True\n"
    with study.run.claimed(lock) as mine:
        assert not mine
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with study.run.claimed(lock) as mine:
        assert mine


def call(script, *arguments):
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "MPLBACKEND": "Agg"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(STUDY / script), *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def output(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    return out


@pytest.mark.slow
def test_a_small_study(tmp_path):
    """Killed once, then by two processes: every cell is made once, and the report needs the cells alone."""
    arguments = ("ci", "--out", tmp_path / "work", "--results", tmp_path / "cells")
    killed = call("run.py", *arguments)
    while not list(tmp_path.glob("cells/digits/*.json")):
        time.sleep(0.2)
        assert killed.poll() is None, killed.stderr.read()
    killed.kill()
    killed.communicate()
    before = len(list(tmp_path.glob("cells/digits/*.json")))
    two = [call("run.py", *arguments) for _ in range(2)]
    made = sum(output(process).count("test accuracy") for process in two)
    files = sorted(tmp_path.glob("cells/digits/*.json"))
    assert made + before == len(files) == 10
    stamps = [file.stat().st_mtime_ns for file in files]
    assert output(call("run.py", *arguments)) == ""  # nothing is left to do
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert output(call("run.py", *arguments, "--list")).endswith("10 of 10 cells are done\n")
    page, images = tmp_path / "page.md", tmp_path / "images"
    output(call("report.py", "--results", tmp_path / "cells", "--images", images, "--page", page))
    output(call("report.py", "--results", tmp_path / "cells", "--images", images, "--page", page, "--check"))
    for words in ("| *training loss* ", "| `hessian_distance` ", "Label noise, symmetric, 40 %", "generalised"):
        assert words in page.read_text()
    assert {path.name for path in images.glob("*.png")} >= {"study_tracking.png", "study_gap.png"}
    rows = {file.stem: json.loads(file.read_text()) for file in files}
    # What is stored comes out again: to the last digit on one machine, and nearly so on another.
    for name, row in rows.items():
        stored = STUDY / "results" / "digits" / f"{name}.json"
        if row["group"] == "clean" and stored.exists():
            old = json.loads(stored.read_text())
            for key in ("protocol", "hyperparameters", "options", "settings", "n", "digests", "measures"):
                assert set(row[key]) == set(old[key]) if key == "measures" else row[key] == old[key], key
            for key in ("training", "measurement", "test"):
                assert row[key]["loss"] == pytest.approx(old[key]["loss"], abs=0.05)
    fitted = rows["clean-plain-lr0.003-seed0-loss"]
    assert fitted["reached"] and fitted["training"]["loss"] <= 0.15 and fitted["steps"] < 780


def test_what_language_models_are_asked(study):
    """Only masked tokens count, one at least of every text; else the next token, and none of the padding."""
    import torch

    tokens = torch.tensor([[0, 7, 8, 9, 2], [0, 7, 2, 1, 1]])
    drawn = torch.tensor([[0.0, 0.9, 0.1, 0.9, 0.0], [0.9, 0.9, 0.9, 0.0, 0.9]])
    given, wanted = study.pretraining._masked(tokens, drawn)
    assert given.tolist() == [[0, 7, 4, 9, 2], [0, 4, 2, 1, 1]]
    assert wanted.tolist() == [[-100, -100, 8, -100, -100], [-100, 7, -100, -100, -100]]
    given, wanted = study.pretraining._causal(tokens, drawn)
    assert given.equal(tokens) and wanted.tolist() == [[7, 8, 9, 2, -100], [7, 2, -100, -100, -100]]


def test_what_is_measured_of_a_task(study):
    """The smallest network has everything on both sets; a deep one what needs a margin on training samples alone."""
    names, options = study.measure.measures("cifar5", True)
    held_out, plain = study.measure.measures("cifar5", False)
    assert set(study.measure.SIX) < set(names) and options["compression"] == {"num_samples": 8}
    assert set(names) - set(held_out) == set(study.measure.BY_MARGIN) and list(plain) == ["max_quadratic_form"]
    assert study.measure.measures("digits", True) == study.measure.measures("digits", False)
    assert plain["max_quadratic_form"] == {"tolerance": 0.05, "tolerance_of": "layer"}
    assert study.measure.measures("gpt2", False) == (
        list(study.measure.PLAIN), {"max_quadratic_form": {"tolerance": 0.25, "tolerance_of": "layer"}}
    )  # fmt: skip
