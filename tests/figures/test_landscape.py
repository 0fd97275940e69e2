"""Plots of the loss beside the fine-tuned weights: what is drawn is what was measured."""

import copy

import matplotlib
import numpy as np
import pytest

import genbound
from genbound.figures.landscape import plot_loss_path, plot_loss_plane
from genbound.figures.one_run import plots_of, save_plots


@pytest.fixture(scope="module")
def results(problems):
    options = {"loss_path": {"points": (0.5, 1.25)}, "loss_plane": {"along": (0.5,), "across": (-0.5, 0.5)}}
    return genbound.evaluate(problems("mlp_gelu", num_samples=5), ["loss_path", "loss_plane"], options=options)


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_the_path(results):
    ax = plot_loss_path(results)
    found, summary = lines(ax), results.quantities["loss_path"]
    loss = found["loss of 5 samples"]
    np.testing.assert_allclose(loss.get_xdata(), [0, 0.5, 1, 1.25])
    np.testing.assert_allclose(loss.get_ydata(), [p["value"] for p in summary["points"]])
    parabola = found["parabola of slope and curvature at $W$"]
    at = [np.interp(p["t"], parabola.get_xdata(), parabola.get_ydata()) for p in summary["points"]]
    np.testing.assert_allclose(at, [p["parabola"] for p in summary["points"]], rtol=1e-3)
    assert "pretrained" in ax.texts[0].get_text() and "fine-tuned" in ax.texts[1].get_text()
    assert len(ax.collections) == 1 and "nats" in ax.get_ylabel()  # the band of a part of the data


def test_a_parabola_that_leaves_the_loss_does_not_squeeze_it(results):
    steep = copy.deepcopy(results)
    steep.quantities["loss_path"]["curvature"] = 1e6
    assert plot_loss_path(steep).get_ylim() == plot_loss_path(results).get_ylim()


def test_places_without_a_loss_are_left_out(results):
    some = copy.deepcopy(results)
    some.quantities["loss_path"]["points"][3].update(value=None, data_sem=None)
    some.quantities["loss_plane"]["loss"][0][0] = None
    assert np.isfinite(plot_loss_path(some).get_ylim()).all()
    assert plot_loss_plane(some).collections


def test_the_plane(results):
    ax = plot_loss_plane(results)
    assert [text.get_text() for text in ax.texts] == ["$W^0$, pretrained", "$W$, fine-tuned"]
    assert ax.collections and len(ax.figure.axes) == 2


def test_a_line_is_no_plane(results):
    flat = copy.deepcopy(results)
    flat.quantities["loss_plane"].update(across=[0.0], loss=[[1.0, 1.0, 1.0]], along=[0.0, 0.5, 1.0])
    assert not plot_loss_plane(flat).collections


def test_they_are_saved_and_stand_in_the_report(results, tmp_path):
    pytest.importorskip("plotly")
    from genbound.figures.interactive import FIGURES
    from genbound.figures.report import report

    before = dict(matplotlib.rcParams)
    assert plots_of(results) == ["loss_path", "loss_plane"]
    assert [p.name for p in save_plots(results, tmp_path)] == ["loss_path.png", "loss_plane.png"]
    assert dict(matplotlib.rcParams) == before
    path, plane = (FIGURES[name](results) for name in ("loss_path", "loss_plane"))
    np.testing.assert_allclose(path.data[1].y, [p["value"] for p in results.quantities["loss_path"]["points"]])
    np.testing.assert_allclose(plane.data[0].z, results.quantities["loss_plane"]["loss"])
    assert "Loss from the pretrained" in report([results], tmp_path / "page.html").read_text(encoding="utf-8")
