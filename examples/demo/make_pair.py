"""Make the two checkpoints of the demo again: ``python examples/demo/make_pair.py``.

Pretrains on the digits 0–4, puts a fresh head on and stores ``pretrained.safetensors`` *with that head*, so
that the displacement of every layer has a true origin; then fine-tunes on 300 images of the digits 5–9 and
stores ``finetuned.safetensors``. Takes a few seconds and is deterministic on one machine.
"""

from pathlib import Path

import torch
from data import pretraining, test, train
from model import build
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

HERE = Path(__file__).resolve().parent
SEED = 0


def fit(model: nn.Module, data: TensorDataset, epochs: int, lr: float, batch_size: int = 32) -> None:
    """Adam on shuffled batches, in the mode (training or evaluation) that the model is in."""
    x, y = data.tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=generator).split(batch_size):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


@torch.no_grad()
def describe(title: str, model: nn.Module, data: TensorDataset) -> None:
    x, y = data.tensors
    logits = model.eval()(x)
    accuracy = (logits.argmax(-1) == y).double().mean()
    print(f"{title:<28} n = {len(y):<4} loss {cross_entropy(logits, y):.4f}  accuracy {accuracy:.4f}")


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the order of the sums, and with it the last digits, depends on it
    model = build()

    fit(model.train(), pretraining(), epochs=20, lr=3e-3)
    describe("pretrained, digits 0-4", model, pretraining())

    model.head = nn.Linear(model.head.in_features, model.head.out_features)
    save_file(model.state_dict(), HERE / "pretrained.safetensors")
    describe("fresh head, digits 5-9 train", model, train())

    # In evaluation mode: BatchNorm keeps its running statistics, its scale and shift are tuned.
    fit(model.eval(), train(), epochs=22, lr=1e-3)
    save_file(model.state_dict(), HERE / "finetuned.safetensors")
    describe("fine-tuned, digits 5-9 train", model, train())
    describe("fine-tuned, digits 5-9 test", model, test())


if __name__ == "__main__":
    main()
