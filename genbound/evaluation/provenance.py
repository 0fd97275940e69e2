"""What the results say beside the numbers: of what, how and where they were measured."""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from genbound.estimators.measured import Measured
from genbound.evaluation.selection import Selection
from genbound.network.weights import BaseProblem
from genbound.results.results import to_plain

LONGEST_TEXT = 1000  # characters of a sample that are stored


def config_entries(
    problem: BaseProblem, selection: Selection, measured: Mapping[str, Measured], seed: int, delta: float
) -> dict[str, Any]:
    """The entries of the results' ``config``."""
    quadratic_form = selection.options.get("max_quadratic_form")
    return to_plain(
        {
            "seed": seed, "num_samples": problem.num_samples, "num_data": problem.num_data,
            "loss_range": loss_range(problem, measured), "samples_sha256": _samples_digest(problem),
            "loss": None if problem.loss is None else problem.loss.name,
            "convention": "theorem" if quadratic_form is None else quadratic_form.convention,
            "head": problem.provenance.get("head_policy", "init"),
            "head_note": problem.provenance.get("head_note", ""), "remarks": list(problem.remarks),
            "dtype": str(problem.dtype).removeprefix("torch."), "device": ", ".join(map(str, problem.devices)),
            "attention": "math", "batch_size": problem.batch_size, "delta": delta, **_prior(problem),
            "options": {name: asdict(options) for name, options in selection.options.items() if name in measured},
            "torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version(),
        }
    )  # fmt: skip


def _prior(problem: BaseProblem) -> dict[str, Any]:
    """How many samples the centre of certificates saw, where it is not the start."""
    prior = getattr(problem, "prior", None)
    return {} if prior is None else {"prior": {"num_samples": None if prior.samples is None else len(prior.samples)}}


def file_entry(problem: BaseProblem, name: str) -> dict[str, Any]:
    """The results' ``checkpoint`` or ``init``: the file of the weights and its digest, where they are from a file."""
    return dict(problem.provenance.get(name, {"path": None, "sha256": None}))


def data_entry(problem: BaseProblem, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """The results' ``data``: the SPEC of the training samples, their digest, and what the most extreme ones look like.

    ``test_sha256`` is the digest of the test samples, where there are any: so runs that share them know of each other.

    ``shown`` has the samples at which a layer takes its maximum: number -> ``label``, and ``text`` (or the file).
    """
    data = problem.data
    if data is None:
        return {"spec": None, "sha256": None}
    held_out = {} if problem.test_data is None else {"test_sha256": problem.test_data.digest()}
    layers = [row for found in measured.values() for row in found.summary.get("layers", {}).values()]
    places = sorted({row["sample"] for row in layers if row.get("sample") is not None})
    shown = {str(i): {"label": data.label(i), "text": data.shown(i)[:LONGEST_TEXT]} for i in places}
    return {"spec": data.spec, "sha256": data.digest(), "shown": to_plain(shown), **held_out}


def layer_rows(problem: BaseProblem) -> list[dict[str, Any]]:
    """The results' ``layers``."""
    return [
        {
            "name": layer.name, "kind": layer.kind, "shape": list(layer.shape),
            "positive_semidefinite": layer.positive_semidefinite, "curved_by": layer.curved_by or None,
            "num_uses": layer.num_uses,
        }
        for layer in problem.layers
    ]  # fmt: skip


def loss_range(problem: BaseProblem, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """The range C of the loss, in its unit, and how it is known.

    Observed is the largest loss of all samples seen; ``over`` says of which data sets they are. Where losses go below
    zero, C is the distance from the smallest one, ``least``, to the largest: the loss less ``least`` lies in [0, C].
    """
    if problem.loss is not None and problem.loss_range_spec != "observed":
        return {"value": problem.loss.range, "kind": problem.loss_range_spec}
    if "losses" not in measured:
        return {"value": None, "kind": "observed"}
    over = "training" if problem.test_data is None else "training and test"
    seen = measured["losses"].summary
    least = min(0.0, seen["smallest_seen_loss"])
    below = {"least": least} if least < 0 else {}
    return {"value": seen["largest_seen_loss"] - least, "kind": "observed", "over": over, **below}


def peak_memory() -> int:
    """Largest resident size of the process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _samples_digest(problem: BaseProblem) -> str | None:
    """Which training samples were measured: two runs with the same ones differ by their draws alone."""
    if not problem.num_samples:
        return None
    return hashlib.sha256(repr(sorted(int(i) for i in problem.indices)).encode()).hexdigest()
