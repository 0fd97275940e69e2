"""Labels of every form that people train with: one score and 0 or 1, probabilities, pictures of classes."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.errors import GenboundError
from genbound.network.label_losses import BINARY, SOFT
from genbound.network.loss_functions import CROSS_ENTROPY

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(6, 4, generator=GENERATOR)
ONES = torch.tensor([0, 1, 1, 0, 1, 1])
Q = torch.randn(6, 3, generator=GENERATOR).softmax(-1)


class Flat(nn.Module):
    """One number a sample, without an axis for it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).squeeze(-1)


class Picture(nn.Module):
    def __init__(self, classes=3, last=False):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, classes, 1), last

    def forward(self, x):
        scores = self.b(self.a(x).tanh())
        return scores.movedim(1, -1) if self.last else scores


def built(factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return factory()


def mlp(outputs=1):
    return built(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)))


def problem(model, x, targets, **arguments):
    init = {n: p.detach() + 0.1 for n, p in model.named_parameters()}
    return genbound.Problem(model, init, (x, targets), dtype=torch.float64, **arguments)


def checked(found, model, x, per_sample):
    """Mean loss, and the maximum of the quadratic form in the first layer, against dense Hessians."""
    model, x, (name, *_) = model.double(), x.double(), found.params
    params = {n: p.detach() for n, p in model.named_parameters()}

    def losses(weight):
        return per_sample(torch.func.functional_call(model, {**params, name: weight}, (x,)))

    weight = params[name]
    assert genbound.measure(found, "losses")["train_loss"] == pytest.approx(float(losses(weight).mean()), rel=1e-10)
    v = found.displacement[name].double().flatten()
    hessians = torch.func.jacfwd(torch.func.jacrev(losses))(weight).reshape(len(x), v.numel(), v.numel())
    values, vectors = torch.linalg.eigh(hessians)
    wanted = float(((vectors.mT @ v).square() * values.clamp(min=0)).sum(1).max())
    row = genbound.measure(found, "max_quadratic_form", tolerance_of="layer")[name]
    assert row.lower <= wanted * (1 + 1e-9) and wanted <= row.upper * (1 + 1e-9)
    assert row.upper - row.lower <= 0.01 * row.upper


@pytest.mark.parametrize("labels", ["whole", "floating", "column"])
@pytest.mark.parametrize("loss", ["cross_entropy", "multi_label"])
@pytest.mark.parametrize("flat", [False, True])
def test_one_score_and_labels_0_or_1_are_binary_cross_entropy(labels, loss, flat):
    targets = {"whole": ONES, "floating": ONES.float(), "column": ONES.float().unsqueeze(1)}[labels]
    model = Flat(mlp()) if flat else mlp()
    found = problem(model, X, targets, loss=loss)
    assert found.loss is BINARY and found.num_outputs == 1
    checked(
        found, model, X, lambda z: F.binary_cross_entropy_with_logits(z.view(6), ONES.double(), reduction="none")
    )  # fmt: skip
    losses = genbound.measure(found, "losses")
    assert losses["train_error"] == pytest.approx(float(((found_scores(found) > 0) != ONES.bool()).double().mean()))
    assert losses["constant_loss"] == pytest.approx(
        -(4 / 6 * torch.tensor(4 / 6).log() + 2 / 6 * torch.tensor(2 / 6).log())
    )
    assert losses["constant_error"] == pytest.approx(2 / 6)


def found_scores(found):
    return found.forward(found.params, found.batch(range(6)).inputs)[:, 0]


def test_one_score_is_the_network_of_two_scores_whose_first_is_zero():
    one, two = mlp(1), mlp(2)
    with torch.no_grad():
        two.load_state_dict({**one.state_dict(), "2.weight": torch.zeros(2, 3), "2.bias": torch.zeros(2)})
        two[2].weight[1], two[2].bias[1] = one[2].weight[0], one[2].bias[0]
    traces = [genbound.measure(problem(model, X, ONES), "hessian_trace", seed=1)["0.weight"] for model in (one, two)]
    assert abs(traces[0].value - traces[1].value) <= 4 * (traces[0].sem ** 2 + traces[1].sem ** 2) ** 0.5 + 1e-10


