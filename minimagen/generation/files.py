"""Files of images: single images, a contact sheet, and an animation (GIF) from noise to image."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from minimagen.files import atomic_write, timestamped_directory
from minimagen.generation.draw import State
from minimagen.generation.letters import Letters
from minimagen.imagen import ImagenConfig
from minimagen.notes import note

SHEET_IMAGES = 100  # maximum number of images on a contact sheet and in an animation
LETTERS_NAMED = 20  # maximum number of letters in a note
MARGIN = 12  # pixels between the images of a sheet
FRAMES = 60  # maximum number of frames of an animation
FRAME_SIDE = 128  # approximate side of an image in an animation
FRAME_MS, LAST_MS = 80, 2000  # how long a frame is shown, and the last one


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8: -1 becomes 0, 1 becomes 255, values outside are clipped.

    Any shape; the result has the same shape.
    """
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_image(image: Tensor) -> Image.Image:
    """An image (3, H, W), in [-1, 1] or uint8, as a Pillow image."""
    pixels = image if image.dtype == torch.uint8 else to_bytes(image)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())  # (H, W, 3)


# --- sheets of images -----------------------------------------------------------------------------


class _Sheet:
    """A grid of images, ``side`` pixels each, with their captions below."""

    def __init__(self, captions: Sequence[str], side: int, font_size: int) -> None:
        letters = Letters(font_size)
        texts = [letters.wrap(caption, side) for caption in captions]
        if letters.missing:
            named = [letter for letter in letters.missing if letter.isprintable()]
            some = " ".join(named[:LETTERS_NAMED])
            note(
                f"no font on this machine has these letters of the captions: {some}; pictures show "
                "their code points instead (pip install manimgx-fonts manimgx-fonts-cjk has fonts)"
            )
        number = len(captions)
        columns = min(number, max(4, math.ceil(math.sqrt(number))), 10)
        width = side + MARGIN
        height = side + MARGIN + 4 + letters.line_height * max(len(text) for text in texts)
        size = (columns * width + MARGIN, math.ceil(number / columns) * height + MARGIN)
        self.side = side
        self.places = [
            (MARGIN + i % columns * width, MARGIN + i // columns * height) for i in range(number)
        ]
        self.blank = Image.new("RGB", size, "white")
        pen = ImageDraw.Draw(self.blank)
        for (x, y), text in zip(self.places, texts, strict=True):
            pen.rectangle((x - 1, y - 1, x + side, y + side), outline="lightgrey")
            for n, line in enumerate(text):
                letters.write(pen, (x, y + side + 4 + n * letters.line_height), line)

    def show(self, images: Tensor) -> Image.Image:
        """The sheet with these images, (N, 3, H, W) in [-1, 1] or uint8."""
        sheet = self.blank.copy()
        enlarge = images.shape[-1] <= self.side
        how = Image.Resampling.NEAREST if enlarge else Image.Resampling.BICUBIC
        for place, image in zip(self.places, images, strict=True):
            sheet.paste(to_image(image).resize((self.side, self.side), how), place)
        return sheet


def _multiple(side: int, about: int) -> int:
    """The multiple of ``side`` nearest to ``about``, so that all pixels are enlarged equally."""
    return side * max(1, round(about / side))


def contact_sheet(images: Tensor, captions: Sequence[str]) -> Image.Image:
    """All images at a glance, with their captions below them; at most ``SHEET_IMAGES``.

    images: (N, 3, H, W) in [-1, 1]. Small images are enlarged without smoothing, so that each pixel
    is visible.
    """
    side = images.shape[-1]
    shown = _multiple(side, 192) if side < 256 else 256
    return _Sheet(captions[:SHEET_IMAGES], shown, 15).show(images[:SHEET_IMAGES])


# --- images forming out of noise ------------------------------------------------------------------


class Frames:
    """States of the first images while they are drawn: as bytes, at most ``FRAMES`` states.

    config: of the cascade; number: of images, of which at most ``SHEET_IMAGES`` are kept
    """

    def __init__(self, config: ImagenConfig, number: int) -> None:
        self.number = min(number, SHEET_IMAGES)
        steps = sum(stage.steps for stage in config.stages)
        self._kept = torch.linspace(0, steps - 1, min(steps, FRAMES)).round().int().tolist()
        self._parts: list[list[Tensor]] = [[] for _ in self._kept]

    def record(self, drawn: Iterable[State]) -> Iterator[State]:
        """Pass on the states of ``generation.states``, and keep some of them."""
        batch, step = 0, 0
        for state in drawn:
            if state.first != batch:
                batch, step = state.first, 0
            if step in self._kept and batch < self.number:
                images = to_bytes(state.images[: self.number - batch].float()).cpu()
                stride = max(1, images.shape[-1] // FRAME_SIDE)  # large images need much memory
                self._parts[self._kept.index(step)].append(images[..., ::stride, ::stride].clone())
            step += 1
            yield state

    def __iter__(self) -> Iterator[Tensor]:
        """The frames from noise to image, each (N, 3, side, side) uint8."""
        return (torch.cat(parts) for parts in self._parts)


def animation(path: Path | str, frames: Iterable[Tensor], captions: Sequence[str]) -> None:
    """Write a GIF of images forming out of noise, with captions below them; it plays in a loop.

    frames: each (N, 3, side, side) uint8, of N captions; the side may grow
    """
    frames = list(frames)
    sheet = _Sheet(captions[: len(frames[0])], _multiple(frames[-1].shape[-1], FRAME_SIDE), 13)
    palette = _palette(sheet.show(frames[-1]), sheet.show(frames[len(frames) // 2]))
    first, *rest = (
        sheet.show(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames
    )
    times = [FRAME_MS] * len(rest) + [LAST_MS]

    def save(aside: Path) -> None:
        first.save(
            aside, "GIF", save_all=True, append_images=rest, duration=times, loop=0, optimize=True
        )

    atomic_write(Path(path), save)


def _palette(last: Image.Image, noisy: Image.Image) -> Image.Image:
    """Colours for all frames, most of them from the last frame; white is exact.

    With one palette for all frames, a GIF stores only the pixels that change between frames.
    """
    colours = [255, 255, 255]
    colours += _colours(last, 39, Image.Quantize.MAXCOVERAGE)
    colours += _colours(noisy, 24, Image.Quantize.MEDIANCUT)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    return palette


def _colours(image: Image.Image, number: int, method: Image.Quantize) -> list[int]:
    return (image.quantize(number, method, kmeans=3).getpalette() or [])[: 3 * number]


# --- directories of images ------------------------------------------------------------------------


def write(
    batches: Iterable[Sequence[Tensor]],
    captions: Sequence[str],
    source: Path,
    output: Path | str = ".",
    frames: Frames | None = None,
) -> Path:
    """Write images to ``output/generated_images_<TIMESTAMP>``, and return that path.

    batches: of images, each (B, 3, side, side) for each stage; written as soon as they come

    generated_images/image_<i>.png      the last stage's image of caption i
    stage_<k>/image_<i>.png             the images of an earlier stage k, if given
    captions.txt                        caption i in line i, from 0
    contact_sheet.png                   all images with their captions
    animation.gif                       the images forming out of noise, if frames are given
    imagen_training_directory.txt       ``source``, the training directory

    The directory is made with the first batch. After an error, or Ctrl-C, it keeps the images that
    are finished, and a note says how many; each file is whole.
    """
    directory, done = None, 0
    shown: list[Tensor] = []
    try:
        for stages in batches:
            if directory is None:
                directory = timestamped_directory(output, "generated_images")
                _write_lines(directory / "captions.txt", captions)
                _write_lines(directory / "imagen_training_directory.txt", [str(source)])
            names = [f"stage_{k}" for k in range(len(stages) - 1)] + ["generated_images"]
            for name, images in zip(names, stages, strict=True):
                (directory / name).mkdir(exist_ok=True)
                for i, image in enumerate(images, done):
                    _save(to_image(image), directory / name / f"image_{i}.png")
            if done < SHEET_IMAGES:
                shown.append(stages[-1])
            done += len(stages[-1])
        if directory is None:
            raise ValueError("there are no images to write, there should be at least one")
        _save(contact_sheet(torch.cat(shown), captions), directory / "contact_sheet.png")
        if frames is not None:
            animation(directory / "animation.gif", frames, captions)
    except BaseException:  # full disk, Ctrl-C
        if directory is not None:
            whole = len(list((directory / "generated_images").glob("image_*.png")))
            if whole:
                note(f"{whole} of {len(captions)} images are finished, they are in {directory}")
            else:
                shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory


def _save(image: Image.Image, path: Path) -> None:
    atomic_write(path, lambda aside: image.save(aside, "PNG"))


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    atomic_write(path, lambda aside: aside.write_text(text, encoding="utf-8"))
