"""No certificate where something moved that has no noise, and no closed form where the head is used twice."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genbound import Problem, evaluate
from genbound.posterior.groups import changed_groups, unpaid
from genbound.posterior.linear_head import find_linear_head


class Table(nn.Module):
    """Answers from a table of whole or complex numbers, which can hold every label of the training set."""

    def __init__(self, kind):
        super().__init__()
        zeros = torch.zeros(40, dtype=kind)
        self.table = nn.Parameter(zeros) if kind.is_complex else nn.Buffer(zeros)
        self.linear, self.norm = nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)

    def forward(self, x):
        told = torch.as_tensor(self.table.real if self.table.is_complex() else self.table)[x[:, 0].long()].to(x.dtype)
        return torch.stack([-told, told], 1) + self.norm(self.linear(x[:, 1:]))


@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.complex64])
def test_what_has_no_noise_may_not_have_moved(kind):
    torch.manual_seed(0)
    model = Table(kind).eval()
    init = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    labels = torch.randint(0, 2, (40,))
    data = (torch.cat([torch.arange(40.0)[:, None], torch.randn(40, 2)], 1), labels)
    with torch.no_grad():
        model.linear.weight.add_(0.01)
        model.norm.num_batches_tracked.add_(7)  # counts, and is read by no one
    assert unpaid(Problem(model, init, data, init_buffers=buffers)) == []
    with torch.no_grad():
        model.table.copy_(labels)
    problem = Problem(model, init, data, init_buffers=buffers)
    assert unpaid(problem) == ["table"]
    for row in evaluate(problem, ["pac_bayes_certificate", "compression_certificate"]).bounds.values():
        assert row["value"] is None and "table moved" in row["note"]


class Tied(nn.Module):
    """Its head's weight makes the features, too."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.head(torch.tanh(F.linear(x, self.head.weight)) @ self.head.weight)


class Last(Tied):
    """The same without the other use."""

    def forward(self, x):
        return self.head(torch.tanh(x))


def test_a_head_that_is_used_elsewhere_has_no_closed_form():
    torch.manual_seed(0)
    x, found = torch.randn(20, 4), []
    for model in (Tied(), Last()):
        init = {"head.weight": torch.zeros(2, 4)}
        problem = Problem(model, init, (x, (x[:, 0] > 0).long()))
        found.append(find_linear_head(problem, changed_groups(problem)))
    assert found[0] is None and found[1] is not None


def test_a_head_that_some_samples_go_around():
    """The closed form is refused as soon as one of them is read."""

    class Around(Last):
        def forward(self, x):
            scores = super().forward(x)
            return torch.where(x[:, :1] > 5, scores + 1 + x[:, :1] * torch.tensor([1.0, -1.0]), scores)

    torch.manual_seed(0)
    x = torch.randn(20, 4).clamp(max=3)
    x[-1, 0] = 6
    problem = Problem(Around(), {"head.weight": torch.zeros(2, 4)}, (x, torch.arange(20) % 2))
    head = find_linear_head(problem, changed_groups(problem))
    head.features(problem.batch(range(10)))
    with pytest.raises(Exception, match="not the linear head's alone"):
        head.features(problem.batch(range(10, 20)))
