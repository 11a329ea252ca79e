"""``train``: a whole training, from a plan to a training directory.

First everything is loaded and checked. Then the directory is made. Then each stage trains in its
own process: on a CPU all stages side by side, which uses the cores better, else one after the
other. Each stage learns from the images of the data set, and never from another stage, so their
order does not matter.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from minimagen.data import words
from minimagen.imagen import Imagen
from minimagen.notes import Note
from minimagen.run_directory import Sources, TrainingDirectory
from minimagen.settings import naming
from minimagen.text import EmbeddingCache, load_text_encoder
from minimagen.training.batches import distinct
from minimagen.training.report import Line, Report
from minimagen.training.resolve import Plan, launched
from minimagen.training.run import load_dataset, run_stage
from minimagen.training.stop import RunError, RunStopped, StopSignal, ignored

SPELT = 0.25  # share of words read letter by letter, above which the log says so


def train(
    plan: Plan, quiet: bool = False, say: Callable[[str], None] | None = None
) -> TrainingDirectory:
    """Train the stages of a plan; returns the directory with the results.

    quiet: print no lines and show no progress bars (bars are shown on terminals only)
    say:   prints a line; None prints to stdout

    Raises ValueError, naming the setting or file, if something does not exist or does not fit; the
    directory is not made then. Raises RunError if the training cannot go on, RunStopped after
    Ctrl-C or SIGTERM, and OSError if a file cannot be written; the last good checkpoints stay then.
    """
    main = not launched() or PartialState(cpu=plan.device.type == "cpu").is_main_process
    dataset, train_indices, valid_indices = load_dataset(plan, 0)
    if plan.old is not None:
        with naming(plan.origin), torch.device("meta"):
            begun = plan.old.check_checkpoints(Imagen(plan.imagen, plan.unets))
            if not begun and plan.origin == "restart_directory":
                raise ValueError(f"{plan.old.path} has no checkpoint in tmp/ to go on from")
    with Report(plan, main, quiet, say) as report, tempfile.TemporaryDirectory() as scratch:
        used = [dataset.captions[i] for i in (*train_indices, *valid_indices)]
        embeddings = _embed(plan, used, Path(scratch), report)
        directory = _make_directory(plan, main)
        if main:
            captions = [dataset.captions[i] for i in train_indices]
            directory.save_words({word for caption in captions for word in words(caption)})
            encoder = plan.imagen.text_encoder
            directory.save_sources(
                Sources(plan.config.dataset, "", encoder, embeddings.fingerprint)
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


# --- before any stage trains ----------------------------------------------------------------------


def _embed(plan: Plan, captions: Sequence[str], scratch: Path, report: Report) -> EmbeddingCache:
    """The embeddings of all captions, each computed once; the result's ``path`` is their file."""
    config = plan.config
    with naming("t5_name"):
        encoder = load_text_encoder(plan.imagen.text_encoder, plan.imagen.max_tokens)
    kept = None if config.cache_directory is None else Path(config.cache_directory)
    cache = EmbeddingCache(encoder.to(plan.device), kept)
    captions = distinct(captions)
    unread, spelt = encoder.unread(captions), encoder.spelt(captions)
    new = 0
    with warnings.catch_warnings(), report.bar("captions", len(captions), "caption") as bar:
        warnings.simplefilter("ignore", Note)  # captions cut off: reported below
        for start in range(0, len(captions), 512):
            chunk = captions[start : start + 512]
            new += cache.add(chunk)
            bar.update(len(chunk))
    cache.release_encoder()
    report.show(Line(f"captions: {len(captions)} distinct, {new} of them encoded now"))
    if unread:
        report.show(Line(f"{unread}; see `max_num_words` and `t5_name`", True))
    if spelt > SPELT:
        text = f"captions: the text encoder reads {spelt:.0%} of their words letter by letter; one "
        report.show(Line(f"{text}that knows them learns faster, see `t5_name`", True))
    try:
        if new:
            cache.save()
    except OSError as error:
        report.show(Line(f"captions: their embeddings could not be saved: {error}", True))
        cache.path = None
    if cache.path is None and not launched():
        cache.path = scratch / "embeddings.safetensors"
        cache.save()
    return cache


def _make_directory(plan: Plan, main: bool) -> TrainingDirectory:
    """The directory to train in, with all settings; all processes of a launch get the same one."""
    old, stages = plan.old, len(plan.unets)
    if old is not None and plan.config.training_directory is not None:
        if main:
            old.save_parameters(plan.imagen, plan.unets, plan.config.to_text())
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
    """Train each stage in its own process, all at the same time or one after the other.

    If one fails, or if a signal asks to stop, the others finish their step and save.
    """
    groups = [plan.stages] if plan.side_by_side else [(index,) for index in plan.stages]
    for group in groups:
        _train_group(group, plan, directory, embeddings.path, report)


def _train_group(
    group: Sequence[int],
    plan: Plan,
    directory: TrainingDirectory,
    path: Path | None,
    report: Report,
) -> None:
    context = multiprocessing.get_context("spawn")
    stop, error = context.Event(), cast(Exception | None, None)
    runs: dict[Any, tuple[int, Any]] = {}  # by the connection that a process writes to
    with StopSignal() as asked:
        try:
            for index in group:
                receiver, sender = context.Pipe(duplex=False)
                arguments = (sender, stop, plan, index, directory.path, path)
                process = context.Process(target=_process, args=arguments, name=f"stage {index}")
                with ignored(signal.SIGINT):  # the process inherits that: Ctrl-C is the parent's
                    process.start()
                sender.close()  # the process has its own; when it ends, the receiver sees the end
                runs[receiver] = index, process
            while runs:
                for connection in wait(list(runs), timeout=0.2):
                    index, process = runs[connection]
                    try:
                        message = cast(Connection, connection).recv()
                    except EOFError:
                        del runs[connection]
                        process.join()
                        died = f"the process of stage {index} died, exit code {process.exitcode}"
                        error = error or (RunError(died) if process.exitcode else None)
                        continue
                    if isinstance(message, Exception):
                        error = error or message
                    else:
                        report.show(message)
                if asked.number or error is not None:
                    stop.set()
        finally:
            for _, process in runs.values():  # still running after an interrupt
                process.kill()
    if error is not None:
        raise error
    if asked.number:
        raise _stopped(directory, asked.number)


def _process(
    sender: Connection, stop: Any, plan: Plan, index: int, path: Path, embeddings: Path
) -> None:
    """The work of a process: train a stage, and send its messages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not inherited, on Windows
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    torch.set_num_threads(plan.threads)
    parent = multiprocessing.parent_process()

    def asked() -> bool:
        return bool(stop.is_set() or (parent is not None and not parent.is_alive()))

    def send(message: object) -> None:
        with suppress(BrokenPipeError):  # the parent has ended: save and end too
            sender.send(message)

    try:
        directory = TrainingDirectory(path)
        for message in run_stage(plan, index, directory, EmbeddingCache.saved(embeddings), asked):
            send(message)
    except (ValueError, RunError, OSError) as error:
        send(error)


def _stopped(directory: TrainingDirectory, number: int) -> RunStopped:
    return RunStopped(f"stopped; go on with `restart_directory` {directory.path}", number)
