"""Caption fidelity: does an image show what its caption says?

This uses no trained network. An image of the captioned-shapes world (``minimagen.data.shapes``) is
read back into attributes by comparing it with renderings of the same world:

    reading = read_image(image)                 how many objects, each one's colour, shape, ...
    verdict = judge(reading, parse_caption(text))   attribute by attribute, right or wrong
    print(caption_fidelity(images, captions))     shares of right images, as a table

The reading is strict: a blob, an object with two colours, a third object, even a faint one, and two
objects that touch all count as wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from minimagen.data import words
from minimagen.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    RELATIONS,
    SHAPES,
    Description,
    PlacedObject,
    World,
    coverage,
    parse_caption,
)

ATTRIBUTES = ("count", "colour", "shape", "size", "relation", "background")

# Colour distances are Euclidean in RGB, in units of the range [-1, 1]. The two nearest entries of
# the palette (orange, yellow) lie 0.65 apart, so that a colour midway between two is refused.
COLOUR_TOLERANCE = 0.3  # of an object's mean colour, and of the background
PURITY = 0.85  # share of an object's pixels that must have its colour
# Minimum soft intersection over union of an object and a rendering of its shape. An edge that
# wobbles a little passes, a blob does not; a wobble costs a shape with a long edge more.
MIN_OVERLAP = {
    "circle": 0.955,
    "square": 0.94,
    "triangle": 0.9,
    "star": 0.85,
    "cross": 0.87,
    "heart": 0.94,
}
MAX_ERROR_RATIO = 0.65  # misfit of the best shape / misfit of the second best; above: unclear
MIN_AREA = 0.006  # minimum area of an object, as a share of the image; the smallest star has 0.034
SOLID = 0.7  # coverage from which a pixel is part of an object


@dataclass(frozen=True)
class ReadObject:
    """One object as an image shows it; None: this attribute is like nothing in the world.

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
    """What an image shows: its objects, largest first, and its background (None: unknown)."""

    objects: tuple[ReadObject, ...]
    background: str | None


@dataclass(frozen=True)
class Fidelity:
    """Shares of images, in [0, 1], that show what their captions say; ``str`` makes a table.

    The share of an attribute is over the images whose captions say it; ``said`` is their number.
    It is None if no caption says it. ``exact_match`` is the share of the ``n`` images that have
    everything right, and ``per_image`` says which they are. ``left_out`` is the number of images
    without a score, because their captions cannot be checked (see ``fidelity``).
    """

    exact_match: float
    count: float
    colour: float | None
    shape: float | None
    size: float | None
    relation: float | None
    background: float | None
    per_image: list[bool]
    n: int
    said: dict[str, int]
    left_out: int = 0

    def __str__(self) -> str:
        rows = [("exact match", self.exact_match, self.n)]
        rows += [(name, getattr(self, name), self.said[name]) for name in ATTRIBUTES]
        lines = [
            f"{name:<12}" + ("not said" if share is None else f"{share:8.1%} of {count}")
            for name, share, count in rows
        ]
        if self.left_out:
            lines.append(
                f"{self.n} of {self.n + self.left_out} images are scored: the captions of the "
                "others cannot be checked"
            )
        return "\n".join(lines)


# --- from images to attributes ------------------------------------------------------------------


def _palette(entries: dict[str, tuple[int, int, int]]) -> Tensor:
    return torch.tensor(list(entries.values())) / 127.5 - 1  # (len(entries), 3)


@dataclass(frozen=True)
class _Templates:
    """Renderings of one object each, its centre of mass near the centre of a small patch."""

    names: list[str]
    radii: Tensor  # (T,), shares of the image's side
    masks: Tensor  # (T, patch * patch), coverage
    patch: int  # odd, in pixels


