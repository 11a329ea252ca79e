"""The training directory: the names of its files, and how they are written and read.

    training_<YYYYMMDD_HHMMSS>/
        parameters/             imagen_params_<TS>.json, unet_<i>_params_<TS>.json,
                                training_parameters_<TS>.txt: one --FLAG=value per line,
                                words_<TS>.txt: every word of the training captions
        state_dicts/            unet_<i>_state_<TS>.safetensors: best EMA weights of each U-Net
        tmp/                    unet_<i>_checkpoint.safetensors: all that is needed to resume
        training_progress.txt   the log

Files are written under another name and then renamed: if the process dies or the disk fills up, the
previous file stays intact.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from minimagen.files import atomic_write, load_tensors, save_tensors, unreadable
from minimagen.imagen import Imagen, ImagenConfig
from minimagen.settings import T, flag_name, from_json
from minimagen.unet import UnetConfig

PRETRAINED = Path(__file__).parent / "pretrained"  # shipped models, each a training directory


def timestamped_directory(output: Path | str, prefix: str) -> Path:
    """Make ``output/prefix_<YYYYMMDD_HHMMSS>`` and return it.

    If that name is taken, ``_1``, ``_2``, ... is added, also when two processes ask at the same
    moment. ``output`` is created if it is missing.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    name = f"{prefix}_{time.strftime('%Y%m%d_%H%M%S')}"
    number = 0
    while True:
        path = output / (f"{name}_{number}" if number else name)
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def check_writable(directory: Path | str, setting: str) -> None:
    """Raise ValueError, naming the setting, if a directory cannot be created or written to."""
    path = Path(directory).absolute()
    there = next(part for part in (path, *path.parents) if part.exists())
    if not there.is_dir():
        raise ValueError(f"`{setting}` is {str(directory)!r}, but {there} is not a directory")
    if not os.access(there, os.W_OK):
        raise ValueError(f"`{setting}` is {str(directory)!r}, but {there} cannot be written to")


