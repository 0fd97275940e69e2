r"""PAC-Bayes flatness measures (Jiang, Neyshabur, Mobahi, Krishnan & Bengio, ICLR 2020).

σ is the largest standard deviation of Gaussian noise on all parameters at which the training error rises by at most 0.1
on average; v is the displacement of all parameters, ω their number.

``jiang2020_flatness``:

.. math:: \sqrt{\frac{\|v\|^2/(4\sigma^2) + \ln(n/\sigma) + 10}{n}}

where 4 is the 2 of :math:`\mathrm{KL}=\|v\|^2/(2\sigma^2)` times the 2 of McAllester's 1/(2n), and 10 covers the choice
of σ.

``jiang2020_magnitude``: noise of standard deviation :math:`\sqrt{\sigma^2v_i^2+\varepsilon^2}` on parameter i and the
best isotropic prior make the first term

.. math:: \tfrac14\sum_i\ln\frac{\varepsilon^2+(\sigma^2+1)\|v\|^2/\omega}{\varepsilon^2+\sigma^2v_i^2},

half the divergence between those Gaussians exactly. The authors' public code has the same sum, but scales the noise,
whose σ is searched, by :math:`|w_i|`: with the prior at :math:`w^0` that sum is then no divergence.

``value`` is ``main_term``: the first term alone, as :math:`\sqrt{\cdot/n}`.

Forms:
    main_term: as above.
    paper (flatness): all terms.
    derived (magnitude): all terms, with the noise above.
    paper, paper_origin (magnitude): all terms as in the public code, with the noise scaled by :math:`|w_i|` and
        :math:`v_i` in the denominator; ``paper_origin`` has :math:`\|w\|^2` in the numerator. (That code draws with
        :math:`\sigma^2w_i^2+\varepsilon^2` where a standard deviation is expected; here it is a variance.)
    origin, main_term_origin: all terms and the first one with the weights in place of their displacement (magnitude:
        in the numerator, the denominator and the noise).
    exact (flatness only): :math:`\sqrt{(\|v\|^2/(2\sigma^2)+\ln(2\sqrt n/\delta)+\ln((j+1)(j+2)))/(2n)}` with σ rounded
        down to :math:`2^{-j/4}`.

They bound the mean error of the *perturbed* network beyond 0.1 plus the training error, not that of the network itself;
σ is searched on the training data. All are measures.

``jiang2020_sharpness``: α is the largest size at which the *worst* perturbation with all :math:`|u_i|\le\alpha` raises
the training error by at most 0.1. Noise of standard deviation :math:`\sigma=\alpha/\sqrt{2\ln 2\omega}` stays in that
box with probability 1/2 at least, which turns the first term into

.. math:: \frac{\|v\|^2\ln(2\omega)}{2\alpha^2}.

``jiang2020_sharpness_magnitude``: the box is :math:`|u_i|\le b_i=\alpha|w_i|+\varepsilon` and the noise has the
standard deviations :math:`b_i/\sqrt{2\ln 2\omega}`:

.. math:: \tfrac14\sum_i\ln\frac{\|b\|^2/\omega+2\ln(2\omega)\|v\|^2/\omega}{b_i^2}.

Both are derived here; ``paper`` is null, since the paper's constants could not be confirmed. Their forms:
    main_term, main_term_origin: the first term with the displacement, with the weights.
    exact (sharpness only):
        :math:`\sqrt{(\|v\|^2\ln(2\omega)/\alpha^2+\ln 2+\ln(2\sqrt n/\delta)+\ln((j+1)(j+2)))/(2n)}`, the noise cut
        off at the box, α rounded down to :math:`2^{-j/4}`.
    quoted (sharpness only): the first term as it is remembered, :math:`\|v\|^2\ln(2\omega)/(4\alpha^2)`, unverified.

The α that ascent finds is an upper estimate of the true one, so that these values are lower estimates, printed with
"≥". What is certain on the samples searched is the value at ``alpha_above``, where ascent did find a perturbation that
is too bad: ``lower``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable
from genbound.bounds.forms import Form, absent, bound_value
from genbound.bounds.logs import add, log

REFERENCE = "Jiang et al. 2020"
UNION = 10.0  # the paper's allowance for the search of σ
NOTE = "bounds the mean error of the perturbed network"
LOWER = "alpha is an upper estimate (a worse perturbation may exist), the value a lower one"
UNCONFIRMED = "the paper's constants could not be confirmed; the other forms are derived here"
STEPS = 4
RISE = 0.1  # of the error, that the noise may cause
SEMS, WIDTH = 2.0, 0.05  # standard errors to either side; relative width at which the search of sigma stops
# With the root of 1/sigma^2 a bound's relative error is sigma's; the least known of the three serves all.
SEARCHED = ("flatness:sigma", "flatness:magnitude_sigma", "flatness:magnitude_sigma_origin")
SIGMAS = {
    "init": "magnitude_sigma",
    "origin": "magnitude_sigma_origin",
    "published": "magnitude_sigma_origin",
    "published_origin": "magnitude_sigma_origin",
}
PUBLISHED = "as in the public code: noise in proportion to |w|, a sum in |w - w0|; no divergence, so it bounds nothing"
REASONS = {
    "sigma": "reason",
    "magnitude_sigma": "magnitude_reason",
    "magnitude_sigma_origin": "magnitude_origin_reason",
}


def flatness(square: float, sigma: float, num_data: int) -> float:
    r"""Log10 of :math:`\sqrt{(\|v\|^2/(4\sigma^2)+\ln(n/\sigma)+10)/n}`; ‖v‖² as logarithm."""
    return with_terms(square - log(4 * sigma**2), sigma, num_data)


def with_terms(first: float, sigma: float, num_data: int) -> float:
    r"""Log10 of :math:`\sqrt{(\text{first}+\ln(n/\sigma)+10)/n}`."""
    rest = math.log(num_data / sigma) + UNION
    if rest <= 0:
        raise NotAvailable("sigma is so large that the logarithm of n / sigma outweighs the constant 10")
    return 0.5 * (add(first, log(rest)) - log(num_data))


def exact(square: float, sigma: float, num_data: int, delta: float) -> float:
    r"""Log10 of the bound with σ on the grid :math:`2^{-j/4}`, j ≥ 0, and weights 1/((j+1)(j+2))."""
    j, rest = _on_grid(sigma, num_data, delta)
    return 0.5 * (add(square - log(2.0) + 2 * j / STEPS * math.log10(2), log(rest)) - log(2 * num_data))


def exact_sharpness(square: float, alpha: float, num_parameters: float, num_data: int, delta: float) -> float:
    r"""Log10 of the bound with noise cut off at the box, α on the same grid; cutting costs ln 2 at most."""
    j, rest = _on_grid(alpha, num_data, delta)
    first = square + log(math.log(2 * num_parameters)) + 2 * j / STEPS * math.log10(2)
    return 0.5 * (add(first, log(math.log(2) + rest)) - log(2 * num_data))


def _on_grid(size: float, num_data: int, delta: float) -> tuple[int, float]:
    r"""j of the next smaller :math:`2^{-j/4}`, and :math:`\ln(2\sqrt n/\delta) + \ln((j+1)(j+2))`."""
    j = max(0, math.ceil(-STEPS * math.log2(size) - 1e-12))
    return j, math.log(2 * math.sqrt(num_data) / delta) + math.log((j + 1) * (j + 2))


def _sigma(evidence: Evidence, key: str) -> float:
    found = evidence.quantities["flatness"]
    if found.get(key) is None and found.get(REASONS[key]):
        raise NotAvailable(f"the search for sigma found none: {found[REASONS[key]]}")
    sigma = evidence.number("flatness", key)
    if not sigma > 0:
        raise NotAvailable("no noise is small enough: the search for sigma ended at zero")
    return sigma


def _flatness(evidence: Evidence) -> BoundValue:
    sigma, n = _sigma(evidence, "sigma"), evidence.num_data
    moved, weights = (2 * log(evidence.number("flatness", f"norm_{key}")) for key in ("displacement", "weights"))

    def leading(square: float) -> float:
        return 0.5 * (square - log(4 * sigma**2) - log(n))

    forms: dict[str, Form] = {
        "paper": (lambda: flatness(moved, sigma, n), NOTE),
        "origin": (lambda: flatness(weights, sigma, n), NOTE),
        "main_term_origin": lambda: leading(weights),
        "exact": (lambda: exact(moved, sigma, n, evidence.delta), NOTE),
    }
    return _searched(bound_value(lambda side: leading(moved), forms, NOTE), evidence, "sigma")


def _magnitude(evidence: Evidence) -> BoundValue:
    n = evidence.num_data

    def first(which: str) -> float:
        _sigma(evidence, SIGMAS[which])  # without it there is no sum, for the reason that it gives
        # Jensen's inequality makes the derived sums positive; where every parameter moved as far they are next to zero.
        return log(evidence.number("flatness", f"log_sum_{which}") / 4)

    def whole(which: str) -> float:
        return with_terms(first(which), _sigma(evidence, SIGMAS[which]), n)

    forms: dict[str, Form] = {
        "derived": (lambda: whole("init"), NOTE),
        "origin": (lambda: whole("origin"), NOTE),
        "paper": (lambda: whole("published"), PUBLISHED),
        "paper_origin": (lambda: whole("published_origin"), PUBLISHED),
        "main_term_origin": lambda: 0.5 * (first("origin") - log(n)),
    }
    return _searched(bound_value(lambda side: 0.5 * (first("init") - log(n)), forms, NOTE), evidence, "magnitude_sigma")


def _searched(found: BoundValue, evidence: Evidence, key: str) -> BoundValue:
    """With the interval that the search of σ leaves, and the rise of the error that the theorem adds.

    The value is that of 1/σ, or moves less. σ is known up to the error of the rise there, and up to the width at which
    the search stops.
    """
    rise = evidence.quantities["flatness"].get("displacement") or RISE
    sem = evidence.quantities["flatness"].get(key.removesuffix("sigma") + "sem_error")
    if sem is None or found.value is None:
        return replace(found, added=rise)
    width = SEMS * math.hypot(sem / rise, WIDTH)
    least, most = found.value * max(0.0, 1 - width), found.value * (1 + width)
    return replace(found, added=rise, lower=least, upper=most)


def _rise(evidence: Evidence) -> float:
    """The rise of the error that the box may cause, which the theorem adds."""
    return float(evidence.quantities["sharpness"].get("displacement") or RISE)


def _sharpness(evidence: Evidence) -> BoundValue:
    alpha, size, n = (*(evidence.number("sharpness", key) for key in ("alpha", "num_parameters")), evidence.num_data)
    moved, weights = (2 * log(evidence.number("sharpness", f"norm_{key}")) for key in ("displacement", "weights"))

    def leading(square: float, constant: float, most: float = alpha) -> float:
        return 0.5 * (square + log(math.log(2 * size)) - log(constant * most**2) - log(n))

    forms: dict[str, Form] = {
        "paper": absent(UNCONFIRMED),
        "main_term_origin": lambda: leading(weights, 2),
        "exact": (lambda: exact_sharpness(moved, alpha, size, n, evidence.delta), f"{NOTE}; {LOWER}"),
        "quoted": (
            lambda: leading(moved, 4),
            "as remembered, unverified: half of what the derivation has under the root",
        ),
    }
    above = evidence.quantities["sharpness"].get("alpha_above") or alpha
    ends = {"lower": above, "upper": alpha}
    return _ascended(bound_value(lambda side: leading(moved, 2, ends[side]), forms, f"{NOTE}; {LOWER}"), evidence)


def _ascended(found: BoundValue, evidence: Evidence) -> BoundValue:
    """With the rise that the theorem adds. A perturbation worse than those found makes it larger; not so if it is 0."""
    return replace(found, added=_rise(evidence), at_least=bool(found.value))


def _sharpness_magnitude(evidence: Evidence) -> BoundValue:
    def leading(which: str) -> float:
        return 0.5 * (log(evidence.number("sharpness", f"log_sum_{which}") / 4) - log(evidence.num_data))

    forms: dict[str, Form] = {"paper": absent(UNCONFIRMED), "main_term_origin": lambda: leading("origin")}
    above = "init_above" if evidence.quantities["sharpness"].get("log_sum_init_above") is not None else "init"
    ends = {"lower": above, "upper": "init"}
    return _ascended(bound_value(lambda side: leading(ends[side]), forms, f"{NOTE}; {LOWER}"), evidence)


JIANG2020_FLATNESS = Bound(
    "jiang2020_flatness",
    "PAC-Bayes flatness: the displacement over the noise that the training error stands, leading term",
    REFERENCE,
    ("flatness", "losses"),
    _flatness,
    bounds="error",
    interval_sems=SEMS,
    shares_error_of=SEARCHED,
)
JIANG2020_MAGNITUDE = Bound(
    "jiang2020_magnitude",
    "magnitude-aware PAC-Bayes flatness: noise in proportion to each parameter's displacement, leading term",
    REFERENCE,
    ("flatness", "losses"),
    _magnitude,
    bounds="error",
    interval_sems=SEMS,
    shares_error_of=SEARCHED,
)
JIANG2020_SHARPNESS = Bound(
    "jiang2020_sharpness",
    "PAC-Bayes sharpness: the displacement over the worst perturbation that the training error stands, leading term",
    REFERENCE,
    ("sharpness", "losses"),
    _sharpness,
    bounds="error",
    maximum_over="sharpness",
)
JIANG2020_SHARPNESS_MAGNITUDE = Bound(
    "jiang2020_sharpness_magnitude",
    "magnitude-aware PAC-Bayes sharpness: perturbations in proportion to each parameter, leading term",
    REFERENCE,
    ("sharpness", "losses"),
    _sharpness_magnitude,
    bounds="error",
    maximum_over="sharpness",
)
