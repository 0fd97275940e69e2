"""The largest quadratic form of a sample: its interval holds the dense truth."""

import copy
import math

import pytest
import torch
from cases import CASES
from shared_problems import CHOSEN, linear

import genbound
from genbound.network.problem import Problem
from genbound.quantities import quadratic_brackets


@pytest.mark.parametrize("tolerance", [0.2, 0.01, 1e-6])
@pytest.mark.parametrize("name", CHOSEN)
def test_max_quadratic_form(name, tolerance, problems, truths):
    problem, truth = problems(name), truths(name)
    options = {"tolerance": tolerance, "tolerance_of": "layer"}
    results = genbound.evaluate(problem, ["max_quadratic_form"], options={"max_quadratic_form": options})
    rows = results.quantities["max_quadratic_form"]["layers"]
    for layer in truth.layers:
        row, values = rows[layer], truth.positive_forms(layer)
        best = float(values.max())
        slack = 1e-12 * max(1.0, best)
        assert row["lower"] - slack <= best <= row["upper"] + slack, layer
        assert row["value"] == row["upper"]
        assert row["upper"] - row["lower"] <= tolerance * row["upper"] + slack, layer
        if best > 1e-12:
            assert float(values[row["sample"]]) >= best * (1 - tolerance) - slack
    table = results.samples.pivot(index="sample", columns="layer")
    for layer in truth.layers:
        values = truth.positive_forms(layer).numpy()
        assert (table["max_quadratic_form_lower", layer].to_numpy() <= values + 1e-10).all()
        assert (table["max_quadratic_form_upper", layer].to_numpy() >= values - 1e-10).all()


@pytest.mark.parametrize("tolerance", [0.3, 0.03, 1e-6])
@pytest.mark.parametrize("name", ["mlp_gelu", "encoder", "encoder_tied", "conv_silu"])
def test_the_sum_of_the_roots_to_a_tolerance(name, tolerance, problems, truths):
    """Every layer's interval holds the dense maximum, and so does the bound's, which is as narrow as was asked for."""
    problem, truth = problems(name), truths(name)
    rows, products = {}, {}
    for of in ("sum", "layer"):
        options = {"max_quadratic_form": {"tolerance": tolerance, "tolerance_of": of}}
        results = genbound.evaluate(problem, ["hessian_distance"], options=options)
        rows[of] = results.quantities["max_quadratic_form"]["layers"]
        products[of] = sum(row["num_products"] for row in rows[of].values())
        bound = results.bounds["hessian_distance"]
        slack = 1e-9 * bound.upper
        assert bound.upper - bound.lower <= tolerance * bound.upper + slack
        best = [float(truth.positive_forms(layer).max()) for layer in truth.layers]
        scale = math.sqrt(results.config["loss_range"]["value"] / problem.num_data)
        assert bound.lower - slack <= scale * sum(math.sqrt(max(m, 0.0)) for m in best) <= bound.upper + slack
        for layer, m in zip(truth.layers, best, strict=True):
            assert rows[of][layer]["lower"] - 1e-12 <= m <= rows[of][layer]["upper"] + 1e-12, layer
            assert "note" not in rows[of][layer]
    assert products["sum"] <= products["layer"]


@pytest.mark.parametrize("of", ["sum", "layer"])
def test_spent_products_leave_wide_intervals_with_a_note(of, problems, truths):
    """Layers that two products do not close hold up no others, and their intervals hold the dense maximum."""
    problem, truth = problems("encoder"), truths("encoder")
    options = {"max_quadratic_form": {"tolerance": 1e-6, "tolerance_of": of, "max_products": 2}}
    rows = genbound.evaluate(problem, ["max_quadratic_form"], options=options).quantities["max_quadratic_form"][
        "layers"
    ]
    assert any("within 2 products" in row.get("note", "") for row in rows.values())
    for layer in truth.layers:
        best, row = float(truth.positive_forms(layer).max()), rows[layer]
        assert row["lower"] - 1e-12 <= best <= row["upper"] + 1e-12, layer
        assert "note" in row or row["upper"] - row["lower"] <= 0.44 * row["upper"]


