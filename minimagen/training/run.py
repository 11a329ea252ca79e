"""``train``: a whole training, from a configuration to a Training Directory.

First everything is checked and loaded (``prepare``), then the directory is made, then the stages
are trained: on a CPU side by side, which keeps its cores busier, else one after the other. Stages
know nothing of each other, only of the data, so the order makes no difference to what they learn.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from minimagen.imagen import Imagen
from minimagen.training.config import TrainConfig
from minimagen.training.directory import TrainingDirectory
from minimagen.training.loop import (
    Collate,
    EpochRecord,
    Record,
    RunError,
    StageTrainer,
    mix,
    prepare_stage,
)
from minimagen.training.precision import faster_precision
from minimagen.training.prepare import Prepared, prepare
from minimagen.training.stop import RunStopped, StopSignal

WHITENING_CAPTIONS = 2000  # from which the mean and covariance of the text are measured


def train(config: TrainConfig, quiet: bool = False) -> TrainingDirectory:
    """Train all stages; the directory with the results, made in ``config.output_directory``.

    quiet: print nothing, neither lines nor bars (these are for terminals only)

    Raises ValueError, naming the flag or file, before anything is made, when something asked for
    does not exist or does not fit; RunError when the training cannot go on, RunStopped after Ctrl-C
    or SIGTERM, OSError when a file cannot be written. The last good checkpoint stays then.
    """
    prepared = prepare(config)
    run = _Run(prepared, quiet)
    run.embed()
    run.begin()
    try:
        run.train()
    except (RunError, RunStopped) as error:
        run.log(str(error), show=False)
        raise
    run.log(f"finished; the results are in {run.directory.path}")
    return run.directory


class _ThisThread(Executor):
    """Does what it is given at once: a stage that trains alone needs no thread of its own."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


@dataclass(eq=False)
class _Progress:
    """A stage that trains, and how much of it has been written down."""

    trainer: StageTrainer
    records: Iterator[Record]
    bar: Any
    saved: tuple[int, int]  # epoch and batch of its checkpoint
    losses: list[Tensor]  # of the steps since the last line in the log


