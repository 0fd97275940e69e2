"""The training loop: Hugging Face's Trainer, for any module and any samples.

Why this loop: it is the one that users of transformers have anyway, it takes any ``nn.Module``, and with accelerate
below it brings mixed precision, gradient accumulation, distributed data parallel, and checkpoints that hold the
optimizer, the schedule, the place in the data and the random states. What is added here: the loss of the run, steps at
perturbed weights, checkpoints with every buffer and tie, and a mark that says a checkpoint is whole.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from genbound.data.sample_parts import IGNORED
from genbound.errors import GenboundError
from genbound.finetune.baselines.mixup import Mix, draw_mix, mix
from genbound.finetune.baselines.perturbation import SharpnessAware, TwoSidedNoise
from genbound.finetune.like_lengths import LikeLengths
from genbound.finetune.objective import Objective
from genbound.finetune.predictions import answer
from genbound.finetune.settings import Settings
from genbound.finetune.task import Task
from genbound.results.progress_bar import Bar

try:
    import accelerate  # noqa: F401 - the Trainer asks for it only when it is built
    from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
except ImportError as error:
    raise GenboundError(
        f"genbound finetune needs a training loop ({error}): pip install 'genbound[finetune]'"
    ) from error

WEIGHTS, LOSSES = "weights.pt", "losses.json"
WHOLE = "whole"  # written last: a checkpoint without it was being written when the process died


class Places(Dataset):
    """The places of the samples; reading them is the collator's work, because some samples only stack as a batch."""

    def __init__(self, places: list[int]):
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> int:
        return self.places[i]


