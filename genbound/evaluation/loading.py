"""From files to a problem: two checkpoints, a model and data, in one call."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from genbound.checkpoints.architecture import build_pair
from genbound.checkpoints.huggingface import load_image_processor, load_tokenizer
from genbound.checkpoints.pair import Pair
from genbound.checkpoints.sidecar import read_sidecar
from genbound.data.spec import Reader, load_data
from genbound.errors import GenboundError
from genbound.network.loss_functions import Loss
from genbound.network.problem import Problem
from genbound.network.weights import WeightProblem
from genbound.user_code import get_user

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def load(
    ckpt: str | os.PathLike,
    init: str | os.PathLike | None = None,
    model: Any = None,
    data: Any = None,
    test_data: Any = None,
    head: str | None = None,
    *,
    trust_remote_code: bool = False,
    head_weights: Iterable[str] | str | None = None,
    ignore: Iterable[str] | str | None = None,
    entry: str | None = None,
    **options: Any,
) -> Problem | WeightProblem:
    """Load a fine-tuned checkpoint, the weights it started from, and the data to measure them on.

    What is not given is as ``genbound.yaml`` beside the checkpoint says, if there is one (:func:`genbound.save_spec`).

    Args:
        ckpt: fine-tuned checkpoint: a directory of Hugging Face or PEFT, or a file of tensors.
        init: the pretrained weights, likewise.
        model: ``hf[:AutoModelFor…]``, ``timm:NAME``, ``torchvision:NAME``, ``FILE.py:factory``, ``pkg.mod:factory``, a factory
            or a module; ``None`` lets the checkpoint describe itself.
        data: training samples, as a data SPEC or anything that :class:`~genbound.network.problem.Problem` takes.
        test_data: held-out samples, likewise.
        head: what the output head is measured from: ``init`` (default), ``zero``, ``exclude`` or ``seed:N``.
        trust_remote_code: allow transformers to run code that lies in the checkpoint's directory.
        head_weights, ignore, entry: see :func:`~genbound.checkpoints.architecture.build_pair`.
        options: further arguments of :class:`~genbound.network.problem.Problem` (``dtype`` also by name, ``loss`` also as
            ``FILE.py:function``).

    Returns:
        A problem; without a model or data one that only knows the weights.

    Raises:
        GenboundError: one line that says what is wrong, where, and what would mend it.
    """
    beside = read_sidecar(ckpt)
    asked = {"init": init, "head": head, "head_weights": head_weights, "ignore": ignore, "entry": entry}
    chosen = {name: beside.get(name) if value is None else value for name, value in asked.items()}
    data = beside.get("data") if data is None else data
    test_data = beside.get("test_data") if test_data is None else test_data
    for name in ("loss", "num_data", "loss_range", "layers"):
        if name in beside:
            options.setdefault(name, beside[name])
    pair = build_pair(
        ckpt, chosen["init"], model, chosen["head"] or "init", trust_remote_code, chosen["head_weights"] or (),
        chosen["ignore"] or (), chosen["entry"],
    )  # fmt: skip
    return from_pair(pair, data, test_data, trust_remote_code=trust_remote_code, **options)


def from_pair(
    pair: Pair, data: Any = None, test_data: Any = None, *, trust_remote_code: bool = False, **options: Any
) -> Problem | WeightProblem:
    """The problem of a pair that is already loaded."""
    provenance = {
        **pair.provenance, "rule": pair.rule, "head_policy": pair.head_policy, "head_note": pair.head_note,
        "notes": list(pair.notes), "alignment": pair.alignment.lines(),
    }  # fmt: skip
    if pair.model is None or data is None:
        lacks = [flag for flag, missing in (("--model", pair.model is None), ("--data", data is None)) if missing]
        return WeightProblem(
            pair.params, pair.init, f"not measured: give {' and '.join(lacks)}", provenance, pair.factors
        )
    loss = default_loss(pair.model, options.pop("loss", None))
    samples, held_out = _samples(pair, data, test_data, loss, trust_remote_code)
    dtype = options.pop("dtype", None)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise GenboundError(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    return Problem(
        pair.model, pair.init, samples, loss, test_data=held_out, head=pair.head, excluded=pair.excluded, dtype=dtype,
        provenance=provenance, init_buffers=pair.init_buffers, factors=pair.factors, **options,
    )  # fmt: skip


def default_loss(model: Any, loss: Any = None) -> Any:
    """The loss that is asked for; else the one that a transformers model was trained with."""
    if loss is None:
        config = getattr(model, "config", None)
        kind = getattr(config, "problem_type", None)
        head = type(model).__name__.endswith("ForSequenceClassification")
        if kind == "regression" or (kind is None and head and getattr(config, "num_labels", 2) == 1):
            return "squared_error"
        return "multi_label" if kind == "multi_label_classification" else "cross_entropy"
    if isinstance(loss, str) and ":" in loss:
        function = get_user(loss, ".", "loss function")
        file = Path(loss.rpartition(":")[0]).expanduser()
        # The file's digest is part of the name, because stored parts of a measurement are found again by it.
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8] if file.is_file() else ""
        return Loss(f"{loss.rpartition(':')[2]} {digest}".strip(), function)
    return loss


def _samples(pair: Pair, data: Any, test_data: Any, loss: Any, trust: bool) -> tuple[Any, Any]:
    config = getattr(pair.model, "config", None)
    names = getattr(config, "label2id", None)
    reader = Reader(
        tokenizer=_first(pair.tokenizer_dir, load_tokenizer, trust) if isinstance(data, str) else None,
        images=_first(pair.image_dir, load_image_processor, trust) if isinstance(data, str) else None,
        label2id=names,
        numeric=loss in ("squared_error", "multi_label"),
        next_token=type(pair.model).__name__.endswith(("ForCausalLM", "LMHeadModel")),
    )
    samples = load_data(data, reader)
    if test_data is None:
        return samples, None
    return samples, load_data(test_data, dataclasses.replace(reader, label2id=samples.label2id or names))


def _first(folder: Any, loader: Callable, trust: bool) -> Any:
    return None if folder is None else loader(folder, trust)
