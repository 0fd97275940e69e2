"""Correlations: against scipy, against hand-counted examples, and what is said of chance."""

import itertools

import numpy as np
import pandas as pd
import pytest
from handmade import bound, losses, run
from scipy import stats

import genbound
from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.results.correlation import correlate, points
from genbound.results.hyperparameters import Pairs
from genbound.results.power import detectable_kendall, kendall_variance, power
from genbound.results.rank_statistics import STATISTICS, dense_ranks, order_score, partial_kendall
from genbound.results.resampling import Draws, bootstrap_intervals, partial_interval, permutation_p_values

# The published figure, read off its pixels: Hessian measure and generalization error over distance 0, 0.1, …, 1.
HESSIAN = [0, 0.247, 0.386, 0.581, 0.687, 0.924, 0.944, 0.998, 1.028, 1.099, 1.177]
GAP = [0, 0.151, 0.296, 0.453, 0.537, 0.646, 0.703, 0.712, 0.732, 0.747, 0.786]


@pytest.fixture(scope="module")
def figure():
    table = pd.DataFrame({"data": "MRPC", "gap": GAP, "hessian": HESSIAN, "other": np.cos(7.0 * np.arange(11))})
    return correlate(table)


def test_the_published_figure(figure):
    for row in figure.to_frame().to_dict("records"):
        x = figure.points[row["measure"]]
        assert row["pearson"] == pytest.approx(stats.pearsonr(x, GAP).statistic, abs=1e-12)
        assert row["spearman"] == pytest.approx(stats.spearmanr(x, GAP).statistic, abs=1e-12)
        assert row["kendall"] == pytest.approx(stats.kendalltau(x, GAP).statistic, abs=1e-12)
        # Permutation p-values against the theory's: within four standard errors of 9999 permutations.
        p = stats.pearsonr(x, GAP, method=stats.PermutationMethod(rng=np.random.default_rng(1))).pvalue
        assert row["pearson_p"] == pytest.approx(p, abs=4 * np.sqrt(max(p, 1e-3) / 9999) * 1.5)
        for title in STATISTICS:
            assert row[f"{title}_lower"] <= row[title] <= row[f"{title}_upper"]
    best = figure.to_frame().iloc[0]
    assert best["kendall"] == best["spearman"] == pytest.approx(1) and 0.98 < best["pearson"] < 1
    assert figure.warnings == ()


@pytest.mark.parametrize("title", STATISTICS)
def test_coefficients_with_ties_and_many_at_once(title):
    stream = np.random.default_rng(0)
    x, y = stream.integers(0, 5, (2, 6, 9)).astype(float)
    scipys = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}[title]
    np.testing.assert_allclose(
        STATISTICS[title](x, y), [scipys(a, b).statistic for a, b in zip(x, y, strict=True)], atol=1e-12
    )
    np.testing.assert_allclose(STATISTICS[title](x.T, y.T, axis=0), STATISTICS[title](x, y), atol=1e-12)
    assert np.isnan(STATISTICS[title](np.ones(4), np.arange(4.0)))


def test_the_bootstrap_covers():
    """Of 200 samples of 40 pairs with correlation 0.6, about 95 % of the intervals hold it."""
    stream, inside = np.random.default_rng(0), 0
    for trial in range(200):
        x = stream.normal(size=40)
        y = 0.6 * x + 0.8 * stream.normal(size=40)
        low, high = bootstrap_intervals(x, y, Draws(40, 300, trial))["pearson"]
        inside += low <= 0.6 <= high
    assert 174 <= inside <= 199


def test_all_permutations_of_few():
    """Four points in order: one of 24 permutations reaches tau = 1, one tau = -1."""
    x = np.arange(4.0)
    assert permutation_p_values(x, x**2, Draws(4, 9999, 0))["kendall"] == pytest.approx(2 / 24)


