"""For ``transformers.Trainer(..., callbacks=[GenboundCallback()])``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbound.callbacks.first_epoch import FOLDER as PRIOR
from genbound.callbacks.first_process import by_torch, of_first
from genbound.callbacks.record import Record, numbers
from genbound.checkpoints.huggingface import predicts_next_token
from genbound.checkpoints.padding_token import padding_token
from genbound.checkpoints.sidecar import copy_sidecar, drop_settings, read_sidecar
from genbound.data.samples import Samples, as_samples
from genbound.data.texts import TokenSamples, shifted
from genbound.errors import GenboundError, tell

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise GenboundError(f"this callback needs transformers ({error}): pip install 'genbound[hf]'") from error

if TYPE_CHECKING:
    from genbound.results.results import Results

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class GenboundCallback(TrainerCallback):
    """Write what ``genbound evaluate`` needs into each checkpoint, and optionally measure when training ends.

    Each checkpoint gets ``genbound.yaml``, and the output directory ``genbound_init.safetensors``, the weights before
    training: ``genbound evaluate OUTPUT/checkpoint-500`` then needs no flags. Of a model with an adapter of PEFT it is
    ``genbound_base``, the base model that the adapter was put on; what is measured is the merged network.

    Args:
        data: the training samples, as a data SPEC that counts from the output directory; by default the Trainer's own
            data set, which is written to ``genbound_train.parquet`` there if it is a tokenised one of ``datasets``.
        test_data: held-out samples, likewise.
        measure: quantities and bounds to measure at the end of training, e.g. ``["hessian_distance"]``; the results go
            to ``OUTPUT/genbound``. ``None`` measures nothing.
        every: measure after each so many epochs too; the results go to ``OUTPUT/genbound/epoch-N``. Each number is
            ``genbound_NAME`` in the Trainer's history and ``eval_genbound_NAME`` among the metrics of that epoch's
            evaluation, where ``metric_for_best_model`` finds it, and ``EarlyStoppingCallback`` if it comes later.
        on: ``train`` measures on the training samples, ``test`` on those of the Trainer's evaluation.
        num_samples: how many training samples to measure on.
        prior: a share of the first epoch, such as 0.5: the weights at that step go to ``OUTPUT/genbound_prior``, and
            certificates are centred there and made of the samples that come later. ``None`` keeps none.
        settings: further settings of :func:`genbound.save_spec`; the measuring keeps to them.

    Attributes:
        results: what was measured last, ``None`` until then.
        log: what takes the numbers of an epoch; the Trainer's history by default. ``callback.log = trainer.log`` hands
            them to W&B, MLflow, TensorBoard and whatever else the Trainer reports to.

    Raises:
        GenboundError: the data are to be measured and are of a kind that cannot be read; a prior is wanted and the
            samples are not shuffled at random, or several processes train; training goes on from a checkpoint, and the
            weights before it are not in the output directory.
    """

    def __init__(
        self, data: str | None = None, test_data: str | None = None, measure: str | Sequence[str] | None = None,
        num_samples: int = 256, prior: float | None = None, every: int | None = None, on: str = "train",
        **settings: Any,
    ):  # fmt: skip
        self.data, self.test_data = data, test_data
        self.record = Record(settings, measure, num_samples, prior, every, on)
        self.results: Results | None = None
        self.log: Callable[[dict[str, float]], None] | None = None
        self._due = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None,
        train_dataloader: Any = None, eval_dataloader: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Keep the weights before training, and write the sidecar into the output directory."""
        loaded = args.resume_from_checkpoint
        places = [str(args.output_dir), *([loaded] if isinstance(loaded, str) else [])]
        self.record.begin(model, places if state.global_step else ())
        if state.global_step == 0:  # what a continued run has seen is not known
            self.record.listen(train_dataloader, args.world_size, args.gradient_accumulation_steps)
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        given = {"data": (self.data, train_dataloader, "train"), "test_data": (self.test_data, eval_dataloader, "test")}
        if state.global_step == 0:  # what an earlier run has written here are not this one's samples
            said = read_sidecar(folder)
            drop_settings(
                folder, [name for name, (_, _, part) in given.items() if said.get(name) == _rows(folder, part)]
            )
        for name, (spec, loader, part) in given.items():
            self.record.settings.pop(name, None)
            found = spec or _write_rows(getattr(loader, "dataset", None), folder, part)
            if found is not None:
                self.record.settings[name] = found
        self.record.write(folder, continued=state.global_step > 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Keep the weights as a certificate's prior, where it is time for that."""
        if self.record.is_prior(state.global_step):
            folder = Path(str(args.output_dir))
            _save_weights(model, folder / PRIOR)
            self.record.keep_prior(model, folder)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure and log, where it is time for that."""
        self._due = self.record.is_due(state.epoch or 0)
        if self._due and not control.should_evaluate:  # an evaluation brings the held-out samples with it
            self._measure(args, state, kwargs)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """The same, with the numbers among the evaluation's, by which checkpoints are chosen and training stops."""
        if state.is_world_process_zero and "test_data" not in self.record.settings:
            self._name_test_data(Path(str(args.output_dir)), kwargs.get("eval_dataloader"))
        if self._due:
            found = self._measure(args, state, kwargs)
            (metrics if metrics is not None else {}).update({f"eval_{name}": value for name, value in found.items()})

    def _name_test_data(self, folder: Path, loader: Any) -> None:
        """The Trainer makes its evaluation data when it first evaluates: only now can the sidecar name them."""
        rows = getattr(loader, "dataset", None)
        if (folder / "genbound.yaml").exists() and (found := _write_rows(rows, folder, "test")) is not None:
            self.record.settings["test_data"] = found
            self.record.write(folder, continued=True)

    def _measure(self, args: TrainingArguments, state: TrainerState, kwargs: dict[str, Any]) -> dict[str, float]:
        self._due = False

        def measure() -> dict[str, float]:
            model = kwargs["model"]
            data = _of_loaders(kwargs["train_dataloader"], kwargs["eval_dataloader"], model, kwargs)
            self.results = self.record.evaluate(model, *data, str(args.output_dir), round(state.epoch or 0))
            return numbers(self.results)

        found = of_first(state.is_world_process_zero, measure, by_torch)
        if self.log is not None:
            self.log(dict(found))
        else:
            state.log_history.append({**found, "epoch": state.epoch, "step": state.global_step})
        return found

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the sidecar into the new checkpoint, with paths that count from there."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir))
            checkpoint = folder / f"checkpoint-{state.global_step}"
            if checkpoint.is_dir():
                copy_sidecar(folder, checkpoint)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None,
        train_dataloader: Any = None, eval_dataloader: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Measure what was asked for, on the Trainer's own data sets."""
        if self.record.measures is None or not state.is_world_process_zero:
            return
        if eval_dataloader is None:
            tell("the Trainer evaluates nothing (eval_strategy is 'no'), so there is no test loss and no gap")
        data = _of_loaders(train_dataloader, eval_dataloader, model, kwargs)
        self.results = self.record.evaluate(model, *data, str(args.output_dir))


def _of_loaders(train: Any, test: Any, model: Any, kwargs: dict[str, Any]) -> tuple[Samples | None, Samples | None]:
    """The Trainer's own data sets as samples."""
    datasets = [getattr(loader, "dataset", None) for loader in (train, test)]
    samples, held_out = (None if data is None else _samples(data, model, kwargs) for data in datasets)
    return samples, held_out


def _save_weights(model: Any, folder: Path) -> None:
    """A checkpoint as ``genbound evaluate`` reads it."""
    from safetensors.torch import save_file

    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned: safetensors refuses tied weights.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def _write_rows(rows: Any, folder: Path, part: str) -> str | None:
    """A tokenised data set as a parquet file; ``None`` where it is something else, whose SPEC only the user knows."""
    columns = getattr(rows, "column_names", None) or ()
    labelled = "input_ids" in columns and not {"labels", "label"}.isdisjoint(columns)
    if not labelled or not hasattr(rows, "to_parquet"):
        return None
    kept = [name for name in columns if name in (*TOKEN_INPUTS, "labels", "label")]
    folder.mkdir(parents=True, exist_ok=True)
    rows.with_format(None).select_columns(kept).to_parquet(str(folder / f"genbound_{part}.parquet"))
    return _rows(Path(), part)


def _rows(folder: Path, part: str) -> str:
    """The SPEC of such a file."""
    return f"parquet:{folder / f'genbound_{part}.parquet'}"


def _samples(data: Any, model: Any, kwargs: dict[str, Any]) -> Samples:
    """The Trainer's data set as samples: rows of tokens are padded, others are read as they are."""
    causal = predicts_next_token(model)
    first = data[0]
    if isinstance(first, dict) and "input_ids" in first and not hasattr(first["input_ids"], "shape"):
        rows = [{name: list(row[name]) for name in TOKEN_INPUTS if name in row} for row in data]
        labels = [row["labels"] if "labels" in row else row["label"] for row in data]
        tokenizer = kwargs.get("processing_class")
        padding = {"input_ids": padding_token(getattr(model, "config", None), tokenizer) or 0}
        return TokenSamples(rows, labels, padding, getattr(tokenizer, "padding_side", "right"), causal)
    return shifted(as_samples(data), causal)
