"""The captioned-shapes world: captions that parse back, held-out pairs, seeds, clean renderings."""

from __future__ import annotations

import random
from itertools import islice, product

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from minimagen.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    FULL,
    MINIMAL,
    RADII,
    RADIUS_JITTER,
    RELATIONS,
    SHAPES,
    WORLDS,
    Description,
    ObjectDescription,
    PlacedObject,
    Scene,
    ShapesDataset,
    World,
    caption,
    coverage,
    parse_caption,
    phrasings,
    place,
    render,
    sample_description,
)

BOTH_WORLDS = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())


def _pairs_of(description: Description) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in description.objects}


def _descriptions() -> list[Description]:
    """One and two objects, everything said or left open, in all ways."""
    sizes, backgrounds = (None, *RADII), (None, *BACKGROUNDS)
    things = [
        ObjectDescription(shape, colour, size)
        for (shape, colour), size in product(
            zip(FULL.shapes + FULL.shapes, COLOURS, strict=False), sizes
        )
    ]
    alone = [Description((thing,), None, b) for thing, b in product(things, backgrounds)]
    rng = random.Random(0)
    together = [
        Description((thing, rng.choice(things)), relation, background)
        for thing, relation, background in product(things, RELATIONS, backgrounds)
    ]
    return alone + together


# --- captions -------------------------------------------------------------------------------------


def test_every_phrasing_parses_back_to_its_description() -> None:
    """Nothing is lost on the way from description to text and back, whatever the wording."""
    for description in _descriptions():
        texts = phrasings(description)
        assert len(set(texts)) == len(texts) >= 3
        for text in texts:
            assert parse_caption(text) == description, text
            assert parse_caption(text.upper() + " ") == description, text


def test_captions_are_the_phrasings() -> None:
    """Every wording is drawn, and none but those."""
    description = parse_caption("a small red circle above an orange star")
    rng = random.Random(0)
    drawn = {caption(description, rng) for _ in range(200)}
    assert drawn == set(phrasings(description))
    assert "an orange star below a small red circle" in drawn


def test_an_article_fits_its_noun() -> None:
    """An orange, but a red."""
    assert "an orange heart" in phrasings(parse_caption("an orange heart"))
    assert "a small orange heart" in phrasings(parse_caption("a small orange heart"))


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
    """Every seen pair, number, relation, size and background occurs, said and unsaid."""
    rng = random.Random(0)
    drawn = [sample_description(FULL, rng) for _ in range(3000)]
    things = [thing for description in drawn for thing in description.objects]
    pairs = set.union(*map(_pairs_of, drawn))
    assert pairs == set(FULL.combinations) - FULL.held_out
    assert {len(description.objects) for description in drawn} == {1, 2}
    assert {description.relation for description in drawn} == {None, *RELATIONS}
    assert {description.background for description in drawn} == {None, *BACKGROUNDS}
    assert {thing.size for thing in things} == {None, *RADII}
    said = sum(thing.size is not None for thing in things) / len(things)
    assert said == pytest.approx(0.5, abs=0.05)


def test_the_number_of_objects_can_be_fixed() -> None:
    """For tests of binding alone; the minimal world has one object unless told otherwise."""
    rng = random.Random(0)
    assert all(len(sample_description(FULL, rng, objects=2).objects) == 2 for _ in range(20))
    assert all(len(sample_description(MINIMAL, rng).objects) == 1 for _ in range(20))


# --- places ---------------------------------------------------------------------------------------


def test_a_scene_shows_its_description() -> None:
    """What is said is kept, and what is left open is drawn."""
    rng = random.Random(0)
    for description in islice(_descriptions(), 0, None, 3):
        scene = place(description, rng)
        assert description.background in (None, scene.background)
        for thing, placed in zip(description.objects, scene.objects, strict=True):
            assert (placed.shape, placed.colour) == (thing.shape, thing.colour)
            pair = len(scene.objects) == 2
            nearest = min(RADII, key=lambda size: abs(RADII[size][pair] - placed.radius))
            assert thing.size in (None, nearest)
            assert placed.radius == pytest.approx(RADII[nearest][pair], rel=RADIUS_JITTER)
        if description.relation:
            first, second = scene.objects
            right, down = second.x - first.x, second.y - first.y
            along, across = (right, down) if description.relation == "left of" else (down, right)
            assert along > 1.5 * abs(across)


ALONE, PAIRED = (radius * (1 + RADIUS_JITTER) for radius in RADII["large"])  # the largest


def test_two_objects_never_overlap() -> None:
    """At the worst of the jitter too: large objects of any two shapes, as close as they come."""
    for first, second in product(SHAPES, SHAPES):
        for across in (0.45, 0.5):
            places = ((0.26, across), (0.74, 0.5))
            for (x, y), (u, v) in (places, [xy[::-1] for xy in places]):
                pair = [
                    PlacedObject(first, "red", x, y, PAIRED),
                    PlacedObject(second, "red", u, v, PAIRED),
                ]
                assert coverage(pair, 64).sum(0).max() <= 1 + 1e-5, pair


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_never_leaves_the_image(shape: str) -> None:
    """Drawn in a frame of twice the size, all of it lies in the quarter that is the image."""
    paired = [(x, y, PAIRED) for x, y in ((0.24, 0.5), (0.76, 0.5), (0.5, 0.24), (0.5, 0.76))]
    for x, y, radius in [*paired, (0.45, 0.45, ALONE), (0.55, 0.55, ALONE)]:
        wide = PlacedObject(shape, "red", 0.25 + x / 2, 0.25 + y / 2, radius / 2)
        rows, columns = (coverage([wide], 512)[0] > 0.5).nonzero().T
        assert min(rows.min(), columns.min()) >= 128
        assert max(rows.max(), columns.max()) < 384


def test_places_stay_within_the_jitter() -> None:
    """The two tests above start from the outermost places; this one holds place to them."""
    rng = random.Random(0)
    for text in ("a large red heart left of a large red star", "a red cross over a red circle"):
        for _ in range(200):
            first, second = place(parse_caption(text), rng).objects
            vertical = "over" in text
            for thing, centre in ((first, 0.25), (second, 0.75)):
                along, across = (thing.y, thing.x) if vertical else (thing.x, thing.y)
                assert abs(along - centre) <= 0.01 + 1e-9
                assert 0.45 <= across <= 0.55
                assert thing.radius <= PAIRED
    for _ in range(200):
        (thing,) = place(parse_caption("a red heart"), rng).objects
        assert 0.45 <= min(thing.x, thing.y) <= max(thing.x, thing.y) <= 0.55
        assert thing.radius <= ALONE


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
        Scene((PlacedObject(shape, "purple", x, y, radius),), "white")
        for radius in (RADII["small"][1], RADII["large"][0])
        for x, y in ((0.5, 0.5), (0.43, 0.56))
    ]
    small, large = render(scenes, 16), render(scenes, 128)
    averaged = functional.avg_pool2d(large, 8)
    assert (small - averaged).abs().mean() < 0.01
    assert (small - averaged).abs().max() < 0.5  # at the tips, one pixel
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
    monkeypatch.setattr("minimagen.data.shapes.KEPT_BYTES", 10 * 3 * 16 * 16 - 1)
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
