"""``python -m benchmarks.engines``: what the engine of one process costs against a bare loop over the parts.

Four quantities of the demo, of some hundred parts, in turns through ``Engine.map`` and through
``[function(item) for item in items]``; processor seconds. With it the seconds that importing the engine takes beside
torch and the evaluation itself.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import genbound
from benchmarks.clock import seconds
from benchmarks.models import ROOT
from genbound.evaluation.stage import StoredContext

DEMO = ROOT / "examples" / "demo"
PAIRS = 5
MEASURES = "losses,hessian_trace,max_quadratic_form,noise_stability"
IMPORT = """
import time, torch, genbound.evaluation.loop
loaded = set(sys.modules)
start = time.process_time()
import genbound.engines.open_engine
print(time.process_time() - start, *sorted(set(sys.modules) - loaded))
"""


def bare(self, stage, items, function, size):
    """No engine, no stage and nothing that listens."""
    yield [function(item) for item in items]


def ratios(pairs: int) -> tuple[list[float], list[float]]:
    """Seconds through the engine, and by a bare loop, in turns."""
    files = [str(DEMO / f"{name}.safetensors") for name in ("finetuned", "pretrained")]
    data = {"data": f"{DEMO}/data.py:train", "test_data": f"{DEMO}/data.py:test"}
    problem = genbound.load(*files, model=f"{DEMO}/model.py:ConvMLP", trust_remote_code=True, **data)
    ways = {"engine": StoredContext._in_runs, "bare": bare}
    found: dict[str, list[float]] = {name: [] for name in ways}
    genbound.evaluate(problem, MEASURES)
    for number in range(pairs):
        for name in sorted(ways, reverse=bool(number % 2)):
            StoredContext._in_runs = ways[name]
            found[name].append(seconds(lambda: genbound.evaluate(problem, MEASURES)))
    StoredContext._in_runs = ways["engine"]
    return found["engine"], found["bare"]


def main() -> None:
    imported = subprocess.run(
        [sys.executable, "-c", f"import sys{IMPORT}"], capture_output=True, text=True, check=True
    ).stdout.split()
    print(f"importing the engine beside the evaluation: {float(imported[0]):.3f} s ({', '.join(imported[1:])})")
    engine, loop = ratios(int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS)
    each = [a / b for a, b in zip(engine, loop, strict=True)]
    print(f"engine {statistics.median(engine):.2f} s, bare loop {statistics.median(loop):.2f} s")
    print(f"ratio: median {statistics.median(each):.3f}, from {min(each):.3f} to {max(each):.3f} of {len(each)} pairs")


if __name__ == "__main__":
    main()