def test_bounded_losses_of_other_labels():
    p_min, model = 0.05, mlp()
    found = problem(model, X, ONES, loss_range="bounded:0.05")
    two = lambda z: torch.stack([1 - z.sigmoid(), z.sigmoid()], 1)  # noqa: E731
    checked(found, model, X, lambda z: -(p_min + 0.9 * two(z.view(6)).gather(1, ONES.view(6, 1)).view(6)).log())
    assert found.loss.range == pytest.approx(-float(torch.tensor(p_min).log()))
    model = mlp(3)
    found = problem(model, X, Q, loss_range="bounded:0.05")
    checked(found, model, X, lambda z: -(Q.double() * (p_min + 0.85 * z.softmax(-1)).log()).sum(-1))
    with pytest.raises(GenboundError, match=r"needs 0 < PMIN < 1/K = 0\.5"):
        problem(mlp(), X, ONES, loss_range="bounded:0.6")


@pytest.mark.parametrize("targets", [ONES, Q])
def test_clipped_losses_of_other_labels(targets):
    model = mlp(1 if targets is ONES else 3)
    found = problem(model, X, targets, loss_range="clip:0.7")
    plain = problem(model, X, targets)
    outputs = plain.forward(plain.params, plain.batch(range(6)).inputs)
    wanted = plain.loss.per_sample(outputs, plain.batch(range(6)).targets).clamp(max=0.7).mean()
    assert genbound.measure(found, "losses")["train_loss"] == pytest.approx(float(wanted))
    assert genbound.evaluate(found, ["hessian_distance"]).config["loss_range"]["value"] == 0.7


def test_a_users_loss_is_given_the_outputs_as_the_network_gives_them():
    def soft_margin(z, t):
        assert z.shape == t.shape
        return F.soft_margin_loss(z, 2 * t - 1, reduction="none")

    model = Flat(mlp())
    found = problem(model, X, ONES.float(), loss=soft_margin)
    checked(found, model, X, lambda z: F.softplus(-z * (2 * ONES - 1)))


@pytest.mark.parametrize("targets", [torch.tensor([0, 1, 2, 0, 1, 2]), torch.linspace(-1, 1, 6)])
def test_other_labels_of_one_score_are_refused_with_the_mend(targets):
    with pytest.raises(GenboundError, match=r"neither 0 nor 1.*--loss squared_error"):
        problem(mlp(), X, targets)


@pytest.mark.parametrize("form", ["soft", "one-hot", "whole"])
def test_probabilities_are_labels(form):
    targets = {"soft": Q, "one-hot": F.one_hot(Q.argmax(1), 3).float(), "whole": F.one_hot(Q.argmax(1), 3)}[form]
    model = mlp(3)
    found = problem(model, X, targets)
    assert found.loss is SOFT
    checked(found, model, X, lambda z: -(targets.double() * z.log_softmax(-1)).sum(-1))
    losses = genbound.measure(found, "losses")
    mean = targets.double().mean(0)
    assert losses["constant_loss"] == pytest.approx(float(-(mean * mean.clamp(min=1e-300).log()).sum()), rel=1e-6)
    if form != "soft":
        plain = problem(mlp(3), X, Q.argmax(1))
        assert plain.loss is CROSS_ENTROPY
        wanted = genbound.measure(plain, "losses")
        assert {k: losses[k] for k in ("train_loss", "train_error", "constant_error")} == pytest.approx(
            {k: wanted[k] for k in ("train_loss", "train_error", "constant_error")}
        )


