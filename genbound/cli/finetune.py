"""``genbound finetune``: the options, and the words that a finished run is reported in."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from genbound.cli.click_options import DEBUG, option, with_options
from genbound.cli.options import ENGINE
from genbound.cli.terminal import show
from genbound.errors import GenboundError
from genbound.formatting import rounded_up, surely

if TYPE_CHECKING:
    from genbound.engines.base import Engine

OPTIONS = [
    click.argument("init", type=click.Path()),
    option("data", str, "Training data: npz:FILE, csv:FILE?text=…&label=…, FILE.py:function.", required=True),
    option("out", click.Path(), "Folder of the run; the same command continues a stopped one.", required=True),
    option("model", str, "hf[:AutoModelFor…], timm:NAME, torchvision:NAME, FILE.py:factory or pkg.mod:factory."),
    option("test-data", str, "Samples to report the accuracy on."),
    option("classes", int, "Number of classes, where the training labels do not show all."),
    option("epochs", int, "Passes over the training samples.  [default: 5]"),
    option("batch-size", int, "Samples in a forward pass.  [default: 32]"),
    option("accumulation", int, "Forward passes in an optimizer step.  [default: 1]"),
    option("lr", float, "Largest learning rate of Adam.  [default: 1e-4]"),
    option("schedule", str, "linear, constant or cosine.  [default: linear]"),
    option("warmup", float, "Share of the steps in which the learning rate rises."),
    option("clip", float, "Largest norm of the gradient; 0 switches it off.  [default: 1]"),
    option("precision", str, "float32 or bfloat16 (mixed).  [default: float32]"),
    option("device", str, "cpu or cuda.  [default: cpu]"),
    option("seed", int, "Of all randomness."),
    click.option("--group-by-length", is_flag=True, help="Batches of texts of like length: hardly any padding."),
    option("radius", str, "Largest distance of a layer: D, D% of its norm, PATTERN=D,… or auto."),
    option("radius-scale", float, "s of the schedule D, D, D·s, D·s² over four stages of depth."),
    option("norm", str, "Of the distance: frobenius or mars."),
    option("head-radius", float, "Largest norm of the output head."),
    option("norm-layers", float, "Largest change of a normalisation layer's scale."),
    option("trained", str, "all or head.  [default: all]"),
    option("head-weights", str, "Weights that form the head, e.g. 'classifier.*' (default: found).", metavar="PATTERN"),
    option("noise", str, "Add label noise: symmetric:P, symmetric-redraw:P, FILE (matrix), labels:FILE."),
    option("confusion", str, "Correct the loss for F: known, symmetric:P, FILE, anchor or dual-t."),
    option("correction", str, "backward or forward.  [default: backward]"),
    option("estimation-epochs", int, "Epochs of the run that anchor and dual-t estimate from.  [default: 2]"),
    option("weight-decay", float, "Baseline: decoupled weight decay."),
    option("label-smoothing", float, "Baseline: label smoothing."),
    option("mixup", float, "Baseline: mixup with Beta(A, A)."),
    option("distance-penalty", float, "Baseline: L2-SP, λ/2 |w - w0|²."),
    option("lora", int, "Baseline: LoRA of this rank."),
    option("sam", float, "Baseline: sharpness-aware minimisation, radius rho."),
    option("noise-stability", float, "Baseline: two-sided weight noise of this σ."),
    option("generalised", float, "Baseline: generalised cross-entropy (1 - p^q)/q, which forgives wrong labels."),
    option("validation", float, "Share of the training samples to hold out."),
    option("early-stopping", int, "Baseline: stop after so many epochs without a better validation accuracy."),
    option("stop-loss", float, "Stop once the training loss is at most this."),
    click.option("--certify", is_flag=True, help="Choose radius, trained part and noise for a small certificate."),
    option("prior-share", float, "Share of the samples that the certificate's prior sees.  [default: 0.5]"),
    option("delta", float, "Failure probability of the certificate.  [default: 0.05]"),
    option("save-steps", int, "Steps between checkpoints (default: once an epoch)."),
    *ENGINE,
    click.option("--trust-remote-code", is_flag=True, help="Run code that INIT's own files name."),
    DEBUG,
]


@click.command("finetune")
@with_options(OPTIONS)
def finetune(debug: bool, init: str, data: str, out: str, **given: Any) -> None:
    """Fine-tune INIT on noisy or clean labels, with consistent losses and distance constraints.

    Everything goes to DIR: pretrained/ (INIT, with a drawn head where it has none), finetuned/, run.json. `genbound
    evaluate DIR/finetuned` measures the result; where you named code with --model,
    it wants the same --model or --trust-remote-code. With --certify, DIR/certificate has the certificate's results.
    """
    from genbound.engines.launch import launched
    from genbound.engines.open_engine import open_engine
    from genbound.finetune.settings import Settings

    chosen = {field.name: given[field.name] for field in fields(Settings) if given.get(field.name) is not None}
    said = {
        "model": given["model"], "test_data": given["test_data"], "num_classes": given["classes"],
        "settings": Settings(**chosen), "trust_remote_code": given["trust_remote_code"],
    }  # fmt: skip
    of_certificate = {name: given[name] for name in ("prior_share", "delta") if given[name] is not None}
    if of_certificate and not given["certify"]:
        raise GenboundError(f"--{next(iter(of_certificate)).replace('_', '-')} is of the certificate: add --certify")
    said |= of_certificate
    run = partial(_run, given["certify"], (init, data, out), said)
    if not given["certify"] and given["radius"] != "auto":
        if given["engine"] not in ("auto", "local") or given["workers"]:
            raise GenboundError(
                f"--engine {given['engine']} shares the trainings of --radius auto and --certify, and here is only one"
            )
        if given["engine"] == "auto" and (launch := launched()):
            raise GenboundError(
                f"{launch.ranks} processes were started together, and this is one training in one process "
                "(--radius auto and --certify have several): start it alone, or each with --engine local and an --out "
                "of its own"
            )
        given["engine"] = "local"
    with open_engine(given["engine"], given["workers"], given["device"] or "cpu") as engine:
        engine.employ(run)
        record = run(engine)
        if engine.leads:
            show(summary(record))
            click.echo(f"checkpoint in {out}/finetuned, record in {out}/run.json", err=True)


def _run(certify: bool, places: tuple[str, str, str], said: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """The training, or all that a certificate takes; the record."""
    if certify:
        from genbound.certify.certified_run import finetune_certified

        return finetune_certified(*places, engine=engine, **said)
    from genbound.finetune.run import finetune

    return finetune(*places, engine=engine, **said)


def summary(record: dict[str, Any]) -> str:
    """The record of a run as a table."""
    from tabulate import tabulate

    words = {
        "train_observed": "training accuracy, observed labels",
        "train_given": "training accuracy, labels before the noise",
        "validation": "validation accuracy",
        "test": "test accuracy",
    }
    rows = [(words[name], f"{value:.4f}") for name, value in record["accuracy"].items()]
    if record.get("radius_search"):
        rows.append(("radius, head radius", f"{record['settings']['radius']}, {record['settings']['head_radius']:g}"))
    rows.append(("largest distance of a layer", f"{max(record['distances'].values()):.4g}"))
    rows.append(("training samples", record["num_train"]))
    rows.append(("epochs", f"{record['epochs_run']:g}"))
    rows.append(("wrong labels added", f"{record['noise_rate']:.1%}"))
    rows += _certified(record.get("certificate"))
    return tabulate(rows, headers=("", "value"), tablefmt="github", disable_numparse=True)


def _certified(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What a run with --certify says of its certificate: each row holds, and so does the least of them."""
    if found is None:
        return []
    rows = [("chosen of " + str(len(found["tried"])), found["chosen"])]
    for name in ("pac_bayes_certificate", "compression_certificate"):
        value = found[name]["value"]
        rows.append((name, "/" if value is None else f"≤ {rounded_up(value)}"))
    told = f"{surely(found['delta'])}, both rows at once (delta / {found['shares_of_delta']} each)"
    return [*rows, ("with probability", told), ("from samples that the prior did not see", str(found["num_data"]))]
