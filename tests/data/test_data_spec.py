"""What a data SPEC says, before anything is read."""

import dataclasses
from pathlib import Path

import pytest

from genbound.checkpoints.sidecar import located
from genbound.data.load_data import SCHEMES
from genbound.data.spec import FUNCTION, OPTIONS, DataSpec
from genbound.errors import GenboundError

# text -> scheme, place, options
SAID = {
    "npz:a.npz": ("npz", "a.npz", {}),
    "npz:a.npz?x=inputs&y=classes&samples=010": ("npz", "a.npz", {"x": "inputs", "y": "classes", "samples": 10}),
    "imagefolder:a/b?size=8&mean=0,0.5,1&std=1,1,2": (
        "imagefolder", "a/b", {"size": 8, "mean": [0.0, 0.5, 1.0], "std": [1.0, 1.0, 2.0]},
    ),
    "csv:a.csv?text=the%20text&label=a,b": ("csv", "a.csv", {"text": "the text", "label": "a,b"}),
    "jsonl:a?max_length=5": ("jsonl", "a", {"max_length": 5}),
    "parquet:C:a": ("parquet", "C:a", {}),
    "hf:org/name/config?split=train&streaming=yes": (
        "hf", "org/name/config", {"split": "train", "streaming": "yes"},
    ),
    "data.py:train": (FUNCTION, "data.py:train", {}),
    "../a b/data.py:train?samples=3": (FUNCTION, "../a b/data.py:train", {"samples": 3}),
    "my.package:train": (FUNCTION, "my.package:train", {}),
}  # fmt: skip
REFUSED = [
    "", "npz", "npz:", "hf:", "imagefolder:", "data.py:", ":train", "a-b:train", "train.npz", "?x=1", "npz?x=1",
    "npz:a?z=1", "npz:a?x", "npz:a?x=", "npz:a?samples=0", "npz:a?samples=-1", "npz:a?samples=1e3", "data.py:f?x=1",
    "imagefolder:a?mean=1,2", "imagefolder:a?std=0,1,1", "imagefolder:a?mean=a,b,c", "csv:a?split=train",
]  # fmt: skip


@pytest.mark.parametrize("text", SAID)
def test_what_a_spec_says(text):
    spec = DataSpec.parse(text, "/base")
    assert (spec.scheme, spec.place, dict(spec.options)) == SAID[text]
    assert spec.text == text and spec.base_dir == Path("/base")
    assert spec.samples == SAID[text][2].get("samples")


@pytest.mark.parametrize("text", REFUSED)
def test_what_says_nothing_is_refused(text):
    with pytest.raises(GenboundError, match="data "):
        DataSpec.parse(text)


def test_paths_start_from_the_base_directory_and_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert DataSpec.parse("npz:a.npz", "/base").path == Path("/base/a.npz")
    assert DataSpec.parse("npz:/b/a.npz", "/base").path == Path("/b/a.npz")
    assert DataSpec.parse("npz:~/a.npz").path == Path("/home/me/a.npz")


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataSpec.parse("npz:a").place = "b"


def test_every_scheme_has_a_reader():
    assert SCHEMES.keys() == OPTIONS.keys()


@pytest.mark.parametrize("scheme", OPTIONS)
def test_a_sidecar_finds_the_files_of_every_scheme(scheme, tmp_path):
    """They count from the sidecar's directory, wherever the command is given."""
    place = "data.py:train" if scheme == FUNCTION else f"{scheme}:some"
    (tmp_path / "some").mkdir()
    assert located(place, tmp_path) == place.replace("data.py", f"{tmp_path}/data.py").replace(
        "some", f"{tmp_path}/some"
    )
