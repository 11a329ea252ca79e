"""Caption fidelity: true renderings are read right, everything else is refused."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from minimagen.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    FULL,
    MINIMAL,
    RADII,
    RELATIONS,
    SHAPES,
    Description,
    ObjectDescription,
    PlacedObject,
    Scene,
    World,
    parse_caption,
    phrasings,
    place,
    render,
    sample_description,
)
from minimagen.evaluation import (
    Reading,
    caption_fidelity,
    chance_level,
    judge,
    read_image,
    read_images,
)


def _singles() -> list[Description]:
    """Every shape, colour, size and background."""
    return [
        Description((ObjectDescription(shape, colour, size),), None, background)
        for shape in FULL.shapes
        for colour in COLOURS
        for size in RADII
        for background in BACKGROUNDS
    ]


def _pairs(repeats: int = 2) -> list[Description]:
    """Every two shapes in both relations, in random colours and sizes, on random backgrounds."""
    rng = random.Random(0)

    def thing(shape: str) -> ObjectDescription:
        return ObjectDescription(shape, rng.choice(FULL.colours), rng.choice(list(RADII)))

    return [
        Description((thing(first), thing(second)), relation, rng.choice(list(BACKGROUNDS)))
        for first in FULL.shapes
        for second in FULL.shapes
        for relation in RELATIONS
        for _ in range(repeats)
    ]


def _draw(descriptions: list[Description], side: int) -> tuple[Tensor, list[str]]:
    """Images, and a full caption for each."""
    rng = random.Random(1)
    images = render([place(description, rng) for description in descriptions], side)
    return images, [rng.choice(phrasings(description)) for description in descriptions]


def _share(images: Tensor, captions: list[str]) -> float:
    return caption_fidelity(images, captions).exact_match


def _blur(images: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma)))


def _noisy(images: Tensor, std: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return images + std * torch.randn(images.shape, generator=generator)


RED_CIRCLE = PlacedObject("circle", "red", 0.25, 0.45, 0.2)
BLUE_STAR = PlacedObject("star", "blue", 0.75, 0.5, 0.2)
PAIR = Scene((RED_CIRCLE, BLUE_STAR), "white")
PAIR_CAPTION = "a red circle to the left of a blue star on a white background"


def _shows(scene: Scene, text: str) -> bool:
    return caption_fidelity(render([scene], 64), [text]).per_image[0]


# --- true renderings ------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "least"), [(64, 1.0), (32, 0.99), (16, 0.99)])
def test_every_single_object_is_read_right(side: int, least: float) -> None:
    """Shape x colour x size x background: nothing about one object escapes the reader."""
    assert _share(*_draw(_singles(), side)) >= least


@pytest.mark.parametrize(("side", "least"), [(64, 1.0), (32, 0.99), (16, 0.97)])
def test_every_pair_of_shapes_is_read_right(side: int, least: float) -> None:
    """At 16 pixels two large objects can lie less than a pixel apart and grow together."""
    assert _share(*_draw(_pairs(), side)) >= least


@pytest.mark.parametrize("side", [40, 96, 100, 128])
def test_other_sides_are_read_right(side: int) -> None:
    """Any side will do; large images are read at 64 pixels, whether that divides them or not."""
    assert _share(*_draw(_singles()[::7] + _pairs(1)[::6], side)) == 1


@pytest.mark.parametrize("side", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_reading_is_stable(side: int) -> None:
    """Slight noise, blur, a slight cast and fainter contrast change nothing that a person sees."""
    images, captions = _draw(_singles()[::5] + _pairs()[::4], side)
    cast = torch.tensor([0.08, -0.06, 0.06]).reshape(3, 1, 1)
    assert _share(_noisy(images, 0.05), captions) >= 0.99
    assert _share(_blur(images, 0.5), captions) >= 0.99
    assert _share(images + cast, captions) >= 0.99
    assert _share(0.93 * images, captions) >= 0.99


def test_a_reading_does_not_depend_on_the_batch() -> None:
    """Images are read a few at a time; the borders between those groups must not show."""
    images, _ = _draw(_pairs()[:70], 16)
    together, alone = read_images(images)[65], read_image(images[65])
    assert together.background == alone.background
    for one, other in zip(together.objects, alone.objects, strict=True):
        assert replace(one, overlap=0) == replace(other, overlap=0)
        assert one.overlap == pytest.approx(other.overlap, abs=1e-5)
    assert read_images(images[:0]) == []


def test_places_and_sizes_are_read() -> None:
    """A reading says where an object's centre of mass is; the rest it says in words."""
    (thing,) = read_image(render([Scene((RED_CIRCLE,), "grey")], 64)[0]).objects
    assert (thing.shape, thing.colour) == ("circle", "red")
    assert (thing.x, thing.y) == pytest.approx((0.25, 0.45), abs=0.005)
    assert thing.overlap > 0.97


