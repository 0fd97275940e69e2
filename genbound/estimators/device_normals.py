r"""Standard normal numbers that are made where they are needed, from counters: the same bits on every device.

A normal number comes from 32 random bits: its sign, and m of 31 bits, by which the larger tail is :math:`q = (m +
\tfrac12)\,2^{-32}` and the number :math:`\Phi^{-1}(1 - q)`. This inverse is a cubic polynomial on each of
:data:`SEGMENTS` pieces of an octave of q, which the bits of q as a floating-point number tell: no logarithm is taken,
which libraries round in different ways. What is done to the numbers is integer arithmetic, looking up, and products and
sums in float32 by operations of their own, which IEEE 754 rounds in one way. (Operations that a compiler fuses may be
rounded once in place of twice: do not compile them.) The coefficients come from decimal arithmetic, which is the same
everywhere, too.

Errors: against the inverse of the same q up to 4e-8 below 0.1, and 3.6e-7 of the number above: about what float32
rounds. The largest number that there can be is 6.34; beyond it lies 2.3e-10 of the normal law, both tails together.

Cost: on a processor five to seven times that of torch's generator, which is used there. On accelerators it was never
timed, nor were its bits compared there: that they are the same follows from what is said above.

References:
    Wichura, Algorithm AS 241: the percentage points of the normal distribution, Applied Statistics, 1988 (the values
    that are interpolated). Steele, Lea & Flood, Fast splittable pseudorandom number generators, OOPSLA 2014 (the bits).
"""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from functools import lru_cache

import torch
from torch import Tensor

SEGMENTS = 16  # of an octave
OCTAVES = 32
SHIFT = 23 - 4  # of the bits of a number in float32: what is left are its exponent and which of the segments it is in
FIRST = 126 << 4  # segment of 0.5, the least m + 1/2
CHUNK = 2**21  # words that are looked at together, for the sake of memory
DEGREE = 3

# Of algorithm AS 241, PPND16: numerators and denominators, the constant term first.
CENTRE = (
    "3.3871328727963666080 133.14166789178437745 1971.5909503065514427 13731.693765509461125 45921.953931549871457 "
    "67265.770927008700853 33430.575583588128105 2509.0809287301226727",
    "1 42.313330701600911252 687.18700749205790830 5394.1960214247511077 21213.794301586595867 39307.895800092710610 "
    "28729.085735721942674 5226.4952788528545610",
)
TAIL = (
    "1.42343711074968357734 4.63033784615654529590 5.76949722146069140550 3.64784832476320460504 "
    "1.27045825245236838258 0.241780725177450611770 0.0227238449892691845833 7.74545014278341407640e-4",
    "1 2.05319162663775882187 1.67638483018380384940 0.689767334985100004550 0.148103976427480074590 "
    "0.0151986665636164571966 5.47593808499534494600e-4 1.05075007164441684324e-9",
)
FAR = (
    "6.65790464350110377720 5.46378491116411436990 1.78482653991729133580 0.296560571828504891230 "
    "0.0265321895265761230930 0.00124266094738807843860 2.71155556874348757815e-5 2.01033439929228813265e-7",
    "1 0.599832206555887937690 0.136929880922735805310 0.0148753612908506148525 7.86869131145613259100e-4 "
    "1.84631831751005468180e-5 1.42151175831644588870e-7 2.04426310338993978564e-15",
)


def normals_of(words: Tensor) -> Tensor:
    """Two standard normal numbers of each word.

    Args:
        words: int64 ``[..., n]``, of independent bits.

    Returns:
        float32 ``[..., 2 n]``, on the device of the words.
    """
    flat = words.reshape(-1).view(torch.int32)
    found = torch.empty(len(flat), dtype=torch.float32, device=words.device)
    table = _coefficients().to(words.device)
    for first in range(0, len(flat), CHUNK):
        _fill(found[first : first + CHUNK], flat[first : first + CHUNK], table)
    return found.view(*words.shape[:-1], 2 * words.shape[-1])


def _fill(found: Tensor, halves: Tensor, table: Tensor) -> None:
    """Each by operations of their own: ``found [n]`` of halves of words, int32 ``[n]``."""
    bits = ((halves & 0x7FFFFFFF).float() + 0.5).view(torch.int32)
    segment = ((bits >> SHIFT) - FIRST).long()
    place = (bits & ((1 << SHIFT) - 1)).float() * 2.0**-SHIFT
    torch.index_select(table[DEGREE], 0, segment, out=found)
    for power in reversed(range(DEGREE)):
        found.mul_(place)
        found.add_(table[power][segment])
    found.copy_(torch.where(halves < 0, -found, found))


@lru_cache(maxsize=1)
def _coefficients() -> Tensor:
    """Of every segment's polynomial in the place within it, 0 to 1: float32 ``[DEGREE + 1, segments + 1]``.

    The last segment is for m that is rounded up to its end: there the number is zero.
    """
    with localcontext(Context(prec=40)):
        nodes = [Decimal(k) / 64 for k in (2, 20, 44, 62)]  # about Chebyshev's
        rows = []
        for octave in range(OCTAVES):
            for part in range(SEGMENTS):
                start, width = Decimal(2) ** (octave - 33), Decimal(2) ** (octave - 33) / SEGMENTS
                values = [_upper_quantile(start + width * (part + node)) for node in nodes]
                rows.append([float(c) for c in _interpolated(nodes, values)])
    return torch.tensor([*rows, [0.0] * (DEGREE + 1)], dtype=torch.float64).T.contiguous().float()


def _upper_quantile(q: Decimal) -> Decimal:
    """What a standard normal number exceeds with probability q, a half at most; AS 241, to 16 digits."""
    x = Decimal("0.5") - q
    if x <= Decimal("0.425"):
        return x * _ratio(CENTRE, Decimal("0.180625") - x * x)
    r = (-q.ln()).sqrt()
    return _ratio(TAIL, r - Decimal("1.6")) if r <= 5 else _ratio(FAR, r - 5)


def _ratio(coefficients: tuple[str, str], r: Decimal) -> Decimal:
    above, below = (_polynomial([Decimal(c) for c in row.split()], r) for row in coefficients)
    return above / below


def _polynomial(coefficients: list[Decimal], r: Decimal) -> Decimal:
    found = Decimal(0)
    for c in reversed(coefficients):
        found = found * r + c
    return found


def _interpolated(nodes: list[Decimal], values: list[Decimal]) -> list[Decimal]:
    """Coefficients of the polynomial through the values, the constant term first (Newton's differences)."""
    differences = list(values)
    for order in range(1, len(nodes)):
        for i in reversed(range(order, len(nodes))):
            differences[i] = (differences[i] - differences[i - 1]) / (nodes[i] - nodes[i - order])
    found = [Decimal(0)] * len(nodes)
    for node, difference in zip(reversed(nodes), reversed(differences), strict=True):
        # found * (x - node) + difference
        found = [difference - node * found[0], *(found[i - 1] - node * found[i] for i in range(1, len(found)))]
    return found
