"""From files to a problem: two checkpoints, a model and data, in one call."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genbound.checkpoints.architecture import load_pair
from genbound.checkpoints.heads import by_name, head_names
from genbound.checkpoints.huggingface import load_image_processor, load_tokenizer, predicts_next_token
from genbound.checkpoints.padding_token import padding_token
from genbound.checkpoints.pair import Pair
from genbound.checkpoints.pair_spec import PairSpec
from genbound.data import Reader, load_data
from genbound.data.images import ImageSamples
from genbound.data.run_folder import Relabelled
from genbound.data.sample_numbers import read_numbers
from genbound.data.samples import Samples
from genbound.data.texts import TextSamples
from genbound.errors import GenboundError
from genbound.network.device_map import check_device_map
from genbound.network.loss_functions import Loss
from genbound.network.problem import Problem
from genbound.network.weights import WeightProblem
from genbound.structure.scoring import scoring_of
from genbound.user_code import get_user

ENOUGH = 1.25  # up to so many times the samples that are asked for, all are measured: a part of them saves little
LOOKED_AT = 1024  # held-out texts that are tokenised before anything is measured, to tell how many are cut
PRIOR_SETTINGS = {"prior", "prior_samples", "prior_choices"}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class EvaluationSpec(PairSpec):
    """What is said about two checkpoints and the samples and the loss to measure them with; ``None`` is left open.

    Attributes:
        data: training samples, as a data SPEC or anything that :class:`~genbound.network.problem.Problem` takes.
        test_data: held-out samples, likewise.
        loss, num_data, loss_range, layers: as for :class:`~genbound.network.problem.Problem`; ``loss`` also as
            ``FILE.py:function``.
        confusion: file of the label confusion matrix.
        prior: checkpoint that certificates are centred at in place of INIT.
        prior_samples: the training samples that it saw: their places in the data, or a file of them.
        prior_choices: from how many priors it was chosen after the others had been seen; 1 unless something is said.
        unlabelled: inputs that training never saw, like ``data``.
        prior_unused: ``genbound.yaml`` names a prior that is not heeded, for something else was said of it or the data.
    """

    data: Any = None
    test_data: Any = None
    loss: Any = None
    num_data: int | None = None
    loss_range: str | None = None
    layers: str | Iterable[str] | None = None
    confusion: str | None = None
    prior: str | os.PathLike | None = None
    prior_samples: str | os.PathLike | Iterable[int] | None = None
    prior_choices: int | None = None
    unlabelled: Any = None
    prior_unused: bool = False

    def completed(self) -> EvaluationSpec:
        """As of any pair; a prior is heeded with its samples and the data that they are counted in, or not at all."""
        said = super().completed()
        beside = said.beside
        if said.prior_is_beside or not beside & PRIOR_SETTINGS:
            return said
        own = replace(said, beside=beside - PRIOR_SETTINGS, prior_unused=True)
        own = replace(own, prior=None) if "prior" in beside else own
        own = replace(own, prior_choices=None) if "prior_choices" in beside else own
        return replace(own, prior_samples=None) if "prior_samples" in beside else own

    @property
    def prior_is_beside(self) -> bool:
        """Prior, samples and data are all as ``genbound.yaml`` says."""
        return {"prior", "prior_samples", "data"} <= self.beside


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
    loss: Any = None,
    num_data: int | None = None,
    loss_range: str | None = None,
    layers: str | Iterable[str] | None = None,
    prior: str | os.PathLike | None = None,
    prior_samples: str | os.PathLike | Iterable[int] | None = None,
    prior_choices: int | None = None,
    unlabelled: Any = None,
    **options: Any,
) -> Problem | WeightProblem:
    """Load a fine-tuned checkpoint, the weights it started from, and the data to measure them on.

    What is not given is as ``genbound.yaml`` beside the checkpoint says, if there is one (:func:`genbound.save_spec`).

    Args:
        ckpt: fine-tuned checkpoint: a directory of Hugging Face or PEFT, or a file of tensors.
        init: the pretrained weights, likewise.
        model: ``hf[:AutoModelFor…]``, ``timm:NAME``, ``torchvision:NAME``, ``FILE.py:factory``, ``pkg.mod:factory``, a
            factory or a module; ``None`` lets the checkpoint describe itself.
        data: training samples, as a data SPEC or anything that :class:`~genbound.network.problem.Problem` takes.
        test_data: held-out samples, likewise.
        head: what the output head is measured from: ``init`` (default), ``zero``, ``exclude`` or ``seed:N``.
        trust_remote_code: allow code that the checkpoint's own files name: in its directory, or in ``genbound.yaml``.
        head_weights, ignore, entry: see :func:`~genbound.checkpoints.architecture.build_pair`.
        loss: as for :class:`~genbound.network.problem.Problem`, and as ``FILE.py:function``; by default what the model
            was trained with.
        num_data, loss_range, layers: see :class:`~genbound.network.problem.Problem`.
        prior, prior_samples: a checkpoint that certificates are centred at in place of ``init``, and the training
            samples that it saw (places in the data, or a file of them).
        prior_choices: from how many priors it was chosen after the others had been seen; certificates pay for it.
        unlabelled: inputs that training never saw, like ``data``; their labels are not looked at.
        options: its further arguments (``dtype`` also by name).

    Returns:
        A problem; without a model or data one that only knows the weights.

    Raises:
        GenboundError: one line that says what is wrong, where, and what would mend it.
    """
    spec = EvaluationSpec(
        ckpt, init, model, head, head_weights, ignore, entry, trust_remote_code, data=data, test_data=test_data,
        loss=loss, num_data=num_data, loss_range=loss_range, layers=layers, prior=prior, prior_samples=prior_samples,
        prior_choices=prior_choices, unlabelled=unlabelled,
    ).completed()  # fmt: skip
    return problem_of(load_pair(spec), spec, **options)


def problem_of(pair: Pair, spec: EvaluationSpec, *, dtype: Any = None, **options: Any) -> Problem | WeightProblem:
    """The problem of a pair that is already loaded.

    Args:
        pair: the weights, and the architecture if there is one.
        spec: what is said about samples and loss.
        dtype: of the measurement, also by name; by default the checkpoint's.
        options: further arguments of :class:`~genbound.network.problem.Problem`. All samples are measured where there
            are hardly more than ``num_samples``.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise GenboundError(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    provenance = {
        **pair.provenance, "rule": pair.rule, "head_policy": pair.head_policy, "head_note": pair.head_note,
        "notes": list(pair.notes), "alignment": pair.alignment.lines(),
    }  # fmt: skip
    if pair.model is None or spec.data is None:
        lacking = [flag for flag, given in (("--model", pair.model), ("--data", spec.data)) if given is None]
        if pair.model is not None:
            check_device_map(pair.model, options.get("device_map"))
        reason = f"not measured: give {' and '.join(lacking)}"
        left_out = (*pair.excluded, *(_tables(pair.model) if pair.model is not None and not spec.layers else ()))
        weights = WeightProblem(pair.params, pair.init, reason, provenance, pair.factors, spec.layers, left_out)
        weights.remarks += pair.remarks
        return weights
    loss, (samples, held_out, unlabelled) = loss_and_samples(pair, pair.model, spec)
    if (wanted := options.get("num_samples")) is not None and len(samples) <= ENOUGH * wanted:
        options["num_samples"] = None
    said = {name: getattr(spec, name) for name in ("num_data", "loss_range", "layers")} | _prior(spec, samples)
    problem = Problem(
        pair.model, pair.init, samples, loss, test_data=held_out, head=pair.head, excluded=pair.excluded, dtype=dtype,
        provenance=provenance, init_buffers=pair.init_buffers, factors=pair.factors, unlabelled=unlabelled,
        copy_weights=False,  # the pair is read from files, often mapped into memory, and is nobody else's
        **{name: value for name, value in said.items() if value is not None}, **options,
    )  # fmt: skip
    if not spec.head_weights:
        problem.head = _head_of_scores(pair, pair.model, problem)
    cut = (*_cut(samples, problem.indices, "{} measured"), *_cut(held_out, range(LOOKED_AT), "first {} held-out"))
    about = (*_about_labels(samples), *_about_images(pair, samples))
    problem.remarks += (*pair.remarks, *about, *cut, *_about_prior(spec))
    return problem


def _head_of_scores(pair: Pair, model: nn.Module, problem: Problem) -> tuple[str, ...]:
    """The head as a pass of a sample says; where numbers depend on another one that its name made it, that is refused.

    Raises:
        GenboundError: what counts as the head at the start is not what gives the scores.
    """
    if by_name(model)[0] is not None:
        return pair.head
    inputs = problem.batch([0]).inputs
    try:
        scoring = scoring_of(problem.params, inputs, lambda: problem.forward(problem.params, inputs))
        found = head_names(model, scoring=scoring)
    except torch.OutOfMemoryError:
        raise
    except (GenboundError, RuntimeError):  # nothing that a pass of this kind can tell
        return pair.head
    wrong = set(pair.alignment.new_head) - set(found) if pair.head_policy == "init" else {*pair.head} ^ {*found}
    if wrong:
        raise GenboundError(
            f"{', '.join(pair.head) or 'nothing'} was taken for the head, and the scores come from "
            f"{', '.join(found) or 'none that is one'}: say with --head-weights which weights are the head"
        )
    return found


def _tables(model: nn.Module) -> list[str]:
    """Weights that embeddings alone have: without samples no pass says what they are used for."""
    others = {id(p) for m in model.modules() if not isinstance(m, nn.Embedding) for p in m._parameters.values()}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} - others
    return [name for name, p in model.named_parameters() if id(p) in tables]


