"""schedules.py: noise schedules against their papers, quadrature and diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.integrate import quad

from minimagen.schedules import NoiseSchedule, expand

NAMES = ["cosine", "linear"]


def alpha_bar(name: str, t: np.ndarray | torch.Tensor) -> np.ndarray:
    """alpha^2 in float64, the quantity that diffusers tabulates."""
    return torch.sigmoid(NoiseSchedule(name).log_snr(torch.as_tensor(t).double())).numpy()


def test_cosine_matches_the_formula_of_the_paper():
    """Nichol and Dhariwal's eq. 17, written out naively, on times where that is accurate."""
    t = np.linspace(0.01, 0.99, 50)
    f = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    f0 = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bar("cosine", t), f / f0, rtol=1e-12)


def test_linear_matches_numerical_integration():
    """log alpha^2 = N * integral of log(1 - beta(u)), integrated by scipy."""
    first, last, steps = 1e-4, 0.02, 1000

    def log_keep(u: float) -> float:
        return math.log1p(-(first + (last - first) * (u * steps - 0.5) / (steps - 1)))

    for t in (1e-3, 0.1, 0.5, 1.0):
        reference = math.exp(steps * quad(log_keep, 0, t, epsabs=1e-14, epsrel=1e-13)[0])
        assert alpha_bar("linear", np.array([t]))[0] == pytest.approx(reference, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_grid_matches_diffusers(name, theirs):
    """alphas_cumprod[i] is our alpha^2 at t = (i + 1) / 1000, for every i."""
    reference = DDPMScheduler(1000, beta_schedule=theirs).alphas_cumprod.double().numpy()
    ours = alpha_bar(name, np.arange(1, 1001) / 1000)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5)
    # Relative to itself too, except the last cosine beta, which diffusers caps at 0.999.
    np.testing.assert_allclose(ours[:-1], reference[:-1], rtol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_process_preserves_variance_and_only_loses_signal(name):
    """alpha^2 + sigma^2 = 1, and log_snr decreases strictly inside its clamp."""
    schedule = NoiseSchedule(name)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-14)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(torch.log(alpha**2 / sigma**2), log_snr, rtol=1e-6, atol=1e-6)
    assert (log_snr.diff() < 0).all()
    assert alpha[0] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_as_good_as_float64_up_to_both_ends(name):
    """No cancellation: float32 holds even next to t = 0 and t = 1, and is finite there."""
    t = torch.tensor([0.0, 1e-6, 1e-4, 0.01, 0.5, 0.99, 0.9999, 1.0])
    log_snr = NoiseSchedule(name).log_snr(t)
    assert log_snr.dtype == torch.float32
    reference = NoiseSchedule(name).log_snr(t.double())
    torch.testing.assert_close(log_snr.double(), reference, rtol=0, atol=1e-5)


def test_ends_are_clamped():
    """log_snr stays in [-20, 20], so alpha and sigma are never 0."""
    ends = NoiseSchedule("cosine").log_snr(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [20.0, -20.0]


@pytest.mark.parametrize("name", NAMES)
def test_shift_multiplies_alpha_over_sigma(name):
    """shift = 1/4 is four times as much noise for the same signal."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    alpha, sigma = NoiseSchedule(name).alpha_sigma(t)
    alpha_4, sigma_4 = NoiseSchedule(name, shift=0.25).alpha_sigma(t)
    torch.testing.assert_close(alpha_4 / sigma_4, alpha / sigma / 4)
    assert (sigma_4 > sigma).all()


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 20), (25, 25), (1000, 7), (10, 9), (1, 1)])
def test_times_are_a_decreasing_subset_of_the_grid(timesteps, steps):
    """TIMESTEPS discretises time; sampling in fewer steps picks from that grid, evenly."""
    times = NoiseSchedule().times(timesteps, steps)
    assert times.shape == (steps + 1,)
    assert times[0] == 1
    assert times[-1] == 0
    grid = np.arange(timesteps + 1) / timesteps
    assert np.isin(times.numpy(), grid).all()
    gaps = -times.diff()
    assert gaps.min() > 0
    assert gaps.max() - gaps.min() <= 1 / timesteps + 1e-12


def test_times_visits_the_whole_grid_by_default():
    """Without `steps`, every grid point is visited."""
    np.testing.assert_array_equal(NoiseSchedule().times(4).numpy(), [1, 0.75, 0.5, 0.25, 0])


def test_expand_broadcasts_one_number_per_image():
    """(B,) becomes (B, 1, 1, 1); any other shape is refused: nothing broadcasts by accident."""
    x = torch.zeros(3, 2, 4, 4)
    assert expand(torch.tensor([1.0, 2.0, 3.0]), x).shape == (3, 1, 1, 1)
    for wrong in (torch.zeros(1), torch.zeros(3, 1), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="one value per image"):
            expand(wrong, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sigmoid"}, "`name` is 'sigmoid', it should be one of cosine, linear"),
        ({"shift": 0.0}, "`shift` is 0.0, it should be above 0"),
        ({"shift": math.nan}, "`shift` is nan, it should be above 0"),
    ],
)
def test_wrong_schedules_are_refused(arguments, message):
    """The error names the setting, its value and what would be right."""
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(**arguments)
