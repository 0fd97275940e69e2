"""``check``: what is flagged, what passes, and what it tells people and machines."""

import copy
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from handmade import bound, run
from torch import nn

import genbound
from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.results.observations import observe
from genbound.results.regression import check
from genbound.results.tolerance import Tolerance

ROOT = Path(__file__).parents[2]


def changed(path, change, **config):
    """A copy of the handmade run with one entry changed: ``path`` are its keys, ``change`` maps its value."""
    results = run(**config)
    node = {"quantities": results.quantities, "bounds": results.bounds}
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = change(node[path[-1]])
    return results


TRACE = ("quantities", "hessian_trace", "layers", "a.weight", "value")
NORM = ("quantities", "displacement_norm", "layers", "a.weight", "value")


def failures(found):
    return {(row.measure, row.where) for row in found.failures}


def test_a_run_agrees_with_itself():
    found = check(run(), run())
    assert found.passed and found and not found.failures and "numbers agree" in found.to_markdown()
    assert set(found.to_frame()["status"]) == {"ok"}


def test_random_numbers_move_with_their_error_bars():
    """Combined sem of two runs with sem 0.1: 0.1414; three random numbers at 1e-3: k = 3.59."""
    assert check(changed(TRACE, lambda v: v + 0.5), run()).passed
    found = check(changed(TRACE, lambda v: v + 0.52), run())
    assert failures(found) == {("hessian_trace", "a.weight")}
    assert found.k == pytest.approx(3.5871, abs=1e-3) and found.num_random == 3
    (row,) = found.failures
    assert (row.expected, row.obtained) == ("10 ± 0.1", "10.52 ± 0.1") and row.difference.startswith(
        "+3.7 sem (+5.2 %)"
    )
    assert check(changed(TRACE, lambda v: v + 0.52), run(), k=4).passed


def test_k_grows_with_the_number_of_comparisons():
    many = tuple(f"layer{i}.weight" for i in range(100))
    assert check(run(layers=many), run(layers=many)).k == pytest.approx(4.42, abs=0.01)


def test_other_samples_count_their_own_error():
    """data_sem 1 to either side: sqrt(2.02) times 3.59 is 5.1; maxima over other samples say nothing."""
    other = changed(TRACE, lambda v: v + 4, seed=1)
    found = check(other, run())
    assert found.passed and "other samples" in found.to_markdown()
    assert not check(changed(TRACE, lambda v: v + 6, seed=1), run()).passed
    assert not check(changed(TRACE, lambda v: v + 4, seed=1, samples_sha256="x"), run(samples_sha256="x")).passed


def test_exact_numbers_move_by_rounding_only():
    assert check(changed(NORM, lambda v: v * (1 + 1e-6)), run()).passed
    assert failures(check(changed(NORM, lambda v: v * 1.0001, seed=3), run())) == {("displacement_norm", "a.weight")}
    double = {"dtype": "float64"}
    assert not check(changed(NORM, lambda v: v * (1 + 1e-6), **double), run(**double)).passed
    assert check(changed(NORM, lambda v: v * 1.0001), run(), rounding=1e-3).passed
    assert not check(changed(NORM, lambda v: float("nan")), run()).passed


def test_certain_intervals_must_overlap():
    rows = ("quantities", "max_quadratic_form", "layers", "a.weight")
    assert check(changed(rows, lambda r: {**r, "value": 1.99, "lower": 1.97, "upper": 1.99}), run()).passed
    found = check(changed(rows, lambda r: {**r, "value": 1.9, "lower": 1.89, "upper": 1.9}), run())
    assert failures(found) == {("max_quadratic_form", "a.weight")}


def test_bounds_are_tight_at_equal_seed_and_as_wide_as_their_interval_at_another():
    at = ("bounds", "hessian_distance")
    moved = bound(0.6219, 0.6210, 0.6219)
    assert failures(check(changed(at, lambda r: moved), run())) == {("hessian_distance", "")}
    same = {"samples_sha256": "x"}
    assert check(changed(at, lambda r: moved, seed=1, **same), run(**same)).passed
    assert not check(changed(at, lambda r: bound(0.63, 0.629, 0.63), seed=1, **same), run(**same)).passed
    constant = bound(0.622, 0.6207, 0.6216, epsilon_1={"log10": 0.2})
    results = run({"hessian_distance": constant})
    results.bounds["hessian_distance"]["forms"]["epsilon_1"]["log10"] = 0.21
    assert failures(check(results, run({"hessian_distance": constant}))) == {("hessian_distance", "epsilon_1")}


