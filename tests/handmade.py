"""Runs made by hand, so that what a table says can be read off the numbers put in."""

import copy

from genbound.results.results import Results


def bound(value, lower=None, upper=None, log10=None, unit="loss", vacuous=False, note="", **forms):
    import math

    if value is not None:
        lower, upper = value if lower is None else lower, value if upper is None else upper
        log10 = math.log10(value) if value > 0 else None
    return {
        "value": value, "lower": lower, "upper": upper, "log10": log10, "bounds": unit, "kind": "measure",
        "vacuous": vacuous, "note": note, "reference": "Nobody 2020", "forms": {"main_term": {"log10": log10}} | forms,
    }  # fmt: skip


def losses(train=0.1, test=0.3, train_error=0.02, test_error=0.07):
    return {
        "train_loss": train, "train_loss_sem": 0.0, "train_error": train_error, "largest_loss": 2.0, "num_train": 1000,
        "test_loss": test, "test_loss_sem": 0.01, "test_error": test_error, "num_test": 500, "num_test_wrong": None,
        "generalization_gap": test - train, "error_gap": test_error - train_error,
        "constant_loss": 1.6, "constant_error": 0.8,
    }  # fmt: skip


def run(bounds=None, seed=0, layers=("a.weight", "b.weight"), name="finetuned", **config):
    """A run of two layers with a mean, an interval and an exact quantity; ``config`` overrides entries."""
    return Results(
        config={
            "seed": seed, "num_samples": 256, "num_data": 1000, "loss_range": {"value": 2.0, "kind": "observed"},
            "loss": "cross_entropy", "convention": "theorem", "head": "init", "delta": 0.05, "dtype": "float32",
            "options": {}, "device": "cpu", **config,
        },
        checkpoint={"path": f"{name}.safetensors", "sha256": "a" * 64},
        init={"path": "init.safetensors", "sha256": "b" * 64}, data={"spec": "npz:train.npz", "sha256": "c" * 64},
        layer_rows=[
            {
                "name": layer, "kind": "linear", "shape": [4, 5], "positive_semidefinite": True, "curved_by": None,
                "num_uses": 1,
            }
            for layer in layers
        ],
        quantities={
            "losses": losses(),
            "displacement_norm": {"layers": {n: {"value": 1.0 + i, "init_norm": 3.0} for i, n in enumerate(layers)}},
            "hessian_trace": {
                "layers": {
                    n: {"value": 10.0 * (i + 1), "sem": 0.1, "data_sem": 1.0, "num_samples": 256}
                    for i, n in enumerate(layers)
                },
                "total": {"value": 30.0, "sem": 0.2, "data_sem": 2.0, "num_samples": 256},
                "num_probes": 512,
            },
            "max_quadratic_form": {
                "layers": {
                    n: {"value": 2.0, "lower": 1.98, "upper": 2.0, "sample": 17, "exact": False} for n in layers
                },
                "convention": "theorem", "note": "",
            },
        },
        bounds={"hessian_distance": bound(0.622, 0.6207, 0.622)} if bounds is None else copy.deepcopy(bounds),
        cost={"seconds": {"total": 1.0}, "peak_memory_bytes": 1}, genbound="0.1.0",
    )  # fmt: skip
