"""One network, one loss of each sample, one output: what would be two of them is refused or made one."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

import genbound
from genbound.errors import GenboundError
from genbound.network.loss_functions import Loss


def problem(model, inputs, targets, **arguments):
    init = {n: p.detach() + 0.1 for n, p in model.named_parameters()}
    data = {"labels": targets, **inputs} if isinstance(inputs, dict) else (inputs, targets)
    return genbound.Problem(model, init, data, **arguments)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# -- the same network in every mode ------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Torch's encoder layers with a padding mask and a plain mean over the positions, padded ones too."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.1, "gelu", batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

    def forward(self, x, mask):
        return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))


def test_the_encoder_with_padding_is_one_network():
    model = Encoder()
    x, targets = torch.randn(6, 5, 8), torch.arange(6) % 2
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[::2, 3:] = True
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nested tensors
        fused = model.eval()(x, mask)
    plain = model(x, mask).detach()  # gradients are recorded: torch takes the layers apart
    assert (fused - plain).abs().max() > 1e-2  # they are two networks
    found = problem(model, {"x": x, "mask": mask}, targets, dtype=torch.float64)
    losses = genbound.measure(found, "losses")
    assert losses["train_loss"] == pytest.approx(float(F.cross_entropy(plain, targets)), rel=1e-5)
    noise = genbound.measure(found, "noise_stability", sigmas=(0.001,))[0.001]
    trace = genbound.evaluate(found, ["hessian_trace"]).quantities["hessian_trace"]["total"]
    assert noise.value == pytest.approx(0.5e-6 * trace["value"], abs=6 * (noise.sem + 0.5e-6 * trace["sem"]) + 1e-8)
    assert torch.backends.mha.get_fastpath_enabled()


class ByMode(nn.Module):
    def __init__(self, other):
        super().__init__()
        self.linear, self.other = nn.Linear(3, 2), other

    def forward(self, x):
        return self.linear(x) * (2 if self.other() else 1)


@pytest.mark.parametrize(
    ("asked", "what"),
    [(torch.is_grad_enabled, "with gradients"), (torch.is_inference_mode_enabled, "in inference mode")],
)
def test_a_network_that_asks_for_the_mode_is_refused(asked, what):
    with pytest.raises(GenboundError, match=f"something else {what}"):
        problem(ByMode(asked), torch.randn(4, 3), torch.arange(4) % 2)


def test_inference_mode_in_forward_is_refused_with_the_mend():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            with torch.inference_mode():
                h = self.linear(x)
            return self.head(h)

    with pytest.raises(GenboundError, match="inference_mode"):
        problem(Inner(), torch.randn(4, 3), torch.arange(4) % 2)


# -- losses of one sample ----------------------------------------------------------------------------------------------

COUPLED = {
    "mean": lambda f, y: F.cross_entropy(f, y).expand(len(f)),
    "contrastive": lambda f, y: F.cross_entropy(f @ f.T, torch.arange(len(f)), reduction="none"),
    "normalised": lambda f, y: F.cross_entropy(f, y, reduction="none") * (1 + y) / (1.0 + y).sum(),
    "divided": lambda f, y: F.cross_entropy(f, y, reduction="none") / len(f),
    "centred": lambda f, y: F.cross_entropy(f - f.mean(0), y, reduction="none"),
}


@pytest.mark.parametrize("num", [1, 5])
@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_that_couples_samples_is_refused(name, num):
    with pytest.raises(GenboundError, match="depends on the others"):
        problem(nn.Linear(3, 2), torch.randn(num, 3), torch.arange(num) % 2, loss=Loss(name, COUPLED[name]))


# -- which output ----------------------------------------------------------------------------------------------------


class Several(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.body, self.head, self.shape = nn.Linear(3, 4), nn.Linear(4, 2), shape

    def forward(self, x):
        h = self.body(x).tanh()
        return self.shape(h, self.head(h))


AMBIGUOUS = {
    "features first": (lambda h, f: (h, f), "1"),
    "dict": (lambda h, f: {"out": f, "aux": 2 * f}, "out"),
    "questions": (lambda h, f: {"start_logits": f, "end_logits": -f}, "start_logits"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_several_outputs_are_refused_until_one_is_chosen(name):
    shape, chosen = AMBIGUOUS[name]
    model, x, y = Several(shape), torch.randn(5, 3), torch.arange(5) % 2
    with pytest.raises(GenboundError, match="--output"):
        problem(model, x, y)
    with pytest.raises(GenboundError, match="no output 'nothing'"):
        problem(model, x, y, output="nothing")
    found = genbound.measure(problem(model, x, y, output=chosen), "losses")["train_loss"]
    expected = F.cross_entropy(model.head(model.body(x).tanh()), y)
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize(
    "shape", [lambda h, f: (f, None), lambda h, f: {"logits": f, "hidden": h}, lambda h, f: {"y": f}]
)
def test_one_possible_output_is_taken(shape):
    problem(Several(shape), torch.randn(5, 3), torch.arange(5) % 2)


def test_the_only_output_cannot_be_chosen_by_another_name():
    with pytest.raises(GenboundError, match="returns one tensor"):
        problem(nn.Linear(3, 2), torch.randn(4, 3), torch.arange(4) % 2, output="logits")


def test_a_module_for_the_pretrained_weights_is_refused():
    model = nn.Linear(3, 2)
    with pytest.raises(GenboundError, match="init is a module.*state_dict"):
        genbound.Problem(model, nn.Linear(3, 2), (torch.randn(4, 3), torch.arange(4) % 2))


# -- weights that meet weights -----------------------------------------------------------------------------------------


class Composed(nn.Module):
    """Weights that are added or put beside each other before they act, and tables that are added to activations."""

    def __init__(self, shape):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 3))
        self.place, self.start = nn.Parameter(torch.randn(1, 5, 4)), nn.Parameter(torch.randn(1, 1, 4))
        self.shape, self.head = shape, nn.LazyLinear(2)

    def forward(self, x):
        h = F.linear(x, self.shape(self.a, self.b))[..., :4]
        h = torch.cat([(self.start + 0).expand(len(x), 1, 4), h], 1) + self.place
        return self.head(h.tanh().mean(1))


COMPOSED = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - 2 * b,
    "beside": lambda a, b: torch.cat([a, b]),
    "stacked": lambda a, b: torch.stack([a, b]).mean(0),
    "turned": lambda a, b: torch.cat([a.t(), b.t()], 1).t(),
    "stacked as turned": lambda a, b: torch.stack([a.t(), b.t()]).mean(0).t(),
    "sum of turned": lambda a, b: (a.t() + b.t()).t(),
    "sum of flat": lambda a, b: (a.flatten() + b.flatten()).view(4, 3),
    "rows apart": lambda a, b: torch.cat([a[:2], a[2:]]) + b,
    "every other column": lambda a, b: torch.cat([a[:, ::2], b[:, 1::2]], 1),
    "frozen rows": lambda a, b: torch.cat([a, torch.ones(4, 3).to(a)]) + torch.cat([b, torch.ones(4, 3).to(a)]),
    "frozen, turned": lambda a, b: (a.t() + torch.ones(3, 4).to(a) + b.t()).t(),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_weights_that_are_joined_to_weights_are_layers_and_tables_are_not(name):
    model = Composed(COMPOSED[name])
    model(torch.randn(2, 4, 3))
    found = problem(model, torch.randn(6, 4, 3), torch.arange(6) % 2)
    assert [layer.name for layer in found.layers] == ["a", "b", "head.weight"]


@pytest.mark.parametrize("name", COMPOSED)
def test_curvature_of_weights_that_are_joined_is_that_of_the_dense_hessian(name):
    model = Composed(COMPOSED[name])
    model(torch.randn(2, 4, 3))
    model, x, y = model.double(), torch.randn(6, 4, 3, dtype=torch.float64), torch.arange(6) % 2
    layers = genbound.evaluate(problem(model, x, y), ["hessian_trace"]).quantities["hessian_trace"]["layers"]
    weights = {n: p.detach() for n, p in model.named_parameters()}
    for layer in ("a", "b"):

        def loss(weight, layer=layer):
            return F.cross_entropy(functional_call(model, weights | {layer: weight}, (x,)), y)

        dense = hessian(loss)(weights[layer]).reshape(12, 12)
        assert layers[layer]["value"] == pytest.approx(float(dense.trace()), rel=1e-9) and layers[layer]["sem"] == 0


TABLES = {
    "looked up": lambda net, ids: F.embedding(ids, net.words) + net.places[:, : ids.shape[1]],
    "indexed": lambda net, ids: net.words[ids] + net.places[0, : ids.shape[1]],
    "selected": lambda net, ids: (
        net.words.index_select(0, ids.flatten()).view(*ids.shape, 4) + net.places[:, : ids.shape[1]]
    ),
    "a token with a place": lambda net, ids: torch.cat(
        [(net.start + net.places[:, :1]).expand(len(ids), 1, 4), net.words[ids] + net.places[:, 1 : 1 + ids.shape[1]]],
        1,
    ),
    "beside what is given": lambda net, ids: (
        torch.cat([net.start.expand(len(ids), 1, 4), F.one_hot(ids % 4, 4).to(net.start)], 1)
        + net.places[:, : 1 + ids.shape[1]]
    ),
}


class Tables(nn.Module):
    """Vectors of words and places, joined to each other and to what the samples are, before the first map."""

    def __init__(self, tokens):
        super().__init__()
        self.words, self.places = nn.Parameter(torch.randn(20, 4)), nn.Parameter(torch.randn(1, 9, 4))
        self.start, self.tokens = nn.Parameter(torch.randn(1, 1, 4)), tokens
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.inner(self.tokens(self, ids)).tanh().mean(1))


@pytest.mark.parametrize("name", TABLES)
def test_vectors_of_words_and_places_are_tables(name):
    found = problem(Tables(TABLES[name]), torch.randint(0, 20, (6, 5)), torch.arange(6) % 2)
    used = [layer.name for layer in found.layers if layer.kind != "unused"]
    assert used == ["inner.weight", "head.weight"]
    (said,) = (remark for remark in found.remarks if "looked up" in remark)
    tables = [name for name in ("places", "start", "words") if name not in {layer.name for layer in found.layers}]
    assert f"these moved: {', '.join(tables)};" in said
    still = genbound.Problem(found.model, found.params, found.data)
    assert not any("looked up" in remark for remark in still.remarks)
    named = problem(found.model, found.data.inputs, found.data.targets, layers="*")
    assert {layer.name for layer in named.layers} == {"places", "start", "words", "inner.weight", "head.weight"}
    assert not any("looked up" in remark for remark in named.remarks)
