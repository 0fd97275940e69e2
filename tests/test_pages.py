"""The blocks of the pages: commands that the command line takes, Python that compiles and names what exists."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import genbound
from genbound.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)


def blocks(language):
    for page in PAGES:
        for kind, block in BLOCK.findall(page.read_text(encoding="utf-8")):
            if kind == language:
                yield page.relative_to(ROOT).as_posix(), block


def commands():
    for page, block in blocks("console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ genbound "):
                yield page, line[2:]


def test_every_command_is_taken():
    """Every option exists and takes such a value; a ``…`` stands for arguments that the page has shown before."""
    num, refused = 0, []
    for page, line in commands():
        num += 1
        words = shlex.split(line.split(" || ")[0], comments=True)[1:]
        elided = "…" in words
        values = ["", *words]  # an option keeps the dots for its value
        words = [word for before, word in zip(values, words, strict=False) if word != "…" or before.startswith("--")]
        command = cli.get_command(None, words[0])
        if command is None:
            refused.append(f"{page}: {line}: there is no such command")
            continue
        try:
            command.make_context(words[0], words[1:])
        except click.MissingParameter as error:
            if not elided:
                refused.append(f"{page}: {line}: {error.format_message()}")
        except click.exceptions.Exit:
            pass
        except click.ClickException as error:
            refused.append(f"{page}: {line}: {error.format_message()}")
    assert num > 30
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize(("page", "block"), list(blocks("python")), ids=lambda value: value[:40].splitlines()[0])
def test_every_python_block_names_what_exists(page, block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "genbound":
            assert hasattr(genbound, node.attr), f"{page}: genbound.{node.attr}"
