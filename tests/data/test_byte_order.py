"""Arrays in the byte order of another machine are the same samples."""

import numpy as np
import pytest
import torch

from genbound.data import load_data
from genbound.data.samples import as_samples

X, Y = np.random.default_rng(0).normal(size=(5, 3)), np.array([0, 2, 1, 1, 0])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("inputs", "labels"), [("f4", "i4"), ("f8", "i8"), ("i2", "i2"), ("f4", "f8")])
def test_arrays_of_any_byte_order_are_read(order, inputs, labels, tmp_path):
    x, y = X.astype(order + inputs), Y.astype(order + labels)
    np.savez(tmp_path / "t.npz", x=x, y=y)
    for samples in (load_data(f"npz:{tmp_path}/t.npz"), as_samples((x, y))):
        batch = samples.batch(range(5))
        assert torch.equal(batch.inputs, torch.as_tensor(X.astype(inputs)).to(batch.inputs.dtype))
        assert batch.targets.tolist() == Y.tolist()
