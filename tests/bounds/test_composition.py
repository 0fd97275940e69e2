"""Trees against small-number arithmetic and brute force."""

import math

import numpy as np
import pytest
from fixtures import layer, residual, series

from genbound.bounds.base import NotAvailable
from genbound.bounds.composition import compose, downstream, layer_names, perturb, sizes_before
from genbound.bounds.logs import log

SCALE = {"op": "scale", "lipschitz": 1.5, "what": "overlapping max-pool 3/2"}


def logs(**values):
    return {name: log(value) for name, value in values.items()}


def plain(composition):
    return 10**composition.lipschitz, {name: 10**gain for name, gain in composition.gains.items()}


def test_plain_series():
    """2 * 3 * 5 = 30; gains 15, 10, 6."""
    found = compose(series(layer("a"), layer("b"), layer("c")), logs(a=2.0, b=3.0, c=5.0))
    lipschitz, gains = plain(found)
    assert lipschitz == pytest.approx(30) and gains == pytest.approx({"a": 15, "b": 10, "c": 6})


def test_residual_with_scale():
    """1.5 * (1 + 2 * 3) * 5 = 52.5; a: 3 * 1.5 * 5, b: 2 * 1.5 * 5, c: 7 * 1.5."""
    tree = series(SCALE, residual(series(layer("a"), layer("b"))), layer("c"))
    lipschitz, gains = plain(compose(tree, logs(a=2.0, b=3.0, c=5.0)))
    assert lipschitz == pytest.approx(52.5) and gains == pytest.approx({"a": 22.5, "b": 15, "c": 10.5})


def test_a_layer_used_twice_adds_up():
    """K = a * 3 * a: derivative 6 a = 12."""
    _, gains = plain(compose(series(layer("a"), layer("b"), layer("a")), logs(a=2.0, b=3.0)))
    assert gains == pytest.approx({"a": 12, "b": 4})
    assert layer_names(series(layer("a"), layer("b"), layer("a"))) == ["a", "b"]


def test_different_norms_before_and_after():
    """Before b: a = 2; after b: c = 7. Before c: 2 * 3; after a: 30 * 7."""
    found = compose(series(layer("a"), layer("b"), layer("c")), logs(a=2.0, b=3.0, c=5.0), logs(a=20.0, b=30.0, c=7.0))
    assert plain(found)[1] == pytest.approx({"a": 210, "b": 14, "c": 6})


def test_zero_norms_are_not_divided_by():
    _, gains = plain(compose(series(layer("a"), layer("b")), logs(a=0.0, b=3.0)))
    assert gains == pytest.approx({"a": 3, "b": 0})


def test_gains_are_derivatives():
    tree = series(layer("a"), residual(series(layer("b"), residual(layer("c"), layer("b")))), SCALE, layer("a"))
    norms = {"a": 1.3, "b": 0.7, "c": 2.1}
    gains = plain(compose(tree, logs(**norms)))[1]
    for name, value in norms.items():
        up, down = (plain(compose(tree, logs(**norms | {name: value + h})))[0] for h in (1e-6, -1e-6))
        assert gains[name] == pytest.approx((up - down) / 2e-6, rel=1e-8)


def test_perturbation_of_a_plain_net():
    """B [(2 + .1)(3 + .2) - 6] = 4 * .72."""
    size, change = perturb(series(layer("a"), layer("b")), logs(a=2.0, b=3.0), logs(a=0.1, b=0.2), log(4.0))
    assert 10**size == pytest.approx(24) and 10**change == pytest.approx(4 * 0.72, rel=1e-12)


def test_perturbation_with_bias_and_branches():
    """a: (A, D) = (2 * 1 + 5, .1); sum with b = 3, u = .2: (7 + 21, .1 + 3.2 * .1 + .2 * 7)."""
    tree = series(layer("a"), residual(layer("b")))
    size, change = perturb(tree, logs(a=2.0, b=3.0), logs(a=0.1, b=0.2), 0.0, logs(a=5.0))
    assert 10**size == pytest.approx(28) and 10**change == pytest.approx(1.82, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_perturbation_bounds_what_happens(shift):
    rng = np.random.default_rng(0)
    tree = series(layer("a"), residual(series(layer("b"), layer("c"))), layer("d"))
    for _ in range(20):
        w = {name: rng.normal(size=(4, 4)) for name in "abcd"}
        u = {name: 0.1 * rng.normal(size=(4, 4)) for name in "abcd"}
        b = {name: shift * rng.normal(size=4) for name in "abcd"}
        t = {name: 0.1 * shift * rng.normal(size=4) for name in "abcd"}
        x = rng.normal(size=4)

        def run(weights, biases, x=x):
            hidden = np.maximum(weights["a"] @ x + biases["a"], 0)
            inner = np.maximum(weights["b"] @ hidden + biases["b"], 0)
            hidden = hidden + weights["c"] @ inner + biases["c"]
            return weights["d"] @ np.maximum(hidden, 0) + biases["d"]

        norm = {side: {k: log(np.linalg.norm(m, 2)) for k, m in part.items()} for side, part in (("w", w), ("u", u))}
        added = [{k: log(np.linalg.norm(v)) for k, v in part.items()} for part in (b, t)]
        size, change = perturb(tree, norm["w"], norm["u"], log(np.linalg.norm(x)), *added)
        moved = run({k: w[k] + u[k] for k in w}, {k: b[k] + t[k] for k in b}) - run(w, b)
        assert np.linalg.norm(run(w, b)) <= 10**size and np.linalg.norm(moved) <= 10**change


@pytest.mark.parametrize("per_sum", [0.0, log(2.0)])
def test_downstream_times_upstream_is_the_gain(per_sum):
    """1 before a; 1.3 before the branches: the gains over these are the constants behind the layers."""
    tree, norms = series(layer("a"), residual(series(SCALE, layer("b"))), layer("c")), logs(a=1.3, b=0.7, c=2.1)
    behind, gains = downstream(tree, norms, per_sum), compose(tree, norms, per_sum=per_sum).gains
    for name, upstream in (("a", 0.0), ("b", log(1.3 * 1.5)), ("c", log(1.3 * (1 + 1.5 * 0.7)) + per_sum)):
        assert behind[name] + upstream == pytest.approx(gains[name])


def test_sizes_before():
    """1 before a; 2 * 1 + 5 = 7 before b; 7 + 3 * 7 = 28 before a again: the largest counts."""
    tree = series(layer("a"), residual(layer("b")), layer("a"))
    found = sizes_before(tree, logs(a=2.0, b=3.0), 0.0, logs(a=5.0))
    assert {name: 10**size for name, size in found.items()} == pytest.approx({"a": 28, "b": 7})


def test_deep_products_do_not_overflow():
    names = [str(i) for i in range(150)]
    tree, norms = series(*map(layer, names)), {name: 4.0 for name in names}
    found = compose(tree, norms)
    assert found.lipschitz == pytest.approx(600) and found.gains["7"] == pytest.approx(596)
    _, change = perturb(tree, norms, {name: -2.0 for name in names}, 0.0)
    assert change == pytest.approx(math.log10((1 + 1e-6) ** 150 - 1) + 600, rel=1e-9)


def test_unknown_nodes_are_refused():
    with pytest.raises(NotAvailable, match="'product'"):
        compose({"op": "product", "children": []}, {})
    with pytest.raises(NotAvailable, match="'product'"):
        perturb({"op": "product", "children": []}, {}, {}, 0.0)
    with pytest.raises(NotAvailable, match="'product'"):
        sizes_before({"op": "product", "children": []}, {}, 0.0, {})
