"""How a run would split over many ranks: measured times of parts, played through the counter that ranks take them from.

    OMP_NUM_THREADS=1 python tools/simulate_ranks.py --ranks 1024 --samples 1000000

The demo is measured with one process, every part with its seconds of the processor and its bytes. Stages over samples
then get as many parts as that many samples have, each with the time of a measured one drawn at random; stages over
layers or draws keep theirs. A rank takes the next part when it is done with its last. At the end of a stage each rank
receives all parts; stages that fold theirs end in each of their runs so, and those of `hessian_trace` in each of the
blocks that very many samples are cut into. ``--layers`` asks how it would be with blocks of so many layers.
"""

import argparse
import heapq
import pickle
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import genbound
from genbound.engines.in_process import InProcess
from genbound.evaluation import stage as evaluation_stage
from genbound.network.problem import SHARD
from genbound.quantities.trace_by_blocks import blocks_of, is_too_large

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo"
MEASURES = ["losses", "hessian_trace", "max_quadratic_form", "noise_stability"]


@dataclass
class Parts:
    """The measured parts of a stage.

    Attributes:
        seconds: of each.
        size: of each, in bytes as they travel.
        samples: of each; 0 where a part is no run of samples.
        folded: whether they come in runs, of which one is in memory at a time.
    """

    seconds: list[float] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    folded: bool = False


class Timed(InProcess):
    """Notes what each part takes."""

    def __init__(self):
        self.stages: dict[str, Parts] = {}

    def map(self, stage, items, function):
        """The parts of all items."""
        parts = self.stages.setdefault(stage.title, Parts())
        parts.folded |= stage.first > 0

        def timed(item):
            begin = time.process_time()
            found = function(item)
            parts.seconds.append(time.process_time() - begin)
            parts.size.append(len(pickle.dumps(found)))
            parts.samples.append(len(item) if isinstance(item, range) else 0)
            return found

        return super().map(stage, items, timed)


def measured() -> tuple[dict[str, Parts], int]:
    """The parts of the demo's stages, and the number of its layers."""
    problem = genbound.load(
        DEMO / "finetuned.safetensors", DEMO / "pretrained.safetensors", f"{DEMO / 'model.py'}:build",
        f"{DEMO / 'data.py'}:train", num_samples=None,
    )  # fmt: skip
    engine, usual = Timed(), evaluation_stage.FIRST_RUN
    evaluation_stage.FIRST_RUN = 1  # so that what comes in runs is seen to
    genbound.evaluate(problem, MEASURES, engine=engine)
    evaluation_stage.FIRST_RUN = usual
    return engine.stages, len(problem.layers)


def ends(title: str, found: Parts, samples: int, layers: int, ranks: int) -> Iterator[int]:
    """Numbers of parts of a stage after each of which all ranks wait for the last one."""
    if not all(found.samples):
        yield len(found.seconds)
        return
    whole = SimpleNamespace(num_samples=samples, layers=range(layers))
    by_blocks = title.startswith("hessian_trace") and is_too_large(whole)
    size = max(found.samples) if not by_blocks else SHARD
    for block in blocks_of(whole) if by_blocks else [range(samples)]:
        left, run = -(-len(block) // size), max(evaluation_stage.FIRST_RUN, evaluation_stage.EACH * ranks)
        while found.folded and left > run:
            yield run
            left -= run
            each = sum(found.size) / len(found.size)
            run = evaluation_stage.next_run(left, ranks, each)
        yield left


def taken(seconds: list[float], ranks: int) -> tuple[float, np.ndarray]:
    """When the last rank is done, and how many parts each took ``[ranks]``; each takes the next when it is done."""
    free = [(0.0, rank) for rank in range(ranks)]
    parts = np.zeros(ranks, int)
    for part in seconds:
        at, rank = heapq.heappop(free)
        parts[rank] += 1
        heapq.heappush(free, (at + part, rank))
    return max(at for at, _ in free), parts


def main() -> None:
    """Print a row for each stage."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=10**6)
    parser.add_argument("--layers", type=int, help="that blocks and runs are cut for (default: the demo's)")
    given, rng = parser.parse_args(), random.Random(0)
    print("| stage | parts | s a part: mean, longest | a rank's parts | time over ideal | MB to each rank |")
    print("|---|---|---|---|---|---|")
    total = ideal = 0.0
    stages, layers = measured()
    for title, found in stages.items():
        if not found.seconds:
            continue
        drawn, end, parts = list[float](), 0.0, np.zeros(given.ranks, int)
        for num in ends(title, found, given.samples, given.layers or layers, given.ranks):
            drawn += (some := [rng.choice(found.seconds) for _ in range(num)])
            last, each = taken(some, given.ranks)
            end, parts = end + last, parts + each
        even = sum(drawn) / given.ranks
        total, ideal = total + end, ideal + even
        size = len(drawn) * sum(found.size) / len(found.size) / 1e6
        print(
            f"| {title} | {len(drawn)} | {sum(drawn) / len(drawn):.3f}, {max(drawn):.3f} | {parts.min()}–{parts.max()} "
            f"| {end / even:.2f} | {size:.3g} |"
        )
    print(f"\nAll stages: {total:.1f} s on {given.ranks} ranks; split evenly to the last second it were {ideal:.1f} s.")


if __name__ == "__main__":
    main()
