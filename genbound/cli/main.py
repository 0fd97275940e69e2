"""The command line: each command is a few lines onto one function of the package."""

from __future__ import annotations

import sys
import traceback
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genbound.cli.finetune import finetune
from genbound.cli.tables import COMMANDS, read_tags
from genbound.errors import GenboundError
from genbound.version import __version__

if TYPE_CHECKING:
    from genbound.checkpoints.pair import Pair
    from genbound.evaluation.loading import EvaluationSpec
    from genbound.network.problem import Problem
    from genbound.network.weights import WeightProblem

# -- options -----------------------------------------------------------------------------------------------------


class Names(click.ParamType):
    """Comma-separated names or numbers."""

    name = "A,B,…"

    def __init__(self, kind: type = str):
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple:
        """The names or numbers as a tuple; a list is taken as it is."""
        items = value if isinstance(value, list | tuple) else [part for part in str(value).split(",") if part.strip()]
        try:
            return tuple(self.kind(item.strip() if isinstance(item, str) else item) for item in items)
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of {self.kind.__name__} values")


def _read_config(ctx: click.Context, param: Any, path: str | None) -> None:
    """Make a YAML file's entries the defaults of this command: what the command line says still wins."""
    if path is None:
        return
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GenboundError(f"--config {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise GenboundError(f"--config {path} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise GenboundError(f"--config {path} must hold options as `name: value` lines")
    known = {option.name for option in ctx.command.params if isinstance(option, click.Option)} - {"config", "debug"}
    entries = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key, value in entries.items():
        if key not in known:
            names = ", ".join(sorted(name.replace("_", "-") for name in known))
            raise GenboundError(f"--config {path} has an unknown option {key!r}; options are {names}")
        if isinstance(value, dict) or (isinstance(value, list) and key not in ("measures", "sigmas", "tags")):
            raise GenboundError(f"--config {path}: {key} must be one value, not {value!r}")
        if isinstance(value, bool) and key != "trust_remote_code":
            raise GenboundError(f"--config {path}: {key} must be a number or a text, not {value!r}")
    ctx.default_map = {**(ctx.default_map or {}), **entries}


def pair_options(command):
    """What evaluate and inspect have in common."""
    for option in reversed(
        [
            click.argument("ckpt", type=click.Path()),
            click.argument("init", type=click.Path(), required=False),
            click.option("--model", metavar="SPEC",
                         help="hf[:AutoModelFor…], timm:NAME, torchvision:NAME, FILE.py:factory or pkg.mod:factory."),
            click.option("--data", metavar="SPEC",
                         help="Training data: npz:FILE, imagefolder:DIR, csv:FILE?text=…&label=…, hf:NAME, "
                         "FILE.py:function."),
            click.option("--test-data", metavar="SPEC", help="Held-out data, for the generalization gap."),
            click.option("--out", metavar="DIR", default=None,
                         help="Where results go; an earlier run there is continued."),
            click.option("--measures", type=Names(), default=None, help="Quantities and bounds (default: all)."),
            click.option("--samples", type=int, default=256, show_default=True, help="Training samples to measure on."),
            click.option("--num-data", type=int, default=None,
                         help="Size n of the training set, if the data are a part."),
            click.option("--batch-size", type=int, default=16, show_default=True,
                         help="Most samples in a forward pass."),
            click.option("--memory", type=float, default=None, metavar="GIB",
                         help="Memory that a pass may take; smaller batches hold it (default: half of the machine's)."),
            click.option("--seed", type=int, default=0, show_default=True, help="Of all randomness."),
            click.option("--device", default="cpu", show_default=True, help="Where to measure."),
            click.option("--dtype", default=None, help="float32 or float64 (default: the checkpoint's)."),
            click.option("--loss", default=None,
                         help="cross_entropy, squared_error, multi_label or FILE.py:function (default: "
                         "what the model says, else cross_entropy)."),
            click.option("--loss-range", default="observed", show_default=True,
                         help="observed, clip:C or bounded:PMIN."),
            click.option("--head", default="init", show_default=True, help="init, zero, exclude or seed:N."),
            click.option("--head-weights", metavar="PATTERN", default=None,
                         help="Weights that form the head, e.g. 'classifier.*' (default: found)."),
            click.option("--ignore", metavar="PATTERN", default=None,
                         help="Names in the files to leave out, e.g. 'criterion.*'."),
            click.option("--entry", metavar="NAME", default=None,
                         help="Entry of a training checkpoint that holds the weights, e.g. model_ema."),
            click.option("--trust-remote-code", is_flag=True, help="Run code that lies in the checkpoint's directory."),
            click.option("--convention", type=click.Choice(["theorem", "paper-code"]), default="theorem",
                         show_default=True, help="paper-code computes what the published scripts do."),
            click.option("--paper-batch-size", type=int, default=8, show_default=True,
                         help="Batch of --convention paper-code."),
            click.option("--layers", metavar="PATTERN", default=None, help="Layers to measure, e.g. '*.query.weight'."),
            click.option("--sigmas", type=Names(float), default=None, help="Noise standard deviations."),
            click.option("--delta", type=float, default=0.05, show_default=True, help="Failure probability of bounds."),
            click.option("--tolerance", type=float, default=0.01, show_default=True,
                         help="Relative width of certified intervals."),
            click.option("--margin-percentile", type=float, default=5.0, show_default=True,
                         help="Of the training margins, for γ."),
            click.option("--confusion", type=click.Path(), default=None,
                         help="Label noise F (.csv, .npy): F[y, z] = P(z | y)."),
            click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True,
                         help="A hyper-parameter of the training, for `correlate`."),
            click.option("--time-budget", type=float, default=None,
                         help="Seconds after which no further part is started."),
            click.option("--config", type=click.Path(), is_eager=True, expose_value=False, callback=_read_config,
                         help="YAML file of the same options."),
            click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def _quantity_options(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The command line's options as options of the quantities they belong to."""
    form = {key: given[key] for key in ("tolerance", "convention", "paper_batch_size")}
    options: dict[str, dict[str, Any]] = {
        "max_quadratic_form": form,
        "margin": {"percentile": given["margin_percentile"]},
    }
    if given["sigmas"] is not None:
        options["noise_stability"] = {"sigmas": given["sigmas"]}
    return options


def _spec(given: dict[str, Any]) -> EvaluationSpec:
    """What the command line and --config say; what they leave open is as genbound.yaml beside CKPT says."""
    from genbound.evaluation.loading import EvaluationSpec

    source, default = click.get_current_context().get_parameter_source, click.core.ParameterSource.DEFAULT
    names = [field.name for field in fields(EvaluationSpec) if field.name in given]
    return EvaluationSpec(**{name: given[name] for name in names if source(name) is not default}).completed()


def _problem(pair: Pair, spec: EvaluationSpec, given: dict[str, Any]) -> Problem | WeightProblem:
    from genbound.evaluation.loading import problem_of

    memory = None if given["memory"] is None else int(given["memory"] * 2**30)
    return problem_of(
        pair, spec, num_samples=given["samples"], sample_seed=given["seed"], memory_budget=memory,
        batch_size=given["batch_size"], device=given["device"], dtype=given["dtype"],
    )  # fmt: skip


# -- commands ----------------------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="genbound")
def cli() -> None:
    """Measure how well a fine-tuned network is guaranteed to generalize."""


@cli.command()
@pair_options
def evaluate(**given: Any) -> None:
    """Measure CKPT against the weights INIT it was fine-tuned from, and compute bounds.

    Finished parts are kept in DIR as they come; the same command continues from them. Without --out the table is only
    printed.
    """
    from genbound.checkpoints.architecture import load_pair
    from genbound.data.label_confusion import read_matrix
    from genbound.evaluation.loop import evaluate as run
    from genbound.evaluation.selection import resolve

    resolve(given["measures"])  # a misspelt name fails before anything is loaded
    spec = _spec(given)
    confusion = None if spec.confusion is None else read_matrix(spec.confusion)
    pair = load_pair(spec)
    problem = _problem(pair, spec, given)
    click.echo(f"architecture: {pair.rule}; {len(problem.layers)} layers", err=True)
    results = run(
        problem, given["measures"], given["seed"], options=_quantity_options(given), out=given["out"],
        confusion=confusion, delta=given["delta"], progress=True, time_budget=given["time_budget"],
        config={"hyperparameters": read_tags(given["tags"])} if given["tags"] else None,
    )  # fmt: skip
    if given["out"] is not None:
        from genbound.figures.one_run import save_plots

        results.save(given["out"])
        save_plots(results, given["out"])
        click.echo(f"results in {given['out']}", err=True)
    click.echo(results.to_markdown())


@cli.command()
@pair_options
def inspect(**given: Any) -> None:
    """Show what evaluate would measure, with the same arguments: architecture, layers, head, cost and memory."""
    from genbound.checkpoints.architecture import load_pair
    from genbound.cli.inspection import describe

    spec = _spec(given)
    pair = load_pair(spec)
    click.echo(describe(pair, _problem(pair, spec, given), given["measures"], _quantity_options(given)))


@cli.command("list")
@click.argument("what", type=click.Choice(["quantities", "bounds"]), required=False)
def list_(what: str | None) -> None:
    """List quantities and bounds: name, what it is, what it needs, reference."""
    from genbound.cli.inspection import catalogue

    click.echo(catalogue(what))


for _command in COMMANDS:
    cli.add_command(_command)
cli.add_command(finetune)

# -- entry point -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run a command; an error is one line on standard error and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, failure = "--debug" in arguments, None
    try:
        return cli.main(arguments, prog_name="genbound", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("genbound: interrupted; finished parts are kept, the same command continues", err=True)
        return 130
    except click.ClickException as error:
        failure, message = error, " ".join(error.format_message().split())
    except GenboundError as error:
        failure, message = error, str(error)
    except Exception as error:  # a user meets one line here too; --debug shows where it came from
        text = " ".join(str(error).split())
        failure = error
        message = f"unexpected {type(error).__name__}: {text[:300]} (run again with --debug and report the traceback)"
    if debug:
        traceback.print_exception(failure)
    click.echo(f"genbound: error: {message}", err=True)
    return 2


def run() -> None:
    """The console script: exit with the status of :func:`main`."""
    sys.exit(main())


if __name__ == "__main__":
    run()
