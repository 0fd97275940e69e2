"""The study: its protocol, its analysis against numbers had another way, and that its page is what its cells say."""

import copy
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import genbound

pytest.importorskip("accelerate", reason="needs accelerate")
pytest.importorskip("sklearn", reason="needs the digits of scikit-learn")
ROOT = Path(genbound.__file__).parent.parent
STUDY = ROOT / "examples" / "study"
PAGE = ROOT / "docs" / "study.md"
MODULES = (
    "claims figures measure pilot plan pretraining report run sources stored tables tasks tracking weights"
).split()


@pytest.fixture(scope="module")
def study():
    """The study's modules, which nothing else finds by these names."""
    sys.path.insert(0, str(STUDY))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES if name != "figures"})
    finally:
        sys.path.remove(str(STUDY))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def cells(study):
    return study.stored.cells()


# -- the protocol ------------------------------------------------------------------------------------------------------


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


# -- the stored cells --------------------------------------------------------------------------------------------------


def test_cells_are_alike_or_refused(study, cells, tmp_path):
    if not cells:
        pytest.skip("no cell is stored yet")
    task = "digits"
    folder = tmp_path / task
    (folder / "samples").mkdir(parents=True)
    digests = json.loads((study.stored.RESULTS / task / "samples" / "digests.json").read_text())
    first = [cell for cell in cells if cell["task"] == task and cell["group"] == "clean"][:2]

    def read(changed, digests=digests):
        (folder / "samples" / "digests.json").write_text(json.dumps(digests))
        for i, cell in enumerate([first[0], changed]):
            (folder / f"{i}.json").write_text(json.dumps(cell))
        return study.stored.cells(tmp_path)

    assert len(read(first[1])) == 2
    for path, value, said in (
        (("measures", "training", "C"), 2.0, "differs from .* in C"),
        (("measures", "measurement", "n"), 7, "in n of a row"),
        (("digests", "test"), "another", "in sets"),
        (("measures", "measurement", "num_samples"), 3, "in samples measured"),
    ):
        changed = copy.deepcopy(first[1])
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(SystemExit, match=said):
            read(changed)
    leak = {**digests, "test": [*digests["test"][1:], digests["training"][0]]}
    with pytest.raises(SystemExit, match="training and test sets share 1 sample"):
        read(first[1], leak)


def test_every_cell_by_itself(study, cells):
    """The gap, the sets, and the Hessian measure from the layers' maxima with n and C."""
    for cell in cells:
        assert cell["gap"]["loss"] == pytest.approx(cell["test"]["loss"] - cell["training"]["loss"], abs=1e-12)
        assert cell["trivial"]["training loss"] == cell["training"]["loss"]
        digests = json.loads((study.stored.RESULTS / cell["task"] / "samples" / "digests.json").read_text())
        assert {name: study.run.set_digest(found) for name, found in digests.items()} == cell["digests"]
        for row in cell["measures"].values():
            assert row["C"] == 16 and row["n"] == cell["n"]
            term = sum(math.sqrt(16 * max(value, 0)) for value in row["maxima"].values()) / math.sqrt(cell["n"])
            assert row["bounds"]["hessian_distance"]["value"] == pytest.approx(term, rel=1e-9)
            assert row["growth"][-1][2] == pytest.approx(term, rel=1e-9)
            assert all(a[2] <= b[2] + 1e-12 for a, b in zip(row["growth"], row["growth"][1:], strict=False))
        if cell["reached"]:
            assert cell["training"]["loss"] < 2 * study.tasks.TASKS[cell["task"]].stop_loss


def test_the_certified_error(study, cells):
    """The limit of Clopper and Pearson, by scipy, and what the page says of it."""
    for task in {cell["task"] for cell in cells}:
        own = [cell for cell in cells if cell["task"] == task and cell["group"] == "clean"]
        text = study.tables.certified(cells, task)
        if text is None:
            continue
        limits = []
        for cell in own:
            num = cell["measurement"]["num"]
            wrong = round(cell["measurement"]["error"] * num)
            limits.append(stats.beta.ppf(0.95, wrong + 1, num - wrong))
            assert study.tables.held_out_certificate(cell) == pytest.approx(limits[-1], rel=1e-6)
        rows = {"measurement samples (Clopper–Pearson)": limits}
        if all("certificates" in cell for cell in own):
            for name, said in study.tables.CERTIFIED.items():
                rows[said] = [cell["certificates"][name]["value"] for cell in own]
        test = [cell["test"]["error"] for cell in own]
        for said, found in rows.items():
            below = sum(limit < error for limit, error in zip(found, test, strict=True))
            assert column(text, f"of {len(own)} below it", said) == str(below)
            assert column(text, "τ with the test error", said) == f"{stats.kendalltau(found, test).statistic:.2f}"


