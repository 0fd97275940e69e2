"""Whether a change of the code changed a number: every number of a few evaluations, bit for bit.

    python tools/same_numbers.py record before.json
    … change the code …
    python tools/same_numbers.py record after.json
    python tools/same_numbers.py compare before.json after.json

Measured are the demo, a transformer, a network with batch norm and residual branches, and a bare state dict, with every
quantity and bound. Only names that users rely on are used, so that it runs on any version. Times, memory and the
digests of stored parts are left out. The numbers are those of one machine and one version of torch: nothing is kept in
the repository.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import genbound

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "demo"


def demo():
    """The demo's pair of checkpoints, on 96 of its training samples."""
    return genbound.load(
        DEMO / "finetuned.safetensors", DEMO / "pretrained.safetensors", f"{DEMO / 'model.py'}:build",
        f"{DEMO / 'data.py'}:train", f"{DEMO / 'data.py'}:test", num_samples=96,
    )  # fmt: skip


def moved(model):
    """The weights before a training that moved each by a tenth."""
    generator = torch.Generator().manual_seed(1)
    return {n: p.detach() + 0.03 * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}


def transformer():
    """A BERT of two layers for three classes, on batches of unequal length."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, max_position_embeddings=12, **sizes))
    for p in model.parameters():
        p.data.mul_(4)
    batches = []
    for length, num in ((9, 8), (6, 5)):
        ids = torch.randint(1, 40, (num, length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(0, 3, (num,))}
        batches.append(inputs)
    return genbound.Problem(model, moved(model), batches, test_data=batches[1:])


class Residual(nn.Module):
    """A convolution, a residual branch of another, a max-pool and a linear head; input ``[N, 2, H, W]``."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        """Scores ``[N, 3]``."""
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(x + F.relu(self.inner(x)), 3, stride=2, padding=1)
        return self.head(x.mean((2, 3)))


def residual():
    """The residual network with batch norm, on batches of which the last is short."""
    torch.manual_seed(0)
    model = Residual()
    model.norm.running_var.uniform_(0.5, 2)
    return genbound.Problem(model, moved(model), (torch.randn(11, 2, 6, 6), torch.randint(0, 3, (11,))), batch_size=4)


def weights_only():
    """The demo's two state dicts, without a network or samples."""
    return genbound.load(DEMO / "finetuned.safetensors", DEMO / "pretrained.safetensors")


CASES = {"demo": demo, "transformer": transformer, "residual": residual, "weights_only": weights_only}


def record(names=tuple(CASES)):
    """Case -> what its evaluation found."""
    found = {}
    for name in names:
        print(f"measuring {name}", file=sys.stderr)
        results = genbound.evaluate(CASES[name](), seed=0)
        with tempfile.TemporaryDirectory() as folder:
            results.save(folder)
            content = json.loads((Path(folder) / "results.json").read_text())
            content["table"] = (Path(folder) / "table.md").read_text()
            content["layers.csv"] = (Path(folder) / "layers.csv").read_text()
        if results.samples is not None:
            columns = {c: results.samples[c].to_numpy().astype("U").tobytes() for c in sorted(results.samples)}
            content["samples"] = {c: hashlib.sha256(b).hexdigest() for c, b in columns.items()}
        content.pop("cost")
        found[name] = content
    return found


def differences(before, after, where=""):
    """Lines that name every entry in which two records differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            place = f"{where}/{key}"
            if key not in after or key not in before:
                yield f"{place}: {'gone' if key in before else 'new'}"
            else:
                yield from differences(before[key], after[key], place)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{where}/{index}")
    elif before != after:
        yield f"{where}: {str(before)[:200]} -> {str(after)[:200]}"


def main():
    """Record or compare; exit status 1 where a number differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", nargs=2, type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "record":
        text = json.dumps(record(given.cases), indent=1)
        given.file.write_text(text.replace(f"{ROOT}/", ""))
        return 0
    records = [json.loads(file.read_text()) for file in given.files]
    both = [name for name in records[0] if name in records[1]]
    lines = list(differences(*({name: record[name] for name in both} for record in records)))
    print("\n".join(lines) or f"every number is the same ({', '.join(both)})")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
