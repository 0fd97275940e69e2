"""Samples with other labels keep what else is known of them."""

import torch

from genbound.data.run_folder import Relabelled
from genbound.data.samples import ListSamples


def test_relabelled_samples_are_as_long_as_they_were():
    """Those of like length are measured together: a batch of a run's own texts is hardly padded."""
    samples = ListSamples([(torch.ones(length), torch.tensor(0)) for length in (5, 2, 9, 4)])
    some = Relabelled(samples, [1, 0, 1, 0], [2, 1])
    assert [some.size(i) for i in range(2)] == [samples.size(2), samples.size(1)]
    assert some.size(0) > some.size(1) > 0
