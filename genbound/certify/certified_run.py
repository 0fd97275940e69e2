"""``genbound finetune --certify``: a prior from a part of the samples, the best way on from it, and its certificate.

1. The samples are divided by a random order. On the first part the recipe is run as it is: that is the prior.
2. From there every candidate trains on all samples, each layer kept within a ball around the prior. The certificate
   measures distances from the same point, so that algorithm and certificate have the same balls.
3. A candidate is judged by the lesser of its certificates on the samples that the prior did not see, with draws of its
   own seed; of those that are as good, one with a small training error is taken, and a small certificate of its noise.
4. It is certified with fresh draws.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genbound.certify.candidates import Candidate, Tried, first_candidates, least
from genbound.checkpoints.sidecar import write_sidecar
from genbound.data.run_folder import Relabelled
from genbound.engines.base import Engine
from genbound.engines.in_process import InProcess
from genbound.engines.run_directory import writing_to
from genbound.engines.whole_runs import alone, share_runs
from genbound.errors import GenboundError
from genbound.evaluation.loading import load
from genbound.evaluation.loop import evaluate
from genbound.files import write_json
from genbound.finetune.constraint.distance_constraint import constraint_of
from genbound.finetune.output import describe_checkpoint, save_network, write_data_file
from genbound.finetune.predictions import accuracies
from genbound.finetune.run import finetune, said
from genbound.finetune.run_identity import continued, identity_of
from genbound.finetune.settings import Settings
from genbound.finetune.start import Start
from genbound.finetune.task import RunSpec, Task, read_task, start_of
from genbound.network.placement import usable
from genbound.results.results import Results

ROWS = ("pac_bayes_certificate", "compression_certificate")
FINAL_SEED = 10**6  # far from those of the trials: the certificate's draws are fresh
# Far from those that later evaluations have: draws that the network was chosen by are no fresh ones for it.
TRIAL_SEED = 2 * 10**6
# What decides the samples or looks at them otherwise; each has its own certificate, and none here.
REFUSED = ("noise", "confusion", "validation", "early_stopping")


def finetune_certified(
    init: str | os.PathLike,
    data: Any,
    out: str | os.PathLike,
    *,
    model: Any = None,
    test_data: Any = None,
    num_classes: int | None = None,
    settings: Settings | None = None,
    trust_remote_code: bool = False,
    prior_share: float = 0.5,
    delta: float = 0.05,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Fine-tune a pretrained checkpoint for a small certificate; the same call continues a run that was stopped.

    Args:
        init, data, out, model, test_data, num_classes, trust_remote_code: as for :func:`genbound.finetune.finetune`.
            OUT also receives ``prior`` (a run of its own), ``prior_samples.txt``, ``candidates`` and ``certificate``
            (the results of ``genbound evaluate``).
        settings: the recipe of the prior, and of the candidates but for what is chosen. All of the network moves or
            its head, within a ball, with or without noise.
        prior_share: share of the samples that the prior sees, in (0, 1).
        delta: failure probability of everything that is printed from the training set, in all.
        engine: processes that share the candidates, with OUT on a disk that all of them see; ``None`` means this one.

    Returns:
        The content of ``run.json``: as of a plain run, and ``certificate``.

    Raises:
        GenboundError: something does not fit, or settings are given that cannot be certified.
    """
    spec = RunSpec(init, data, Path(out), model, test_data, num_classes, settings or Settings(), trust_remote_code)
    _check(spec.settings, prior_share, delta)
    return _Certified(spec, read_task(spec), prior_share, delta).run(engine or InProcess())


def _check(settings: Settings, prior_share: float, delta: float) -> None:
    usable(settings.device)
    if not 0 < prior_share < 1:
        raise GenboundError(f"--prior-share {prior_share:g} must lie between 0 and 1")
    if not 0 < delta < 1:
        raise GenboundError(f"--delta {delta:g} must lie between 0 and 1")
    given = [name for name in REFUSED if getattr(settings, name)]
    if settings.radius == "auto":
        given.append("radius auto")
    if given:
        flag = given[0].replace("_", "-")
        raise GenboundError(f"--certify chooses by the certificate, on all labels as they are: leave out --{flag}")