class Sources(NamedTuple):
    """What a model was trained on and with."""

    dataset: str
    data_digest: str
    text_encoder: str
    text_fingerprint: str


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
    imagen = _read(ImagenConfig, _only(directory, "imagen_params_*.json"))
    found = [re.match(r"unet_(\d+)_params_", path.name) for path in directory.iterdir()]
    numbers = {int(match[1]) for match in found if match}
    if numbers != set(range(len(imagen.stages))):
        raise ValueError(
            f"{directory} has files for U-Nets {sorted(numbers)}, its imagen_params file has "
            f"{len(imagen.stages)} stages: it should have unet_0_params_*.json and so on"
        )
    unets = tuple(
        _read(UnetConfig, _only(directory, f"unet_{i}_params_*.json")) for i in range(len(numbers))
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


def _read(kind: type[T], path: Path) -> T:
    try:
        return from_json(kind, path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _read_flags(path: Path, known: Collection[str]) -> dict[str, str]:
    """The lines ``--FLAG=value`` of a file; empty lines and lines of ``#`` are skipped."""
    flags: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.strip().partition("=")
        setting = name.removeprefix("--").lower()
        if not equals or name != flag_name(setting):
            raise ValueError(f"{path}, line {number}: {line!r} should be --FLAG=value")
        if setting not in known:
            raise ValueError(f"{path}, line {number}: {name} is not a flag of the training")
        flags[setting] = value
    return flags


class TrainingDirectory:
    """A training directory that exists; made by ``create`` or ``open``.

    path: of the directory; timestamp: the ``<TS>`` in the names of its files
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.timestamp = self.path.name.removeprefix("training_")

    @classmethod
    def create(cls, output: Path | str = ".") -> TrainingDirectory:
        """Make a new one in ``output``, with an unused name."""
        directory = cls(timestamped_directory(output, "training"))
        for part in (directory.parameters, directory.state_dicts, directory.tmp):
            part.mkdir()
        return directory

    @classmethod
    def open(cls, path: Path | str) -> TrainingDirectory:
        """Open an existing one, or a shipped one by its name.

        Raises ValueError, naming it, if it is not a training directory.
        """
        directory = cls(Path(path).resolve())
        if not directory.path.exists() and Path(path).name == str(path):
            directory = cls(PRETRAINED / Path(path))
        if not directory.parameters.is_dir():
            names = sorted(found.parent.name for found in PRETRAINED.glob("*/parameters"))
            raise ValueError(
                f"{path} is not a training directory: it has no parameters/; "
                f"names of shipped models: {', '.join(names) or 'none'}"
            )
        files = sorted(directory.parameters.glob("imagen_params_*.json"))
        if files:  # it may have been renamed
            directory.timestamp = files[0].stem.removeprefix("imagen_params_")
        return directory

    @property
    def parameters(self) -> Path:
        """The directory of the configuration."""
        return self.path / "parameters"

    @property
    def state_dicts(self) -> Path:
        """The directory of the best weights."""
        return self.path / "state_dicts"

    @property
    def tmp(self) -> Path:
        """The directory of the latest checkpoints."""
        return self.path / "tmp"

    @property
    def progress(self) -> Path:
        """The log."""
        return self.path / "training_progress.txt"

    def checkpoint(self, stage: int) -> Path:
        """The file of the latest checkpoint of a stage."""
        return self.tmp / f"unet_{stage}_checkpoint.safetensors"

    def best(self, stage: int) -> Path:
        """The file of the best EMA weights of a stage's U-Net."""
        return self.state_dicts / f"unet_{stage}_state_{self.timestamp}.safetensors"

    def log(self, text: str) -> None:
        """Add a line to training_progress.txt."""
        with open(self.progress, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def save_parameters(
        self, imagen: ImagenConfig, unets: Sequence[UnetConfig], flags: Mapping[str, str]
    ) -> None:
        """Write the whole configuration. flags: every setting of the training, as text."""
        jsons = {"imagen_params": imagen} | {f"unet_{i}_params": u for i, u in enumerate(unets)}
        for name, config in jsons.items():
            text = json.dumps(asdict(config), indent=2) + "\n"
            _write_text(self.parameters / f"{name}_{self.timestamp}.json", text)
        lines = "".join(f"{flag_name(name)}={value}\n" for name, value in flags.items())
        _write_text(self.parameters / f"training_parameters_{self.timestamp}.txt", lines)

    def load_parameters(self, known: Collection[str] = ()) -> Parameters:
        """The configuration; arguments and errors as in the function ``load_parameters``."""
        return load_parameters(self.parameters, known)

    def save_words(self, words: Collection[str]) -> None:
        """Write the words of the training captions, see ``data.words``."""
        _write_text(self._words, "".join(f"{word}\n" for word in sorted(words)))

    def load_words(self) -> frozenset[str] | None:
        """The words of the training captions; None without that file, as in older versions."""
        if not self._words.is_file():
            return None
        return frozenset(self._words.read_text(encoding="utf-8").split())

    def save_sources(self, sources: Sources) -> None:
        """Write what the model is trained on and with."""
        _write_text(self._sources, json.dumps(sources._asdict(), indent=2) + "\n")

    def load_sources(self) -> Sources | None:
        """What the model was trained on and with; None without that file, as in older versions."""
        if not self._sources.is_file():
            return None
        try:
            return Sources(**json.loads(self._sources.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self._sources} cannot be read: {error}") from None

    @property
    def _sources(self) -> Path:
        return self.parameters / f"sources_{self.timestamp}.json"

    @property
    def _words(self) -> Path:
        return self.parameters / f"words_{self.timestamp}.txt"

    def save_best(self, stage: int, weights: Mapping[str, Tensor]) -> None:
        """Write the weights of a stage's U-Net."""
        save_tensors(self.best(stage), weights)

    def load_best(self, stage: int) -> dict[str, Tensor]:
        """The weights of a stage's U-Net. Raises ValueError when they are missing or broken."""
        path = self.best(stage)
        if not path.is_file():
            raise ValueError(
                f"{self.path} has no {path.name}: stage {stage} has not finished an epoch"
            )
        return load_tensors(path)[0]

    def save_checkpoint(
        self, stage: int, tensors: Mapping[str, Tensor], state: Mapping[str, object]
    ) -> None:
        """Write a stage's latest checkpoint: tensors, and everything else as JSON."""
        save_tensors(self.checkpoint(stage), tensors, state)

    def load_checkpoint(self, stage: int) -> tuple[dict[str, Tensor], dict[str, object]]:
        """A stage's latest checkpoint. Raises ValueError when it is missing or broken."""
        return load_tensors(self.checkpoint(stage))

    def checkpoint_header(self, stage: int) -> tuple[dict[str, list[int]], dict[str, object]]:
        """Shapes of a checkpoint's tensors, and its state. Reads no tensor. Errors as above."""
        path = self.checkpoint(stage)
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                shapes = {name: file.get_slice(name).get_shape() for name in names}
                return shapes, json.loads((file.metadata() or {}).get("state", "{}"))
        except (OSError, SafetensorError, ValueError) as error:
            raise unreadable(path, error) from None

    def check_checkpoints(self, imagen: Imagen) -> list[int]:
        """The stages of a model that have a checkpoint. Only the headers of files are read.

        Raises ValueError when one is broken or does not fit the model.
        """
        found = []
        for index, stage in enumerate(imagen.stages):
            path = self.checkpoint(index)
            if not path.is_file():
                continue
            found.append(index)
            shapes, state = self.checkpoint_header(index)
            if state.get("stage") != index:
                raise ValueError(f"{path} is of stage {state.get('stage')}, not {index}")
            due = {f"model.{name}": list(value.shape) for name, value in stage.state_dict().items()}
            there = {name: shape for name, shape in shapes.items() if name.startswith("model.")}
            for name in sorted(due.keys() ^ there.keys()) or sorted(due):
                if due.get(name) != there.get(name):
                    raise ValueError(
                        f"{path} does not fit the model of parameters/: {name} is "
                        f"{there.get(name)}, it should be {due.get(name)}"
                    )
        return found

    def copy_results(self, other: TrainingDirectory, stages: int) -> None:
        """Copy the best weights and checkpoints of another directory, which stays as it is."""
        for i in range(stages):
            for source, target in (
                (other.best(i), self.best(i)),
                (other.checkpoint(i), self.checkpoint(i)),
            ):
                if source.is_file():
                    atomic_write(target, partial(shutil.copyfile, source))


def _write_text(path: Path, text: str) -> None:
    atomic_write(path, lambda aside: aside.write_text(text, encoding="utf-8"))
