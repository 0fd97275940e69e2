"""Labels of a table's columns: classes, numbers, several labels a sample, or one label a word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from genbound.data.sample_parts import IGNORED
from genbound.errors import GenboundError


def encode_labels(
    labels: Sequence, where: str, label2id: Mapping[str, int] | None = None, names: bool = False
) -> Tensor:
    """Class indices of labels that are integers, or strings.

    Strings are looked up in ``label2id`` (the model's own names) where it has real names, and are numbered in
    sorted order otherwise; with ``names`` also those that look like numbers.

    Args:
        labels: one a sample.
        where: for the messages.
        label2id: class names and numbers, where the model has them.
        names: the labels are names, whatever they look like.

    Returns:
        Class numbers, int64 ``[N]``.

    Raises:
        GenboundError: a missing, negative or fractional label, or one that the model does not know.
    """
    for row, label in enumerate(labels):
        if label is None or label == "" or label != label:
            raise GenboundError(f"{where}: sample {row} has no label; fill it in or remove the row")
    known = _real_names(label2id)
    if known and all(isinstance(label, str) and label in known for label in labels):
        return torch.tensor([known[label] for label in labels], dtype=torch.long)
    numbers = [None if names and not known else _integer(label) for label in labels]
    whole = [number for number in numbers if number is not None]
    if len(whole) == len(numbers):
        refuse_two_readings(whole, where, label2id)
        return _class_numbers(whole, where)
    row = numbers.index(None)
    if not isinstance(labels[row], str) or (_is_number(labels[row]) and not names):
        raise GenboundError(f"{where}: label {labels[row]!r} of sample {row} is no class; use whole numbers or names")
    found = {str(label) for label in labels}
    if known:
        unknown = sorted(found - set(known))
        raise GenboundError(f"{where}: label {unknown[0][:80]!r} is none of the model's {', '.join(known)[:200]}")
    numbered = {name: index for index, name in enumerate(sorted(found))}
    return torch.tensor([numbered[str(label)] for label in labels], dtype=torch.long)


def _real_names(label2id: Mapping[str, int] | None) -> Mapping[str, int] | None:
    # LABEL_0, LABEL_1, ... is what transformers writes when nobody named the classes.
    return label2id if label2id and not all(name.startswith("LABEL_") for name in label2id) else None


def label_numbering(
    column: Sequence, labels: Tensor | list[list[int]] | None, label2id: Mapping[str, int] | None
) -> dict[str, int] | None:
    """Names and numbers of the classes, for held-out samples, which may lack some of them.

    Args:
        column: the labels as the data have them, or one list of a sample's words' each.
        labels: the numbers that they were given, as :func:`read_labels` returns them.
        label2id: the model's own names, of which the data may lack some as well.

    Returns:
        ``None`` where the labels are no classes, but numbers or several a sample.
    """
    if labels is None or (isinstance(labels, Tensor) and (labels.ndim != 1 or labels.is_floating_point())):
        return None
    if isinstance(labels, Tensor):
        named = dict(zip(map(str, column), labels.tolist(), strict=True))
    else:
        pairs = zip(chain.from_iterable(column), chain.from_iterable(labels), strict=True)
        named = {name: number for name, number in pairs if isinstance(name, str)}
    return {**(_real_names(label2id) or {}), **named}


def refuse_two_readings(numbers: Sequence[int], where: str, label2id: Mapping[str, int] | None) -> None:
    """Whole numbers that are all names of the model's classes as well, and then of other classes, may mean either.

    As text they are names, in whatever format.
    """
    known = _real_names(label2id) or {}
    distinct = sorted(set(numbers))
    other = next((number for number in distinct if known.get(str(number), number) != number), None)
    if other is not None and all(str(number) in known for number in distinct):
        raise GenboundError(
            f"{where}: label {other} may be class {other} or the model's name {str(other)!r}, which is class "
            f"{known[str(other)]}; write all labels as the model's names, as text"
        )


def _class_numbers(numbers: list[int], where: str) -> Tensor:
    negative = next((row for row, number in enumerate(numbers) if number < 0), None)
    if negative is not None:
        raise GenboundError(
            f"{where}: label {numbers[negative]} of sample {negative} is negative; "
            "classes count from 0, remove unlabelled rows"
        )
    return torch.tensor(numbers, dtype=torch.long)


def _integer(label: Any) -> int | None:
    try:
        number = float(label)  # "1.0": the column went through floats on its way into the csv
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and abs(number) < 1 << 53 else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_labels(
    columns: Sequence[Sequence], where: str, classes: Mapping[str, int] | None, numeric: bool, words: bool
) -> Tensor | list[list[int]]:
    """Labels as the loss wants them.

    Args:
        columns: the label column, or several with one number of each sample in each.
        where: for the messages.
        classes: class names and numbers.
        numeric: the labels are numbers and not classes.
        words: each sample is a sequence; a list of labels goes with its words or tokens.

    Returns:
        Class numbers ``[N]``, numbers ``[N]`` or ``[N, K]``, or one list of class numbers a sample.
    """
    if len(columns) > 1:
        return torch.tensor(list(zip(*(_numbers(column, where) for column in columns), strict=True)))
    column = columns[0]
    lists = [isinstance(label, list) for label in column]
    if any(lists) and not all(lists):
        raise GenboundError(
            f"{where!r}: sample {lists.index(False)} has one label where others have a list; give all of them one form"
        )
    if not any(lists):
        return torch.tensor(_numbers(column, where)) if numeric else encode_labels(column, where, classes)
    if words:
        return _word_labels(column, where, classes)
    widths = {len(label) for label in column}
    if len(widths) > 1:
        raise GenboundError(
            f"{where!r}: lists of labels have {min(widths)} to {max(widths)} entries; "
            "give every sample one number for each class"
        )
    flat = _numbers([number for label in column for number in label], where)
    return torch.tensor(flat).view(len(column), -1)


def _numbers(column: Sequence, where: str) -> list[float]:
    numbers = []
    for row, label in enumerate(column):
        try:
            number = float(label)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or abs(number) > 1e30:
            raise GenboundError(
                f"{where!r}: label {str(label)[:40]!r} of sample {row} is no finite number; correct or remove the row"
            )
        numbers.append(number)
    return numbers


def _word_labels(column: Sequence[list], where: str, classes: Mapping[str, int] | None) -> list[list[int]]:
    flat = [label for labels in column for label in labels]
    if all(isinstance(label, int) and not isinstance(label, bool) for label in flat):
        wrong = next((label for label in flat if label < 0 and label != IGNORED), None)
        if wrong is not None:
            raise GenboundError(
                f"{where!r}: label {wrong} of a word is negative; classes count from 0, and {IGNORED} marks none"
            )
        refuse_two_readings([label for label in flat if label >= 0], where, classes)
        return [list(labels) for labels in column]
    encoded = iter(encode_labels(flat, where, classes).tolist())
    return [[next(encoded) for _ in labels] for labels in column]
