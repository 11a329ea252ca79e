"""Generation: from a training directory to image files that show exactly what was drawn."""

from __future__ import annotations

import copy
import io
import os
import random
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from test_text import save_random_t5

from minimagen.data.rendering import render
from minimagen.data.shapes import MINIMAL, place
from minimagen.data.wording import parse_caption
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
    one_evaluation,
    read_captions,
    states,
    to_image,
    unknown_words,
    untrained,
    with_sampling,
    write,
)
from minimagen.generation import letters as letters_module
from minimagen.generation.draw import State
from minimagen.generation.letters import Letters
from minimagen.imagen import Imagen, ImagenConfig, StageConfig
from minimagen.notes import Note
from minimagen.run_directory import Sources, TrainingDirectory
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


def test_one_evaluation_is_the_same_model_sampled_without_diffusion(
    imagen: Imagen, encode: Encode
) -> None:
    """One step and no guidance in each stage; the same weights; the model stays as it was."""
    before, config, rng = copy.deepcopy(imagen.state_dict()), imagen.config, torch.get_rng_state()
    control = one_evaluation(imagen)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [(s.steps, s.guidance_weight) for s in control.config.stages] == [(1, 1.0)] * 2
    assert control.config.stages[1] == replace(config.stages[1], steps=1, guidance_weight=1.0)
    assert control.config.timesteps == config.timesteps and not control.training
    for weights in (control.state_dict(), imagen.state_dict()):
        assert weights.keys() == before.keys()
        assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
    assert imagen.config is config and imagen.config.stages[0].steps == 3
    calls: list[int] = []
    for stage in control.stages:
        stage.unet.register_forward_hook(lambda unet, args, out: calls.append(len(out)))
    regression = draw(control, encode, WORDS[:1], [0])[-1]
    assert calls == [1, 1]  # no second half of a batch for guidance
    with torch.no_grad():
        next(control.parameters()).add_(1)
    assert torch.equal(next(imagen.parameters()), next(iter(before.values())))
    assert (regression - draw(imagen, encode, WORDS[:1], [0])[-1]).abs().max() > 1e-3


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


