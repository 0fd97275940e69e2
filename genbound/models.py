"""Which architecture belongs to a checkpoint: the fine-tuned model and the weights it started from."""

import copy
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genbound import huggingface
from genbound.alignment import OPTIONAL, STATISTICS, Alignment, Signature, align, strip_prefixes
from genbound.checkpoint import StateFile, read_state
from genbound.errors import GenboundError
from genbound.user_code import call_user, rng_untouched

SIDECAR = "genbound.yaml"
# "cls" and "heads" are what the masked models of transformers and the ViT of torchvision call theirs.
HEAD_NAMES = frozenset(
    "classifier head heads head_dist fc score lm_head qa_outputs pred_head output classification_head cls "
    "logits linear_head predictor".split()
)
PLANNED = {
    "timm": "write a factory: def model(): return timm.create_model(NAME, num_classes=K)",
    "torchvision": "write a factory: def model(): return torchvision.models.NAME(num_classes=K)",
    "peft": "merge the adapter with merge_and_unload() and save the result",
    "lightning": "write a factory that returns the plain module",
}


@dataclass
class Pair:
    """A fine-tuned network and the weights it started from.

    Attributes:
        model: the network in evaluation mode with the fine-tuned weights; ``None`` for a bare state dict, of
            which only weights can be measured.
        params: the fine-tuned weights, by the names of ``named_parameters()``. They share
            memory with ``model``.
        init: the pretrained weights under the same names, all of them.
        init_buffers: INIT's buffers, those it has.
        head: parameters of the output head.
        head_policy: ``init``, ``zero``, ``exclude`` or ``seed:N``.
        head_note: what was done about the head, empty where INIT's own is used.
        rule: which rule chose the architecture.
        alignment: which names of the files were used, and which not.
        tokenizer_dir: directory with a tokenizer, of CKPT or else of INIT.
        provenance: path and SHA-256 of both files.
    """

    model: nn.Module | None
    params: dict[str, Tensor]
    init: dict[str, Tensor]
    init_buffers: dict[str, Tensor]
    head: tuple[str, ...]
    head_policy: str
    head_note: str
    rule: str
    alignment: Alignment
    tokenizer_dir: Path | None
    provenance: dict[str, dict[str, str]]

    @property
    def excluded(self) -> tuple[str, ...]:
        """Parameters to leave out of the layers."""
        return self.head if self.head_policy == "exclude" else ()


@dataclass
class _Built:
    """A model with both files' tensors under names that it understands."""

    model: nn.Module
    ckpt: Mapping[str, Tensor]
    init: Mapping[str, Tensor]
    rule: str
    rebuild: Callable[[], nn.Module] | None
    unused: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def build_pair(
    ckpt: str | os.PathLike,
    init: str | os.PathLike,
    model: Any = None,
    head: str = "init",
    trust_remote_code: bool = False,
) -> Pair:
    """Load a fine-tuned checkpoint and its initialisation into one architecture.

    Which architecture: the one that ``model`` names; else that of ``genbound.yaml`` (key ``model``) beside
    CKPT; else that of CKPT's ``config.json``; else none, and only the weights are compared.

    Args:
        ckpt: the fine-tuned checkpoint, see :func:`~genbound.checkpoint.read_state`.
        init: the checkpoint it was fine-tuned from.
        model: ``hf[:AutoModelFor…]``, ``FILE.py:factory``, ``pkg.mod:factory``, a callable that returns a
            module, or a module (it is copied, not changed).
        head: what an output head counts as at the start: ``init``, INIT's own where it has one of the same
            shape and zero otherwise; ``zero``; ``exclude``, it is no layer; ``seed:N``, what constructing the
            model under ``torch.manual_seed(N)`` gives.
        trust_remote_code: allow transformers to run code that lies in the checkpoint's directory.

    Returns:
        The pair. Global random state is as before.

    Raises:
        GenboundError: a file, the architecture or the fit of the two; the message names the mend.
    """
    if not re.fullmatch(r"init|zero|exclude|seed:\d{1,18}", head):
        raise GenboundError(f"head policy {head!r} is not understood: use init, zero, exclude or seed:N")
    files = read_state(ckpt), read_state(init)
    with rng_untouched():
        built = _choose(files[0], files[1], model, trust_remote_code)
        pair = _weights_only(*files, head) if built is None else _assemble(built, *files, head)
    if built is not None:
        huggingface.name_padding(pair.model, pair.tokenizer_dir, trust_remote_code)
    return pair


def _choose(ckpt: StateFile, init: StateFile, model: Any, trust: bool) -> _Built | None:
    if model is not None:
        return _from_spec(model, ckpt, init, ".", "--model", trust)
    sidecar = ckpt.directory / SIDECAR
    if (spec := _sidecar_model(sidecar)) is not None:
        return _from_spec(spec, ckpt, init, sidecar.parent, SIDECAR, trust)
    if ckpt.config is not None:
        return _from_hub_class(ckpt, init, "", "config.json", trust)
    return None


