"""Classifier-free guidance: combine what one network predicts with and without the caption."""

from __future__ import annotations

import torch
from torch import Tensor

from minimagen.diffusion import Denoiser
from minimagen.schedules import expand


def guide(x_cond: Tensor, x_uncond: Tensor, weight: float | Tensor) -> Tensor:
    """x_uncond + weight * (x_cond - x_uncond), exact at weight 0 and 1.

    The convention of the Imagen paper (2205.11487, eq. 2): eps~ = w eps(z, c) + (1 - w) eps(z), so
    w = 1 is off and w = 0 ignores the text; other projects write 1 + w where we write w. The
    formula is linear, so it is the same for eps, x and v. Images are (B, C, H, W); a tensor
    `weight` broadcasts.
    """
    return torch.lerp(x_uncond, x_cond, weight)


def weight_at(t: Tensor, weight: float, interval: tuple[float, float] | None = None) -> Tensor:
    """The guidance weight of each image at its time: `weight` inside the interval, 1 (off) outside.

    t: (B,) in [0, 1]. interval: (lo, hi), both included, 0 <= lo <= hi <= 1; None: all times
    (Kynkaanniemi et al., 2404.07724). Returns (B,).
    """
    if interval is None:
        return torch.full_like(t, weight)
    lo, hi = interval
    return torch.where((t >= lo) & (t <= hi), torch.full_like(t, weight), 1.0)


def classifier_free(
    cond: Denoiser,
    uncond: Denoiser,
    weight: float,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """A denoiser guided by `weight` where t lies in `interval` (Ho and Salimans, 2207.12598).

    `uncond` is not called where guidance is off for the whole batch. Arguments as in `guide` and
    `weight_at`.
    """

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        w = weight_at(t, weight, interval)  # (B,)
        x_cond = cond(z, t)
        if bool((w == 1).all()):
            return x_cond
        return guide(x_cond, uncond(z, t), expand(w, z))

    return denoise
