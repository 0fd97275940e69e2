r"""Adapters of PEFT: merged into the base model, with the displacement of LoRA layers kept as its two factors.

A LoRA layer computes :math:`Wx + s\,BAx`: what is measured is the network with the merged weight
:math:`W + s\,BA`, and :math:`v = s\,BA` is exact where subtracting the merged weight from the base would round it away.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.adapter_merging import merge_attached
from genbound.checkpoints.alignment import Signature
from genbound.checkpoints.config_limits import check_config, check_patterns
from genbound.checkpoints.heads import head_names
from genbound.checkpoints.huggingface import HubClass
from genbound.checkpoints.names import strip_prefixes
from genbound.checkpoints.pair_files import PairFiles
from genbound.checkpoints.state_file import StateFile
from genbound.checkpoints.weight_files import ADAPTER_CONFIG
from genbound.errors import GenboundError, first_line
from genbound.optional import import_optional

TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
# They import a module by name, read other files, or copy layers any number of times.
FOREIGN = ("megatron_config", "adapters", "layer_replication", "tokenizer_kwargs", "arrow_config")
# They change the base's own weights when they start, so that the adapter alone does not say what was learned.
REBASED = ("pissa", "olora", "corda", "loftq")
# Which rows they change is clustered anew from singular vectors of the base, and turns on the last digits of those.
UNSAID = ("ADAMSS",)


def base_class(files: PairFiles, auto: str = "") -> HubClass:
    """The transformers class that the adapter was trained in, with its head's number of classes.

    Args:
        files: the adapter as CKPT and its base model as INIT.
        auto: ``AutoModelFor…`` or a class name; by default what the adapter says that it is for.
    """
    adapter, init = files.ckpt, files.init
    content = adapter.adapter or {}
    task, mapping = content.get("task_type"), content.get("auto_mapping") or {}
    auto = auto or TASKS.get(str(task)) or (mapping.get("base_model_class", "") if isinstance(mapping, dict) else "")
    if init.config is None:
        raise GenboundError(
            f"the adapter's base model {str(init.path)!r} has no config.json; give its Hugging Face "
            "directory as INIT, or --model FILE.py:factory"
        )
    hub = huggingface.resolve_class(init.directory, auto, files.spec.trust_remote_code, init.tensors)
    rows = {len(tensor) for tensor in _other_heads(hub, adapter, init)}
    if hub.cls.__name__.endswith("Classification") and len(rows) == 1:
        hub.config.num_labels = rows.pop()
    return hub


def _other_heads(hub: HubClass, adapter: StateFile, init: StateFile) -> list[Tensor]:
    """What the adapter's file has for the output head in other shapes than the config says."""
    skeleton = huggingface.skeleton(hub, init.tensors)
    head, named = set(head_names(skeleton)), dict(skeleton.named_parameters())
    plain = {
        key.removeprefix("base_model.model.").replace("modules_to_save.", ""): tensor
        for key, tensor in adapter.tensors.items()
    }
    return [tensor for name, tensor in plain.items() if name in head and tensor.shape != named[name].shape]


@dataclass(frozen=True)
class Merged:
    """A base model with its adapter merged in.

    Attributes:
        model: the merged network, in float32.
        factors: the two factors ``[rows, rank]`` and ``[rank, columns]`` of each LoRA layer's displacement, by the
            weight's name; their product is the displacement.
        what: a sentence that says what was merged.
        untied: the weights that are tied in the base and here no more.
    """

    model: nn.Module
    factors: dict[str, tuple[Tensor, Tensor]]
    what: str
    untied: tuple[str, ...] = ()


def merge(base: nn.Module, adapter: StateFile) -> Merged:
    """Merge an adapter into a copy of its base model.

    Args:
        base: with the base's weights.
        adapter: what ``save_pretrained`` of a PEFT model wrote.

    Raises:
        GenboundError: the adapter does not fit the base, or is of a kind that has no merged weights.
    """
    model, kind = _attached(base, adapter)
    try:
        network, factors, untied = merge_attached(model)
    except GenboundError:
        raise
    except Exception as error:
        raise GenboundError(
            f"adapters of type {kind} cannot be merged into weights: {error}; merge the model yourself"
        ) from error
    what = f"{kind} adapter, merged in float32; {len(factors)} displacements kept as two factors"
    if untied:
        what += f"; {', '.join(untied)} untied, because the adapter changes it in one of its uses"
    return Merged(network, factors, what, untied)


def _attached(base: nn.Module, adapter: StateFile) -> tuple[Any, str]:
    """A copy of the base with the adapter beside its weights, and the kind of adapter."""
    peft = import_optional("peft", "a PEFT adapter needs peft", "genbound[peft]")
    kind = str((adapter.adapter or {}).get("peft_type"))
    arguments = _arguments(peft, adapter, kind)
    _check(arguments, base, adapter)
    try:
        with huggingface.quiet():
            config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**arguments)
            if config.is_prompt_learning or config.is_adaption_prompt:
                raise GenboundError(
                    f"{str(adapter.path)!r} is a {kind} adapter: it learns prompts and leaves every "
                    "weight where it was, so there is no distance to measure"
                )
            model: Any = peft.get_peft_model(_in_full_precision(base, kind), config)
            report = peft.set_peft_model_state_dict(model, _once(adapter.tensors))
    except GenboundError:
        raise
    except Exception as error:
        raise GenboundError(
            f"the adapter {str(adapter.path)!r} does not fit the base model: {first_line(error)}; is INIT its "
            "base, and --model the class it was trained in?"
        ) from error
    _refuse_unfilled(report, adapter)
    if arguments.get("bias") not in (None, "none"):
        _refuse_lost_biases(model, adapter, arguments["bias"])
    return model, kind


