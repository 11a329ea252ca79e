"""Drawing: images of captions, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from minimagen.devices import autocast
from minimagen.imagen import Imagen

# Captions to embeddings (B, N, D) and mask (B, N): T5Encoder.encode, or an EmbeddingCache.
Encode = Callable[[Sequence[str]], tuple[Tensor, Tensor]]

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]"


class State(NamedTuple):
    """A batch of images after one step of a sampler."""

    first: int  # number of the first image of the batch
    stage: int
    images: Tensor  # (B, 3, side, side), images first, first + 1, ...


def states(
    imagen: Imagen,
    encode: Encode,
    captions: Sequence[str],
    seeds: Sequence[int],
    batch_size: int = 16,
    precision: str = "fp32",
    progress: str | None = None,
) -> Iterator[State]:
    """Draw images of captions, yielding every state of every batch; arguments as in ``draw``."""
    steps_each = sum(stage.steps for stage in imagen.config.stages)
    with tqdm(
        desc=progress,
        total=len(captions) * steps_each,
        unit="image",
        unit_scale=1 / steps_each,
        bar_format=BAR,
        disable=True if progress is None else None,  # None: hidden without a terminal
    ) as bar:
        for first in range(0, len(captions), batch_size):
            batch = slice(first, first + batch_size)
            text, mask = encode(captions[batch])
            steps = imagen.sample(text, mask, seeds[batch])
            while True:
                with autocast(precision, text.device):  # around the step, not the caller
                    step = next(steps, None)
                if step is None:
                    break
                yield State(first, *step)
                bar.update(len(text))


def finished(drawn: Iterable[State]) -> Iterator[list[Tensor]]:
    """Each batch when all its steps are done: its images of each stage, as in ``draw``.

    Raises ValueError if an image is not finite, because the weights are broken.
    """
    for _, batch in groupby(drawn, key=lambda state: state.first):
        last = {stage: images for _, stage, images in batch}
        stages = [last[stage].float().cpu() for stage in sorted(last)]
        if not all(images.isfinite().all() for images in stages):
            raise ValueError(
                "the images have values that are not finite: the weights are broken "
                "(did the training diverge?)"
            )
        yield stages


def draw(
    imagen: Imagen,
    encode: Encode,
    captions: Sequence[str],
    seeds: Sequence[int],
    batch_size: int = 16,
    precision: str = "fp32",
    progress: str | None = None,
) -> list[Tensor]:
    """Images of captions, (N, 3, side, side) in [-1, 1] on the CPU, one entry per stage.

    imagen:     the cascade; its device computes the images
    encode:     returns the embeddings of captions, on the same device
    seeds:      one per caption; an image depends only on its own caption and seed
    batch_size: images drawn at the same time; changes only speed and memory
    precision:  of the matrix products of the U-Nets: "fp32", "bf16" or "fp16"
    progress:   name of a progress bar, shown on terminals only; None: no bar

    Raises ValueError if an image is not finite, because the weights are broken.
    """
    drawn = states(imagen, encode, captions, seeds, batch_size, precision, progress)
    return [torch.cat(parts) for parts in zip(*finished(drawn), strict=True)]
