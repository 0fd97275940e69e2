"""Norms of convolution operators against the explicit matrix, and the brackets of the Krylov methods."""

import itertools
import math

import pytest
import torch

from genbound.estimators.operator_norm import a_priori_factor, operator_norm, start_component
from genbound.structure.layer_matrices import Convolution, Matrix, exact_norms

D = torch.float64
GAP = 1.01 * (1 + 1e-9)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=D)


def matrix(operator) -> torch.Tensor:
    """The operator on unit vectors, one column each."""
    size = math.prod(operator.in_shape)
    return operator.apply(torch.eye(size, dtype=D).view(size, *operator.in_shape)).flatten(1).T


def conv(
    weight, in_shape, stride=1, padding=0, dilation=1, groups=1, transposed=False, output_padding=0
) -> Convolution:
    dims = weight.dim() - 2
    spread = [
        (value,) * dims if isinstance(value, int) else value for value in (stride, padding, dilation, output_padding)
    ]
    return Convolution(weight, in_shape, *spread[:3], transposed, spread[3], groups)


GRID = [
    pytest.param(*values, id="stride{} padding{} dilation{} groups{} {}".format(*values))
    for values in itertools.product((1, 2, 3), (0, 1, 2), (1, 2), (1, 2), ("plain", "transposed"))
]
OTHERS = {
    "1-D": lambda: conv(randn(3, 2, 5), (2, 11), 2, 1, 2),
    "3-D": lambda: conv(randn(2, 3, 2, 2, 3), (3, 4, 3, 4), 1, 1),
    "uneven": lambda: conv(randn(4, 3, 3, 1), (3, 5, 8), (2, 1), (1, 0), (1, 2)),
    "depthwise": lambda: conv(randn(6, 1, 3, 3), (6, 7, 7), 1, 1, groups=6),
    "depth multiplier": lambda: conv(randn(6, 1, 3, 3), (3, 6, 6), 2, 1, groups=3),
    "1x1": lambda: conv(randn(5, 3, 1, 1), (3, 4, 4)),
    "1x1 strided": lambda: conv(randn(5, 3, 1, 1), (3, 5, 5), 2),
    "1x1 grouped": lambda: conv(randn(6, 2, 1, 1), (4, 5, 5), 2, groups=2),
    "1x1 padded": lambda: conv(randn(5, 3, 1, 1), (3, 4, 4), 2, 1),
    "1x1 transposed": lambda: conv(randn(4, 3, 1, 1), (4, 3, 3), 2, groups=2, transposed=True),
    "whole map": lambda: conv(randn(5, 3, 4, 4), (3, 4, 4)),
    "kernel larger than the map": lambda: conv(randn(2, 2, 5, 5), (2, 2, 2), 1, 2),
    "output padding": lambda: conv(randn(4, 3, 3, 3), (4, 4, 4), 2, 1, transposed=True, output_padding=1),
    "matrix": lambda: Matrix(randn(7, 4)),
}


def circular_norm(operator) -> float:
    """Norm of the circular convolution with as many positions as the operator's ``frequencies``, block by block."""
    sides = operator.out_shape[1:] if operator.transposed else operator.in_shape[1:]
    reach = [d * (k - 1) for d, k in zip(operator.dilation, operator.kernel, strict=True)]
    padded = [n + r for n, r in zip(sides, reach, strict=True)]
    assert operator.describe()["frequencies"] == math.prod(padded)
    assert operator.describe()["input_positions"] == math.prod(operator.in_shape[1:])
    kernel = operator._by_group()
    spread = kernel.new_zeros(*kernel.shape[:3], *(r + 1 for r in reach))
    spread[(..., *(slice(None, None, d) for d in operator.dilation))] = kernel
    blocks = torch.fft.fftn(spread, s=padded, dim=tuple(range(3, kernel.dim())))
    return float(torch.linalg.matrix_norm(blocks.flatten(3).permute(0, 3, 1, 2), 2).max())


