"""The captioned-shapes world: captions that parse back, held-out pairs, open attributes, clean
renderings, seeds."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle, product

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from minimagen.data.rendering import SHAPES, coverage, render
from minimagen.data.scenes import ShapesDataset
from minimagen.data.shapes import (
    ANY_SHADE,
    BACKGROUNDS,
    COLOURS,
    DIAGONAL,
    FULL,
    GAP,
    LIGHT,
    MINIMAL,
    OFF_CENTRE,
    PLACES,
    REACH,
    RELATIONS,
    SAID,
    SHADES,
    SIZES,
    TILTS,
    UNTILTED,
    WORLDS,
    Description,
    ObjectDescription,
    PlacedObject,
    Range,
    Scene,
    World,
    place,
    sample_description,
)
from minimagen.data.wording import OTHER_WORDS, caption, parse_caption, phrasings

BOTH_WORLDS = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())


def _pairs_of(description: Description) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in description.objects}


def _descriptions() -> list[Description]:
    """One and two objects: of an object everything is said or left open, in all ways."""
    rng = random.Random(0)
    things = [
        ObjectDescription(shape, rng.choice(tuple(COLOURS)), size, tilt, shade)
        for shape, size, tilt, shade in product(
            FULL.shapes, (None, *SIZES), (None, *TILTS), (None, *SHADES)
        )
        if not (tilt and shape in UNTILTED)
    ]
    around = list(product((None, *PLACES), (None, *BACKGROUNDS)))
    alone = [Description((thing,), None, *reversed(rng.choice(around))) for thing in things]
    alone += [Description((rng.choice(things),), None, *reversed(both)) for both in around]
    together = [
        Description((thing, rng.choice(things)), relation, background)
        for thing, (relation, background) in zip(
            things, cycle(product(RELATIONS, (None, *BACKGROUNDS))), strict=False
        )
    ]
    return alone + together


# --- captions -------------------------------------------------------------------------------------


def test_every_phrasing_parses_back_to_its_description() -> None:
    """Nothing is lost on the way from description to text and back, whatever the wording."""
    for description in _descriptions():
        texts = phrasings(description)
        assert len(set(texts)) == len(texts) >= 4
        for text in texts:
            assert parse_caption(text) == description, text
        assert parse_caption(texts[0].upper() + " ") == description, texts[0]


def test_captions_are_the_phrasings() -> None:
    """Every wording is drawn, and none but those."""
    description = parse_caption("a small red circle above an orange star")
    rng = random.Random(0)
    drawn = {caption(description, rng) for _ in range(300)}
    assert drawn == set(phrasings(description))
    assert "an orange star below a small red circle" in drawn


@pytest.mark.parametrize(
    "text", ["an orange heart", "a small orange heart", "an upright red heart", "a dark red heart"]
)
def test_an_article_fits_the_next_word(text: str) -> None:
    """An orange heart, but a small orange heart."""
    assert text in phrasings(parse_caption(text))


@pytest.mark.parametrize(("other", "same"), OTHER_WORDS.items(), ids=OTHER_WORDS.keys())
def test_other_words_say_the_same(other: str, same: str) -> None:
    """A synonym parses to the word of the tables, and is one of the phrasings."""
    if same in SIZES:
        text = "a {} red star"
    else:
        text = "a red star in the {} corner" if same in PLACES else "a red star on a {} background"
    description = parse_caption(text.format(same))
    assert parse_caption(text.format(other)) == description
    assert text.format(other) in phrasings(description)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a circle",
        "a red circle and a blue star",
        "a red circle, a blue star and a green heart on the left",
        "a red circle and a dog",
        "a red cirlce left of a blue square",
        "a red circle left of a star",
        "a large and red circle",
        "a red circle on a pink background",
        "a tilted red circle",
        "a red star left of an upright blue circle",
        "a dark small red star",
        "a red star in the upper corner",
        "a red star in the upper left corner above a blue star",
    ],
)
def test_a_caption_of_another_world_is_an_error(text: str) -> None:
    """No word is passed over; the message quotes the caption, so that it can be found in a file."""
    with pytest.raises(ValueError, match=f"caption {text!r}"):
        parse_caption(text)


# --- combinations that training never sees --------------------------------------------------------


@BOTH_WORLDS
def test_about_a_tenth_of_the_pairs_is_held_out(world: World) -> None:
    """Fixed, all different, all of the world; no colour and no shape is missing from training."""
    share = len(world.held_out) / len(world.combinations)
    assert share == pytest.approx(0.1, abs=0.03)
    assert world.held_out <= set(world.combinations)
    seen = set(world.combinations) - world.held_out
    assert {colour for colour, _ in seen} == set(world.colours)
    assert {shape for _, shape in seen} == set(world.shapes)
    shapes = [shape for _, shape in world.held_out]
    assert len(set(shapes)) == min(len(shapes), len(world.shapes))


@BOTH_WORLDS
def test_training_never_shows_a_held_out_pair(world: World) -> None:
    """Neither in the captions nor in the images' scenes."""
    data = ShapesDataset(world, 1000, side=16)
    for text, scene in zip(data.captions, data.scenes, strict=True):
        assert not _pairs_of(parse_caption(text)) & world.held_out
        assert not {(o.colour, o.shape) for o in scene.objects} & world.held_out


