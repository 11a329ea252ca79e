"""Noise conditioning augmentation: super-resolution learns to distrust its low-resolution image.

The stages of a cascade are trained on clean low-resolution images but sample from generated,
slightly wrong ones. So the condition is noised in training, at a random level that the network is
told; when sampling, a small fixed level covers the earlier stage's mistakes (Ho et al., 2106.15282;
Imagen, 2205.11487, sec. 2.4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimagen.diffusion import q_sample
from minimagen.schedules import NoiseSchedule, expand


def augment(lowres: Tensor, level: Tensor, noise: Tensor, schedule: NoiseSchedule) -> Tensor:
    """alpha lowres + sigma noise, with (alpha, sigma) the schedule's at time t = level.

    The one place where the condition is noised, in training and in sampling: after the image has
    been scaled to [-1, 1] and resized to the stage's side length.

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
    """Weight of the loss of an image whose condition was noised to ``level``, (B,) -> (B,).

    (power + 1) (1 - level)^power, with mean 1 over the levels of training; power >= 0, 0 weighs all
    alike. Where little is left of the low-resolution image, the stage has to guess the whole
    image, which is the base stage's work: these losses are the largest, and without weights a
    small network learns that instead of sharp edges. (Ours, not the paper's.)
    """
    return (power + 1) * (1 - level) ** power