@pytest.mark.parametrize("targets", [torch.ones(6, 3), 2 * Q, Q - 0.5])
def test_rows_that_are_no_probabilities_are_refused_with_the_mend(targets):
    with pytest.raises(GenboundError, match=r"no probabilities of 3 classes.*multi_label"):
        problem(mlp(3), X, targets)


PIXELS = torch.randn(6, 2, 2, 3, generator=GENERATOR)
CLASSES = torch.randint(0, 3, (6, 2, 3), generator=GENERATOR)


def mean_over_labelled(z, targets):
    losses = F.cross_entropy(z, targets, reduction="none", ignore_index=-100)
    return losses.flatten(1).sum(1) / (targets != -100).flatten(1).sum(1)


@pytest.mark.parametrize("ignored", [False, True])
def test_segmentation_has_its_classes_on_the_second_axis(ignored):
    targets = CLASSES.where(torch.arange(3) > 0, -100) if ignored else CLASSES
    model = built(Picture)
    found = problem(model, PIXELS, targets)
    assert found.num_classes == 3 and not found.remarks
    checked(found, model, PIXELS, lambda z: mean_over_labelled(z, targets))
    last = problem(built(lambda: Picture(last=True)), PIXELS, targets)
    assert genbound.measure(last, "losses") == genbound.measure(found, "losses")


def test_segmentation_with_one_score_a_pixel_is_binary():
    model, targets = built(lambda: Picture(1)), (CLASSES > 0).long()
    found = problem(model, PIXELS, targets)

    def losses(z):
        return F.binary_cross_entropy_with_logits(z.squeeze(1), targets.double(), reduction="none").flatten(1).mean(1)

    checked(found, model, PIXELS, losses)


def test_where_either_axis_may_be_the_classes_the_table_says_which_was_taken():
    square = torch.randn(6, 2, 3, 3, generator=GENERATOR), torch.randint(0, 3, (6, 3, 3), generator=GENERATOR)
    model = built(Picture)
    found = problem(model, *square)
    with torch.no_grad():
        wanted = float(F.cross_entropy(model(square[0]), square[1]))
    assert genbound.measure(found, "losses")["train_loss"] == pytest.approx(wanted, rel=1e-6)
    assert "second axis" in genbound.evaluate(found, ["losses"]).to_markdown()


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv1d(2, 3, 1)

    def forward(self, x):
        return self.a(x)


def test_taggers_with_their_classes_on_the_second_axis():
    x, targets = torch.randn(6, 2, 5, generator=GENERATOR), torch.randint(0, 3, (6, 5), generator=GENERATOR)
    model = built(Tagger)
    found = problem(model, x, targets)
    with torch.no_grad():
        wanted = float(F.cross_entropy(model(x), targets))
    assert genbound.measure(found, "losses")["train_loss"] == pytest.approx(wanted, rel=1e-6)


def test_wrapped_modules_are_refused_with_the_mend():
    with pytest.raises(GenboundError, match=r"give model\.module"):
        problem(nn.DataParallel(mlp(3)), X, Q.argmax(1))
    for wrap in (torch.jit.script, lambda model: torch.jit.trace(model, X)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch itself advises against it
            model = wrap(mlp(3))
        with pytest.raises(GenboundError, match="give the module that it was made of"):
            problem(model, X, Q.argmax(1))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.wave, self.head = nn.Parameter(torch.randn(4, 5, dtype=torch.complex64)), nn.Linear(5, 3)

    def forward(self, x):
        return self.head((x.to(self.wave.dtype) @ self.wave).abs())


def test_complex_weights_that_moved_are_named():
    model = built(Complex)
    init = {n: p.detach().clone() for n, p in model.named_parameters()}
    for moved in (False, True):
        if moved:
            init["wave"] += 0.1
        found = genbound.Problem(model, init, (X, Q.argmax(1)))
        said = genbound.evaluate(found, ["displacement_norm"]).to_markdown()
        assert ("these moved: wave" in said) is moved
