"""Generation: from a training directory to image files that show exactly what was drawn."""

from __future__ import annotations

import io
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from minimagen.data.shapes import MINIMAL, parse_caption, place, render
from minimagen.evaluation import fidelity
from minimagen.generation import (
    Encode,
    Frames,
    GenerationConfig,
    contact_sheet,
    draw,
    files,
    generate,
    load,
    load_imagen,
    read_captions,
    states,
    to_image,
    unknown_words,
    untrained,
    with_sampling,
    write,
)
from minimagen.generation.draw import State
from minimagen.imagen import Imagen, ImagenConfig, StageConfig
from minimagen.run_directory import TrainingDirectory
from minimagen.settings import from_text
from minimagen.text import load_text_encoder
from minimagen.unet import UnetConfig

WORDS = ["a red circle", "a small green star to the left of a large blue square", "one cyan cross"]
KNOWN = {word for caption in WORDS for word in caption.split()}


def tiny_imagen(side: int = 16) -> Imagen:
    """Two stages, a few weights, all of them random, so that the caption matters."""
    unet = {
        "channels": (16,),
        "blocks": (1,),
        "self_attention": (False,),
        "text_attention": (True,),
        "heads": 1,
        "head_dim": 8,
        "text_dim": load_text_encoder("t5_tiny").dim,
        "cond_dim": 8,
        "position_dim": 4,
    }
    stages = (
        StageConfig(side=8, steps=3, guidance_weight=2.0),
        StageConfig(side=side, steps=2, sampler="ddpm"),
    )
    imagen = Imagen(
        ImagenConfig(stages, timesteps=10), [UnetConfig(**unet), UnetConfig(**unet, lowres=True)]
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in imagen.parameters():
            weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
    return imagen


def save_training(output: Path, imagen: Imagen | None = None) -> TrainingDirectory:
    """The training directory that a training of ``imagen`` would have left."""
    imagen = imagen or tiny_imagen()
    directory = TrainingDirectory.create(output)
    unets = [stage.unet.config for stage in imagen.stages]
    directory.save_parameters(imagen.config, unets, {"dataset": "shapes-minimal"})
    directory.save_words(KNOWN)
    for i, stage in enumerate(imagen.stages):
        directory.save_best(i, stage.unet.state_dict())
    return directory


@pytest.fixture(scope="module")
def imagen() -> Imagen:
    return tiny_imagen()


@pytest.fixture(scope="module")
def encode() -> Encode:
    return load_text_encoder("t5_tiny").encode


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, imagen: Imagen) -> TrainingDirectory:
    return save_training(tmp_path_factory.mktemp("trained"), imagen)


# --- drawing --------------------------------------------------------------------------------------


def test_draws_every_stage_of_every_caption(imagen: Imagen, encode: Encode) -> None:
    """One entry a stage, (N, 3, side, side) in [-1, 1]."""
    stages = draw(imagen, encode, WORDS, [0, 1, 2], batch_size=2)
    assert [part.shape for part in stages] == [(3, 3, 8, 8), (3, 3, 16, 16)]
    assert all(part.abs().max() <= 1 and part.dtype == torch.float32 for part in stages)


def test_states_lead_to_the_images(imagen: Imagen, encode: Encode) -> None:
    """Batch after batch, stage after stage; precision is that of the steps, not of the caller."""
    drawn = []
    for state in states(imagen, encode, WORDS, [0, 1, 2], batch_size=2, precision="bf16"):
        assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        drawn.append(state)
    order = [(first, stage) for first in (0, 2) for stage in (0, 0, 0, 1, 1)]
    assert [(state.first, state.stage) for state in drawn] == order
    small, large = draw(imagen, encode, WORDS, [0, 1, 2], batch_size=2, precision="bf16")
    assert torch.equal(torch.cat([drawn[2].images, drawn[7].images]).float(), small)
    assert torch.equal(torch.cat([drawn[4].images, drawn[9].images]).float(), large)


