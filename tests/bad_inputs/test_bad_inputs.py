"""Refusals: every wrong input gives one line that names the cause and the mend, and runs no code."""

import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from genbound.checkpoints.architecture import build_pair
from genbound.data import Reader, as_samples, load_data
from genbound.errors import GenboundError


class Bomb:
    """A pickle that leaves a file behind if anybody executes it."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class Calls:
    """Asks for a harmless function of the user's own: it must not run either."""

    def __reduce__(self):
        return net, ()


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def refused(function, *words):
    with pytest.raises(GenboundError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for word in words:
        assert re.search(word, message), f"{word!r} not in {message!r}"


@pytest.fixture
def folder(tmp_path):
    save_file(net().state_dict(), tmp_path / "good.safetensors")
    (tmp_path / "empty_dir").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        save_file(net().state_dict(), tmp_path / "two" / f"{name}.safetensors")
    return tmp_path


# checkpoints: how to write the bad file, and the words that must be in the message


def truncated(path):
    save_file(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-40])


def truncated_pt(path):
    torch.save(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-400])


def not_finite(path):
    state = net().state_dict()
    state["2.weight"][1, 1] = float("nan")
    torch.save(state, path)


def wide(path):
    save_file(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)).state_dict(), path)


def deeper(path):
    save_file(nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))).state_dict(), path)


FILES = {
    "truncated.safetensors": (truncated, ["no complete safetensors", "again"]),
    "truncated.pt": (truncated_pt, ["no readable torch file", "again"]),
    "text.pt": (lambda p: p.write_text("weights"), ["no readable torch file|pickle"]),
    "zero.safetensors": (lambda p: p.touch(), ["empty", "again"]),
    "zero.pt": (lambda p: p.touch(), ["empty", "again"]),
    "nan.pt": (not_finite, ["2.weight", "NaN", "earlier checkpoint"]),
    "calls.pt": (lambda p: torch.save({"m": net().state_dict(), "x": Calls()}, p), ["never executed", "safetensors"]),
    "legacy_module.pt": (
        lambda p: torch.save(net(), p, _use_new_zipfile_serialization=False),
        ["never executed", "safetensors"],
    ),
    "list.pt": (lambda p: torch.save([1, 2], p), ["list", r"model.state_dict\(\)"]),
    "meta.pt": (lambda p: torch.save({"epoch": 1}, p), ["epoch", r"model.state_dict\(\)"]),
    "both.pt": (lambda p: torch.save({"model": {}, "state_dict": {}}, p), ["both", "alone"]),
    "model.h5": (lambda p: p.write_text("x"), ["no known kind", "safetensors"]),
    "wide.safetensors": (wide, ["another architecture|weight", "fine-tuned from|--model"]),
    "deeper.safetensors": (deeper, ["another architecture|weight", "fine-tuned from|--model"]),
}


@pytest.mark.parametrize("side", ["ckpt", "init"])
@pytest.mark.parametrize("model", [net, None])
@pytest.mark.parametrize("name", FILES)
def test_checkpoint_files(folder, name, model, side):
    write, words = FILES[name]
    write(folder / name)
    good, bad = folder / "good.safetensors", folder / name
    pair = (bad, good) if side == "ckpt" else (good, bad)
    refused(lambda: build_pair(*pair, model), *words)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"state_dict": net().state_dict(), "extra": bomb}])
def test_pickled_code_does_not_run(folder, suffix, wrap):
    mark, file = folder / "executed", folder / f"bomb{suffix}"
    torch.save(wrap(Bomb(mark)), file)
    refused(lambda: build_pair(file, folder / "good.safetensors", net), "never executed", "safetensors")
    assert not mark.exists()


PATHS = {
    "nowhere.pt": ["no checkpoint", "check the path"],
    "empty_dir": ["no weights", "give the checkpoint"],
    "two": ["no weights", "name the file itself", "a.safetensors"],
}


