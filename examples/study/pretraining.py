"""Networks that the study pretrains itself, for want of pretrained weights: small ones, on the data at hand.

A ResNet-20, a ResNet-50 and a vision transformer learn the CIFAR-10 classes 0-4; a RoBERTa predicts masked tokens and a
GPT-2 the next one of the training texts of SST-2 and MRPC. Nothing of a measurement or test set is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sources
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from genbound.network.forward import scores

TOKENS = 2000  # of the vocabulary
LENGTH = 64  # tokens of a text, at most
WIDTH = 96  # of the transformers
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # in RoBERTa's order
MASKED = 0.15  # of the tokens
SHAPE = {"num_hidden_layers": 4, "num_attention_heads": 3, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
TEXTS = (("sst2", ("sentence",)), ("mrpc", ("sentence1", "sentence2")))


def classes_0_4(
    model: nn.Module, epochs: int, lr: float, size: int, precision: torch.dtype, pixels: int = 32
) -> nn.Module:
    """Train on the 5,000 images of the classes 0-4: AdamW, one cycle of the learning rate, mirrored images."""
    images = sources.Images(pixels, first=0)
    samples = images.samples("train", torch.arange(len(images.labels("train"))).numpy(), Path())
    generator = torch.Generator().manual_seed(0)

    def losses() -> Iterator[Tensor]:
        for chosen in torch.randperm(len(samples), generator=generator).split(size):
            batch = samples.batch(chosen.tolist())
            mirrored = torch.rand(len(chosen), generator=generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], batch.inputs.flip(-1), batch.inputs)
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                outputs = scores(model(x))
            yield cross_entropy(outputs.float(), batch.targets)

    return _minimised(model, losses, epochs, lr, -(-len(samples) // size))


def _minimised(model: nn.Module, losses: Callable, epochs: int, lr: float, steps: int) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    for _ in range(epochs):
        for loss in losses():
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def vision_transformer(folder: Path) -> None:
    """A ViT of 4 layers and 8×8 patches of 4 pixels, a directory as transformers reads it."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch_size=4, num_labels=5, **SHAPE)
    model = classes_0_4(ViTForImageClassification(config), 8, 1e-3, 64, torch.bfloat16)
    model.vit.save_pretrained(folder)  # without the head
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written["architectures"] = [type(model).__name__]  # what it is fine-tuned as
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")


def roberta(folder: Path) -> None:
    """A RoBERTa of 4 layers, by masked tokens."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    tokenizer = _tokenizer(folder)
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=TOKENS, max_position_embeddings=LENGTH + 2, type_vocab_size=1, **SHAPE)
    model = RobertaForMaskedLM(config)
    _language(model, tokenizer, _masked)
    model.roberta.save_pretrained(folder)


def gpt2(folder: Path) -> None:
    """A GPT-2 of 4 layers, by next tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _tokenizer(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=TOKENS, n_positions=LENGTH, n_embd=WIDTH, n_layer=4, n_head=3, bos_token_id=0, eos_token_id=2,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    _language(model, tokenizer, _causal)
    model.transformer.save_pretrained(folder)


def _texts() -> list[str]:
    """The training texts, each once."""
    found = []
    for name, columns in TEXTS:
        source = sources.Texts(name, *columns)
        found += [row[column] for row in source.rows("train") for column in columns]
    return list(dict.fromkeys(found))


def _tokenizer(folder: Path) -> Any:
    """Byte pairs of the training texts; written into the folder."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    learned = ByteLevelBPETokenizer(lowercase=True)
    learned.train_from_iterator(_texts(), vocab_size=TOKENS, special_tokens=SPECIAL, show_progress=False)
    learned.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    bos, pad, eos, unknown, mask = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, bos_token=bos, pad_token=pad, eos_token=eos, unk_token=unknown,
        mask_token=mask, cls_token=bos, sep_token=eos, model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return tokenizer


def _language(model: nn.Module, tokenizer: Any, objective: Callable[[Tensor, Tensor], tuple], epochs: int = 3) -> None:
    """Train on texts of like length, 64 at a time."""
    rows = sorted(tokenizer(_texts(), truncation=True)["input_ids"], key=len)
    runs = [rows[i : i + 64] for i in range(0, len(rows), 64)]
    generator = torch.Generator().manual_seed(0)

    def losses() -> Iterator[Tensor]:
        for number in torch.randperm(len(runs), generator=generator).tolist():
            tokens = nn.utils.rnn.pad_sequence(
                [torch.tensor(row) for row in runs[number]], batch_first=True, padding_value=tokenizer.pad_token_id
            )
            given, wanted = objective(tokens, torch.rand(tokens.shape, generator=generator))
            with torch.autocast("cpu", torch.bfloat16):
                outputs = scores(model(given, attention_mask=(tokens != tokenizer.pad_token_id).long()))
            yield cross_entropy(outputs.float().flatten(0, 1), wanted.flatten())

    _minimised(model, losses, epochs, 1e-3, len(runs))


def _masked(tokens: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """What is put in and what is to be found: a share of the tokens is masked, only these count."""
    chosen = (drawn < MASKED) & (tokens >= len(SPECIAL))
    chosen[:, 1] |= ~chosen.any(1)  # one at least
    return tokens.masked_fill(chosen, SPECIAL.index("<mask>")), tokens.masked_fill(~chosen, -100)


def _causal(tokens: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """The next token of each; none of the padding."""
    after = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], SPECIAL.index("<pad>"))], 1)
    return tokens, after.masked_fill(after == SPECIAL.index("<pad>"), -100)
