"""The cascade: how a stage is trained and sampled, and how the stages follow each other."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minimagen.diffusion import Parameterization, Weighting
from minimagen.imagen import Imagen, ImagenConfig, Stage, StageConfig, TrainingNoise, resize
from minimagen.layers import Window
from minimagen.samplers import SAMPLERS, NoiseSource
from minimagen.schedules import NoiseSchedule
from minimagen.thresholding import dynamic_threshold
from minimagen.unet import UnetConfig

BASE = UnetConfig(
    channels=(16,),
    blocks=(1,),
    self_attention=(True,),
    text_attention=(True,),
    heads=2,
    head_dim=8,
    text_dim=8,
    pool_queries=2,
    cond_dim=16,
    position_dim=8,
)
SUPER = dataclasses.replace(
    BASE, lowres=True, efficient=True, self_attention=(False,), text_attention=(False,)
)
TEXT = torch.randn((3, 5, 8), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True] * 5, [True, True, True, False, False], [True] + [False] * 4])
SEEDS = (11, 22, 33)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturb(module: nn.Module) -> None:
    """Move every parameter away from zero, so that an untrained network does something."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter += 0.1 * randn(*parameter.shape, seed=i)


def cascade(stages: int = 2, **changes: Any) -> Imagen:
    """A tiny cascade of 4, 8, ... pixels; ``changes`` are those of every stage."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"steps": 4, "guidance_weight": 2.0, **changes}
    config = ImagenConfig(
        tuple(StageConfig(side=4 * 2**i, **settings) for i in range(stages)), timesteps=100
    )
    imagen = Imagen(config, [BASE, *[SUPER] * (stages - 1)])
    perturb(imagen)
    return imagen


def base_stage(side: int = 4, **changes: Any) -> Stage:
    torch.manual_seed(0)
    stage = Stage(StageConfig(side=side, **changes), BASE, None).eval()
    perturb(stage)
    return stage


def super_stage(**changes: Any) -> Stage:
    """Enlarges 4 to 8 pixels."""
    torch.manual_seed(0)
    stage = Stage(StageConfig(side=8, **changes), SUPER, 4).eval()
    perturb(stage)
    return stage


def watch(unet: nn.Module) -> list[tuple[Tensor, ...]]:
    """What the U-Net is called with, call by call."""
    calls: list[tuple[Tensor, ...]] = []
    unet.register_forward_pre_hook(lambda _, args: calls.append(args))
    return calls


def alpha_sigma(t: Tensor, s: float = 0.008) -> tuple[Tensor, Tensor]:
    """The cosine schedule straight from the paper (2102.09672, eq. 17), for 0 < t < 1."""
    angle = (t.double() + s) / (1 + s) * math.pi / 2
    alpha = (torch.cos(angle) / math.cos(s / (1 + s) * math.pi / 2))[:, None, None, None]
    return alpha.float(), (1 - alpha**2).sqrt().float()


# --- resizing -------------------------------------------------------------------------------------


def test_resizing_down_is_the_mean_of_the_pixels() -> None:
    """By a whole factor: the mean over squares of pixels, as numpy computes it."""
    images = randn(2, 3, 12, 12)
    expected = images.numpy().reshape(2, 3, 4, 3, 4, 3).mean((3, 5))
    np.testing.assert_allclose(resize(images, 4).numpy(), expected, atol=1e-6)


def test_resizing_up_is_linear_in_between() -> None:
    """A ramp stays a ramp (its ends apart), and the mean stays the mean."""
    ramp = torch.linspace(-1, 1, 4).expand(1, 1, 4, 4)
    large = resize(ramp, 8)[0, 0]
    torch.testing.assert_close(large[:, 1:-1].diff(), torch.full((8, 5), 1 / 3))
    torch.testing.assert_close(large.mean(), ramp.mean())


@pytest.mark.parametrize("side", [1, 3, 5, 8, 11, 16, 24])
def test_resizing_keeps_flat_images_and_the_range(side: int) -> None:
    """At any size: no value beyond the input's, and a flat image stays flat."""
    images = torch.where(randn(2, 3, 8, 8) > 0, 1.0, -1.0)
    out = resize(images, side)
    assert out.shape == (2, 3, side, side)
    assert out.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(
        resize(torch.full((1, 3, 8, 8), 0.3), side), torch.full((1, 3, side, side), 0.3)
    )


def test_resizing_to_the_same_side_changes_nothing() -> None:
    """Not even a digit."""
    images = randn(1, 3, 8, 8)
    assert torch.equal(resize(images, 8), images)


