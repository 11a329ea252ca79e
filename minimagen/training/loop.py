"""The training loop of one stage: a generator that yields a small record after every step.

Each step is algorithm 1 of DDPM (2006.11239) on the stage's own loss, with Muon (``optimizer``),
warm-up and linear decay of the learning rate, clipped gradients, and a moving average (EMA) of the
weights. After each epoch the averaged weights are validated. This module writes no files: the
caller may save the state after any record.

Every random number depends only on the seed and on the number of the epoch and batch. So a resumed
training gives the same weights as one without a break. Several processes share a batch and
its noise, and each computes its part: two processes give the same losses and gradients as one, but
for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from minimagen.imagen import Stage, TrainingNoise
from minimagen.randomness import DROPOUT, NOISE, ORDER, VALIDATION, generator, seed_of
from minimagen.training.batches import StageData, epoch_batches
from minimagen.training.state import TrainingState
from minimagen.training.stop import RunError

# A mean loss that no working training has: a network whose output is 0 has one below 10, with every
# parameterisation and weighting.
DIVERGED = 100.0


class StageSettings(NamedTuple):
    """The settings of one stage's training; see ``TrainConfig`` for what they mean."""

    stage: int  # its number in the cascade
    epochs: int
    batch_size: int  # of all processes together
    optim_lr: float
    accum_iter: int
    warmup: int
    clip_norm: float
    ema_decay: float
    seed: int
    text_dropout: float  # share of captions hidden
    crop_side: int | None = None  # of the windows that a super-resolution stage trains on


class StepRecord(NamedTuple):
    """The result of one optimizer step."""

    epoch: int  # from 0
    step: int  # optimizer steps done in this stage
    steps: int  # of this stage in all
    batches: int  # done in this epoch
    images: int  # trained on in this step, by all processes
    loss: Tensor  # mean over this process's images, on the device: reading it waits for the step
    lr: float


