"""Plots are functions of stored tables: a hand-made result is enough to see what they draw."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from genbound.errors import GenboundError
from genbound.figures.one_run import plot_layers, plot_noise_stability, plot_samples, save_plots
from genbound.figures.style import new_axes, shorten
from genbound.results.results import Results


def row(sigma, value, approximation, quadratic=True):
    return {
        "sigma": sigma, "value": value, "sem": 0.02 * value, "std": value, "hessian_approximation": approximation,
        "hessian_approximation_sem": 0.0, "quadratic_regime": quadratic,
    }  # fmt: skip


@pytest.fixture
def results():
    forms = {
        "first": {"upper": 9.0, "lower": 4.0},
        "second": {"upper": 1.0, "lower": 1.0},
        "third": {"upper": 0.0, "lower": 0.0},
    }
    samples = pd.DataFrame(
        {
            "sample": np.repeat([10, 11, 12, 13], 3), "layer": ["first", "second", "third"] * 4,
            "max_quadratic_form_upper": [1.0, 0.5, 0, 9.0, 1.0, 0, 2.0, 0.1, 0, 0.3, 0.1, 0],
            "max_quadratic_form_lower": [0.5, 0.5, 0, 4.0, 1.0, 0, 1.0, 0.1, 0, 0.3, 0.1, 0],
        }
    )  # fmt: skip
    return Results(
        config={"loss": "cross_entropy", "seed": 0}, checkpoint={}, init={}, data={}, bounds={}, cost={},
        layer_rows=[{"name": n, "kind": "convolution" if n == "first" else "linear"} for n in forms],
        quantities={
            "noise_stability": {
                "sigmas": [row(0.01, 1.0, 1.02), row(0.02, 4.0, 4.1), row(0.1, 50.0, 102.0, False)],
                "relative_rss": 0.25,
            },
            "max_quadratic_form": {"layers": forms},
        },
        samples=samples,
    )  # fmt: skip


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_noise_stability(results):
    ax = plot_noise_stability(results)
    line = ax.lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0.01, 0.02, 0.1])
    np.testing.assert_allclose(line.get_ydata(), [1.02, 4.1, 102.0])
    (errors,) = ax.containers
    np.testing.assert_allclose(errors.lines[0].get_ydata(), [1.0, 4.0, 50.0])
    bars = errors.lines[2][0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in bars], [[v - 0.0392 * v, v + 0.0392 * v] for v in (1.0, 4.0, 50.0)])
    shade = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert shade.x0 < 0.01 and 0.02 < shade.x1 < 0.1
    assert "25 %" in ax.get_title() and "nats" in ax.get_ylabel() and len(labels(ax)) == 3
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_error_bars_of_noise_hold_the_choice_of_the_samples(results):
    rows = results.quantities["noise_stability"]["sigmas"]
    rows[1].update(sem=0.3, data_sem=0.4)
    (errors,) = plot_noise_stability(results).containers
    low, high = errors.lines[2][0].get_segments()[1][:, 1]
    assert (low, high) == pytest.approx((4.0 - 1.96 * 0.5, 4.0 + 1.96 * 0.5))


def test_noise_stability_of_a_loss_that_falls_or_does_not_move(results):
    rows = results.quantities["noise_stability"]["sigmas"]
    rows[0]["value"], rows[0]["sem"] = -1.0, 0.1
    assert plot_noise_stability(results).get_yscale() == "linear"
    for r in rows:
        r.update(value=0.0, sem=0.0, hessian_approximation=0.0)
    results.quantities["noise_stability"]["relative_rss"] = None
    assert plot_noise_stability(results).get_title() == ""


def test_nothing_is_quadratic(results):
    for r in results.quantities["noise_stability"]["sigmas"]:
        r["quadratic_regime"] = False
    assert not plot_noise_stability(results).patches


def test_layers(results):
    """Roots 3, 1 and 0 of 4: 75, 25 and 0 %, largest first; the first one's lower side is 2 of 4."""
    forms = results.quantities["max_quadratic_form"]
    forms["layers"] = {name: forms["layers"][name] for name in ("third", "first", "second")}
    ax = plot_layers(results)
    widths = [bar.get_width() for bar in ax.patches if np.isfinite(bar.get_width())]
    np.testing.assert_allclose(widths, [75.0, 25.0, 0.0])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "second", "third"]
    assert [t.get_text() for t in ax.texts] == ["75 %", "25 %", "0 %"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [50.0, 75.0])


def test_layers_have_the_colour_of_their_kind(results):
    ax = plot_layers(results)
    assert labels(ax) == ["convolution", "linear"]
    first, second, third = (bar.get_facecolor() for bar in ax.patches[:3])
    assert second == third != first


def test_the_largest_layers_only(results):
    ax = plot_layers(results, most=1)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first"]
    assert "2 of 3 layers are left out, with 25 %" in ax.get_xlabel()
    assert "left out" not in plot_layers(results).get_xlabel()


def test_samples(results):
    ax = plot_samples(results)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [10.0, 2.1, 1.5, 0.4])
    assert [t.get_text() for t in ax.texts] == ["sample 11"]
    assert len(ax.collections) == 1


def test_plots_draw_on_the_axes_they_are_given(results):
    for plot in (plot_noise_stability, plot_layers, plot_samples):
        ax = new_axes()
        assert plot(results, ax) is ax


def test_a_notebook_shows_a_figure_by_itself(results):
    shown, about = plot_layers(results).figure._repr_mimebundle_()
    assert shown["image/png"].startswith(b"\x89PNG")
    assert "share" in about["image/png"]["alt"] and "$" not in about["image/png"]["alt"]


def test_save_plots(results, tmp_path):
    before = dict(matplotlib.rcParams)
    paths = save_plots(results, tmp_path)
    assert sorted(p.name for p in paths) == ["layers.png", "noise_stability.png", "samples.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)
    assert dict(matplotlib.rcParams) == before
    results.quantities = {}
    assert save_plots(results, tmp_path / "none") == []


def test_shorten():
    assert shorten("a.weight") == "a"
    assert shorten("x" * 60).startswith("…") and len(shorten("x" * 60)) == 45


def test_results_draw_themselves(results, tmp_path):
    assert results.plots() == ["noise_stability", "layers", "samples"]
    np.testing.assert_allclose(results.plot("layers").lines[0].get_xdata(), [50.0, 75.0])
    ax = new_axes()
    assert results.plot("samples", ax) is ax
    assert [p.name for p in results.save_plots(tmp_path, "svg")] == [f"{n}.svg" for n in results.plots()]
    with pytest.raises(GenboundError, match="no plot 'layer'.*layers.*they have noise_stability, layers, samples"):
        results.plot("layer")
    results.quantities = {}
    with pytest.raises(GenboundError, match="nothing that is drawn was measured"):
        results.plot("layers")
