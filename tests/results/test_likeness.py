"""Runs that were not measured alike are not set side by side without a word."""

import pytest
from handmade import bound, run

import genbound
from genbound.errors import GenboundError
from genbound.results.regression import check


def on_test_data(*digests):
    runs = [run({"li2021": bound(1.0 + i)}, name=f"run{i}") for i in range(len(digests))]
    for results, digest in zip(runs, digests, strict=True):
        results.data["test_sha256"] = digest * 64 if digest else None
    return runs


def test_other_test_data_are_refused():
    for several in (genbound.compare, genbound.correlate):
        with pytest.raises(GenboundError, match=r"not alike: test data \(eeeeeeee in run0.*, run2.*, ffffffff in run1"):
            several(on_test_data("e", "f", "e"))
        assert several(on_test_data("e", "f", "e"), allow_mixed=True)
    (row,) = check(*on_test_data("e", "f")).failures[:1]
    assert (row.measure, row.where) == ("configuration", "test data")


def test_test_data_that_nobody_knows_are_like_any():
    assert genbound.compare(on_test_data("e", None, "e")) and genbound.compare(on_test_data(None, None))
    with pytest.raises(GenboundError, match="test data"):
        genbound.compare(on_test_data(None, "e", "f"))
