"""Data that cannot be used are refused in one line that says what is wrong and what would mend it."""

import zipfile

import numpy as np
import pytest
from damaged import make, refused


def huge_npz():
    """One array whose header claims more than the archive holds."""
    np.savez("bad.npz", x=np.ones((4, 4), np.float32), y=np.arange(4))
    with zipfile.ZipFile("bad.npz") as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    entries["x.npy"] = entries["x.npy"].replace(b"(4, 4)", b"(99999, 9999999)", 1).replace(b" " * 13 + b"\n", b"\n", 1)
    with zipfile.ZipFile("bad.npz", "w") as new:
        for name, content in entries.items():
            new.writestr(name, content)


def image(path, content=None):
    make(path, b"no image")
    if content is not None:
        pytest.importorskip("PIL.Image", reason="Pillow is not installed").new("RGB", content).save(path)


DATA = {
    "npz objects": (
        "npz:bad.npz", lambda: np.savez("bad.npz", x=np.ones((200, 4)), y=np.array([0, 1] * 100, object)),
        ["array 'y'", "Python objects", r"y.astype\(int\)"],
    ),
    "npz claims": ("npz:bad.npz", huge_npz, ["claims|no readable npz"]),
    "no such folder": ("imagefolder:nowhere", lambda: None, ["no directory", "DIR/CLASS"]),
    "flat folder": ("imagefolder:p", lambda: image("p/a.png", (4, 4)), ["no images in directories of classes"]),
    "splits": ("imagefolder:p", lambda: image("p/train/a/a.png", (4, 4)), ["splits", "imagefolder:p/train"]),
    "empty class": ("imagefolder:p", lambda: (image("p/a/a.png", (4, 4)), make("p/b/notes.txt")), ["'b'", "no images"]),
    "no image": ("imagefolder:p", lambda: image("p/a/a.png"), ["a.png", "no readable image"]),
    "too large": ("imagefolder:p", lambda: image("p/a/a.png", (10_000, 9_000)), ["pixels", "smaller"]),
    "not downloaded": ("hf:someone/set?split=train", lambda: None, ["nothing is downloaded", "hf:DIR"]),
    "empty directory": ("hf:p", lambda: make("p/notes.txt"), ["no files|hf: reads"]),
    "two kinds": ("hf:p", lambda: (make("p/a.csv", "a\n1"), make("p/b.json", "{}")), ["csv and json", "hf: reads"]),
    "damaged parquet": ("hf:p", lambda: make("p/a.parquet", "PAR1"), ["hf:p cannot be read"]),
    "streaming": ("hf:p?streaming=perhaps", lambda: make("p/a.csv", "text,label\na,1\n"), ["streaming=yes"]),
    "no tokens": ("jsonl:t.jsonl", lambda: make("t.jsonl", '{"a": 1, "label": 0}'), ["text=COL", "input_ids"]),
    "ragged tokens": (
        "jsonl:t.jsonl", lambda: make("t.jsonl", '{"input_ids": [1, 2], "attention_mask": [1], "label": 0}'),
        ["different lengths", "tokenise"],
    ),
    "no token": (
        "jsonl:t.jsonl", lambda: make("t.jsonl", '{"input_ids": [], "label": 0}'), ["sample 0", "no token", "remove"],
    ),
    "word labels": (
        "jsonl:t.jsonl", lambda: make("t.jsonl", '{"input_ids": [1, 2], "labels": [0]}'),
        ["2 tokens and 1 labels", "one label a token"],
    ),
    "no labelled token": (
        "jsonl:t.jsonl", lambda: make("t.jsonl", '{"input_ids": [1], "labels": [-100]}'), ["no labelled token"],
    ),
    "negative word label": (
        "jsonl:t.jsonl", lambda: make("t.jsonl", '{"input_ids": [1], "labels": [-3]}'), ["-3", "negative"],
    ),
    "mixed labels": (
        "jsonl:t.jsonl", lambda: make("t.jsonl", '{"input_ids": [1], "labels": [1]}\n{"input_ids": [1], "labels": 1}'),
        ["one form"],
    ),
    "deep jsonl": ("jsonl:t.jsonl", lambda: make("t.jsonl", "[" * 100_000), ["no readable jsonl"]),
    "long number": ("jsonl:t.jsonl", lambda: make("t.jsonl", '{"a": ' + "9" * 5000 + "}"), ["no readable jsonl"]),
    "huge label": ("csv:t.csv?image=a&label=b", lambda: make("t.csv", "a,b\nx.png,1e300\n"), ["no class"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data(name, folder, capsys):
    spec, write, words = DATA[name]
    if spec.startswith("hf:"):
        pytest.importorskip("datasets", reason="datasets is not installed")
    write()
    given = ["evaluate", "good.safetensors", "good.safetensors", "--model", "nets.py:net", "--measures", "losses"]
    refused(capsys, *given, "--data", spec, words=words)
