"""Reading and fidelity: true pictures are read right, everything else is refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from minimagen.data.rendering import SHAPES, light_at, render
from minimagen.data.shapes import (
    ANY_SHADE,
    BACKGROUNDS,
    COLOURS,
    FULL,
    LIGHT,
    MINIMAL,
    PLACES,
    REACH,
    RELATIONS,
    SHADES,
    SIZES,
    TILTS,
    UNTILTED,
    Description,
    ObjectDescription,
    PlacedObject,
    Scene,
    World,
    place,
    sample_description,
)
from minimagen.data.wording import caption, parse_caption
from minimagen.evaluation import (
    ATTRIBUTES,
    Fidelity,
    Reading,
    ReadObject,
    caption_fidelity,
    chance_level,
    fidelity,
    judge,
    read_image,
    read_images,
    reading_of,
)
from minimagen.evaluation.fidelity import HALF_TILTED
from minimagen.evaluation.reading import MOST_TILTED, STARTS

BOTH_WORLDS = pytest.mark.parametrize("world", [MINIMAL, FULL], ids=lambda world: world.name)
NOISE = 0.04  # standard deviation; neighbouring pixels then differ by a few of 255 steps


def _thing(rng: random.Random, shape: str, colour: str) -> ObjectDescription:
    """An object of which everything is said."""
    tilt = None if shape in UNTILTED else rng.choice(list(TILTS))
    return ObjectDescription(shape, colour, rng.choice(list(SIZES)), tilt, rng.choice(list(SHADES)))


def _descriptions(world: World, repeats: int = 2) -> list[Description]:
    """Every colour of every shape, and every two shapes in both relations; all of it said."""
    rng = random.Random(0)
    found = [
        Description(
            (_thing(rng, shape, colour),),
            None,
            rng.choice(world.backgrounds),
            rng.choice([None, *PLACES]),
        )
        for colour, shape in world.combinations
        for _ in range(repeats)
    ]
    if world.max_objects == 2:
        found += [
            Description(
                tuple(_thing(rng, shape, rng.choice(world.colours)) for shape in shapes),
                relation,
                rng.choice(world.backgrounds),
            )
            for shapes in product(world.shapes, repeat=2)
            for relation in RELATIONS
        ]
    return found


def _scenes(descriptions: Sequence[Description], world: World = FULL) -> list[Scene]:
    rng = random.Random(1)
    return [place(description, rng, world) for description in descriptions]


def _captions(descriptions: Sequence[Description]) -> list[str]:
    rng = random.Random(2)
    return [caption(description, rng) for description in descriptions]


def _noisy(images: Tensor, std: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return images + std * torch.randn(images.shape, generator=generator)


def _blur(images: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma)))


def _radius(size: str, objects: int) -> float:
    return sum(SIZES[size][objects == 2]) / 2


# How far a number may be from the scene's: place, radius, tilt, shade.
Bounds = tuple[float, float, float, float]


def _faults(reading: Reading, scene: Scene, bounds: Bounds) -> list[str]:
    """The attributes that are read wrong, each object beside the nearest one of the scene."""
    true = reading_of(scene)
    if len(reading.objects) != len(true.objects):
        return ["count"]

    def apart(chosen: Sequence[ReadObject]) -> float:
        pairs = zip(chosen, true.objects, strict=True)
        return sum(abs(seen.x - thing.x) + abs(seen.y - thing.y) for seen, thing in pairs)

    faults = [] if reading.background == true.background else ["background"]
    for seen, thing in zip(
        min(permutations(reading.objects), key=apart), true.objects, strict=True
    ):
        names = ("shape", "colour", "size")
        faults += [name for name in names if getattr(seen, name) != getattr(thing, name)]
        by_name = {"x": bounds[0], "y": bounds[0], "radius": bounds[1]}
        by_name |= {"tilt": bounds[2], "shade": bounds[3]}
        for name, bound in by_name.items():
            if abs(getattr(seen, name) - getattr(thing, name)) > bound:
                faults.append(name)
    return faults


LARGE = _radius("large", 2)
RED_CIRCLE = PlacedObject("circle", "red", 0.25, 0.45, LARGE)
BLUE_STAR = PlacedObject("star", "blue", 0.75, 0.5, LARGE)
PAIR = Scene((RED_CIRCLE, BLUE_STAR), "white")
PAIR_CAPTION = "a red circle to the left of a blue star on a white background"
ALONE = replace(RED_CIRCLE, x=0.5, y=0.5, radius=_radius("large", 1))


def _shows(scene: Scene, text: str) -> bool:
    return caption_fidelity(render([scene], 64), [text]).per_image[0]


def _wrong(reading: Reading, text: str) -> set[str]:
    return {name for name, right in judge(reading, parse_caption(text)).items() if not right}


# --- true pictures are read right -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "side", "least", "bounds"),
    [
        (MINIMAL, 16, 0.97, (0.01, 0.02, 3, 0.15)),  # arms of a small cross are a pixel wide
        (MINIMAL, 32, 1, (0.003, 0.008, 1, 0.05)),
        pytest.param(FULL, 32, 0.99, (0.003, 0.008, 1, 0.05), marks=pytest.mark.slow),
        (MINIMAL, 64, 1, (0.003, 0.003, 1, 0.03)),
        (FULL, 64, 1, (0.003, 0.003, 1, 0.03)),
        (MINIMAL, 128, 1, (0.003, 0.003, 1, 0.03)),
        pytest.param(FULL, 128, 1, (0.003, 0.003, 1, 0.03), marks=pytest.mark.slow),
        pytest.param(FULL, 100, 1, (0.006, 0.006, 2.5, 0.06), marks=pytest.mark.slow),
    ],
)
def test_true_pictures_are_read_right(
    world: World, side: int, least: float, bounds: Bounds
) -> None:
    """Attribute by attribute; and the descriptions that say all of it are found to be shown."""
    descriptions = _descriptions(world)
    scenes = _scenes(descriptions, world)
    readings = read_images(render(scenes, side))
    faults = {
        i: found
        for i, (reading, scene) in enumerate(zip(readings, scenes, strict=True))
        if (found := _faults(reading, scene, bounds))
    }
    assert len(faults) <= (1 - least) * len(scenes), faults
    shown = [all(judge(*both).values()) for both in zip(readings, descriptions, strict=True)]
    assert sum(shown) >= least * len(scenes)


@BOTH_WORLDS
def test_a_little_noise_changes_nothing(world: World) -> None:
    """Neither words nor numbers."""
    scenes = _scenes(_descriptions(world, 1), world)
    for reading, scene in zip(read_images(_noisy(render(scenes, 64), NOISE)), scenes, strict=True):
        assert _faults(reading, scene, (0.006, 0.006, 3, 0.04)) == []


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 64])
def test_reading_is_stable(side: int) -> None:
    """Slight noise, blur, a slight cast and fainter contrast change nothing that a person sees."""
    descriptions = _descriptions(FULL, 1)[::2]
    images, captions = render(_scenes(descriptions), side), _captions(descriptions)
    cast = torch.tensor([0.08, -0.06, 0.06]).reshape(3, 1, 1)
    # More blur at 32 pixels mixes the colour of a small star with the background.
    blurred = _blur(images, side / 128)
    for changed in (_noisy(images, NOISE), blurred, images + cast, 0.96 * images):
        assert caption_fidelity(changed, captions).exact_match >= 0.96


def test_a_reading_does_not_depend_on_the_batch() -> None:
    """Images are read a few at a time; the borders between those groups must not show."""
    images = render(_scenes(_descriptions(FULL)[-70:]), 32)
    together, alone = read_images(images)[65], read_image(images[65])
    assert together.background == alone.background
    for one, other in zip(together.objects, alone.objects, strict=True):
        assert (one.shape, one.colour, one.size) == (other.shape, other.colour, other.size)
        for name in ("x", "y", "radius", "tilt", "shade", "overlap"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-3)
    assert read_images(images[:0]) == []


@pytest.mark.parametrize("shape", FULL.shapes)
def test_every_angle_of_the_world_is_read(shape: str) -> None:
    """To either side, from upright to the most that is drawn."""
    angles = [-TILTS["tilted"][1], *STARTS, 4.5, TILTS["upright"][1], TILTS["tilted"][0]]
    scenes = [Scene((replace(ALONE, shape=shape, tilt=angle),), "black") for angle in angles]
    for reading, angle in zip(read_images(render(scenes, 64)), angles, strict=True):
        (seen,) = reading.objects
        assert seen.tilt == pytest.approx(0 if shape in UNTILTED else angle, abs=0.5)
        assert seen.shape == shape and seen.overlap > 0.97


def test_large_and_small_are_relative_to_the_number_of_objects() -> None:
    """Alone, objects are drawn larger: the same radius is large in a pair, and small alone."""
    halves = [(SIZES["small"][pair][1] + SIZES["large"][pair][0]) / 2 for pair in (0, 1)]
    radius = sum(halves) / 2
    alone = Scene((replace(RED_CIRCLE, radius=radius),), "white")
    pair = Scene((*alone.objects, replace(BLUE_STAR, radius=radius)), "white")
    for one, both in (map(reading_of, (alone, pair)), read_images(render([alone, pair], 64))):
        assert [thing.size for thing in one.objects] == ["small"]
        assert [thing.size for thing in both.objects] == ["large", "large"]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_has_no_objects(background: str) -> None:
    """Whatever the light."""
    lights = [(0.0, 0.0), *((LIGHT[1], angle) for angle in (0.0, 135.0, 270.0))]
    readings = read_images(render([Scene((), background, light) for light in lights], 64))
    assert readings == [Reading((), background)] * len(lights)


# --- colours, light and shade ---------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_neither_light_nor_shade_changes_the_name_of_a_colour(background: str, side: int) -> None:
    """Darkest and brightest, in the strongest light from every side, near to it and far from it."""
    radius = _radius("small", 1)
    room = 0.5 - REACH * radius
    scenes = [
        Scene(
            (PlacedObject("square", colour, 0.5 + right, 0.5 + down, radius, 0.0, shade),),
            background,
            (LIGHT[1], angle),
        )
        for colour in COLOURS
        for shade in ANY_SHADE
        for angle in (0.0, 45.0, 135.0, 270.0)
        for right, down in ((-room, -room), (room, room))
    ]
    for reading, scene in zip(read_images(render(scenes, side)), scenes, strict=True):
        assert _faults(reading, scene, (0.003, 0.003, 1, 0.03)) == [], scene


@pytest.mark.parametrize("shade", SHADES)
def test_dark_and_bright_are_told_apart_in_any_light(shade: str) -> None:
    """Light makes a colour darker: a bright one far from it is still not a dark one."""
    (other,) = set(SHADES) - {shade}
    room = 0.5 - REACH * SIZES["small"][1][0]  # of the smallest object, the widest
    for value, angle, far in product(SHADES[shade], (0.0, 45.0, 90.0), (-room, room)):
        thing = PlacedObject(
            "square", "green", 0.5 + far, 0.5 + far, SIZES["small"][0][0], shade=value
        )
        reading = reading_of(Scene((thing,), "grey", (LIGHT[1], angle)))
        assert _wrong(reading, f"a {shade} green square") == set()
        assert _wrong(reading, f"a {other} green square") == {"shade"}
        # as much room for errors of the reading on both sides
        for step in (-0.02, 0.02):
            (seen,) = reading.objects
            moved = replace(reading, objects=(replace(seen, shade=seen.shade + step),))
            assert _wrong(moved, f"a {shade} green square") == set()


def test_a_reading_of_a_scene_has_the_shade_as_the_light_leaves_it() -> None:
    """And everything else as it is."""
    scene = Scene((replace(ALONE, shade=0.8, x=0.3),), "grey", (0.1, 0.0))
    (seen,) = reading_of(scene).objects
    assert seen.shade == pytest.approx(0.8 * light_at(scene, 0.3, 0.5))
    assert seen.shade == pytest.approx(0.8 * (1 - 0.1 * 0.7))
    assert (seen.x, seen.y, seen.radius, seen.overlap) == (0.3, 0.5, ALONE.radius, 1)


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_of_no_name_are_refused(colour: str) -> None:
    """Far too dark; and half transparent, as where a model is not sure whether it is there."""
    thing = replace(ALONE, colour=colour)
    dark, solid, empty = render(
        [
            Scene((replace(thing, shade=0.5 * ANY_SHADE[0]),), "white"),
            Scene((thing,), "white"),
            Scene((), "white"),
        ],
        64,
    )
    for image in (dark, (solid + empty) / 2):
        assert read_image(image).objects[0].colour is None
    assert read_image(solid).objects[0].colour == colour


@pytest.mark.parametrize(
    ("one", "other"), [("red", "blue"), ("orange", "yellow"), ("red", "orange")]
)
def test_a_colour_between_two_is_refused(one: str, other: str) -> None:
    """Midway between two entries of the palette a colour has no name."""
    mixed = render([Scene((replace(ALONE, colour=c),), "black") for c in (one, other)], 64)
    assert read_image(mixed.mean(0)).objects[0].colour is None


@pytest.mark.parametrize("side", [16, 64])
@pytest.mark.parametrize(("one", "other"), [("red", "blue"), ("orange", "yellow")])
def test_two_colours_in_one_object_are_refused(one: str, other: str, side: int) -> None:
    """Half red, half blue is neither; blue with a red cap is not blue."""
    cap, body = render([Scene((replace(ALONE, colour=c),), "white") for c in (one, other)], side)
    for share in (0.5, 0.3):
        row = round(side * (0.5 + 0.95 * ALONE.radius * (2 * share - 1)))
        image = torch.cat([cap[:, :row], body[:, row:]], dim=1)[None]
        assert not caption_fidelity(image, [f"a {one} circle"]).per_image[0]
        assert not caption_fidelity(image, [f"a {other} circle"]).per_image[0]


def test_objects_at_the_border_do_not_hide_the_background() -> None:
    """Two objects that differ much from a white background, as near to its border as can be."""
    near = [
        PlacedObject("cross", "orange", 0.752, 0.352, 0.14, 0.0, 0.7),
        PlacedObject("cross", "purple", 0.837, 0.777, 0.148, 5.0, 0.73),
    ]
    for background in BACKGROUNDS:
        image = render([Scene(tuple(near), background, (0.1, 300.0))], 64)[0]
        assert read_image(image).background == background


def test_a_background_of_no_known_colour_is_refused() -> None:
    """Even when the caption leaves the background open, it must be one of the world's."""
    image = render([PAIR], 64)
    ground = (image - image[:, :, :1, :1]).norm(dim=1, keepdim=True) < 1e-3
    halves = torch.where(torch.arange(64) < 32, 0.92, -0.84)
    green = torch.tensor([0.5, 0.9, 0.5]).reshape(3, 1, 1)
    for other in (green, halves, 0.55 * image):  # 0.55: far more than the strongest light
        changed = torch.where(ground, other, image)
        assert read_image(changed[0]).background is None
        assert not caption_fidelity(changed, ["a red circle left of a blue star"]).per_image[0]
        assert not caption_fidelity(changed, [PAIR_CAPTION]).per_image[0]


