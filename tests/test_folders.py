"""Folders as people have them: what is used of each, what is left out, and what is told."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minimagen.data import make_dataset
from minimagen.data.pictures import ASPECT, decode, to_rgb
from minimagen.data.real import RealDataset
from minimagen.training.batches import split

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}
HEADER = "file_name,text\n"


def draw(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8)) -> None:
    """A plain picture, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, whose names are their colours, and nothing else."""
    for name in COLOURS:
        draw(tmp_path / "mine" / f"{name}.png", name)
    return tmp_path / "mine"


def rows(folder: Path, text: str | bytes, name: str = "metadata.csv") -> None:
    """Write a file of captions."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def opened(folder: Path, **options: object) -> RealDataset:
    """The data set of a folder, with whatever share is left out."""
    options = {"max_left_out": 0.9} | options
    return make_dataset(str(folder), 8, **options)  # type: ignore[arg-type, return-value]


def colour(data: RealDataset, index: int) -> str:
    """The name of the colour of an item."""
    pixel = ((data[index]["image"][:, 0, 0] + 1) * 127.5).round().tolist()  # type: ignore[index]
    return next(name for name, rgb in COLOURS.items() if list(rgb) == pixel)


# --- names ----------------------------------------------------------------------------------------


POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such names, links and pipes")


@POSIX
@pytest.mark.parametrize(
    "name",
    [
        *("a train.png", "train.png", "test_1.png", "val 1.png", "dev board.png", "eval kit.png"),
        *("my-train.png", "train/a.png", "test/b.png", "[2024] x.png", "a::b.png", "a*b?.png"),
        *("{x,y}.png", "50% #1.png", "größe 猫.png", "-v.png", "~.png", "a.b.png", "'x'.png"),
    ],
)
def test_names_of_files_mean_nothing(tmp_path: Path, name: str) -> None:
    """Whatever the name of a picture, and of the folder: the rows are used."""
    folder = tmp_path / f"[{Path(name).stem}] train::test"
    draw(folder / name, "blue")
    draw(folder / "other.png", "red")
    rows(folder, f'{HEADER}"{name}",one\nother.png,two\n')
    data = opened(folder)
    assert data.captions == ["one", "two"] and [colour(data, i) for i in (0, 1)] == ["blue", "red"]
    assert data.check == "2 images with 2 captions from metadata.csv" and not data.left_out


def test_all_metadata_below_a_folder(folder: Path) -> None:
    """Paths are seen from the file that has them; the other pictures may have a .txt."""
    draw(folder / "train" / "a.png", "red", (9, 9))
    draw(folder / "test" / "deep" / "b.png", "blue", (9, 9))
    rows(folder, HEADER + "red.png,one\n")
    rows(folder, HEADER + "a.png,two\n../blue.png,three\n", "train/metadata.csv")
    rows(folder, '{"file_name": "deep/b.png", "text": "four"}', "test/metadata.jsonl")
    rows(folder, "five\n\n six \r\n", "green.txt")
    rows(folder, "notes, and no picture", "readme.txt")
    data = opened(folder)
    assert data.captions == ["one", "four", "two", "three", "five", " six "]
    assert data.pictures == [0, 1, 2, 3, 4, 4]
    assert [colour(data, i) for i in range(5)] == ["red", "blue", "red", "blue", "green"]
    assert data.check == (
        "5 images with 6 captions from metadata.csv and test/metadata.jsonl and train/metadata.csv"
        " and 1 .txt; 1 without a caption"
    )


PATHS: dict[str, tuple[Callable[[Path], str], str]] = {  # what a row says, and what is told of it
    "absolute": (lambda folder: str(folder / "red.png"), ""),
    "backslash": (lambda folder: r"sub\blue.png", ""),
    "dots": (lambda folder: "./sub/../red.png", ""),
    "other case": (lambda folder: "RED.PNG", ""),
    "hidden": (lambda folder: ".hidden.png", ""),
    "link": (lambda folder: "link/out.png", ""),
    "out": (lambda folder: "../out/out.png", "../out/out.png leads out of the folder"),
    "absolute out": (lambda folder: str(folder.parent / "out/out.png"), "leads out of the folder"),
    "gone": (lambda folder: "gone.png", "gone.png is missing (metadata.csv, line 3)"),
    "nothing": (lambda folder: "", "metadata.csv, line 3 names no file"),
    "a folder": (lambda folder: "sub", "sub is not a file"),
    "pipe": (lambda folder: "pipe.png", "pipe.png is not a file"),
    "device": (lambda folder: "zero.png", "zero.png is not a file"),
}


