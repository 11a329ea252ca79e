"""Caption fidelity: does a picture show what its caption says?

No trained network is asked. A picture of the captioned-shapes world (``minimagen.data.shapes``) is
read back into attributes by comparing it with renderings of that same world:

    reading = read_picture(picture)                 how many objects, each one's colour, shape, ...
    verdict = judge(reading, parse_caption(text))   attribute by attribute, right or wrong
    print(caption_fidelity(pictures, captions))     shares of right pictures, as a table

The reading is meant to be strict: a blob, an object of two colours, a third object or a ghost of
one, two objects grown together, all count as wrong.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from minimagen.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    SHAPES,
    PlacedObject,
    coverage,
)

ATTRIBUTES = ("count", "colour", "shape", "size", "relation", "background")

# Colour distances are Euclidean in RGB, in units of the range [-1, 1]. The two nearest entries of
# the palette (orange, yellow) lie 0.65 apart, so that a colour midway between two is refused.
COLOUR_TOLERANCE = 0.3  # of an object's mean colour, and of the background
PURITY = 0.85  # share of an object's pixels that must have its colour
MIN_OVERLAP = 0.88  # soft intersection over union with a rendering, below which it is no shape
MAX_ERROR_RATIO = 0.65  # of the best shape's misfit to the second best's: above, it is in between
MIN_AREA = 0.006  # share of the picture that makes an object; the smallest star has 0.027
SOLID = 0.7  # coverage from which a pixel is part of an object


@dataclass(frozen=True)
class ReadObject:
    """One object as a picture shows it; None where it is like nothing in the world.

    ``x, y`` is its centre of mass from the top left, as shares of the side; ``overlap`` in [0, 1]
    is the soft intersection over union with the best fitting rendering.
    """

    shape: str | None
    colour: str | None
    size: str | None
    x: float
    y: float
    overlap: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its objects, largest first, and its background (None: no known one)."""

    objects: tuple[ReadObject, ...]
    background: str | None


@dataclass(frozen=True)
class Fidelity:
    """Shares of pictures, in [0, 1], that show what their captions say.

    Each attribute's share is over the pictures whose captions say that attribute; it is None when
    no caption does. ``exact_match`` is the share of pictures with everything right, and
    ``per_picture`` says which they are. ``n`` is the number of pictures.
    """

    exact_match: float
    count: float | None
    colour: float | None
    shape: float | None
    size: float | None
    relation: float | None
    background: float | None
    per_picture: list[bool]
    n: int

    def __str__(self) -> str:
        rows = [(name, getattr(self, name)) for name in ("exact_match", *ATTRIBUTES)]
        lines = [
            f"  {name.replace('_', ' '):<12}"
            + ("  not said" if share is None else f"{share:10.1%}")
            for name, share in rows
        ]
        return "\n".join([f"caption fidelity of {self.n} pictures", *lines])


# --- from pictures to attributes ------------------------------------------------------------------


def _palette(entries: dict[str, tuple[int, int, int]]) -> Tensor:
    return torch.tensor(list(entries.values())) / 127.5 - 1  # (len(entries), 3)


@dataclass(frozen=True)
class _Templates:
    """Renderings of one object each, its centre of mass near the centre of a small patch."""

    names: list[str]
    radii: Tensor  # (T,), shares of the picture's side
    masks: Tensor  # (T, patch * patch), coverage
    patch: int  # odd, in pixels


@functools.lru_cache(maxsize=4)
def _templates(side: int) -> _Templates:
    """Every shape at radii around the world's, moved by parts of a pixel."""
    # A little beyond the world's own radii, so that an object of the wrong size fits badly.
    steps = torch.linspace(0, 1, 18)
    smallest, largest = 0.87 * RADII["small"], 1.13 * RADII["large"]
    radii = smallest * (largest / smallest) ** steps  # 4% apart
    per_pixel = 5 if side <= 64 else 3
    shifts = torch.linspace(-0.5, 0.5, per_pixel).tolist()  # in pixels
    patch = 2 * int(largest * side * 1.15 + 2) + 1
    centres = (torch.arange(128) + 0.5) / 128 - 0.5
    names, objects = [], []
    for shape in SHAPES:
        mask = coverage([PlacedObject(shape, "", 0.5, 0.5, 0.4)], 128)[0]
        middle_x = float((mask.sum(0) * centres).sum() / mask.sum() / 0.4)  # in radii
        middle_y = float((mask.sum(1) * centres).sum() / mask.sum() / 0.4)
        for radius in (radii * side / patch).tolist():  # shares of the patch
            for dy in shifts:
                for dx in shifts:
                    x = 0.5 + dx / patch - middle_x * radius
                    y = 0.5 + dy / patch - middle_y * radius
                    objects.append(PlacedObject(shape, "", x, y, radius))
                    names.append(shape)
    masks = coverage(objects, patch).flatten(1)
    found = torch.tensor([thing.radius for thing in objects]) * patch / side
    return _Templates(names, found, masks, patch)


