"""Images with captions: the captioned-shapes world, and real data behind the same interface."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from minimagen.data.shapes import WORLDS, ShapesDataset

if TYPE_CHECKING:
    from minimagen.data.real import RealDataset

DEFAULT_LENGTH = 30_000  # scenes of a shapes world, where no number is given


class CaptionedDataset(Protocol):
    """A map-style data set of {"image": (3, side, side) in [-1, 1], "caption": str}."""

    @property
    def captions(self) -> list[str]:
        """The captions of all items."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, object]: ...

    def digest(self) -> str:
        """SHA-256 of all images and captions, in hexadecimal."""
        ...


def words(caption: str) -> list[str]:
    """The words of a caption, in lower case: runs of letters and digits, with inner - and '."""
    return re.findall(r"\w+(?:[-'’]\w+)*", caption.lower())


def make_dataset(
    name: str,
    side: int,
    length: int | None = None,
    seed: int = 0,
    held_out: bool = False,
    image_column: str = "image",
    caption_column: str = "text",
) -> ShapesDataset | RealDataset:
    """A map-style data set of {"image": (3, side, side) in [-1, 1], "caption": str}.

    name:     a shapes world (``WORLDS``), a directory of images, or the id of a Hub data set
    side:     side of the images, in pixels
    length:   number of scenes, or maximum number of real images (None: all)
    seed:     of this choice; the same name, length and seed give the same captions in the same
              order, whatever the side
    held_out: only scenes with combinations held out of training; for shapes worlds only
    image_column, caption_column: of real data, see ``RealDataset``

    The result has ``captions``, a list of all captions. Raises ValueError, with a one-line message,
    if there is no such data set or column.
    """
    if name in WORLDS:
        return ShapesDataset(
            WORLDS[name], DEFAULT_LENGTH if length is None else length, side, seed, held_out
        )
    if held_out:
        raise ValueError(
            f"data set {name!r} has no held-out combinations, only {', '.join(WORLDS)} have them"
        )
    try:  # only here: Hugging Face's datasets takes a second to import, and shapes need none of it
        from minimagen.data.real import RealDataset
    except ImportError as error:
        raise ValueError(
            f"data set {name!r} is not a shapes world ({', '.join(WORLDS)}), and for others the "
            f"package {error.name} is missing: pip install datasets"
        ) from None

    return RealDataset(name, side, length, seed, image_column, caption_column)
