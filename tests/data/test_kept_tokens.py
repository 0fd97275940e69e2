"""Texts are kept as tokens up to a limit; which of them are kept changes no sample."""

import pytest
import torch
from torch.testing import assert_close

from genbound.data import kept_tokens
from genbound.data.kept_tokens import KeptTokens, Row
from genbound.data.texts import TextSamples


class Letters:
    """A tokenizer that counts the texts it is given; each letter of a word is a token."""

    pad_token_id, eos_token_id, pad_token_type_id = 0, 1, 0
    padding_side, model_max_length, is_fast = "right", 16, True

    def __init__(self):
        self.given = []

    def __call__(self, texts, pairs, is_split_into_words=False, **_):
        self.given += texts
        rows = [[ord(c) for word in text for c in word] for text in texts]
        found = Encoded({"input_ids": rows})
        found.words = [[i for i, word in enumerate(text) for _ in word] for text in texts]
        return found


class Encoded(dict):
    def word_ids(self, place):
        return self.words[place]


@pytest.mark.parametrize("words", [False, True])
def test_what_goes_is_tokenised_again(monkeypatch, words):
    monkeypatch.setattr(kept_tokens, "MOST", 20)
    texts = [[f"{i:03d}", "ab"] if words else f"{i:03d}ab" for i in range(100)]
    labels = [[i, i + 1] if words else i for i in range(100)]
    tokenizer = Letters()
    samples = TextSamples(texts, None, labels, tokenizer)
    order = list(range(9, -1, -1))
    for _ in range(2):
        batch = samples.batch(order)  # more than are kept, and all of them are needed
        own = torch.stack([torch.tensor([ord(c) for c in "".join(texts[i])]) for i in order])
        assert torch.equal(batch.inputs["input_ids"], own)
        if words:
            assert_close(batch.targets, torch.tensor([[i, -100, -100, i + 1, -100] for i in order]))
        else:
            assert_close(batch.targets, torch.tensor(order))
    assert len(tokenizer.given) == 10  # the last ones stay as long as nothing else is asked for
    samples.batch([50])
    samples.batch([0, 1])
    assert len(tokenizer.given) == 11
    samples.batch([9])
    assert len(tokenizer.given) == 12 and len(samples._kept._rows) <= 4


def test_sizes_are_kept_without_the_tokens(monkeypatch):
    monkeypatch.setattr(kept_tokens, "MOST", 8)
    tokenizer = Letters()
    samples = TextSamples(["a" * (1 + i % 7) for i in range(50)], None, list(range(50)), tokenizer)
    assert (
        [samples.size(i) for i in range(50)] == [1 + i % 7 for i in range(50)] == [samples.size(i) for i in range(50)]
    )
    assert len(tokenizer.given) == 50


def test_those_that_were_asked_for_longest_ago_go_first(monkeypatch):
    monkeypatch.setattr(kept_tokens, "MOST", 3)
    kept = KeptTokens()
    for i in range(3):
        kept[i] = Row({"input_ids": [i]})
    assert kept[0].tokens == {"input_ids": [0]}
    kept[3] = Row({"input_ids": [3]})
    kept.let_go(1)
    assert 0 in kept and 1 not in kept and 2 in kept and 3 in kept
    kept[4] = Row({"input_ids": [4] * 9})
    kept.let_go(1)
    assert 4 in kept and 3 not in kept
