"""A sample's way from a data SPEC to a batch."""

from genbound.data.load_data import load_data
from genbound.data.samples import Batch, ListSamples, Samples, TensorSamples, as_samples
from genbound.data.spec import Reader
from genbound.data.texts import TextSamples

__all__ = ["Batch", "ListSamples", "Reader", "Samples", "TensorSamples", "TextSamples", "as_samples", "load_data"]
