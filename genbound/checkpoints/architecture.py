"""Which architecture belongs to a checkpoint: the fine-tuned model and the weights it started from."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.heads import head_names
from genbound.checkpoints.padding_token import name_padding
from genbound.checkpoints.pair import Built, Pair, assemble
from genbound.checkpoints.pair_files import PairFiles, read_pair
from genbound.checkpoints.pair_spec import PairSpec
from genbound.checkpoints.state_file import StateFile
from genbound.checkpoints.vision import LIBRARIES, preset, vision_model
from genbound.checkpoints.weights_only import weights_only
from genbound.errors import GenboundError
from genbound.user_code import call_user, rng_untouched


def build_pair(
    ckpt: str | os.PathLike,
    init: str | os.PathLike | None = None,
    model: Any = None,
    head: str | None = None,
    trust_remote_code: bool = False,
    head_weights: Iterable[str] | str | None = None,
    ignore: Iterable[str] | str | None = None,
    entry: str | None = None,
) -> Pair:
    """Load a fine-tuned checkpoint and its initialisation into one architecture.

    What is not given is as ``genbound.yaml`` beside CKPT says, if there is one.

    Args:
        ckpt: the fine-tuned checkpoint, see :func:`~genbound.checkpoints.state_file.read_state`.
        init: the checkpoint it was fine-tuned from; by default the one that ``genbound.yaml`` or the adapter names.
        model: ``hf[:AutoModelFor…]``, ``timm:NAME``, ``torchvision:NAME``, ``FILE.py:factory``, ``pkg.mod:factory``, a
            callable that returns a module, or a module (it is copied, not changed). A LightningModule class is
            called with the hyper-parameters that the checkpoint keeps.
        head: what an output head counts as at the start: ``init``, INIT's own where it has one of the same
            shape and zero otherwise; ``zero``; ``exclude``, it is no layer; ``seed:N``, what constructing the
            model under ``torch.manual_seed(N)`` gives.
        trust_remote_code: allow code that the checkpoint's own files name: in its directory, or in ``genbound.yaml``.
        head_weights: patterns of the weights that form the head, where they are not found by themselves.
        ignore: patterns of names in the files to leave out.
        entry: which entry of a training checkpoint holds the weights.

    Returns:
        The pair, see :func:`load_pair`.

    Raises:
        GenboundError: a file, the architecture or the fit of the two; the message names the mend.
    """
    return load_pair(PairSpec(ckpt, init, model, head, head_weights, ignore, entry, trust_remote_code).completed())


def load_pair(spec: PairSpec, numbers: bool = True) -> Pair:
    """The pair that is said.

    Without ``numbers`` no weight of a safetensors file is looked at, and an adapter is not merged: the pair has the
    names and shapes of the base, as the merged network has them but for what merging unties, and the base's weights.

    Which architecture: the one that ``spec.model`` names; else that of CKPT's ``adapter_config.json`` or
    ``config.json``; else none, and only the weights are compared. Global random state is as before.

    Raises:
        GenboundError: a file, the architecture or the fit of the two; the message names the mend.
    """
    files = read_pair(spec, numbers)
    with rng_untouched():
        built = _build(files)
        pair = weights_only(files) if built is None else assemble(built, files)
    if pair.model is not None:
        name_padding(pair.model, pair.tokenizer_dir, spec.trust_remote_code)
    return pair


def _build(files: PairFiles) -> Built | None:
    """The model that the pair is measured in; ``None`` where nothing describes one."""
    if files.ckpt.adapter is not None:
        return _from_adapter(files)
    if files.spec.model is not None:
        return _from_spec(files)
    described = files.ckpt.config or {}
    if isinstance(described.get("architecture"), str) and "model_type" not in described:
        name = described["architecture"]
        return _from_library(files, "timm", name, f"config.json: timm {name}", described.get("model_args"))
    return _from_hub_class(files, "", "config.json") if described else None


def _from_spec(files: PairFiles) -> Built:
    """The model that ``--model``, the sidecar or the caller names."""
    spec = files.spec.model
    if isinstance(spec, nn.Module):
        return Built(files.ckpt.tensors, files.init.tensors, "the given module", copy.deepcopy(spec))
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        return _from_factory(files, lambda: _call(spec, name, files.ckpt), f"the given function {name}")
    if not isinstance(spec, str):
        raise GenboundError(f"model {spec!r} is no module, function or string such as nets.py:factory")
    scheme, _, rest = spec.partition(":")
    rule = f"{files.spec.model_origin} {spec}"
    if files.spec.hub_class is not None:
        return _from_hub_class(files, files.spec.hub_class, rule)
    if scheme in LIBRARIES and rest:
        return _from_library(files, scheme, rest, rule)
    if not rest:
        raise GenboundError(
            f"model {spec!r} is not understood: use hf, hf:AutoModelFor…, timm:NAME, torchvision:NAME, "
            "FILE.py:factory or pkg.mod:factory"
        )
    return _from_factory(
        files, lambda: call_user(spec, ".", "model factory", lambda found: _arguments(found, files.ckpt)), rule
    )


def _call(factory: Callable[..., Any], name: str, ckpt: StateFile) -> Any:
    try:
        return factory(**_arguments(factory, ckpt))
    except GenboundError:
        raise
    except Exception as error:
        raise GenboundError(f"model factory {name} raised {type(error).__name__}: {error}") from error


def _arguments(factory: Any, ckpt: StateFile) -> dict[str, Any]:
    """What a LightningModule class was constructed with, as far as the checkpoint keeps it as plain data."""
    if not isinstance(factory, type) or not hasattr(factory, "load_from_checkpoint"):
        return {}
    known = inspect.signature(factory).parameters
    return {name: value for name, value in ckpt.hyper_parameters.items() if name in known}


def _from_factory(files: PairFiles, factory: Callable[[], Any], rule: str) -> Built:
    model = factory()
    if not isinstance(model, nn.Module):
        raise GenboundError(f"{rule} returns {type(model).__name__}; a model factory must return a torch.nn.Module")
    return Built(files.ckpt.tensors, files.init.tensors, rule, model, factory)


def _from_library(
    files: PairFiles, library: str, name: str, rule: str, arguments: Mapping[str, Any] | None = None
) -> Built:
    model, build = vision_model(library, name, files.ckpt.tensors, arguments)
    written = [(side.config or {}).get("pretrained_cfg") for side in (files.ckpt, files.init)]
    said = next((settings for settings in written if isinstance(settings, dict) and settings), None)
    settings = preset(library, name) if said is None else said
    return Built(files.ckpt.tensors, files.init.tensors, rule, model, build, image_settings=settings)


def _from_hub_class(files: PairFiles, auto: str, rule: str) -> Built:
    described = next((side for side in (files.ckpt, files.init) if side.config is not None), files.ckpt)
    try:
        hub = huggingface.resolve_class(described.directory, auto, files.spec.trust_remote_code, described.tensors)
        model, state, unused = huggingface.load_finetuned(hub, files.ckpt.tensors, head_names)
        # Through the *fine-tuned* class: INIT's own has another head, or no prefix.
        start = huggingface.tied_as(hub, files.init.config)
        _, init_state, init_unused = huggingface.load_through(start, files.init.tensors)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        # A config of odd values breaks transformers in as many ways as it has lines.
        raise GenboundError(
            f"{str(described.directory / 'config.json')!r} cannot be used ({type(error).__name__}: {error}); "
            "restore the original"
        ) from error
    return Built(state, init_state, f"{rule}: {hub.choice}", model, hub.build, (unused, init_unused))


def _from_adapter(files: PairFiles) -> Built:
    """The base with the adapter merged in; a transformers base unless another model is named."""
    from genbound.checkpoints import adapters

    auto = files.spec.hub_class
    if auto is not None:
        hub = adapters.base_class(files, auto)
        base, start, unused = huggingface.load_through(hub, files.init.tensors)
        plain = Built(files.ckpt.tensors, start, hub.choice, base, hub.build, ((), unused))
    else:
        plain = _from_spec(files)
        adapters.fill_base(plain.model, files.init)
    if not files.numbers:
        kind = (files.ckpt.adapter or {}).get("peft_type")
        rule = f"adapter_config.json: {kind} adapter, not merged; on {plain.rule}"
        return dataclasses.replace(plain, ckpt=plain.model.state_dict(), rule=rule)
    merged = adapters.merge(plain.model, files.ckpt)
    rule = f"adapter_config.json: {merged.what}; on {plain.rule}"
    state = merged.model.state_dict()
    start = adapters.under_all_names(plain.model, plain.init) if merged.untied else dict(plain.init)
    return Built(state, start, rule, merged.model, plain.rebuild, plain.unused, merged.factors)
