"""Numerics without learning theory: estimates with error bars, random probes, brackets."""

from genbound.estimators.estimate import Estimate, Interval

__all__ = ["Estimate", "Interval"]
