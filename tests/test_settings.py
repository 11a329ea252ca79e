"""settings.py: declared once, checked once, from Python, from text and from JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval, MultipleOf

from minimagen.settings import (
    Count,
    PerStage,
    Seed,
    Share,
    describe,
    flag_name,
    from_json,
    from_text,
    per_stage,
    setting,
    settings,
    to_text,
)

Even = Annotated[int, Interval(ge=2), MultipleOf(2)]


@settings
class Part:
    """A part of something."""

    size: Count = 1
    kind: Literal["round", "square"] = "round"


@settings
class Whole:
    """Every type of setting that the package uses."""

    steps: PerStage[Count] = setting((20,), "run", "steps", "n")
    weight: PerStage[Annotated[float, Interval(gt=0)]] | None = None
    kind: PerStage[Literal["ddim", "heun"]] = ("ddim",)
    share: Share = 0.5
    below: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    even: Even = 2
    seed: Seed = 0
    rate: float = 1.0
    name: str | None = None
    folder: str | None = setting(".cache", "run", "a folder, or none", or_none=True)
    threads: Count | None = None
    fast: bool = False
    interval: tuple[Share, Share] | None = None
    flags: tuple[bool, ...] = (True,)
    part: Part = dataclasses.field(default_factory=Part)
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if self.interval and self.interval[0] > self.interval[1]:
            raise ValueError(f"`interval` is {self.interval}, it should be (low, high)")


# --- from Python ----------------------------------------------------------------------------------


def test_values_become_what_is_declared() -> None:
    """One value stands for all stages, lists are tuples, text of digits numbers, dicts settings."""
    whole = Whole(steps=3, weight=[1, 2.5], share="0.25", part={"size": 2}, parts=[{}, Part(3)])  # type: ignore[arg-type]
    assert whole.steps == (3,) and whole.weight == (1.0, 2.5) and whole.share == 0.25
    assert whole.part == Part(2) and whole.parts == (Part(), Part(3))
    assert Whole(kind="heun").kind == ("heun",)  # type: ignore[arg-type]
    assert Whole(steps=["20", "6"]).steps == (20, 6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "`steps` is 0, it should be at least 1"),
        ({"steps": (5, 0)}, "`steps` is 0, it should be at least 1"),
        ({"steps": 2.5}, "`steps` is 2.5, it should be a whole number, or one per stage with "),
        (
            {"steps": ["20", "x"]},
            "`steps` is '20,x', it should be a whole number, or one per stage ",
        ),
        ({"steps": None}, "`steps` is None, it should be a list"),
        ({"weight": 0}, "`weight` is 0, it should be above 0"),
        ({"share": "1.50"}, "`share` is 1.5, it should be from 0 to 1"),
        ({"share": 10**400}, f"`share` is 1{'0' * 59}...0000000000, it should be "),
        ({"threads": 10**400}, f"`threads` is 1{'0' * 59}...0000000000, it should be at least 1 "),
        ({"threads": -(10**5000)}, "`threads` is a number of thousands of digits, it should be at"),
        ({"threads": "9" * 5000}, f"`threads` is {'9' * 59}...{'9' * 9}, it should be at least 1"),
        ({"name": ["x" * 5000]}, f"`name` is ['{'x' * 58}...xxxxxxxx'], it should be text or none"),
        ({"weight": "much"}, "`weight` is 'much', it should be a number, or one per stage with "),
        ({"kind": "euler"}, "`kind` is 'euler', it should be one of ddim, heun, or one per stage "),
        ({"share": 1.5}, "`share` is 1.5, it should be from 0 to 1"),
        ({"below": 1}, "`below` is 1, it should be at least 0 and below 1"),
        ({"even": 3}, "`even` is 3, it should be at least 2 and a multiple of 2"),
        ({"even": 0}, "`even` is 0, it should be at least 2 and a multiple of 2"),
        ({"seed": -1}, "`seed` is -1, it should be at least 0 and below 4611686018427387904"),
        ({"seed": 2**62}, "`seed` is 4611686018427387904, it should be at least 0 and below "),
        ({"rate": float("inf")}, "`rate` is inf, it should be a finite number"),
        ({"share": float("nan")}, "`share` is nan, it should be from 0 to 1"),
        ({"name": 5}, "`name` is 5, it should be text or none"),
        ({"threads": "two"}, "`threads` is 'two', it should be a whole number or none"),
        ({"fast": "perhaps"}, "`fast` is 'perhaps', it should be true or false"),
        ({"flags": ("perhaps",)}, "`flags` is 'perhaps', it should be true or false"),
        ({"interval": (0.5,)}, "`interval` is (0.5,), it should be a list of 2"),
        ({"interval": (0.1, 0.2, 0.3)}, "`interval` is (0.1, 0.2, 0.3), it should be a list of 2"),
        ({"interval": (0.1, 1.2)}, "`interval` is 1.2, it should be from 0 to 1"),
        ({"interval": (0.6, 0.5)}, "`interval` is (0.6, 0.5), it should be (low, high)"),
        ({"part": 3}, "`part` is 3, it should be an object with keys, {...}"),
        ({"part": {"size": 0}}, "`part.size` is 0, it should be at least 1"),
        (
            {"parts": [{}, {"kind": "flat"}]},
            "`parts[1].kind` is 'flat', it should be one of round, ",
        ),
        ({"parts": [{"sise": 1}]}, "unknown key 'parts[0].sise', did you mean 'size'?"),
        ({"stepz": 1}, "unknown key 'stepz', did you mean 'steps'?"),
        ({"zzzzz": 1}, "unknown key 'zzzzz', known keys are steps, weight, kind, "),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(given: Any, message: str) -> None:
    """In one line: the setting in backticks, its value, and the range or the choices."""
    with pytest.raises(ValueError) as error:
        Whole(**given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    if "one per stage" not in message:
        assert "one per stage" not in str(error.value)


def test_an_argument_without_a_name_is_named_too() -> None:
    """By its place."""
    with pytest.raises(ValueError, match=r"^`kind` is 'flat', it should be one of round, square$"):
        Part(2, "flat")  # type: ignore[arg-type]


def test_settings_are_frozen_values() -> None:
    """Equal when all is equal, hashable, copied and pickled; replace() checks again."""
    whole = Whole(steps=(3, 4), part=Part(5))
    assert pickle.loads(pickle.dumps(whole)) == copy.deepcopy(whole) == whole
    assert hash(whole) == hash(Whole(steps=(3, 4), part=Part(5))) and whole != Whole()
    assert dataclasses.replace(whole, seed=7) == Whole(steps=(3, 4), part=Part(5), seed=7)
    with pytest.raises(ValueError, match="`seed` is -1"):
        dataclasses.replace(whole, seed=-1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.seed = 3  # type: ignore[misc]


def test_per_stage_values() -> None:
    """One for all, or one each; any other number is an error."""
    assert per_stage(Whole(steps=(3,)).steps, "steps", 3) == (3, 3, 3)
    assert per_stage(Whole(steps=(3, 4)).steps, "steps", 2) == (3, 4)
    for steps, stages in (((3, 4), 3), ((3, 4), 4), ((3, 4), 1), ((), 2)):
        with pytest.raises(ValueError, match=f"`steps` has {len(steps)} values, for {stages} stag"):
            per_stage(Whole(steps=steps).steps, "steps", stages)


# --- from text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "20", (20,)),
        ("steps", "20,6", (20, 6)),
        ("weight", "none", None),
        ("weight", "1,2.5", (1.0, 2.5)),
        ("kind", "heun,ddim", ("heun", "ddim")),
        ("threads", "None", None),
        ("threads", "2", 2),
        ("name", "none", "none"),  # text is text, unless it says otherwise
        ("folder", "none", None),
        ("folder", "a, b", "a, b"),
        ("interval", "0.1,0.9", (0.1, 0.9)),
        ("fast", "true", True),
        ("fast", True, True),
    ],
)
def test_text_of_a_command_line(name: str, text: object, value: object) -> None:
    """Commas part the values of stages, and "none" is None where a setting may be left out."""
    assert getattr(Whole(**from_text(Whole, {name: text})), name) == value  # type: ignore[arg-type]


def test_text_that_is_wrong() -> None:
    """The error shows what was typed; what is not declared is left to the constructor."""
    for given, message in (
        ({"steps": "20,,6"}, "`steps` is '20,,6', it should be a whole number, or one per stage"),
        ({"steps": "none"}, "`steps` is 'none', it should be a whole number"),
        ({"stepz": "1"}, "unknown key 'stepz'"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Whole(**from_text(Whole, given))  # type: ignore[arg-type]


def test_text_and_back() -> None:
    """What ``to_text`` writes, ``from_text`` reads."""
    whole = Whole(steps=(20, 6), weight=(1.5,), threads=3, folder=None, fast=True, seed=9)
    names = ("steps", "weight", "kind", "share", "threads", "folder", "fast", "seed")
    text = {name: to_text(getattr(whole, name)) for name in names}
    assert text["steps"] == "20,6" and text["folder"] == "none" and text["fast"] == "True"
    assert Whole(**from_text(Whole, text)) == whole  # type: ignore[arg-type]
    assert flag_name("batch_size") == "--BATCH_SIZE"


def test_a_type_in_words() -> None:
    """For --help: kind, choices, whether it is per stage."""
    declared = {item.name: item for item in dataclasses.fields(Whole)}
    assert declared["steps"].metadata["short"] == "n"
    assert describe(PerStage[Count]) == ("number", (), True)
    assert describe(PerStage[Literal["a", "b"]] | None) == ("choice", ("a", "b"), True)
    assert describe(bool) == ("switch", (), False)
    assert describe(str | None) == ("text", (), False)


# --- from JSON ------------------------------------------------------------------------------------


def test_json_and_back() -> None:
    """asdict, JSON, and back: the same, nested settings and lists too."""
    whole = Whole(
        steps=(3, 4), interval=(0.1, 0.2), part=Part(2, "square"), parts=(Part(), Part(4))
    )
    assert from_json(Whole, json.dumps(dataclasses.asdict(whole)), "a.json") == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"share": "0.5"}', "`share` is '0.5', it should be a number"),
        ('{"even": "4"}', "`even` is '4', it should be a whole number"),
        ('{"even": 4.0}', "`even` is 4.0, it should be a whole number"),
        ('{"even": true}', "`even` is True, it should be a whole number"),
        ('{"fast": 1}', "`fast` is 1, it should be true or false"),
        ('{"fast": "true"}', "`fast` is 'true', it should be true or false"),
        ('{"share": NaN}', "`share` is nan, it should be from 0 to 1"),
        ('{"share": 1e999}', "`share` is inf, it should be from 0 to 1"),
        (f'{{"share": 1{"0" * 400}}}', f"`share` is 1{'0' * 59}...0000000000, it should be from"),
        ('{"steps": ' + "[" * 100_000, "it is not valid JSON: recursion limit exceeded"),
        ('{"steps": {}}', "`steps` is {}, it should be a list"),
        ('{"steps": [3, "4"]}', "`steps[1]` is '4', it should be a whole number"),
        ('{"part": {"size": 0}}', "`part.size` is 0, it should be at least 1"),
        ('{"parts": [{}, {"size": null}]}', "`parts[1].size` is None, it should be a whole number"),
        ('{"parts": [{}, {"sice": 2}]}', "unknown key 'parts[1].sice', did you mean 'size'?"),
        ('{"interval": [0.6, 0.5]}', "`interval` is (0.6, 0.5), it should be (low, high)"),
        ("[]", "it is [], it should be an object with keys, {...}"),
        ('{"share": 0.5,', "it is not valid JSON: EOF while parsing"),
        ("", "it is not valid JSON: EOF while parsing"),
    ],
)
def test_json_is_strict(text: str, message: str) -> None:
    """Types are exactly those declared; the error names the file and the key."""
    with pytest.raises(ValueError) as error:
        from_json(Whole, text, "a.json")
    assert str(error.value).startswith(f"a.json: {message}")
    assert "\n" not in str(error.value)


def test_a_whole_number_is_a_number() -> None:
    """JSON does not tell 1 from 1.0 where either will do."""
    assert from_json(Whole, '{"share": 1, "steps": 5}', "a.json") == Whole(share=1.0, steps=(5,))


def test_a_missing_key_is_named() -> None:
    """Where there is no default."""

    @settings
    class Named:
        name: str
        part: Part

    with pytest.raises(ValueError, match=r"^a.json: key 'name' is missing$"):
        from_json(Named, "{}", "a.json")
    with pytest.raises(ValueError, match=r"^key 'part' is missing$"):
        Named(name="x")  # type: ignore[call-arg]
