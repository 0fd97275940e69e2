"""The tutorials run as they stand: every block in order, Python in one session, commands in a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A function that runs a command in an empty directory, where the examples of the checkout lie."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    command = tmp_path / "bin" / "genbound"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m genbound "$@"\n')
    command.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def run(line):
        done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


def commands(block):
    return [line[2:] for line in block.replace("\\\n", "").splitlines() if line.startswith("$ ")]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the libraries that a tutorial trains with
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_block_runs(page, shell, capsys):
    for library in re.findall(r"\bfrom (datasets|transformers|sklearn)\b", page.read_text(encoding="utf-8")):
        pytest.importorskip(library)
    namespace = {"__name__": "__main__"}
    printed = {}
    with torch.random.fork_rng(devices=[]):
        for number, (language, block) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1):
            if language == "python":
                exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
            else:
                assert language == "console"
                printed |= {line: shell(line) for line in commands(block)}
    check = globals()[f"says_{page.stem}"]
    check(namespace, printed)


def says_two_checkpoints(namespace, printed):
    free, near = (namespace["runs"][name] for name in ("free", "near"))
    for bound in ("hessian_distance", "distance_frobenius"):
        assert near.bounds[bound]["value"] < free.bounds[bound]["value"]
    for file in ("layers.png", "loss_path.png", "free/table.md", "near/results.json"):
        assert Path(file).is_file()
    assert "near" in namespace["comparison"].to_markdown()


def says_hugging_face(namespace, printed):
    assert len(namespace["epochs"]) == 4 and namespace["by_loss"] != namespace["by_measure"]
    inspected, measured, _, compared = printed.values()
    assert "BertForSequenceClassification" in inspected and "classifier.weight" in inspected
    assert "Guaranteed: test_set_bound" in measured and "hessian_distance" in measured
    assert "first" in compared and "measured" in compared


def says_continuous_integration(namespace, printed):
    same, worse, allowed = (out for line, out in printed.items() if "check" in line and "--update" not in line)
    assert "status" not in same
    assert "status 1" in worse and "displacement_norm" in worse and "hessian_distance" in worse
    assert "displacement_norm" not in allowed.split("\n\n")[0]


def says_certificate(namespace, printed):
    plain, tuned, again = printed.values()
    assert re.search(r"compression_certificate \| ≤ 0\.7\d", plain)  # hardly better than 0.8, guessing
    assert "head-" in tuned or "all-" in tuned
    bounds = namespace["results"].bounds
    assert bounds["compression_certificate"].value < bounds["pac_bayes_certificate"].value < 0.3
    assert namespace["results"].quantities["gibbs_error"]["num_prior"] == 150
    assert "≤" in again and "150 other samples" in again
    assert Path("plots/certificate.png").is_file()
