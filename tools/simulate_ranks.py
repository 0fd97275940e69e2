"""How a run would split over many ranks: measured times of parts, played through the counter that ranks take them from.

    python tools/simulate_ranks.py --ranks 1024 --samples 1000000

The demo is measured with one process, every part with its time and its bytes. Stages over samples then get as many
parts as that many samples have, each with the time of a measured one drawn at random; stages over layers or draws keep
theirs. A rank takes the next part when it is done with its last. At the end of a stage each rank receives all parts.
"""

import argparse
import heapq
import pickle
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import genbound
from genbound.engines.in_process import InProcess

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo"
MEASURES = ["losses", "hessian_trace", "max_quadratic_form", "noise_stability"]


@dataclass
class Parts:
    """The measured parts of a stage.

    Attributes:
        seconds: of each.
        size: of each, in bytes as they travel.
        samples: of each; 0 where a part is no run of samples.
    """

    seconds: list[float] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)


class Timed(InProcess):
    """Notes what each part takes."""

    def __init__(self):
        self.stages: dict[str, Parts] = {}

    def map(self, stage, items, function):
        """The parts of all items."""
        parts = self.stages.setdefault(stage.title, Parts())

        def timed(item):
            begin = time.perf_counter()
            found = function(item)
            parts.seconds.append(time.perf_counter() - begin)
            parts.size.append(len(pickle.dumps(found)))
            parts.samples.append(len(item) if isinstance(item, range) else 0)
            return found

        return super().map(stage, items, timed)


def measured() -> dict[str, Parts]:
    """The parts of the demo's stages."""
    problem = genbound.load(
        DEMO / "finetuned.safetensors", DEMO / "pretrained.safetensors", f"{DEMO / 'model.py'}:build",
        f"{DEMO / 'data.py'}:train", num_samples=None,
    )  # fmt: skip
    engine = Timed()
    genbound.evaluate(problem, MEASURES, engine=engine)
    return engine.stages


def taken(seconds: list[float], ranks: int) -> tuple[float, int, int]:
    """When the last rank is done, and the fewest and most parts that one took; each takes the next when it is done."""
    free = [(0.0, rank) for rank in range(ranks)]
    parts = [0] * ranks
    for part in seconds:
        at, rank = heapq.heappop(free)
        parts[rank] += 1
        heapq.heappush(free, (at + part, rank))
    return max(at for at, _ in free), min(parts), max(parts)


def main() -> None:
    """Print a row for each stage."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=10**6)
    given, rng = parser.parse_args(), random.Random(0)
    print("| stage | parts | s a part: mean, longest | a rank's parts | time over ideal | MB to each rank |")
    print("|---|---|---|---|---|---|")
    total = ideal = 0.0
    for title, found in measured().items():
        if not found.seconds:
            continue
        num = len(found.seconds)
        if all(found.samples):
            num = -(-given.samples // max(found.samples))
        seconds = [rng.choice(found.seconds) for _ in range(num)]
        ends, fewest, most = taken(seconds, given.ranks)
        even = sum(seconds) / given.ranks
        total, ideal = total + ends, ideal + even
        size = num * sum(found.size) / len(found.size) / 1e6
        print(
            f"| {title} | {num} | {sum(seconds) / num:.3f}, {max(seconds):.3f} | {fewest}–{most} | {ends / even:.2f} | "
            f"{size:.3g} |"
        )
    print(f"\nAll stages: {total:.1f} s on {given.ranks} ranks; split evenly to the last second it were {ideal:.1f} s.")


if __name__ == "__main__":
    main()
