"""Captions of the shapes world: from a description to English, and back.

The same templates serve both ways, so every caption parses back to what it was made from. Any
caption, typed or sampled, can so be checked against an image (``minimagen.evaluation``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache

from minimagen.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    FULL,
    PLACES,
    SHADES,
    SIZES,
    TILTS,
    UNTILTED,
    Description,
    ObjectDescription,
)

# {a} is an object with its article, {x} is one without; a comma belongs to the wording.
ALONE = ("{a}", "one {x}", "a picture of {a}", "there is {a}", "a drawing of {a}")
IN_A_PLACE = (
    "{a} in the {place} corner",
    "one {x} in the {place} corner",
    "in the {place} corner, {a}",
    "there is {a} in the {place} corner",
)
# {a} is the left or upper object, {b} the other; a wording may name them in either order.
TOGETHER: dict[str, tuple[str, ...]] = {
    "left of": (
        "{a} to the left of {b}",
        "{a} left of {b}",
        "{b} to the right of {a}",
        "{b} right of {a}",
        "{a} on the left and {b} on the right",
        "{b} on the right and {a} on the left",
        "on the right {b}, on the left {a}",
        "{a} with {b} to its right",
    ),
    "above": (
        "{a} above {b}",
        "{a} over {b}",
        "{b} below {a}",
        "{b} under {a}",
        "{a} at the top and {b} at the bottom",
        "{b} at the bottom and {a} at the top",
        "at the bottom {b}, at the top {a}",
        "{a} with {b} below it",
    ),
}
ON_A_BACKGROUND = (
    "{said} on a {background} background",
    "{said} against a {background} background",
)
OTHER_WORDS = {  # that say the same
    "big": "large",
    "little": "small",
    "gray": "grey",
    **{place.replace("upper", "top").replace("lower", "bottom"): place for place in PLACES},
}


def _others(words: str | None) -> tuple[str, ...]:
    """All ways to say some words; ("",) for None."""
    if words is None:
        return ("",)
    return (words, *(other for other, same in OTHER_WORDS.items() if same == words))


def _words(thing: ObjectDescription) -> Iterator[str]:
    """All ways to say an object, without article."""
    for size in _others(thing.size):
        parts = (size, thing.tilt, thing.shade, thing.colour, thing.shape)
        yield " ".join(part for part in parts if part)


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def phrasings(description: Description) -> list[str]:
    """All captions for ``description``: different wordings of the same content."""
    if len(description.objects) == 1:
        texts = [
            template.format(a=_article(words), x=words, place=place)
            for place in _others(description.place)
            for template in (IN_A_PLACE if place else ALONE)
            for words in _words(description.objects[0])
        ]
    else:
        first, second = (list(map(_article, _words(thing))) for thing in description.objects)
        texts = [
            template.format(a=a, b=b)
            for template in TOGETHER[description.relation or "left of"]
            for a in first
            for b in second
        ]
    if description.background:
        texts = [
            template.format(said=text, background=background)
            for text in texts
            for template in ON_A_BACKGROUND
            for background in _others(description.background)
        ]
    return texts


def caption(description: Description, rng: random.Random) -> str:
    """One of the phrasings of ``description``, chosen by ``rng``."""
    return rng.choice(phrasings(description))


# --- back -----------------------------------------------------------------------------------------


def _any(words: object) -> str:
    return "|".join(words)  # type: ignore[arg-type]


def _thing(name: str) -> str:
    """A pattern of an object: optional size, tilt and shade, then its colour and shape."""
    return (
        rf"(?:(?P<{name}size>{_any(SIZES)}) )?(?:(?P<{name}tilt>{_any(TILTS)}) )?"
        rf"(?:(?P<{name}shade>{_any(SHADES)}) )?"
        rf"(?P<{name}colour>{_any(COLOURS)}) (?P<{name}shape>{_any(FULL.shapes)})"
    )


@cache
def _patterns() -> list[tuple[str | None, re.Pattern[str]]]:
    """Each template as a pattern, with the relation that it says."""
    alone = [(None, template) for template in (*ALONE, *IN_A_PLACE)]
    pairs = [(relation, text) for relation, texts in TOGETHER.items() for text in texts]
    start, end = ON_A_BACKGROUND[0].split(" on ")[1].split("{background}")
    background = rf" (?:on|against) {start}(?P<background>{_any(BACKGROUNDS)}){end}"
    patterns = []
    for relation, template in alone + pairs:
        pattern = template.format(
            a=f"an? {_thing('a')}",
            b=f"an? {_thing('b')}",
            x=_thing("a"),
            place=f"(?P<place>{_any(PLACES)})",
        )
        patterns.append((relation, re.compile(f"{pattern}(?:{background})?")))
    return patterns


@cache
def _known_words() -> frozenset[str]:
    texts = [*ALONE, *IN_A_PLACE, *TOGETHER["left of"], *TOGETHER["above"], *ON_A_BACKGROUND]
    links = re.findall("[a-z]+", re.sub(r"{\w+}", "", " ".join(texts)))
    named = [*COLOURS, *BACKGROUNDS, *FULL.shapes, *SIZES, *TILTS, *SHADES, *PLACES, *OTHER_WORDS]
    return frozenset((*links, *" ".join(named).split(), "an"))


def parse_caption(text: str) -> Description:
    """What a caption says: the inverse of ``caption``.

    Raises ValueError, naming the caption, if it does not have one or two objects, if two objects
    have no relation, or if it says anything else or in other ways.
    """
    text = text.lower().strip()
    plain = re.sub(rf"\b({_any(OTHER_WORDS)})\b", lambda found: OTHER_WORDS[found[0]], text)
    for relation, pattern in _patterns():
        match = pattern.fullmatch(plain)
        if match is None:
            continue
        said = match.groupdict()
        things = tuple(
            ObjectDescription(
                *(said[name + part] for part in ("shape", "colour", "size", "tilt", "shade"))
            )
            for name in ("a", "b")
            if name + "shape" in said
        )
        for thing in things:
            if thing.tilt and thing.shape in UNTILTED:
                raise ValueError(
                    f"caption {text!r} says {thing.tilt!r} of a {thing.shape}, which looks the "
                    "same at every angle"
                )
        return Description(things, relation, said["background"], said.get("place"))
    raise ValueError(f"caption {text!r} {_fault(plain)}")


def _fault(text: str) -> str:
    """What is wrong with a caption that no template has made."""
    objects = re.findall(_thing(""), text)
    strange = [word for word in re.findall(r"\w+", text) if word not in _known_words()]
    if not 1 <= len(objects) <= 2:
        return "should name one or two objects such as 'a red circle'"
    if strange:
        return (
            f"says {strange[0]!r}, it should have only objects such as 'a red circle', their "
            "relation or place, and the background"
        )
    relations = r"\b(left|right|above|over|below|under|top|bottom)\b"
    if len(objects) == 2 and not re.search(relations, text):
        return "has two objects but no relation such as 'left of'"
    return "is worded in another way than this world's, such as 'a red circle left of a blue star'"
