"""Tables: stored results, their comparison and correlation, the regression check, export."""

from genbound.results.results import Results, load_results

__all__ = ["Results", "load_results"]
