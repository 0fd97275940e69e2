"""Predictions of many samples: in the samples' order, however they were taken together."""

import random

import torch
from torch import nn

from genbound.data.samples import TensorSamples
from genbound.data.texts import TokenSamples
from genbound.finetune.predictions import predict

LENGTHS = [3, 9, 1, 9, 4, 2, 7, 1, 5, 8]


class Reader(nn.Module):
    """The mean of its tokens' scores."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Embedding(20, 3)

    def forward(self, input_ids, attention_mask):
        seen = attention_mask[..., None]
        return (self.scores(input_ids) * seen).sum(1) / seen.sum(1)


def test_texts_are_predicted_as_each_by_itself_and_hardly_padded():
    draw = random.Random(0)
    rows = [[draw.randrange(20) for _ in range(length)] for length in LENGTHS]
    samples = TokenSamples(
        [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], list(range(len(rows)))
    )
    model = Reader()
    places = []
    model.scores.register_forward_pre_hook(lambda _, inputs: places.append(inputs[0].numel()))
    logits, labels = predict(model, samples, size=2)
    read = sum(places)
    assert labels.tolist() == list(range(len(rows)))
    alone = torch.stack([model.scores(torch.tensor(row)).mean(0) for row in rows])
    torch.testing.assert_close(logits, alone.detach())
    # In pairs of the sorted lengths 1 1, 2 3, 4 5, 7 8, 9 9; in the order of the file they would have 74.
    assert read == 2 * (1 + 3 + 5 + 8 + 9)


def test_samples_of_one_size_keep_their_order():
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(4, 2)
    logits, labels = predict(model, TensorSamples(x, torch.arange(7)), size=3)
    torch.testing.assert_close(logits, model(x).detach())
    assert labels.tolist() == list(range(7))
