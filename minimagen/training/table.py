"""training_log.csv: what a training measures, in rows that a program can read.

A stage adds a row every ``ROW_STEPS`` steps, and one at the end of each epoch. The values of a row
are those since the row before it; in the row of an epoch they are those of the whole epoch, and
there is a validation loss. An empty field is a value that is not known.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimagen.files import atomic_write, read_file
from minimagen.notes import note
from minimagen.run_directory import Results, TrainingDirectory
from minimagen.training.loop import EpochRecord, StepRecord

ROW_STEPS = 50  # a multiple of 10, where the progress bar reads a loss from the device anyway


class Row(NamedTuple):
    """A row of training_log.csv; the names of its fields are those of the columns."""

    stage: int
    epoch: int  # from 1
    step: int  # optimizer steps done in this stage
    train_loss: float  # mean
    valid_loss: float | None  # at the end of an epoch, of the averaged weights
    lr: float | None  # of the last step
    images_per_second: float | None  # trained on
    seconds: float  # for which the stage has been trained, validation included


class Meter:
    """Makes the rows of a stage out of the records of its training loop.

    epochs: of the whole training; step: where the loop begins
    """

    def __init__(self, stage: int, epochs: int, step: int) -> None:
        self.stage, self.epochs, self.step = stage, epochs, step
        self.lr: float | None = None
        self.began = time.perf_counter()
        self.recent, self.of_epoch = _Span(self.began), _Span(self.began)

    def add(self, record: StepRecord | EpochRecord) -> Row | None:
        """Take a record; returns the row that it completes, if any."""
        now = time.perf_counter()
        if isinstance(record, EpochRecord):
            row = self._row(record.epoch, record.train_loss, record.valid_loss, self.of_epoch, now)
            self.recent, self.of_epoch = _Span(now), _Span(now)
            return row
        self.step, self.lr = record.step, record.lr
        self.recent.add(record, now)
        self.of_epoch.add(record, now)
        ends_epoch = record.step % (record.steps // self.epochs) == 0  # which has its own row
        if record.step % ROW_STEPS or ends_epoch:
            return None
        row = self._row(record.epoch, self.recent.loss(), None, self.recent, now)
        self.recent = _Span(now)
        return row

    def _row(
        self, epoch: int, loss: float, valid_loss: float | None, span: _Span, now: float
    ) -> Row:
        speed, seconds = span.speed(), now - self.began
        return Row(self.stage, epoch + 1, self.step, loss, valid_loss, self.lr, speed, seconds)


class _Span:
    """The losses and the images of some steps."""

    def __init__(self, began: float) -> None:
        self.began = self.ended = began
        self.images = 0
        self.losses: list[Tensor] = []  # on the device

    def add(self, record: StepRecord, now: float) -> None:
        self.losses.append(record.loss)
        self.images += record.images
        self.ended = now

    def loss(self) -> float:
        return torch.stack(self.losses).mean().item()

    def speed(self) -> float | None:
        return self.images / (self.ended - self.began) if self.images else None


# --- the file -------------------------------------------------------------------------------------


def add_row(path: Path, row: Row) -> None:
    """Add a row to a table. Raises OSError, naming it, if that fails."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(_line(row))  # at once: if the process dies, no line is cut off
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from None


def read_rows(path: Path) -> list[Row]:
    """The rows of a table. Raises ValueError, naming it, if it is missing or broken."""
    try:
        text = read_file(path).decode("utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()  # a line without its end is not whole
        head, *rows = csv.reader(lines) if lines else [[]]
        if head != list(Row._fields):
            raise ValueError(f"its columns are {','.join(head)!r}")
        return [_parse(row) for row in rows]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table of a training: {error}") from None


def begin_table(
    directory: TrainingDirectory, old: TrainingDirectory | None, results: Mapping[int, Results]
) -> None:
    """Write the table of a training that begins, or that goes on from ``results`` of ``old``.

    Then it has the rows of ``old`` up to these results: no step will stand in it twice. If they
    cannot be read, this warns.
    """
    rows: list[Row] = []
    if old is not None and old.table.exists():
        try:
            rows = read_rows(old.table)
        except ValueError as error:
            note(f"{error}; its rows are left out")
    kept = [row for row in rows if row.stage in results and _is_before(row, results[row.stage])]
    text = "".join(map(_line, [Row._fields, *kept]))
    atomic_write(directory.table, partial(Path.write_text, data=text, encoding="utf-8"))


def _is_before(row: Row, results: Results) -> bool:
    """Whether a checkpoint was written after a row. An epoch may lack its end but no step."""
    state = results.state
    return row.step <= state.step and (row.valid_loss is None or row.epoch <= state.epoch)


def _line(values: Iterable[object]) -> str:
    line = io.StringIO()
    texts = [f"{value:.6g}" if isinstance(value, float) else value for value in values]
    csv.writer(line, lineterminator="\n").writerow(texts)  # None is an empty field
    return line.getvalue()


def _parse(texts: list[str]) -> Row:
    numbers: list[Any] = [int(text) for text in texts[:3]]
    numbers += [float(text) if text else None for text in texts[3:]]
    return Row(*numbers)