# --- the judge ------------------------------------------------------------------------------------


def test_the_image_of_the_caption_is_accepted() -> None:
    """What the refusals below are measured against."""
    assert _shows(PAIR, PAIR_CAPTION)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a blue circle to the left of a red star", {"colour"}),  # colours swapped
        ("a red star to the left of a blue circle", {"colour"}),  # shapes swapped
        ("a blue star to the left of a red circle", {"relation"}),  # places swapped
        ("a red circle above a blue star", {"relation"}),
        ("a red circle below a blue star", {"relation"}),
        ("a red circle", {"count"}),
        ("a red circle to the left of a blue heart", {"shape"}),
        ("a red circle to the left of a purple star", {"colour"}),
        ("a small red circle to the left of a blue star", {"size"}),
        ("a red circle to the left of a tilted blue star", {"tilt"}),
        ("a dark red circle to the left of a blue star", {"shade"}),
        ("a red circle to the left of a small dark blue star", {"size", "shade"}),
        (PAIR_CAPTION.replace("white", "grey"), {"background"}),
        ("a large bright red circle left of a large upright bright blue star", set()),
    ],
)
def test_each_kind_of_mistake_is_named(text: str, wrong: set[str]) -> None:
    """Exactly the attribute that is wrong is said to be wrong."""
    for reading in (reading_of(PAIR), read_image(render([PAIR], 64)[0])):
        found = _wrong(reading, text)
        # colours swapped is the same image as shapes swapped: either may be called wrong
        assert found == wrong or (wrong == {"colour"} and found == {"shape"})


