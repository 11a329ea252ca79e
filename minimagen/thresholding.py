"""Thresholding keeps x_hat in the range of images, so that large guidance weights work.

Guidance pushes x_hat out of [-1, 1], the range of all training images. Clipping it makes colours
too strong; dynamic thresholding rescales each image instead (Imagen, 2205.11487, sec. 2.3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from minimagen.schedules import expand

Threshold = Literal["none", "static", "dynamic"]


def static_threshold(x: Tensor) -> Tensor:
    """Clamp x_hat to [-1, 1] (2205.11487, sec. 2.3). Any shape; x itself is not changed."""
    return x.clamp(-1, 1)


def dynamic_threshold(x: Tensor, percentile: float = 0.95) -> Tensor:
    """Clamp each image to its own range [-s, s] and divide by s (2205.11487, sec. 2.3).

    s is the `percentile` of the image's |x|, and at least 1, so that an image within [-1, 1] stays
    as it is. The paper does not give the percentile; others use 0.9, 0.95 or 0.995.
    x: (B, C, H, W), not changed. percentile: in (0, 1]. Returns (B, C, H, W) in [-1, 1].
    """
    # One image at a time: older versions of torch.quantile take at most 2^24 numbers.
    precise = x.abs().to(torch.promote_types(x.dtype, torch.float32))  # quantile takes no bfloat16
    s = torch.stack([torch.quantile(image.flatten(), percentile) for image in precise])
    s = expand(s.clamp(min=1).to(x.dtype), x)
    return x.clamp(-s, s) / s


def threshold(x: Tensor, kind: Threshold, percentile: float = 0.95) -> Tensor:
    """Apply `static_threshold`, `dynamic_threshold` or nothing ("none") to x_hat."""
    if kind == "none":
        return x
    return static_threshold(x) if kind == "static" else dynamic_threshold(x, percentile)
