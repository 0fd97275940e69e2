"""Training until the loss on the training samples has come down to a given value.

Networks that were trained by different methods differ in their training loss, and that alone orders their gaps. Jiang
et al. (ICLR 2020) therefore compare networks that were all stopped at one training loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from genbound.finetune.predictions import predict
from genbound.finetune.settings import Settings
from genbound.finetune.start import Start
from genbound.finetune.task import Task

MOST = 512  # training samples that the loss is taken on
CHECKS = 8  # in an epoch, up to the rounding of the steps between them


class StopAtLoss(TrainerCallback):
    """Stops training once the plain cross-entropy is low enough, whatever the run minimises.

    The loss is that of evaluation mode on a fixed choice of at most 512 training samples with the labels that are
    trained on. It is taken every s/8 steps, rounded to whole ones and at least every step, where an epoch has s of
    them: about eight times an epoch (6 to 11), and s times where s is below eight. So a run ends at the first of these
    looks at or below the value.

    Args:
        start: the network; its ``model`` is what is trained.
        task: the samples.
        settings: of the run.

    It is computed in the precision of the training: looks in float32 would take as long as the steps in bfloat16.

    Cost: at most eleven forward passes over 512 samples an epoch.
    """

    def __init__(self, start: Start, task: Task, settings: Settings):
        order = np.random.default_rng([settings.seed, 2]).permutation(len(task.train))
        self._samples = task.part([task.train[i] for i in sorted(order[:MOST])])
        self._start, self._settings = start, settings
        self.reached = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the loss, and stop where it is low enough."""
        every = max(1, round(state.max_steps / (CHECKS * self._settings.epochs)))
        if state.global_step % every and state.global_step < state.max_steps:
            return
        self._look()
        control.should_training_stop = control.should_training_stop or self.reached

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look again where training continues behind its last step: no other look will follow."""
        if state.global_step >= state.max_steps:
            self._look()

    def _look(self) -> None:
        half = self._settings.precision == "bfloat16"
        with torch.autocast(torch.device(self._settings.device).type, torch.bfloat16, enabled=half):
            logits, labels = predict(self._start.model, self._samples, self._settings.device)
        self.reached = float(cross_entropy(logits, labels)) <= self._settings.stop_loss