@POSIX
@pytest.mark.parametrize("kind", PATHS)
def test_paths_in_rows(folder: Path, kind: str) -> None:
    """They are found as they are meant, but never out of the folder; links are the user's own."""
    draw(folder / "sub" / "blue.png", "blue")
    draw(folder / ".hidden.png", "grey")
    draw(folder.parent / "out" / "out.png", "green")
    (folder / "link").symlink_to(folder.parent / "out")
    (folder / "round").symlink_to(folder)  # a circle of links ends
    (folder / "zero.png").symlink_to("/dev/zero")
    if kind == "pipe":
        os.mkfifo(folder / "pipe.png")
    written, told = PATHS[kind]
    rows(folder, f'{HEADER}green.png,one\n"{written(folder)}",two\n')
    data = opened(folder)
    assert data.captions == (["one"] if told else ["one", "two"])
    assert len(data.left_out) == bool(told) and told in "".join(data.left_out)
    assert ("1 left out: " + "".join(data.left_out) in data.check) == bool(told)


# --- captions -------------------------------------------------------------------------------------

WORDS = [
    "007",
    "NA",
    "null",
    "true",
    "1e5",
    "  x ",
    'a "b", c',
    "two\nlines",
    "猫 \u2028 🐈",
    "None",
    "",
]


def quoted(text: str) -> str:
    """A field of a CSV."""
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_captions_in_csv_are_letter_for_letter(
    folder: Path, encoding: str, delimiter: str, end: str
) -> None:
    """No reader makes numbers, truth values or nothing of them; nor does Excel's way to save."""
    lines = [f"file_name{delimiter}text"] + [f"red.png{delimiter}{quoted(text)}" for text in WORDS]
    rows(folder, (end.join(lines) + end).encode(encoding))
    data = opened(folder)
    assert data.captions == WORDS and set(data.pictures) == {0}


def test_captions_in_jsonl_are_letter_for_letter(folder: Path) -> None:
    """Numbers as they are written; a list is several captions, null is the empty one."""
    texts = [json.dumps(text) for text in WORDS] + [
        "12",
        "1.50",
        "true",
        "null",
        '["a", "b"]',
        "[]",
    ]
    rows(
        folder,
        "\n\r\n".join(f'{{"text": {text}, "file_name": "red.png"}}' for text in texts),
        "metadata.jsonl",
    )
    assert opened(folder).captions == [*WORDS, "12", "1.50", "true", "", "a", "b", ""]


