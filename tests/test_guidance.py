"""guidance.py: classifier-free guidance, against the formulas of the papers."""

from __future__ import annotations

import pytest
import torch

from minimagen import diffusion
from minimagen.guidance import classifier_free, guide, weight_at
from minimagen.schedules import NoiseSchedule, expand


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def pair():
    """Two random predictions, conditional and unconditional."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 3, 8, 8, generator=g).unbind()


def test_guidance_is_off_at_1_and_ignores_the_text_at_0(pair):
    """Bit for bit, so that switching guidance off changes nothing."""
    cond, uncond = pair
    assert torch.equal(guide(cond, uncond, 1.0), cond)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)


@pytest.mark.parametrize("w", [0.3, 1.5, 7.0])
def test_guidance_weight_follows_the_convention_of_the_imagen_paper(pair, w):
    """Fault 11, w or 1 + w: ours is eps~ = w eps(z, c) + (1 - w) eps(z), 2205.11487, eq. 2."""
    cond, uncond = pair
    torch.testing.assert_close(guide(cond, uncond, w), w * cond + (1 - w) * uncond)
    # Ho and Salimans (2207.12598, eq. 6) call the same thing w' = w - 1.
    theirs = (1 + (w - 1)) * cond - (w - 1) * uncond
    torch.testing.assert_close(guide(cond, uncond, w), theirs)


def test_guidance_is_the_same_for_x_eps_and_v(pair):
    """The conversions are affine in the prediction, so one may guide any of the three."""
    x_cond, x_uncond = (p.double() for p in pair)
    z = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    alpha, sigma = NoiseSchedule().alpha_sigma(expand(t, z))
    x = guide(x_cond, x_uncond, 3.0)
    for name in ("eps", "v"):
        there = getattr(diffusion, f"{name}_from_x")
        back = getattr(diffusion, f"x_from_{name}")
        guided = guide(there(x_cond, z, alpha, sigma), there(x_uncond, z, alpha, sigma), 3.0)
        torch.testing.assert_close(back(guided, z, alpha, sigma), x)


def test_classifier_free_guides_each_image_inside_the_interval_only(pair):
    """w where t is in [lo, hi], both included; 1 elsewhere; None means everywhere."""
    cond, uncond = pair
    t = torch.tensor([0.1, 0.25, 0.75, 0.9])
    torch.testing.assert_close(weight_at(t, 5.0, (0.25, 0.75)), torch.tensor([1.0, 5.0, 5.0, 1.0]))
    torch.testing.assert_close(weight_at(t, 5.0), torch.full((4,), 5.0))
    denoise = classifier_free(lambda z, t: cond, lambda z, t: uncond, 5.0, (0.25, 0.75))
    x = denoise(torch.zeros_like(cond), t)
    assert torch.equal(x[[0, 3]], cond[[0, 3]])
    torch.testing.assert_close(x[1:3], (5 * cond - 4 * uncond)[1:3], rtol=1e-4, atol=1e-5)


def test_the_unconditional_branch_is_not_computed_where_guidance_is_off(pair):
    """w = 1, or a time outside the interval, costs one call instead of two."""
    cond, uncond = pair
    calls = []

    def unconditional(z, t):
        calls.append(t)
        return uncond

    z, t = torch.zeros_like(cond), torch.full((4,), 0.9)
    for weight, interval in ((1.0, None), (3.0, (0.2, 0.8))):
        assert torch.equal(
            classifier_free(lambda z, t: cond, unconditional, weight, interval)(z, t), cond
        )
    assert calls == []
    classifier_free(lambda z, t: cond, unconditional, 3.0)(z, t)
    assert len(calls) == 1
