"""The one loop: which measures, in which order, what is stored, what it will cost."""

from genbound.evaluation.loop import evaluate, measure

__all__ = ["evaluate", "measure"]