def test_large_and_small_are_relative_to_the_number_of_objects() -> None:
    """Alone, objects are drawn larger: the same radius is large in a pair, and small alone."""
    alone, pair = read_images(render([Scene((RED_CIRCLE,), "white"), PAIR], 64))
    assert [thing.size for thing in alone.objects] == ["small"]
    assert [thing.size for thing in pair.objects] == ["large", "large"]


# --- wrong images -------------------------------------------------------------------------------


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
        (PAIR_CAPTION.replace("white", "grey"), {"background"}),
    ],
)
def test_each_kind_of_mistake_is_named(text: str, wrong: set[str]) -> None:
    """Exactly the attribute that is wrong is said to be wrong."""
    verdict = judge(read_image(render([PAIR], 64)[0]), parse_caption(text))
    found = {name for name, right in verdict.items() if not right}
    # colours swapped is the same image as shapes swapped: either may be called wrong
    assert found == wrong or (wrong == {"colour"} and found == {"shape"})


def test_what_a_caption_leaves_open_is_not_judged() -> None:
    """Any size and background show a caption that says neither."""
    verdict = judge(
        read_image(render([PAIR], 64)[0]), parse_caption("a red circle left of a blue star")
    )
    assert verdict == dict.fromkeys(("count", "colour", "shape", "relation"), True)


def test_two_alike_objects_stand_as_described() -> None:
    """With nothing to tell two objects apart, either may be the left one."""
    alike = Scene((RED_CIRCLE, replace(RED_CIRCLE, x=0.75)), "white")
    assert _shows(alike, "a red circle to the right of a red circle")
    assert not _shows(alike, "a red circle above a red circle")


def test_a_swapped_pair_of_one_shape_is_a_wrong_relation() -> None:
    """Colours tell which object is which, so that it is the places that are wrong."""
    stars = Scene((replace(BLUE_STAR, x=0.25), replace(BLUE_STAR, colour="red")), "white")
    text = "a blue star to the right of a red star"
    verdict = judge(read_image(render([stars], 64)[0]), parse_caption(text))
    assert [name for name, right in verdict.items() if not right] == ["relation"]


def test_a_diagonal_is_what_it_is_more() -> None:
    """An object that is more above than left of another is not called left of it."""
    scene = Scene((replace(RED_CIRCLE, x=0.35), replace(BLUE_STAR, x=0.65, y=0.8)), "white")
    assert _shows(scene, "a red circle above a blue star")
    assert not _shows(scene, "a red circle to the left of a blue star")


def test_a_third_object_is_refused() -> None:
    """Small, or faint, it still counts."""
    third = PlacedObject("circle", "green", 0.5, 0.88, 0.08)
    assert not _shows(Scene((*PAIR.objects, third), "white"), PAIR_CAPTION)
    ghost = 0.7 * render([PAIR], 64) + 0.3 * render(
        [Scene((*PAIR.objects, replace(third, y=0.85, radius=0.12)), "white")], 64
    )
    assert not caption_fidelity(ghost, [PAIR_CAPTION]).per_image[0]


