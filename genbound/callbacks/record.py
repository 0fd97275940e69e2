"""What both callbacks do: keep the weights before training, write the sidecar, measure as often as asked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from torch import Tensor, nn

from genbound.callbacks.adapted import base_at_start, is_adapted, merged, save_base
from genbound.callbacks.first_epoch import SETTINGS as PRIOR_SETTINGS
from genbound.callbacks.first_epoch import FirstEpoch, check_share, keep_prior
from genbound.callbacks.kept_start import kept_start
from genbound.checkpoints.sidecar import drop_settings, read_sidecar, save_spec
from genbound.checkpoints.trust import check_code
from genbound.data.samples import as_samples
from genbound.errors import GenboundError
from genbound.results.loggers import metrics
from genbound.user_code import rng_untouched

if TYPE_CHECKING:
    from genbound.results.results import Results

OF_THE_PROBLEM = ("num_data", "loss_range", "layers")  # settings that say how to measure


class Record:
    """The start of a training run, and what is to be measured at its end.

    Args:
        settings: for ``genbound.yaml``, see :func:`genbound.save_spec`; the measuring at the end keeps to them.
        measure: quantities and bounds to evaluate when training ends; ``None`` measures nothing.
        num_samples: training samples to measure on.
        prior: share of the first epoch after which the weights are kept as a certificate's prior; ``None`` for none.
        every: epochs between two measurings during training; ``None`` measures at the end alone.
        on: ``train`` measures on the training samples, ``test`` on the held-out ones.

    Attributes:
        start: name -> weight before training, ``None`` until that begins; of a model with an adapter its base's.
        base: the network that an adapter was put on, ``None`` where there is none.

    Raises:
        GenboundError: what is measured at the end is measured from the head's own start, and ``head`` says otherwise;
            ``every`` or ``on`` make no sense.
    """

    def __init__(
        self, settings: dict[str, Any], measure: str | Sequence[str] | None, num_samples: int,
        prior: float | None = None, every: int | None = None, on: str = "train",
    ):  # fmt: skip
        check_share(prior)
        if every is not None and (every < 1 or measure is None):
            raise GenboundError(f"every={every}: give a number of epochs from 1, and measure=[…] what to measure then")
        if on not in ("train", "test"):
            raise GenboundError(f"on={on!r} is unknown: measure on 'train' or on 'test' samples")
        if measure is not None and settings.get("head") not in (None, "init"):
            raise GenboundError(
                f"a callback measures the head from its start, not by head={settings['head']!r}: leave measure out and "
                "run `genbound evaluate` after training"
            )
        self.settings, self.measures, self.num_samples = settings, measure, num_samples
        self.start: dict[str, Tensor] | None = None
        self._model: ref[nn.Module] | None = None  # whose start it is
        self.base: nn.Module | None = None
        self.share, self.every, self.on = prior, every, on
        self.first_epoch: FirstEpoch | None = None
        self._centre: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process knows: no weak reference travels."""
        return {**vars(self), "_model": None}

    def begin(self, model: nn.Module, places: Sequence[str | Path] = ()) -> None:
        """Keep a copy of the weights, head included: nothing else keeps the head's random initialisation.

        Args:
            model: before its training; one that trains again has begun then.
            places: of a run that goes on from a checkpoint, which the model has loaded: folders where its beginning
                may have left the weights.

        Raises:
            GenboundError: they are not there.
        """
        if self.start is not None and (self._model is None or self._model() is model):
            return
        self._model, model, self.base = ref(model), _uncompiled(model), None
        if is_adapted(model):
            self.base = base_at_start(model)
            model = self.base
        if places:
            self.start = kept_start(model, map(Path, places))
            if self.base is not None:
                self.base.load_state_dict(self.start)
        else:
            self.start = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def write(self, folder: str | Path, continued: bool = False) -> Path:
        """Write the sidecar and the weights before training into ``folder``.

        Args:
            folder: of the checkpoints.
            continued: the run was begun before; a prior that it has left behind is its own, and so is its start.

        Raises:
            GenboundError: a sidecar that lay there before names a loss that is code, and it is to be measured with.
        """
        folder = Path(folder)
        if not continued:
            drop_settings(folder, PRIOR_SETTINGS)
        kept: str | None = read_sidecar(folder).get("init")
        init: Any = None
        if not (continued and kept and Path(kept).exists()):
            init = (None if self.base is None else save_base(self.base, folder)) or self.start
        file = save_spec(folder, init=init, **self.settings)
        if self.measures is not None:
            _settings(folder)  # before the training, not after it
        return file

    def listen(self, loader: Any, num_processes: int, accumulation: int = 1) -> None:
        """Before the first epoch: find out which samples are handed out, where a prior is wanted.

        Raises:
            GenboundError: several processes train, or the order of the samples is not random.
        """
        if self.share is None:
            return
        if num_processes > 1:
            raise GenboundError(f"prior={self.share:g} is for training in one process: leave it out")
        self.first_epoch = FirstEpoch(loader, self.share, accumulation)

    def is_prior(self, step: int) -> bool:
        """Whether the weights after this optimizer step are to be kept."""
        return self.first_epoch is not None and step == self.first_epoch.step

    def keep_prior(self, model: nn.Module, folder: str | Path) -> None:
        """Name the weights, which lie in the folder already, as the prior of the samples that come later."""
        assert self.first_epoch is not None
        model = _uncompiled(model)
        if self.measures is not None:
            network = merged(model)[0] if is_adapted(model) else model
            state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
            self._centre = {"prior": state, "prior_samples": self.first_epoch.seen()}
        keep_prior(Path(folder), self.first_epoch)
        self.first_epoch = None

    def is_due(self, epoch: float) -> bool:
        """Whether to measure after so many epochs; one that was broken off is none."""
        whole = round(epoch)
        return self.every is not None and whole > 0 and abs(epoch - whole) < 1e-6 and whole % self.every == 0

    def evaluate(
        self, model: nn.Module, samples: Any, test_samples: Any, folder: str | Path, epoch: int | None = None
    ) -> Results:
        """Measure a network as it is, with the loss and the settings that the sidecar in ``folder`` gives.

        Args:
            model: the trained network; it stays as it is.
            samples: training samples, in any form that :class:`~genbound.network.problem.Problem` takes.
            test_samples: held-out samples, likewise; ``None`` where there are none.
            folder: that of the sidecar; the results go into its ``genbound``.
            epoch: how many epochs are over, where training goes on: the results go into ``epoch-N`` there.
        """
        from genbound.evaluation.loading import default_loss
        from genbound.evaluation.loop import evaluate
        from genbound.network.problem import Problem

        said, model = _settings(folder), _uncompiled(model)
        # A copy, so that devices, modes and hooks of the trained model stay as they are; and no random number that the
        # training would have drawn next is used up by reading its data.
        copied, factors = merged(model) if is_adapted(model) else (copy.deepcopy(model).cpu().eval(), None)
        when = "at the end of training" if epoch is None else f"after epoch {epoch}"
        out = Path(folder) / "genbound" / ("" if epoch is None else f"epoch-{epoch}")
        with rng_untouched():
            problem = Problem(
                copied, self.start or {}, loss=default_loss(copied, said.get("loss")), num_samples=self.num_samples,
                provenance={"rule": f"measured {when}"}, factors=factors, init_buffers=self.start,
                **{name: said[name] for name in OF_THE_PROBLEM if name in said}
                | self._data(samples, test_samples, said),
            )  # fmt: skip
            results = evaluate(problem, self.measures, out=out if epoch is None else None)
        results.save(out)
        return results

    def _data(self, samples: Any, test_samples: Any, said: dict[str, Any]) -> dict[str, Any]:
        """The problem's data: the training samples beside the held-out ones, or these alone."""
        if self.on == "train":
            return {"data": samples, "test_data": test_samples, **self._centre}
        if test_samples is None:
            raise GenboundError(
                "on='test' measures held-out samples, and none reached the callback: turn evaluation on"
            )
        num = said.get("num_data", len(as_samples(samples)))
        return {"data": test_samples, "num_data": num, "other_samples": True}


def numbers(results: Results) -> dict[str, float]:
    """What a training log plots: ``genbound_NAME`` for every bound, every total and every loss."""
    return {
        "genbound_" + name.removeprefix("bounds/").removeprefix("losses/").replace("/", "_"): value
        for name, value in metrics(results).items()
    }


def _uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` has wrapped, whose weights have the names that a checkpoint has."""
    return getattr(model, "_orig_mod", model)


def _settings(folder: str | Path) -> dict[str, Any]:
    """What the sidecar says about measuring; code in it has to be the user's own."""
    said = {name: value for name, value in read_sidecar(folder).items() if name in ("loss", *OF_THE_PROBLEM)}
    check_code(said, folder, trusted=False)
    return said
