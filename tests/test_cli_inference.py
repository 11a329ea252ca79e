"""inference.py and main.py: the flags, what is left behind, and what wrong ones get."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_generation import WORDS, save_training, tiny_imagen

from minimagen.cli.inference import main as inference
from minimagen.cli.main import main as main_job
from minimagen.course import course_file
from minimagen.generation import contact_sheet, load_imagen
from minimagen.run_directory import TrainingDirectory


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingDirectory:
    return save_training(tmp_path_factory.mktemp("trained"), tiny_imagen(side=8 * 2))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a current directory of its own, with nothing in it."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def pixels(directory: Path, number: int) -> bytes:
    return Image.open(directory / "generated_images" / f"image_{number}.png").tobytes()


def only(here: Path) -> Path:
    (directory,) = here.glob("generated_images_*")
    return directory


# --- inference.py ---------------------------------------------------------------------------------


def test_one_caption(
    training: TrainingDirectory, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The short flags; images in the current directory; the last line is the contact sheet."""
    assert inference(["-d", str(training.path), "-c", WORDS[0]]) == 0
    directory = only(here)
    assert re.fullmatch(r"generated_images_\d{8}_\d{6}", directory.name)
    assert (directory / "captions.txt").read_text(encoding="utf-8") == WORDS[0] + "\n"
    assert Image.open(directory / "generated_images" / "image_0.png").size == (16, 16)
    out, err = capsys.readouterr()
    assert "exact match" in out  # a caption of the shapes world
    assert re.search(rf"^drew 1 image in [\d.]+ s: {directory.name}$", out, re.M)
    assert out.endswith(f" {Path(directory.name) / 'contact_sheet.png'}\n")
    assert (directory / "contact_sheet.png").is_file()
    assert err == ""  # no bar, because this is no terminal


def test_captions_of_other_things_have_no_fidelity(
    training: TrainingDirectory, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only images of shapes can be read back; any caption can be drawn, also "none"."""
    for caption in ("a dog in the rain", "none"):
        assert inference(["-d", str(training.path), "-c", caption]) == 0
        assert "exact match" not in capsys.readouterr().out
    drawn = [path.read_text(encoding="utf-8") for path in here.glob("*/captions.txt")]
    assert sorted(drawn) == ["a dog in the rain\n", "none\n"]


def test_unknown_words_get_one_note(
    training: TrainingDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A note on stderr names the words that the model was not trained on; the images are drawn."""
    knows = save_training(tmp_path, tiny_imagen())
    knows.save_words({"a", "red", "circle"})
    argv = ["-d", str(knows.path), "-c", "a red zebra", "--IMAGES_PER_CAPTION", "3"]
    assert inference([*argv, "--BATCH_SIZE", "1"]) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"note: [^\n]*zebra[^\n]*\n", err)


