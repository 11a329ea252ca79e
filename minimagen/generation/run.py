"""The work of ``inference.py``: load, draw, write."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from minimagen.generation.captions import read_captions, unknown_words
from minimagen.generation.config import GenerationConfig
from minimagen.generation.draw import finish, states
from minimagen.generation.files import Frames, write
from minimagen.generation.load import load
from minimagen.run_directory import check_writable


class Generated(NamedTuple):
    """The result of ``generate``: image i shows caption i."""

    directory: Path  # generated_images_<TIMESTAMP>
    images: Tensor  # those of the last stage, (N, 3, side, side) in [-1, 1]
    captions: list[str]
    known: frozenset[str] | None  # words that the model was trained on; None: not known


def generate(config: GenerationConfig, progress: str | None = None) -> Generated:
    """Draw captions with a trained cascade, and write the images.

    progress: name of a progress bar, shown on terminals only; None: no bar

    The directory is made after all images are drawn, so that an error leaves nothing behind. Warns
    once about words that the model was not trained on. Raises ValueError, with a one-line message,
    as ``load``, ``read_captions`` and ``draw`` do.
    """
    captions = read_captions(config.captions)
    imagen, encode, precision, source = load(config)
    check_writable(config.output_directory, "output_directory")
    known = source.load_words()
    if note := unknown_words(captions, known):
        warnings.warn(note, stacklevel=2)
    captions = [text for text in captions for _ in range(config.images_per_caption)]
    seeds = range(config.seed, config.seed + len(captions))
    drawn = states(imagen, encode, captions, seeds, config.batch_size, precision, progress)
    frames = None
    if config.animation:
        frames = Frames(imagen.config, len(captions))
        drawn = frames.record(drawn)
    stages = finish(drawn)
    kept = stages if config.all_stages else stages[-1:]
    directory = write(kept, captions, source.path, config.output_directory, frames)
    return Generated(directory, stages[-1], captions, known)
