"""thresholding.py: the thresholds, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minimagen.schedules import expand
from minimagen.thresholding import dynamic_threshold, static_threshold, threshold


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.95, 0.995, 1.0])
def test_dynamic_threshold_matches_numpy_image_by_image(percentile):
    """s is numpy's percentile of each image alone: images of very different range in one batch."""
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x * expand(torch.tensor([0.2, 1.0, 3.0, 20.0]), x)
    expected = []
    for image in x.numpy():
        s = max(1.0, np.percentile(np.abs(image), 100 * percentile))
        expected.append(np.clip(image, -s, s) / s)
    ours = dynamic_threshold(x, percentile)
    np.testing.assert_allclose(ours.numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)
    assert ours.abs().max() <= 1
    for i in range(len(x)):  # the rest of the batch makes no difference
        assert torch.equal(dynamic_threshold(x[i : i + 1], percentile)[0], ours[i])


def test_dynamic_threshold_percentile_is_an_option():
    """Fault 12: the paper does not settle the percentile, so it must matter when it is changed."""
    x = 2 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = [dynamic_threshold(x, p).abs().mean().item() for p in (0.9, 0.95, 0.995)]
    assert results[0] > results[1] > results[2]
    assert torch.equal(threshold(x, "dynamic", 0.9), dynamic_threshold(x, 0.9))


def test_dynamic_threshold_leaves_images_in_range_alone():
    """s is at least 1: a dull image is not stretched."""
    x = torch.rand(2, 3, 4, 4) - 0.5
    assert torch.equal(dynamic_threshold(x, 0.9), x)


@pytest.mark.parametrize("kind", ["none", "static", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_thresholds_do_not_change_their_input(kind, dtype):
    """Nothing happens in place; shape and dtype stay."""
    x = (5 * torch.randn(2, 3, 4, 4)).to(dtype)
    before = x.clone()
    y = threshold(x, kind)
    assert torch.equal(x, before)
    assert (y.shape, y.dtype) == (x.shape, dtype)


def test_static_threshold_matches_numpy():
    """Clamped to [-1, 1], nothing else."""
    x = 3 * torch.randn(2, 3, 4, 4)
    np.testing.assert_array_equal(static_threshold(x).numpy(), np.clip(x.numpy(), -1, 1))
    assert torch.equal(threshold(x, "static"), static_threshold(x))
    assert threshold(x, "none") is x
