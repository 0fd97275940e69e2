"""One fine-tuning run from files to files: start, noisy labels, loss, constraint, training, checkpoint, record."""

from __future__ import annotations

import csv
import os
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.sidecar import located
from genbound.engines.base import Engine
from genbound.engines.in_process import InProcess
from genbound.engines.run_directory import writing_to
from genbound.engines.whole_runs import alone
from genbound.files import write_json
from genbound.finetune.constraint.distance_constraint import constraint_of
from genbound.finetune.frozen_body import freeze_body
from genbound.finetune.label_noise.confusion import anchor_points, dual_t
from genbound.finetune.label_noise.draw import given_matrix
from genbound.finetune.objective import objective_of
from genbound.finetune.output import describe_checkpoint, save_network, write_data_file
from genbound.finetune.predictions import accuracies, check_last_batch, check_outputs, predict
from genbound.finetune.radius_search import AUTO, choose_radius
from genbound.finetune.run_identity import FILE, continued, identity_of
from genbound.finetune.settings import ESTIMATED, Settings
from genbound.finetune.start import Start
from genbound.finetune.task import RunSpec, Task, read_task, start_of
from genbound.network.own_modes import own_modes
from genbound.network.placement import usable
from genbound.results.progress_bar import Bar
from genbound.user_code import rng_untouched

OBSERVED, MATRIX = "observed.npy", "confusion.csv"  # what runs inside this one read: the labels, and F