def test_a_bound_that_overflows_or_is_lost():
    large = {"hessian_distance": bound(None, log10=400.0)}
    assert check(run(large), run(large)).passed
    assert not check(run({"hessian_distance": bound(None, log10=401.0)}), run(large)).passed
    found = check(run({"hessian_distance": bound(None, note="no longer applies")}), run())
    assert failures(found) == {("hessian_distance", "")} and "no longer applies" in found.to_markdown()
    found = check(run({}), run())
    assert failures(found) == {("hessian_distance", "")} and found.failures[0].status == "missing"
    found = check(run(), run({}))
    assert found.passed and "New, not in the baseline: hessian_distance" in found.to_markdown()


@pytest.mark.parametrize(
    ("rule", "factor", "passes"),
    [
        ("5%", 1.04, True), ("5%", 1.06, False), ("5%", 0.94, False), ("+5%", 1.04, True), ("+5%", 1.06, False),
        ("+5%", 0.5, True), ("-5%", 0.94, False), ("-5%", 0.96, True), ("-5%", 2.0, True), ("0.05", 1.04, True),
        ("0.05", 1.06, False), ("+0.05", 0.1, True), ("ignore", 9.0, True), ("4sem", 1.01, False),
    ],
)  # fmt: skip
def test_tolerances_and_direction(rule, factor, passes):
    for name in ("displacement_norm", "displacement_norm:a.weight", "displ*:a.*"):
        assert check(changed(NORM, lambda v: v * factor), run(), tolerances={name: rule}).passed == passes
    one = {"hessian_distance": bound(1.0)}
    assert (
        check(run({"hessian_distance": bound(factor)}), run(one), tolerances={"hessian_distance": rule}).passed
        == passes
    )


def test_a_tolerance_adds_to_the_error_bar():
    rule = {"hessian_trace": "+5%"}
    assert check(changed(TRACE, lambda v: v + 0.9), run(), tolerances=rule).passed
    assert not check(changed(TRACE, lambda v: v + 1.1), run(), tolerances=rule).passed
    assert check(changed(TRACE, lambda v: v - 9), run(), tolerances=rule).passed
    assert check(changed(TRACE, lambda v: v + 1.3), run(), tolerances={"hessian_trace:a.*": "10sem"}).passed
    assert check(changed(NORM, lambda v: 9.0), run(), tolerances={"*": "5%", "displacement_norm": "ignore"}).passed


@pytest.mark.parametrize("rule", ["", "five", "5%%", "--5%", "+4sem", "nan"])
def test_a_tolerance_that_makes_no_sense(rule):
    with pytest.raises(GenboundError, match="is not understood"):
        Tolerance.parse(rule)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hesian_distance", " (did you mean hessian_distance?)"), ("xyz*", ""),
        ("displacement_norm:a.wieght", " (did you mean displacement_norm:a.weight?)"),
    ],
)  # fmt: skip
def test_a_tolerance_of_nothing(stored, capsys, name, hint):
    """It would watch nothing and pass; that of a measure which these runs lack may be of other runs."""
    command = ["check", str(stored / "moved"), "--baseline", str(stored / "base"), "--tolerance", "*=ignore"]
    assert main([*command, "--tolerance", f"{name}=+5%"]) == 2
    err = capsys.readouterr().err
    assert f"tolerance of '{name}' fits no number of these runs{hint}\n" in err and err.count("\n") == 1
    for other in ("trace_distance", "trace_distance:epsilon_1", "*"):
        assert main([*command, "--tolerance", f"{other}=ignore"]) == 0
        out = capsys.readouterr().out
        assert "No number was compared." in out and "agree" not in out