def test_the_sweeps_from_the_files_alone(study, cells):
    found = [one for one in study.claims.distances(cells) if one.number != "/"]
    assert len(found) == len(study.tables.swept(cells))
    for one, (task, group) in zip(found, study.tables.swept(cells), strict=True):
        own = [json.loads(file.read_text()) for file in sorted((STUDY / "results" / task).glob(f"{group}-*.json"))]
        x = [cell["measures"]["measurement"]["bounds"]["hessian_distance"]["value"] for cell in own]
        gap = [cell["gap"]["loss"] for cell in own]
        distance = [cell["trivial"]["distance"] for cell in own]
        assert f"τ of the two {stats.kendalltau(x, gap).statistic:.2f} [" in one.number
        loss = [cell["training"]["loss"] for cell in own]
        assert f"given the training loss {partial(x, gap, loss):.2f} [" in one.number
        assert f"with the distance {stats.kendalltau(distance, gap).statistic:.2f};" in one.number


def test_label_noise_from_the_files_alone(study, cells):
    """The algorithm's gain and how much smaller it makes the measure, seed by seed, by scipy."""
    found = {(one.claim, one.where): one.number for one in study.claims.noisy(cells, [])}
    groups = {(cell["task"], cell["noise"], round(100 * cell["rate"])) for cell in cells if cell["noise"]}
    for task, kind, rate in groups:
        own = [
            json.loads(file.read_text())
            for file in sorted((STUDY / "results" / task).glob(f"noise-{kind}{rate}-*.json"))
        ]
        ours, plain = (
            {cell["seed"]: cell for cell in own if (cell["method"], cell["stopping"]) == names}
            for names in (("both", "epochs"), ("plain", "loss"))
        )
        seeds = sorted(set(ours) & set(plain))
        if len(seeds) < 2:
            continue
        gained = [100 * (plain[seed]["test"]["error"] - ours[seed]["test"]["error"]) for seed in seeds]
        low, high = stats.ttest_1samp(gained, 0).confidence_interval()
        where = f"{study.tasks.TASKS[task].title}, {kind} {rate}, over plain to the fit"
        wanted = {"symmetric": 6.43, "correlated": 3.26}[kind]
        said = f"{np.mean(gained):+.1f} points [{low:+.1f}, {high:+.1f}], {len(seeds)} seeds"
        assert found[f"+{wanted} points under {kind} noise", where] == said
        size = lambda cell: cell["measures"]["measurement"]["bounds"]["hessian_distance"]["value"]  # noqa: E731
        times = stats.gmean([size(plain[seed]) / size(ours[seed]) for seed in seeds])
        assert found["the algorithm makes the measure six times smaller", where].startswith(f"{times:.2g} times [")


def test_noise_by_traces_that_are_estimates_decides_nothing(study, cells):
    for one in study.claims.stability(cells, []):
        estimates = one.where.startswith(("ViT", "GPT-2", "RoBERTa", "MiniLM")) and "inverse root" in one.where
        assert ("estimates" in one.number) == estimates
        assert not estimates or one.verdict == "cannot be tested here"


def column(text, title, row):
    """A cell of a table of Markdown."""
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    (found,) = [line for line in lines if line[0] == row]
    return found[lines[0].index(title)]