def _best_templates(masks: Tensor, templates: _Templates) -> tuple[Tensor, Tensor, Tensor]:
    """The template that fits each mask best, (K, patch * patch), and how well it does.

    Returns its index, its overlap, and whether that is enough and clearly the best; each (K,).
    """
    common = masks @ templates.masks.T  # (K, T)
    total = (masks**2).sum(1, keepdim=True) + (templates.masks**2).sum(1)
    overlaps = (common / (total - common)).reshape(len(masks), len(SHAPES), -1)
    per_shape, index = overlaps.max(2)  # (K, shapes)
    (best, second), order = (part.unbind(1) for part in per_shape.topk(2, dim=1))
    clear = (best >= MIN_OVERLAP) & (1 - best <= MAX_ERROR_RATIO * (1 - second))
    shape = order[0]
    return shape * overlaps.shape[2] + index.gather(1, shape[:, None])[:, 0], best, clear


@dataclass(frozen=True)
class _Found:
    """One object found in a picture, before its shape is known."""

    mask: Tensor  # (patch, patch), its coverage as observed
    pixels: Tensor  # (3, patch, patch), minus the background colour
    core: Tensor  # (patch, patch), bool, the better covered half of it
    label: Tensor  # (patch, patch), the palette's entry that each pixel is nearest to
    colour: int  # the label of most of the core
    x: float
    y: float


def _cut(image: np.ndarray, row: int, column: int, patch: int) -> Tensor:
    """The patch around a pixel, zeros outside of the picture; (..., H, W) -> (..., patch, patch)."""
    half = patch // 2
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(half, half)] * 2)
    return torch.from_numpy(padded[..., row : row + patch, column : column + patch].copy())


def _find_objects(
    offset: np.ndarray, cover: np.ndarray, label: np.ndarray, directions: np.ndarray, patch: int
) -> tuple[list[_Found], bool]:
    """The objects of one picture, largest first, and whether there is clutter besides them.

    offset: (3, H, W), the picture minus its background colour; cover: (H, W), each pixel's distance
    from the background, as a share of that of its nearest colour, ``label`` (H, W);
    directions: (colours, 3), each colour minus the background.
    """
    side = cover.shape[-1]
    distance = np.linalg.norm(offset, axis=0)  # (H, W)
    components, number = ndimage.label(cover > SOLID)
    areas = np.bincount(components.ravel(), minlength=number + 1)[1:]
    order = np.argsort(-areas, kind="stable")
    kept = [int(i) + 1 for i in order if areas[i] >= MIN_AREA * side * side]
    objects = np.where(np.isin(components, kept), components, 0)
    # Every pixel is the business of the object nearest to it, if that is near.
    far, nearest = ndimage.distance_transform_edt(objects == 0, return_indices=True)
    owner = np.where(far <= 3, objects[tuple(nearest)], 0) if kept else objects
    # Smoothed, so that neither noise nor single specks are clutter, but a faint object is.
    smooth = np.linalg.norm(ndimage.uniform_filter(offset, size=(1, 3, 3)), axis=0)
    clutter = ((smooth > COLOUR_TOLERANCE) & (owner == 0)).mean() >= MIN_AREA
    inner = ndimage.uniform_filter(np.minimum(cover, 1), size=3, mode="constant")
    found = []
    for index in kept:
        inside = objects == index
        core = inside & (inner >= np.median(inner[inside]))
        colour = int(np.bincount(label[core]).argmax())
        # Distance in any direction, so that a patch of another colour spoils the shape.
        mask = distance / np.linalg.norm(directions[colour])
        mask = np.where(owner == index, mask.clip(0, 1), 0)
        rows, columns = ndimage.center_of_mass(mask)
        row, column = round(rows), round(columns)
        found.append(
            _Found(
                _cut(mask, row, column, patch),
                _cut(offset * (owner == index), row, column, patch),
                _cut(core, row, column, patch),
                _cut(label, row, column, patch),
                colour,
                (columns + 0.5) / side,
                (rows + 0.5) / side,
            )
        )
    return found, bool(clutter)


