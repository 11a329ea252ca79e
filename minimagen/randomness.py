"""Random numbers for training: a stream for each purpose, named by the seed and a few integers.

A checkpoint needs no state of a generator: the noise of step 1234 can be made again from that
number.
"""

from __future__ import annotations

import numpy as np
import torch

SPLIT, ORDER, NOISE, DROPOUT, VALIDATION, WHITENING, PICTURE = range(7)  # purposes


def seed_of(seed: int, *stream: int) -> int:
    """A seed in [0, 2^32) for one stream of a seed; similar streams are unrelated.

    stream: its purpose, then numbers such as the stage, the epoch and the batch, all >= 0
    """
    return int(np.random.SeedSequence(seed, spawn_key=stream).generate_state(1)[0])


def generator(seed: int, *stream: int) -> torch.Generator:
    """A generator on the CPU for one stream of a seed, see ``seed_of``."""
    return torch.Generator().manual_seed(seed_of(seed, *stream))
