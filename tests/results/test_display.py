"""How far an evaluation is: one bar on a terminal, elsewhere a line now and then, and what is left by the forecast."""

import io
import re
import sys

import pytest
from handmade import bound, run

from genbound.results.display import Display, known_rows
from genbound.results.events import Advanced, Begun, Finished, Planned
from genbound.results.progress_bar import Bar


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def finished(name, clock, seconds, reason=""):
    clock.now += seconds
    return Finished(name, reason, seconds, lambda reason: run({"hessian_distance": bound(0.5), "later": bound(None)}))


@pytest.fixture
def clock():
    return Clock()


def lines(capsys):
    err = capsys.readouterr().err
    assert "\r" not in err and "\x1b" not in err
    return err.splitlines()


def test_what_is_left_is_the_forecast_at_the_pace_of_what_is_done(clock, capsys):
    """Two of ten gradients took 20 s, so that a gradient takes 10; five seconds of the third one's thirty are over."""
    with Bar(clock) as bar:
        display = Display(bar, clock=clock)
        display(Planned({"a": 1.9, "b": 2.9, "c": 4.9}))
        display(Begun("a"))
        display(finished("a", clock, 20.0))
        assert lines(capsys) == ["genbound: 20 %, 20 s so far, about 80 s left: a"]
        display(Begun("b"))
        clock.now += 15.0
        display(Advanced("b", "probes", 1, 4))
        assert lines(capsys) == ["genbound: 35 %, 35 s so far, about 65 s left: b, probes 1 of 4"]
        display(finished("b", clock, 45.0))
        assert lines(capsys) == ["genbound: 50 %, 80 s so far, about 65 s left: b, probes 1 of 4"]
        display(finished("c", clock, 65.0))
        assert lines(capsys)[0].startswith("genbound: 100 %")


def test_lines_come_now_and_then(clock, capsys):
    """An hour of a thousand parts has as many lines as a reader wants, and the first one comes soon."""
    with Bar(clock) as bar:
        for part in range(3600):
            clock.now += 1.0
            bar.show(part / 3600, "parts")
    told = lines(capsys)
    assert 15 < len(told) < 30 and "10 s so far" in told[0]


def test_what_does_not_take_long_says_nothing(clock, capsys):
    with Bar(clock) as bar:
        bar.show(0.5, "soon there")
    assert lines(capsys) == []


def test_each_quantity_has_a_line_where_it_is_asked_for(clock, capsys):
    display = Display(Bar(clock), verbose=True, clock=clock)
    display(Planned({"a": 1.0, "b": 1.0}))
    display(finished("a", clock, 0.25))
    display(finished("b", clock, 0.0, "does not apply: no weight"))
    assert lines(capsys) == ["genbound: a: 250 ms", "genbound: b: does not apply: no weight"]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize("width", [60, 100])
def test_a_terminal_shows_the_table_as_it_grows(width, clock, monkeypatch):
    """The bar is one line, and both are gone in the end."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    for name, value in {"COLUMNS": str(width), "LINES": "30", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    with Bar(clock) as bar:
        display = Display(bar, clock=clock)
        display(Planned({"first": 1.0, "a_quantity_with_a_very_long_name_that_takes_more_than_a_line": 1.0}))
        display(finished("first", clock, 2.0))
        display(Begun("a_quantity_with_a_very_long_name_that_takes_more_than_a_line"))
        assert "hessian_distance" not in screen.getvalue()
        bar._live.refresh()
        seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n")
        assert "hessian_distance" in seen and "later" not in seen and "50 %" in seen
        assert max(map(len, seen.splitlines())) <= width
    assert screen.getvalue().endswith("\x1b[2K") or "\x1b[?25h" in screen.getvalue()[-20:]  # the cursor is back


def test_a_terminal_that_cannot_draw_gets_lines(clock, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "dumb")
    with Bar(clock) as bar:
        clock.now = 11.0
        bar.show(0.5, "half")
    assert screen.getvalue() == "genbound: 50 %, 11 s so far: half\n"


def test_rows_without_a_value_wait():
    rows = known_rows(run({"a": bound(0.5), "b": bound(None), "c": bound(None, log10=400.0)}))
    assert [row[0] for row in rows] == ["a", "c"]
