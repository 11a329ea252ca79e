"""Readings of images as points, one for each attribute, whose distances count.

numbers = numbers_of(readings, description)    of the described objects, in their order
points = points_of(numbers, world)             by attribute: place, size, tilt, ...
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy.spatial.distance import pdist

from minimagen.data.shapes import (
    BACKGROUNDS,
    TILTS,
    UNTILTED,
    Description,
    World,
    place,
    sample_description,
)
from minimagen.evaluation.reading import Reading, ReadObject, reading_of

Array = np.ndarray  # of float64, if nothing else is said

COLUMNS = {"place": [0, 1], "size": [2], "tilt": [3], "shade": [4]}  # of an object's numbers
GROUNDS = (*BACKGROUNDS, None)  # None: unknown
TYPICAL_SCENES = 512  # from which the units of the attributes are taken
MISSING = 1.0  # distance, at least, of an object that is not there from any that is
# An angle is a point of a circle, turned by so much more that upright, tilted left and tilted right
# are equally far apart: as angles, left and right would outweigh whether anything is tilted at all.
TURN = 120 / (sum(TILTS["tilted"]) / 2)


def _rows(reading: Reading, description: Description) -> list[list[float]]:
    """The numbers of one reading, see ``numbers_of``."""
    wanted, background = description.objects, float(GROUNDS.index(reading.background))
    nothing = [*[np.nan] * 5, background]
    found: list[ReadObject | None] = [*reading.objects]
    found = found + [None] * (len(wanted) - len(found)) if len(found) <= len(wanted) else []
    matches = [
        [
            [o.x, o.y, o.radius, 0.0 if o.shape in UNTILTED else o.tilt, o.shade, background]
            if o and (o.shape, o.colour) == (thing.shape, thing.colour)
            else nothing
            for thing, o in zip(wanted, chosen, strict=True)
        ]
        for chosen in permutations(found, len(wanted))
    ]

    def there_and_in_order(rows: list[list[float]]) -> tuple[int, float]:
        axis = 1 if description.relation == "above" else 0
        there = sum(row is not nothing for row in rows)
        # of two equal objects, the first is the left or the upper one
        return there, rows[-1][axis] - rows[0][axis] if there == 2 else 0.0

    return max(matches, key=there_and_in_order, default=[nothing] * len(wanted))


def numbers_of(readings: Sequence[Reading], description: Description) -> Array:
    """Six numbers of each described object in N readings, (N, objects, 6).

    They are x, y and radius in shares of the side, tilt in degrees, shade, and the index in
    ``GROUNDS`` of the background. The first five are nan if the object is not there. It is there if
    one has its colour and shape, and if there are no more objects than described: with more, nobody
    knows which are meant.
    """
    return np.array([_rows(reading, description) for reading in readings])


def _values(numbers: Array) -> dict[str, Array]:
    """Numbers (N, objects, 6) by attribute, (N, n)."""
    values = {name: numbers[:, :, c].reshape(len(numbers), -1) for name, c in COLUMNS.items()}
    angle = np.deg2rad(np.clip(TURN * values["tilt"], -180, 180))
    values["tilt"] = np.hstack([np.cos(angle), np.sin(angle)])  # see TURN
    return values | {"background": np.eye(len(GROUNDS))[numbers[:, 0, 5].astype(int)]}


@lru_cache(maxsize=8)
def _units(world: World, objects: int) -> tuple[Array, dict[str, float]]:
    """The mean numbers of an object, (6,), and the mean difference of two scenes, by attribute."""
    rng, numbers = random.Random(0), []
    for _ in range(TYPICAL_SCENES):
        description = sample_description(world, rng, objects=objects)
        numbers.append(_rows(reading_of(place(description, rng, world)), description))
    spreads = {name: pdist(values).mean() for name, values in _values(np.array(numbers)).items()}
    return np.mean(numbers, (0, 1)), spreads


def points_of(numbers: Array, world: World) -> dict[str, Array]:
    """Points (N, n) of each attribute; two scenes of any captions have a mean distance of 1."""
    centre, spreads = _units(world, numbers.shape[1])
    missing = ~np.isfinite(numbers).all(2)  # (N, objects)
    filled = np.where(np.isfinite(numbers), numbers, centre)
    points = {name: values / spreads[name] for name, values in _values(filled).items()}
    # one more dimension for each object, so that one that is missing is far from all others
    return points | {name: np.hstack([points[name], MISSING * missing]) for name in COLUMNS}
