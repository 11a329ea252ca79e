"""diffusion.py: the closed forms against Bayes on a grid, each other and diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from scipy.stats import norm

from minimagen import diffusion
from minimagen.diffusion import (
    diffusion_loss,
    loss_weight,
    posterior,
    posterior_coefficients,
    q_sample,
    target,
    to_x,
)
from minimagen.schedules import NoiseSchedule, expand

PARAMETERIZATIONS = ["eps", "x", "v"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def noisy():
    """A float64 batch at five times: every quantity known from its definition."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, 4, 4, generator=g, dtype=torch.float64) * 2 - 1
    eps = torch.randn(5, 3, 4, 4, generator=g, dtype=torch.float64)
    t = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    alpha, sigma = NoiseSchedule().alpha_sigma(expand(t, x))
    z = q_sample(x, eps, alpha, sigma)
    known = {"x": x, "eps": eps, "v": alpha * eps - sigma * x, "score": -eps / sigma}
    return known, z, alpha, sigma


def test_q_sample_matches_diffusers_add_noise():
    """The same noisy image as DDPMScheduler.add_noise at matching times."""
    theirs = DDPMScheduler(1000, beta_schedule="linear")
    x, eps = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    index = torch.tensor([0, 10, 500, 999])
    alpha, sigma = NoiseSchedule("linear").alpha_sigma(expand((index + 1) / 1000, x))
    reference = theirs.add_noise(x, eps, index)
    torch.testing.assert_close(q_sample(x, eps, alpha, sigma), reference, rtol=0, atol=1e-5)


def test_q_sample_has_the_moments_of_q():
    """Mean alpha x, variance sigma^2, over many draws."""
    x, alpha, sigma = torch.full((100_000,), 0.7), torch.tensor(0.6), torch.tensor(0.8)
    z = q_sample(x, torch.randn(100_000, generator=torch.Generator().manual_seed(1)), alpha, sigma)
    assert z.mean().item() == pytest.approx(0.42, abs=0.01)
    assert z.var().item() == pytest.approx(0.64, abs=0.01)


@pytest.mark.parametrize(("s", "t"), [(0.1, 0.2), (0.4, 0.9), (0.79, 0.8), (0.3, 1.0)])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_posterior_is_bayes_on_a_grid(name, s, t):
    """q(z_s | z_t, x) is proportional to q(z_t | z_s) q(z_s | x), computed on a 1-D grid."""
    schedule = NoiseSchedule(name)
    both = torch.tensor([s, t], dtype=torch.float64)
    (alpha_s, alpha_t), (sigma_s, sigma_t) = (a.numpy() for a in schedule.alpha_sigma(both))
    x, z_t = 0.4, -0.9
    step_alpha = alpha_t / alpha_s
    step_sigma = math.sqrt(sigma_t**2 - step_alpha**2 * sigma_s**2)
    z_s = np.linspace(-8, 8, 200_001)
    density = norm.pdf(z_t, step_alpha * z_s, step_sigma) * norm.pdf(z_s, alpha_s * x, sigma_s)
    density /= density.sum()
    mean = (density * z_s).sum()
    variance = (density * (z_s - mean) ** 2).sum()

    ours = posterior(torch.tensor(x), torch.tensor(z_t), *schedule.log_snr(both))
    assert ours[0].item() == pytest.approx(mean, abs=1e-6)
    assert ours[1].item() == pytest.approx(variance, rel=1e-5)


def test_posterior_draws_have_the_marginal_of_the_earlier_time():
    """Averaged over q(z_t | x), the posterior gives q(z_s | x) back: mean and variance agree."""
    times = torch.tensor([0.35, 0.6], dtype=torch.float64)
    schedule = NoiseSchedule()
    (alpha_s, alpha_t), (sigma_s, sigma_t) = schedule.alpha_sigma(times)
    k_x, k_z, variance = posterior_coefficients(*schedule.log_snr(times))
    torch.testing.assert_close(k_x + k_z * alpha_t, alpha_s)
    torch.testing.assert_close(k_z**2 * sigma_t**2 + variance, sigma_s**2)


def test_posterior_at_the_clean_end_is_x():
    """log_snr_s = inf: the image itself, without variance, and no NaN."""
    x, z = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mean, variance = posterior(x, z, torch.tensor(math.inf), torch.tensor(-3.0))
    assert torch.equal(mean, x)
    assert variance == 0


