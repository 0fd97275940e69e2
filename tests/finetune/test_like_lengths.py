"""Batches of like length: every sample once, hardly any padding, and nothing that depends on where a run began."""

import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genbound.data.texts import TokenSamples
from genbound.finetune.like_lengths import POOL, LikeLengths

SIZES = random.Random(3).choices(range(1, 60), k=1003)


def batches(order, size):
    return [order[k : k + size] for k in range(0, len(order), size)]


def padding(order, size, sizes):
    """Share of the places of all batches that are padding."""
    places = sum(len(batch) * max(sizes[i] for i in batch) for batch in batches(order, size))
    return 1 - sum(sizes) / places


@pytest.mark.parametrize("size", [1, 8, 32, 1003, 2000])
def test_every_sample_once_and_like_lengths_together(size):
    order = list(LikeLengths(SIZES, size, seed=0))
    assert sorted(order) == list(range(1003))
    if size == 8:
        shuffled = list(range(1003))
        random.Random(0).shuffle(shuffled)
        assert padding(order, 8, SIZES) < 0.1 < 0.3 < padding(shuffled, 8, SIZES)


def test_long_and_short_batches_come_in_random_order():
    lengths = [max(SIZES[i] for i in batch) for batch in batches(list(LikeLengths(SIZES, 8, seed=0)), 8)][:-1]
    falls = sum(a > b for a, b in zip(lengths, lengths[1:], strict=False))
    assert 0.35 < falls / len(lengths) < 0.65
    assert len(lengths) > 2 * POOL


def test_the_epoch_and_the_seed_decide_the_order():
    one, again = LikeLengths(SIZES, 8, seed=0), LikeLengths(SIZES, 8, seed=0)
    first = list(one)
    again.set_epoch(4)
    one.set_epoch(4)
    fourth = list(one)
    assert fourth == list(again) and fourth != first
    other = LikeLengths(SIZES, 8, seed=1)
    other.set_epoch(4)
    assert list(other) != fourth


class Reader(nn.Module):
    """Scores of the mean of its tokens; keeps the tokens of every training pass."""

    def __init__(self):
        super().__init__()
        self.tokens, self.fc, self.seen = nn.Embedding(40, 4), nn.Linear(4, 2), []

    def forward(self, input_ids, attention_mask):
        if self.training:
            self.seen.append(input_ids)
        seen = attention_mask[..., None]
        return self.fc((self.tokens(input_ids) * seen).sum(1) / seen.sum(1))


def test_a_run_trains_on_them(tmp_path):
    pytest.importorskip("accelerate", reason="needs accelerate")
    from genbound.finetune import Settings, finetune

    models = []

    def make():
        models.append(Reader())
        return models[-1]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file({"tokens.weight": Reader().tokens.weight.detach()}, tmp_path / "init.safetensors")
    draw = random.Random(0)
    rows = [draw.choices(range(1, 40), k=length) for length in SIZES[:83]]
    samples = TokenSamples(
        [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], [row[0] % 2 for row in rows]
    )
    settings = Settings(epochs=2, batch_size=4, group_by_length=True)
    finetune(tmp_path / "init.safetensors", samples, tmp_path / "run", model=make, settings=settings)
    passes = next(model.seen for model in models if model.seen)
    epochs = passes[:21], passes[21:]
    for epoch in epochs:
        assert sum(map(len, epoch)) == 83
        found = sorted([number for number in row if number] for ids in epoch for row in ids.tolist())
        assert found == sorted(rows)
        assert 1 - sum(map(len, rows)) / sum(ids.numel() for ids in epoch) < 0.15
    assert [ids.tolist() for ids in epochs[0]] != [ids.tolist() for ids in epochs[1]]
