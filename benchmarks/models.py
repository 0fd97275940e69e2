"""The real checkpoints that are measured. Weights and data are read from where the environment says (see docs/performance.md)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from genbound import Problem, load

ROOT = Path(__file__).parent.parent


def folder(variable: str) -> Path:
    """The directory that an environment variable names."""
    if not os.environ.get(variable):
        raise SystemExit(f"benchmarks: set {variable} (see docs/performance.md)")
    return Path(os.environ[variable])


def minilm(num: int, batch_size: int = 16) -> Problem:
    """MiniLM fine-tuned on SST-2 for two epochs: the output of examples/minilm_sst2.py."""
    pair = folder("GENBOUND_MINILM")
    data = f"csv:{folder('GENBOUND_SHARED') / 'data' / 'sst2_train.csv'}?text=sentence&label=label"
    return load(pair / "finetuned", pair / "pretrained", data=data, num_samples=num, batch_size=batch_size)


def fitted(num: int, epochs: int = 12, batch_size: int = 16) -> Problem:
    """The same network trained on the measured sentences alone until its loss on them is below 0.01."""
    problem = minilm(num, batch_size)
    model = problem.model
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    runs = list(problem.batches(range(num)))
    for _ in range(epochs):
        total = 0.0
        for i in torch.randperm(len(runs)).tolist():
            batch = problem.batch(runs[i])
            loss = nn.functional.cross_entropy(model.eval()(**batch.inputs).logits, batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        if total / num < 0.005:
            break
    model.zero_grad()
    return Problem(model, problem.init, problem.data, num_samples=num, num_data=problem.num_data, batch_size=batch_size)


def cifar(network: str, num: int, batch_size: int = 16) -> Problem:
    """``resnet20`` or ``efficientnet_lite0``: the output of examples/cifar10/make_pair.py."""
    os.environ.setdefault("CIFAR10", str(folder("GENBOUND_SHARED") / "data"))
    pair, example = folder("GENBOUND_CIFAR10") / network, ROOT / "examples" / "cifar10"
    return load(
        pair / "finetuned.safetensors", pair / "pretrained.safetensors", model=f"{example / network}.py:build",
        data=f"{example / 'data.py'}:{network}_train", num_samples=num, batch_size=batch_size,
    )  # fmt: skip
