"""Hand-made evidence: norms of tiny matrices by numpy, in the layout of results.json."""

from __future__ import annotations

import math

import numpy as np

from genbound.bounds import Evidence

W1, W1_INIT = np.array([[2.0, 1], [0, 1], [-2, 1]]), np.array([[1.0, 1], [0, 1], [-2, 0]])
W2, W2_INIT = np.array([[2.0, 1, 2], [1, -4, 1]]), np.array([[2.0, 1, 0], [1, -4, 1]])


def layer(name):
    return {"op": "layer", "name": name}


def series(*children):
    return {"op": "series", "children": list(children)}


def residual(*children):
    return {"op": "sum", "children": [{"op": "identity"}, *children]}


def norms(matrix):
    rows = np.sqrt((matrix**2).sum(1))
    frobenius, mars = float(np.sqrt((matrix**2).sum())), float(np.abs(matrix).sum(1).max())
    return {
        "frobenius": frobenius, "operator_frobenius": frobenius, "mars": mars, "mars_with_bias": mars,
        "two_one": float(rows.sum()), "kernel_two_one": float(rows.sum()), "l1": float(np.abs(matrix).sum()),
    }  # fmt: skip


def spectral_norm(matrix):
    return float(np.linalg.norm(matrix, 2))


def evidence(
    layers, *, tree=None, num_data=100, gamma=1.0, lipschitz=1.0, loss_range=1.0, delta=0.05, slack=0.0, bias=0.0,
    homogeneous=True, **changes,
):  # fmt: skip
    """Evidence of dense layers.

    Args:
        layers: name -> (weight, init) matrices [out, in], in the order of execution.
        tree: the structure; by default a plain series.
        num_data: n.
        gamma: γ.
        lipschitz: of the loss.
        loss_range: C.
        delta: failure probability.
        slack: relative width of the spectral norms' intervals.
        bias: norm of every bias; half of it at the initialisation and in the same direction.
        homogeneous: of the structure.
        changes: quantity -> entries to set, ``None`` to leave the quantity out.
    """
    tree = series(*map(layer, layers)) if tree is None else tree

    def interval(matrix):
        s = spectral_norm(matrix)
        return {"lower": s / (1 + slack), "upper": s}

    spectral, rows, distances, matrices = {}, {}, {}, {}
    for name, (weight, init) in layers.items():
        spectral[name] = {
            "value": spectral_norm(weight), **interval(weight), "sample": None, "init": interval(init),
            "displacement": interval(weight - init), "method": "svd",
        }  # fmt: skip
        outputs, inputs = weight.shape
        rows[name] = {
            "weight": norms(weight), "init": norms(init), "displacement": norms(weight - init), "in_channels": inputs,
            "out_channels": outputs, "kernel_side": 1.0, "kernel_taps": 1, "groups": 1, "stride": 1,
            "input_size": inputs, "output_size": outputs, "input_resolution": 1, "input_positions": 1,
            "output_positions": 1, "frequencies": 1,
            "num_weights": weight.size, "bias_norm": bias, "init_bias_norm": bias / 2,
            "displacement_bias_norm": bias / 2, "displacement_bias_vector_norm": bias / 2,
        }  # fmt: skip
        matrices[name] = {
            part: {**norms(matrix), "spectral": interval(matrix)}
            for part, matrix in (("weight", weight), ("init", init), ("displacement", weight - init))
        }
        rank = norms(weight)["frobenius"] ** 2 / spectral_norm(weight) ** 2
        matrices[name]["stable_rank"] = {"value": rank, "lower": rank, "upper": rank * (1 + slack) ** 2}
        distances[name] = {"value": norms(weight - init)["frobenius"], "init_norm": norms(init)["frobenius"]}
    moved, size = (
        sum(r[which]["frobenius"] ** 2 for r in rows.values()) for which in ("displacement", "weight")
    )  # fmt: skip
    first = next(iter(layers.values()))[0]
    quantities = {
        "structure": {
            "tree": tree, "reason": "", "depth": len(layers), "plain": "sum" not in str(tree),
            "positively_homogeneous": homogeneous and not bias, "activations": ["relu"], "notes": [],
        },
        "spectral_norm": {"layers": spectral, "failure_probability": 1e-9},
        "layer_norms": {"layers": rows},
        "input_norm": {
            "max_l2": 1.0, "rms_l2": 1.0, "max_abs": 1.0, "max_pixel_l2": 1.0, "dimension": first.shape[1],
            "resolution": 1, "num_samples": 100, "max_output_l2": math.sqrt(29),
            "output_dimension": list(layers.values())[-1][0].shape[0],
        },
        "margin": {"percentile": 5, "value": gamma, "margin_loss": 0.0, "minimum": 2.0, "median": 2.0,
                   "num_samples": 100, "inverse_square": gamma**-2 if gamma else None},
        "compression": {
            "layers": {
                name: {"layer_cushion": 0.5, "interlayer_cushion": 0.25, "conv_factor": 1, "beta": 1.0,
                       "contraction": 2.0, "smoothness": None}
                for name in layers
            },
            "contraction": 2.0, "smoothness": None, "max_output_l2": 5.0, "num_samples": 100, "zeta": 0.0,
        },
        "init_activations": {
            "layers": {name: {"value": rms, "width": width} for name, rms, width in hidden(layers)}, "num_samples": 100,
        },
        "flatness": {
            "sigma": 0.1, "magnitude_sigma": 0.1, "magnitude_sigma_origin": 0.1, "epsilon": 1e-3, "displacement": 0.1,
            "num_parameters": 12, "norm_displacement": math.sqrt(moved), "norm_weights": math.sqrt(size),
            "sem_error": 0.0, "log_sum_init": log_sum(layers, moved, False),
            "log_sum_origin": log_sum(layers, size, True),
            "log_sum_published": log_sum(layers, moved, False),
            "log_sum_published_origin": log_sum(layers, size, False),
        },
        "sharpness": {
            "alpha": 0.1, "alpha_above": 0.11, "magnitude_alpha": 0.1, "magnitude_alpha_above": 0.11, "epsilon": 1e-3,
            "displacement": 0.1, "num_parameters": 12, "norm_displacement": math.sqrt(moved),
            "norm_weights": math.sqrt(size),
            "log_sum_init": log_sum_of_box(layers, moved), "log_sum_origin": log_sum_of_box(layers, size),
        },
        "squared_path_norm": {"log10_squared": math.log10(67), "value": math.sqrt(67)},
        "fisher_rao_norm": {"value": 3.0, "parametric": 3.0, "identity_holds": True, "num_samples": 100},
        "displacement_norm": {"layers": distances},
        "matrix_norms": {"layers": matrices},
        "relative_flatness": {
            "layers": {n: {"value": 0.4, "sem": 0.0, "data_sem": 0.05, "num_samples": 100} for n in layers},
            "without": {}, "feature_layer": list(layers)[-1],
        },
        "power_law": {
            "layers": {n: {"alpha": 2.0 * i, "alpha_sem": 0.1 * (i + 2)} for i, n in enumerate(layers, 1)},
        },
        "losses": {
            "train_loss": 0.1, "train_error": 0.0, "largest_loss": 1.0, "test_loss": None, "test_error": None,
            "constant_loss": math.log(2), "constant_error": 0.5, "generalization_gap": None, "error_gap": None,
        },
    }  # fmt: skip
    for quantity, entries in changes.items():
        if entries is None:
            del quantities[quantity]
        else:
            quantities[quantity] = quantities.get(quantity, {}) | entries
    return Evidence(
        num_data=num_data, loss_range=loss_range, quantities=quantities, delta=delta, loss_lipschitz=lipschitz
    )


