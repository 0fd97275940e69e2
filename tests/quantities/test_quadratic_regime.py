"""Three answers, the noise in the relative RSS, kinks, and what is said of a tail that is too heavy."""

import numpy as np
import pytest

from genbound.figures.one_run import plot_noise_stability
from genbound.quantities.catalogue.noise_stability import QUANTITY
from genbound.quantities.quadratic_regime import is_quadratic, mark_kinks, relative_rss_noise


def row(sigma, value, sem=0.0, approximation=None, **more):
    approximation = sigma**2 if approximation is None else approximation
    return {
        "sigma": sigma, "value": value, "sem": sem, "std": 0.0, "hessian_approximation": approximation,
        "hessian_approximation_sem": 0.0, "quadratic_regime": is_quadratic(value, approximation, sem), "reliable": True,
    } | more  # fmt: skip


def test_an_error_that_is_too_large_to_say():
    assert is_quadratic(1.0, 1.0, 0.05) is True
    assert is_quadratic(1.0, 1.0, 0.5) is None
    assert is_quadratic(3.0, 1.0, 0.5) is False


def test_noise_of_the_relative_rss_by_hand():
    rows = [row(1.0, 2.0, 0.3, hessian_approximation_sem=0.4), row(2.0, 4.0, 1.2, hessian_approximation_sem=0.5)]
    assert relative_rss_noise(rows) == pytest.approx((0.09 + 0.16 + 1.44 + 0.25) / 20)
    assert relative_rss_noise([row(1.0, 0.0)]) is None


def test_relative_rss_of_noise_alone_is_its_noise():
    random, rss, floor = np.random.default_rng(0), [], []
    for _ in range(400):
        rows = [row(s, s**2 * (1 + 0.1 * random.standard_normal()), 0.1 * s**2) for s in (1.0, 2.0, 3.0)]
        total = sum(r["value"] ** 2 for r in rows)
        rss.append(sum((r["value"] - r["hessian_approximation"]) ** 2 for r in rows) / total)
        floor.append(relative_rss_noise(rows))
    assert np.mean(rss) == pytest.approx(np.mean(floor), rel=0.15)


def test_kinks_are_a_proportional_rise_off_the_approximation():
    sigmas = (0.001, 0.002, 0.005, 0.01)
    assert [r["kinks"] for r in mark_kinks([row(s, 1.31 * s**2) for s in sigmas])] == [True] * 4
    smooth = mark_kinks([row(s, s**2 + 3e4 * s**4) for s in sigmas])
    assert not any(r["kinks"] for r in smooth) and smooth[-1]["quadratic_regime"] is False
    fine = mark_kinks([row(0.01 * (1 + 0.05 * i), 1.5 * (0.01 * (1 + 0.05 * i)) ** 2) for i in range(5)])
    assert not any(r["kinks"] for r in fine)  # too short a grid to tell


def test_what_the_table_says():
    rows = [row(0.01, 1.31e-4, kinks=True), row(0.02, 4e-4, 3e-4), row(0.03, 9e-4, reliable=False)]
    rows[2]["quadratic_regime"] = None
    text = "\n".join(QUANTITY.reading.describe({"sigmas": rows, "relative_rss": 0.01, "relative_rss_noise": 0.02}))
    for said in (
        "kinks",
        "not known",
        "/ heavy tail",
        "noise alone 2 %: all of it may be noise",
        "Kinks:",
        "Heavy tail:",
    ):
        assert said in text
    extreme = {n.where: n.extreme for n in QUANTITY.reading.numbers({"sigmas": rows, "relative_rss": 0.01})}
    assert extreme == {"sigma=0.01": False, "sigma=0.02": False, "sigma=0.03": True}


def test_a_loss_that_falls_at_the_smallest_sigma_is_no_reason_to_look_for_a_smaller_one_alone():
    def said(*rows):
        return "\n".join(QUANTITY.reading.describe({"sigmas": mark_kinks(list(rows)), "relative_rss": 0.5}))

    assert "It need not be if the network has kinks" in said(row(0.01, -4e-4, 1e-5), row(0.02, 5e-5, 1e-5))
    assert "smallest sigma is outside" not in said(row(0.01, 1e-4, 1e-6), row(0.02, 9e-4, 1e-5))
    assert "smallest sigma is outside" not in said(*[row(s, 1.31 * s**2) for s in (0.01, 0.02, 0.05)])  # known: kinks


def test_a_summary_of_an_older_version_is_read():
    old = {k: v for k, v in row(0.01, 1.0e-4).items() if k != "reliable"}
    lines = QUANTITY.reading.describe({"sigmas": [old], "relative_rss": 0.01})
    assert "yes" in "\n".join(lines) and "noise alone" not in "\n".join(lines)


def test_the_plot_has_no_error_bar_where_the_tail_is_heavy():
    rows = [row(0.01, 1e-4, 1e-5), row(0.02, 4e-4, 1e-4, reliable=False)]
    ax = plot_noise_stability({"sigmas": rows, "relative_rss": 0.0})
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "not known: heavy tail" in labels
    assert sum(len(bars.get_segments()) for bars in ax.collections if hasattr(bars, "get_segments")) == 1
