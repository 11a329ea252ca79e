"""Properties of settings and their files: whatever is given, a configuration or one clear line."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimagen.generation import GenerationConfig
from minimagen.imagen import ImagenConfig, StageConfig
from minimagen.parameters import load_parameters
from minimagen.presets import default_architecture
from minimagen.settings import from_json, from_text, to_text
from minimagen.training import TrainConfig
from minimagen.training.config import KEPT
from minimagen.unet import UnetConfig

QUICK, MANY = 10, 1000  # examples

NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(0, 10**400)).map(str)
WORDS = st.sampled_from(["", " ", ",", "none", "nan", "inf", "-0", "1e999", "ddim", "cpu", "true"])
TEXT = st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3).map(",".join), WORDS, st.text())
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def check_line(error: ValueError) -> str:
    """The message of an error: one line that is not too long for the reader of a terminal."""
    line = str(error)
    assert line and len(line.splitlines()) == 1, line
    return line


def check_flag(kind: type, name: str, text: str) -> None:
    """Any text of a flag: a configuration that survives being written, or a line that names it."""
    try:
        config = kind(**from_text(kind, {name: text}))
    except ValueError as error:
        assert f"`{name}`" in check_line(error)
        return
    written = {item.name: to_text(getattr(config, item.name)) for item in fields(kind)}
    for item in fields(kind):
        if item.default is None and getattr(config, item.name) is None:
            del written[item.name]  # "none" may be the name of something
    assert kind(**from_text(kind, written)) == config


def check_value(kind: type, name: str, value: object) -> None:
    """Any JSON value of a key: a configuration, or a line that names the file."""
    whole: dict[str, Any] = {"stages": [{}]} if kind is ImagenConfig else {}
    try:
        config = from_json(kind, json.dumps(whole | {name: value}), "a.json")
    except ValueError as error:
        assert check_line(error).startswith("a.json: ")
        return
    assert from_json(kind, json.dumps(asdict(config)), "a.json") == config


def check_file(name: str, content: bytes) -> None:
    """Any bytes of a file of parameters: a configuration, or a line that names the directory."""
    imagen, unets = default_architecture()
    with tempfile.TemporaryDirectory() as directory:
        for key, config in {"imagen": imagen, "unet_0": unets[0], "unet_1": unets[1]}.items():
            Path(directory, f"{key}_params_1.json").write_text(json.dumps(asdict(config)))
        Path(directory, name).write_bytes(content)
        try:
            load_parameters(directory, KEPT)
        except ValueError as error:
            assert directory in check_line(error)


FLAGS = st.sampled_from(
    [(kind, item.name) for kind in (TrainConfig, GenerationConfig) for item in fields(kind)]
)
KEYS = st.sampled_from(
    [(kind, item.name) for kind in (StageConfig, ImagenConfig, UnetConfig) for item in fields(kind)]
)
FILES = st.sampled_from(
    ["imagen_params_1.json", "unet_0_params_1.json", "training_parameters_1.txt", "unet_2_params_"]
)
CONTENT = st.one_of(
    st.binary(),
    ANYTHING.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from(KEPT), TEXT).map(
        lambda pair: f"--{pair[0].upper()}={pair[1]}".encode(errors="surrogatepass")
    ),
)


def run(check: Any, examples: int, *strategies: st.SearchStrategy[Any]) -> None:
    """Check a property of that many examples, the same at each run."""

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*strategies))
    def test(values: tuple[Any, ...]) -> None:
        check(*values)

    test()


@pytest.mark.parametrize("examples", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_any_text_of_any_flag(examples: int) -> None:
    run(lambda flag, text: check_flag(*flag, text), examples, FLAGS, TEXT)


@pytest.mark.parametrize("examples", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_any_json_of_any_key(examples: int) -> None:
    run(lambda key, value: check_value(*key, value), examples, KEYS, ANYTHING)


@pytest.mark.parametrize("examples", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_any_bytes_in_any_file_of_parameters(examples: int) -> None:
    run(check_file, examples, FILES, CONTENT)


def test_each_flag_by_itself() -> None:
    """Text that is wrong for most."""
    for kind in (TrainConfig, GenerationConfig):
        for item in fields(kind):
            for text in ("", " ", "\n", "nan", "\0", "\ud800", "9" * 5000, "-1", "1,1", "none"):
                check_flag(kind, item.name, text)


def test_a_message_of_two_lines_fails() -> None:
    """What the checks above look for."""
    with pytest.raises(AssertionError):
        check_line(ValueError("a\nb"))