@BOTH_WORLDS
def test_one_other_word_is_one_wrong_attribute(world: World) -> None:
    """For every kind of word, in scenes of all descriptions."""
    others: dict[str, dict[str, str]] = {
        name: dict(zip(table, [*list(table)[1:], *list(table)[:1]], strict=True))
        for name, table in (("size", SIZES), ("tilt", TILTS), ("shade", SHADES), ("place", PLACES))
    }
    others["background"] = {"white": "grey", "grey": "black", "black": "white"}
    others["relation"] = {"left of": "above", "above": "left of"}
    descriptions = _descriptions(world)
    for description, scene in zip(descriptions, _scenes(descriptions, world), strict=True):
        reading = reading_of(scene)
        assert all(judge(reading, description).values())
        first, *rest = description.objects
        changed = {
            name: replace(description, **{name: others[name][getattr(description, name)]})
            for name in ("place", "background", "relation")
            if getattr(description, name)
        }
        for name in ("size", "tilt", "shade"):
            if getattr(first, name):
                other = replace(first, **{name: others[name][getattr(first, name)]})
                changed[name] = replace(description, objects=(other, *rest))
        if not rest:  # in a pair, another colour may make it the other object
            other_colour = "red" if first.colour != "red" else "blue"
            changed["colour"] = replace(description, objects=(replace(first, colour=other_colour),))
            other_shape = "cross" if first.shape != "cross" else "square"
            changed["shape"] = replace(description, objects=(replace(first, shape=other_shape),))
        for name, other_description in changed.items():
            if rest and name in ("size", "tilt", "shade") and first == rest[0]:
                continue  # two equal objects
            verdict = judge(reading, other_description)
            assert [n for n, right in verdict.items() if not right] == [name], other_description
            assert set(verdict) <= set(ATTRIBUTES)


