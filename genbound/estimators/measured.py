"""What a measurement hands back, as plain arrays: all that the store and the tables need to know of quantities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genbound.estimators.disk_table import Table

Part = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """What a quantity found.

    Attributes:
        summary: JSON-ready: ``layers``, ``total``, ``sigmas`` or named values.
        samples: per-sample values, name -> ``[N, L]`` or ``[N]`` array in the order of the measured samples, or of the
            indices in ``sample [N]``; large tables lie on the disk.
        data: values of every training sample, in the order of the data, and what else other quantities read.
        weights: tensors of a network that was made of the fine-tuned one, by their names in it; the others are its own.
    """

    summary: dict[str, Any]
    samples: dict[str, Table] = field(default_factory=dict)
    data: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