@BOTH_WORLDS
def test_held_out_scenes_always_show_one(world: World) -> None:
    """And each held-out pair has its turn."""
    data = ShapesDataset(world, 500, side=16, held_out=True)
    found = [_pairs_of(parse_caption(text)) & world.held_out for text in data.captions]
    assert all(found)
    assert set.union(*found) == world.held_out


def test_training_shows_everything_else() -> None:
    """Every seen pair, number and attribute occurs, said as often as the table has it."""
    rng = random.Random(0)
    drawn = [sample_description(FULL, rng) for _ in range(4000)]
    things = [thing for description in drawn for thing in description.objects]
    pairs = set.union(*map(_pairs_of, drawn))
    assert pairs == set(FULL.combinations) - FULL.held_out
    assert {len(description.objects) for description in drawn} == {1, 2}
    assert {description.relation for description in drawn} == {None, *RELATIONS}
    alone = [description for description in drawn if len(description.objects) == 1]
    assert {description.place for description in drawn if description.relation} == {None}
    assert {thing.tilt for thing in things if thing.shape in UNTILTED} == {None}
    for name, values, said in (
        ("size", SIZES, [thing.size for thing in things]),
        ("tilt", TILTS, [thing.tilt for thing in things if thing.shape not in UNTILTED]),
        ("shade", SHADES, [thing.shade for thing in things]),
        ("place", PLACES, [description.place for description in alone]),
        ("background", BACKGROUNDS, [description.background for description in drawn]),
    ):
        _uniform_choice([value for value in said if value], values)
        share = sum(value is not None for value in said) / len(said)
        assert share == pytest.approx(SAID[name], abs=0.03), name


def test_the_number_of_objects_can_be_fixed() -> None:
    """For tests of binding alone; the minimal world has one object unless told otherwise."""
    rng = random.Random(0)
    assert all(len(sample_description(FULL, rng, objects=2).objects) == 2 for _ in range(20))
    assert all(len(sample_description(MINIMAL, rng).objects) == 1 for _ in range(20))


# --- scenes ---------------------------------------------------------------------------------------


def _uniform(values: Iterable[float], bounds: Range) -> None:
    """They are spread evenly between the bounds (Kolmogorov-Smirnov)."""
    low, high = bounds
    found = torch.tensor(list(values))
    assert low - 1e-6 <= found.min() and found.max() <= high + 1e-6
    assert stats.kstest((found - low) / (high - low), "uniform").pvalue > 0.001


def _uniform_choice(found: Sequence[str], values: Iterable[str]) -> None:
    """Each of the values occurs, equally often (chi-square)."""
    counts = Counter(found)
    assert set(counts) == set(values)
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def _scenes(text: str, count: int = 1000) -> list[Scene]:
    description, rng = parse_caption(text), random.Random(text)
    return [place(description, rng) for _ in range(count)]


def _size(thing: PlacedObject, pair: bool) -> str:
    """In which of the ranges of sizes a radius is; they are apart."""
    (size,) = (s for s in SIZES if SIZES[s][pair][0] <= thing.radius <= SIZES[s][pair][1])
    return size


def _tilt(thing: PlacedObject) -> str:
    (tilt,) = (tilt for tilt, (low, high) in TILTS.items() if low <= abs(thing.tilt) <= high)
    return tilt