def test_a_missing_object_is_refused() -> None:
    """One of two, or none at all."""
    assert not _shows(Scene((RED_CIRCLE,), "white"), PAIR_CAPTION)
    assert not _shows(Scene((), "white"), PAIR_CAPTION)
    assert read_image(render([Scene((), "white")], 64)[0]) == Reading((), "white")


def test_objects_grown_together_are_one() -> None:
    """A bridge between two objects makes them one, which is no shape of the world."""
    image = render([PAIR], 64)
    image[:, :, 28:33, 20:44] = image[:, :, 29, 16].reshape(1, 3, 1, 1)
    (thing,) = read_image(image[0]).objects
    assert thing.shape is None


def test_an_object_grown_onto_another_is_seen() -> None:
    """Of another colour and smaller, it still spoils the shape that it has grown onto."""
    grown = PlacedObject("square", "cyan", 0.57, 0.45, 0.15)
    scene = Scene((grown, replace(RED_CIRCLE, x=0.3, colour="purple")), "grey")
    assert len(read_image(render([scene], 64)[0]).objects) == 1
    assert not _shows(scene, "a purple circle")


@pytest.mark.parametrize("side", [16, 64])
@pytest.mark.parametrize(("one", "other"), [("red", "blue"), ("orange", "yellow")])
def test_two_colours_in_one_object_are_refused(one: str, other: str, side: int) -> None:
    """Half red, half blue is neither; blue with a red cap is not blue."""
    cap, body = render(
        [Scene((replace(RED_CIRCLE, colour=c),), "white") for c in (one, other)], side
    )
    for share in (0.5, 0.3):
        row = round(side * (0.45 - 0.19 + 0.38 * share))
        image = torch.cat([cap[:, :row], body[:, row:]], dim=1)[None]
        assert not caption_fidelity(image, [f"a {one} circle"]).per_image[0]
        assert not caption_fidelity(image, [f"a {other} circle"]).per_image[0]


@pytest.mark.parametrize(
    ("one", "other"), [("red", "blue"), ("orange", "yellow"), ("red", "orange")]
)
def test_a_colour_between_two_is_refused(one: str, other: str) -> None:
    """Midway between two entries of the palette a colour has no name."""
    mixed = render([Scene((replace(RED_CIRCLE, colour=c),), "black") for c in (one, other)], 64)
    assert read_image(mixed.mean(0)).objects[0].colour is None


def test_a_background_of_no_known_colour_is_refused() -> None:
    """Even when the caption leaves the background open, it must be one of the world's."""
    image = render([PAIR], 64)
    green = torch.tensor([0.5, 0.9, 0.5]).reshape(3, 1, 1)
    image = torch.where(
        (image - image[:, :, :1, :1]).norm(dim=1, keepdim=True) < 1e-3, green, image
    )
    assert read_image(image[0]).background is None
    assert not caption_fidelity(image, ["a red circle left of a blue star"]).per_image[0]


