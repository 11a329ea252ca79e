"""What is to be trained, from all the places that may say so: flags, --PARAMETERS, --TESTING.

A value given explicitly wins over the directory of --PARAMETERS, which wins over what --TESTING
sets, which wins over the default. What comes out is what is saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from minimagen.training.config import (
    Architecture,
    TrainConfig,
    default_architecture,
    flag_name,
    parse_flag,
    to_text,
)
from minimagen.training.directory import Parameters, load_parameters

RESUMABLE = (  # what a resumed training may do otherwise than the one before
    "restart_directory",
    "epochs",
    "num_workers",
    "chckpt_num",
    "device",
    "threads",
    "output_directory",
    "cache_directory",
)
TESTING: dict[str, object] = {
    "dataset": "shapes-minimal",
    "num_images": 256,
    "epochs": (2,),
    "batch_size": (16,),
    "warmup": 5,
    "chckpt_num": 50,
    "testing": True,
}


def resolve(**given: object) -> TrainConfig:
    """The configuration: what was given, then --PARAMETERS, then --TESTING, then defaults.

    A value may be text as on the command line. With ``restart_directory`` the configuration
    is that of the old training, and only ``RESUMABLE`` may differ from it. Raises ValueError,
    naming the flag or the file, for whatever cannot be.
    """
    explicit = {name: parse_flag(TrainConfig, name, value) for name, value in given.items()}
    restart, parameters = explicit.get("restart_directory"), explicit.get("parameters")
    if restart is not None:
        return _resume(str(restart), explicit)
    values: dict[str, object] = dict(TESTING) if explicit.get("testing") else {}
    saved: dict[str, object] = {}
    if parameters is not None:
        saved = _flags_of("--PARAMETERS", Path(str(parameters)))
    config = TrainConfig(**(values | saved | explicit))  # type: ignore[arg-type]
    beaten = [name for name in values if name in saved and name not in explicit]
    if beaten:
        said = " ".join(f"{flag_name(name)}={to_text(saved[name])}" for name in beaten)
        warnings.warn(f"--PARAMETERS wins over --TESTING: {said}", stacklevel=2)
    return config


def architecture(config: TrainConfig) -> Architecture:
    """The model that a configuration asks for, but for the width of its text encoder.

    Raises ValueError, naming the flag, when a flag does not fit the model.
    """
    if config.restart_directory is not None:
        imagen, unets, _ = _read_parameters(
            "--RESTART_DIRECTORY", Path(config.restart_directory) / "parameters"
        )
    elif config.parameters is not None:
        imagen, unets, _ = _read_parameters("--PARAMETERS", Path(config.parameters))
    else:
        imagen, unets = default_architecture(config.dataset, config.testing)
    stages = list(imagen.stages)
    if config.timesteps is not None:
        most = config.timesteps
        stages = [replace(stage, steps=min(stage.steps, most)) for stage in stages]
    if config.img_side_len is not None:
        before, multiple = [s.side for s in stages[:-1]][-1:], unets[-1].side_multiple
        if config.img_side_len % multiple or config.img_side_len <= max(before, default=0):
            smaller = f" and above {before[0]}, the stage before" if before else ""
            raise ValueError(
                f"--IMG_SIDE_LEN is {config.img_side_len}, for this model it should be a multiple "
                f"of {multiple}{smaller}"
            )
        stages[-1] = replace(stages[-1], side=config.img_side_len)
    changes = {
        "timesteps": config.timesteps,
        "text_encoder": config.t5_name,
        "max_tokens": config.max_num_words,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    return Architecture(replace(imagen, stages=tuple(stages), **given), unets)  # type: ignore[arg-type]


def _read_parameters(name: str, directory: Path) -> Parameters:
    try:
        return load_parameters(directory)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _flags_of(name: str, directory: Path) -> dict[str, object]:
    """The flags in a parameters directory. Those that the JSON files say too must say the same."""
    imagen, _, flags = _read_parameters(name, directory)
    try:
        values = {key.lower(): parse_flag(TrainConfig, key.lower(), flags[key]) for key in flags}
    except ValueError as error:
        raise ValueError(f"{name}: training_parameters in {directory}: {error}") from None
    said = {
        "timesteps": imagen.timesteps,
        "t5_name": imagen.text_encoder,
        "max_num_words": imagen.max_tokens,
        "img_side_len": imagen.stages[-1].side,
    }
    for key, value in said.items():
        if values.get(key) is not None and values[key] != value:
            raise ValueError(
                f"{name}: training_parameters in {directory} has {flag_name(key)}={values[key]}, "
                f"but its imagen_params has {value}: they should agree"
            )
    return values


def _resume(directory: str, explicit: Mapping[str, object]) -> TrainConfig:
    saved = _flags_of("--RESTART_DIRECTORY", Path(directory) / "parameters")
    old = TrainConfig(**saved)  # type: ignore[arg-type]
    for name, value in explicit.items():
        if name not in RESUMABLE and value != getattr(old, name):
            raise ValueError(
                f"{flag_name(name)} is {to_text(value)}, but the training of --RESTART_DIRECTORY "
                f"has {to_text(getattr(old, name))}: a resumed training should keep it"
            )
    return replace(old, **explicit)  # type: ignore[arg-type]
