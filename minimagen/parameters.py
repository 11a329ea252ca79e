"""The configuration of a training as files: the content of a ``parameters`` directory."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from minimagen.files import read_file
from minimagen.imagen import ImagenConfig
from minimagen.settings import Count, T, brief, flag_name, from_json, settings
from minimagen.unet import UnetConfig


class Parameters(NamedTuple):
    """The content of a ``parameters`` directory."""

    imagen: ImagenConfig
    unets: tuple[UnetConfig, ...]
    flags: dict[str, str]  # of training_parameters_*.txt, by the setting's name; {} without it


def load_parameters(directory: Path | str, known: Collection[str] = ()) -> Parameters:
    """Read a ``parameters`` directory.

    known: names of the settings that training_parameters_*.txt may have; () does not read that file

    Raises ValueError, naming the file and what is wrong in it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory, it should hold imagen_params_*.json")
    imagen = read_json(ImagenConfig, _only(directory, "imagen_params_*.json"))
    found = [re.match(r"unet_(\d+)_params_", path.name) for path in directory.iterdir()]
    numbers = {int(match[1]) for match in found if match}
    if numbers != set(range(len(imagen.stages))):
        raise ValueError(
            f"{directory} has files for U-Nets {sorted(numbers)}, its imagen_params file has "
            f"{len(imagen.stages)} stages: it should have unet_0_params_*.json and so on"
        )
    unets = tuple(
        read_json(UnetConfig, _only(directory, f"unet_{i}_params_*.json"))
        for i in range(len(numbers))
    )
    flags: dict[str, str] = {}
    if known and any(directory.glob("training_parameters_*.txt")):
        flags = _read_flags(_only(directory, "training_parameters_*.txt"), known)
    return Parameters(imagen, unets, flags)


def _only(directory: Path, pattern: str) -> Path:
    paths = sorted(directory.glob(pattern))
    if len(paths) != 1:
        raise ValueError(f"{directory} has {len(paths)} files {pattern}, it should have one")
    return paths[0]


def read_json(kind: type[T], path: Path) -> T:
    """Settings in a JSON file. Raises ValueError, naming the file and what is wrong in it."""
    return from_json(kind, read_file(path), str(path))


def read_text(path: Path) -> str:
    """A text file. Raises ValueError, naming it, if it cannot be read."""
    try:
        return read_file(path).decode("utf-8")
    except UnicodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None


def _read_flags(path: Path, known: Collection[str]) -> dict[str, str]:
    """The lines ``--FLAG=value`` of a file; empty lines and lines of ``#`` are skipped."""
    flags: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.strip().partition("=")
        setting = name.removeprefix("--").lower()
        if not equals or name != flag_name(setting):
            raise ValueError(f"{path}, line {number}: {brief(line)} should be --FLAG=value")
        if setting not in known:
            raise ValueError(f"{path}, line {number}: {name} is not a flag of the training")
        flags[setting] = value
    return flags


@settings
class Sources:
    """What a training learns from. Made by ``train``; a training that goes on compares it."""

    dataset: str  # an absolute path, a world of shapes, or the id of a Hub data set
    data_digest: str  # SHA-256 of all images and captions, see ``CaptionedDataset.digest``
    text_encoder: str  # an absolute path, a short name, or a Hub id
    text_fingerprint: str  # see ``T5Encoder.fingerprint``
    processes: Count = 1  # that share a batch
