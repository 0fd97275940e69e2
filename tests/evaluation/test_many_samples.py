"""What a process holds of many samples and layers beside the network: tables ``[n, L]`` lie on the disk."""

import subprocess
import sys

import pytest

# The parts are made up, all alike but for a factor: what is measured is the arithmetic on them.
SCRIPT = """
import resource
import sys

import numpy as np
import torch
from torch import nn

import genbound
from genbound.engines.in_process import InProcess


class MadeUp(InProcess):
    kept = {}

    def map(self, stage, items, function):
        found = []
        for number, item in enumerate(items, stage.first):
            key = stage.title.split(" block")[0], len(item) if isinstance(item, range | list) else 0
            if key not in self.kept:
                self.kept[key] = function(item)
            factor = 1 + 0.3 * np.sin(number)
            found.append({k: v * factor if v.dtype.kind == "f" else v.copy() for k, v in self.kept[key].items()})
        return found


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


n, layers, name = int(sys.argv[3]), 100, sys.argv[1]
torch.manual_seed(0)
activation = nn.ReLU if name == "relative_flatness" else nn.Tanh  # which the output is curved in
model = nn.Sequential(*[m for _ in range(layers - 1) for m in (nn.Linear(4, 4), activation())], nn.Linear(4, 2))
init = {key: p.detach() - 0.1 * torch.randn_like(p) for key, p in model.named_parameters()}
every = n * 5 // 4 if name == "look" else n  # of a part of the samples the traces are others', chosen by size
problem = genbound.Problem(model, init, (torch.randn(every, 4), torch.arange(every) % 2), num_samples=n)
assert len(problem.layers) == layers and problem.num_samples == n
before = peak()
# The first bracket is taken for closed: refining is the work of single samples.
options = {
    "max_quadratic_form": {"max_quadratic_form": {"tolerance": 0.999}},
    "found": {"max_quadratic_form": {"maximum": "found"}},
    "layer_curvature": {"layer_curvature": {"curvature": "ggn", "exact_outputs": 1}},
}.get(name, {"hessian_trace": {"max_probes": 2}})
name = {"found": "max_quadratic_form", "look": "max_positive_trace"}.get(name, name)
results = genbound.evaluate(problem, [name], options=options, engine=MadeUp())
results.save(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "hessian_trace", "max_quadratic_form", "found", "layer_curvature", "relative_flatness", "max_positive_trace",
        "look",
    ],
)  # fmt: skip
def test_what_a_hundred_layers_take_hardly_grows_with_the_samples(name, tmp_path):
    """It was 1,340 MiB of a trace and 1,030 of a maximum of 100,000 samples, in proportion to their number."""

    def peak(num):
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, name, str(tmp_path / "out"), str(num)],
            capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-2000:]
        return int(ran.stdout.splitlines()[-1])

    few, many = peak(100_000), peak(200_000)
    assert 100 < few < 700 and many < few + 200
