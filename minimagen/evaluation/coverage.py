"""Coverage: does what a caption leaves open vary as it does in the world?

Fidelity asks whether an image shows what its caption says. A model that draws the same image for a
caption each time can have perfect fidelity. Coverage compares several drawings of each caption with
the true scenes of that caption: their places, sizes, tilts, shades and backgrounds.

    scores = caption_coverage(images, captions, world)    several images for each caption
    print(scores)                                         1 is perfect, as a table

Each attribute of a drawing is a point. The distance of M drawings X to the true scenes Y of a
caption is the energy distance

    2 E|X - Y| - E|X - X'| - E|Y - Y'|

with all M * M pairs of drawings, and all pairs of different true scenes. It grows if the drawings
are somewhere else, and if they vary less or more. The error of an attribute is the sum of these
distances over the captions, divided by what M true scenes are expected to have. This is known: for
them each of the three means is E|Y - Y'|, except that a share 1 / M of the pairs of drawings is a
drawing with itself, at distance 0. So the expected distance is E|Y - Y'| / M, and a defect has a
greater error with more drawings: M identical ones have about M. Compare errors of the same M only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.spatial.distance import cdist, pdist
from torch import Tensor

from minimagen.data.shapes import Description, Scene, World, place
from minimagen.data.wording import parse_caption
from minimagen.evaluation.points import COLUMNS, Array, numbers_of, points_of
from minimagen.evaluation.reading import Reading, read_images, reading_of

ATTRIBUTES = (*COLUMNS, "background", "together")
TRUE_SCENES = 256  # of each caption, that the drawings are compared with
TRUE_SEED = -1  # of these scenes
RESAMPLES = 1000  # of the captions, for the interval
# Two drawings are the same picture if no number (see ``numbers_of``) differs by more: half of a
# pixel of 32, the angle that this makes at the end of a radius, and a step of shade that one hardly
# sees. Less than 1 % of the pairs of true scenes are so near to each other.
SAME = (0.016, 0.016, 0.01, 4.0, 0.04, 0.0)


@dataclass(frozen=True)
class Coverage:
    """How far drawings are from the true scenes of their captions; ``str`` makes a table.

    error:        1: the drawings vary as true scenes do; about ``images``: one scene is repeated
                  for each caption; there is no maximum. It is the root mean square of
                  ``by_attribute``, so that the others do not hide one that is wrong
    interval:     of the error, 95 %, from resampled captions
    by_attribute: the error of place, size, tilt, shade, background, and of all of them together,
                  which also sees how they depend on one another; without those that no caption
                  leaves open
    same_picture: share of the pairs of drawings of a caption that are the same picture, in [0, 1]
    captions:     number of captions
    images:       number of drawings of each caption
    """

    error: float
    interval: tuple[float, float]
    by_attribute: dict[str, float]
    same_picture: float
    captions: int
    images: int

    def __str__(self) -> str:
        low, high = self.interval
        lines = [f"{'error':<14}{self.error:6.2f}   (95 %: {low:.2f} to {high:.2f}; 1 is perfect)"]
        lines += [f"  {name:<12}{error:6.2f}" for name, error in self.by_attribute.items()]
        lines.append(f"{'same picture':<14}{self.same_picture:6.1%}   of the pairs of a caption")
        lines.append(f"{self.captions} captions, {self.images} images for each")
        return "\n".join(lines)


# --- true scenes ----------------------------------------------------------------------------------


def true_scenes(captions: Sequence[str], world: World, each: int, seed: int) -> list[list[Scene]]:
    """``each`` true scenes for each caption; what a caption leaves open is drawn by ``seed``.

    Raises ValueError if a caption is not of the world.
    """
    scenes = []
    for index, description in enumerate(_descriptions(captions, world)):
        rng = random.Random(f"{world.name}/{seed}/{index}")
        scenes.append([place(description, rng, world) for _ in range(each)])
    return scenes


def _descriptions(captions: Sequence[str], world: World) -> list[Description]:
    descriptions = [parse_caption(text) for text in captions]
    for text, description in zip(captions, descriptions, strict=True):
        known = all((o.colour, o.shape) in world.combinations for o in description.objects)
        if not known or len(description.objects) > world.max_objects:
            raise ValueError(f"caption {text!r} is not of the world {world.name!r}")
    return descriptions


# --- from points to errors ------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _truth(text: str, world: World) -> tuple[dict[str, Array], dict[str, float]]:
    """Points of true scenes of a caption, and their mean distance; what it decides is left out."""
    (scenes,) = true_scenes([text], world, TRUE_SCENES, TRUE_SEED)
    numbers = numbers_of([reading_of(scene) for scene in scenes], parse_caption(text))
    points = {name: p for name, p in points_of(numbers, world).items() if pdist(p).any()}
    points["together"] = np.hstack(list(points.values()))
    return points, {name: float(pdist(values).mean()) for name, values in points.items()}


def _distances(numbers: Array, text: str, world: World) -> dict[str, tuple[float, float]]:
    """By attribute that the caption leaves open: the drawings' distance, and the expected one."""
    true, within = _truth(text, world)
    points = {name: values for name, values in points_of(numbers, world).items() if name in true}
    points["together"] = np.hstack(list(points.values()))
    distances = {}
    for name, values in points.items():
        apart = 2 * cdist(values, true[name]).mean() - cdist(values, values).mean() - within[name]
        distances[name] = float(apart), within[name] / len(values)
    return distances


