"""The report: what is in the page by a parser, and what a reader meets in a real browser, where there is one."""

import base64
import gzip
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from handmade import bound, losses, run
from html_cells import cells_of_html

from genbound.cli.main import main
from genbound.errors import GenboundError

pytest.importorskip("plotly", reason="the report needs plotly")

BOUNDS = {
    "small": bound(0.5, 0.4, 0.6),
    "middle": bound(8e5),
    "large": bound(None, log10=412.3),
    "none": bound(None, note="a <b> & c"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("report"), []
    for i in range(3):
        results = run(dict(BOUNDS, small=bound(0.5 + i)), name=f"run{i}")
        results.quantities["losses"] = losses(test=0.3 + 0.1 * i)
        results.quantities["noise_stability"] = {
            "sigmas": [
                {"sigma": s, "value": v, "sem": 0.02 * v, "data_sem": 0.0, "std": v, "hessian_approximation": v,
                 "quadratic_regime": v < 1, "hessian_approximation_sem": 0.0} for s, v in ((0.001, 0.1), (0.01, 10.0))
            ], "relative_rss": 0.1,
        }  # fmt: skip
        results.samples = pd.DataFrame(
            {"sample": np.repeat(np.arange(5), 2), "layer": ["a.weight", "b.weight"] * 5,
             "max_quadratic_form_lower": np.arange(10.0) + 1, "max_quadratic_form_upper": np.arange(10.0) + 2}
        )  # fmt: skip
        paths.append(str(results.save(folder / f"run{i}")))
    return paths


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", *runs, "--out", str(path)]) == 0
    return path


def test_what_is_in_it(page):
    text = page.read_text(encoding="utf-8")
    own = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", own)  # nothing from elsewhere
    rows = cells_of_html(own)
    assert ["large", "loss", *["1e412.3"] * 3, ""] in rows and ["none", "loss", "/", "/", "/", "a <b> & c"] in rows
    assert ["entry", "value"] in rows and ["convention", "theorem"] in rows and ["checkpoint.sha256", "a" * 64] in rows
    for anchor in ("bounds", "correlations", "runs", "assumptions", "provenance"):
        assert f'id="{anchor}"' in own and f'href="#{anchor}"' in own
    assert 'name="viewport"' in own and "matter of chance" in own


def test_one_run_has_no_correlations(runs, tmp_path):
    assert main(["report", runs[0], "--out", str(tmp_path / "one.html")]) == 0
    assert 'id="correlations"' not in (tmp_path / "one.html").read_text()


def test_without_plotly(runs, tmp_path, monkeypatch):
    import sys

    from genbound.figures.report import report

    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(GenboundError, match=r"pip install 'genbound\[report\]'"):
        report(runs, tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="pip install playwright to see the report in a browser"
    )
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def opened(request, browser, page):
    width, height = request.param
    view = browser.new_page(viewport={"width": width, "height": height})
    view.problems, view.requests = [], []
    view.on("pageerror", lambda error: view.problems.append(str(error)))
    view.on("console", lambda message: view.problems.append(message.text) if message.type == "error" else None)
    view.on("request", lambda found: view.requests.append(found.url))
    view.goto(page.as_uri())
    view.wait_for_selector(".js-plotly-plot .main-svg")
    yield view
    view.close()


def test_in_a_browser(opened):
    width = opened.viewport_size["width"]
    assert opened.problems == [] and all(url.startswith(("file:", "data:", "blob:")) for url in opened.requests)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll by themselves
    plots = opened.locator(".js-plotly-plot")
    assert plots.count() == 1 + 3 * 3 + 1  # bounds of the loss; noise, layers and samples of three runs; correlations
    for index in range(plots.count()):
        box = plots.nth(index).bounding_box()
        assert box["width"] > 250 and box["x"] + box["width"] <= width
    assert opened.locator(".js-plotly-plot .points path").count() > 10
    plots.first.scroll_into_view_if_needed()
    opened.locator(".js-plotly-plot .points path").first.hover(force=True)
    opened.wait_for_selector(".hoverlayer .hovertext")


def test_sorting_in_a_browser(opened):
    table = opened.locator("#bounds table")
    column = lambda: table.locator("tbody tr td:nth-child(3)").all_text_contents()  # noqa: E731
    button = table.locator("th:nth-child(3) button")
    button.click()
    found = [cell for cell in column() if cell in ("0.5", "8e+05", "1e412.3")]
    assert found == ["0.5", "8e+05", "1e412.3"] and column()[-1] == "/"
    button.press("Enter")  # by keyboard, the other way round
    found = [cell for cell in column() if cell in ("0.5", "8e+05", "1e412.3")]
    assert found == ["1e412.3", "8e+05", "0.5"] and column()[-1] == "/"
    assert table.locator("th:nth-child(3)").get_attribute("aria-sort") == "descending"


# -- many runs ---------------------------------------------------------------------------------------------------------


def many_runs(folder, number):
    """Stored runs, varied from one with a gap."""
    from benchmarks.many_runs import make_runs

    results = run({f"m{i}": bound(1.0 + i) for i in range(4)} | BOUNDS)
    results.quantities["losses"] = losses()
    return make_runs(results.save(folder / "base"), folder / "runs", number)


def test_a_page_of_many_runs(tmp_path):
    paths = many_runs(tmp_path, 60)
    assert main(["report", *map(str, paths), "--out", str(tmp_path / "many.html")]) == 0
    text = (tmp_path / "many.html").read_text(encoding="utf-8")
    own = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    rows = cells_of_html(own)
    assert ["run", *[f"m{i}" for i in range(4)], *BOUNDS] == rows[0][:9]
    assert sum(row[0].startswith("run") and len(row) == len(rows[0]) for row in rows[1:]) == 60
    folded = re.findall(r'<details data-pack="(\w+)" data-place="(\d+)"><summary>(.*?)</summary></details>', own)
    assert [name for *_, name in folded] == [f"run{i}" for i in range(60)]
    packed = re.search(r'<script type="text/plain" id="pack50">(.*?)</script>', text).group(1)
    parts = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert len(parts) == 10 and ["a.weight", "linear"] in [cells[:2] for cells in cells_of_html(parts[3])]
    assert ["hyperparameters.repetition", "1"] in cells_of_html(parts[3])
    assert len(text) < 2.5e6 and ["convention", "theorem"] in rows


def test_what_has_no_room_is_named(tmp_path):
    from genbound.figures.report_page import on_demand

    text = on_demand([(f"run{i}", "<p>x</p>") for i in range(70)], most=80)
    assert text.count("<details data-pack") == 50 and text.count("no room for it") == 20


@pytest.mark.slow
def test_a_thousand_runs(tmp_path):
    """A minute of a processor, a GiB and 5 MB: the machine may do other things meanwhile."""
    import os
    import subprocess
    import sys

    paths = [str(path) for path in many_runs(tmp_path, 1000)]
    for command in (["compare"], ["correlate"], ["report", "--out", str(tmp_path / "page.html")]):
        process = subprocess.Popen(
            [sys.executable, "-m", "genbound", command[0], *paths, *command[1:]], stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        assert status == 0
        assert used.ru_utime + used.ru_stime < 60 and used.ru_maxrss < 1 << 20, (command[0], used)
    assert (tmp_path / "page.html").stat().st_size < 5e6