def _sidecar_model(file: Path) -> str | None:
    if not file.is_file():
        return None
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GenboundError(f"{str(file)!r} is no valid YAML: {error}") from error
    spec = content.get("model") if isinstance(content, dict) else None
    if spec is not None and not isinstance(spec, str):
        raise GenboundError(f"{str(file)!r}: model: must be a string such as nets.py:factory, not {spec!r}")
    return spec


def _from_spec(spec: Any, ckpt: StateFile, init: StateFile, base: Any, origin: str, trust: bool) -> _Built:
    if isinstance(spec, nn.Module):
        return _Built(copy.deepcopy(spec), ckpt.tensors, init.tensors, "the given module", None)
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        return _from_factory(lambda: _call(spec, name), ckpt, init, f"the given function {name}")
    if not isinstance(spec, str):
        raise GenboundError(f"model {spec!r} is no module, function or string such as nets.py:factory")
    scheme, _, rest = spec.partition(":")
    if scheme == "hf":
        return _from_hub_class(ckpt, init, rest, f"{origin} {spec}", trust)
    if scheme in PLANNED:
        raise GenboundError(
            f"model {spec!r}: {scheme} is planned but not there yet; {PLANNED[scheme]}, and say FILE.py:model"
        )
    if not rest:
        raise GenboundError(
            f"model {spec!r} is not understood: use hf, hf:AutoModelFor…, FILE.py:factory or pkg.mod:factory"
        )
    return _from_factory(lambda: call_user(spec, base, "model factory"), ckpt, init, f"{origin} {spec}")


def _call(factory: Callable[[], Any], name: str) -> Any:
    try:
        return factory()
    except GenboundError:
        raise
    except Exception as error:
        raise GenboundError(f"model factory {name} raised {type(error).__name__}: {error}") from error


def _from_factory(factory: Callable[[], Any], ckpt: StateFile, init: StateFile, rule: str) -> _Built:
    model = factory()
    if not isinstance(model, nn.Module):
        raise GenboundError(f"{rule} returns {type(model).__name__}; a model factory must return a torch.nn.Module")
    return _Built(model, ckpt.tensors, init.tensors, rule, factory)


def _from_hub_class(ckpt: StateFile, init: StateFile, auto: str, rule: str, trust: bool) -> _Built:
    described = next((side for side in (ckpt, init) if side.config is not None), ckpt)
    cls, config, choice = huggingface.resolve_class(described.directory, auto, trust)
    model, state, unused = huggingface.load_finetuned(cls, config, ckpt.tensors, head_names)
    # Through the *fine-tuned* class: INIT's own has another head, or no prefix.
    _, init_state, init_unused = huggingface.load_through(cls, config, init.tensors)
    return _Built(model, state, init_state, f"{rule}: {choice}", lambda: cls(config), (unused, init_unused))


def _assemble(built: _Built, ckpt: StateFile, init: StateFile, policy: str) -> Pair:
    model = built.model.eval()
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise GenboundError(f"{built.rule}: the model has lazy modules without shapes; run it once in the factory")
    head = head_names(model)
    alignment = align(Signature.of(model), built.ckpt, built.init, head, policy)
    _fill(model, alignment, built.ckpt)
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    fresh = _seeded_head(built, policy) if policy.startswith("seed:") else {}
    start = {}
    for name, value in params.items():
        if name in alignment.matched:
            start[name] = built.init[alignment.init[name]]
        else:
            start[name] = fresh.get(name, torch.zeros_like(value)).to(value)
    buffers = {name: key for name, key in alignment.init.items() if name not in params}
    if any(built.unused):
        alignment = dataclasses.replace(alignment, unused_ckpt=built.unused[0], unused_init=built.unused[1])
    return Pair(
        model=model,
        params=params,
        init=start,
        init_buffers={name: built.init[key] for name, key in buffers.items()},
        head=head,
        head_policy=policy,
        head_note=_head_note(alignment.new_head, policy),
        rule=built.rule,
        alignment=alignment,
        tokenizer_dir=huggingface.tokenizer_folder(ckpt.directory, init.directory),
        provenance={"checkpoint": ckpt.provenance, "init": init.provenance},
    )


@torch.no_grad()
def _fill(model: nn.Module, alignment: Alignment, tensors: Mapping[str, Tensor]) -> None:
    """Put the file's tensors in, in their own precision; ties stay ties because no parameter is replaced."""
    for name, parameter in model.named_parameters():
        parameter.data = tensors[alignment.ckpt[name]].to(parameter.device)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in alignment.ckpt}
    for name, buffer in buffers.items():
        if buffer.shape == tensors[alignment.ckpt[name]].shape:
            buffer.copy_(tensors[alignment.ckpt[name]])


