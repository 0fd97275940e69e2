"""The report as a reader meets it, in a real Chromium: ``pip install 'genbound[test]'``."""

import importlib.util
from pathlib import Path

import pytest
from browser import visit

pytest.importorskip("plotly", reason="the report needs plotly")
pytest.importorskip(  # what is lacking may be a library of the system: libEGL, libnss3, libxkbcommon …
    "PyQt6.QtWebEngineCore", reason="no Chromium: pip install 'genbound[test]', and what Qt needs of the system",
    exc_type=ImportError,
)  # fmt: skip

DRAWN = """new Promise(done => { const ask = () => {
  const seen = [...document.querySelectorAll(".figure")].filter(p => p.getBoundingClientRect().top < innerHeight);
  const drawn = seen.length && seen.every(p => p.querySelector(".main-svg"));
  drawn ? done(seen.length) : setTimeout(ask, 50); }; ask(); })"""
BOXES = """[...document.querySelectorAll(".main-svg")].filter(svg => svg.closest(".figure")).map(svg =>
  [svg.getBoundingClientRect().width, svg.closest(".figure").parentElement.clientWidth])"""
UNFOLD = "document.querySelectorAll('details').forEach(part => part.open = true)"
SIZES = [(1280, False), (1280, True), (375, False), (375, True)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three runs, each worse than the one before."""
    from test_report import make_runs

    from genbound.figures.report import report

    folder = tmp_path_factory.mktemp("page")
    return report(make_runs(folder), folder / "report.html").as_uri()


def axe():
    """The script of axe-core that comes with a package of Python."""
    found = importlib.util.find_spec("axe_core_python")
    if found is None:
        pytest.skip("pip install 'genbound[test]' for axe-core")
    return (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_plots_fit_at_load_and_axe_finds_nothing(page, width, dark):
    check = f"(() => {{ {axe()}; return axe.run().then(found => found.violations.map(v => [v.id, v.impact])) }})()"
    found = visit(page, width, 6000, dark, [DRAWN, "document.documentElement.scrollWidth", BOXES, check, UNFOLD, check])
    seen, scrolled, boxes, violations, _, unfolded = found["values"]
    assert found["problems"] == [] and seen >= 5
    assert scrolled <= width  # wide tables scroll by themselves
    assert all(inner <= outer and outer - inner < 2 for inner, outer in boxes)
    assert violations == [] and unfolded == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (375, 800)])
def test_the_first_screen_answers(page, width, height):
    """Is it a guarantee, how does it stand to the gap, which layer drives it, did it get worse: without scrolling."""
    shown = """["Is it a guarantee?", "How does it stand to the gap?", "Which layer drives it?", "Did it get worse?"]
      .map(question => [...document.querySelectorAll(".card")].find(card => card.textContent.includes(question)))
      .map(card => card ? card.querySelector(".short").getBoundingClientRect().bottom : 1e9)"""
    outside = """[...document.querySelectorAll("main *")].filter(part => {
      const box = part.getBoundingClientRect();
      return box.width && !part.closest(".scroll, .figure") && (box.right > innerWidth + 1 || box.left < -1);
      }).map(part => part.outerHTML.slice(0, 80))"""
    bottoms, beyond = visit(page, width, height, False, [shown, outside])["values"]
    assert len(bottoms) == 4 and max(bottoms) <= height, bottoms
    assert beyond == []


def test_colours_follow_the_reader(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    text = "getComputedStyle(document.querySelector('.xtitle')).fill"
    light, dark = (visit(page, 1280, 6000, d, [DRAWN, colour, text])["values"][1:] for d in (False, True))
    assert light == ["rgb(255, 255, 255)", "rgb(28, 39, 51)"] and dark == ["rgb(18, 24, 31)", "rgb(228, 233, 238)"]


def test_plots_follow_a_width_that_changes(page):
    narrow = "(document.querySelector('main').style.width = '500px', new Promise(done => setTimeout(done, 500)))"
    boxes = visit(page, 1280, 6000, steps=[DRAWN, narrow, BOXES])["values"][2]
    assert len(boxes) >= 11 and all(abs(inner - outer) < 2 and outer < 500 for inner, outer in boxes)


def test_sorting_by_keyboard_and_mouse(page):
    rows = """document.querySelector("#bounds details table")"""
    column = f"[...{rows}.tBodies[0].rows].map(row => row.cells[2].textContent)"
    press = f"{rows}.querySelectorAll('thead button')[2].click()"
    state = f"{rows}.querySelectorAll('thead th')[2].getAttribute('aria-sort')"
    reached = f"[...{rows}.querySelectorAll('thead button')].every(button => button.tabIndex === 0)"
    up, down = 2, 5
    found = visit(page, steps=[reached, press, column, state, press, column, state])["values"]
    named = [[cell for cell in found[step] if cell in ("0.5", "8e+05", "1e412.3")] for step in (up, down)]
    assert found[0] and named == [["0.5", "8e+05", "1e412.3"], ["1e412.3", "8e+05", "0.5"]]
    assert found[up][-1] == found[down][-1] == "/" and [found[3], found[6]] == ["ascending", "descending"]


def test_the_menu_of_the_correlations_is_a_select(page):
    """A change puts the measure's name on the axis, whatever stood there."""
    choose = """(async () => {
      const select = document.querySelector("#correlations select");
      const plot = document.querySelector("#correlations .figure");
      await Plotly.relayout(plot, {"xaxis.title.text": "?"});
      const before = plot.querySelector(".xtitle").textContent;
      select.dispatchEvent(new Event("change"));
      await new Promise(done => setTimeout(done, 500));
      return [before, plot.querySelector(".xtitle").textContent, select.options[0].textContent]; })()"""
    assert visit(page, 1280, 6000, steps=[DRAWN, choose])["values"][1] == ["?", "small", "small"]