def test_where_rounding_is_left_no_products_are_blamed():
    """Blocks that are known but for rounding: more products would not narrow their intervals."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Tanh(), torch.nn.Linear(1, 2))
        x, init = torch.randn(3, 3), {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    problem = Problem(net, init, (x, torch.tensor([0, 1, 1])), dtype=torch.float32)
    options = {"max_quadratic_form": {"tolerance": 1e-7}}
    found = genbound.evaluate(problem, ["max_quadratic_form"], options=options).quantities["max_quadratic_form"]
    for row in found["layers"].values():
        assert row["note"].endswith(": what is left is rounding"), row


def test_a_tolerance_of_nothing_known_is_refused():
    with pytest.raises(genbound.GenboundError, match="tolerance_of 'all' is unknown; use sum or layer"):
        genbound.measure(
            linear([[0.5], [-0.5]], [[0.0], [1.0]], [0, 1], init=0.0), "max_quadratic_form", tolerance_of="all"
        )


def test_max_quadratic_form_names_the_sample_of_the_data(truths):
    """The index is that of the data, not of the measured part."""
    problem = CASES["mlp_gelu"].problem(num_samples=4, sample_seed=2)
    found = genbound.measure(problem, "max_quadratic_form", tolerance=1e-6)
    assert problem.indices != [0, 1, 2, 3]
    for layer, interval in found.items():
        values = truths("mlp_gelu").positive_forms(layer)[problem.indices]
        assert interval.sample == problem.indices[int(values.argmax())]


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "encoder_tied"])
def test_vectors_that_have_no_room_side_by_side_go_one_after_the_other(name, monkeypatch, problems):
    """In a first look; and a recursion keeps as few as there may be, and has the same maximum."""
    problem = problems(name)
    positions, passes, tape = range(problem.num_samples), [], Problem.tape
    whole, maximum = quadratic_brackets.screen(problem, positions), genbound.evaluate(problem, ["max_quadratic_form"])
    monkeypatch.setattr(quadratic_brackets, "vector_room", lambda budget: 8 * quadratic_brackets.HELD)

    def counted(self, positions, layers=None):
        passes.append(len(positions))
        return tape(self, positions, layers)

    monkeypatch.setattr(Problem, "tape", counted)
    found = quadratic_brackets.screen(problem, positions)
    assert passes.count(1) >= len(positions) > 1
    for side in ("lower", "upper"):
        assert found[side] == pytest.approx(whole[side], rel=1e-9, abs=1e-12)
    assert (found["exact"] == whole["exact"]).all()
    again = genbound.evaluate(problem, ["max_quadratic_form"]).quantities["max_quadratic_form"]["layers"]
    for layer, row in maximum.quantities["max_quadratic_form"]["layers"].items():
        assert again[layer]["lower"] <= row["upper"] * (1 + 1e-9) + 1e-12
        assert row["lower"] <= again[layer]["upper"] * (1 + 1e-9) + 1e-12


def test_max_quadratic_form_in_single_precision(truths):
    for name in ("mlp_gelu", "encoder_tied", "conv_silu"):
        problem = CASES[name].problem(dtype=torch.float32)
        found = genbound.measure(problem, "max_quadratic_form", tolerance_of="layer")
        for layer, interval in found.items():
            best = float(truths(name).positive_forms(layer).max())
            assert interval.lower <= best <= interval.upper
            assert interval.upper - interval.lower <= 0.0101 * interval.upper


def test_max_quadratic_form_of_softmax_regression():
    """By hand, v'Hv = Var_p(Vx).

    x = 1, scores (0, 0), V = (1, -1): variance 1. Second sample: x = 2: 4 * p (1-p) * 4 ...
    """
    problem = linear([[0.5], [-0.5]], [[0.0], [1.0]], [0, 1], init=0.0)
    p = 1 / (1 + math.exp(-1))
    found = genbound.measure(problem, "max_quadratic_form")["weight"]
    assert found.value == pytest.approx(p * (1 - p), rel=1e-9) and found.sample == 1


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("name", ["mlp_gelu", "encoder_tied", "mlp_relu"])
def test_paper_code_convention(name, size, truths):
    """The published scripts: max over batch means of v_i . (Hv)_i with the joint v, no truncation, head with v = W."""
    case, truth = CASES[name], truths(name)
    head = (case.layers[-1],)
    problem = case.problem(head=head)
    found = genbound.measure(problem, "max_quadratic_form", convention="paper-code", paper_batch_size=size)
    v = {n: truth.params[n].flatten() if n in head else truth.v[n] for n in case.layers}
    values = []
    for start in range(0, len(truth.inputs), size):
        h, where = truth.joint_hessian_of_mean(range(start, min(start + size, len(truth.inputs))))
        product = h @ torch.cat([v[n] for n in case.layers])
        values.append([float(v[n] @ product[where[n]]) for n in case.layers])
    for i, layer in enumerate(case.layers):
        assert found[layer].value == pytest.approx(max(row[i] for row in values), rel=1e-9, abs=1e-11)
    assert found[case.layers[0]].value != genbound.measure(problem, "max_quadratic_form")[case.layers[0]].value


def images(test=True):
    """A linear classifier of 2 x 2 images whose test images are larger than its training images."""
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3, bias=False)).double()
    init = {"1.weight": torch.zeros(3, 4, dtype=torch.float64)}
    x, held_out = (torch.randn(n, 1, 2, 2, generator=generator, dtype=torch.float64) for n in (6, 9))
    y, labels = torch.arange(6) % 3, torch.arange(9) % 3
    return genbound.Problem(net, init, (x, y), test_data=(3 * held_out, labels) if test else None), 3 * held_out, labels


def test_as_published_for_images():
    """Batches of the first test images, C their largest mean loss: against the dense Hessian of each batch."""
    problem, x, y = images()
    weight = problem.params["1.weight"]
    forms, losses = [], []
    for batch in (slice(0, 4), slice(4, 6)):  # six samples are measured
        loss = lambda w: torch.nn.functional.cross_entropy(x[batch].flatten(1) @ w.view(3, 4).T, y[batch])  # noqa: E731, B023
        hessian = torch.func.hessian(loss)(weight.flatten())
        forms.append(float(weight.flatten() @ hessian @ weight.flatten()))
        losses.append(float(loss(weight.flatten())))
    options = {"max_quadratic_form": {"convention": "paper-code", "paper_batch_size": 4}}
    results = genbound.evaluate(problem, ["hessian_distance"], options=options)
    found, bound = results.quantities["max_quadratic_form"], results.bounds["hessian_distance"]
    assert found["layers"]["1.weight"]["value"] == pytest.approx(max(forms), rel=1e-9)
    assert (found["split"], found["loss_range"]) == ("test", pytest.approx(max(losses), rel=1e-9))
    assert bound.value == pytest.approx(math.sqrt(max(losses) * max(forms) / 6), rel=1e-9)
    assert "4 test samples" in bound.note and "mean loss of a batch" in bound.note and "at_least" not in bound
    assert max(losses) < results.config["loss_range"]["value"]  # that of the theorem is a single sample's


@pytest.mark.parametrize(("test", "split", "note"), [(True, "train", ""), (False, "auto", "no test data")])
def test_as_published_of_training_data(test, split, note):
    problem, _, _ = images(test)
    options = {"max_quadratic_form": {"convention": "paper-code", "paper_split": split}}
    found = genbound.evaluate(problem, ["max_quadratic_form"], options=options).quantities["max_quadratic_form"]
    assert found["split"] == "train" and note in found["note"] and "8 train samples" in found["note"]


def test_runs_as_published_are_not_put_on_a_common_range():
    """Their C is their own; it is in no proportion to the largest loss of a sample."""
    options = {"max_quadratic_form": {"convention": "paper-code"}}
    run = genbound.evaluate(images()[0], ["hessian_distance"], options=options)
    other = copy.deepcopy(run)
    other.config["loss_range"]["value"] *= 4
    for found in genbound.compare([run, other]).runs.values():
        assert found.bounds["hessian_distance"].value == run.bounds["hessian_distance"].value
