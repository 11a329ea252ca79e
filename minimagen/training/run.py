"""``train``: a whole training, from a configuration to a Training Directory.

First everything is checked and loaded (``prepare``), then the directory is made, then the stages
are trained one after the other.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from minimagen.data import make_dataset
from minimagen.imagen import Imagen
from minimagen.text import EmbeddingCache, load_text_encoder
from minimagen.training.config import (
    Architecture,
    TrainConfig,
    choose_device,
    flag_name,
)
from minimagen.training.directory import TrainingDirectory
from minimagen.training.loop import (
    Collate,
    EpochRecord,
    RunError,
    RunStopped,
    StageTrainer,
    StopSignal,
    faster_precision,
    mix,
    prepare_stage,
)
from minimagen.training.resolve import architecture


WHITENING_CAPTIONS = 2000  # from which the mean and covariance of the text are measured


@dataclass
class Prepared:
    """A training that can begin: all that was asked for has been found and fits."""

    config: TrainConfig  # with nothing left open but what is measured
    model: Architecture
    device: torch.device
    datasets: Sequence[Dataset[dict[str, object]]]  # one per stage, at its own side
    train: list[int]  # indices into them
    valid: list[int]
    cache: EmbeddingCache  # its encoder loaded, its captions not yet encoded
    old: TrainingDirectory | None  # to go on from
    tensors: dict[str, Tensor]  # of its checkpoint
    state: dict[str, Any]


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
        for index in range(len(prepared.model.unets)):
            run.train_stage(index)
    except (RunError, RunStopped) as error:
        run.log(str(error), show=False)
        raise
    run.log(f"finished; the results are in {run.directory.path}")
    return run.directory


def prepare(config: TrainConfig) -> Prepared:
    """Check and load what a training needs, and write nothing. Raises ValueError as ``train``."""
    device = choose_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise ValueError("--PRECISION is 'fp16', on the CPU it should be auto, fp32 or bf16")
    for name in ("output_directory", "cache_directory"):
        directory = getattr(config, name)
        nearest = Path(directory or ".").absolute()
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise ValueError(f"{flag_name(name)} is {directory}, but {nearest} is no directory")
    old: TrainingDirectory | None = None
    tensors: dict[str, Tensor] = {}
    state: dict[str, Any] = {}
    if config.restart_directory is not None:
        old, tensors, state = _open_old(config.restart_directory)
    model = architecture(config)
    stages = len(model.unets)
    for name in ("epochs", "batch_size", "optim_lr"):
        config.per_stage(name, stages)
    if config.precision == "auto" and state.get("device") == device.type:
        state["keep_precision"] = True  # else a resumed training might measure otherwise
    try:
        encoder = load_text_encoder(model.imagen.text_encoder, model.imagen.max_tokens)
    except ValueError as error:
        raise ValueError(f"--T5_NAME: {error}") from None
    saved_name = architecture(replace(config, t5_name=None)).imagen.text_encoder
    if model.imagen.text_encoder != saved_name:
        unets = tuple(replace(unet, text_dim=encoder.dim) for unet in model.unets)
        model = model._replace(unets=unets)
    elif any(unet.text_dim != encoder.dim for unet in model.unets):
        where = "--RESTART_DIRECTORY" if old else "--PARAMETERS"
        raise ValueError(
            f"{where}: text_dim of the U-Nets is {model.unets[0].text_dim}, it should be "
            f"{encoder.dim}, the width of {model.imagen.text_encoder}"
        )
    try:
        with torch.device("meta"):
            imagen = Imagen(model.imagen, model.unets)
        if old is not None:
            _check_fit(imagen, tensors, state["stage"])
    except ValueError as error:
        where = "--RESTART_DIRECTORY" if old else "--PARAMETERS"
        raise ValueError(f"{where}: {error}") from None
    datasets, made = [], {}
    for stage in model.imagen.stages:
        if stage.side not in made:
            try:
                made[stage.side] = make_dataset(
                    config.dataset,
                    stage.side,
                    config.num_images,
                    config.seed,
                    image_column=config.image_column,
                    caption_column=config.caption_column,
                )
            except ValueError as error:
                raise ValueError(f"--DATASET: {error}") from None
        datasets.append(made[stage.side])
    train_indices, valid_indices = _split(config, len(datasets[0]))
    config = replace(
        config,
        img_side_len=model.imagen.stages[-1].side,
        t5_name=model.imagen.text_encoder,
        max_num_words=model.imagen.max_tokens,
        timesteps=model.imagen.timesteps,
        num_images=len(datasets[0]),
    )
    kept = None if config.cache_directory is None else Path(config.cache_directory)
    cache = EmbeddingCache(encoder, kept)
    return Prepared(
        config, model, device, datasets, train_indices, valid_indices, cache, old, tensors, state
    )


def _open_old(path: str) -> tuple[TrainingDirectory, dict[str, Tensor], dict[str, Any]]:
    try:
        old = TrainingDirectory.open(path)
        tensors, state = old.load_checkpoint()
    except ValueError as error:
        raise ValueError(f"--RESTART_DIRECTORY: {error}") from None
    missing = {"stage", "epoch", "batch", "step", "best", "precision"} - set(state)
    if missing:
        raise ValueError(
            f"--RESTART_DIRECTORY: {old.checkpoint} is no checkpoint of ours: it has no "
            f"{', '.join(sorted(missing))}"
        )
    return old, tensors, state


def _check_fit(imagen: Imagen, tensors: dict[str, Tensor], stage: int) -> None:
    """Raise ValueError when a checkpoint's weights are not those of this model."""
    if not 0 <= stage < len(imagen.stages):
        raise ValueError(f"its checkpoint is of stage {stage}, which the model has not")
    due = {f"model.{k}": v.shape for k, v in imagen.stages[stage].state_dict().items()}
    found = {k: v.shape for k, v in tensors.items() if k.startswith("model.")}
    for name in sorted(due.keys() ^ found.keys()) or sorted(due):
        if due.get(name) != found.get(name):
            raise ValueError(
                f"its checkpoint does not fit the model of its parameters/: {name} is "
                f"{found.get(name)}, it should be {due.get(name)}"
            )


