"""Samples of several lengths: what is found out about a network is found out on the longest, too."""

import numpy as np
import pytest
import torch
from torch import nn

import genbound
from genbound.data.samples import ListSamples
from genbound.errors import GenboundError


class Branches(nn.Module):
    """Piecewise linear in short sequences, curved in long ones."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        z = self.a(x)
        return self.c((torch.relu(z) if x.shape[1] <= 3 else torch.tanh(3 * z)).mean(1))


def test_a_block_is_semidefinite_for_all_lengths_or_for_none():
    torch.manual_seed(0)
    model = Branches().double()
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    items = [(torch.randn(n, 2, dtype=torch.float64), torch.tensor(n % 3)) for n in [3] * 10 + [5] * 30]
    layers = {layer.name: layer for layer in genbound.Problem(model, init, ListSamples(items)).layers}
    assert not layers["a.weight"].positive_semidefinite and layers["a.weight"].curved_by == "Tanh"
    assert layers["c.weight"].positive_semidefinite


class LastToken(nn.Module):
    """Reads its answer at the last position, which in a padded sequence is padding; masks nothing."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, input_ids):
        return self.head(self.table(input_ids)[:, -1])


def test_padding_that_the_network_sees_is_found_where_the_shortest_need_none():
    torch.manual_seed(0)
    model = LastToken()
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    class Padded(ListSamples):
        """Stacked to the longest, with zeros."""

        def shape_key(self, i):
            return ()

        def size(self, i):
            return len(self._item(i)[0]["input_ids"])

        def batch(self, indices):
            items = [self._item(int(i)) for i in indices]
            longest = max(len(inputs["input_ids"]) for inputs, _ in items)
            rows = [
                nn.functional.pad(inputs["input_ids"], (0, longest - len(inputs["input_ids"]))) for inputs, _ in items
            ]
            return genbound.data.samples.Batch(
                {"input_ids": torch.stack(rows)}, torch.stack([target for _, target in items]), list(indices)
            )

    items = [({"input_ids": torch.randint(1, 9, (n,))}, torch.tensor(n % 2)) for n in (3, 3, 3, 3, 3, 7, 11)]
    with pytest.raises(GenboundError, match="influence each other"):
        genbound.Problem(model, init, Padded(items))
    genbound.Problem(model, init, Padded(items), batch_size=1)


class TimeFirst(nn.Module):
    """Swaps time and samples inside, as torch's attention does."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x.transpose(0, 1)))
        return self.c(h[0] * h[1] + (h[2:] ** 2).sum(0))


class OneAtATime(TimeFirst):
    """Takes one sample only."""

    def forward(self, x):
        return super().forward(x.squeeze(0)[None])


class SaysSo(TimeFirst):
    """Takes one sample only, and checks that."""

    def forward(self, x):
        assert len(x) == 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "by_batch"), [(TimeFirst, [True, True]), (OneAtATime, [False, False]), (SaysSo, [False, False])]
)
def test_rows_are_read_in_their_order_where_no_two_samples_can_share_a_pass(kind, by_batch):
    """The quadratic form of noise on one weight, per copy of a sample, against the whole Hessian."""
    torch.manual_seed(0)
    model = kind().double()
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    items = [(torch.randn(n, 3, dtype=torch.float64), torch.tensor(n % 3)) for n in (4, 5, 6)]
    problem = genbound.Problem(model, init, ListSamples(items))
    assert [layer.by_batch for layer in problem.layers] == by_batch
    assert problem.samples_first["a.weight"] is (kind is not TimeFirst)
    options = {
        "hessian_trace": {"exact_products": 0, "total_sem": 0.05, "layer_sem": 0.1, "small_probes": 256},
        "noise_stability": {"sigmas": (0.02,), "relative_sem": 0.05},
    }
    found = genbound.evaluate(problem, ["hessian_trace", "noise_stability"], options=options).quantities

    def loss(weight, x, y):
        scores = torch.func.functional_call(model, {"a.weight": weight.view(4, 3)}, (x[None],))
        return nn.functional.cross_entropy(scores, y[None])

    flat = model.a.weight.detach().flatten()
    truth = np.mean([float(torch.func.hessian(loss)(flat, x, y).trace().detach()) for x, y in items])
    trace = found["hessian_trace"]["layers"]["a.weight"]
    assert abs(trace["value"] - truth) < 4 * trace["sem"] < abs(truth)
    (row,) = found["noise_stability"]["sigmas"]
    assert abs(row["value"] - row["hessian_approximation"]) < 0.2 * row["hessian_approximation"]


def test_bfloat16_rounds_the_displacement_and_not_the_weights_that_it_is_of():
    torch.manual_seed(0)
    model = nn.Linear(16, 3)
    init = {name: p.detach() + 1e-4 * torch.randn_like(p) for name, p in model.named_parameters()}
    data = (torch.randn(8, 16), torch.arange(8) % 3)
    problem = genbound.Problem(model, init, data, dtype=torch.bfloat16)
    right = float((model.weight.detach() - init["weight"]).norm())
    assert float(problem.displacement["weight"].float().norm()) == pytest.approx(right, rel=5e-3)
    assert any("three digits" in remark for remark in problem.remarks)


def test_one_sample_of_many_has_no_error_of_its_choice():
    model = nn.Linear(4, 3)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    data = (torch.randn(8, 4), torch.arange(8) % 3)
    said = [genbound.Problem(model, init, data, num_samples=n).remarks for n in (1, 2, None)]
    assert any("one sample of 8 is measured" in remark for remark in said[0]) and said[1:] == [(), ()]
