"""Passes of samples of different lengths: against every way to cut them."""

from itertools import combinations

import numpy as np
import pytest

from genbound.estimators.even_runs import ALONE, even_runs


def took(sizes, runs):
    return sum(len(run) * sizes[run[-1]] + ALONE * np.mean(sizes) for run in runs)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_takes_less(seed):
    sizes, most = np.sort(np.random.default_rng(seed).integers(3, 60, 9)), 4
    found = even_runs(sizes, most)
    assert [i for run in found for i in run] == list(range(9)) and max(map(len, found)) <= most
    every = []
    for num in range(9):
        for cuts in combinations(range(1, 9), num):
            ends = [0, *cuts, 9]
            runs = [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]
            if max(map(len, runs)) <= most:
                every.append(took(sizes, runs))
    assert took(sizes, found) == pytest.approx(min(every))


def test_samples_of_one_size_have_as_few_passes_as_hold_them():
    for size in (0, 7):
        assert [len(run) for run in even_runs([size] * 10, 4)] in ([4, 4, 2], [2, 4, 4], [4, 2, 4])
    assert even_runs([], 4) == [] and even_runs([5], 4) == [range(0, 1)]
    assert even_runs([1, 1, 50, 50], 4) == [range(0, 2), range(2, 4)]
