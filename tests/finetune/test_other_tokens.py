"""A run whose tokenizer reads its texts otherwise is another run."""

import csv
import json

import pytest
import torch

from genbound.errors import GenboundError


def test_another_tokenizer_is_another_run(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from genbound.finetune.run import finetune
    from genbound.finetune.settings import Settings

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["[PAD]", "[UNK]", "good", "bad", "film"]
    file = tmp_path / "texts.csv"
    with file.open("w", newline="") as stream:
        rows = [["text", "label"], *([f"{'good' if i % 2 else 'bad'} film", i % 2] for i in range(8))]
        csv.writer(stream).writerows(rows)

    def write(folder, order):
        model = tokenizers.models.WordLevel({word: i for i, word in enumerate(order)}, unk_token="[UNK]")
        plain = tokenizers.Tokenizer(model)
        plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
        ).save_pretrained(folder)

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    config = transformers.BertConfig(vocab_size=5, num_hidden_layers=1, num_labels=2, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "init")
    write(tmp_path / "init", words)

    def run():
        return finetune(
            tmp_path / "init",
            f"csv:{file}?text=text&label=label",
            tmp_path / "out",
            settings=Settings(epochs=1, batch_size=4),
        )

    first = run()
    assert run() == first  # it is finished
    write(tmp_path / "init", [*words[:2], "bad", "good", "film"])
    with pytest.raises(GenboundError, match="holds a run with other settings .*tokens"):
        run()
    stored = json.loads((tmp_path / "out" / "settings.json").read_text())
    del stored["tokens"]  # a version before did not write it, and its runs are taken at their word
    (tmp_path / "out" / "settings.json").write_text(json.dumps(stored))
    assert run() == first
