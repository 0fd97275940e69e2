"""What a process holds of many samples and layers beside the network: arrays ``[n, L]``, a few at a time."""

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
        for number, item in enumerate(items):
            key = stage.title, len(item) if isinstance(item, range) else number
            if key not in self.kept:
                self.kept[key] = function(item)
            factor = 1 + 0.3 * np.sin(number)
            found.append({k: v * factor if v.dtype.kind == "f" else v.copy() for k, v in self.kept[key].items()})
        return found


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


n, layers, name = 100_000, 100, sys.argv[1]
torch.manual_seed(0)
model = nn.Sequential(*[m for _ in range(layers - 1) for m in (nn.Linear(4, 4), nn.Tanh())], nn.Linear(4, 2))
init = {key: p.detach() - 0.1 * torch.randn_like(p) for key, p in model.named_parameters()}
problem = genbound.Problem(model, init, (torch.randn(n, 4), torch.arange(n) % 2))
assert len(problem.layers) == layers and problem.num_samples == n
before = peak()
# The first bracket is taken for closed: refining is the work of single samples.
options = {"max_quadratic_form": {"tolerance": 0.999}, "hessian_trace": {"max_probes": 2}}
results = genbound.evaluate(problem, [name], options={name: options[name]}, engine=MadeUp())
results.save(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hessian_trace", "max_quadratic_form"])
def test_a_hundred_thousand_samples_of_a_hundred_layers_take_less_than_two_gigabytes(name, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(tmp_path / "out")], capture_output=True, text=True, timeout=1800
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert 100 < int(ran.stdout.splitlines()[-1]) < 2048