def test_noise_shows_nothing() -> None:
    """Neither pure noise nor any flat colour shows any caption."""
    generator = torch.Generator().manual_seed(0)
    _, captions = _draw(_singles()[::9] + _pairs(1)[::9], 16)
    shape = (len(captions), 3, 64, 64)
    for std in (0.3, 1.0):
        noise = std * torch.randn(shape, generator=generator)
        assert _share(noise, captions) == 0
        assert _share(_blur(noise, 3.0) * 6, captions) == 0  # smooth noise: clouds
    flat = torch.rand((*shape[:2], 1, 1), generator=generator) * 2 - 1
    assert _share(flat.expand(shape).contiguous(), captions) == 0


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
        outline = 0.19 * (1 + (height * torch.cos(waves * angle + phase)).sum(0))
        mask = (0.5 - 64 * (torch.hypot(centres[:, None], centres) - outline)).clamp(0, 1)
        red, white = render(
            [Scene((replace(RED_CIRCLE, radius=2.0),), "white"), Scene((), "white")], 64
        )
        blobs.append(white + mask * (red - white))
    readings = read_images(torch.stack(blobs))
    assert all(len(reading.objects) == 1 for reading in readings)
    assert sum(reading.objects[0].shape is not None for reading in readings) <= 5


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"circle"}))
def test_a_half_formed_shape_is_refused(shape: str) -> None:
    """Midway between a circle and another shape is neither."""
    centres = ((torch.arange(64) + 0.5) / 64 - 0.5) / 0.2
    u, v = torch.broadcast_tensors(centres, centres[:, None])
    between = (SHAPES[shape](u, v) + SHAPES["circle"](u, v)) / 2
    mask = (0.5 - between * 0.2 * 64).clamp(0, 1)
    red, white = render(
        [Scene((replace(RED_CIRCLE, radius=2.0),), "white"), Scene((), "white")], 64
    )
    reading = read_image(white + mask * (red - white))
    assert reading.objects[0].shape is None


# --- shares and chance ----------------------------------------------------------------------------


def test_shares_are_over_the_images_whose_captions_say_so() -> None:
    """An attribute that a caption leaves open counts neither for nor against it."""
    images = render([PAIR, Scene((RED_CIRCLE,), "black")], 64)
    fidelity = caption_fidelity(images, [PAIR_CAPTION, "a large red circle"])
    assert fidelity.per_image == [True, False]
    assert (fidelity.n, fidelity.exact_match) == (2, 0.5)
    assert (fidelity.count, fidelity.colour, fidelity.shape) == (1, 1, 1)
    assert (fidelity.size, fidelity.relation, fidelity.background) == (0, 1, 1)
    assert fidelity.said["size"] == 1
    assert caption_fidelity(images[1:], ["a red circle"]).relation is None


def test_the_table_names_every_attribute() -> None:
    """What the command line prints."""
    fidelity = caption_fidelity(render([Scene((RED_CIRCLE,), "black")], 32), ["a red circle"])
    assert "exact match   100.0% of 1" in str(fidelity)
    assert "relation" in str(fidelity)
    assert "not said" in str(fidelity)


def test_shuffled_captions_get_chance_level() -> None:
    """Images of random other scenes: the measured share is the closed form."""
    world = World("tiny", ("circle", "cross"), ("red", "blue"))  # so small that chance is large
    assert not world.held_out
    rng = random.Random(0)
    scenes, captions = [], []
    for _ in range(400):
        description = sample_description(world, rng)
        scenes.append(place(description, rng, world))
        captions.append(rng.choice(phrasings(description)))
    readings = read_images(render(scenes, 24))
    descriptions = [parse_caption(text) for text in captions]
    shuffles = range(1, 40)  # shuffled by a rotation: no image keeps its caption
    right = [
        all(judge(readings[(i + shift) % 400], description).values())
        for shift in shuffles
        for i, description in enumerate(descriptions)
    ]
    chance = chance_level(captions, world)
    assert 0.02 < chance < 0.2
    assert sum(right) / len(right) == pytest.approx(chance, rel=0.1)


def test_chance_level_by_hand() -> None:
    """The factors of the product, one by one."""
    assert chance_level(["a red circle"], MINIMAL) == pytest.approx(1 / 32)
    assert chance_level(["a red circle"], FULL) == pytest.approx(1 / 2 / 48)
    said = "a small red circle on a white background"
    assert chance_level([said], MINIMAL) == pytest.approx(1 / 32 / 2 / 3)
    pair = "a red circle left of a blue circle"
    assert chance_level([pair], FULL) == pytest.approx(1 / 2 / 48**2 / 2)
    assert chance_level([pair, "a red heart"], MINIMAL) == 0  # the minimal world has neither


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
