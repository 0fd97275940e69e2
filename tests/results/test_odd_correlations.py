"""Tables of runs with holes and with one cluster: what is not known is no number."""

import math

import numpy as np
import pandas as pd
import pytest

from genbound.errors import GenboundError
from genbound.results.correlation import correlate, read_hyperparameters
from genbound.results.runs import stated_of

GAPS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def table(**columns):
    return pd.DataFrame({"data": "d", "gap": GAPS, "measure": [1.0, 3, 2, 4, 6, 5], **columns})


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_a_run_without_a_gap_is_left_out(hole):
    gaps = GAPS.copy()
    gaps[1] = hole
    found, expected = (correlate(runs, num_resamples=99) for runs in (table(gap=gaps), table().drop(index=1)))
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert found.table["num_runs"][0] == 5


def test_runs_of_one_cluster_have_no_interval():
    found = correlate(table(cluster="seed 0"), num_resamples=99)
    row = found.table.iloc[0]
    assert all(math.isnan(row[f"{title}_{side}"]) for title in ("pearson", "kendall") for side in ("lower", "upper"))
    assert "| 0.73, p = " in found.to_markdown() and "All runs are one cluster" in found.to_markdown()


def test_an_empty_cell_is_no_hyper_parameter(tmp_path, run):
    file = tmp_path / "table.csv"
    file.write_text("run,lr\na,0.1\nb,\n")
    stated = read_hyperparameters(file)
    assert stated == {"a": {"lr": 0.1}, "b": {}}
    with pytest.raises(GenboundError, match="b.* lr"):
        stated_of({"a": run({}), "b": run({})}, stated)
    assert stated_of({"a": run({}), "b": run({"lr": 0.2})}, stated) == {"a": {"lr": 0.1}, "b": {"lr": 0.2}}


@pytest.fixture
def run():
    class Run:
        path = None

        def __init__(self, stated):
            self.config = {"hyperparameters": stated}

    return Run


def test_a_run_has_one_row_of_hyper_parameters(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("run,lr\na,0.1\na,0.2\n")
    with pytest.raises(GenboundError, match="two rows of run a"):
        read_hyperparameters(file)


def test_what_has_no_coefficient_is_said_and_why():
    found = correlate(table(constant=1.0, rare=[1.0, 2, math.nan, math.nan, math.nan, math.nan]), num_resamples=99)
    assert found.measures == ["measure"]
    assert "d: no line for constant, rare: a coefficient needs 3 runs, values that differ" in " ".join(found.warnings)
    same = correlate(table(gap=0.2), num_resamples=99)
    assert same.warnings == ("d: the gap is the same in all runs, so that nothing goes along with it.",)
