"""Options of quantities become what their dataclass says, from text as from numbers, or are refused in one line."""

import typing
from dataclasses import dataclass, fields

import numpy as np
import pytest

from genbound.errors import GenboundError
from genbound.quantities import QUANTITIES
from genbound.quantities.measure_options import CONVERTERS, as_text, option, read_option, read_options

EVERY = [(name, option) for name, quantity in QUANTITIES.items() for option in fields(quantity.options)]


@dataclass(frozen=True)
class Options:
    size: float = option(0.5, "how large")
    count: int = option(3, "how many")
    sizes: tuple[float, ...] = option((1.0, 2.0), "all of them")
    counts: tuple[int, ...] = option((), "likewise")
    kind: str = option("round", "of what kind", choices=("round", "square"))
    loud: bool = option(False, "whether to tell")


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("size", "0.25", 0.25), ("size", 1, 1.0), ("size", "1e-3", 1e-3), ("size", np.float32(0.5), 0.5),
        ("size", "inf", float("inf")), ("count", "7", 7), ("count", 7.0, 7), ("count", "1e3", 1000),
        ("count", np.int64(7), 7), ("sizes", "0.01,0.02", (0.01, 0.02)), ("sizes", [1, 2], (1.0, 2.0)),
        ("sizes", 0.5, (0.5,)), ("sizes", np.array([0.5]), (0.5,)), ("sizes", "", ()), ("counts", "1, 2,", (1, 2)),
        ("kind", "square", "square"), ("loud", "true", True), ("loud", False, False),
    ],
)  # fmt: skip
def test_values_become_the_type_of_their_option(name, given, found):
    value = read_option("thing", Options, name, given, text=True)
    assert value == found and type(value) is type(found)
    if isinstance(found, tuple):
        assert [type(item) for item in value] == [type(item) for item in found]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("size", "large", ["thing.size must be a number, not 'large'"]), ("size", True, ["a number"]),
        ("size", "nan", ["a number"]), ("size", None, ["a number"]), ("size", [1.0], ["a number"]),
        ("count", 1.5, ["a whole number, not 1.5"]), ("count", "many", ["a whole number"]), ("count", "inf", ["whole"]),
        ("sizes", "0.1,b", ["thing.sizes must be A,B,…, each a number"]), ("sizes", {"a": 1}, ["each a number"]),
        ("kind", "squar", ["'squar' is unknown", "did you mean square?", "round or square"]), ("kind", 3, ["a word"]),
        ("loud", "perhaps", ["true or false"]), ("sise", 1, ["thing has no option 'sise'", "did you mean size?"]),
        ("weight", 1, ["no option 'weight'; its options are size, count"]),
    ],
)  # fmt: skip
def test_what_is_refused(name, given, words):
    with pytest.raises(GenboundError) as error:
        read_option("thing", Options, name, given, text=True)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("name", "given"), [("size", "0.5"), ("count", "3"), ("sizes", "1,2"), ("sizes", ["1"])])
def test_numbers_in_python_are_no_text(name, given):
    with pytest.raises(GenboundError, match=f"thing.{name} must be"):
        read_options("thing", Options, {name: given})


def test_a_value_that_makes_no_sense_names_its_quantity():
    with pytest.raises(GenboundError, match="^hessian_trace: layer_sem -1 must be positive"):
        read_options("hessian_trace", QUANTITIES["hessian_trace"].options, {"layer_sem": -1})
    with pytest.raises(GenboundError, match="^losses has no option 'seed'; it has none"):
        read_options("losses", QUANTITIES["losses"].options, {"seed": 1})


@pytest.mark.parametrize(("quantity", "field"), EVERY, ids=[f"{name}.{field.name}" for name, field in EVERY])
def test_every_option_is_documented_and_can_be_said(quantity, field):
    kind = QUANTITIES[quantity].options
    wanted = typing.get_type_hints(kind)[field.name]
    assert wanted in CONVERTERS or set(typing.get_args(wanted)) - {...} <= set(CONVERTERS)
    assert field.metadata["meaning"] and "\n" not in field.metadata["meaning"]
    assert read_option(quantity, kind, field.name, as_text(field.default), text=True) == field.default
