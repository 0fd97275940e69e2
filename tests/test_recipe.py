"""CONTRIBUTING's recipe, tried on a copy of the package: one file and one row for a quantity, the same for a bound.

No other file of the package is touched, and both are measured, printed, stored, compared, checked, exported and
correlated, the stored runs by a process that never imports torch.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_laws

import genbound
from genbound.bounds import BOUNDS
from genbound.quantities import QUANTITIES

PACKAGE = Path(genbound.__file__).parent

QUANTITY = '''
r"""Squared Frobenius norm of every layer, from random signs z: :math:`E[(\\sum_j z_j w_j)^2] = \\|w\\|^2`.

Cost: none. Variance: that of the mean of ``num_draws`` squares.
"""

from dataclasses import dataclass

import numpy as np

from genbound.formatting import with_error
from genbound.quantities.base import Context, Measured, Quantity, stream
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading

NAME = "signed_norm"


@dataclass(frozen=True)
class SignedNormOptions:
    num_draws: int = option(4000, "random signs for each layer")

    def __post_init__(self):
        check_options(self, num_draws=2)


def measure(problem, context: Context) -> Measured:
    layers = {}
    for layer in problem.layers:
        weights = problem.params[layer.name].double().flatten().numpy()
        source = np.random.default_rng(stream(context, NAME, layer.name).initial_seed())
        squares = (source.choice([-1.0, 1.0], (context.options.num_draws, len(weights))) @ weights) ** 2
        sem = float(squares.std(ddof=1) / len(squares) ** 0.5)
        layers[layer.name] = {"value": float(squares.mean()), "sem": sem, "data_sem": 0.0, "rounds": 1}
    total = {"value": sum(r["value"] for r in layers.values()), "data_sem": 0.0}
    total["sem"] = sum(r["sem"] ** 2 for r in layers.values()) ** 0.5
    return Measured({"layers": layers, "total": total, "num_draws": context.options.num_draws})


def describe(summary):
    return [f"Signed norm, all layers: {with_error(summary['total']['value'], summary['total']['sem'])}."]


QUANTITY = Quantity(
    NAME,
    "squared norm of each layer from random signs",
    measure,
    SignedNormOptions,
    needs_data=False,
    reading=Reading(how=("rounds",), describe=describe),
)
'''

BOUND = '''
r"""A bound with a logarithm of n: :math:`\\sqrt{\\|w\\|^2 \\ln n / n}` (nobody 2024), to leading order."""

import math

from genbound.bounds.base import Bound, BoundValue, Evidence


def value(square: float, num_data: int) -> float:
    """The bound; square without unit."""
    return math.sqrt(square * math.log(num_data) / num_data)


def compute(evidence: Evidence) -> BoundValue:
    """Two standard errors to either side."""
    square, sem = (evidence.number("signed_norm", "total", key) for key in ("value", "sem"))
    lower, middle, upper = (value(max(0.0, square + k * sem), evidence.num_data) for k in (-2.0, 0.0, 2.0))
    return BoundValue(middle, lower, upper, math.log10(middle), forms={"main_term": {"log10": math.log10(middle)}})


NOBODY2024 = Bound(
    "nobody2024",
    "root of the squared norm of the weights and a logarithm of n over n",
    "Nobody 2024",
    ("signed_norm", "losses"),
    compute,
    interval_sems=2.0,
)
'''


def edit(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """``copy(code, *arguments)``: run Python code in the package with both additions; its output, status and errors."""
    folder = tmp_path_factory.mktemp("recipe")
    package = folder / "site" / "genbound"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "quantities" / "signed_norm.py").write_text(QUANTITY.lstrip())
    edit(
        package / "quantities" / "catalogue" / "__init__.py",
        ("from genbound.quantities.base", "from genbound.quantities import signed_norm\nfrom genbound.quantities.base"),
        ("\n    )\n}\n", "\n        signed_norm,\n    )\n}\n"),
    )
    (package / "bounds" / "nobody2024log.py").write_text(BOUND.lstrip())
    edit(
        package / "bounds" / "__init__.py",
        (
            "from genbound.bounds.base",
            "from genbound.bounds.nobody2024log import NOBODY2024\nfrom genbound.bounds.base",
        ),
        ("\n    )\n}\n", "\n        NOBODY2024,\n    )\n}\n"),
    )
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

    def run(code, *arguments):
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)

    run.folder = folder
    return run


COMMANDS = """
import json, sys
from genbound.cli.main import main
for command in json.loads(sys.argv[1]):
    print("---", *command)
    print("--- exit", main(command))
