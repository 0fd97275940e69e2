r"""The norms of each layer that have a formula, of both models and of the difference, and the layer's sizes.

With K the stored weights (batch norm folded in) and M the matrix of the operator on one sample's whole input, a row for
every output coordinate:

=========================  ==========================================================================================
``frobenius``, ``l1``      :math:`\|K\|_F` and :math:`\sum |K|`
``operator_frobenius``     :math:`\|M\|_F`
``mars``                   :math:`\|M\|_\infty = \max_r \sum_c |M_{rc}|`: the most that an output position sees of |K|
``mars_with_bias``         the same with the bias as one more column
``two_one``                :math:`\|M^\top\|_{2,1} = \sum_r \|M_r\|_2`
``kernel_two_one``         :math:`\sum_o \|K_o\|_2` over output channels
=========================  ==========================================================================================

A row of M at the border of a zero-padded map has fewer taps than one inside; all sums count exactly those that see real
entries. A layer applied to T tokens has T copies of its matrix in M. Where the measured samples differ in shape
(``alike`` is false), all of this is of the largest of them. ``bias_norm`` is the Euclidean norm of what the
bias adds to the whole output (every position), ``bias_vector_norm`` that of the vector. ``stride``, ``kernel_side`` and
``input_resolution`` are geometric means over the axes. ``input_positions`` are those of one map, and ``frequencies``
those of the circular convolution on the padded map, of which the layer is a part. A layer that is used at several sizes
has the sizes of its largest input and the largest of each norm. Without a network there is no operator:
``matrix_norms`` has the norms of the stored weights.

Cost: six products with each layer on one input. Exact up to rounding in float64.

References:
    MARS: Gouk, Hospedales & Pontil, Distance-based regularisation of deep networks for fine-tuning, ICLR 2021.
    (2,1): Bartlett, Foster & Telgarsky, Spectrally-normalized margin bounds for neural networks, NeurIPS 2017, where A
        is the transpose of M.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured
from genbound.structure.layer_matrices import Operator, exact_norms
from genbound.structure.reader import read_structure


def measure(problem: Problem, context: Context) -> Measured:
    """The exact norms and the sizes of every layer's operator, for both models and the displacement."""
    structure = read_structure(problem)
    rows = {}
    for layer in problem.layers:
        found = structure.effective(layer.name)
        sizes = max((operator.describe() for operator in found.trained), key=lambda size: size["input_size"])
        positions = int(sizes["output_positions"])
        moved = _difference(found.trained_bias, found.init_bias)
        rows[layer.name] = {
            "weight": _largest(found.trained, found.trained_bias),
            "init": _largest(found.init, found.init_bias),
            "displacement": _largest(found.displacement, moved),
            **sizes,
            "num_weights": layer.num_weights,
            "kind": found.kind,
            "folded": found.folded,
            **_bias_norms("bias", found.trained_bias, positions),
            **_bias_norms("init_bias", found.init_bias, positions),
            **_bias_norms("displacement_bias", moved, positions),
        }
    return Measured({"layers": rows, "alike": problem.alike()})


def _largest(operators: Sequence[Operator], bias: Tensor | None) -> dict[str, float]:
    """Every norm of the largest of the operators, which share a bias ``[out]``."""
    found = [exact_norms(operator, bias) for operator in operators]
    return {name: max(norms[name] for norms in found) for name in found[0]}


def _difference(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """``a - b``, where ``None`` is zero."""
    return a if b is None else -b if a is None else a - b


def _bias_norms(name: str, bias: Tensor | None, positions: int) -> dict[str, float]:
    """Norms of a bias ``[out]`` that is added at every position, and of the vector alone."""
    norm = 0.0 if bias is None else float(bias.norm())
    return {f"{name}_norm": norm * positions**0.5, f"{name}_vector_norm": norm}
