"""Tar files of samples: the same samples as in a folder or a table, read by place, and only those asked for."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from genbound.data import Reader, load_data, tar_shards
from genbound.data.tar_shards import unfolded
from genbound.errors import GenboundError

PIL = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
NUM, A_SHARD = 23, 10


class Letters:
    """A tokenizer of one number a letter."""

    eos_token_id = pad_token_id = pad_token_type_id = 0
    padding_side, model_max_length, is_fast = "right", 40, True

    def __call__(self, texts, pairs, **_):
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def picture(i):
    file = io.BytesIO()
    PIL.fromarray(np.random.default_rng(i).integers(0, 256, (4 + i % 2, 5, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def members(i):
    entries = {"caption": f"number {i}", "label": i % 4, "weight": 0.5 * i}
    return {
        "cls": str(i % 3).encode(), "png": picture(i), "txt": f"text {i} ü".encode(),
        "json": json.dumps(entries).encode(), "seg.png": picture(i + 100),
        "name": ["no", "yes", "perhaps"][i % 3].encode() + b"\n",
    }  # fmt: skip


def pack(path, samples):
    """``[(name, content)]`` in this order."""
    with tarfile.open(path, "w") as file:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    for start in range(0, NUM, A_SHARD):
        numbers = range(start, min(NUM, start + A_SHARD))
        rows = [(f"./sub/{i:06d}.{column}", content) for i in numbers for column, content in members(i).items()]
        pack(tmp_path / f"a-{start // A_SHARD:03d}.tar", [("__meta__.json", b"{}"), ("readme", b"hello"), *rows])
    return tmp_path


def pixels(content):
    return torch.from_numpy(np.asarray(PIL.open(io.BytesIO(content)).convert("RGB"), dtype=np.float32) / 255).permute(
        2, 0, 1
    )


@pytest.mark.parametrize("place", ["", "/a-{000..002}.tar", "/a-{000,001,002}.tar"])
def test_images_and_classes(shards, place):
    samples = load_data(f"webdataset:{shards}{place}")
    assert len(samples) == NUM and [samples.label(i) for i in range(NUM)] == [i % 3 for i in range(NUM)]
    for i in (22, 0, 10, 9):
        assert_close(samples.batch([i]).inputs[0], pixels(picture(i)))
    assert samples.batch([1, 3]).targets.tolist() == [1, 0]
    other = load_data(f"webdataset:{shards}{place}?image=seg.png&label=name&samples=12")
    assert len(other) == 12 and and_is(other, [[0, 2, 1][i % 3] for i in range(12)])
    assert_close(other.batch([11]).inputs[0], pixels(picture(111)))


def and_is(samples, labels):
    return [samples.label(i) for i in range(len(samples))] == labels


def test_texts_and_entries_of_json(shards):
    samples = load_data(f"webdataset:{shards}?text=txt", Reader(Letters()))
    assert samples.shown(21) == "text 21 ü" and samples.batch([21]).targets.tolist() == [0]
    said = load_data(f"webdataset:{shards}?text=json.caption&label=json.label", Reader(Letters()))
    assert said.shown(13) == "number 13" and and_is(said, [i % 4 for i in range(NUM)])
    numbers = load_data(f"webdataset:{shards}?text=txt&label=json.weight", Reader(Letters(), numeric=True))
    assert numbers.batch([7]).targets.tolist() == [3.5]
    blank = load_data(f"webdataset:{shards}/a-001.tar?text=txt&label=cls", Reader(Letters(), labelled=False))
    assert len(blank) == 10 and blank.shown(0) == "text 10 ü"


def test_only_what_is_asked_for_is_read(shards, monkeypatch):
    read, own = [], tar_shards._read
    monkeypatch.setattr(tar_shards, "_read", lambda shard, member: read.append(member.size) or own(shard, member))
    samples = load_data(f"webdataset:{shards}")
    assert read.count(1) == NUM and len(read) == NUM + 4  # labels, the ends of shards, one json to see what it names
    del read[:]
    samples.batch([12, 12, 14])
    assert read == [len(picture(12))] * 2 + [len(picture(14))]
    opened, open_tar = [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda path, mode: opened.append(path.name) or open_tar(path, mode))
    assert len(load_data(f"webdataset:{shards}?samples=10")) == 10
    assert set(opened) == {"a-000.tar"}


def test_names_of_patterns():
    assert unfolded("a/{x,y}-{9..11}.tar") == [f"a/{c}-{n}.tar" for c in "xy" for n in (9, 10, 11)]
    assert unfolded("plain.tar") == ["plain.tar"]


def test_the_library_writes_what_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    with webdataset.ShardWriter(str(tmp_path / "w-%03d.tar"), maxcount=4, verbose=0) as sink:
        for i in range(9):
            sink.write({"__key__": f"k{i:04d}", "txt": f"text {i}", "cls": i % 3})
    samples = load_data(f"webdataset:{tmp_path}", Reader(Letters()))
    assert [samples.shown(i) for i in range(9)] == [f"text {i}" for i in range(9)]
    assert and_is(samples, [i % 3 for i in range(9)])


def compress(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


def cut(path, to):
    path.write_bytes(path.read_bytes()[:to])


ROWS = [("0.txt", b"one"), ("0.cls", b"1"), ("1.txt", b"two" * 400), ("1.cls", b"0")]
WRONG = {
    "no file": ("webdataset:nowhere.tar", lambda p: None, ["no data file", "nowhere.tar"]),
    "no shard": ("webdataset:.", lambda p: p.unlink(), ["no *.tar"]),
    "compressed": ("webdataset:s.tar", compress, ["no readable tar file", "unpack compressed ones"]),
    "cut off in a body": ("webdataset:s.tar", lambda p: cut(p, 2700), ["no readable tar file", "truncated"]),
    "cut off between two": ("webdataset:s.tar", lambda p: cut(p, 2048), ["ends too soon", "s.tar"]),
    "cut off in a header": ("webdataset:s.tar", lambda p: cut(p, 2500), ["ends too soon"]),
    "nothing": ("webdataset:s.tar", lambda p: pack(p, []), ["has no samples", "NAME.jpg"]),
    "no input": ("webdataset:s.tar", lambda p: pack(p, [("0.cls", b"1")]), ["image=EXT", "0, has cls"]),
    "no label": ("webdataset:s.tar", lambda p: pack(p, [("0.txt", b"1")]), ["which column is the label", "label=COL"]),
    "a sample without": ("webdataset:s.tar", lambda p: pack(p, ROWS[:3]), ["sample 1 (1 in", "has no 'cls'"]),
    "twice": ("webdataset:s.tar", lambda p: pack(p, [ROWS[0], *ROWS]), ["0.txt twice"]),
    "no text": ("webdataset:s.tar", lambda p: pack(p, [("0.txt", b"\xff"), ("0.cls", b"1")]), ["no text in UTF-8"]),
    "no json": (
        "webdataset:s.tar?label=json.y", lambda p: pack(p, [("0.txt", b"a"), ("0.json", b"{")]), ["json cannot be read"]
    ),
    "no entry": (
        "webdataset:s.tar?label=json.y", lambda p: pack(p, [("0.txt", b"a"), ("0.json", b'{"x": 1}')]), ["no 'y'"]
    ),
    "a list": (
        "webdataset:s.tar?label=json.y", lambda p: pack(p, [("0.txt", b"a"), ("0.json", b"[1]")]), ["json is no object"]
    ),
    "a number": (
        "webdataset:s.tar?text=json.y", lambda p: pack(p, [("0.cls", b"1"), ("0.json", b'{"y": 1}')]), ["but int"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "s.tar", ROWS)
    spec, damage, words = WRONG[what]
    damage(tmp_path / "s.tar")
    with pytest.raises(GenboundError) as error:
        load_data(spec, Reader(Letters())).batch([0])
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)


def test_a_shard_that_became_shorter_is_no_sample(tmp_path):
    pack(tmp_path / "s.tar", ROWS)
    samples = load_data(f"webdataset:{tmp_path}/s.tar", Reader(Letters()))
    cut(tmp_path / "s.tar", 2500)
    with pytest.raises(GenboundError, match="ends too soon"):
        samples.batch([1])
