"""Samplers: from noise to an image, one step at a time.

Every sampler is a generator with one signature,

    sampler(denoise, z, schedule, times, randn=None, *, eta=0.0)

    denoise    z (B, C, H, W), t (B,) -> x_hat (B, C, H, W), the expected clean image
    z          state at times[0], (B, C, H, W): standard normal noise when times[0] = 1
    schedule   the NoiseSchedule the denoiser was trained with
    times      strictly decreasing in [0, 1], (steps + 1,): see `NoiseSchedule.times`
    randn      returns new standard normal noise, shaped like z, at each call: see `NoiseSource`
    eta        how much of the noise DDIM renews in each step, in [0, 1]

It yields the state after each step; the last state is the sample. A sampler ignores `randn` or
`eta` if it does not need them, so that all entries of `SAMPLERS` are called in the same way. Like
every generator, it raises its ValueErrors at the first step. Coefficients are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimagen.diffusion import Denoiser, posterior_coefficients
from minimagen.schedules import NoiseSchedule

RandN = Callable[[], Tensor]
Sampler = Callable[..., Iterator[Tensor]]


class NoiseSource:
    """Standard normal noise, one random generator per image: image i depends only on seeds[i].

    seeds: one integer in [0, 2^63) per image.
    shape: of one image, (C, H, W).
    device: of the result; the noise is made on the CPU, so that it is the same on every device.
    stream: number of an independent stream of each seed; each stage of a cascade has its own.

    Each call returns new noise (B, C, H, W), float32.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        stream: int = 0,
    ) -> None:
        self.shape = tuple(shape)
        self.device = device
        # Torch's CPU generator takes 32 bits of seed; SeedSequence mixes seed and stream into them.
        self._generators = [
            torch.Generator().manual_seed(
                int(np.random.SeedSequence(s, spawn_key=(stream,)).generate_state(1)[0])
            )
            for s in seeds
        ]

    def __call__(self) -> Tensor:
        """New noise, (B, C, H, W)."""
        noise = [torch.randn(self.shape, generator=g) for g in self._generators]
        return torch.stack(noise).to(self.device)


def ddpm(
    denoise: Denoiser,
    z: Tensor,
    schedule: NoiseSchedule,
    times: Tensor,
    randn: RandN | None = None,
    *,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """Ancestral sampling: z_s from q(z_s | z_t, x = x_hat) (DDPM, 2006.11239, alg. 2, eq. 6-7).

    Arguments as at the top of this file. Raises ValueError without `randn`, or for bad `times`.
    """
    if randn is None:
        raise ValueError("the ddpm sampler adds noise: give it randn, for example a NoiseSource")
    for now, then in pairwise(_levels(schedule, times)):
        k_x, k_z, variance = posterior_coefficients(_scalar(then.log_snr), _scalar(now.log_snr))
        z = k_x.item() * denoise(z, _time(now, z)) + k_z.item() * z
        if then.sigma > 0:
            z = z + math.sqrt(variance.item()) * randn()
        yield z


def ddim(
    denoise: Denoiser,
    z: Tensor,
    schedule: NoiseSchedule,
    times: Tensor,
    randn: RandN | None = None,
    *,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """Keep x_hat and eps_hat, change their proportion (DDIM, 2010.02502, eq. 12 and 16).

    eta = 0 is deterministic, a first-order solver of the probability-flow ODE; eta = 1 is `ddpm`.
    Arguments as at the top of this file. Raises ValueError for bad `times`, or without `randn` if
    eta > 0.
    """
    if eta > 0 and randn is None:
        raise ValueError("the ddim sampler with eta > 0 adds noise: give it randn")
    for now, then in pairwise(_levels(schedule, times)):
        x = denoise(z, _time(now, z))
        eps = (z - now.alpha * x) / now.sigma
        renewed = -(eta**2) * math.expm1(now.log_snr - then.log_snr)  # share of then's variance
        z = then.alpha * x + then.sigma * math.sqrt(1 - renewed) * eps
        if randn is not None and renewed > 0 and then.sigma > 0:
            z = z + then.sigma * math.sqrt(renewed) * randn()
        yield z


def dpm_solver_pp_2m(
    denoise: Denoiser,
    z: Tensor,
    schedule: NoiseSchedule,
    times: Tensor,
    randn: RandN | None = None,
    *,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """DPM-Solver++(2M): extrapolates x_hat from the last two steps (2211.01095, alg. 2).

    Second order with one call of the denoiser per step; the first step and the step to t = 0 are
    DDIM steps.
    Arguments as at the top of this file. Raises ValueError for bad `times`.
    """
    last_x, last_h = None, 0.0
    for now, then in pairwise(_levels(schedule, times)):
        x = denoise(z, _time(now, z))
        h = _h(now, then)
        if last_x is not None and last_h > 0 and math.isfinite(h):
            z = _step(z, x + h / (2 * last_h) * (x - last_x), now, then)
        else:
            z = _step(z, x, now, then)
        last_x, last_h = x, h
        yield z


def heun(
    denoise: Denoiser,
    z: Tensor,
    schedule: NoiseSchedule,
    times: Tensor,
    randn: RandN | None = None,
    *,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """Heun's method: step, predict x_hat there, and repeat the step with the mean of both x_hats.

    Second order with two calls of the denoiser per step; as in EDM (2206.00364, alg. 1) the step to
    t = 0 is not corrected. EDM takes its steps in z / alpha, which is infinite at t = 1. Here the
    mean x_hat goes into the exponential form (2211.01095, eq. 8), which is finite at t = 1 and
    exact for a constant x_hat.
    Arguments as at the top of this file. Raises ValueError for bad `times`.
    """
    for now, then in pairwise(_levels(schedule, times)):
        x = denoise(z, _time(now, z))
        guess = _step(z, x, now, then)
        if then.sigma > 0:
            x = (x + denoise(guess, _time(then, z))) / 2
            guess = _step(z, x, now, then)
        z = guess
        yield z


SamplerName = Literal["ddpm", "ddim", "dpmpp", "heun"]
SAMPLERS: dict[SamplerName, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp": dpm_solver_pp_2m,
    "heun": heun,
}


class _Point(NamedTuple):
    """The schedule at one of the times, in float64."""

    t: float
    log_snr: float
    alpha: float
    sigma: float


def _levels(schedule: NoiseSchedule, times: Tensor) -> list[_Point]:
    """The schedule at every time. t = 0 counts as exactly clean: log_snr = inf, sigma = 0."""
    times = times.double().cpu()
    inside = bool((times >= 0).all() and (times <= 1).all())
    if times.ndim != 1 or len(times) < 2 or not inside or bool((times.diff() >= 0).any()):
        raise ValueError("times must be at least two strictly decreasing numbers in [0, 1]")
    log_snr = torch.where(times > 0, schedule.log_snr(times), math.inf)
    alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    columns = (times, log_snr, alpha, sigma)
    return [_Point(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def _step(z: Tensor, x: Tensor, now: _Point, then: _Point) -> Tensor:
    """Solve the ODE exactly for an x_hat that is constant over the step (2211.01095, eq. 8-9)."""
    return then.sigma / now.sigma * z - then.alpha * math.expm1(-_h(now, then)) * x


def _h(now: _Point, then: _Point) -> float:
    """Step size in lambda = log(alpha / sigma), the time variable of 2211.01095."""
    return (then.log_snr - now.log_snr) / 2


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _time(level: _Point, z: Tensor) -> Tensor:
    return torch.full((z.shape[0],), level.t, dtype=z.dtype, device=z.device)  # (B,)
