"""The command line: each command is a few lines onto one function of the package."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genbound.cli.click_options import with_options
from genbound.cli.finetune import finetune
from genbound.cli.options import PAIR, PAIR_OPTIONS, PAIRS, PRINTED, UNREAD
from genbound.cli.quantity_options import list_options, quantity_options
from genbound.cli.tables import COMMANDS, read_tags
from genbound.cli.terminal import show
from genbound.engines.failures import share, speaks
from genbound.errors import GenboundError
from genbound.version import __version__

if TYPE_CHECKING:
    from genbound.checkpoints.pair import Pair
    from genbound.engines.base import Engine
    from genbound.evaluation.loading import EvaluationSpec
    from genbound.network.problem import Problem
    from genbound.network.weights import WeightProblem
    from genbound.results.events import Event
    from genbound.results.results import Results

    Run = tuple[dict[str, Any], EvaluationSpec]  # what is given for a checkpoint, and what is said about it


def _spec(given: dict[str, Any]) -> EvaluationSpec:
    """What the command line and --config say; what they leave open is as genbound.yaml beside CKPT says."""
    from genbound.evaluation.loading import EvaluationSpec

    if given.get("device_map") is not None and _is_said("device"):
        raise GenboundError("--device and --device-map both say where the layers are: leave one of them out")
    names = [field.name for field in fields(EvaluationSpec) if field.name in given]
    return EvaluationSpec(**{name: given[name] for name in names if _is_said(name)}).completed()


def _is_said(name: str) -> bool:
    """Whether the command line or the config file says this, and not its default alone."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _problem(pair: Pair, spec: EvaluationSpec, given: dict[str, Any]) -> Problem | WeightProblem:
    from genbound.evaluation.loading import problem_of
    from genbound.network.device_map import read_device_map

    memory = None if given["memory"] is None else int(given["memory"] * 2**30)
    return problem_of(
        pair, spec, num_samples=given["samples"], sample_seed=given["seed"], memory_budget=memory,
        batch_size=given["batch_size"], device=given["device"], dtype=given["dtype"], output=given["output"],
        device_map=read_device_map(given["device_map"]),
    )  # fmt: skip


# -- commands ----------------------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="genbound")
def cli() -> None:
    """Measure what bounds on the generalization of a fine-tuned network are made of.

    The values are measures: leading terms of theorems, not guarantees. The table says the kind of each.
    """


@cli.command()
@with_options([*PAIRS, *PAIR_OPTIONS, *PRINTED])
def evaluate(paths: tuple[str, ...], **given: Any) -> None:
    """Measure CKPT against the weights INIT it was fine-tuned from, and compute bounds.

    Finished parts are kept in DIR as they come; the same command continues from them. Without --out the table is only
    printed. Of several CKPT each has a directory of its own in DIR, and a table compares them.
    """
    from genbound.engines.open_engine import open_engine
    from genbound.engines.run_directory import writing_to
    from genbound.evaluation.selection import select

    options, given["tags"] = quantity_options(click.get_current_context()), read_tags(given["tags"])
    select(given["measures"], options)  # a misspelt name fails before anything is loaded
    with open_engine(given["engine"], given["workers"], given["device"]) as engine:
        with writing_to(given["out"], engine):  # and so does a directory that cannot be written
            runs = engine.together(lambda: [(run, _spec(run)) for run in _runs(paths, given)])
            engine.employ(partial(_follow, given["out"], runs, options))
            _evaluate_all(runs, options, engine)


def _runs(paths: tuple[str, ...], given: dict[str, Any]) -> list[dict[str, Any]]:
    """What is given for each checkpoint; several have one start, and directories of their own."""
    from genbound.files import file_name
    from genbound.results.runs import told_apart

    if len(paths) <= 2:
        return [given | {"ckpt": paths[0], "init": paths[1] if len(paths) == 2 else None}]
    *ckpts, init = paths
    names = told_apart([Path(ckpt).resolve().parts for ckpt in ckpts])
    out = given["out"]
    return [
        given | {"ckpt": ckpt, "init": init, "out": out and str(Path(out, *map(file_name, name.split("/"))))}
        for ckpt, name in zip(ckpts, names, strict=True)
    ]


def _follow(out: str | None, runs: list[Run], options: dict[str, dict[str, Any]], engine: Engine) -> None:
    """The same steps in a process that this one has started."""
    from genbound.engines.run_directory import writing_to

    with writing_to(out, engine):
        _evaluate_all(runs, options, engine)


def _evaluate_all(runs: list[Run], options: dict[str, dict[str, Any]], engine: Engine) -> None:
    """Every run, one after the other; what one of several cannot do stops only that one."""
    found: list[Results | None] = []
    failed: list[str] = []
    started = time.monotonic()
    for given, spec in runs:
        budget = given["time_budget"]
        left = None if budget is None else max(0.0, budget - (time.monotonic() - started))
        try:
            found.append(_evaluate(given | {"time_budget": left if found or failed else budget}, options, spec, engine))
        except GenboundError as error:
            if len(runs) == 1:
                raise
            failed.append(f"{given['ckpt']} ({error})")
    if len(found) > 1 and engine.leads and not runs[0][0]["json"]:
        from genbound.results.comparison import compare

        show("", compare([results for results in found if results]).to("md"))
    if failed:
        words = f"{len(failed)} of {len(runs)} checkpoints could not be measured: {'; '.join(failed)}"
        raise share(GenboundError(words), engine.leads)