def test_a_dropped_layer_is_named():
    found = check(run(layers=("a.weight",)), run())
    assert ("layer", "b.weight") in failures(found) and "this layer is gone" in found.to_markdown()
    assert not any(row.where.startswith("b.weight") for row in found.failures if row.measure != "layer")
    found = check(run(), run(layers=("a.weight",)))
    assert ("layer", "b.weight") in failures(found)


def test_extremes_over_random_draws_are_compared_at_equal_seed_only():
    def drawn(value, **config):
        results = run(samples_sha256="x", **config)
        rows = {n: {"smoothness": value, "beta": value, "cushion": 0.3} for n in ("a.weight", "b.weight")}
        results.quantities["compression"] = {"layers": rows, "smoothness": value}
        results.bounds["arora2018"] = bound(value)
        return results

    found = check(drawn(5.0, seed=1), drawn(3.0))
    assert found.passed and "another seed chooses among other draws" in found.to_markdown()
    assert len(check(drawn(5.0), drawn(3.0)).failures) == 6


def test_a_run_that_was_measured_differently():
    found = check(run(num_data=999), run())
    assert ("configuration", "n") in failures(found)


# -- a network ---------------------------------------------------------------------------------------------------------

MEASURES = ["losses", "displacement_norm", "hessian_trace", "noise_stability", "max_quadratic_form", "flatness"]
BOUNDS = ["hessian_distance", "jiang2020_flatness", "jiang2020_magnitude", "distance_frobenius"]
# Few draws: the error bars are what is tested.
OPTIONS = {
    "hessian_trace": {"exact_outputs": 1, "exact_products": 1, "max_probes": 8},
    "noise_stability": {"max_perturbations": 8},
}


def problem(scaled=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 6))
        init = {k: v.clone() for k, v in net.state_dict().items()}
        x = torch.randn(64, 12)
        y = (x[:, :6] + 0.5 * torch.randn(64, 6)).argmax(1)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    if scaled is not None:
        with torch.no_grad():
            net.get_parameter(scaled).mul_(1.01)
    return genbound.Problem(net, init, (x, y))


def measured(seed=0, measures=(*MEASURES, *BOUNDS), scaled=None):
    chosen = {name: o for name, o in OPTIONS.items() if name in measures}
    return genbound.evaluate(problem(scaled), measures, seed=seed, options=chosen)


@pytest.fixture(scope="module")
def baseline():
    return measured(measures=("losses", "displacement_norm", "hessian_trace", "hessian_distance"))


