"""Which precision of the arithmetic is faster here: measured, because processors differ widely."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from minimagen.imagen import Stage


def faster_precision(
    stage: Stage, batch: tuple[Tensor, Tensor, Tensor], device: torch.device, seed: int
) -> tuple[str, dict[str, float]]:
    """Precision "bf16" where its steps take less than 0.9 of the time of "fp32", else "fp32".

    stage: on ``device``; its weights stay as they are. Returns also the seconds a step of each.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures, text, mask = (part.to(device) for part in batch)
    draws = stage.draw(len(pictures), 0.0, generator).to(device)
    # The lowest of several, taken in turn: another program may take the machine for a while.
    seconds = {"fp32": math.inf, "bf16": math.inf}
    with torch.random.fork_rng():  # dropout draws too
        for trial in range(6):
            for name in seconds:
                began = time.perf_counter()
                with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
                    loss = stage(pictures, text, mask, draws).mean()
                loss.backward()
                loss.item()  # waits for the device
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if trial > 0:  # the first is for warming up
                    seconds[name] = min(seconds[name], time.perf_counter() - began)
    stage.zero_grad(set_to_none=True)
    return ("bf16" if seconds["bf16"] < 0.9 * seconds["fp32"] else "fp32"), seconds
