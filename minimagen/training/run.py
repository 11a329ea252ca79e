"""One run trains one stage: with its own Accelerator, random numbers and files.

It prints nothing: it yields messages for a log and a progress bar.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from minimagen.data import make_dataset
from minimagen.data.shapes import WORLDS
from minimagen.imagen import Imagen, Stage
from minimagen.randomness import WHITENING, generator
from minimagen.run_directory import TrainingDirectory
from minimagen.settings import naming
from minimagen.text import EmbeddingCache
from minimagen.training.batches import Data, StageData, distinct, split
from minimagen.training.loop import EpochRecord, check_loss, steps_per_epoch, train_stage
from minimagen.training.report import Line, Progress, Saved
from minimagen.training.resolve import Plan
from minimagen.training.state import TrainingState
from minimagen.training.table import Meter, Row

WHITENING_CAPTIONS = 2000  # from which the mean and covariance of the text are computed


def load_dataset(
    plan: Plan,
    scratch: Path | None = None,
    progress: Callable[[int, int | None], object] = lambda done, total: None,
) -> Data:
    """The data of a training; every picture is looked at.

    scratch:  folder for what is made of the pictures
    progress: called with the number of pictures that were looked at, and their total if it is known

    Raises ValueError, naming the setting.
    """
    config = plan.config
    options: dict[str, Any] = {}
    if config.dataset not in WORLDS:
        options = {"scratch": scratch, "progress": progress}
        for name in ("streaming", "crop", "flip", "max_left_out", "image_column", "caption_column"):
            options[name] = getattr(config, name)
    for name in ("streaming", "flip"):
        if config.dataset in WORLDS and getattr(config, name):
            raise ValueError(f"`{name}` is for real images, `dataset` is {config.dataset}")
    with naming("dataset"):
        sides = [stage.side for stage in plan.imagen.stages]
        dataset = make_dataset(config.dataset, sides, config.num_images, config.seed, **options)
    parts = split(dataset.pictures, config.train_valid_frac, config.valid_num, config.seed)
    return Data(dataset, *parts)


def run_stage(
    plan: Plan,
    index: int,
    directory: TrainingDirectory,
    loaded: Data,
    embeddings: EmbeddingCache,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Line | Progress | Row | Saved]:
    """Train one stage, from its checkpoint in ``directory`` if it has one, and save the results.

    loaded: what ``load_dataset`` gave; embeddings: of all its captions
    stop: called after each step; if it returns True, the stage is saved and the run ends

    Raises RunError if a loss is not finite, and OSError if a file cannot be written. The last good
    checkpoint stays then.
    """
    config, settings = plan.config, plan.stage_settings(index)
    dataset = loaded.dataset.at(plan.imagen.stages[index].side)
    data = StageData(dataset, loaded.train, loaded.valid, embeddings, config.num_workers)
    accelerator = Accelerator(
        cpu=plan.device.type == "cpu",
        mixed_precision="no" if config.precision == "fp32" else config.precision,
    )
    state = TrainingState(_new_stage(plan, index, data), accelerator.device)
    if index in plan.results:
        _resume(state, index, directory, accelerator)
        if config.other_data:  # its epoch begins anew
            state.batch, state.best = 0, math.inf
            state.step = state.epoch * steps_per_epoch(len(data.train), settings)[1]
            state.sums.zero_()
        yield Line(f"stage {index}: goes on after epoch {state.epoch}, step {state.step}", True)
    if state.epoch >= settings.epochs:
        yield Line(f"stage {index}: is finished already", True)
        return

    meter = Meter(index, settings.epochs, state.step)
    saved, losses, images, began = (state.epoch, state.batch), [], 0, time.perf_counter()
    for record in train_stage(state, data, settings, accelerator):
        text, epoch_ended = "", isinstance(record, EpochRecord)
        if row := meter.add(record):
            yield row  # before the checkpoint: a training that goes on lacks none
        if isinstance(record, EpochRecord):
            if record.best and accelerator.is_main_process:
                directory.save_best(index, state.ema.unet.state_dict())
            text = f"loss {record.train_loss:.5f}, validation {record.valid_loss:.5f}"
            text += f"{' (best, weights saved)' if record.best else ''}, {record.seconds:.1f} s"
        else:
            losses.append(record.loss)
            images += record.images
            if record.step % 10 == 0 or record.step == record.steps:
                done, total = record.step * record.images, record.steps * record.images
                yield Progress(index, done, total, record.loss.item())
            if record.batches // config.chckpt_num > saved[1] // config.chckpt_num:
                mean = torch.stack(losses).mean().item()
                speed = images / (time.perf_counter() - began)
                text = f"step {record.step}/{record.steps}, loss {mean:.5f} over the last "
                text += f"{len(losses)} steps, lr {record.lr:.2e}, {speed:.0f} images/s"
        stopped = _any_process(stop(), accelerator)
        if text or stopped:
            _save(state, index, directory, accelerator, config.precision)
            saved, losses = (state.epoch, state.batch), []
        if text:
            epoch = f"epoch {record.epoch + 1}/{settings.epochs}"
            yield Line(f"stage {index} {epoch}: {text}; checkpoint", show=epoch_ended)
        if epoch_ended:
            yield Saved(index, state.epoch)
        if stopped:
            yield Line(f"stage {index}: stopped at step {state.step}; checkpoint")
            return


def _new_stage(plan: Plan, index: int, data: StageData) -> Stage:
    """The stage before training; the whitening of its U-Net is fitted to training captions."""
    torch.manual_seed(plan.config.seed)
    # The whole cascade, so that the first weights of a stage do not depend on `stages`.
    imagen = Imagen(plan.imagen, plan.unets)
    captions = distinct([data.dataset.captions[i] for i in data.train])
    order = torch.randperm(len(captions), generator=generator(plan.config.seed, WHITENING))
    imagen.fit_text(*data.embeddings([captions[i] for i in order[:WHITENING_CAPTIONS]]))
    return imagen.stages[index]


def _resume(
    state: TrainingState, index: int, directory: TrainingDirectory, accelerator: Accelerator
) -> None:
    tensors, saved = directory.load_checkpoint(index)
    state.load(tensors, saved)
    if not accelerator.is_main_process:
        state.sums.zero_()  # the saved sums are over all processes
    if accelerator.scaler is not None and saved.scaler:
        accelerator.scaler.load_state_dict(saved.scaler)


def _save(
    state: TrainingState,
    index: int,
    directory: TrainingDirectory,
    accelerator: Accelerator,
    precision: str,
) -> None:
    sums = accelerator.reduce(state.sums.clone())
    check_loss(sums, index, state.epoch)  # never over the last good checkpoint
    if not accelerator.is_main_process:
        return
    tensors, numbers = state.save()
    tensors["sums"] = sums
    scaler = accelerator.scaler
    numbers |= {
        "stage": index,
        "precision": precision,
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    directory.save_checkpoint(index, tensors, numbers)


def _any_process(stop: bool, accelerator: Accelerator) -> bool:
    """Whether any process was asked to stop: all processes get the same answer."""
    if accelerator.num_processes == 1:
        return stop
    flag = torch.tensor([stop], device=accelerator.device)
    return bool(accelerator.gather(flag).any())
