"""Images with captions: the captioned-shapes world, and real data behind the same interface."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from minimagen.data.scenes import ShapesDataset
from minimagen.data.shapes import WORLDS

if TYPE_CHECKING:
    from minimagen.data.real import RealDataset

Crop = Literal["centre", "random"]
DEFAULT_LENGTH = 30_000  # scenes of a shapes world, where no number is given


class CaptionedDataset(Protocol):
    """A map-style data set of {"image": (3, side, side) in [-1, 1], "caption": str}.

    captions: of all items
    pictures: for each item, the number of its picture; the captions of one picture are many items
    check:    what was found when the pictures were looked at, in one line; "" if they were not
    left_out: the pictures that cannot be used, and why
    """

    captions: list[str]

    @property
    def pictures(self) -> Sequence[int]: ...

    @property
    def left_out(self) -> Sequence[str]: ...

    @property
    def check(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, object]: ...

    def items(self, indices: Sequence[int], epoch: int | None = None) -> list[dict[str, object]]:
        """Several items, as they are in an epoch of training; None: without crops and flips."""
        ...

    def digest(self) -> str:
        """SHA-256 of what can be trained on; another picture, caption or order changes it."""
        ...

    def at(self, side: int) -> CaptionedDataset:
        """The same data set with images of another side."""
        ...


def words(caption: str) -> list[str]:
    """The words of a caption, in lower case: runs of letters and digits, with inner - and '."""
    return re.findall(r"\w+(?:[-'’]\w+)*", caption.lower())


def make_dataset(
    name: str,
    side: int | Sequence[int],
    length: int | None = None,
    seed: int = 0,
    held_out: bool = False,
    image_column: str = "image",
    caption_column: str = "text",
    streaming: bool = False,
    **options: Any,
) -> ShapesDataset | RealDataset:
    """A map-style data set of {"image": (3, side, side) in [-1, 1], "caption": str}.

    name:     a shapes world (``WORLDS``), a folder or .parquet, see ``data.sources``, or the id of
              a Hub data set
    side:     side of the images, in pixels; or all sides that are wanted, see the method ``at``:
              images have the last one
    length:   number of scenes, or maximum number of real pictures (None: all)
    seed:     of this choice; the same name, length and seed give the same captions in the same
              order, whatever the side
    held_out: only scenes with combinations held out of training; for shapes worlds only
    image_column, caption_column: of real pictures; streaming: see ``data.sources``
    options:  of real pictures: crop, flip, max_left_out, scratch and progress, see ``RealDataset``

    The result is a ``CaptionedDataset``. Raises ValueError, with a one-line message, if there is no
    such data set, or if it cannot be used.
    """
    sides = (side,) if isinstance(side, int) else tuple(side)
    if name in WORLDS:
        return ShapesDataset(
            WORLDS[name], DEFAULT_LENGTH if length is None else length, sides[-1], seed, held_out
        )
    if held_out:
        raise ValueError(
            f"data set {name!r} has no held-out combinations, only {', '.join(WORLDS)} have them"
        )
    # Only here: shapes need neither Pillow's plugins nor tables.
    from minimagen.data.real import RealDataset
    from minimagen.data.sources import find

    try:
        source = find(name, image_column, caption_column, streaming)
        if source is None:
            raise ValueError(
                f"data set {name!r} cannot be found, it should be one of {', '.join(WORLDS)}, a "
                "folder of pictures with a metadata.csv, or the id of a Hub data set such as "
                "'owner/name'"
            )
        return RealDataset(source, sides, length, seed, **options)
    except ImportError as error:
        raise ValueError(
            f"data set {name!r} needs the package {error.name}, which is missing: pip install "
            "datasets"
        ) from None
