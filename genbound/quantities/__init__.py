"""What is measured: one file a quantity, and the catalogue of all, which is read without torch."""

from genbound.quantities.base import Measured, Quantity
from genbound.quantities.catalogue import QUANTITIES

__all__ = ["QUANTITIES", "Measured", "Quantity"]