def _colour_name(thing: _Found, template: Tensor | None, directions: Tensor) -> str | None:
    """The object's colour, when its mean is near that entry and most of its pixels have it."""
    weight = thing.core.float() if template is None else template  # (patch, patch)
    mean = (thing.pixels * weight).sum((1, 2)) / (weight**2).sum()  # least squares, (3,)
    distances = (directions - mean).norm(dim=1)
    pure = (thing.label == thing.colour)[weight > 0.75].float().mean() >= PURITY
    right = distances.argmin() == thing.colour and distances.min() <= COLOUR_TOLERANCE
    return list(COLOURS)[thing.colour] if right and pure else None


def read_pictures(pictures: Tensor) -> list[Reading]:
    """Read pictures, shape (N, 3, side, side), in [-1, 1], side from 16 to 128, into attributes.

    Raises ValueError when the shape is another, or when a value is not finite.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] != pictures.shape[3]:
        raise ValueError(f"pictures have shape {tuple(pictures.shape)}, not (N, 3, side, side)")
    side = pictures.shape[-1]
    if not 16 <= side <= 128:
        raise ValueError(f"pictures have a side of {side} pixels, it should be 16 to 128")
    pictures = pictures.detach().float().cpu()
    if not pictures.isfinite().all():
        raise ValueError("pictures hold values that are not finite, they should be in [-1, 1]")

    # The background is the colour of most of the border.
    width = max(1, side // 32)
    ring = torch.ones(side, side, dtype=torch.bool)
    ring[width:-width, width:-width] = False
    border = pictures[:, :, ring].median(-1).values  # (N, 3)
    background_distances, background = torch.cdist(border, _palette(BACKGROUNDS)).min(1)

    # Each pixel lies near a line from the background to the colour of its object: coverage.
    offset = pictures - border[:, :, None, None]  # (N, 3, H, W)
    directions = _palette(COLOURS) - border[:, None]  # (N, colours, 3)
    lengths = directions.norm(dim=2)
    along = torch.einsum("nchw,nkc->nkhw", offset, directions) / (lengths**2)[..., None, None]
    along = along.clamp(0, 1)
    distance2 = offset.pow(2).sum(1, keepdim=True)  # (N, 1, H, W)
    # |offset - a d|^2, for a the share along the direction d of each colour
    dot = torch.einsum("nchw,nkc->nkhw", offset, directions)
    residual = distance2 - 2 * along * dot + (along * lengths[..., None, None]) ** 2
    label = residual.argmin(1)  # (N, H, W)
    cover = distance2[:, 0].sqrt() / lengths.gather(1, label.flatten(1)).reshape_as(label)

    templates = _templates(side)
    finds = [
        _find_objects(*(part.numpy() for part in parts), templates.patch)
        for parts in zip(offset, cover, label, directions, strict=True)
    ]
    masks = [thing.mask.flatten() for found, _ in finds for thing in found]
    masks = torch.stack(masks) if masks else torch.zeros(0, templates.masks.shape[1])
    fits = zip(*(part.tolist() for part in _best_templates(masks, templates)), strict=True)

    names = list(BACKGROUNDS)
    halfway = (RADII["small"] + RADII["large"]) / 2
    readings = []
    for i, (found, clutter) in enumerate(finds):
        objects = []
        for thing in found:
            index, overlap, clear = next(fits)
            if clear:
                template = templates.masks[index].reshape_as(thing.core)
                shape = templates.names[index]
                size = "small" if templates.radii[index] < halfway else "large"
            else:
                template = shape = size = None
            colour = _colour_name(thing, template, directions[i])
            objects.append(ReadObject(shape, colour, size, thing.x, thing.y, overlap))
        if clutter:
            objects.append(ReadObject(None, None, None, 0.5, 0.5, 0.0))
        known = background_distances[i] <= COLOUR_TOLERANCE
        readings.append(Reading(tuple(objects), names[background[i]] if known else None))
    return readings


def read_picture(picture: Tensor) -> Reading:
    """Read one picture, shape (3, side, side); see ``read_pictures``."""
    return read_pictures(picture.unsqueeze(0))[0]
