"""Read an image of the shapes world: which objects, where, of which size, tilt, shade and colour?

This uses no trained network. Each object is compared with renderings of the same world, whose
place, radius and angle are fitted to it.

    reading = read_image(image)      how many objects, each one's colour, shape, ..., the background

The reading is strict: a blob, an object with two colours, a third object, even a faint one, and two
objects that touch are all like nothing in the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from minimagen.data.rendering import SHAPES, coverage_of, light_at
from minimagen.data.shapes import ANY_SHADE, BACKGROUNDS, COLOURS, LIGHT, SIZES, TILTS, Scene

# Distances of colours are Euclidean in RGB, in units of the range [-1, 1].
COLOUR_TOLERANCE = 0.2  # of an object's mean colour, and of the background, from the nearest name
PURITY = 0.85  # share of an object's pixels that must have its colour
UNEVEN = 0.1  # maximum distance of four fifths of the border from the plane of its light
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
MIN_AREA = 0.004  # minimum area of an object, as a share of the image; the smallest star has 0.013
FAINT = 0.25  # distance from the background from which a pixel is part of an object
FIT_SIDE = 32  # objects are fitted at this side first
STARTS = (-18.0, -9.0, 0.0, 9.0, 18.0)  # angles from which a fit begins
STEPS = 5  # of Gauss and Newton's method
MOST_TILTED = TILTS["tilted"][1] + 6  # degrees; what is turned farther is like nothing in the world
PERIOD = {"square": 90.0, "star": 72.0, "cross": 90.0, "triangle": 360.0, "heart": 360.0}  # degrees


@dataclass(frozen=True)
class ReadObject:
    """One object as an image shows it; None: this attribute is like nothing in the world.

    x, y, radius: of the fitted shape, as shares of the side; its centre from the top left
    tilt:         the angle by which it is turned clockwise, in degrees; 0 for a circle
    shade:        its colour as a multiple of the brightest colour of that name
    overlap:      in [0, 1], the soft intersection over union with the fitted shape
    """

    shape: str | None
    colour: str | None
    size: str | None
    x: float
    y: float
    radius: float
    tilt: float
    shade: float
    overlap: float


@dataclass(frozen=True)
class Reading:
    """What an image shows: its objects, largest first, and its background (None: unknown)."""

    objects: tuple[ReadObject, ...]
    background: str | None


NOTHING = ReadObject(None, None, None, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0)


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
    if side > 64:  # smaller pixels would not help
        images = functional.adaptive_avg_pool2d(images, 64)
    return [reading for few in images.split(64) for reading in _read(few)]  # 64: less memory


def read_image(image: Tensor) -> Reading:
    """Read one image, shape (3, side, side); see ``read_images``."""
    return read_images(image.unsqueeze(0))[0]


def reading_of(scene: Scene) -> Reading:
    """What a perfect reading of a scene would be; shades are as the light leaves them."""
    pair = len(scene.objects) > 1
    objects = [
        ReadObject(
            thing.shape,
            thing.colour,
            _size(thing.radius, pair),
            thing.x,
            thing.y,
            thing.radius,
            thing.tilt,
            thing.shade * light_at(scene, thing.x, thing.y),
            1.0,
        )
        for thing in sorted(scene.objects, key=lambda thing: -thing.radius)
    ]
    return Reading(tuple(objects), scene.background)


def _size(radius: float, pair: bool) -> str:
    halfway = (SIZES["small"][pair][1] + SIZES["large"][pair][0]) / 2
    return "small" if radius < halfway else "large"


# --- colours --------------------------------------------------------------------------------------
# A name stands for all multiples of its colour between two shades: a line in RGB.


@cache
def _names(table: str) -> tuple[tuple[str, ...], Tensor, tuple[float, float]]:
    """The names of objects' or backgrounds' colours, their RGB in [0, 1], the range of shades."""
    colours, lowest = (COLOURS, ANY_SHADE[0]) if table == "objects" else (BACKGROUNDS, 1.0)
    rgb = torch.tensor(list(colours.values())) / 255
    return tuple(colours), rgb, (lowest * (1 - LIGHT[1]), 1.0)


def _nearest(rgb: Tensor, table: str) -> tuple[Tensor, Tensor, Tensor]:
    """The name nearest to colours (..., 3) in [-1, 1]: its index, the shade, the distance."""
    _, palette, (low, high) = _names(table)
    rgb = (rgb.unsqueeze(-2) + 1) / 2  # (..., 1, 3) in [0, 1]
    shade = ((rgb * palette).sum(-1) / (palette**2).sum(-1)).clamp(low, high)  # (..., names)
    distance = 2 * (rgb - shade[..., None] * palette).norm(dim=-1)
    best, index = distance.min(-1)
    return index, shade.gather(-1, index[..., None])[..., 0], best


# --- background -----------------------------------------------------------------------------------


def _background(images: Tensor) -> tuple[Tensor, Tensor]:
    """The background under each image, (N, 3, side, side), and how uneven its border is, (N,).

    A plane through the pixels of the border, because light falls as a plane; pixels that lie far
    from it count less, so that an object at the border changes little.
    """
    side = images.shape[-1]
    width = max(1, side // 32)
    ring = torch.ones(side, side, dtype=torch.bool)
    ring[width:-width, width:-width] = False
    place = (torch.arange(side) + 0.5) / side - 0.5
    basis = torch.stack([torch.ones(side, side), *torch.meshgrid(place, place, indexing="ij")], -1)
    border, known = images[:, :, ring].mT, basis[ring]  # (N, P, 3), (P, 3)
    weight = torch.ones(len(images), len(known), 1)
    start = border.median(1, keepdim=True).values
    residual = border - start
    for _ in range(6):
        size = residual.norm(dim=-1, keepdim=True)
        scale = size.median(1, keepdim=True).values.clamp(min=0.02)
        weight = 1 / (1 + (size / (2 * scale)) ** 4)
        gram = (known * weight).mT @ known  # (N, 3, 3)
        plane = torch.linalg.solve(gram, (known * weight).mT @ border)  # (N, 3, 3)
        residual = border - known @ plane
    under = torch.einsum("hwk,nkc->nchw", basis, plane)
    # Objects may reach the border, so a fifth of it is not asked.
    distances = residual.norm(dim=-1).sort(1).values
    return under.clamp(-1, 1), distances[:, int(0.8 * distances.shape[1])]


# --- objects --------------------------------------------------------------------------------------


@dataclass
class _Found:
    """One object found in an image, before its shape is known."""

    mask: Tensor  # (side, side), its coverage as observed
    core: Tensor  # (side, side), bool: the better covered half of it
    colour: Tensor  # (3,), the mean of the core


def _find(image: Tensor, under: Tensor) -> tuple[list[_Found], bool]:
    """The objects of one image, largest first, and whether there is anything else."""
    side = image.shape[-1]
    offset = (image - under).numpy()  # (3, side, side)
    distance = np.linalg.norm(offset, axis=0)
    components, number = ndimage.label(distance > FAINT)
    areas = np.bincount(components.ravel(), minlength=number + 1)[1:]
    order = np.argsort(-areas, kind="stable")
    kept = [int(i) + 1 for i in order if areas[i] >= MIN_AREA * side * side]
    objects = np.where(np.isin(components, kept), components, 0)
    # Soft pixels of an edge belong to the nearest object, if that is near.
    far, nearest = ndimage.distance_transform_edt(objects == 0, return_indices=True)
    owner = np.where(far <= 3, objects[tuple(nearest)], 0) if kept else objects
    # Smoothed, so that neither noise nor single specks are clutter, but a faint object is.
    smooth = np.linalg.norm(ndimage.uniform_filter(offset, size=(1, 3, 3)), axis=0)
    clutter = ((smooth > FAINT) & (owner == 0)).mean() >= MIN_AREA
    found = []
    for index in kept:
        inside = objects == index
        inner = ndimage.uniform_filter(distance * inside, size=3, mode="constant")
        core = torch.from_numpy(inside & (inner >= np.median(inner[inside])))
        colour = image[:, core].median(1).values
        # Distance in any direction, so that a patch of another colour spoils the shape.
        whole = (colour[:, None, None] - under).norm(dim=0)
        mask = torch.from_numpy(distance * (owner == index)) / whole.clamp(min=FAINT)
        found.append(_Found(mask.clamp(0, 1), core, colour))
    return found, bool(clutter)


def _overlap(masks: Tensor, drawn: Tensor) -> Tensor:
    """Soft intersection over union of masks, (..., side, side) -> (...)."""
    common = (masks * drawn).sum((-2, -1))
    total = masks.square().sum((-2, -1)) + drawn.square().sum((-2, -1))
    return common / (total - common)


@cache
def _areas() -> dict[str, tuple[float, float]]:
    """Of each shape with radius 1: its area, and how far its centre of mass is below its centre."""
    found = {}
    for shape in SHAPES:
        mask = coverage_of(shape, torch.tensor([[0.5, 0.5, 0.4, 0.0]]), 128)[0]
        rows = (torch.arange(128) + 0.5) / 128 - 0.5
        below = float((mask.sum(1) * rows).sum() / mask.sum()) / 0.4
        found[shape] = float(mask.mean()) / 0.16, below
    return found


def _refine(shape: str, frames: Tensor, masks: Tensor, steps: int) -> Tensor:
    """Fit frames (K, 4) of a shape to masks (K, side, side) by Gauss and Newton's method."""
    side = masks.shape[-1]
    widths = torch.tensor([0.3 / side, 0.3 / side, 0.3 / side, 2.0])  # of finite differences
    free = 3 if shape == "circle" else 4
    damping = 1e-3 * torch.eye(free)
    for _ in range(steps):
        residual = (masks - coverage_of(shape, frames, side)).flatten(1)  # (K, P)
        columns = []
        for i in range(free):
            step = torch.zeros(4)
            step[i] = widths[i]
            more, less = (coverage_of(shape, frames + sign * step, side) for sign in (1, -1))
            columns.append((more - less).flatten(1) / 2)
        slope = torch.stack(columns, -1)  # (K, P, free), per width
        gram = slope.mT @ slope
        gram = gram + damping * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + 1e-6
        gram = gram + 1e-6 * torch.eye(free)
        change = torch.linalg.solve(gram, slope.mT @ residual[..., None])[..., 0]
        limit = torch.tensor([4.0, 4.0, 4.0, 5.0])[:free]
        change = change.clamp(-limit, limit) * widths[:free]
        frames = frames.clone()
        frames[:, :free] += change
        frames[:, 2].clamp_(0.03, 0.6)
    return frames


