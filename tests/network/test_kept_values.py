"""Values that a network keeps from one pass to the next are of no pass but their own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.data.samples import as_samples
from genbound.errors import GenboundError
from genbound.finetune.predictions import predict

DATA = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 3
MEASURES = ["losses", "hessian_trace", "max_quadratic_form", "init_activations", "fisher_rao_norm", "loss_path"]


class Net(nn.Module):
    """A table of biases between two layers; what is made of it is computed by ``table``."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.biases = nn.Linear(4, 6), nn.Linear(6, 3), nn.Parameter(torch.ones(2, 3))

    def table(self):
        return self.biases.flatten()

    def forward(self, x):
        return self.head(F.gelu(self.body(x)) * self.table())


class InADict(Net):
    """As the attention biases of LeViT: kept by device in evaluation mode, emptied by ``train()``."""

    def __init__(self):
        super().__init__()
        self.cache = {}

    def train(self, mode=True):
        if mode:
            self.cache = {}
        return super().train(mode)

    def table(self):
        if self.training:
            return super().table()
        return self.cache.setdefault("cpu", super().table())


class InAnAttribute(Net):
    def __init__(self):
        super().__init__()
        self.kept = None

    def table(self):
        if self.kept is None:
            self.kept = super().table()
        return self.kept


class InANewAttribute(Net):
    def table(self):
        if not hasattr(self, "kept"):
            self.kept = [super().table()]
        return self.kept[0]


class Switched(Net):
    """Changes its make-up for good at a sample that asks for it, as BigBird does at a short text."""

    def __init__(self):
        super().__init__()
        self.way, self.between = "tanh", nn.Tanh()

    def forward(self, x):
        if self.way == "tanh" and bool((x[:, 0] > 10).any()):
            self.way, self.between = "relu", nn.ReLU()
        return self.head(self.between(self.body(x)) * self.table())


KEEPING = [InADict, InAnAttribute, InANewAttribute]


def network(kind=Net):
    torch.manual_seed(0)
    model = kind().double().eval()
    with torch.no_grad():
        model.biases.add_(torch.arange(6.0).view(2, 3) / 6)
    return model


def problem(model, **options):
    init = {name: 0.5 * p.detach() for name, p in network().named_parameters()}
    return genbound.Problem(model, init, DATA, **options)


@pytest.mark.parametrize("kind", KEEPING)
def test_a_network_that_keeps_what_it_made_of_a_weight_is_measured_as_one_that_does_not(kind):
    results = [genbound.evaluate(problem(network(cls)), MEASURES).quantities for cls in (Net, kind)]
    assert results[0] == results[1]
    assert results[0]["hessian_trace"]["layers"]["biases"]["value"] != 0


@pytest.mark.parametrize("kind", KEEPING)
@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "recorded"])
@pytest.mark.parametrize("layers", [None, "head.weight"])
def test_one_that_was_run_before_is_refused(kind, recorded, layers):
    model = network(kind)
    with torch.set_grad_enabled(recorded):
        model(DATA[0])
    with pytest.raises(GenboundError, match="the model keeps a value of its weight biases"):
        problem(model, layers=layers)
    if kind is InADict:
        assert problem(model.train()).layers


def test_passes_leave_the_modules_as_they_were():
    model = network(InADict)
    before = {name: value for name, value in vars(model).items() if name != "training"}
    cache = model.cache
    genbound.evaluate(problem(model), ["losses"])
    assert model.cache is cache and not cache
    assert all(vars(model)[name] is value for name, value in before.items())


def test_a_sample_that_changes_the_network_does_so_for_its_own_pass():
    far = DATA[0].clone()
    far[2, 0] = 11.0
    model = network(Switched)
    init = {name: 0.5 * p.detach() for name, p in model.named_parameters()}
    whole = genbound.evaluate(genbound.Problem(model, init, (far, DATA[1]), batch_size=1), ["losses"])
    assert model.way == "tanh" and isinstance(model.between, nn.Tanh)
    each, scores = [], []
    for x, y in zip(far, DATA[1], strict=True):
        alone = network(Switched)
        with torch.no_grad():
            each.append(float(F.cross_entropy(alone(x[None]), y[None])))
            scores.append(alone.float()(x[None].float()))
    predicted = predict(network(Switched).float(), as_samples((far, DATA[1])), size=1)[0]
    torch.testing.assert_close(predicted, torch.cat(scores))
    assert whole.quantities["losses"]["train_loss"] == pytest.approx(sum(each) / 6, rel=1e-12)


class SpareBesideConstant(nn.Module):
    """A weight that is not used, beside a tensor that is no copy of it."""

    def __init__(self, used):
        super().__init__()
        self.fc, self.spare, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(2, 2)), torch.tensor(2.0)
        self.used = used

    def forward(self, x):
        return self.fc(x) * self.scale if self.used else self.fc(x)


@pytest.mark.parametrize("used", [False, True])
def test_an_unused_weight_beside_a_constant_is_measured(used):
    model = SpareBesideConstant(used).double()
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    found = genbound.evaluate(genbound.Problem(model, init, DATA), ["hessian_trace"])
    assert found.quantities["hessian_trace"]["layers"]["spare"]["value"] == 0


def test_a_network_that_is_validated_while_it_learns_is_seen_at_its_weights_of_then():
    model, plain, samples = network(InADict).float(), network().float(), as_samples(DATA)
    for _ in range(2):
        with torch.no_grad():
            model.biases.mul_(2)
            plain.load_state_dict(model.state_dict())
        assert torch.equal(predict(model, samples)[0], predict(plain, samples)[0])


def test_layers_none_of_which_is_used_have_no_curvature():
    model = SpareBesideConstant(True).double()
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    found = genbound.evaluate(genbound.Problem(model, init, DATA, layers="spare"))
    assert found.quantities["hessian_trace"]["total"]["value"] == 0
    assert found.quantities["max_positive_trace"]["layers"]["spare"]["upper"] == 0
    assert found.bounds["hessian_distance"]["value"] == 0
