"""The report: what is in the page, by a parser. test_report_in_a_browser.py has what a reader meets."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from handmade import bound, losses, run
from html_cells import cells_of_html

from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.figures.report import report
from genbound.results.correlation import correlate

pytest.importorskip("plotly", reason="the report needs plotly")

BOUNDS = {
    "small": bound(0.5, 0.4, 0.6),
    "middle": bound(8e5),
    "large": bound(None, log10=412.3),
    "none": bound(None, note="a <b> & c"),
}


def make_runs(folder):
    """Paths of three stored runs with three plots each; each is worse than the one before."""
    paths = []
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
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("report"))


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


class _Elements(HTMLParser):
    """All elements with their attributes, and the texts of headings and captions."""

    def __init__(self):
        super().__init__()
        self.found, self.texts, self.open = [], {}, None

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open, []).append(data.strip())


@pytest.fixture(scope="module")
def elements(page):
    parser = _Elements()
    parser.feed(re.sub(r"<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S))
    return parser


def test_it_opens_on_the_verdict(elements):
    assert elements.texts["h2"][:2] == ["The answer", "Bounds"]
    assert elements.texts["h3"][0] == "Did it get worse? run2 against run0, the first given"
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


def test_every_figure_and_table_says_what_it_shows(elements):
    count = lambda tag: sum(name == tag for name, _ in elements.found)  # noqa: E731
    images = [attrs["aria-label"] for _, attrs in elements.found if attrs.get("role") == "img"]
    assert len(images) == count("figure") == count("figcaption") == 1 + 3 * 3 + 1
    sides = "smallest: small with 0.5, 1.5, 2.5; largest: large with 1e412.3, 1e412.3, 1e412.3"
    assert images[0] == f"Bounds on the gap in the loss. 3 bounds; {sides}."
    assert "Which layers the bound comes from. The largest of 2: a.weight: 50 %, b.weight: 50 %." in images
    assert count("caption") == count("table")
    regions = [attrs["aria-label"] for _, attrs in elements.found if attrs.get("role") == "region"]
    assert len(regions) == count("table") == len(set(regions))


def test_nothing_has_a_fixed_width(page, elements):
    style = re.search("<style>(.*?)</style>", page.read_text(encoding="utf-8"), re.S).group(1)
    assert not re.search(r"(?<!max-)(?<!min-)\bwidth:\s*[\d.]+(px|rem)", style)
    assert not any(re.search(r"\bwidth", attrs.get("style") or "") for _, attrs in elements.found)
    assert "prefers-color-scheme: dark" in style


def test_configurations_and_notes_are_folded(page):
    own = re.sub(r"<script.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.S)
    provenance = own[own.index('id="provenance"') :]
    assert provenance.count("<details><summary>") == 3 == provenance.count("<table")
    assert '<summary aria-label="doubt on none"></summary><p>a &lt;b&gt; &amp; c</p>' in own


def test_one_run_answers_as_cards(tmp_path):
    results = run(
        {"hessian_distance": bound(0.5), "li2021": bound(700.0), "long2020": bound(8e5), "gouk2021": bound(9e5)}
    )
    results.quantities["max_quadratic_form"]["layers"]["b.weight"]["upper"] = 18.0
    assert main(["report", str(results.save(tmp_path / "only")), "--out", str(tmp_path / "one.html")]) == 0
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    cards = dict(re.findall(r'<h3>([^<]*)</h3><p class="short">([^<]*)</p>', text))
    assert cards == {
        "Is it a guarantee?": "No",
        "How does it stand to the gap?": "2.5 × the measured gap",
        "Which layer drives it?": "b.weight (75 %)",
    }
    rows = [row[0] for row in cells_of_html(text.split('id="bounds"')[1].split("<details><summary>All ")[0])]
    assert "li2021" in rows and "long2020" not in rows  # the smallest competitor; the others are folded


def test_one_run_has_no_correlations(runs, tmp_path):
    assert main(["report", runs[0], "--out", str(tmp_path / "one.html")]) == 0
    assert 'id="correlations"' not in (tmp_path / "one.html").read_text()


def test_one_observed_range_as_in_the_commands(tmp_path):
    """C = 8, 2 and 0.5 where the bound, in proportion to its root, is 8: on one C it is 8, 16 and 32."""
    given = []
    for i, name in enumerate("abc"):
        results = run({"hessian_distance": bound(8.0)}, name=name, loss_range={"value": 8.0 / 4**i, "kind": "observed"})
        results.quantities["losses"] = losses(test=0.3 + 0.1 * i)
        results.checkpoint["sha256"] = name * 64
        given.append(results)
    rows = cells_of_html(report(given, tmp_path / "page.html").read_text())
    assert ["hessian_distance", "loss", "8", "16", "32"] in [row[:5] for row in rows]
    kendall = correlate(given, num_resamples=9).to_frame().set_index("measure").loc["hessian_distance", "kendall"]
    (told,) = [row for row in rows if row[0] == "hessian_distance" and "[" in row[5]]
    assert kendall == pytest.approx(1) and told[5].startswith("1.00 ")
    page = " ".join((tmp_path / "page.html").read_text().split())
    assert "C is the largest loss seen in any of the runs, 8" in page and "hessian_distance (+300 %)" in page
    given[2].config["num_samples"] = 128
    rows = cells_of_html(report(given, tmp_path / "mixed.html").read_text())
    assert ["hessian_distance", "loss", "8", "8", "8"] in [row[:5] for row in rows]


def test_without_plotly(runs, tmp_path, monkeypatch):
    import sys

    from genbound.figures.report import report

    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(GenboundError, match=r"pip install 'genbound\[report\]'"):
        report(runs, tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


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
        process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        assert process.returncode == 0
        assert used.ru_utime + used.ru_stime < 60 and used.ru_maxrss < 1 << 20, (command[0], used)
    assert (tmp_path / "page.html").stat().st_size < 5e6
