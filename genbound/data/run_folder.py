"""The training samples of a ``genbound finetune`` run, with the labels that it saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genbound.data.npz import npz_arrays
from genbound.data.sample_parts import to_tensor
from genbound.data.samples import Batch, Samples
from genbound.data.spec import FUNCTION, DataSpec, Reader
from genbound.errors import GenboundError

SCHEME = "run"