@functools.lru_cache(maxsize=4)
def _templates(side: int) -> _Templates:
    """Every shape with many radii, shifted by fractions of a pixel."""
    # A little beyond the world's own radii, so that an object of the wrong size fits badly.
    smallest, largest = 0.87 * min(RADII["small"]), 1.13 * max(RADII["large"])
    radii = smallest * (largest / smallest) ** torch.linspace(0, 1, 27)  # 4% apart
    shifts = torch.linspace(-0.5, 0.5, 5 if side < 48 else 3).tolist()  # in pixels
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
    """The template that fits each mask best; masks are (K, patch * patch).

    Returns its index, its overlap, and whether it fits well enough and clearly best; each (K,).
    """
    common = masks @ templates.masks.T  # (K, T)
    total = (masks**2).sum(1, keepdim=True) + (templates.masks**2).sum(1)
    overlaps = (common / (total - common)).unflatten(1, (len(SHAPES), -1))  # (K, shapes, ...)
    per_shape, index = overlaps.max(2)  # (K, shapes)
    (best, second), order = (part.unbind(1) for part in per_shape.topk(2, dim=1))
    shape = order[0]
    enough = best >= torch.tensor([MIN_OVERLAP[name] for name in SHAPES])[shape]
    clear = enough & (1 - best <= MAX_ERROR_RATIO * (1 - second))
    return shape * overlaps.shape[2] + index.gather(1, shape[:, None])[:, 0], best, clear


@dataclass(frozen=True)
class _Found:
    """One object found in an image, before its shape is known."""

    mask: Tensor  # (patch, patch), its coverage as observed
    pixels: Tensor  # (3, patch, patch), minus the background colour
    core: Tensor  # (patch, patch), bool, the better covered half of it
    label: Tensor  # (patch, patch), the palette entry nearest to each pixel
    colour: int  # the label of most of the core
    x: float
    y: float


def _cut(image: np.ndarray, row: int, column: int, patch: int) -> Tensor:
    """The patch around a pixel, zeros beyond the image; (..., H, W) -> (..., patch, patch)."""
    half = patch // 2
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(half, half)] * 2)
    return torch.from_numpy(padded[..., row : row + patch, column : column + patch].copy())


def _find_objects(
    offset: np.ndarray, cover: np.ndarray, label: np.ndarray, directions: np.ndarray, patch: int
) -> tuple[list[_Found], bool]:
    """The objects of one image, largest first, and whether there is anything else (clutter).

    offset: (3, H, W), the image minus its background colour; cover: (H, W), each pixel's distance
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
    # Assign each pixel to the nearest object, if that is near.
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
                float(columns + 0.5) / side,
                float(rows + 0.5) / side,
            )
        )
    return found, bool(clutter)


def _colour_name(thing: _Found, template: Tensor | None, directions: Tensor) -> str | None:
    """The object's colour; None unless its mean is near that colour and most pixels have it."""
    weight = thing.core.float() if template is None else template  # (patch, patch)
    mean = (thing.pixels * weight).sum((1, 2)) / (weight**2).sum()  # least squares, (3,)
    distances = (directions - mean).norm(dim=1)
    pure = (thing.label == thing.colour)[weight > 0.75].float().mean() >= PURITY
    right = distances.argmin() == thing.colour and distances.min() <= COLOUR_TOLERANCE
    return list(COLOURS)[thing.colour] if right and pure else None


