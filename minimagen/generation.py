"""From a trained cascade to picture files: load it, draw captions, write what came out.

    imagen = load_imagen("training_20261122_120000", guidance_weight=3.0)
    encode = EmbeddingCache(load_text_encoder(imagen.config.text_encoder))
    pictures = draw(imagen, encode, ["a red circle"], seeds=[0])[-1]  # (1, 3, side, side)

``generate`` does all of it and leaves a directory ``generated_images_<TIMESTAMP>``.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minimagen.evaluation import Fidelity, caption_fidelity
from minimagen.imagen import Imagen, ImagenConfig
from minimagen.samplers import SAMPLERS
from minimagen.text import EmbeddingCache, load_text_encoder
from minimagen.training.config import PRECISIONS, choose_device, flag, flag_name
from minimagen.training.directory import TrainingDirectory, timestamped_directory

CAPTIONS = Path(__file__).parents[1] / "captions.txt"  # drawn when none are given
SHEET_PICTURES = 100  # most pictures on a contact sheet


@dataclass(frozen=True)
class GenerationConfig:
    """Every flag of ``inference.py``, with its value. A field ``batch_size`` is --BATCH_SIZE.

    A tuple has one value for all stages, or one per stage. None is the word "none" in text.
    Raises ValueError, naming the flag, for a value out of range.
    """

    training_directory: str | None = flag(
        None, "pictures", "training directory with the model, or the name of a shipped one", "d"
    )
    captions: str | None = flag(
        None, "pictures", "a caption, or a path to a .txt with one per line (captions.txt)", "c"
    )
    images_per_caption: int = flag(1, "pictures", "pictures of each caption")
    seed: int = flag(0, "pictures", "picture i is drawn from seed + i")
    guidance_weight: tuple[float, ...] | None = flag(
        None, "sampling", "how far to go where the caption points, 1 is off (the model's)"
    )
    sampler: tuple[str, ...] | None = flag(None, "sampling", f"{', '.join(SAMPLERS)} (the model's)")
    sampling_steps: tuple[int, ...] | None = flag(
        None, "sampling", "steps from noise to picture (the model's)"
    )
    aug_level: tuple[float, ...] | None = flag(
        None, "sampling", "noise on the small picture before it is enlarged, 0 to 1 (the model's)"
    )
    batch_size: int = flag(16, "run", "pictures drawn at a time")
    device: str = flag("auto", "run", "auto, cpu, cuda or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto", "run", "fp32, bf16, fp16, or auto: bf16 on CUDA where it can, else fp32"
    )
    threads: int | None = flag(None, "run", "CPU threads (torch's choice)")
    output_directory: str = flag(".", "run", "where generated_images_<TIMESTAMP>/ is made")
    all_stages: bool = flag(False, "run", "also write what the earlier stages drew")

    def __post_init__(self) -> None:
        ranges = {
            "images_per_caption": (1, math.inf),
            "seed": (0, 2**62),
            "guidance_weight": (-1e6, 1e6),
            "sampling_steps": (1, math.inf),
            "aug_level": (0, 1),
            "batch_size": (1, math.inf),
            "threads": (1, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and not low <= one <= high:
                    due = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                    raise ValueError(f"{flag_name(name)} is {one}, it should be {due}")
        for name, allowed in (("sampler", tuple(SAMPLERS)), ("precision", PRECISIONS)):
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and one not in allowed:
                    raise ValueError(
                        f"{flag_name(name)} is {one!r}, it should be one of {', '.join(allowed)}"
                    )


# --- what to draw ---------------------------------------------------------------------------------


def read_captions(value: str | None) -> list[str]:
    """The captions that --CAPTIONS speaks of: one, or the lines of a .txt file (UTF-8).

    Empty lines are skipped. None reads captions.txt beside the scripts. Raises ValueError, naming
    the flag, when there is no such file, it cannot be read, or holds no caption.
    """
    value = str(CAPTIONS) if value is None else value
    if value.lower().endswith(".txt"):
        try:
            lines = Path(value).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ValueError(
                f"--CAPTIONS is {value!r}, it should be a text file with one caption per line: "
                f"{reason}"
            ) from None
    elif os.path.exists(value):  # unlike Path.exists, also for a caption too long for a name
        raise ValueError(f"--CAPTIONS is the path {value!r}, a file of captions should be a .txt")
    else:
        lines = [value]
    captions = [" ".join(line.split()) for line in lines]
    captions = [caption for caption in captions if caption]
    if not captions:
        raise ValueError(f"--CAPTIONS is {value!r}, where there is no caption but only blanks")
    return captions


# --- who draws ------------------------------------------------------------------------------------


def with_sampling(
    config: ImagenConfig,
    guidance_weight: Sequence[float] | None = None,
    sampler: Sequence[str] | None = None,
    sampling_steps: Sequence[int] | None = None,
    aug_level: Sequence[float] | None = None,
) -> ImagenConfig:
    """A cascade's configuration with other settings for sampling.

    Each is None (no change), or has one value for all stages or one per stage. Raises ValueError,
    naming the flag, when there are too few or too many, or a stage cannot have that value.
    """
    settings = {
        "guidance_weight": ("guidance_weight", guidance_weight),
        "sampler": ("sampler", sampler),
        "sampling_steps": ("steps", sampling_steps),
        "aug_level": ("aug_level", aug_level),
    }
    for name, (key, values) in settings.items():
        if values is None:
            continue
        number = len(config.stages)
        if len(values) not in (1, number):
            raise ValueError(
                f"{flag_name(name)} has {len(values)} values, for {number} stages it should have "
                f"1 or {number}"
            )
        pairs = zip(config.stages, list(values) * (number // len(values)), strict=True)
        try:
            stages = tuple(replace(stage, **{key: value}) for stage, value in pairs)
            config = replace(config, stages=stages)
        except ValueError as error:
            raise ValueError(f"{flag_name(name)}: {error}") from None
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

    directory: a training directory, or its path; for the settings of sampling see ``with_sampling``

    Raises ValueError, in one line, when the directory, its configuration or its weights are missing
    or broken, or the settings do not fit.
    """
    if not isinstance(directory, TrainingDirectory):
        directory = TrainingDirectory.open(directory)
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
    """The same cascade before it learned anything: random weights, same device, same sampling."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Imagen(imagen.config, [stage.unet.config for stage in imagen.stages])
    return fresh.eval().to(next(imagen.parameters()).device)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What --PRECISION means on a device: a type for autocast, or None for float32.

    Raises ValueError, naming the flag, for fp16 on the CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("--PRECISION is fp16, on the CPU it should be fp32 or bf16")
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if bf16 else "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


# --- drawing --------------------------------------------------------------------------------------


def draw(
    imagen: Imagen,
    encode: EmbeddingCache,
    captions: Sequence[str],
    seeds: Sequence[int],
    batch_size: int = 16,
    dtype: torch.dtype | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Tensor]:
    """Pictures of captions, (N, 3, side, side) in [-1, 1] on the CPU, one entry for each stage.

    imagen:     where it is, the pictures are computed
    encode:     gives the captions' embeddings, on that same device
    seeds:      one for each caption; a picture depends on its own caption and seed alone
    batch_size: pictures drawn at a time; changes nothing but speed and memory
    dtype:      of the U-Nets' products (autocast), None for float32
    progress:   told after each step of a sampler how many pictures it was worth

    Raises ValueError when a picture is not finite, as of broken weights.
    """
    total_steps = sum(stage.steps for stage in imagen.config.stages)
    drawn: list[list[Tensor]] = []
    for start in range(0, len(captions), batch_size):
        batch = slice(start, start + batch_size)
        text, mask = encode(captions[batch])
        share = len(text) / total_steps
        autocast = contextlib.nullcontext()
        if dtype is not None:
            autocast = torch.autocast(text.device.type, dtype)
        on_step = None if progress is None else lambda stage, step, n=share: progress(n)
        with autocast:
            pictures = imagen.sample(text, mask, seeds[batch], on_step=on_step)
        drawn.append([part.float().cpu() for part in pictures])
    stages = [torch.cat(parts) for parts in zip(*drawn, strict=True)]
    if not all(part.isfinite().all() for part in stages):
        raise ValueError("the pictures hold values that are not finite, the weights are no good")
    return stages


def fidelity(pictures: Tensor, captions: Sequence[str]) -> Fidelity | None:
    """Caption fidelity of pictures of the shapes world; None when a caption speaks of others."""
    try:
        return caption_fidelity(pictures, captions)
    except ValueError:
        return None


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [-1, 1] as bytes: -1 is 0, 1 is 255, whatever else the picture holds.

    Nothing is stretched: a grey picture stays grey.
    """
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())  # (H, W, 3)