class FineTuner(Trainer):
    """The Trainer with a per-sample loss of ours.

    Args:
        model: the network.
        task: the samples to train and to validate on, with the labels to train on.
        objective: what is minimised.
        settings: of the run.
        folder: where checkpoints go.
        callbacks: further ones.
    """

    model: Any  # the Trainer's own annotation allows None
    objective: Objective

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        objective: Objective,
        settings: Settings,
        folder: Path,
        callbacks: list[TrainerCallback],
    ):
        self.objective, self.settings = objective, settings
        samples, held_out = task.part(list(range(len(task.samples)))), task.held_out
        self._sizes = [samples.size(i) for i in task.train] if settings.group_by_length else []
        self._drawn: Mix | None = None
        self._losses, self._counted_from = 0.0, 0  # their sum, and the step that it begins behind
        self.perturbation: SharpnessAware | TwoSidedNoise | None = None
        if settings.sam:
            self.perturbation = SharpnessAware(settings.sam)
        elif settings.noise_stability:
            self.perturbation = TwoSidedNoise(settings.noise_stability)

        def collate(chosen: list[int]) -> dict[str, Any]:
            batch = samples.batch(chosen)
            return {"inputs": batch.inputs, "labels": batch.targets}

        super().__init__(
            model,
            arguments(settings, folder, evaluates=bool(held_out)),
            data_collator=collate,
            train_dataset=Places(task.train),
            eval_dataset=Places(held_out) if held_out else None,
            compute_loss_func=_counting,
            compute_metrics=_accuracy if held_out else None,
            callbacks=[*callbacks, EpochsFirst(), Marks()],
        )
        self.remove_callback(PrinterCallback)
        if settings.early_stopping:
            self.add_callback(EarlyStoppingCallback(settings.early_stopping))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.settings.group_by_length:
            return super()._get_train_sampler(train_dataset)
        # Not the Trainer's own of this name, which goes from long samples to short ones.
        return LikeLengths(self._sizes, self.settings.batch_size, self.settings.seed)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The run's loss: per-sample losses over the number of labels that count, plus the penalty."""
        batch, labels = inputs["inputs"], inputs["labels"]
        other, share = labels, 1.0
        if self._drawn is not None and model.training:
            batch, other = mix(model, batch, labels, self._drawn)
            share = self._drawn.share
        logits = answer(model, batch)
        values = self.objective.per_sample(logits, labels)
        if share < 1.0:
            values = share * values + (1 - share) * self.objective.per_sample(logits, other)
        counted = (labels != IGNORED).sum()
        count = counted if num_items_in_batch is None else num_items_in_batch
        loss = values.sum() / count
        if self.objective.penalty is not None and model.training:
            loss = loss + self.objective.penalty() * (counted / count)  # once a step, however many parts the batch has
        if num_items_in_batch is not None and model.training:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over the processes
        return (loss, {"logits": logits}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The Trainer's step, taken at perturbed weights where the settings ask for it; gives the loss."""
        if self.settings.mixup:  # once a step: both passes of a perturbed one are of the same function
            self._drawn = draw_mix(len(inputs["labels"]), self.settings.mixup)

        def backward() -> Tensor:
            return super(FineTuner, self).training_step(model, dict(inputs), num_items_in_batch)

        loss = backward() if self.perturbation is None else self.perturbation.step(model, backward)
        if not math.isfinite(value := float(loss)):
            raise diverged(f"its loss is {value} at step {self.state.global_step + 1}")
        self._losses += value
        return loss

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """The Trainer's, with the mean loss of all steps since the last row: it counts from where a run continues."""
        if "loss" in logs:
            here = self.state.global_step
            logs["loss"] = self._losses / (here - self._counted_from)
            self._losses, self._counted_from = 0.0, here
        super().log(logs, *args)

    # Whole state dicts: an adapter's own file lacks the buffers, and safetensors refuses ties.

    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            torch.save(self.model.state_dict(), Path(output_dir, WEIGHTS))
            Path(output_dir, LOSSES).write_text(json.dumps([self._losses, self._counted_from]), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        load_weights(self.model, checkpoint)
        self._counted_from = int(checkpoint.name.rpartition("-")[2])
        if (checkpoint / LOSSES).is_file():  # a version before did not write it
            self._losses, self._counted_from = json.loads((checkpoint / LOSSES).read_text(encoding="utf-8"))

    def _load_best_model(self) -> None:
        """Leave the last weights: the Trainer knows the best ones by a path, which OUT may have had another of."""

    def keep_best(self) -> None:
        """Go back to the epoch with the best validation accuracy."""
        load_weights(self.model, Path(str(self.args.output_dir), f"checkpoint-{self.state.best_global_step}"))


def _counting(*_: Any) -> None:
    """Does nothing: that it is there makes the Trainer count the samples of all parts of a batch."""


def diverged(how: str) -> GenboundError:
    """The error of a run that ends in no network."""
    return GenboundError(f"the training has diverged ({how}): lower --lr, or limit the gradient by --clip")


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load the state dict of a checkpoint of this loop, buffers included."""
    model.load_state_dict(torch.load(checkpoint / WEIGHTS, map_location="cpu", weights_only=True))


def arguments(settings: Settings, folder: Path, evaluates: bool) -> TrainingArguments:
    """The run's settings in the Trainer's words."""
    saving = "steps" if settings.save_steps else "epoch"
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=128,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.lr,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup if settings.warmup < 1 else 0.999,  # below 1 it is a share of all steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        optim="adamw_torch_fused",  # one pass over the weights instead of six
        bf16=settings.precision == "bfloat16",
        use_cpu=settings.device == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="epoch" if settings.early_stopping else saving,
        save_steps=settings.save_steps or 500,
        save_total_limit=2,  # the last whole one is still there while the next is written
        eval_strategy="epoch" if evaluates else "no",
        load_best_model_at_end=bool(settings.early_stopping),
        restore_callback_states_from_checkpoint=True,  # how many epochs were no better
        metric_for_best_model="accuracy" if settings.early_stopping else None,
        greater_is_better=True if settings.early_stopping else None,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # such a loss ends the run
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
    )


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those that were not are removed."""
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for step in sorted(found, reverse=True):
        if (found[step] / WHOLE).is_file():
            return found[step]
        shutil.rmtree(found[step])
    return None


class EpochsFirst(TrainerCallback):
    """A checkpoint at the last step of an epoch is written behind the epoch's loss and its validation.

    A run that continues from there does not come back to them: its record would lack their rows, and its random states
    what the validation draws.
    """

    def __init__(self) -> None:
        self._due = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put off what is to be saved at the last step of an epoch."""
        if state.epoch == int(state.epoch):
            self._due, control.should_save = control.should_save, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save what was put off."""
        control.should_save, self._due = control.should_save or self._due, False


class Marks(TrainerCallback):
    """Marks a checkpoint as whole.

    Not the one with which training is stopped early: the Trainer would go on from there. A run that is killed behind it
    continues from an earlier one, and stops at the same step again.
    """

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the new checkpoint as whole."""
        stopped = control.should_training_stop and state.global_step < state.max_steps
        if state.is_world_process_zero and not stopped:
            Path(args.output_dir, f"checkpoint-{state.global_step}", WHOLE).touch()


class Progress(TrainerCallback):
    """How far the training is, on standard error, with the loss of the last epoch.

    Args:
        bar: where it is shown.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar, self._found, self._begun, self._first = bar, "", 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count from the step that the run continues from."""
        self._begun, self._first = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar to the step."""
        if state.is_world_process_zero:
            here, last = state.global_step, state.max_steps
            left = (time.monotonic() - self._begun) * (last - here) / max(1, here - self._first)
            self._bar.show(here / last, f"fine-tuning, step {here} of {last}{self._found}", left)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the newest loss and validation accuracy beside the bar."""
        short = {"loss": "loss", "eval_accuracy": "validation"}
        shown = [f"{short[name]} {logs[name]:.3f}" for name in short if name in (logs or {})]
        self._found = "".join(f", {text}" for text in shown) or self._found


def _accuracy(prediction: Any) -> dict[str, float]:
    logits, labels = prediction.predictions, prediction.label_ids
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}
