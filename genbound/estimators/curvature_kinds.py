r"""Which matrix is meant by the curvature of the mean loss: Hessian, Gauss-Newton part, or Fisher's information.

With outputs f, their Jacobian J in the weights, and the loss l of a sample:

* ``hessian``: :math:`\nabla_W^2 \ell`. The only one that the bounds speak of; it may be indefinite.
* ``ggn``: :math:`J^\top (\nabla_f^2 \ell) J`, positive semidefinite where the loss is convex in the output.
* ``fisher``: :math:`E_y[\nabla_W \ell(f, y)\, \nabla_W \ell(f, y)^\top]`, labels y drawn from what the network
  predicts, independently at each place that has a label. It is not the *empirical* Fisher matrix, whose labels are
  the data's.

For cross-entropy and squared error with one label a sample, fisher is ggn. A loss that is a mean over T independent
labels has a gradient that is a mean of T, so fisher is ggn over T. (Squared error is the negative log-likelihood of
a normal distribution of variance 1/2 in each output, up to a constant.)
"""

from __future__ import annotations

from genbound.errors import GenboundError, did_you_mean

CURVATURES = ("hessian", "ggn", "fisher")
CALLED = {"hessian": "Hessian", "ggn": "Gauss-Newton", "fisher": "Fisher"}


def check_curvature(name: str) -> str:
    """The name, refused if it is none of :data:`CURVATURES`."""
    if name not in CURVATURES:
        hint = did_you_mean(str(name), CURVATURES)
        raise GenboundError(f"curvature {name!r} is unknown{hint}: use {', '.join(CURVATURES)}")
    return name