def contact_sheet(pictures: Tensor, captions: Sequence[str]) -> Image.Image:
    """All pictures at one sight, their captions below them; at most ``SHEET_PICTURES``.

    pictures: (N, 3, H, W) in [-1, 1]. Small ones are enlarged without smoothing, so that each pixel
    is seen.
    """
    pictures, captions = pictures[:SHEET_PICTURES], list(captions)[:SHEET_PICTURES]
    side = pictures.shape[-1]
    shown = side * max(1, round(192 / side)) if side < 256 else 256
    font = ImageFont.load_default(15)
    line_height, margin = 19, 12
    texts = [_wrap(caption, font, shown) for caption in captions]
    columns = min(len(pictures), max(4, math.ceil(math.sqrt(len(pictures)))), 10)
    rows = math.ceil(len(pictures) / columns)
    width = shown + margin
    height = shown + margin + 4 + line_height * max(len(text) for text in texts)
    sheet = Image.new("RGB", (columns * width + margin, rows * height + margin), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        x, y = margin + i % columns * width, margin + i // columns * height
        enlarge = Image.Resampling.NEAREST if shown >= side else Image.Resampling.BICUBIC
        sheet.paste(to_image(picture).resize((shown, shown), enlarge), (x, y))
        pen.rectangle((x - 1, y - 1, x + shown, y + shown), outline="lightgrey")  # of white ones
        for n, line in enumerate(text):
            pen.text((x, y + shown + 4 + n * line_height), line, "black", font)
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 5) -> list[str]:
    """Text in lines of at most ``width`` pixels; what does not fit ``most`` lines becomes dots."""
    lines = [""]
    for word in text.split():
        while font.getlength(word) > width:  # a word longer than a line
            fits = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width)
            lines += [word[:fits]]
            word = word[fits:]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [line for line in lines if line]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][:-1] + "…"]
    return lines


