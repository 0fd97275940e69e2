"""On a terminal every table fits it, and into a pipe goes Markdown without a colour."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import bound, run

from genbound.cli.main import main
from genbound.results.footnotes import footnotes

ROOT = Path(__file__).resolve().parents[2]
LONG = "model.encoder.layers.{}.self_attention.output_projection.weight"
ESCAPE = "\x1b"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def runs(tmp_path):
    """Five runs with long names, hyper-parameters and every kind of row, as stored."""
    note = "assumption unverified: the theorem does not cover sums of branches; the paper's constant is taken as 1"
    rows = {
        "hessian_distance": bound(2.15, 2.147, 2.153, vacuous=True, note=note),
        "jiang2020_sharpness_magnitude": bound(179.0, unit="error") | {"at_least": True},
        "long2020": bound(None, log10=412.3, vacuous=True, note=note),
        "noisy_label_distance": bound(None, note="needs the label confusion matrix F: give --confusion FILE"),
        "pac_bayes_certificate": bound(0.8725, unit="error", note="delta = 0.05") | {"kind": "certificate"},
    }
    folders = []
    for i in range(5):
        results = run(
            {n: row | ({"value": row["value"] * (i + 1)} if row["value"] else {}) for n, row in rows.items()},
            layers=[LONG.format(3 * i) for i in range(3)], name=f"fine-tuned-number-{i}",
            hyperparameters={"learning_rate": 10.0**-i, "weight_decay": 0.1 * (i % 2), "epochs": i},
        )  # fmt: skip
        results.quantities["losses"]["generalization_gap"] = 0.1 * (i + 1)
        folders.append(str(results.save(tmp_path / f"a-long-name-of-a-run-{i}")))
    return folders


def tables(runs):
    """Command lines that print tables of stored runs, or of the catalogue."""
    return {
        "compare": ["compare", *runs],
        "reference": ["compare", *runs, "--reference", runs[0]],
        "correlate": ["correlate", *runs],
        "check": ["check", runs[0], "--baseline", f"{runs[4]}/results.json", "--verbose", "--no-github"],
        "list": ["list"],
        "bounds": ["list", "bounds"],
        "options": ["list", "options"],
    }


NAMES = list(tables([""] * 5))


def drawn(arguments, monkeypatch, width, capsys, **environment):
    """What a command prints on a terminal of this width."""
    screen = Terminal()
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": str(width), "TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        assert main(arguments) in (0, 1), capsys.readouterr().err
    return screen.getvalue()


def unstyled(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_every_table_fits(name, width, runs, monkeypatch, capsys):
    text = unstyled(drawn(tables(runs)[name], monkeypatch, width, capsys))
    assert ESCAPE not in text
    assert max(map(len, text.splitlines())) <= width
    assert "| " not in text.replace("|v|^2 ", "")


@pytest.mark.parametrize("name", NAMES)
def test_no_word_is_lost(name, runs, monkeypatch, capsys):
    """What a table says at 80 columns is what it says in a pipe, however its cells are broken."""
    main(tables(runs)[name])
    piped = capsys.readouterr().out
    assert ESCAPE not in piped and "│" not in piped
    text = re.sub(r"\W", "", unstyled(drawn(tables(runs)[name], monkeypatch, 80, capsys)))
    for word in re.findall(r"[A-Za-z]{3,}[\w.]*\w", piped):
        broken = re.sub(r"\W", "", word)
        # A list has no title over its names; a long word may be broken where another cell's text lies between.
        assert broken in text or len(word) > 20 or word in ("name", "option"), word


def test_colours(runs, monkeypatch, capsys):
    lines = tables(runs)["compare"]
    coloured = drawn(lines, monkeypatch, 80, capsys)
    assert "\x1b[32m" in coloured  # a certificate's value
    for setting in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = drawn(lines, monkeypatch, 80, capsys, **setting)
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain)
        assert unstyled(plain) == unstyled(coloured)


@pytest.mark.parametrize("force", ["", "1"])
def test_a_pipe_is_never_coloured(force, runs, monkeypatch, capsys):
    """Markdown, where the environment states a width and wants colours everywhere, too."""
    monkeypatch.setenv("FORCE_COLOR", force)
    monkeypatch.setenv("COLUMNS", "80")
    main(tables(runs)["compare"])
    out = capsys.readouterr().out
    assert ESCAPE not in out
    verdict, _, table = out.partition("\n\n")
    assert verdict.startswith("> **Did it get worse?** a-long-name-of-a-run-4 against a-long-name-of-a-run-0")
    assert table.startswith("| bound ")


def test_a_format_that_is_named_is_printed_as_it_is(runs, monkeypatch, capsys):
    printed = drawn(["compare", *runs, "--format", "md"], monkeypatch, 80, capsys)
    assert printed.startswith("| bound ") and ESCAPE not in printed


def test_the_verdict_of_a_run(runs, monkeypatch, capsys):
    """In a box above the table, each answer behind its question."""
    from genbound.cli.terminal import show
    from genbound.results.results import load_results

    screen = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        show(load_results(runs[0]).to_markdown(every=False))
    text = unstyled(screen.getvalue())
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("╭") < text.index("Guaranteed") < text.index("╰") < text.index("hessian_distance  ")
    assert re.search(r"Which layer(?: drives)? +Layer\s", text) and "carries" in text
    assert "output_projection.weight" in re.sub(r"[│\s]", "", text)


@pytest.mark.parametrize("width", [80, 120])
def test_what_is_measured_fits_too(width, monkeypatch, capsys, tmp_path):
    demo = ROOT / "examples" / "demo"
    pair = [str(demo / "finetuned.safetensors"), str(demo / "pretrained.safetensors")]
    pair += ["--model", f"{demo / 'model.py'}:build", "--data", f"{demo / 'data.py'}:train", "--samples", "8"]
    out = str(tmp_path / "a run")
    for arguments in (
        ["inspect", *pair],
        ["evaluate", *pair, "--out", out, "--measures", "losses,hessian_distance,bartlett2017"],
        ["status", out],
    ):
        lines = unstyled(drawn(arguments, monkeypatch, width, capsys)).splitlines()
        assert max(map(len, lines)) <= width and not any(line.startswith("| ") for line in lines)
        assert any("───" in line for line in lines)


def test_footnotes_do_not_repeat_themselves():
    marks, below = footnotes(["a; b", "", "b", "c; b", "a; b"])
    assert below == ["[1] a", "[2] b", "[3] c"]
    assert marks == ["[1] [2]", "", "[2]", "[2] [3]", "[1] [2]"]
    assert footnotes(["one; two", "one; two"]) == (["[1]", "[1]"], ["[1] one; two"])


def test_nothing_is_drawn_where_nobody_looks(tmp_path):
    """Standard error in a file: a few lines, and no carriage return, escape or line of a bar."""
    demo = ROOT / "examples" / "demo"
    command = [sys.executable, "-m", "genbound", "evaluate", "finetuned.safetensors", "pretrained.safetensors"]
    command += ["--model", "model.py:build", "--data", "data.py:train", "--samples", "8", "-v"]
    command += ["--measures", "losses,displacement_norm,margin"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FORCE_COLOR": "1", "COLUMNS": "80"}
    done = subprocess.run(command, cwd=demo, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    for stream in (done.stdout, done.stderr):
        assert b"\r" not in stream and b"\x1b" not in stream
    told = done.stderr.decode().splitlines()
    assert {line.split(": ")[1] for line in told[1:]} >= {"losses", "displacement_norm", "margin"}
    assert len(told) < 12, told