def read_images(images: Tensor) -> list[Reading]:
    """Read images, shape (N, 3, side, side), in [-1, 1], side from 16 to 128, into attributes.

    Raises ValueError if the shape or the side is wrong, or if a value is not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images have shape {tuple(images.shape)}, not (N, 3, side, side)")
    side = images.shape[-1]
    if not 16 <= side <= 128:
        raise ValueError(f"images have a side of {side} pixels, it should be 16 to 128")
    if not images.isfinite().all():
        raise ValueError("images hold values that are not finite, they should be in [-1, 1]")
    images = images.detach().float().cpu()
    return [reading for few in images.split(64) for reading in _read(few)]  # 64: less memory


def read_image(image: Tensor) -> Reading:
    """Read one image, shape (3, side, side); see ``read_images``."""
    return read_images(image.unsqueeze(0))[0]


def _read(images: Tensor) -> list[Reading]:
    if images.shape[-1] > 64:  # smaller pixels would not help
        images = functional.adaptive_avg_pool2d(images, 64)
    side = images.shape[-1]
    # The background is the colour of most of the border.
    width = max(1, side // 32)
    ring = torch.ones(side, side, dtype=torch.bool)
    ring[width:-width, width:-width] = False
    border = images[:, :, ring].median(-1).values  # (N, 3)
    background_distances, background = torch.cdist(border, _palette(BACKGROUNDS)).min(1)

    # Each pixel lies near a line from the background to the colour of its object: coverage.
    offset = images - border[:, :, None, None]  # (N, 3, H, W)
    directions = _palette(COLOURS) - border[:, None]  # (N, colours, 3)
    lengths = directions.norm(dim=2)
    dot = torch.einsum("nchw,nkc->nkhw", offset, directions)
    length2 = (lengths**2)[..., None, None]  # (N, colours, 1, 1)
    along = (dot / length2).clamp(0, 1)
    # |offset - along direction|^2, less |offset|^2, which is the same for all colours
    label = (along**2 * length2 - 2 * along * dot).argmin(1)  # (N, H, W)
    cover = offset.norm(dim=1) / lengths.gather(1, label.flatten(1)).reshape_as(label)

    templates = _templates(side)
    finds = [
        _find_objects(o.numpy(), c.numpy(), lab.numpy(), d.numpy(), templates.patch)
        for o, c, lab, d in zip(offset, cover, label, directions, strict=True)
    ]
    rows = [thing.mask.flatten() for found, _ in finds for thing in found]
    masks = torch.stack(rows) if rows else torch.zeros(0, templates.masks.shape[1])
    fits = zip(*(part.tolist() for part in _best_templates(masks, templates)), strict=True)

    names = list(BACKGROUNDS)
    readings = []
    for i, (found, clutter) in enumerate(finds):
        objects = []
        halfway = sum(RADII[size][len(found) > 1] for size in ("small", "large")) / 2
        for thing in found:
            index, overlap, clear = next(fits)
            template, shape, size = None, None, None
            if clear:
                template = templates.masks[index].reshape_as(thing.mask)
                shape = templates.names[index]
                size = "small" if templates.radii[index] < halfway else "large"
            colour = _colour_name(thing, template, directions[i])
            objects.append(ReadObject(shape, colour, size, thing.x, thing.y, overlap))
        if clutter:
            objects.append(ReadObject(None, None, None, 0.5, 0.5, 0.0))
        known = background_distances[i] <= COLOUR_TOLERANCE
        readings.append(Reading(tuple(objects), names[background[i]] if known else None))
    return readings


# --- from attributes to fidelity ------------------------------------------------------------------


def _compare(chosen: Sequence[ReadObject], description: Description) -> dict[str, list[bool]]:
    """For each attribute that the description gives: is it right, object by object?"""
    pairs = list(zip(description.objects, chosen, strict=True))
    agrees = {
        "colour": [thing.colour == seen.colour for thing, seen in pairs],
        "shape": [thing.shape == seen.shape for thing, seen in pairs],
    }
    if any(thing.size for thing, _ in pairs):
        agrees["size"] = [thing.size == seen.size for thing, seen in pairs if thing.size]
    if description.relation:
        right, down = chosen[1].x - chosen[0].x, chosen[1].y - chosen[0].y
        if description.relation == "left of":
            agrees["relation"] = [right > abs(down)]
        else:
            agrees["relation"] = [down > abs(right)]
    return agrees


def judge(reading: Reading, description: Description) -> dict[str, bool]:
    """Which of the attributes that ``description`` says are right in ``reading``.

    Described objects are matched to read ones so that as many of their attributes as possible
    agree; among equal matches, one with the described relation wins. An attribute is right if it is
    right for all objects, and wrong if there are fewer objects than described.
    """
    wanted = description.objects
    largest = reading.objects[:4]  # an image of noise may have a hundred
    if len(largest) < len(wanted):
        nothing = ReadObject(None, None, None, 0.5, 0.5, 0.0)
        largest += (nothing,) * (len(wanted) - len(largest))
    matches = [_compare(chosen, description) for chosen in permutations(largest, len(wanted))]
    # The relation decides only between equal matches: a swapped pair is a wrong relation.
    best = max(
        matches,
        key=lambda agrees: sum(
            sum(agreed) * (0.5 if name == "relation" else 1) for name, agreed in agrees.items()
        ),
    )
    verdict = {"count": len(reading.objects) == len(wanted)}
    verdict |= {name: all(agreed) for name, agreed in best.items()}
    if description.background:
        verdict["background"] = reading.background == description.background
    return verdict


def caption_fidelity(images: Tensor, captions: Sequence[str]) -> Fidelity:
    """How faithfully images, (N, 3, side, side) in [-1, 1], show their N captions.

    In an exact match every attribute of the caption is right, and the background is one of the
    world's, even if the caption does not say which.

    Raises ValueError if the numbers differ or are zero, if a caption is not of the world, or if the
    images cannot be read (see ``read_images``).
    """
    if len(images) != len(captions) or not captions:
        raise ValueError(
            f"there are {len(images)} images and {len(captions)} captions, "
            "there should be one caption for each image, and at least one"
        )
    descriptions = [parse_caption(text) for text in captions]
    readings = read_images(images)
    verdicts = [judge(*pair) for pair in zip(readings, descriptions, strict=True)]
    exact = [
        all(verdict.values()) and reading.background is not None
        for verdict, reading in zip(verdicts, readings, strict=True)
    ]
    rights = {name: [v[name] for v in verdicts if name in v] for name in ATTRIBUTES}
    shares: dict[str, Any] = {n: sum(r) / len(r) if r else None for n, r in rights.items()}
    said = {name: len(right) for name, right in rights.items()}
    return Fidelity(sum(exact) / len(exact), **shares, per_image=exact, n=len(exact), said=said)


def chance_level(captions: Sequence[str], world: World) -> float:
    """The exact match of perfect images of random scenes of the world.

    In closed form: the number of objects, colour, shape, size, relation and background of a scene
    are uniform and independent, so the chance that a scene shows a description is a product. With
    few combinations, such as the held-out ones, shuffled captions match more often than that.

    Raises ValueError if there are no captions, or if one is not of the world.
    """
    if not captions:
        raise ValueError("captions is empty, it should hold at least one caption")

    def chance(description: Description) -> float:
        product = 1 / world.max_objects if len(description.objects) <= world.max_objects else 0.0
        for thing in description.objects:
            known = (thing.colour, thing.shape) in world.combinations
            product *= known / len(world.combinations)
            product /= len(RADII) if thing.size else 1
        product /= len(RELATIONS) if description.relation else 1
        return product / (len(world.backgrounds) if description.background else 1)

    return sum(chance(parse_caption(text)) for text in captions) / len(captions)


def fidelity(
    images: Tensor, captions: Sequence[str], known: Collection[str] | None = None
) -> Fidelity | None:
    """Caption fidelity of those images whose captions are of the shapes world; None without any.

    known: words that the model was trained on; captions with other words are left out too, because
           the model cannot draw them. None: all words count as known.

    ``left_out`` of the result is the number of images without a score.
    """
    scored = [i for i, caption in enumerate(captions) if _can_be_scored(caption, known)]
    if not scored:
        return None
    result = caption_fidelity(images[scored], [captions[i] for i in scored])
    return replace(result, left_out=len(captions) - len(scored))


def _can_be_scored(caption: str, known: Collection[str] | None) -> bool:
    try:
        parse_caption(caption)
    except ValueError:
        return False
    return known is None or set(words(caption)) <= set(known)
