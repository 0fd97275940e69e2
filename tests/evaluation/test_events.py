"""The order in which quantities are measured, and what whoever listens hears of them."""

import pytest

import genbound
from genbound.evaluation.order import cheapest_first
from genbound.quantities import QUANTITIES
from genbound.results.events import Advanced, Begun, Finished, Planned

MEASURES = "losses,displacement_norm,hessian_trace,noise_stability,max_quadratic_form,hessian_distance,trace_distance"


@pytest.fixture
def problem(problems):
    return problems("mlp_gelu")


def heard(problem, **more):
    events = []
    results = genbound.evaluate(problem, MEASURES, listen=events.append, **more)
    return results, events


def test_what_takes_least_comes_first_behind_what_it_requires():
    costs = {"max_quadratic_form": 3.0, "noise_stability": 1.0, "hessian_trace": 5.0, "margin": 0.0, "losses": 9.0}
    order = ["losses", "margin", "max_quadratic_form", "hessian_trace", "noise_stability"]
    assert cheapest_first(costs) == order


def test_every_quantity_stands_behind_what_it_requires_whatever_it_costs():
    order = cheapest_first({name: -float(i) for i, name in enumerate(QUANTITIES)})
    assert sorted(order) == sorted(QUANTITIES)
    assert all(order.index(name) > order.index(r) for name in order for r in QUANTITIES[name].requires)


def test_no_number_depends_on_the_order(problem, monkeypatch):
    usual = genbound.evaluate(problem, MEASURES)
    monkeypatch.setattr(
        "genbound.evaluation.loop.cheapest_first",
        lambda gradients: cheapest_first({name: -cost for name, cost in gradients.items()}),
    )
    other = genbound.evaluate(problem, MEASURES)
    assert list(usual.cost["seconds"]) != list(other.cost["seconds"])
    assert list(usual.quantities) == list(other.quantities)
    assert usual.quantities == other.quantities and usual.bounds == other.bounds


def test_events_come_in_order_and_parts_are_counted(problem):
    results, events = heard(problem)
    assert isinstance(events[0], Planned)
    costs = list(events[0].gradients.values())[1:]
    assert next(iter(events[0].gradients)) == "losses" and costs[0] == min(costs)
    assert [event.name for event in events if isinstance(event, Finished)] == list(events[0].gradients)
    for name in results.quantities:
        own = [event for event in events[1:] if event.name == name]
        assert isinstance(own[0], Begun) and isinstance(own[-1], Finished) and own[-1].reason == ""
        stages = {event.stage: event for event in own if isinstance(event, Advanced)}
        assert all(event.done == event.total for event in stages.values())


def test_what_is_known_grows_to_the_results(problem):
    results, events = heard(problem)
    ends = [event for event in events if isinstance(event, Finished)]
    tables = [event.known("not measured yet") for event in ends]
    assert [len(table.quantities) for table in tables] == list(range(1, len(ends) + 1))
    for event, table in zip(ends, tables, strict=True):
        assert table.quantities[event.name] == results.quantities[event.name]
        assert set(table.notes) == set(results.quantities) - set(table.quantities)
        assert table.bounds["trace_distance"]["value"] is None or "hessian_trace" in table.quantities
        table.to_markdown()
    assert "not measured yet" in tables[0].to_markdown()
    assert tables[-1].bounds == results.bounds and tables[-1].notes == results.notes
