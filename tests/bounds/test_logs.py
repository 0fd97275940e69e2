"""Arithmetic in logarithms, and the forms made of it, against plain numbers."""

import math

import numpy as np
import pytest

from genbound.bounds.base import NotAvailable
from genbound.bounds.forms import absent, form, forms_of
from genbound.bounds.logs import ZERO, add, log, power


def test_add():
    assert 10 ** add(log(2.0), log(3.0), ZERO) == pytest.approx(5.0, rel=1e-14)
    assert add(ZERO, ZERO) == ZERO and add() == ZERO
    assert add(600.0, 600.0) == pytest.approx(600 + math.log10(2), rel=1e-14)
    np.testing.assert_allclose(add(np.array([0.0, ZERO]), 0.0), [math.log10(2), 0.0], rtol=1e-14)


def test_powers_and_forms():
    assert power(600.0) is None and power(2.0) == 100.0 and power(ZERO) == 0.0
    assert form(600.0) == {"log10": 600.0}
    assert form(ZERO) == {"log10": None, "note": "zero"}
    assert form(math.nan)["log10"] is None


def test_forms_that_do_not_exist_give_their_reason():
    found = forms_of({"paper": absent("the constant is unnamed"), "cover": (lambda: 2.0, "derived")})
    assert found == {
        "paper": {"log10": None, "note": "the constant is unnamed"},
        "cover": {"log10": 2.0, "note": "derived"},
    }
    with pytest.raises(NotAvailable):
        absent("never")()