def _split(config: TrainConfig, length: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on, drawn by the seed."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(mix(config.seed)))
    count = round(length * config.train_valid_frac)
    if not 0 < count < length:
        raise ValueError(
            f"--TRAIN_VALID_FRAC is {config.train_valid_frac}, of {length} pictures that leaves "
            f"{count} to train and {length - count} to validate on: both should have some"
        )
    return order[:count].tolist(), order[count:][: config.valid_num].tolist()


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

    def train_stage(self, index: int) -> None:
        """Train one stage, or what is left of it."""
        prepared, state = self.prepared, self.prepared.state
        if state and index < state["stage"]:
            self.log(f"stage {index}: was finished before")
            return
        resumes = bool(state) and index == state["stage"]
        trainer = StageTrainer(
            self.imagen.stages[index],  # type: ignore[arg-type]
            index,
            self.config,
            len(prepared.model.unets),
            prepared.datasets[index],
            prepared.train,
            prepared.valid,
            prepared.cache,
            prepared.model.imagen.text_dropout,
            prepared.device,
            self._precision(index, resumes),
        )
        if resumes:
            try:
                trainer.load_state(prepared.tensors, state)
            except ValueError as error:
                raise ValueError(f"--RESTART_DIRECTORY: {error}") from None
        self._loop(trainer)

    def _precision(self, index: int, resumes: bool) -> str:
        config, prepared = self.config, self.prepared
        device = self.process.device
        if config.precision != "auto":
            return config.precision
        if resumes and prepared.state.get("keep_precision"):
            return str(prepared.state["precision"])
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

    def _loop(self, trainer: StageTrainer) -> None:
        config, index = self.config, trainer.index
        total = trainer.steps * trainer.batch_size * config.accum_iter
        total *= trainer.accelerator.num_processes
        done = total * trainer.step // max(trainer.steps, 1)
        interval: list[Tensor] = []
        saved = trainer.epoch, trainer.batch
        with StopSignal() as stop, self._bar(total, f"stage {index}", "img", done) as bar:
            for record in trainer.run():
                if isinstance(record, EpochRecord):
                    self._epoch_ended(trainer, record, bar)
                    self._save(trainer, "")
                    saved = trainer.epoch, trainer.batch
                else:
                    bar.update(record.images)
                    interval.append(record.loss)
                    if record.step % 20 == 0:
                        trainer.check()
                        bar.set_postfix_str(f"loss {record.loss.item():.4f}", refresh=False)
                    if record.batches // config.chckpt_num > (saved[1] // config.chckpt_num):
                        mean = torch.stack(interval).mean().item()
                        self._save(
                            trainer,
                            f"stage {index} epoch {record.epoch + 1}/{trainer.epochs} "
                            f"step {record.step}/{record.steps}: loss {mean:.5f} over the last "
                            f"{len(interval)} steps, lr {record.lr:.2e}, "
                            f"{record.images_per_second:.0f} images/s; checkpoint",
                        )
                        interval, saved = [], (trainer.epoch, trainer.batch)
                number = trainer.stop_asked(stop)
                if number:
                    if saved != (trainer.epoch, trainer.batch):
                        self._save(trainer, "stopped by a signal; checkpoint")
                    raise RunStopped(
                        "stopped; go on with: python train.py --RESTART_DIRECTORY "
                        f"{self.directory.path}",
                        number,
                    )

    def _epoch_ended(self, trainer: StageTrainer, record: EpochRecord, bar: Any) -> None:
        if record.best and self.main:
            self.directory.save_best(record.stage, trainer.ema.unet.state_dict())
        self.log(
            f"stage {record.stage} epoch {record.epoch + 1}/{trainer.epochs}: loss "
            f"{record.train_loss:.5f}, validation {record.valid_loss:.5f}"
            f"{' (best, weights saved)' if record.best else ''}, {record.seconds:.1f} s; checkpoint"
        )

    def _save(self, trainer: StageTrainer, line: str) -> None:
        tensors, state = trainer.state()
        if self.main:
            self.directory.save_checkpoint(tensors, state)
        if line:
            self.log(line, show=False)

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