class Terminal(io.StringIO):
    """A terminal that remembers what it shows."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "stream"), [("red", Terminal), (None, Terminal), ("red", io.StringIO)]
)
def test_a_bar_only_where_it_is_asked_for_and_seen(
    imagen: Imagen,
    encode: Encode,
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
    stream: type[io.StringIO],
) -> None:
    """With a name, and on a terminal; it ends at 100% of the images."""
    screen = stream()
    monkeypatch.setattr("sys.stderr", screen)
    draw(imagen, encode, WORDS, [0, 1, 2], batch_size=2, progress=name)
    if name and stream is Terminal:
        assert "red: 100%" in screen.getvalue() and "3.0/3" in screen.getvalue()
    else:
        assert screen.getvalue() == ""


def test_image_depends_on_its_own_seed_and_caption_alone(imagen: Imagen, encode: Encode) -> None:
    """Whatever the batch around it, and however long its captions are padded."""
    together = draw(imagen, encode, WORDS, [5, 6, 7])
    for batch_size in (1, 2):
        for part, whole in zip(
            draw(imagen, encode, WORDS, [5, 6, 7], batch_size), together, strict=True
        ):
            torch.testing.assert_close(part, whole, atol=1e-4, rtol=0)
    swapped = draw(imagen, encode, WORDS[::-1], [7, 6, 5])
    torch.testing.assert_close(swapped[-1].flip(0), together[-1], atol=1e-4, rtol=0)
    other_seed = draw(imagen, encode, WORDS, [5, 9, 7])[-1]
    other_text = draw(imagen, encode, ["a red circle", "a blue cross", WORDS[2]], [5, 6, 7])[-1]
    for other in (other_seed, other_text):
        changed = (other - together[-1]).abs().amax((1, 2, 3)) > 0.01
        assert changed.tolist() == [False, True, False]


def test_bfloat16_draws_nearly_the_same(imagen: Imagen, encode: Encode) -> None:
    """Lower precision is a matter of speed; the images are float32 again."""
    exact = draw(imagen, encode, WORDS[:1], [0])[0]
    rough = draw(imagen, encode, WORDS[:1], [0], precision="bf16")[0]
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.1


def test_broken_weights_are_noticed(encode: Encode) -> None:
    """Not a number is no image."""
    broken = tiny_imagen()
    with torch.no_grad():
        broken.stages[1].unet.stem.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        draw(broken, encode, WORDS[:1], [0])


def test_untrained_is_the_same_cascade_with_other_weights(imagen: Imagen) -> None:
    """For comparison: same configuration, fresh weights, and nobody else's random numbers."""
    before = torch.get_rng_state()
    fresh = untrained(imagen)
    assert torch.equal(torch.get_rng_state(), before)
    assert fresh.config == imagen.config and not fresh.training
    assert [s.unet.config for s in fresh.stages] == [s.unet.config for s in imagen.stages]
    stem = fresh.stages[0].unet.stem.weight
    assert not torch.equal(stem, imagen.stages[0].unet.stem.weight)
    assert torch.equal(stem, untrained(imagen).stages[0].unet.stem.weight)


def test_fidelity_only_of_the_shapes_world() -> None:
    """True renderings score 1; other captions, and such with unknown words, have no score."""
    captions = ["a red circle on a white background", "a large blue square"]
    scenes = [parse_caption(text) for text in captions]
    rng = random.Random(0)
    images = render([place(scene, rng, MINIMAL) for scene in scenes], 64)
    result = fidelity(images, captions)
    assert result is not None and result.exact_match == 1.0
    assert (result.n, result.left_out) == (2, 0) and "scored" not in str(result)
    for strange in ("a dog in the rain", "a red cirlce left of a blue square", "a red star, a dog"):
        result = fidelity(images, [captions[0], strange])
        assert result is not None and result.exact_match == 1.0
        assert (result.n, result.left_out) == (1, 1)
        assert "1 of 2 images are scored" in str(result)
        assert fidelity(images, [strange, strange]) is None
    known = {"a", "red", "circle", "on", "white", "background"}
    result = fidelity(images, captions, known)
    assert result is not None and (result.n, result.left_out) == (1, 1)


