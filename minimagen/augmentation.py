"""Noise conditioning augmentation: super-resolution trains on noisy low-resolution images.

Without it, a super-resolution stage trains on clean low-resolution images, but samples from
generated ones, which have small mistakes. So in training, noise is added to the low-resolution
image, at a random level that the network gets as an input. In sampling, a small fixed level hides
the mistakes of the earlier stage (Ho et al., 2106.15282; Imagen, 2205.11487, sec. 2.4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimagen.diffusion import q_sample
from minimagen.schedules import NoiseSchedule, expand


def augment(lowres: Tensor, level: Tensor, noise: Tensor, schedule: NoiseSchedule) -> Tensor:
    """alpha lowres + sigma noise, with (alpha, sigma) the schedule's at time t = level.

    Training and sampling both use this function, after the image has been scaled to [-1, 1] and
    resized to the stage's side length.

    lowres: (B, C, H, W) in [-1, 1].
    level: (B,) in [0, 1], one per image. 0 leaves the image as it is (to 4.5e-5, the smallest sigma
        of a schedule); 1 leaves only noise, if the schedule reaches it (cosine does).
    noise: standard normal, like lowres.
    Returns (B, C, H, W). Raises ValueError if `level` is not one number per image.
    """
    alpha, sigma = schedule.alpha_sigma(expand(level, lowres))
    return q_sample(lowres, noise, alpha, sigma)


def random_levels(batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Levels for training, uniform in [0, 1), independent for each image: (batch,) on the CPU."""
    return torch.rand(batch, generator=generator)


def level_weight(level: Tensor, power: float) -> Tensor:
    """Weight of the loss of an image whose condition has noise of ``level``, (B,) -> (B,).

    (power + 1) (1 - level)^power, with mean 1 over the levels of training; power >= 0, 0 gives all
    levels the same weight. At high levels, little of the low-resolution image is left, and the
    stage must guess the whole image, which is the task of the base stage. These losses are the
    largest: without weights, a small network would learn that instead of sharp edges. (This weight
    is ours, not the paper's.)
    """
    return (power + 1) * (1 - level) ** power