@pytest.mark.parametrize("layer", ["0.weight", "2.weight", "4.weight"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_layer_scaled_by_one_per_cent_is_flagged(baseline, layer, seed):
    found = check(measured(seed, ("losses", "displacement_norm", "hessian_distance"), layer), baseline)
    assert ("displacement_norm", layer) in failures(found) and ("losses", "train_loss") in failures(found)


def test_a_number_without_error_bar_does_not_depend_on_the_seed():
    """What is random and has no error of its own would be held to rounding."""
    a, b = (observe(measured(seed, MEASURES)) for seed in (0, 1))
    certain = [n for n, o in a.items() if not o.sem and o.lower is None and not o.extreme]
    assert certain and all(b[n].value == pytest.approx(a[n].value, rel=1e-6, abs=1e-9) for n in certain)


@pytest.mark.slow
def test_another_seed_passes():
    """200 measured seeds, each against the same baseline: fewer than 1 % are flagged, and the error bars are in use."""
    base, flagged, z = measured(0), 0, []
    for seed in range(1, 201):
        results = measured(seed)
        flagged += not check(results, base).passed
        z.append(
            [(o.value - observe(base)[n].value) / np.hypot(o.sem, observe(base)[n].sem)
             for n, o in observe(results).items() if o.sem and o.measure == "hessian_trace"]
        )  # fmt: skip
    assert flagged <= 1
    assert 0.5 < np.std(np.array(z) - np.mean(z, 0)) * np.sqrt(2) < 1.5


def test_false_alarms_of_simulated_seeds():
    """Seeds against baselines of their own are flagged at the stated rate.

    The numbers are normal with a true error bar, in 20 layers.
    """
    layers = tuple(f"layer{i}.weight" for i in range(20))
    stream = np.random.default_rng(0)

    def drawn():
        results = run({}, layers=layers)
        entry = results.quantities["hessian_trace"]
        entry["layers"] = {n: {"value": 10 + stream.normal(), "sem": 1.0, "data_sem": 0.0} for n in layers}
        entry["total"]["value"] = 200 + 0.2 * stream.normal()
        results.quantities = {"hessian_trace": entry}
        return results

    flagged = sum(not check(drawn(), drawn(), false_alarm=0.05).passed for _ in range(150))
    assert 1 <= flagged <= 19  # 7.5 expected; binomial(150, 0.05) lies outside with probability 6e-4
    assert sum(not check(drawn(), drawn()).passed for _ in range(100)) <= 1


# -- files, exit status, machines --------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    run().save(tmp_path / "base")
    changed(NORM, lambda v: 2 * v).save(tmp_path / "moved")
    return tmp_path


def test_exit_status(stored, capsys):
    base, moved = stored / "base", stored / "moved"
    assert main(["check", str(base), "--baseline", str(base / "results.json")]) == 0
    assert main(["check", str(moved), "--baseline", str(base)]) == 1
    out = capsys.readouterr().out
    assert "| displacement_norm | a.weight | 1          | 2          | +100 %" in out
    assert main(["check", str(moved), "--baseline", str(base), "--tolerance", "displacement_norm=ignore"]) == 0


def test_a_missing_baseline_is_an_error_until_it_is_written(stored, capsys):
    golden = stored / "golden" / "demo.json"
    assert main(["check", str(stored / "base"), "--baseline", str(golden)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("genbound: error: there is no baseline") and "--update" in err and err.count("\n") == 1
    assert not golden.exists()
    assert main(["check", str(stored / "base"), "--baseline", str(golden), "--update"]) == 0
    assert main(["check", str(stored / "base"), "--baseline", str(golden)]) == 0
    assert main(["check", str(stored / "moved"), "--baseline", str(golden)]) == 1
    assert main(["check", str(stored / "moved"), "--baseline", str(golden), "--update"]) == 0
    assert main(["check", str(stored / "moved"), "--baseline", str(golden)]) == 0


def test_a_baseline_edited_by_hand(stored):
    file = stored / "base" / "results.json"
    content = json.loads(file.read_text())
    content["bounds"]["hessian_distance"].update(value=0.7, log10=float(np.log10(0.7)))
    (stored / "edited.json").write_text(json.dumps(content))
    assert main(["check", str(stored / "base"), "--baseline", str(stored / "edited.json")]) == 1


@pytest.mark.parametrize(("version", "mend"), [(0, "measure again"), (99, "update genbound"), ("one", "measure again")])
def test_another_schema(stored, capsys, version, mend):
    content = json.loads((stored / "base" / "results.json").read_text())
    (stored / "old.json").write_text(json.dumps({**content, "schema_version": version}))
    assert main(["check", str(stored / "base"), "--baseline", str(stored / "old.json")]) == 2
    err = capsys.readouterr().err
    assert f"schema version {version}" in err and mend in err and err.count("\n") == 1


@pytest.mark.parametrize("wrong", [["--tolerance", "x"], ["--tolerance", "x=y"], ["--k", "-1"], ["--false-alarm", "2"]])
def test_wrong_arguments(stored, wrong):
    assert main(["check", str(stored / "base"), "--baseline", str(stored / "base"), *wrong]) == 2


def test_junit(stored):
    main(["check", str(stored / "moved"), "--baseline", str(stored / "base"), "--junit", str(stored / "out.xml")])
    suite = ElementTree.parse(stored / "out.xml").getroot().find("testsuite")
    assert suite.get("failures") == "1" and int(suite.get("tests")) == len(suite.findall("testcase"))
    (failed,) = [case for case in suite if case.find("failure") is not None]
    assert failed.get("name") == "displacement_norm" and "expected 1, obtained 2" in failed.find("failure").text


def test_github_annotations(stored, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    main(["check", str(stored / "moved"), "--baseline", str(stored / "base")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    assert len(lines) == 1 and "title=genbound%3A displacement_norm::" in lines[0]
    assert "(+100 %25)" in lines[0]
    main(["check", str(stored / "moved"), "--baseline", str(stored / "base"), "--no-github"])
    assert "::error" not in capsys.readouterr().out


# -- the pytest plugin -------------------------------------------------------------------------------------------------


def run_pytest(folder, *arguments):
    installed = any(point.value == "genbound.pytest_plugin" for point in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "genbound.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *plugin, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


TEST = """
import genbound

def test_same(bound_regression):
    bound_regression(genbound.load_results({base!r}))

def test_moved(bound_regression):
    bound_regression(genbound.load_results({moved!r}), "golden.json")
    bound_regression(genbound.load_results({moved!r}), "golden.json", tolerances={{"displacement_norm": "+5%"}})

def test_allowed(bound_regression):
    bound_regression(genbound.load_results({moved!r}), "golden.json", tolerances={{"displacement_norm": "ignore"}})
"""


def test_the_fixture(stored):
    (stored / "golden.json").write_text((stored / "base" / "results.json").read_text())
    (stored / "test_it.py").write_text(TEST.format(base=str(stored / "base"), moved=str(stored / "moved")))
    status, out = run_pytest(stored)
    assert status == 1 and "2 failed, 1 passed" in out
    assert "there is no baseline" in out and "pytest --update-bounds" in out and not (stored / "test_it").exists()
    assert "displacement_norm" in out and "+100 %" in out
    assert run_pytest(stored, "--update-bounds")[0] == 0
    written = json.loads((stored / "test_it" / "test_same.json").read_text())
    assert written == json.loads((stored / "base" / "results.json").read_text())


def test_the_plugin_is_an_entry_point():
    from configparser import ConfigParser

    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert "genbound = genbound.pytest_plugin" in config["options.entry_points"]["pytest11"]


def test_check_changes_neither(baseline):
    before = copy.deepcopy(baseline.to_json())
    check(baseline, baseline)
    assert baseline.to_json() == before


def retrained(path, change):
    """The handmade run with other weights and one entry changed."""
    results = changed(path, change)
    results.checkpoint = {"path": "finetuned.safetensors", "sha256": "d" * 64}
    return results


LOSS = ("quantities", "losses", "test_loss")
BOUND = ("bounds", "hessian_distance")


def test_what_falls_with_other_weights_is_better():
    for path, change in ((LOSS, lambda v: v / 2), (BOUND, lambda r: bound(0.4, 0.399, 0.4))):
        found = check(retrained(path, change), run())
        assert found.passed and {row.status for row in found.rows} == {"ok", "improved"}
        entry = ", ".join(path[1:])  # losses, test_loss
        assert f"Better than the baseline: {entry} (" in found.to_markdown() and "1 are better" in found.to_markdown()
        assert not check(changed(path, change), run()).passed  # the same weights have the same number
    assert not check(retrained(BOUND, lambda r: bound(0.8, 0.799, 0.8)), run()).passed
    assert not check(retrained(LOSS, lambda v: 2 * v), run()).passed
    assert check(retrained(NORM, lambda v: v / 2), run()).passed
    assert not check(retrained(BOUND, lambda r: bound(0.4)), run(), tolerances={"hessian_distance": "5%"}).passed
    assert check(retrained(BOUND, lambda r: bound(0.4)), run(), tolerances={"hessian_distance": "+5%"}).passed


def test_one_line_a_measure_with_its_worst_layer():
    """Of three norms that grew by 1, 20 and 2 %, the second is the worst."""
    names = ("a.weight", "b.weight", "c.weight")
    grown, before = run(layers=names), run(layers=names)
    for name, factor in zip(names, (1.01, 1.2, 1.02), strict=True):
        grown.quantities["displacement_norm"]["layers"][name]["value"] *= factor
    found = check(grown, before)
    short, every = found.to_markdown(), found.to_markdown(verbose=True)
    assert "| b.weight and 2 more |" in short and "+20 %" in short and "--verbose shows every number" in short
    assert "a.weight" not in short and all(f"| {name} " in every for name in names)
    assert "and 2 more" not in every and "3 of " in short


def test_a_first_baseline_has_nothing_to_compare(tmp_path):
    text = check(run(), tmp_path / "base.json", update=True).to_markdown()
    assert text == f"Wrote the baseline {tmp_path / 'base.json'}."