def hidden(layers):
    """Largest rms and width of each layer's input in the pretrained network, on 50 samples (1, 0) and 50 of (0, 1)."""
    x = np.eye(next(iter(layers.values()))[0].shape[1])[:2]
    for name, (_, init) in layers.items():
        yield name, float(np.sqrt((x**2).mean(0)).max()), x.shape[1]
        x = np.clip(x @ init.T, 0, 1e140)  # a square must not overflow


def log_sum(layers, square, origin, sigma=0.1, epsilon=1e-3):
    """Sum of the magnitude-aware logarithms over all weights."""
    values = np.concatenate([(w if origin else w - s).ravel() for w, s in layers.values()])
    top = epsilon**2 + (sigma**2 + 1) * square / len(values)
    return float(np.log(top / (epsilon**2 + sigma**2 * values**2)).sum())


def log_sum_of_box(layers, square, alpha=0.1, epsilon=1e-3):
    """The same with the box alpha |w| + epsilon, sqrt(2 ln(2 omega)) standard deviations wide."""
    sizes = alpha * np.abs(np.concatenate([w.ravel() for w, _ in layers.values()])) + epsilon
    top = (sizes**2).mean() + 2 * math.log(2 * len(sizes)) * square / len(sizes)
    return float(np.log(top / sizes**2).sum())


NET = {"1": (W1, W1_INIT), "2": (W2, W2_INIT)}


def net(**options):
    """Two layers, ReLU, no bias, 2 -> 3 -> 2."""
    return evidence(NET, **options)


def number(bound, form="main_term", given=None):
    """A form's value on the net of the pencil values, or on other evidence."""
    return 10 ** bound.evaluate(net() if given is None else given)["forms"][form]["log10"]