def _evaluate(
    given: dict[str, Any], options: dict[str, dict[str, Any]], spec: EvaluationSpec, engine: Engine
) -> Results | None:
    """One run; its results where this process leads."""
    from genbound.checkpoints.architecture import load_pair
    from genbound.data.label_confusion import read_matrix
    from genbound.evaluation.loop import evaluate as run
    from genbound.results.events import Finished

    def load() -> tuple[Problem | WeightProblem, Any]:
        confusion = None if spec.confusion is None else read_matrix(spec.confusion)
        pair = load_pair(spec)
        problem = _problem(pair, spec, given | {"device": engine.device(given["device"])})
        if engine.leads:
            _remark(f"architecture: {pair.rule}; {len(problem.layers)} layers", given)
        return problem, confusion

    problem, confusion = engine.together(load)
    known: list[Callable[[str], Results]] = []  # what the quantities that are finished say, the last one's at the end

    def listen(event: Event) -> None:
        if isinstance(event, Finished):
            known[:] = [event.known]

    try:
        results = run(
            problem, given["measures"], given["seed"], options=options, out=given["out"],
            confusion=confusion, delta=given["delta"], progress=_progress(given), time_budget=given["time_budget"],
            effort=given["effort"],
            config={"hyperparameters": given["tags"]} if given["tags"] else None, engine=engine, listen=listen,
        )  # fmt: skip
    except (KeyboardInterrupt, Terminated) as stopped:
        # Whoever stops it may want what is known; a launcher of ranks may start them again, and the table comes then.
        if engine.ranks == 1 or isinstance(stopped, KeyboardInterrupt):
            for conclude in known:
                _show(conclude(STOPPED), given)
        raise
    if not engine.leads:
        return None
    try:
        if given["out"] is not None:
            from genbound.figures.one_run import save_plots

            results.save(given["out"])
            save_plots(results, given["out"])
            _remark(f"results in {given['out']}", given)
        elif results.networks:
            _remark(f"the checkpoint {', '.join(results.networks)} was not written: --out DIR keeps it", given)
    finally:  # what was measured is shown even where it cannot be written
        _show(results, given)
    return results


def _progress(given: dict[str, Any]) -> bool | str:
    """What is said of the progress: nothing, how far it is, or what each quantity took too."""
    return False if given["quiet"] else "verbose" if given["verbose"] else True


def _show(results: Results, given: dict[str, Any]) -> None:
    """The table, or all of it as JSON, on standard output."""
    if given["json"]:
        from genbound.files import json_text
        from genbound.results.results import to_plain

        click.echo(json_text(to_plain(results.to_json())))
    else:
        show(results.to_markdown(every=given["all"] or given["measures"] is not None))


def _remark(text: str, given: dict[str, Any]) -> None:
    """A line on standard error, unless --quiet was given."""
    if not given["quiet"]:
        click.echo(text, err=True)


@cli.command()
@with_options([*PAIR, *PAIR_OPTIONS, *UNREAD])
def inspect(**given: Any) -> None:
    """Show what evaluate would measure, with the same arguments: architecture, layers, head, cost and memory."""
    from genbound.checkpoints.architecture import load_pair
    from genbound.cli.inspection import describe, describe_shapes
    from genbound.evaluation.selection import select
    from genbound.network.device_map import read_device_map

    options = quantity_options(click.get_current_context())
    selection = select(given["measures"], options)  # a misspelt name fails before anything is loaded
    spec = _spec(given)
    pair = load_pair(spec, not given["no_weights"])
    if given["no_weights"]:
        show(*describe_shapes(pair, spec, given["output"], read_device_map(given["device_map"])))
    else:
        show(*describe(pair, _problem(pair, spec, given), selection, given["effort"]))


@cli.command("list")
@click.argument("what", type=click.Choice(["quantities", "bounds", "options"]), required=False)
@click.argument("quantity", required=False)
def list_(what: str | None, quantity: str | None) -> None:
    """List quantities and bounds: name, what it is, what it needs, reference.

    `genbound list options [QUANTITY]` lists what --set can set: option, default, short form, meaning.
    """
    from genbound.cli.inspection import catalogue

    if quantity is not None and what != "options":
        raise GenboundError(f"there is one list of {what}: `genbound list options QUANTITY` takes a name")
    show(list_options(quantity) if what == "options" else catalogue(what))


for _command in COMMANDS:
    cli.add_command(_command)
cli.add_command(finetune)

# -- entry point -------------------------------------------------------------------------------------------------

STOPPED = "not measured: the run was stopped before; with --out, the same command continues"
CONTINUES = "with --out, finished parts are kept and the same command continues from them"


class Terminated(BaseException):
    """SIGTERM: a batch system, or ``kill``, ends the command."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; an error is one line on standard error and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return cli.main(arguments, prog_name="genbound", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"genbound: interrupted; {CONTINUES}", err=True)
        return 130
    except Terminated:
        click.echo(f"genbound: terminated; {CONTINUES}", err=True)
        return 143
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        if speaks(error):  # of several processes one does
            click.echo(f"genbound: error: {_one_line(error)}", err=True)
        return 2


def _one_line(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return " ".join(error.format_message().split())
    if isinstance(error, GenboundError):
        return str(error)
    from genbound.evaluation.out_of_memory import is_out_of_memory, wanted

    if is_out_of_memory(error):
        mend = f"give a smaller --batch-size or --memory; {CONTINUES}"
        return f"out of memory{wanted(error)}: {mend}"
    # A user meets one line here too; --debug shows where it came from.
    text = " ".join(str(error).split())[:300]
    return f"unexpected {type(error).__name__}: {text} (run again with --debug and report the traceback)"


def run() -> None:
    """The console script: exit with the status of :func:`main`."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())


def _terminate(*_: object) -> None:
    raise Terminated


if __name__ == "__main__":
    run()
