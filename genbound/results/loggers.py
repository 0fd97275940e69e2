"""Results to experiment trackers: MLflow, Weights & Biases (offline) and TensorBoard.

Each is imported when it is used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from genbound.errors import GenboundError
from genbound.results.gap import losses
from genbound.results.results import Results


def metrics(results: Results) -> dict[str, float]:
    """What a tracker plots: ``bounds/NAME``, ``bounds/NAME/log10``, ``losses/…`` and ``NAME/total`` of quantities."""
    found: dict[str, float] = {}
    for name, row in results.bounds.items():
        found |= {f"bounds/{name}": row["value"], f"bounds/{name}/log10": row["log10"]}
    found |= {f"losses/{key}": value for key, value in losses(results).items() if not key.startswith("num_")}
    for name, summary in results.quantities.items():
        if isinstance(summary.get("total"), Mapping):
            found[f"{name}/total"] = summary["total"]["value"]
    numbers = {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {k: v for k, v in numbers.items() if math.isfinite(v)}


def parameters(results: Results) -> dict[str, Any]:
    """Configuration and digests, flat: ``config.seed``, ``checkpoint.sha256`` and so on."""
    nested = {"config": results.config, "checkpoint": results.checkpoint, "init": results.init, "data": results.data}
    return dict(_flat("", nested))


def _flat(prefix: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{key}.", value)
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, int | float | str) else str(value)


def log_mlflow(results: Results, directory: str | Path, name: str = "genbound") -> None:
    """A run in a local MLflow store: metrics, parameters, and results.json as an artifact.

    Args:
        results: what to log.
        directory: where the store (``mlflow.db``) and its artifacts lie;
            ``mlflow ui --backend-store-uri sqlite:///DIR/mlflow.db`` shows it.
        name: the run's name.
    """
    mlflow = _need("mlflow", "mlflow")
    folder = Path(directory).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("genbound")
    key = (
        experiment.experiment_id
        if experiment
        else client.create_experiment("genbound", (folder / "artifacts").as_uri())
    )
    run = client.create_run(key, run_name=name)
    for parameter, value in parameters(results).items():
        client.log_param(run.info.run_id, parameter, str(value)[:500])
    for metric, value in metrics(results).items():
        client.log_metric(run.info.run_id, metric, value)
    client.log_dict(run.info.run_id, results.to_json(), "results.json")
    client.set_terminated(run.info.run_id)


def log_wandb(results: Results, directory: str | Path, name: str = "genbound") -> None:
    """An offline run of Weights & Biases; ``wandb sync DIR/wandb/offline-run-…`` uploads it when and if you want.

    Args: as :func:`log_mlflow`.
    """
    wandb = _need("wandb", "wandb")
    Path(directory).mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(silent=True, console="off", mode="offline", x_disable_stats=True)
    with wandb.init(
        project="genbound", name=name, dir=str(directory), config=parameters(results), settings=settings
    ) as run:
        run.summary.update(metrics(results))


def log_tensorboard(results: Results, directory: str | Path, name: str = "genbound") -> None:
    """Event files for ``tensorboard --logdir DIR``.

    Args: as :func:`log_mlflow`.
    """
    _need("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(os.path.join(directory, name)) as writer:
        for metric, value in metrics(results).items():
            writer.add_scalar(metric, value)
        writer.add_text("results", results.to_markdown())


LOGGERS: dict[str, Callable[[Results, str | Path, str], None]] = {
    "mlflow": log_mlflow,
    "wandb": log_wandb,
    "tensorboard": log_tensorboard,
}


def _need(module: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise GenboundError(f"{module} is not installed: pip install 'genbound[{extra}]'") from error
