"""Random numbers for training: each purpose has a stream of its own, made of a few integers.

No generator has to be saved with a checkpoint: the noise of step 1234 can be drawn again from its
number.
"""

from __future__ import annotations

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """One seed made of several numbers >= 0, such that neighbours give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU whose stream depends on these numbers >= 0 alone."""
    return torch.Generator().manual_seed(seed_of(*numbers))