def test_a_scene_shows_its_description() -> None:
    """What is said is kept, and what is left open is drawn."""
    rng = random.Random(0)
    for description in _descriptions():
        scene = place(description, rng)
        assert description.background in (None, scene.background)
        for thing, placed in zip(description.objects, scene.objects, strict=True):
            assert (placed.shape, placed.colour) == (thing.shape, thing.colour)
            assert thing.size in (None, _size(placed, len(scene.objects) == 2))
            assert thing.tilt in (None, _tilt(placed))
            assert placed.tilt == 0 or placed.shape not in UNTILTED
            low, high = SHADES[thing.shade] if thing.shade else ANY_SHADE
            assert low <= placed.shade <= high
        if description.relation:
            first, second = scene.objects
            right, down = second.x - first.x, second.y - first.y
            along, across = (right, down) if description.relation == "left of" else (down, right)
            assert along > 0 and abs(across) <= DIAGONAL * along
        if description.place:
            right, down = PLACES[description.place]
            assert right * (scene.objects[0].x - 0.5) >= OFF_CENTRE
            assert down * (scene.objects[0].y - 0.5) >= OFF_CENTRE


def test_the_ranges_of_different_words_are_apart() -> None:
    """So a picture is never both small and large, upright and tilted, or dark and bright."""
    tables = [{size: ranges[pair] for size, ranges in SIZES.items()} for pair in (0, 1)]
    for table in (*tables, TILTS, SHADES):
        (_, end), (start, _) = sorted(table.values())
        assert end < start


def test_what_one_object_leaves_open_is_drawn_from_the_table() -> None:
    """Every attribute of a single star; each is uniform within what its word allows."""
    scenes = _scenes("a red star", 2000)
    stars = [scene.objects[0] for scene in scenes]
    sizes, tilts = [_size(star, pair=False) for star in stars], [_tilt(star) for star in stars]
    _uniform_choice(sizes, SIZES)
    assert stats.binomtest(tilts.count("tilted"), len(stars), FULL.tilted).pvalue > 0.001
    for size, (alone, _) in SIZES.items():
        _uniform((s.radius for s, its in zip(stars, sizes, strict=True) if its == size), alone)
    for tilt, (low, high) in TILTS.items():
        angles = [star.tilt for star, its in zip(stars, tilts, strict=True) if its == tilt]
        _uniform(map(abs, angles), (low, high))
        assert stats.binomtest(sum(angle > 0 for angle in angles), len(angles)).pvalue > 0.001
    _uniform((star.shade for star in stars), ANY_SHADE)
    _uniform_choice([scene.background for scene in scenes], BACKGROUNDS)
    _uniform((scene.light[0] for scene in scenes), LIGHT)
    _uniform((scene.light[1] for scene in scenes), (0, 360))


def test_what_two_objects_leave_open_is_drawn_from_the_table() -> None:
    """Any size and tilt of either, whatever its neighbour has: places do not decide them."""
    for text in ("a red star left of a blue heart", "a red star above a blue heart"):
        pairs = [scene.objects for scene in _scenes(text)]
        both = [" ".join(_size(thing, pair=True) for thing in pair) for pair in pairs]
        _uniform_choice(both, map(" ".join, product(SIZES, SIZES)))
        for things in zip(*pairs, strict=True):
            tilted = sum(_tilt(thing) == "tilted" for thing in things)
            assert stats.binomtest(tilted, len(things), FULL.tilted).pvalue > 0.001
            _uniform((thing.shade for thing in things), ANY_SHADE)
            for size, (_, paired) in SIZES.items():
                _uniform((t.radius for t in things if _size(t, pair=True) == size), paired)


def test_the_minimal_world_has_no_tilt() -> None:
    """Its captions never say any, and all is upright; a little to either side."""
    data = ShapesDataset(MINIMAL, 1000, side=16)
    assert {parse_caption(text).objects[0].tilt for text in data.captions} == {None}
    angles = [o.tilt for scene in data.scenes for o in scene.objects if o.shape not in UNTILTED]
    _uniform(map(abs, angles), TILTS["upright"])
    assert stats.binomtest(sum(angle > 0 for angle in angles), len(angles)).pvalue > 0.001