def _fit(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Fit every shape to masks (K, side, side): overlaps (K, shapes), frames (K, shapes, 4)."""
    side = masks.shape[-1]
    small = masks if side <= FIT_SIDE else functional.adaptive_avg_pool2d(masks, FIT_SIDE)
    few = small.shape[-1]
    place = (torch.arange(few) + 0.5) / few
    total = small.sum((1, 2)).clamp(min=1e-6)
    x = (small.sum(1) @ place) / total
    y = (small.sum(2) @ place) / total
    overlaps, fitted = [], []
    for shape in SHAPES:
        area, below = _areas()[shape]
        radius = (total / few**2 / area).sqrt()
        starts = (0.0,) if shape == "circle" else STARTS
        tilt = torch.tensor(starts)[:, None]  # (starts, 1)
        sin, cos = torch.deg2rad(tilt).sin(), torch.deg2rad(tilt).cos()
        frames = torch.stack(
            torch.broadcast_tensors(
                x + below * radius * sin, y - below * radius * cos, radius, tilt
            ),
            -1,
        )  # (starts, K, 4)
        tried = _overlap(
            small, coverage_of(shape, frames.flatten(0, 1), few).unflatten(0, frames.shape[:2])
        )
        best = frames[tried.argmax(0), torch.arange(len(masks))]  # (K, 4)
        best = _refine(shape, best, small, STEPS)
        if few < side:
            best = _refine(shape, best, masks, 1)
        overlaps.append(_overlap(masks, coverage_of(shape, best, side)))
        fitted.append(best)
    return torch.stack(overlaps, 1), torch.stack(fitted, 1)


def _describe(
    thing: _Found, image: Tensor, overlap: Tensor, frames: Tensor, pair: bool
) -> ReadObject:
    """What an object is; overlap (shapes,) and frames (shapes, 4) are those of its fits."""
    names = list(SHAPES)
    (best, second), order = overlap.topk(2)
    shape: str | None = names[order[0]]
    x, y, radius, tilt = frames[order[0]].tolist()
    if best < MIN_OVERLAP[names[order[0]]] or 1 - best > MAX_ERROR_RATIO * (1 - second):
        shape = None
    period = PERIOD.get(names[order[0]], 0)
    tilt = (tilt + period / 2) % period - period / 2 if period else 0.0
    if abs(tilt) > MOST_TILTED:
        shape = None
    size, solid = None, thing.core
    if shape is not None:
        size = _size(radius, pair)
        drawn = coverage_of(shape, frames[order[0]][None], image.shape[-1])[0]
        solid = drawn > 0.9 if (drawn > 0.9).any() else solid
    pixels = image[:, solid].mT  # (P, 3)
    index, shade, distance = _nearest(pixels.mean(0), "objects")
    pure = (_nearest(pixels, "objects")[0] == index).float().mean() >= PURITY
    right = bool(pure) and float(distance) <= COLOUR_TOLERANCE
    colour = _names("objects")[0][int(index)] if right else None
    return ReadObject(shape, colour, size, x, y, radius, tilt, float(shade), float(best))


def _read(images: Tensor) -> list[Reading]:
    under, uneven = _background(images)
    background, _, far = _nearest(under.mean((2, 3)), "backgrounds")
    finds = [_find(image, below) for image, below in zip(images, under, strict=True)]
    masks = [thing.mask for found, _ in finds for thing in found]
    fits = iter(zip(*_fit(torch.stack(masks)), strict=True)) if masks else iter(())
    readings = []
    for i, (found, clutter) in enumerate(finds):
        objects = [_describe(thing, images[i], *next(fits), pair=len(found) > 1) for thing in found]
        if clutter:
            objects.append(NOTHING)
        even = far[i] <= COLOUR_TOLERANCE and uneven[i] <= UNEVEN
        name = _names("backgrounds")[0][int(background[i])]
        readings.append(Reading(tuple(objects), name if even else None))
    return readings