@pytest.mark.parametrize("n", [3, 5, 12, 45, 130])
@pytest.mark.parametrize("ties", [False, True])
def test_resampling_agrees_with_the_slow_path(n, ties):
    """The same resamples and permutations, one by one through scipy's coefficients and its permutation test."""
    stream = np.random.default_rng(n)
    x, y = stream.normal(size=(2, n))
    x, y = (np.round(2 * x), np.round(x + y)) if ties else (1e3 + x, x + y)
    num, draws = 40 if n > 100 else 99, Draws(n, 40 if n > 100 else 99, 7)
    index = np.random.default_rng([7, 0]).integers(0, n, (num, n))
    intervals, p_values = bootstrap_intervals(x, y, draws), permutation_p_values(x, y, draws)
    for title, statistic in STATISTICS.items():
        varying = [i for i in index if np.ptp(x[i]) > 0 and np.ptp(y[i]) > 0]
        expected = np.quantile([float(statistic(x[i], y[i])) for i in varying], [0.025, 0.975])
        np.testing.assert_allclose(intervals[title], expected, atol=1e-10)
        slow = stats.permutation_test(
            (x,), lambda a, s=statistic: float(s(a, y)), permutation_type="pairings", n_resamples=num, vectorized=False,
            rng=np.random.default_rng([7, 1]),
        )  # fmt: skip
        assert p_values[title] == pytest.approx(float(slow.pvalue), abs=1e-12)


def test_the_order_of_many_at_once():
    """Against scipy's Kendall without ties, and against all pairs with them."""
    stream = np.random.default_rng(0)
    ranks, y = np.stack([stream.permutation(70) for _ in range(9)]), stream.normal(size=70)
    found = order_score(ranks, y) / (70 * 69 / 2)
    np.testing.assert_allclose(found, [stats.kendalltau(row, y).statistic for row in ranks], atol=1e-12)
    x, y = stream.integers(0, 6, (2, 50)).astype(float)
    pairs = [(i, j) for i, j in itertools.combinations(range(50), 2)]
    expected = sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs)
    assert order_score(dense_ranks(x)[None], y)[0] == expected


GRID = [{"lr": lr, "width": width} for lr, width in itertools.product((0.1, 0.2, 0.3), (8, 16))]


def test_granulated_kendall_by_hand():
    """The measure follows lr in width 8 (tau 1), in width 16 two of three pairs (1/3): psi_lr = 2/3.

    Width is wrong each time.
    """
    gap = np.array([1.0, 10.0, 2.0, 20.0, 3.0, 30.0])
    measure = np.array([11.0, 1.0, 12.0, 3.0, 13.0, 2.0])
    total, parts = Pairs(GRID, gap).granulated_kendall(measure)
    assert parts == pytest.approx({"lr": 2 / 3, "width": -1.0}) and total == pytest.approx(-1 / 6)
    assert np.isnan(Pairs([{"a": i, "b": i} for i in range(6)], gap).granulated_kendall(measure)[0])


def test_robust_sign_error_by_hand():
    """Width 16 goes wrong from lr 0.2 to 0.3, width 8 never: with one run a setting an environment is one pair."""
    gap = np.array([1.0, 10.0, 2.0, 20.0, 3.0, 30.0])
    measure = np.array([11.0, 21.0, 12.0, 33.0, 13.0, 32.0])
    assert Pairs(GRID, gap).robust_sign_error(measure) == (1.0, "lr 0.2 → 0.3 at width=16")
    assert Pairs(GRID, gap).robust_sign_error(gap) == (0.0, "lr 0.1 → 0.2 at width=8")
    # One hyper-parameter, two repetitions each: of the four pairs a → b one is wrong, of b → c two, of a → c none.
    settings = [{"optimizer": name} for name in "aabbcc"]
    measure = np.array([1.0, 3, 2, 6, 5, 5.5])
    error, where = Pairs(settings, np.arange(6.0)).robust_sign_error(measure)
    assert (error, where) == (0.5, "optimizer b → c")
    measure[1] = measure[0] = 2.0  # a tie is a coin
    assert Pairs(settings[:4], np.arange(4.0)).robust_sign_error(measure[:4]) == (0.25, "optimizer a → b")


def test_conditional_mutual_information():
    gap = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert Pairs(GRID, gap).conditional_mutual_information(gap) == pytest.approx(1)
    assert Pairs(GRID, gap).conditional_mutual_information(-gap) == pytest.approx(1)  # always wrong is as informative
    assert Pairs(GRID, gap).conditional_mutual_information(np.zeros(6)) == 0.0
    # What only repeats a hyper-parameter says nothing once it is given.
    width = np.array([s["width"] for s in GRID], float)
    gap = width + 0.01 * np.array([1, 5, 3, 2, 2.5, 4])
    assert Pairs(GRID, gap).conditional_mutual_information(width) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("names", [("lr",), ("lr", "width"), ("lr", "width", "depth")])
