"""What decides a fine-tuning run, in one place: every field changes the result, and all are recorded with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from genbound.errors import GenboundError

ESTIMATED = ("anchor", "dual-t")  # of the kinds of F: from a run of their own
# Names of fields, what must hold of their values, and how to say it.
LIMITS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("epochs batch_size accumulation estimation_epochs", lambda value: value >= 1, "at least 1"),
    (
        "weight_decay mixup distance_penalty lora sam noise_stability early_stopping stop_loss",
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    ("seed", lambda value: 0 <= value < 1 << 32, "0 or more, and below 2³²"),
    ("save_steps clip", lambda value: value >= 0, "0 or more"),
    ("head_radius norm_layers", lambda value: value is None or value >= 0, "0 or more"),
    ("lr radius_scale", lambda value: 0 < value < math.inf, "positive"),
    ("label_smoothing validation", lambda value: 0 <= value < 1, "in [0, 1)"),
    ("warmup generalised", lambda value: 0 <= value <= 1, "in [0, 1]"),
    ("schedule", lambda value: value in ("linear", "constant", "cosine"), "linear or constant or cosine"),
    ("precision", lambda value: value in ("float32", "bfloat16"), "float32 or bfloat16"),
    ("norm", lambda value: value in ("frobenius", "mars"), "frobenius or mars"),
    ("trained", lambda value: value in ("all", "head"), "all or head"),
    ("correction", lambda value: value in ("backward", "forward"), "backward or forward"),
)


@dataclass(frozen=True)
class Settings:
    """The options of ``genbound finetune``; the defaults are plain fine-tuning.

    Attributes:
        epochs, batch_size, accumulation, lr, schedule, warmup, clip, precision, device, seed: of the training loop. A
            step sees ``batch_size * accumulation`` samples; ``warmup`` is a share of all steps; ``clip`` is the largest
            gradient norm (0: off).
        group_by_length: batches of texts of like length, with little padding.
        radius: ``D`` (absolute), ``D%`` (of the pretrained layer's norm, in ``norm``) or ``PATTERN=D,PATTERN=D%``;
            ``auto`` chooses this and ``head_radius`` on held-out samples; ``None``: no constraint.
        radius_scale: s of ``radius``'s stage schedule D, D, D·s, D·s².
        norm: ``frobenius`` or ``mars``.
        head_radius: of the output head, around zero.
        norm_layers: D of the normalisation layers.
        trained: ``all``, or only the ``head``; running statistics stay as they are then, too.
        head_weights: patterns of the weights that form the head, with commas; ``None``: a transformers model knows its
            own, and of others it is the layer that gives the scores.
        noise: label noise to add: ``symmetric:P``, ``symmetric-redraw:P``, ``FILE`` of a matrix F, or ``labels:FILE``
            of observed labels.
        confusion: F to correct the loss for: ``known`` (that of ``noise``), ``symmetric:P``, ``symmetric-redraw:P``,
            ``FILE``, or estimated: ``anchor``, ``dual-t``.
        correction: ``backward`` or ``forward``.
        estimation_epochs: of the uncorrected run that F is estimated from.
        weight_decay, label_smoothing, mixup, distance_penalty, lora, sam, noise_stability: baselines: decoupled decay;
            mass spread over all classes, the label's own too; alpha of the Beta distribution; L2-SP's factor; rank;
            radius rho; sigma of the two-sided noise.
        generalised: q of the generalised cross-entropy (1 - p^q)/q, which forgives wrong labels (0: cross-entropy; 1:
            the probability of error).
        validation: share of the training samples held out.
        early_stopping: epochs without a better validation accuracy after which training stops; the best epoch is kept,
            unless ``stop_loss`` was reached.
        stop_loss: training stops once the mean cross-entropy of the labels trained on, in evaluation mode on at most
            512 of the training samples, is no more than this, in nats (0: after all epochs).
        save_steps: optimizer steps between checkpoints (0: once an epoch, as always with early stopping).
    """

    epochs: int = 5
    batch_size: int = 32
    accumulation: int = 1
    lr: float = 1e-4
    schedule: str = "linear"
    warmup: float = 0.0
    clip: float = 1.0
    precision: str = "float32"
    device: str = "cpu"
    seed: int = 0
    group_by_length: bool = False
    radius: str | None = None
    radius_scale: float = 1.0
    norm: str = "frobenius"
    head_radius: float | None = None
    norm_layers: float | None = None
    trained: str = "all"
    head_weights: str | None = None
    noise: str | None = None
    confusion: str | None = None
    correction: str = "backward"
    estimation_epochs: int = 2
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    distance_penalty: float = 0.0
    lora: int = 0
    sam: float = 0.0
    noise_stability: float = 0.0
    generalised: float = 0.0
    validation: float = 0.0
    early_stopping: int = 0
    stop_loss: float = 0.0
    save_steps: int = 0

    def __post_init__(self) -> None:
        for names, holds, what in LIMITS:
            for name in names.split():
                if not holds(getattr(self, name)):
                    raise GenboundError(f"--{name.replace('_', '-')} must be {what}, not {getattr(self, name)!r}")
        if self.sam and self.noise_stability:
            raise GenboundError("--sam and --noise-stability both perturb the weights: choose one")
        if self.trained == "head" and self.lora:
            raise GenboundError("--lora adapts what --trained head leaves as it is: choose one")
        if self.generalised and (self.label_smoothing or self.confusion):
            raise GenboundError("--generalised replaces the loss that --label-smoothing and --confusion change: choose")
        if self.early_stopping and not self.validation:
            raise GenboundError("--early-stopping needs held-out samples: add --validation 0.1")
        if self.confusion == "known" and (self.noise is None or self.noise.startswith("labels:")):
            raise GenboundError("--confusion known is the matrix of --noise: give that as symmetric:P or as a matrix")
        if self.radius_scale != 1.0 and self.radius is None:
            raise GenboundError("--radius-scale is of the radii that --radius gives: add that")
        if self.correction != Settings.correction and self.confusion is None:
            raise GenboundError(f"--correction {self.correction} needs a matrix F to correct for: add --confusion")
        if self.estimation_epochs != Settings.estimation_epochs and self.confusion not in ESTIMATED:
            raise GenboundError(f"--estimation-epochs is of --confusion {' and '.join(ESTIMATED)}: add one of them")
        parse_radius("inf" if self.radius in (None, "auto") else self.radius)

    def record(self) -> dict[str, Any]:
        """The settings as JSON has them: it knows no infinity."""
        return {name: "inf" if value == math.inf else value for name, value in asdict(self).items()}

    @property
    def is_constrained(self) -> bool:
        """Whether any radius is given."""
        return self.radius is not None or self.head_radius is not None or self.norm_layers is not None


def parse_radius(text: str) -> list[tuple[str, float, bool]]:
    """``(pattern, number, whether it is a share of the layer's norm)`` for each part of ``--radius``.

    Example:
        >>> parse_radius("encoder.*=5%,*=0.2")
        [('encoder.*', 0.05, True), ('*', 0.2, False)]
    """
    parts: list[tuple[str, float, bool]] = []
    for part in filter(None, (p.strip() for p in str(text).split(","))):
        pattern, equals, value = part.rpartition("=")
        try:
            number = float(re.sub(r"%$", "", value))
        except ValueError:
            number = -1.0
        if not number >= 0 or (equals and not pattern):
            raise GenboundError(
                f"--radius {part!r} is not understood: use D, D% or PATTERN=D,… (inf leaves layers free)"
            )
        relative = value.endswith("%")
        parts.append((pattern or "*", number / 100 if relative else number, relative))
    if not parts:
        raise GenboundError("--radius is empty: use D, D% or PATTERN=D,…")
    return parts


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``name: old -> new`` for whatever two records of settings disagree on."""
    return [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
