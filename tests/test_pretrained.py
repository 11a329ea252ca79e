"""The shipped checkpoint: a training directory, taken by its name, that draws what is said."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from minimagen.data import make_dataset, words
from minimagen.data.scenes import ShapesDataset
from minimagen.data.shapes import FULL
from minimagen.evaluation import caption_fidelity
from minimagen.generation import GenerationConfig, draw, load, load_imagen
from minimagen.run_directory import PRETRAINED, TrainingDirectory
from minimagen.text import load_text_encoder

ROOT = Path(__file__).parent.parent
SHAPES = PRETRAINED / "shapes"


@pytest.mark.slow
def test_the_shipped_model_draws_held_out_captions() -> None:
    """It draws captions of no training image; its card has 0.805 exact match of 200 others."""
    captions = ShapesDataset(FULL, 60, 16, seed=4321, held_out=True).captions
    imagen = load_imagen("shapes")
    encode = load_text_encoder(imagen.config.text_encoder).encode
    images = draw(imagen, encode, captions, range(60))[-1]
    assert images.shape == (60, 3, 64, 64)
    fidelity = caption_fidelity(images, captions)
    assert fidelity.exact_match >= 0.7, fidelity
    shuffled = caption_fidelity(images, [*captions[1:], captions[0]])
    assert shuffled.exact_match < 0.2


def test_a_shipped_model_is_found_by_its_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a directory of that name is there: then this is meant."""
    monkeypatch.chdir(tmp_path)
    assert load(GenerationConfig(training_directory="shapes")).source.path == SHAPES
    (tmp_path / "shapes" / "parameters").mkdir(parents=True)
    assert TrainingDirectory.open("shapes").path == tmp_path / "shapes"


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    """One line, with the names of the shipped models."""
    with pytest.raises(
        ValueError, match=r"not a training directory.*names of shipped models: shapes$"
    ):
        TrainingDirectory.open("circles")


def test_it_is_a_whole_and_small_training_directory() -> None:
    """Configuration, weights, log, card and curve, in at most 12 MB."""
    files = [path for path in SHAPES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path.name for path in files} >= {
        "README.md",
        "training_progress.txt",
        "training_log.csv",
        "curve.png",
    }
    assert len(list((SHAPES / "state_dicts").glob("*.safetensors"))) == 2


def test_its_card_has_the_command_that_its_parameters_came_from() -> None:
    """Each flag of the command stands in training_parameters with the same value."""
    card = (SHAPES / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    python main.py (.*)$", card, re.MULTILINE)
    (saved,) = (SHAPES / "parameters").glob("training_parameters_*.txt")
    lines = saved.read_text(encoding="utf-8").splitlines()
    flags = re.findall(r"(--\w+) (\S+)", command)
    assert len(flags) == 5
    assert {f"{name}={value}" for name, value in flags} <= set(lines)


@pytest.mark.slow
def test_its_words_are_those_of_its_captions() -> None:
    """Of the scenes that its training parameters name."""
    directory = TrainingDirectory.open("shapes")
    (path,) = directory.parameters.glob("training_parameters_*.txt")
    lines = path.read_text(encoding="utf-8").splitlines()
    flags = dict(line.removeprefix("--").lower().split("=", 1) for line in lines)
    data = make_dataset(flags["dataset"], 16, int(flags["num_images"]), int(flags["seed"]))
    assert directory.load_words() == {word for text in data.captions for word in words(text)}


@pytest.mark.slow
def test_a_model_is_measured_beside_its_baselines() -> None:
    """A short run of tools/measure.py: the model beats the baselines; a wrong setting is named."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / "measure.py"), *arguments, "--number", "12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    done = run("baselines", "shapes")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \([^|]*\| ([\d.]+) \(", done.stdout, re.M)
    exact, coverage = ({name: float(row[i]) for name, *row in rows} for i in (0, 1))
    assert len(rows) == 5 and max(exact, key=exact.__getitem__) == "the model"
    assert min(coverage, key=coverage.__getitem__) == "the model"
    for wrong in ("weight=2", "w=much", "aug=2"):
        done = run("sampling", "shapes", wrong)
        assert done.returncode == 2 and repr(wrong) in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr and not done.stdout