def test_images_that_are_not_square_are_refused() -> None:
    """They are never squashed in silence (fault 8)."""
    with pytest.raises(ValueError, match="12 x 8 pixels, they should be square"):
        resize(randn(1, 3, 8, 12), 4)


# --- training -------------------------------------------------------------------------------------


def test_drawn_times_are_stratified_and_uniform() -> None:
    """One time in each part of [0, 1], in any order; each image's time uniform by itself."""
    stage, generator = base_stage(), torch.Generator().manual_seed(0)
    t = torch.stack([stage.training_noise(8, 0.1, generator).t for _ in range(2000)])  # (2000, 8)
    assert (t >= 0).all() and (t <= 1).all()
    assert torch.equal((t * 8).long().sort(1).values, torch.arange(8).expand(2000, 8))
    for column in (0, 7):
        assert scipy.stats.kstest(t[:, column].numpy(), "uniform").pvalue > 1e-3


def test_drawn_levels_are_one_per_image_and_uniform() -> None:
    """Fault 4: the levels of a batch differ, and depend neither on each other nor on the times."""
    stage, generator = super_stage(), torch.Generator().manual_seed(0)
    draws = [stage.training_noise(8, 0.1, generator) for _ in range(200)]
    level = torch.stack([draw.aug_level for draw in draws])  # (200, 8)
    assert len(level[0].unique()) == 8
    assert scipy.stats.kstest(level.flatten().numpy(), "uniform").pvalue > 1e-3
    assert abs(scipy.stats.pearsonr(level[:, 0], level[:, 1]).statistic) < 0.2
    times = torch.stack([draw.t for draw in draws])
    assert abs(scipy.stats.pearsonr(level.flatten(), times.flatten()).statistic) < 0.1