# --- settings -------------------------------------------------------------------------------------


def test_settings_for_all_stages_or_one_each(imagen: Imagen) -> None:
    """What is not given stays as it was trained."""
    config = with_sampling(
        imagen.config, guidance_weight=(4.0,), sampler=("heun", "dpmpp"), sampling_steps=(5, 1)
    )
    assert [s.guidance_weight for s in config.stages] == [4.0, 4.0]
    assert [s.sampler for s in config.stages] == ["heun", "dpmpp"]
    assert [s.steps for s in config.stages] == [5, 1]
    assert [s.aug_level for s in config.stages] == [s.aug_level for s in imagen.config.stages]
    assert with_sampling(imagen.config) == imagen.config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": ("ddim",) * 3}, "`sampler` has 3 values, for 2 stages it should have 1 or 2"),
        ({"sampling_steps": (99,)}, "`sampling_steps` is 99, .* at most the model's timesteps, 10"),
        ({"sampling_steps": (0,)}, "^`sampling_steps` is 0, it should be at least 1"),
        ({"aug_level": (0.1, 3.0)}, "^`aug_level` is 3.0, it should be from 0 to 1"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    imagen: Imagen, settings: dict[str, tuple[object, ...]], message: str
) -> None:
    """One line with the setting, the value and what would be right."""
    with pytest.raises(ValueError, match=message):
        with_sampling(imagen.config, **settings)  # type: ignore[arg-type]