def loss_and_samples(
    pair: Pair, model: nn.Module, spec: EvaluationSpec
) -> tuple[Any, tuple[Samples, Samples | None, Samples | None]]:
    """The loss, as :class:`~genbound.network.problem.Problem` takes it, and training, held-out and unlabelled samples.

    Args:
        pair: with its tokenizer and image settings.
        model: of the pair.
        spec: what is said about samples and loss.
    """
    loss = default_loss(model, spec.loss)
    read = _samples(pair, model, spec, loss)
    if loss == "squared_error" and spec.loss is None and _says_nothing(model) and _are_binary(read[0]):
        loss = "cross_entropy"
    return loss, read


def _about_labels(samples: Samples) -> tuple[str, ...]:
    """What a reader must know of labels that the run itself has flipped."""
    rate = samples.noise_rate if isinstance(samples, Relabelled) else 0.0
    if not rate:
        return ()
    return (
        f"{rate:.1%} of the labels were flipped for the training: the training error is that of the labels as they are "
        "now, and so is what the training set certifies",
    )


def _about_images(pair: Pair, samples: Samples) -> tuple[str, ...]:
    """What a reader must know of images that are prepared by timm's or torchvision's settings."""
    said = pair.image_settings
    if pair.image_dir is not None or not said or not isinstance(samples, ImageSamples):
        return ()
    size, mean, std = (said.get(name) for name in ("input_size", "mean", "std"))
    return (
        f"images are prepared as the model's settings say (input_size {size}, mean {mean}, std {std}), unless size=, "
        "mean= or std= behind the data say otherwise",
    )