def test_draws_repeat_with_their_generator() -> None:
    """The same seed gives the same draws, another gives others; global randomness has no say."""
    stage = super_stage()
    first, again, other = (
        stage.training_noise(4, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    for name in ("t", "eps", "aug_level", "aug_noise"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert first.eps.shape == first.aug_noise.shape == (4, 3, 8, 8)
    assert not torch.equal(first.eps, first.aug_noise)


def test_share_of_hidden_captions() -> None:
    """text_dropout of all captions, none at 0, all at 1."""
    stage = base_stage()
    for share in (0.0, 0.25, 1.0):
        keep = stage.training_noise(4000, share, torch.Generator().manual_seed(0)).keep_text
        assert 1 - keep.float().mean().item() == pytest.approx(share, abs=0.03 if share % 1 else 0)


class Oracle(nn.Module):
    """Puts out what the loss asks for, computed from what it is told rather than from z."""

    def __init__(self, parameterization: str, x: Tensor, eps: Tensor) -> None:
        super().__init__()
        self.parameterization, self.x, self.eps = parameterization, x, eps

    def forward(self, z: Tensor, t: Tensor, *_: Tensor | None) -> Tensor:
        alpha, sigma = alpha_sigma(t)
        torch.testing.assert_close(z, alpha * self.x + sigma * self.eps, atol=1e-4, rtol=1e-4)
        answers = {"eps": self.eps, "x": self.x, "v": alpha * self.eps - sigma * self.x}
        return answers[self.parameterization]


@pytest.mark.parametrize("parameterization", get_args(Parameterization))
@pytest.mark.parametrize("weighting", get_args(Weighting))
def test_loss_of_a_perfect_prediction_is_zero(
    parameterization: Parameterization, weighting: Weighting
) -> None:
    """Each parameterisation's target, written down again here; one unit off costs its weight."""
    stage = base_stage(parameterization=parameterization, weighting=weighting)
    draws = stage.training_noise(3, 0.0, torch.Generator().manual_seed(0))
    images = randn(3, 3, 8, 8)
    oracle = Oracle(parameterization, resize(images, 4), draws.eps)
    stage.unet = oracle
    assert (stage(images, TEXT, MASK, draws) < 1e-9).all()
    stage.unet = nn.Module()
    stage.unet.forward = lambda *args: oracle(*args) + 1  # type: ignore[method-assign]
    loss = stage(images, TEXT, MASK, draws)
    assert loss.shape == (3,) and (loss > 1e-5).all()
    if weighting == "uniform":
        torch.testing.assert_close(loss, torch.ones(3), atol=1e-4, rtol=0)


def test_a_loss_of_super_resolution_is_weighted_by_its_level() -> None:
    """(p + 1) (1 - level)^p times the loss that power 0 leaves as it is."""
    plain, weighted = super_stage(aug_power=0.0), super_stage(aug_power=3.0)
    draws = plain.training_noise(3, 0.0, torch.Generator().manual_seed(0))
    draws = draws._replace(aug_level=torch.tensor([0.0, 0.5, 0.9]))
    images = randn(3, 3, 8, 8)
    ratio = weighted(images, TEXT, MASK, draws) / plain(images, TEXT, MASK, draws)
    torch.testing.assert_close(ratio, torch.tensor([4.0, 0.5, 0.004]), atol=1e-5, rtol=1e-4)


def test_a_loss_belongs_to_one_image() -> None:
    """Another image, caption, level or noise beside it changes nothing."""
    stage = super_stage()
    draws = stage.training_noise(3, 0.0, torch.Generator().manual_seed(0))
    images = randn(3, 3, 8, 8)
    together = stage(images, TEXT, MASK, draws)
    for i in range(3):
        one = TrainingNoise(*(part[i : i + 1] for part in draws))
        alone = stage(images[i : i + 1], TEXT[i : i + 1], MASK[i : i + 1], one)
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-5)


# --- windows --------------------------------------------------------------------------------------


def wide_stage() -> Stage:
    """A super-resolution stage from 8 to 32 pixels, whose windows begin at multiples of 4."""
    torch.manual_seed(0)
    unet = dataclasses.replace(SUPER, patch=2)
    stage = Stage(StageConfig(side=32), unet, 8)
    perturb(stage)
    return stage


def test_windows_are_drawn_last_and_only_if_they_are_asked_for() -> None:
    """Without them, or in a base stage, every random number is as it was."""
    stage = wide_stage()
    plain = stage.training_noise(64, 0.5, torch.Generator().manual_seed(3))
    assert plain.eps.shape == (64, 3, 32, 32) and not plain.corner.any()
    for other in (32, 100):
        same = stage.training_noise(64, 0.5, torch.Generator().manual_seed(3), other)
        assert all(map(torch.equal, same, plain))
    base = base_stage().training_noise(64, 0.5, torch.Generator().manual_seed(3), 2)
    assert base.eps.shape == (64, 3, 4, 4) and not base.corner.any()
    cropped = stage.training_noise(64, 0.5, torch.Generator().manual_seed(3), 16)
    assert cropped.eps.shape == cropped.aug_noise.shape == (64, 3, 16, 16)
    assert {*cropped.corner.flatten().tolist()} == {0, 4, 8, 12, 16}
    assert (cropped.corner[:, 0] != cropped.corner[:, 1]).any()


def test_a_window_is_the_same_part_of_everything() -> None:
    """The image, the enlarged low-resolution one, and the positions that the U-Net is told."""
    stage = wide_stage()
    images = randn(3, 3, 32, 32).clamp(-1, 1)
    draws = stage.training_noise(3, 0.0, torch.Generator().manual_seed(1), 16)
    whole = TrainingNoise(
        draws.t,
        randn(3, 3, 32, 32, seed=8),
        draws.keep_text,
        draws.aug_level,
        randn(3, 3, 32, 32, seed=9),
        torch.zeros(3, 2, dtype=torch.long),
    )

    def cut(x: Tensor) -> Tensor:
        parts = zip(x, draws.corner.tolist(), strict=True)
        return torch.stack([one[:, a : a + 16, b : b + 16] for one, (a, b) in parts])

    draws = draws._replace(eps=cut(whole.eps), aug_noise=cut(whole.aug_noise))
    seen: list[tuple[Any, ...]] = []
    stage.unet.register_forward_hook(
        lambda module, args, kwargs, out: seen.append((*args, kwargs)), with_kwargs=True
    )
    stage(images, TEXT, MASK, whole)
    loss = stage(images, TEXT, MASK, draws)
    assert loss.shape == (3,)
    (z, _, _, _, _, lowres, _, plain), (z_cut, _, _, _, _, lowres_cut, _, told) = seen
    torch.testing.assert_close(z_cut, cut(z))
    torch.testing.assert_close(lowres_cut, cut(lowres))
    assert plain == {} and torch.equal(told["window"].corner, draws.corner)
    assert told["window"].side == 32


def test_a_unet_takes_a_window_for_the_whole_where_it_is_the_whole() -> None:
    """And another place of the same pixels changes its answer."""
    stage = wide_stage()
    z, t = randn(3, 3, 16, 16), torch.full((3,), 0.5)
    inputs = (z, t, TEXT, MASK, None, randn(3, 3, 16, 16, seed=4), t)
    corner = torch.zeros(3, 2, dtype=torch.long)
    due = stage.unet(*inputs)
    torch.testing.assert_close(stage.unet(*inputs, Window(corner, 16)), due)
    assert (stage.unet(*inputs, Window(corner + 16, 32)) - due).abs().max() > 1e-3


@pytest.mark.slow
def test_memory_and_time_grow_with_the_window() -> None:
    """Half the side: a quarter of the operations and of what is kept for the gradients."""
    stage = wide_stage()
    operations, kept = [], []
    for side in (32, 16):
        draws = stage.training_noise(3, 0.0, torch.Generator().manual_seed(1), side)
        sizes: dict[int, int] = {}

        def note(x: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        weights = sum(p.untyped_storage().nbytes() for p in stage.parameters())
        with (
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(note, lambda x: x),
        ):
            loss = stage(randn(3, 3, 32, 32), TEXT, MASK, draws).mean()
        loss.backward()
        operations.append(counter.get_total_flops())
        kept.append(sum(sizes.values()) - weights)
    assert 3.5 < operations[0] / operations[1] <= 4
    assert kept[0] > 2.5 * kept[1]


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_gradients_flow_to_every_parameter_of_every_stage(stages: int) -> None:
    """The training loss of each stage reaches all its parameters, and no other stage's."""
    imagen = cascade(stages)
    for i, stage in enumerate(imagen.stages):
        imagen.zero_grad()
        draws = stage.training_noise(3, 0.5, torch.Generator().manual_seed(1))
        draws = draws._replace(keep_text=torch.tensor([True, False, True]))
        stage(randn(3, 3, 16, 16), TEXT, MASK, draws).mean().backward()
        for j, other in enumerate(imagen.stages):
            for name, parameter in other.named_parameters():
                touched = parameter.grad is not None and bool(parameter.grad.any())
                assert touched == (i == j), f"stage {j}, {name}"


@pytest.mark.slow
def test_a_stage_learns_one_image_by_heart() -> None:
    """A few seconds of training: the loss falls by far, and sampling gives the image back."""
    torch.manual_seed(0)
    stage = Stage(StageConfig(side=4, steps=10), BASE, None)
    image = resize(randn(1, 3, 2, 2).clamp(-1, 1), 4)
    images, text = image.expand(16, -1, -1, -1), TEXT[:1].expand(16, -1, -1)
    mask = MASK[:1].expand(16, -1)
    fixed = stage.training_noise(16, 0.0, torch.Generator().manual_seed(1))
    before = stage(images, text, mask, fixed).mean().item()
    optimizer = torch.optim.Adam(stage.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(2)
    for _ in range(120):
        loss = stage(images, text, mask, stage.training_noise(16, 0.1, generator)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert stage(images, text, mask, fixed).mean().item() < before / 5
    noise = NoiseSource([5], (3, 4, 4))
    *_, sample = stage.sample(text[:1], mask[:1], noise, timesteps=100)
    assert (sample - image).abs().mean() < 0.15


def test_text_is_whitened_by_what_fit_text_has_seen() -> None:
    """In every stage alike, and the whitening is saved with the weights."""
    imagen = cascade(3)
    text, mask = randn(50, 4, BASE.text_dim, seed=5), torch.ones(50, 4, dtype=torch.bool)
    before = {name: value.clone() for name, value in imagen.state_dict().items()}
    imagen.fit_text(text, mask)
    after = imagen.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"stages.{i}.unet.whitening.{part}" for i in range(3) for part in ("mean", "matrix")
    }


# --- the low-resolution condition -----------------------------------------------------------------


def test_condition_is_noised_in_one_place_and_scale_in_training_and_sampling() -> None:
    """Fault 1: same image, level and noise; the U-Net receives the same in both.

    And it is what the paper says: the image in [-1, 1], enlarged, then alpha times it plus sigma
    times noise of the stage's size, unclamped.
    """
    stage = super_stage(aug_level=0.2, guidance_weight=1.0, steps=3)
    images, noise = randn(3, 3, 8, 8).clamp(-1, 1), randn(3, 3, 8, 8, seed=1)
    lowres = images.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))  # (3, 3, 4, 4)
    calls = watch(stage.unet)

    draws = stage.training_noise(3, 0.0, torch.Generator().manual_seed(0))
    draws = draws._replace(aug_level=torch.full((3,), 0.2), aug_noise=noise)
    stage(images, TEXT, MASK, draws)
    *_, in_training, level_in_training = calls.pop()

    source = iter([randn(3, 3, 8, 8, seed=2), noise]).__next__  # the first z, then the condition's
    for _ in stage.sample(TEXT, MASK, source, 100, lowres):  # type: ignore[arg-type]
        *_, in_sampling, level_in_sampling = calls.pop()
        torch.testing.assert_close(in_sampling, in_training, atol=1e-6, rtol=0)
        assert torch.equal(level_in_sampling, level_in_training)

    alpha, sigma = alpha_sigma(torch.full((3,), 0.2))
    enlarged = F.interpolate(lowres, scale_factor=2, mode="bilinear")
    expected = alpha * enlarged + sigma * noise
    torch.testing.assert_close(in_training, expected, atol=1e-5, rtol=0)
    assert expected.abs().max() > 1  # so a clamp would have been seen


def test_each_image_is_noised_at_its_own_level_in_training() -> None:
    """Fault 4: the U-Net is told one level per image, and each image has that much noise."""
    stage = super_stage()
    calls = watch(stage.unet)
    draws = stage.training_noise(3, 0.0, torch.Generator().manual_seed(0))
    draws = draws._replace(aug_level=torch.tensor([0.05, 0.5, 0.95]))
    images = randn(3, 3, 8, 8)
    stage(images, TEXT, MASK, draws)
    *_, seen, levels = calls.pop()
    assert torch.equal(levels, draws.aug_level)
    alpha, sigma = alpha_sigma(levels)
    enlarged = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(seen, alpha * enlarged + sigma * draws.aug_noise, atol=1e-5, rtol=0)


def test_a_stage_starts_from_the_image_of_the_one_before() -> None:
    """With level 0 the next U-Net sees the finished image, enlarged, and nothing else."""
    imagen = cascade(2, aug_level=0.0)
    calls = watch(imagen.stages[1].unet)
    first, second = imagen.images(TEXT, MASK, SEEDS)
    assert first.shape == (3, 3, 4, 4) and second.shape == (3, 3, 8, 8)
    enlarged = F.interpolate(first, scale_factor=2, mode="bilinear")
    for *_, seen, level in calls:
        torch.testing.assert_close(seen[:3], enlarged, atol=1e-3, rtol=0)  # smallest sigma: 4.5e-5
        assert (level == 0).all()


# --- registered modules ---------------------------------------------------------------------------


def test_parameters_and_modes_cover_all_stages_at_all_times() -> None:
    """Fault 2: U-Nets stay registered, before and after training and sampling."""
    imagen = cascade(3)
    expected = sum(p.numel() for stage in imagen.stages for p in stage.unet.parameters())
    assert expected > 0

    def check() -> None:
        assert sum(parameter.numel() for parameter in imagen.parameters()) == expected
        for i in range(3):
            assert f"stages.{i}.unet.out.weight" in imagen.state_dict()
        for mode in (False, True):
            imagen.train(mode)
            assert all(module.training is mode for module in imagen.modules())
            assert all(block.training is mode for s in imagen.stages for block in s.unet.modules())

    check()
    for stage in imagen.stages:
        draws = stage.training_noise(3, 0.1, torch.Generator().manual_seed(0))
        stage(randn(3, 3, 16, 16), TEXT, MASK, draws).mean().backward()
        check()
    imagen.images(TEXT, MASK, SEEDS)
    check()


def test_sampling_leaves_each_module_in_its_mode() -> None:
    """The training flags are those from before, also when the sampling is interrupted."""
    imagen = cascade(2)
    imagen.train()
    imagen.stages[0].eval()
    before = [module.training for module in imagen.modules()]
    seen: list[bool] = []
    imagen.stages[1].unet.register_forward_pre_hook(lambda unet, _: seen.append(unet.training))
    imagen.images(TEXT, MASK, SEEDS)
    assert seen and not any(seen)  # in eval mode meanwhile
    assert [module.training for module in imagen.modules()] == before

    states = imagen.sample(TEXT, MASK, SEEDS)
    next(states)
    assert not any(module.training for module in imagen.modules())
    states.close()  # as when nobody wants the rest
    assert [module.training for module in imagen.modules()] == before

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    imagen.stages[1].unet.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        imagen.images(TEXT, MASK, SEEDS)
    assert [module.training for module in imagen.modules()] == before


def test_sampled_images_carry_no_graph_and_may_be_trained_on() -> None:
    """No gradients are kept while sampling, yet images are ordinary tensors afterwards."""
    imagen = cascade(2)
    images = imagen.images(TEXT, MASK, SEEDS)[-1]
    states = list(imagen.stages[0].sample(TEXT, MASK, NoiseSource(SEEDS, (3, 4, 4)), 100))
    assert not any(part.requires_grad or part.is_inference() for part in [images, *states])
    stage = imagen.stages[1]
    draws = stage.training_noise(3, 0.0, torch.Generator().manual_seed(0))
    stage(images, TEXT, MASK, draws).mean().backward()
    assert stage.unet.out.weight.grad.any()


# --- guidance -------------------------------------------------------------------------------------


def by_hand(stage: Stage, z: Tensor, t: Tensor, keep: bool) -> Tensor:
    """x_hat with or without the captions, before any threshold: one call of the U-Net."""
    out = stage.unet(z, t, TEXT, MASK, torch.full((3,), keep))
    alpha, sigma = alpha_sigma(t)
    return {"x": out, "eps": (z - sigma * out) / alpha, "v": alpha * z - sigma * out}[
        stage.config.parameterization
    ]


@pytest.mark.parametrize("parameterization", get_args(Parameterization))
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_guidance_is_the_formula_of_the_paper(
    parameterization: Parameterization, weight: float
) -> None:
    """w x_cond + (1 - w) x_uncond (fault 11): 1 is the caption alone, 0 is without it."""
    stage = base_stage(parameterization=parameterization, guidance_weight=weight, threshold="none")
    z, t = randn(3, 3, 4, 4), torch.tensor([0.1, 0.4, 0.7])
    with_text, without = by_hand(stage, z, t, True), by_hand(stage, z, t, False)
    assert (with_text - without).abs().max() > 1e-3
    expected = weight * with_text + (1 - weight) * without
    out = stage.denoiser(TEXT, MASK)(z, t)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_threshold_is_applied_to_the_guided_image() -> None:
    """Guidance first, then the threshold with the stage's percentile."""
    loose = base_stage(guidance_weight=8.0, threshold="none")
    tight = base_stage(guidance_weight=8.0, threshold="dynamic", percentile=0.8)
    z, t = randn(3, 3, 4, 4), torch.tensor([0.3, 0.6, 0.9])
    x = loose.denoiser(TEXT, MASK)(z, t)
    assert x.abs().max() > 1.1
    torch.testing.assert_close(tight.denoiser(TEXT, MASK)(z, t), dynamic_threshold(x, 0.8))


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_guidance_is_one_call_of_a_double_batch(weight: float) -> None:
    """2 B images where guidance is on, B where it is off; never two calls a step."""
    imagen = cascade(2, guidance_weight=weight)
    calls = [watch(stage.unet) for stage in imagen.stages]
    imagen.images(TEXT, MASK, SEEDS)
    batch = 3 if weight == 1 else 6
    assert [[len(call[0]) for call in stage] for stage in calls] == [[batch] * 4] * 2


def test_guidance_is_off_outside_of_its_interval() -> None:
    """Inside it two branches, outside the caption alone, also within one batch."""
    stage = base_stage(guidance_weight=3.0, guidance_interval=(0.3, 0.5), threshold="none", steps=5)
    calls = watch(stage.unet)
    list(stage.sample(TEXT, MASK, NoiseSource(SEEDS, (3, 4, 4)), 100))
    steps = {round(call[1][0].item(), 3): len(call[0]) for call in calls}
    assert steps == {1.0: 3, 0.8: 3, 0.6: 3, 0.4: 6, 0.2: 3}
    z, t = randn(3, 3, 4, 4), torch.tensor([0.1, 0.4, 0.7])
    with_text, without = by_hand(stage, z, t, True), by_hand(stage, z, t, False)
    expected = with_text.clone()
    expected[1] = 3 * with_text[1] - 2 * without[1]
    out = stage.denoiser(TEXT, MASK)(z, t)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_image_depends_on_its_caption_and_seed_alone(sampler: str) -> None:
    """Drawn alone or among others, in any order: the same image in every stage."""
    imagen = cascade(2, sampler=sampler, eta=0.7)
    together = imagen.images(TEXT, MASK, SEEDS)
    order = [2, 0]
    shuffled = imagen.images(TEXT[order], MASK[order], [SEEDS[i] for i in order])
    alone = imagen.images(TEXT[1:2], MASK[1:2], SEEDS[1:2])
    for whole, part, one in zip(together, shuffled, alone, strict=True):
        torch.testing.assert_close(part, whole[order], atol=1e-5, rtol=0)
        torch.testing.assert_close(one, whole[1:2], atol=1e-5, rtol=0)
    other = imagen.images(TEXT, MASK, [11, 23, 33])
    changed = [(a - b).abs().amax((1, 2, 3)) > 1e-3 for a, b in zip(other, together, strict=True)]
    assert [part.tolist() for part in changed] == [[False, True, False]] * 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_stage_samples_by_its_own_settings(sampler: str) -> None:
    """Schedule, sampler, steps, timesteps and eta are those of the configuration."""
    schedule = NoiseSchedule("linear", shift=0.7)
    stage = base_stage(sampler=sampler, steps=5, eta=0.7, schedule=schedule, guidance_weight=2.0)
    ours = list(stage.sample(TEXT, MASK, NoiseSource(SEEDS, (3, 4, 4)), timesteps=50))
    noise = NoiseSource(SEEDS, (3, 4, 4))
    times = torch.tensor([1, 0.8, 0.6, 0.4, 0.2, 0], dtype=torch.float64)
    run = SAMPLERS[sampler](stage.denoiser(TEXT, MASK), noise(), schedule, times, noise, eta=0.7)
    assert len(ours) == 5
    for a, b in zip(ours, run, strict=True):
        torch.testing.assert_close(a, b)


def test_sampling_needs_no_global_randomness() -> None:
    """The same seeds give the same images whatever torch's own generator says, and leave it."""
    imagen = cascade(2, sampler="ddpm")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = imagen.images(TEXT, MASK, SEEDS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    for a, b in zip(first, imagen.images(TEXT, MASK, SEEDS), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("length", [32, 64])
def test_padding_gives_the_same_image(length: int) -> None:
    """Fault 3, through the whole cascade: a caption of 5, 32 or 64 tokens of which few count."""
    imagen = cascade(2)
    text = 10 * randn(3, length, 8, seed=7)
    text[:, :5][MASK] = TEXT[MASK]
    padded = imagen.images(text, F.pad(MASK, (0, length - 5)), SEEDS)
    for a, b in zip(padded, imagen.images(TEXT, MASK, SEEDS), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    others = imagen.images(TEXT.flip(0), MASK.flip(0), SEEDS)
    assert (others[-1][0] - padded[-1][0]).abs().max() > 1e-3  # the caption does matter


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_any_number_of_stages(stages: int) -> None:
    """Every stage's images come back, in [-1, 1]."""
    images = cascade(stages, threshold="none").images(TEXT, MASK, SEEDS)
    assert [part.shape for part in images] == [(3, 3, s, s) for s in (4, 8, 16)[:stages]]
    assert all(part.isfinite().all() and part.abs().max() <= 1 for part in images)


def test_every_state_is_yielded_and_the_last_of_a_stage_is_its_image() -> None:
    """Those of the stage alone, in order; only the last is clamped, and the next stage sees it."""
    imagen = cascade(2, threshold="none", sampler="ddpm", aug_level=0.0).eval()
    calls = watch(imagen.stages[1].unet)
    states = list(imagen.sample(TEXT, MASK, SEEDS))
    assert [stage for stage, _ in states] == [0] * 4 + [1] * 4
    alone = list(imagen.stages[0].sample(TEXT, MASK, NoiseSource(SEEDS, (3, 4, 4)), 100))
    for (_, state), expected in zip(states[:3], alone[:3], strict=True):
        torch.testing.assert_close(state, expected)
    assert alone[-1].abs().max() > 1  # so the clamp is seen
    torch.testing.assert_close(states[3][1], alone[-1].clamp(-1, 1))
    small = F.interpolate(states[3][1], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(calls[0][-2][:3], small, atol=1e-3, rtol=0)
    for image, (_, state) in zip(imagen.images(TEXT, MASK, SEEDS), states[3::4], strict=True):
        assert torch.equal(image, state)


def test_starting_from_a_low_resolution_image() -> None:
    """The later stages alone give what the whole cascade gave, from the image it had there."""
    imagen = cascade(3)
    base, middle, top = imagen.images(TEXT, MASK, SEEDS)
    again = imagen.images(TEXT, MASK, SEEDS, lowres=base, start=1)
    assert len(again) == 2
    torch.testing.assert_close(again[0], middle)
    torch.testing.assert_close(again[1], top)
    (last,) = imagen.images(TEXT, MASK, SEEDS, lowres=middle, start=2)
    torch.testing.assert_close(last, top)


def test_a_larger_image_to_start_from_is_brought_down_first() -> None:
    """A stage trained on enlarged small images gets one, also from a large one."""
    imagen = cascade(2)
    large = randn(3, 3, 8, 8).clamp(-1, 1)
    (a,) = imagen.images(TEXT, MASK, SEEDS, lowres=large, start=1)
    (b,) = imagen.images(TEXT, MASK, SEEDS, lowres=F.avg_pool2d(large, 2), start=1)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 2)}, "3 captions have 2 seeds"),
        ({"seeds": (1, 2, -3)}, "non-negative integer"),
        ({"start": 1}, "start is 1, it should be 0"),
        ({"start": 2, "lowres": randn(3, 3, 4, 4)}, "start is 2"),
        ({"start": -1, "lowres": randn(3, 3, 4, 4)}, "start is -1"),
        ({"lowres": randn(3, 3, 4, 4)}, "start is 0"),
        ({"start": 1, "lowres": randn(2, 3, 4, 4)}, "3 captions have 2 low-resolution images"),
        ({"start": 1, "lowres": randn(3, 3, 4, 6)}, "6 x 4 pixels, they should be square"),
    ],
)
def test_sampling_errors_say_what_would_be_right(changes: dict[str, Any], message: str) -> None:
    """A wrong argument is named, in one line."""
    with pytest.raises(ValueError, match=message) as error:
        cascade(2).images(TEXT, MASK, **{"seeds": SEEDS, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [base_stage, super_stage])
def test_a_stage_by_itself_wants_the_right_low_resolution_image(
    make: Callable[[], Stage],
) -> None:
    """A base stage takes none, a super-resolution stage needs one."""
    stage = make()
    wrong = randn(3, 3, 4, 4) if stage.lowres_side is None else None
    side = stage.config.side
    with pytest.raises(ValueError, match=f"stage of {side} pixels"):
        next(stage.sample(TEXT, MASK, NoiseSource(SEEDS, (3, side, side)), 100, wrong))


# --- configuration --------------------------------------------------------------------------------

STAGE = StageConfig(side=8)
TOP = StageConfig(side=16)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("side", 0),
        ("parameterization", "epsilon"),
        ("weighting", "snr"),
        ("guidance_interval", (0.6, 0.5)),
        ("guidance_interval", (0.0, 1.1)),
        ("guidance_interval", (0.5,)),
        ("threshold", "hard"),
        ("percentile", 0.0),
        ("percentile", 1.01),
        ("sampler", "euler"),
        ("steps", 0),
        ("eta", -0.1),
        ("eta", float("nan")),
        ("aug_level", 1.1),
        ("aug_power", -1.0),
    ],
)
def test_stage_config_errors_name_the_culprit_in_one_line(field: str, value: object) -> None:
    """A wrong setting is named, with its value and what would be right."""
    with pytest.raises(ValueError, match=rf"^`{field}(\[|`).*is .*, it should be") as error:
        dataclasses.replace(STAGE, **{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ()}, "`stages` is empty"),
        ({"stages": (TOP, STAGE)}, r"sides \[16, 8\]"),
        ({"stages": (STAGE, STAGE)}, r"sides \[8, 8\]"),
        ({"timesteps": 19}, r"`stages\[0\].steps` is 20, it should be at most timesteps 19"),
        ({"max_tokens": 1}, "`max_tokens` is 1, it should be at least 2"),
        ({"text_dropout": 1.5}, "`text_dropout` is 1.5, it should be from 0 to 1"),
    ],
)
def test_imagen_config_errors_name_the_culprit_in_one_line(
    changes: dict[str, Any], message: str
) -> None:
    """A wrong setting is named, with its value and what would be right."""
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(ImagenConfig((STAGE, TOP)), **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("unets", "message"),
    [
        ([BASE], "2 stages have 1 U-Nets"),
        ([SUPER, SUPER], "lowres is True for the stage of 8 pixels"),
        ([BASE, BASE], "lowres is False for the stage of 16 pixels"),
        ([BASE, dataclasses.replace(SUPER, text_dim=16)], r"text_dim is \[8, 16\]"),
        ([BASE, dataclasses.replace(SUPER, patch=16)], "side is 16, .* multiple of 32"),
    ],
)
def test_unets_that_do_not_fit_are_refused(unets: list[UnetConfig], message: str) -> None:
    """When the cascade is put together, one line says what does not fit."""
    with pytest.raises(ValueError, match=message) as error:
        Imagen(ImagenConfig((STAGE, TOP)), unets)
    assert "\n" not in str(error.value)


def test_config_survives_json() -> None:
    """asdict, to JSON, back, and into the constructor: the same, schedules and intervals too."""
    config = ImagenConfig(
        (
            StageConfig(side=8, guidance_interval=(0.1, 0.9), eta=0.5, sampler="heun"),
            StageConfig(side=16, schedule=NoiseSchedule("linear", shift=0.5), threshold="static"),
        ),
        timesteps=50,
        text_dropout=0.2,
    )
    again = ImagenConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)
    assert isinstance(again.stages[1].schedule, NoiseSchedule)
