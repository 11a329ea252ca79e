"""The captioned-shapes world: what a caption can say, and what it leaves open.

Four steps, each a plain function, lead from nothing to a training pair:

    description = sample_description(world, rng)       what the caption will say
    text        = caption(description, rng)            one of its English wordings (``wording``)
    scene       = place(description, rng)              everything that the picture needs
    image       = render([scene], side)                the picture (``rendering``)

A caption decides little: where the objects are, how large within their class, whether they are
tilted, how dark their colour is and where the light comes from are drawn anew for each scene. The
table below has all of these distributions.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property

COLOURS: dict[str, tuple[int, int, int]] = {  # sRGB, far apart, so that no two look alike
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (245, 220, 40),
    "purple": (135, 50, 180),
    "orange": (250, 140, 20),
    "cyan": (50, 205, 225),
    "pink": (250, 140, 195),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "grey": (140, 140, 140),
    "black": (20, 20, 20),
}
RELATIONS = ("left of", "above")  # the first object is the left or the upper one

# --- the table of distributions -------------------------------------------------------------------
# All are uniform. Lengths are shares of the image's side, angles are degrees, clockwise.

Range = tuple[float, float]
SIZES: dict[str, tuple[Range, Range]] = {  # radius of a single object, and of one of two
    "small": ((0.24, 0.27), (0.13, 0.15)),
    "large": ((0.33, 0.36), (0.18, 0.2)),
}
TILTS: dict[str, Range] = {  # angle, to either side
    "upright": (0.0, 6.0),
    "tilted": (12.0, 18.0),
}
UNTILTED = ("circle",)  # shapes that look the same at every angle
SHADES: dict[str, Range] = {"dark": (0.58, 0.68), "bright": (0.87, 1.0)}  # the colour times this
ANY_SHADE: Range = (0.58, 1.0)  # where the caption says nothing of it
LIGHT: Range = (0.0, 0.12)  # the light comes from one side; on the other it is darker by this share
PLACES: dict[str, tuple[int, int]] = {  # of a single object: left or right, top or bottom
    "upper left": (-1, -1),
    "upper right": (1, -1),
    "lower left": (-1, 1),
    "lower right": (1, 1),
}
OFF_CENTRE = 0.04  # minimum distance from the image's middle, both ways, of an object in a corner
REACH = 1.1  # no part of an object is farther from its centre than this many radii
GAP = 0.06  # minimum distance of two objects
DIAGONAL = 0.6  # two objects "left of" each other: the height between them is at most this share of
# the width between them; "above": the other way round. So a diagonal is never in doubt.
SAID = {  # share of captions that say it, of those that can
    "size": 0.5,
    "tilt": 0.25,
    "shade": 0.25,
    "place": 0.5,
    "background": 0.5,
}


@dataclass(frozen=True)
class ObjectDescription:
    """One object as a caption describes it. None: the caption leaves it open, any is right.

    size is one of ``SIZES``, tilt of ``TILTS``, shade of ``SHADES``.
    """

    shape: str
    colour: str
    size: str | None = None
    tilt: str | None = None
    shade: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says. None: the caption leaves it open, any is right.

    With two objects, ``relation`` is "left of" (first object left of the second) or "above"; with
    one, ``place`` may be one of ``PLACES``.
    """

    objects: tuple[ObjectDescription, ...]
    relation: str | None = None
    background: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class PlacedObject:
    """One object of an image; ``x, y`` (from top left) and ``radius`` are shares of the side.

    tilt: the angle by which it is turned clockwise, in degrees; shade: its colour is multiplied by
    this
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    tilt: float = 0.0
    shade: float = 1.0


@dataclass(frozen=True)
class Scene:
    """Everything that ``render`` needs.

    light: how much darker the far side of the image is, in [0, 1], and the direction from which the
    light comes, in degrees: 0 is from the right, 90 from below
    """

    objects: tuple[PlacedObject, ...]
    background: str
    light: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class World:
    """The attributes of scenes, and the combinations that are held out of training."""

    name: str
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    max_objects: int = 2
    tilted: float = 0.25  # share of tilted objects, if the caption says nothing of it; 0: none are

    @cached_property
    def combinations(self) -> tuple[tuple[str, str], ...]:
        """Every (colour, shape) pair."""
        return tuple((c, s) for c in self.colours for s in self.shapes)

    @cached_property
    def held_out(self) -> frozenset[tuple[str, str]]:
        """The fixed tenth of the (colour, shape) pairs that never occurs in training.

        They lie on a diagonal: every shape and every colour occurs in training, but not the
        pair. So a correct image of such a pair shows that the model combines what it has learned.
        """
        count = round(len(self.combinations) / 10)
        colours, shapes = self.colours, self.shapes
        return frozenset(
            (colours[(3 * k + 1) % len(colours)], shapes[k % len(shapes)]) for k in range(count)
        )


MINIMAL = World(
    "shapes-minimal",
    shapes=("circle", "square", "triangle", "cross"),
    colours=tuple(COLOURS),
    max_objects=1,
    tilted=0.0,
)
FULL = World(
    "shapes",
    shapes=("circle", "square", "triangle", "star", "cross", "heart"),
    colours=tuple(COLOURS),
)
WORLDS: dict[str, World] = {world.name: world for world in (MINIMAL, FULL)}


def sample_description(
    world: World, rng: random.Random, held_out: bool = False, objects: int | None = None
) -> Description:
    """Sample what a caption says: one or two objects (``objects`` fixes the number).

    ``held_out`` False never uses a held-out (colour, shape) pair; True makes sure that at least one
    object is such a pair.
    """

    def said(name: str, values: object) -> str | None:
        return rng.choice(tuple(values)) if rng.random() < SAID[name] else None  # type: ignore[arg-type]

    seen = [pair for pair in world.combinations if pair not in world.held_out]
    unseen = sorted(world.held_out)
    count = objects if objects is not None else rng.randint(1, world.max_objects)
    pairs = [rng.choice(world.combinations if held_out else seen) for _ in range(count)]
    if held_out:
        pairs[rng.randrange(count)] = rng.choice(unseen)
    things = tuple(
        ObjectDescription(
            shape,
            colour,
            said("size", SIZES),
            said("tilt", TILTS) if world.tilted and shape not in UNTILTED else None,
            said("shade", SHADES),
        )
        for colour, shape in pairs
    )
    return Description(
        things,
        rng.choice(RELATIONS) if count == 2 else None,
        said("background", world.backgrounds),
        said("place", PLACES) if count == 1 else None,
    )


def place(description: Description, rng: random.Random, world: World = FULL) -> Scene:
    """A scene that shows ``description``; all that it leaves open is drawn from the table."""
    pair = len(description.objects) == 2
    shown = []
    for thing in description.objects:
        low, high = SIZES[thing.size or rng.choice(tuple(SIZES))][pair]
        tilt = thing.tilt or ("tilted" if rng.random() < world.tilted else "upright")
        angle = rng.uniform(*TILTS[tilt]) * rng.choice((-1, 1))
        shown.append(
            PlacedObject(
                thing.shape,
                thing.colour,
                0.5,
                0.5,
                rng.uniform(low, high),
                0.0 if thing.shape in UNTILTED else angle,
                rng.uniform(*SHADES[thing.shade] if thing.shade else ANY_SHADE),
            )
        )
    centres = _centres([thing.radius for thing in shown], description, rng)
    objects = tuple(
        PlacedObject(thing.shape, thing.colour, x, y, thing.radius, thing.tilt, thing.shade)
        for thing, (x, y) in zip(shown, centres, strict=True)
    )
    light = rng.uniform(*LIGHT), rng.uniform(0, 360)
    return Scene(objects, description.background or rng.choice(world.backgrounds), light)


def _centres(
    radii: list[float], description: Description, rng: random.Random
) -> list[tuple[float, float]]:
    """Where the objects are: uniform over all places that fit, by drawing until one does."""
    while True:
        centres = []
        for radius in radii:
            room = 0.5 - REACH * radius  # from the middle of the image
            centres.append((0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room)))
        if description.place:
            right, low = PLACES[description.place]
            ((x, y),) = centres
            if min(right * (x - 0.5), low * (y - 0.5)) >= OFF_CENTRE:
                return centres
        elif len(centres) == 2:
            (x1, y1), (x2, y2) = centres
            across, down = x2 - x1, y2 - y1
            along, aside = (across, down) if description.relation == "left of" else (down, across)
            apart = math.hypot(across, down) >= REACH * sum(radii) + GAP
            if apart and abs(aside) <= DIAGONAL * along:
                return centres
        else:
            return centres
