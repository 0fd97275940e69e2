"""The commands that only read stored results: each is a few lines onto one function of tables."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

import click

from genbound.cli.terminal import show
from genbound.errors import GenboundError

RUNS = click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path())
DEBUG = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path())
@DEBUG
def status(folder: str) -> None:
    """Show how far the run in DIR is: quantities, stages, parts done and left, failures, and what remains.

    DIR is the --out of `genbound evaluate`, while it measures or after it has ended.
    """
    from genbound.results.progress import status as run

    show(run(folder))


@click.command()
@RUNS
@click.option(
    "--format",
    "form",
    type=click.Choice(["md", "csv", "latex", "html"]),
    help="Default: md into a file or a pipe, a drawn table on a terminal.",
)
@click.option("--allow-mixed", is_flag=True, help="Compare runs that were not measured alike.")
@click.option("--reference", metavar="RUN", default=None, help="Show how many times this run's values the others' are.")
@DEBUG
def compare(runs: tuple[str, ...], form: str | None, **given: Any) -> None:
    """Say whether the last of stored runs is worse than the first, and print a table of bounds × checkpoints."""
    from genbound.results.cells import markdown
    from genbound.results.comparison import compare as run
    from genbound.results.verdict import WORSE

    found = run(runs, **given)
    if form is None:
        worse = [f"> **{WORSE}** {markdown(found.summary())}", ""] if len(found.runs) > 1 else []
        show(*worse, found.to("md"))
    else:
        click.echo(found.to(form))


@click.command()
@click.argument("run", metavar="RUN", type=click.Path())
@click.option("--baseline", metavar="FILE", required=True, type=click.Path(), help="A results.json under any name.")
@click.option("--update", is_flag=True, help="Write RUN as the new baseline after comparing; exit status 0.")
@click.option(
    "--tolerance",
    "rules",
    metavar="NAME=RULE",
    multiple=True,
    help="5%, +5% (fail if it grew by more), -5%, 0.01, 4sem or ignore; NAME is MEASURE or MEASURE:LAYER, "
    "with wildcards.",
)
@click.option(
    "--false-alarm", type=float, default=1e-3, show_default=True, help="Of a run that differs in its seed alone."
)
@click.option(
    "--k", type=float, default=None, help="Combined standard errors, in place of those that --false-alarm gives."
)
@click.option("--rounding", type=float, default=None, help="Relative (default: 1e-9 in float64, else 1e-5).")
@click.option("--verbose", is_flag=True, help="A line for every number that regressed, not for each measure.")
@click.option("--junit", metavar="FILE", type=click.Path(), default=None, help="Write JUnit XML.")
@click.option(
    "--github/--no-github", default=None, help="Print GitHub annotations (default: where GITHUB_ACTIONS is set)."
)
@DEBUG
def check(
    run: str, baseline: str, update: bool, rules: tuple[str, ...], verbose: bool, junit: str | None,
    github: bool | None, **given: Any,
) -> int:  # fmt: skip
    """Compare RUN with a stored baseline; exit status 1 if a number regressed."""
    from genbound.results.regression import check as compare_with
    from genbound.results.regression_output import github_annotations, write_junit

    found = compare_with(run, baseline, tolerances=_pairs(rules, "--tolerance"), update=update, **given)
    show(found.to_markdown(verbose))
    if junit is not None:
        write_junit(found, junit)
    if github or (github is None and os.environ.get("GITHUB_ACTIONS") == "true"):
        for line in github_annotations(found, baseline):
            click.echo(line)
    return 0 if found.passed or update else 1


def read_tags(items: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` items; a value that is a number becomes one, so that 1e-4 and 0.0001 are the same setting."""
    tags: dict[str, Any] = {}
    for key, value in _pairs(tuple(items), "--tag").items():
        try:
            tags[key] = int(value)
        except ValueError:
            try:
                number = float(value)
                tags[key] = number if math.isfinite(number) else value
            except ValueError:
                tags[key] = value
    return tags


FIGURES = click.option("--format", "suffix", type=click.Choice(["png", "pdf", "svg"]), default="png", show_default=True)


