"""``train``: a whole training, from a plan to a training directory.

First everything is loaded and checked. Then the directory is made. Then each stage trains in its
own process: on a CPU all stages side by side, which uses the cores better, else one after the
other. Each stage learns from the images of the data set, and never from another stage, so their
order does not matter.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import pickle
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from minimagen.data import words
from minimagen.devices import out_of_memory
from minimagen.notes import Note
from minimagen.parameters import Sources
from minimagen.run_directory import TrainingDirectory
from minimagen.settings import naming
from minimagen.text import EmbeddingCache, load_text_encoder
from minimagen.training.batches import Data, distinct
from minimagen.training.loop import steps_per_epoch
from minimagen.training.report import AfterEpoch, Line, Report, Running
from minimagen.training.resolve import Plan, launched
from minimagen.training.run import load_dataset, run_stage
from minimagen.training.stop import RunError, RunStopped, StopSignal, kept_from_children
from minimagen.training.table import begin_table

SPELT = 0.25  # share of words read letter by letter, above which the log says so


def train(
    plan: Plan,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    after_epoch: AfterEpoch | None = None,
) -> TrainingDirectory:
    """Train the stages of a plan; returns the directory with the results.

    quiet: print no lines and show no progress bars (bars are shown on terminals only)
    say:   prints a line; None prints to stdout
    after_epoch: called after the checkpoint of an epoch is written, in the process that writes the
           log; in another thread, if the stages have their own processes; see ``AfterEpoch``

    Raises ValueError, naming the setting or file, if something does not exist or does not fit; the
    directory is not made then. Raises RunError if the training cannot go on, RunStopped after
    Ctrl-C or SIGTERM, and OSError if a file cannot be written; the last good checkpoints stay then.
    """
    main = not launched() or PartialState(cpu=plan.device.type == "cpu").is_main_process
    with (
        Report(plan, main, quiet, say) as report,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
    ):
        with report.bar("images", None, "img") as bar:

            def looked(done: int, total: int | None) -> None:
                bar.total = total
                bar.update(done - bar.n)

            data = load_dataset(plan, Path(scratch), looked)
        captions = data.dataset.captions
        used = [captions[i] for i in (*data.train, *data.valid)]
        report.checked(data.dataset)
        embeddings = _embed(plan, used, Path(scratch), report)
        sources = Sources(
            plan.config.dataset,
            data.dataset.digest(),
            plan.imagen.text_encoder,
            embeddings.fingerprint,
            plan.processes,
        )
        plan = _compare(plan, sources, len(data.train))
        known = {word for i in data.train for word in words(captions[i])}
        directory = _make_directory(plan, main, sources, known)
        report.begin(directory, data)
        if after_epoch is not None:
            shown = list(dict.fromkeys(captions[i] for i in data.valid))
            running = Running(plan, directory, len(data.train), shown, embeddings)
            report.after_epoch = partial(after_epoch, running)
        try:
            if launched():
                _train_here(plan, directory, data, embeddings, report)
            else:
                _train_in_processes(plan, directory, data, embeddings, report)
        except Exception as error:
            if out_of_memory(error):
                error = RunError(f"too little memory{_less_memory(directory)}")
            if isinstance(error, RunError | RunStopped):
                report.show(Line(str(error)))
            raise error from None
        report.show(Line(f"finished; the results are in {directory.path}", True))
    return directory


# --- before any stage trains ----------------------------------------------------------------------


def _embed(plan: Plan, captions: Sequence[str], scratch: Path, report: Report) -> EmbeddingCache:
    """The embeddings of all captions, each computed once; the result's ``path`` is their file."""
    config = plan.config
    with naming("t5_name"):
        encoder = load_text_encoder(plan.imagen.text_encoder, plan.imagen.max_tokens)
    captions = distinct(captions)
    kept = None
    if config.cache_directory is not None:
        # A folder for each set of captions: the last bits of an embedding depend on those that are
        # encoded with it, and must not depend on what was trained before.
        name = hashlib.sha256(json.dumps(captions).encode()).hexdigest()[:16]
        kept = Path(config.cache_directory) / name
    cache = EmbeddingCache(encoder.to(plan.device), kept)
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


def _compare(plan: Plan, now: Sources, images: int) -> Plan:
    """Compare what is there now with what a training learned from until now; return the plan.

    ``config.other_data`` is then whether the data have changed. images: number to train on

    Raises ValueError if something has changed that may not.
    """
    before = None if plan.old is None else plan.old.load_sources()
    allowed, changed = plan.config.other_data, False
    if before is not None:
        if now.text_fingerprint != before.text_fingerprint:
            raise ValueError(
                f"`t5_name` is {now.text_encoder}, but it is not the text encoder of the training, "
                f"which was {before.text_encoder}: give the place where that one is now"
            )
        changed = now.data_digest != before.data_digest
        if changed and not allowed:
            raise ValueError(
                f"`dataset` is {now.dataset}, but its images and captions are not those of the "
                f"training, which were in {before.dataset}: give the place where those are now, or "
                "go on with these by `other_data`"
            )
    for index, (state, path, _) in plan.results.items():
        group, per_epoch = steps_per_epoch(images, plan.stage_settings(index))
        due = state.epoch * per_epoch + state.batch // group
        if state.step != due and before is None:  # without sources, this is all that can be known
            changed = allowed
        if state.step != due and not changed:
            raise ValueError(
                f"`{plan.origin}`: {path} is at step {state.step}, but with {images} images to "
                f"train on it should be at step {due}: have the data changed?"
            )
    return replace(plan, config=replace(plan.config, other_data=changed))


