"""What all checks share: an exercise and its outcome, inputs by chance, comparison with words.

A check is a function of the learner's answer. It calls the answer with inputs of several shapes and
precisions and holds what comes out against an oracle that does not share the answer's code: a
closed form, a slow loop, another library. It raises ``Wrong``, or returns in silence.
"""

from __future__ import annotations

import functools
import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

DONE, WRONG, NOT_YET = "done", "wrong", "not done yet"
MARKS = {DONE: "✓", WRONG: "✗", NOT_YET: "○"}  # each line of a check begins with one of them
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2}


class Wrong(Exception):
    """An answer is wrong. idea: which idea in it; facts: what was expected and what came out."""

    def __init__(self, idea: str, facts: str = "") -> None:
        super().__init__(idea)
        self.idea, self.facts = idea, facts


class Outcome(NamedTuple):
    """How a check ended (``DONE``, ``WRONG`` or ``NOT_YET``), and what the learner reads."""

    status: str
    text: str


@dataclass
class Exercise:
    """One exercise. Calling it with an answer prints the outcome, and never raises."""

    number: str  # "3.2": the second of lesson 03
    title: str
    look: str  # where to look when the answer is wrong: an equation, a section, a paper
    check: Callable[..., None]
    in_place: bool  # the answer is meant to change its arguments
    status: str = NOT_YET  # of the last answer

    def __call__(self, answer: Any) -> None:
        self.status, text = self.outcome(answer)
        print(text)

    def outcome(self, answer: Any) -> Outcome:
        """Try an answer; torch's global random numbers are left as they were."""
        name = f"{self.number} {self.title}"
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.check(answer if self.in_place else _watched(answer))
        except Wrong as wrong:
            lines = [f"  What is wrong:  {wrong.idea}", f"  Where to look:  {self.look}"]
            lines += [f"  {line}" for line in wrong.facts.splitlines()]
            return Outcome(WRONG, "\n".join([f"{MARKS[WRONG]} {name}", *lines]))
        except Exception as error:  # whatever a learner's code may raise
            if isinstance(error, NotImplementedError) and not str(error):  # the stub's
                return Outcome(NOT_YET, f"{MARKS[NOT_YET]} {name}: {NOT_YET}")
            lines = [f"  What is wrong:  your code stopped with {_describe(error)}"]
            lines += [f"  Where to look:  {self.look}"]
            if tried := getattr(error, "tried", ""):
                lines += [f"  Tried with:     tensors of the shapes {tried}"]
            return Outcome(WRONG, "\n".join([f"{MARKS[WRONG]} {name}", *lines]))
        return Outcome(DONE, f"{MARKS[DONE]} {name}")


@dataclass
class Lesson:
    """The exercises of one lesson, in their order."""

    number: int
    exercises: list[Exercise] = field(default_factory=list)

    def exercise(
        self, title: str, look: str, in_place: bool = False
    ) -> Callable[[Callable[..., None]], Exercise]:
        """Make a function that checks an answer the next exercise of the lesson."""

        def make(check: Callable[..., None]) -> Exercise:
            number = f"{self.number}.{len(self.exercises) + 1}"
            made = Exercise(number, title, look, check, in_place)
            functools.update_wrapper(made, check)
            self.exercises.append(made)
            return made

        return make

    def progress(self) -> None:
        """Print how many exercises are done, and which are not."""
        print(summary({exercise.number: exercise.status for exercise in self.exercises}))


def summary(statuses: Mapping[str, str]) -> str:
    """One line: ``3 of 5 done. To mend: 1.2. Not done yet: 1.5.``"""
    numbers = {s: ", ".join(n for n in statuses if statuses[n] == s) for s in (WRONG, NOT_YET)}
    line = f"{sum(s == DONE for s in statuses.values())} of {len(statuses)} done."
    line += f" To mend: {numbers[WRONG]}." if numbers[WRONG] else ""
    return line + (f" Not done yet: {numbers[NOT_YET]}." if numbers[NOT_YET] else "")


# --- inputs ---------------------------------------------------------------------------------------


