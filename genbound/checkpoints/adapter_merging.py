"""Weights in place of an adapter of PEFT: the network that they make is the one that the adapter made.

PEFT merges an adapter into the weight of its module, also where another module has the same weight (the output layer
of a language model and its token embedding), and some variants of LoRA move weights by more than their two factors.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.errors import GenboundError


@torch.no_grad()
def merge_attached(model: Any) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]], tuple[str, ...]]:
    """The merged network of a PEFT model in float32, which is used up.

    Returns:
        The network in evaluation mode; the factors ``[rows, rank]`` and ``[rank, columns]`` of the displacements that
        are their product, by the weight's name; and the weights that are tied no more, because the adapter changes
        them in one of their uses alone.

    Raises:
        GenboundError: the merged network computes something else.
    """
    model.eval()
    copies = _untie(model)
    factors = factors_of(model)
    base = model.get_base_model()
    start = {name: base.get_submodule(name.removesuffix(".weight")).weight.detach() for name in factors}
    said = _answer(base)
    _unwrap_heads(base)
    with huggingface.quiet():
        # Safely, LoRA merges each weight in a copy of its own, and the base's stays what it was.
        plain = all(str(getattr(config.peft_type, "value", "")) == "LORA" for config in model.peft_config.values())
        merged = model.merge_and_unload(safe_merge=plain).eval()
    untied = _tie_again(merged, copies)
    if (
        said is not None
        and (now := _answer(merged)) is not None
        and (off := float((now - said).abs().max())) > 1e-3 * float(said.abs().max())
    ):
        raise GenboundError(
            "merged into the weights, the adapter makes another network than beside them (an output is off by "
            f"{off:.2g}): this version of peft merges it wrongly; update peft, or give the merged model"
        )
    weights = dict(merged.named_parameters())
    kept = [name for name, two in factors.items() if name in weights and _is_product(two, start[name], weights[name])]
    return merged, {name: factors[name] for name in kept}, untied


def _unwrap_heads(model: nn.Module) -> None:
    """Put heads of several layers that were trained in full in place: PEFT does so only beside LoRA."""
    from peft.utils import ModulesToSaveWrapper

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ModulesToSaveWrapper) and child.active_adapters and not hasattr(child, "weight"):
                setattr(parent, name, child.modules_to_save[child.active_adapters[0]])


def factors_of(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The two factors of each displacement that plain LoRA makes, by the name of its weight in the base model."""
    found = {}
    for path, module in model.named_modules():
        if not (hasattr(module, "lora_A") and isinstance(getattr(module, "weight", None), Tensor)):
            continue
        for adapter in module.lora_A:
            if not isinstance(module.lora_A[adapter], nn.Module) or adapter in module.lora_variant:
                continue  # AdaLoRA has a third factor, and variants (DoRA, KaSA) more than a product
            a, b = module.lora_A[adapter].weight.detach(), module.lora_B[adapter].weight.detach()
            if a.ndim != 2 or b.ndim != 2 or getattr(module.lora_B[adapter], "bias", None) is not None:
                continue  # convolutions and biased factors are measured from their dense difference
            left, right = module.scaling[adapter] * b, a
            if getattr(module, "fan_in_fan_out", False):  # GPT-2 keeps its weights transposed
                left, right = right.T, left.T
            found[f"{path.removeprefix('base_model.model.')}.weight"] = (left.clone(), right.clone())
    return found


def _is_product(factors: tuple[Tensor, Tensor], start: Tensor, end: Tensor) -> bool:
    """Whether the weight ``[rows, columns]`` moved by the product of the factors, but for the rounding of the sum."""
    left, right = factors
    if end.shape != (len(left), right.shape[1]):
        return False
    product = left @ right
    allowed = 1e-4 * float(product.abs().max()) + 1e-6 * float(end.abs().max())
    return bool((end - start - product).abs().max() <= allowed)


def _untie(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give adapted modules weights of their own where other modules have the same ones.

    Returns:
        For each such weight the module that has the copy now, its name there, and the weight that is shared.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    uses: dict[int, set[tuple[int, int]]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owner = path.rpartition(".")[0]
        place = id(modules[owner.rpartition(".")[0]]), id(modules[owner])  # one module may be had by two others
        uses.setdefault(id(parameter), set()).add(place)
    copies = []
    for module in list(model.modules()):
        base = getattr(module, "base_layer", None)
        if not isinstance(base, nn.Module):
            continue
        shared = {name: p for name, p in base._parameters.items() if p is not None and len(uses[id(p)]) > 1}
        if shared:
            own = copy.deepcopy(base)
            module.base_layer = own
            copies += [(own, name, parameter) for name, parameter in shared.items()]
    return copies


def _tie_again(merged: nn.Module, copies: list[tuple[nn.Module, str, nn.Parameter]]) -> tuple[str, ...]:
    """Tie the copies that are what they were, and those that an adapter has changed alike; the names of the others."""
    names = {id(module): path for path, module in merged.named_modules()}
    changed: dict[int, list[nn.Parameter]] = {}
    for module, name, shared in copies:
        now = module._parameters[name]
        assert now is not None
        found = changed.setdefault(id(shared), [])
        alike = [p for p in found if bool((p - now).abs().max() <= 1e-6 * now.abs().max())]
        if torch.equal(now, shared):
            module._parameters[name] = shared
        elif alike:
            module._parameters[name] = alike[0]
        else:
            found.append(now)
    left = {id(parameter) for parameter in merged.parameters()}
    apart = {key for key, found in changed.items() if len(found) + (key in left) > 1}
    return tuple(
        f"{names[id(module)]}.{name}"
        for module, name, shared in copies
        if id(shared) in apart and module._parameters[name] is not shared
    )


def _answer(network: Any) -> Tensor | None:
    """The first output of a transformers model for the few tokens that come with its class; ``None`` for others."""
    try:
        size = network.config.get_text_config().vocab_size
        tokens = {name: value % size for name, value in network.dummy_inputs.items()}
        with huggingface.quiet():
            found = network(**tokens)[0]
        return found if bool(found.isfinite().all()) else None
    except Exception:  # a network of the user's, or one that reads images or sound
        return None