def check(operator) -> None:
    m = matrix(operator)
    truth = float(torch.linalg.matrix_norm(m, 2))
    exact = operator_norm(operator, stream())
    assert exact.lower <= truth <= exact.upper <= exact.lower * (1 + 1e-9)
    assert exact.method == "svd"
    if operator.kind == "convolution":
        assert truth <= circular_norm(operator) * (1 + 1e-12)
    if operator.blocks is None:
        for memory in (2**30, 0):
            found = operator_norm(operator, stream(1), dense=0, memory=memory)
            assert found.method == ("lanczos" if memory else "chebyshev")
            assert found.lower <= truth <= found.upper <= GAP * found.lower
    x, y = randn(2, *operator.in_shape, seed=3), randn(2, *operator.out_shape, seed=4)
    torch.testing.assert_close((operator.apply(x) * y).sum(), (operator.adjoint(y) * x).sum())
    norms = exact_norms(operator, bias := randn(operator.out_shape[0], seed=5))
    rows = m.abs().sum(1)
    shift = bias.abs().repeat_interleave(math.prod(operator.out_shape[1:]))
    assert norms["mars"] == pytest.approx(float(rows.max()), rel=1e-12)
    assert norms["mars_with_bias"] == pytest.approx(float((rows + shift).max()), rel=1e-12)
    assert norms["operator_frobenius"] == pytest.approx(float(m.norm()), rel=1e-12)
    assert norms["two_one"] == pytest.approx(float(m.norm(dim=1).sum()), rel=1e-12)
    assert norms["frobenius"] == pytest.approx(float(operator.weight.norm()), rel=1e-12)


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups", "kind"), GRID)
def test_convolutions_match_their_matrix(stride, padding, dilation, groups, kind):
    weight = randn(4, 6 // groups, 3, 2)
    transposed = kind == "transposed"
    check(conv(weight, (4 if transposed else 6, 7, 6), stride, padding, dilation, groups, transposed))


@pytest.mark.parametrize("name", OTHERS)
def test_other_operators_match_their_matrix(name):
    check(OTHERS[name]())


@pytest.mark.parametrize("name", ["1-D", "output padding", "1x1 transposed", "depth multiplier"])
def test_scaling_outputs_scales_the_rows(name):
    operator = OTHERS[name]()
    scale = randn(operator.out_shape[0], seed=7)
    rows = scale.repeat_interleave(math.prod(operator.out_shape[1:])).unsqueeze(1)
    torch.testing.assert_close(matrix(operator.scale_outputs(scale)), rows * matrix(operator))


@pytest.mark.parametrize(
    ("side", "spectral", "mars", "frobenius_squared", "two_one"),
    [(2, 4, 4, 16, 8), (3, (1 + 2**0.5) ** 2, 9, 49, 20.797959), (4, 6.854102, 9, 100, 39.595918),
     (8, 8.290859, 9, 484, 174.787754)],
)  # fmt: skip
def test_a_kernel_of_ones(side, spectral, mars, frobenius_squared, two_one):
    """By hand: the operator is the tensor square of the tridiagonal matrix of ones."""
    operator = conv(torch.ones(1, 1, 3, 3, dtype=D), (1, side, side), padding=1)
    found, norms = operator_norm(operator, stream()), exact_norms(operator)
    assert spectral == pytest.approx((1 + 2 * math.cos(math.pi / (side + 1))) ** 2, rel=1e-6)
    assert found.upper == pytest.approx((1 + 2 * math.cos(math.pi / (side + 1))) ** 2, rel=1e-11)
    assert norms["mars"] == pytest.approx(mars)
    assert norms["operator_frobenius"] ** 2 == pytest.approx(frobenius_squared)
    assert norms["two_one"] == pytest.approx(two_one, rel=1e-7)
    assert norms["frobenius"] == norms["kernel_two_one"] == 3
    assert norms["l1"] == 9


def test_a_large_operator_is_bracketed():
    operator = conv(randn(16, 16, 3, 3), (16, 32, 32), padding=1)
    found = operator_norm(operator, stream())
    assert found.method == "lanczos"
    assert found.upper <= GAP * found.lower
    x = randn(1, 16, 32, 32, seed=1)
    for _ in range(300):  # power iteration: a lower bound
        x = operator.adjoint(operator.apply(x))
        x = x / x.norm()
    assert found.lower * 0.99 <= float(operator.apply(x).norm()) <= found.upper
    other = operator_norm(operator, stream(), memory=0)
    assert other.lower <= found.upper and found.lower <= other.upper


def test_a_large_matrix_is_bracketed():
    a, b = randn(1600, 3), randn(3, 1700, seed=1)
    found = operator_norm(Matrix(a @ b), stream())
    truth = float(torch.linalg.matrix_norm(torch.linalg.qr(a)[1] @ torch.linalg.qr(b.mT)[1].mT, 2))
    assert found.method == "lanczos" and found.num_products < 40  # its Krylov space ends after three steps
    assert found.lower <= truth <= found.upper <= GAP * found.lower


def test_zero_is_zero():
    for operator in (
        Matrix(torch.zeros(3, 2, dtype=D)),
        conv(torch.zeros(2, 2, 3, 3, dtype=D), (2, 40, 40), padding=1),
    ):
        found = operator_norm(operator, stream())
        assert (found.lower, found.upper, found.method) == (0, 0, "zero")


def test_equal_seeds_give_equal_brackets():
    operator = conv(randn(8, 8, 3, 3), (8, 12, 12), padding=1)
    assert operator_norm(operator, stream(4)) == operator_norm(operator, stream(4))


def diagonal(values: torch.Tensor):
    """An operator with these singular values."""

    class Diagonal:
        blocks, device = None, values.device
        in_shape = out_shape = (len(values),)

        def apply(self, x):
            return x * values

        adjoint = apply

    return Diagonal()


@pytest.mark.parametrize("memory", [2**30, 0])
def test_the_upper_side_fails_as_rarely_as_it_says(memory):
    """At a failure probability of 20 %, on the spectrum that is hardest: a dense edge below one largest value."""
    edge = torch.cos(torch.linspace(0, math.pi / 2, 600, dtype=D)) * 0.995
    values = torch.cat([torch.ones(1, dtype=D), edge])
    runs, failures = 300, 0
    for seed in range(runs):
        found = operator_norm(diagonal(values), stream(seed), failure=0.2, tolerance=0.02, dense=0, memory=memory)
        assert found.lower <= 1
        failures += found.upper < 1
    assert failures <= 0.2 * runs + 4 * (0.16 * runs) ** 0.5


def test_the_start_vector_is_rarely_orthogonal():
    """P(|b_1| <= tau) <= failure: exact in three dimensions, where b_1 is uniform on [-1, 1], up to sqrt(pi)/2."""
    tau = start_component(3, 0.1)
    assert tau <= 0.1  # P(|b_1| <= tau) = tau
    b = torch.randn(200_000, 5, generator=stream(2), dtype=D)
    share = float((b[:, 0].abs() / b.norm(dim=1) <= start_component(5, 0.1)).double().mean())
    assert 0.08 < share <= 0.1


def test_the_a_priori_factor_agrees_with_the_published_form():
    """P <= 1.648 sqrt(d) exp(-sqrt(eps) (2k - 1)) at most, for the relative error eps of the eigenvalue."""
    for size, steps, failure in ((1000, 40, 1e-3), (16384, 93, 1e-9), (10**6, 200, 1e-9)):
        factor = a_priori_factor(steps, start_component(size, failure))
        eps = 1 - factor**-2
        published = (math.log(1.648 * math.sqrt(size) / failure) / (2 * steps - 1)) ** 2
        assert 0.9 * published <= eps <= published
