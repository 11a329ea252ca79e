"""samplers.py: against diffusers, and against the closed form on a Gaussian."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from minimagen.samplers import SAMPLERS, NoiseSource, ddim, ddpm, dpm_solver_pp_2m, heun
from minimagen.schedules import NoiseSchedule, expand

MEAN, STD = 0.3, 0.5  # the data of the closed-form tests: every pixel N(MEAN, STD^2)
ODE_SAMPLERS = ["ddim", "dpmpp", "heun"]


def gaussian_denoiser(schedule: NoiseSchedule):
    """E[x | z_t] for x ~ N(MEAN, STD^2): linear regression of x on z."""

    def denoise(z, t):
        alpha, sigma = schedule.alpha_sigma(expand(t, z))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (z - alpha * MEAN)

    return denoise


def exact_flow(schedule: NoiseSchedule, z: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """The probability-flow ODE of that data from t to s: it keeps the standardised z."""
    times = torch.tensor([t, s], dtype=torch.float64)
    (alpha_t, alpha_s), (sigma_t, sigma_s) = schedule.alpha_sigma(times)
    std_t = torch.sqrt(alpha_t**2 * STD**2 + sigma_t**2)
    std_s = torch.sqrt(alpha_s**2 * STD**2 + sigma_s**2)
    return alpha_s * MEAN + (z - alpha_t * MEAN) * std_s / std_t


def toy_denoiser(z, t):
    """Nonlinear in z and dependent on t: no sampler gets it right by luck."""
    return torch.tanh(1.5 * z + 0.3) * (1 - 0.5 * expand(t, z)) + 0.1 * torch.sin(4 * z)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(name: str, *arguments, **keywords) -> torch.Tensor:
    """The last state: the sample."""
    *_, last = SAMPLERS[name](*arguments, **keywords)
    return last


# --- against diffusers ----------------------------------------------------------------------------

THEIR_NAME = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
SETTINGS = {"prediction_type": "sample", "timestep_spacing": "trailing"}


def their_path(scheduler, z, steps, **step_arguments):
    """Every state of diffusers' sampling; its timestep i is our t = (i + 1) / 1000."""
    scheduler.set_timesteps(steps)
    for i in scheduler.timesteps:
        t = torch.full((len(z),), (i.item() + 1) / 1000, dtype=z.dtype)
        z = scheduler.step(toy_denoiser(z, t), i, z, **step_arguments).prev_sample
        yield z


def assert_same_path(ours, theirs):
    """Every state of both samplings within 1e-5."""
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        difference = (a - b).abs().max().item()
        assert difference < 1e-5, f"state {step} differs by {difference:.1e}"


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [5, 20])
def test_ddim_matches_diffusers(name, steps):
    """The whole path of DDIMScheduler at eta = 0."""
    z, schedule = normal(0, 2, 3, 4, 4), NoiseSchedule(name)
    scheduler = DDIMScheduler(1000, beta_schedule=THEIR_NAME[name], clip_sample=False, **SETTINGS)
    ours = ddim(toy_denoiser, z, schedule, schedule.times(1000, steps))
    assert_same_path(ours, their_path(scheduler, z, steps))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_stochastic_ddim_matches_diffusers(monkeypatch, eta):
    """The whole path of DDIMScheduler at eta > 0, with the same noise in each step."""
    z, schedule, steps = normal(0, 2, 3, 4, 4), NoiseSchedule("linear"), 10
    noise = [normal(i, *z.shape) for i in range(1, steps + 1)]
    scheduler = DDIMScheduler(1000, beta_schedule="linear", clip_sample=False, **SETTINGS)
    feed = iter(noise)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *a, **k: next(feed)
    )
    theirs = list(their_path(scheduler, z, steps, eta=eta))
    times = schedule.times(1000, steps)
    ours = ddim(toy_denoiser, z, schedule, times, iter(noise).__next__, eta=eta)
    assert_same_path(ours, theirs)