def test_conditional_mutual_information_another_way(names):
    """From contingency tables of scikit-learn, over every set of at most two hyper-parameters of both runs."""
    metrics = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn's")
    grid = list(itertools.product((0.1, 0.2, 0.3), (8, 16), (2, 4)))
    settings = [dict(zip(("lr", "width", "depth"), s, strict=True)) for s in grid]
    settings = [{name: s[name] for name in names} for s in settings]
    stream = np.random.default_rng(0)
    gap = stream.permutation(len(grid)).astype(float)
    measure = np.round(gap + 3 * stream.normal(size=len(grid)))  # with ties
    table = pd.DataFrame(settings).assign(m=measure, g=gap, key=0)
    pairs = table.merge(table, on="key", suffixes=("", "'"))
    pairs = pairs[pairs["g"] != pairs["g'"]]
    pairs = pairs.assign(vm=np.sign(pairs["m"] - pairs["m'"]), vg=np.sign(pairs["g"] - pairs["g'"]))
    found = []
    for chosen in itertools.chain.from_iterable(itertools.combinations(names, size) for size in range(3)):
        columns = [c for name in chosen for c in (name, f"{name}'")]
        groups = [g for _, g in pairs.groupby(columns)] if columns else [pairs]
        shared = sum(len(g) * metrics.mutual_info_score(g["vm"], g["vg"]) for g in groups)
        entropy = sum(len(g) * metrics.mutual_info_score(g["vg"], g["vg"]) for g in groups)
        found.append(shared / entropy)
    assert 0 < min(found) < max(found) < 1
    assert Pairs(settings, gap).conditional_mutual_information(measure) == pytest.approx(min(found), abs=1e-12)


# -- runs --------------------------------------------------------------------------------------------------------------


def grid_runs(folder=None, data="c"):
    runs = []
    for i, setting in enumerate(GRID):
        measures = {"good": bound(1.0 + i), "bad": bound(10.0 - i), "huge": bound(None, log10=300.0 + i)}
        results = run(measures, name=f"run{i}", hyperparameters=setting)
        results.quantities["losses"] = losses(test=0.2 + 0.1 * i, test_error=0.05 + 0.01 * i)
        results.data = {"spec": f"npz:{data}.npz", "sha256": data * 64}
        runs.append(results if folder is None else results.save(folder / f"{data}{i}"))
    return runs


def test_points():
    table = points(grid_runs(), "error")
    assert list(table.columns) == ["data", "gap", "hyperparameters", "good", "bad", "log10 huge"]
    np.testing.assert_allclose(table["gap"], 0.03 + 0.01 * np.arange(6))
    assert table["hyperparameters"].iloc[1] == GRID[1] and list(table["log10 huge"]) == [300.0 + i for i in range(6)]


def test_runs_with_hyperparameters_and_two_data_sets():
    found = genbound.correlate(grid_runs() + grid_runs(data="d"), num_resamples=200)
    table = found.to_frame().set_index(["data", "measure"])
    assert len(table) == 6 and table.loc[("npz:c.npz", "good"), "granulated_kendall"] == 1
    assert table.loc[("npz:d.npz", "bad"), "granulated_kendall"] == -1
    assert table.loc[("npz:d.npz", "bad"), "robust_sign_error"] == 1
    assert table.loc[("npz:c.npz", "log10 huge"), "kendall"] == pytest.approx(1)
    text = found.to_markdown()
    assert text.count("Generalization gap in the loss") == 2 and text.index("| good") < text.index("| bad")


def test_the_best_of_many_by_chance():
    """Four runs: tau = 1 has p = 1/12; as the best of 20 measures it is worth 1 - (11/12)^20 = 82 %."""
    stream = np.random.default_rng(0)
    table = pd.DataFrame(
        {"data": "d", "gap": [1.0, 2, 3, 4]} | {f"m{i}": stream.permutation(4.0 + np.arange(4)) for i in range(20)}
    )
    table["m0"] = [1.0, 2, 3, 4]
    found = correlate(table, num_resamples=99)
    (warning,) = found.warnings
    assert f"<p>Warning: {warning}</p>" in found._repr_html_()
    assert "4 checkpoints" in warning and "best of 20 measures (m0, Kendall 1.00)" in warning and "82%" in warning