class Loaded(NamedTuple):
    """What draws, as a configuration asks for it."""

    imagen: Imagen
    encode: EmbeddingCache
    dtype: torch.dtype | None  # for autocast
    source: Path  # the training directory


def load(config: GenerationConfig) -> Loaded:
    """The model and its text encoder, on the device, with the settings of a configuration.

    Raises ValueError, in one line, as ``load_imagen`` and ``load_text_encoder`` do.
    """
    if config.training_directory is None:
        raise ValueError("--TRAINING_DIRECTORY is missing, it should be a training_<TIMESTAMP>/")
    device = choose_device(config.device)
    dtype = autocast_dtype(config.precision, device)
    try:
        source = TrainingDirectory.open(config.training_directory)
    except ValueError as error:
        raise ValueError(f"--TRAINING_DIRECTORY: {error}") from None
    imagen = load_imagen(
        source,
        device,
        guidance_weight=config.guidance_weight,
        sampler=config.sampler,
        sampling_steps=config.sampling_steps,
        aug_level=config.aug_level,
    )
    encoder = load_text_encoder(imagen.config.text_encoder, imagen.config.max_tokens).to(device)
    return Loaded(imagen, EmbeddingCache(encoder), dtype, source.path)


class Generated(NamedTuple):
    """What ``generate`` made: picture i shows caption i."""

    directory: Path  # generated_images_<TIMESTAMP>
    pictures: Tensor  # of the last stage, (N, 3, side, side) in [-1, 1]
    captions: list[str]


def generate(
    config: GenerationConfig, progress: Callable[[float, int], None] | None = None
) -> Generated:
    """Draw captions with a trained cascade, and write the pictures: the work of ``inference.py``.

    progress: told after every step how many pictures it was worth, and how many there will be

    The directory is made when all is drawn; an error leaves nothing behind. Raises ValueError, in
    one line, as ``load``, ``read_captions`` and ``draw`` do.
    """
    captions = read_captions(config.captions)
    captions = [text for text in captions for _ in range(config.images_per_caption)]
    imagen, encode, dtype, source = load(config)
    check_output(config.output_directory)
    stages = draw(
        imagen,
        encode,
        captions,
        range(config.seed, config.seed + len(captions)),
        config.batch_size,
        dtype,
        None if progress is None else lambda worth: progress(worth, len(captions)),
    )
    kept = stages if config.all_stages else stages[-1:]
    directory = write(kept, captions, source, config.output_directory)
    return Generated(directory, stages[-1], captions)


def check_output(directory: Path | str) -> None:
    """Raise ValueError, naming --OUTPUT_DIRECTORY, when nothing can be written there."""
    path = Path(directory).absolute()
    there = next(part for part in (path, *path.parents) if part.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(
            f"--OUTPUT_DIRECTORY is {str(directory)!r}, it should be a directory to write to"
        )


def write(
    stages: Sequence[Tensor], captions: Sequence[str], source: Path, output: Path | str = "."
) -> Path:
    """Write pictures to ``output/generated_images_<TIMESTAMP>``, and return that path.

    generated_images/image_<i>.png      the last stage's picture of caption i
    stage_<k>/image_<i>.png             those of stage k before it, where given
    captions.txt                        caption i in line i, from 0
    contact_sheet.png                   all pictures with their captions
    imagen_training_directory.txt       ``source``: who drew them
    """
    directory = timestamped_directory(output, "generated_images")
    names = [f"stage_{k}" for k in range(len(stages) - 1)] + ["generated_images"]
    texts = {"captions.txt": captions, "imagen_training_directory.txt": [str(source)]}
    try:
        for name, pictures in zip(names, stages, strict=True):
            (directory / name).mkdir()
            for i, picture in enumerate(pictures):
                to_image(picture).save(directory / name / f"image_{i}.png")
        for name, lines in texts.items():
            text = "".join(f"{line}\n" for line in lines)
            (directory / name).write_text(text, encoding="utf-8")
        contact_sheet(stages[-1], captions).save(directory / "contact_sheet.png")
    except BaseException:  # a full disk, Ctrl-C: no half of a directory
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory
