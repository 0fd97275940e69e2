"""Names in stored results that would be paths, terminal commands, formulas, HTML or LaTeX somewhere: they are text."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch
from handmade import bound, losses, run

from genbound.cli.main import main
from genbound.errors import GenboundError, printable
from genbound.figures.several_runs import save_correlation_plots
from genbound.files import file_name
from genbound.results.correlation import correlate

EVIL = [
    "x/../../../../y", "/tmp/abs", "..", "\x00nul\x1b[31mred\x9b1m", "\u202egnirts\u2069", "$_{$", "a$b$c\\frac{",
    "a" * 400,
    '=HYPERLINK("http://x","y")', "+1+cmd|' /C calc'!A0", "@SUM(1)", "-2+3", "\t=1", "line\n::error::x", "a|b](http://x)",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\\input{/etc/passwd}", "%{x}</extra>", "\ud800",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in") / "runs"
    paths = []
    for i in range(4):
        results = run({name: bound(1.0 + i + k, note=name) for k, name in enumerate(EVIL)}, layers=EVIL)
        results.quantities["losses"] = losses(test=0.3 + 0.1 * i)
        results.config |= {"hyperparameters": {EVIL[0]: i, EVIL[5]: EVIL[i]}, "remarks": EVIL, "head_note": EVIL[3]}
        results.data["spec"] = EVIL[5] + EVIL[3]
        results.notes |= {name: name for name in EVIL}
        (folder / f"run{i}").mkdir(parents=True)
        (folder / f"run{i}" / "results.json").write_text(json.dumps(results.to_json()))
        paths.append(str(folder / f"run{i}"))
    return paths


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A directory to write in, three deep; nothing may appear above it."""
    place = tmp_path / "a" / "b" / "c"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    before = set(Path("/tmp").iterdir())
    yield place
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c"]
    assert not {p.name for p in set(Path("/tmp").iterdir()) - before} & {"abs", "y"}


def is_text(text: str) -> bool:
    return printable(text) == text


@pytest.mark.parametrize("form", ["md", "csv", "latex", "html"])
def test_compare(runs, form, capsys):
    assert main(["compare", *runs, "--format", form]) == 0
    said = capsys.readouterr().out
    assert is_text(said)
    if form == "html":
        assert "<script" not in said and "<img" not in said
    if form == "latex":
        assert not re.search(r"(?<!\\textbackslash\{\})\\input", said) and "$_{$" not in said
    if form == "md":
        assert not re.search(r"(?<!\\)<(script|img)", said) and "](http" not in said
        assert not [line for line in said.splitlines() if line.startswith("::")]
    if form == "csv":
        assert not re.search(r"""(^|,)"?[=+@]""", said, re.M)


def test_correlate(runs, inside):
    """A panel of each takes a second, so only of those that would be paths or formulas."""
    drawn = [EVIL[0], EVIL[1], EVIL[5], "\\x00nul\\x1b[31mred\\x9b1m"]
    found = correlate(runs, measures=drawn, num_resamples=9)
    written = save_correlation_plots(found, "plots", "svg", over=EVIL[0])
    assert len({path.name for path in written}) == len(written) == 2  # against the gap, and over a measure
    for picture in written:
        assert picture.parent == Path("plots")
        ElementTree.parse(picture)
    for table in found.save("plots"):
        text = table.read_text(encoding="utf-8")
        assert is_text(text) and not re.search(r"""(^|,)"?[=+@]""", text, re.M)
    assert sorted(Path("plots").iterdir()) == sorted(
        {*written, Path("plots/correlations.csv"), Path("plots/points.csv")}
    )


def test_all_correlations_as_text(runs, capsys):
    assert main(["correlate", *runs]) == 0
    assert is_text(capsys.readouterr().out)


@pytest.mark.slow
def test_every_picture(runs, inside, capsys):
    assert main(["correlate", *runs, "--out", "plots", "--over", EVIL[0], "--format", "svg"]) == 0, capsys.readouterr()
    assert main(["plot", *runs[:2], "--out", "pictures"]) == 0, capsys.readouterr()


def test_report(runs, inside, capsys):
    pytest.importorskip("plotly", reason="the report needs plotly")
    assert main(["report", *runs, "--out", "page.html"]) == 0, capsys.readouterr()
    text = Path("page.html").read_text(encoding="utf-8")
    shown = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert is_text(shown) and "<img" not in text and "alert(1)</script>" not in text


def test_check_and_export(runs, inside, capsys):
    assert main(["check", runs[1], "--baseline", f"{runs[0]}/results.json", "--junit", "j.xml", "--github"]) == 1
    assert is_text(capsys.readouterr().out)
    assert len(ElementTree.parse("j.xml").findall(".//testcase")) > len(EVIL)
    for suffix in ("csv", "jsonl", "parquet"):
        assert main(["export", *runs, "--out", f"all.{suffix}"]) == 0
    assert not re.search(r"""(^|,)"?[=+@]""", Path("all.csv").read_text(encoding="utf-8"), re.M)
    assert len(pd.read_csv("all.csv")) == len(pd.read_parquet("all.parquet"))


def test_what_a_terminal_gets():
    """Bytes on both streams of a process: none moves the cursor or ends a string."""
    done = subprocess.run([sys.executable, "-m", "genbound", "compare", "no\x1b[31m\x9b\u202e"], capture_output=True)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert b"\x1b" not in done.stderr and "\u202e".encode() not in done.stderr


def test_names_of_files():
    names = [file_name(name) for name in EVIL]
    assert len(set(names)) == len(EVIL)
    for name in names:
        assert Path(name).name == name and name not in ("", ".", "..") and len(name.encode()) < 200 and is_text(name)
    assert file_name("log10 huge") == "log10_huge" and file_name("over_lr_good") == "over_lr_good"


@pytest.mark.parametrize("name", [EVIL[3], EVIL[4], "a\nb", "a\tb"])
def test_weights_with_such_names_are_refused(name, tmp_path):
    from genbound.checkpoints.state_file import read_state

    torch.save({name: torch.ones(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(GenboundError, match="cannot be seen"):
        read_state(tmp_path / "a.pt")