def test_settings_change_the_images(training: TrainingDirectory, encode: Encode) -> None:
    """Guidance, sampler, steps and augmentation level all reach the stages."""

    def image(**settings: tuple[object, ...]) -> torch.Tensor:
        imagen = load_imagen(training.path, **settings)  # type: ignore[arg-type]
        return draw(imagen, encode, WORDS[:1], [0])[-1]

    plain = image()
    for name, values in {
        "guidance_weight": (1.0,),
        "sampler": ("ddpm", "ddim"),
        "sampling_steps": (4,),
        "aug_level": (0.9,),
    }.items():
        assert (image(**{name: values}) - plain).abs().max() > 1e-3, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_caption": 0}, "`images_per_caption` is 0, it should be at least 1"),
        (
            {"guidance_weight": (1e7,)},
            "`guidance_weight` is 10000000.0, it should be from -1000000",
        ),
        ({"aug_level": (0.1, 1.1)}, "`aug_level` is 1.1, it should be from 0 to 1"),
        ({"sampling_steps": (5, 0)}, "`sampling_steps` is 0, it should be at least 1"),
        ({"sampler": ("euler",)}, "`sampler` is 'euler', it should be one of ddpm, ddim"),
        ({"seed": -1}, "`seed` is -1, it should be at least 0"),
        ({"batch_size": 0}, "`batch_size` is 0, it should be at least 1"),
        ({"threads": 0}, "`threads` is 0, it should be at least 1"),
        ({"device": "tpu"}, "`device` is 'tpu', it should be one of auto, cpu, cuda, mps"),
        ({"precision": "fp8"}, "`precision` is 'fp8', it should be one of auto, fp32, bf16, fp16"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    """One line with the setting, the value and what would be right."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        GenerationConfig(**settings)
    assert "\n" not in str(error.value)


def test_none_is_a_caption_like_any_other() -> None:
    """But no number of threads."""
    given = from_text(GenerationConfig, {"captions": "none", "threads": "none", "sampler": "none"})
    assert given == {"captions": "none", "threads": None, "sampler": None}
    assert read_captions("none") == ["none"]


def test_precision_on_the_cpu(training: TrainingDirectory) -> None:
    """Float32 unless asked for, also where the CPU computes bf16; fp16 is for GPUs."""
    config = GenerationConfig(str(training.path), device="cpu")
    assert load(config).precision == "fp32"
    assert load(replace(config, precision="bf16")).precision == "bf16"
    with pytest.raises(ValueError, match="`precision` is 'fp16'"):
        load(replace(config, precision="fp16"))


def test_a_model_is_needed() -> None:
    """The error says which setting names it."""
    with pytest.raises(ValueError, match=r"^`training_directory` is missing"):
        load(GenerationConfig())
    with pytest.raises(ValueError, match=r"^`training_directory`: nowhere is not a training"):
        load(GenerationConfig("nowhere"))


# --- captions -------------------------------------------------------------------------------------


def test_captions_from_text_or_file(tmp_path: Path) -> None:
    """One caption, or a line each; blank ones are skipped, Windows' line ends are fine."""
    assert read_captions("  a red   circle ") == ["a red circle"]
    path = tmp_path / "some captions.TXT"
    path.write_bytes("\ufeffa red circle\r\n\r\n  \r\nein grüner Kreis".encode())
    assert read_captions(str(path)) == ["a red circle", "ein grüner Kreis"]
    long = "a red circle and " * 40  # too long for a file's name
    assert read_captions(long) == [long.strip()]


def test_default_captions_are_of_the_minimal_world() -> None:
    """What the main job draws: twelve captions, some of them of held-out combinations."""
    captions = read_captions(None)
    assert len(captions) == len(set(captions)) == 12
    pairs = [(thing.colour, thing.shape) for c in captions for thing in parse_caption(c).objects]
    assert len(pairs) == 12 and set(pairs) <= set(MINIMAL.combinations)
    assert set(pairs) >= MINIMAL.held_out


@pytest.mark.parametrize("kind", ["missing", "empty", "binary", "directory", "csv", "blank"])
def test_wrong_captions(tmp_path: Path, kind: str) -> None:
    """A missing file is an error, never taken for a caption."""
    path = tmp_path / ("captions.csv" if kind == "csv" else "captions.txt")
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"empty": b"\n \n", "binary": b"\xff\xfe\x00x"}.get(kind, b"a"))
    with pytest.raises(ValueError, match=r"^`captions` is ") as error:
        read_captions("  " if kind == "blank" else str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("captions", "note"),
    [
        (WORDS, None),
        (["A Red Circle!", "one cyan, small cross"], None),
        (["a red cirlce", "a dog"], 'the model was not trained on "cirlce" (circle?), "dog"'),
        (["two cats", "a cat"], 'the model was not trained on "two", "cats", "cat"'),
        (
            ["b c d e f g h i j k"],
            'the model was not trained on "b", "c", "d", "e", "f", "g", "h", "i" and 2 more',
        ),
    ],
)
def test_unknown_words_are_named_once(captions: list[str], note: str | None) -> None:
    """With the nearest word that training saw, if one is near; upper case makes no other word."""
    assert unknown_words(captions, KNOWN) == note
    assert unknown_words(captions, None) is None  # of a model whose words nobody wrote down


def test_one_warning_of_unknown_words(training: TrainingDirectory, tmp_path: Path) -> None:
    """However many images there are of such a caption."""
    config = GenerationConfig(
        str(training.path), "a red cirlce", images_per_caption=3, output_directory=str(tmp_path)
    )
    with pytest.warns(UserWarning, match="not trained on") as notes:
        made = generate(config)
    assert len(notes) == 1 and made.known == KNOWN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(replace(config, captions="a red circle"))


# --- files ----------------------------------------------------------------------------------------


