"""Plots over runs, and the published noise-stability table: what is drawn is what was put in."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import bound, run
from scipy import stats

from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.figures.bounds import plot_bounds
from genbound.figures.one_run import plot_noise_stability
from genbound.figures.several_runs import plot_correlation, plot_over
from genbound.figures.style import new_axes
from genbound.quantities.noise_stability import relative_rss

# Published columns: noise stability ± standard deviation, Hessian approximation (per cent of the loss's unit as
# printed).
PUBLISHED = {
    "ResNet-18": (
        [0.86, 1.13, 1.45, 1.82, 2.23, 2.65, 3.07, 3.47, 3.84, 4.15, 4.43],
        [0.19, 0.24, 0.29, 0.35, 0.40, 0.43, 0.45, 0.47, 0.49, 0.51, 0.55],
        [1.07, 1.29, 1.54, 1.80, 2.09, 2.34, 2.73, 3.08, 3.46, 3.85, 4.27],
        0.0078,
    ),
    "ResNet-50": (
        [0.39, 1.12, 1.56, 2.10, 2.71, 3.30, 3.80, 4.17, 4.60, 4.77, 5.03],
        [0.10, 0.20, 0.26, 0.33, 0.38, 0.40, 0.40, 0.40, 0.44, 0.44, 0.82],
        [1.24, 1.50, 1.79, 2.10, 2.43, 2.79, 3.18, 3.59, 4.02, 4.48, 4.97],
        0.0188,
    ),
}


@pytest.mark.parametrize("network", PUBLISHED)
def test_the_published_noise_stability(network):
    value, std, approximation, rss = PUBLISHED[network]
    found = relative_rss(value, approximation)
    assert found == pytest.approx(rss, abs=5e-5)
    rows = [
        {
            "sigma": 0.01 + 0.001 * i,
            "value": v,
            "sem": s / 1.96,
            "hessian_approximation": a,
            "quadratic_regime": abs(v - a) <= 0.1 * a,
        }
        for i, (v, s, a) in enumerate(zip(value, std, approximation, strict=True))
    ]
    ax = plot_noise_stability({"sigmas": rows, "relative_rss": found}, unit="nats")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), approximation)
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), value)
    bars = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in bars], 2 * np.array(std))
    assert ax.get_title() == f"Relative RSS {100 * rss:.3g} %"


def test_bounds():
    one = run(
        {
            "small": bound(0.5),
            "large": bound(None, log10=400.0),
            "of_error": bound(3.0, unit="error"),
            "none": bound(None),
        }
    )
    two = run({"small": bound(0.7), "large": bound(1e9)})
    ax = plot_bounds({"one": one, "two": two})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["small", "large"]
    points = {line.get_label(): line.get_xdata() for line in ax.lines if line.get_label() in ("one", "two")}
    np.testing.assert_allclose(points["one"], [math.log10(0.5), 400])
    np.testing.assert_allclose(points["two"], [math.log10(0.7), 9])
    lines = sorted(
        {line.get_xdata()[0] for line in ax.lines if line.get_linestyle() in ("--", ":") and len(line.get_xdata())}
    )
    np.testing.assert_allclose(
        lines, [math.log10(0.2), math.log10(1.5)]
    )  # the gap; 1.6 of the constant less 0.1 of training
    np.testing.assert_allclose(plot_bounds({"one": one}, "error").lines[0].get_xdata(), [math.log10(3)])


def test_bounds_without_a_gap_say_nothing_of_one():
    one = run({"small": bound(0.5)})
    one.quantities["losses"]["generalization_gap"] = None
    legend = [t.get_text() for t in plot_bounds({"one": one}).get_legend().get_texts()]
    assert legend == ["one", "vacuous from here on"]


def test_names_of_runs_stay_inside():
    """The leftmost run's name goes to the right, the rightmost one's to the left."""
    table = pd.DataFrame({"gap": [0.1, 0.2, 0.15], "m": [1.0, 2.0, 3.0]}, index=["a long name", "b", "another one"])
    ax = plot_correlation(table, "m")
    ax.figure.draw_without_rendering()
    inside = ax.get_window_extent()
    for text in ax.texts:
        box = text.get_window_extent()
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1


def test_correlation():
    table = pd.DataFrame({"gap": [0.0, 1.0, 1.5, 3.5, np.nan], "m": [0.0, 1.0, 2.0, 3.0, np.nan]}, index=list("abcde"))
    ax = plot_correlation(table, "m")
    line = next(line for line in ax.lines if line.get_label() == "least squares")
    fit = stats.linregress([0, 1, 2, 3], [0, 1, 1.5, 3.5])
    np.testing.assert_allclose(line.get_ydata()[[0, -1]], [fit.intercept, fit.intercept + 3 * fit.slope])
    # Where x = 0 the band is t times the standard error of the intercept.
    band = ax.collections[0].get_paths()[0].vertices
    half = np.ptp(band[np.isclose(band[:, 0], 0), 1]) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * fit.intercept_stderr)
    assert [t.get_text() for t in ax.texts] == list("abcd") and "Kendall 1.00" in ax.get_title()
    other = new_axes()
    assert plot_correlation(table, "m", other, label=False) is other and not other.texts


def test_over():
    """Sorted by what was varied; on one axis where measure and gap are of one size, else on two."""
    table = pd.DataFrame(
        {"gap": [1.0, 0.5, 0.1, 0.2], "m": [2.0, 1.0, 0.4, np.nan], "hyperparameters": [{"d": d} for d in (3, 2, 1, 0)]}
    )
    ax = plot_over(table, "m", "d")
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    assert drawn == {"m": ([1, 2, 3], [0.4, 1.0, 2.0]), "generalization gap (loss, nats)": ([1, 2, 3], [0.1, 0.5, 1.0])}
    assert ax.get_xlabel() == "d" and not hasattr(ax, "right_ax")
    table["m"] *= 1000
    ax = new_axes()
    assert plot_over(table.assign(d=[0, 1, 2, 3]), "m", "d", ax) is ax
    assert list(ax.right_ax.lines[0].get_ydata()) == [2000.0, 1000.0, 400.0] and ax.right_ax.get_ylabel() == "m"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["m", "generalization gap (loss, nats)"]
    with pytest.raises(GenboundError, match="'colour' is no measure and no numeric hyper-parameter .* m, d"):
        plot_over(table, "m", "colour")


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_command(tmp_path, suffix, start, capsys):
    for name in ("one", "two"):
        run(name=name).save(tmp_path / name)
    assert (
        main(["plot", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out"), "--format", suffix])
        == 0
    )
    paths = capsys.readouterr().out.split()
    assert f"{tmp_path}/out/bounds_loss.{suffix}" in paths and f"{tmp_path}/out/one/layers.{suffix}" in paths
    assert all(Path(path).read_bytes().startswith(start) for path in paths)
    assert main(["plot", str(tmp_path / "one"), "--format", suffix]) == 0
    assert (tmp_path / "one" / f"layers.{suffix}").exists()
