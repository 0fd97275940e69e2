"""What is otherwise in a large network: weights are shared, differences made when needed, copies tried together."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import genbound
from genbound.checkpoints.architecture import load_pair
from genbound.checkpoints.pair_spec import PairSpec
from genbound.errors import GenboundError
from genbound.network import derivative_checks, derivative_trial, displacement
from genbound.network.displacement import Differences, Displacement
from genbound.network.weights_by_need import WeightsByNeed


class Block(nn.Module):
    def __init__(self, hides):
        super().__init__()
        self.dense, self.out, self.hides = nn.Linear(4, 4), nn.Linear(4, 4), hides

    def forward(self, x):
        inner = torch.tanh(self.dense(x))
        if self.hides == "first":
            inner = inner.detach()
        if self.hides == "second":
            inner = SavedSlope.apply(self.dense(x))
        return x + self.out(inner)


class SavedSlope(torch.autograd.Function):
    """Its backward pass takes a number of its forward pass for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 1 - x.tanh() ** 2
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


def problem(hides=None, which=1, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [Block(hides if i == which else None) for i in range(5)]
        model = nn.Sequential(*blocks, nn.Linear(4, 3)).double()
        init = {n: p.detach() - 0.1 * torch.randn_like(p) for n, p in model.named_parameters()}
        data = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3
    return genbound.Problem(model, init, data, **options)


@pytest.fixture(params=["whole weights", "some columns", "run by run"])
def large(monkeypatch, request):
    """Every network counts as a large one."""
    monkeypatch.setattr(derivative_trial, "LARGE", 0)
    if request.param != "whole weights":
        monkeypatch.setattr(derivative_trial, "PART", 8)
    if request.param == "run by run":
        monkeypatch.setattr(derivative_trial, "ROOM", 300)
    monkeypatch.setattr(displacement, "KEPT", 0)


def test_copies_of_a_module_are_tried_together(large, monkeypatch):
    tried = []
    own = derivative_checks._first_agrees
    monkeypatch.setattr(
        derivative_checks, "_first_agrees", lambda trial, names, known: tried.append(names) or own(trial, names, known)
    )
    assert len(problem().layers) == 11
    assert [len(names) for names in tried] == [5, 5, 1]


@pytest.mark.parametrize("which", [0, 3])
def test_a_derivative_that_one_of_them_hides_is_found(large, which):
    with pytest.raises(GenboundError, match=r"layer \d\.dense\.weight moves the network's output"):
        problem("first", which)


@pytest.mark.parametrize("which", [0, 3])
def test_a_second_derivative_that_one_of_them_hides_is_found(large, which):
    with pytest.raises(GenboundError, match=r"second derivative in layer \d\.dense"):
        problem("second", which)


def test_a_reader_is_told_that_they_were_tried_together(large, monkeypatch):
    (remark,) = problem().remarks
    assert "11 layers were checked in 3 groups" in remark
    monkeypatch.setattr(derivative_trial, "LARGE", 10**6)
    assert not problem().remarks


@pytest.mark.parametrize("second", [False, True])
def test_the_derivatives_of_some_columns_keep_nothing_else(large, second):
    given = problem()
    names = [layer.name for layer in given.layers]
    trial = derivative_trial.Trial(given, names, derivative_trial.DOUBLE)
    _, known = trial.gradients(trial.weights, names, second)
    assert known.keys() == set(names)
    for name, gradient in known.items():
        assert gradient.shape == trial.weights[name].shape
        assert gradient.untyped_storage().nbytes() == gradient.nbytes


def test_a_part_that_one_of_them_hides_is_found(large):
    """Half of what the layer does is seen by autograd."""

    class Half(Block):
        def forward(self, x):
            inner = torch.tanh(self.dense(x))
            return x + self.out(0.5 * inner + 0.5 * inner.detach())

    torch.manual_seed(0)
    model = nn.Sequential(Block(None), Block(None), Half(None), nn.Linear(4, 3)).double()
    init = {n: p.detach() - 0.1 * torch.randn_like(p) for n, p in model.named_parameters()}
    with pytest.raises(GenboundError, match=r"the derivative in layer 0\.dense\.weight is not that"):
        genbound.Problem(model, init, (torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3))


def test_no_two_displacements_are_there_at_a_time():
    made = []

    class Seen(Differences):
        def __getitem__(self, name):
            made.append(name)
            return super().__getitem__(name)

    init = {name: torch.zeros(2, 2) for name in "abc"}
    params = init | {"b": torch.ones(2, 2)}
    given = Displacement(Seen(params, init, ["a", "b"]), {"c": (torch.ones(2, 1), torch.ones(1, 2))})
    assert list(given) == ["c", "a", "b"] and len(given) == 3 and "b" in given and made == []
    some = given.of(["c", "b"])
    assert list(some) == ["c", "b"] and "b" in some and "a" not in some and made == []
    assert given.moved == {"b", "c"} and made == ["a", "b"]


def test_displacements_made_when_needed_are_the_same(monkeypatch):
    names = ["displacement_norm", "max_quadratic_form", "layer_curvature"]
    kept = genbound.evaluate(problem(), names)
    monkeypatch.setattr(displacement, "KEPT", 0)
    lazy = problem()
    assert isinstance(lazy.displacement._dense, Differences)
    assert genbound.evaluate(lazy, names).quantities == kept.quantities
    for options in ({}, {"maximum": "found"}):
        found = genbound.measure(lazy, "max_quadratic_form", **options)
        assert found == genbound.measure(problem(), "max_quadratic_form", **options)


def test_initial_weights_stay_in_half_precision_until_they_are_asked_for(monkeypatch):
    """Widening is exact: all numbers are those of weights that were widened at once."""

    def half():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(Block(None), nn.Linear(4, 3)).bfloat16()
            init = {n: (p.detach() - 0.1 * torch.randn_like(p)) for n, p in model.named_parameters()}
            return genbound.Problem(model, init, (torch.randn(6, 4), torch.arange(6) % 3), copy_weights=False)

    names = ["displacement_norm", "max_quadratic_form", "matrix_norms", "loss_path", "layer_norms"]
    known = half()
    monkeypatch.setattr(displacement, "KEPT", 0)
    lazy = half()
    assert isinstance(lazy.init, WeightsByNeed) and set(lazy.init) == set(known.init) and "1.bias" in lazy.init
    assert all(stored.dtype == torch.bfloat16 for stored in lazy.init.stored.values())
    assert lazy.digest() == known.digest()
    found, expected = (genbound.evaluate(p, names).quantities for p in (lazy, known))
    assert found == expected


def test_some_layers_of_a_displacement(large):
    params = {"a": torch.ones(2, 2), "b": torch.zeros(2, 2), "c": torch.ones(2, 2)}
    init = {name: torch.zeros(2, 2) for name in params}
    factors = {"c": (torch.ones(2, 1), torch.ones(1, 2))}
    moved = Displacement.between(params, init, params, factors)
    assert moved.moved == {"a", "c"} and set(moved) == {"a", "b", "c"} and len(moved) == 3
    some = moved.of(["c", "a"])
    assert set(some) == {"a", "c"} and torch.equal(some["a"], torch.ones(2, 2)) and some.norm("c") == 2.0
    with pytest.raises(KeyError):
        some["b"]


def test_a_problem_copies_the_weights_of_a_model_that_may_go_on_training():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    data = torch.randn(4, 3), torch.arange(4) % 2
    own, shared = (genbound.Problem(model, init, data, copy_weights=c) for c in (True, False))
    before = own.params["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(own.params["weight"], before)
    assert shared.params["weight"].data_ptr() == model.weight.data_ptr()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers so
def test_the_base_of_an_adapter_is_in_memory_once(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    start = copy.deepcopy(base.state_dict())
    tuned = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    tuned.save_pretrained(tmp_path / "tuned")
    pair = load_pair(PairSpec(str(tmp_path / "tuned"), str(tmp_path / "base")))
    assert len(pair.factors) == 2
    for name, weight in pair.params.items():
        adapted = "q_proj" in name
        assert torch.equal(pair.init[name], start[name])
        assert torch.equal(weight, start[name]) is not adapted
        if weight.dim() == 2:
            assert (weight.data_ptr() == pair.init[name].data_ptr()) is not adapted


MEMORY = """
import gc
import sys
from pathlib import Path

import genbound
from genbound.checkpoints import adapters, huggingface  # what they import is not the network's


def own():
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


huggingface.import_transformers().LlamaForCausalLM, __import__("peft")
before = own()
problem = genbound.load(sys.argv[1], sys.argv[2], data=f"npz:{sys.argv[3]}", layers="*.3.self_attn.q_proj.weight")
weights = sum(p.numel() * p.element_size() for p in problem.params.values()) / 2**20
print(own() - before, weights)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers so
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_loaded_network_takes_less_than_its_weights(tmp_path):
    """They are mapped from the file: what is there beside them is the merged layers and what torch holds on to."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30000, hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    tuned = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.02)
    tuned.save_pretrained(tmp_path / "tuned")
    ids = torch.randint(0, 30000, (4, 16)).numpy()
    np.savez(tmp_path / "data.npz", input_ids=ids, labels=ids)
    paths = [str(tmp_path / name) for name in ("tuned", "base", "data.npz")]
    ran = subprocess.run([sys.executable, "-c", MEMORY, *paths], capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stderr[-2000:]
    own, weights = map(float, ran.stdout.split())
    assert weights > 350 and own < 0.8 * weights