def test_a_single_object_is_anywhere() -> None:
    """Uniformly in all the room that its radius leaves, or in all of the corner that is said."""
    stars = [scene.objects[0] for scene in _scenes("a large red star", 2000)]
    rooms = [0.5 - REACH * star.radius for star in stars]
    across = [(star.x - 0.5) / room for star, room in zip(stars, rooms, strict=True)]
    down = [(star.y - 0.5) / room for star, room in zip(stars, rooms, strict=True)]
    _uniform(across, (-1, 1))
    _uniform(down, (-1, 1))
    assert stats.pearsonr(across, down).pvalue > 0.001
    for where, (right, below) in PLACES.items():
        stars = [scene.objects[0] for scene in _scenes(f"a small red star in the {where} corner")]
        for name, sign in (("x", right), ("y", below)):
            offsets = [sign * (getattr(star, name) - 0.5) - OFF_CENTRE for star in stars]
            rooms = [0.5 - REACH * star.radius - OFF_CENTRE for star in stars]
            _uniform((o / room for o, room in zip(offsets, rooms, strict=True)), (0, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_no_part_of_a_shape_is_beyond_its_reach(shape: str) -> None:
    """At any tilt; and the reach is that of the farthest corner, not much more."""
    side, radius = 256, 0.3
    centres = (torch.arange(side) + 0.5) / side - 0.5
    distance = torch.hypot(centres, centres[:, None])
    angles = [PlacedObject(shape, "red", 0.5, 0.5, radius, tilt) for tilt in range(-180, 180, 15)]
    for mask in coverage(angles, side):
        farthest = distance[mask >= 0.5].max() / radius
        assert 0.9 < farthest <= REACH


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_objects_keep_their_distance(relation: str) -> None:
    """They never overlap, and at least the gap is between what they reach."""
    for scene in _scenes(f"a large red square {relation} a large blue triangle"):
        first, second = scene.objects
        distance = math.hypot(first.x - second.x, first.y - second.y)
        assert distance - REACH * (first.radius + second.radius) >= GAP - 1e-9


def test_two_objects_never_overlap() -> None:
    """Seen in their pixels: no pixel has both, nor is one of the one next to one of the other."""
    rng = random.Random(0)
    for shapes in product(SHAPES, SHAPES):
        things = tuple(
            ObjectDescription(shape, "red", "large", None if shape in UNTILTED else "tilted")
            for shape in shapes
        )
        for relation in RELATIONS:
            masks = coverage(place(Description(things, relation), rng).objects, 48) > 0
            grown = functional.max_pool2d(masks[:1].float(), 3, 1, 1).bool()
            assert not (grown & masks[1:]).any(), (shapes, relation)


@pytest.mark.parametrize("text", ["a large red {0}", "a large red {0} left of a large red {0}"])
def test_an_object_never_leaves_the_image(text: str) -> None:
    """At any tilt; seen on a canvas of twice the side, with the image in its middle."""
    for shape in SHAPES:
        for scene in _scenes(text.format(shape), 100):
            for thing in scene.objects:
                reach = REACH * thing.radius - 1e-9
                assert reach <= min(thing.x, thing.y) <= max(thing.x, thing.y) <= 1 - reach
            smaller = [
                replace(o, x=0.25 + o.x / 2, y=0.25 + o.y / 2, radius=o.radius / 2)
                for o in scene.objects
            ]
            masks = coverage(smaller, 128)
            masks[:, 32:-32, 32:-32] = 0
            assert masks.max() < 0.5  # an edge is one pixel wide, half of it is outside


# --- renderings -----------------------------------------------------------------------------------


def test_a_image_is_its_colours() -> None:
    """Channels, positions and range: red circle at the left, blue square below at the right."""
    scene = Scene(
        (
            PlacedObject("circle", "red", 0.25, 0.25, 0.2),
            PlacedObject("square", "blue", 0.75, 0.6, 0.2),
        ),
        "white",
    )
    image = render([scene], 40)[0]
    assert image.shape == (3, 40, 40)
    assert image.dtype == torch.float32

    def pixel(row: int, column: int) -> tuple[int, ...]:
        return tuple(((image[:, row, column] + 1) * 127.5).round().int().tolist())

    assert pixel(10, 10) == COLOURS["red"]
    assert pixel(24, 30) == COLOURS["blue"]
    assert pixel(35, 5) == BACKGROUNDS["white"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_larger_image_averages_to_the_smaller(shape: str) -> None:
    """Edges are smooth and stand at the same place at every size: no half-pixel shift."""
    scenes = [
        Scene((PlacedObject(shape, "purple", x, y, radius, tilt, 0.7),), "white", (0.1, 30))
        for radius in (SIZES["small"][1][0], SIZES["large"][0][1])
        for x, y in ((0.5, 0.5), (0.43, 0.56))
        for tilt in (0, 15, -40)
    ]
    small, large = render(scenes, 16), render(scenes, 128)
    averaged = functional.avg_pool2d(large, 8)
    assert (small - averaged).abs().mean() < 0.01
    assert (small - averaged).abs().max() < 0.6  # at the tips, one pixel
    assert small.mean() == pytest.approx(averaged.mean().item(), abs=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_a_share_and_grows_with_the_radius(shape: str) -> None:
    """In [0, 1], with soft pixels at the edge only, and an area as the square of the radius."""
    masks = coverage([PlacedObject(shape, "red", 0.5, 0.5, r) for r in (0.2, 0.4)], 64)
    assert masks.min() == 0
    assert masks.max() == 1
    soft = ((masks > 0) & (masks < 1)).float().mean()
    assert 0 < soft < 0.1
    small, large = masks.sum((1, 2))
    assert large / small == pytest.approx(4, rel=0.02)


def test_shapes_stand_upright() -> None:
    """The triangle's apex and the star's tip point up, the heart's point down; all symmetric."""
    for shape, upper_half_larger in (("triangle", False), ("heart", True)):
        mask = coverage([PlacedObject(shape, "red", 0.5, 0.5, 0.4)], 64)[0]
        assert (mask[:32].sum() > mask[32:].sum()) == upper_half_larger
    star = coverage([PlacedObject("star", "red", 0.5, 0.5, 0.4)], 64)[0]
    assert star[:, 31:33].sum(1).nonzero()[0] < star[:, :20].sum(1).nonzero()[0]
    for shape in SHAPES:
        mask = coverage([PlacedObject(shape, "red", 0.5, 0.5, 0.4)], 64)[0]
        assert torch.allclose(mask, mask.flip(1), atol=1e-4)


def _turned(mask: Tensor, degrees: float) -> Tensor:
    """A mask turned anticlockwise around its middle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])  # from a place to where it was
    grid = functional.affine_grid(turn, [1, 1, *mask.shape], align_corners=False)
    return functional.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_turns_clockwise_by_its_tilt(shape: str) -> None:
    """A quarter turn is one of the pixels; a small one can be undone."""
    upright, quarter, tilted = coverage(
        [PlacedObject(shape, "red", 0.5, 0.5, 0.4, tilt) for tilt in (0, 90, 15)], 65
    )
    assert torch.allclose(quarter, upright.rot90(-1), atol=1e-3)
    if shape in UNTILTED:
        assert torch.allclose(tilted, upright, atol=1e-3)
    else:  # turned back by what it was turned, it is upright again
        turned = _turned(tilted, 15)
        assert (turned - upright).abs().mean() < 0.01 < (tilted - upright).abs().mean()


def test_shade_and_light_multiply_the_colours() -> None:
    """A dark object in the middle, where half of the light's fall is gone, on a background."""
    square = PlacedObject("square", "yellow", 0.5, 0.5, 0.2, shade=0.6)
    (image,) = (render([Scene((square,), "grey", (0.1, 0.0))], 41) + 1) / 2
    colour = torch.tensor(COLOURS["yellow"]) / 255 * 0.6
    assert torch.allclose(image[:, 20, 20], colour * 0.95, atol=1e-5)
    background = torch.tensor(BACKGROUNDS["grey"]) / 255
    assert torch.allclose(image[:, 0, 20], background * 0.95, atol=1e-5)


@pytest.mark.parametrize(
    ("angle", "brightest", "darkest"),
    [
        (0, (20, -1), (20, 0)),
        (90, (-1, 20), (0, 20)),
        (180, (20, 0), (20, -1)),
        (270, (0, 20), (-1, 20)),
        (45, (-1, -1), (0, 0)),
        (200, (0, 0), (-1, -1)),
    ],
)
def test_light_comes_from_its_direction(
    angle: float, brightest: tuple[int, int], darkest: tuple[int, int]
) -> None:
    """It falls as a plane, from nearly all of it at one edge or corner to the least opposite."""
    (image,) = (render([Scene((), "white", (0.1, angle))], 41) + 1) / 2
    light = image[0] / (BACKGROUNDS["white"][0] / 255)
    assert light[brightest] == light.max() == pytest.approx(1, abs=0.1 / 41)
    assert light[darkest] == light.min() == pytest.approx(0.9, abs=0.1 / 41)
    down, right = light.diff(dim=0), light.diff(dim=1)
    for slope in (down, right):
        assert torch.allclose(slope, slope.mean().expand_as(slope), atol=1e-6)
    turn = math.radians(angle)
    across = down.mean() * math.cos(turn) - right.mean() * math.sin(turn)
    assert across == pytest.approx(0, abs=1e-6)  # the same along every line across the direction


def test_a_rendering_does_not_depend_on_its_batch() -> None:
    """Scenes of no, one and two objects in one call come out as they do alone."""
    one, two = (
        place(parse_caption(text), random.Random(0))
        for text in ("a red heart", "a red star above a blue cross")
    )
    scenes = [two, Scene((), "grey"), one]
    for scene, image in zip(scenes, render(scenes, 16), strict=True):
        assert torch.equal(render([scene], 16)[0], image)


def test_a_side_of_nothing_is_an_error() -> None:
    """The message says what a side is."""
    with pytest.raises(ValueError, match="side is 0"):
        render([Scene((), "white")], 0)


# --- the data set ---------------------------------------------------------------------------------


def test_items_are_images_of_their_captions() -> None:
    """(3, side, side) in [-1, 1], the rendering of the scene up to a rounding to bytes."""
    data = ShapesDataset(FULL, 40, side=24)
    assert len(data) == 40
    for index, item in enumerate(data[i] for i in range(40)):
        image = item["image"]
        assert item["caption"] == data.captions[index]
        assert isinstance(image, torch.Tensor)
        assert image.shape == (3, 24, 24)
        assert image.dtype == torch.float32
        assert -1 <= image.min() <= image.max() <= 1
        true = render([data.scenes[index]], 24)[0]
        assert (image - true).abs().max() <= 0.5 / 127.5 + 1e-6


def test_an_item_depends_on_seed_and_index_alone() -> None:
    """Not on the length of the data set, its side, the order of asking, nor global random state."""
    short, long = ShapesDataset(FULL, 10, 16, seed=3), ShapesDataset(FULL, 20, 32, seed=3)
    assert short.captions == long.captions[:10]
    assert short.scenes == long.scenes[:10]
    random.seed(1)
    torch.manual_seed(1)
    again = ShapesDataset(FULL, 10, 16, seed=3)
    backwards = [again[i] for i in reversed(range(10))]
    for one, other in zip(short.items(range(10)), backwards[::-1], strict=True):
        assert one["caption"] == other["caption"]
        assert torch.equal(one["image"], other["image"])
    assert ShapesDataset(FULL, 10, 16, seed=4).captions != short.captions
    assert ShapesDataset(FULL, 10, 16, seed=3, held_out=True).captions != short.captions


def test_too_many_images_are_drawn_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result, and without memory for all of them."""
    kept = ShapesDataset(FULL, 10, 16).items(range(10))
    monkeypatch.setattr("minimagen.data.scenes.KEPT_BYTES", 10 * 3 * 16 * 16 - 1)
    data = ShapesDataset(FULL, 10, 16)
    for _ in range(2):
        for one, other in zip(kept, data.items(range(10)), strict=True):
            assert torch.equal(one["image"], other["image"])  # type: ignore[arg-type]
    assert data._bytes.numel() == 0
    with pytest.raises(IndexError):
        data[10]


def test_a_drawn_item_is_kept() -> None:
    """The second epoch hands out the same image, and changing one in place harms nothing."""
    data = ShapesDataset(MINIMAL, 4, 16)
    first = data[2]["image"]
    kept = first.clone()
    first.zero_()
    assert torch.equal(data[2]["image"], kept)


def test_a_data_loader_takes_it() -> None:
    """Batches of images and lists of captions."""
    batch = next(iter(DataLoader(ShapesDataset(FULL, 8, 16), batch_size=4)))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert len(batch["caption"]) == 4


def test_no_scenes_is_an_error() -> None:
    """The message says what a length is."""
    with pytest.raises(ValueError, match="length is 0"):
        ShapesDataset(FULL, 0, 16)
