"""Which architecture belongs to a checkpoint: the fine-tuned model and the weights it started from."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.heads import head_names
from genbound.checkpoints.pair import Built, Pair, assemble, weights_only
from genbound.checkpoints.sidecar import SIDECAR, read_sidecar
from genbound.checkpoints.state_file import StateFile, read_state
from genbound.errors import GenboundError
from genbound.user_code import call_user, rng_untouched


def build_pair(
    ckpt: str | os.PathLike,
    init: str | os.PathLike | None = None,
    model: Any = None,
    head: str = "init",
    trust_remote_code: bool = False,
    head_weights: Iterable[str] | str = (),
    ignore: Iterable[str] | str = (),
    entry: str | None = None,
) -> Pair:
    """Load a fine-tuned checkpoint and its initialisation into one architecture.

    Which architecture: the one that ``model`` names; else that of ``genbound.yaml`` (key ``model``) beside
    CKPT; else that of CKPT's ``adapter_config.json`` or ``config.json``; else none, and only the weights are compared.

    Args:
        ckpt: the fine-tuned checkpoint, see :func:`~genbound.checkpoints.state_file.read_state`.
        init: the checkpoint it was fine-tuned from; by default the one that ``genbound.yaml`` or the adapter names.
        model: ``hf[:AutoModelFor…]``, ``timm:NAME``, ``torchvision:NAME``, ``FILE.py:factory``, ``pkg.mod:factory``, a
            callable that returns a module, or a module (it is copied, not changed). A LightningModule class is
            called with the hyper-parameters that the checkpoint keeps.
        head: what an output head counts as at the start: ``init``, INIT's own where it has one of the same
            shape and zero otherwise; ``zero``; ``exclude``, it is no layer; ``seed:N``, what constructing the
            model under ``torch.manual_seed(N)`` gives.
        trust_remote_code: allow transformers to run code that lies in the checkpoint's directory.
        head_weights: patterns of the weights that form the head, where they are not found by themselves.
        ignore: patterns of names in the files to leave out.
        entry: which entry of a training checkpoint holds the weights.

    Returns:
        The pair. Global random state is as before.

    Raises:
        GenboundError: a file, the architecture or the fit of the two; the message names the mend.
    """
    if not re.fullmatch(r"init|zero|exclude|seed:\d{1,18}", head):
        raise GenboundError(f"head policy {head!r} is not understood: use init, zero, exclude or seed:N")
    head_weights, ignore = _patterns(head_weights), _patterns(ignore)
    tuned = read_state(ckpt, entry, ignore)
    start = read_state(_find_init(tuned) if init is None else init, entry, ignore)
    if start.adapter is not None:
        raise GenboundError(
            f"INIT {str(start.path)!r} is a PEFT adapter; give the base model it was trained on, which is where its weights start"
        )
    with rng_untouched():
        built = _choose(tuned, start, model, trust_remote_code)
        if built is None:
            return weights_only(tuned, start, head, head_weights)
        pair = assemble(built, tuned, start, head, head_weights)
    huggingface.name_padding(pair.model, pair.tokenizer_dir, trust_remote_code)
    return pair


def _patterns(value: Iterable[str] | str) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value or ()
    return tuple(part.strip() for part in parts if part.strip())


def _find_init(ckpt: StateFile) -> str:
    """INIT where the checkpoint itself knows it."""
    named = read_sidecar(ckpt.path).get("init")
    if named is not None:
        return named
    base = (ckpt.adapter or {}).get("base_model_name_or_path")
    if isinstance(base, str) and base:
        for path in (base, os.path.join(ckpt.directory, base)):
            if os.path.exists(path):
                return path
        raise GenboundError(
            f"the adapter names its base {base!r}, which is not on this machine; download it (hf download {base} --local-dir DIR) "
            "and give DIR as INIT"
        )
    raise GenboundError(
        "INIT is not given and nothing beside CKPT names it; give the weights that training started from"
    )


def _choose(ckpt: StateFile, init: StateFile, model: Any, trust: bool) -> Built | None:
    origin = "--model"
    if model is None:
        model, origin = read_sidecar(ckpt.path).get("model"), SIDECAR
    if ckpt.adapter is not None:
        return _from_adapter(ckpt, init, model, trust)
    if model is not None:
        return _from_spec(model, ckpt, init, origin, trust)
    described = ckpt.config or {}
    if isinstance(described.get("architecture"), str) and "model_type" not in described:
        arguments = described.get("model_args")
        name = described["architecture"]
        return _from_library("timm", name, ckpt, init, f"config.json: timm {name}", arguments)
    if described:
        return _from_hub_class(ckpt, init, "", "config.json", trust)
    return None


def _from_spec(spec: Any, ckpt: StateFile, init: StateFile, origin: str, trust: bool) -> Built:
    if isinstance(spec, nn.Module):
        return Built(copy.deepcopy(spec), ckpt.tensors, init.tensors, "the given module", None)
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        return _from_factory(lambda: _call(spec, name, ckpt), ckpt, init, f"the given function {name}")
    if not isinstance(spec, str):
        raise GenboundError(f"model {spec!r} is no module, function or string such as nets.py:factory")
    scheme, _, rest = spec.partition(":")
    if scheme == "hf":
        return _from_hub_class(ckpt, init, rest, f"{origin} {spec}", trust)
    if scheme in ("timm", "torchvision") and rest:
        return _from_library(scheme, rest, ckpt, init, f"{origin} {spec}")
    if not rest:
        raise GenboundError(
            f"model {spec!r} is not understood: use hf, hf:AutoModelFor…, timm:NAME, torchvision:NAME, FILE.py:factory or "
            "pkg.mod:factory"
        )
    make = lambda: call_user(spec, ".", "model factory", lambda found: _arguments(found, ckpt))  # noqa: E731
    return _from_factory(make, ckpt, init, f"{origin} {spec}")


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
    import inspect

    known = inspect.signature(factory).parameters
    return {name: value for name, value in ckpt.hyper_parameters.items() if name in known}


def _from_factory(factory: Callable[[], Any], ckpt: StateFile, init: StateFile, rule: str) -> Built:
    model = factory()
    if not isinstance(model, nn.Module):
        raise GenboundError(f"{rule} returns {type(model).__name__}; a model factory must return a torch.nn.Module")
    return Built(model, ckpt.tensors, init.tensors, rule, factory)


def _from_library(
    library: str, name: str, ckpt: StateFile, init: StateFile, rule: str, arguments: Mapping[str, Any] | None = None
) -> Built:
    from genbound.checkpoints.vision import vision_model

    model, build = vision_model(library, name, ckpt.tensors, arguments)
    return Built(model, ckpt.tensors, init.tensors, rule, build)


def _from_hub_class(ckpt: StateFile, init: StateFile, auto: str, rule: str, trust: bool) -> Built:
    described = next((side for side in (ckpt, init) if side.config is not None), ckpt)
    try:
        cls, config, choice = huggingface.resolve_class(described.directory, auto, trust)
        model, state, unused = huggingface.load_finetuned(cls, config, ckpt.tensors, head_names)
        # Through the *fine-tuned* class: INIT's own has another head, or no prefix.
        _, init_state, init_unused = huggingface.load_through(cls, config, init.tensors)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        # A config of odd values breaks transformers in as many ways as it has lines.
        raise GenboundError(
            f"{str(described.directory / 'config.json')!r} cannot be used ({type(error).__name__}: {error}); restore the original"
        ) from error
    return Built(model, state, init_state, f"{rule}: {choice}", lambda: cls(config), (unused, init_unused))


def _from_adapter(ckpt: StateFile, init: StateFile, spec: Any, trust: bool) -> Built:
    """The base with the adapter merged in; a transformers base unless ``spec`` says otherwise."""
    from genbound.checkpoints import adapters

    if spec is None or (isinstance(spec, str) and spec.partition(":")[0] == "hf"):
        auto = spec.partition(":")[2] if isinstance(spec, str) else ""
        cls, config, choice = adapters.base_class(ckpt, init, auto, trust)
        base, start, unused = huggingface.load_through(cls, config, init.tensors)
        build = lambda: cls(config)  # noqa: E731
    else:
        plain = _from_spec(spec, ckpt, init, "--model", trust)
        base, start, unused, choice, build = plain.model, init.tensors, (), plain.rule, plain.rebuild
        adapters.fill_base(base, init)
    model, factors, what = adapters.merge(base, ckpt)
    rule = f"adapter_config.json: {what}; on {choice}"
    return Built(model, model.state_dict(), start, rule, build, ((), unused), factors)
