"""Networks with checkpointed, compiled, fused or sparse parts are measured like their plain twins."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import genbound
from genbound.errors import GenboundError

QUANTITIES = ["losses", "hessian_trace", "max_quadratic_form", "noise_stability"]


class Checkpointed(nn.Module):
    def __init__(self, mode, first=False):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.mode, self.first = mode, first

    def forward(self, x):
        if self.first:
            return self.c(self._part(lambda x: self.b(self.a(x).tanh()).tanh(), x))
        return self.c(self._part(lambda h: self.b(h).tanh(), self.a(x).tanh()))

    def _part(self, function, x):
        return function(x) if self.mode is None else checkpoint(function, x, use_reentrant=self.mode)


class Attention(nn.Module):
    def __init__(self, kernel=None):
        super().__init__()
        self.qkv, self.head, self.kernel = nn.Linear(6, 12), nn.Linear(4, 3), kernel

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        with sdpa_kernel(self.kernel or SDPBackend.MATH):
            return self.head(F.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))


class Bag(nn.Module):
    def __init__(self, plain=False):
        super().__init__()
        self.table, self.head, self.plain = nn.EmbeddingBag(9, 4, mode="mean"), nn.Linear(4, 3), plain

    def forward(self, x):
        bag = F.embedding(x, self.table.weight).mean(1) if self.plain else self.table(x)
        return self.head(bag.tanh())


class Words(nn.Module):
    """An embedding, with what it is given for training alone."""

    def __init__(self, **settings):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
        for name, value in settings.items():
            setattr(self.table, name, value)

    def forward(self, x):
        return self.head(self.table(x).mean(1).tanh())


class Sparse(nn.Module):
    """A sparse input times a weight, and a fixed sparse matrix times what comes of it."""

    def __init__(self, layout=None):
        super().__init__()
        self.weight, self.head, self.layout = nn.Parameter(torch.randn(6, 5)), nn.Linear(5, 3), layout
        mixing = torch.randn(5, 5) * (torch.rand(5, 5) > 0.4)
        self.register_buffer("mixing", mixing if layout is None else mixing.to_sparse(layout=layout))

    def forward(self, x):
        h = x @ self.weight if self.layout is None else torch.sparse.mm(x.to_sparse(layout=self.layout), self.weight)
        return self.head((self.mixing @ h.tanh().T).T)


def built(factory, seed=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory()


def problem(model, x=None, **arguments):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 6, generator=generator) if x is None else x
    init = {n: p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    return genbound.Problem(model, init, (x, torch.arange(6) % 3), dtype=torch.float64, **arguments)


def numbers(found):
    """Every number of a few quantities, by layer."""
    options = {"noise_stability": {"sigmas": (0.01,)}, "max_quadratic_form": {"tolerance_of": "layer"}}
    results = genbound.evaluate(found, QUANTITIES, options=options)
    assert not results.notes
    quantities = results.quantities
    rows = {f"{q} {n}": row["value"] for q in QUANTITIES[1:3] for n, row in quantities[q]["layers"].items()}
    return rows | {
        "loss": quantities["losses"]["train_loss"], "noise": quantities["noise_stability"]["sigmas"][0]["value"]
    }  # fmt: skip


TOKENS = torch.randint(0, 9, (6, 4), generator=torch.Generator().manual_seed(2))
FEATURES = torch.randn(6, 3, 6, generator=torch.Generator().manual_seed(2))
PAIRS = {
    "checkpoint_reentrant": (lambda: Checkpointed(True), lambda: Checkpointed(None), {}),
    "checkpoint": (lambda: Checkpointed(False), lambda: Checkpointed(None), {}),
    "checkpoint_of_the_input_reentrant": (lambda: Checkpointed(True, True), lambda: Checkpointed(None, True), {}),
    "checkpoint_of_the_input": (lambda: Checkpointed(False, True), lambda: Checkpointed(None, True), {}),
    "flash": (lambda: Attention(SDPBackend.FLASH_ATTENTION), Attention, {"x": FEATURES}),
    "bag": (Bag, lambda: Bag(True), {"x": TOKENS}),
    "bag_as_a_layer": (Bag, lambda: Bag(True), {"x": TOKENS, "layers": "*"}),
    "padding": (lambda: Words(padding_idx=2), Words, {"x": TOKENS, "layers": "*"}),
    "gradients_by_frequency": (lambda: Words(scale_grad_by_freq=True), Words, {"x": TOKENS, "layers": "*"}),
    "sparse_coo": (lambda: Sparse(torch.sparse_coo), Sparse, {}),
    "sparse_csr": (lambda: Sparse(torch.sparse_csr), Sparse, {}),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("name", PAIRS)
def test_the_numbers_are_those_of_the_plain_twin(name):
    unusual, plain, arguments = PAIRS[name]
    found, wanted = (numbers(problem(built(factory), **arguments)) for factory in (unusual, plain))
    # A weight that meets a sparse matrix is measured in weight space: other random numbers, and an interval of 1 %.
    sparse = name.startswith("sparse")
    names = [key for key in wanted if not (sparse and key.split()[0] in ("hessian_trace", "noise"))]
    close = 0.01 if sparse else 1e-9
    assert {key: found[key] for key in names} == pytest.approx({key: wanted[key] for key in names}, rel=close)


def test_sparse_networks_have_the_trace_of_their_dense_hessian():
    model = built(lambda: Sparse(torch.sparse_coo))
    found = problem(model)
    dense, x, labels = built(Sparse).double(), found.data.inputs.double(), found.data.targets
    head = {n: p for n, p in dense.named_parameters() if n != "weight"}
    hessian = torch.func.hessian(
        lambda w: F.cross_entropy(torch.func.functional_call(dense, {**head, "weight": w}, x), labels)
    )(dense.weight.detach())
    trace = genbound.measure(found, "hessian_trace")["weight"]
    assert abs(trace.value - float(hessian.detach().view(30, 30).trace())) <= 4 * trace.sem + 1e-10


@pytest.mark.parametrize("how", ["whole", "in place", "inside"])
def test_compiled_networks_are_run_as_they_were_written(how):
    def compiled():
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        if how == "in place":
            model.compile()
        elif how == "inside":
            model[0] = torch.compile(model[0])
        return torch.compile(model) if how == "whole" else model

    found = numbers(problem(built(compiled)))
    wanted = numbers(problem(built(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))))
    if how == "inside":  # the names in the middle stay, and random numbers go by names
        del found["noise"], wanted["noise"]
    assert {name.replace("_orig_mod.", ""): value for name, value in found.items()} == wanted


def test_a_compiled_network_takes_the_weights_and_gives_the_names_of_the_plain_one():
    plain = nn.Linear(6, 3)
    for init in (plain.state_dict(), torch.compile(plain).state_dict()):
        init = {name: tensor.clone() + 0.1 for name, tensor in init.items()}
        found = genbound.Problem(torch.compile(plain), init, (torch.randn(4, 6), torch.arange(4) % 3))
        assert [layer.name for layer in found.layers] == ["weight"]
    inside = nn.Sequential(torch.compile(plain))
    init = {f"0.{name}": tensor.clone() + 0.1 for name, tensor in plain.state_dict().items()}
    found = genbound.Problem(inside, init, (torch.randn(4, 6), torch.arange(4) % 3))
    assert float(found.displacement["0._orig_mod.weight"].mean()) == pytest.approx(-0.1, rel=1e-4)


class Inferring(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.a, self.b, self.whole = nn.Linear(6, 5), nn.Linear(5, 3), whole

    def forward(self, x):
        with torch.inference_mode():
            h = self.a(x).tanh()
            if self.whole:
                return self.b(h)
        return self.b(h)


@pytest.mark.parametrize("whole", [False, True])
def test_inference_mode_is_refused_with_the_mend(whole):
    with pytest.raises(GenboundError, match=r"torch\.inference_mode in its forward.*take it out"):
        problem(Inferring(whole))


def test_a_model_that_writes_over_what_its_derivative_needs_is_refused():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.inner(x).relu().add_(1))

    model = InPlace()
    with pytest.raises(GenboundError, match="writes over numbers that its own derivative needs"):
        genbound.Problem(model, dict(model.named_parameters()), (torch.randn(4, 3), torch.arange(4) % 2))


class Flexible(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 12), nn.Linear(4, 3)

    def forward(self, x):
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        return self.head(flex_attention(q, k, v).squeeze(1).mean(1))


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_is_refused_with_the_mend():
    with pytest.raises(GenboundError, match=r"flex_attention.*scaled_dot_product_attention"):
        problem(built(Flexible), FEATURES)


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        return self.head(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0].squeeze(1).mean(1))


def test_an_operation_without_a_second_derivative_is_named():
    with pytest.raises(GenboundError, match=r"no derivative of _scaled_dot_product_flash_attention_for_cpu.*--model"):
        genbound.evaluate(problem(built(Raw), FEATURES), ["hessian_trace"])


@pytest.mark.parametrize("name", ["Bart", "T5"])
def test_a_classifier_that_answers_at_the_end_token_is_told_so(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    if name == "T5":
        sizes, heads = (
            {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1},
            {"num_heads": 2, "decoder_start_token_id": 0},
        )
    config = getattr(transformers, f"{name}Config")(vocab_size=20, num_labels=2, **sizes, **heads)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    init = {n: p.detach() + 0.1 for n, p in model.named_parameters()}
    tokens = torch.full((3, 5), 7)
    data = {"input_ids": tokens, "labels": torch.tensor([0, 1, 0])}
    with pytest.raises(GenboundError, match=r"let every text end with it \(eos_token_id of config\.json\)"):
        genbound.Problem(model, init, data)
    tokens[:, -1] = config.eos_token_id
    assert genbound.Problem(model, init, data).num_classes == 2


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, x):
        if (x > 9).any():
            raise ValueError("too large")
        return self.net(x)


def test_what_a_model_or_a_loss_raises_later_is_one_line():
    """A few samples are tried before; a later one may be another case."""
    x = torch.zeros(6, 6)
    x[4] = 10
    init, targets = {"net.weight": torch.zeros(3, 6), "net.bias": torch.zeros(3)}, torch.arange(6) % 3
    with pytest.raises(GenboundError, match="the model raised ValueError on some of the samples: too large"):
        genbound.evaluate(genbound.Problem(Picky(), init, (x, targets)), ["losses"])

    def loss(outputs, targets):
        if (targets > 5).any():
            raise ValueError("no such label")
        return outputs.square().sum(1)

    found = genbound.Problem(Picky(), init, (torch.zeros(6, 6), torch.tensor([0, 1, 2, 3, 7, 4])), loss)
    with pytest.raises(GenboundError, match="the loss raised ValueError on some of the samples: no such label"):
        genbound.evaluate(found, ["losses"])