@dataclass
class _Certified:
    """One run."""

    spec: RunSpec
    task: Task
    prior_share: float
    delta: float

    def __post_init__(self) -> None:
        count = round(self.prior_share * len(self.task.samples))
        if count < 1:
            raise GenboundError(
                f"--prior-share {self.prior_share:g} of {len(self.task.samples)} samples leaves none that the prior "
                "could see: give a larger share"
            )
        if len(self.task.samples) - count < 8:
            raise GenboundError(
                f"--prior-share {self.prior_share:g} leaves {len(self.task.samples) - count} samples that the prior "
                "does not see, and a certificate needs 8"
            )
        order = np.random.default_rng([self.spec.settings.seed, 2]).permutation(len(self.task.samples))
        self.seen = sorted(int(i) for i in order[:count])
        self.choices = len({candidate.form for candidate in first_candidates(self.spec.settings)})
        self.all = list(range(len(self.task.samples)))

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return self.spec.out

    def run(self, engine: Engine) -> dict[str, Any]:
        """All of it, with the candidates shared by the engine's processes; the record."""
        with writing_to(self.out, engine):
            return self._run(engine)

    def _run(self, engine: Engine) -> dict[str, Any]:
        finished, first = engine.settle(alone()(self._begin))
        if finished:
            return finished
        candidates = list(enumerate(first_candidates(self.spec.settings)))
        records = share_runs(
            engine, "candidates", candidates, lambda c: asdict(self._try(c[1], first["distances"], c[0]))
        )
        tried = [
            Tried(**{**record, "candidate": candidate})
            for record, (_, candidate) in zip(records, candidates, strict=True)
        ]
        return engine.settle(alone()(lambda: self._choose(tried, first)))

    def _begin(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The record of a run that is finished, if it is; and that of the prior."""
        spec, task = self.spec, self.task
        start = start_of(spec, task)
        asked = {"prior_share": self.prior_share, "delta": self.delta}
        # A run of before has a prior and did not say what it was: its parts are asked.
        traces = () if (self.out / "prior").is_dir() else ("checkpoints", "run.json")
        if finished := continued(self.out, {**identity_of(spec, task, start), "certify": asked}, traces):
            return finished, {}
        return None, self._within("prior", spec.init, self.seen, spec.settings, spec.model)

    def _choose(self, tried: list[Tried], first: dict[str, Any]) -> dict[str, Any]:
        """The best candidate, also with noise in its training; the record."""
        best = least(tried)
        if best is None:
            raise GenboundError(f"no candidate has a certificate ({tried[-1].note}): see {self.out / 'candidates'}")
        noisy = replace(best.candidate, noise=float(f"{best.deviation:.3g}"))
        if noisy.noise and not (self.spec.settings.sam or self.spec.settings.noise_stability):
            tried.append(self._try(noisy, first["distances"], len(tried)))
            best = least(tried) or best
        return self._finish(best.candidate, {one.candidate.name: one.value for one in tried}, first)

    def _within(self, name: str, init: Any, places: list[int], settings: Settings, model: Any) -> dict[str, Any]:
        """A run inside this one's folder on some of the samples; its record."""
        return finetune(
            init, Relabelled(self.task.samples, self.task.observed, places), self.out / name, model=model,
            num_classes=self.task.num_classes, settings=settings, trust_remote_code=self.spec.trust_remote_code,
        )  # fmt: skip

    def _try(self, candidate: Candidate, moved: dict[str, float], number: int) -> Tried:
        """Train a candidate, and certify it with draws that nobody uses again."""
        settings, folder = candidate.settings(self.spec.settings, moved), f"candidates/{candidate.name}"
        self._within(folder, self.out / "prior" / "finetuned", self.all, settings, self.spec.model)
        seed = TRIAL_SEED + self.spec.settings.seed + number
        results = self._certify(self.out / folder / "finetuned", ROWS, seed=seed)
        return Tried.of(candidate, [results.bounds[name] for name in ROWS], results.quantities)

    def _certify(self, checkpoint: Path, rows: Any, seed: int, out: Path | None = None, **more: Any) -> Results:
        problem = load(
            checkpoint, self.out / "prior" / "pretrained", self.spec.model, self.task.part(self.all),
            trust_remote_code=self.spec.trust_remote_code, prior=self.out / "prior" / "finetuned",
            prior_samples=self.seen, prior_choices=self.choices, **more,
        )  # fmt: skip
        return evaluate(problem, rows, seed, delta=self.delta / len(ROWS), out=out)

    def _finish(self, best: Candidate, tried: dict[str, float | None], first: dict[str, Any]) -> dict[str, Any]:
        """Write the chosen network as that of this run, with the certificate from fresh draws."""
        start = start_of(self.spec, self.task, self.out / "candidates" / best.name / "finetuned")
        self.task.write(self.out / "labels.npz")
        save_network(start.model, self.out / "finetuned", start)
        shutil.copytree(self.out / "prior" / "pretrained", self.out / "pretrained", dirs_exist_ok=True)
        (self.out / "prior_samples.txt").write_text("\n".join(map(str, self.seen)) + "\n", encoding="utf-8")
        inner = json.loads((self.out / "candidates" / best.name / "run.json").read_text(encoding="utf-8"))
        record = {
            **inner, "init": str(self.spec.init), "data": said(self.spec.data),
            "test_data": said(self.spec.test_data), "rule": first["rule"], "model": first["model"],
            "distances": self._distances(start),
            "accuracy": accuracies(start.model, self.task, self.spec.settings.device),
        }  # fmt: skip
        if isinstance(self.spec.data, str):
            write_data_file(self.out)
            describe_checkpoint(self.out, record)
            write_sidecar(
                self.out / "finetuned", prior="../prior/finetuned", prior_samples="../prior_samples.txt",
                prior_choices=self.choices,
            )  # fmt: skip
        folder = self.out / "certificate"
        results = self._certify(
            self.out / "finetuned", ROWS, self.spec.settings.seed + FINAL_SEED, folder, test_data=self.task.test
        )
        results.save(folder)
        record["certificate"] = self._certificate(results, best, tried)
        write_json(self.out / "run.json", record)
        return record

    def _distances(self, end: Start) -> dict[str, float]:
        """How far each layer is from ``pretrained``, in the recipe's norm."""
        begin = start_of(self.spec, self.task, self.out / "pretrained")
        measuring = Settings(norm=self.spec.settings.norm, head_radius=self.spec.settings.head_radius)
        return constraint_of(begin.model, begin.head, measuring).distances(end.model)

    def _certificate(self, results: Results, best: Candidate, tried: dict[str, float | None]) -> dict[str, Any]:
        rows = {name: results.bounds[name] for name in ROWS}
        return {
            "delta": self.delta, "shares_of_delta": len(ROWS), "prior_choices": self.choices, "chosen": best.name,
            "tried": tried, "num_prior": len(self.seen), "num_data": len(self.all) - len(self.seen),
            **{name: {"value": row["value"], "note": row["note"]} for name, row in rows.items()},
        }  # fmt: skip
