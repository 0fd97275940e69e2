"""The per-sample table that is written in blocks against the one that is made in memory."""

import numpy as np
import pandas as pd

from genbound.estimators import disk_table
from genbound.estimators.disk_table import DiskTable
from genbound.results.results import samples_frame
from genbound.results.sample_rows import SampleRows, in_memory, write_samples


def test_blocks_are_the_table_in_memory(tmp_path, monkeypatch):
    random, num, layers = np.random.default_rng(0), 500, ["first", "second", "third"]
    indices = random.permutation(600)[:num].tolist()
    others = [*random.permutation(indices)[:200].tolist(), 700, 701]
    arrays = {
        "max_quadratic_form": {"lower": random.normal(size=(num, 3)), "upper": random.normal(size=(num, 3))},
        "hessian_trace": {
            "sample": np.array(others), "value": random.normal(size=(202, 3)), "num_probes": np.arange(202),
        },
        "losses": {"loss": random.normal(size=num), "elsewhere": np.zeros(7)},
    }  # fmt: skip
    wanted = samples_frame(indices, layers, arrays)
    on_disk = {
        quantity: {key: DiskTable.of(values) if values.ndim == 2 else values for key, values in named.items()}
        for quantity, named in arrays.items()
    }
    monkeypatch.setattr(disk_table, "RUN", 64)
    monkeypatch.setattr(disk_table, "MOST", 600)
    found = samples_frame(indices, layers, on_disk)
    assert isinstance(found, SampleRows) and isinstance(wanted, pd.DataFrame)
    pd.testing.assert_frame_equal(in_memory(found), wanted, check_exact=True)
    assert len(list(found.blocks())) > 10
    for name, table in (("blocks", found), ("memory", wanted)):
        write_samples(table, tmp_path / name)
    one, other = (pd.read_parquet(tmp_path / name) for name in ("blocks", "memory"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert samples_frame(indices, layers, {"losses": {"elsewhere": np.zeros(7)}}) is None
