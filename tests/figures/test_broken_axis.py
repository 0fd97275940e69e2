"""The axis of powers of ten in two parts."""

import numpy as np
import pytest
from handmade import bound, run

from genbound.figures.bounds import bounds_of
from genbound.figures.broken_axis import APART, NEAR, PowersOfTen
from genbound.figures.style import new_axes

WIDE = PowersOfTen.showing([-0.2, 0.15, 0.5, 3.9, 37.0], near=[-0.7, 0.18])


def test_what_is_close_together_has_one_part():
    axis = PowersOfTen.showing([-0.4, -0.2, 0.1], near=[-0.7, 0.2])
    assert axis.cut is None and axis.low < -0.7 and axis.high > 0.2
    np.testing.assert_allclose(axis.to_axis([axis.low, axis.high]), [0, 1])


def test_far_bounds_do_not_squeeze_the_gap():
    places = WIDE.to_axis([-0.7, 0.18])
    assert np.ptp(places) > 0.2  # 0.9 of 38 decades would be 0.02
    assert 0 < places[0] and WIDE.to_axis([37.0]) < 1


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.6, 3.4, 20.0], [0.5, 100.0], [0.1 * i for i in range(60)] + [300.0]])
def test_the_cut_lies_between_two_values(values):
    axis = PowersOfTen.showing(values, near=[-1.0, 0.2])
    assert axis.cut is not None
    assert min(abs(v - axis.cut) for v in values) > 0.04 * APART
    assert any(v > axis.cut for v in values) and any(v < axis.cut for v in values)


def test_places_and_back():
    logs = np.linspace(WIDE.low, WIDE.high, 31)
    np.testing.assert_allclose(WIDE.from_axis(WIDE.to_axis(logs)), logs, atol=1e-12)
    assert (np.diff(WIDE.to_axis(logs)) > 0).all()
    assert WIDE.to_axis(np.array(WIDE.cut)) == pytest.approx(NEAR)


def test_ticks_are_numbers_that_people_read():
    assert [label for _, label in WIDE.ticks()][:4] == ["0.2", "0.5", "1", "2"]
    assert [label for _, label in PowersOfTen(-1.1, 40.0, cut=3.2).ticks()][:3] == ["0.1", "1", "10"]
    assert WIDE.ticks()[-1][1].startswith("$10^{")
    assert [label for _, label in PowersOfTen(-0.75, 0.31).ticks()] == ["0.2", "0.5", "1", "2"]
    assert [label for _, label in PowersOfTen(-0.5, 6.2).ticks()][2:5] == ["100", "1000", "$10^{4}$"]
    for place, label in PowersOfTen(-2.5, 2.5).ticks():
        assert float(label) == pytest.approx(10**place)


def test_a_single_value():
    axis = PowersOfTen.showing([0.3])
    assert axis.low < 0.3 < axis.high and axis.ticks()


def test_it_is_drawn():
    ax = new_axes()
    ax.plot([-0.2, 37.0], [0, 1], "o")
    WIDE.draw(ax)
    ax.figure.draw_without_rendering()
    assert ax.get_xlim() == (WIDE.low, WIDE.high)
    assert [t.get_text() for t in ax.get_xticklabels()] == [label for _, label in WIDE.ticks()]
    assert [t.get_text() for t in ax.texts] == ["the scale changes"]


def test_the_page_uses_the_same_axis():
    pytest.importorskip("plotly")
    from handmade import bound, run

    from genbound.figures.bounds import axis_of
    from genbound.figures.interactive import bounds_figure, spread_figure

    runs = {f"run{i}": run({"small": bound(0.5 + i), "large": bound(1e37)}) for i in range(3)}
    axis = axis_of(runs, "loss")
    assert axis.cut is not None
    fig = bounds_figure(runs, "loss")
    np.testing.assert_allclose(axis.from_axis(np.array(fig.data[0].x)), [np.log10(0.5), 37])
    np.testing.assert_allclose(
        axis.from_axis(np.array(fig.layout.xaxis.tickvals)), [t for t, _ in axis.ticks()], atol=1e-12
    )
    box = spread_figure(runs, "loss").data[0]
    np.testing.assert_allclose(axis.from_axis(np.array(box.median[:2])), [np.log10(1.5), 37], atol=1e-2)


def test_certificates_are_not_held_against_the_gap():
    """They bound the whole error: beside the gap they would be read as bounds of it."""
    found = run({"measure": bound(0.5, unit="error"), "safe": bound(0.1, unit="error") | {"kind": "certificate"}})
    assert bounds_of({"one": found}, "error")[0] == ["measure"]


@pytest.mark.parametrize("value", [-0.45, 0.15, 2.5, 2.85, 7.5, 3.0])
def test_a_lone_value_has_a_tick_beside_it(value):
    axis = PowersOfTen.showing([value])
    assert axis.ticks() and axis.low < value < axis.high
    assert all(0 <= place <= 1 for place in axis.to_axis(np.array([tick for tick, _ in axis.ticks()])))
