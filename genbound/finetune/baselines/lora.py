"""LoRA through PEFT, for networks of any kind."""

from __future__ import annotations

import re

from torch import nn

from genbound.checkpoints.names import is_adapter, plain_name
from genbound.errors import GenboundError
from genbound.optional import import_optional


def add_adapters(model: nn.Module, head: tuple[str, ...], rank: int) -> nn.Module:
    """Give every linear layer and convolution outside the head a LoRA adapter; the head is trained in full.

    Args:
        model: the network.
        head: parameters of its head.
        rank: of the adapters; their scaling is 1 (alpha = rank).

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """
    peft = import_optional("peft", "--lora needs PEFT", "'genbound[finetune]'")
    kinds = (nn.Linear, nn.Conv2d)
    modules = {name: module for name, module in model.named_modules() if name and f"{name}.weight" not in head}
    # PEFT wants the rank to be a multiple of the groups, so depthwise convolutions stay frozen.
    targets = [name for name, m in modules.items() if isinstance(m, kinds) and getattr(m, "groups", 1) == 1]
    if not targets:
        raise GenboundError("--lora: the model has no linear layer or convolution outside its head")
    # PEFT takes the names of a list for endings, and `fc` is that of `block.fc`, too; a text it matches as a whole. It
    # knows the modules to train in full by the ends of their names alone, so that the head is set free here.
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, targets)))
    try:
        adapted = peft.get_peft_model(model, config)
    except TypeError as error:  # it builds the factors from the layer's own class
        raise GenboundError(
            f"--lora: PEFT cannot adapt a layer of a class of its own ({error}); "
            "let its constructor take the arguments of nn.Conv2d"
        ) from error
    for name, parameter in adapted.named_parameters():
        if plain_name(name) in head and not is_adapter(name):
            parameter.requires_grad_(True)
    return adapted
