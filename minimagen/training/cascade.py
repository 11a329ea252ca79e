"""``train``: a whole training, from a plan to a training directory.

First everything is loaded and checked, then the directory is made, then each stage trains in a
process of its own: on a CPU side by side, which keeps its cores busier, else one after the other.
Stages learn from true images and never from each other, so their order makes no difference.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from minimagen.data import words
from minimagen.imagen import Imagen
from minimagen.run_directory import TrainingDirectory
from minimagen.settings import naming
from minimagen.text import EmbeddingCache, load_text_encoder
from minimagen.training.batches import distinct
from minimagen.training.resolve import Plan, launched
from minimagen.training.run import Line, Progress, load_dataset, run_stage, split_dataset
from minimagen.training.stop import RunError, RunStopped, StopSignal


def train(
    plan: Plan, quiet: bool = False, say: Callable[[str], None] | None = None
) -> TrainingDirectory:
    """Train the stages of a plan; the directory with the results.

    quiet: print nothing, neither lines nor bars (these are for terminals only)
    say:   prints a line; None prints to stdout

    Raises ValueError, naming the setting or file, before anything is made, when something asked for
    does not exist or does not fit; RunError when the training cannot go on, RunStopped after Ctrl-C
    or SIGTERM, OSError when a file cannot be written. The last good checkpoints stay then.
    """
    main = not launched() or PartialState(cpu=plan.device.type == "cpu").is_main_process
    dataset = load_dataset(plan)
    train_indices, valid_indices = split_dataset(plan, dataset)
    if plan.old is not None:
        _check_checkpoints(plan)
    with Report(plan, main, quiet, say) as report, tempfile.TemporaryDirectory() as scratch:
        used = [dataset.captions[i] for i in (*train_indices, *valid_indices)]
        embeddings = _embed(plan, used, Path(scratch), report)
        directory = _make_directory(plan, main)
        if main:
            directory.save_words(
                {word for i in train_indices for word in words(dataset.captions[i])}
            )
        report.begin(directory, len(train_indices), len(valid_indices))
        del dataset
        try:
            if launched():
                _train_here(plan, directory, embeddings, report)
            else:
                _train_in_processes(plan, directory, embeddings, report)
        except (RunError, RunStopped) as error:
            report.show(Line(str(error)))
            raise
        report.show(Line(f"finished; the results are in {directory.path}", True))
    return directory


class Report:
    """What is said of a training: lines in its log and on the terminal, and a bar per stage."""

    def __init__(
        self, plan: Plan, main: bool, quiet: bool, say: Callable[[str], None] | None
    ) -> None:
        self.plan, self.main, self.quiet = plan, main, quiet or not main
        self.say = say or (lambda text: tqdm.write(text, file=sys.stdout))
        self.directory: TrainingDirectory | None = None
        self._early: list[str] = []  # lines from before there was a directory
        self._bars: dict[int, Any] = {}

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for bar in self._bars.values():
            bar.close()

    def bar(self, name: str, total: int, unit: str) -> Any:
        """A progress bar, on terminals only."""
        hidden = True if self.quiet else None
        return tqdm(total=total, desc=name, unit=unit, smoothing=0.05, disable=hidden)

    def show(self, message: Line | Progress) -> None:
        """Write a line, or move a bar."""
        if isinstance(message, Progress):
            if message.stage not in self._bars:
                self._bars[message.stage] = self.bar(f"stage {message.stage}", message.total, "img")
                self._bars[message.stage].initial = message.images
            bar = self._bars[message.stage]
            bar.set_postfix_str(f"loss {message.loss:.4f}", refresh=False)
            bar.update(message.images - bar.n)
            return
        if self.directory is None:
            self._early.append(message.text)
        elif self.main:
            self.directory.log(message.text)
        if message.show and not self.quiet:
            self.say(message.text)

    def begin(self, directory: TrainingDirectory, train: int, valid: int) -> None:
        """Say what is going to be trained."""
        plan, early, self._early = self.plan, self._early, []
        self.directory = directory
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
        source = plan.config.dataset
        self.show(
            Line(f"data: {train} images to train on, {valid} to validate on, from {source}", True)
        )
        self.show(Line(f"device {plan.device.type}, precision {plan.config.precision}"))
        if plan.side_by_side:
            stages = " and ".join(map(str, plan.stages))
            self.show(Line(f"stages side by side: {stages}, {plan.threads} CPU threads each", True))


# --- before any stage trains ----------------------------------------------------------------------


def _check_checkpoints(plan: Plan) -> None:
    """Raise ValueError when no stage has a checkpoint, or one is broken or does not fit the model.

    Only the headers of the files are read.
    """
    old, found = plan.old, 0
    assert old is not None
    setting = "restart_directory" if plan.config.restart_directory else "training_directory"
    with torch.device("meta"):
        imagen = Imagen(plan.imagen, plan.unets)
    with naming(setting):
        for index, stage in enumerate(imagen.stages):
            path = old.checkpoint(index)
            if not path.is_file():
                continue
            found += 1
            shapes, numbers = old.checkpoint_header(index)
            missing = {"stage", "epoch", "batch", "step", "best", "precision"} - set(numbers)
            if missing:
                raise ValueError(f"{path} is no checkpoint of ours: it lacks {sorted(missing)}")
            if numbers["stage"] != index:
                raise ValueError(f"{path} is of stage {numbers['stage']}, not {index}")
            due = {f"model.{name}": list(value.shape) for name, value in stage.state_dict().items()}
            there = {name: shape for name, shape in shapes.items() if name.startswith("model.")}
            for name in sorted(due.keys() ^ there.keys()) or sorted(due):
                if due.get(name) != there.get(name):
                    raise ValueError(
                        f"{path} does not fit the model of parameters/: {name} is "
                        f"{there.get(name)}, it should be {due.get(name)}"
                    )
        if not found and setting == "restart_directory":
            raise ValueError(f"{old.path} has no checkpoint tmp/{old.checkpoint(0).name}")


def _embed(plan: Plan, captions: Sequence[str], scratch: Path, report: Report) -> EmbeddingCache:
    """The embeddings of all captions, each computed once; ``path`` of the result is their file."""
    config = plan.config
    with naming("t5_name"):
        encoder = load_text_encoder(plan.imagen.text_encoder, plan.imagen.max_tokens)
    kept = None if config.cache_directory is None else Path(config.cache_directory)
    cache = EmbeddingCache(encoder.to(plan.device), kept)
    captions = distinct(captions)
    long = sum(count > encoder.max_tokens for count in encoder.token_counts(captions))
    new = 0
    with warnings.catch_warnings(), report.bar("captions", len(captions), "caption") as bar:
        warnings.simplefilter("ignore", UserWarning)  # of captions cut off, said below
        for start in range(0, len(captions), 512):
            chunk = captions[start : start + 512]
            new += cache.add(chunk)
            bar.update(len(chunk))
    cache.release_encoder()
    report.show(Line(f"captions: {len(captions)} distinct, {new} of them encoded now"))
    if long:
        text = f"captions: {long} are cut off at {encoder.max_tokens} tokens, see `max_num_words`"
        report.show(Line(text, True))
    try:
        if new:
            cache.save()
    except OSError as error:
        report.show(Line(f"captions: their embeddings could not be kept: {error}", True))
        cache.path = None
    if cache.path is None and not launched():
        cache.path = scratch / "embeddings.safetensors"
        cache.save()
    return cache


def _make_directory(plan: Plan, main: bool) -> TrainingDirectory:
    """The directory to train in, with all settings; processes of one launch share it."""
    old, stages = plan.old, len(plan.unets)
    if old is not None and plan.config.training_directory is not None:
        return old
    path: list[Any] = [None]
    if main:
        directory = TrainingDirectory.create(plan.config.output_directory)
        directory.save_parameters(plan.imagen, plan.unets, plan.config.to_text())
        if old is not None:
            directory.copy_results(old, stages)
        path = [str(directory.path)]
    if launched():
        broadcast_object_list(path)
    return TrainingDirectory(path[0])


# --- one process per stage ------------------------------------------------------------------------


def _train_here(
    plan: Plan, directory: TrainingDirectory, embeddings: EmbeddingCache, report: Report
) -> None:
    """Train all stages in this process, one of several that a launcher has started."""
    torch.set_num_threads(plan.threads)
    with StopSignal() as stop:
        for index in plan.stages:
            for message in run_stage(plan, index, directory, embeddings, lambda: stop.number > 0):
                report.show(message)
            if stop.number:
                raise _stopped(directory, stop.number)


def _train_in_processes(
    plan: Plan, directory: TrainingDirectory, embeddings: EmbeddingCache, report: Report
) -> None:
    """Train each stage in a process of its own.

    When one fails, or a signal asks to stop, the others finish their step and save.
    """
    groups = [plan.stages] if plan.side_by_side else [(index,) for index in plan.stages]
    for group in groups:
        error, number = _run_group(group, plan, directory, embeddings.path, report)
        if error is not None:
            raise error
        if number:
            raise _stopped(directory, number)


def _run_group(
    group: Sequence[int],
    plan: Plan,
    directory: TrainingDirectory,
    embeddings: Path | None,
    report: Report,
) -> tuple[Exception | None, int]:
    """Run stages at the same time; the first error if there was one, and the signal to stop."""
    context = multiprocessing.get_context("spawn")
    stop, error = context.Event(), None
    runs: dict[Connection, tuple[int, Any]] = {}
    with StopSignal() as asked:
        try:
            for index in group:
                receiver, sender = context.Pipe(duplex=False)
                arguments = (sender, stop, plan, index, directory.path, embeddings)
                process = context.Process(target=_process, args=arguments, name=f"stage {index}")
                process.start()
                sender.close()  # the process has its own; when it ends, the receiver sees the end
                runs[receiver] = index, process
            while runs:
                for receiver in wait(list(runs), timeout=0.2):
                    index, process = runs[receiver]
                    try:
                        message = receiver.recv()
                    except EOFError:
                        del runs[receiver]
                        process.join()
                        if process.exitcode:
                            code = process.exitcode
                            error = error or RunError(
                                f"the process of stage {index} died, exit code {code}"
                            )
                        continue
                    if isinstance(message, Exception):
                        error = error or message
                    else:
                        report.show(message)
                if asked.number or error is not None:
                    stop.set()
        finally:
            for _, process in runs.values():  # left by an interrupt
                process.kill()
    return error, asked.number


def _process(
    sender: Connection, stop: Any, plan: Plan, index: int, path: Path, embeddings: Path
) -> None:
    """What a process does: train a stage, and send what it has to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which sets ``stop``
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    torch.set_num_threads(plan.threads)
    parent = multiprocessing.parent_process()

    def asked() -> bool:
        return bool(stop.is_set() or (parent is not None and not parent.is_alive()))

    def send(message: object) -> None:
        with suppress(BrokenPipeError):  # the parent is gone: save, and end
            sender.send(message)

    try:
        directory = TrainingDirectory(path)
        for message in run_stage(plan, index, directory, EmbeddingCache.saved(embeddings), asked):
            send(message)
    except (ValueError, RunError, OSError) as error:
        send(error)


def _stopped(directory: TrainingDirectory, number: int) -> RunStopped:
    return RunStopped(f"stopped; go on with `restart_directory` {directory.path}", number)
