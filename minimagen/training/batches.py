"""What a stage learns from: its images and captions, and the batches of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minimagen.data import CaptionedDataset
from minimagen.randomness import SPLIT, generator
from minimagen.text import EmbeddingCache


class Data(NamedTuple):
    """The data of a training: of all stages, see ``CaptionedDataset.at``."""

    dataset: CaptionedDataset
    train: list[int]  # items to train on
    valid: list[int]  # items to validate on


def split(
    pictures: Sequence[int], share: float, most: int | None, seed: int
) -> tuple[list[int], list[int]]:
    """Split items: a ``share`` of the pictures to train on, at most ``most`` others to validate on.

    pictures: the number of each item's picture; all items of a picture go to the same part

    Raises ValueError if one of the two would be empty.
    """
    items: dict[int, list[int]] = {}
    for item, picture in enumerate(pictures):
        items.setdefault(picture, []).append(item)
    each = list(items.values())
    order = torch.randperm(len(each), generator=generator(seed, SPLIT)).tolist()
    count = round(len(each) * share)
    if not 0 < count < len(each):
        raise ValueError(
            f"`train_valid_frac` is {share}, of {len(each)} images that leaves {count} to train "
            f"and {len(each) - count} to validate on: both should be at least 1"
        )
    parts = order[:count], order[count:][:most]
    train, valid = ([item for place in part for item in each[place]] for part in parts)
    return train, valid


def distinct(captions: Sequence[str]) -> list[str]:
    """Every caption once, short captions first: the order is the same in every process."""
    return sorted(set(captions), key=lambda caption: (len(caption), caption))


@dataclass
class StageData:
    """The data of a stage.

    dataset:      its images have at least the stage's side
    train, valid: indices into it
    embeddings:   of all its captions
    num_workers:  worker processes that load images; they are started once
    """

    dataset: CaptionedDataset
    train: Sequence[int]
    valid: Sequence[int]
    embeddings: EmbeddingCache
    num_workers: int = 0

    def load(self, batches: list[list[int]], epoch: int | None = None) -> Iterator[Any]:
        """Batches of items, see ``collate``.

        epoch: of training, which decides random crops and flips; None: there are none

        Raises ValueError, naming it, if the file of a picture can no longer be read.
        """
        self._keys[:] = [(epoch, batch) for batch in batches]
        for batch in self._loader:
            if isinstance(batch, ValueError):
                raise batch
            yield batch

    @cached_property
    def _keys(self) -> list[tuple[int | None, list[int]]]:
        return []  # what the loader is to load next

    @cached_property
    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            _Batches(self.dataset, self.embeddings),
            batch_size=None,
            sampler=self._keys,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else iterating uses the global generator
        )


@dataclass
class _Batches(Dataset[Any]):
    """Whole batches as the items of a data set, for torch's DataLoader."""

    dataset: CaptionedDataset
    embeddings: EmbeddingCache

    def __getitem__(self, key: tuple[int | None, list[int]]) -> Any:
        epoch, batch = key
        try:
            items = self.dataset.items(batch, epoch)
        except ValueError as error:  # raised in a worker, it would come as a whole traceback
            return error
        return collate(items, self.embeddings)


def collate(
    items: Sequence[dict[str, Any]], embeddings: EmbeddingCache
) -> tuple[Tensor, Tensor, Tensor]:
    """Combine items into a batch: images (B, 3, H, W), embeddings (B, N, D), mask (B, N)."""
    images = torch.stack([item["image"] for item in items])
    return images, *embeddings([item["caption"] for item in items])


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
