"""augmentation.py: the low-resolution condition is noised once, at the right scale, per image."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import torch
from scipy.stats import kstest

from minimagen.augmentation import augment, level_weight, random_levels
from minimagen.schedules import NoiseSchedule

SCHEDULE = NoiseSchedule("cosine")


def images(batch: int = 4, side: int = 16) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def noise_like(x: torch.Tensor) -> torch.Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def test_augment_is_the_forward_process():
    """alpha lowres + sigma noise, image by image in plain numpy."""
    x = images()
    noise, level = noise_like(x), torch.tensor([0.0, 0.2, 0.5, 1.0])
    log_snr = SCHEDULE.log_snr(level.double()).numpy()
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))
    ours = augment(x, level, noise, SCHEDULE).numpy()
    for i in range(4):
        expected = alpha[i] * x[i].numpy() + sigma[i] * noise[i].numpy()
        np.testing.assert_allclose(ours[i], expected, rtol=0, atol=1e-6)


def test_every_image_has_its_own_level():
    """Fault 4, one level for the whole batch: here each image is as noisy as its own level says."""
    x = images(batch=5, side=32)
    level = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    noised = augment(x, level, noise_like(x), SCHEDULE)
    alpha, sigma = SCHEDULE.alpha_sigma(level)
    for i in range(5):
        residual = noised[i] - alpha[i] * x[i]
        assert residual.std().item() == pytest.approx(sigma[i].item(), rel=0.05)
        alone = augment(x[i : i + 1], level[i : i + 1], noise_like(x)[i : i + 1], SCHEDULE)
        torch.testing.assert_close(alone[0], noised[i])


def test_training_levels_are_uniform_and_independent():
    """Fault 4 again: as many different levels as images, uniform over [0, 1]."""
    levels = random_levels(2000, torch.Generator().manual_seed(0))
    assert levels.shape == (2000,)
    assert levels.unique().numel() > 1990
    assert kstest(levels.numpy(), "uniform").pvalue > 0.01
    assert torch.equal(levels, random_levels(2000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("level", [0.1, 0.2, 0.5])
def test_noise_has_the_scale_of_images_in_minus_1_to_1(level):
    """Fault 1, scale: the signal-to-noise ratio is the schedule's for an image in [-1, 1].

    Noising in [0, 1] and normalising after doubles the noise against the image.
    """
    x, levels = images(side=32), torch.full((4,), level)
    noise = noise_like(x)
    ours = augment(x, levels, noise, SCHEDULE)
    alpha, sigma = (a[0].item() for a in SCHEDULE.alpha_sigma(levels))
    # Least squares finds how much of the image and how much of the noise is in the result.
    columns = np.stack([x.flatten().numpy(), noise.flatten().numpy()], axis=1)
    (signal, noise_part), *_ = np.linalg.lstsq(columns, ours.flatten().numpy(), rcond=None)
    assert signal == pytest.approx(alpha, abs=1e-4)
    assert noise_part == pytest.approx(sigma, abs=1e-4)
    faulty = augment((x + 1) / 2, levels, noise, SCHEDULE) * 2 - 1
    (_, faulty_part), *_ = np.linalg.lstsq(columns, faulty.flatten().numpy(), rcond=None)
    assert faulty_part == pytest.approx(2 * sigma, rel=0.02)


def test_level_0_is_the_identity_and_level_1_is_noise():
    """To the smallest sigma of a schedule, 4.5e-5: far below one grey level (1/127.5)."""
    x = images()
    noise = noise_like(x)
    torch.testing.assert_close(augment(x, torch.zeros(4), noise, SCHEDULE), x, rtol=0, atol=5e-4)
    torch.testing.assert_close(augment(x, torch.ones(4), noise, SCHEDULE), noise, rtol=0, atol=5e-4)


def test_variance_is_preserved():
    """Pixels of unit variance keep it at every level."""
    x = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    noised = augment(x, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), noise_like(x), SCHEDULE)
    torch.testing.assert_close(noised.flatten(1).var(1), torch.ones(5), rtol=0, atol=0.05)


def test_augment_does_not_change_its_input():
    """Nothing happens in place."""
    x = images()
    before = x.clone()
    augment(x, torch.full((4,), 0.5), noise_like(x), SCHEDULE)
    assert torch.equal(x, before)


def test_one_level_for_a_whole_batch_is_refused():
    """One number per image: nothing broadcasts by accident."""
    x = images()
    with pytest.raises(ValueError, match="one value per image"):
        augment(x, torch.tensor([0.2]), noise_like(x), SCHEDULE)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 3.5])
def test_level_weights_have_mean_1_and_spare_high_levels(power):
    """The mean by scipy's quadrature; without a power all levels count alike."""
    mean, _ = scipy.integrate.quad(
        lambda level: level_weight(torch.tensor([level], dtype=torch.float64), power).item(), 0, 1
    )
    assert mean == pytest.approx(1, abs=1e-6)
    low, high, last = level_weight(torch.tensor([0.1, 0.9, 1.0]), power).tolist()
    assert (low > high and last == 0) if power else low == high == last == 1