def _make_directory(
    plan: Plan, main: bool, sources: Sources, known: Collection[str]
) -> TrainingDirectory:
    """The directory to train in, with all settings; all processes of a launch get the same one.

    known: the words of the training captions
    """

    def fill(directory: TrainingDirectory) -> None:
        directory.save_parameters(plan.imagen, plan.unets, plan.config.to_text())
        directory.save_sources(sources)
        directory.save_words(known)
        begin_table(directory, plan.old, plan.results)

    def copy(directory: TrainingDirectory) -> None:
        fill(directory)
        directory.copy_results(plan.results)

    if launched():
        PartialState().wait_for_everyone()  # until each has read what is changed now
    path: list[Any] = [None]
    if plan.old is not None and plan.config.training_directory is not None:
        if main:
            plan.old.prepare(plan.results)
            fill(plan.old)
        path = [str(plan.old.path)]
    elif main:
        path = [str(TrainingDirectory.create(plan.config.output_directory, copy).path)]
    if launched():
        broadcast_object_list(path)
    return TrainingDirectory(path[0])


# --- one process per stage ------------------------------------------------------------------------


def _train_here(
    plan: Plan,
    directory: TrainingDirectory,
    data: Data,
    embeddings: EmbeddingCache,
    report: Report,
) -> None:
    """Train all stages in this process, one of several that a launcher has started."""
    torch.set_num_threads(plan.threads)
    with StopSignal() as stop:
        for index in plan.stages:
            for message in run_stage(
                plan, index, directory, data, embeddings, lambda: stop.number > 0
            ):
                report.show(message)
            if stop.number:
                raise _stopped(directory, stop.number)


def _train_in_processes(
    plan: Plan,
    directory: TrainingDirectory,
    data: Data,
    embeddings: EmbeddingCache,
    report: Report,
) -> None:
    """Train each stage in its own process, all at the same time or one after the other.

    If one fails, or if a signal asks to stop, the others finish their step and save.
    """
    groups = [plan.stages] if plan.side_by_side else [(index,) for index in plan.stages]
    report.aside = ThreadPoolExecutor(1)  # messages and Ctrl-C do not wait for ``after_epoch``
    try:
        for group in groups:
            _train_group(group, plan, directory, data, embeddings.path, report)
        report.wait()
    finally:
        report.aside.shutdown(cancel_futures=True)


def _train_group(
    group: Sequence[int],
    plan: Plan,
    directory: TrainingDirectory,
    data: Data,
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
                arguments = (sender, stop, plan, index, directory.path, data, path)
                process = context.Process(target=_process, args=arguments, name=f"stage {index}")
                with kept_from_children(signal.SIGINT):  # Ctrl-C is for this process
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
                        code = process.exitcode
                        if code and code != -asked.number:  # a signal may be for all processes
                            died = f"the process of stage {index} died, exit code {code}"
                            if code == -9:  # SIGKILL
                                died += f", perhaps of too little memory{_less_memory(directory)}"
                            error = error or RunError(died)
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
    sender: Connection,
    stop: Any,
    plan: Plan,
    index: int,
    path: Path,
    data: Data,
    embeddings: Path,
) -> None:
    """The work of a process: train a stage, and send its messages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it gets on Windows
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    torch.set_num_threads(plan.threads)
    parent = multiprocessing.parent_process()

    def asked() -> bool:
        return bool(stop.is_set() or (parent is not None and not parent.is_alive()))

    def send(message: object) -> None:
        with suppress(BrokenPipeError):  # the parent has ended: save and end too
            sender.send(message)

    try:
        directory = TrainingDirectory.open(path)
        cache = EmbeddingCache.saved(embeddings)
        for message in run_stage(plan, index, directory, data, cache, asked):
            send(message)
    except Exception as error:
        send(_portable(error))


def _portable(error: Exception) -> Exception:
    """An error that can be sent to another process, with its traceback as a note."""
    error.add_note(traceback.format_exc())
    try:
        return cast(Exception, pickle.loads(pickle.dumps(error)))
    except Exception:  # many classes cannot be pickled
        return RuntimeError(f"{type(error).__name__}: {error}")


def _less_memory(directory: TrainingDirectory) -> str:
    """How to go on after memory ran out."""
    advice = ": start again with half the `batch_size` and twice the `accum_iter`"
    if any(directory.tmp.glob("*.safetensors")):
        advice += f", or free memory and go on with `restart_directory` {directory.path}"
    return advice


def _stopped(directory: TrainingDirectory, number: int) -> RunStopped:
    return RunStopped(f"stopped; go on with `restart_directory` {directory.path}", number)
