"""Classifier-free guidance, and the thresholds that make large guidance weights usable."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from minimagen.diffusion import Denoiser
from minimagen.schedules import expand

Threshold = Literal["none", "static", "dynamic"]


def guide(x_cond: Tensor, x_uncond: Tensor, weight: float | Tensor) -> Tensor:
    """x_uncond + weight * (x_cond - x_uncond), exact at weight 0 and 1.

    The convention of the Imagen paper (2205.11487, eq. 2): eps~ = w eps(z, c) + (1 - w) eps(z), so
    w = 1 is off and w = 0 ignores the text; other projects write 1 + w for our w. The formula is
    linear, so it is the same for eps, x and v. Images (B, C, H, W); a tensor `weight` broadcasts.
    """
    return torch.lerp(x_uncond, x_cond, weight)


def weight_at(t: Tensor, weight: float, interval: tuple[float, float] | None = None) -> Tensor:
    """The guidance weight of each image at its time: `weight` inside the interval, 1 (off) outside.

    t: (B,) in [0, 1]. interval: (lo, hi), both included, 0 <= lo <= hi <= 1; None for always
    (Kynkaanniemi et al., 2404.07724). Returns (B,).
    Raises ValueError for an interval that is not of this form.
    """
    if interval is None:
        return torch.full_like(t, weight)
    lo, hi = interval
    if not 0 <= lo <= hi <= 1:
        raise ValueError(f"guidance interval must be 0 <= lo <= hi <= 1, got ({lo}, {hi})")
    return torch.where((t >= lo) & (t <= hi), torch.full_like(t, weight), 1.0)


def classifier_free(
    cond: Denoiser,
    uncond: Denoiser,
    weight: float,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """A denoiser guided by `weight` where t lies in `interval` (Ho and Salimans, 2207.12598).

    `uncond` is not called where guidance is off for the whole batch. Arguments as in `guide` and
    `weight_at`; the denoiser returned raises ValueError as `weight_at` does.
    """

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        w = weight_at(t, weight, interval)  # (B,)
        x_cond = cond(z, t)
        if bool((w == 1).all()):
            return x_cond
        return guide(x_cond, uncond(z, t), expand(w, z))

    return denoise


def static_threshold(x: Tensor) -> Tensor:
    """Clamp x_hat to [-1, 1] (2205.11487, sec. 2.3). Any shape; x itself is not changed."""
    return x.clamp(-1, 1)


def dynamic_threshold(x: Tensor, percentile: float = 0.95) -> Tensor:
    """Clamp each image to its own range [-s, s] and divide by s (2205.11487, sec. 2.3).

    s is the `percentile` of the image's |x|, at least 1, so that an image within [-1, 1] stays as
    it is. The paper leaves the percentile open; others use 0.9, 0.95 or 0.995.
    x: (B, C, H, W), not changed. percentile: in (0, 1]. Returns (B, C, H, W) in [-1, 1].
    Raises ValueError for a percentile outside (0, 1].
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile must lie in (0, 1], for example 0.95, got {percentile}")
    # One image at a time: older versions of torch.quantile take at most 2^24 numbers in all.
    precise = x.abs().to(torch.promote_types(x.dtype, torch.float32))  # quantile takes no bfloat16
    s = torch.stack([torch.quantile(image.flatten(), percentile) for image in precise])
    s = expand(s.clamp(min=1).to(x.dtype), x)
    return x.clamp(-s, s) / s


def threshold(x: Tensor, kind: Threshold, percentile: float = 0.95) -> Tensor:
    """x_hat as it is ("none"), or through `static_threshold` or `dynamic_threshold`.

    Shapes and errors as there; raises ValueError for an unknown kind.
    """
    if kind not in get_args(Threshold):
        raise ValueError(f"threshold must be one of none, static, dynamic, got {kind!r}")
    if kind == "none":
        return x
    return static_threshold(x) if kind == "static" else dynamic_threshold(x, percentile)
