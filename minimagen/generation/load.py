"""Load a trained cascade and its text encoder from a training directory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minimagen.devices import Precision, choose_device, choose_precision
from minimagen.generation.config import GenerationConfig
from minimagen.imagen import Imagen, ImagenConfig
from minimagen.run_directory import TrainingDirectory
from minimagen.settings import per_stage
from minimagen.text import T5Encoder, load_text_encoder


def with_sampling(
    config: ImagenConfig,
    guidance_weight: Sequence[float] | None = None,
    sampler: Sequence[str] | None = None,
    sampling_steps: Sequence[int] | None = None,
    aug_level: Sequence[float] | None = None,
) -> ImagenConfig:
    """A cascade's configuration with other settings for sampling.

    Each is None (no change), one value for all stages, or one value per stage. Raises ValueError,
    naming the setting, for a wrong number of values or a value that is not allowed.
    """
    number = len(config.stages)
    given: dict[str, Sequence[Any] | None] = {
        "guidance_weight": guidance_weight,
        "sampler": sampler,
        "sampling_steps": sampling_steps,
        "aug_level": aug_level,
    }
    for name, values in given.items():
        if values is None:
            continue
        each = per_stage(values, name, number)
        if name == "sampling_steps" and max(values) > config.timesteps:
            raise ValueError(
                f"`{name}` is {max(values)}, it should be at most the model's timesteps, "
                f"{config.timesteps}"
            )
        key = "steps" if name == "sampling_steps" else name
        pairs = zip(config.stages, each, strict=True)
        try:
            stages = tuple(replace(stage, **{key: value}) for stage, value in pairs)
        except ValueError as error:
            raise ValueError(str(error).replace(f"`{key}`", f"`{name}`")) from None
        config = replace(config, stages=stages)
    return config


def load_imagen(
    directory: TrainingDirectory | Path | str,
    device: torch.device | str = "cpu",
    *,
    guidance_weight: Sequence[float] | None = None,
    sampler: Sequence[str] | None = None,
    sampling_steps: Sequence[int] | None = None,
    aug_level: Sequence[float] | None = None,
) -> Imagen:
    """The cascade of a training directory with its best (EMA) weights, in eval mode on ``device``.

    directory: a training directory, its path, the name of a shipped model, or ``owner/name`` of a
    model on the Hugging Face Hub, see ``open_model``; for the settings of sampling see
    ``with_sampling``

    Raises ValueError, with a one-line message, if the directory, its configuration or its weights
    are missing or broken, or if the settings do not fit.
    """
    if not isinstance(directory, TrainingDirectory):
        directory = open_model(directory)
    parameters = directory.load_parameters()
    config = with_sampling(parameters.imagen, guidance_weight, sampler, sampling_steps, aug_level)
    imagen = Imagen(config, parameters.unets)
    for number, stage in enumerate(imagen.stages):
        weights = directory.load_best(number)
        try:
            stage.unet.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[1].strip()
            raise ValueError(
                f"{directory.best(number)} does not fit its unet_{number}_params: {reason}"
            ) from None
    return imagen.eval().to(device)


def untrained(imagen: Imagen, seed: int = 0) -> Imagen:
    """The same cascade before training: random weights, same device, same sampling."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Imagen(imagen.config, [stage.unet.config for stage in imagen.stages])
    return fresh.eval().to(next(imagen.parameters()).device)


def one_evaluation(imagen: Imagen) -> Imagen:
    """The same cascade, sampled with one evaluation of each stage and without guidance.

    Each stage then draws what it expects from pure noise, which is the mean of all images that fit:
    a plain regression. What it can do does not need diffusion.
    """
    config = with_sampling(imagen.config, guidance_weight=(1.0,), sampling_steps=(1,))
    with torch.random.fork_rng(devices=[]):  # the weights that it begins with are not used
        other = Imagen(config, [stage.unet.config for stage in imagen.stages])
    other.load_state_dict(imagen.state_dict())
    return other.eval().to(next(imagen.parameters()).device)


DRAWN_WITH = ["parameters/*", "state_dicts/*.safetensors", "manifest/*.json"]


def open_model(name: Path | str) -> TrainingDirectory:
    """The training directory at a path, of a shipped model, or of the Hub's model ``owner/name``.

    What exists here wins. A model of the Hub is downloaded once, and again when it has changed.

    Raises ValueError, with a one-line message, if there is no such model or it is broken, and
    OSError if it cannot be written to the disk.
    """
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return TrainingDirectory.open(name)
    from huggingface_hub import snapshot_download  # only here: takes a while
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    problem = f"there is no directory {name}"
    try:
        return TrainingDirectory.open(snapshot_download(str(name), allow_patterns=DRAWN_WITH))
    except RepositoryNotFoundError:
        raise ValueError(
            f"{problem}, and no such model on the Hub, or it is private: run `hf auth login`"
        ) from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{problem}, and the Hub does not answer: download it once with `hf download {name}`"
        ) from None
    except ValueError as error:
        raise ValueError(f"the model {name} of the Hub: {error}") from None


class Loaded(NamedTuple):
    """A model that is ready to draw."""

    imagen: Imagen
    encoder: T5Encoder  # on the same device
    precision: str  # "fp32", "bf16" or "fp16"
    source: TrainingDirectory


def load(config: GenerationConfig) -> Loaded:
    """The model and its text encoder, on the device, with the settings of a configuration.

    Raises ValueError, with a one-line message, as ``load_imagen`` and ``load_text_encoder`` do.
    """
    if not config.training_directory:
        raise ValueError("`training_directory` is missing, it should be a training_<TIMESTAMP>/")
    device = choose_device(config.device)
    precision = _precision(config.precision, device)
    try:
        source = open_model(config.training_directory)
    except ValueError as error:
        raise ValueError(f"`training_directory`: {error}") from None
    imagen = load_imagen(
        source,
        device,
        guidance_weight=config.guidance_weight,
        sampler=config.sampler,
        sampling_steps=config.sampling_steps,
        aug_level=config.aug_level,
    )
    encoder = _load_encoder(config.t5_name, source, imagen).to(device)
    return Loaded(imagen, encoder, precision, source)


def _load_encoder(given: str | None, source: TrainingDirectory, imagen: Imagen) -> T5Encoder:
    """The text encoder that the model was trained with, which ``given`` may say where to find."""
    trained, sources = imagen.config.text_encoder, source.load_sources()
    hint = "if it is elsewhere now, say where with `t5_name`"
    try:
        name = trained if given is None else given
        encoder = load_text_encoder(name, imagen.config.max_tokens)
    except ValueError as error:
        reason = f"{error}; {hint}" if given is None else f"`t5_name`: {error}"
        raise ValueError(reason) from None
    width = imagen.stages[0].unet.config.text_dim
    fits = encoder.dim == width
    if sources is not None:
        fits = encoder.fingerprint() == sources.text_fingerprint
    if not fits:
        raise ValueError(
            f"`t5_name`: text encoder {name!r} is not the one that the model was "
            f"trained with, which was {trained!r}: its weights or its words differ; {hint}"
        )
    return encoder


def _precision(name: Precision, device: torch.device) -> str:
    """Like ``choose_precision``, but "auto" takes bf16 on CUDA only; a CPU draws in fp32."""
    if name == "auto" and device.type != "cuda":
        return "fp32"
    return choose_precision(name, device)
