"""The real checkpoints that are measured.

Weights and data are read from where the environment says (see docs/performance.md).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from genbound import Problem, load
from genbound.data.run_folder import Relabelled
from genbound.finetune.training_data import all_labels

ROOT = Path(__file__).parent.parent


def folder(variable: str) -> Path:
    """The directory that an environment variable names."""
    if not os.environ.get(variable):
        raise SystemExit(f"benchmarks: set {variable} (see docs/performance.md)")
    return Path(os.environ[variable])


def minilm(num: int, batch_size: int = 16, **options) -> Problem:
    """MiniLM fine-tuned on SST-2 for two epochs: the output of examples/minilm_sst2.py."""
    pair = folder("GENBOUND_MINILM")
    data = f"csv:{folder('GENBOUND_SHARED') / 'data' / 'sst2_train.csv'}?text=sentence&label=label"
    return load(pair / "finetuned", pair / "pretrained", data=data, num_samples=num, batch_size=batch_size, **options)


def minilm_alone(num: int, batch_size: int = 16) -> Problem:
    """The same with ``num`` of the sentences as all that there are: no choice of samples that an error could be for."""
    some = minilm(num, batch_size)
    data = Relabelled(some.data, all_labels(some.data), sorted(some.indices))
    return Problem(some.model, some.init, data, batch_size=batch_size)


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


def measured_loss(problem: Problem) -> float:
    """Mean loss over the measured samples alone."""
    with torch.no_grad():
        losses = [
            problem.loss.per_sample(problem.forward(problem.params, batch.inputs), batch.targets)
            for batch in map(problem.batch, problem.batches(range(problem.num_samples)))
        ]
    return float(torch.cat(losses).double().mean())


class Head(nn.Module):
    """A small text network with one output for every word: of the whole text, or of each of its positions."""

    def __init__(self, num_outputs: int, by_token: bool, width: int = 64):
        super().__init__()
        self.words, self.hidden, self.head = (
            nn.Embedding(num_outputs, width),
            nn.Linear(width, width),
            nn.Linear(width, num_outputs),
        )
        self.by_token = by_token

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.hidden(self.words(x)))
        return self.head(h if self.by_token else h.mean(1))


HEADS = {
    "1000 classes": (1000, False),
    "30522 classes": (30522, False),
    "30522 words at each of 32 positions": (30522, True),
}


def large_head(kind: str, num: int = 32, length: int = 32) -> Problem:
    """Random weights near their initialisation: what is measured is memory."""
    torch.manual_seed(0)
    num_outputs, by_token = HEADS[kind]
    model = Head(num_outputs, by_token)
    init = {name: p.detach() + 0.01 * torch.randn_like(p) for name, p in model.named_parameters()}
    words = torch.randint(0, num_outputs, (num, length))
    return Problem(model, init, (words, words if by_token else words[:, 0]), batch_size=16)


def cifar(network: str, num: int, batch_size: int = 16) -> Problem:
    """``resnet20`` or ``efficientnet_lite0``: the output of examples/cifar10/make_pair.py."""
    os.environ.setdefault("CIFAR10", str(folder("GENBOUND_SHARED") / "data"))
    pair, example = folder("GENBOUND_CIFAR10") / network, ROOT / "examples" / "cifar10"
    return load(
        pair / "finetuned.safetensors", pair / "pretrained.safetensors", model=f"{example / network}.py:build",
        data=f"{example / 'data.py'}:{network}_train", num_samples=num, batch_size=batch_size,
    )  # fmt: skip
