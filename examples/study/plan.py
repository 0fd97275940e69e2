"""The cells of the study: one fine-tuned network each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from tasks import TASKS, Task

SEEDS = (0, 1, 2)
# Method, option of genbound finetune, its strengths. None of them sees a sample of the measurement or test set.
METHODS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("plain", "", ("",)),
    ("l2sp", "distance_penalty", (0.01, 0.1)),
    ("constraint", "radius", ("2%", "8%")),
    ("label_smoothing", "label_smoothing", (0.1,)),
    ("mixup", "mixup", (0.4,)),
    ("sam", "sam", (0.05,)),
    ("weight_decay", "weight_decay", (1.0,)),
    ("noise_stability", "noise_stability", (0.005,)),
)
RATES = (0.2, 0.4, 0.6)
HELD_OUT = 0.2  # share of the training samples, with their wrong labels, that an epoch or a radius is chosen on
# Of a sweep. A share of each layer's norm leaves a head that starts at random free; a number holds it, too.
SWEEPS = {
    "radius": ("0.5%", "1%", "2%", "4%", "8%", "16%", "32%"),
    "distance": ("0.25", "0.5", "0.75", "1", "1.5", "2", "3"),
}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        task, group, method, strength, lr, seed: what distinguishes it; ``group`` is the question that it serves.
        stopping: ``loss``, driven to the task's training loss; ``epochs``, a fixed number of them; or ``best``, the
            best epoch on held-out training samples.
        noise: ``""``, ``symmetric`` or ``correlated``.
        rate: share of wrong labels.
        options: settings beyond the task's recipe.
    """

    task: str
    group: str
    method: str
    strength: str
    lr: float
    seed: int
    stopping: str
    noise: str = ""
    rate: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its folder."""
        noise = f"{self.noise}{round(100 * self.rate)}" if self.noise else ""
        parts = (self.group, noise, self.method, self.strength, f"lr{self.lr:g}", f"seed{self.seed}", self.stopping)
        return "-".join(part.replace("%", "pc") for part in parts if part)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What granulated coefficients hold fixed: all that was chosen, without the seed."""
        return {"method": f"{self.method} {self.strength}".strip(), "lr": self.lr, "stopping": self.stopping}


LONGER = 3  # times the epochs that a run may take to fit its wrong labels


def ways(task: Task, stopping: str, noisy: bool = False) -> dict[str, Any]:
    """How long a run goes on; a rate that does not fall, where nobody knows in advance when it ends."""
    if stopping == "loss":
        most = task.most_epochs * (LONGER if noisy else 1)
        return {"epochs": most, "stop_loss": task.stop_loss, "schedule": "constant", "warmup": 0.0}
    if stopping == "best":
        patience = max(2, task.most_epochs // 3)
        return {"epochs": task.most_epochs, "validation": HELD_OUT, "early_stopping": patience}
    return {"epochs": task.most_epochs if noisy else task.epochs}


def clean(task: str) -> list[Cell]:
    """Methods × strengths × learning rates × stopping × seeds; all of one seed come before the next.

    Seed 0 comes first driven to one training loss, then for fixed epochs: each such part can be read by itself.
    """
    cells = []
    for seed, stopping in itertools.product(SEEDS, ("loss", "epochs")):
        for method, option, strengths in METHODS:
            for strength, lr in itertools.product(strengths, TASKS[task].lrs):
                options = {option: strength} if option else {}
                cells.append(Cell(task, "clean", method, str(strength), lr, seed, stopping, options=options))
    return cells


def sweep(task: str, group: str) -> list[Cell]:
    """The correlation with the distance from the start: the constraint's radius alone varies."""
    lr = TASKS[task].lrs[1]
    return [
        Cell(task, group, "constraint", value, lr, seed, "epochs", options={"radius": value})
        for seed in SEEDS
        for value in SWEEPS[group]
    ]


# Method, options, ways of stopping. "both" is the talk's algorithm.
NOISY: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("plain", {}, ("loss", "best")),
    ("constraint", {"radius": "auto", "validation": HELD_OUT}, ("epochs",)),
    ("consistent", {"confusion": "F"}, ("epochs",)),
    ("both", {"radius": "auto", "confusion": "F", "validation": HELD_OUT}, ("epochs",)),
    ("label_smoothing", {"label_smoothing": 0.1}, ("best",)),
    ("mixup", {"mixup": 0.4}, ("best",)),
    ("sam", {"sam": 0.05}, ("best",)),
    ("l2sp", {"distance_penalty": 0.1}, ("best",)),
    ("generalised", {"generalised": 0.7}, ("best",)),
)


def noisy(task: str, kind: str, rate: float) -> list[Cell]:
    """The recipe under label noise, the same samples for all; F is known, or counted where it is not.

    Five seeds; ten of the smallest task, where 140 samples leave more to chance.
    """
    cells = []
    for seed in range(10 if task == "digits" else 5):
        for method, options, stops in NOISY:
            given = {k: ("known" if kind == "symmetric" else "counted") if v == "F" else v for k, v in options.items()}
            cells += [
                Cell(task, "noise", method, "", TASKS[task].lrs[0], seed, stopping, kind, rate, given)
                for stopping in stops
            ]
    return cells


def chosen(name: str) -> list[Cell]:
    """The cells of ``TASK`` (clean), ``TASK:radius``, ``TASK:distance``, ``TASK:symmetric40`` and so on, or ``ci``."""
    if name == "ci":
        few, low = ("plain", "constraint"), TASKS["digits"].lrs[0]
        some = [c for c in clean("digits") if c.seed == 0 and c.method in few and c.lr == low]
        noise = [c for c in noisy("digits", "symmetric", 0.4) if c.seed == 0 and c.method in ("plain", "generalised")]
        return [*some, *sweep("digits", "radius")[:1], *noise]
    task, _, group = name.partition(":")
    if task not in TASKS:
        raise SystemExit(f"no task {task!r}: there are {', '.join(TASKS)}")
    if not group or group == "clean":
        return clean(task)
    if group in SWEEPS:
        return sweep(task, group)
    for kind, rate in itertools.product(("symmetric", "correlated"), RATES):
        if group == f"{kind}{round(100 * rate)}":
            return noisy(task, kind, rate)
    raise SystemExit(f"no group {group!r}: clean, radius, distance, or symmetric or correlated with 20, 40 or 60")