def test_refusals():
    with pytest.raises(GenboundError, match="has 2 runs: a correlation needs 3"):
        genbound.correlate(grid_runs()[:2])
    with pytest.raises(GenboundError, match="gap 'nats' is unknown"):
        genbound.correlate(grid_runs(), "nats")
    runs = grid_runs()
    runs[2].quantities["losses"]["generalization_gap"] = None
    with pytest.raises(GenboundError, match="run2.* has no generalization gap .*--test-data"):
        genbound.correlate(runs)
    with pytest.raises(GenboundError, match="convention"):
        genbound.correlate([*grid_runs(), run(name="other", convention="paper-code")])
    with pytest.raises(GenboundError, match="'typo' is in none"):
        genbound.correlate(grid_runs(), measures=["typo"])


def test_the_command(tmp_path, capsys):
    paths = [str(path) for path in grid_runs(tmp_path)]
    assert main(["correlate", *paths, "--gap", "error", "--out", str(tmp_path / "out"), "--format", "svg"]) == 0
    out, err = capsys.readouterr()
    assert "granulated kendall" in out
    assert err.splitlines()[-1] == f"in {tmp_path / 'out'}: correlations.csv, points.csv, correlation.svg"
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["correlation.svg", "correlations.csv", "points.csv"]
    drawn = (tmp_path / "out" / "correlation.svg").read_text()
    assert all(f">{measure}</text>" in drawn for measure in ("good", "bad", "log10 huge"))
    assert main(["correlate", *paths, "--out", str(tmp_path / "lr"), "--over", "lr"]) == 0
    assert (tmp_path / "lr" / "over_lr.png").exists() and (tmp_path / "lr" / "correlation.png").exists()
    assert main(["correlate", *paths, "--over", "lr"]) == 2 and "--out DIR" in capsys.readouterr().err
    (tmp_path / "h.csv").write_text("run,depth\n" + "".join(f"c{i},{i // 3}\n" for i in range(6)))
    assert main(["correlate", *paths, "--hyperparameters", str(tmp_path / "h.csv")]) == 0
    (tmp_path / "h.csv").write_text("name\nc0\n")
    assert main(["correlate", *paths, "--hyperparameters", str(tmp_path / "h.csv")]) == 2
    assert "must have the column run" in capsys.readouterr().err


def test_runs_are_put_on_the_largest_observed_range():
    ranges = [{"value": c, "kind": "observed"} for c in (2.0, 8.0, 8.0)]
    given = [run({"hessian_distance": bound(v)}, loss_range=c) for v, c in zip((1.0, 2.0, 3.0), ranges, strict=True)]
    table = points(given)
    assert list(table["hessian_distance"]) == pytest.approx([2.0, 2.0, 3.0])
    assert "what contains C is rescaled to it: hessian_distance" in correlate(table).to_markdown()
    assert list(points(given, allow_mixed=True)["hessian_distance"]) == [1.0, 2.0, 3.0]


# -- what costs nothing ------------------------------------------------------------------------------------------------


def test_the_partial_coefficient():
    """By hand: tau of (x, y), (x, z), (y, z) are 2/3, 1/3, 2/3 on four runs, so it is sqrt(0.4)."""
    x, y, z = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3]), np.array([2.0, 1, 4, 3])
    assert stats.kendalltau(x, y).statistic == pytest.approx(2 / 3)
    assert stats.kendalltau(x, z).statistic == pytest.approx(1 / 3)
    assert stats.kendalltau(y, z).statistic == pytest.approx(2 / 3)
    assert partial_kendall(x, y, z) == pytest.approx(np.sqrt(0.4))
    assert np.isnan(partial_kendall(x, y, x)) and np.isnan(partial_kendall(x, y, np.ones(4)))


