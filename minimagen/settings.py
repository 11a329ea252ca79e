"""Settings: declared and checked in one place; read from the command line, JSON or Python.

A class of settings is a frozen pydantic dataclass. Only its declaration has the types, ranges and
choices:

    @settings
    class Sampling:
        steps: Count = 20
        sampler: Literal["ddpm", "ddim"] = "ddim"

    Sampling(steps=0)  # ValueError: `steps` is 0, it should be at least 1

Errors name a setting in backticks. Only the command line replaces these names by flags.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import pydantic
from annotated_types import Interval, Le, MultipleOf
from pydantic import AfterValidator, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

# A limit, Le, is far above what anybody needs; it is told only to those who are above it.
Count = Annotated[int, Interval(ge=1), Le(1_000_000_000)]
AtLeast0 = Annotated[int, Interval(ge=0), Le(1_000_000_000)]
Side = Annotated[int, Interval(ge=1), Le(4096)]  # of an image, in pixels
Times = Annotated[int, Interval(ge=1), Le(1_000_000)]  # from noise to image
Tokens = Annotated[int, Interval(ge=2), Le(4096)]  # of a caption
Images = Annotated[int, Interval(ge=1), Le(100_000)]  # in memory at the same time
Threads = Annotated[int, Interval(ge=1), Le(1024)]
Share = Annotated[float, Interval(ge=0, le=1)]
Seed = Annotated[int, Interval(ge=0, lt=2**62)]  # seed + image number fits into 64 bits


def _check_name(value: str) -> str:
    if not value.strip():
        raise ValueError(f"{value!r} is blank")
    if any(ord(letter) < 32 for letter in value):
        raise ValueError(f"{brief(value)} has a line break or another control character")
    try:
        parts = [len(part.encode()) for part in re.split(r"[/\\]", value)]
    except UnicodeEncodeError:
        raise ValueError(f"{brief(value)} is not UTF-8 text") from None
    if max(parts) > 255 or sum(parts) > 4000:  # limits of most systems
        raise ValueError(f"{brief(value)} is too long for a name")
    return value


Name = Annotated[str, AfterValidator(_check_name)]  # of a path or of something on the Hub


def _to_tuple(value: object) -> object:
    if isinstance(value, list):  # strict JSON accepts a list as a tuple, but not after a validator
        return tuple(value)
    return (value,) if isinstance(value, int | float | str) else value


# One value for all stages, or one per stage.
PerStage = Annotated[tuple[T, ...], BeforeValidator(_to_tuple)]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: type[T]) -> type[T]:
    """Turn a declaration into a class of settings, as ``dataclass`` does.

    The constructor checks every value. It raises ValueError, with a one-line message, for an
    unknown setting, a wrong type or a value out of range. Strings such as "12" become numbers.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    made = pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)
    check = made.__init__

    @functools.wraps(check)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            check(self, *args, **kwargs)
        except ValidationError as error:
            names = (item.name for item in dataclasses.fields(made))
            given = dict(zip(names, args, strict=False)) | kwargs
            raise ValueError(explain(error, made, given)) from None

    made.__init__ = __init__  # type: ignore[method-assign]
    return cast("type[T]", made)


def setting(
    default: object,
    group: str,
    help: str,
    short: str | None = None,
    or_none: bool = False,
    metavar: str = "TEXT",
) -> Any:
    """A field that is also a flag. The flag's name is the field's name in capitals.

    group, help: the heading in ``--help`` under which the flag is listed, and its description
    short: a second, short name of the flag
    or_none: the word "none" means None, even if the setting is text
    metavar: name of the value in ``--help`` if it is text, such as "DIR"
    """
    about = {
        "group": group,
        "help": help,
        "short": short,
        "or_none": or_none,
        "metavar": metavar,
    }
    return dataclasses.field(default=default, metadata=about)


def per_stage(values: Sequence[T], name: str, stages: int) -> tuple[T, ...]:
    """The values of the ``PerStage`` setting called ``name``, one per stage.

    Raises ValueError unless there is one value, or one value per stage.
    """
    if len(values) not in (1, stages):
        raise ValueError(
            f"`{name}` has {len(values)} values, for {stages} stages it should have 1 or {stages}"
        )
    return tuple(values) * (stages // len(values))


# --- settings as text -----------------------------------------------------------------------------


def flag_name(name: str) -> str:
    """The flag of a setting: ``batch_size`` -> ``--BATCH_SIZE``."""
    return f"--{name.upper()}"


def to_text(value: object) -> str:
    """A value as it is written on the command line: ``(20, 6)`` -> ``"20,6"``."""
    if isinstance(value, tuple):
        return ",".join(map(to_text, value))
    return "none" if value is None else str(value)


def from_text(kind: type, given: Mapping[str, object]) -> dict[str, object]:
    """Turn settings written as on the command line into arguments of ``kind``.

    "20,6" becomes a list if the setting may have one value per stage. "none" becomes None if the
    setting is optional. Values that are not strings stay as they are.
    """
    declared = {item.name: item for item in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    values: dict[str, object] = {}
    for name, value in given.items():
        values[name] = value
        if name in declared and isinstance(value, str):
            base, optional = _unwrap(hints[name])
            or_none = optional and (base is not str or declared[name].metadata.get("or_none"))
            if or_none and value.lower() == "none":
                values[name] = None
            elif get_origin(base) is tuple:
                values[name] = value.split(",")
    return values


def from_json(kind: type[T], text: str | bytes, where: str) -> T:
    """Read settings from JSON. Types are strict: the string "5" is not a number.

    where: the name of the file, for errors

    Raises ValueError, naming the file and the key, for broken JSON, an unknown or missing key, a
    wrong type or a value out of range.
    """
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error, kind)}") from None


