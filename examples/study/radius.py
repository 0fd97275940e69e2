"""How the radii in ``cells.py`` were chosen: by the accuracy on held-out *noisy* labels.

The seed is one that the study does not use.

Under symmetric noise that accuracy rises with the true one, so nobody needs clean labels to choose.

::

    python examples/study/radius.py cifar10 --out runs/radius '1%:1' '2%:1' '2%:inf'
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from cells import CONVENTION, RATE
from tasks import TASKS

from genbound.data.run_folder import Relabelled
from genbound.finetune import Settings, finetune, flip_labels, symmetric_noise
from genbound.finetune.training_data import all_labels

SEED = 10
HELD_OUT = 2500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("candidates", nargs="+", help="RADIUS:HEAD_RADIUS")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[args.task]
    init = task.initial(args.out / "init")
    train = task.split("noisy", init)
    labels = task.labels("train")
    # The training samples are at the front of each class.
    rest = np.random.default_rng(0).permutation(len(labels))[-min(HELD_OUT, len(labels) // 2) :]
    held_out = task.samples("train", np.sort(rest), init)
    truth = all_labels(held_out)
    noise = CONVENTION[task.name]
    flips = symmetric_noise(RATE, int(labels.max()) + 1, redraw=noise.endswith("redraw"))
    noisy = Relabelled(held_out, torch.from_numpy(flip_labels(truth.numpy(), flips, SEED + 1)))
    for candidate in args.candidates:
        radius, _, head = candidate.partition(":")
        settings = Settings(
            epochs=task.noisy_epochs, batch_size=task.batch_size, lr=task.lr, schedule=task.schedule,
            warmup=task.warmup, seed=SEED, noise=f"{noise}:{RATE}", radius=radius, head_radius=float(head or "inf"),
        )  # fmt: skip
        folder = args.out / args.task / candidate.replace("%", "pc").replace(":", "-")
        record = finetune(init, train, folder, model=task.model, test_data=noisy, settings=settings)
        print(
            args.task, candidate, json.dumps({name: round(v, 3) for name, v in record["accuracy"].items()}), flush=True
        )


if __name__ == "__main__":
    main()
