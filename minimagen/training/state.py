"""Everything that changes while a stage trains, and how a checkpoint stores it."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from minimagen.imagen import Stage
from minimagen.optimizer import Muon, split
from minimagen.run_directory import CheckpointState


class TrainingState:
    """A stage on its device, its averaged copy, the optimizer, and the progress of the training.

    stage:      the module to train
    ema:        a copy of the stage with the moving average of its weights
    epoch, batch, step: epochs done, batches done of this epoch, optimizer steps done
    best:       the lowest validation loss so far
    sums:       sum of the losses of this epoch, and number of images: (2,)
    """

    def __init__(self, stage: Stage, device: torch.device) -> None:
        # channels last is the faster memory layout for convolutions
        self.stage = stage.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.stage).eval().requires_grad_(False)
        self.optimizer = Muon(*split(self.stage.unet), fused=device.type in ("cpu", "cuda"))
        self.epoch = self.batch = self.step = 0
        self.best = math.inf
        kind = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(2, dtype=kind, device=device)

    def save(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Everything that ``load`` needs to go on from exactly here: tensors, and JSON values."""
        tensors = {f"model.{k}": v for k, v in self.stage.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        return tensors | {"sums": self.sums}, {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "best": self.best if math.isfinite(self.best) else None,
        }

    def load(self, tensors: dict[str, Tensor], state: CheckpointState) -> None:
        """Go on from what ``save`` returned. ``tensors`` is emptied, to free the memory.

        It must be of this model: ``TrainingDirectory.check_results`` has compared the shapes.
        """

        def take(prefix: str) -> dict[str, Tensor]:
            names = [name for name in tensors if name.startswith(prefix)]
            return {name[len(prefix) :]: tensors.pop(name) for name in names}

        self.stage.load_state_dict(take("model."))
        self.ema.load_state_dict(take("ema."))
        weights = [weight for part in split(self.stage.unet) for weight in part]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in take("optimizer.").items():
            number, _, kind = name.partition(".")
            weight = weights[int(number)]
            if kind != "step":  # in the memory format of the weight
                value = torch.empty_like(weight).copy_(value)
            moments.setdefault(int(number), {})[kind] = value
        saved = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**saved, "state": moments})
        self.sums.copy_(tensors.pop("sums"))
        self.epoch, self.batch, self.step = state.epoch, state.batch, state.step
        self.best = math.inf if state.best is None else state.best
        tensors.clear()
