"""Real pictures with captions: looked at, cut into squares, and kept on disk before training.

Every picture is read once, in order. Its squares go to files in a scratch folder, one file for each
side that is asked for. All processes of a training map these files into memory: the system keeps
there what is used, as far as there is room, and nothing is decoded twice. If the disk has no room
for the squares, the pictures of a folder are decoded again in each epoch.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from minimagen.data import Crop
from minimagen.data.pictures import ASPECT, BadPicture, decode, read_file
from minimagen.data.sources import Entry, Source
from minimagen.randomness import PICTURE, generator

SHOWN = 3  # pictures that cannot be used, by name


class RealDataset(Dataset[dict[str, object]]):
    """A map-style data set of real pictures: an item is a picture with one of its captions.

    source:       the pictures and their captions
    sides:        sides of the squares that are made of a picture; items have the last one, see
                  ``at``
    length:       maximum number of pictures, chosen by ``seed`` (the first ones, if their total is
                  not known); None takes all
    seed:         of this choice, and of crops and flips
    crop:         which square of a picture an item shows in training: "centre", or "random",
                  another one in each epoch
    flip:         mirror half of the items in training, others in each epoch
    max_left_out: the largest share of pictures that may be left out because they cannot be used
    scratch:      folder for the squares; None makes one that goes with the data set
    progress:     called with the number of pictures looked at, and their total if it is known

    captions: of all items; a missing caption is the empty caption
    pictures: for each item, the number of its picture; equal files are one picture
    left_out: the pictures that cannot be used, and why
    check:    what was found, in one line

    Raises ValueError, with a one-line message, if there are no pictures, if too many cannot be
    used, or if captions cannot be read; and later if the file of an item can no longer be read.
    OSError: the squares cannot be written.
    """

    def __init__(
        self,
        source: Source,
        sides: Sequence[int],
        length: int | None = None,
        seed: int = 0,
        crop: Crop = "centre",
        flip: bool = False,
        max_left_out: float = 0.1,
        scratch: Path | None = None,
        progress: Callable[[int, int | None], object] = lambda done, total: None,
    ) -> None:
        if min(sides) < 1:
            raise ValueError(f"side is {min(sides)}, it should be a positive number of pixels")
        if length is not None and length < 1:
            raise ValueError(f"length is {length}, it should be a positive number of images")
        self.side, self.sides, self.seed, self.crop, self.flip = sides[-1], sides, seed, crop, flip
        self.captions: list[str] = []
        self.pictures: list[int] = []
        self.left_out: list[str] = []
        self._own = (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) if scratch is None else None
        )
        folder = Path(self._own.name if self._own is not None else str(scratch))
        self._stores = {side: _Store(folder / f"squares_{side}") for side in sides}
        self._copies = 0  # pictures whose bytes are those of an earlier one
        self._files: list[Path] = []  # of the pictures, if their squares are not kept

        each = 3 * sum(side**2 for side in sides) * (ASPECT if crop == "random" else 1)
        most = shutil.disk_usage(folder).free // 2 // each
        total = source.total if length is None else min(length, source.total or length)
        self._kept = (total or 0) <= most
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of strange metadata and of many pixels
            self._digest = self._read(
                _choose(source, length, seed), most, lambda done: progress(done, total)
            )
        self.check = self._checked(source, max_left_out)

    def _checked(self, source: Source, max_left_out: float) -> str:
        """What was found, in one line. Raises ValueError if that is too little."""
        used = len(set(self.pictures))
        read, bad = used + len(self.left_out), len(self.left_out)
        if not read:
            raise ValueError(f"{source.about} has no images")
        if not used or bad > max_left_out * read:
            raise ValueError(
                f"{bad} of {read} images cannot be used: {_some(self.left_out)}; at most "
                f"{max_left_out:.0%} may be left out, see `max_left_out`"
            )
        line = f"{used} images{f' (and copies: {self._copies})' if self._copies else ''}"
        line += f" with {len(self.captions)} captions from {source.about}"
        if bad:
            line += f"; {bad} left out: {_some(self.left_out)}"
        if source.unused:
            line += f"; {source.unused} without a caption"
        if not self._kept:
            line += "; the disk has no room for their squares, each epoch decodes them again"
        return line

    def _read(self, entries: Iterator[Entry], most: int, progress: Callable[[int], object]) -> str:
        """Look at every picture; returns the digest of those that can be used.

        most: number of pictures for whose squares there is room
        """
        digest, done = hashlib.sha256(), 0
        numbers: dict[str, int] = {}  # of the pictures, by their checksums
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            while few := list(islice(entries, 64)):
                for entry, (checksum, squares) in zip(few, pool.map(self._look, few), strict=True):
                    done += 1
                    progress(done)
                    if isinstance(squares, BadPicture):
                        self.left_out.append(f"{entry.name} {squares}")
                        continue
                    self._copies += checksum in numbers
                    if checksum not in numbers:
                        numbers[checksum] = len(numbers)
                        self._add(entry, squares, len(numbers) <= most)
                    self.captions += entry.captions
                    self.pictures += [numbers[checksum]] * len(entry.captions)
                    row = [entry.name, checksum, entry.captions]
                    digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()

    def _look(self, entry: Entry) -> tuple[str, list[np.ndarray] | BadPicture]:
        """The checksum of a picture and its squares, or why it cannot be used."""
        try:
            content = _bytes(entry.content)
            return hashlib.sha256(content).hexdigest(), self._decode(content)
        except BadPicture as error:
            return "", error

    def _decode(self, content: bytes) -> list[np.ndarray]:
        return decode(content, self.sides, strip=self.crop == "random")

    def _add(self, entry: Entry, squares: list[np.ndarray], room: bool) -> None:
        """Keep the squares of a new picture, or else the name of its file."""
        if self._kept and room:
            for store, square in zip(self._stores.values(), squares, strict=True):
                store.add(square)
        elif isinstance(entry.content, Path) and not self._kept:
            self._files.append(entry.content)
        else:
            raise ValueError(
                f"there is no room for the squares of its pictures in {tempfile.gettempdir()}: "
                "take fewer with `num_images`, or another folder with the variable TMPDIR"
            )

    def digest(self) -> str:
        """SHA-256 of what can be trained on: names and bytes of pictures, captions, their order.

        A folder that moves keeps it.
        """
        return self._digest

    def at(self, side: int) -> RealDataset:
        """The same data set, its items with another one of its sides."""
        other = object.__new__(RealDataset)
        other.__dict__ = self.__dict__ | {"side": self.sides[self.sides.index(side)]}
        return other

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.items([range(len(self))[index]])[0]  # negative or too large: as in a list

    def items(self, indices: Sequence[int], epoch: int | None = None) -> list[dict[str, object]]:
        """Items, as they are in an epoch of training; None: the middle of pictures, as they are."""
        return [{"image": self._image(i, epoch), "caption": self.captions[i]} for i in indices]

    def _image(self, index: int, epoch: int | None) -> Tensor:
        """(3, side, side) in [-1, 1]."""
        pixels = self._pixels(self.pictures[index])  # (height, width, 3)
        spare = [length - self.side for length in pixels.shape[:2]]
        top, left, mirrored = spare[0] // 2, spare[1] // 2, False
        if epoch is not None and (self.crop == "random" or self.flip):
            draw = torch.rand(3, generator=generator(self.seed, PICTURE, epoch, index)).tolist()
            if self.crop == "random":
                top, left = (int(u * (n + 1)) for u, n in zip(draw, spare, strict=False))
            mirrored = self.flip and draw[2] < 0.5
        square = pixels[top : top + self.side, left : left + self.side]
        image = torch.from_numpy(square[:, ::-1].copy() if mirrored else square.copy())
        return image.permute(2, 0, 1).float() / 127.5 - 1  # (side, side, 3) -> (3, side, side)

    def _pixels(self, picture: int) -> np.ndarray:
        if self._kept:
            return self._stores[self.side][picture]
        path = self._files[picture]
        try:
            return self._decode(_bytes(path))[self.sides.index(self.side)]
        except BadPicture as error:
            raise ValueError(f"{path} {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_own": None}  # the folder goes with the first one


class _Store:
    """The squares of pictures, one after the other in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: list[tuple[int, int, int]] = []  # offset, height and width of each
        self._end = 0
        self._map: np.ndarray | None = None

    def add(self, pixels: np.ndarray) -> None:
        """Write a picture, (height, width, 3) bytes. Raises OSError, naming the file."""
        try:
            with open(self.path, "ab") as file:
                file.write(pixels.tobytes())
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error.strerror}") from None
        self._places.append((self._end, *pixels.shape[:2]))
        self._end += pixels.size

    def __getitem__(self, number: int) -> np.ndarray:
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r")
        start, height, width = self._places[number]
        return self._map[start : start + 3 * height * width].reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}  # each process maps the file


def _bytes(content: Path | bytes | BadPicture) -> bytes:
    """The bytes of a picture. Raises BadPicture."""
    if isinstance(content, BadPicture):
        raise content
    return content if isinstance(content, bytes) else read_file(content)


def _choose(source: Source, length: int | None, seed: int) -> Iterator[Entry]:
    """At most ``length`` entries of a source, in its order."""
    if length is None or source.total is None:
        return islice(source.entries, length)
    if length >= source.total:
        return iter(source.entries)
    chosen = set(random.Random(seed).sample(range(source.total), length))
    return (entry for i, entry in enumerate(source.entries) if i in chosen)


def _some(names: Sequence[str]) -> str:
    """The first few of some texts, and the number of the others."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