def _once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without copies: with ``bias="all"`` PEFT writes a module's bias under two names, and reads one."""
    plain = {name: name.replace(".modules_to_save.", ".") for name in tensors}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if plain[name] == name or plain[name] not in tensors or not torch.equal(tensors[plain[name]], tensor)
    }


def _in_full_precision(base: nn.Module, kind: str) -> nn.Module:
    """A copy of the base in float32, because merging into half precision would round the displacement.

    LoRA writes into biases and into copies of whole modules alone. So weights that are in float32 already are shared
    with the base, which may be mapped into memory: a large model is there once.
    """
    if kind != "LORA":
        return copy.deepcopy(base).float()
    shared = {
        id(p): nn.Parameter(p.detach(), requires_grad=False)
        for p in base.parameters()
        if p.dim() >= 2 and p.dtype == torch.float32
    }
    return copy.deepcopy(base, shared).float()


def _arguments(peft: Any, adapter: StateFile, kind: str) -> dict[str, Any]:
    """The adapter's config as arguments of this version of PEFT, which may know fewer fields."""
    if kind not in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
        raise GenboundError(
            f"{str(adapter.path)!r}: peft {peft.__version__} knows no adapter of type {kind!r}; update peft"
        )
    if kind in UNSAID:
        raise GenboundError(
            f"{str(adapter.path)!r} is a {kind} adapter, whose file does not say which rows of a weight it changes; "
            "merge it where it was trained, and give the merged model"
        )
    fields = {field.name for field in dataclasses.fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    given = {name: value for name, value in (adapter.adapter or {}).items() if name in fields}
    start = given.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REBASED):
        raise GenboundError(
            f"{str(adapter.path)!r} was initialised with {start!r}, which changes the base's own weights; "
            "convert it on saving: save_pretrained(DIR, path_initial_model_for_weight_conversion=...)"
        )
    return {**given, "inference_mode": True}


def _check(arguments: Mapping[str, Any], base: nn.Module, adapter: StateFile) -> None:
    """Refuse what would run code or take a size that the adapter's tensors do not have."""
    file = adapter.directory / ADAPTER_CONFIG
    for name in FOREIGN:
        if arguments.get(name):
            raise GenboundError(f"{str(file)!r} has {name}, which brings other code in; merge the model yourself")
    check_config(arguments, adapter.tensors, file)
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(arguments.get(name) or {}, dict):
            raise GenboundError(f"{str(file)!r} has no names with numbers in {name}; restore it from the original")
    for name in ("rank_pattern", "alpha_pattern"):  # their keys are patterns: the numbers stand under those
        ranks = arguments.get(name)
        check_config({"r": list(ranks.values()) if isinstance(ranks, dict) else []}, adapter.tensors, file)
    names = [name for name, _ in base.named_modules()]
    found = [
        arguments.get(name) for name in ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")
    ]
    lists = [value for value in found if isinstance(value, list)]
    patterns = [value for value in [*found, *(item for each in lists for item in each)] if isinstance(value, str)]
    keys = [key for name in ("rank_pattern", "alpha_pattern") for key in (arguments.get(name) or {})]
    check_patterns([*patterns, *keys], names, file)


def _refuse_unfilled(report: Any, adapter: StateFile) -> None:
    """Refuse an adapter with other names than the model has a place for, or without some of them."""
    missing = [name for name in report.missing_keys if "lora_" in name or "modules_to_save" in name]
    if not missing and not report.unexpected_keys:
        return
    what = (
        f"lacks {missing[0]}" if missing else f"has {report.unexpected_keys[0]}, which the base model has no place for"
    )
    raise GenboundError(f"the adapter {str(adapter.path)!r} {what}; is INIT its base, and --model the right class?")


def _refuse_lost_biases(model: nn.Module, adapter: StateFile, said: str) -> None:
    """Refuse an adapter whose biases were trained and are not in its file, as versions of PEFT before 0.21 left it."""
    for path, module in model.named_modules():
        if getattr(getattr(module, "base_layer", None), "bias", None) is None:
            continue
        if not {f"{path}.base_layer.bias", f"{path}.bias"} & set(adapter.tensors):
            raise GenboundError(
                f"the adapter {str(adapter.path)!r} was trained with bias={said!r}, and its file has no bias of "
                f"{path.removeprefix('base_model.model.')}: older versions of PEFT lose them on saving; save it again "
                "from the training run with a newer PEFT, or give the merged model"
            )


@torch.no_grad()
def fill_base(model: nn.Module, init: StateFile) -> None:
    """Put INIT's weights into a model from a factory; what it lacks keeps its place for the adapter to fill."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, name in strip_prefixes(init.tensors, named).items():
        if named[name].shape == init.tensors[key].shape:
            named[name].copy_(init.tensors[key])


def under_all_names(base: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """INIT's tensors by the base's names, tied ones by each of theirs: untied, each of them starts there."""
    signature = Signature.of(base)
    names = strip_prefixes(tensors, [*signature.params, *signature.aliases, *signature.buffers], signature.prefix)
    found = {names.get(key, key): tensor for key, tensor in tensors.items()}
    for alias, name in signature.aliases.items():
        for one, other in ((alias, name), (name, alias)):
            if one in found:
                found.setdefault(other, found[one])
    return found
