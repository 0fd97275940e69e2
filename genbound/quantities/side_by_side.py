"""Searches that do not depend on each other: what each wants to know next is measured in one stage with the others'."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from itertools import count
from typing import TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Found = TypeVar("Found")


def side_by_side(
    searches: Mapping[str, Generator[Question, Answer, Found]],
    answers: Callable[[int, Mapping[str, Question]], Mapping[str, Answer]],
) -> dict[str, Found]:
    """What each of the searches finds; several processes share the work of a round.

    Args:
        searches: name -> a generator that yields questions, is sent their answers, and returns what it has found.
        answers: ``(round, name -> question) -> name -> answer``, of those searches that still ask.
    """
    found: dict[str, Found] = {}
    asked: dict[str, Question] = {}

    def go_on(name: str, answer: Answer | None) -> None:
        try:
            asked[name] = searches[name].send(answer)  # type: ignore[arg-type]
        except StopIteration as ended:
            asked.pop(name, None)
            found[name] = ended.value

    for name in searches:
        go_on(name, None)
    for number in count():
        if not asked:
            break
        for name, answer in answers(number, dict(asked)).items():
            go_on(name, answer)
    return {name: found[name] for name in searches}
