"""The head is what gives the scores, whatever its layers are called and in whichever order they were registered."""

import pytest
import torch
from torch import nn

import genbound
from genbound.checkpoints.heads import head_names
from genbound.errors import GenboundError
from genbound.structure.scoring import scoring_of


class Net(nn.Module):
    """Layers by their names in the order of registration, and what a pass makes of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.block, self.lm_head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.lm_head.weight = self.embedding.weight

    def forward(self, x):
        return self.lm_head(self.block(self.embedding(x)))


def line(i=6, o=6, **more):
    return nn.Linear(i, o, **more)


def written_by_parts(net, x):
    scores = torch.empty(len(x), 3)
    scores[:, :1], scores[:, 1:] = net.fc(net.body(x).relu()), net.other(net.body(x))
    return scores


NUMBERS = torch.randn(2, 6)
NETS = {
    "a hidden layer with a usual name": (
        Net(lambda n, x: n.out(n.fc(n.conv(x)).relu()), conv=line(), fc=line(), out=line()), "out.weight out.bias",
    ),
    "two usual names one after another": (
        Net(lambda n, x: n.head(n.fc(x).relu()), fc=line(), head=line()), "head.weight head.bias",
    ),
    "registered first": (Net(lambda n, x: n.last(n.first(x)), last=line(), first=line()), "last.weight last.bias"),
    "bare parameters": (
        Net(
            lambda n, x: (n.body(x + n.place)) @ n.w + n.b, place=nn.Parameter(torch.ones(1, 6)),
            w=nn.Parameter(torch.ones(6, 3)), b=nn.Parameter(torch.ones(1, 3)), body=line(),
        ),
        "w b",
    ),
    "a head of two layers": (
        Net(lambda n, x: n.classifier(n.body(x)), body=line(), classifier=nn.Sequential(line(), nn.ReLU(), line())),
        "classifier.0.weight classifier.0.bias classifier.2.weight classifier.2.bias",
    ),
    "side by side": (
        Net(lambda n, x: n.a(n.body(x)) + n.b(x), a=line(), b=line(bias=False), body=line()),
        "a.weight a.bias b.weight",
    ),
    "written in place": (
        Net(written_by_parts, body=line(), fc=line(6, 1, bias=False), other=line(6, 2, bias=False)),
        "fc.weight other.weight",
    ),
    "a scale and a norm behind it": (
        Net(lambda n, x: n.norm(n.last(n.body(x))), last=line(), body=line(), norm=nn.LayerNorm(6)),
        "last.weight last.bias",
    ),
    "a normed weight": (
        Net(lambda n, x: n.last(n.body(x)), last=nn.utils.parametrizations.weight_norm(line()), body=line()),
        "last.bias last.parametrizations.weight.original0 last.parametrizations.weight.original1",
    ),
    "a residual body": (Net(lambda n, x: n.last(x + n.body(x)), last=line(), body=line()), "last.weight last.bias"),
    "recurrent": (
        Net(lambda n, x: n.rnn(n.body(x)[:, None])[0][:, 0], rnn=nn.LSTM(6, 3), body=line()),
        "rnn.weight_ih_l0 rnn.weight_hh_l0 rnn.bias_ih_l0 rnn.bias_hh_l0",
    ),
    "a wrapper": (
        nn.Sequential(Net(lambda n, x: n.fc(n.body(x)), fc=line(), body=line())), "0.fc.weight 0.fc.bias",
    ),
}  # fmt: skip
TOKENS = {
    "one-hot": (
        Net(lambda n, x: n.last(n.first(nn.functional.one_hot(x, 6).float())), last=line(), first=line()),
        "last.weight last.bias",
    ),
    "a table alone": (Net(lambda n, x: n.table[x], table=nn.Parameter(torch.ones(6, 3)), body=line()), "table"),
    "tied to the tokens": (Tied(), "lm_head.bias"),
}


def found(net, x):
    scoring = scoring_of(dict(net.named_parameters()), x, lambda: net(x))
    return head_names(net, scoring=scoring)


@pytest.mark.parametrize("name", [*NETS, *TOKENS])
def test_head_by_what_gives_the_scores(name):
    net, expected = {**NETS, **TOKENS}[name]
    assert found(net, NUMBERS if name in NETS else torch.tensor([1, 2])) == tuple(expected.split())


def test_layers_that_lead_to_each_other_are_no_head():
    net = Net(lambda n, x: n.a(x) + n.b(n.a(x)), a=line(), b=line())
    with pytest.raises(GenboundError, match="--head-weights"):
        found(net, NUMBERS)


def test_where_nothing_was_seen_names_decide():
    net = Net(lambda n, x: torch.zeros(len(x), 3), fc=line(), out=line())
    assert found(net, NUMBERS) == ("fc.weight", "fc.bias")


def test_a_head_that_counts_from_zero_is_the_one_that_gives_the_scores(tmp_path):
    """A guess by name is refused where numbers depend on it, and needs no more than the option."""
    net = NETS["a hidden layer with a usual name"][0]
    torch.save(net.state_dict(), tmp_path / "net.pt")
    data = (NUMBERS, torch.tensor([0, 1]))

    def load(**more):
        return genbound.load(tmp_path / "net.pt", tmp_path / "net.pt", net, data, **more)

    with pytest.raises(GenboundError, match=r"fc.weight, fc.bias was taken .* out.weight, out.bias: .*--head-weights"):
        load(head="zero")
    problem = load(head="zero", head_weights="out.*")
    assert (
        torch.equal(problem.displacement["out.weight"], net.out.weight) and not problem.displacement["fc.weight"].any()
    )
    assert load().head == ("out.weight", "out.bias")
