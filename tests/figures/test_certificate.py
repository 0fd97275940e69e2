"""The picture of how a certificate comes about: its parts add up to the number of the table."""

import copy

import matplotlib
import pytest
import torch
from torch import nn

import genbound
from genbound.figures.certificate import APART, CHOICE, DRAWN, ITSELF, LENGTH, NAMES, SEEN, TOGETHER, parts_of
from genbound.figures.one_run import drawings_of, plots_of

ROWS = ["pac_bayes_certificate", "compression_certificate", "test_set_bound"]


def measured(num=120, classes=2, rows=ROWS, prior=False, **more):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, classes))
    start = copy.deepcopy(net.state_dict())
    x = torch.randn(num + 80, 3)
    y = (x[:, 0] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:num]), y[:num]).backward()
        optimizer.step()
    if prior:
        half = {name: start[name] + 0.9 * (value - start[name]) for name, value in net.state_dict().items()}
        more |= {"prior": half, "prior_samples": range(num // 2)}
    problem = genbound.Problem(net, start, (x[:num], y[:num]), test_data=(x[num:], y[num:]), **more)
    return genbound.evaluate(problem, rows)


def test_the_parts_add_up_to_the_table():
    results = measured(unlabelled=(torch.randn(60, 3), torch.zeros(60, dtype=torch.long)))
    found = parts_of(results)
    assert list(found)[:3] == [NAMES[row] for row in ROWS] and len(found) == 5
    for row in ROWS:
        assert sum(found[NAMES[row]].values()) == pytest.approx(results.bounds[row]["value"], rel=1e-12)
    for parts in found.values():
        assert all(amount >= 0 for amount in parts.values())
    noisy = found[NAMES[ROWS[0]]]
    assert noisy[SEEN] == results.quantities["losses"]["train_error"] and noisy[DRAWN] > 0 and noisy[CHOICE] > 0
    for row, name in ITSELF.items():
        assert sum(found[name].values()) == pytest.approx(10 ** results.bounds[row].forms["network"]["log10"])
        assert found[name][APART] > 0


def test_with_a_prior_the_networks_own_error_is_not_told_apart():
    """The training error is of all samples, and the certificate of some."""
    results = measured(prior=True, rows=ROWS[:2])
    for row in ROWS[:2]:
        parts = parts_of(results)[NAMES[row]]
        assert SEEN not in parts and TOGETHER in parts
        assert sum(parts.values()) == pytest.approx(results.bounds[row]["value"], rel=1e-12)
        assert list(parts)[-1] == LENGTH


def test_it_is_drawn_once_and_only_where_something_is_certified():
    results = measured(rows=ROWS[:2])
    assert plots_of(results).count("certificate") == 1
    with matplotlib.rc_context():
        ax = drawings_of(results)["certificate"]()
    assert "≤ 0" in "".join(text.get_text() for text in ax.texts)
    assert "certificate" not in plots_of(measured(rows=["test_set_bound", "losses"]))


def test_the_reports_figure_has_the_same_parts():
    pytest.importorskip("plotly")
    from genbound.figures.interactive import FIGURES

    results = measured(rows=ROWS)
    bars = [trace for trace in FIGURES["certificate"](results).data if trace.type == "bar"]
    sums = [sum(trace.x[place] for trace in bars) for place in range(3)]
    assert sums == pytest.approx([results.bounds[row]["value"] for row in ROWS])
