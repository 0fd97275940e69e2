"""For ``lightning.Trainer(..., callbacks=[GenboundCallback(...)])``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset

from genbound.callbacks.first_epoch import FOLDER as PRIOR
from genbound.callbacks.first_process import of_first
from genbound.callbacks.record import Record, numbers
from genbound.errors import GenboundError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise GenboundError(f"this callback needs Lightning ({error}): pip install 'genbound[lightning]'") from error

if TYPE_CHECKING:
    from genbound.results.results import Results


class GenboundCallback(Callback):
    """Write what ``genbound evaluate`` needs beside the checkpoints, and optionally measure when training ends.

    Beside each ``.ckpt`` lie ``genbound.yaml`` and ``genbound_init.safetensors``, the weights before training. The
    model is the LightningModule's own class, built with the hyper-parameters that its checkpoint keeps
    (``save_hyperparameters()``).

    Args:
        folder: where the checkpoints go; by default that of the trainer's checkpoint callback.
        model: model SPEC; by default the file and class of the LightningModule, where it was imported from a file.
        data: the training samples as a data SPEC that counts from ``folder``.
        test_data: held-out samples, likewise.
        measure: quantities and bounds to measure when training ends, on the batches of the training loader; the results
            go to ``folder/genbound``. ``None`` measures nothing.
        every: measure after each so many epochs too; the results go to ``folder/genbound/epoch-N``, and each number is
            logged as ``genbound_NAME``: loggers, ``EarlyStopping`` and ``ModelCheckpoint`` find it, where these look at
            the end of the training epoch (``check_on_train_epoch_end=True``, ``save_on_train_epoch_end=True``).
        on: ``train`` measures on the batches of the training loader, ``test`` on those of the first validation loader.
        loss: as on the command line, cross-entropy by default.
        num_samples: how many training samples to measure on.
        prior: a share of the first epoch, such as 0.5: the weights at that step go to ``folder/genbound_prior``, and
            certificates are centred there and made of the samples that come later. ``None`` keeps none.
        settings: further settings of :func:`genbound.save_spec`; the measuring keeps to them.

    Attributes:
        results: what was measured last, ``None`` until then.

    Raises:
        GenboundError: the data are to be measured and are of a kind that cannot be read; a prior is wanted and the
            samples are not shuffled at random, or several processes train; training goes on from a checkpoint, and the
            weights before it lie neither in ``folder`` nor beside it.
    """

    def __init__(
        self, folder: str | os.PathLike | None = None, model: str | None = None, data: str | None = None,
        test_data: str | None = None, measure: str | Sequence[str] | None = None, loss: str | None = None,
        num_samples: int = 256, prior: float | None = None, every: int | None = None, on: str = "train",
        **settings: Any,
    ):  # fmt: skip
        self.folder, self.model = folder, model
        said = {**settings, "data": data, "test_data": test_data, "loss": loss}
        self.record = Record(said, measure, num_samples, prior, every, on)
        self.results: Results | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights before training, and write the sidecar."""
        self.record.begin(pl_module, self._places(trainer))
        if trainer.is_global_zero:
            self.record.settings["model"] = self.model or _source(type(pl_module))
            self.record.write(self._folder(trainer), continued=_is_continued(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen which samples are handed out, where a prior is wanted."""
        if not _is_continued(trainer):
            self.record.listen(trainer.train_dataloader, trainer.world_size, trainer.accumulate_grad_batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keep the weights as a certificate's prior, where it is time for that."""
        if self.record.is_prior(trainer.global_step):
            folder = self._folder(trainer)
            trainer.save_checkpoint(folder / PRIOR / "weights.ckpt", weights_only=True)
            self.record.keep_prior(pl_module, folder)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log, where it is time for that."""
        epoch = trainer.current_epoch + 1
        if trainer.is_last_batch and self.record.is_due(epoch):  # else max_steps has broken it off

            def measure() -> dict[str, float]:
                self.results = self._evaluate(trainer, pl_module, epoch)
                return numbers(self.results)

            pl_module.log_dict(of_first(trainer.is_global_zero, measure, trainer.strategy.broadcast))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what was asked for, on the batches of the training loader."""
        if self.record.measures is not None and trainer.is_global_zero:
            self.results = self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, epoch: int | None = None) -> Results:
        held_out = trainer.val_dataloaders
        held_out = held_out[0] if isinstance(held_out, list | tuple) else held_out
        data = _in_order(trainer.train_dataloader), _in_order(held_out)
        return self.record.evaluate(pl_module, *data, self._folder(trainer), epoch)

    def _places(self, trainer: Trainer) -> list[Path]:
        """Where a run that is continued has left its start: its folder, and that of the checkpoint that it loads."""
        if not _is_continued(trainer):
            return []
        return [self._folder(trainer), *([Path(trainer.ckpt_path).parent] if trainer.ckpt_path else [])]

    def _folder(self, trainer: Trainer) -> Path:
        if self.folder is not None:
            return Path(self.folder)
        checkpoints = getattr(trainer.checkpoint_callback, "dirpath", None)
        return Path(checkpoints or trainer.default_root_dir)


def _in_order(loader: Any) -> Any:
    """The batches of a loader in the order of its data set, so that every epoch measures the same samples."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    return DataLoader(loader.dataset, batch_size=loader.batch_size or 1, collate_fn=loader.collate_fn)


def _is_continued(trainer: Trainer) -> bool:
    """What a continued run has seen is not known."""
    return trainer.global_step > 0 or trainer.ckpt_path is not None


def _source(cls: type) -> str | None:
    """``FILE.py:Class`` of a class that was imported from a file."""
    try:
        file = inspect.getsourcefile(cls)
    except (TypeError, OSError):
        return None
    return None if file is None or not Path(file).is_file() else f"{Path(file).resolve()}:{cls.__name__}"
