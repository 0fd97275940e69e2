"""The first tangent of a process says nothing of torch's own deprecations."""

import subprocess
import sys

SCRIPT = """
import torch, genbound
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Softmax(-1), nn.Linear(4, 2))
init = {name: torch.zeros_like(p) for name, p in net.state_dict().items()}
problem = genbound.Problem(net, init, (torch.randn(12, 3), torch.arange(12) % 2))
trace = genbound.measure(problem, "hessian_trace")
from genbound.network.forward_mode import jvp
assert jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))[1] == 1
"""


def test_warnings_that_are_errors_end_no_measurement():
    found = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True)
    assert found.returncode == 0 and found.stderr == "", found.stderr
