"""Right and wrong answers to the exercises, by which tests/test_checks.py tests the checks.

    @right(check.noising)                       the check has to accept it
    @wrong(check.noising, "its variance")       it has to be rejected, with these words

One module for each lesson. The name of a wrong answer says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from minimagen.checks.exercise import Exercise


class Answer(NamedTuple):
    """An answer to an exercise, and the words that are due if it is wrong."""

    exercise: Exercise
    name: str
    value: Any  # what the check is called with
    words: str | None  # a part of what the learner is to read; None: the answer is right


ANSWERS: list[Answer] = []


def right(exercise: Exercise) -> Callable[[Any], Any]:
    """Note a function, or a class, as a right answer."""

    def note(answer: Any) -> Any:
        ANSWERS.append(Answer(exercise, answer.__name__, answer, None))
        return answer

    return note


def wrong(exercise: Exercise, words: str) -> Callable[[Any], Any]:
    """Note a function, or a class, as a wrong answer that is rejected with these words."""

    def note(answer: Any) -> Any:
        ANSWERS.append(Answer(exercise, answer.__name__, answer, words))
        return answer

    return note
