"""Decide everything about a training in one place: its settings, its model, and their sources.

A value that is given wins over the files of `parameters`, these win over the values of `testing`,
and these win over the defaults. The training directory keeps exactly what is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from minimagen.data import DEFAULT_LENGTH
from minimagen.data.shapes import WORLDS
from minimagen.devices import choose_device, choose_precision
from minimagen.files import check_writable
from minimagen.imagen import Imagen, ImagenConfig
from minimagen.notes import note
from minimagen.parameters import load_parameters
from minimagen.presets import Architecture, default_architecture
from minimagen.run_directory import Results, TrainingDirectory
from minimagen.settings import from_text, naming, per_stage, to_text
from minimagen.text import SHORT_NAMES, embedding_width
from minimagen.training.config import KEPT, LATER, TESTING, TrainConfig
from minimagen.training.loop import StageSettings
from minimagen.training.tracker import check_tracker
from minimagen.unet import UnetConfig

RESUMABLE = (  # settings that may differ when a training goes on
    "restart_directory",
    "training_directory",
    "stages",
    "epochs",
    "num_workers",
    "chckpt_num",
    "device",
    "threads",
    "output_directory",
    "cache_directory",
    "max_left_out",
    "dataset",  # may have moved: its content is compared
    "t5_name",  # the same
    "other_data",
    "data_license",
    "log_with",
    "sample_every",
    "push_to",
)
PATHS = ("dataset", "t5_name", "cache_directory")  # kept as absolute paths
SOURCES = ("restart_directory", "training_directory", "parameters")  # of settings and a model


@dataclass(frozen=True)
class Plan:
    """Everything that is decided about a training. Made by ``resolve``."""

    config: TrainConfig  # every value is decided
    imagen: ImagenConfig
    unets: tuple[UnetConfig, ...]
    sources: Mapping[str, str]  # by setting: "given", "default", or where it came from
    device: torch.device
    stages: tuple[int, ...]  # to train now
    side_by_side: bool  # train them at the same time, each with a share of the threads
    threads: int  # of each stage's process
    processes: int  # that share a batch: those that the training began with
    old: TrainingDirectory | None  # to go on from
    results: Mapping[int, Results]  # of the stages that have begun there
    origin: str  # the setting that names the source of settings and model, or ""

    def stage_settings(self, index: int) -> StageSettings:
        """The settings for the training of one stage."""
        config, count = self.config, len(self.unets)
        return StageSettings(
            index,
            per_stage(config.epochs, "epochs", count)[index],
            per_stage(config.batch_size, "batch_size", count)[index] * self.processes,
            per_stage(config.optim_lr, "optim_lr", count)[index],
            config.accum_iter,
            config.warmup,
            config.clip_norm,
            config.ema_decay,
            config.seed,
            self.imagen.text_dropout,
            config.crop_side,
        )


def resolve(**given: object) -> Plan:
    """Decide what is trained, and how.

    given: settings of ``TrainConfig`` by name; a value may be text as on the command line. With
    ``restart_directory`` or ``training_directory`` the training there goes on, and only the
    settings in ``RESUMABLE`` may differ from it.

    Raises ValueError, naming the setting or the file, if something is wrong or does not fit.
    """
    explicit = {name: _absolute(name, v) for name, v in from_text(TrainConfig, given).items()}
    asked = TrainConfig(**explicit)  # type: ignore[arg-type]  # pydantic checks them
    origin = next((name for name in SOURCES if getattr(asked, name) is not None), None)
    old = None
    results: Mapping[int, Results] = {}
    saved: dict[str, Any] = {}
    model = default_architecture(asked.testing)
    if origin is not None:
        with naming(origin):
            directory = Path(str(getattr(asked, origin)))
            if origin != "parameters":
                old = TrainingDirectory.open(directory)
                directory = old.parameters
            model, saved = _read(directory)
            if old is not None:
                results = _results(old, model, saved)
                if not results and origin == "restart_directory":
                    raise ValueError(f"{old.path} has no checkpoint in tmp/ to go on from")
    if old is not None:
        _check_resumable(asked, explicit, saved, str(origin))
    preset = TESTING if asked.testing and old is None else {}
    config = TrainConfig(**(preset | saved | explicit))  # type: ignore[arg-type]
    sources = {item.name: "default" for item in fields(TrainConfig)}
    sources |= dict.fromkeys(preset, "testing") | dict.fromkeys(saved, str(origin))
    sources |= dict.fromkeys(explicit, "given")
    beaten = [name for name in preset if name in saved and name not in explicit]
    if beaten:
        said = ", ".join(f"`{name}` is {to_text(saved[name])}" for name in beaten)
        note(f"`parameters` wins over `testing`: {said}")

    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if old is not None and config.precision == "auto":  # as older versions saved it
        precision = next((found.state.precision for found in results.values()), precision)
    model = _architecture(config, model, sources, origin)
    with naming(origin or "parameters"), torch.device("meta"):  # which takes no memory
        Imagen(*model)  # do the parts fit each other?
    config = replace(
        config,
        img_side_len=model.imagen.stages[-1].side,
        t5_name=model.imagen.text_encoder,
        max_num_words=model.imagen.max_tokens,
        timesteps=model.imagen.timesteps,
        num_images=config.num_images or (DEFAULT_LENGTH if config.dataset in WORLDS else None),
        precision=precision,
    )
    every = range(len(model.unets))
    stages = tuple(dict.fromkeys(every if config.stages is None else config.stages))
    for name in ("epochs", "batch_size", "optim_lr"):
        per_stage(getattr(config, name), name, len(model.unets))
    for stage, unet in zip(model.imagen.stages[1:], model.unets[1:], strict=True):
        if min(config.crop_side or stage.side, stage.side) % unet.side_multiple:
            raise ValueError(
                f"`crop_side` is {config.crop_side}, the U-Net for {stage.side} pixels needs a "
                f"multiple of {unet.side_multiple}"
            )
    if wrong := [stage for stage in stages if stage >= len(model.unets)]:
        raise ValueError(
            f"`stages` is {wrong[0]}, the stages of this model are 0 to {len(model.unets) - 1}"
        )
    check_tracker(config.log_with)
    if old is not None and config.training_directory is not None:
        check_writable(old.path, "training_directory")
    else:
        check_writable(config.output_directory, "output_directory")
    before = None if old is None else old.load_sources()
    threads = config.threads or torch.get_num_threads()
    side_by_side = device.type == "cpu" and threads > 1 and len(stages) > 1 and not launched()
    return Plan(
        config,
        model.imagen,
        model.unets,
        sources,
        device,
        stages,
        side_by_side,
        max(1, threads // len(stages)) if side_by_side else threads,
        _processes() if before is None else before.processes,
        old,
        results,
        origin or "",
    )


def launched() -> bool:
    """Whether a launcher (accelerate launch, torchrun) has started this as one of its processes."""
    return "LOCAL_RANK" in os.environ


def _processes() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def _read(directory: Path) -> tuple[Architecture, dict[str, Any]]:
    """The model and the settings in a ``parameters`` directory; they must agree."""
    imagen, unets, flags = load_parameters(directory, known=KEPT)
    try:
        values = from_text(TrainConfig, flags)
        config = TrainConfig(**values)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"training_parameters in {directory}: {error}") from None
    said = {
        "timesteps": imagen.timesteps,
        "t5_name": imagen.text_encoder,
        "max_num_words": imagen.max_tokens,
        "img_side_len": imagen.stages[-1].side,
    }
    for name, value in said.items():
        if name in values and getattr(config, name) not in (None, value):
            raise ValueError(
                f"training_parameters in {directory} has `{name}`={to_text(getattr(config, name))},"
                f" but its imagen_params has {value}: they should agree"
            )
    return Architecture(imagen, unets), {name: getattr(config, name) for name in values}


def _results(
    old: TrainingDirectory, model: Architecture, saved: Mapping[str, object]
) -> Mapping[int, Results]:
    """What a training can go on from; nothing of it may be missing, and none of its settings."""
    if lost := [f"`{name}`" for name in KEPT if name not in saved and name not in LATER]:
        raise ValueError(
            f"training_parameters in {old.parameters} lacks {', '.join(lost)}: a training that "
            "goes on should keep all its settings"
        )
    if not old.has_manifest:
        note(f"{old.path} has no manifest, as in older versions: damaged files are not noticed")
    with torch.device("meta"):  # which takes no memory
        imagen = Imagen(*model)
    return old.check_results(imagen)


def _absolute(name: str, value: object) -> object:
    """The value of a setting; one of ``PATHS`` as an absolute path, unless it is another name."""
    if name not in PATHS or not isinstance(value, str) or value in (*WORLDS, *SHORT_NAMES):
        return value
    is_path = name == "cache_directory" or os.path.exists(value)
    return os.path.abspath(value) if value and is_path else value


def _check_resumable(
    asked: TrainConfig, given: Iterable[str], saved: Mapping[str, object], origin: str
) -> None:
    for name in given:
        before = saved.get(name)
        if name not in RESUMABLE and getattr(asked, name) != before:
            raise ValueError(
                f"`{name}` is {to_text(getattr(asked, name))}, but the training of `{origin}` has "
                f"{to_text(before)}: a training that goes on should keep it"
            )


def _architecture(
    config: TrainConfig, model: Architecture, sources: Mapping[str, str], origin: str | None
) -> Architecture:
    """The model, changed as the settings say."""
    imagen, unets = model
    stages = list(imagen.stages)
    if config.timesteps is not None:
        most = config.timesteps
        stages = [replace(stage, steps=min(stage.steps, most)) for stage in stages]
    if config.img_side_len is not None:
        before, multiple = [s.side for s in stages[:-1]][-1:], unets[-1].side_multiple
        if config.img_side_len % multiple or config.img_side_len <= max(before, default=0):
            smaller = f" and above {before[0]}, the stage before" if before else ""
            raise ValueError(
                f"`img_side_len` is {config.img_side_len}, for this model it should be a multiple "
                f"of {multiple}{smaller}"
            )
        stages[-1] = replace(stages[-1], side=config.img_side_len)
    changes = {
        "timesteps": config.timesteps,
        "text_encoder": config.t5_name,
        "max_tokens": config.max_num_words,
    }
    changed = {name: value for name, value in changes.items() if value is not None}
    with naming("t5_name"):
        width = embedding_width(str(changed.get("text_encoder", imagen.text_encoder)))
    if sources["t5_name"] == "given" or origin is None:
        unets = tuple(replace(unet, text_dim=width) for unet in unets)
    elif wrong := [unet.text_dim for unet in unets if unet.text_dim != width]:
        raise ValueError(
            f"`{origin}`: text_dim of a U-Net is {wrong[0]}, it should be {width}, the width of "
            f"{imagen.text_encoder}"
        )
    return Architecture(replace(imagen, stages=tuple(stages), **changed), unets)  # type: ignore[arg-type]
