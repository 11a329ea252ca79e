"""The training loop of one stage: a generator that yields a small record after every step.

Each step is algorithm 1 of DDPM (2006.11239) on the stage's own loss, with AdamW, a learning rate
that rises and falls, clipped gradients and a moving average of the weights. After each epoch the
averaged weights are validated. Files are not written here: whoever runs the generator may save
``StageTrainer.state()`` after any record.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from minimagen.imagen import Stage
from minimagen.text import EmbeddingCache
from minimagen.training.config import TrainConfig
from minimagen.training.stop import StopSignal


class RunError(RuntimeError):
    """A training that cannot go on, said in one line."""


class StepRecord(NamedTuple):
    """What one optimizer step did."""

    stage: int
    epoch: int  # from 0
    step: int  # optimizer steps done in this stage
    steps: int  # of this stage in all
    batches: int  # done in this epoch
    images: int  # trained on in this step, by all processes
    loss: Tensor  # mean over the images of this step, on the device: reading it waits for the step
    lr: float
    images_per_second: float  # of the last steps


class EpochRecord(NamedTuple):
    """What one epoch came to."""

    stage: int
    epoch: int
    train_loss: float  # mean over the images trained on
    valid_loss: float  # mean over the validation images, of the averaged weights
    best: bool  # the lowest validation loss so far
    seconds: float


Record = StepRecord | EpochRecord


class EpochBatches(Sampler[list[int]]):
    """The batches of an epoch, lists of indices in an order that (seed, epoch) alone decide.

    batches: how many each process gets: a multiple of ``accum_iter`` where there are enough. Where
             there are fewer than processes, some get the same one.

    Pictures that do not fill a batch wait for another epoch. Set ``epoch`` and ``start`` (batches
    to skip) before iterating.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        seed: int,
        accum_iter: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.indices = torch.as_tensor(indices)
        self.batch_size, self.seed = batch_size, seed
        self.process, self.processes = process, processes
        self._all = max(len(self.indices) // batch_size, 1)  # of all processes
        each = max(self._all // processes, 1)
        self.batches = each - each % accum_iter or each
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = self.indices[torch.randperm(len(self.indices), generator=generator)]
        batches = order.split(self.batch_size)[: self._all]
        for number in range(self.start, self.batches):
            yield batches[(number * self.processes + self.process) % self._all].tolist()


def mix(*numbers: int) -> int:
    """One seed made of several numbers, such that neighbours give unrelated streams."""
    mixed = 0
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


class Collate:
    """Items to a batch: pictures (B, 3, H, W), embeddings (B, N, D), mask (B, N)."""

    def __init__(self, cache: EmbeddingCache) -> None:
        self.cache = cache

    def __call__(self, items: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        pictures = torch.stack([item["image"] for item in items])
        return pictures, *self.cache([item["caption"] for item in items])


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Of optimizer step ``step`` (from 0) of ``steps``: up to ``peak`` linearly, then down to 0."""
    return peak * min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1), 1.0)


def make_accelerator(device: torch.device, precision: str, accum_iter: int) -> Accelerator:
    """An Accelerator of its own for every stage, because each may have another precision.

    To be made before any stage trains: all Accelerators share a state, which this replaces.
    """
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=accum_iter,
        # torch has one cache of weights at low precision: any stage's step would empty it
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
    )


def prepare_stage(stage: Stage, device: torch.device) -> Stage:
    """The stage on its device, its convolutions in the faster memory layout."""
    return stage.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class StageTrainer:
    """Trains one stage; ``run`` is the loop.

    Several of them may run at the same time, each in a thread of its own, but for those whose U-Net
    has dropout: it draws from torch's one generator.

    stage:       the module to train, on any device
    index:       its number in the cascade
    config:      of the training
    stages:      how many stages the cascade has, for values of the configuration that are per stage
    dataset:     items {"image": (3, H, W), "caption": str}, pictures at least at the stage's side
    train, valid: indices into it
    cache:       embeddings of all its captions
    text_dropout: share of captions hidden
    precision:   "fp32", "bf16" or "fp16"

    ``ema`` is a copy of the stage with the averaged weights.
    """

    def __init__(
        self,
        stage: Stage,
        index: int,
        config: TrainConfig,
        stages: int,
        dataset: Dataset[dict[str, object]],
        train: Sequence[int],
        valid: Sequence[int],
        cache: EmbeddingCache,
        text_dropout: float,
        device: torch.device,
        precision: str,
    ) -> None:
        self.accelerator = make_accelerator(device, precision, config.accum_iter)
        self.device, self.precision = self.accelerator.device, precision
        self.index, self.config, self.text_dropout = index, config, text_dropout
        self.lr = config.per_stage("optim_lr", stages)[index]
        self.epochs = config.per_stage("epochs", stages)[index]
        self.batch_size = config.per_stage("batch_size", stages)[index]
        self.stage = prepare_stage(stage, self.device).train()
        self.ema = copy.deepcopy(self.stage).eval().requires_grad_(False)
        self._current: list[Tensor] = list(self.stage.parameters())
        self._averages: list[Tensor] = list(self.ema.parameters())
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(
            self.stage.parameters(), self.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused
        )
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self._batches = EpochBatches(
            train, self.batch_size, mix(config.seed, index), config.accum_iter, rank, processes
        )
        self._collate = Collate(cache)
        # Not prepared by accelerate, whose loaders and accumulation are known to all Accelerators.
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            collate_fn=self._collate,
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else iterating draws from the global one
        )
        self._dataset, self._valid = dataset, list(valid)
        self.model, self._optimizer = self.accelerator.prepare(self.stage, optimizer)
        self.batches = self._batches.batches  # of an epoch, for this process
        self.steps = self.epochs * -(-self.batches // config.accum_iter)
        self._draws = torch.Generator().manual_seed(mix(config.seed, index, rank, 1))
        self._dropout = self.stage.unet.config.dropout > 0  # all that draws from torch's generator
        self.epoch = self.batch = self.step = 0
        self.best = math.inf
        # sums over this epoch, float64 where there is one: loss, images
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        self._sums = torch.zeros(2, dtype=kind, device=self.device)
        self._resumed = False

    def run(self) -> Iterator[Record]:
        """Train to the end of the last epoch, from where ``load_state`` put it or the beginning.

        Raises RunError when a loss is not finite.
        """
        if self._dropout and not self._resumed:
            torch.manual_seed(mix(self.config.seed, self.index, self.accelerator.process_index))
        while self.epoch < self.epochs:
            began = time.perf_counter()
            yield from self._train_epoch()
            if self.accelerator.num_processes > 1:
                self._sums = self.accelerator.reduce(self._sums)
            self.check()
            train_loss = (self._sums[0] / self._sums[1]).item()
            valid_loss = self.validate()
            best = valid_loss < self.best
            self.best = min(valid_loss, self.best)
            self.epoch, self.batch = self.epoch + 1, 0
            self._sums.zero_()
            seconds = time.perf_counter() - began
            yield EpochRecord(self.index, self.epoch - 1, train_loss, valid_loss, best, seconds)

    def _train_epoch(self) -> Iterator[StepRecord]:
        config, accelerator = self.config, self.accelerator
        self._batches.epoch = self.epoch
        self._batches.start = self.batch
        if self.batch >= self.batches:
            return
        self.stage.train()
        rate, images, loss = 0.0, 0, torch.zeros((), device=self.device)
        before = time.perf_counter()
        for batch in self._loader:
            parts = (part.to(self.device, non_blocking=self._loader.pin_memory) for part in batch)
            pictures, text, mask = parts
            self.batch += 1
            steps = self.batch % config.accum_iter == 0 or self.batch == self.batches
            with nullcontext() if steps else accelerator.no_sync(self.model):
                draws = self.stage.draw(len(pictures), self.text_dropout, self._draws)
                losses = self.model(pictures, text, mask, draws.to(self.device))  # (B,)
                accelerator.backward(losses.mean())
            total = losses.detach().sum()
            self._sums[0] += total
            self._sums[1] += len(losses)
            loss, images = loss + total, images + len(losses)
            if not steps:
                continue
            accelerator.clip_grad_norm_(self._current, config.clip_norm)
            lr = learning_rate(self.step, self.steps, self.lr, config.warmup)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.step += 1
            decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, self._current, 1 - decay)
            if self.step % 20 == 0:
                self.check()
            now = time.perf_counter()
            everyone = images * accelerator.num_processes
            speed = everyone / (now - before)
            rate = speed if rate == 0 else 0.95 * rate + 0.05 * speed
            before = now
            yield StepRecord(
                self.index,
                self.epoch,
                self.step,
                self.steps,
                self.batch,
                everyone,
                loss / images,
                lr,
                rate,
            )
            images, loss = 0, torch.zeros((), device=self.device)

    def check(self) -> None:
        """Raise RunError when a loss of this epoch was not finite: nothing is saved then."""
        if not self._sums[0].isfinite():
            raise RunError(
                f"the loss of stage {self.index} is not finite any more in epoch {self.epoch + 1}, "
                "a smaller --OPTIM_LR or --PRECISION fp32 may help"
            )

    @torch.no_grad()
    def validate(self) -> float:
        """Loss of the averaged weights, mean over the validation pictures.

        Noise, times and levels are the same in every epoch, no caption is hidden, nothing is
        dropped: the curve can be compared from epoch to epoch.
        """
        self.ema.eval()
        generator = torch.Generator().manual_seed(mix(self.config.seed, self.index, 2))
        loader = DataLoader(
            self._dataset,
            batch_sampler=[
                self._valid[i : i + self.batch_size]
                for i in range(0, len(self._valid), self.batch_size)
            ],
            collate_fn=self._collate,
            num_workers=self.config.num_workers,
            generator=torch.Generator(),
        )
        total = 0.0
        for batch in loader:
            pictures, text, mask = (part.to(self.device) for part in batch)
            draws = self.ema.draw(len(pictures), 0.0, generator).to(self.device)
            kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
            with torch.autocast(self.device.type, kind, enabled=self.precision != "fp32"):
                total += self.ema(pictures, text, mask, draws).double().sum().item()
        return total / len(self._valid)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that ``load_state`` needs to go on exactly here: tensors, and JSON values.

        With several processes all must call it together. Raises RunError as ``run`` does.
        """
        self.check()
        tensors = {f"model.{k}": v for k, v in self.stage.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for i, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        random = {"draws": self._draws.get_state()}
        if self._dropout:
            random["torch"] = torch.get_rng_state()
            if self.device.type == "cuda":
                random["cuda"] = torch.cuda.get_rng_state(self.device)
        for rank, states in enumerate(gather_object([random])):
            tensors |= {f"random.{rank}.{k}": v for k, v in states.items()}
        scaler = self.accelerator.scaler
        return tensors | {"sums": self._sums}, {
            "stage": self.index,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "best": self.best if math.isfinite(self.best) else None,
            "precision": self.precision,
            "device": self.device.type,
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned. ``tensors`` is emptied, to free their memory.

        Raises ValueError when it belongs to another model.
        """

        def take(prefix: str) -> dict[str, Tensor]:
            names = [name for name in tensors if name.startswith(prefix)]
            return {name[len(prefix) :]: tensors.pop(name) for name in names}

        try:
            self.stage.load_state_dict(take("model."))
            self.ema.load_state_dict(take("ema."))
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in take("optimizer.").items():
                number, _, kind = name.partition(".")
                weight = self._current[int(number)]
                if value.shape == weight.shape:  # in the memory format of the weight
                    value = torch.empty_like(weight).copy_(value)
                moments.setdefault(int(number), {})[kind] = value
            saved = self._optimizer.state_dict()
            self._optimizer.load_state_dict({**saved, "state": moments})
            random = take(f"random.{self.accelerator.process_index}.")
            if random:  # none for a process that was not there before
                self._draws.set_state(random["draws"])
                if "torch" in random:
                    torch.set_rng_state(random["torch"])
                if "cuda" in random and self.device.type == "cuda":
                    torch.cuda.set_rng_state(random["cuda"], self.device)
            self._sums.copy_(tensors.pop("sums"))
            self.epoch, self.batch, self.step = (state[k] for k in ("epoch", "batch", "step"))
            self.best = math.inf if state["best"] is None else state["best"]
            if state["scaler"] and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, IndexError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[-1].strip()
            raise ValueError(f"the checkpoint does not fit the model: {reason}") from None
        finally:
            tensors.clear()
        self._resumed = True

    def stop_asked(self, stop: StopSignal) -> int:
        """The signal that any process got, 0 for none; all processes get the same answer."""
        if self.accelerator.num_processes == 1:
            return stop.number
        return int(
            self.accelerator.gather(torch.tensor([stop.number], device=self.device)).max().item()
        )
