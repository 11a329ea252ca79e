"""The work of ``inference.py``: load, draw, write."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minimagen.files import check_writable
from minimagen.generation.captions import read_captions, unknown_words
from minimagen.generation.config import GenerationConfig
from minimagen.generation.draw import finished, states
from minimagen.generation.files import Frames, write
from minimagen.generation.load import load
from minimagen.notes import Note, note

MOST_IMAGES = 100_000  # of one call


class Generated(NamedTuple):
    """The result of ``generate``: image i shows caption i."""

    directory: Path  # generated_images_<TIMESTAMP>
    images: Tensor  # those of the last stage, (N, 3, side, side) in [-1, 1]
    captions: list[str]
    known: frozenset[str] | None  # words that the model was trained on; None: not known


def generate(config: GenerationConfig, progress: str | None = None) -> Generated:
    """Draw captions with a trained cascade, and write the images.

    progress: name of a progress bar, shown on terminals only; None: no bar

    The directory is made when the first images are finished, and each batch of images is written
    as soon as it is finished, see ``write``. Warns once, before anything is drawn, about words that
    the model was not trained on, and about what the text encoder cannot read of the captions.
    Raises ValueError, with a one-line message, as ``load``, ``read_captions`` and ``draw`` do.
    """
    captions = read_captions(config.captions)
    if len(captions) * config.images_per_caption > MOST_IMAGES:
        raise ValueError(
            f"`images_per_caption` is {config.images_per_caption}, times {len(captions)} captions: "
            f"it should be at most {MOST_IMAGES:,} images in all"
        )
    check_writable(config.output_directory, "output_directory")
    imagen, encoder, precision, source = load(config)
    known = source.load_words()
    for text in (unknown_words(captions, known), encoder.unread(captions)):
        if text:
            note(text)
    captions = [text for text in captions for _ in range(config.images_per_caption)]
    seeds = range(config.seed, config.seed + len(captions))

    def encode(batch: Sequence[str]) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Note)  # captions cut off: told above
            return encoder.encode(batch)

    drawn = states(imagen, encode, captions, seeds, config.batch_size, precision, progress)
    frames = None
    if config.animation:
        frames = Frames(imagen.config, len(captions))
        drawn = frames.record(drawn)
    images: list[Tensor] = []

    def batches() -> Iterator[list[Tensor]]:
        for stages in finished(drawn):
            images.append(stages[-1])
            yield stages if config.all_stages else stages[-1:]

    directory = write(batches(), captions, source.path, config.output_directory, frames)
    return Generated(directory, torch.cat(images), captions, known)