def test_what_a_caption_leaves_open_is_not_judged() -> None:
    """Any size, tilt, shade and background show a caption that says none of them."""
    verdict = judge(reading_of(PAIR), parse_caption("a red circle left of a blue star"))
    assert verdict == dict.fromkeys(("count", "colour", "shape", "relation"), True)


def test_a_relation_is_wrong_before_anything_else_is() -> None:
    """Objects that differ in one word alone: the word says which is meant, not the place."""
    small = replace(RED_CIRCLE, x=0.75, radius=_radius("small", 2))
    reading = reading_of(Scene((RED_CIRCLE, small), "white"))
    for objects in (reading.objects, reading.objects[::-1]):
        other = replace(reading, objects=objects)
        assert _wrong(other, "a small red circle left of a red circle") == {"relation"}
        assert _wrong(other, "a red circle left of a small red circle") == set()


def test_a_diagonal_is_never_in_doubt() -> None:
    """The relation of every true scene is its own, and none of the three others."""
    rng = random.Random(0)
    for _ in range(200):
        description = sample_description(FULL, rng, objects=2)
        first, second = (ObjectDescription(shape, "red") for shape in ("circle", "star"))
        description = Description((first, second), description.relation)
        reading = reading_of(place(description, rng))
        for objects, relation in product(((first, second), (second, first)), RELATIONS):
            verdict = judge(reading, Description(objects, relation))
            same = (objects, relation) == (description.objects, description.relation)
            assert verdict["relation"] == same
            assert verdict["shape"]