class EpochRecord(NamedTuple):
    """The result of one epoch."""

    epoch: int
    train_loss: float  # mean over the images trained on
    valid_loss: float  # mean over the validation images, of the averaged weights
    best: bool  # the lowest validation loss so far
    seconds: float


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate of step ``step`` (from 0) of ``steps``: linear up to ``peak``, then to 0."""
    return peak * min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1), 1.0)


def steps_per_epoch(images: int, settings: StageSettings) -> tuple[int, int]:
    """The number of batches in an optimizer step, and of steps in an epoch of ``images`` images."""
    batches = epoch_batches(
        range(images), settings.batch_size, settings.accum_iter, torch.Generator()
    )
    group = min(settings.accum_iter, len(batches))
    return group, len(batches) // group


def train_stage(
    state: TrainingState, data: StageData, settings: StageSettings, accelerator: Accelerator
) -> Iterator[StepRecord | EpochRecord]:
    """Train to the end of the last epoch, from where ``state`` is.

    Raises RunError when the loss is not finite or has diverged.
    """
    index, device = settings.stage, accelerator.device
    rank, processes = accelerator.process_index, accelerator.num_processes
    accelerator.gradient_accumulation_steps, per_epoch = steps_per_epoch(len(data.train), settings)
    steps = settings.epochs * per_epoch
    model, optimizer = accelerator.prepare(state.stage, state.optimizer)
    weights, averages = list(state.stage.parameters()), list(state.ema.parameters())

    while state.epoch < settings.epochs:
        began, loss, count, seen = time.perf_counter(), torch.zeros((), device=device), 0, 0
        state.stage.train()
        order = generator(settings.seed, ORDER, index, state.epoch)
        batches = epoch_batches(data.train, settings.batch_size, settings.accum_iter, order)
        mine = [batch[rank::processes] or batch[:1] for batch in batches[state.batch :]]
        for batch in data.load(mine, state.epoch):
            images, text, mask = (part.to(device, non_blocking=True) for part in batch)
            here = (index, state.epoch, state.batch)
            whole = len(batches[state.batch])
            random = generator(settings.seed, NOISE, *here)
            noise = state.stage.training_noise(
                whole, settings.text_dropout, random, settings.crop_side
            )
            noise = TrainingNoise(*(part[rank % whole :: processes] for part in noise)).to(device)
            counts = float(rank < whole)  # else the batch has no image for this process: see mine
            if state.stage.unet.config.dropout > 0:  # which uses torch's global generator
                torch.manual_seed(seed_of(settings.seed, DROPOUT, *here, rank))
            state.batch += 1
            with accelerator.accumulate(model):
                losses = model(images, text, mask, noise)  # (B,)
                # The mean over the whole batch: gradients are averaged over the processes.
                accelerator.backward(losses.sum() * (counts * processes / whole))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(weights, settings.clip_norm)
                lr = learning_rate(state.step, steps, settings.optim_lr, settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                optimizer.zero_grad()
            total = losses.detach().sum() * counts
            state.sums[0] += total
            state.sums[1] += len(losses) * counts
            loss, count, seen = loss + total, count + len(losses), seen + whole
            if not accelerator.sync_gradients:
                continue
            state.step += 1
            decay = min(settings.ema_decay, (1 + state.step) / (10 + state.step))
            with torch.no_grad():
                get_ema_multi_avg_fn(decay)(averages, weights, state.step)
            if state.step % 20 == 0:
                check_loss(state.sums, index, state.epoch)
            yield StepRecord(state.epoch, state.step, steps, state.batch, seen, loss / count, lr)
            loss, count, seen = torch.zeros((), device=device), 0, 0

        state.sums = accelerator.reduce(state.sums)
        check_loss(state.sums, index, state.epoch)
        train_loss = (state.sums[0] / state.sums[1]).item()
        valid_loss = validate(state.ema, data, settings, accelerator)
        best = valid_loss < state.best
        state.best = min(valid_loss, state.best)
        state.epoch, state.batch = state.epoch + 1, 0
        state.sums.zero_()
        seconds = time.perf_counter() - began
        yield EpochRecord(state.epoch - 1, train_loss, valid_loss, best, seconds)


@torch.no_grad()
def validate(
    stage: Stage, data: StageData, settings: StageSettings, accelerator: Accelerator
) -> float:
    """Loss of a stage in eval mode, mean over the validation images.

    Each image has its own noise, time, level and window, the same in every epoch. No caption is
    hidden, and there is no dropout. So losses of different epochs, batch sizes and numbers of
    processes can be compared.
    """
    stage.eval()
    device, count = accelerator.device, len(data.valid)
    size = max(1, settings.batch_size // accelerator.num_processes)
    places = list(range(accelerator.process_index, count, accelerator.num_processes))
    parts = [places[i : i + size] for i in range(0, len(places), size)]
    total = torch.zeros((), device=device)
    loader = data.load([[data.valid[place] for place in part] for part in parts])
    for part, batch in zip(parts, loader, strict=True):
        images, text, mask = (tensor.to(device) for tensor in batch)
        randoms = [generator(settings.seed, VALIDATION, settings.stage, i) for i in part]
        each = [stage.training_noise(1, 0.0, random, settings.crop_side) for random in randoms]
        noise = TrainingNoise(*(torch.cat(rows) for rows in zip(*each, strict=True)))
        noise = noise._replace(t=(torch.tensor(part) + 0.5) / count).to(device)  # spread evenly
        with accelerator.autocast():
            total += stage(images, text, mask, noise).float().sum()
    return accelerator.reduce(total).item() / count


def check_loss(sums: Tensor, stage: int, epoch: int) -> None:
    """Raise RunError if the losses of this epoch show that the training has diverged.

    sums: sum of the losses, and number of images. Nothing is saved then.
    """
    if sums[0] <= DIVERGED * sums[1]:  # NaN is not
        return
    finite = sums[0].isfinite()
    what = f"has diverged, it is {sums[0] / sums[1]:.3g}" if finite else "is no longer finite"
    raise RunError(
        f"the loss of stage {stage} {what} in epoch {epoch + 1}, "
        "a smaller `optim_lr`, a longer `warmup` or `precision` fp32 may help"
    )
