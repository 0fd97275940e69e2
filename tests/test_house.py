"""The house: imports run down its floors and never in a circle.

A folder of the package, or a file outside one, is a wing.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import genbound

PACKAGE = Path(genbound.__file__).parent

# From the ground up. A wing imports itself and the floors below its own, not its neighbours. An import inside a
# function or for a type's sake counts as any other.
FLOORS = (
    ("errors",),
    ("files", "formatting", "version"),
    ("estimators", "optional", "user_code"),
    ("checkpoints", "data"),
    ("network",),
    ("curvature", "posterior", "structure"),
    ("quantities", "bounds"),
    ("engines", "results"),
    ("evaluation", "figures", "finetune"),
    ("certify",),
    ("callbacks", "cli", "pytest_plugin", "__init__"),
    ("__main__",),
)
HEIGHT = {wing: height for height, floor in enumerate(FLOORS) for wing in floor}


class Arrow(NamedTuple):
    """An import of a module of the package, by their paths from its root: ``results/export``."""

    source: str
    target: str
    line: int
    for_types: bool = False

    def __str__(self) -> str:
        return f"{self.source}.py:{self.line} imports {self.target}"


def modules(package: Path) -> list[str]:
    return sorted(path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py"))


def imported(tree: ast.AST, for_types: bool = False) -> Iterator[tuple[str, int, bool]]:
    """``(dotted name, line, whether it is only for types)`` of every import, wherever it stands."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno, for_types) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, for_types) for alias in node.names)
        guarded = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        yield from imported(node, for_types or guarded)


def arrows(package: Path) -> list[Arrow]:
    known = set(modules(package))

    def module(name: str) -> str:
        """The module that a dotted name is in."""
        parts = name.split(".")[1:]
        while parts:
            for path in ("/".join(parts), "/".join([*parts, "__init__"])):
                if path in known:
                    return path
            parts.pop()
        return "__init__"

    return [
        Arrow(source, module(name), line, for_types)
        for source in sorted(known)
        for name, line, for_types in imported(ast.parse((package / f"{source}.py").read_text(encoding="utf-8")))
        if name.split(".")[0] == package.name
    ]


def wing(module: str) -> str:
    return module.split("/")[0]


def runs_up(arrow: Arrow) -> bool:
    start, end = wing(arrow.source), wing(arrow.target)
    return start != end and HEIGHT[end] >= HEIGHT[start]


def circle(edges: list[tuple[str, str]]) -> list[str]:
    """A circle among these edges; empty if there is none."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for source, target in edges:
        sorter.add(source, target)
    try:
        sorter.prepare()
    except CycleError as found:
        return found.args[1]
    return []


def test_every_wing_is_on_one_floor():
    wings = {wing(module) for module in modules(PACKAGE)}
    assert wings == set(HEIGHT) and len(HEIGHT) == sum(map(len, FLOORS))


def test_imports_run_down():
    assert not [str(arrow) for arrow in arrows(PACKAGE) if runs_up(arrow)]


@pytest.mark.parametrize("name", sorted(HEIGHT))
def test_no_circle_inside_a_wing(name):
    """Imports for a type's sake aside: they are not there when the program runs."""
    inside = [a for a in arrows(PACKAGE) if wing(a.source) == wing(a.target) == name and not a.for_types]
    assert not circle([(a.source, a.target) for a in inside if a.source != a.target])


def test_bounds_are_arithmetic():
    """They import each other, limits of confidence and how to write them: all that they know is the evidence."""
    allowed = ("bounds/", "estimators/kl_inverse", "estimators/binomial_tail", "formatting")
    assert not [str(a) for a in arrows(PACKAGE) if wing(a.source) == "bounds" and not a.target.startswith(allowed)]
    assert "torch" not in loaded("genbound.bounds")


def test_errors_need_nothing():
    assert not {"torch", "numpy"} & loaded("genbound.errors")


@pytest.mark.parametrize(
    "module", ["genbound.results.results", "genbound.figures.one_run", "genbound.results.comparison"]
)
def test_what_sees_only_tables_measures_nothing(module):
    measuring = ("torch", "genbound.network", "genbound.curvature", "genbound.structure", "genbound.evaluation")
    assert not [found for found in loaded(module) if found.startswith(measuring)]


def test_the_catalogue_of_quantities_is_read_without_torch():
    found = loaded("genbound.quantities")
    assert "torch" not in found and "genbound.quantities.catalogue.flatness" in found
    assert "genbound.quantities.flatness" not in found


def loaded(module: str) -> set[str]:
    """The modules that a fresh process holds after an import."""
    code = f"import sys, {module}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


# -- the test sees what it is there to see ----------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path):
    """``house(file=code, …)``: the arrows of a package with these files."""

    def build(**files: str) -> list[Arrow]:
        package = tmp_path / "genbound"
        for name, code in files.items():
            path = package / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        return arrows(package)

    return build


@pytest.mark.parametrize(
    "code",
    [
        "from genbound.evaluation.loop import evaluate",
        "from genbound.evaluation import loop",
        "import genbound.evaluation.loop",
        "def late():\n    from genbound.evaluation.loop import evaluate",
        "if TYPE_CHECKING:\n    from genbound.evaluation.loop import evaluate",
    ],
)
def test_an_import_that_runs_up_is_seen(house, code):
    (arrow,) = house(network__in__problem=code, evaluation__in__loop="")
    assert arrow[:2] == ("network/problem", "evaluation/loop") and runs_up(arrow)


def test_an_import_that_runs_down_or_stays_is_fine(house):
    code = "from genbound.network import problem, layers\nimport torch"
    found = house(
        evaluation__in__loop=code, network__in__problem="from genbound.network import layers", network__in__layers=""
    )
    assert len(found) == 3 and not any(map(runs_up, found))


def test_the_whole_package_is_above_its_wings(house):
    (arrow,) = house(callbacks__in__record="import genbound", __init__="")
    assert arrow.target == "__init__" and runs_up(arrow)


def test_a_circle_is_seen():
    assert circle([("a", "b"), ("b", "c"), ("a", "c")]) == []
    assert set(circle([("a", "b"), ("b", "c"), ("c", "a")])) == {"a", "b", "c"}
