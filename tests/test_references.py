"""What the docs, the docstrings and the comments point at is there."""

import ast
import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from genbound.errors import GenboundError

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(ROOT.glob("genbound/**/*.py"))
SCRIPTS = [
    path for folder in ("tests", "benchmarks", "examples", "tools") for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]

ROLE = re.compile(r":(?:mod|class|func|meth|attr|data|exc):`~?([\w.]+)`")
FILE = re.compile(r"(?<![\w/.-])(?:genbound|tests|benchmarks|examples|tools|docs)/[\w./*-]*[\w*/]")
NAME = re.compile(r"(?<![\w/.-])(?:genbound|benchmarks)(?:\.[a-zA-Z_]\w*)+")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HOME = re.compile(
    r"https://(?:github\.com/genbound/genbound/(?:blob|tree)|raw\.githubusercontent\.com/genbound/genbound)/main/"
)
NOT_NAMES = ("genbound.yaml",)  # files that genbound writes


def relative(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def member(value, name):
    """An attribute, or a field that a class only annotates or assigns to itself when it is made."""
    if hasattr(value, name):
        return getattr(value, name)
    if inspect.isclass(value):
        known = {n for cls in value.__mro__ for n in getattr(cls, "__annotations__", {})}
        assigned = re.findall(r"self\.(\w+)(?:,|: [^=]+?| =)", inspect.getsource(value))
        if name in known or name in assigned:
            return None
    raise AttributeError(name)


def resolve(target):
    """What a dotted name stands for: its longest part that is a module, and attributes from there."""
    parts = target.split(".")
    for num in range(len(parts), 0, -1):
        name = ".".join(parts[:num])
        try:
            found = find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if found:
            value = import_module(name)
            for part in parts[num:]:
                value = member(value, part)
            return value
    raise AttributeError(target)


def is_there(target, module=None, cls=None):
    """Whether a name leads to something, from the whole or from inside a class or a module."""
    starts = [start for start in (cls and f"{module}.{cls}", module, "") if start is not None]
    for start in starts:
        try:
            resolve(f"{start}.{target}" if start else target)
            return True
        except AttributeError:
            continue
        except GenboundError:  # a module on top of a library that is not installed
            return True
    return False


def roles(path):
    """``(line, target, class around it)`` of every cross reference of a module."""
    text = path.read_text(encoding="utf-8")
    classes = [(n.lineno, n.end_lineno, n.name) for n in ast.parse(text).body if isinstance(n, ast.ClassDef)]
    for match in ROLE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield line, match.group(1), next((name for first, last, name in classes if first <= line <= last), None)


def test_every_reference_of_a_docstring_is_there():
    absent, num = [], 0
    for path in SOURCES:
        for line, target, cls in roles(path):
            num += 1
            if not is_there(target, module_of(path), cls):
                absent.append(f"{relative(path)}:{line}: {target}")
    assert num > 50
    assert not absent, "\n".join(absent)


def found(pattern, text):
    """What the text names; a name in capitals stands for one that the reader chooses."""
    return [name for name in pattern.findall(text) if not re.search(r"\b[A-Z]{3,}\b", name)]


def test_every_named_file_is_there():
    absent = [
        f"{relative(path)}: {name}"
        for path in [*PAGES, *SOURCES, *SCRIPTS]
        for name in found(FILE, path.read_text(encoding="utf-8"))
        if not any(ROOT.glob(name))
    ]
    assert not absent, "\n".join(absent)


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_name_of_a_page_is_there(path):
    text = path.read_text(encoding="utf-8")
    assert not [name for name in found(NAME, text) if name not in NOT_NAMES and not is_there(name)]
    # Files by their last name only: any of that name.
    bare = set(re.findall(r"`([a-z_0-9]+\.py)`", text))
    assert not bare - {p.name for p in [*SOURCES, *SCRIPTS]}


def test_readme_is_a_front_page():
    """Short, and readable where only its text is: every link is whole."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    assert not [link for link in LINK.findall(text) if not link.startswith("https://")]


def anchors(path):
    """The headings of a page as GitHub links to them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=relative)
def test_every_link_of_a_page_leads_somewhere(path):
    broken = []
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        own = HOME.sub("", file)  # README's links are whole, so that they lead somewhere on a package's page too
        if own == file and link.startswith(("http://", "https://", "mailto:")):
            continue
        target = (ROOT / own if own != file else path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken
