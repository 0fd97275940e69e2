"""What both callbacks do: keep the weights before training, write the sidecar, measure at the end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genbound.checkpoints.sidecar import save_spec


class Record:
    """The start of a training run.

    Args:
        settings: for ``genbound.yaml``, see :func:`genbound.save_spec`.
        measure: quantities and bounds to evaluate when training ends; ``None`` measures nothing.
        num_samples: training samples to measure on.
    """

    def __init__(self, settings: dict[str, Any], measure: list[str] | tuple[str, ...] | None, num_samples: int):
        self.settings, self.measures, self.num_samples = settings, measure, num_samples
        self.start: dict[str, Tensor] | None = None

    def begin(self, model: nn.Module) -> None:
        """Keep a copy of the weights, head included: nothing else keeps the head's random initialisation."""
        self.start = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def write(self, folder: str | Path) -> Path:
        """Write the sidecar and the weights before training into ``folder``."""
        return save_spec(folder, init=self.start, **self.settings)

    def evaluate(self, model: nn.Module, samples: Any, test_samples: Any, loss: Any, folder: str | Path) -> Any:
        """Measure ``model`` as it is and save the results in ``folder/genbound``."""
        from genbound.evaluation.loop import evaluate
        from genbound.network.problem import Problem

        # A copy, so that devices, modes and hooks of the trained model stay as they are.
        copied = copy.deepcopy(model).cpu().eval()
        problem = Problem(
            copied, self.start, samples, loss, test_data=test_samples, num_samples=self.num_samples,
            provenance={"rule": "measured at the end of training"},
        )  # fmt: skip
        out = Path(folder) / "genbound"
        results = evaluate(problem, self.measures, out=out)
        results.save(out)
        return results