class _Run:
    """One training under way: the loop's records on one side, files and terminal on the other."""

    def __init__(self, prepared: Prepared, quiet: bool) -> None:
        self.prepared, self.config = prepared, prepared.config
        if not torch.distributed.is_initialized():
            PartialState._reset_state()  # an earlier training may have been on another device
        self.process = PartialState(cpu=prepared.device.type == "cpu")
        self.main = self.process.is_main_process
        self.quiet = quiet or not self.main
        torch.manual_seed(self.config.seed)
        self.imagen = Imagen(prepared.model.imagen, prepared.model.unets)
        self.directory: TrainingDirectory
        self._early: list[str] = []  # lines of the log from before there was a directory

    def log(self, text: str, show: bool = True) -> None:
        """A line for training_progress.txt, and for the terminal unless ``show`` is False."""
        if not self.main:
            return
        if hasattr(self, "directory"):
            self.directory.log(text)
        else:
            self._early.append(text)
        if show and not self.quiet:
            tqdm.write(text, file=sys.stdout)

    def embed(self) -> None:
        """Encode every distinct caption once, free the encoder, and fit the U-Nets' whitening."""
        cache, data = self.prepared.cache, self.prepared.datasets[0]
        used = [*self.prepared.train, *self.prepared.valid]
        captions = sorted({data.captions[i] for i in used}, key=len)  # type: ignore[attr-defined]
        assert cache.encoder is not None
        most = cache.encoder.max_tokens
        long = sum(count > most for count in cache.encoder.token_counts(captions))
        cache.encoder.to(self.process.device)
        new = 0
        with warnings.catch_warnings(), self._bar(len(captions), "captions", "caption") as bar:
            warnings.simplefilter("ignore", UserWarning)  # of captions cut off, told below
            for start in range(0, len(captions), 8 * cache.batch_size):
                chunk = captions[start : start + 8 * cache.batch_size]
                new += cache.add(chunk)
                bar.update(len(chunk))
        cache.release_encoder()
        generator = torch.Generator().manual_seed(mix(self.config.seed, 3))
        some = torch.randperm(len(captions), generator=generator)[:WHITENING_CAPTIONS]
        self.imagen.fit_text(*cache([captions[i] for i in some]))
        self.log(f"captions: {len(captions)} distinct, {new} of them encoded now", show=False)
        if long:
            self.log(f"captions: {long} are cut off at --MAX_NUM_WORDS {most}")
        if new and self.main:
            try:
                cache.save()
            except OSError as error:
                self.log(f"captions: their embeddings could not be kept: {error}")

    def begin(self) -> None:
        """Make the directory and write down what is going to be trained."""
        path: list[Any] = [None]
        if self.main:
            path[0] = str(TrainingDirectory.create(self.config.output_directory).path)
        broadcast_object_list(path)
        directory = TrainingDirectory(path[0])
        model, old = self.prepared.model, self.prepared.old
        flags = self.config.to_flags()
        if self.main:
            directory.save_parameters(model.imagen, model.unets, flags)
            if old is not None:
                directory.copy_results(old, len(model.unets))
        self.directory = directory
        self.log(f"training directory: {directory.path}")
        if old is not None:
            self.log(f"goes on from: {old.path}")
        self.log("configuration: " + " ".join(f"--{k}={v}" for k, v in flags.items()), show=False)
        for line in self._early:
            directory.log(line)
        for i, (stage, config) in enumerate(
            zip(self.imagen.stages, model.imagen.stages, strict=True)
        ):
            count = sum(weight.numel() for weight in stage.parameters())
            self.log(f"stage {i}: {config.side} pixels, {count:,} weights")
        self.log(
            f"data: {len(self.prepared.train)} pictures to train on, "
            f"{len(self.prepared.valid)} to validate on, from {self.config.dataset}"
        )

    def train(self) -> None:
        """Train all stages, or what is left of them."""
        stages = range(len(self.prepared.model.unets))
        epochs, states = self.config.per_stage("epochs", len(stages)), self.prepared.states
        left = [i for i in stages if i not in states or states[i]["epoch"] < epochs[i]]
        for index in set(stages) - set(left):
            self.log(f"stage {index}: was finished before")
        groups, threads = [[index] for index in left], torch.get_num_threads()
        each = threads
        if left and self._side_by_side():
            # The share of each is the same when the others have finished, now or before a stop:
            # another number of threads would end in slightly other weights.
            groups, each = [left], max(1, threads // len(stages))
            names = " and ".join(map(str, left))
            self.log(f"stages side by side: {names}, with {each} of {threads} CPU threads each")
        torch.set_num_threads(each)
        try:
            for group in groups:
                self._train_together(group, each)
        finally:
            torch.set_num_threads(threads)

    def _side_by_side(self) -> bool:
        """Whether all stages train at the same time.

        Not with dropout, which draws from torch's one generator: chance would decide in what order.
        Not with processes that load data: to fork these is not safe while threads are at work.
        """
        unets = self.prepared.model.unets
        return (
            self.process.device.type == "cpu"
            and self.process.num_processes == 1
            and torch.get_num_threads() > 1
            and len(unets) > 1
            and self.config.num_workers == 0
            and not any(unet.dropout for unet in unets)
        )

    def _train_together(self, indices: Sequence[int], threads: int) -> None:
        """Train stages, each in a thread of its own if there are several.

        Files, log and bars are this thread's business: a stage takes its next step when the record
        of the one before has been dealt with here, so nobody trains it while it is saved. When a
        stage cannot go on, or a signal asks to stop, steps under way are ended and saved.
        """
        stages = [self._progress(index) for index in indices]
        ending: Exception | None = None
        executor: Executor = _ThisThread()
        if len(stages) > 1:
            executor = ThreadPoolExecutor(len(stages), "stage", torch.set_num_threads, (threads,))
        with StopSignal() as stop, executor:
            steps = {executor.submit(next, stage.records, None): stage for stage in stages}
            while steps:
                for step in wait(steps, return_when=FIRST_COMPLETED).done:
                    stage = steps.pop(step)
                    try:
                        record = step.result()
                        if record is None:  # the stage is finished
                            continue
                        self._write_down(stage, record)
                    except Exception as error:
                        ending = ending or error
                        stages.remove(stage)  # its last good checkpoint stays
                        stage.bar.close()
                        continue
                    number = stage.trainer.stop_asked(stop)
                    if number:
                        ending = ending or RunStopped(
                            "stopped; go on with: python train.py --RESTART_DIRECTORY "
                            f"{self.directory.path}",
                            number,
                        )
                    if ending is None:
                        steps[executor.submit(next, stage.records, None)] = stage
        for stage in stages:
            trainer = stage.trainer
            if stage.saved != (trainer.epoch, trainer.batch):
                self._save(stage, f"stage {trainer.index}: stopped at step {trainer.step}")
            stage.bar.close()
        if ending is not None:
            raise ending

    def _progress(self, index: int) -> _Progress:
        """A stage that is ready to train, from its checkpoint if it has one."""
        prepared, config = self.prepared, self.config
        trainer = StageTrainer(
            self.imagen.stages[index],  # type: ignore[arg-type]
            index,
            config,
            len(prepared.model.unets),
            prepared.datasets[index],
            prepared.train,
            prepared.valid,
            prepared.cache,
            prepared.model.imagen.text_dropout,
            prepared.device,
            self._precision(index),
        )
        if prepared.old is not None and index in prepared.states:
            try:
                trainer.load_state(*prepared.old.load_checkpoint(index))
            except ValueError as error:
                raise ValueError(f"--RESTART_DIRECTORY: {error}") from None
        total = trainer.steps * trainer.batch_size * config.accum_iter
        total *= trainer.accelerator.num_processes
        done = total * trainer.step // max(trainer.steps, 1)
        bar = self._bar(total, f"stage {index}", "img", done)
        return _Progress(trainer, trainer.run(), bar, (trainer.epoch, trainer.batch), [])

    def _precision(self, index: int) -> str:
        config, prepared = self.config, self.prepared
        device = self.process.device
        if config.precision != "auto":
            return config.precision
        state = prepared.states.get(index, {})
        if state.get("device") == device.type:
            return str(state["precision"])  # measured again it might be the other
        if device.type == "mps":
            return "fp32"
        stage = prepare_stage(self.imagen.stages[index], device)  # type: ignore[arg-type]
        size = config.per_stage("batch_size", len(prepared.model.unets))[index]
        data, chosen = prepared.datasets[index], prepared.train[:size]
        batch = Collate(prepared.cache)([data[i] for i in chosen])
        name, seconds = faster_precision(stage, batch, device, config.seed)
        names: list[Any] = [name]
        broadcast_object_list(names)
        times = ", ".join(f"{kind} {value * 1000:.0f} ms" for kind, value in seconds.items())
        self.log(f"stage {index}: precision {names[0]} (forward and backward: {times})")
        return str(names[0])

    def _write_down(self, stage: _Progress, record: Record) -> None:
        """Log what a step or an epoch came to, and save when it is time to."""
        trainer, every = stage.trainer, self.config.chckpt_num
        if isinstance(record, EpochRecord):
            if record.best and self.main:
                self.directory.save_best(record.stage, trainer.ema.unet.state_dict())
            self._save(
                stage,
                f"stage {record.stage} epoch {record.epoch + 1}/{trainer.epochs}: loss "
                f"{record.train_loss:.5f}, validation {record.valid_loss:.5f}"
                f"{' (best, weights saved)' if record.best else ''}, {record.seconds:.1f} s",
                show=True,
            )
            return
        stage.bar.update(record.images)
        stage.losses.append(record.loss)
        if record.step % 20 == 0:
            stage.bar.set_postfix_str(f"loss {record.loss.item():.4f}", refresh=False)
        if record.batches // every > stage.saved[1] // every:
            mean = torch.stack(stage.losses).mean().item()
            self._save(
                stage,
                f"stage {record.stage} epoch {record.epoch + 1}/{trainer.epochs} "
                f"step {record.step}/{record.steps}: loss {mean:.5f} over the last "
                f"{len(stage.losses)} steps, lr {record.lr:.2e}, "
                f"{record.images_per_second:.0f} images/s",
            )

    def _save(self, stage: _Progress, line: str, show: bool = False) -> None:
        """Write a checkpoint, and a line about it."""
        trainer = stage.trainer
        tensors, state = trainer.state()
        if self.main:
            self.directory.save_checkpoint(trainer.index, tensors, state)
        stage.saved, stage.losses = (trainer.epoch, trainer.batch), []
        self.log(f"{line}; checkpoint", show)

    def _bar(self, total: int, name: str, unit: str, done: int = 0) -> Any:
        """A progress bar, on terminals only."""
        return tqdm(
            total=total,
            initial=done,
            desc=name,
            unit=unit,
            smoothing=0.05,
            disable=True if self.quiet else None,
        )
