"""What a certificate is about is chosen once: parts before a break, and of other processes, are of the same network."""

import numpy as np
import pytest
import torch
from posterior_nets import mlp

import genbound
from genbound.quantities import gibbs_error, quantized_error

OPTIONS = {"gibbs_error": {"taus": (1.0, 10.0), "cost": 1e-9, "max_passes": 2}, "quantized_error": {"taus": (1.0,)}}


class Break(Exception):
    """In the middle of the last stage."""


def measured(name, out, **arguments):
    return genbound.evaluate(mlp(num=600, **arguments), [name], options=OPTIONS, out=out)


def test_trials_after_a_break_are_of_the_same_posterior(tmp_path, monkeypatch):
    whole = measured("gibbs_error", None).quantities["gibbs_error"]
    draw = gibbs_error._Gibbs._draw

    def broken(self, posterior, indices, key):
        if key == ("final", 1):
            raise Break
        return draw(self, posterior, indices, key)

    with monkeypatch.context() as patch, pytest.raises(Break):
        patch.setattr(gibbs_error._Gibbs, "_draw", broken)
        measured("gibbs_error", tmp_path)
    monkeypatch.setattr(gibbs_error._Gibbs, "_best", None)  # elsewhere it might find another one
    again = measured("gibbs_error", tmp_path).quantities["gibbs_error"]
    assert again == whole and whole["num_trials"] == 1200


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_errors_after_a_break_are_of_the_same_quantised_network(tmp_path, monkeypatch, dtype):
    whole = measured("quantized_error", None, dtype=dtype)
    errors, calls = quantized_error._errors, []

    def broken(problem, weights, indices):
        calls.append(len(indices))
        if len(indices) == 600 - 512:  # the second part of the last stage
            raise Break
        return errors(problem, weights, indices)

    with monkeypatch.context() as patch, pytest.raises(Break):
        patch.setattr(quantized_error, "_errors", broken)
        measured("quantized_error", tmp_path, dtype=dtype)
    assert calls[-2:] == [512, 88]
    monkeypatch.setattr(quantized_error._Search, "best", None)
    again = measured("quantized_error", tmp_path, dtype=dtype)
    assert again.quantities["quantized_error"] == whole.quantities["quantized_error"]
    for name, tensor in whole.networks["quantized_error"].items():
        assert np.array_equal(again.networks["quantized_error"][name], tensor)
