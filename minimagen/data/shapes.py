"""The captioned-shapes world: an endless, seeded, offline source of images and captions.

Three steps, each a plain function, lead from nothing to a training pair:

    description = sample_description(world, rng)       what the caption will say
    text        = caption(description, rng)            one of several English phrasings of it
    image       = render([place(description, rng)], side)   an image that shows it

``parse_caption`` is the inverse, from the text to the description, so that any caption, typed or
sampled, can be checked against an image (``minimagen.evaluation``).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

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
RADII: dict[str, tuple[float, float]] = {  # shares of the image's side: a single object, one of two
    "small": (0.26, 0.17),
    "large": (0.35, 0.225),
}
RADIUS_JITTER = 0.04  # radii vary by this share around their size's value
STRAY = 0.05  # maximum distance of an object from its place, as a share of the side
KEPT_BYTES = 2**29  # of rendered images of a data set, at most
RELATIONS = ("left of", "above")  # the first object is the left or the upper one


@dataclass(frozen=True)
class ObjectDescription:
    """One object as a caption describes it; ``size`` None: the caption gives no size."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says. None: the caption does not give this attribute, any value is right.

    With two objects, ``relation`` is "left of" (first object left of the second) or "above".
    """

    objects: tuple[ObjectDescription, ...]
    relation: str | None = None
    background: str | None = None


@dataclass(frozen=True)
class PlacedObject:
    """One object of an image; ``x, y`` (from top left) and ``radius`` are shares of the side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Everything that ``render`` needs: the objects, with their places, and the background."""

    objects: tuple[PlacedObject, ...]
    background: str


@dataclass(frozen=True)
class World:
    """The attributes of scenes, and the combinations that are held out of training."""

    name: str
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    max_objects: int = 2

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
)
FULL = World(
    "shapes",
    shapes=("circle", "square", "triangle", "star", "cross", "heart"),
    colours=tuple(COLOURS),
)
WORLDS: dict[str, World] = {world.name: world for world in (MINIMAL, FULL)}


# --- captions -------------------------------------------------------------------------------------

# {0} is the left or upper object, {1} the other; a phrasing may name them in either order.
_PAIR = {
    "left of": (
        "{0} to the left of {1}",
        "{0} left of {1}",
        "{1} to the right of {0}",
        "{1} right of {0}",
        "{0} on the left and {1} on the right",
        "on the right {1}, on the left {0}",
    ),
    "above": (
        "{0} above {1}",
        "{0} over {1}",
        "{1} below {0}",
        "{1} under {0}",
        "{0} at the top and {1} at the bottom",
        "at the bottom {1}, at the top {0}",
    ),
}
_REVERSED = re.compile(r"\b(right of|below|under)\b|^(on the right|at the bottom)\b")
_VERTICAL = re.compile(r"\b(above|over|below|under|top|bottom)\b")
_HORIZONTAL = re.compile(r"\b(left|right)\b")
# The words of captions besides objects and backgrounds.
_LINKS = {"a", "an", "one", "picture", "of", "on"}
_LINKS |= set(re.findall("[a-z]+", " ".join(text for texts in _PAIR.values() for text in texts)))


def _words(thing: ObjectDescription) -> str:
    return " ".join(part for part in (thing.size, thing.colour, thing.shape) if part)


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def phrasings(description: Description) -> list[str]:
    """All captions for ``description``: different wordings of the same content."""
    words = [_words(thing) for thing in description.objects]
    if len(words) == 1:  # "picture", because the shipped t5_tiny has no token for "image"
        texts = [_article(words[0]), f"one {words[0]}", f"a picture of {_article(words[0])}"]
    else:
        templates = _PAIR[description.relation or RELATIONS[0]]
        texts = [template.format(*map(_article, words)) for template in templates]
    if description.background:
        texts = [f"{text} on a {description.background} background" for text in texts]
    return texts


def caption(description: Description, rng: random.Random) -> str:
    """One of the phrasings of ``description``, chosen by ``rng``."""
    return rng.choice(phrasings(description))


def parse_caption(text: str) -> Description:
    """What a caption says: the inverse of ``caption``, for any wording with the same words.

    Raises ValueError, naming the caption, if it does not have one or two objects, if two objects
    have no relation, or if it says anything else: an unknown word, or a known word in a wrong
    place, such as the shape without a colour in "a red circle left of a star".
    """
    text = text.lower().strip()
    background = re.search(rf"\b({'|'.join(BACKGROUNDS)}) background\b", text)
    shapes = "|".join(FULL.shapes)
    thing = rf"\b(?:({'|'.join(RADII)}) )?({'|'.join(COLOURS)}) ({shapes})\b"
    objects = tuple(
        ObjectDescription(shape, colour, size or None)
        for size, colour, shape in re.findall(thing, text)
    )
    if not 1 <= len(objects) <= 2:
        raise ValueError(f"caption {text!r} should name one or two objects such as 'a red circle'")
    rest = re.sub(thing, "", text)
    if background:
        rest = rest.replace(background.group(), "", 1)
    strange = [word for word in re.findall(r"\w+", rest) if word not in _LINKS]
    if strange:
        raise ValueError(
            f"caption {text!r} says {strange[0]!r}, it should have only objects such as "
            "'a red circle', their relation and the background"
        )
    relation = None
    if len(objects) == 2:
        for name, pattern in zip(RELATIONS, (_HORIZONTAL, _VERTICAL), strict=True):
            relation = name if pattern.search(text) else relation
        if relation is None:
            raise ValueError(f"caption {text!r} has two objects but no relation such as 'left of'")
        if _REVERSED.search(text):
            objects = objects[::-1]
    return Description(objects, relation, background.group(1) if background else None)


# --- scenes ---------------------------------------------------------------------------------------


def sample_description(
    world: World, rng: random.Random, held_out: bool = False, objects: int | None = None
) -> Description:
    """Sample what a caption says: one or two objects (``objects`` fixes the number).

    Half of the descriptions give a size, and half a background. ``held_out`` False never uses a
    held-out (colour, shape) pair; True makes sure that at least one object is such a pair.
    """
    seen = [pair for pair in world.combinations if pair not in world.held_out]
    unseen = sorted(world.held_out)
    count = objects if objects is not None else rng.randint(1, world.max_objects)
    pairs = [rng.choice(world.combinations if held_out else seen) for _ in range(count)]
    if held_out:
        pairs[rng.randrange(count)] = rng.choice(unseen)
    return Description(
        tuple(
            ObjectDescription(shape, colour, rng.choice((*RADII, None, None)))
            for colour, shape in pairs
        ),
        rng.choice(RELATIONS) if count == 2 else None,
        rng.choice((None, rng.choice(world.backgrounds))),
    )


def place(description: Description, rng: random.Random, world: World = FULL) -> Scene:
    """A scene that shows ``description``; all other attributes and the places are random."""

    def around(centre: float, spread: float) -> float:
        return centre + rng.uniform(-spread, spread)

    pair = len(description.objects) == 2
    objects = []
    for index, thing in enumerate(description.objects):
        if pair:
            along, across = around(0.25 + 0.5 * index, 0.01), around(0.5, STRAY)
        else:
            along, across = around(0.5, STRAY), around(0.5, STRAY)
        x, y = (across, along) if description.relation == "above" else (along, across)
        radius = RADII[thing.size or rng.choice(tuple(RADII))][pair] * around(1.0, RADIUS_JITTER)
        objects.append(PlacedObject(thing.shape, thing.colour, x, y, radius))
    return Scene(tuple(objects), description.background or rng.choice(world.backgrounds))


# --- rendering ------------------------------------------------------------------------------------
# A shape is a signed distance to its edge, negative inside, in a frame where its radius is 1 and
# v points down. Distances make smooth edges at any size: a pixel's coverage is its distance to the
# edge, in pixels, clipped to [0, 1].


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.95


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.82


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    height, half_base = 1.75, 1.0  # apex at v = -1, base at v = 0.75
    slope = math.hypot(height, half_base)
    side = (u.abs() * height - (v + 1) * half_base) / slope
    return torch.maximum(side, v - 0.75)


def _star(u: Tensor, v: Tensor) -> Tensor:
    # fold the plane into one half of one of five points, where the edge is a straight line
    sector = 2 * math.pi / 5
    angle = torch.atan2(u, -v)
    angle = (angle - torch.round(angle / sector) * sector).abs()
    radius = torch.hypot(u, v)
    along, across = radius * angle.cos(), radius * angle.sin()
    inner_x, inner_y = 0.43 * math.cos(sector / 2), 0.43 * math.sin(sector / 2)
    normal = (inner_y, 1 - inner_x)  # from the tip (1, 0) to the inner corner
    return ((along - 1) * normal[0] + across * normal[1]) / math.hypot(*normal)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    u, v = u.abs(), v.abs()
    return torch.minimum(torch.maximum(u - 1, v - 0.32), torch.maximum(u - 0.32, v - 1))


def _heart(u: Tensor, v: Tensor) -> Tensor:
    # a square on its corner, and a disc on each of its upper sides
    half = 0.82 / math.sqrt(2)
    square = (u.abs() + (v - 0.06).abs()) / math.sqrt(2) - half
    lobe = torch.hypot(u.abs() - 0.41, v + 0.35) - half
    return torch.minimum(square, lobe)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
}


def coverage(objects: Sequence[PlacedObject], side: int) -> Tensor:
    """How much of each pixel each object covers, in [0, 1], shape (len(objects), side, side)."""
    centres = (torch.arange(side) + 0.5) / side
    frame = torch.tensor([[o.x, o.y, o.radius] for o in objects]).reshape(-1, 3, 1, 1)
    x, y, radius = frame.unbind(1)  # each (N, 1, 1)
    u = (centres.reshape(1, 1, -1) - x) / radius  # (N, 1, W)
    v = (centres.reshape(1, -1, 1) - y) / radius  # (N, H, 1)
    masks = torch.empty(len(objects), side, side)
    for name, distance in SHAPES.items():
        chosen = [i for i, o in enumerate(objects) if o.shape == name]
        if chosen:
            masks[chosen] = distance(*torch.broadcast_tensors(u[chosen], v[chosen]))
    return (0.5 - masks * radius * side).clamp(0, 1)


def _to_range(rgb: tuple[int, int, int]) -> list[float]:
    return [value / 127.5 - 1 for value in rgb]


def render(scenes: Sequence[Scene], side: int) -> Tensor:
    """Images of scenes, shape (len(scenes), 3, side, side), float32 in [-1, 1].

    Raises ValueError when ``side`` is not positive.
    """
    if side < 1:
        raise ValueError(f"side is {side}, it should be a positive number of pixels")
    image = torch.tensor([_to_range(BACKGROUNDS[scene.background]) for scene in scenes])
    image = image.reshape(-1, 3, 1, 1).repeat(1, 1, side, side)
    for layer in range(max((len(scene.objects) for scene in scenes), default=0)):
        rows = [i for i, scene in enumerate(scenes) if len(scene.objects) > layer]
        objects = [scenes[i].objects[layer] for i in rows]
        mask = coverage(objects, side).unsqueeze(1)  # (N, 1, H, W)
        colour = torch.tensor([_to_range(COLOURS[o.colour]) for o in objects])
        image[rows] += mask * (colour.reshape(-1, 3, 1, 1) - image[rows])
    return image


# --- the data set ---------------------------------------------------------------------------------


class ShapesDataset(Dataset[dict[str, object]]):
    """A map-style data set of captioned shapes; item i depends only on ``seed`` and i.

    An item is {"image": (3, side, side) in [-1, 1], "caption": str}. Images are rendered when they
    are first needed and kept as bytes, so that later epochs are fast; if there are too many for
    that, they are rendered each time.

    world:    the attributes of the scenes (``MINIMAL`` or ``FULL``)
    length:   number of scenes
    side:     side of the images, in pixels
    seed:     of scenes, places and phrasings
    held_out: only scenes with a held-out combination, instead of none

    captions: of all items; pictures: the number of each item's picture: its own
    """

    check = ""  # nothing was looked at
    left_out = ()

    def __init__(
        self, world: World, length: int, side: int, seed: int = 0, held_out: bool = False
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}, it should be a positive number of scenes")
        self.world, self.side, self.seed, self.held_out = world, side, seed, held_out
        self.captions: list[str] = []
        self.scenes: list[Scene] = []
        self.pictures = range(length)
        for index in range(length):
            rng = random.Random(f"{world.name}/{held_out}/{seed}/{index}")
            description = sample_description(world, rng, held_out)
            self.captions.append(caption(description, rng))
            self.scenes.append(place(description, rng, world))
        self._bytes = torch.zeros(0, 3, side, side, dtype=torch.uint8)  # of all, once one is drawn
        self._drawn = torch.zeros(length, dtype=torch.bool)

    def digest(self) -> str:
        """SHA-256 of the world, the seed and all captions: they decide every scene."""
        told = [self.world.name, self.held_out, self.seed, self.captions]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def at(self, side: int) -> ShapesDataset:
        """The same scenes, drawn with another side."""
        other = copy.copy(self)
        other.side = side
        other._bytes, other._drawn = self._bytes.new_zeros(0, 3, side, side), self._drawn & False
        return other

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.items([index])[0]

    def items(self, indices: Sequence[int], epoch: int | None = None) -> list[dict[str, object]]:
        """Several items at once, the same in every epoch: one call renders all of them."""
        indices = list(indices)
        if len(self) * 3 * self.side**2 > KEPT_BYTES:
            pixels = self._draw(indices)
        else:
            if not len(self._bytes):
                self._bytes = self._bytes.new_zeros(len(self), 3, self.side, self.side)
            new = [i for i in indices if not self._drawn[i]]
            if new:
                self._bytes[new] = self._draw(new)
                self._drawn[new] = True
            pixels = self._bytes[indices]
        return [
            {"image": image, "caption": self.captions[i]}
            for image, i in zip(pixels.float() / 127.5 - 1, indices, strict=True)
        ]

    def _draw(self, indices: list[int]) -> Tensor:
        """Images as bytes, (len(indices), 3, side, side)."""
        images = render([self.scenes[i] for i in indices], self.side)
        return ((images + 1) * 127.5).round().to(torch.uint8)
