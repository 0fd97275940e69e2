"""From files to a problem: two checkpoints, a model and data, in one call."""

from __future__ import annotations

import os
from typing import Any

import torch

from genbound.data import load_data
from genbound.errors import GenboundError
from genbound.models import Pair, build_pair
from genbound.problem import Problem
from genbound.weights import WeightProblem

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def load(
    ckpt: str | os.PathLike,
    init: str | os.PathLike,
    model: Any = None,
    data: Any = None,
    test_data: Any = None,
    head: str = "init",
    **options: Any,
) -> Problem | WeightProblem:
    """Load a fine-tuned checkpoint, the weights it started from, and the data to measure them on.

    Args:
        ckpt: fine-tuned checkpoint: a Hugging Face directory, or a file of tensors.
        init: the pretrained weights, likewise.
        model: ``hf[:AutoModelFor…]``, ``FILE.py:factory``, ``pkg.mod:factory``, a factory or a module; ``None`` lets the
            checkpoint describe itself.
        data: training samples, as a data SPEC or anything that :class:`~genbound.problem.Problem` takes.
        test_data: held-out samples, likewise.
        head: what the output head is measured from: ``init``, ``zero``, ``exclude`` or ``seed:N``.
        options: further arguments of :class:`~genbound.problem.Problem` (``dtype`` also by name).

    Returns:
        A problem; without a model or data one that only knows the weights.

    Raises:
        GenboundError: one line that says what is wrong, where, and what would mend it.
    """
    return from_pair(build_pair(ckpt, init, model, head), data, test_data, **options)


def from_pair(pair: Pair, data: Any = None, test_data: Any = None, **options: Any) -> Problem | WeightProblem:
    """The problem of a pair that is already loaded."""
    provenance = {**pair.provenance, "rule": pair.rule, "head_policy": pair.head_policy, "head_note": pair.head_note}
    if pair.model is None or data is None:
        lacks = [flag for flag, missing in (("--model", pair.model is None), ("--data", data is None)) if missing]
        return WeightProblem(pair.params, pair.init, f"not measured: give {' and '.join(lacks)}", provenance)
    tokenizer = _tokenizer(pair) if isinstance(data, str) else None
    label2id = getattr(getattr(pair.model, "config", None), "label2id", None)
    samples = load_data(data, tokenizer, label2id=label2id)
    held_out = None if test_data is None else load_data(test_data, tokenizer, label2id=samples.label2id or label2id)
    dtype = options.pop("dtype", None)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise GenboundError(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    return Problem(
        pair.model, pair.init, samples, test_data=held_out, head=pair.head, excluded=pair.excluded, dtype=dtype,
        provenance=provenance, init_buffers=pair.init_buffers, **options,
    )  # fmt: skip


def _tokenizer(pair: Pair) -> Any:
    if pair.tokenizer_dir is None:
        return None
    from genbound.huggingface import load_tokenizer

    return load_tokenizer(pair.tokenizer_dir)