@pytest.mark.parametrize("steps", [10, 50])
def test_ddpm_matches_diffusers(monkeypatch, steps):
    """The whole path of DDPMScheduler (fixed_small variance), with the same noise in each step."""
    z, schedule = normal(0, 2, 3, 4, 4), NoiseSchedule("linear")
    noise = [normal(i, *z.shape) for i in range(1, steps + 1)]
    scheduler = DDPMScheduler(1000, beta_schedule="linear", clip_sample=False, **SETTINGS)
    feed = iter(noise)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: next(feed)
    )
    theirs = list(their_path(scheduler, z, steps))
    ours = ddpm(toy_denoiser, z, schedule, schedule.times(1000, steps), iter(noise).__next__)
    assert_same_path(ours, theirs)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_matches_diffusers(steps):
    """The whole path of DPMSolverMultistepScheduler (dpmsolver++, order 2, midpoint)."""
    z, schedule = normal(0, 2, 3, 4, 4), NoiseSchedule("linear")
    scheduler = DPMSolverMultistepScheduler(
        1000,
        beta_schedule="linear",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        **SETTINGS,
    )
    ours = dpm_solver_pp_2m(toy_denoiser, z, schedule, schedule.times(1000, steps))
    assert_same_path(ours, their_path(scheduler, z, steps))


# --- against the closed form ----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [NoiseSchedule("cosine"), NoiseSchedule("linear", shift=0.5)])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp", 2), ("heun", 2)])
def test_ode_samplers_converge_to_the_exact_flow_with_their_order(name, order, schedule):
    """Halving the step divides the error by 2^order.

    Away from the ends: the step to t = 0 is DDIM's in every sampler.
    """
    z = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(5, 1, 1, 1)
    exact = exact_flow(schedule, z, 0.9, 0.1)
    errors = []
    for steps in (64, 128, 256):
        times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        sample = run(name, gaussian_denoiser(schedule), z, schedule, times)
        errors.append((sample - exact).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)
    assert errors[-1] < (2e-2 if order == 1 else 5e-4)


@pytest.mark.parametrize("name", ODE_SAMPLERS)
def test_ode_samplers_reach_the_exact_sample_from_pure_noise(name):
    """All the way from t = 1 to t = 0 the sample of each z is the one of the exact flow."""
    schedule = NoiseSchedule("cosine")
    z = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(5, 1, 1, 1)
    sample = run(name, gaussian_denoiser(schedule), z, schedule, schedule.times(1000, 500))
    torch.testing.assert_close(sample, MEAN + STD * z, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_samples_have_the_mean_and_variance_of_the_data(name, eta):
    """With the optimal denoiser, samples of N(MEAN, STD^2) come out distributed so."""
    schedule = NoiseSchedule("cosine")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 1, 1, 1, generator=generator)
    sample = run(
        name,
        gaussian_denoiser(schedule),
        z,
        schedule,
        schedule.times(1000, 100),
        lambda: torch.randn(z.shape, generator=generator),
        eta=eta,
    )
    assert sample.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert sample.std().item() == pytest.approx(STD, abs=0.025)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_sure_denoiser_is_obeyed_exactly(name):
    """If x_hat is always the same image, that image is the sample, whatever the steps."""
    schedule, z = NoiseSchedule(), normal(0, 2, 3, 4, 4)
    image = normal(1, 2, 3, 4, 4)
    sample = run(name, lambda z, t: image, z, schedule, schedule.times(8), lambda: normal(2, 1))
    torch.testing.assert_close(sample, image, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ODE_SAMPLERS)
