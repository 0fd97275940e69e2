"""The rows of the catalogue name what exists: functions, required quantities, plots."""

import inspect
import json

import pytest
import torch

import genbound
from genbound.bounds import BOUNDS
from genbound.figures.interactive import FIGURES
from genbound.figures.one_run import PLOTS
from genbound.quantities import QUANTITIES
from genbound.quantities.base import later
from genbound.quantities.catalogue import FORMER_NAMES, reading_of
from genbound.quantities.summary import Reading


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_row(name):
    quantity = QUANTITIES[name]
    assert quantity.name == name and quantity.summary
    functions = {"measure": quantity.measure, "gradients": quantity.gradients, "applies_to": quantity.applies_to}
    for what, function in functions.items():
        if isinstance(function, later):
            assert function.where.startswith("genbound.quantities."), what
            function = function.found()
        assert len(inspect.signature(function).parameters) == (1 if what == "applies_to" else 2), what
    assert quantity.options()  # the defaults are fine


def test_no_bound_has_the_name_of_a_quantity():
    assert not set(QUANTITIES) & set(BOUNDS)


@pytest.mark.parametrize(("former", "present"), FORMER_NAMES.items())
def test_former_names_of_quantities_are_understood(former, present, tmp_path):
    """In Python, as measures (the bound of that name needs it), and in results that were stored before."""
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.ReLU(), torch.nn.Linear(3, 2, bias=False))
    init = {name: torch.randn(p.shape, generator=generator) for name, p in net.named_parameters()}
    x = torch.randn(6, 2, generator=generator)
    problem = genbound.Problem(net, init, (x, torch.arange(6) % 2))
    assert genbound.measure(problem, former) == genbound.measure(problem, present)
    results = genbound.evaluate(problem, [former])
    assert present in results.quantities and former in results.bounds
    results.save(tmp_path)
    file = tmp_path / "results.json"
    stored = json.loads(file.read_text())
    stored["quantities"][former] = stored["quantities"].pop(present)
    file.write_text(json.dumps(stored))
    assert genbound.load_results(tmp_path).quantities == genbound.load_results(results.save(tmp_path)).quantities
    file.write_text(json.dumps(stored))
    assert genbound.check(tmp_path, results)


def test_rows_stand_behind_what_they_require():
    names = list(QUANTITIES)
    for name, quantity in QUANTITIES.items():
        assert all(names.index(required) < names.index(name) for required in quantity.requires)
    assert all(set(bound.requires) <= set(QUANTITIES) for bound in BOUNDS.values())


def test_plots_are_drawn():
    named = [plot for quantity in QUANTITIES.values() for plot in quantity.reading.plots]
    assert sorted(set(named)) == sorted(PLOTS) == sorted(FIGURES)  # both certificates name the same picture


def test_errors_of_bounds_are_those_of_numbers_that_they_require():
    for bound in BOUNDS.values():
        for name in bound.shares_error_of:
            assert name.partition(":")[0] in bound.requires and name.partition(":")[2]


def test_a_quantity_of_another_version_is_read_as_its_numbers_stand():
    assert reading_of("of another version") == Reading() and reading_of("losses") is QUANTITIES["losses"].reading
