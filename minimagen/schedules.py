"""Noise schedules: how much signal is left at time t.

Time runs from t = 0 (clean) to t = 1 (noise) and is continuous. A schedule is one function,
`log_snr(t) = log(alpha^2 / sigma^2)`; everything else follows from it because the process is
variance preserving, alpha^2 + sigma^2 = 1. The symbols are those of the table in `diffusion.py`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Interval, Le
from torch import Tensor

from minimagen.settings import settings

ScheduleName = Literal["cosine", "linear"]

# log_snr is infinite at the ends of the cosine schedule; at +-20 the smaller of alpha and sigma is
# 4.5e-5, invisible in an image yet safe to divide by.
LOG_SNR_MIN, LOG_SNR_MAX = -20.0, 20.0


@settings
class NoiseSchedule:
    """A variance-preserving noise schedule in continuous time.

    name: "cosine" (Nichol and Dhariwal, 2102.09672, eq. 17, s = 0.008) or "linear" (the betas of
        DDPM, Ho et al., 2006.11239, sec. 4: 1e-4 to 0.02 in 1000 steps, their product made
        continuous; it ends at alpha = 0.006, not quite noise).
    shift: factor on alpha/sigma, > 0; below 1 means more noise. A larger image needs more noise
        to lose as much information: shift = 64 / side length in Hoogeboom et al., 2301.11093,
        sec. 3.1.

    Raises ValueError for an unknown name or a shift that is not positive and finite.
    """

    name: ScheduleName = "cosine"  # shape of log_snr over time
    shift: Annotated[float, Interval(gt=0), Le(1000)] = 1.0  # of alpha/sigma; 1 leaves it as it is

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), decreasing in t, clamped to [-20, 20].

        t: any shape, floating point, in [0, 1]. Returns the same shape and dtype.
        """
        log_snr = _cosine_log_snr(t) if self.name == "cosine" else _linear_log_snr(t)
        return (log_snr + 2 * math.log(self.shift)).clamp(LOG_SNR_MIN, LOG_SNR_MAX)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), with alpha^2 + sigma^2 = 1. t: any shape, in [0, 1]; same result.

        The clamp of log_snr keeps both above 4.5e-5, so that division by either is safe.
        """
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def times(self, timesteps: int, steps: int | None = None) -> Tensor:
        """The steps + 1 times that a sampler visits, from 1 down to 0.

        timesteps: number of intervals of the grid i / timesteps, at least 1.
        steps: how many steps to take, spread evenly over the grid, in [1, timesteps]; None for all.
        Returns (steps + 1,) in float64 on the CPU, strictly decreasing, every one on the grid.
        """
        steps = timesteps if steps is None else steps
        i = torch.arange(steps, -1, -1)
        return (i * timesteps // steps).double() / timesteps  # whole multiples of the grid


def expand(a: Tensor, x: Tensor) -> Tensor:
    """Give `a`, one number per image, the dimensions of the images: (B,) -> (B, 1, 1, 1).

    Raises ValueError if `a` is not (B,) for the B images of x.
    """
    if a.shape != x.shape[:1]:
        raise ValueError(
            f"expected one value per image, shape ({x.shape[0]},), got {tuple(a.shape)}"
        )
    return a.reshape(-1, *[1] * (x.ndim - 1))  # (B,) -> (B, 1, 1, 1)


def _cosine_log_snr(t: Tensor, s: float = 0.008) -> Tensor:
    """alpha^2 = cos^2(a_t) / cos^2(a_0), a_t = (t + s) / (1 + s) * pi / 2 (2102.09672, eq. 17).

    Written with sines only: in float32, cos(a_t) near t = 1 and 1 - alpha^2 near t = 0 would lose
    all their digits. cos(a_t) = sin(pi/2 - a_t), and
    sigma^2 = (cos^2(a_0) - cos^2(a_t)) / cos^2(a_0) = sin(a_t - a_0) sin(a_t + a_0) / cos^2(a_0).
    """
    unit = math.pi / 2 / (1 + s)
    signal = 2 * torch.sin(unit * (1 - t)).log()
    noise = torch.sin(unit * t).log() + torch.sin(unit * (t + 2 * s)).log()
    return signal - noise


def _linear_log_snr(
    t: Tensor, steps: int = 1000, first: float = 1e-4, last: float = 0.02
) -> Tensor:
    """log alpha^2 = steps * integral_0^t log(1 - beta(u)) du, beta linear (2006.11239, eq. 4).

    beta((i + 1/2) / steps) is DDPM's beta_i, so the midpoint rule gives DDPM's product back: the
    two agree to about 1e-8. With log(1 - beta) = -sum_n beta^n / n and beta running from b0 to b,
    the integral is -t * sum_n S_n / (n (n + 1)), S_n = sum_j b^j b0^(n - j). This subtracts no
    large numbers, and six terms are exact to 1e-11, because beta <= 0.02.
    """
    slope = (last - first) * steps / (steps - 1)
    b0 = first - slope / (2 * steps)
    b = b0 + slope * t
    mean, power_sum = torch.zeros_like(t), torch.ones_like(t)
    for n in range(1, 7):
        power_sum = b * power_sum + b0**n  # S_n from S_(n-1)
        mean = mean + power_sum / (n * (n + 1))
    log_alpha2 = -steps * t * mean
    return log_alpha2 - torch.log(-torch.expm1(log_alpha2))
