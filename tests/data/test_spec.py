"""Samples: one content, whatever the container; and files in the formats that users have."""

import json
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from genbound.data import Batch, ListSamples, Reader, TextSamples, as_samples, load_data
from genbound.errors import GenboundError

X, Y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Indexed:
    """Map-style without torch's base class, as in the datasets library; plain lists inside."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        if i >= 7:
            raise IndexError(i)
        return {"x": X[i].tolist(), "label": int(Y[i])}


CONTAINERS = {
    "pair": lambda: (X, Y),
    "arrays": lambda: (X.numpy(), Y.numpy().astype(np.int32)),
    "dataset": lambda: TensorDataset(X, Y),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3),
    "shuffling loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True, drop_last=True),
    "own collate": lambda: DataLoader(
        TensorDataset(X, Y), batch_size=3, shuffle=True, collate_fn=torch.utils.data.default_collate.__call__
    ),
    "batches": lambda: [(X[:4], Y[:4]), (X[4:], Y[4:])],
    "generator": lambda: ([X[i : i + 2], Y[i : i + 2]] for i in range(0, 7, 2)),
    "stream": Stream,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_agree(name):
    samples = as_samples(CONTAINERS[name]())
    assert len(samples) == 7
    assert samples.digest() == as_samples((X, Y)).digest()
    for _ in range(2):
        batch = samples.batch([5, 0, 5])
        assert torch.equal(batch.inputs, X[[5, 0, 5]]) and torch.equal(batch.targets, Y[[5, 0, 5]])
        assert batch.indices == [5, 0, 5] and len(batch) == 3
    assert [b.indices for b in samples.batches([6, 1, 2, 3, 0], 2)] == [[6, 1], [2, 3], [0]]
    assert as_samples(samples) is samples and len(samples.head(2)) == 2 and len(samples) == 7


def test_containers_of_dicts_agree():
    whole = as_samples({"x": X, "labels": Y})
    split = as_samples([{"x": X[:5], "y": Y[:5]}, {"x": X[5:], "y": Y[5:]}])
    rows = as_samples(Indexed())
    assert whole.digest() == split.digest() == rows.digest() != as_samples((X, Y)).digest()
    assert torch.equal(rows.batch([2]).inputs["x"], X[2:3])


def test_tuples_are_positional_inputs():
    samples = as_samples(TensorDataset(X, 2 * X, Y))
    one, two = samples.batch([1, 2]).inputs
    assert torch.equal(two, 2 * one)


def test_batches_of_other_widths_keep_their_shapes():
    samples = as_samples([(torch.ones(2, 5), [0, 1]), (torch.ones(3, 8), [1, 0, 1]), (torch.ones(1, 5), [0])])
    batches = list(samples.batches(range(6), 16))
    assert [tuple(batch.inputs.shape) for batch in batches] == [(2, 5), (3, 8), (1, 5)]
    assert samples.shape_key(0) == samples.shape_key(5) != samples.shape_key(2)


def test_a_generator_may_refill_its_buffer():
    buffer = torch.zeros(2, 1)

    def batches():
        for value in (1.0, 2.0):
            yield buffer.fill_(value), torch.zeros(2)

    assert as_samples(batches()).batch(range(4)).inputs.flatten().tolist() == [1, 1, 2, 2]


def test_endless_iterable_with_a_limit():
    endless = ((X, Y) for _ in iter(int, 1))
    assert len(as_samples(endless, limit=10)) == 10


def test_gradients_stay_behind():
    samples = as_samples((X.clone().requires_grad_(), Y))
    assert not samples.batch([0]).inputs.requires_grad


def test_token_labels_may_be_ignored():
    labels = torch.tensor([[1, -100], [-100, 0]])
    assert torch.equal(as_samples((torch.ones(2, 2), labels)).batch([0, 1]).targets, labels)


@pytest.mark.parametrize("name", CONTAINERS)
def test_random_states_are_untouched(name):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    as_samples(CONTAINERS[name]()).batch([0])
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all()


def test_augmentation_is_refused():
    class Noisy(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.randn(2), 0

    with pytest.raises(GenboundError, match="augmentation"):
        as_samples(Noisy())


def test_digest_sees_content_and_order():
    digests = {
        as_samples(pair).digest() for pair in [(X, Y), (X.flip(0), Y), (X, Y.flip(0)), (X.double(), Y), (X[:6], Y[:6])]
    }
    assert len(digests) == 5
    assert as_samples((X.bfloat16(), Y)).digest() not in digests


# files


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y, x_test=X[:2], classes=np.array([None]))
    samples = load_data("npz:a.npz", base_dir=tmp_path)
    assert samples.digest() == as_samples((X, Y)).digest() and samples.spec == "npz:a.npz"
    assert len(load_data(f"npz:{tmp_path}/a.npz?samples=3")) == 3
    np.savez(tmp_path / "b.npz", inp=X, target=Y.float())
    named = load_data("npz:b.npz?x=inp&y=target", base_dir=tmp_path)
    assert named.digest() == samples.digest()
    np.savez(tmp_path / "c.npz", input_ids=Y[:, None], attention_mask=Y[:, None], y=Y)
    assert set(load_data("npz:c.npz", base_dir=tmp_path).batch([0]).inputs) == {"input_ids", "attention_mask"}


def test_npz_images_and_names(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", x=images, y=np.array(["dog", "cat"]))
    batch = load_data("npz:i.npz", base_dir=tmp_path).batch([0, 1])
    assert batch.inputs.shape == (2, 3, 4, 5) and batch.inputs.dtype == torch.float32
    assert torch.equal(batch.inputs[1, 2], torch.from_numpy(images[1, :, :, 2]).float() / 255)
    assert batch.targets.tolist() == [1, 0]


class Words:
    """The part of a tokenizer that is used: a token is the length of a word."""

    model_max_length, padding_side, pad_token_id, eos_token_id, pad_token_type_id = 6, "right", None, 99, 0

    def __call__(self, texts, pairs=None, truncation=False, max_length=None, padding=True):
        joined = [a if pairs is None else f"{a} {pairs[i]}" for i, a in enumerate(texts)]
        ids = [[len(word) for word in text.split()][:max_length] for text in joined]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


ROWS = [("a, bb", "x", 1), ("ccc", "yy z", 0), ("null", "w", 1)]


def write(folder, kind, labels):
    rows = [{"s": a, "t": b, "l": label} for (a, b, _), label in zip(ROWS, labels, strict=True)]
    if kind == "csv":
        import csv

        with (folder / "t.csv").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["s", "t", "l"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "t.parquet")
    return f"{kind}:t.{kind}?text=s&label=l"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_agree(tmp_path, kind):
    samples = load_data(write(tmp_path, kind, [1, 0, 1]), Reader(Words()), tmp_path)
    batch = samples.batch([1, 0])
    assert batch.inputs["input_ids"].tolist() == [[3, 99], [2, 2]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch.targets.tolist() == [0, 1]
    expected = TextSamples([a for a, _, _ in ROWS], None, [1, 0, 1], Words())
    assert samples.digest() == expected.digest()
    assert samples.shape_key(0) == samples.shape_key(1)
    pairs = load_data(
        write(tmp_path, kind, [1, 0, 1]) + "&text_pair=t&max_length=2&samples=2", Reader(Words()), tmp_path
    )
    assert len(pairs) == 2 and pairs.digest() != samples.digest()
    assert pairs.batch([0, 1]).inputs["input_ids"].tolist() == [[2, 2], [3, 2]]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_without_labels_is_read_where_none_are_wanted(tmp_path, kind):
    spec = write(tmp_path, kind, [1, 0, 1]).removesuffix("&label=l")
    batch = load_data(spec, Reader(Words(), labelled=False), tmp_path).batch([1, 0])
    assert batch.inputs["input_ids"].tolist() == [[3, 99], [2, 2]]
    with pytest.raises(GenboundError, match="which column is the label"):
        load_data(spec, Reader(Words()), tmp_path)


def test_left_padding():
    tokenizer = Words()
    tokenizer.padding_side = "left"
    batch = TextSamples(["a", "b cc"], None, [0, 1], tokenizer).batch([0, 1])
    assert batch.inputs["input_ids"].tolist() == [[99, 1], [1, 2]]


@pytest.mark.parametrize("label2id", [None, {"LABEL_0": 0, "LABEL_1": 1}])
def test_string_labels_in_sorted_order(tmp_path, label2id):
    spec = write(tmp_path, "csv", ["pos", "neg", "pos"])
    assert load_data(spec, Reader(Words(), label2id=label2id), tmp_path).batch(range(3)).targets.tolist() == [1, 0, 1]


def test_string_labels_of_the_model(tmp_path):
    spec = write(tmp_path, "jsonl", ["pos", "neg", "pos"])
    targets = load_data(spec, Reader(Words(), label2id={"pos": 0, "neg": 1}), tmp_path).batch(range(3)).targets
    assert targets.tolist() == [0, 1, 0]


def test_held_out_samples_share_the_class_names(tmp_path):
    train = load_data(write(tmp_path, "csv", ["b", "a", "c"]), Reader(Words()), tmp_path)
    test = load_data(write(tmp_path, "csv", ["b", "c", "c"]), Reader(Words(), label2id=train.label2id), tmp_path)
    assert test.batch(range(3)).targets.tolist() == [1, 2, 2]


def test_functions(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("import torch\nX = torch.ones(5, 2)\n")
    (tmp_path / "mydata.py").write_text(
        "import torch\nfrom helper import X\n"
        "def pair(): return X, torch.zeros(5, dtype=torch.long)\n"
        "def batches():\n    print('hello')\n    yield X[:3], [0, 0, 0]\n    yield X[3:], [0, 0]\n"
        "def dataset(): return torch.utils.data.TensorDataset(*pair())\n"
    )
    import sys

    path = list(sys.path)
    digests = {load_data(f"mydata.py:{name}", base_dir=tmp_path).digest() for name in ("pair", "batches", "dataset")}
    digests.add(load_data("mydata:pair", base_dir=tmp_path).digest())
    assert len(digests) == 1 and sys.path == path
    assert len(load_data("mydata.py:batches?samples=4", base_dir=tmp_path)) == 4
    for module in ("helper", "mydata"):
        sys.modules.pop(module)


def test_real_tokenizer_pads_like_its_own(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "b", "c"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    texts = ["a b c", "b", "a z"]
    ours = TextSamples(texts, None, [0, 1, 0], tokenizer).batch(range(3)).inputs
    theirs = tokenizer(texts, padding=True, return_tensors="pt")
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_types():
    batch = as_samples((X, Y)).batch([0])
    assert isinstance(batch, Batch)
    with pytest.raises(AttributeError):
        batch.targets = None
    assert len(ListSamples([(np.ones(2), 1), (np.ones(3), 0)])) == 2