def test_trivial_rivals():
    """Both rivals have a row, and each measure its partial coefficient; one that is the distance has none left."""
    stream, runs = np.random.default_rng(0), grid_runs()
    train, moved = stream.uniform(0.05, 0.15, 6), stream.uniform(1, 2, 6)
    for results, loss, distance in zip(runs, train, moved, strict=True):
        results.quantities["losses"]["train_loss"] = loss
        results.quantities["displacement_norm"]["layers"] = {
            "a": {"value": 0.6 * distance},
            "b": {"value": 0.8 * distance},
        }
        results.bounds["twin"] = type(results.bounds["good"])(bound(10 * distance))
    found = correlate(runs, num_resamples=99)
    table = found.to_frame().set_index("measure")
    assert list(table.index) == ["good", "bad", "log10 huge", "twin", "training loss", "distance"]
    gap = found.points["gap"]
    np.testing.assert_allclose(found.points["distance"], moved)
    assert table.loc["distance", "kendall"] == pytest.approx(stats.kendalltau(moved, gap).statistic)
    assert table.loc["good", "kendall given training loss"] == pytest.approx(
        partial_kendall(np.arange(6.0), gap, train)
    )
    assert np.isnan(table.loc["twin", "kendall given distance"])
    text = found.to_markdown()
    assert "| given training loss" in text and "| given distance" in text