@pytest.mark.parametrize("source", ["x", "eps", "v", "score"])
@pytest.mark.parametrize("goal", ["x", "eps", "v", "score"])
def test_every_conversion(noisy, source, goal):
    """Each of the twelve conversions gives what the definitions of x, eps, v and score say."""
    if source == goal:
        return
    known, z, alpha, sigma = noisy
    convert = getattr(diffusion, f"{goal}_from_{source}")
    needs_z = {source, goal} != {"eps", "score"}
    got = convert(known[source], z, alpha, sigma) if needs_z else convert(known[source], sigma)
    torch.testing.assert_close(got, known[goal], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("source", ["x", "eps", "v", "score"])
@pytest.mark.parametrize("goal", ["x", "eps", "v", "score"])
def test_conversions_round_trip(noisy, source, goal):
    """There and back is the identity for any prediction, right or wrong."""
    if source == goal:
        return
    _, z, alpha, sigma = noisy
    guess = torch.randn(z.shape, generator=torch.Generator().manual_seed(2), dtype=z.dtype)
    arguments = (sigma,) if {source, goal} == {"eps", "score"} else (z, alpha, sigma)
    there = getattr(diffusion, f"{goal}_from_{source}")(guess, *arguments)
    back = getattr(diffusion, f"{source}_from_{goal}")(there, *arguments)
    torch.testing.assert_close(back, guess, rtol=1e-9, atol=1e-9)


def test_score_is_the_gradient_of_log_q(noisy):
    """The score by autograd on the log density of N(alpha x, sigma^2)."""
    known, z, alpha, sigma = noisy
    z = z.clone().requires_grad_()
    torch.distributions.Normal(alpha * known["x"], sigma).log_prob(z).sum().backward()
    torch.testing.assert_close(z.grad, known["score"])


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_target_means_x(noisy, parameterization):
    """A network that hits its target has found x."""
    known, z, alpha, sigma = noisy
    out = target(parameterization, known["x"], known["eps"], alpha, sigma)
    torch.testing.assert_close(out, known[parameterization])
    torch.testing.assert_close(to_x(parameterization, out, z, alpha, sigma), known["x"])


def test_v_target_matches_diffusers():
    """DDPMScheduler.get_velocity at matching times."""
    x, eps, index = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([5, 400, 990])
    reference = DDPMScheduler(1000, beta_schedule="linear").get_velocity(x, eps, index)
    alpha, sigma = NoiseSchedule("linear").alpha_sigma(expand((index + 1) / 1000, x))
    torch.testing.assert_close(target("v", x, eps, alpha, sigma), reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "clamped_snr"])
def test_losses_of_all_parameterizations_agree_under_the_right_weight(noisy, weighting):
    """One wrong guess of x, told as x, eps or v: the losses differ by SNR and SNR + 1.

    Min-SNR weighs the error of x whatever is predicted, so there the losses are equal.
    """
    known, z, alpha, sigma = noisy
    x_hat = known["x"] + torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    outs = {
        "x": x_hat,
        "eps": diffusion.eps_from_x(x_hat, z, alpha, sigma),
        "v": diffusion.v_from_x(x_hat, z, alpha, sigma),
    }
    losses = {
        p: diffusion_loss(p, out, known["x"], known["eps"], alpha, sigma, weighting)
        for p, out in outs.items()
    }
    snr = (alpha / sigma).flatten() ** 2  # (B, 1, 1, 1) -> (B,)
    eps_factor, v_factor = (snr, snr + 1) if weighting == "uniform" else (1, 1)
    torch.testing.assert_close(losses["eps"], losses["x"] * eps_factor)
    torch.testing.assert_close(losses["v"], losses["x"] * v_factor)


def test_uniform_loss_is_the_mean_squared_error_of_each_image(noisy):
    """(B,) numbers: torch's mse_loss image by image, so that no image hides in a batch mean."""
    known, _, alpha, sigma = noisy
    out = torch.zeros_like(known["x"])
    loss = diffusion_loss("eps", out, known["x"], known["eps"], alpha, sigma)
    reference = [torch.nn.functional.mse_loss(o, e) for o, e in zip(out, known["eps"], strict=True)]
    torch.testing.assert_close(loss, torch.stack(reference))


def test_min_snr_weights_match_the_paper_and_diffusers_snr():
    """min(SNR, 5) for x, divided by SNR for eps and by SNR + 1 for v, with diffusers' own SNR."""
    index = torch.tensor([0, 100, 300, 600, 999])
    snr = compute_snr(DDPMScheduler(1000, beta_schedule="linear"), index).double()
    log_snr = NoiseSchedule("linear").log_snr((index + 1).double() / 1000)
    clipped = snr.clamp(max=5.0)
    expected = {"x": clipped, "eps": clipped / snr, "v": clipped / (snr + 1)}
    for parameterization, weight in expected.items():
        ours = loss_weight("min_snr", parameterization, log_snr)
        torch.testing.assert_close(ours, weight, rtol=2e-3, atol=0)  # diffusers' SNR is float32


def test_min_snr_gamma_is_where_the_weight_saturates():
    """Below gamma the weight of x is the SNR, above it is gamma."""
    log_snr = torch.log(torch.tensor([0.5, 2.0, 4.0]))
    torch.testing.assert_close(
        loss_weight("min_snr", "x", log_snr, gamma=3.0), torch.tensor([0.5, 2.0, 3.0])
    )
    clamped = loss_weight("clamped_snr", "x", log_snr, gamma=3.0, floor=1.0)
    assert torch.allclose(clamped, torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(loss_weight("uniform", "x", log_snr), torch.ones(3))


def test_clamped_snr_keeps_a_tenth_where_only_noise_is_left():
    """The SNR from 0.1 to 5 is the weight of x; divided by SNR for eps and by SNR + 1 for v."""
    snr = torch.tensor([1e-4, 0.05, 0.2, 1.0, 4.0, 6.0, 1e4])
    weight = torch.tensor([0.1, 0.1, 0.2, 1.0, 4.0, 5.0, 5.0])
    for parameterization, factor in {"x": 1, "eps": snr, "v": snr + 1}.items():
        ours = loss_weight("clamped_snr", parameterization, snr.log())
        torch.testing.assert_close(ours, weight / factor, rtol=1e-5, atol=0)


@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "clamped_snr"])
def test_loss_is_finite_at_both_ends(t, parameterization, weighting):
    """t is drawn from all of [0, 1]; float32 must survive the ends."""
    x, eps = torch.rand(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    alpha, sigma = NoiseSchedule().alpha_sigma(expand(torch.tensor([t]), x))
    assert diffusion_loss(parameterization, x, x, eps, alpha, sigma, weighting).isfinite().all()
