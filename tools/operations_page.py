"""Writes docs/operations.md from the table of operations; a test holds the two equal.

python tools/operations_page.py
"""

from pathlib import Path

from genbound.curvature.rule_of import RULES
from genbound.network.operation import Kind, No, Operation
from genbound.network.operations import OPERATIONS
from genbound.structure.constants import FUNCTIONS
from genbound.structure.path_sums import PATHS

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"

INTRODUCTION = """\
# Operations

What a network does is read from the operations that torch executes, never from module names. This table says what each
of them is to everybody who reads a pass. It is written by `tools/operations_page.py` from
[genbound/network/operations.py](../genbound/network/operations.py), the one place that knows them; a test walks every
row through every reader on a tiny network and compares with brute force.

- **block**: whether the Hessian block of a weight in front of it can still be known to be positive semidefinite.
  *Flat*: the second derivative vanishes wherever it exists. A product is flat in one factor while the other does not
  depend on the weight.
- **Lipschitz constants** in the operand that depends on the input, for the `structure` of a network: in the Euclidean
  norm of all entries, and in the sup norm where that is another. An operand entry by entry that is repeated to fit
  costs the root of the number of copies beside it. *Keeps zero*: f(0) = 0; *homogeneous*: f(cx) = c f(x) for c > 0;
  *by call*: it depends on the arguments. Where an argument was made from the input behind autograd's back (a mask by a
  comparison, places by a sort, a detached factor), there is no constant.
- **sweep**: how tangents are carried through it, for second derivatives without a backward pass.
- **contraction**: an activation entry by entry, whose ‖x‖/‖φ(x)‖ `compression` measures on the data.
- **path norm**: what becomes of the sums over paths of squared weights.
- **table**: a weight that is only looked up, moved about, and added or joined to activations in the end is a table of
  vectors (a position embedding), no layer. What is made of weights alone is a weight.

An operation that is not here is unknown to all: it counts as curved, it has no constant and no path norm, and sweeps
take nested derivatives of it.

"""


def page() -> str:
    """The whole page, as markdown."""
    return INTRODUCTION + answers() + "\n## Names\n\n" + names()


def answers() -> str:
    """A row for each operation, a column for each reader."""
    rows = [
        (f"`{row.name}`", row.kind, _block(row), _lipschitz(row), _yes(row.homogeneous, row), _yes(row.keeps_zero, row),
         _sweep(row), "measured" if row.watched else "", _paths(row), _table(row))
        for row in OPERATIONS
    ]  # fmt: skip
    head = ("operation", "what it is", "block", "Lipschitz constants", "homogeneous", "keeps zero", "sweep")
    return _markdown((*head, "contraction", "path norm", "table"), rows)


def names() -> str:
    """What each operation is called on each level."""
    levels = ("nodes", "aten", "functions")
    rows = [
        (f"`{row.name}`", *(" ".join(f"`{n}`" for n in getattr(row, level)) for level in levels)) for row in OPERATIONS
    ]
    return _markdown(("operation", "in autograd's record", "below autograd (aten)", "as it is called"), rows)


def _markdown(head, rows) -> str:
    lines = [[cell.replace("|", "\\|") for cell in cells] for cells in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _sentence(function) -> str:
    """The first line of a docstring, as the text of a cell."""
    line = function.__doc__.splitlines()[0].rstrip(".")
    return line[0].lower() + line[1:] if line[1:2].islower() else line


def _block(row: Operation) -> str:
    if row.name == "batch_norm":
        return "flat in one factor in evaluation mode"
    if row.meets is not None:
        return "flat in the numerator" if row.meets[0] == row.meets[1] else "flat in one factor"
    return "flat" if row.flat else "curved"


def _lipschitz(row: Operation) -> str:
    if isinstance(row.lipschitz, No):
        return f"none: {row.lipschitz.reason}"
    if isinstance(row.lipschitz, str):
        return _sentence(FUNCTIONS[row.lipschitz])
    l2, sup = (f"{constant:.4g}" for constant in row.lipschitz)
    return l2 if l2 == sup else f"{l2}; {sup} in the sup norm"


def _yes(answer: bool | None, row: Operation) -> str:
    if isinstance(row.lipschitz, No):
        return ""
    return "by call" if answer is None else "yes" if answer else "no"


def _sweep(row: Operation) -> str:
    if isinstance(row.sweep, No):
        return f"none: {row.sweep.reason}"
    return "a constant" if row.sweep == "constant" else _sentence(RULES[row.sweep])


def _paths(row: Operation) -> str:
    return f"none: {row.paths.reason}" if isinstance(row.paths, No) else _sentence(PATHS[row.paths])


def _table(row: Operation) -> str:
    if row.name == "embedding":
        return "looked up"
    if row.joins:
        return "added or joined"
    return "moved" if row.kind is Kind.ROUTE else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
