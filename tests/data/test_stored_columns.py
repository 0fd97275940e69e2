"""Tables larger than memory: rows are read when they are asked for, and are the same samples."""

import random

import pytest
import torch
from torch.testing import assert_close

from genbound.data import Reader, load_data, stored_columns
from genbound.errors import GenboundError

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


class Words:
    """A tokenizer of one number a letter."""

    eos_token_id = pad_token_id = pad_token_type_id = 0
    padding_side, model_max_length, is_fast = "right", 16, True

    def __call__(self, texts, pairs, **_):
        joined = texts if pairs is None else [a + b for a, b in zip(texts, pairs, strict=True)]
        return {"input_ids": [[ord(c) for c in text] for text in joined]}


def rows(kind, num=95):
    rng = random.Random(0)
    texts = ["".join(rng.choice("abcdef") for _ in range(rng.randrange(1, 9))) for _ in range(num)]
    labels = [rng.randrange(3) for _ in range(num)]
    if kind == "texts":
        return {"one": texts, "two": texts[::-1], "y": [f"class {label}" for label in labels]}
    return {"input_ids": [[ord(c) for c in text] for text in texts], "labels": labels, "other": texts}


QUERY = {"texts": "?text=one&text_pair=two&label=y", "tokens": ""}


def written(tmp_path, kind, form):
    table = pa.table(rows(kind))
    if form == "parquet":
        parquet.write_table(table, tmp_path / "t.parquet", row_group_size=10)
        return f"parquet:{tmp_path}/t.parquet{QUERY[kind]}"
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    if form == "saved":
        datasets.Dataset(table).save_to_disk(str(tmp_path / "set"))
    else:
        (tmp_path / "set").mkdir()
        parquet.write_table(table, tmp_path / "set" / "part.parquet", row_group_size=10)
    return f"hf:{tmp_path}/set{QUERY[kind]}"


@pytest.mark.parametrize("form", ["parquet", "saved", "files"])
@pytest.mark.parametrize("kind", ["texts", "tokens"])
def test_rows_on_disk_are_the_samples_of_a_table_in_memory(tmp_path, monkeypatch, kind, form):
    spec = written(tmp_path, kind, form)
    known = load_data(spec, Reader(Words()))
    monkeypatch.setattr(stored_columns, "LARGE", 0)
    stored = load_data(spec, Reader(Words()))
    held = stored._texts if kind == "texts" else stored._rows
    assert isinstance(held, stored_columns.StoredColumn) and len(stored) == len(known) == 95
    assert stored.digest() == known.digest() and stored.content_digest() == known.content_digest()
    order = random.Random(1).sample(range(95), 95)
    assert sorted(order, key=lambda i: (stored.size(i), i)) == sorted(order, key=lambda i: (known.size(i), i))
    some, others = stored.batch(order[:7]), known.batch(order[:7])
    assert_close(some.inputs, others.inputs)
    assert torch.equal(some.targets, others.targets) and stored.label2id == known.label2id


def test_no_row_group_is_read_but_those_of_the_samples_asked_for(tmp_path, monkeypatch):
    spec, read = written(tmp_path, "texts", "parquet"), []
    monkeypatch.setattr(stored_columns, "LARGE", 0)
    own = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile, "read_row_group", lambda self, i, columns: read.append(i) or own(self, i, columns=columns)
    )
    samples = load_data(spec, Reader(Words()))
    del read[:]  # the first text says whether texts are lists of words
    samples.batch([31, 30, 94])
    samples.batch([39, 93, 30])
    assert read == [3, 9]
    first = load_data(f"{spec}&samples=12", Reader(Words()))
    assert len(first) == 12 and first.shown(11) == samples.shown(11)


def test_what_is_missing_or_damaged_is_said_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_columns, "LARGE", 0)
    table = rows("texts")
    table["one"][42] = None
    parquet.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=10)
    samples = load_data(f"parquet:{tmp_path}/t.parquet{QUERY['texts']}", Reader(Words()))
    samples.batch([41])
    with pytest.raises(GenboundError, match="column 'one' of sample 42 is empty"):
        samples.batch([42])
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[4:400] = bytes(396)
    (tmp_path / "t.parquet").write_bytes(bytes(content))
    with pytest.raises(GenboundError, match="no readable parquet file"):
        load_data(f"parquet:{tmp_path}/t.parquet{QUERY['texts']}", Reader(Words())).batch([1])
