"""Coverage: drawings that vary as true scenes do have an error of 1, all others a greater one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from minimagen.data.rendering import render
from minimagen.data.shapes import (
    COLOURS,
    FULL,
    MINIMAL,
    PlacedObject,
    Scene,
    World,
    sample_description,
)
from minimagen.data.wording import caption, parse_caption
from minimagen.evaluation.coverage import (
    Coverage,
    caption_coverage,
    coverage_of_readings,
    true_scenes,
)
from minimagen.evaluation.reading import Reading, reading_of

Scenes = list[list[Scene]]
IMAGES = 16
NUMBER = 50  # of captions: true scenes have errors of 1 with a standard deviation of 0.07
EMPTY = Reading((), "white")


def some_captions(world: World) -> list[str]:
    rng = random.Random(1)
    return [caption(sample_description(world, rng), rng) for _ in range(NUMBER)]


CAPTIONS = {world.name: some_captions(world) for world in (MINIMAL, FULL)}
TRUE = {world.name: true_scenes(CAPTIONS[world.name], world, 64, 7) for world in (MINIMAL, FULL)}


@pytest.fixture(params=[MINIMAL, FULL], ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    return request.param


def score(scenes: Scenes, world: World) -> Coverage:
    readings = [[reading_of(scene) for scene in few] for few in scenes]
    return coverage_of_readings(readings, CAPTIONS[world.name], world)


def true(world: World, start: int = 0) -> Scenes:
    return [few[start : start + IMAGES] for few in TRUE[world.name]]


def with_objects(scenes: Scenes, change: Callable[[PlacedObject], PlacedObject]) -> Scenes:
    return [
        [replace(scene, objects=tuple(map(change, scene.objects))) for scene in few]
        for few in scenes
    ]


def worst(scores: Coverage) -> str:
    return max(scores.by_attribute, key=lambda name: scores.by_attribute[name])


def test_true_scenes_score_as_true(world: World) -> None:
    held, errors = 0, []
    for seed in range(20):
        scores = score(true_scenes(CAPTIONS[world.name], world, IMAGES, seed), world)
        errors.append(scores.error)
        assert scores.same_picture < 0.01
        held += scores.interval[0] <= 1 <= scores.interval[1]
        assert scores.interval[0] <= scores.error <= scores.interval[1]
    assert held >= 15
    assert 0.95 < sum(errors) / 20 < 1.1 and max(errors) < 1.4  # few captions leave much open


def test_more_true_scenes_are_true_too(world: World) -> None:
    scores = score(TRUE[world.name], world)
    assert 0.8 < scores.error < 1.25
    assert (scores.captions, scores.images) == (NUMBER, 64)


def test_a_repeated_scene(world: World) -> None:
    scores = score([few[:1] * IMAGES for few in true(world)], world)
    assert scores.error > 10
    assert min(scores.by_attribute.values()) > 5  # nothing varies
    assert scores.same_picture == 1


def test_the_mean_scene(world: World) -> None:
    radii = [thing.radius for few in true(world) for scene in few for thing in scene.objects]
    radius = sum(radii) / len(radii)
    scenes = with_objects(
        true(world), lambda thing: PlacedObject(thing.shape, thing.colour, 0.5, 0.5, radius, 0, 0.8)
    )
    scores = score(scenes, world)
    assert scores.error > 5
    assert all(scores.by_attribute[name] > 3 for name in ("place", "size", "tilt", "shade"))
    assert scores.by_attribute["background"] < 1.5  # this still varies


def leftmost(scenes: Scenes) -> Scenes:
    """The half of true scenes in which the first object is farther to the left."""
    return [sorted(few, key=lambda scene: scene.objects[0].x)[: len(few) // 2] for few in scenes]


def test_half_of_the_places(world: World) -> None:
    scores = score([few[::2] for few in leftmost(TRUE[world.name])], world)
    assert scores.error > 1.6
    assert worst(scores) == "place" and scores.by_attribute["place"] > 3


@pytest.mark.parametrize(
    "attribute, change",
    [
        ("size", lambda thing: replace(thing, radius=0.15)),
        ("tilt", lambda thing: replace(thing, tilt=thing.tilt / 6)),
        ("tilt", lambda thing: replace(thing, tilt=abs(thing.tilt))),
        ("shade", lambda thing: replace(thing, shade=1.0)),
    ],
)
def test_one_attribute_that_does_not_vary(
    world: World, attribute: str, change: Callable[[PlacedObject], PlacedObject]
) -> None:
    scores = score(with_objects(true(world), change), world)
    before = score(true(world), world)
    assert scores.error > 1.8 and scores.interval[0] > 1.1
    assert worst(scores) == attribute and scores.by_attribute[attribute] > 3.5
    kept = set(before.by_attribute) - {attribute, "together"}
    assert all(scores.by_attribute[name] == before.by_attribute[name] for name in kept)


def test_one_background(world: World) -> None:
    scores = score([[replace(s, background="grey") for s in few] for few in true(world)], world)
    assert scores.error > 5
    assert worst(scores) == "background"


def test_attributes_that_depend_on_one_another(world: World) -> None:
    """Each attribute varies as it should, but small objects are always dark."""
    scenes = []
    for few in TRUE[world.name]:
        by_size = sorted(few, key=lambda scene: scene.objects[0].radius)
        by_shade = sorted(few, key=lambda scene: scene.objects[0].shade)
        pairs = zip(by_size, by_shade, strict=True)
        scenes.append(
            [
                replace(one, objects=(replace(one.objects[0], shade=o.objects[0].shade), *rest))
                for one, o in pairs
                for rest in [one.objects[1:]]
            ]
        )
    together = score(scenes, world).by_attribute["together"]
    assert together > score(TRUE[world.name], world).by_attribute["together"] + 0.3


def test_shuffled_captions(world: World) -> None:
    scenes = true(world)
    scores = score(scenes[1:] + scenes[:1], world)
    assert scores.error > 20 and scores.same_picture == 0


def test_missing_objects(world: World) -> None:
    captions = CAPTIONS[world.name]
    readings = [[reading_of(scene) for scene in few] for few in true(world)]
    none = coverage_of_readings([[EMPTY] * IMAGES] * len(captions), captions, world)
    assert none.error > 25 and none.same_picture == 0  # more than any repeated scene
    some = coverage_of_readings([[EMPTY, EMPTY, *few[2:]] for few in readings], captions, world)
    assert 1.2 < some.error < 5 and some.interval[0] > 1.1
    extra = reading_of(true(world)[0][0]).objects
    more = [[replace(r, objects=r.objects + extra * 2) for r in few] for few in readings]
    assert coverage_of_readings(more, captions, world).error > 25
    unclear = [
        [replace(r, objects=tuple(replace(o, shape=None) for o in r.objects)) for r in few]
        for few in readings
    ]
    assert coverage_of_readings(unclear, captions, world).error > 25
    unlike = [[replace(r, background=None) for r in few] for few in readings]
    assert coverage_of_readings(unlike, captions, world).by_attribute["background"] > 20


def test_objects_are_matched_whatever_their_order() -> None:
    """The larger object is read first; of two equal ones, the relation says which is which."""
    text = "a red circle left of a red circle"
    (scenes,) = true_scenes([text], FULL, IMAGES, 0)
    readings = [reading_of(scene) for scene in scenes]
    swapped = [replace(r, objects=r.objects[::-1]) for r in readings]
    assert coverage_of_readings([readings], [text], FULL) == coverage_of_readings(
        [swapped], [text], FULL
    )


def test_what_a_caption_decides_is_left_out() -> None:
    text = "a red circle on a white background"
    scores = coverage_of_readings(
        [[reading_of(scene) for scene in true_scenes([text], FULL, 4, 0)[0]]], [text], FULL
    )
    assert set(scores.by_attribute) == {"place", "size", "shade", "together"}


def test_a_reading_has_the_shade_as_seen() -> None:
    """The colour of the pixel in the middle of an object."""
    for scene in [few[0] for few in true(FULL)]:
        colours = (render([scene], 128)[0] + 1) / 2
        for seen in reading_of(scene).objects:
            assert seen.colour is not None
            pixel = colours[:, int(seen.y * 128), int(seen.x * 128)]
            palette = torch.tensor(COLOURS[seen.colour]) / 255
            assert torch.allclose(pixel, palette * seen.shade, atol=0.01)


def test_true_scenes_show_their_captions(world: World) -> None:
    captions = CAPTIONS[world.name]
    assert true_scenes(captions, world, 2, 3) == true_scenes(captions, world, 2, 3)
    assert true_scenes(captions, world, 2, 3) != true_scenes(captions, world, 2, 4)
    for text, few in zip(captions, true_scenes(captions, world, 2, 3), strict=True):
        said = parse_caption(text)
        for scene in few:
            assert said.background in (None, scene.background)
            seen = reading_of(scene).objects
            assert all(o.size for o in seen)
            radii = [o.radius for o in seen]
            assert radii == sorted(radii, reverse=True)


def test_images_are_read_caption_by_caption(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is tested elsewhere: here it gets each scene's number."""
    scenes = true(world)
    flat = [reading_of(scene) for few in scenes for scene in few]
    monkeypatch.setattr(
        "minimagen.evaluation.coverage.read_images",
        lambda images: [flat[int(i[0, 0, 0])] for i in images],
        raising=False,
    )
    images = torch.arange(len(flat)).reshape(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    assert caption_coverage(images, CAPTIONS[world.name], world) == score(scenes, world)


def test_the_table_is_readable() -> None:
    table = str(score(true(MINIMAL), MINIMAL))
    assert "1 is perfect" in table and "50 captions, 16 images for each" in table
    for name in ("error", "place", "size", "tilt", "shade", "background", "together", "same"):
        assert name in table
    assert max(map(len, table.splitlines())) <= 80


def test_what_does_not_fit_is_named() -> None:
    readings = [reading_of(scene) for scene in true(MINIMAL)[0]]
    text = CAPTIONS[MINIMAL.name][0]
    with pytest.raises(ValueError, match="readings of 1 captions and 2 captions"):
        coverage_of_readings([readings], [text, text], MINIMAL)
    with pytest.raises(ValueError, match="readings of 0 captions and 0 captions"):
        coverage_of_readings([], [], MINIMAL)
    with pytest.raises(ValueError, match=r"\[1\] images each"):
        coverage_of_readings([readings[:1]], [text], MINIMAL)
    with pytest.raises(ValueError, match=r"\[2, 3\] images each"):
        coverage_of_readings([readings[:2], readings[:3]], [text, text], MINIMAL)
    with pytest.raises(ValueError, match="'a red dog'"):
        coverage_of_readings([readings], ["a red dog"], FULL)
    for other in ("a red star", "a red circle left of a blue circle"):
        with pytest.raises(ValueError, match=f"'{other}' is not of the world 'shapes-minimal'"):
            coverage_of_readings([readings], [other], MINIMAL)
        with pytest.raises(ValueError, match="is not of the world"):
            true_scenes([other], MINIMAL, 1, 0)
    for number, captions in ((3, [text, text]), (2, [text, text]), (2, []), (0, [text])):
        with pytest.raises(ValueError, match=f"{number} images and {len(captions)} captions"):
            caption_coverage(torch.zeros(number, 3, 32, 32), captions, MINIMAL)