def _seeded_head(built: _Built, policy: str) -> dict[str, Tensor]:
    if built.rebuild is None:
        raise GenboundError(f"--head {policy} has to construct the model again: give a factory instead of a module")
    torch.manual_seed(int(policy.removeprefix("seed:")))  # inside rng_untouched
    return {name: parameter.detach() for name, parameter in built.rebuild().named_parameters()}


def _head_note(new: tuple[str, ...], policy: str) -> str:
    names = ", ".join(new)
    if policy == "exclude":
        return "head left out of the layers"
    if not new:
        return ""
    if policy == "init":
        return f"head counts as zero at the start, INIT has none of its shape: {names}"
    what = "zero" if policy == "zero" else f"the draw of seed {policy.removeprefix('seed:')}"
    return f"head counts as {what} at the start: {names}"


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Parameters of the output head.

    For a transformers model those outside the base model; else those of a child with a usual name; else those
    of the module that holds the last weight with two dimensions or more.
    """
    found = huggingface.head_parameters(model)
    if found is not None:
        return found
    path, inner = "", model
    while len(children := dict(inner.named_children())) == 1 and not inner._parameters:
        ((name, inner),) = children.items()  # a wrapper around one network
        path += f"{name}."
    names = [name for name, _ in model.named_parameters()]
    usual = [child for child in children if child in HEAD_NAMES]
    if usual:
        return tuple(name for name in names if name.startswith(tuple(f"{path}{child}." for child in usual)))
    weights = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    if not weights:
        return ()
    owner = weights[-1].rpartition(".")[0]
    return tuple(name for name in names if name.rpartition(".")[0] == owner)


def _weights_only(ckpt: StateFile, init: StateFile, policy: str) -> Pair:
    """Without an architecture: the tensors of both files, each once, whatever depends on data left out."""
    if policy.startswith("seed:"):
        raise GenboundError(f"--head {policy} has to construct the model: add --model FILE.py:factory")
    seen: dict[tuple, str] = {}
    shapes, buffers, aliases = {}, {}, {}
    for name, tensor in ckpt.tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if not tensor.is_floating_point() or name.rpartition(".")[2] in (*STATISTICS, *OPTIONAL):
            buffers[name] = tuple(tensor.shape)
        elif tensor.numel() and seen.setdefault(place, name) != name:
            aliases[name] = seen[place]  # torch.save keeps ties
        else:
            shapes[name] = tuple(tensor.shape)
    signature = Signature(shapes, buffers, aliases)
    head = _named_head(shapes) or _only_new_module(shapes, init.tensors)
    alignment = align(signature, ckpt.tensors, init.tensors, head, policy)
    extra = [name for name in alignment.unused_init if init.tensors[name].is_floating_point()]
    extra = [name for name in extra if not _named_head([name]) and name.rpartition(".")[2] not in OPTIONAL]
    if len({name.rpartition(".")[0] for name in extra}) > 1:
        shown = ", ".join(extra[:3])
        raise GenboundError(
            f"INIT is of another architecture: CKPT lacks {len(extra)} of its weights ({shown}, …); "
            "is INIT the checkpoint that CKPT was fine-tuned from? If CKPT leaves them out on purpose, "
            "add --model"
        )
    params = {name: ckpt.tensors[name] for name in shapes}
    start = {
        name: init.tensors[alignment.init[name]] if name in alignment.matched else torch.zeros_like(value)
        for name, value in params.items()
    }
    return Pair(
        model=None,
        params=params,
        init=start,
        init_buffers={name: init.tensors[alignment.init[name]] for name in buffers if name in alignment.init},
        head=head,
        head_policy=policy,
        head_note=_head_note(alignment.new_head, policy),
        rule="a bare state dict: weights only; add --model FILE.py:factory to measure on data",
        alignment=alignment,
        tokenizer_dir=None,
        provenance={"checkpoint": ckpt.provenance, "init": init.provenance},
    )


def _named_head(names) -> tuple[str, ...]:
    """Names whose first part, wrappers aside, is that of a head."""
    return tuple(
        name for name in names if re.sub(r"^((module|_orig_mod|model)\.)+", "", name).split(".")[0] in HEAD_NAMES
    )


def _only_new_module(shapes: Mapping[str, tuple[int, ...]], init: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The one module that INIT does not have, or has in another shape: in a file the order tells nothing."""
    known = {name: key for key, name in strip_prefixes(init, shapes).items()}
    new = [name for name, shape in shapes.items() if name not in known or tuple(init[known[name]].shape) != shape]
    owners = {name.rpartition(".")[0] for name in new}
    if len(owners) != 1 or len(new) == len(shapes):
        return ()
    owner = owners.pop()
    return tuple(name for name in shapes if name.rpartition(".")[0] == owner)
