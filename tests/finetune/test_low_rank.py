"""LoRA: the merged displacement stays in the ball after every step."""

import pytest
import torch
from torch import nn

from genbound.errors import GenboundError
from genbound.finetune import DistanceConstraint
from genbound.finetune.baselines.lora import add_adapters
from genbound.finetune.objective import distance_penalty
from genbound.finetune.start import Start

peft = pytest.importorskip("peft", reason="needs PEFT")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def plain_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3))


def network(config=None, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = plain_network()
        init = {name: value.detach().clone() for name, value in plain.named_parameters()}
        config = config or peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "3"], modules_to_save=["5"])
        return peft.get_peft_model(plain, config), init


def steps(model, constraint, count=5, autocast=False):
    stream = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(count):
        x, y = torch.randn(8, 3, 4, 4, generator=stream), torch.arange(8) % 3
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        constraint.project(model)
        yield


def merged_displacement(model, init):
    """From the merged network itself, not from the factors."""
    import copy

    merged = copy.deepcopy(model).merge_and_unload()
    return {n: (p.double() - init[n].double()).detach() for n, p in merged.named_parameters() if p.dim() >= 2}


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
@pytest.mark.parametrize("autocast", [False, True])
def test_merged_displacement_is_in_the_ball_after_every_step(norm, autocast):
    model, init = network()
    constraint = DistanceConstraint(init, 0.2, norm)
    for _ in steps(model, constraint, autocast=autocast):
        for v in merged_displacement(model, init).values():
            size = v.norm() if norm == "frobenius" else v.abs().flatten(1).sum(1).max()
            assert size <= 0.2 * (1 + 1e-5)  # merging itself rounds in float32
        assert all(size <= 0.2 for size in constraint.distances(model).values())
    assert max(constraint.distances(model).values()) > 0.19  # it does bind


def test_frobenius_projection_of_the_merged_displacement_is_the_nearest_point():
    model, init = network()
    for _ in steps(model, DistanceConstraint(init, float("inf")), count=2):
        pass
    before = merged_displacement(model, init)
    DistanceConstraint(init, 0.2).project(model)
    after = merged_displacement(model, init)
    for name, v in before.items():
        torch.testing.assert_close(after[name], v * min(1.0, 0.2 / v.norm()), rtol=1e-4, atol=1e-6)


def test_infinite_radius_changes_nothing():
    model, init = network()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert DistanceConstraint(init, float("inf")).project(model) == 0
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


class Alike(nn.Module):
    """Layers of the body whose names end like the head's, and a head whose name ends like a layer's of the body."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Module()
        self.fc.out = nn.Linear(6, 6)
        self.block = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Linear(6, 6), nn.Module())
        self.block[2].out = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.block[2].out(self.block[1](self.fc.out(x).tanh()).tanh()).tanh())


def test_the_body_has_the_rank_and_the_head_is_full_whatever_they_are_called():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = Alike()
        init = {name: value.detach().clone() for name, value in plain.named_parameters()}
        model = add_adapters(plain, ("out.weight", "out.bias"), 1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x, y = torch.randn(16, 6, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    ranks = {name: int(torch.linalg.matrix_rank(v, rtol=1e-4)) for name, v in merged_displacement(model, init).items()
             if v.dim() == 2}  # fmt: skip
    assert ranks == {"fc.out.weight": 1, "block.1.weight": 1, "block.2.out.weight": 1, "out.weight": 3}
    assert not torch.equal(model.merge_and_unload().out.bias, init["out.bias"])


def test_refusals():
    model, init = network()
    with pytest.raises(GenboundError, match="not that of init"):
        DistanceConstraint({**init, "3.weight": init["3.weight"] + 1}, 0.1).project(model)
    model, init = network(peft.LoraConfig(r=2, target_modules=["3"], use_dora=True))
    with pytest.raises(GenboundError, match="DoRA"):
        DistanceConstraint(init, 0.1).project(model)
    model, init = network()
    model.merge_adapter()
    with pytest.raises(GenboundError, match="merged"):
        DistanceConstraint(init, 0.1).project(model)


def test_the_distance_penalty_is_of_the_merged_weights():
    """L2-SP by its formula, from the merged network: pretrained layers from where they were, the head from zero."""
    model, init = network()
    head = ("5.weight", "5.bias")
    plain = plain_network()
    plain.load_state_dict(init)
    start = Start(plain, head, (), None, "", None, "")
    penalty = distance_penalty(start, 0.7)
    start.model = model  # as the run does, with adapters
    for _ in steps(model, DistanceConstraint(init, float("inf")), count=2):
        pass
    merged = merged_displacement(model, init)
    head_squares = sum(
        (p.detach().double() ** 2).sum() for n, p in model.named_parameters() if "5.modules_to_save" in n
    )
    expected = 0.35 * (sum((v**2).sum() for n, v in merged.items() if n not in head) + head_squares)
    value = penalty()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    model.zero_grad()
    value.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora_" in n)
