"""The names that scripts import, from where they import them."""

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Packages that have taken a module's name, and what was imported from that module.
ONCE_MODULES = {
    "genbound.data": "Batch ListSamples Reader Samples TensorSamples TextSamples as_samples load_data",
    "genbound.results": "Results load_results",
    "genbound.evaluation": "evaluate measure",
    "genbound.cli": "main run",  # where installed console scripts look as well
}


@pytest.mark.parametrize("package", ONCE_MODULES)
def test_a_package_gives_what_its_module_gave(package):
    """In a process that has imported nothing else, so that a circle of imports shows."""
    names = ONCE_MODULES[package].split()
    code = f"from {package} import {', '.join(names)}\nprint(*(callable(name) for name in ({', '.join(names)})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * len(names), done.stderr


def test_the_command_line_goes_by_both_paths():
    package, module = import_module("genbound.cli"), import_module("genbound.cli.main")
    assert (package.main, package.run) == (module.main, module.run)


def test_the_path_in_the_folders_of_finished_runs_stays():
    """``data.py`` in a run's folder imports it; such folders outlive the version that wrote them."""
    from genbound.finetune.output import DATA_FILE

    imported = [node for node in ast.walk(ast.parse(DATA_FILE)) if isinstance(node, ast.ImportFrom)]
    assert ("genbound.finetune.training_data", "samples_of_run") in [(n.module, n.names[0].name) for n in imported]
    assert callable(import_module("genbound.finetune.training_data").samples_of_run)


@pytest.mark.parametrize("package", ["genbound", "genbound.finetune"])
def test_every_listed_name_is_there(package):
    pytest.importorskip("accelerate")
    pytest.importorskip("pytorch_lightning")
    for name in import_module(package).__all__:
        assert getattr(import_module(package), name) is not None, name


def test_what_tab_completion_shows():
    """In a fresh process: the public names, before any of them is imported, and nothing else."""
    code = "import genbound; print(*dir(genbound)); print(genbound.finetune.ConsistentLoss.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, loss = done.stdout.splitlines()
    assert shown.split() == sorted(
        "Estimate GenboundError Interval Problem Results __version__ check compare correlate evaluate finetune "
        "hessian_operator load load_results measure save_spec".split()
    )
    assert loss == "ConsistentLoss"


def test_types_are_shipped():
    """A type checker believes an installed package's annotations only where it has this file."""
    package = Path(import_module("genbound").__file__).parent
    assert (package / "py.typed").is_file()
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    assert "py.typed" in settings["options.package_data"]["genbound"].split()


def documented():
    """``(page, module, name)`` of every import of genbound in the code of README and docs."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        for code in re.findall(r"^```(?:python|pycon)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for module, names in re.findall(r"from (genbound[\w.]*) import ([\w, ]+)", code):
                yield from ((page.name, module, name.strip()) for name in names.split(","))
            yield from ((page.name, "genbound", name) for name in re.findall(r"\bgenbound\.([a-zA-Z_]+)\(", code))


def test_every_documented_name_is_there():
    pytest.importorskip("transformers")
    pytest.importorskip("pytorch_lightning")
    found = set(documented())
    assert len(found) > 10
    absent = [(page, module, name) for page, module, name in found if not hasattr(import_module(module), name)]
    assert not absent