def test_ode_samplers_keep_the_noise_of_a_sure_denoiser(name):
    """A constant x_hat makes the exact flow alpha_s x + sigma_s eps, in steps of any size."""
    schedule, image, eps = NoiseSchedule(), normal(1, 2, 3, 4, 4), normal(2, 2, 3, 4, 4)
    times = torch.tensor([0.9, 0.6, 0.25], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(times)
    z = alpha[0] * image + sigma[0] * eps
    sample = run(name, lambda z, t: image, z, schedule, times)
    torch.testing.assert_close(sample, alpha[2] * image + sigma[2] * eps)


def test_ddim_at_eta_1_is_ddpm():
    """The two papers meet: the same noise gives the same path."""
    schedule, z = NoiseSchedule(), normal(0, 2, 3, 4, 4)
    noise = [normal(i, *z.shape) for i in range(1, 10)]
    times = schedule.times(10)
    a = ddpm(toy_denoiser, z, schedule, times, iter(noise).__next__)
    b = ddim(toy_denoiser, z, schedule, times, iter(noise).__next__, eta=1.0)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


# --- manners --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("schedule_name", ["cosine", "linear"])
def test_every_state_is_yielded_and_the_last_is_clean(name, schedule_name):
    """One state per step, float32 and finite; the sample is the last x_hat; z is not changed."""
    schedule = NoiseSchedule(schedule_name, shift=0.25)
    noise = NoiseSource([1, 2], (3, 4, 4))
    z = noise()
    before, seen = z.clone(), []

    def denoise(z, t):
        seen.append((t.clone(), toy_denoiser(z, t)))
        return seen[-1][1]

    states = list(SAMPLERS[name](denoise, z, schedule, schedule.times(50, 6), noise))
    assert len(states) == 6
    assert all(s.shape == z.shape and s.dtype == torch.float32 for s in states)
    assert all(s.isfinite().all() for s in states)
    last_t, last_x = seen[-1]
    assert last_t.shape == (2,)
    assert (last_t > 0).all()  # never asked at t = 0, where there is nothing to remove
    torch.testing.assert_close(states[-1], last_x)
    assert torch.equal(z, before)


def test_samplers_survive_times_where_log_snr_is_clamped():
    """A strong shift flattens the schedule at its ends: steps of length zero, still finite."""
    schedule = NoiseSchedule("cosine", shift=1e-4)
    noise = NoiseSource([0], (1, 4, 4))
    for name in SAMPLERS:
        sample = run(name, toy_denoiser, noise(), schedule, schedule.times(100), noise)
        assert sample.isfinite().all(), name


def test_heun_calls_the_denoiser_twice_a_step_but_once_at_the_end():
    """2 n - 1 calls; the others call it n times."""
    schedule, calls = NoiseSchedule(), []

    def denoise(z, t):
        calls.append(1)
        return toy_denoiser(z, t)

    list(heun(denoise, normal(0, 1, 1, 2, 2), schedule, schedule.times(5)))
    assert len(calls) == 9


def test_a_image_depends_on_its_own_seed_alone():
    """Image i is the same in any batch, at any place, next to any neighbours."""
    schedule = NoiseSchedule()

    def sample(seeds):
        noise = NoiseSource(seeds, (3, 4, 4))
        return run("ddpm", toy_denoiser, noise(), schedule, schedule.times(10), noise)

    together, other, alone = sample([7, 8, 9]), sample([1, 9]), sample([9])
    assert torch.equal(together[2], alone[0])
    assert torch.equal(other[1], alone[0])
    assert not torch.equal(together[0], together[2])


def test_noise_source_is_standard_normal_and_fresh():
    """Mean 0, variance 1; draws, seeds and streams differ; the same seed repeats."""
    source = NoiseSource([0, 1], (3, 64, 64))
    first, second = source(), source()
    assert first.shape == (2, 3, 64, 64)
    assert first.mean().item() == pytest.approx(0, abs=0.03)
    assert first.var().item() == pytest.approx(1, abs=0.03)
    stage_1 = NoiseSource([0, 1], (3, 64, 64), stream=1)()
    for a, b in ((first, second), (first[0], first[1]), (first, stage_1)):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation.item()) < 0.04
    assert torch.equal(NoiseSource([0, 1], (3, 64, 64))(), first)
    assert not torch.equal(NoiseSource([2**32], (3, 8, 8))(), NoiseSource([0], (3, 8, 8))())


@pytest.mark.parametrize("times", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5], [1.5, 0.0], [[1.0, 0.0]]])
def test_wrong_times_are_refused(times):
    """At least two, strictly decreasing, in [0, 1]."""
    with pytest.raises(ValueError, match="strictly decreasing"):
        run("ddim", toy_denoiser, torch.zeros(1, 1, 2, 2), NoiseSchedule(), torch.tensor(times))


def test_missing_noise_is_refused():
    """The error names what is missing."""
    z, schedule = torch.zeros(1, 1, 2, 2), NoiseSchedule()
    with pytest.raises(ValueError, match="give it randn"):
        run("ddpm", toy_denoiser, z, schedule, schedule.times(2))
    with pytest.raises(ValueError, match="give it randn"):
        run("ddim", toy_denoiser, z, schedule, schedule.times(2), eta=0.5)
