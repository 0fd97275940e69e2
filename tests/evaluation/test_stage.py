"""The parts of a stage: computed once, stored as they come, handed back in order.

And what is asked for before anything runs.
"""

import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import genbound
from genbound.engines.base import TimeBudgetSpent
from genbound.engines.in_process import InProcess
from genbound.errors import GenboundError
from genbound.evaluation import stage as stage_module
from genbound.evaluation.selection import resolve, select
from genbound.evaluation.stage import StoredContext, next_run, open_store
from genbound.quantities import QUANTITIES


def context(store, **changes):
    return StoredContext("losses", 0, None, {}, store, **changes)


def squares(called):
    def function(item):
        called.append(item)
        return {"square": np.array([item**2])}

    return function


def values(parts):
    return [int(part["square"][0]) for part in parts]


def test_parts_come_in_the_order_of_their_items(tmp_path):
    """Items 1 and 3 are stored by an earlier run that had only them: only 0, 2 and 4 are computed."""
    store, called = open_store(tmp_path, "losses", "digest"), []
    for index in (1, 3):
        store.save_part(f"train-{index}", {"square": np.array([index**2])})
    assert values(context(store).map("train", range(5), squares(called))) == [0, 1, 4, 9, 16]
    assert called == [0, 2, 4]
    again = open_store(tmp_path, "losses", "digest")
    assert values(context(again).map("train", range(5), squares(called))) == [0, 1, 4, 9, 16] and len(called) == 3


def test_what_is_folded_comes_in_runs_of_which_none_is_short(tmp_path, monkeypatch):
    """Parts of 8 bytes, 10 of which have room: 16 are left after the first three, in two runs."""
    lengths = []

    class Noted(InProcess):
        def map(self, stage, items, function):
            lengths.append((stage.first, len(items)))
            return super().map(stage, items, function)

    monkeypatch.setattr(stage_module, "FIRST_RUN", 3)
    monkeypatch.setattr(stage_module, "EACH", 1)
    monkeypatch.setattr(stage_module, "ROOM", 80)
    given = context(open_store(tmp_path, "losses", "digest"), engine=Noted())
    folded = given.reduce("train", range(19), squares([]), lambda state, item, part: [*state, item], [])
    assert folded == list(range(19)) and lengths == [(0, 3), (3, 8), (11, 8)]
    assert next_run(11, 1, 8.0) == 11  # one more than have room is no run
    assert next_run(100, 7, 1e9) == 8 and next_run(0, 1, 0.0) == 1  # about one for each process at the least


def test_a_run_is_gone_before_the_next_is_computed(tmp_path, monkeypatch):
    """Two runs side by side would be twice the memory that a run has."""
    found, alive = [], []

    def function(item):
        part = {"value": np.full(3, item)}
        found.append(weakref.ref(part["value"]))
        alive.append(sum(one() is not None for one in found))
        return part

    monkeypatch.setattr(stage_module, "FIRST_RUN", 4)
    monkeypatch.setattr(stage_module, "EACH", 4)
    monkeypatch.setattr(stage_module, "ROOM", 1)
    given = context(open_store(tmp_path, "losses", "digest"))
    total = given.reduce("train", range(12), function, lambda state, _, part: state + int(part["value"][0]), 0)
    assert total == sum(range(12)) and alive == [1, 2, 3, 4] * 3


def test_stages_and_digests_do_not_share_parts(tmp_path):
    called = []
    for stage, digest in (("train", "a"), ("test", "a"), ("train", "b")):
        context(open_store(tmp_path, "losses", digest)).map(stage, [2], squares(called))
    assert called == [2, 2, 2]


def test_a_part_is_stored_before_the_next_is_started(tmp_path):
    def interrupted(item):
        if item == 2:
            raise KeyboardInterrupt
        return {"square": np.array([item**2])}

    with pytest.raises(KeyboardInterrupt):
        context(open_store(tmp_path, "losses", "digest")).map("train", range(4), interrupted)
    called = []
    context(open_store(tmp_path, "losses", "digest")).map("train", range(4), squares(called))
    assert called == [2, 3]


def test_no_part_is_started_after_the_deadline(tmp_path):
    store, called, over = open_store(tmp_path, "losses", "digest"), [], time.monotonic() - 1
    with pytest.raises(TimeBudgetSpent):
        context(store, deadline=over).map("train", [1, 2], squares(called))
    context(store).map("train", [1, 2], squares(called))
    assert values(context(store, deadline=over).map("train", [1, 2], squares(called))) == [1, 4] and called == [1, 2]


def test_without_a_directory_nothing_is_kept():
    store, called = open_store(None, "losses", "digest"), []
    for _ in range(2):
        context(store).map("train", [3], squares(called))
    assert called == [3, 3]


def test_what_a_selection_needs_comes_before_it():
    names, bounds = resolve(["pitas2017", "noise_stability"])
    assert bounds == ["pitas2017"] and set(names) > {"noise_stability", "structure", "spectral_norm", "losses"}
    for index, name in enumerate(names):
        assert set(QUANTITIES[name].requires) <= set(names[:index])
    behind = select(["noise_stability"], {"hessian_trace": {"layer_sem": 0.5}}).behind("noise_stability")
    assert behind["hessian_trace"]["layer_sem"] == 0.5 and "noise_stability" in behind


def test_one_name_is_no_list_of_letters():
    assert resolve("losses") == resolve(["losses"])
    assert resolve("pitas2017, noise_stability") == resolve(["pitas2017", "noise_stability"])
    with pytest.raises(GenboundError, match="unknown measure 'loses'.*did you mean losses"):
        resolve("loses")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"confusion": np.eye(2)}, "2 classes, the model has 3"),
        ({"confusion": np.ones((3, 3))}, "add up to 1"),
        ({"confusion": np.ones(3)}, "square"),
        ({"delta": 0.0}, "delta"),
        ({"time_budget": -1.0}, "negative"),
        ({"out": __file__}, "is a file"),
        ({"options": {"loses": {}}}, "loses"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(changes, words, monkeypatch):
    model = nn.Linear(4, 3)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    problem = genbound.Problem(model, init, (torch.randn(5, 4), torch.arange(5) % 3))
    monkeypatch.setattr(genbound.Problem, "digest", lambda *_: pytest.fail("it began to measure"))
    with pytest.raises(GenboundError, match=words):
        genbound.evaluate(problem, ["losses"], **changes)
