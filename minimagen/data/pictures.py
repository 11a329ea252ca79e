"""From the bytes of a file to a square picture: decoding, kinds of pixels, crops.

Whatever Pillow can read becomes RGB: transparent parts become white, a picture that its EXIF data
turns is turned, and of an animation the first frame is taken.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FILE_BYTES = 2**30  # of a file of a picture, at most
ASPECT = 2  # of what is kept of a picture for random crops: its long side by its short one

Image.init()
# EPS starts another program; of the others Pillow knows the names, but decodes none.
UNREADABLE = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
FORMATS = [name for name in Image.OPEN if name not in UNREADABLE]
SUFFIXES = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
SUFFIXES |= {".heic", ".heif", ".jxl"}  # pictures too, although Pillow cannot read them


class BadPicture(ValueError):
    """A picture cannot be used; the message says why, and goes on a sentence: "is empty"."""


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises BadPicture."""
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise BadPicture("is not a file" if path.exists() else "is missing")
        if path.stat().st_size > FILE_BYTES:
            raise BadPicture(f"has more than {FILE_BYTES // 2**20} MiB")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        if isinstance(error, BadPicture):
            raise
        raise BadPicture(f"cannot be read: {getattr(error, 'strerror', error)}") from None


def decode(content: bytes, sides: Sequence[int], strip: bool = False) -> list[np.ndarray]:
    """The picture in the bytes of a file, once for each side: squares (side, side, 3) of bytes.

    strip: a picture up to ``ASPECT`` times as long as wide stays whole, and of a longer one so much
           is kept; ``side`` is then its short side

    Raises BadPicture.
    """
    if not content:
        raise BadPicture("is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        short, enough = min(image.size), 4 * max(sides)
        if image.format == "JPEG" and short > enough:  # decodes a smaller one, which is faster
            wide, high = (enough * length // short for length in image.size)
            image.draft(None, (wide, high))  # None keeps the mode
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # a copy would lose the tags of a TIFF
        rgb = to_rgb(image)
        return [np.asarray(crop(rgb, side, ASPECT if strip else 1)) for side in sides]
    except UnidentifiedImageError:
        html = content[:1024].lstrip().lower().startswith((b"<!doctype html", b"<html"))
        raise BadPicture("is HTML" if html else "is not a picture that Pillow can read") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise BadPicture(f"has more than {most:.0f} megapixels") from None
    except Exception as error:  # decoders raise whatever a broken file leads them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadPicture(f"cannot be decoded: {reason}") from None


def crop(image: Image.Image, side: int, aspect: float = 1) -> Image.Image:
    """An RGB image, its short side resized to ``side`` pixels.

    The middle is cropped, so that the long side is at most ``aspect`` times the short one; nothing
    is distorted. Resizing is bicubic, with antialiasing.
    """
    ratios = [min(length / min(image.size), aspect) for length in image.size]
    size = round(side * ratios[0]), round(side * ratios[1])
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def crop_square(image: Image.Image, side: int) -> Image.Image:
    """An image of any mode as a square of ``side`` pixels, RGB: its middle, see ``crop``."""
    return crop(to_rgb(image), side)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB. Transparent parts become white.

    Grey of 16 bits is divided by 257: 65535 is white. In grey of 32 bits, integers or floats, white
    is the end of the smallest range that holds all values of the picture: 0 to 1 (floats only),
    255, 65535, the largest integer. With values outside of all of them, the lowest value is black
    and the highest is white.
    """
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float64) / 65535)
    if image.mode in ("I", "F"):
        return _grey(_unit_range(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _unit_range(image: Image.Image) -> np.ndarray:
    """The values of an image of mode I or F, in [0, 1]; see ``to_rgb``."""
    values = np.asarray(image)
    unsigned = getattr(image, "tag_v2", {}).get(339, (1,))[0] == 1  # of a TIFF: its sample format
    if image.mode == "I" and image.format == "TIFF" and unsigned:
        values = values.view(np.uint32)  # Pillow takes 32 bits as a signed integer
    largest = float(np.iinfo(values.dtype).max) if image.mode == "I" else 0.0
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    for end in (1.0, 255.0, 65535.0, largest):
        if low >= 0 and high <= end and (end > 1 or image.mode == "F"):
            return values / end
    return (values - low) / max(high - low, np.finfo(float).tiny)


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")