@pytest.mark.parametrize("name", PATHS)
def test_checkpoint_paths(folder, name):
    refused(lambda: build_pair(folder / name, folder / "good.safetensors", net), *PATHS[name])


def write_directory(folder, **files):
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


DIRECTORIES = {
    "adapter": ({"adapter_config__json": "{}"}, ["adapter_model.safetensors", "save the adapter again"]),
    "index": ({"model__safetensors__index__json": "{"}, ["index of shards", "again"]),
    "shard": (
        {"model__safetensors__index__json": '{"weight_map": {"a": "s.safetensors"}}'},
        ["s.safetensors", "again"],
    ),
    "escape": (
        {"model__safetensors__index__json": '{"weight_map": {"a": "../good.safetensors"}}'},
        ["again"],
    ),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_checkpoint_directories(folder, name):
    files, words = DIRECTORIES[name]
    place = write_directory(folder / "empty_dir", **files)
    refused(lambda: build_pair(place, folder / "good.safetensors", net), *words)


CONFIGS = {
    "{": ["no valid JSON"],
    '{"model_type": "bert"}': ["names no architecture", "AutoModelFor"],
    '{"model_type": "nosuch", "architectures": ["NoSuch"]}': ["transformers", "nosuch|config.json"],
    '{"model_type": "bert", "architectures": ["NoSuchModel"]}': ["NoSuchModel"],
}


@pytest.mark.parametrize("content", CONFIGS)
def test_configs(folder, content):
    pytest.importorskip("transformers", reason="transformers is not installed")
    place = write_directory(folder / "empty_dir", config__json=content)
    save_file(net().state_dict(), place / "model.safetensors")
    refused(lambda: build_pair(place, folder / "good.safetensors"), *CONFIGS[content])


# models

CODE = """
import torch
def number(): return 3
def broken():
    return torch.nn.Linear(1, "a")
def arguments(x): return x
def leave(): raise SystemExit("bye")
def lazy(): return torch.nn.LazyLinear(3)
def other(): return torch.nn.Linear(4, 3)
value = 3
"""

MODELS = {
    "nets.py": ["not understood", "factory"],
    "nets.py:nothing": ["no function 'nothing'", "number, broken"],
    "nets.py:value": ["no function"],
    "nets.py:number": ["int", "torch.nn.Module"],
    "nets.py:broken": ["TypeError at line 5 of nets.py"],
    "nets.py:arguments": ["TypeError"],
    "nets.py:leave": ["SystemExit", "bye"],
    "nets.py:lazy": ["lazy"],
    "nets.py:other": ["CKPT", "--model"],
    "absent.py:make": ["no file", "check the path"],
    "syntax.py:make": ["SyntaxError at line 2 of syntax.py"],
    "nosuchpackage.models:make": ["ModuleNotFoundError"],
    "timm:": ["not understood", "timm:NAME"],
    "hf": ["config.json", "--model"],
    3: ["no module"],
}


@pytest.mark.parametrize("spec", MODELS)
def test_model_specs(folder, spec, monkeypatch):
    monkeypatch.chdir(folder)
    write_directory(folder, nets__py=CODE, syntax__py="x = 1\ndef make(:\n")
    file = folder / "good.safetensors"
    if spec == "hf":
        pytest.importorskip("transformers", reason="transformers is not installed")
    refused(lambda: build_pair(file, file, spec), *MODELS[spec])


@pytest.mark.parametrize("content", ["a: [", "model: 3"])
def test_sidecars(folder, content):
    write_directory(folder, genbound__yaml=content)
    refused(lambda: build_pair(folder / "good.safetensors", folder / "good.safetensors"), "genbound.yaml")


@pytest.mark.parametrize("policy", ["seed", "seed:x", "seed:-1", "drop", ""])
def test_head_policies(folder, policy):
    file = folder / "good.safetensors"
    refused(lambda: build_pair(file, file, net, head=policy), "head policy", "exclude")


# data


class Raises(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        raise KeyError("column")


def stops():
    yield torch.ones(2, 2), torch.zeros(2)
    raise OSError("disk")


x, y = torch.ones(4, 2), torch.arange(4)
OBJECTS = {
    "empty": (lambda: (x[:0], y[:0]), ["empty", "at least one"]),
    "no batches": (lambda: [], ["empty"]),
    "number": (lambda: 5, ["int", "Dataset"]),
    "string batch": (lambda: ["ab"], ["str", r"\(inputs, labels\)"]),
    "tensor": (lambda: x, ["labels", "pair"]),
    "lengths": (lambda: (x, y[:3]), ["different lengths", "4", "3"]),
    "batch lengths": (lambda: [(x, y), (x, y[:3])], ["batch 1", "different lengths"]),
    "no labels": (lambda: [{"input_ids": x}], ["no labels", "input_ids", "'labels'"]),
    "none labels": (lambda: [(x, None)], ["without labels"]),
    "only labels": (lambda: [{"labels": y}], ["no inputs"]),
    "nan": (lambda: (x / 0 * 0, y), ["NaN", "clean"]),
    "inf in a batch": (lambda: [(x, y), (x / 0, y)], ["batch 1", "infinite"]),
    "nan labels": (lambda: (x, y / 0), ["labels", "NaN"]),
    "negative": (lambda: (x, y - 1), ["-1", "negative", "drop"]),
    "strings": (lambda: [{"text": ["a"], "labels": [0]}], ["text", "str", "tensor"]),
    "objects": (lambda: (np.array([None, {}]), np.zeros(2)), ["object", "tensor"]),
    "raises": (Raises, ["sample 0", "KeyError", "column"]),
    "stops": (stops, ["OSError", "disk"]),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects(name):
    make, words = OBJECTS[name]
    refused(lambda: as_samples(make()), *words)


def half(path):
    np.savez(path, x=np.random.rand(100, 3), y=np.zeros(100, int))
    path.write_bytes(path.read_bytes()[:1500])


def damaged(path):
    np.savez_compressed(path, x=np.random.rand(100, 3), y=np.zeros(100, int))
    content = bytearray(path.read_bytes())
    content[300:900] = bytes(600)
    path.write_bytes(content)


def one_array(path):
    with path.open("wb") as file:
        np.save(file, x)


def bomb_npz(path):
    np.savez(path, x=np.array([Bomb(path.with_name("executed"))], dtype=object), y=np.zeros(1))


ARCHIVES = {
    "zero": (lambda p: p.touch(), ["empty", "again"]),
    "half": (half, ["no readable npz"]),
    "damaged": (damaged, ["no readable npz"]),
    "text": (lambda p: p.write_text("x,y"), ["npz|pickled"]),
    "npy": (one_array, ["np.savez"]),
    "objects": (bomb_npz, ["never loaded", "plain arrays"]),
    "no labels": (lambda p: np.savez(p, x=x), ["no labels", "y=NAME"]),
    "no inputs": (lambda p: np.savez(p, y=y), ["no inputs"]),
    "nothing": (lambda p: np.savez(p), ["no arrays"]),
    "lengths": (lambda p: np.savez(p, x=x, y=y[:2]), ["different lengths"]),
    "text inputs": (lambda p: np.savez(p, x=np.array(["a"]), y=y[:1]), ["not numbers"]),
    "nan": (lambda p: np.savez(p, x=x / 0 * 0, y=y), ["NaN"]),
    "negative": (lambda p: np.savez(p, x=x, y=y - 2), ["negative"]),
    "no samples": (lambda p: np.savez(p, x=x[:0], y=y[:0]), ["empty"]),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(tmp_path, name):
    write, words = ARCHIVES[name]
    write(tmp_path / "d.npz")
    refused(lambda: load_data("npz:d.npz", base_dir=tmp_path), *words)
    assert not (tmp_path / "executed").exists()


COLUMNS = "?text=s&label=l"
TABLES = {
    "csv columns": ("t.csv", "a,b\n1,2\n", COLUMNS, ["no column 's'", "a, b"]),
    "csv rows": ("t.csv", "s,l\n", COLUMNS, ["no rows"]),
    "csv cells": ("t.csv", "s,l\na,1,2\n", COLUMNS, ["line 2", "cells"]),
    "csv short": ("t.csv", "s,l\na\n", COLUMNS, ["line 2", "cells"]),
    "csv label": ("t.csv", "s,l\na,1\nb,\n", COLUMNS, ["sample 1 has no label", "remove"]),
    "csv fraction": ("t.csv", "s,l\na,0.5\n", COLUMNS, ["0.5", "whole numbers"]),
    "csv negative": ("t.csv", "s,l\na,-1\n", COLUMNS, ["-1", "negative"]),
    "csv bytes": ("t.csv", b"s,l\n\xff\xfe,1\n", COLUMNS, ["UTF-8"]),
    "csv empty": ("t.csv", "", COLUMNS, ["empty"]),
    "jsonl syntax": ("t.jsonl", '{"s": "a", "l": 1}\n{"s"', COLUMNS, ["no readable jsonl"]),
    "jsonl list": ("t.jsonl", "[1]\n", COLUMNS, ["line 1"]),
    "jsonl column": ("t.jsonl", '{"s": "a", "l": 1}\n{"s": "a"}\n', COLUMNS, ["line 2", "no column 'l'"]),
    "jsonl text": ("t.jsonl", '{"s": 3, "l": 1}\n', COLUMNS, ["no text", "int"]),
    "jsonl null": ("t.jsonl", '{"s": "a", "l": null}\n', COLUMNS, ["no label"]),
    "parquet": ("t.parquet", "PAR1xxxxPAR1", COLUMNS, ["no readable parquet"]),
    "no text option": ("t.csv", "s,l\na,1\n", "?label=l", ["text=COL"]),
    "no label option": ("t.csv", "s,l\na,1\n", "?text=s", ["label=COL"]),
    "unknown option": ("t.csv", "s,l\na,1\n", COLUMNS + "&txt=s", ["txt=s", "max_length"]),
    "no number": ("t.csv", "s,l\na,1\n", COLUMNS + "&samples=many", ["samples=many", "whole number"]),
    "no tokenizer": ("t.csv", "s,l\na,1\n", COLUMNS, ["tokenizer"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    file, content, query, words = TABLES[name]
    if file.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    spec = f"{file.partition('.')[2]}:{file}{query}"
    refused(lambda: load_data(spec, base_dir=tmp_path), *words)


def test_label_that_the_model_does_not_know(tmp_path):
    (tmp_path / "t.csv").write_text("s,l\na,good\nb,fine\n")
    labels = {"good": 0, "bad": 1}
    refused(lambda: load_data("csv:t.csv" + COLUMNS, Reader(label2id=labels), tmp_path), "'fine'", "good, bad")


SPECS = {
    "npz:absent.npz": ["no data file", "check the path"],
    "npz:.": ["not a file"],
    "nowhere": ["not understood", "npz:FILE"],
    "zip:file": ["ModuleNotFoundError|no function|not understood"],
    "": ["not understood"],
    "imagefolder:dir": ["no directory", "DIR/CLASS"],
    "imagefolder:.": ["no images", "DIR/CLASS"],
    "nets.py:number": ["int", "Dataset"],
    "nets.py:broken": ["TypeError at line 5"],
    "nets.py:absent": ["no function", "number"],
    "nets.py:number?split=a": ["split=a", "samples"],
    "absent.py:f": ["no file"],
}


@pytest.mark.parametrize("spec", SPECS)
def test_data_specs(tmp_path, spec):
    write_directory(tmp_path, nets__py=CODE)
    refused(lambda: load_data(spec, base_dir=tmp_path), *SPECS[spec])
