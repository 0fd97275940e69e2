"""Several stored runs, and the names that tell them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genbound.errors import GenboundError
from genbound.results.results import Results, load_results


def as_results(runs: Iterable[Results | str | Path]) -> dict[str, Results]:
    """Runs by the name that tables give them: the last part of their path that tells them apart.

    Their per-sample tables are left on the disk (:func:`~genbound.results.results.read_samples` reads one).
    """
    loaded = [run if isinstance(run, Results) else load_results(run, with_samples=False) for run in runs]
    if not loaded:
        raise GenboundError("no runs are given: name directories that `genbound evaluate --out` wrote")
    return dict(zip(told_apart([_parts(run, i) for i, run in enumerate(loaded)]), loaded, strict=True))


def refuse_twice(runs: Mapping[str, Results]) -> None:
    """Raise where one run is given under two names: it is no other observation."""
    seen: dict[object, str] = {}
    for name, results in runs.items():
        same = id(results) if results.path is None else folder(results.path)
        if same in seen:
            raise GenboundError(f"{seen[same]} and {name} are one run: give each run once")
        seen[same] = name


def stated_of(runs: Mapping[str, Results], table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The hyper-parameters of each run: its own, and those that a table states under its name or its directory."""
    placed = {folder(key): row for key, row in table.items()}
    every, found = dict.fromkeys(key for row in table.values() for key in row), {}
    for name, results in runs.items():
        row = table.get(name, placed.get(folder(results.path or name)))
        found[name] = {**results.config.get("hyperparameters", {}), **(row or {})}
        unknown = [key for key in every if key not in found[name]]
        if unknown and row is not None:
            raise GenboundError(f"the row of run {name} says nothing of {unknown[0]}, which others state: fill it in")
        if unknown:
            raise GenboundError(
                f"no row says what {unknown[0]} is in run {name}: the column run has its directory or this name, "
                f"and not {next(iter(table))!r} and the like"
            )
    return found


def folder(path: str | Path) -> Path:
    """Where a run lies, of its directory or its results.json."""
    path = Path(path)
    return (path.parent if path.name == "results.json" else path).resolve()


def told_apart(paths: Sequence[Sequence[str]]) -> list[str]:
    """Names of paths, each given by its parts: as many of the last parts as tell them apart, else with a number."""
    names: list[str] = []
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({index + 1})" for index, name in enumerate(names)]


def _parts(results: Results, index: int) -> tuple[str, ...]:
    path = results.path or results.checkpoint.get("path")
    if path is None:
        return (f"run {index + 1}",)
    return tuple(part for part in folder(path).parts if part != "/") or (f"run {index + 1}",)
