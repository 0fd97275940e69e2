"""A pytest plugin: the fixture ``bound_regression`` compares results with a stored baseline, from a test.

.. code-block:: python

    def test_bounds(bound_regression):
        problem = genbound.load("tuned.safetensors", "init.safetensors", model="model.py:build", data="npz:train.npz")
        bound_regression(genbound.evaluate(problem, ["hessian_distance"]))

The baseline of a test lies beside its file, in ``FILE/TEST.json``. A baseline that is missing fails the test;
``pytest --update-bounds`` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from genbound.results.results import Results


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option ``--update-bounds``."""
    group = parser.getgroup("genbound")
    group.addoption(
        "--update-bounds", action="store_true", help="write the results as new baselines of bound_regression"
    )


@pytest.fixture
def bound_regression(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``bound_regression(results, baseline=None, **options)``: fail with a readable diff if a number regressed.

    ``results`` and ``options`` are those of :func:`genbound.check`; ``baseline`` is relative to the test's file.
    """
    here = Path(request.path)
    calls = 0

    def compare(results: Results, baseline: str | Path | None = None, **options: Any) -> None:
        from genbound.errors import GenboundError
        from genbound.results.regression import check

        nonlocal calls
        calls += 1
        name = re.sub(r"[^\w.-]+", "_", request.node.name).strip("_") + (f"_{calls}" if calls > 1 else "")
        file = here.parent / baseline if baseline is not None else here.with_suffix("") / f"{name}.json"
        try:
            found = check(results, file, update=request.config.getoption("--update-bounds"), **options)
        except GenboundError as error:
            pytest.fail(str(error).replace("--update,", "pytest --update-bounds,"), pytrace=False)
        if not found and not request.config.getoption("--update-bounds"):
            pytest.fail(found.to_markdown(verbose=True), pytrace=False)

    return compare