def test_a_diagonal_is_what_it_is_more() -> None:
    """An object that is more above than left of another is not called left of it."""
    for x, y, left, above in ((0.6, 0.8, False, True), (0.8, 0.6, True, False)):
        scene = Scene((replace(RED_CIRCLE, x=0.3, y=0.3), replace(BLUE_STAR, x=x, y=y)), "white")
        assert _shows(scene, "a red circle to the left of a blue star") == left
        assert _shows(scene, "a red circle above a blue star") == above


def test_two_alike_objects_stand_as_described() -> None:
    """With nothing to tell two objects apart, either may be the left one."""
    alike = Scene((RED_CIRCLE, replace(RED_CIRCLE, x=0.75)), "white")
    assert _shows(alike, "a red circle to the right of a red circle")
    assert not _shows(alike, "a red circle above a red circle")


def test_a_swapped_pair_of_one_shape_is_a_wrong_relation() -> None:
    """Colours tell which object is which, so that it is the places that are wrong."""
    stars = Scene((replace(BLUE_STAR, x=0.25), replace(BLUE_STAR, colour="red")), "white")
    text = "a blue star to the right of a red star"
    assert _wrong(read_image(render([stars], 64)[0]), text) == {"relation"}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_its_own_corner(place: str) -> None:
    """An object in the middle of the image or of an edge is in no corner."""
    right, down = PLACES[place]
    text = f"a red circle in the {place} corner"
    far = 0.5 - REACH * SIZES["small"][0][0]
    for across, along, wrong in (
        (far, far, set()),
        (far, 0.0, {"place"}),
        (0.0, far, {"place"}),
        (0.0, 0.0, {"place"}),
        (-far, far, {"place"}),
        (far, -far, {"place"}),
        (-far, -far, {"place"}),
    ):
        thing = replace(ALONE, x=0.5 + right * across, y=0.5 + down * along)
        assert _wrong(reading_of(Scene((thing,), "white")), text) == wrong


def test_an_angle_is_judged_in_the_gap_between_the_words() -> None:
    """To either side."""
    assert TILTS["upright"][1] < HALF_TILTED < TILTS["tilted"][0]
    for word, sign, said in product(TILTS, (-1, 1), TILTS):
        for angle in TILTS[word]:
            thing = replace(ALONE, shape="cross", tilt=sign * angle)
            wrong = _wrong(reading_of(Scene((thing,), "white")), f"a {said} red cross")
            assert wrong == (set() if said == word else {"tilt"})


@pytest.mark.parametrize("shape", ["square", "triangle", "heart", "cross", "star"])
def test_an_object_that_is_turned_too_far_is_refused(shape: str) -> None:
    """No scene has it, also if its caption says nothing of its angle."""
    for angle in (MOST_TILTED + 2, -36.0):
        thing = replace(ALONE, shape=shape, tilt=angle)
        (seen,) = read_image(render([Scene((thing,), "white")], 64)[0]).objects
        assert (seen.shape, seen.size) == (None, None)
        assert not _shows(Scene((thing,), "white"), f"a red {shape}")


# --- wrong pictures -------------------------------------------------------------------------------


