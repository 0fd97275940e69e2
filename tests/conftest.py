"""Fixtures that every test file may use."""

import os
from pathlib import Path

import pytest
import torch
from cases import CASES

from genbound.network.forward_mode import load_rules
from genbound.network.problem import Problem

pytest.register_assert_rewrite("sweeping", "damaged")
load_rules()  # the tests take forward-mode derivatives of their own, under warnings that are errors


@pytest.fixture(scope="session")
def problems():
    """``problems(name, **arguments)``: a problem made of a case, kept for the session."""
    kept = {}

    def get(name: str, **arguments) -> Problem:
        key = (name, tuple(sorted(arguments.items())))
        if key not in kept:
            kept[key] = CASES[name].problem(**arguments)
        return kept[key]

    return get


@pytest.fixture(scope="session")
def truths():
    """``truths(name)``: the dense truth of a case, kept for the session."""
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = CASES[name].truth()
        return kept[name]

    return get


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Bit-equality is promised for equal numbers of threads, and the nets are too small to gain from more.

    Of the session, for fixtures of whole modules make what the tests compare with.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _threads_as_before(_one_thread):
    """A test that asks for other threads asks for itself alone."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What ``save_spec`` remembers stays out of the user's own cache."""
    monkeypatch.setenv("GENBOUND_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real data; tests that want it skip without."""
    if "GENBOUND_SHARED" not in os.environ:
        pytest.skip("set GENBOUND_SHARED to the directory of the shared data")
    return Path(os.environ["GENBOUND_SHARED"])