def test_pixels_are_saved_as_they_are(tmp_path: Path) -> None:
    """Fault 8: a grey image stays grey; -1 is 0 and 1 is 255, whatever else there is."""
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0, 1.7, -3.0])
    expected = [0, 64, 128, 159, 255, 255, 0]
    for level, byte in zip(levels, expected, strict=True):
        to_image(level.expand(3, 4, 4)).save(tmp_path / "image.png")
        assert np.array(Image.open(tmp_path / "image.png")).tolist() == [[[byte] * 3] * 4] * 4
    image = torch.zeros(3, 2, 3)
    image[0, 1, 2] = 1  # red, second row, third column
    assert np.array(to_image(image))[1, 2].tolist() == [255, 128, 128]


def test_directory_has_what_the_contract_says(training: TrainingDirectory, tmp_path: Path) -> None:
    """Names, order, and which image belongs to which caption."""
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    config = GenerationConfig(
        str(training.path), str(captions), images_per_caption=2, output_directory=str(tmp_path)
    )
    made = generate(config)
    assert re.fullmatch(r"generated_images_\d{8}_\d{6}", made.directory.name)
    assert sorted(path.name for path in made.directory.iterdir()) == [
        "captions.txt",
        "contact_sheet.png",
        "generated_images",
        "imagen_training_directory.txt",
    ]
    twice = [text for text in WORDS for _ in range(2)]
    assert (made.directory / "captions.txt").read_text().splitlines() == twice == made.captions
    source = (made.directory / "imagen_training_directory.txt").read_text().strip()
    assert Path(source) == training.path
    files = [made.directory / "generated_images" / f"image_{i}.png" for i in range(6)]
    assert set((made.directory / "generated_images").iterdir()) == set(files)
    for i, (path, image) in enumerate(zip(files, made.images, strict=True)):
        pixels = np.array(Image.open(path))
        assert pixels.shape == (16, 16, 3)
        expected = ((image.permute(1, 2, 0) + 1) * 127.5).round().numpy()
        assert (pixels == expected).all()
        alone = generate(
            GenerationConfig(str(training.path), twice[i], seed=i, output_directory=str(tmp_path))
        )
        torch.testing.assert_close(alone.images[0], image, atol=1e-4, rtol=0)
    assert len(list(tmp_path.glob("generated_images_*"))) == 7  # within a second or two


def test_all_stages(training: TrainingDirectory, tmp_path: Path) -> None:
    """The earlier stages' images stand beside, under the same numbers."""
    config = GenerationConfig(
        str(training.path), WORDS[0], output_directory=str(tmp_path), all_stages=True
    )
    made = generate(config)
    assert Image.open(made.directory / "stage_0" / "image_0.png").size == (8, 8)
    assert Image.open(made.directory / "generated_images" / "image_0.png").size == (16, 16)