def test_a_third_object_is_refused() -> None:
    """Small, or faint, it still counts."""
    third = PlacedObject("circle", "green", 0.5, 0.88, 0.08)
    assert not _shows(Scene((*PAIR.objects, third), "white"), PAIR_CAPTION)
    ghost = 0.7 * render([PAIR], 64) + 0.3 * render(
        [Scene((*PAIR.objects, replace(third, y=0.85, radius=0.12)), "white")], 64
    )
    assert _wrong(read_image(ghost[0]), PAIR_CAPTION) == {"count"}
    assert not caption_fidelity(ghost, [PAIR_CAPTION]).per_image[0]


def test_specks_are_refused() -> None:
    """Each too small for an object; one alone is no fault."""
    image = render([PAIR], 64)
    for number, corner in enumerate((3, 14, 25, 36, 47)):
        image[:, :, 57:59, corner : corner + 2] = -0.5
        assert _wrong(read_image(image[0]), PAIR_CAPTION) == ({"count"} if number else set())


def test_a_missing_object_is_refused() -> None:
    """One of two, or none at all."""
    assert not _shows(Scene((RED_CIRCLE,), "white"), PAIR_CAPTION)
    assert not _shows(Scene((), "white"), PAIR_CAPTION)
    nothing = read_image(render([Scene((), "white")], 64)[0])
    said = {"count", "colour", "shape", "relation"}
    assert _wrong(nothing, PAIR_CAPTION) == said


def test_a_half_transparent_pair_is_refused() -> None:
    """One of two objects half there: its colour is of no name."""
    both, one = render([PAIR, Scene((BLUE_STAR,), "white")], 64)
    assert _wrong(read_image((both + one) / 2), PAIR_CAPTION) == {"colour"}


@BOTH_WORLDS
def test_a_mean_picture_is_refused(world: World) -> None:
    """The mean of all images that fit a caption, which is what a regression draws.

    Not of a caption with a corner: a large object has so little room there that all of its images,
    and so their mean, are nearly the same.
    """
    rng = random.Random(0)
    descriptions = [replace(sample_description(world, rng), place=None) for _ in range(25)]
    means = [
        render([place(description, rng, world) for _ in range(40)], 64).mean(0)
        for description in descriptions
    ]
    assert caption_fidelity(torch.stack(means), _captions(descriptions)).exact_match == 0


def test_a_blurred_picture_is_refused() -> None:
    """The mean of images whose objects stand a little apart; a little blur is no fault."""
    scenes = [Scene((replace(ALONE, shape=shape),), "white") for shape in FULL.shapes]
    images, captions = render(scenes, 64), [f"a red {shape}" for shape in FULL.shapes]
    assert caption_fidelity(_blur(images, 0.7), captions).exact_match == 1
    assert caption_fidelity(_blur(images, 5.0), captions).exact_match == 0


def test_objects_grown_together_are_one() -> None:
    """A bridge between two objects makes them one, which is no shape of the world."""
    image = render([PAIR], 64)
    image[:, :, 28:33, 20:44] = image[:, :, 29, 16].reshape(1, 3, 1, 1)
    (thing,) = read_image(image[0]).objects
    assert thing.shape is None


def test_an_object_grown_onto_another_is_seen() -> None:
    """Of another colour and smaller, it still spoils the shape that it has grown onto."""
    grown = PlacedObject("square", "cyan", 0.57, 0.45, 0.15)
    scene = Scene((grown, replace(RED_CIRCLE, x=0.3, radius=0.2, colour="purple")), "grey")
    assert len(read_image(render([scene], 64)[0]).objects) == 1
    assert not _shows(scene, "a purple circle")


def test_touching_objects_are_refused() -> None:
    """Two objects of the world always have a gap between them."""
    apart = 0.95 * 2 * LARGE  # of two circles that touch
    circles = (replace(RED_CIRCLE, x=0.5 - apart / 2), replace(RED_CIRCLE, x=0.5 + apart / 2))
    scene = Scene((circles[0], replace(circles[1], colour="blue")), "white")
    assert not _shows(scene, "a red circle left of a blue circle")


def test_noise_shows_nothing() -> None:
    """Neither pure noise nor any flat colour shows any caption."""
    generator = torch.Generator().manual_seed(0)
    captions = _captions(_descriptions(FULL)[::12])
    shape = (len(captions), 3, 64, 64)
    for std in (0.3, 1.0):
        noise = std * torch.randn(shape, generator=generator)
        assert caption_fidelity(noise, captions).exact_match == 0
        clouds = _blur(noise, 3.0) * 6  # smooth noise
        assert caption_fidelity(clouds, captions).exact_match == 0
    flat = torch.rand((*shape[:2], 1, 1), generator=generator) * 2 - 1
    assert caption_fidelity(flat.expand(shape).contiguous(), captions).exact_match == 0