REFUSED: dict[str, tuple[str, str | bytes, str]] = {  # file, its content, what is told
    "unquoted comma": (
        "metadata.csv",
        HEADER + "red.png,red\nblue.png,blue, round\n",
        "metadata.csv, line 3 has 3 fields, its header has 2: put a caption with a comma between",
    ),
    "comma in the first row": (
        "sub/metadata.csv",
        HEADER + "red.png,red, round\n",
        "sub/metadata.csv, line 2 has 3 fields",
    ),
    "a field less": ("metadata.csv", HEADER + "red.png\n", "line 2 has 1 fields"),
    "open quote": ("metadata.csv", HEADER + 'red.png,"x\n', "line 2 is not CSV"),
    "cp1252": (
        "metadata.csv",
        (HEADER + "red.png,größe\n").encode("cp1252"),
        "metadata.csv, line 2 is not text in UTF-8, save it as UTF-8",
    ),
    "UTF-16 without a mark": ("metadata.csv", HEADER.encode("utf-16-le"), "line 1 has a char"),
    "no column": (
        "metadata.csv",
        "file_name,caption\nred.png,x\n",
        "metadata.csv has no column 'text', its columns are file_name, caption; name the right one "
        "with `caption_column`",
    ),
    "no paths": (
        "metadata.csv",
        "picture,text\nred.png,x\n",
        "has no column 'file_name' or 'image', its columns are picture, text; .*`image_column`",
    ),
    "empty file": ("metadata.csv", "", "metadata.csv is empty"),
    "no rows": ("metadata.csv", HEADER, "has 4 images and no captions"),
    "broken JSON": ("metadata.jsonl", '\n{"file_name": \n', "metadata.jsonl, line 2 is not JSON"),
    "deep JSON": ("metadata.jsonl", "[" * 100_000, "metadata.jsonl, line 1 is not JSON"),
    "no object": ("metadata.jsonl", "[]", "metadata.jsonl, line 1 should be an object"),
    "object as caption": (
        "metadata.jsonl",
        '{"file_name": "red.png", "text": {}}',
        "metadata.jsonl, line 1 has no text as caption",
    ),
    "half a character": (
        "metadata.jsonl",
        '{"file_name": "red.png", "text": "\\ud83d"}',
        "metadata.jsonl, line 1 has a caption that is not valid text",
    ),
    "no captions": ("notes.md", "", "has 4 images and no captions, it should have a metadata.csv"),
    "not Parquet": ("a.parquet", "no", "a.parquet cannot be read"),
    "deep save": ("state.json", "[" * 100_000, "cannot be read as a saved data set"),
    "broken save": ("state.json", "{}", "cannot be read as a saved data set"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_understood_is_refused(folder: Path, kind: str) -> None:
    """One line: the file, the line, and what would be right."""
    name, content, told = REFUSED[kind]
    rows(folder, content, name)
    with pytest.raises(ValueError, match=told) as error:
        opened(folder)
    assert "\n" not in str(error.value)


@POSIX
@pytest.mark.parametrize("name", ["metadata.csv", "sub/metadata.parquet", "a.parquet", "red.txt"])
def test_pipes_are_not_read(folder: Path, name: str) -> None:
    """Reading them would never end."""
    (folder / "sub").mkdir()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=rf"{name} is not a file"):
        opened(folder)


def test_other_columns(folder: Path) -> None:
    """Settings name them; a column `image` serves as well as `file_name`."""
    rows(folder, "photo,words\nred.png,one\n")
    assert opened(folder, image_column="photo", caption_column="words").captions == ["one"]
    rows(folder, "image,text\nred.png,one\n")
    assert opened(folder).captions == ["one"]


# --- pictures -------------------------------------------------------------------------------------


def bomb(path: Path) -> None:
    """A PNG of 15,000 x 15,000 pixels in a few bytes: only its header."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 15000, 15000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:45]), "cannot be decoded: "),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "HTML": (lambda p: p.write_text("\n<!DOCTYPE html><p>404"), "is HTML"),
    "text": (lambda p: p.write_text("nothing"), "is not a picture that Pillow can read"),
    "PostScript": (
        lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "not",
    ),
    "225 megapixels": (bomb, "has more than 179 megapixels"),
    "missing": (Path.unlink, "is missing (metadata.csv, line 3)"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_bad_pictures_are_named_and_left_out(folder: Path, kind: str) -> None:
    """Found at the start, named, counted; the others are used. Too many end it."""
    rows(folder, HEADER + "".join(f"{name}.png,{name}\n" for name in COLOURS))
    damage, told = DAMAGES[kind]
    damage(folder / "green.png")
    data = opened(folder)
    assert data.captions == ["red", "blue", "grey"]
    assert [colour(data, i) for i in range(3)] == data.captions
    assert data.left_out[0].startswith("green.png ") and told in data.left_out[0]
    assert data.check == (
        f"3 images with 3 captions from metadata.csv; 1 left out: {data.left_out[0]}"
    )
    with pytest.raises(
        ValueError, match=r"^1 of 4 images cannot be used: green.png .*; at most 10%"
    ):
        opened(folder, max_left_out=0.1)


def test_only_a_few_bad_pictures_are_named_in_the_line(folder: Path) -> None:
    """The others are counted there, and named in ``left_out``."""
    rows(folder, HEADER + "red.png,x\n" + "".join(f"{i}.png,x\n" for i in range(5)))
    data = opened(folder)
    assert "5 left out: 0.png is" in data.check and " and 2 more; 3 without" in data.check
    assert len(data.left_out) == 5
    with pytest.raises(ValueError, match="5 of 5 images cannot be used"):
        rows(folder, HEADER + "".join(f"{i}.png,x\n" for i in range(5)))
        opened(folder, max_left_out=1.0)


def tiff(values: np.ndarray, sample_format: int) -> bytes:
    """A grey TIFF of any type of number, which Pillow cannot write."""
    high, wide = values.shape
    tags = [(256, wide), (257, high), (258, values.itemsize * 8), (259, 1), (262, 1), (273, 122)]
    tags += [(277, 1), (279, values.nbytes), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values.tobytes()


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
DEEP = {  # type of number, its sample format in a TIFF, the value of white
    "16 bits": ("<u2", 1, 65535),
    "32 bits": ("<u4", 1, 2**32 - 1),
    "32 bits with sign": ("<i4", 2, 2**31 - 1),
    "16 bits in 32": ("<i4", 2, 65535),
    "8 bits in 32": ("<i4", 2, 255),
    "floats to 1": ("<f4", 3, 1),
    "floats to 255": ("<f4", 3, 255),
    "floats to 65535": ("<f4", 3, 65535),
}


@pytest.mark.parametrize("kind", DEEP)
def test_a_ramp_of_deep_grey_keeps_its_mean(kind: str) -> None:
    """White is white and black is black, whatever number says so."""
    number, sample_format, white = DEEP[kind]
    (square,) = decode(tiff((RAMP * white).astype(number), sample_format), [16])
    assert square.shape == (16, 16, 3) and abs(square.mean() - 127.5) < 0.6
    assert square.min() < 12 and square.max() > 243
    darker, _ = decode(tiff((RAMP * white * 0.7).astype(number), sample_format), [16, 16])
    assert abs(darker.mean() - 0.7 * 127.5) < 0.6


def test_deep_grey_out_of_every_range_goes_from_black_to_white() -> None:
    """Negative numbers: from the lowest to the highest; NaN is black; big-endian PNG too."""
    image = Image.fromarray((RAMP * 7 - 3).astype(np.float32))
    assert abs(np.asarray(to_rgb(image)).mean() - 127.5) < 0.6
    assert np.asarray(to_rgb(Image.fromarray(np.full((4, 4), -5, np.float32)))).max() == 0
    holes = np.where(RAMP < 0.5, np.nan, 1).astype(np.float32)
    assert abs(np.asarray(to_rgb(Image.fromarray(holes))).mean() - 127.5) < 1
    big = Image.fromarray((RAMP * 65535).astype(">u2"))
    assert abs(np.asarray(to_rgb(big)).mean() - 127.5) < 0.6


def test_exif_turns_a_picture(folder: Path) -> None:
    """As a phone stores it: what is shown as the blue top is the left side of what is stored."""
    stored = Image.new("RGB", (8, 8), COLOURS["red"])
    stored.paste(COLOURS["blue"], (0, 0, 4, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top row is shown at the right: turn clockwise
    stored.save(folder / "red.png", exif=exif)
    rows(folder, HEADER + "red.png,x\n")
    image = opened(folder)[0]["image"]
    assert image[2, 0, :].min() > 0.9 and image[0, 7, :].min() > 0.9  # type: ignore[index]


# --- several captions, digests --------------------------------------------------------------------


def test_split_is_by_picture(folder: Path) -> None:
    """No picture that is validated was trained on: neither another row nor an equal file."""
    (folder / "again.png").write_bytes((folder / "red.png").read_bytes())
    lines = [f"{name}.png,{name} {k}\n" for k in range(3) for name in [*COLOURS, "again"]]
    rows(folder, HEADER + "".join(lines))
    data = opened(folder)
    assert len(data) == 15 and len(set(data.pictures)) == 4
    for seed in range(5):
        train, valid = split(data.pictures, 0.5, 1, seed)
        seen = [
            {data.captions[i].split()[0].replace("again", "red") for i in p} for p in (train, valid)
        ]
        assert len(seen[0]) == 2 and len(seen[1]) == 1 and not seen[0] & seen[1]
        assert len(valid) in (3, 6)


def test_digest_says_what_was_trained_on(folder: Path) -> None:
    """It moves with the folder, and changes with a picture, a caption, a row or their order."""
    text = HEADER + "red.png,one\nblue.png,two\n"
    rows(folder, text)
    moved = folder.rename(folder.parent / "moved")
    first = opened(moved).digest()
    assert len(first) == 64 and make_dataset(str(moved), (4, 16), crop="random").digest() == first
    found = {first}
    for other in ("red.png,one\nblue.png,too\n", "blue.png,two\nred.png,one\n", "red.png,one\n"):
        rows(moved, HEADER + other)
        found.add(opened(moved).digest())
    rows(moved, text)
    draw(moved / "red.png", "grey")
    assert len(found | {opened(moved).digest()}) == 5


def test_digest_of_a_world() -> None:
    """World, number, seed, and what is held out; not the side."""
    same = [make_dataset("shapes-minimal", side, 20).digest() for side in (8, 16)]
    assert same[0] == same[1]
    others = [("shapes", 20), ("shapes-minimal", 21), ("shapes-minimal", 20, 1)]
    assert len({same[0], *(make_dataset(o[0], 8, *o[1:]).digest() for o in others)}) == 4


# --- squares, crops and flips ---------------------------------------------------------------------


def scene(path: Path) -> None:
    """A wide picture in which each column has its own colour."""
    columns = np.linspace(0, 255, 24).astype(np.uint8)
    grey = np.repeat(columns[None], 8, 0)
    Image.fromarray(np.stack([grey, grey * 0, 255 - grey], -1)).save(path)


def test_random_crops_and_flips(folder: Path) -> None:
    """Other ones in each epoch, by seed, epoch and item alone; none in validation."""
    scene(folder / "red.png")
    rows(folder, HEADER + "red.png,one\n" * 3)
    plain, data = opened(folder), opened(folder, crop="random", flip=True)
    assert torch.equal(plain[0]["image"], data[0]["image"])  # type: ignore[arg-type]
    assert torch.equal(plain.items([0], 4)[0]["image"], plain[0]["image"])  # type: ignore[arg-type]

    def first_columns(data: RealDataset, epoch: int, order: list[int]) -> list[float]:
        return [item["image"][0, 0, 0].item() for item in data.items(order, epoch)]  # type: ignore[index]

    drawn = {epoch: first_columns(data, epoch, [0, 1, 2]) for epoch in range(20)}
    assert drawn[3] == first_columns(pickle.loads(pickle.dumps(data)), 3, [2, 1, 0])[::-1]
    assert len({value for values in drawn.values() for value in values}) > 12
    assert first_columns(opened(folder, crop="random", flip=True, seed=1), 3, [0, 1, 2]) != drawn[3]
    rising = [
        item["image"][0, 0, -1] > item["image"][0, 0, 0]  # type: ignore[index]
        for epoch in range(60)
        for item in opened(folder, flip=True).items([0], epoch)
    ]
    assert 15 < sum(map(bool, rising)) < 45


def test_a_long_picture_is_kept_in_part(folder: Path) -> None:
    """Random crops reach the middle of it, ``ASPECT`` times as long as wide."""
    draw(folder / "long.png", "red", (400, 8))
    (strip,) = decode((folder / "long.png").read_bytes(), [8], strip=True)
    assert strip.shape == (8, 8 * ASPECT, 3)


def test_sides_of_all_stages_from_one_reading(folder: Path) -> None:
    """Each side is cut from the picture itself; no file is opened after that."""
    scene(folder / "red.png")
    rows(folder, HEADER + "red.png,one\n")
    data = make_dataset(str(folder), (4, 8))
    alone = make_dataset(str(folder), 4)[0]["image"]
    (folder / "red.png").unlink()
    assert data[0]["image"].shape == (3, 8, 8)  # type: ignore[attr-defined]
    small = data.at(4)
    assert torch.equal(small[0]["image"], alone)  # type: ignore[arg-type]
    assert data.side == 8 and make_dataset("shapes", 16, 3).at(8)[0]["image"].shape == (3, 8, 8)


def test_without_room_pictures_are_decoded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same result; a file that is gone by then is named."""
    scene(folder / "red.png")
    rows(folder, HEADER + "red.png,one\nblue.png,two\n")
    kept = opened(folder, crop="random")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    data = pickle.loads(pickle.dumps(opened(folder, crop="random")))
    assert "no room" in data.check and "no room" not in kept.check
    for epoch in (None, 0, 1):
        for one, other in zip(kept.items([0, 1], epoch), data.items([0, 1], epoch), strict=True):
            assert torch.equal(one["image"], other["image"])  # type: ignore[arg-type]
    (folder / "blue.png").unlink()
    with pytest.raises(ValueError, match=r"blue\.png is missing$"):
        data[1]


# --- tables ---------------------------------------------------------------------------------------


def table(folder: Path, captions: list[object]) -> dict[str, list[object]]:
    """Rows with the bytes of pictures, the first of them in two rows."""
    red, blue = ((folder / f"{name}.png").read_bytes() for name in ("red", "blue"))
    return {"image": [{"bytes": b, "path": None} for b in (red, blue, red)], "text": captions}


@pytest.mark.slow
def test_tables_of_parquet(folder: Path, tmp_path: Path) -> None:
    """Bytes of pictures, as the Hub keeps them, in any number of files; and metadata.parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    parquet.write_table(
        pa.table(table(folder, ["007", None, "c"])), hub / "train-00000-of-00001.parquet"
    )
    later = table(folder, [["d", "e"], ["f"], []])
    later["image"][1] = {"bytes": b"nothing", "path": None}
    parquet.write_table(pa.table(later), hub / "test-00000-of-00001.parquet")
    data = opened(hub.parent)
    assert data.captions == ["d", "e", "", "007", "", "c"] and data.pictures == [0, 0, 0, 0, 1, 0]
    assert [colour(data, i) for i in (0, 4)] == ["red", "blue"]
    assert data.check == (
        "2 images (and copies: 3) with 6 captions from 2 tables; 1 left out: "
        "data/test-00000-of-00001.parquet, row 2 is not a picture that Pillow can read"
    )
    assert opened(hub / "train-00000-of-00001.parquet").captions == ["007", "", "c"]
    with pytest.raises(
        ValueError, match=r"parquet has no column 'words', its columns are image, te"
    ):
        opened(hub.parent, caption_column="words")
    few = opened(hub.parent, length=2, seed=3)
    assert len(few.pictures) < 6

    names = pa.table({"file_name": ["red.png", "gone.png"], "text": [5, 7]})
    parquet.write_table(names, folder / "metadata.parquet")
    data = opened(folder)
    assert data.captions == ["5"] and "gone.png is missing (metadata.parquet, row 2)" in data.check


@POSIX
@pytest.mark.slow
def test_saved_data_sets_and_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``save_to_disk`` has written; rows of the Hub, whole or one after the other."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_dict(table(folder, ["a", "b", "c"]), features)
    made.save_to_disk(tmp_path / "plain")
    (tmp_path / "plain").rename(tmp_path / "a::[b]")
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "two")
    datasets.DatasetDict({"x": made, "y": made}).save_to_disk(tmp_path / "neither")
    for name in ("a::[b]", "two"):
        data = opened(tmp_path / name)
        assert data.captions == ["a", "b", "c"] and data.pictures == [0, 1, 0]
        assert [colour(data, i) for i in (0, 1)] == ["red", "blue"]
    with pytest.raises(ValueError, match="has the data sets x, y, name the folder of one"):
        opened(tmp_path / "neither")

    made.to_parquet(tmp_path / "rows.parquet")
    load = datasets.load_dataset

    def local(name: str, split: str, streaming: bool) -> object:
        assert name == "owner/name"
        files = {"train": str(tmp_path / "rows.parquet")}
        return load("parquet", data_files=files, split=split, streaming=streaming)

    monkeypatch.setattr("datasets.load_dataset", local)
    for streaming in (False, True):
        data = make_dataset("owner/name", 8, streaming=streaming)
        assert data.captions == ["a", "b", "c"] and data.pictures == [0, 1, 0]
        assert (
            data.check
            == "2 images (and copies: 1) with 3 captions from the split train of owner/name"
        )
        assert make_dataset("owner/name", 8, 1, streaming=streaming).digest() != data.digest()
        with pytest.raises(ValueError, match="has no column 'words', its columns are image, text"):
            make_dataset("owner/name", 8, caption_column="words", streaming=streaming)
    with pytest.raises(ValueError, match="`streaming` is for data sets of the Hub"):
        opened(folder, streaming=True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 400}))
    with pytest.raises(ValueError, match=r"no room for the squares .* `num_images`"):
        make_dataset("owner/name", 8, streaming=True)
