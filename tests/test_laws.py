"""Laws that hold for whole sets of quantities and bounds, and that nobody is in no set."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES, D

import genbound
from genbound.bounds import BOUNDS, Evidence
from genbound.bounds.ju2022hessian import HESSIAN_DISTANCE, NOISY_LABEL_DISTANCE, TRACE_DISTANCE
from genbound.bounds.zhang2024noise import ZHANG2024
from genbound.evaluation.selection import resolve
from genbound.quantities import QUANTITIES

# -- the tables -------------------------------------------------------------------------------------------------------

# quantity -> power in which it grows with the displacement, the network fixed (the initialisation moves away)
HOMOGENEOUS = {"displacement_norm": 1, "max_quadratic_form": 2}
# these depend on the initialisation, but not on it alone through a power
USE_THE_INITIALISATION = {
    "structure", "spectral_norm", "layer_norms", "flatness", "sharpness", "squared_path_norm", "init_activations",
    "matrix_norms",
    "loss_path", "loss_plane", "layer_curvature",
    "gibbs_error", "quantized_error",
}  # fmt: skip
# these look at the fine-tuned weights and the data alone
OF_THE_NETWORK = {
    "hessian_spectrum",
    "losses", "hessian_trace", "noise_stability", "max_positive_trace", "input_norm", "margin", "compression",
    "fisher_rao_norm", "power_law", "relative_flatness",
}  # fmt: skip


def power(exponent):
    """The law of what is a power."""
    return lambda n: n**exponent


# bound -> how its main term changes with n: up to a factor it is this function of n
LAW_IN_N = {
    **dict.fromkeys(["hessian_distance", "trace_distance", "zhang2024", "noisy_label_distance"], power(-0.5)),
    **dict.fromkeys(["pitas2017", "arora2018", "long2020", "gouk2021", "neyshabur2018", "bartlett2017"], power(-0.5)),
    **dict.fromkeys(["jiang2020_flatness", "jiang2020_magnitude", "path_norm", "fisher_rao"], power(-0.5)),
    **dict.fromkeys(["jiang2020_sharpness", "jiang2020_sharpness_magnitude"], power(-0.5)),
    "li2021": power(-0.25),
    **dict.fromkeys(["distance_frobenius", "distance_spectral", "distance_mars", "distance_two_one"], power(0.0)),
    **dict.fromkeys(["distance_spectral_matrix", "distance_mars_matrix", "distance_two_one_matrix"], power(0.0)),
    **dict.fromkeys(["stable_rank", "martin2021_alpha", "petzka2021"], power(0.0)),
}
# bound -> power of the displacement in its main term, where there is one
POWER_OF_DISPLACEMENT = {
    **dict.fromkeys(["hessian_distance", "trace_distance", "zhang2024", "noisy_label_distance"], 1.0),
    "jiang2020_sharpness": 1.0,
    **dict.fromkeys(["distance_frobenius", "distance_spectral", "distance_mars", "distance_two_one"], 1.0),
    **dict.fromkeys(["distance_spectral_matrix", "distance_mars_matrix", "distance_two_one_matrix"], 1.0),
}  # fmt: skip
# no power of n: a divergence's root beside an error; their laws are in bounds/test_certificates.py and test_occam.py
CERTIFICATES = {"pac_bayes_certificate", "compression_certificate", "test_set_bound"}
CHEAP = {
    "noise_stability": {"sigmas": (0.01,), "relative_sem": 5.0},
    "hessian_trace": {"layer_sem": 5.0, "total_sem": 5.0},
    "power_law": {"fewest": 3},
}


def test_nobody_is_in_no_set():
    assert set(HOMOGENEOUS) | USE_THE_INITIALISATION | OF_THE_NETWORK == set(QUANTITIES)
    assert set(LAW_IN_N) | CERTIFICATES == set(BOUNDS)
    assert set(POWER_OF_DISPLACEMENT) <= set(BOUNDS)


# -- quantities -------------------------------------------------------------------------------------------------------


def problem(name, factor=1.0, fitted=False, **arguments):
    """A case whose displacement is ``factor`` times what it was: the initialisation moves, the network stays.

    ``fitted`` takes the network's own answers for labels, so that its margins are positive.
    """
    case = CASES[name]
    model, init, inputs, targets = case.parts()
    params = dict(model.named_parameters())
    targets = model.eval()(inputs.to(D)).argmax(1) if fitted else targets
    init = {n: params[n].detach() - factor * (params[n].detach() - w) for n, w in init.items()}
    data = {"labels": targets, **inputs} if isinstance(inputs, dict) else (inputs, targets)
    arguments = {"loss_range": case.loss_range, "dtype": D, **arguments}
    return genbound.Problem(model, init, data, case.loss, **arguments)


def run(given, measures=None, **arguments):
    wanted, _ = resolve(measures) if measures else (QUANTITIES, None)
    return genbound.evaluate(given, measures, options={k: v for k, v in CHEAP.items() if k in wanted}, **arguments)


@pytest.mark.parametrize("name", ["mlp_gelu", "encoder_tied", "bounded"])
def test_zero_at_the_initialisation(name):
    measures = [*HOMOGENEOUS, "hessian_distance", "trace_distance"]
    results = run(problem(name, 0.0), measures)
    for quantity in HOMOGENEOUS:
        assert all(row["value"] == 0 for row in results.quantities[quantity]["layers"].values())
    for bound in ("hessian_distance", "trace_distance"):
        row = results.bounds[bound]
        assert row["value"] == row["lower"] == row["upper"] == 0 and row["log10"] is None
        assert row["vacuous"] is not None
    assert "hessian_distance" in results.to_markdown()


@pytest.mark.parametrize("quantity", HOMOGENEOUS)
@pytest.mark.parametrize("name", ["mlp_relu", "mlp_gelu", "encoder_tied", "tokens"])
def test_homogeneous_in_the_displacement(name, quantity):
    once, twice = (genbound.measure(problem(name, f), quantity) for f in (1.0, 2.0))
    scale = 2.0 ** HOMOGENEOUS[quantity]
    for layer, value in once.items():
        if quantity == "max_quadratic_form":
            assert twice[layer].lower == pytest.approx(scale * value.lower, rel=1e-7, abs=1e-12)
            assert twice[layer].sample == value.sample
        assert twice[layer].value == pytest.approx(scale * value.value, rel=1e-7, abs=1e-12)


def test_what_looks_at_the_network_alone_does_not_see_the_initialisation():
    measures = sorted(OF_THE_NETWORK)
    a, b = (run(problem("mlp_relu", f), measures).quantities for f in (1.0, -2.0))
    for name in OF_THE_NETWORK:
        assert a[name] == b[name], name


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "twice", "custom_loss", "bounded"])
def test_the_positive_part_is_at_least_the_form_and_at_most_its_trace(name, problems):
    """max(0, v'Hv) <= v'H+v <= Tr[H+] |v|^2 for the maxima as for every sample."""
    given = problems(name)
    results = run(given, ["max_quadratic_form", "max_positive_trace", "displacement_norm"])
    forms = {layer.name: [] for layer in given.layers}
    for tape in given.tapes(range(given.num_samples)):
        for layer in tape.layers:
            forms[layer] += tape.product(layer, given.displacement[layer])[0].tolist()
    for layer, row in results.quantities["max_quadratic_form"]["layers"].items():
        assert row["upper"] >= max(0.0, *forms[layer]) * (1 - 1e-9)
        trace = results.quantities["max_positive_trace"]["layers"][layer]["value"]
        norm = results.quantities["displacement_norm"]["layers"][layer]["value"]
        assert row["lower"] <= trace * norm**2 * (1 + 1e-9)


def test_traces_add_up(problems):
    found = run(problems("encoder"), ["hessian_trace"]).quantities["hessian_trace"]
    assert found["total"]["value"] == pytest.approx(sum(r["value"] for r in found["layers"].values()), rel=1e-12)


def test_a_subset_of_the_layers_gives_the_same_numbers():
    """Exact quantities of a layer do not depend on which others are looked at."""
    whole = genbound.measure(problem("mlp_gelu"), "hessian_trace")
    part = genbound.measure(problem("mlp_gelu", layers="2.*"), "hessian_trace")
    assert list(part) == ["2.weight"] and part["2.weight"].value == pytest.approx(whole["2.weight"].value, rel=1e-12)


def test_doubling_every_sample_changes_no_mean_and_no_maximum():
    model, init, x, y = CASES["mlp_gelu"].parts()
    measures = ["losses", "hessian_trace", "max_quadratic_form", "max_positive_trace"]
    once = genbound.evaluate(genbound.Problem(model, init, (x, y)), measures).quantities
    data = (torch.cat([x, x]), torch.cat([y, y]))
    twice = genbound.evaluate(genbound.Problem(model, init, data), measures).quantities
    assert twice["losses"]["train_loss"] == pytest.approx(once["losses"]["train_loss"], rel=1e-12)
    for quantity in measures[1:]:
        for layer, row in once[quantity]["layers"].items():
            assert twice[quantity]["layers"][layer]["value"] == pytest.approx(row["value"], rel=1e-2, abs=1e-12)
    assert twice["hessian_trace"]["total"]["value"] == pytest.approx(once["hessian_trace"]["total"]["value"], rel=1e-10)


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    """Everything, on a network that every bound applies to, for n and 16 n and for v and 2 v."""
    confusion = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    return {
        key: run(problem("mlp_relu", factor, fitted=True, num_data=n, loss_range="clip:20"), confusion=confusion).bounds
        for key, n, factor in (("once", 100, 1.0), ("n", 1600, 1.0), ("v", 100, 2.0))
    }


def _main_term(row):
    return row["forms"]["main_term"]["log10"]


def follows(law, once, more, factor):
    """Whether a main term changes from n = 100 to ``factor`` times as many samples as its law says."""
    return _main_term(more) - _main_term(once) == pytest.approx(np.log10(law(100 * factor) / law(100)), abs=1e-9)


@pytest.mark.parametrize("name", LAW_IN_N)
def test_law_in_n(name, measured):
    """From the network to the bound: sixteen times the data."""
    once, more = measured["once"][name], measured["n"][name]
    assert once["log10"] is not None, once["note"]
    assert follows(LAW_IN_N[name], once, more, 16)


def test_one_noise_for_all_layers_is_worse_than_one_for_each(measured):
    """By the inequality of Cauchy and Schwarz."""
    rows = measured["once"]
    assert rows["zhang2024"]["value"] > rows["trace_distance"]["value"] > 0


@pytest.mark.parametrize(("name", "exponent"), POWER_OF_DISPLACEMENT.items(), ids=list(POWER_OF_DISPLACEMENT))
def test_power_of_the_displacement(name, exponent, measured):
    once, twice = (_main_term(measured[key][name]) for key in ("once", "v"))
    assert twice - once == pytest.approx(exponent * np.log10(2), abs=1e-6)


@pytest.mark.parametrize("name", BOUNDS)
def test_intervals_contain_their_value(name, measured):
    row = measured["once"][name]
    if row["value"] is not None and row["lower"] is not None and row["upper"] is not None:
        assert row["lower"] <= row["value"] * (1 + 1e-12) and row["value"] <= row["upper"] * (1 + 1e-12)


def evidence(c=1.0, n=100, form=1.0, trace=1.0, confusion=None):
    layer = lambda v: {"layers": {"a": {"value": v, "lower": v, "upper": v, "sem": 0.0}}}  # noqa: E731
    quantities = {
        "losses": {"train_loss": 0.1, "reweighted_range": c, "reweighted_train_loss": 0.1},
        "max_quadratic_form": layer(form), "max_positive_trace": layer(trace),
        "displacement_norm": layer(0.5),
    }  # fmt: skip
    return Evidence(num_data=n, loss_range=c, quantities=quantities, confusion=confusion)


@pytest.mark.parametrize(
    "bound", [HESSIAN_DISTANCE, TRACE_DISTANCE, ZHANG2024, NOISY_LABEL_DISTANCE], ids=lambda b: b.name
)
def test_laws_of_the_hessian_bounds(bound):
    f = np.array([[0.9, 0.1], [0.2, 0.8]])
    get = lambda **changes: bound.evaluate(evidence(confusion=f, **changes))["value"]  # noqa: E731
    assert get(c=9.0) == pytest.approx(3 * get(), rel=1e-12)
    assert get(n=2500) == pytest.approx(get() / 5, rel=1e-12)
    assert get(form=4.0, trace=4.0) == pytest.approx(2 * get(), rel=1e-12)
    assert get(form=1.1, trace=1.1) > get() > get(form=0.9, trace=0.9)


def test_more_noise_in_the_labels_costs_more():
    values = []
    for p in (0.0, 0.1, 0.2, 0.3):
        f = np.array([[1 - p, p], [p, 1 - p]])
        values.append(NOISY_LABEL_DISTANCE.evaluate(evidence(confusion=f))["value"])
    assert values == sorted(values) and len(set(values)) == 4
    assert values[0] == TRACE_DISTANCE.evaluate(evidence())["value"]


# -- randomness -------------------------------------------------------------------------------------------------------

PACKAGE = Path(genbound.__file__).parent


def test_no_global_random_state():
    """``torch.manual_seed`` and numpy's global generator have no place in a library."""
    for path in sorted(PACKAGE.glob("**/*.py")):
        if path.name in ("pair.py", "start.py", "run.py"):
            continue  # a head drawn with seed:N, inside fork_rng: test_architecture.py sees that nothing leaks
        tree = ast.parse(path.read_text())
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {
            "torch.manual_seed",
            "np.random.seed",
            "random.seed",
            "np.random.normal",
            "np.random.randn",
        }, path
