"""Real images with captions, from the Hugging Face Hub or from a local folder.

A local folder is an ``imagefolder``: images, and next to them a ``metadata.csv`` (or ``.jsonl``)
with a column ``file_name`` and a column of captions.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import datasets
import numpy as np
import torch
from huggingface_hub import logging
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from minimagen.data.shapes import WORLDS

CACHE_BYTES = 2**29  # of prepared images kept in memory; larger data sets are decoded every epoch


class RealDataset(Dataset[dict[str, object]]):
    """A map-style data set of real images: the ``train`` split of a Hub data set or a folder.

    An item is {"image": (3, side, side) in [-1, 1], "caption": str}, see ``crop_square``.
    ``captions`` holds the captions of all items; a missing caption is the empty caption.

    name:           a directory, or the id of a Hub data set
    side:           side of the images, in pixels
    length:         maximum number of images, chosen by ``seed``; None takes all
    image_column:   name of the column of images
    caption_column: name of the column of captions, one string each

    Raises ValueError, with a one-line message, if there is no such data set or column, and later if
    the image of an item cannot be read.
    """

    def __init__(
        self,
        name: str,
        side: int,
        length: int | None = None,
        seed: int = 0,
        image_column: str = "image",
        caption_column: str = "text",
    ) -> None:
        if side < 1:
            raise ValueError(f"side is {side}, it should be a positive number of pixels")
        if length is not None and length < 1:
            raise ValueError(f"length is {length}, it should be a positive number of images")
        rows = _load(name)
        _check_column(name, rows, image_column, datasets.Image, "image", "images")
        _check_column(name, rows, caption_column, datasets.Value, "caption", "strings")
        if length is not None and length < len(rows):
            rows = rows.select(sorted(random.Random(seed).sample(range(len(rows)), length)))
        self.name, self.side = name, side
        self.captions: list[str] = [caption or "" for caption in rows[caption_column]]
        self._rows, self._image_column = rows, image_column
        number = len(rows) if len(rows) * 3 * side * side <= CACHE_BYTES else 0
        self._bytes = torch.zeros(number, side, side, 3, dtype=torch.uint8)
        self._prepared = torch.zeros(number, dtype=torch.bool)

    def digest(self) -> str:
        """SHA-256 of all captions, in hexadecimal."""
        return hashlib.sha256("\n".join(self.captions).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, object]:
        pixels = self._pixels(range(len(self))[index])  # negative or too large: as in a list
        image = pixels.permute(2, 0, 1).float() / 127.5 - 1  # (side, side, 3) -> (3, side, side)
        return {"image": image, "caption": self.captions[index]}

    def _pixels(self, index: int) -> Tensor:
        """The image as bytes, (side, side, 3), decoded when first asked for."""
        if len(self._bytes) and self._prepared[index]:
            return self._bytes[index]
        try:
            image = self._rows[index][self._image_column]
            pixels = torch.from_numpy(np.array(crop_square(image, self.side)))
        except (OSError, AttributeError, Image.DecompressionBombError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"image {index} of data set {self.name!r} cannot be read: {reason}"
            ) from None
        if len(self._bytes):
            self._bytes[index] = pixels
            self._prepared[index] = True
        return pixels


def crop_square(image: Image.Image, side: int) -> Image.Image:
    """An image as a square of ``side`` pixels, RGB.

    The middle is cropped, so that nothing is distorted, and resized with antialiasing (bicubic).
    Transparent parts become white.
    """
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)


def _load(name: str) -> datasets.Dataset:
    """The rows of the ``train`` split; prints no messages and no progress bars."""
    what = (
        f"data set {name!r} cannot be loaded, it should be one of {', '.join(WORLDS)}, a directory "
        "of images with a metadata.csv, or the id of a Hub data set such as 'owner/name'"
    )
    local = Path(name).is_dir()
    if not local and name.count("/") != 1:
        raise ValueError(what)
    bars, verbosity = datasets.is_progress_bar_enabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity_error()  # without a network, each retry would print a warning
    try:
        if local:
            rows = datasets.load_dataset("imagefolder", data_dir=name, split="train")
        else:
            rows = datasets.load_dataset(name, split="train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{what}: {reason}") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
    if not len(rows):
        raise ValueError(f"data set {name!r} has no images, it should have at least one")
    return rows


def _check_column(
    name: str, rows: datasets.Dataset, column: str, kind: type, role: str, content: str
) -> None:
    setting = f"`{role}_column`"
    if column not in rows.features:
        raise ValueError(
            f"data set {name!r} has no {role} column {column!r}, its columns are "
            f"{', '.join(rows.features)}; name the right one with {setting}"
        )
    feature = rows.features[column]
    is_text = isinstance(feature, datasets.Value) and "string" in feature.dtype
    if not isinstance(feature, kind) or (kind is datasets.Value and not is_text):
        raise ValueError(
            f"column {column!r} of data set {name!r} does not hold {content}; name one that does "
            f"with {setting}"
        )
