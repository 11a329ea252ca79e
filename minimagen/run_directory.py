"""The training directory: the names of its files, and how they are written and read.

    training_<YYYYMMDD_HHMMSS>/
        parameters/             imagen_params_<TS>.json, unet_<i>_params_<TS>.json,
                                training_parameters_<TS>.txt: one --FLAG=value per line,
                                words_<TS>.txt: every word of the training captions,
                                sources_<TS>.json: which data and which text encoder
        state_dicts/            unet_<i>_state_<TS>.safetensors: best EMA weights of each U-Net
        tmp/                    unet_<i>_checkpoint.safetensors: all that is needed to resume
        manifest/               parameters.json, stage_<i>.json: size and SHA-256 of these files
        training_progress.txt   the log
        training_log.csv        losses, learning rate and speed, in rows
        samples.png             images of the same captions, a row every few epochs
        curve.png, sheet.png    the losses; images of held-out or validation captions
        README.md               the model card

The weights and the checkpoint before the present ones are kept too, as ``<name>.previous``: if a
file is damaged, the one before it takes its place, and a line says so.

A directory and a file are written under another name and then renamed: whenever the process dies
or the disk fills up, what was there before stays intact.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from minimagen.devices import Precision
from minimagen.files import (
    clear_parts,
    new_directory,
    parse_tensors,
    part_of,
    save_tensors,
    timestamped,
)
from minimagen.imagen import Imagen, ImagenConfig, Stage
from minimagen.manifest import Manifest
from minimagen.notes import note
from minimagen.optimizer import split
from minimagen.parameters import Parameters, Sources, load_parameters, read_json, read_text
from minimagen.settings import AtLeast0, flag_name, from_json, settings
from minimagen.unet import UnetConfig

PRETRAINED = Path(__file__).parent / "pretrained"  # shipped models, each a training directory


@settings
class CheckpointState:
    """The part of a checkpoint that is not tensors: how far the training of a stage is."""

    stage: AtLeast0
    epoch: AtLeast0  # epochs done
    batch: AtLeast0  # batches done of the epoch after them
    step: AtLeast0  # optimizer steps done
    best: float | None  # lowest validation loss so far
    precision: Precision = "auto"
    scaler: dict[str, float] | None = None  # of the loss, for fp16


class Results(NamedTuple):
    """Files of a stage that are whole; the previous ones if the newest are not."""

    state: CheckpointState
    checkpoint: Path
    best: Path | None  # None before the end of the first epoch


class TrainingDirectory:
    """A training directory that exists; made by ``create`` or ``open``.

    path: of the directory; timestamp: the ``<TS>`` in the names of its files
    """

    def __init__(self, path: Path | str, timestamp: str | None = None) -> None:
        self.path = Path(path)
        files = sorted(self.parameters.glob("imagen_params_*.json"))
        if timestamp is None and files:  # it may have been renamed
            timestamp = files[0].stem.removeprefix("imagen_params_")
        self.timestamp = timestamp or self.path.name.removeprefix("training_")

    @classmethod
    def create(
        cls,
        output: Path | str = ".",
        fill: Callable[[TrainingDirectory], object] = lambda directory: None,
    ) -> TrainingDirectory:
        """Make a new one in ``output``, with an unused name and with what ``fill`` writes into it.

        If that fails or the process dies, there is no new directory.
        """

        def make(part: Path, name: str) -> None:
            directory = cls(part, name.removeprefix("training_"))
            for inner in (directory.parameters, directory.state_dicts, directory.tmp):
                inner.mkdir()
            fill(directory)

        return cls(new_directory(timestamped(output, "training"), make))

    @classmethod
    def open(cls, path: Path | str) -> TrainingDirectory:
        """Open an existing one, or a shipped one by its name.

        Raises ValueError, naming what is wrong, if it is not a training directory, or if a file of
        its configuration is missing or damaged.
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
        if directory.has_manifest:
            if not directory._manifest().path.exists():
                raise ValueError(f"{directory._manifest().path} is missing")
            directory._manifest().check()
        return directory

    @property
    def has_manifest(self) -> bool:
        """Whether damaged files are noticed; False for directories of older versions."""
        return self._manifest().path.parent.exists()

    def _manifest(self, stage: int | None = None) -> Manifest:
        """The manifest of a stage's files; None: of parameters/."""
        return Manifest(self.path, "parameters" if stage is None else f"stage_{stage}")

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

    @property
    def table(self) -> Path:
        """What was measured, see ``training.table``."""
        return self.path / "training_log.csv"

    @property
    def samples(self) -> Path:
        """Images of the same captions at several times of the training."""
        return self.path / "samples.png"

    @property
    def curve(self) -> Path:
        """The picture of the losses."""
        return self.path / "curve.png"

    @property
    def sheet(self) -> Path:
        """Images of held-out captions, or of those of validation images."""
        return self.path / "sheet.png"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    def checkpoint(self, stage: int) -> Path:
        """The file of the latest checkpoint of a stage."""
        return self.tmp / f"unet_{stage}_checkpoint.safetensors"

    def best(self, stage: int) -> Path:
        """The file of the best EMA weights of a stage's U-Net."""
        return self.state_dicts / f"unet_{stage}_state_{self.timestamp}.safetensors"

    def log(self, text: str) -> None:
        """Add a line to training_progress.txt. Raises OSError, naming it, if that fails."""
        try:
            with open(self.progress, "a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise OSError(f"{self.progress} cannot be written: {error}") from None

    # --- the configuration ------------------------------------------------------------------------

    def save_parameters(
        self, imagen: ImagenConfig, unets: Sequence[UnetConfig], flags: Mapping[str, str]
    ) -> None:
        """Write the whole configuration. flags: every setting of the training, as text."""
        jsons = {"imagen_params": imagen} | {f"unet_{i}_params": u for i, u in enumerate(unets)}
        for name, config in jsons.items():
            self._save_json(name, config)
        lines = "".join(f"{flag_name(name)}={value}\n" for name, value in flags.items())
        self._save_text("training_parameters_", ".txt", lines)

    def load_parameters(self, known: Collection[str] = ()) -> Parameters:
        """The configuration; arguments and errors as in the function ``load_parameters``."""
        return load_parameters(self.parameters, known)

    def save_sources(self, sources: Sources) -> None:
        """Write what the training learns from."""
        self._save_json("sources", sources)

    def load_sources(self) -> Sources | None:
        """What the training learns from; None without that file, as in older versions."""
        path = self.parameters / f"sources_{self.timestamp}.json"
        return read_json(Sources, path) if path.exists() else None

    def save_words(self, words: Collection[str]) -> None:
        """Write the words of the training captions, see ``data.words``."""
        self._save_text("words_", ".txt", "".join(f"{word}\n" for word in sorted(words)))

    def load_words(self) -> frozenset[str] | None:
        """The words of the training captions; None without that file, as in older versions."""
        path = self.parameters / f"words_{self.timestamp}.txt"
        return frozenset(read_text(path).split()) if path.exists() else None

    def _save_json(self, name: str, config: object) -> None:
        text = json.dumps(asdict(config), indent=2) + "\n"  # type: ignore[call-overload]
        self._save_text(f"{name}_", ".json", text)

    def _save_text(self, begin: str, end: str, text: str) -> None:
        path = self.parameters / f"{begin}{self.timestamp}{end}"
        self._manifest().write(path, lambda part: part.write_text(text, encoding="utf-8"))

    # --- the results of a stage -------------------------------------------------------------------

    def save_best(self, stage: int, weights: Mapping[str, Tensor]) -> None:
        """Write the weights of a stage's U-Net; those before them are kept."""
        self._save(stage, self.best(stage), weights, {})

    def load_best(self, stage: int) -> dict[str, Tensor]:
        """The weights of a stage's U-Net.

        Raises ValueError when they are missing or broken. Warns if it takes those before them.
        """
        path = self.best(stage)
        if not self._is_due(stage, path):
            raise ValueError(
                f"{self.path} has no {path.name}: stage {stage} has not finished an epoch"
            )
        whole = self._whole(stage, path)
        return parse_tensors(self._manifest(stage).read(whole), whole)[0]

    def save_checkpoint(
        self, stage: int, tensors: Mapping[str, Tensor], state: Mapping[str, object]
    ) -> None:
        """Write a stage's latest checkpoint: tensors, and a ``CheckpointState``.

        The checkpoint before it is kept.
        """
        self._save(stage, self.checkpoint(stage), tensors, state)

    def load_checkpoint(self, stage: int) -> tuple[dict[str, Tensor], CheckpointState]:
        """A stage's latest checkpoint. Raises ValueError when it is missing or broken."""
        return self._read_checkpoint(stage, self.checkpoint(stage))

    def check_results(self, imagen: Imagen) -> dict[int, Results]:
        """The results of each stage of a model that has begun; all of them are read and compared.

        Raises ValueError, naming the file, when one is missing, damaged, or does not fit the model.
        Warns if it takes a file before the newest.
        """
        results: dict[int, Results] = {}
        for index, stage in enumerate(imagen.stages):
            checkpoint, best = self.checkpoint(index), self.best(index)
            due = [self._is_due(index, path) for path in (checkpoint, best)]
            if not any(due):
                continue
            path = self._whole(index, checkpoint)
            tensors, state = self._read_checkpoint(index, path)
            _check_fit(path, tensors, stage)
            if state.epoch and not due[1]:
                raise ValueError(f"{best} is missing")
            results[index] = Results(state, path, self._whole(index, best) if due[1] else None)
        return results

    def copy_results(self, results: Mapping[int, Results]) -> None:
        """Copy results of another directory, which stays as it is."""
        for stage, found in results.items():
            pairs = {self.checkpoint(stage): found.checkpoint, self.best(stage): found.best}
            for target, source in pairs.items():
                if source is not None:
                    self._manifest(stage).write(target, partial(shutil.copyfile, source))

    def prepare(self, results: Mapping[int, Results]) -> None:
        """Make it ready for more training: ``results``, found in this directory, become the newest.

        Removes what dead processes left. Makes the manifest if there is none. Raises ValueError if
        it would write elsewhere, through a link.
        """
        manifests = self._manifest().path.parent
        for folder in (self.path, self.parameters, self.state_dicts, self.tmp, manifests):
            if folder.is_symlink():
                raise ValueError(f"{folder} is a link, it should be a folder of its own")
            clear_parts(folder)
        if not self.has_manifest:
            self.make_manifest(results)
        for stage, found in results.items():
            manifest = self._manifest(stage)
            pairs = {self.checkpoint(stage): found.checkpoint, self.best(stage): found.best}
            for path, source in pairs.items():
                if source not in (None, path):
                    manifest.restore(path, source)
                try:
                    manifest.read(previous(path))
                except ValueError:
                    previous(path).unlink(missing_ok=True)
            manifest.renew(*pairs, *map(previous, pairs))

    def make_manifest(self, stages: Collection[int]) -> None:
        """List all files as they are now, for a directory of an older version."""
        part = part_of(self._manifest().path.parent)
        Manifest(self.path, "parameters", part.name).renew(*self.parameters.iterdir())
        for stage in stages:
            files = self.best(stage), self.checkpoint(stage)
            Manifest(self.path, f"stage_{stage}", part.name).renew(*files)
        part.rename(self._manifest().path.parent)

    def _save(
        self,
        stage: int,
        path: Path,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, object],
    ) -> None:
        write = partial(self._manifest(stage).write, previous=previous(path))
        save_tensors(path, tensors, state, write)

    def _is_due(self, stage: int, path: Path) -> bool:
        """Whether the directory has a file, or should have it."""
        return path.exists() or self._manifest(stage).lists(path)

    def _whole(self, stage: int, path: Path) -> Path:
        """A file if it is whole, else the one before it, with a warning."""
        manifest = self._manifest(stage)
        try:
            manifest.read(path)
            return path
        except ValueError as error:
            if not previous(path).exists():
                raise
            manifest.read(previous(path))
            note(f"{error}; the one before it is taken")
            return previous(path)

    def _read_checkpoint(self, stage: int, path: Path) -> tuple[dict[str, Tensor], CheckpointState]:
        tensors, text = parse_tensors(self._manifest(stage).read(path), path)
        try:
            state = {key: value for key, value in json.loads(text).items() if key in _STATE}
        except (ValueError, RecursionError, AttributeError):
            raise ValueError(f"{path} has a state that is not a JSON object") from None
        found = from_json(CheckpointState, json.dumps(state), str(path))
        if found.stage != stage:
            raise ValueError(f"{path} is of stage {found.stage}, not {stage}")
        return tensors, found