def test_the_bootstrap_against_scipys():
    """Percentile intervals of scipy on the same pairs: equal within what 4,000 resamples leave open."""
    stream = np.random.default_rng(3)
    x = stream.normal(size=60)
    y = x + stream.normal(size=60)
    ours = bootstrap_intervals(x, y, Draws(60, 4000, 0))
    for title, statistic in (("pearson", STATISTICS["pearson"]), ("spearman", STATISTICS["spearman"])):
        theirs = stats.bootstrap(
            (x, y), statistic, paired=True, method="percentile", n_resamples=4000, vectorized=True,
            rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        np.testing.assert_allclose(ours[title], theirs, atol=0.02)


def test_the_interval_of_the_partial_coefficient():
    """The same resamples, one by one; those where the third number orders as one of both are left out."""
    stream = np.random.default_rng(5)
    x, y, z = stream.integers(0, 4, (3, 5)).astype(float)
    index = np.random.default_rng([7, 0]).integers(0, 5, (300, 5))
    slow = [partial_kendall(x[i], y[i], z[i]) for i in index if min(np.ptp(a[i]) for a in (x, y, z)) > 0]
    assert np.isnan(slow).any()
    expected = np.nanquantile(slow, [0.025, 0.975])
    np.testing.assert_allclose(partial_interval(x, y, z, Draws(5, 300, 7)), expected, atol=1e-10)
    assert np.isnan(partial_interval(x, y, x, Draws(5, 300, 7))).all()


@pytest.mark.parametrize("clusters", [(0, 0, 1, 1, 1, 2, 3, 3, 4), (0, 1, 0, 2, 1, 0, 2, 2, 1)])
def test_clusters_are_drawn_whole(clusters):
    """The same draws of clusters, each resample spelled out run by run and put through scipy's coefficients."""
    stream, codes = np.random.default_rng(1), np.array(clusters)
    x, y, z = np.round(2 * stream.normal(size=(3, len(codes))), 1)
    k, draws = codes.max() + 1, Draws(len(codes), 400, 3, clusters)
    drawn = np.random.default_rng([3, 0]).integers(0, k, (400, k))
    resamples = [np.concatenate([np.flatnonzero(codes == c) for c in row]) for row in drawn]
    assert len({len(i) for i in resamples}) > 1 or len(set(np.bincount(codes))) == 1
    kept = [i for i in resamples if np.ptp(x[i]) > 0 and np.ptp(y[i]) > 0]
    for title, ours in bootstrap_intervals(x, y, draws).items():
        slow = [float(STATISTICS[title](x[i], y[i])) for i in kept]
        np.testing.assert_allclose(ours, np.quantile(slow, [0.025, 0.975]), atol=1e-10)
    partial = [partial_kendall(x[i], y[i], z[i]) for i in resamples if min(np.ptp(a[i]) for a in (x, y, z)) > 0]
    np.testing.assert_allclose(partial_interval(x, y, z, draws), np.nanquantile(partial, [0.025, 0.975]), atol=1e-10)


def test_a_cluster_of_copies_is_worth_one_run():
    """Every run three times: as runs of their own they look three times surer than they are; as clusters not."""
    stream = np.random.default_rng(0)
    x = stream.normal(size=20)
    y = x + 1.5 * stream.normal(size=20)
    width = {}
    for name, draws in (("once", Draws(20, 2000, 0)), ("clusters", Draws(60, 2000, 0, tuple(np.repeat(range(20), 3))))):
        repeat = draws.num_runs // 20
        low, high = bootstrap_intervals(np.repeat(x, repeat), np.repeat(y, repeat), draws)["pearson"]
        width[name] = high - low
    assert width["clusters"] == pytest.approx(width["once"], abs=1e-12)
    low, high = bootstrap_intervals(np.repeat(x, 3), np.repeat(y, 3), Draws(60, 2000, 0))["pearson"]
    assert high - low < 0.7 * width["once"]


def test_runs_of_one_seed_are_a_cluster():
    runs = grid_runs()
    for i, results in enumerate(runs):
        results.config["hyperparameters"] = {"seed": str(i % 3), "lr": i // 3}
    found = correlate(runs, clusters="seed", num_resamples=99)
    table = found.to_frame()
    assert set(table["num_clusters"]) == {3} and not any("seed" in column for column in table.columns)
    assert "granulated_kendall lr" in table.columns and "3 clusters are drawn" in found.to_markdown()
    del runs[4].config["hyperparameters"]["seed"]
    with pytest.raises(GenboundError, match="run4.* states no hyper-parameter 'seed'"):
        correlate(runs, clusters="seed")


def test_only_the_runs_that_all_measures_have():
    runs = grid_runs()
    runs[0].bounds["good"] |= {"value": None, "log10": None}
    apart = correlate(runs, num_resamples=99).to_frame().set_index("measure")["num_runs"]
    assert apart["good"] == 5 and apart["bad"] == 6
    found = correlate(runs, common=True, num_resamples=99)
    assert set(found.to_frame()["num_runs"]) == {5} and "5 of 6 runs have all measures" in found.warnings[0]


# -- what so many runs can show ----------------------------------------------------------------------------------------


def test_the_variance_of_kendalls_coefficient():
    """Independent: 2(2n+5)/9n(n-1), as in every table. Else against 4,000 draws of correlated normal numbers."""
    assert kendall_variance(0.0, 24) == pytest.approx(2 * (2 * 24 + 5) / (9 * 24 * 23))
    assert kendall_variance(1.0, 24) == pytest.approx(0, abs=1e-12)
    stream = np.random.default_rng(0)
    x, noise = stream.normal(size=(2, 4000, 20))
    drawn = [stats.kendalltau(a, 0.6 * a + 0.8 * b).statistic for a, b in zip(x, noise, strict=True)]
    assert np.mean(drawn) == pytest.approx(2 / np.pi * np.arcsin(0.6), abs=4 * np.std(drawn) / np.sqrt(4000))
    assert np.var(drawn) == pytest.approx(kendall_variance(0.6, 20), rel=4 * np.sqrt(2 / 4000))


@pytest.mark.parametrize("num_runs", [5, 6, 8, 11, 12, 30])
def test_the_smallest_coefficient_that_is_found(num_runs):
    """Drawn at it, scipy's exact test rejects independence about as often as promised: 80 %."""
    tau = detectable_kendall(num_runs)
    assert power(tau, num_runs) == pytest.approx(0.8, abs=1e-4)
    assert power(0.0, num_runs) <= 0.05 + 1e-9 and power(0.0, num_runs) > 0.01
    stream, rho = np.random.default_rng(1), np.sin(np.pi * tau / 2)
    x, noise = stream.normal(size=(2, 1500, num_runs))
    y = rho * x + np.sqrt(1 - rho**2) * noise
    found = np.mean([stats.kendalltau(a, b).pvalue <= 0.05 for a, b in zip(x, y, strict=True)])
    assert found == pytest.approx(0.8, abs=0.04)


def test_too_few_runs_show_nothing():
    assert all(np.isnan(detectable_kendall(num_runs)) for num_runs in (2, 3, 4))
    assert power(1.0, 4) == 0  # one of 24 orders is not rare enough, on either side
    runs = grid_runs()[:4]
    assert "4 runs show no Kendall coefficient at 5 % with a chance of 80%." in genbound.correlate(runs).to_markdown()
    assert detectable_kendall(10) > detectable_kendall(30) > detectable_kendall(100) > 0.18