# --- errors ---------------------------------------------------------------------------------------


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of a setting in front of the ValueErrors that it causes."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from None


def explain(error: ValidationError, kind: type, given: Mapping[str, Any] | None = None) -> str:
    """Describe the first error in one line: the setting, its value, and what it should be.

    given: the arguments of the constructor of ``kind``
    """
    first = error.errors()[0]
    path, problem, value = list(first["loc"]), first["type"], first["input"]
    if path and isinstance(path[0], int):  # a positional argument
        path[0] = dataclasses.fields(kind)[path[0]].name
    if problem == "json_invalid":
        return f"it is not valid JSON: {first['ctx']['error']}"
    if problem == "unexpected_keyword_argument":
        known = [item.name for item in dataclasses.fields(_type_at(kind, path[:-1]))]
        near = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
        return f"unknown key {_dotted(path)!r}, {hint}"
    if problem == "missing" and isinstance(path[-1], int):  # of a list that is too short
        path.pop()
    elif problem == "missing":
        return f"key {_dotted(path)!r} is missing"
    name = f"`{_dotted(path)}`" if path else "it"
    if problem == "value_error":  # raised by a __post_init__
        return str(first["ctx"]["error"]) if not path else f"{name}: {first['ctx']['error']}"
    hint, shown, or_several = _type_at(kind, path), brief(value), ""
    if given and len(path) == 2 and isinstance(path[1], int):  # one value of a PerStage setting
        name, all_of_it = f"`{path[0]}`", given.get(str(path[0]))
        if isinstance(all_of_it, list) and all(isinstance(one, str) for one in all_of_it):
            shown = brief(",".join(all_of_it))
        if _is_per_stage(_type_at(kind, path[:1])):
            or_several = ", or one per stage with commas between"
    if problem in _RANGE_ERRORS:
        if _unwrap(hint)[0] is float and isinstance(value, str):
            value = float(value)
        shown = brief(value).strip("'")
        or_several = ""
    return f"{name} is {shown}, it should be {_due(hint, problem)}{or_several}"


_RANGE_ERRORS = (
    "int_parsing_size",  # too many digits
    "multiple_of",
    "finite_number",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
)


def brief(value: object) -> str:
    """A value as Python writes it, without the middle of a long one."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:60]}...{text[-10:]}"


def _dotted(path: list[Any]) -> str:
    """``["stages", 0, "steps"]`` -> ``stages[0].steps``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def _type_at(kind: Any, path: list[Any]) -> Any:
    """The declared type of the value at a path within settings, with its range."""
    for part in path:
        base = _unwrap(kind)[0]
        inner = [one for one in get_args(base) if one is not Ellipsis]
        if inner:  # of a list, a tuple, or the values of a dict
            kind = inner[-1] if get_origin(base) is dict else inner[0]
            continue
        fields = get_type_hints(base, include_extras=True)  # of a dataclass, or a named tuple
        kind = fields[part] if isinstance(part, str) else list(fields.values())[part]
    return kind


def _is_per_stage(hint: Any) -> bool:
    """Whether a type is ``PerStage``, optional or not."""
    return any(isinstance(part, BeforeValidator) or _is_per_stage(part) for part in get_args(hint))


def _unwrap(hint: Any) -> tuple[Any, bool]:
    """A type without its range and without None, and whether it may be None."""
    optional = False
    while True:
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        elif get_origin(hint) in (Union, types.UnionType):
            optional = True
            hint = next(part for part in get_args(hint) if part is not type(None))
        else:
            return hint, optional


def _due(hint: Any, problem: str) -> str:
    """What a value of this type should be, in words."""
    base, optional = _unwrap(hint)
    if get_origin(base) is Literal:
        return f"one of {', '.join(map(str, get_args(base)))}"
    if problem in _RANGE_ERRORS:
        return _range(hint, problem) or "a finite number"
    if get_origin(base) is tuple:
        entries = get_args(base)
        return "a list" if Ellipsis in entries else f"a list of {len(entries)}"
    if get_origin(base) is list:
        return "a list"
    if dataclasses.is_dataclass(base) or get_origin(base) is dict:
        return "an object with keys, {...}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(base, str(base)) + (" or none" if optional else "")


def _range(hint: Any, problem: str) -> str:
    """A type's range in words; "" without one. problem: with the value, see ``_RANGE_ERRORS``."""
    said: list[str] = []
    while get_origin(hint) in (Annotated, Union, types.UnionType):
        for about in get_args(hint)[1:]:
            if isinstance(about, MultipleOf):
                said.append(f"a multiple of {about.multiple_of}")
            elif isinstance(about, Le) and problem.startswith("less"):
                said.append(f"at most {about.le}")
            elif isinstance(about, Interval):
                bounds = {
                    "at least": about.ge,
                    "above": about.gt,
                    "at most": about.le,
                    "below": about.lt,
                }
                if about.ge is not None and about.le is not None:
                    bounds = {"from": about.ge, "to": about.le}
                words = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
                said.append((" " if "from" in bounds else " and ").join(words))
        hint = next(part for part in get_args(hint) if part is not type(None))
    return " and ".join(said)


def describe(hint: Any) -> tuple[str, tuple[str, ...], bool]:
    """How ``--help`` describes a type: its kind, its choices, and whether it is per stage."""
    base, _ = _unwrap(hint)
    several = get_origin(base) is tuple
    if several:
        base, _ = _unwrap(get_args(base)[0])
    if get_origin(base) is Literal:
        return "choice", tuple(map(str, get_args(base))), several
    return {int: "number", float: "number", bool: "switch"}.get(base, "text"), (), several
