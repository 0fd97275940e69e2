r"""Adapters of PEFT: merged into the base model, with the displacement of LoRA layers kept as its two factors.

A LoRA layer computes :math:`Wx + s\,BAx`: what is measured is the network with the merged weight
:math:`W + s\,BA`, and :math:`v = s\,BA` is exact where subtracting the merged weight from the base would round it away.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.names import strip_prefixes
from genbound.checkpoints.state_file import StateFile
from genbound.errors import GenboundError

TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
# They change the base's own weights when they start, so that the adapter alone does not say what was learned.
REBASED = ("pissa", "olora", "corda", "loftq")

Factors = Mapping[str, tuple[Tensor, Tensor]]


def import_peft() -> Any:
    """peft, or one line on how to get it."""
    try:
        import peft
    except Exception as error:
        raise GenboundError(f"a PEFT adapter needs peft ({error}): pip install genbound[peft]") from error
    return peft


def base_class(adapter: StateFile, init: StateFile, auto: str, trust: bool) -> tuple[type[nn.Module], Any, str]:
    """The transformers class that the adapter was trained in, with its head's number of classes."""
    content = adapter.adapter or {}
    task, mapping = content.get("task_type"), content.get("auto_mapping") or {}
    auto = auto or TASKS.get(task) or (mapping.get("base_model_class", "") if isinstance(mapping, dict) else "")
    if init.config is None:
        raise GenboundError(
            f"the adapter's base model {str(init.path)!r} has no config.json; give its Hugging Face directory as INIT, or "
            "--model FILE.py:factory"
        )
    cls, config, choice = huggingface.resolve_class(init.directory, auto, trust)
    heads = [t for name, t in adapter.tensors.items() if ".lora_" not in name and t.ndim == 2]
    if heads and task in ("SEQ_CLS", "TOKEN_CLS") and config.num_labels != len(heads[-1]):
        config.num_labels = len(heads[-1])
    return cls, config, choice


def merge(base: nn.Module, adapter: StateFile) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]], str]:
    """Merge an adapter into a copy of its base model.

    Args:
        base: with the base's weights.
        adapter: what ``save_pretrained`` of a PEFT model wrote.

    Returns:
        The merged model, the two factors of each LoRA layer's displacement by the weight's name, and what was merged.

    Raises:
        GenboundError: the adapter does not fit the base, or is of a kind that has no merged weights.
    """
    peft = import_peft()
    kind = str((adapter.adapter or {}).get("peft_type"))
    if kind not in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
        raise GenboundError(
            f"{str(adapter.path)!r}: peft {peft.__version__} knows no adapter of type {kind!r}; update peft"
        )
    fields = {field.name for field in dataclasses.fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    given = {name: value for name, value in adapter.adapter.items() if name in fields}
    start = given.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REBASED):
        raise GenboundError(
            f"{str(adapter.path)!r} was initialised with {start!r}, which changes the base's own weights; convert it on saving: "
            "save_pretrained(DIR, path_initial_model_for_weight_conversion=...)"
        )
    given["inference_mode"] = True
    try:
        with huggingface.quiet():
            config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**given)
            if config.is_prompt_learning or config.is_adaption_prompt:
                raise GenboundError(
                    f"{str(adapter.path)!r} is a {kind} adapter: it learns prompts and leaves every weight where it was, so "
                    "there is no distance to measure"
                )
            # The base is copied in full precision: merging into half precision would round the displacement.
            model = peft.get_peft_model(copy.deepcopy(base).float(), config)
            report = peft.set_peft_model_state_dict(model, dict(adapter.tensors))
    except GenboundError:
        raise
    except Exception as error:
        raise GenboundError(
            f"the adapter {str(adapter.path)!r} does not fit the base model: {(str(error).splitlines() or [''])[0]}; is INIT its "
            "base, and --model the class it was trained in?"
        ) from error
    missing = [name for name in report.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing or report.unexpected_keys:
        what = (
            f"lacks {missing[0]}"
            if missing
            else f"has {report.unexpected_keys[0]}, which the base model has no place for"
        )
        raise GenboundError(f"the adapter {str(adapter.path)!r} {what}; is INIT its base, and --model the right class?")
    factors = _factors(model)
    try:
        with huggingface.quiet():
            merged = model.merge_and_unload()
    except Exception as error:
        raise GenboundError(
            f"adapters of type {kind} cannot be merged into weights: {error}; merge the model yourself"
        ) from error
    return (
        merged.eval(),
        factors,
        f"{kind} adapter, merged in float32; {len(factors)} displacements kept as two factors",
    )


def _factors(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for path, module in model.named_modules():
        if (
            not hasattr(module, "lora_A")
            or not hasattr(module, "base_layer")
            or any(getattr(module, "use_dora", {}).values())
        ):
            continue
        for adapter in module.lora_A:
            if not isinstance(module.lora_A[adapter], nn.Module):
                continue  # AdaLoRA has a third factor
            a, b = module.lora_A[adapter].weight.detach(), module.lora_B[adapter].weight.detach()
            if a.ndim != 2 or b.ndim != 2 or getattr(module.lora_B[adapter], "bias", None) is not None:
                continue  # convolutions and biased factors are measured from their dense difference
            left, right = module.scaling[adapter] * b, a
            if getattr(module, "fan_in_fan_out", False):  # GPT-2 keeps its weights transposed
                left, right = right.T, left.T
            found[f"{path.removeprefix('base_model.model.')}.weight"] = (left.clone(), right.clone())
    return found


@torch.no_grad()
def fill_base(model: nn.Module, init: StateFile) -> None:
    """Put INIT's weights into a model from a factory; what it lacks keeps its place for the adapter to fill."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, name in strip_prefixes(init.tensors, named).items():
        if named[name].shape == init.tensors[key].shape:
            named[name].copy_(init.tensors[key])
