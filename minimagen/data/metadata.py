"""Files of captions: metadata.csv, metadata.jsonl, tables of Arrow and Parquet, and .txt.

A caption is text, letter for letter as the file has it: 007, true, NA and null are words. Every
error is a ValueError of one line that names the file and, where there is one, the line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COLUMNS = "image_column", "caption_column"  # the settings that name them
PATHS = "file_name"  # the column of paths, if no other is named


class Row(NamedTuple):
    """A row: where it stands, what it says of its picture, and its captions."""

    where: str  # "metadata.csv, line 3"
    picture: Any  # a path, or {"bytes": ..., "path": ...}
    captions: tuple[str, ...]


def read_text(path: Path, name: str) -> str:
    """A file of text in UTF-8, or in UTF-16 with its mark. ``name``: of the file, for errors."""
    check_file(path, name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    encoding = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "UTF-8"
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{name}, line {line} is not text in {encoding}, save it as UTF-8"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{name}, line {line} has a character NUL, save it as text in UTF-8")
    return text


def check_file(path: Path, name: str) -> None:
    """Raise ValueError unless this is a file: reading a pipe or a device would never end."""
    if not path.is_file():
        raise ValueError(f"{name} is not a file")


def read_captions(path: Path, name: str) -> tuple[str, ...]:
    """The captions in a .txt: one on each line that is not blank."""
    lines = (line.removesuffix("\r") for line in read_text(path, name).split("\n"))
    return tuple(line for line in lines if line.strip())


def read_metadata(path: Path, name: str, image_column: str, caption_column: str) -> Iterator[Row]:
    """The rows of a metadata.csv, .jsonl or .parquet; ``name``: of the file, for errors."""
    if path.suffix.lower() == ".csv":
        return _read_csv(read_text(path, name), name, image_column, caption_column)
    if path.suffix.lower() == ".jsonl":
        return _read_jsonl(read_text(path, name), name, image_column, caption_column)
    return read_table(path, name, image_column, caption_column)


def _read_csv(text: str, name: str, image_column: str, caption_column: str) -> Iterator[Row]:
    """Columns are separated by commas or, as some programs do, by semicolons or tabs."""
    first = text[: text.find("\n") + 1 or None]
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for fields in reader:
            where = f"{name}, line {reader.line_num}"
            if not fields:
                continue
            if not names:
                names = [field.strip() for field in fields]
                columns = _columns(names, name, image_column, caption_column)
                image, caption = map(names.index, columns)
                continue
            if len(fields) != len(names):
                raise ValueError(
                    f"{where} has {len(fields)} fields, its header has {len(names)}: put a caption "
                    f'with a comma between double quotes, "red, round"'
                )
            yield Row(where, fields[image], (fields[caption],))
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num} is not CSV: {error}") from None
    if not names:
        raise ValueError(f"{name} is empty")


def _read_jsonl(text: str, name: str, image_column: str, caption_column: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{name}, line {number}"
        if not line.strip():
            continue
        try:  # numbers stay as they are written
            row = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} should be an object, {{...}}")
        image, caption = _columns(list(row), where, image_column, caption_column)
        yield Row(where, row[image], as_captions(row[caption], where))


def read_table(path: Path, name: str, image_column: str, caption_column: str) -> Iterator[Row]:
    """The rows of a .parquet or .arrow, read a few at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if path.suffix.lower() == ".parquet":
            file = parquet.ParquetFile(path)
            names = file.schema_arrow.names
            columns = _columns(names, name, image_column, caption_column)
            parts = file.iter_batches(batch_size=64, columns=list(dict.fromkeys(columns)))
        else:
            stream = pa.ipc.open_stream(pa.memory_map(str(path)))
            columns = _columns(stream.schema.names, name, image_column, caption_column)
            parts = (part.slice(i, 64) for part in stream for i in range(0, len(part), 64))
        number = 0
        for part in parts:
            values = (part.column(column).to_pylist() for column in columns)
            for image, caption in zip(*values, strict=True):
                number += 1
                where = f"{name}, row {number}"
                yield Row(where, image, as_captions(caption, where))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())}") from None


def table_length(path: Path) -> int:
    """The number of rows of a .parquet or .arrow; 0 if it cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if path.suffix.lower() == ".parquet":
            return int(parquet.read_metadata(path).num_rows)
        return sum(len(part) for part in pa.ipc.open_stream(pa.memory_map(str(path))))
    except (OSError, pa.ArrowException):
        return 0


def as_captions(value: object, where: str) -> tuple[str, ...]:
    """The captions in a value of a table: one, a list of them, or nothing: the empty caption."""
    values = value if isinstance(value, list | tuple) else [value]
    captions = []
    for one in values:
        if isinstance(one, bool):
            one = str(one).lower()  # as JSON writes it
        if one is not None and not isinstance(one, str | int | float):
            raise ValueError(
                f"{where} has no text as caption, it should be text or a list of texts; name "
                f"another column with `{COLUMNS[1]}`"
            )
        captions.append("" if one is None else str(one))
        if not captions[-1].isascii() and any("\ud800" <= sign < "\ue000" for sign in captions[-1]):
            raise ValueError(f"{where} has a caption that is not valid text: half of a character")
    return tuple(captions) or ("",)


def _columns(names: Sequence[str], where: str, image: str, caption: str) -> tuple[str, str]:
    """The columns of pictures and of captions, among those of a file.

    A column of paths, ``file_name``, serves as that of pictures, if no other is asked for.
    """
    wanted = (PATHS, image) if image == "image" else (image,)
    found = []
    for wants, setting in ((wanted, COLUMNS[0]), ((caption,), COLUMNS[1])):
        there = [name for name in wants if name in names]
        if not there:
            raise ValueError(
                f"{where} has no column {' or '.join(map(repr, wants))}, its columns are "
                f"{', '.join(names)}; name the right one with `{setting}`"
            )
        found.append(there[0])
    return found[0], found[1]
