"""One fine-tuning run from files to files: start, noisy labels, loss, constraint, training, checkpoint, record."""

from __future__ import annotations

import csv
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.data import Reader, Samples, load_data
from genbound.errors import GenboundError
from genbound.files import write_atomically, write_json
from genbound.finetune.constraint.distance_constraint import constraint_of
from genbound.finetune.label_noise.confusion import anchor_points, dual_t
from genbound.finetune.objective import distance_penalty, per_sample_loss
from genbound.finetune.output import save_network, write_data_file, write_sidecar
from genbound.finetune.radius_search import AUTO, choose_radius
from genbound.finetune.settings import Settings, differences
from genbound.finetune.start import Start, build_start, tokenizer_of
from genbound.finetune.training_data import Relabelled, all_labels, named_matrix, noisy_labels
from genbound.network.forward import call_arguments, evaluation_mode, scores
from genbound.user_code import rng_untouched
from genbound.version import __version__

ESTIMATES = {"anchor": lambda p, labels: anchor_points(p), "dual-t": dual_t}


@dataclass
class Task:
    """The samples of a run and the labels it sees."""

    samples: Samples
    clean: Tensor
    observed: Tensor
    num_classes: int
    train: list[int]
    held_out: list[int]

    def part(self, places: list[int], clean: bool = False) -> Samples:
        """The samples at ``places``, with their observed labels or, where ``clean``, their true ones."""
        return Relabelled(self.samples, self.clean if clean else self.observed, places)