print("--- torch" if "torch" in sys.modules else "--- no torch")
"""

WEIGHTS = [[1.0, -1.0], [0.0, 2.0]]  # squared norm 6
FACTORS = {"a": 1.0, "b": 1.1, "c": 1.5, "again": 1.0}


@pytest.fixture(scope="module")
def stored(copy):
    """Runs of three checkpoints, one of them a second time with another seed, and what was printed."""
    torch = pytest.importorskip("torch")
    folder = copy.folder
    for name, factor in {**FACTORS, "start": 0.5}.items():
        torch.save({"weight": factor * torch.tensor(WEIGHTS)}, folder / f"{name}.pt")
    (folder / "net.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(2, 2, bias=False)\n")
    source = np.random.default_rng(0)
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", x=source.normal(size=(20, 2)).astype("f"), y=np.arange(20) % 2)
    common = ["start.pt", "--model", "net.py:build", "--data", "npz:train.npz", "--test-data", "npz:test.npz"]
    measures = ["--measures", "nobody2024", "--num-data", "100"]
    runs = [
        ["evaluate", f"{name}.pt", *common, *measures, "--out", name, "--seed", str(int(name == "again"))]
        for name in FACTORS
    ]
    more = ["--num-data", "1600", "--set", "signed_norm.num_draws=5000"]
    runs += [["evaluate", "a.pt", *common, *measures, *more, "--out", "more"]]
    found = copy(COMMANDS, json.dumps([["list"], ["list", "options", "signed_norm"], *runs]))
    assert found.returncode == 0 and found.stdout.count("--- exit 0") == 7, found.stdout + found.stderr
    return found.stdout


def read(copy, *commands):
    """The output of commands on stored runs, which read them without torch, and their statuses."""
    found = copy(COMMANDS, json.dumps([list(map(str, command)) for command in commands]))
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[-1] == "--- no torch"
    return found.stdout, [int(line.split()[-1]) for line in lines if line.startswith("--- exit")]


def results(copy, name):
    return json.loads((copy.folder / name / "results.json").read_text())


def test_both_are_listed_with_their_options(stored):
    listed = stored.split("--- exit")
    assert "squared norm of each layer from random signs" in listed[0] and "Nobody 2024" in listed[0]
    assert "signed_norm.num_draws  4000" in listed[1] and "random signs for each layer" in listed[1]


def test_both_are_measured(stored, copy):
    """Pencil: |w|^2 = 1 + 1 + 0 + 4 = 6, n = 100, ln 100 = 4.605: sqrt(6 * 4.605 / 100) = 0.5257."""
    content = results(copy, "a")
    total, row = content["quantities"]["signed_norm"]["total"], content["bounds"]["nobody2024"]
    assert abs(total["value"] - 6) < 4 * total["sem"] and total["sem"] > 0
    assert row["value"] == pytest.approx(0.5257 * math.sqrt(total["value"] / 6), rel=1e-4)
    assert row["lower"] < row["value"] < row["upper"] and row["vacuous"] is not None
    assert content["config"]["options"]["signed_norm"] == {"num_draws": 4000}
    assert results(copy, "more")["config"]["options"]["signed_norm"] == {"num_draws": 5000}


def test_the_bound_follows_its_law(stored, copy):
    once, more = (results(copy, name) for name in ("a", "more"))
    for content in (once, more):  # the law is that of n: the norm is drawn anew
        row = content["bounds"]["nobody2024"]
        row["forms"]["main_term"]["log10"] -= 0.5 * math.log10(content["quantities"]["signed_norm"]["total"]["value"])
    rows = (once["bounds"]["nobody2024"], more["bounds"]["nobody2024"])
    assert test_laws.follows(lambda n: math.sqrt(math.log(n) / n), *rows, 16)
    assert not test_laws.follows(test_laws.power(-0.5), *rows, 16)


def test_both_are_printed(stored, copy):
    table = (copy.folder / "a" / "table.md").read_text()
    assert table.strip() in stored
    assert "| nobody2024" in table and "Signed norm, all layers: " in table
    text, _ = read(copy, ["compare", "a", "b"])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2].startswith("| nobody2024 ") and "measured generalization gap" in text


def test_both_are_checked(stored, copy):
    """Another seed passes by its error; a value changed by more than its error is a regression, one by less is none."""
    content = results(copy, "a")
    sem = content["quantities"]["signed_norm"]["layers"]["weight"]["sem"]
    for name, errors in (("near", 1.0), ("far", 30.0)):
        content = results(copy, "a")
        content["quantities"]["signed_norm"]["layers"]["weight"]["value"] += errors * sem
        content["quantities"]["signed_norm"]["layers"]["weight"]["rounds"] = 7  # how it was measured is not compared
        (copy.folder / f"{name}.json").write_text(json.dumps(content))
    runs = [("a", "a"), ("again", "a"), ("a", "near.json"), ("a", "far.json"), ("b", "a")]
    text, status = read(copy, *(["check", run, "--baseline", baseline] for run, baseline in runs))
    assert status == [0, 0, 0, 1, 1], text
    far = text.split("--- exit")[3]
    assert "| signed_norm | weight" in far and "more than" in far and far.count("signed_norm") == 1
    assert "nobody2024" in text.split("--- exit")[4]


def test_both_are_exported_and_correlated(stored, copy):
    text, status = read(
        copy, ["export", "a", "b", "--out", "all.csv"], ["correlate", "a", "b", "c", "--out", "found"],
        ["plot", "a", "b", "--out", "plots"],
    )  # fmt: skip
    assert status == [0, 0, 0], text
    table = pd.read_csv(copy.folder / "all.csv").set_index(["run", "measure", "where"]).fillna({"where": ""})
    layer = table.loc[("a", "signed_norm", "weight")]
    content = results(copy, "a")["quantities"]["signed_norm"]
    assert (layer["value"], layer["sem"]) == (content["layers"]["weight"]["value"], content["layers"]["weight"]["sem"])
    assert not any("rounds" in str(where) for _, _, where in table.index)
    assert "nobody2024" in pd.read_csv(copy.folder / "found" / "correlations.csv")["measure"].tolist()
    assert (copy.folder / "found" / "correlation.png").exists()
    assert (copy.folder / "plots" / "bounds_loss.png").exists()
    assert "signed_norm" in (copy.folder / "a" / "layers.csv").read_text().splitlines()[0]


def test_who_has_no_law_is_found(monkeypatch):
    test_laws.test_nobody_is_in_no_set()
    for table, row in ((QUANTITIES, QUANTITIES["losses"]), (BOUNDS, BOUNDS["path_norm"])):
        with monkeypatch.context() as patch:
            patch.setitem(table, "somebody", row)
            with pytest.raises(AssertionError):
                test_laws.test_nobody_is_in_no_set()