def partial(x, y, z):
    xy, xz, yz = (stats.kendalltau(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    return (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))


def test_the_table_from_the_files_alone(study, cells):
    """Kendall's coefficients of the page from what the files hold, with scipy and nothing of ours."""
    for task in {cell["task"] for cell in cells}:
        own = [json.loads(file.read_text()) for file in sorted((STUDY / "results" / task).glob("clean-*.json"))]
        table = study.tracking.tracking(cells, task)
        if table is None:
            continue
        gap, loss = ([cell[a][b] for cell in own] for a, b in (("gap", "loss"), ("training", "loss")))
        for name, where in (("`hessian_distance`", "measurement"), ("`hessian_distance`, training", "training")):
            x = [cell["measures"][where]["bounds"]["hessian_distance"]["value"] for cell in own]
            assert column(table, "τ", name).startswith(f"{stats.kendalltau(x, gap).statistic:.2f} [")
            assert column(table, "given the training loss", name).startswith(f"{partial(x, gap, loss):.2f} [")
            tau = stats.kendalltau(x, [cell["gap"]["error"] for cell in own]).statistic
            assert column(table, "τ, gap in the error", name).startswith(f"{tau:.2f} [")
        for name in own[0]["trivial"]:
            x = [cell["trivial"][name] for cell in own]
            assert column(table, "τ", f"*{name}*").startswith(f"{stats.kendalltau(x, gap).statistic:.2f} [")
        fitted = [i for i, cell in enumerate(own) if cell["stopping"] == "loss" and cell["reached"]]
        tau = stats.kendalltau([loss[i] for i in fitted], [gap[i] for i in fitted]).statistic
        wanted = f"{tau:.2f} [" if len(fitted) >= study.tracking.FEWEST else "/"
        assert column(table, "at one training loss", "*training loss*").startswith(wanted)


def test_the_pilot_from_the_files_alone(study):
    """What the issue of the pilot is: the training loss tells more, and given it nothing is left."""
    rows = study.stored.pilot()
    expected = {"cifar10": ("0.59", "-0.82", "0.02"), "sst2": ("0.91", "-0.95", "-0.02")}
    for task, (ours, rival, given) in expected.items():
        own = [
            json.loads(file.read_text())
            for file in sorted((STUDY / "results" / "pilot" / task).glob("clean-*/cell.json"))
        ]
        gap = [cell["losses"]["test_loss"] - cell["losses"]["train_loss"] for cell in own]
        x, loss = [cell["held_out"]["hessian_distance"] for cell in own], [c["losses"]["train_loss"] for c in own]
        table = study.pilot.tracking(rows, task)
        assert f"{stats.kendalltau(x, gap).statistic:.2f}" == ours
        assert f"{stats.kendalltau(loss, gap).statistic:.2f}" == rival and f"{partial(x, gap, loss):.2f}" == given
        assert column(table, "τ, gap in the loss", "hessian_distance (held out)").startswith(f"{ours} [")
        assert column(table, "given the training loss", "hessian_distance (held out)").startswith(f"{given} [")
        names = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
        measures = [name for name in names if name[0] != "*"]
        assert names[0] == "*training loss*" and measures[0] == "hessian_distance (held out)"


def test_the_report_of_other_cells(study, tmp_path):
    """Cells elsewhere, without the pilot: few of them, one under label noise with fewer samples to train on."""
    task, some = "digits", sorted((STUDY / "results" / "digits").glob("clean-*.json"))[:6]
    (tmp_path / task / "samples").mkdir(parents=True)
    digests = STUDY / "results" / task / "samples" / "digests.json"
    (tmp_path / task / "samples" / "digests.json").write_text(digests.read_text())
    for file in some:
        (tmp_path / task / file.name).write_text(file.read_text())
    noisy = json.loads(some[0].read_text())
    noisy |= {"name": "noise", "group": "noise", "noise": "symmetric", "rate": 0.4, "n": 140}
    for row in noisy["measures"].values():
        row["n"] = 140
    noisy["measures"]["training"]["num_samples"] = 140
    (tmp_path / task / "noise.json").write_text(json.dumps(noisy))
    cells, rows = study.stored.cells(tmp_path), study.stored.pilot(tmp_path)
    assert len(cells) == 7 and rows == []
    found = study.report.blocks(cells, rows)
    assert "Label noise, symmetric, 40 %" in found["tasks"] and "pilot" not in found["claims"]
    drawn = importlib.import_module("figures").figures(cells, rows, tmp_path / "images")
    assert {path.name for path in drawn} >= {"study_tracking.png", "study_gap.png", "study_growth.png"}
    assert study.report.blocks([], [])["tasks"] == "No cell of the protocol is there yet."


def test_the_page_is_what_the_cells_say(study, cells):
    text = PAGE.read_text(encoding="utf-8")
    assert study.report.refreshed(text, study.report.blocks(cells, study.stored.pilot())) == text
    assert study.report.NOTHING not in text


# -- the analysis ------------------------------------------------------------------------------------------------------


def test_verdicts(study):
    claims = study.claims
    assert claims.near_one(0.9, 1.1) == "holds" and claims.near_one(2.0, 2.4) == "does not hold"
    assert claims.near_one(0.9, 1.3) == claims.near_one(0.5, 2.0) == "cannot be tested here"
    assert claims.follows((0.2, 0.5), (0.1, 0.4)) == "holds"
    assert claims.follows((0.2, 0.5), (-0.1, 0.4)) == "holds in part"
    assert claims.follows((-0.2, 0.1), (-0.1, 0.4)) == "does not hold"
    assert claims.follows((-0.2, 0.5), (-0.1, 0.4)) == "cannot be tested here"
    assert claims.reaches(1.0, 8.0, 6.43) == "holds" and claims.reaches(1.0, 4.0, 6.43) == "holds in part"
    assert claims.reaches(-1.0, 4.0, 6.43) == "does not hold"
    assert claims.reaches(-1.0, 9.0, 6.43) == claims.reaches(*claims.t_interval([3.0]), 6.43) == "cannot be tested here"
    low, high = claims.t_interval([1.0, 2.0, 3.0, 6.0])
    assert (low, high) == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0, 6.0], 0).confidence_interval())


