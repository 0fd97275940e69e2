"""Padding changes nothing: samples padded to one another have the losses of each sample alone."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import genbound
from genbound.checkpoints.padding_token import padding_token
from genbound.data import Reader, load_data
from genbound.finetune.run import finetune
from genbound.finetune.settings import Settings

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
ROWS = [[5, 6, 7], [0, 5], [8, 9, 5, 6, 7, 0], [6], [7, 7, 8, 0]]  # 0 is a token like others
END = 3


def gpt2(tmp_path, kind, **options):
    """Two random networks on the disk, and the first of them."""
    config = transformers.GPT2Config(
        vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=2, bos_token_id=END, eos_token_id=END,
        initializer_range=0.8, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"GPT2{kind}")(config).eval()
    model.save_pretrained(tmp_path / "tuned")
    getattr(transformers, f"GPT2{kind}")(config).save_pretrained(tmp_path / "start")
    return model


def jsonl(tmp_path, rows):
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return f"jsonl:{tmp_path}/t.jsonl"


def losses(tmp_path, spec):
    return genbound.measure(genbound.load(tmp_path / "tuned", tmp_path / "start", data=spec, batch_size=5), "losses")


@pytest.mark.parametrize("pad", [None, END, 11])
def test_a_classifier_of_tokens_reads_the_last_one_before_the_padding(pad, tmp_path):
    model = gpt2(tmp_path, "ForSequenceClassification", pad_token_id=pad)
    labels = [0, 1, 1, 0, 1]
    spec = jsonl(tmp_path, [{"input_ids": row, "labels": y} for row, y in zip(ROWS, labels, strict=True)])
    model.config.pad_token_id = END if pad is None else pad
    with torch.no_grad():
        alone = [
            cross_entropy(model(torch.tensor([row])).logits, torch.tensor([y])).item()
            for row, y in zip(ROWS, labels, strict=True)
        ]
    assert losses(tmp_path, spec)["train_loss"] == pytest.approx(np.mean(alone), rel=1e-5)
    record = finetune(tmp_path / "tuned", spec, tmp_path / "run", settings=Settings(epochs=1, lr=1e-9, batch_size=5))
    with torch.no_grad():
        right = [model(torch.tensor([row])).logits.argmax().item() == y for row, y in zip(ROWS, labels, strict=True)]
    assert record["accuracy"]["train_observed"] == pytest.approx(np.mean(right))


def test_what_inputs_are_padded_with():
    class Named:
        def __init__(self, pad=None, end=None, words=10):
            self.pad_token_id, self.eos_token_id, self.vocab_size = pad, end, words

    for config, tokenizer, token in [
        (Named(4, 5), Named(6, 7), 4), (Named(None, 5), Named(6, 7), 6), (Named(None, 5), Named(None, 7), 7),
        (Named(None, 5), None, 5), (None, Named(None, 7), 7), (None, None, None), (Named(None, [5, 6]), None, None),
        (Named(-1, 5), Named(10, 7), 7), (Named(None, 50256), None, None),
    ]:  # fmt: skip
        assert padding_token(config, tokenizer) == token


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_in_the_data_is_no_label_of_a_causal_language_model(side, tmp_path):
    reader, texts = Reader(next_token=True), [row for row in ROWS if len(row) > 1]
    plain, padded = [{"input_ids": row} for row in texts], []
    for row in texts:
        free = 7 - len(row)
        tokens, mask = [END] * free, [0] * free
        pair = (tokens + row, mask + [1] * len(row)) if side == "left" else (row + tokens, [1] * len(row) + mask)
        padded.append({"input_ids": pair[0], "attention_mask": pair[1]})
    found = load_data(jsonl(tmp_path, padded), reader).batch(range(4)).targets
    wanted = load_data(jsonl(tmp_path, plain), reader).batch(range(4)).targets
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == (7,) and torch.equal(one[one != -100], other[other != -100])
    if side == "right":
        model = gpt2(tmp_path, "LMHeadModel")
        with torch.no_grad():
            alone = [model(ids, labels=ids).loss.item() for ids in (torch.tensor([row]) for row in texts)]
        assert losses(tmp_path, jsonl(tmp_path, padded))["train_loss"] == pytest.approx(np.mean(alone), rel=1e-5)
