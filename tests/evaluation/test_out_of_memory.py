"""Memory that runs out: smaller batches, the same numbers, and one line where not even one sample fits."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import genbound
from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.evaluation.out_of_memory import is_out_of_memory, wanted, with_less_memory

CPU = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
FAILURES = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …"),
    "cpu": lambda: RuntimeError(CPU + "4294967296 bytes. Error code 12 (Cannot allocate memory)"),
    "python": MemoryError,
}


class Greedy(nn.Sequential):
    """A network whose allocator fails above some rows of a batch."""

    def __init__(self, most, error=FAILURES["cpu"]):
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.most, self.error, self.largest = most, error, 0

    def forward(self, x):
        if len(x) > self.most:
            raise self.error()
        self.largest = max(self.largest, len(x))
        return super().forward(x)


def problem(most, error=FAILURES["cpu"], batch_size=32):
    model = Greedy(10**9, error).double()
    init = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    data = (torch.randn(40, 4, generator=torch.Generator().manual_seed(1)).double(), torch.arange(40) % 3)
    found = genbound.Problem(model, init, data, batch_size=batch_size)
    model.most, model.largest = most, 0
    return found


def numbers(results):
    rows = {}
    for name, summary in results.quantities.items():
        for layer, row in summary.get("layers", {}).items():
            rows |= {(name, layer, key): v for key, v in row.items() if isinstance(v, float)}
    return rows | {("bound", name): row["value"] for name, row in results.bounds.items()}


@pytest.mark.parametrize(
    ("failure", "measures"),
    [
        ("cpu", ["losses", "hessian_trace", "max_quadratic_form", "noise_stability", "hessian_distance"]),
        ("cuda", ["hessian_trace"]),
        ("python", ["losses"]),
    ],
)
def test_smaller_batches_and_the_same_numbers(failure, measures, capsys):
    options = {"noise_stability": {"sigmas": (0.01,), "max_perturbations": 4}} if failure == "cpu" else {}
    expected = numbers(genbound.evaluate(problem(10**9), measures, options=options))
    tight = problem(5, FAILURES[failure])
    found = genbound.evaluate(tight, measures, options=options)
    assert tight.batch_size in (2, 4) and tight.model.largest <= 5  # copies of a sample take rows as well
    said = capsys.readouterr().err
    assert (
        said.count("going on in batches of") == {4: 3, 2: 4}[tight.batch_size]
        and "--batch-size" in said
        and "--memory" in said
    )
    got = numbers(found)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-8, abs=1e-12), key


def test_not_even_one_sample(capsys):
    with pytest.raises(
        GenboundError, match=r"not enough for one sample \(tried to allocate 4 GiB\).*--memory"
    ) as raised:
        genbound.evaluate(problem(0), ["hessian_trace"])
    assert "\n" not in str(raised.value)


def test_finished_parts_are_kept(tmp_path):
    """What was stored before the memory ran out is not measured again."""
    tight = problem(10**9)
    genbound.evaluate(tight, ["losses"], out=tmp_path)
    tight.model.most, tight.model.largest = 8, 0
    found = genbound.evaluate(tight, ["losses", "hessian_trace"], out=tmp_path)
    assert "hessian_trace" in found.quantities and tight.model.largest <= 8


def test_other_errors_go_their_way():
    calls = []
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), GenboundError("y")):

        def fail(error=error):
            calls.append(1)
            raise error

        with pytest.raises(type(error)):
            with_less_memory(problem(10**9), "x", fail)
    assert len(calls) == 3
    assert is_out_of_memory(FAILURES["cuda"]()) and wanted(FAILURES["cuda"]()) == " (tried to allocate 20.00 MiB)"


def test_the_command_says_it_in_one_line(monkeypatch, capsys):
    def fail(*_, **__):
        raise FAILURES["cpu"]()

    monkeypatch.setattr(sys.modules["genbound.cli.main"].cli, "main", fail)
    assert main(["evaluate"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--batch-size" in said and "--memory" in said and "4 GiB" in said


LIMITED = """
import json, resource, sys, torch, genbound, genbound.evaluation, genbound.quantities.losses
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(2, 3)
        self.wide = 1
    def forward(self, x):
        return self.a(x) + 0 * x[:, :1].repeat(1, self.wide).cumsum(1)[:, -1:]
model = Net()
init = {n: p.detach() + 0.1 for n, p in model.named_parameters()}
problem = genbound.Problem(model, init, (torch.randn(64, 2), torch.arange(64) % 3), batch_size=64)
model.wide = 2 ** 20  # 4 MiB a sample and copy
if sys.argv[1] == "limited":
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
found = genbound.evaluate(problem, ["losses"])
print(json.dumps([problem.batch_size, found.quantities["losses"]["train_loss"]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space are Linux's")
def test_under_a_limit_of_the_system():
    """A real allocator that fails, in a process of its own."""
    free, limited = (
        subprocess.run([sys.executable, "-c", LIMITED, how], capture_output=True, text=True, timeout=120)
        for how in ("free", "limited")
    )
    assert free.returncode == limited.returncode == 0, limited.stderr
    (size, loss), (smaller, same) = (json.loads(done.stdout) for done in (free, limited))
    assert size == 64 and smaller < 64 and "out of memory" in limited.stderr
    assert np.isclose(loss, same, rtol=1e-6)


def test_nothing_is_said_to_be_kept_where_nothing_is(tmp_path):
    """Without a directory of the results no part outlives the process."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    problem = genbound.Problem(model, init, (torch.randn(4, 3), torch.arange(4) % 2))
    for out, said in ((None, "was spent; with --out, its finished parts"), (tmp_path, "was spent; its finished parts")):
        found = genbound.evaluate(problem, ["losses"], out=out, time_budget=0)
        assert said in found.notes["losses"]

    def fails():
        raise torch.OutOfMemoryError("out of memory")

    problem.batch_size = 1
    with pytest.raises(genbound.GenboundError, match="With --out, what was finished is kept"):
        with_less_memory(problem, "losses", fails)
