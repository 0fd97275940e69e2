"""Damaged and hostile files of every kind: read, or refused in one line; ``mutations.py`` makes them from seeds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutations.py")
NEEDS = {
    "parquet": "pyarrow", "csv": "PIL", "image": "PIL", "config": "transformers", "adapter": "peft",
    "tokenizer": "tokenizers",
}  # fmt: skip
PLAIN = ["safetensors", "torch", "legacy", "sparse", "npz", "csv", "jsonl", "parquet", "image", "yaml"]
STORED = ["results", "baseline"]
LIBRARIES = ["config", "adapter", "tokenizer"]


def mutate(kinds: list[str], cases: int, seed: int) -> None:
    pytest.importorskip("resource", reason="limits of memory are those of Unix")
    for kind in kinds:
        pytest.importorskip(NEEDS.get(kind, "torch"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--cases", str(cases), "--seed", str(seed), "--kinds", *kinds],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, f"the interpreter ended with {done.returncode} at {done.stderr[-1500:]}"
    found = json.loads(done.stdout)
    assert set(found) == set(kinds)
    failures = [failure for told in found.values() for failure in told["failures"]]
    assert not failures, failures[:5]
    # Neither is everything refused, nor is nothing damaged.
    assert all(0 < told["read"] < told["cases"] for told in found.values() if told["cases"] > 90), found


@pytest.mark.parametrize("kinds", [PLAIN, STORED, LIBRARIES], ids=["plain", "stored", "libraries"])
def test_some(kinds):
    """Five hundred in all."""
    mutate(kinds, {len(PLAIN): 370, len(STORED): 85, len(LIBRARIES): 45}[len(kinds)], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [PLAIN, STORED, LIBRARIES], ids=["plain", "stored", "libraries"])
def test_many(kinds):
    """Ten thousand in all."""
    mutate(kinds, {len(PLAIN): 8000, len(STORED): 1400, len(LIBRARIES): 600}[len(kinds)], seed=1)
