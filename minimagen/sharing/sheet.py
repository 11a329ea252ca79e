"""samples.png: the same captions with the same seeds, drawn again as a training learns."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from minimagen.files import atomic_write
from minimagen.generation import draw, to_image
from minimagen.generation.letters import Letters
from minimagen.imagen import Imagen
from minimagen.run_directory import CheckpointState, TrainingDirectory
from minimagen.training.report import Running

SAMPLES = 8  # captions; image i has the seed of the training + i
SIDE = 128  # approximate side of an image on the sheet
MARGIN, LABEL, HEAD = 8, 130, 70  # pixels: between images, for the labels, for the captions
ATTEMPTS = 3  # to read a checkpoint that is being replaced


def add_samples(running: Running) -> None:
    """Draw a row with the newest averaged weights, and add it to samples.png.

    It has the images of the last stage of those from the base on that have a checkpoint. There is
    no new row without the base, or if there is one of these weights. This changes nothing of the
    training: it reads checkpoints alone.

    Raises ValueError if a checkpoint cannot be read or an image is not finite, and OSError if the
    file cannot be written.
    """
    plan, directory = running.plan, running.directory
    found = [_newest(directory, index) for index in range(len(plan.unets))]
    ready = found.index(None) if None in found else len(found)  # stages from the base on
    states = [pair for pair in found[:ready] if pair is not None]
    label = []
    for i, (_, state) in enumerate(states):
        label += [f"stage {i}: epoch {state.epoch},", f"step {state.step}"]
    before = next((d.samples for d in (directory, plan.old) if d and d.samples.exists()), None)
    if not states or (before is not None and label in _open(before)[1]):
        return
    config = replace(plan.imagen, stages=plan.imagen.stages[:ready])
    with torch.random.fork_rng(devices=[]):  # a new model draws random weights
        imagen = Imagen(config, plan.unets[:ready])
    for stage, (weights, _) in zip(imagen.stages, states, strict=True):
        stage.load_state_dict(weights)
    imagen = imagen.eval().to(plan.device)
    captions = running.captions[:SAMPLES]
    seeds = range(plan.config.seed, plan.config.seed + len(captions))
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)  # no more than a stage, which trains beside this
    try:
        images = draw(imagen, partial(encode, running), captions, seeds)[-1]
    finally:
        torch.set_num_threads(threads)
    add_row(directory.samples, before, label, images, captions, plan.imagen.stages[-1].side)


def encode(running: Running, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings and mask of validation captions, on the device of the training."""
    text, mask = running.encode(captions)
    return text.to(running.plan.device), mask.to(running.plan.device)


def _newest(
    directory: TrainingDirectory, stage: int
) -> tuple[dict[str, Tensor], CheckpointState] | None:
    """The averaged weights in a stage's checkpoint, and its state; None without a checkpoint."""
    for attempt in range(ATTEMPTS):
        if not directory.checkpoint(stage).exists():
            return None
        try:
            tensors, state = directory.load_checkpoint(stage)
        except ValueError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.2)
            continue
        begin = "ema."
        names = [name for name in tensors if name.startswith(begin)]
        return {name.removeprefix(begin): tensors[name] for name in names}, state
    return None


def add_row(
    path: Path,
    before: Path | None,
    label: Sequence[str],
    images: Tensor,
    captions: Sequence[str],
    side: int,
) -> None:
    """Write a sheet to ``path``: that of ``before`` and a row more.

    label:  lines; images: (N, 3, H, W) in [-1, 1], of N captions
    side:   of the finished images, in pixels, which decides how large all are shown
    """
    shown = side * max(1, round(SIDE / side)) if side < 2 * SIDE else SIDE
    sheet, labels = _open(before) if before is not None else (_head(captions, shown), [])
    row = _row(label, images, shown)
    longer = Image.new("RGB", (max(sheet.width, row.width), sheet.height + row.height), "white")
    longer.paste(sheet, (0, 0))
    longer.paste(row, (0, sheet.height))
    about = PngInfo()
    about.add_text("rows", json.dumps([*labels, list(label)]))
    atomic_write(path, partial(longer.save, format="PNG", pnginfo=about))


def _open(path: Path) -> tuple[Image.Image, list[list[str]]]:
    """A sheet and the labels of its rows. Raises ValueError, naming it, if it is broken."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB"), json.loads(image.info.get("rows", "[]"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a sheet of samples: {error}") from None


def _head(captions: Sequence[str], side: int) -> Image.Image:
    """The captions, each above its column."""
    letters = Letters(12)
    head = Image.new("RGB", (LABEL + len(captions) * (side + MARGIN), HEAD), "white")
    for i, caption in enumerate(captions):
        x = LABEL + i * (side + MARGIN)
        for n, line in enumerate(letters.wrap(caption, side, 4)):
            letters.write(ImageDraw.Draw(head), (x, 2 + n * letters.line_height), line)
    return head


def _row(label: Sequence[str], images: Tensor, side: int) -> Image.Image:
    row = Image.new("RGB", (LABEL + len(images) * (side + MARGIN), side + MARGIN), "white")
    font = ImageFont.load_default(13)
    ImageDraw.Draw(row).multiline_text((MARGIN, side // 3), "\n".join(label), "black", font)
    enlarge = images.shape[-1] <= side  # without smoothing, so that each pixel is visible
    how = Image.Resampling.NEAREST if enlarge else Image.Resampling.BICUBIC
    for i, image in enumerate(images):
        row.paste(to_image(image).resize((side, side), how), (LABEL + i * (side + MARGIN), 0))
    return row
