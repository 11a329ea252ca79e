"""The captioned-shapes world as a data set: endless, seeded, offline."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minimagen.data.rendering import render
from minimagen.data.shapes import Scene, World, place, sample_description
from minimagen.data.wording import caption

KEPT_BYTES = 2**29  # of rendered images of a data set, at most


class ShapesDataset(Dataset[dict[str, object]]):
    """A map-style data set of captioned shapes; item i depends only on ``seed`` and i.

    An item is {"image": (3, side, side) in [-1, 1], "caption": str}. Images are rendered when they
    are first needed and kept as bytes, so that later epochs are fast; if there are too many for
    that, they are rendered each time.

    world:    the attributes of the scenes (``MINIMAL`` or ``FULL``)
    length:   number of scenes
    side:     side of the images, in pixels
    seed:     of scenes, places and phrasings
    held_out: only scenes with a held-out combination, instead of none

    captions: of all items; pictures: the number of each item's picture: its own
    """

    check = ""  # nothing was looked at
    left_out = ()

    def __init__(
        self, world: World, length: int, side: int, seed: int = 0, held_out: bool = False
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}, it should be a positive number of scenes")
        self.world, self.side, self.seed, self.held_out = world, side, seed, held_out
        self.captions: list[str] = []
        self.scenes: list[Scene] = []
        self.pictures = range(length)
        for index in range(length):
            rng = random.Random(f"{world.name}/{held_out}/{seed}/{index}")
            description = sample_description(world, rng, held_out)
            self.captions.append(caption(description, rng))
            self.scenes.append(place(description, rng, world))
        self._bytes = torch.zeros(0, 3, side, side, dtype=torch.uint8)  # of all, once one is drawn
        self._drawn = torch.zeros(length, dtype=torch.bool)

    def digest(self) -> str:
        """SHA-256 of the world, the seed and all captions: they decide every scene."""
        told = [self.world.name, self.held_out, self.seed, self.captions]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def at(self, side: int) -> ShapesDataset:
        """The same scenes, drawn with another side."""
        other = copy.copy(self)
        other.side = side
        other._bytes, other._drawn = self._bytes.new_zeros(0, 3, side, side), self._drawn & False
        return other

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.items([index])[0]

    def items(self, indices: Sequence[int], epoch: int | None = None) -> list[dict[str, object]]:
        """Several items at once, the same in every epoch: one call renders all of them."""
        indices = list(indices)
        if len(self) * 3 * self.side**2 > KEPT_BYTES:
            pixels = self._draw(indices)
        else:
            if not len(self._bytes):
                self._bytes = self._bytes.new_zeros(len(self), 3, self.side, self.side)
            new = [i for i in indices if not self._drawn[i]]
            if new:
                self._bytes[new] = self._draw(new)
                self._drawn[new] = True
            pixels = self._bytes[indices]
        return [
            {"image": image, "caption": self.captions[i]}
            for image, i in zip(pixels.float() / 127.5 - 1, indices, strict=True)
        ]

    def _draw(self, indices: list[int]) -> Tensor:
        """Images as bytes, (len(indices), 3, side, side)."""
        images = render([self.scenes[i] for i in indices], self.side)
        return ((images + 1) * 127.5).round().to(torch.uint8)
