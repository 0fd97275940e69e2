"""The options of ``evaluate`` and ``inspect``, and the file that gives them other defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from genbound.cli.click_options import DEBUG, Measures, Names, option
from genbound.cli.quantity_options import CONFIG, read_config_entry, short_forms
from genbound.errors import GenboundError, did_you_mean
from genbound.files import read_yaml


def read_config(ctx: click.Context, param: Any, path: str | None) -> None:
    """Make a YAML file's entries the defaults of this command: what the command line says still wins."""
    if path is None:
        return
    content = read_yaml(Path(path), f"--config {path}", "options")
    entries = {str(key).replace("-", "_"): value for key, value in content.items()}
    options = {option.name: option for option in ctx.command.params if isinstance(option, click.Option)}
    known = options.keys() - {"config", "debug"}
    if "set" in entries:
        ctx.meta[CONFIG] = read_config_entry(entries.pop("set"), path)
    for key, value in entries.items():
        if key not in known:
            names = ", ".join(sorted(name.replace("_", "-") for name in known))
            hint = did_you_mean(key.replace("_", "-"), [name.replace("_", "-") for name in known])
            raise GenboundError(f"--config {path} has an unknown option {key!r}{hint}; options are {names}")
        several = options[key].multiple or isinstance(options[key].type, Names)
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            raise GenboundError(f"--config {path}: {key} must be one value, not {value!r}")
        if isinstance(value, bool) and not options[key].is_flag:
            raise GenboundError(f"--config {path}: {key} must be a number or a text, not {value!r}")
    ctx.default_map = {**(ctx.default_map or {}), **entries}


# One pair of checkpoints, and several with one start.
PAIR = [click.argument("ckpt", type=click.Path()), click.argument("init", type=click.Path(), required=False)]
PAIRS = [click.argument("paths", type=click.Path(), metavar="CKPT… [INIT]", nargs=-1, required=True)]

# What evaluate and inspect have in common.
PAIR_OPTIONS = [
    option("model", str,
           "hf[:AutoModelFor…], timm:NAME, torchvision:NAME, FILE.py:factory or pkg.mod:factory.", metavar="SPEC"),
    option("data", str,
           "Training data: npz:FILE, imagefolder:DIR, csv:FILE?text=…&label=…, hf:NAME, FILE.py:function.",
           metavar="SPEC"),
    option("test-data", str, "Held-out data, for the generalization gap.", metavar="SPEC"),
    option("out", str, "Where results go; an earlier run there is continued.", metavar="DIR"),
    option("measures", Measures(),
           "Quantities and bounds, with wildcards (default: all but those on request; `default,NAME` adds one)."),
    option("effort", click.Choice(["quick", "standard", "thorough"]),
           "What quantities that are not named may take: half an epoch; 100 gradients over the measured samples and "
           "two over all; whatever it takes.", default="standard"),
    option("samples", int, "Training samples to measure on.", default=256),
    option("num-data", int, "Size n of the training set, if the data are a part."),
    option("batch-size", int, "Most samples in a forward pass.", default=16),
    option("memory", float,
           "Memory that a pass may take; smaller batches hold it (default: half of the machine's).", metavar="GIB"),
    option("seed", int, "Of all randomness.", default=0),
    option("device", str, "Where to measure.", default="cpu"),
    option("device-map", str,
           "Spread the layers over several devices, in place of --device: auto, over all accelerators by their free "
           "memory, or a JSON file of module names and devices.", metavar="auto|FILE"),
    option("dtype", click.Choice(["float32", "float64", "bfloat16"]), "Precision (default: the checkpoint's)."),
    option("loss", str,
           "cross_entropy, squared_error, multi_label or FILE.py:function (default: what the model says, "
           "else cross_entropy)."),
    option("loss-range", str, "observed, clip:C or bounded:PMIN.", default="observed"),
    option("head", str, "init, zero, exclude or seed:N.", default="init"),
    option("head-weights", str, "Weights that form the head, e.g. 'classifier.*' (default: found).", metavar="PATTERN"),
    option("ignore", str, "Names in the files to leave out, e.g. 'criterion.*'.", metavar="PATTERN"),
    option("entry", str, "Entry of a training checkpoint that holds the weights, e.g. model_ema.", metavar="NAME"),
    click.option("--trust-remote-code", is_flag=True,
                 help="Run code that the checkpoint's own files name, in its directory or in genbound.yaml."),
    option("output", str, "Which output holds the scores, where the model returns several: a name or a place.",
           metavar="NAME"),
    option("layers", str, "Layers to measure, e.g. '*.query.weight'.", metavar="PATTERN"),
    option("delta", float, "Failure probability of bounds.", default=0.05),
    option("prior", click.Path(), "Checkpoint that certificates are centred at in place of INIT.", metavar="CKPT"),
    option("unlabelled", str, "Inputs that training never saw: certificates of the network itself.", metavar="SPEC"),
    option("prior-samples", click.Path(), "Training samples that the prior saw: a file with one number a line, from 0.",
           metavar="FILE"),
    option("prior-choices", int, "Priors of which it was chosen after the other samples were seen.  [default: 1]",
           metavar="N"),
    *short_forms(),
    click.option("--set", "set", metavar="QUANTITY.OPTION=VALUE", multiple=True,
                 help="Any option of a quantity; `genbound list options` shows all."),
    option("confusion", click.Path(), "Label noise F (.csv, .npy): F[y, z] = P(z | y)."),
    click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True,
                 help="A hyper-parameter of the training, for `correlate`."),
    option("time-budget", float, "Seconds after which no further part is started."),
    option("config", click.Path(), "YAML file of the same options.",
           is_eager=True, expose_value=False, callback=read_config),
    DEBUG,
]  # fmt: skip

ENGINE = [
    option(
        "engine",
        str,
        "What computes: local (this process), torchrun (all that torchrun, accelerate launch or srun has started), "
        "ray or ray://ADDRESS.",
        default="auto",
    ),
    option("workers", int, "Actors that Ray starts (default: one for each core or accelerator)."),
]

# What inspect alone has.
UNREAD = [
    click.option("--no-weights", is_flag=True,
                 help="Read no weights: which layers there are by shapes alone, in seconds and without the memory of "
                      "safetensors files; nothing is checked, and no cost forecast."),
]  # fmt: skip

# What evaluate alone has: where it computes, and what it prints.
PRINTED = [
    *ENGINE,
    click.option("--all", is_flag=True, help="Print all rows of the table and not its short form."),
    click.option("--json", is_flag=True, help="Print results.json and not the table."),
    click.option("-v", "--verbose", is_flag=True, help="Say of each quantity what it took, on standard error."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks on standard error, errors alone."),
]