class Inputs:
    """Random inputs that are the same each time: normal, uniform or whole numbers, and masks."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=dtype)

    def uniform(
        self, *shape: int, low: float = 0, high: float = 1, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=dtype)

    def whole(self, *shape: int, low: int = 0, high: int) -> Tensor:
        """Whole numbers from low to high - 1."""
        return torch.randint(low, high, shape, generator=self.generator)

    def mask(self, batch: int, length: int) -> Tensor:
        """(batch, length) bool: each row true at its first tokens, one at least."""
        lengths = 1 + (torch.arange(batch) + int(self.whole(1, high=length))) % length
        return torch.arange(length) < lengths[:, None]


# --- comparison -----------------------------------------------------------------------------------


def expect(condition: object, idea: str, facts: str = "") -> None:
    """Raise ``Wrong`` unless the condition holds."""
    if not condition:
        raise Wrong(idea, facts)


def equal(
    found: Any,
    expected: Tensor | float,
    idea: str,
    mistakes: Mapping[str, Tensor | float] | None = None,
    *,
    case: str = "",
    tolerance: float | None = None,
) -> None:
    """Raise ``Wrong`` unless ``found`` is what was expected: type, shape, precision, and values.

    idea: what is wrong if the values are, and no entry of ``mistakes`` says it better
    mistakes: what a known mistake gives: the words for it, and its result
    case: the inputs, in words
    tolerance: relative to the size of the number expected (at least 1); by its precision if None
    """
    where = f"Tried with:     {case}\n" if case else ""
    if not isinstance(expected, Tensor):
        if isinstance(found, Tensor) and found.ndim == 0:
            found = found.item()
        if not isinstance(found, (int, float)) or isinstance(found, bool):
            raise Wrong(f"{_kind(found)} came back, where a number is due", where)
        found = torch.tensor(float(found), dtype=torch.float64)
        expected = torch.tensor(float(expected), dtype=torch.float64)
        tolerance = 1e-6 if tolerance is None else tolerance
    if not isinstance(found, Tensor):
        raise Wrong(f"{_kind(found)} came back, where a tensor is due", where)
    if found.shape != expected.shape:
        shapes = f"Expected shape: {tuple(expected.shape)}\nFound shape:    {tuple(found.shape)}"
        known = _known(found, mistakes, tolerance)
        raise Wrong(known or f"the result has the wrong shape; {idea}", where + shapes)
    if found.dtype != expected.dtype:
        raise Wrong(
            f"the result is {_name(found)}, where {_name(expected)} is due: a result has the "
            "precision of what it is computed from",
            where,
        )
    if close(found, expected, tolerance):
        return
    known = _known(found, mistakes, tolerance)
    if known is None and bool(expected.isfinite().all()) and not bool(found.isfinite().all()):
        known = f"the result is not finite everywhere (inf or nan); {idea}"
    if known is None and expected.dtype == torch.float64 and close(found, expected, 1e-5):
        known = (
            "right to about 7 digits only: somewhere a float64 was turned into float32, or a "
            "small number was added"
        )
    raise Wrong(known or idea, where + _difference(found, expected))


def close(found: Any, expected: Tensor | float, tolerance: float | None = None) -> bool:
    """The same shape, and values that agree; see ``equal`` for the tolerance."""
    expected = torch.as_tensor(expected)
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    if tolerance is None:
        tolerance = TOLERANCE.get(expected.dtype, 0.0)
    a, b = found.detach().double(), expected.detach().double()
    size = b.abs().clamp(min=1) if tolerance else torch.ones(())
    same = ((a - b).abs() <= tolerance * size) | (a == b)  # two infinities are equal
    return bool(same.all())


def pair_of(found: Any, idea: str) -> tuple[Any, Any]:
    """The two parts of what came back; ``Wrong`` if it is not a tuple or list of two."""
    expect(isinstance(found, (tuple, list)) and len(found) == 2, idea)
    return found[0], found[1]


def _known(
    found: Tensor, mistakes: Mapping[str, Tensor | float] | None, tolerance: float | None
) -> str | None:
    """The words for the mistake that gives just this result."""
    for words, result in (mistakes or {}).items():
        if close(found, torch.as_tensor(result, dtype=found.dtype), tolerance):
            return words
    return None


def _difference(found: Tensor, expected: Tensor) -> str:
    """Where two tensors of one shape differ most."""
    gap = (found.detach().double() - expected.detach().double()).abs().nan_to_num(math.inf)
    place = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
    at = f" at {list(place)} of {list(expected.shape)}, {_name(expected)}" if place else ""
    return (
        f"Expected:       {_number(expected[place])}{at}\nFound:          {_number(found[place])}"
    )


def _number(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.is_floating_point() else str(value.item())


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(value: object) -> str:
    return (
        "nothing (is there a return?)"
        if value is None
        else f"an object of type {type(value).__name__}"
    )


# --- the learner's code ---------------------------------------------------------------------------


def _watched(answer: Any) -> Any:
    """The same function, but changing a tensor that it was given is ``Wrong``."""
    if not inspect.isroutine(answer):
        return answer  # a class, a module, a value

    @functools.wraps(answer)
    def watched(*arguments: Any, **named: Any) -> Any:
        before = [(tensor, tensor.clone()) for tensor in _tensors([arguments, named.values()])]
        try:
            result = answer(*arguments, **named)
        except Exception as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor, _ in before)
            error.tried = shapes  # type: ignore[attr-defined]  # for Exercise.outcome
            raise
        if inspect.isgenerator(result):
            return _watched_steps(result, before)
        _unchanged(before)
        return result

    return watched


def _watched_steps(steps: Iterator[Any], before: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Any]:
    for step in steps:
        _unchanged(before)
        yield step
    _unchanged(before)


def _unchanged(before: Iterable[tuple[Tensor, Tensor]]) -> None:
    for tensor, copy in before:
        if not torch.equal(tensor.nan_to_num(), copy.nan_to_num()):
            raise Wrong(
                "your function changed a tensor that it was given, in place; whoever calls it may "
                "still need that: write y = y + 1 and not y += 1, clamp and not clamp_"
            )


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)) or type(value).__name__ == "dict_values":
            yield from _tensors(value)


def _describe(error: Exception) -> str:
    """The error, and the line of the learner's code that it comes from."""
    package, libraries = Path(__file__).parents[1], ("site-packages", "dist-packages", "lib")
    text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if package not in path.parents and not set(libraries) & set(path.parts):
            return f"{text.rstrip(': ')}\n                  in line {frame.lineno}: {frame.line}"
    return text.rstrip(": ")