def _same_share(numbers: Array) -> float:
    """Share of the pairs that are the same picture; one with a missing object is like no other."""
    first, second = np.triu_indices(len(numbers), 1)
    differences = np.abs(numbers[first] - numbers[second])  # nan: not the same
    return float((differences <= SAME).all((1, 2)).mean())


def coverage_of_readings(
    readings: Sequence[Sequence[Reading]], captions: Sequence[str], world: World
) -> Coverage:
    """The coverage of drawings that have been read; ``readings[i]`` are those of ``captions[i]``.

    Raises ValueError if there are no captions, if they are not of the world, or if there is not the
    same number of readings for each, at least two.
    """
    if not captions or len(readings) != len(captions):
        raise ValueError(
            f"there are readings of {len(readings)} captions and {len(captions)} captions, they "
            "should be as many, and at least one"
        )
    images = len(readings[0])
    if images < 2 or any(len(few) != images for few in readings):
        raise ValueError(
            f"the captions have {sorted({len(few) for few in readings})} images each, all should "
            "have the same number, at least 2"
        )
    descriptions = _descriptions(captions, world)
    numbers = [numbers_of(*pair) for pair in zip(readings, descriptions, strict=True)]
    rows = [_distances(few, text, world) for few, text in zip(numbers, captions, strict=True)]
    names = [name for name in ATTRIBUTES if any(name in row for row in rows)]
    table = np.array([[row.get(name, (0.0, 0.0)) for name in names] for row in rows])
    count = len(captions)
    resampled = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.vstack([np.ones(count), resampled])  # first all captions as they are
    found, expected = np.einsum("rc,cak->kra", weights, table)  # each (1 + RESAMPLES, attributes)
    errors = found / np.where(expected > 0, expected, np.nan)
    error = np.sqrt(np.nanmean(errors**2, 1))
    low, high = np.percentile(error[1:], (2.5, 97.5))
    by_attribute = dict(zip(names, errors[0].tolist(), strict=True))
    same = float(np.mean([_same_share(few) for few in numbers]))
    return Coverage(float(error[0]), (float(low), float(high)), by_attribute, same, count, images)


def caption_coverage(images: Tensor, captions: Sequence[str], world: World) -> Coverage:
    """The coverage of images, (captions * M, 3, side, side) in [-1, 1], caption by caption.

    Raises ValueError if the number of images is not a multiple, at least 2, of that of captions, if
    a caption is not of the world, or if the images cannot be read (see ``read_images``).
    """
    each = len(images) // max(1, len(captions))
    if each < 2 or len(images) != each * len(captions):
        raise ValueError(
            f"there are {len(images)} images and {len(captions)} captions, there should be the "
            "same number of images for each caption, at least 2"
        )
    readings = read_images(images)
    few = [readings[i : i + each] for i in range(0, len(readings), each)]
    return coverage_of_readings(few, captions, world)
