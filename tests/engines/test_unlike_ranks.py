"""Ranks that were started for different things do not mix their numbers."""

import pytest
import torch
from ranks import in_ranks

import genbound
from genbound.engines.launch import launched


def problem(moved=0.0, num=60, loss_range="observed"):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    init = {name: p.detach() + 0.3 * torch.randn_like(p) for name, p in net.named_parameters()}
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    return genbound.Problem(net, init, (x, y), test_data=(x[:num] + moved, y[:num]), loss_range=loss_range)


UNLIKE = {
    "seeds": lambda rank: (problem(), {"seed": rank}),
    "measures or options": lambda rank: (problem(), {"options": {"noise_stability": {"num_shared": 8 + rank}}}),
    "label noise": lambda rank: (problem(), {"confusion": torch.eye(3).numpy() if rank else None}),
    "held-out samples:": lambda rank: (problem(moved=0.5 * rank), {}),
    "numbers of held-out": lambda rank: (problem(num=60 - rank), {}),
    "ranges of the loss": lambda rank: (problem(loss_range="clip:3" if rank else "clip:4"), {}),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_ranks_that_differ_are_refused(tmp_path, what):
    def work(rank):
        from genbound.engines.distributed import Distributed

        mine = Distributed(launched())
        mixed, given = UNLIKE[what](rank)
        try:
            return genbound.evaluate(mixed, ["losses", "noise_stability"], engine=mine, **given)
        finally:
            mine.abandon()

    problem()  # what it imports, the forks then have
    for found in in_ranks(2, work, tmp_path):
        assert isinstance(found, genbound.GenboundError) and f"ranks 0 and 1 have different {what}" in str(found)
