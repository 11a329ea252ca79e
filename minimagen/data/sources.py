"""Where pictures and captions come from: a folder, tables with the bytes of pictures, or the Hub.

A folder is read as it is. Names mean nothing; in it and in all folders below it count

- every row of every metadata.csv, metadata.jsonl and metadata.parquet: a path, seen from the file,
  and a caption, or a list of them;
- every other picture with a .txt of the same name beside it: one caption on each line;
- every row of every other .parquet: the bytes of a picture, and captions;
- instead of these, what ``save_to_disk`` of Hugging Face's datasets has written.

Files and folders whose names start with a dot are not looked at. Links are followed. A path in a
row that leads out of the folder is not.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from minimagen.data.metadata import (
    PATHS,
    Row,
    as_captions,
    check_file,
    read_captions,
    read_metadata,
    read_table,
    table_length,
)
from minimagen.data.pictures import SUFFIXES, BadPicture

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class Entry(NamedTuple):
    """A picture and its captions, before the picture was looked at."""

    name: str  # what errors call it
    content: Path | bytes | BadPicture  # its file, or the bytes of it, or why there are none
    captions: tuple[str, ...]


@dataclass
class Source:
    """Pictures in their order. ``entries`` may be read once."""

    entries: Iterable[Entry]
    total: int | None  # of entries, None: not known before all were read
    about: str  # the files that they come from
    unused: int = 0  # pictures in a folder that have no caption


def find(
    name: str, image_column: str, caption_column: str, streaming: bool = False
) -> Source | None:
    """The pictures of a data set; None if ``name`` is neither a file or folder nor a Hub id.

    Raises ValueError, with a one-line message, if it cannot be read or has no captions; while
    ``entries`` are read too.
    """
    path = Path(name)
    if name and path.exists():
        if streaming:
            raise ValueError(
                f"`streaming` is for data sets of the Hub, {name!r} is here; local ones are never "
                "held in memory"
            )
        if path.is_dir():
            return _Folder(path, image_column, caption_column).source()
        if path.suffix.lower() == ".parquet":
            return _tables([path], path.parent, image_column, caption_column)
        raise ValueError(f"{name} is neither a folder nor a .parquet: name the folder of it")
    if name.count("/") == 1:
        return _hub(name, image_column, caption_column, streaming)
    return None


# --- a folder -------------------------------------------------------------------------------------


class _Folder:
    def __init__(self, path: Path, image_column: str, caption_column: str) -> None:
        self.path, self.columns = path, (image_column, caption_column)
        self.files = list(_walk(path))  # relative to the folder

    @cached_property
    def known(self) -> set[str]:
        return set(self.files)

    @cached_property
    def alike(self) -> dict[str, list[str]]:
        """Files by their names without case: the names of another system may differ in it."""
        found: dict[str, list[str]] = {}
        for file in self.files:
            found.setdefault(_without_case(file), []).append(file)
        return found

    def source(self) -> Source:
        saved = _saved_tables(self.path)
        if saved:
            return _tables(saved, self.path, *self.columns)
        tables, about = [], []
        found: dict[str, tuple[Path | BadPicture, list[str]]] = {}  # in the order of the rows
        for file in self.files:
            path = self.path / file
            is_metadata = path.name.lower() in METADATA
            if is_metadata or path.suffix.lower() == ".parquet":
                check_file(path, file)
            if path.suffix.lower() == ".parquet" and not (is_metadata and self._of_paths(path)):
                tables.append(path)
            elif is_metadata:
                about.append(file)
                for row in read_metadata(path, file, *self.columns):
                    name, content = self._find(os.path.dirname(file), row)
                    found.setdefault(name, (content, []))[1].extend(row.captions)
        entries = [Entry(name, content, tuple(texts)) for name, (content, texts) in found.items()]
        beside, unused = self._beside(found)
        if beside:
            about.append(f"{len(beside)} .txt")
        entries += beside
        if not entries and not tables:
            raise ValueError(
                f"{self.path} has {unused} images and no captions, it should have a metadata.csv "
                f"with the columns {PATHS} and {self.columns[1]}, or a .txt beside each image"
            )
        if not tables:
            return Source(entries, len(entries), " and ".join(about), unused)
        rest = _tables(tables, self.path, *self.columns)
        total = len(entries) + (rest.total or 0)
        about.append(rest.about)
        return Source(chain(entries, rest.entries), total, " and ".join(about), unused)

    def _of_paths(self, path: Path) -> bool:
        """Whether a table has paths of pictures, instead of their bytes."""
        import pyarrow as pa
        from pyarrow import parquet

        try:
            schema = parquet.read_schema(path)
        except (OSError, pa.ArrowException):
            return False  # told when its rows are read
        name = self.columns[0]
        return PATHS in schema.names or (
            name in schema.names and pa.types.is_string(schema.field(name).type)
        )

    def _find(self, directory: str, row: Row) -> tuple[str, Path | BadPicture]:
        """The name of the file that a row means, relative to the folder, and the file."""
        written = row.picture
        if not isinstance(written, str) or not written:
            return row.where, BadPicture("names no file")
        for text in dict.fromkeys((written, written.replace("\\", "/"))):
            path = Path(text)
            if path.is_absolute():
                for root in (self.path.absolute(), self.path.resolve()):
                    if path.is_relative_to(root):
                        path, directory = path.relative_to(root), ""
            file = Path(os.path.normpath(Path(directory) / path)).as_posix()
            if Path(file).is_absolute() or file.split("/")[0] == "..":
                return written, BadPicture(f"leads out of the folder ({row.where})")
            if file in self.known or ("\0" not in file and (self.path / file).exists()):
                return file, self.path / file
            alike = self.alike.get(_without_case(file), [])
            if len(alike) == 1:
                return alike[0], self.path / alike[0]
        return written, BadPicture(f"is missing ({row.where})")

    def _beside(self, used: Collection[str]) -> tuple[list[Entry], int]:
        """Pictures with a .txt beside them, and the number of those without any caption."""
        entries, unused = [], 0
        texts = {os.path.splitext(f)[0]: f for f in self.files if f.lower().endswith(".txt")}
        for file in self.files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() not in SUFFIXES or file in used:
                continue
            if stem not in texts:
                unused += 1
                continue
            content: Path | BadPicture = self.path / file
            captions: tuple[str, ...] = ()
            try:
                captions = read_captions(self.path / texts[stem], texts[stem])
            except ValueError as error:
                content = BadPicture(f"has a bad caption: {error}")
            entries.append(Entry(file, content, captions or ("",)))
        return entries, unused


def _walk(folder: Path) -> Iterator[str]:
    """The files below a folder, relative to it, in an order that depends on their names only."""
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(os.path.relpath(os.path.join(path, name), folder)).as_posix()


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


# --- tables ---------------------------------------------------------------------------------------


def _saved_tables(folder: Path) -> list[Path]:
    """The tables of what ``save_to_disk`` has written to a folder; [] if it has not."""
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
            if "train" not in splits and len(splits) != 1:
                raise ValueError(
                    f"{folder} has the data sets {', '.join(splits)}, name the folder of one"
                )
            folder = folder / ("train" if "train" in splits else splits[0])
        if not (folder / "state.json").is_file():
            return []
        state = json.loads((folder / "state.json").read_text("utf-8"))
        paths = [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (OSError, KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} cannot be read as a saved data set: {error}") from None
    for path in paths:
        check_file(path, str(path))
    return paths


def _tables(paths: list[Path], root: Path, image_column: str, caption_column: str) -> Source:
    """The rows of tables with the bytes of pictures."""

    def entries() -> Iterator[Entry]:
        for path in paths:
            name = path.relative_to(root).as_posix()
            for row in read_table(path, name, image_column, caption_column):
                yield Entry(row.where, _content(row.picture), row.captions)

    about = paths[0].relative_to(root).as_posix() if len(paths) == 1 else f"{len(paths)} tables"
    return Source(entries(), sum(map(table_length, paths)), about)


def _content(picture: Any) -> bytes | BadPicture:
    """The picture in a cell of a table: bytes, or {"bytes": ..., "path": ...}."""
    content = picture.get("bytes") if isinstance(picture, dict) else picture
    return content if isinstance(content, bytes) else BadPicture("has no bytes of a picture")


# --- the Hub --------------------------------------------------------------------------------------


def _hub(name: str, image_column: str, caption_column: str, streaming: bool) -> Source:
    """The rows of the split ``train`` of a data set of the Hub; prints nothing."""
    import datasets
    from huggingface_hub import logging

    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    bars, verbosity = datasets.is_progress_bar_enabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity_error()  # without a network, each retry would print a warning
    try:
        rows = datasets.load_dataset(name, split="train", streaming=streaming)
    except failures as error:
        hint = ""
        if isinstance(error, ConnectionError):
            hint = f"; download it once with `hf download {name} --repo-type dataset`"
        raise ValueError(f"data set {name!r} cannot be loaded: {_first(error)}{hint}") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
    names = rows.column_names
    for column, setting in ((image_column, "image_column"), (caption_column, "caption_column")):
        if names is not None and column not in names:
            raise ValueError(
                f"data set {name!r} has no column {column!r}, its columns are {', '.join(names)}; "
                f"name the right one with `{setting}`"
            )
    if names is not None:
        rows = rows.select_columns(list(dict.fromkeys((image_column, caption_column))))
    if rows.features is not None and isinstance(rows.features[image_column], datasets.Image):
        rows = rows.cast_column(image_column, datasets.Image(decode=False))

    def entries() -> Iterator[Entry]:
        number, all_rows = 0, iter(rows)
        while True:
            number += 1
            where = f"row {number}"
            try:
                row = next(all_rows, None)
            except failures as error:  # of the network, while streaming
                raise ValueError(f"{where} of {name!r} cannot be read: {_first(error)}") from None
            if row is None:
                return
            picture = row.get(image_column)
            content: Path | bytes | BadPicture = _content(picture)
            if isinstance(picture, dict) and picture.get("path") and not picture.get("bytes"):
                content = _fetch(str(picture["path"]))
            yield Entry(where, content, as_captions(row.get(caption_column), where))

    return Source(entries(), None if streaming else len(rows), f"the split train of {name}")


def _first(error: Exception) -> str:
    """The first line of a message."""
    return str(error).strip().split("\n")[0]


def _fetch(path: str) -> Path | bytes | BadPicture:
    """A file of a data set of the Hub; while streaming it is still there, not here."""
    if "://" not in path:
        return Path(path)
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            return bytes(file.read())
    except OSError as error:
        return BadPicture(f"cannot be read: {' '.join(str(error).split())}")
