"""The Gaussian diffusion process, in closed form, and what a network may predict about it.

These symbols have the same meaning in the whole package:

    x          clean image in [-1, 1], shape (B, C, H, W)
    eps        standard normal noise, like x
    t          time in [0, 1], shape (B,): 0 clean, 1 noise; s is an earlier time, s < t
    alpha      how much of the signal is left at time t
    sigma      how much noise is there; variance preserving, alpha^2 + sigma^2 = 1
    z          noisy image, z = alpha x + sigma eps
    log_snr    log(alpha^2 / sigma^2)
    v          alpha eps - sigma x (Salimans and Ho, 2202.00512, app. D)
    score      gradient of log q(z | x) with respect to z, -eps / sigma

`alpha`, `sigma` and `log_snr` are tensors that broadcast against the images, usually (B, 1, 1, 1):
see `schedules.expand`. None of these functions changes its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Parameterization = Literal["eps", "x", "v"]
Weighting = Literal["uniform", "min_snr", "clamped_snr"]

# The one interface between model and sampler: denoise(z, t) -> x_hat, z (B, C, H, W), t (B,).
Denoiser = Callable[[Tensor, Tensor], Tensor]


# --- forward: from clean to noisy ---------------------------------------------------------------


def q_sample(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """A draw z = alpha x + sigma eps of q(z_t | x) (DDPM, 2006.11239, eq. 4); shapes as x."""
    return alpha * x + sigma * eps


def posterior_coefficients(log_snr_s: Tensor, log_snr_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(k_x, k_z, variance) such that q(z_s | z_t, x) = N(k_x x + k_z z_t, variance), s < t.

    DDPM (2006.11239, eq. 6-7) in the form of VDM (2107.00630, app. A), with SNR ratios as
    exponentials, so that no digits are lost: 1 - SNR_t / SNR_s = -expm1(log_snr_t - log_snr_s).
    log_snr_s > log_snr_t, any shape; log_snr_s = inf is the clean end (x itself, variance 0).
    """
    fresh = -torch.expm1(log_snr_t - log_snr_s)  # share of the noise at t that s does not have
    log_alpha_s, log_alpha_t = logsigmoid(log_snr_s) / 2, logsigmoid(log_snr_t) / 2
    k_x = torch.exp(log_alpha_s) * fresh
    k_z = torch.exp(log_snr_t - log_snr_s + log_alpha_s - log_alpha_t)
    return k_x, k_z, torch.sigmoid(-log_snr_s) * fresh


def posterior(
    x: Tensor, z_t: Tensor, log_snr_s: Tensor, log_snr_t: Tensor
) -> tuple[Tensor, Tensor]:
    """(mean, variance) of q(z_s | z_t, x) for s < t (DDPM, 2006.11239, eq. 6-7).

    x, z_t: (B, C, H, W). log_snr_s > log_snr_t: broadcastable, so is the variance returned.
    """
    k_x, k_z, variance = posterior_coefficients(log_snr_s, log_snr_t)
    return k_x * x + k_z * z_t, variance


# --- conversions: given z, any one of x, eps, v and score determines the others -------------------
# (2202.00512, app. D for v; Tweedie's formula for the score.) All images (B, C, H, W).


def x_from_eps(eps: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x = (z - sigma eps) / alpha; ill-conditioned near t = 1, where alpha is small."""
    return (z - sigma * eps) / alpha


def x_from_v(v: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x = alpha z - sigma v; well-conditioned at every t."""
    return alpha * z - sigma * v


def x_from_score(score: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x = (z + sigma^2 score) / alpha (Tweedie)."""
    return (z + sigma**2 * score) / alpha


def eps_from_x(x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps = (z - alpha x) / sigma; ill-conditioned near t = 0, where sigma is small."""
    return (z - alpha * x) / sigma


def eps_from_v(v: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps = sigma z + alpha v; well-conditioned at every t."""
    return sigma * z + alpha * v


def eps_from_score(score: Tensor, sigma: Tensor) -> Tensor:
    """eps = -sigma score."""
    return -sigma * score


def v_from_x(x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = (alpha z - x) / sigma."""
    return (alpha * z - x) / sigma


def v_from_eps(eps: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = (eps - sigma z) / alpha."""
    return (eps - sigma * z) / alpha


def v_from_score(score: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = -sigma (score + z) / alpha."""
    return -sigma * (score + z) / alpha


def score_from_x(x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """score = (alpha x - z) / sigma^2."""
    return (alpha * x - z) / sigma**2


def score_from_eps(eps: Tensor, sigma: Tensor) -> Tensor:
    """score = -eps / sigma."""
    return -eps / sigma


def score_from_v(v: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """score = -z - alpha v / sigma."""
    return -z - alpha * v / sigma


# --- parameterisations: what the network's output means ------------------------------------------


def target(
    parameterization: Parameterization, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """What the network should predict: eps, x or v = alpha eps - sigma x. Shapes as x."""
    if parameterization == "eps":
        return eps
    return x if parameterization == "x" else alpha * eps - sigma * x


def to_x(
    parameterization: Parameterization, out: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """The clean image x_hat that the network's output `out` means. Shapes as z."""
    if parameterization == "eps":
        return x_from_eps(out, z, alpha, sigma)
    return out if parameterization == "x" else x_from_v(out, z, alpha, sigma)


def loss_weight(
    weighting: Weighting,
    parameterization: Parameterization,
    log_snr: Tensor,
    gamma: float = 5.0,
    floor: float = 0.1,
) -> Tensor:
    """Factor on the parameterization's own squared error. Shape as log_snr.

    "uniform" is 1. "min_snr" weights the error of x by min(SNR, gamma), whatever the network
    predicts (Hang et al., 2303.09556, sec. 3). Since |eps error|^2 = SNR |x error|^2 and
    |v error|^2 = (SNR + 1) |x error|^2, the weights of eps and v are divided by SNR and SNR + 1.
    Near t = 1 this weight vanishes, but these times decide what the whole image shares, such as
    its background. So "clamped_snr" keeps the SNR at ``floor`` or above. 0 < floor < gamma.
    """
    if weighting == "uniform":
        return torch.ones_like(log_snr)
    lowest = math.log(floor) if weighting == "clamped_snr" else -math.inf
    log_clipped = log_snr.clamp(lowest, math.log(gamma))
    if parameterization == "eps":
        return torch.exp(log_clipped - log_snr)
    if parameterization == "v":
        return torch.exp(log_clipped) * torch.sigmoid(-log_snr)  # 1 / (SNR + 1) = sigma^2
    return torch.exp(log_clipped)


def diffusion_loss(
    parameterization: Parameterization,
    out: Tensor,
    x: Tensor,
    eps: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    weighting: Weighting = "uniform",
    gamma: float = 5.0,
) -> Tensor:
    """Weighted mean squared error of the network's output, one number per image: (B,).

    out, x, eps: (B, C, H, W). alpha, sigma: (B, 1, 1, 1), neither 0. With "eps" and "uniform" this
    is DDPM's simple loss (2006.11239, eq. 14).
    """
    weight = loss_weight(weighting, parameterization, 2 * torch.log(alpha / sigma), gamma)
    error = (out - target(parameterization, x, eps, alpha, sigma)) ** 2
    return (weight * error).flatten(1).mean(1)  # (B, C, H, W) -> (B, C*H*W) -> (B,)
