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
model = nn.Sequential(*[m for _ in range(layers - 1) for m in (nn.Linear(4, 4), nn.Tanh())], nn.Linear(4, 2))
init = {key: p.detach() - 0.1 * torch.randn_like(p) for key, p in model.named_parameters()}
problem = genbound.Problem(model, init, (torch.randn(n, 4), torch.arange(n) % 2))
assert len(problem.layers) == layers and problem.num_samples == n
before = peak()
# The first bracket is taken for closed: refining is the work of single samples.
options = {"max_quadratic_form": {"tolerance": 0.999}, "hessian_trace": {"max_probes": 2}}
if name == "found":
    name, options = "max_quadratic_form", {"max_quadratic_form": {"maximum": "found"}}
results = genbound.evaluate(problem, [name], options={name: options[name]}, engine=MadeUp())
results.save(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hessian_trace", "max_quadratic_form", "found"])
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
