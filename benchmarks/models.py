"""The real checkpoints that are measured.

Weights and data are read from where the environment says (see docs/performance.md).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
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


# Outputs, and whether each position of a text has a label of its own.
HEADS = {
    "1000 classes": (1000, False),
    "30522 classes": (30522, False),
    "30522 words at each of 32 positions": (30522, True),
}
BLOCKS = 2
# The layer with the longest vectors, in the block whose passes are the deepest, and the head.
SEARCHED = ("bert.encoder.layer.0.intermediate.dense.weight", "classifier.weight")


def large_head(kind: str, num: int = 16, length: int = 32) -> Problem:
    """A BERT of BERT-base's widths with random weights near their initialisation: what is measured is memory."""
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

    torch.manual_seed(0)
    num_outputs, by_token = HEADS[kind]
    network = BertForTokenClassification if by_token else BertForSequenceClassification
    model = network(BertConfig(num_hidden_layers=BLOCKS, num_labels=num_outputs)).eval()
    init = {name: p.detach() + 0.01 * torch.randn_like(p) for name, p in model.named_parameters()}
    words = torch.randint(0, model.config.vocab_size, (num, length))
    labels = words if by_token else words[:, 0] % num_outputs
    return Problem(model, init, (words, labels), batch_size=16, copy_weights=False)


def with_layers(problem: Problem, names: Sequence[str]) -> Problem:
    """The same problem with some of its layers measured."""
    some = copy.copy(problem)
    some.layers = tuple(layer for layer in problem.layers if layer.name in names)
    some.samples_first = {layer.name: layer.samples_first for layer in some.layers}
    return some


def cifar(network: str, num: int, batch_size: int = 16) -> Problem:
    """``resnet20`` or ``efficientnet_lite0``: the output of examples/cifar10/make_pair.py."""
    os.environ.setdefault("CIFAR10", str(folder("GENBOUND_SHARED") / "data"))
    pair, example = folder("GENBOUND_CIFAR10") / network, ROOT / "examples" / "cifar10"
    return load(
        pair / "finetuned.safetensors", pair / "pretrained.safetensors", model=f"{example / network}.py:build",
        data=f"{example / 'data.py'}:{network}_train", num_samples=num, batch_size=batch_size,
    )  # fmt: skip
