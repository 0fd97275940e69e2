"""Damaged files by the thousand: each loads or is refused in one line.

None ends in a traceback, a hang or a runaway allocation.
"""

import contextlib
import json
import random
import resource
import signal
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genbound.checkpoints.architecture import build_pair
from genbound.checkpoints.state_file import read_state
from genbound.data import load_data
from genbound.errors import GenboundError

ODD = [
    0, 1, -1, 2, 7, 255, 1 << 31, -(1 << 31), 1 << 62, 10**18, 10**40, 0.5, 1e308, float("nan"), float("inf"), None,
    True, "", "x", "F32", "F8_E4M3",
    "I64", "../x", "\x00", "é" * 50, [], [0], [1, 2], [[]], [10**9, 10**9], {}, {"a": 1}, "9" * 5000, [0, 1 << 40],
]  # fmt: skip


@contextlib.contextmanager
def guarded(seconds: int = 60):
    """An allocation of gigabytes or a minute's work ends the test."""

    def late(*_):
        raise TimeoutError("hangs")

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), limits[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def survives(function, what) -> bool:
    """Whether it was refused; anything but a clean refusal or a result fails."""
    try:
        with guarded():
            function()
    except GenboundError as error:
        message = str(error)
        assert "\n" not in message and 20 < len(message) < 1500, message
        return True
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} for {what!r}") from error
    return False


def mutate_bytes(content: bytes, stream: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(stream.choice((1, 1, 2, 5))):
        kind, place = stream.randrange(6), stream.randrange(max(len(data), 1))
        if kind == 0 and data:
            data[place] = stream.randrange(256)
        elif kind == 1:
            del data[place : place + stream.choice((1, 4, 50))]
        elif kind == 2:
            data[place:place] = bytes(stream.randrange(256) for _ in range(stream.choice((1, 3, 20))))
        elif kind == 3:
            data[place:place] = data[max(0, place - 20) : place]
        elif kind == 4:
            del data[place:]
        elif data:
            data[place] ^= 1 << stream.randrange(8)
    return bytes(data)


def mutate_json(content, stream: random.Random, depth: int = 0):
    """One value somewhere inside becomes an odd one, or goes, or is doubled under another name."""
    if isinstance(content, dict) and content and (depth == 0 or stream.random() < 0.7):
        found, key = dict(content), stream.choice(list(content))
        kind = stream.randrange(5)
        if kind == 0:
            del found[key]
        elif kind == 1:
            found[stream.choice(["x", "", "weight", key + key, "__metadata__"])] = found[key]
        elif kind == 2:
            found[key] = stream.choice(ODD)
        else:
            found[key] = mutate_json(found[key], stream, depth + 1)
        return found
    if isinstance(content, list) and content and stream.random() < 0.7:
        found, place = list(content), stream.randrange(len(content))
        found[place] = mutate_json(found[place], stream, depth + 1)
        return found
    return stream.choice(ODD)


def safetensors(folder, stream, number):
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    good = folder / "good.safetensors"
    save_file(net.state_dict(), good, metadata={"format": "pt"})
    content = good.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    refused = 0
    for _ in range(number):
        if stream.random() < 0.5:
            changed = json.dumps(mutate_json(header, stream)).encode()
            length = (
                len(changed)
                if stream.random() < 0.9
                else stream.choice((0, 1 << 20, 1 << 40, 1 << 63, len(changed) - 1))
            )
            bad = struct.pack("<Q", length) + changed + body
        else:
            bad = mutate_bytes(content[: 8 + size], stream) + body
        (folder / "bad.safetensors").write_bytes(bad)
        refused += survives(lambda: read_state(folder / "bad.safetensors"), bad[:300])
        if stream.random() < 0.1:
            survives(lambda: build_pair(folder / "bad.safetensors", good, net), bad[:300])
    return refused


def configs(folder, stream, number):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4,
        max_position_embeddings=8,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "good")
    (folder / "bad").mkdir()
    (folder / "bad" / "model.safetensors").write_bytes((folder / "good" / "model.safetensors").read_bytes())
    text = (folder / "good" / "config.json").read_text()
    content, refused = json.loads(text), 0
    for _ in range(number):
        bad = (
            json.dumps(mutate_json(content, stream)).encode()
            if stream.random() < 0.8
            else mutate_bytes(text.encode(), stream)
        )
        (folder / "bad" / "config.json").write_bytes(bad)
        refused += survives(lambda: build_pair(folder / "bad", folder / "good"), bad)
    return refused


def tables(folder, stream, number):
    good = b's,l,v\n"a, b",1,0.5\nccc,0,-1\n"q""q",1,2\n'
    refused = 0
    for _ in range(number):
        bad = mutate_bytes(good, stream)
        if stream.random() < 0.2:
            bad = bad.replace(b"1", str(stream.choice(ODD)).encode(errors="ignore"), 1)
        (folder / "t.csv").write_bytes(bad)
        query = stream.choice(("image=s&label=l", "image=s&label=v", "image=s&label=l,v", "image=s&label=l&samples=1"))
        refused += survives(lambda q=query: load_data(f"csv:t.csv?{q}", base_dir=folder), bad)
    return refused


KINDS = {"safetensors": (safetensors, 200, 5000), "configs": (configs, 25, 1500), "tables": (tables, 300, 3500)}


@pytest.mark.parametrize("kind", KINDS)
def test_some(kind, tmp_path):
    fuzz, number, _ = KINDS[kind]
    assert fuzz(tmp_path, random.Random(0), number) > number // 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand(kind, tmp_path):
    fuzz, _, number = KINDS[kind]
    assert fuzz(tmp_path, random.Random(1), number) > number // 5