def made(num, stream, **more):
    """Cells in which the Hessian measure is the training loss with some noise, and the gap follows the latter."""
    found = []
    for i in range(num):
        loss = float(stream.normal())
        bounds = {"hessian_distance": {"value": -loss + float(stream.normal()) * 0.7, "log10": None}}
        found.append({
            "name": f"{i:02}", "task": "digits", "group": "clean", "stopping": "loss", "reached": True, "seed": 0,
            "lr": 0.1, "hyperparameters": {"method": f"m{i // 2}"},
            "gap": {"loss": -loss + 0.2 * float(stream.normal())},
            "training": {"loss": loss}, "trivial": {"training loss": loss}, "noise": "",
            "measures": {"measurement": {"bounds": bounds}, "training": {"bounds": copy.deepcopy(bounds)}}, **more,
        })  # fmt: skip
    return found


def test_the_difference_between_two_coefficients(study):
    """Value by scipy; the interval over the same clusters spelled out one by one."""
    own = made(16, np.random.default_rng(0))
    value, low, high = study.tracking.difference(study.tracking.table(own), "hessian_distance", "training loss")
    x = np.array([cell["measures"]["measurement"]["bounds"]["hessian_distance"]["value"] for cell in own])
    y, gap = (np.array([cell[a][b] for cell in own]) for a, b in (("trivial", "training loss"), ("gap", "loss")))
    size = lambda side, i: abs(stats.kendalltau(side[i], gap[i]).statistic)  # noqa: E731
    everyone = np.arange(16)
    assert value == pytest.approx(size(x, everyone) - size(y, everyone)) and value < 0
    drawn = np.random.default_rng([0, 0]).integers(0, 8, (study.tracking.RESAMPLES, 8))[:512]  # of its first block
    slow = [size(x, i) - size(y, i) for i in (np.concatenate([[2 * c, 2 * c + 1] for c in row]) for row in drawn)]
    assert (low, high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.06)


def test_covariances_of_each_layers_own(study):
    """Shapes are scaled to one approximation, and the rise of a quadratic loss is what it says."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    data = (torch.randn(40, 3), torch.randint(0, 3, (40,)))
    pair = SimpleNamespace(
        model=model, init={k: torch.zeros_like(v) for k, v in model.state_dict().items()}, head=(), init_buffers=None
    )
    problem = genbound.Problem(model, pair.init, data)
    rows = genbound.evaluate(problem, "hessian_trace").quantities["hessian_trace"]["layers"]
    traces = {name: row["value"] for name, row in rows.items()}
    task = SimpleNamespace(sigmas=(0.01, 0.02), pairs=64)
    found = study.measure.stability(task, pair, data, traces, seed=0)["rows"]
    assert len(found) == 6
    for row in found:
        assert row["approximation"] == pytest.approx(0.5 * row["sigma"] ** 2 * sum(traces.values()), rel=1e-9)
        assert row["rise"] == pytest.approx(row["approximation"], abs=4 * row["sem"] + 0.05 * row["approximation"])
    assert study.measure.relative_rss([{"rise": 2.0, "approximation": 1.0}, {"rise": 1.0, "approximation": 1.0}]) == 0.2
