"""The digest of live code: whatever changes what a call gives changes it, and nothing else does."""

import functools
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.network.live_code import code_digest

SCALE = 2.0


def scaled(x):
    return SCALE * x


def calls_another(x):
    return scaled(x) + 1


def through_a_module(x):
    return math.pi * torch.relu(x) + F.gelu(x)


def make(text, **names):
    """A function ``f`` out of source, with these globals."""
    space = {"torch": torch, "F": F, "nn": nn, **names}
    exec(text, space)
    return space["f"]


def closure(value):
    return lambda x: x * value


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Net(nn.Module):
    def __init__(self, heads=2):
        super().__init__()
        self.heads, self.fc = heads, nn.Linear(3, 3)

    def forward(self, x):
        return Square.apply(self.fc(x)).view(len(x), self.heads, -1).flatten(1)


PAIRS = {
    "another operation": (make("def f(x): return x + 1"), make("def f(x): return x - 1")),
    "another constant": (make("def f(x): return x + 1"), make("def f(x): return x + 2")),
    "another function inside": (make("def f(x): return (lambda y: y)(x)"), make("def f(x): return (lambda y: -y)(x)")),
    "another closure": (closure(1.0), closure(2.0)),
    "another tensor in a closure": (closure(torch.zeros(3)), closure(torch.ones(3))),
    "another default": (make("def f(x, a=1): return a * x"), make("def f(x, a=2): return a * x")),
    "another keyword's default": (make("def f(x, *, a=1): return x"), make("def f(x, *, a=2): return x")),
    "another global": (make("def f(x): return a * x", a=1), make("def f(x): return a * x", a=2)),
    "another global function": (
        make("def f(x): return g(x)", g=lambda x: x + 1),
        make("def f(x): return g(x)", g=lambda x: x + 2),
    ),
    "another function in a table": (
        make("def f(x): return t['a'](x)", t={"a": lambda x: x + 1}),
        make("def f(x): return t['a'](x)", t={"a": lambda x: x + 2}),
    ),
    "another partial": (functools.partial(scaled, 1), functools.partial(scaled, 2)),
    "another function of a library": (make("def f(x): return F.gelu(x)"), make("def f(x): return F.silu(x)")),
    "another one under the same name": (
        make("def f(x): return g(x)", g=torch.relu),
        make("def f(x): return g(x)", g=torch.tanh),
    ),
    "a method of another object": (Net(1).forward, Net(3).forward),
    "another attribute": (Net(1), Net(3)),
    "another part": (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.GELU())),
    "another setting": (nn.LayerNorm(3, eps=1e-5), nn.LayerNorm(3, eps=1e-6)),
    "another namespace": (closure(types.SimpleNamespace(a=1)), closure(types.SimpleNamespace(a=2))),
    "another set": (closure({"a", "b"}), closure({"a", "c"})),
}


def with_weights(pair):
    """Two networks with the same weights."""
    for one, other in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        other.data = one.data.clone()
    return pair


@pytest.mark.parametrize("name", PAIRS)
def test_what_computes_otherwise_has_another_digest(name):
    one, other = PAIRS[name]
    if isinstance(one, nn.Module):
        one, other = with_weights((one, other))
    assert code_digest(one) != code_digest(other)
    assert code_digest(one) == code_digest(one)


def changed(monkeypatch, target, name, value, of):
    before = code_digest(of)
    monkeypatch.setattr(target, name, value)
    assert code_digest(of) != before
    monkeypatch.undo()
    assert code_digest(of) == before


def test_a_function_that_was_replaced_is_seen(monkeypatch):
    here = sys.modules[__name__]
    changed(monkeypatch, here, "SCALE", 3.0, calls_another)
    changed(monkeypatch, here, "scaled", lambda x: x, calls_another)
    changed(monkeypatch, torch, "relu", lambda x: x, through_a_module)
    changed(monkeypatch, F, "gelu", lambda x: x, through_a_module)
    changed(monkeypatch, F, "gelu", functools.wraps(F.gelu)(lambda x: x), through_a_module)
    changed(monkeypatch, Square, "backward", staticmethod(lambda ctx, gradient: gradient), Net())


def test_a_network_that_was_changed_where_it_lies_is_seen(monkeypatch):
    net, gelu = Net(), nn.Sequential(nn.GELU())
    changed(monkeypatch, Net, "forward", lambda self, x: self.fc(x), net)
    changed(monkeypatch, net, "forward", types.MethodType(lambda self, x: self.fc(x), net), net)
    changed(monkeypatch, net, "heads", 1, net)
    changed(monkeypatch, nn.Linear, "forward", lambda self, x: x, net)
    changed(monkeypatch, nn.GELU, "forward", nn.SiLU.forward, gelu)
    changed(monkeypatch, F, "gelu", lambda x, approximate: x, gelu)  # which nn.GELU calls
    before = code_digest(net)
    hook = net.fc.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert code_digest(net) != before
    hook.remove()
    assert code_digest(net) == before


def test_weights_count_by_name_where_they_are_counted_elsewhere():
    net, other = Net(), Net()
    assert code_digest(net) != code_digest(other)
    one, two = (code_digest(n, counted=dict(n.named_parameters())) for n in (net, other))
    assert one == two
    teacher = make("def f(x): return t(x)", t=other)
    assert code_digest(teacher) != code_digest(make("def f(x): return t(x)", t=net))


def test_what_computes_nothing_does_not_count(monkeypatch):
    one = make("def f(x):\n    # a remark\n    y = x + 1\n    return y")
    assert code_digest(one) == code_digest(make("\n\ndef f(x):\n    z = x + 1\n    return z"))
    net = Net().train()
    before = code_digest(net, os)
    net.eval()
    monkeypatch.setenv("A_NAME", "a value")
    assert code_digest(net, os) == before
    reads = make("def f(x): return os.environ.get('A')", os=os)
    before = code_digest(reads)
    monkeypatch.setenv("A_NAME", "another")
    assert code_digest(reads) == before


def test_a_circle_ends():
    ring = []
    ring.append(ring)
    f = make("def f(x): return f(x)")
    assert code_digest(ring) != code_digest(f)


# Libraries change torch's classes when they are imported.
PROGRAM = """
import importlib, sys, torch
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
from torch import nn
from genbound.network.live_code import code_digest

TABLE = {"b", "a", "c", ("a", 1)}
WORDS = {name: len(name) for name in ("x", "yy")}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        nn.init.ones_(self.fc.weight), nn.init.ones_(self.fc.bias)
        self.lookup = {object: 1}
        self.names = {"p", "q"}

    def forward(self, x):
        if "a" in TABLE and self.training in {"a", "b", "c"}:
            return x
        return torch.relu(self.fc(x)) * WORDS["x"] + torch.nn.functional.gelu(x)

print(code_digest(Net(), nn.TransformerEncoderLayer(4, 2).self_attn.forward.__func__, torch.nn.functional.softmax))
"""


def test_every_process_finds_the_same(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    root = str(Path(genbound.__file__).parents[1])
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", str(tmp_path / "program.py"), *libraries], check=True,
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed},
        ).stdout
        for seed, libraries in (("1", ()), ("2", ("transformers", "peft", "accelerate", "pytorch_lightning")))
    }  # fmt: skip
    assert len(found) == 1


def test_a_transformer_is_digested_alike_and_by_its_config():
    transformers = pytest.importorskip("transformers")

    def build(**changes):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, **changes
        )
        return transformers.BertForSequenceClassification(config)

    assert code_digest(build()) == code_digest(build()) != code_digest(build(layer_norm_eps=1e-6))
