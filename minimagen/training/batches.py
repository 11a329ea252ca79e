"""What a stage learns from: its images and captions, and the batches of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from minimagen.data import CaptionedDataset
from minimagen.randomness import SPLIT, generator
from minimagen.text import EmbeddingCache


def split(length: int, share: float, most: int | None, seed: int) -> tuple[list[int], list[int]]:
    """Split indices: a ``share`` of all to train on, at most ``most`` others to validate on.

    Raises ValueError if one of the two would be empty.
    """
    order = torch.randperm(length, generator=generator(seed, SPLIT))
    count = round(length * share)
    if not 0 < count < length:
        raise ValueError(
            f"`train_valid_frac` is {share}, of {length} images that leaves {count} to train and "
            f"{length - count} to validate on: both should be at least 1"
        )
    return order[:count].tolist(), order[count:][:most].tolist()


def distinct(captions: Sequence[str]) -> list[str]:
    """Every caption once, short captions first: the order is the same in every process."""
    return sorted(set(captions), key=lambda caption: (len(caption), caption))


@dataclass
class StageData:
    """The data of a stage.

    dataset:      its images have at least the stage's side
    train, valid: indices into it
    embeddings:   of all its captions
    num_workers:  worker processes that load images
    """

    dataset: CaptionedDataset
    train: Sequence[int]
    valid: Sequence[int]
    embeddings: EmbeddingCache
    num_workers: int = 0

    def load(self, batches: list[list[int]]) -> DataLoader[Any]:
        """Batches of items: images (B, 3, H, W), embeddings (B, N, D), mask (B, N)."""
        return DataLoader(
            self.dataset,  # type: ignore[arg-type]  # torch asks for a base class, not a protocol
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else iterating uses the global generator
        )

    def collate(self, items: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        """Combine items into a batch, see ``load``."""
        images = torch.stack([item["image"] for item in items])
        return images, *self.embeddings([item["caption"] for item in items])


def epoch_batches(
    indices: Sequence[int], size: int, accum_iter: int, random: torch.Generator
) -> list[list[int]]:
    """The batches of an epoch: each index at most once, in an order chosen by ``random``.

    The last indices are left out if they do not fill a batch; the last batches are left out if they
    do not fill a group of ``accum_iter``. A single batch or group that is not full is kept.
    """
    order = torch.as_tensor(indices)[torch.randperm(len(indices), generator=random)]
    batches = [part.tolist() for part in order.split(size)]
    batches = [batch for batch in batches if len(batch) == size] or batches
    return batches[: len(batches) - len(batches) % accum_iter] or batches
