"""Reports on a training: lines in its log and on the terminal, and a bar per stage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, TypeAlias

import torch
from tqdm import tqdm

from minimagen.data import CaptionedDataset
from minimagen.imagen import Imagen
from minimagen.run_directory import TrainingDirectory
from minimagen.text import EmbeddingCache
from minimagen.training.batches import Data
from minimagen.training.resolve import Plan
from minimagen.training.table import Row, add_row, read_rows
from minimagen.training.tracker import Tracker


class Line(NamedTuple):
    """A line for the log; ``show``: for the terminal too."""

    text: str
    show: bool = False


class Progress(NamedTuple):
    """The progress of a stage: images trained on, their total number, and the last loss."""

    stage: int
    images: int
    total: int
    loss: float


class Saved(NamedTuple):
    """The checkpoint of an epoch is written. epoch: from 1"""

    stage: int
    epoch: int


class Running(NamedTuple):
    """A training that runs."""

    plan: Plan
    directory: TrainingDirectory
    images: int  # to train on
    captions: list[str]  # of the validation images, each once
    encode: EmbeddingCache  # of these captions too


# Called with the stage and the epoch, from 1; returns a line for the log, or None.
AfterEpoch: TypeAlias = Callable[[Running, int, int], str | None]


class Report:
    """Shows messages; a context manager, which closes the bars at its end.

    main:  whether this is the process of a launch that writes the log
    quiet: show nothing on the terminal
    say:   prints a line
    """

    def __init__(
        self, plan: Plan, main: bool, quiet: bool, say: Callable[[str], None] | None
    ) -> None:
        self.plan, self.main, self.quiet = plan, main, quiet or not main
        self.say = say or (lambda text: tqdm.write(text, file=sys.stdout))
        self.directory: TrainingDirectory | None = None
        self.after_epoch: Callable[[int, int], str | None] | None = None
        self.aside: Executor | None = None  # calls ``after_epoch``; None: ``show`` does
        self._calls: list[Future[None]] = []
        self._tracker: Tracker | None = None
        self._seconds: dict[int, float] = {}  # for which each stage was trained before
        self._early: list[str] = []  # lines from before the directory was made
        self._bars: dict[int, Any] = {}

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: object) -> None:
        for bar in self._bars.values():
            bar.close()
        if self._tracker is not None:
            self._tracker.finish()

    def bar(self, name: str, total: int | None, unit: str) -> Any:
        """A progress bar, on terminals only."""
        hidden = True if self.quiet else None
        return tqdm(total=total, desc=name, unit=unit, smoothing=0.05, disable=hidden)

    def show(self, message: Line | Progress | Row | Saved) -> None:
        """Write a line or a row, move a bar, or call ``after_epoch``."""
        if isinstance(message, Progress):
            if message.stage not in self._bars:
                self._bars[message.stage] = self.bar(f"stage {message.stage}", message.total, "img")
                self._bars[message.stage].initial = message.images
            bar = self._bars[message.stage]
            bar.set_postfix_str(f"loss {message.loss:.4f}", refresh=False)
            bar.update(message.images - bar.n)
            return
        if isinstance(message, Row):
            self._add(message)
            return
        if isinstance(message, Saved):
            if self.aside is None:
                self._call(message)
            else:
                self._calls.append(self.aside.submit(self._call, message))
            return
        if self.directory is None:
            self._early.append(message.text)
        elif self.main:
            self.directory.log(message.text)
        if message.show and not self.quiet:
            self.say(message.text)

    def wait(self) -> None:
        """Wait for the calls of ``after_epoch``, and raise the error of one that failed."""
        for call in self._calls:
            call.result()

    def _call(self, saved: Saved) -> None:
        if self.main and self.after_epoch is not None and (text := self.after_epoch(*saved)):
            self.show(Line(text))

    def _add(self, row: Row) -> None:
        if self.main and self.directory is not None:
            row = row._replace(seconds=row.seconds + self._seconds.get(row.stage, 0.0))
            add_row(self.directory.table, row)
            if self._tracker is not None:
                self._tracker.add(row)

    def checked(self, dataset: CaptionedDataset) -> None:
        """Report what was found in a data set; the log names every picture that is left out."""
        if dataset.check:
            self.show(Line(f"data: {dataset.check}", True))
        for text in dataset.left_out:
            self.show(Line(f"data: left out: {text}"))

    def begin(self, directory: TrainingDirectory, data: Data) -> None:
        """Report what will be trained."""
        plan, early, self._early = self.plan, self._early, []
        self.directory = directory
        if self.main:
            self._seconds = {row.stage: row.seconds for row in read_rows(directory.table)}
            if plan.config.log_with is not None:
                texts, cpu = plan.config.to_text(), plan.device.type == "cpu"
                self._tracker = Tracker(plan.config.log_with, directory, texts, cpu)
        self.show(Line(f"training directory: {directory.path}", True))
        if plan.old is not None and plan.old.path != directory.path:
            self.show(Line(f"goes on from: {plan.old.path}", True))
        for source in sorted(set(plan.sources.values())):
            values = plan.config.to_text()
            named = [f"{k}={v}" for k, v in values.items() if plan.sources[k] == source]
            self.show(Line(f"settings ({source}): {', '.join(named)}"))
        for text in early:
            self.show(Line(text))
        with torch.device("meta"):
            imagen = Imagen(plan.imagen, plan.unets)
        for i, stage in enumerate(imagen.stages):
            count = sum(weight.numel() for weight in stage.parameters())
            self.show(
                Line(f"stage {i}: {plan.imagen.stages[i].side} pixels, {count:,} weights", True)
            )
        pictures = data.dataset.pictures
        train, valid = (len({pictures[i] for i in part}) for part in (data.train, data.valid))
        text = f"{train} images to train on, {valid} to validate on, from {plan.config.dataset}"
        self.show(Line(f"data: {text}", True))
        self.show(Line(f"device {plan.device.type}, precision {plan.config.precision}"))
        if plan.side_by_side:
            stages = " and ".join(map(str, plan.stages))
            self.show(Line(f"stages side by side: {stages}, {plan.threads} CPU threads each", True))