def _cut(samples: Samples | None, indices: Iterable[int], which: str) -> tuple[str, ...]:
    """What a reader must know of texts that are longer than what is read of them."""
    if not isinstance(samples, TextSamples):
        return ()
    indices = [i for i in indices if i < len(samples)]
    num = samples.num_cut(indices)
    said = f"{num} of the {which.format(len(indices))} texts are cut to {samples.max_length} tokens"
    return (f"{said} (max_length= behind the data says how many are read)",) if num else ()


def _says_nothing(model: Any) -> bool:
    """A transformers config that leaves the loss open: one that trained with transformers' own says which it was."""
    return getattr(getattr(model, "config", None), "problem_type", None) is None


def _are_binary(samples: Samples) -> bool:
    """Whether the first labels are 0 or 1; the loss refuses others that come later."""
    first = range(min(len(samples), 256))
    return all(set(batch.targets.flatten().tolist()) <= {0, 1} for batch in samples.batches(first, len(first)))


def _about_prior(spec: EvaluationSpec) -> tuple[str, ...]:
    """Who says what the prior saw, where the user does not."""
    if spec.prior_is_beside:
        return ("certificates are centred at the prior that genbound.yaml beside the checkpoint names",)
    if spec.prior_unused:
        return (
            "the prior that genbound.yaml names is not used: it goes with the samples and the data that stand there",
        )
    return ()


def _prior(spec: EvaluationSpec, samples: Samples) -> dict[str, Any]:
    """The centre of certificates as arguments of a problem: the prior's weights, read as the fine-tuned ones are."""
    if spec.prior is None:
        if spec.prior_samples is not None:
            raise GenboundError("--prior-samples without --prior: name the checkpoint that saw them")
        return {}
    read = {field.name: getattr(spec, field.name) for field in fields(PairSpec)}
    pair = load_pair(PairSpec(**(read | {"ckpt": spec.prior})))
    seen = spec.prior_samples
    if isinstance(seen, str | os.PathLike):
        seen = read_numbers(seen, samples)
    buffers = {} if pair.model is None else dict(pair.model.named_buffers())
    return {
        "prior": {**pair.params, **buffers}, "prior_samples": seen, "prior_factors": pair.factors,
        "prior_choices": spec.prior_choices,
    }  # fmt: skip


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


def _samples(
    pair: Pair, model: nn.Module, spec: EvaluationSpec, loss: Any
) -> tuple[Samples, Samples | None, Samples | None]:
    """Training, held-out and unlabelled samples, read with the checkpoint's tokenizer, image settings and classes."""
    tokenizer = images = None
    if isinstance(spec.data, str):
        tokenizer = None if pair.tokenizer_dir is None else load_tokenizer(pair.tokenizer_dir, spec.trust_remote_code)
        images = None if pair.image_dir is None else load_image_processor(pair.image_dir, spec.trust_remote_code)
    names = getattr(getattr(model, "config", None), "label2id", None)
    reader = Reader(
        tokenizer,
        images,
        None if images is not None else pair.image_settings,
        names,
        numeric=loss in ("squared_error", "multi_label"),
        next_token=predicts_next_token(model),
        trust_remote_code=spec.trust_remote_code,
        padding=padding_token(getattr(model, "config", None), tokenizer),
    )
    samples = load_data(spec.data, reader)
    reader = replace(reader, label2id=samples.label2id or names)
    if isinstance(spec.data, str) and spec.data.startswith("run:"):  # which has read all its images so
        reader = replace(reader, images=None, image_settings=None)
    any_label = replace(reader, label2id=None, labelled=False)
    held_out = None if spec.test_data is None else load_data(spec.test_data, reader)
    unlabelled = None if spec.unlabelled is None else load_data(spec.unlabelled, any_label)
    return samples, held_out, unlabelled
