"""The cells of the study: one fine-tuned network each, and what is measured on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tasks import TASKS

SEEDS = (0, 1, 2)
RATE = 0.4
# Chosen by radius.py, on another seed, by the accuracy on held-out noisy labels.
RADIUS = {"cifar10": "0.5%", "sst2": "1%", "mrpc": "1%", "digits": "20%"}
NOISY_SAMPLES = {"cifar10": 8, "sst2": 4, "mrpc": 4, "digits": 64}
HEAD_RADIUS = {"cifar10": 0.1, "sst2": 0.1, "mrpc": 0.1, "digits": 0.5}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        task: name of the data set.
        group: which of the study's questions it serves.
        method, strength, seed: what distinguishes it.
        options: settings beyond the task's recipe.
        measures: of genbound; empty where only accuracies are asked for.
        samples: training samples that they are measured on.
        held_out: measure the Hessian on as many test samples, too.
        sigmas: of the noise stability.
    """

    task: str
    group: str
    method: str
    strength: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    measures: tuple[str, ...] = ()
    samples: int = 16
    held_out: bool = False
    sigmas: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        parts = (self.group, self.method, self.strength.replace("%", "pc"), f"seed{self.seed}")
        return "-".join(part for part in parts if part)


# Two classes have nothing left to learn near 50 % wrong labels, so for them 40 % are drawn again and 20 % are wrong.
CONVENTION = {"cifar10": "symmetric", "sst2": "symmetric-redraw", "mrpc": "symmetric-redraw", "digits": "symmetric"}


def noisy(task: str, kind: str, rate: float = RATE, seeds: tuple[int, ...] = SEEDS) -> list[Cell]:
    """{plain, constraint, consistent loss, both} under label noise, the same budget for all."""
    noise = f"{CONVENTION[task]}:{rate}" if kind == "symmetric" else f"auxiliary:{rate}"
    known = "known" if kind == "symmetric" else "empirical"
    ball = {"radius": RADIUS[task], "head_radius": HEAD_RADIUS[task]}
    methods = {
        "plain": {},
        "consistent": {"confusion": known},
        "constraint": ball,
        "both": {**ball, "confusion": known},
    }
    cells = []
    for method, options in methods.items():
        for seed in seeds:
            # A Hessian of a transformer costs as much as its training: once for each method.
            cheap = task == "digits" or (task == "cifar10" and kind == "symmetric")
            measures = ("losses", "hessian_distance") if seed == seeds[0] or cheap else ()
            options = {"noise": noise, "epochs": TASKS[task].noisy_epochs, **options}
            group = f"{kind}{round(100 * rate)}"
            cells.append(
                Cell(task, group, method, "", seed, options, measures, NOISY_SAMPLES[task], held_out=bool(measures))
            )
    return cells


# method, option, strengths; the strengths of a method alternate over the seeds.
METHODS = (
    ("weight_decay", "weight_decay", (1.0, 10.0)),
    ("label_smoothing", "label_smoothing", (0.1, 0.3)),
    ("mixup", "mixup", (0.2, 1.0)),
    ("l2sp", "distance_penalty", (0.1, 1.0)),
    ("sam", "sam", (0.02, 0.1)),
    ("noise_stability", "noise_stability", (0.002, 0.01)),
    ("lora", "lora", (2, 8)),
    ("constraint", "radius", ("1%", "4%")),
    ("mars", "radius", ("2%",)),
)
SIX = ("pitas2017", "arora2018", "long2020", "gouk2021", "li2021", "neyshabur2018")  # the talk's table
DISTANCES = ("distance_frobenius", "distance_spectral", "distance_mars", "distance_two_one")
PLAIN = ("losses", "hessian_distance", "hessian_trace", *DISTANCES, "path_norm", "fisher_rao")
# The six do not exist for attention; a trace for every sample and a search for flatness cost a transformer as much as
# its training.
RELATED = {
    "cifar10": (*PLAIN, "trace_distance", "jiang2020_flatness", "jiang2020_magnitude", *SIX, "bartlett2017"),
    "sst2": PLAIN,
    "mrpc": PLAIN,
    "digits": PLAIN,
}


def related(task: str) -> list[Cell]:
    """Methods × strengths × seeds on clean labels: which measure follows the gap?"""
    extra = {"measures": RELATED[task], "samples": 32 if task == "cifar10" else 4, "held_out": True}
    cells = [Cell(task, "clean", "plain", "", seed, {}, **extra) for seed in (0, 1, 2)]
    cells += [
        Cell(task, "clean", "plain", f"{epochs}epochs", 0, {"epochs": epochs}, **extra)
        for epochs in (1, 2 * TASKS[task].epochs)
    ]
    cells += [
        Cell(task, "clean", "early_stopping", "1", seed, {"validation": 0.2, "early_stopping": 1, "epochs": 8}, **extra)
        for seed in (0, 1)
    ]
    for method, option, strengths in METHODS:
        for seed, strength in enumerate(strengths):
            options = {option: strength} | ({"norm": "mars"} if method == "mars" else {})
            cells.append(Cell(task, "clean", method, str(strength), seed, options, **extra))
    return cells


def regime(task: str) -> list[Cell]:
    """Noise stability beside its Hessian approximation over a grid in the quadratic regime."""
    sigmas = tuple(round(TASKS[task].sigma * share, 6) for share in (0.2, 0.4, 0.6, 0.8, 1.0))
    return [Cell(task, "stability", "plain", "", 0, {}, ("noise_stability", "hessian_trace"), 8, sigmas=sigmas)]


def table(task: str) -> list[Cell]:
    """Our bound and the six of the talk on one checkpoint."""
    return [Cell(task, "bounds", "plain", "", 0, {}, ("losses", "hessian_distance", *SIX), 8)]


def chosen(name: str) -> list[Cell]:
    """The cells of a plan, in the order in which they run."""
    core = ("cifar10", "sst2")
    plans = {
        "core": lambda: [
            *(cell for task in core for cell in noisy(task, "symmetric")),
            *(cell for task in core for cell in regime(task)),
            *(cell for task in core for cell in related(task)),
            *(cell for task in core for cell in table(task)),
            *(cell for task in core for cell in noisy(task, "correlated")),
        ],
        "noise": lambda: [cell for task in core for cell in noisy(task, "symmetric")],
        "rates": lambda: [c for task in core for rate in (0.2, 0.6) for c in noisy(task, "symmetric", rate)],
        "mrpc": lambda: [*related("mrpc"), *noisy("mrpc", "symmetric"), *table("mrpc")],
        "ci": lambda: [
            *noisy("digits", "symmetric", seeds=(0,)),
            *noisy("digits", "correlated", seeds=(0,))[-1:],
            *regime("digits"),
            *[cell for cell in related("digits") if cell.method in ("plain", "constraint")][:5],
        ],
        "digits": lambda: [*noisy("digits", "symmetric"), *noisy("digits", "correlated"), *related("digits")],
    }  # fmt: skip
    if name in plans:
        return plans[name]()
    task, _, group = name.partition(":")  # such as cifar10:clean, for running parts side by side
    return [cell for cell in plans["core"]() if cell.task == task and cell.group.startswith(group)]
