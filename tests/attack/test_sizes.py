"""Texts of a few bytes that ask for gigabytes or hours: refused in one line, with little memory and in little time."""

import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from genbound.checkpoints.architecture import build_pair
from genbound.checkpoints.state_file import read_state

LIMIT = 1 << 30
GUARD = """
import os, resource, signal, sys
from genbound.cli.main import main
import genbound.checkpoints.architecture, genbound.evaluation.loading, yaml
try:
    import transformers
    transformers.BertForSequenceClassification, transformers.AutoConfig
except ImportError:
    pass
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {limit}, -1))
signal.alarm(45)
sys.exit(main(sys.argv[1:]))
"""


def refused(folder: Path, *arguments: str) -> str:
    """What the command says, in a process with little memory and little time."""
    done = subprocess.run(
        [sys.executable, "-c", GUARD.format(limit=LIMIT), *arguments], cwd=folder, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("genbound: error:"), (done.returncode, done.stderr[-1500:])
    assert "unexpected" not in last and len(last) < 1100
    return last


def laughs(levels: int, key: str) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"{key}: *a{levels - 1}"])


MERGES = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9))]
)
YAML = {
    "laughs": laughs(9, "model"), "merges": MERGES, "deep": "[" * 5000, "large": "model: " + "x" * (1 << 20),
    "digits": "num_data: " + "9" * 5000, "many": "\n".join(f"k{i}: 1" for i in range(9000)),
}  # fmt: skip


@pytest.mark.parametrize("kind", YAML)
def test_yaml(kind, tmp_path):
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "a.pt")
    (tmp_path / "genbound.yaml").write_text(YAML[kind])
    refused(tmp_path, "evaluate", "a.pt", "a.pt")


def test_yaml_of_the_config_option(tmp_path):
    (tmp_path / "c.yaml").write_text(laughs(9, "model"))
    assert "--config" in refused(tmp_path, "evaluate", "a.pt", "a.pt", "--config", "c.yaml")


CONFIGS = {
    "labels": {"num_labels": 10**7},
    "layers": {"num_hidden_layers": 10**6},
    "nested": {"text_config": {"num_hidden_layers": 10**6}},
    "nested twice": {"a": {"b": [{"num_hidden_layers": 10**9}]}},
    "negative": {"num_hidden_layers": -(10**9)},
    "rows": {"vocab_size": 10**9},
    "depths": {"depths": [2, 10**7]},
    "experts": {"num_local_experts": 10**8},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4,
        max_position_embeddings=8,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "d")
    file = tmp_path / "d" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | CONFIGS[kind]))
    assert "config.json" in refused(tmp_path, "inspect", "d", "d")


def test_a_config_nested_without_end(tmp_path):
    (tmp_path / "d").mkdir()
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "d" / "pytorch_model.bin")
    for depth in (60, 100_000):
        (tmp_path / "d" / "config.json").write_text('{"model_type": "bert", "a": ' + "[" * depth + "]" * depth + "}")
        assert "config.json" in refused(tmp_path, "inspect", "d", "d")


PICKLES = {
    "bytearray": b"c__builtin__\nbytearray\n(I4294967296\ntR",
    "bytes": b"c__builtin__\nbytes\n(I4294967296\ntR",
    "list": b"(lp0\n" + b"g0\na" * 20_000,
    "long": b"\x8b\xff\xff\xff\x7f",
    "binary string": b"T\xff\xff\xff\x7fx",
    "frame": b"\x95\xff\xff\xff\xff\x00\x00\x00\x00N",
    "deep": b"(l" * 200_000 + b"a" * 199_999,
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_pickles(kind, archive, tmp_path):
    content = b"\x80\x02" + PICKLES[kind] + b"."
    if archive:
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
            for name, data in (("a/data.pkl", content), ("a/version", b"3\n"), ("a/byteorder", b"little")):
                file.writestr(name, data)
    else:
        (tmp_path / "a.pt").write_bytes(content)
    refused_here(lambda: read_state(tmp_path / "a.pt"))


ADAPTERS = {
    "rank": {"r": 10**9},
    "rank by pattern": {"rank_pattern": {"query": 10**9}},
    "backtracking": {"target_modules": r"(([a-z.]+)+)+!"},
    "backtracking pattern of ranks": {"rank_pattern": {r"(([a-z.]+)+)+!": 2}},
    "replication": {"layer_replication": [[0, 10**9]]},
    "a name of a gigabyte": {"target_modules": ["x{1,1000000000}" * 20]},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters(kind, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed")
    import mutations

    monkeypatch.setattr("genbound.checkpoints.config_limits.SECONDS", 2)
    mutations.KINDS["adapter"].make(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ADAPTERS[kind]))
    refused_here(lambda: build_pair(tmp_path, tmp_path / "base"))


def refused_here(read) -> None:
    """In this process with little more memory than it has; in seconds."""
    import mutations

    previous = signal.signal(signal.SIGALRM, mutations._too_long)
    try:
        said = mutations.outcome(read)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert said and not said.startswith("!"), said
