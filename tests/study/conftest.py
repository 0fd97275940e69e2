"""The study's modules and its stored cells."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from tests.study.folders import STUDY

MODULES = (
    "claims figures measure noise_stability pilot plan pretraining report run sources stored tables tasks tracking "
    "weights"
).split()


@pytest.fixture(scope="package", autouse=True)
def study():
    """The study's modules, which nothing else finds by these names."""
    pytest.importorskip("accelerate", reason="needs accelerate")
    pytest.importorskip("sklearn", reason="needs the digits of scikit-learn")
    sys.path.insert(0, str(STUDY))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES if name != "figures"})
    finally:
        sys.path.remove(str(STUDY))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="package")
def cells(study):
    return study.stored.cells()
