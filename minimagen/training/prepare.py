"""``prepare``: all that a training asks for is found, read and checked, before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from minimagen.data import make_dataset
from minimagen.imagen import Imagen
from minimagen.text import EmbeddingCache, load_text_encoder
from minimagen.training.config import Architecture, TrainConfig, choose_device, flag_name
from minimagen.training.directory import TrainingDirectory
from minimagen.training.loop import mix
from minimagen.training.resolve import architecture


@dataclass
class Prepared:
    """A training that can begin: all that was asked for has been found and fits."""

    config: TrainConfig  # with nothing left open but what is measured
    model: Architecture
    device: torch.device
    datasets: Sequence[Dataset[dict[str, object]]]  # one per stage, at its own side
    train: list[int]  # indices into them
    valid: list[int]
    cache: EmbeddingCache  # its encoder loaded, its captions not yet encoded
    old: TrainingDirectory | None  # to go on from
    states: dict[int, dict[str, Any]]  # of its checkpoints, by stage


def prepare(config: TrainConfig) -> Prepared:
    """Check and load what a training needs, and write nothing. Raises ValueError as ``train``."""
    device = choose_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise ValueError("--PRECISION is 'fp16', on the CPU it should be auto, fp32 or bf16")
    for name in ("output_directory", "cache_directory"):
        directory = getattr(config, name)
        nearest = Path(directory or ".").absolute()
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise ValueError(f"{flag_name(name)} is {directory}, but {nearest} is no directory")
    old: TrainingDirectory | None = None
    states: dict[int, dict[str, Any]] = {}
    if config.restart_directory is not None:
        try:
            old = TrainingDirectory.open(config.restart_directory)
        except ValueError as error:
            raise ValueError(f"--RESTART_DIRECTORY: {error}") from None
    model = architecture(config)
    stages = len(model.unets)
    for name in ("epochs", "batch_size", "optim_lr"):
        config.per_stage(name, stages)
    try:
        encoder = load_text_encoder(model.imagen.text_encoder, model.imagen.max_tokens)
    except ValueError as error:
        raise ValueError(f"--T5_NAME: {error}") from None
    saved_name = architecture(replace(config, t5_name=None)).imagen.text_encoder
    if model.imagen.text_encoder != saved_name:
        unets = tuple(replace(unet, text_dim=encoder.dim) for unet in model.unets)
        model = model._replace(unets=unets)
    elif any(unet.text_dim != encoder.dim for unet in model.unets):
        where = "--RESTART_DIRECTORY" if old else "--PARAMETERS"
        raise ValueError(
            f"{where}: text_dim of the U-Nets is {model.unets[0].text_dim}, it should be "
            f"{encoder.dim}, the width of {model.imagen.text_encoder}"
        )
    try:
        with torch.device("meta"):
            imagen = Imagen(model.imagen, model.unets)
        if old is not None:
            states = _check_checkpoints(old, imagen)
    except ValueError as error:
        where = "--RESTART_DIRECTORY" if old else "--PARAMETERS"
        raise ValueError(f"{where}: {error}") from None
    datasets, made = [], {}
    for stage in model.imagen.stages:
        if stage.side not in made:
            try:
                made[stage.side] = make_dataset(
                    config.dataset,
                    stage.side,
                    config.num_images,
                    config.seed,
                    image_column=config.image_column,
                    caption_column=config.caption_column,
                )
            except ValueError as error:
                raise ValueError(f"--DATASET: {error}") from None
        datasets.append(made[stage.side])
    train_indices, valid_indices = _split(config, len(datasets[0]))
    config = replace(
        config,
        img_side_len=model.imagen.stages[-1].side,
        t5_name=model.imagen.text_encoder,
        max_num_words=model.imagen.max_tokens,
        timesteps=model.imagen.timesteps,
        num_images=len(datasets[0]),
    )
    kept = None if config.cache_directory is None else Path(config.cache_directory)
    cache = EmbeddingCache(encoder, kept)
    return Prepared(
        config, model, device, datasets, train_indices, valid_indices, cache, old, states
    )


def _check_checkpoints(old: TrainingDirectory, imagen: Imagen) -> dict[int, dict[str, Any]]:
    """The states in a training's checkpoints, by stage; a stage without one has yet to begin.

    The tensors, of which there are many, are left for when they are needed. Raises ValueError when
    there is no checkpoint, or one is broken or does not fit the model.
    """
    states: dict[int, dict[str, Any]] = {}
    for index, stage in enumerate(imagen.stages):
        path = old.checkpoint(index)
        if not path.is_file():
            continue
        tensors, states[index] = old.load_checkpoint(index)
        missing = {"stage", "epoch", "batch", "step", "best", "precision"} - set(states[index])
        if missing:
            raise ValueError(
                f"{path} is no checkpoint of ours: it has no {', '.join(sorted(missing))}"
            )
        if states[index]["stage"] != index:
            raise ValueError(f"{path} is of stage {states[index]['stage']}, not {index}")
        due = {f"model.{name}": value.shape for name, value in stage.state_dict().items()}
        found = {k: v.shape for k, v in tensors.items() if k.startswith("model.")}
        for name in sorted(due.keys() ^ found.keys()) or sorted(due):
            if due.get(name) != found.get(name):
                raise ValueError(
                    f"{path} does not fit the model of parameters/: {name} is "
                    f"{found.get(name)}, it should be {due.get(name)}"
                )
    if not states:
        raise ValueError(f"{old.path} has no checkpoint tmp/{old.checkpoint(0).name}")
    return states


def _split(config: TrainConfig, length: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on, drawn by the seed."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(mix(config.seed)))
    count = round(length * config.train_valid_frac)
    if not 0 < count < length:
        raise ValueError(
            f"--TRAIN_VALID_FRAC is {config.train_valid_frac}, of {length} pictures that leaves "
            f"{count} to train and {length - count} to validate on: both should have some"
        )
    return order[:count].tolist(), order[count:][: config.valid_num].tolist()
