"""The commands that only read stored results: each is a few lines onto one function of tables."""

from __future__ import annotations

from typing import Any

import click

RUNS = click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path())
DEBUG = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")


@click.command()
@RUNS
@click.option("--format", "form", type=click.Choice(["md", "csv", "latex", "html"]), default="md", show_default=True)
@click.option("--allow-mixed", is_flag=True, help="Compare runs that were not measured alike.")
@click.option("--reference", metavar="RUN", default=None, help="Show how many times this run's values the others' are.")
@DEBUG
def compare(runs: tuple[str, ...], form: str, **given: Any) -> None:
    """Print a table of bounds × checkpoints of stored runs."""
    from genbound.comparison import compare as run

    click.echo(run(runs, **given).to(form))


COMMANDS = (compare,)