@click.command()
@RUNS
@click.option("--gap", type=click.Choice(["loss", "error"]), default="loss", show_default=True, help="Unit of the gap.")
@click.option(
    "--out",
    metavar="DIR",
    default=None,
    type=click.Path(),
    help="Write correlations.csv, points.csv and one figure with a scatter plot of each measure.",
)
@click.option(
    "--hyperparameters",
    metavar="FILE.csv",
    default=None,
    type=click.Path(),
    help="Column run, one more for each hyper-parameter; beside those of `evaluate --tag`.",
)
@click.option(
    "--over",
    metavar="NAME",
    default=None,
    help="Also plot each measure and the gap over a measure (distance_frobenius) or a hyper-parameter.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of bootstrap and permutations.")
@click.option("--allow-mixed", is_flag=True, help="Take runs that were not measured alike.")
@FIGURES
@DEBUG
def correlate(
    runs: tuple[str, ...],
    gap: str,
    out: str | None,
    hyperparameters: str | None,
    over: str | None,
    suffix: str,
    **given: Any,
) -> None:
    """Say which measure tracks the generalization gap over stored runs."""
    from genbound.results.correlation import correlate as run
    from genbound.results.correlation import read_hyperparameters

    if over is not None and out is None:
        raise GenboundError("--over makes plots: give --out DIR too")
    stated = None if hyperparameters is None else read_hyperparameters(hyperparameters)
    found = run(_without(out, runs), gap, hyperparameters=stated, **given)
    show(found.to_markdown())
    if out is not None:
        from genbound.figures.several_runs import save_correlation_plots

        written = [*found.save(out), *save_correlation_plots(found, out, suffix, over)]
        click.echo(f"in {out}: {', '.join(path.name for path in written)}", err=True)


@click.command()
@RUNS
@click.option("--out", metavar="DIR", default=None, type=click.Path(), help="Where plots go (default: into each run).")
@FIGURES
@DEBUG
def plot(runs: tuple[str, ...], out: str | None, suffix: str) -> None:
    """Draw the plots of stored runs; with several, also their bounds side by side."""
    from genbound.figures.several_runs import save_all

    for path in save_all(_without(out, runs), out, suffix):
        click.echo(path)


@click.command()
@RUNS
@click.option("--out", metavar="FILE.html", required=True, type=click.Path(dir_okay=False), help="The page.")
@DEBUG
def report(runs: tuple[str, ...], out: str) -> None:
    """Write one self-contained HTML page of stored runs."""
    from genbound.figures.report import report as write

    click.echo(f"report in {write(runs, out)}", err=True)


@click.command()
@RUNS
@click.option(
    "--out",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False),
    help="FILE.parquet, FILE.csv or FILE.jsonl.",
)
@DEBUG
def export(runs: tuple[str, ...], out: str) -> None:
    """Write every number of stored runs as one long table."""
    from genbound.results.export import export as write

    write(runs, out)


@click.command()
@RUNS
@click.option("--to", type=click.Choice(["mlflow", "wandb", "tensorboard"]), required=True, help="wandb logs offline.")
@click.option("--out", metavar="DIR", required=True, type=click.Path(), help="Where the tracker's files go.")
@DEBUG
def log(runs: tuple[str, ...], to: str, out: str) -> None:
    """Log stored runs to an experiment tracker's local files."""
    from genbound.results.loggers import LOGGERS
    from genbound.results.runs import as_results

    for name, results in as_results(runs).items():
        LOGGERS[to](results, out, name)


def _without(out: str | None, runs: tuple[str, ...]) -> list[str]:
    """The runs, without the folder of an earlier call's output that ``runs/*`` finds among them."""
    own = None if out is None or Path(out, "results.json").exists() else Path(out).resolve()
    return [run for run in runs if Path(run).resolve() != own]


def _pairs(items: tuple[str, ...], option: str) -> dict[str, str]:
    for item in items:
        if "=" not in item or item.startswith("="):
            raise GenboundError(f"{option} {item!r} is not understood: write NAME=VALUE")
    return dict(item.split("=", 1) for item in items)


def _read_only(command: click.Command) -> click.Command:
    """What stored values make of a command is one line, whatever they are."""
    run = command.callback
    assert run is not None

    @functools.wraps(run)
    def guarded(*given: Any, **named: Any) -> Any:
        from genbound.results.schema import readable

        with readable("the stored results"):
            return run(*given, **named)

    command.callback = guarded
    return command


COMMANDS = tuple(map(_read_only, (status, compare, check, correlate, plot, report, export, log)))
