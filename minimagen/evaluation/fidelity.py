"""Caption fidelity: does an image show what its caption says?

    verdict = judge(read_image(image), parse_caption(text))   attribute by attribute, right or wrong
    print(caption_fidelity(images, captions))                 shares of right images, as a table

What a caption leaves open is free here; whether it varies as it should is the question of
``coverage``.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

from torch import Tensor

from minimagen.data import words
from minimagen.data.shapes import (
    LIGHT,
    OFF_CENTRE,
    PLACES,
    RELATIONS,
    SHADES,
    TILTS,
    Description,
    ObjectDescription,
    World,
    place,
)
from minimagen.data.wording import parse_caption
from minimagen.evaluation.reading import (
    NOTHING,
    Reading,
    ReadObject,
    read_images,
    reading_of,
)

ATTRIBUTES = (
    "count",
    "colour",
    "shape",
    "size",
    "tilt",
    "shade",
    "relation",
    "place",
    "background",
)
# What is said is drawn with a gap between one word and the next, and judged at the gap's middle.
HALF_TILTED = (TILTS["upright"][1] + TILTS["tilted"][0]) / 2  # degrees
HALF_DARK = (SHADES["dark"][1] + SHADES["bright"][0] * (1 - LIGHT[1])) / 2  # light only darkens
CHANCES = 50  # scenes drawn for each caption's chance


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
    tilt: float | None
    shade: float | None
    relation: float | None
    place: float | None
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


def _size(seen: ReadObject) -> str | None:
    return seen.size


def _tilt(seen: ReadObject) -> str | None:
    if seen.shape is None:
        return None
    return "upright" if abs(seen.tilt) < HALF_TILTED else "tilted"


def _shade(seen: ReadObject) -> str | None:
    return None if seen.colour is None else "dark" if seen.shade < HALF_DARK else "bright"


def _compare(chosen: Sequence[ReadObject], description: Description) -> dict[str, list[bool]]:
    """For each attribute that the description gives: is it right, object by object?"""
    pairs = list(zip(description.objects, chosen, strict=True))
    agrees = {
        "colour": [thing.colour == seen.colour for thing, seen in pairs],
        "shape": [thing.shape == seen.shape for thing, seen in pairs],
    }
    for name, read in (("size", _size), ("tilt", _tilt), ("shade", _shade)):
        said = [(getattr(thing, name), seen) for thing, seen in pairs if getattr(thing, name)]
        if said:
            agrees[name] = [word == read(seen) for word, seen in said]
    if description.relation:
        right, down = chosen[1].x - chosen[0].x, chosen[1].y - chosen[0].y
        if description.relation == "left of":
            agrees["relation"] = [right > abs(down)]
        else:
            agrees["relation"] = [down > abs(right)]
    if description.place:
        right, down = PLACES[description.place]
        (seen,) = chosen
        agrees["place"] = [min(right * (seen.x - 0.5), down * (seen.y - 0.5)) > OFF_CENTRE / 2]
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
        largest += (NOTHING,) * (len(wanted) - len(largest))
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

    The number of objects and their colours and shapes are uniform and independent, so the chance of
    these is a product; that of all else is a mean over ``CHANCES`` scenes which have them. Of two
    objects, the first one of a scene is the left or upper one, so their order counts. With few
    combinations, such as the held-out ones, shuffled captions match more often than that.

    Raises ValueError if there are no captions, or if one is not of the world.
    """
    if not captions:
        raise ValueError("captions is empty, it should hold at least one caption")
    rng = random.Random(0)

    def chance(description: Description) -> float:
        things = description.objects
        if len(things) > world.max_objects:
            return 0.0
        product = 1 / world.max_objects
        for thing in things:
            known = (thing.colour, thing.shape) in world.combinations
            product *= known / len(world.combinations)
        if product == 0:
            return 0.0
        right = 0
        for _ in range(CHANCES):
            plain = tuple(ObjectDescription(thing.shape, thing.colour) for thing in things)
            relation = rng.choice(RELATIONS) if len(things) == 2 else None
            scene = place(Description(plain, relation), rng, world)
            right += all(judge(reading_of(scene), description).values())
        return product * right / CHANCES

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
