"""Which token pads a model's texts: the model and what reads its data must mean the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from genbound.checkpoints.huggingface import load_tokenizer


def name_padding(model: nn.Module, folder: Path | None, trust_remote_code: bool = False) -> None:
    """Tell a causal classifier which token pads: it reads the last token before the padding.

    GPT-2 and its like have none and refuse batches.
    """
    config = getattr(model, "config", None)
    if config is None or getattr(config, "pad_token_id", 0) is not None:
        return
    token = padding_token(config, None if folder is None else load_tokenizer(folder, trust_remote_code))
    if token is not None:
        config.pad_token_id = token


def padding_token(config: Any, tokenizer: Any) -> int | None:
    """What inputs are padded with: the model's own token for it, else the tokenizer's, else an end of text.

    ``None`` where neither names one that the model has.
    """
    named = [
        (config, "pad_token_id"),
        (tokenizer, "pad_token_id"),
        (tokenizer, "eos_token_id"),
        (config, "eos_token_id"),
    ]
    tokens = [token for owner, name in named if isinstance(token := getattr(owner, name, None), int)]
    size = getattr(config, "vocab_size", None)
    return next((token for token in tokens if 0 <= token and (not isinstance(size, int) or token < size)), None)
