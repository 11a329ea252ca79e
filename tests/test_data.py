"""Data sets: real images from a folder, the choice by name, and what goes wrong with either."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.utils.logging import get_logger
from PIL import Image

from minimagen.data import make_dataset
from minimagen.data.pictures import crop_square
from minimagen.data.real import RealDataset
from minimagen.data.scenes import ShapesDataset
from minimagen.data.shapes import MINIMAL
from minimagen.data.wording import parse_caption

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three plain images, of any proportions, with captions."""
    directory = tmp_path / "images"
    directory.mkdir()
    lines = ["file_name,text"]
    for name, colour in COLOURS.items():
        Image.new("RGB", (50, 30), colour).save(directory / f"{name}.png")
        lines.append(f"{name}.png,all {name}")
    (directory / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def test_folder_gives_images_and_their_own_captions(folder: Path) -> None:
    """(3, side, side) in [-1, 1], float32, exactly the files' colours, each with its caption."""
    dataset = make_dataset(str(folder), 16)
    assert isinstance(dataset, RealDataset) and len(dataset) == 3
    assert sorted(dataset.captions) == [f"all {name}" for name in sorted(COLOURS)]
    for _ in range(2):  # decoded, then remembered
        for index in range(3):
            item = dataset[index]
            assert item["caption"] == dataset.captions[index]
            assert item["image"].shape == (3, 16, 16) and item["image"].dtype == torch.float32
            colour = torch.tensor(COLOURS[item["caption"].split()[1]]) / 127.5 - 1
            assert (item["image"] == colour[:, None, None]).all()
    torch.testing.assert_close(dataset[-1]["image"], dataset[2]["image"])
    with pytest.raises(IndexError):
        dataset[3]


def test_jsonl_and_other_column_names(folder: Path) -> None:
    """metadata.jsonl serves as well, and flags name other columns."""
    (folder / "metadata.csv").unlink()
    lines = [f'{{"file_name": "{name}.png", "words": "so {name}"}}' for name in COLOURS]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    dataset = make_dataset(str(folder), 8, caption_column="words")
    assert sorted(dataset.captions) == ["so blue", "so green", "so red"]


def test_no_image_is_squashed() -> None:
    """Fault 8: a circle in a wide or tall image stays a circle; its sides are cut off instead."""
    rows, columns = np.mgrid[:40, :100]
    disc = ((rows - 19.5) ** 2 + (columns - 49.5) ** 2 < 15**2).astype(np.uint8) * 255
    for image in (disc, disc.T):
        square = np.array(crop_square(Image.fromarray(image), 40))[..., 0] > 127
        assert square.shape == (40, 40)
        assert abs(int(square.any(0).sum()) - int(square.any(1).sum())) <= 1
        assert abs(int(square.any(0).sum()) - 30) <= 1  # nothing is enlarged either


def test_resizing_is_antialiased() -> None:
    """A fine chequerboard becomes an even grey, not a pattern of its own."""
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    small = np.array(crop_square(Image.fromarray(board), 16)).astype(int)
    assert abs(small - 127).max() <= 4


def test_any_kind_of_file_becomes_rgb() -> None:
    """Grey, palette and transparent images; what is transparent is white, not a hidden colour."""
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert np.array(crop_square(clear, 8)).tolist() == [[[255] * 3] * 8] * 8
    grey = Image.new("L", (8, 8), 60)
    assert np.array(crop_square(grey, 4)).tolist() == [[[60] * 3] * 4] * 4
    palette = Image.new("RGB", (8, 8), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array(crop_square(palette, 4))[0, 0].tolist() == [10, 200, 30]


def test_length_draws_by_seed(folder: Path) -> None:
    """At most so many images, the same ones for the same seed, at every side."""
    first = make_dataset(str(folder), 8, length=2, seed=1)
    assert len(first) == 2 and set(first.captions) < {f"all {name}" for name in COLOURS}
    assert make_dataset(str(folder), 16, length=2, seed=1).captions == first.captions
    assert len({tuple(make_dataset(str(folder), 8, 2, seed).captions) for seed in range(9)}) > 1
    assert len(make_dataset(str(folder), 8, length=50)) == 3


def test_missing_caption_is_the_empty_one(folder: Path) -> None:
    """An image without a caption still teaches what images look like."""
    (folder / "metadata.csv").write_text("file_name,text\nred.png,\nblue.png,blue\n")
    assert sorted(make_dataset(str(folder), 8).captions) == ["", "blue"]


def test_data_set_survives_a_trip_to_a_worker_process(folder: Path) -> None:
    """DataLoader's workers on Windows and macOS get the data set pickled."""
    original = make_dataset(str(folder), 8)  # whose squares go with it
    dataset = pickle.loads(pickle.dumps(original))
    assert dataset[0]["image"].shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["shapes-minimol", "no/such/directory", ""])
def test_unknown_name_lists_what_there_is(name: str) -> None:
    """A slip of the pen is no reason to ask the network."""
    with pytest.raises(
        ValueError, match="should be one of shapes-minimal, shapes, a folder"
    ) as error:
        make_dataset(name, 8)
    assert "\n" not in str(error.value)


@pytest.mark.slow  # datasets takes seconds to import
def test_hub_data_set_without_a_network(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, and nothing else on the terminal, although the library warns of each new try."""

    def unreachable(name: str, split: str, streaming: bool) -> None:
        get_logger("huggingface_hub.utils").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nand more of that")

    caplog.set_level(logging.WARNING, logger="huggingface_hub")
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ValueError) as error:
        make_dataset("someone/images", 8)
    assert str(error.value).startswith("data set 'someone/images' cannot be loaded")
    assert str(error.value).endswith("`hf download someone/images --repo-type dataset`")
    assert "\n" not in str(error.value)
    get_logger("huggingface_hub.utils").warning("heard again")
    assert caplog.messages == ["heard again"]


def test_empty_folder(tmp_path: Path) -> None:
    """A directory with nothing in it."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has 0 images and no captions, [^\n]*$"):
        make_dataset(str(tmp_path / "empty"), 8)


@pytest.mark.parametrize(("side", "length"), [(0, None), (8, 0)])
def test_sizes_must_be_positive(folder: Path, side: int, length: int | None) -> None:
    """As for the shapes world."""
    with pytest.raises(ValueError, match="should be a positive number"):
        make_dataset(str(folder), side, length)


def test_worlds_by_name() -> None:
    """Names of worlds give shapes; held-out scenes are another set than those of training."""
    dataset = make_dataset("shapes-minimal", 16, length=20, seed=3)
    assert isinstance(dataset, ShapesDataset) and dataset.world is MINIMAL and len(dataset) == 20
    assert dataset.captions == make_dataset("shapes-minimal", 64, 20, 3).captions
    for held_out in (False, True):
        for text in make_dataset("shapes-minimal", 16, 20, held_out=held_out).captions:
            (thing,) = parse_caption(text).objects
            assert ((thing.colour, thing.shape) in MINIMAL.held_out) == held_out


def test_real_data_has_no_held_out_part(folder: Path) -> None:
    """Combinations are held out of shapes worlds alone."""
    with pytest.raises(ValueError, match="only shapes-minimal, shapes have them"):
        make_dataset(str(folder), 8, held_out=True)
