"""The batch size that a memory budget holds."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import genbound
from genbound.cli.main import main
from genbound.network import displacement, memory
from genbound.network.memory import graph_bytes, largest_batch, peak_bytes, weight_bytes

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))
INIT = {name: torch.zeros_like(p) for name, p in MODEL.named_parameters()}
DATA = (torch.randn(40, 6), torch.arange(40) % 3)


def problem(**options):
    return genbound.Problem(MODEL, INIT, DATA, **options)


def test_a_graph_grows_with_its_samples():
    given = problem()
    one, eight = (graph_bytes(given, range(n), given.samples_first) for n in (1, 8))
    assert 6 * one < eight <= 8 * one


def test_the_saved_activations_are_counted():
    """At least 4 x 38 bytes: the first layer keeps its 6 inputs, and tanh its output of 32 numbers.

    The layer behind tanh keeps the same tensor.
    """
    given = problem()
    assert graph_bytes(given, [0], given.samples_first) >= 4 * 4 * 38


@pytest.mark.parametrize(("room", "expected"), [(0, 1), (1, 1), (3.5, 3), (16, 16), (1000, 16)])
def test_as_many_samples_as_the_budget_holds(room, expected):
    free = problem()
    each = graph_bytes(free, [39], free.samples_first)
    budget = weight_bytes(free) + int(room * each)
    assert largest_batch(free, free.samples_first, {free.device: budget}) == expected
    assert problem(memory_budget=budget).batch_size == expected


def test_weights_that_are_shared_count_once(monkeypatch):
    """Own and initial weights, displacements and what a pass has of their size; of shared ones one copy less."""
    size = sum(4 * p.numel() for p in MODEL.parameters())
    assert weight_bytes(problem()) == 4 * size
    monkeypatch.setattr(displacement, "KEPT", 0)  # a large network
    apart = genbound.Problem(MODEL, {name: p.clone() for name, p in INIT.items()}, DATA, copy_weights=False)
    shared = genbound.Problem(
        MODEL, {name: p.detach() for name, p in MODEL.named_parameters()}, DATA, copy_weights=False
    )
    assert weight_bytes(apart) == 3 * size and weight_bytes(shared) == 2 * size


def test_the_peak_is_a_graph_or_noise_on_all_weights():
    given = problem()
    graph, size = graph_bytes(given, range(16), given.samples_first), sum(4 * p.numel() for p in MODEL.parameters())
    assert graph > size
    assert peak_bytes(given, range(16), given.samples_first) == weight_bytes(given) + graph


def test_by_default_a_small_model_keeps_its_batches():
    assert problem().batch_size == 16
    assert problem(batch_size=5).batch_size == 5


def test_a_smaller_batch_changes_values_by_rounding_only():
    names = ["hessian_trace", "max_quadratic_form", "noise_stability"]
    wide, narrow = (genbound.evaluate(problem(memory_budget=b), names).quantities for b in (None, 1))
    for name in ("hessian_trace", "max_quadratic_form"):
        for layer, entry in wide[name]["layers"].items():
            assert narrow[name]["layers"][layer]["value"] == pytest.approx(entry["value"], rel=1e-4, abs=1e-6)
    for a, b in zip(wide["noise_stability"]["sigmas"], narrow["noise_stability"]["sigmas"], strict=True):
        assert b["value"] == pytest.approx(a["value"], rel=1e-2, abs=1e-7)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_that_holds_nothing_is_refused(budget):
    with pytest.raises(genbound.GenboundError, match="memory budget"):
        problem(memory_budget=budget)


def test_a_large_network_gives_freed_memory_back_after_its_checks_and_every_part(monkeypatch):
    trimmed = []
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=trimmed.append))
    genbound.evaluate(problem(), ["losses"])
    assert not trimmed
    monkeypatch.setattr(memory, "is_large", lambda network: True)
    given = problem()
    assert trimmed == [0]
    genbound.evaluate(given, ["losses"])
    assert trimmed == [0, 0]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "is_large", lambda network: True)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert problem().batch_size == 16


def test_the_command_line_passes_it_on(tmp_path, capsys):
    script = tmp_path / "user.py"
    script.write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))\n"
        "def train():\n"
        "    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3\n"
    )
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.save(model.state_dict(), tmp_path / "after.pt")
    torch.save({name: torch.zeros_like(p) for name, p in model.state_dict().items()}, tmp_path / "before.pt")
    common = ["inspect", str(tmp_path / "after.pt"), str(tmp_path / "before.pt")]
    common += ["--model", f"{script}:build", "--data", f"{script}:train"]
    assert main([*common, "--memory", "1e-7"]) == 0
    assert "at batch size 1." in capsys.readouterr().out
    assert main([*common, "--memory", "-1"]) != 0
    assert "memory budget of -1 GiB" in capsys.readouterr().err