def _outlined(outline: Tensor) -> Tensor:
    """A red object on white, inside a curve whose distance from the middle (64, 64) is given."""
    centres = (torch.arange(64) + 0.5) / 64 - 0.5
    mask = (0.5 - 64 * (torch.hypot(centres[:, None], centres) - outline)).clamp(0, 1)
    red, white = render([Scene((replace(ALONE, radius=2.0),), "white"), Scene((), "white")], 64)
    return white + mask * (red - white)


def test_blobs_are_hardly_ever_a_shape() -> None:
    """Objects with a random smooth outline: what an undertrained model draws."""
    generator = torch.Generator().manual_seed(0)
    centres = (torch.arange(64) + 0.5) / 64 - 0.5
    angle = torch.atan2(centres[:, None], centres)
    waves = torch.arange(2, 6).reshape(-1, 1, 1)
    blobs = []
    for _ in range(100):
        height = 0.25 * torch.rand(4, 1, 1, generator=generator) / (waves - 1) ** 0.5
        phase = 6.28 * torch.rand(4, 1, 1, generator=generator)
        blobs.append(_outlined(0.19 * (1 + (height * torch.cos(waves * angle + phase)).sum(0))))
    readings = read_images(torch.stack(blobs))
    assert all(len(reading.objects) == 1 for reading in readings)
    assert sum(reading.objects[0].shape is not None for reading in readings) <= 5


def test_an_edge_that_wobbles_is_refused() -> None:
    """A little is no fault: a fiftieth of the radius; a ninth is."""
    centres = (torch.arange(64) + 0.5) / 64 - 0.5
    angle = torch.atan2(centres[:, None], centres)
    for waves in (5, 7, 9):
        little, much = (0.24 * (1 + height * torch.cos(waves * angle)) for height in (0.02, 0.11))
        assert read_image(_outlined(little)).objects[0].shape == "circle"
        assert read_image(_outlined(much)).objects[0].shape is None


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"circle"}))
def test_a_half_formed_shape_is_refused(shape: str) -> None:
    """Midway between a circle and another shape is neither."""
    centres = ((torch.arange(64) + 0.5) / 64 - 0.5) / 0.2
    u, v = torch.broadcast_tensors(centres, centres[:, None])
    between = (SHAPES[shape](u, v) + SHAPES["circle"](u, v)) / 2
    mask = (0.5 - between * 0.2 * 64).clamp(0, 1)
    red, white = render([Scene((replace(ALONE, radius=2.0),), "white"), Scene((), "white")], 64)
    assert read_image(white + mask * (red - white)).objects[0].shape is None


# --- shares and chance ----------------------------------------------------------------------------


def test_shares_are_over_the_images_whose_captions_say_so() -> None:
    """An attribute that a caption leaves open counts neither for nor against it."""
    small = replace(ALONE, radius=_radius("small", 1))
    images = render([PAIR, Scene((small,), "black")], 64)
    scores = caption_fidelity(images, [PAIR_CAPTION, "a large red circle"])
    assert scores.per_image == [True, False]
    assert (scores.n, scores.exact_match) == (2, 0.5)
    assert (scores.count, scores.colour, scores.shape) == (1, 1, 1)
    assert (scores.size, scores.relation, scores.background) == (0, 1, 1)
    assert (scores.tilt, scores.shade, scores.place) == (None, None, None)
    assert scores.said == dict.fromkeys(ATTRIBUTES, 0) | {
        **dict.fromkeys(("count", "colour", "shape"), 2),
        **dict.fromkeys(("size", "relation", "background"), 1),
    }
    assert caption_fidelity(images[1:], ["a red circle"]).relation is None


def test_the_table_names_every_attribute() -> None:
    """What the command line prints."""
    scores = caption_fidelity(render([Scene((ALONE,), "black")], 32), ["a large red circle"])
    lines = str(scores).splitlines()
    assert [line[:12].rstrip() for line in lines] == ["exact match", *ATTRIBUTES]
    shown = {"exact match", "count", "colour", "shape", "size"}
    for line in lines:
        assert line[12:].strip() == ("100.0% of 1" if line[:12].strip() in shown else "not said")
    assert str(replace(scores, left_out=3)).endswith(
        "1 of 4 images are scored: the captions of the others cannot be checked"
    )


def test_fidelity_leaves_out_what_it_cannot_check() -> None:
    """Captions of other things, and words that the model was not trained on."""
    images = render([PAIR, Scene((ALONE,), "black"), Scene((), "black")], 64)
    captions = [PAIR_CAPTION, "a red circle", "a photo of a cat"]
    both = fidelity(images, captions)
    assert both == replace(caption_fidelity(images[:2], captions[:2]), left_out=1)
    one = fidelity(images, captions, {"a", "red", "circle"})
    assert isinstance(one, Fidelity) and (one.n, one.left_out, one.per_image) == (1, 2, [True])
    assert fidelity(images[2:], captions[2:]) is None
    assert fidelity(images, captions, {"cat"}) is None


