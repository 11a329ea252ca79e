"""Random numbers for training: each purpose has its own stream, given by a few integers.

A checkpoint needs no state of a generator: the noise of step 1234 can be made again from that
number.
"""

from __future__ import annotations

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """One seed made of several integers >= 0; similar integers give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU; its stream depends only on these integers >= 0."""
    return torch.Generator().manual_seed(seed_of(*numbers))