_STATE = [item.name for item in fields(CheckpointState)]


def previous(path: Path) -> Path:
    """Where the content before the present one is kept."""
    return path.with_name(f"{path.name}.previous")


def _check_fit(path: Path, tensors: Mapping[str, Tensor], stage: Stage) -> None:
    """Raise ValueError unless a checkpoint has the tensors of a stage, see ``TrainingState``."""
    due = {"sums": [2]}
    for name, value in stage.state_dict().items():
        due |= {f"{prefix}.{name}": list(value.shape) for prefix in ("model", "ema")}
    large, others = split(stage.unet)
    for number, weight in enumerate(large + others):
        shape = list(weight.shape)
        adam = {"step": [], "exp_avg": shape, "exp_avg_sq": shape}
        state = {"momentum_buffer": shape} if number < len(large) else adam
        due |= {f"optimizer.{number}.{name}": shape for name, shape in state.items()}
    there = {name: list(value.shape) for name, value in tensors.items()}
    there = {name: shape for name, shape in there.items() if not name.startswith("random.")}
    for name in sorted(due.keys() ^ there.keys()) or sorted(due):
        if due.get(name) != there.get(name):
            raise ValueError(
                f"{path} does not fit the model of parameters/: {name} is {there.get(name)}, "
                f"it should be {due.get(name)}"
            )
