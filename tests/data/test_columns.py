"""Columns of tables, named in whatever way, are the samples of the rows that there are."""

import json

import pytest
import torch

from genbound.data import Reader, load_data


class Words:
    """A tokenizer of one token a letter, two for a word of two."""

    eos_token_id = pad_token_id = pad_token_type_id = 0
    padding_side, model_max_length, is_fast = "right", 16, True

    def __call__(self, texts, pairs, **_):
        lists = [text if isinstance(text, list) else text.split() for text in texts]
        encoded = {"input_ids": [[ord(letter) for word in words for letter in word] for words in lists]}
        pieces = [[i for i, word in enumerate(words) for _ in word] for words in lists]
        return type("Encoded", (dict,), {"word_ids": lambda self, row: pieces[row]})(encoded)


ROWS = [{"s": "a", "t": "b", "l": 0}, {"s": "bc", "t": "d", "l": 1}, {"s": "c", "t": "a", "l": 0}]


def written(tmp_path, form, rows):
    file = tmp_path / f"t.{form}"
    if form == "csv":
        names = list(rows[0])
        file.write_text("\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]))
    elif form == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), file)
    return f"{form}:{file}"


FORMS = ["csv", "jsonl", "parquet"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("query", ["text=s&label=s", "text=s&text_pair=s&label=l", "text=s&label=l,l"])
def test_a_column_named_twice_has_its_rows_once(form, query, tmp_path):
    causal = "label=s" in query
    rows = [{**row, "s": row["s"] + "x"} for row in ROWS]
    samples = load_data(f"{written(tmp_path, form, rows)}?{query}", Reader(Words(), next_token=causal))
    plain = load_data(f"{written(tmp_path, form, rows)}?text=s&label=l", Reader(Words(), next_token=causal))
    assert len(samples) == 3 and torch.equal(
        samples.batch(range(3)).inputs["input_ids"], plain.batch(range(3)).inputs["input_ids"]
    )
    if not causal:
        targets = samples.batch(range(3)).targets
        assert torch.equal(targets if targets.ndim == 1 else targets[:, 1], plain.batch(range(3)).targets)


def test_lists_of_words_may_have_one_class_a_text(tmp_path):
    words = [{"s": row["s"].split() + ["ab"], "l": row["l"]} for row in ROWS]
    texts = [{"s": " ".join(row["s"]), "l": row["l"]} for row in words]
    found = load_data(f"{written(tmp_path, 'jsonl', words)}?text=s&label=l", Reader(Words())).batch(range(3))
    plain = load_data(f"{written(tmp_path, 'csv', texts)}?text=s&label=l", Reader(Words())).batch(range(3))
    assert torch.equal(found.inputs["input_ids"], plain.inputs["input_ids"])
    assert found.targets.tolist() == plain.targets.tolist() == [0, 1, 0]
