"""Ranks: every part once, all parts everywhere, one failure for all, and the same bytes for any number of ranks."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from ranks import in_ranks
from stored_bytes import stored

from genbound.cli.main import main
from genbound.engines.base import Stage, TimeBudgetSpent
from genbound.engines.failures import is_shared, speaks
from genbound.engines.launch import launched
from genbound.errors import GenboundError
from genbound.estimators import disk_table
from genbound.evaluation import stage as evaluation_stage
from genbound.evaluation.agreement import agree_on
from genbound.evaluation.stage import open_store
from genbound.network import problem as network_problem
from genbound.network.identity import ASKED
from tests.attack.stored_run import arguments, write_files


def engine():
    from genbound.engines.distributed import Distributed

    return Distributed(launched())


def values(parts):
    return [int(part["square"]) for part in parts]


def square(item):
    return {"square": np.array(item**2)}


def test_each_part_is_computed_once_and_comes_to_all(tmp_path):
    store = open_store(tmp_path, "losses", "digest")
    store.save_part("train-4", square(4))

    def work(rank):
        mine, computed = engine(), []

        def function(item):
            computed.append(item)
            time.sleep(0.01)
            return square(item)

        stage = Stage("", lambda i: store.part(f"train-{i}"), lambda i, part: store.save_part(f"train-{i}", part))
        first = values(mine.map(stage, range(7), function))
        again = values(mine.map(stage, range(7), function))
        nothing = mine.map(stage, [], function)
        told = mine.settle(lambda: f"of {rank}"), mine.gather(rank)
        mine.close()
        return first, again, nothing, computed, told

    found = in_ranks(3, work, tmp_path)
    squares = [i**2 for i in range(7)]
    assert all(f[:3] == (squares, squares, []) for f in found)
    assert sorted(sum((f[3] for f in found), [])) == [0, 1, 2, 3, 5, 6]
    assert all(f[4] == ("of 0", [0, 1, 2]) for f in found)


def test_what_fails_in_one_fails_in_all(tmp_path):
    def outcome(work):
        try:
            return work()
        except Exception as error:
            return type(error), str(error), is_shared(error), speaks(error)

    def work(rank):
        mine, stage = engine(), Stage("")

        def fails(item):
            if item == 5:
                raise GenboundError("five is refused")
            return square(item)

        def runs_out(item):
            raise torch.OutOfMemoryError("out of memory") from ValueError("a cause")

        def only_here():
            if rank == 1:
                raise GenboundError("the disk of this one is full")

        over = Stage("", seconds_left=lambda: -1.0 if rank == 0 else 99.0)
        attempts = [
            lambda: mine.map(stage, range(9), fails), lambda: mine.map(stage, [1], runs_out),
            lambda: mine.together(only_here), lambda: mine.together(lambda: mine.together(only_here)),
            lambda: mine.map(over, [1, 2], square), lambda: mine.map(Stage("", key=f"of {rank}"), [1], square),
            lambda: values(mine.map(stage, [3], square)),
        ]  # fmt: skip
        return [outcome(attempt) for attempt in attempts]

    one, two = in_ranks(2, work, tmp_path)
    assert all(found[0] is GenboundError and "five is refused" in found[1] and found[2] for found in (one[0], two[0]))
    assert one[1][0] is two[1][0] is torch.OutOfMemoryError
    for found in (one[2], one[3]):
        assert found[1].startswith("rank 1 on ") and "the disk of this one is full" in found[1]
    assert one[4][0] is two[4][0] is TimeBudgetSpent  # the clock of the first counts
    assert "out of step" in one[5][1] and "out of step" in two[5][1]
    assert [found[3] for found in one[:4]] == [True] * 4 and [found[3] for found in two[:4]] == [False] * 4
    assert one[6] == two[6] == [9]  # and they go on


def test_a_rank_that_stands_still_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GENBOUND_PATIENCE", "0.5")

    def work(rank):
        mine = engine()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            mine.gather(1)
        except GenboundError as error:
            os.kill(int((tmp_path / "second").read_text()), signal.SIGKILL)
            return str(error), speaks(error)

    def with_number(rank):
        if rank == 1:
            (tmp_path / "second").write_text(str(os.getpid()))
        return work(rank)

    (words, said), second = in_ranks(2, with_number, tmp_path)
    assert "rank 1 has given no sign" in words and "the same command continues" in words and said
    assert second == signal.SIGKILL


def test_a_rank_that_cannot_reach_the_others_ends_itself(tmp_path, monkeypatch, capfd):
    """The first serves the counters; when it stands still a question to them has no end."""
    monkeypatch.setenv("GENBOUND_PATIENCE", "0.5")

    def work(rank):
        mine = engine()
        if rank == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        mine.gather(1)

    def meanwhile(children):
        begin = time.monotonic()
        while not os.waitid(os.P_PID, children[1], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            assert time.monotonic() - begin < 60
            time.sleep(0.05)
        os.kill(children[0], signal.SIGKILL)

    with pytest.raises(FileNotFoundError):  # the second could not even say what it found
        in_ranks(2, work, tmp_path, meanwhile)
    assert "rank 1 has not reached the others" in capfd.readouterr().err


def test_a_rank_without_companions_says_so(tmp_path, monkeypatch):
    """The first, which the others meet at, was killed before it began."""
    monkeypatch.setenv("GENBOUND_PATIENCE", "0.1")

    def work(rank):
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        engine()

    first, second = in_ranks(2, work, tmp_path)
    assert first == signal.SIGKILL and "rank 1 of 2 found no companions" in str(second)


def test_ranks_agree_before_they_measure(tmp_path):
    import genbound

    def problem(weight=0.0, size=16):
        model = torch.nn.Linear(4, 3)
        stream = torch.Generator().manual_seed(0)
        model.load_state_dict({"weight": torch.randn(3, 4, generator=stream) + weight, "bias": torch.zeros(3)})
        init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        x = torch.randn(5, 4, generator=stream)
        return genbound.Problem(model, init, (x, torch.arange(5) % 3), batch_size=size)

    def work(rank):
        mine, alike, words = engine(), problem(size=4 + rank), []
        agree_on(alike, mine)
        try:
            agree_on(problem(weight=0.1 * rank), mine)
        except GenboundError as error:
            words = str(error)
        return alike.batch_size, words

    problem()  # what it imports, the forks then have
    one, two = in_ranks(2, work, tmp_path)
    assert one[0] == two[0] == 4 and one[1] == two[1] and "ranks 0 and 1 have different weights" in one[1]


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_the_same_bytes_for_any_number_of_ranks(tmp_path, capfd, ranks):
    write_files(tmp_path)
    torch.set_num_threads(1)
    assert main(arguments(tmp_path, tmp_path / "one")) == 0
    once = capfd.readouterr().out
    assert in_ranks(ranks, lambda rank: main(arguments(tmp_path, tmp_path / "all")), tmp_path) == [0] * ranks
    assert stored(tmp_path / "one") == stored(tmp_path / "all")
    shown = capfd.readouterr()
    assert shown.out == once and len(shown.err.splitlines()) == 2
    assert not list((tmp_path / "all").glob("**/.*"))


def lower_the_limits(monkeypatch):
    """Tables of 100 numbers are on the disk, and stages come in runs of some parts."""
    monkeypatch.setattr(disk_table, "MOST", 100)
    monkeypatch.setattr(evaluation_stage, "FIRST_RUN", 2)
    monkeypatch.setattr(evaluation_stage, "EACH", 1)
    monkeypatch.setattr(evaluation_stage, "ROOM", 1)


def test_the_same_bytes_where_tables_lie_on_the_disk(tmp_path, capfd, monkeypatch):
    """Stages come in runs of some parts, and the trace is measured by blocks of samples."""
    lower_the_limits(monkeypatch)
    write_files(tmp_path)
    torch.set_num_threads(1)
    for maximum in ("certified", "found"):
        one, every = tmp_path / f"one {maximum}", tmp_path / f"all {maximum}"
        more = ("--maximum", maximum, "--set", "hessian_trace.exact_products=0")
        assert main(arguments(tmp_path, one, *more)) == 0
        capfd.readouterr()
        assert in_ranks(2, lambda rank: main(arguments(tmp_path, every, *more)), tmp_path) == [0, 0]  # noqa: B023
        assert stored(one) == stored(every)
        assert stored(every)[0]["quantities"]["hessian_trace"]["num_probes"] > 0
        assert main(arguments(tmp_path, every, *more)) == 0  # reads all of it
        assert stored(one) == stored(every)
        capfd.readouterr()


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_same_bytes_of_what_is_asked_for_by_name(tmp_path, capfd, monkeypatch, ranks):
    """Likewise; a maximum of traces looks at 100 of the samples anew, for their traces are of others."""
    lower_the_limits(monkeypatch)
    write_files(tmp_path)
    torch.set_num_threads(1)
    measures = "layer_curvature,relative_flatness,max_positive_trace"
    options = ("layer_curvature.curvature=ggn", "layer_curvature.exact_outputs=1", "max_positive_trace.num_steps=3")
    more = ["--measures", measures, "--samples", "100", *(word for option in options for word in ("--set", option))]
    assert main(arguments(tmp_path, tmp_path / "one", *more)) == 0
    capfd.readouterr()
    assert in_ranks(ranks, lambda rank: main(arguments(tmp_path, tmp_path / "all", *more)), tmp_path) == [0] * ranks
    assert stored(tmp_path / "one") == stored(tmp_path / "all")
    found = stored(tmp_path / "all")[0]["quantities"]
    assert found["hessian_trace"]["choice"] == "size" and set(measures.split(",")) <= found.keys()
    capfd.readouterr()


@pytest.mark.parametrize("memory", ["asked for", "of the machine"])
def test_ranks_with_unequal_memory_measure_as_the_smallest_would(tmp_path, capfd, monkeypatch, memory):
    """In batches of its size, whichever rank it is; also where nobody asked for a budget."""
    write_files(tmp_path)
    torch.set_num_threads(1)

    def evaluate(out, gib):
        if memory == "asked for":
            return main(arguments(tmp_path, out, "--memory", gib))
        monkeypatch.setattr(network_problem, "budget_of", lambda device, asked: int(float(gib) * 2**30))
        return main(arguments(tmp_path, out))

    sizes = {}
    for name, gib in (("small", "5e-6"), ("large", "1")):
        assert evaluate(tmp_path / name, gib) == 0
        sizes[name] = stored(tmp_path / name)[0]["config"]["batch_size"]
    assert 1 < sizes["small"] < sizes["large"]
    for of in (("5e-6", "1"), ("1", "5e-6")):
        out = tmp_path / f"all {of[0]}"
        assert in_ranks(2, lambda rank: evaluate(out, of[rank]), tmp_path) == [0, 0]  # noqa: B023
        assert stored(out) == stored(tmp_path / "small")
    capfd.readouterr()


def test_several_checkpoints_go_through_the_same_ranks(tmp_path, capfd):
    write_files(tmp_path)
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "tuned.safetensors").read_bytes())
    torch.set_num_threads(1)

    def evaluate(out):
        command, ckpt, *rest = arguments(tmp_path, out)
        return main([command, ckpt, str(tmp_path / "other.safetensors"), *rest, "--measures", "losses,hessian_trace"])

    assert evaluate(tmp_path / "one") == 0
    once = capfd.readouterr().out
    assert in_ranks(2, lambda rank: evaluate(tmp_path / "all"), tmp_path) == [0, 0]
    assert capfd.readouterr().out == once
    for name in ("tuned.safetensors", "other.safetensors"):
        assert stored(tmp_path / "one" / name) == stored(tmp_path / "all" / name)


def test_a_command_that_is_refused_is_refused_once(tmp_path, capfd):
    write_files(tmp_path)
    (tmp_path / "init.safetensors").unlink()
    assert in_ranks(2, lambda rank: main(arguments(tmp_path, tmp_path / "all")), tmp_path) == [2, 2]
    assert capfd.readouterr().err.count("genbound: error:") == 1 and not (tmp_path / "all").exists()


class Watched(torch.utils.data.Dataset):
    """Samples that note who reads them."""

    def __init__(self, num):
        stream = torch.Generator().manual_seed(0)
        self.x, self.read = torch.randn(num, 4, generator=stream), []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read.append(i)
        return self.x[i], i % 3


def test_a_rank_reads_no_sample_that_it_does_not_measure(tmp_path):
    """But for the 100 and 93 of the two subsets, whose lengths say in which order they go, and a few for checks."""
    import genbound
    from genbound.evaluation.stage import StoredContext

    def work(rank):
        mine, mapped, measured = engine(), StoredContext.map, set()

        def watched(self, stage, items, function):
            def noted(item):
                read = set(training.read)
                del training.read[:]
                others.update(read)
                time.sleep(0.02)  # the ranks take turns
                part = function(item)
                measured.update(training.read)
                del training.read[:]
                return part

            return mapped(self, stage, items, noted)

        StoredContext.map, others = watched, set()
        training, held_out, never_seen = Watched(2048), Watched(700), Watched(2048)
        never_seen.x = never_seen.x + 1
        model = torch.nn.Linear(4, 3)
        stream = torch.Generator().manual_seed(0)
        model.load_state_dict({"weight": torch.randn(3, 4, generator=stream), "bias": torch.zeros(3)})
        init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        problem = genbound.Problem(model, init, training, test_data=held_out, unlabelled=never_seen, num_samples=100)
        del held_out.read[:], never_seen.read[:]
        results = genbound.evaluate(problem, ["losses", "hessian_trace"], out=tmp_path / "out", engine=mine)
        mine.close()
        others.update(training.read)
        return len(measured), len(others), len(set(held_out.read)), len(set(never_seen.read)), results

    found = in_ranks(3, work, tmp_path)
    assert all(not isinstance(rank, Exception) for rank in found), found
    assert found[0][1] == 2048 and found[0][3] == 2048  # the first hashes them all
    for measured, others, held_out, never_seen, results in found[1:]:
        assert measured < 2048 and others <= 220 and held_out <= 512 + ASKED and never_seen == 0
        assert results.samples is None and results.quantities == found[0][4].quantities
    assert found[0][4].samples is not None and found[0][4].data == found[1][4].data


def test_kinds_of_device_are_not_mixed(tmp_path):
    import genbound
    from genbound.evaluation import agreement

    def work(rank):
        mine = engine()
        model = torch.nn.Linear(4, 3)
        torch.nn.init.ones_(model.weight)
        init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        alike = genbound.Problem(model, init, (torch.eye(4), torch.arange(4) % 3))
        agree_on(alike, mine)
        kinds = agreement.kinds_of
        agreement.kinds_of = lambda devices: f"{kinds(devices)}{' of another make' * rank}"
        agree_on(alike, mine)

    one, two = in_ranks(2, work, tmp_path)
    assert isinstance(one, GenboundError) and "ranks 0 and 1 have different kinds of device" in str(one)
    assert str(two) == str(one)
