"""What is read and imported by everybody: optional libraries, files of settings."""

import sys

import pytest

from genbound.errors import GenboundError
from genbound.files import read_yaml
from genbound.optional import import_optional


def test_a_library_that_is_there_is_given():
    assert import_optional("json.decoder", "settings need json", "json") is sys.modules["json.decoder"]


def test_one_that_is_not_is_one_line_on_how_to_get_it():
    with pytest.raises(
        GenboundError,
        match=r"images need Pillow \(No module named 'no_such_library'\): pip install 'genbound\[images\]'",
    ):
        import_optional("no_such_library", "images need Pillow", "genbound[images]")


def test_one_that_breaks_is_refused_with_its_reason(tmp_path, monkeypatch):
    """A build for another torch fails with more than an ImportError, and with more than one line."""
    (tmp_path / "breaks_at_once.py").write_text("raise RuntimeError('operator nms\\ndoes not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(GenboundError, match=r"needs it \(operator nms\): pip install it"):
        import_optional("breaks_at_once", "that needs it", "it")


def test_entries_of_yaml(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("a: 1\nb: [x, y]\n")
    assert read_yaml(file, "it", "settings") == {"a": 1, "b": ["x", "y"]}
    file.write_text("# nothing yet\n")
    assert read_yaml(file, "it", "settings", may_be_empty=True) == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it must hold settings"), (b"- a", "it must hold settings"), (b"a: [", "it is no valid YAML"),
        (b"\xff\xfe\xfa", "it is no valid YAML"), (None, "it cannot be read"),
    ],
)  # fmt: skip
def test_what_holds_no_entries_is_refused(tmp_path, content, words):
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(GenboundError, match=words):
        read_yaml(file, "it", "settings")