TINY = World("tiny", ("circle", "cross"), ("red", "blue"))  # so small that chance is large


@pytest.mark.parametrize("objects", [1, 2])
def test_shuffled_captions_get_chance_level(objects: int) -> None:
    """Pictures of random other scenes: the measured share is the one that is calculated."""
    assert not TINY.held_out
    rng = random.Random(0)
    # Half of the scenes have as many objects; of these alone, the share is twice the chance.
    descriptions = [sample_description(TINY, rng, objects=objects) for _ in range(400)]
    if objects == 2:  # less is said, because with more, too few match to be counted
        descriptions = [
            Description(
                (replace(first, tilt=None, shade=None), ObjectDescription(last.shape, last.colour)),
                few.relation,
            )
            for few in descriptions
            for first, last in [few.objects]
        ]
    scenes = [place(description, rng, TINY) for description in descriptions]
    readings = read_images(render(scenes[:100], 32)) + list(map(reading_of, scenes[100:]))
    right = [
        all(judge(readings[(i + shift) % 400], descriptions[i]).values())
        for shift in range(1, 80)  # shuffled by a rotation: no image keeps its caption
        for i in range(150)
    ]
    chance = chance_level([caption(few, rng) for few in descriptions[:150]], TINY)
    assert 0.002 < chance < 0.2
    assert sum(right) / len(right) / 2 == pytest.approx(chance, rel=0.2)


def test_chance_level_by_hand() -> None:
    """The factors of the product, one by one; the last ones are means over drawn scenes."""
    assert chance_level(["a red circle"], MINIMAL) == pytest.approx(1 / 32)
    assert chance_level(["a red circle"], FULL) == pytest.approx(1 / 2 / 48)

    def share(text: str, world: World = MINIMAL) -> float:
        plain = "a red cross" if "cross" in text else "a red circle"
        return chance_level([text] * 40, world) / chance_level([plain], world)

    assert share("a small red circle") == pytest.approx(1 / 2, rel=0.1)
    assert share("a red circle on a white background") == pytest.approx(1 / 3, rel=0.1)
    assert share("a tilted red cross", FULL) == pytest.approx(FULL.tilted, rel=0.25)
    assert share("a tilted red cross") == 0  # nothing is, in the minimal world
    assert share("an upright red cross") == 1
    assert share("a dark red cross") + share("a bright red cross") == pytest.approx(1, rel=0.1)
    assert 0.05 < share("a red circle in the upper left corner") < 0.25
    pair = "a red circle left of a blue circle"
    assert chance_level([pair] * 40, FULL) == pytest.approx(1 / 2 / 48**2 / 2, rel=0.1)
    same = "a red circle left of a red circle"
    assert chance_level([same] * 40, FULL) == pytest.approx(1 / 2 / 48**2 / 2, rel=0.1)
    assert chance_level([pair, "a red heart"], MINIMAL) == 0  # the minimal world has neither
    assert chance_level([pair], FULL) == chance_level([pair], FULL)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 32)])
def test_images_of_a_wrong_shape_are_an_error(shape: tuple[int, ...]) -> None:
    """The message says what shape there should be."""
    with pytest.raises(ValueError, match=r"\(N, 3, side, side\)"):
        read_images(torch.zeros(shape))


@pytest.mark.parametrize("side", [15, 129])
def test_a_side_out_of_range_is_an_error(side: int) -> None:
    """The message gives the range."""
    with pytest.raises(ValueError, match="16 to 128"):
        read_images(torch.zeros(1, 3, side, side))


def test_other_wrong_arguments_are_errors() -> None:
    """Values that are not finite, numbers that differ, nothing at all, another world."""
    with pytest.raises(ValueError, match="not finite"):
        read_image(torch.full((3, 16, 16), torch.nan))
    with pytest.raises(ValueError, match="1 images and 2 captions"):
        caption_fidelity(torch.zeros(1, 3, 16, 16), ["a red circle"] * 2)
    with pytest.raises(ValueError, match="at least one"):
        caption_fidelity(torch.zeros(0, 3, 16, 16), [])
    with pytest.raises(ValueError, match="a cat"):
        caption_fidelity(torch.zeros(1, 3, 16, 16), ["a cat"])
    with pytest.raises(ValueError, match="at least one"):
        chance_level([], FULL)
    with pytest.raises(ValueError, match="a cat"):
        chance_level(["a cat"], FULL)
