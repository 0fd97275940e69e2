"""Which files of a directory are a split: none of another is merged in, or taken for it."""

import pytest

from genbound.data import Reader, load_data
from genbound.errors import GenboundError

datasets = pytest.importorskip("datasets", reason="datasets is not installed")


def read(tmp_path, files, query="", place=""):
    """The texts that are read of a directory of files, each of one text that is the file's name."""
    for name in files:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(f"text,label\n{name},0\n")
    samples = load_data(f"hf:{tmp_path}/set{place}{query}", Reader(object_of_words()))
    return sorted(samples.shown(i) for i in range(len(samples)))


def object_of_words():
    return type("Words", (), {
        "eos_token_id": 0, "pad_token_id": 0, "pad_token_type_id": 0, "padding_side": "right", "model_max_length": 16
    })()  # fmt: skip


SHARDS = ["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/test-00000-of-00001.csv"]


@pytest.mark.parametrize(
    ("files", "query", "found"),
    [
        (SHARDS, "?split=train", SHARDS[:2]), (SHARDS, "?split=test", SHARDS[2:]), (SHARDS[:2], "", SHARDS[:2]),
        (SHARDS, "", "splits test, train; say which"), (SHARDS[:2], "?split=test", "no split 'test'"),
        (SHARDS[:1], "?split=test", "no split 'test'"), (SHARDS, "?split=tes", "no split 'tes'"),
        (SHARDS, "?split=a", "no split 'a'"), (SHARDS, "?split=data", "no split 'data'"),
        (["train_r1-00000-of-00001.csv", "train_r2-00000-of-00001.csv"], "?split=train_r2", [1]),
        (["train_r1-00000-of-00001.csv", "train_r2-00000-of-00001.csv"], "?split=train", "no split 'train'"),
        (["imdb-train-00000-of-00001.csv", "imdb-unsupervised.csv", "imdb-test.csv"], "?split=train", [0]),
        (["imdb-train-00000-of-00001.csv", "imdb-unsupervised.csv", "imdb-test.csv"], "?split=unsupervised", [1]),
        (["my_train.csv", "my_test.csv"], "?split=test", [1]), (["latest.csv"], "?split=train", [0]),
        (["train/1.csv", "dev/1.csv"], "?split=validation", [1]), (["train/1.csv", "dev/1.csv"], "?split=dev", [1]),
        (["train/data-00000-of-00001.csv", "test/data-00000-of-00001.csv"], "?split=test", [1]),
        (["a.csv", "b.csv"], "", [0, 1]), (["a.csv", "b.csv"], "?split=train", [0, 1]),
        (["a.csv", "b.csv"], "?split=set", [0, 1]), (["a.csv", "b.csv"], "?split=test", "no split 'test'"),
        (["a.csv", "train.csv"], "", "splits train, without a name"),
    ],
)  # fmt: skip
def test_a_split_is_its_own_files(files, query, found, tmp_path):
    if isinstance(found, str):
        with pytest.raises(GenboundError, match=found):
            read(tmp_path, files, query)
    else:
        wanted = [files[i] if isinstance(i, int) else i for i in found]
        assert read(tmp_path, files, query) == sorted(wanted)


def test_a_file_that_is_named_is_of_no_other_split(tmp_path):
    assert read(tmp_path, SHARDS, "?split=test", f"/{SHARDS[2]}") == SHARDS[2:]
    assert read(tmp_path, SHARDS, "", f"/{SHARDS[2]}") == SHARDS[2:]
    with pytest.raises(GenboundError, match="no split 'train'; its files are test-00000-of-00001.csv"):
        read(tmp_path, SHARDS, "?split=train", f"/{SHARDS[2]}")