def test_file_of_captions_and_all_flags(
    training: TrainingDirectory, here: Path, tmp_path: Path
) -> None:
    """Each flag in one command; line i of captions.txt belongs to image i."""
    path = tmp_path / "some.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    flags = {
        "CAPTIONS": path,
        "TRAINING_DIRECTORY": training.path,
        "SEED": 3,
        "IMAGES_PER_CAPTION": 2,
        "GUIDANCE_WEIGHT": "3,1",
        "SAMPLER": "dpmpp",
        "SAMPLING_STEPS": "4,2",
        "AUG_LEVEL": 0.2,
        "BATCH_SIZE": 4,
        "DEVICE": "cpu",
        "PRECISION": "fp32",
        "THREADS": torch.get_num_threads(),
        "OUTPUT_DIRECTORY": here / "deep" / "er",
    }
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert inference([*argv, "--ALL_STAGES"]) == 0
    directory = only(here / "deep" / "er")
    lines = (directory / "captions.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [text for text in WORDS for _ in range(2)]
    assert len(list((directory / "generated_images").iterdir())) == 6
    assert Image.open(directory / "stage_0" / "image_5.png").size == (8, 8)


def test_same_seed_same_images(training: TrainingDirectory, here: Path) -> None:
    """Image i comes from seed + i: so that one of many can be drawn again alone."""
    for seed, count in (("0", "3"), ("0", "3"), ("2", "1")):
        argv = ["-d", str(training.path), "-c", WORDS[0], "--SEED", seed]
        assert inference([*argv, "--IMAGES_PER_CAPTION", count, "--BATCH_SIZE", "1"]) == 0
    first, second, alone = sorted(here.glob("generated_images_*"))
    assert [pixels(first, i) for i in range(3)] == [pixels(second, i) for i in range(3)]
    assert pixels(first, 0) != pixels(first, 1)
    assert pixels(alone, 0) == pixels(first, 2)


def test_default_captions(training: TrainingDirectory, here: Path) -> None:
    """Without --CAPTIONS the twelve of the course."""
    assert inference(["-d", str(training.path)]) == 0
    drawn = (only(here) / "captions.txt").read_text(encoding="utf-8")
    assert drawn == course_file("captions.txt").read_text(encoding="utf-8")


WRONG: dict[str, tuple[list[str], str]] = {
    "no training directory": (["-c", "a red circle"], "--TRAINING_DIRECTORY"),
    "missing training directory": (["-d", "nowhere"], "--TRAINING_DIRECTORY: nowhere"),
    "directory of another kind": (["-d", "."], "--TRAINING_DIRECTORY"),
    "missing captions": (["-c", "nothing.txt"], "--CAPTIONS"),
    "no caption": (["-c", " "], "--CAPTIONS"),
    "unknown flag": (["--CAPTION", "x"], "--CAPTION"),
    "stray word": (["red"], "red"),
    "flag without value": (["--SEED"], "--SEED"),
    "seed in words": (["--SEED", "one"], "--SEED is 'one', it should be a whole number"),
    "negative seed": (["--SEED", "-1"], "--SEED"),
    "no images": (["--IMAGES_PER_CAPTION", "0"], "--IMAGES_PER_CAPTION is 0"),
    "half an image": (["--IMAGES_PER_CAPTION", "1.5"], "--IMAGES_PER_CAPTION"),
    "empty batch": (["--BATCH_SIZE", "0"], "--BATCH_SIZE is 0, it should be at least 1"),
    "guidance not a number": (["--GUIDANCE_WEIGHT", "nan"], "--GUIDANCE_WEIGHT"),
    "infinite guidance": (["--GUIDANCE_WEIGHT", "inf"], "--GUIDANCE_WEIGHT"),
    "guidance of three stages": (["--GUIDANCE_WEIGHT", "1,2,3"], "--GUIDANCE_WEIGHT has 3 values"),
    "unknown sampler": (["--SAMPLER", "euler"], "--SAMPLER is 'euler', it should be one of ddpm"),
    "no steps": (["--SAMPLING_STEPS", "0"], "--SAMPLING_STEPS"),
    "more steps than times": (
        ["--SAMPLING_STEPS", "11"],
        "--SAMPLING_STEPS is 11, .* at most .* 10",
    ),
    "empty value": (["--SAMPLING_STEPS", "3,"], "--SAMPLING_STEPS"),
    "level too high": (["--AUG_LEVEL", "1.1"], "--AUG_LEVEL is 1.1, it should be from 0 to 1"),
    "unknown device": (["--DEVICE", "tpu"], "--DEVICE"),
    "unknown precision": (["--PRECISION", "fp8"], "--PRECISION is 'fp8'"),
    "half precision on the CPU": (["--PRECISION", "fp16", "--DEVICE", "cpu"], "--PRECISION"),
    "no threads": (["--THREADS", "0"], "--THREADS"),
    "output is a file": (["--OUTPUT_DIRECTORY", __file__], "--OUTPUT_DIRECTORY"),
    "output within a file": (["--OUTPUT_DIRECTORY", __file__ + "/x"], "--OUTPUT_DIRECTORY"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_flags_get_one_line_and_leave_nothing(
    case: str, training: TrainingDirectory, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and a line that names the flag; not one file is made."""
    argv, message = WRONG[case]
    if case != "no training directory" and "-d" not in argv:
        argv = ["-d", str(training.path), *argv]
    assert inference(argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"inference\.py: error: [^\n]*{message}[^\n]*\n", err)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("fault", ["weights", "no weights", "json", "key", "no parameters"])
def test_broken_training_directory(
    fault: str, tmp_path: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line names the file that is broken or missing."""
    directory = save_training(tmp_path)
    unet = directory.parameters / f"unet_1_params_{directory.timestamp}.json"
    named = unet.name
    if fault == "weights":
        directory.best(1).write_bytes(b"\x00" * 300)
        named = directory.best(1).name
    elif fault == "no weights":
        directory.best(0).unlink()
        named = directory.best(0).name
    elif fault == "json":
        unet.write_text("{", encoding="utf-8")
    elif fault == "key":
        unet.write_text('{"chanels": [8]}', encoding="utf-8")
        named = r"unet_1_params_.*chanels"
        shutil.rmtree(directory.path / "manifest")  # as in older versions
    else:
        unet.unlink()
        named = "unet_0_params|unet_1_params|U-Nets"
    assert inference(["-d", str(directory.path), "-c", "a red circle"]) == 2
    _, err = capfd.readouterr()
    assert re.fullmatch(rf"inference\.py: error: [^\n]*({named})[^\n]*\n", err)
    assert list(here.iterdir()) == []


def test_missing_text_encoder(
    tmp_path: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The encoder the model was trained with may be gone: the line names it."""
    directory = save_training(tmp_path)
    path = next(directory.parameters.glob("imagen_params_*.json"))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"t5_tiny"', '"t5_teeny"'), encoding="utf-8")
    shutil.rmtree(directory.path / "manifest")  # as in older versions
    assert inference(["-d", str(directory.path), "-c", "a red circle"]) == 2
    _, err = capfd.readouterr()
    assert re.fullmatch(r"inference\.py: error: [^\n]*'t5_teeny' is not known[^\n]*\n", err)
    assert list(here.iterdir()) == []


# --- main.py --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_main_trains_draws_and_measures(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One command leaves both directories and prints fidelity and coverage with their controls."""
    monkeypatch.setattr("minimagen.cli.main.HELD_OUT_CAPTIONS", 12)
    monkeypatch.setattr("minimagen.cli.main.COVERED_CAPTIONS", 3)
    monkeypatch.setattr("minimagen.cli.main.REPEATED_SHOWN", 2)
    for module in ("minimagen.cli.main", "minimagen.sharing.measured"):
        monkeypatch.setattr(f"{module}.SEEDS", 2)
    save_parameters(tmp_path)
    flags = "--TESTING --NUM_IMAGES 48 --EPOCHS 1 --PRECISION fp32 --SEED 4 --GUIDANCE_WEIGHT 2,1"
    argv = [*flags.split(), "--PARAMETERS", str(tmp_path / "parameters"), "-c", "a green circle"]
    code = main_job([*argv, "--SAMPLING_STEPS", "2"])
    out, err = capfd.readouterr()
    assert code == 0, err
    (training,) = here.glob("training_*")
    generated = only(here)
    assert load_imagen(training).config.timesteps == 10
    assert (generated / "imagen_training_directory.txt").read_text().strip() == str(training)
    assert (generated / "captions.txt").read_text() == "a green circle\n"
    assert (generated / "generated_images" / "image_0.png").is_file()
    assert Image.open(generated / "held_out_contact_sheet.png").width > 500
    again = Image.open(generated / "same_captions_contact_sheet.png")
    few = contact_sheet(torch.zeros(4, 3, 16, 16), ["a red circle"] * 4)  # 2 captions, 2 images
    assert again.width == few.width and again.height >= few.height
    assert re.search(r"^exact match +[\d.]+% of 12$", out, re.M)
    assert re.search(r"^exact match [\d.]+%; for comparison:$", out, re.M)
    for name in ("one evaluation of each stage", "captions shuffled", "by chance"):
        assert re.search(rf"^  {name} +\d+\.\d%$", out, re.M)
    assert re.search(r"^  untrained model +0\.0%$", out, re.M)
    assert re.search(r"^error +\d+\.\d+ +\(95 %: .* 1 is perfect\)$", out, re.M)
    assert "3 captions, 2 images for each\n" in out
    assert re.search(r"^error of one evaluation of each stage: \d+\.\d \(95 %", out, re.M)
    assert "error of one evaluation of each stage" in (training / "README.md").read_text()
    assert re.search(r"all done in \d+ s", out)


def save_parameters(output: Path) -> None:
    """A configuration of two small stages, in ``output/parameters``."""
    save_training(output).parameters.rename(output / "parameters")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["-c", "nothing.txt"], "--CAPTIONS"),
        (["--EPOCHS", "0"], "--EPOCHS"),
        (["--SAMPLING_STEPS", "2000"], "--SAMPLING_STEPS"),
        (["--SAMPLER", "ddim,ddim,ddim"], "--SAMPLER"),
        (["--AUG_LEVEL", "x"], "--AUG_LEVEL"),
        (["--DATASET", "shappes"], "--DATASET"),
        (["--OUTPUT_DIRECTORY", __file__], "--OUTPUT_DIRECTORY"),
        (["--PRECISION", "fp16", "--DEVICE", "cpu"], "--PRECISION"),
        (["--RESTART_DIRECTORY", "x"], "did you mean train.py --RESTART_DIRECTORY?"),
        (["--STAGES", "1"], "did you mean train.py --STAGES?"),
    ],
)
def test_main_checks_everything_before_it_trains(
    argv: list[str], named: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong flag for drawing must not wait until after five minutes of training."""
    assert main_job(["--TESTING", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"main\.py: error: [^\n]*{named}[^\n]*\n", err)
    assert list(here.iterdir()) == []
