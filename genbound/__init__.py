"""genbound measures what bounds on the generalization of a fine-tuned network are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genbound.version import __version__

# Names are imported when they are first used: `genbound list` need not wait for torch.
_WHERE = {
    "Problem": "genbound.network.problem",
    "load": "genbound.evaluation.loading",
    "save_spec": "genbound.checkpoints.sidecar",
    "evaluate": "genbound.evaluation.loop",
    "measure": "genbound.evaluation.loop",
    "Results": "genbound.results.results",
    "load_results": "genbound.results.results",
    "compare": "genbound.results.comparison",
    "correlate": "genbound.results.correlation",
    "check": "genbound.results.regression",
    "hessian_operator": "genbound.curvature.linear_operator",
    "Estimate": "genbound.estimators",
    "Interval": "genbound.estimators",
    "GenboundError": "genbound.errors",
}
__all__ = [*_WHERE, "__version__"]

if TYPE_CHECKING:
    from genbound.checkpoints.sidecar import save_spec
    from genbound.curvature.linear_operator import hessian_operator
    from genbound.errors import GenboundError
    from genbound.estimators import Estimate, Interval
    from genbound.evaluation.loading import load
    from genbound.evaluation.loop import evaluate, measure
    from genbound.network.problem import Problem
    from genbound.results.comparison import compare
    from genbound.results.correlation import correlate
    from genbound.results.regression import check
    from genbound.results.results import Results, load_results


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "finetune":
        return import_module("genbound.finetune")
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'genbound' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "finetune"])
