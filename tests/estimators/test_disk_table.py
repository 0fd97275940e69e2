"""Tables on the disk against numpy's arrays."""

import pickle

import numpy as np
import pytest

from genbound.errors import GenboundError
from genbound.estimators.disk_table import DiskTable, new_table, runs_of


def test_rows_and_columns_are_those_of_an_array():
    array = np.random.default_rng(0).normal(size=(1000, 7))
    table = DiskTable.of(array)
    assert table.shape == array.shape and len(table) == 1000
    assert np.array_equal(table, array)
    assert np.array_equal(table[:, 3], array[:, 3]) and np.array_equal(table[:, -1], array[:, -1])
    assert np.array_equal(table[[5, 2], 3], array[[5, 2], 3])
    assert np.array_equal(table[10:20], array[10:20]) and table[20:10].shape == (0, 7)
    assert np.array_equal(np.concatenate([table[run] for run in table.runs()]), array)
    with pytest.raises(IndexError):
        table[:, 7]
    with pytest.raises(IndexError):
        table[::2]


def test_what_is_written_is_read():
    array = np.zeros((300, 5), np.float32)
    table = DiskTable(300, 5, np.float32)
    random = np.random.default_rng(0)
    for first in range(0, 300, 64):
        rows = random.normal(size=(min(64, 300 - first), 5))
        array[first : first + 64] = table[first : first + 64] = rows
    array[[3, 200], 2] = table[[3, 200], 2] = [1.5, -2.5]
    array[:, 4] = table[:, 4] = np.arange(300)
    assert np.array_equal(table, array) and table.dtype == np.float32
    assert np.array_equal(pickle.loads(pickle.dumps(table)), array)


def test_only_large_tables_lie_on_the_disk():
    assert isinstance(new_table(100, 10), np.ndarray)
    assert isinstance(new_table(2**22, 2, bool), DiskTable)
    assert [run.stop - run.start for run in runs_of(10, 2**17)] == [2] * 5


def test_a_full_disk_is_told_in_one_line(monkeypatch):
    table = DiskTable(10, 2)

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(GenboundError, match="No space left on device.*TMPDIR"):
        table[:, 0] = np.ones(10)


def test_no_folder_for_it_is_told_in_one_line(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(GenboundError, match="any folder for temporary files .No usable .*TMPDIR"):
        DiskTable(10, 2)