def finetune(
    init: str | os.PathLike,
    data: Any,
    out: str | os.PathLike,
    *,
    model: Any = None,
    test_data: Any = None,
    num_classes: int | None = None,
    settings: Settings | None = None,
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

    Returns:
        The content of ``run.json``: settings, accuracies, distances.

    Raises:
        GenboundError: something does not fit, or OUT holds a run with other settings.
    """
    settings, out = settings or Settings(), Path(out)
    with rng_untouched():
        return _finetune(init, data, out, model, test_data, num_classes, settings)


def _finetune(init, data, out, model, test_data, num_classes, settings: Settings) -> dict[str, Any]:
    samples = load_data(data, Reader(tokenizer_of(init)) if isinstance(data, str) else None)
    task = _task(samples, num_classes, settings)
    test = None
    if test_data is not None:
        reader = Reader(tokenizer_of(init), label2id=samples.label2id)
        test = load_data(test_data, reader if isinstance(test_data, str) else None)
    inputs = samples.batch([0]).inputs
    start = build_start(
        init,
        model,
        task.num_classes,
        samples.label2id,
        isinstance(inputs, dict) and "pixel_values" in inputs,
        settings.seed,
    )
    identity = {
        **settings.record(), "init": start.sha256, "data": Relabelled(samples, task.observed).digest(),
        "rule": start.rule, "test_data": None if test is None else test.digest(), "genbound": __version__,
    }  # fmt: skip
    if finished := _continue(out, identity):
        return finished
    np_labels = {"observed": task.observed.numpy(), "given": task.clean.numpy(), "train": np.array(task.train)}
    _write_arrays(out / "labels.npz", np_labels | {"held_out": np.array(task.held_out, dtype=int)})
    save_network(start.model, out / "pretrained", start)

    began = time.perf_counter()
    confusion = _confusion(init, data, out, model, num_classes, task, settings)
    trials = None
    if settings.radius == AUTO:

        def trial(recipe: Settings, name: str) -> dict[str, Any]:
            recipe = replace(
                recipe, noise=f"labels:{_observed_file(out, task)}", confusion=_matrix_file(out, confusion)
            )
            return finetune(init, data, out / "search" / name, model=model, num_classes=num_classes, settings=recipe)

        settings, trials = choose_radius(settings, trial)
    network, trained = _train(start, task, confusion, settings, out)
    save_network(network, out / "finetuned", start)

    record = {
        "settings": settings.record(), "radius_search": trials, "init": str(init),
        "data": data if isinstance(data, str) else None,
        "test_data": test_data if isinstance(test_data, str) else None, "model": start.spec, "rule": start.rule,
        "label2id": None if samples.label2id is None else dict(samples.label2id), "num_classes": task.num_classes,
        "num_train": len(task.train), "num_held_out": len(task.held_out),
        "confusion": None if confusion is None else confusion.tolist(),
        "noise_rate": float((task.observed != task.clean).float().mean()), **trained,
        "seconds": round(time.perf_counter() - began, 1), "accuracy": _accuracies(network, task, test, settings.device),
    }  # fmt: skip
    if isinstance(data, str):
        write_data_file(out)
        write_sidecar(out, record)
    write_json(out / "run.json", record)
    return record


def _task(samples: Samples, num_classes: int | None, settings: Settings) -> Task:
    clean = all_labels(samples)
    if clean.is_floating_point() or clean.ndim != 1:
        raise GenboundError("genbound finetune is for classification: every sample needs one class number")
    seen = max(int(clean.max()) + 1, len(set((samples.label2id or {}).values())), 2)
    if num_classes is not None and num_classes < seen:
        raise GenboundError(f"--classes {num_classes} is too few: the data have label {seen - 1}")
    num_classes = num_classes or seen
    observed = noisy_labels(clean, settings.noise, num_classes, settings.seed)
    order = np.random.default_rng([settings.seed, 1]).permutation(len(samples)).tolist()
    count = round(settings.validation * len(samples))
    if settings.validation and not 0 < count < len(samples):
        raise GenboundError(
            f"--validation {settings.validation:g} of {len(samples)} samples leaves nothing to train or to validate on"
        )
    return Task(samples, clean, observed, num_classes, sorted(order[count:]), sorted(order[:count]))


def _continue(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What is there of this run: nothing, a part (then ``None``), or all of it."""
    file = out / "settings.json"
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if changed := differences(stored, identity):
            raise GenboundError(
                f"{str(out)!r} holds a run with other settings ({'; '.join(changed[:4])}): give another --out, "
                "or remove it"
            )
        if (out / "run.json").is_file():
            return json.loads((out / "run.json").read_text(encoding="utf-8"))
    elif (out / "checkpoints").exists():
        raise GenboundError(f"{str(out)!r} holds checkpoints but no settings.json: give another --out, or remove it")
    write_json(file, identity)
    return None


def _confusion(init, data, out: Path, model, num_classes, task: Task, settings: Settings) -> np.ndarray | None:
    """F to correct for: known, read, or estimated from a short run of the same recipe without correction."""
    wanted = settings.confusion
    if wanted is None:
        return None
    if wanted not in ESTIMATES:
        return named_matrix(settings.noise if wanted == "known" else wanted, task.num_classes)
    recipe = replace(
        settings,
        confusion=None,
        epochs=settings.estimation_epochs,
        radius=None if settings.radius == AUTO else settings.radius,
        early_stopping=0,
        noise=f"labels:{_observed_file(out, task)}",
    )
    folder = out / "estimation"
    finetune(init, data, folder, model=model, num_classes=task.num_classes, settings=recipe)
    first = build_start(folder / "finetuned", None, task.num_classes, None, False, settings.seed)
    logits, labels = predict(first.model, task.part(task.train), settings.device)
    matrix = ESTIMATES[wanted](logits.double().softmax(-1), labels)
    _matrix_file(out, matrix)
    return matrix


def _observed_file(out: Path, task: Task) -> Path:
    """The observed labels, for runs inside this one."""
    np.save(out / "observed.npy", task.observed.numpy())
    return out / "observed.npy"


def _matrix_file(out: Path, matrix: np.ndarray | None) -> str | None:
    if matrix is None:
        return None
    with (out / "confusion.csv").open("w", newline="") as file:
        csv.writer(file).writerows(matrix.tolist())
    return str(out / "confusion.csv")


def _train(start: Start, task: Task, confusion, settings: Settings, out: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Train, from the last checkpoint on if there is one; the network, and what is to be recorded of it."""
    from genbound.finetune.trainer import FineTuner, last_whole_checkpoint
    from genbound.finetune.trainer_callback import DistanceCallback

    constraint = constraint_of(start.model, start.head, settings)
    callbacks = [DistanceCallback(constraint)] if settings.is_constrained else []
    penalty = distance_penalty(start, settings.distance_penalty)
    if settings.lora:
        from genbound.finetune.baselines.lora import add_adapters

        with rng_untouched():
            torch.manual_seed(settings.seed)
            start.model = add_adapters(start.model, start.head, settings.lora)
    trainer = FineTuner(
        start.model, task.part(list(range(len(task.samples)))), task.train, task.held_out,
        per_sample_loss(confusion, settings), penalty, settings, out / "checkpoints", callbacks,
    )  # fmt: skip
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    with huggingface.quiet():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    network = start.model.merge_and_unload() if settings.lora else start.model
    constraint.project(network)  # merging an adapter rounds
    keys = ("epoch", "loss", "eval_accuracy", "eval_loss", "learning_rate", "grad_norm")
    rows = [{k: row[k] for k in keys if k in row} for row in trainer.state.log_history if "train_runtime" not in row]
    return network, {
        "epochs_run": trainer.state.epoch,
        "best_accuracy": trainer.state.best_metric,
        "distances": constraint.distances(network),
        "history": rows,
    }


@torch.no_grad()
def predict(model: nn.Module, samples: Samples, device: str = "cpu", size: int = 128) -> tuple[Tensor, Tensor]:
    """Logits and labels of all samples, in evaluation mode."""
    from genbound.data.sample_parts import map_tensors

    found = []
    model.to(device)
    with evaluation_mode(model):
        for batch in samples.batches(range(len(samples)), size):
            args, kwargs = call_arguments(map_tensors(batch.inputs, lambda t: t.to(device)))
            found.append((scores(model(*args, **kwargs)).float().cpu(), batch.targets))
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(labels)


def _accuracies(network: nn.Module, task: Task, test: Samples | None, device: str) -> dict[str, float]:
    """On the labels that were trained on, on the given ones, on those held out, and on the test samples."""
    parts = {
        "train_observed": task.part(task.train),
        "train_given": task.part(task.train, clean=True) if not torch.equal(task.clean, task.observed) else None,
        "validation": task.part(task.held_out) if task.held_out else None,
        "test": test,
    }
    found = {}
    for name, part in parts.items():
        if part is not None:
            logits, labels = predict(network, part, device)
            found[name] = float((logits.argmax(-1) == labels).float().mean())
    return found


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, write)