def test_nothing_is_left_of_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up half-way leaves no half of a directory."""

    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("minimagen.generation.files.contact_sheet", full)
    with pytest.raises(OSError, match="no space"):
        write([torch.zeros(1, 3, 8, 8)], ["grey"], tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "side"), [(1, 16), (5, 64), (130, 8), (2, 300)])
def test_contact_sheet_shows_images_and_captions(number: int, side: int) -> None:
    """Every image (the first hundred) is there, large enough, with something written below."""
    images = torch.linspace(-1, 1, number + 1)[:-1, None, None, None].expand(-1, 3, side, side)
    captions = ["a very long caption " * 12 + "Donaudampfschifffahrtsgesellschaftskapitän"] * number
    sheet = np.array(contact_sheet(images, captions).convert("L")).astype(int)
    shown = 192 if side < 256 else 256
    bytes_ = ((images[:100, 0, 0, 0] + 1) * 127.5).round().tolist()
    for level in bytes_[::9]:
        assert (sheet == level).sum() >= shown * shown * 0.9
    below = sheet[12 + shown + 4 : 12 + shown + 4 + 5 * 19]
    assert (below < 60).sum() > 200  # letters
    assert sheet.shape[1] <= 10 * 270 + 12


def test_an_animation_ends_with_the_images(training: TrainingDirectory, tmp_path: Path) -> None:
    """One frame a step, from noise to the finished images, which stay for two seconds."""
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(WORDS[:1] * 7), encoding="utf-8")
    config = GenerationConfig(
        str(training.path),
        str(captions),
        output_directory=str(tmp_path),
        batch_size=5,
        animation=True,
    )
    made = generate(config)
    gif = Image.open(made.directory / "animation.gif")
    assert gif.n_frames == 5 and gif.info["loop"] == 0
    frames, times = [], []
    for i in range(5):
        gif.seek(i)
        times.append(gif.info["duration"])
        frames.append(np.array(gif.convert("RGB")).astype(int))
    assert times == [80] * 4 + [2000]
    height = (frames[0].shape[0] - 12) // 2
    for i, image in enumerate(made.images):  # four in a row, at the places of the sheet
        x, y = 12 + i % 4 * 140, 12 + i // 4 * height
        first, last = (frame[y : y + 128, x : x + 128] for frame in (frames[0], frames[-1]))
        exact = np.array(to_image(image).resize((128, 128), Image.Resampling.NEAREST)).astype(int)
        assert np.abs(last - exact).mean() < 20  # a palette has 64 colours
        assert np.abs(last - exact).mean() < np.abs(first - exact).mean() / 2
        squares = first.reshape(8, 16, 8, 16, 3)  # the first stage's pixels, enlarged
        assert (squares == squares[:, :1, :, :1]).all()


def record(config: ImagenConfig, number: int, sides: tuple[int, ...]) -> Frames:
    """Frames of grey images in batches of 64, white after the last step."""
    frames = Frames(config, number)

    def drawn() -> Iterator[State]:
        for first in range(0, number, 64):
            batch = min(64, number - first)
            for stage, side in enumerate(sides):
                for step in range(config.stages[stage].steps):
                    last = (stage, step) == (len(sides) - 1, config.stages[stage].steps - 1)
                    yield State(first, stage, torch.full((batch, 3, side, side), float(last)))

    assert len(list(frames.record(drawn()))) == len(list(drawn()))  # all are handed on
    return frames


def test_frames_are_few_and_small(imagen: Imagen, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 60 of at most 100 images, the finished ones among them; large ones are thinned."""
    assert [len(frame) for frame in record(imagen.config, 3, (8, 16))] == [3] * 5
    stages = tuple(replace(stage, steps=90) for stage in imagen.config.stages)
    assert files.SHEET_IMAGES == 100
    monkeypatch.setattr(files, "SHEET_IMAGES", 4)
    frames = list(record(ImagenConfig(stages, timesteps=90), 5, (2, 256)))
    assert len(frames) == 60
    assert {frame.shape for frame in frames} == {(4, 3, 2, 2), (4, 3, 128, 128)}
    assert all(frame.dtype == torch.uint8 for frame in frames)
    assert (frames[-1] == 255).all() and (frames[-2] == 128).all()


# --- loading --------------------------------------------------------------------------------------


def test_weights_are_those_saved(training: TrainingDirectory, imagen: Imagen) -> None:
    """Every tensor of every stage, in eval mode."""
    loaded = load_imagen(training.path)
    assert not loaded.training
    for name, weight in imagen.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight)


@pytest.mark.parametrize("fault", ["missing", "corrupt", "cut", "other", "no directory", "empty"])
def test_weights_that_cannot_be_used(tmp_path: Path, fault: str) -> None:
    """One line that names the file or the directory."""
    directory = save_training(tmp_path)
    path = directory.best(1)
    if fault == "missing":
        path.unlink()
    elif fault == "corrupt":
        path.write_bytes(b"these are no weights" * 10)
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif fault == "other":
        path.write_bytes(directory.best(0).read_bytes())
    named = path.name
    source = directory.path
    if fault in ("no directory", "empty"):
        source = tmp_path / "elsewhere"
        named = str(source)
    if fault == "empty":
        source.mkdir()
    with pytest.raises(ValueError, match=re.escape(named)) as error:
        load_imagen(source)
    assert "\n" not in str(error.value)