@own_modes()
def finetune(
    init: str | os.PathLike,
    data: Any,
    out: str | os.PathLike,
    *,
    model: Any = None,
    test_data: Any = None,
    num_classes: int | None = None,
    settings: Settings | None = None,
    trust_remote_code: bool = False,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Fine-tune a pretrained checkpoint; the same call continues a run that was stopped.

    Args:
        init: pretrained checkpoint, as for ``genbound evaluate``.
        data: training samples: a data SPEC, or anything that :class:`~genbound.network.problem.Problem` takes.
        out: folder of the run. It receives ``pretrained`` and ``finetuned`` (with a sidecar, so that
            ``genbound evaluate OUT/finetuned OUT/pretrained`` needs no more), ``labels.npz``, ``run.json`` and
            ``checkpoints``.
        model: model SPEC, where INIT does not describe itself.
        test_data: samples to report the accuracy on; never trained or selected on.
        num_classes: where the training labels do not show all.
        settings: everything else.
        trust_remote_code: allow code that INIT's own files name: in its directory, or in its ``genbound.yaml``.
        engine: processes that share the trainings of ``radius="auto"``, with OUT on a disk that all of them see
            (:func:`genbound.engines.open_engine.open_engine`); ``None`` means this process.

    Returns:
        The content of ``run.json``: settings, accuracies, distances.

    Raises:
        GenboundError: something does not fit, or OUT holds a run with other settings.
    """
    spec = RunSpec(init, data, Path(out), model, test_data, num_classes, settings or Settings(), trust_remote_code)
    usable(spec.settings.device)
    with rng_untouched():
        return _Run(spec, engine or InProcess()).run()


class _Run:
    """One run; where several processes share the trials of a search, one of them does all else.

    Args:
        spec: what is asked for.
        engine: of these processes.
    """

    def __init__(self, spec: RunSpec, engine: Engine):
        self.spec, self.out, self._engine = spec, spec.out, engine

    @cached_property
    def _task(self) -> Task:
        return read_task(self.spec)

    @cached_property
    def _start(self) -> Start:
        return start_of(self.spec, self._task)

    def run(self) -> dict[str, Any]:
        """All of it, or what is left of it; the record. Nobody else writes to the folder meanwhile."""
        with writing_to(self.out, self._engine):
            return self._run(time.perf_counter())

    def _run(self, began: float) -> dict[str, Any]:
        finished, confusion = self._engine.settle(self._begin)
        if finished:
            return finished
        settings, trials = _settings(self.spec, confusion, self._engine)
        return self._engine.settle(lambda: self._finish(confusion, settings, trials, began))

    @alone()
    def _begin(self) -> tuple[dict[str, Any] | None, np.ndarray | None]:
        """The record of a run that is finished; else what it begins with, written, and F to correct for."""
        task, start = self._task, self._start
        if not (self.out / FILE).exists():  # a run that has begun was tried then, and is compared first
            check_outputs(start.model, task, self.spec.settings)
            constraint_of(start.model, start.head, _without_auto(self.spec.settings))
            check_last_batch(start.model, task, self.spec.settings)
        if finished := continued(self.out, identity_of(self.spec, task, start)):
            return finished, None
        task.write(self.out / "labels.npz")
        save_network(start.model, self.out / "pretrained", start)
        confusion = _confusion(self.spec, task)
        if self.spec.settings.radius == AUTO:  # what its trials read
            _observed_file(self.out, task)
            _matrix_file(self.out, confusion)
        return None, confusion

    @alone()
    def _finish(
        self, confusion: np.ndarray | None, settings: Settings, trials: dict[str, float] | None, began: float
    ) -> dict[str, Any]:
        """Train with the settings that were found, and write the network and the record."""
        spec, task, start, samples = self.spec, self._task, self._start, self._task.samples
        network, trained = _train(start, task, confusion, settings, self.out)
        save_network(network, self.out / "finetuned", start)
        record = {
            "settings": settings.record(), "radius_search": trials, "init": str(spec.init), "data": said(spec.data),
            "test_data": said(spec.test_data), "model": start.spec, "rule": start.rule,
            "head": list(start.head), "num_classes": task.num_classes,
            "label2id": None if samples.label2id is None else dict(samples.label2id),
            "num_train": len(task.train), "num_held_out": len(task.held_out),
            "confusion": None if confusion is None else confusion.tolist(),
            "noise_rate": task.noise_rate, **trained, "seconds": round(time.perf_counter() - began, 1),
            "accuracy": accuracies(network, task, settings.device),
        }  # fmt: skip
        if isinstance(spec.data, str):
            write_data_file(self.out)
            describe_checkpoint(self.out, record)
        write_json(self.out / "run.json", record)
        return record


def said(data: Any) -> str | None:
    """A data SPEC with its whole path, for the record; samples that were handed over have none."""
    return located(data, Path.cwd()) if isinstance(data, str) else None


def _within(spec: RunSpec, name: str, num_classes: int | None, settings: Settings) -> dict[str, Any]:
    """A run inside this one's folder, from the same start on the same samples; its record."""
    return finetune(
        spec.init, spec.data, spec.out / name, model=spec.model, num_classes=num_classes, settings=settings,
        trust_remote_code=spec.trust_remote_code,
    )  # fmt: skip


def _confusion(spec: RunSpec, task: Task) -> np.ndarray | None:
    """F to correct for: known, read, or estimated from a short run of the same recipe without correction."""
    settings, wanted = spec.settings, spec.settings.confusion
    if wanted not in ESTIMATED:
        return given_matrix(settings, task.num_classes)
    recipe = replace(
        _without_auto(settings),
        confusion=None,
        correction=Settings.correction,
        epochs=settings.estimation_epochs,
        estimation_epochs=Settings.estimation_epochs,
        early_stopping=0,
        noise=f"labels:{_observed_file(spec.out, task)}",
    )
    _within(spec, "estimation", task.num_classes, recipe)
    first = start_of(spec, task, spec.out / "estimation" / "finetuned")
    logits, labels = predict(first.model, task.part(task.train), settings.device)
    probabilities = logits.double().softmax(-1)
    matrix = anchor_points(probabilities) if wanted == "anchor" else dual_t(probabilities, labels)
    _matrix_file(spec.out, matrix)
    return matrix


def _without_auto(settings: Settings) -> Settings:
    """The settings without radii that are still to be found."""
    return replace(settings, radius=None, radius_scale=1.0) if settings.radius == AUTO else settings


def _settings(spec: RunSpec, confusion: np.ndarray | None, engine: Engine) -> tuple[Settings, dict[str, float] | None]:
    """The settings to train with, and what each trial gave.

    Where the radius is to be found, the settings are those of the best trial.
    """
    if spec.settings.radius != AUTO:
        return spec.settings, None

    def trial(recipe: Settings, name: str) -> dict[str, Any]:
        noise, matrix = f"labels:{spec.out / OBSERVED}", None if confusion is None else str(spec.out / MATRIX)
        recipe = replace(recipe, noise=noise, confusion=matrix, estimation_epochs=Settings.estimation_epochs)
        return _within(spec, f"search/{name}", spec.num_classes, recipe)

    return choose_radius(spec.settings, trial, engine)


def _observed_file(out: Path, task: Task) -> Path:
    """The observed labels, for runs inside this one."""
    np.save(out / OBSERVED, task.observed.numpy())
    return out / OBSERVED


def _matrix_file(out: Path, matrix: np.ndarray | None) -> None:
    if matrix is not None:
        with (out / MATRIX).open("w", newline="") as file:
            csv.writer(file).writerows(matrix.tolist())


def _train(
    start: Start, task: Task, confusion: np.ndarray | None, settings: Settings, out: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """Train, from the last checkpoint on if there is one; the network, and what is to be recorded of it."""
    from genbound.finetune.stop_at_loss import StopAtLoss
    from genbound.finetune.trainer import FineTuner, Progress, diverged, last_whole_checkpoint
    from genbound.finetune.trainer_callback import DistanceCallback

    constraint = constraint_of(start.model, start.head, settings)
    callbacks: list[Any] = [DistanceCallback(constraint)] if settings.is_constrained else []
    objective = objective_of(start, confusion, settings)
    stop = StopAtLoss(start, task, settings) if settings.stop_loss else None
    callbacks += [] if stop is None else [stop]
    if settings.lora:
        from genbound.finetune.baselines.lora import add_adapters

        with rng_untouched():
            torch.manual_seed(settings.seed)
            start.model = add_adapters(start.model, start.head, settings.lora)
    if settings.trained == "head":
        freeze_body(start.model, start.head)
    with huggingface.quiet():  # that the processes of an engine know each other is no concern of a training
        trainer = FineTuner(start.model, task, objective, settings, out / "checkpoints", callbacks)
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    with huggingface.quiet(), Bar() as bar:
        trainer.add_callback(Progress(bar))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if settings.early_stopping and not (stop and stop.reached):
        trainer.keep_best()
    trained: Any = start.model
    network = trained.merge_and_unload() if settings.lora else trained
    constraint.project(network)  # merging an adapter rounds
    keys = ("epoch", "loss", "eval_accuracy", "eval_loss", "learning_rate", "grad_norm")
    rows = [{k: row[k] for k in keys if k in row} for row in trainer.state.log_history if "train_runtime" not in row]
    distances = constraint.distances(network)
    numbers = [*distances.values(), *(value for row in rows for value in row.values())]
    if not np.isfinite(numbers).all() or not all(bool(p.isfinite().all()) for p in network.parameters()):
        raise diverged("its last weights, or what they give, are not finite")
    return network, {
        "epochs_run": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "stop_loss_reached": None if stop is None else stop.reached,
        "best_accuracy": trainer.state.best_metric,
        "distances": distances,
        "history": rows,
    }
