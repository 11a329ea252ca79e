"""What several lessons' checks hold answers against, written out of the papers' formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine_alpha_sigma(t: Tensor, shift: float = 1.0) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of the cosine schedule (2102.09672, eq. 17), alpha / sigma times shift.

    t: (B,) in [0, 1]. Both come as (B, 1, 1, 1) in float64; log(alpha^2 / sigma^2) is kept within
    -20 and 20, as in the course.
    """
    angle = (t.detach().double().reshape(-1, 1, 1, 1) + 0.008) / 1.008 * math.pi / 2
    share = (torch.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    snr = (shift**2 * share / (1 - share)).clamp(math.exp(-20), math.exp(20))
    return (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()


def correlation(a: Tensor, b: Tensor) -> float:
    """Between the entries of two tensors, in [-1, 1]."""
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])