def test_a_line_is_what_ends_with_a_line_end(tmp_path: Path) -> None:
    """U+2028 and its like are within a line; so captions.txt has as many lines as images."""
    path = tmp_path / "captions.txt"
    odd = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
    path.write_bytes("\n".join(f"a{mark}b" for mark in odd).encode() + b"\rc\r\nd\n")
    captions = read_captions(str(path))
    assert captions == ["a b"] * len(odd) + ["c", "d"]
    assert "".join(captions).splitlines() == ["".join(captions)]
    assert read_captions("a\u2028b\nc") == ["a b c"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a red circle".encode("utf-16-le"), "it has NUL characters, is it UTF-16"),
        ("a red circle".encode("utf-16"), "it is not UTF-8 text"),
        ("größe".encode("cp1252"), "it is not UTF-8 text"),
        (b"a red\0circle", "it has NUL characters"),
        (b"", "at least one caption"),
        ("\ufeff\n\u2028\n".encode(), "at least one caption"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_not_text_says_why(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """Each would be drawn as it stands, or end in a traceback."""
    path = tmp_path / "captions.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^`captions` is '{path}', .*{reason}"):
        read_captions(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_file_of_captions_that_never_ends_is_refused(tmp_path: Path) -> None:
    """A FIFO, a device: nobody writes to the one, the other never stops."""
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("fifo.txt", "zero.txt"):
        with pytest.raises(ValueError, match=f"^`captions` .*{name}.*it is not a file$"):
            read_captions(str(tmp_path / name))


def test_bytes_that_are_no_text_are_refused() -> None:
    """As Python has them from a terminal of another encoding."""
    with pytest.raises(ValueError, match=r"^`captions`: caption 'caf.udce9' is not text"):
        read_captions("caf\udce9")


def test_more_images_than_a_run_can_draw_are_refused() -> None:
    """At once, before a list of that length is made: of the twelve captions of the course."""
    config = GenerationConfig("shapes", images_per_caption=10_000)
    with pytest.raises(ValueError, match=r"^`images_per_caption` is .* at most 100,000 images"):
        generate(config)


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
    with pytest.warns(Note, match="not trained on") as notes:
        made = generate(config)
    assert len(notes) == 1 and made.known == KNOWN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(replace(config, captions="a red circle"))


def test_what_the_encoder_cannot_read_is_told_once(
    training: TrainingDirectory, tmp_path: Path
) -> None:
    """Before the first image, not with each batch; whatever else may be told of a caption."""
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join([*WORDS, "红猫", "蓝狗", "a red circle " * 30]), encoding="utf-8")
    config = GenerationConfig(
        str(training.path), str(captions), output_directory=str(tmp_path), batch_size=1
    )
    with pytest.warns(Note) as notes:
        generate(config)
    said = [str(note.message) for note in notes if "encoder" in str(note.message)]
    assert said == [
        "captions: the text encoder cuts off 1 of 6 at 64 tokens; does not know words of 2 of 6, "
        'such as "红猫", "蓝狗"; reads 2 of 6 the same as another'
    ]
    assert not any("cut off" in str(note.message) for note in notes)


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


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_finished_images_stay_after_an_error(tmp_path: Path, error: BaseException) -> None:
    """A disk that fills up, or Ctrl-C, costs the images that are not finished, and no others."""

    def batches() -> Iterator[list[torch.Tensor]]:
        yield [torch.zeros(2, 3, 8, 8)]
        raise error

    told = pytest.warns(Note, match=r"^2 of 5 images are finished, they are in .*generated_images_")
    with told, pytest.raises(type(error)):
        write(batches(), [f"caption {i}" for i in range(5)], tmp_path, tmp_path)
    (directory,) = tmp_path.iterdir()
    assert sorted(str(path.relative_to(directory)) for path in directory.rglob("*.*")) == [
        "captions.txt",
        "generated_images/image_0.png",
        "generated_images/image_1.png",
        "imagen_training_directory.txt",
    ]


def test_a_failed_sheet_costs_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images were written before; the sheet is not half there."""

    def full(self: Image.Image, path: Path, *arguments: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    sheet = Image.new("RGB", (8, 8))
    monkeypatch.setattr(files, "contact_sheet", lambda *arguments: sheet)
    monkeypatch.setattr(sheet, "save", full.__get__(sheet))
    with pytest.warns(Note, match="1 of 1"), pytest.raises(OSError, match=r"contact_sheet.png"):
        write([[torch.zeros(1, 3, 8, 8)]], ["grey"], tmp_path, tmp_path)
    (directory,) = tmp_path.iterdir()
    assert (directory / "generated_images" / "image_0.png").is_file()
    assert not list(directory.glob("*sheet*")) + list(directory.glob(".*"))


def test_nothing_is_left_if_no_image_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error before the first batch makes no directory, one within its first image removes it."""
    with pytest.raises(ValueError, match="no images to write"):
        write([], ["grey"], tmp_path, tmp_path)
    monkeypatch.setattr(files, "to_image", lambda image: None)
    with pytest.raises(AttributeError):
        write([[torch.zeros(1, 3, 8, 8)]], ["grey"], tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_images_are_written_batch_by_batch(tmp_path: Path) -> None:
    """Under their numbers, before the next batch is drawn."""
    written = []

    def batches() -> Iterator[list[torch.Tensor]]:
        for first in range(0, 6, 2):
            written.append(len(list(tmp_path.glob("*/generated_images/*.png"))))
            images = torch.tensor([first, first + 1]) / 10
            yield [images[:, None, None, None].expand(2, 3, size, size) for size in (4, 8)]

    directory = write(batches(), ["x"] * 6, tmp_path, tmp_path)
    assert written == [0, 2, 4]
    for i in range(6):
        for name, size in (("stage_0", 4), ("generated_images", 8)):
            image = Image.open(directory / name / f"image_{i}.png")
            assert image.size == (size, size) and image.getpixel((0, 0))[0] == round(
                (i / 10 + 1) * 127.5
            )


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


def written(text: str, letters: Letters) -> np.ndarray:
    """The pixels of a line of text, (30, 400), True where it is dark."""
    page = Image.new("L", (400, 30), "white")
    letters.write(ImageDraw.Draw(page), (2, 2), text)
    return np.array(page) < 128


def test_every_letter_of_a_font_is_shown_as_itself() -> None:
    """Latin, Greek, Cyrillic, Hebrew and Arabic come with matplotlib, others from further fonts."""
    letters = Letters(15)
    texts = ["größe", "κύκλος", "красный", "круг", "אדום", "עיגול", "أحمر", "دائرة", "→ ∀", "é"]
    shown = [written(text, letters) for text in texts]
    assert not letters.missing and all(pixels.sum() > 15 for pixels in shown)
    assert len({pixels.tobytes() for pixels in shown}) == len(texts)  # no boxes
    (composed,) = letters.wrap("e\u0301", 100)
    assert (written(composed, letters) == shown[-1]).all()
    far = "\u2336"  # only in another font of matplotlib, STIX
    assert written(far, letters).sum() > 5 and not letters.missing


def test_a_letter_without_a_font_is_shown_by_its_code_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one note names such letters; what can be seen of the caption stays."""
    monkeypatch.setattr(letters_module, "_installed", lambda: [])
    letters = Letters(15)
    assert (written("红 cat", letters) == written("[7EA2] cat", Letters(15))).all()
    assert list(letters.missing) == ["红"]
    assert (written("a\u200d\ufe0fb", letters) == written("ab", letters)).all()  # joiners
    with pytest.warns(Note, match=r"these letters of the captions: 红 猫; .*pip install") as notes:
        contact_sheet(torch.zeros(2, 3, 8, 8), ["红猫", "猫 \x1b"])
    assert len(notes) == 1 and "\x1b" not in str(notes[0].message)


def test_plain_captions_need_no_other_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a list of all fonts of a machine, which takes a while the first time."""
    monkeypatch.setattr(letters_module, "_installed", lambda: pytest.fail("asked for fonts"))
    assert written("plain “English”, 100%…", Letters(15)).any()


@pytest.mark.parametrize(
    "caption",
    [
        "é" * 100_000,
        "x" * 100_000,
        "i " * 50_000,
        "\u0301" * 100_000,
        "红" * 100_000,
        "a\u200d" * 9999,
    ],
)
def test_captions_without_an_end_are_cut_on_the_sheet(caption: str) -> None:
    """In a moment; before, the time grew with the square of the length."""
    letters, began = Letters(15), time.process_time()
    lines = letters.wrap(caption, 192)
    assert len(lines) <= 5 and all(letters.length(line) <= 192 + 15 for line in lines)
    assert time.process_time() - began < 5


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


def own_encoder(tmp_path: Path, name: str = "myt5") -> tuple[TrainingDirectory, Path]:
    """A training with a T5 of its own, of the same width as t5_tiny, and that T5."""
    dim = load_text_encoder("t5_tiny").dim
    encoder = save_random_t5(tmp_path / name, seed=1, dim=dim)
    imagen = tiny_imagen()
    imagen.config = replace(imagen.config, text_encoder=str(encoder))
    directory = save_training(tmp_path, imagen)
    print_ = load_text_encoder(str(encoder), imagen.config.max_tokens).fingerprint()
    directory.save_sources(Sources("shapes-minimal", "", str(encoder), print_))
    return directory, encoder


def test_a_text_encoder_that_was_moved_is_recognised(tmp_path: Path) -> None:
    """``t5_name`` says where it is now; without, the line says so."""
    directory, encoder = own_encoder(tmp_path)
    config = GenerationConfig(str(directory.path))
    assert load(config).encoder.dim == load_text_encoder(str(encoder)).dim
    moved = encoder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"myt5.*no such directory; .* say where with `t5_name`$"):
        load(config)
    assert load(replace(config, t5_name=str(moved))).encoder.dim
    with pytest.raises(ValueError, match=r"^`t5_name`: text encoder '/nowhere': there is no such"):
        load(replace(config, t5_name="/nowhere"))


def test_another_text_encoder_is_refused(tmp_path: Path) -> None:
    """In the same place too, and with one changed weight: its embeddings mean other things."""
    directory, encoder = own_encoder(tmp_path)
    config = GenerationConfig(str(directory.path))
    other = "^`t5_name`: text encoder '.*' is not the one that the model was trained with, .*myt5"
    for name in ("t5_tiny", str(save_random_t5(tmp_path / "wide", dim=8))):
        with pytest.raises(ValueError, match=other):
            load(replace(config, t5_name=name))
    weights = load_file(encoder / "model.safetensors")
    weights["shared.weight"][100, 3] += 1e-3
    save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=other):
        load(config)


def test_older_directories_know_the_width_of_their_encoder(tmp_path: Path) -> None:
    """They have no fingerprint; another width is one line, not an error of a matrix product."""
    config = GenerationConfig(str(save_training(tmp_path).path))
    assert load(config).encoder.dim == 64
    with pytest.raises(ValueError, match=r"^`t5_name`: text encoder .* is not the one"):
        load(replace(config, t5_name=str(save_random_t5(tmp_path / "narrow"))))


def test_no_name_of_a_training_directory_is_no_directory() -> None:
    """An empty one is not the current directory."""
    with pytest.raises(ValueError, match=r"^`training_directory`: '' is blank$"):
        load(GenerationConfig(""))
