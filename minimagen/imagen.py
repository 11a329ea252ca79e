"""The cascade: a base stage draws a small image of the caption, the others enlarge it.

A ``Stage`` is one diffusion model: a U-Net, a noise schedule, and how it is trained and sampled.
``Imagen`` is a chain of stages (Saharia et al., 2205.11487; Ho et al., cascades, 2106.15282).
Captions are given as embeddings, see ``text``; images are (B, 3, side, side) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Annotated, NamedTuple, cast

import torch
import torch.nn.functional as F
from annotated_types import Interval, Le
from torch import Tensor, nn

from minimagen.augmentation import augment, level_weight, random_levels
from minimagen.diffusion import (
    Denoiser,
    Parameterization,
    Weighting,
    diffusion_loss,
    q_sample,
    to_x,
)
from minimagen.guidance import guide, weight_at
from minimagen.layers import Window
from minimagen.samplers import SAMPLERS, NoiseSource, SamplerName
from minimagen.schedules import NoiseSchedule, expand
from minimagen.settings import Name, Share, Side, Times, Tokens, settings
from minimagen.thresholding import Threshold, threshold
from minimagen.unet import Unet, UnetConfig

Percentile = Annotated[float, Interval(gt=0, le=1)]
Power = Annotated[float, Interval(ge=0), Le(1000)]
Weight = Annotated[float, Interval(ge=-1_000_000, le=1_000_000)]  # of guidance


@settings
class StageConfig:
    """How one stage is trained and sampled; ``UnetConfig`` describes its network.

    Raises ValueError, naming the setting.
    """

    side: Side = 64  # side of its images, in pixels
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)  # of noise over time
    parameterization: Parameterization = "x"  # what the U-Net predicts
    weighting: Weighting = "uniform"  # of the loss over time
    guidance_weight: Weight = 1.0  # 1 is off; a larger one follows the caption more closely
    guidance_interval: tuple[Share, Share] | None = None  # times t with guidance; None: all
    threshold: Threshold = "dynamic"  # how x_hat is kept in range
    percentile: Percentile = 0.95  # of |x_hat|, which dynamic thresholding scales to 1
    sampler: SamplerName = "ddim"  # one of samplers.SAMPLERS
    steps: Times = 20  # of the sampler, at most the cascade's timesteps
    eta: Share = 0.0  # noise that the DDIM sampler renews
    aug_level: Share = 0.1  # noise conditioning augmentation level in sampling
    aug_power: Power = 2.0  # weight of low levels in training, see augmentation.level_weight

    def __post_init__(self) -> None:
        if self.guidance_interval and self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(
                f"`guidance_interval` is {self.guidance_interval}, it should be (low, high) with "
                "low <= high"
            )


@settings
class ImagenConfig:
    """The configuration of a cascade, without its U-Nets (see ``UnetConfig``).

    Raises ValueError, naming the setting.
    """

    stages: tuple[StageConfig, ...]  # from the base to the last super-resolution
    timesteps: Times = 1000  # grid of times from which samplers choose their steps
    text_encoder: Name = "t5_tiny"  # see text.load_text_encoder
    max_tokens: Tokens = 64  # maximum number of tokens per caption
    text_dropout: Share = 0.1  # share of captions hidden in training, for guidance

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("`stages` is empty, it should have at least one stage")
        sides = [stage.side for stage in self.stages]
        if sides != sorted(set(sides)):
            raise ValueError(f"`stages` have sides {sides}, these should grow")
        for number, stage in enumerate(self.stages):
            if stage.steps > self.timesteps:
                raise ValueError(
                    f"`stages[{number}].steps` is {stage.steps}, it should be at most timesteps "
                    f"{self.timesteps}"
                )


class TrainingNoise(NamedTuple):
    """All random numbers of one training step: with them, a loss can be computed again exactly."""

    t: Tensor  # times in [0, 1], (B,)
    eps: Tensor  # noise, (B, 3, side, side)
    keep_text: Tensor  # (B,) bool, False hides the caption
    aug_level: Tensor  # noise conditioning augmentation levels in [0, 1], (B,)
    aug_noise: Tensor  # (B, 3, side, side); (B,) in a base stage, which does not use it
    corner: Tensor  # (B, 2): row and column where a window of the image begins, see Stage.forward

    def to(self, device: torch.device | str) -> TrainingNoise:
        """Move all of them to a device."""
        return TrainingNoise(*(part.to(device) for part in self))


def resize(images: Tensor, side: int) -> Tensor:
    """Square images (B, C, H, H) at another size, (B, C, side, side).

    Smaller: the mean of blocks of pixels if the factor is an integer, else bilinear with
    antialiasing. Larger: bilinear. Values stay within the range of the input.

    Raises ValueError if they are not square: the caller decides whether to crop or stretch them.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"images are {width} x {height} pixels, they should be square")
    if height == side:
        return images
    if height % side == 0:
        return F.avg_pool2d(images, height // side)
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=height > side)


class Stage(nn.Module):
    """One diffusion model of the cascade. As a module it computes its own training loss.

    config:       how the stage is trained and sampled
    unet:         the network; ``unet.lowres`` says whether this is a super-resolution stage
    lowres_side:  side of the previous stage's images; None for a base stage

    Raises ValueError if they do not fit together.
    """

    def __init__(self, config: StageConfig, unet: UnetConfig, lowres_side: int | None) -> None:
        super().__init__()
        if unet.lowres != (lowres_side is not None):
            raise ValueError(
                f"unet lowres is {unet.lowres} for the stage of {config.side} pixels, it should "
                "be false for the first stage and true for all others"
            )
        if config.side % unet.side_multiple:
            raise ValueError(
                f"stage side is {config.side}, its U-Net needs a multiple of {unet.side_multiple}"
            )
        self.config = config
        self.lowres_side = lowres_side
        self.unet = Unet(unet)

    def training_noise(
        self,
        batch: int,
        text_dropout: float,
        generator: torch.Generator,
        crop_side: int | None = None,
    ) -> TrainingNoise:
        """The random numbers for a training step of ``batch`` images, on the CPU.

        text_dropout: share of captions to hide, in [0, 1]
        crop_side:    side of the windows that a super-resolution stage trains on, a multiple of the
                      U-Net's ``side_multiple``; None, or not below the stage's side: whole images

        Times are uniform, one in each of ``batch`` equal parts of [0, 1] (low-discrepancy times,
        VDM 2107.00630, app. I): the mean loss of a batch then varies less.
        """
        side, corner = self.config.side, torch.zeros(batch, 2, dtype=torch.long)
        if self.lowres_side is not None and crop_side is not None and crop_side < side:
            # windows begin at multiples of what the U-Net treats as one
            multiple = self.unet.config.side_multiple
            places = (side - crop_side) // multiple + 1
            corner = multiple * torch.randint(places, (batch, 2), generator=generator)
            side = crop_side
        shape = (batch, 3, side, side)
        start = torch.rand((), generator=generator)
        order = torch.randperm(batch, generator=generator)
        return TrainingNoise(
            t=(start + order) / batch,
            eps=torch.randn(shape, generator=generator),
            keep_text=torch.rand(batch, generator=generator) >= text_dropout,
            aug_level=random_levels(batch, generator),
            aug_noise=torch.randn(shape if self.lowres_side else (batch,), generator=generator),
            corner=corner,
        )

    def forward(self, images: Tensor, text: Tensor, mask: Tensor, noise: TrainingNoise) -> Tensor:
        """Training loss of each image, (B,) (DDPM, 2006.11239, algorithm 1).

        images: clean, (B, 3, H, H) in [-1, 1], H at least the stage's side
        text, mask: captions, (B, N, D) and (B, N)
        noise: see ``training_noise``; if it is smaller than the stage's images, the loss is that
               of a window of each image, as large as the noise (Imagen, 2205.11487, sec. 2.5,
               trains its last stage so): memory and time grow with the window, not with the image
        """
        x = self._window(resize(images, self.config.side), noise)
        alpha, sigma = self.config.schedule.alpha_sigma(expand(noise.t, x))
        z = q_sample(x, noise.eps, alpha, sigma)
        condition: tuple[Tensor, ...] = ()
        if self.lowres_side is not None:
            lowres = self._window(self._enlarge(images), noise)
            condition = self._augment(lowres, noise.aug_level, noise.aug_noise)
        cropped = x.shape[-1] < self.config.side
        where = {"window": Window(noise.corner, self.config.side)} if cropped else {}
        out = self.unet(z, noise.t, text, mask, noise.keep_text, *condition, **where)
        loss = diffusion_loss(
            self.config.parameterization, out, x, noise.eps, alpha, sigma, self.config.weighting
        )
        if self.lowres_side is None:
            return loss
        return loss * level_weight(noise.aug_level, self.config.aug_power)

    def _window(self, images: Tensor, noise: TrainingNoise) -> Tensor:
        """The window of each image that begins at ``noise.corner``, as large as ``noise.eps``."""
        side = noise.eps.shape[-1]
        if side == images.shape[-1]:
            return images
        steps = torch.arange(side, device=images.device)
        rows, columns = noise.corner[:, 0, None] + steps, noise.corner[:, 1, None] + steps
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        # (B, C, H, W) -> (B, H, W, C) -> (B, side, side, C) -> (B, C, side, side)
        pixels = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
        return pixels.permute(0, 3, 1, 2)

    def _enlarge(self, images: Tensor) -> Tensor:
        """The images as the previous stage would give them, at this stage's side.

        They are reduced to the previous stage's side if they are larger, then enlarged.
        """
        assert self.lowres_side is not None
        return resize(resize(images, self.lowres_side), self.config.side)

    def _augment(self, lowres: Tensor, level: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The low-resolution inputs of the U-Net, (image, level), in training and sampling."""
        return augment(lowres, level, noise, self.config.schedule), level

    def denoiser(self, text: Tensor, mask: Tensor, condition: tuple[Tensor, ...] = ()) -> Denoiser:
        """denoise(z, t) -> x_hat for these captions: U-Net, parameterisation, guidance, threshold.

        text, mask: (B, N, D), (B, N). condition: () in a base stage, else noisy low-resolution
        images of this stage's side, and their levels (B,). With guidance, the U-Net runs once on a
        batch of 2 B: with and without captions.
        """
        config = self.config

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            weight = weight_at(t, config.guidance_weight, config.guidance_interval)  # (B,)
            alpha, sigma = config.schedule.alpha_sigma(expand(t, z))
            if bool((weight == 1).all()):
                out = self.unet(z, t, text, mask, None, *condition)
            else:
                keep = torch.arange(2 * len(z), device=z.device) < len(z)  # captions, then none
                inputs = (torch.cat([part, part]) for part in (z, t, text, mask))
                twice = (torch.cat([part, part]) for part in condition)
                out_cond, out_uncond = self.unet(*inputs, keep, *twice).chunk(2)
                out = guide(out_cond, out_uncond, expand(weight, z))
            x = to_x(config.parameterization, out, z, alpha, sigma)
            return threshold(x, config.threshold, config.percentile)

        return denoise

    @torch.no_grad()
    def sample(
        self,
        text: Tensor,
        mask: Tensor,
        noise: NoiseSource,
        timesteps: int,
        lowres: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Draw images of captions, yielding every state (B, 3, side, side); the last is clean.

        text, mask: (B, N, D), (B, N)
        noise:      of images of this stage's side
        timesteps:  size of the grid from which the sampler's times are chosen
        lowres:     the previous stage's images, (B, 3, h, h) in [-1, 1]; None in a base stage

        Raises ValueError if lowres is missing, or given to a base stage.
        """
        if (lowres is None) != (self.lowres_side is None):
            raise ValueError(
                f"the stage of {self.config.side} pixels "
                + ("needs a low-resolution image" if lowres is None else "takes none")
            )
        config = self.config
        z = noise()
        level = torch.full((len(z),), config.aug_level, device=z.device)
        condition: tuple[Tensor, ...] = ()
        if lowres is not None:
            condition = self._augment(self._enlarge(lowres), level, noise())
        times = config.schedule.times(timesteps, config.steps)
        sampler = SAMPLERS[config.sampler]
        denoise = self.denoiser(text, mask, condition)
        yield from sampler(denoise, z, config.schedule, times, noise, eta=config.eta)


class Imagen(nn.Module):
    """A cascade of stages; ``stages[i]`` is a registered submodule, trained separately.

    Raises ValueError if the numbers of stages and U-Nets differ, or if they do not fit together.
    """

    stages: Sequence[Stage]  # an nn.ModuleList, whose type does not say what it holds

    def __init__(self, config: ImagenConfig, unets: Sequence[UnetConfig]) -> None:
        super().__init__()
        if len(unets) != len(config.stages):
            raise ValueError(
                f"{len(config.stages)} stages have {len(unets)} U-Nets, each should have one"
            )
        if len({unet.text_dim for unet in unets}) > 1:
            raise ValueError(
                f"unet text_dim is {[unet.text_dim for unet in unets]}, it should be the same in "
                "all U-Nets: they read the same text"
            )
        self.config = config
        sides: list[int | None] = [None, *(stage.side for stage in config.stages)]
        stages = [
            Stage(stage, unet, side)
            for stage, unet, side in zip(config.stages, unets, sides[:-1], strict=True)
        ]
        self.stages = cast("Sequence[Stage]", nn.ModuleList(stages))

    def fit_text(self, text: Tensor, mask: Tensor) -> None:
        """Fit the whitening of every U-Net to these embeddings; call this before training.

        text, mask: captions of the training data, (B, N, D) and (B, N); a thousand are enough
        """
        for stage in self.stages:
            stage.unet.whitening.fit(text, mask)

    @torch.no_grad()
    def sample(
        self,
        text: Tensor,
        mask: Tensor,
        seeds: Sequence[int],
        lowres: Tensor | None = None,
        start: int = 0,
    ) -> Iterator[tuple[int, Tensor]]:
        """Draw images of captions, yielding (stage, state) after every step of a sampler.

        text, mask: captions, (B, N, D) and (B, N)
        seeds:      one per image; image i depends only on its caption and on seeds[i]
        lowres:     start from these images (B, 3, h, h) in [-1, 1], at stage ``start`` >= 1; larger
                    images are first reduced to the side of the stage before
        start:      first stage to run

        States are (B, 3, side, side). The last state of a stage, clamped to [-1, 1], is its image
        and the input of the next stage. The U-Nets are in eval mode until the iterator ends or is
        closed. Raises ValueError, at the first step, if captions, seeds and lowres differ in
        number, or if start and lowres do not agree.
        """
        if len(seeds) != len(text):
            raise ValueError(f"{len(text)} captions have {len(seeds)} seeds, each needs one")
        if lowres is not None and len(lowres) != len(text):
            raise ValueError(
                f"{len(text)} captions have {len(lowres)} low-resolution images, each needs one"
            )
        if not 0 <= start < len(self.stages) or (start > 0) != (lowres is not None):
            raise ValueError(
                f"start is {start}, it should be 0 without a low-resolution image and 1 to "
                f"{len(self.stages) - 1} with one"
            )
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            for index, stage in enumerate(self.stages[start:], start):
                shape = (3, stage.config.side, stage.config.side)
                noise = NoiseSource(seeds, shape, text.device, stream=index)
                states = stage.sample(text, mask, noise, self.config.timesteps, lowres)
                for step, state in enumerate(states, 1):
                    lowres = state.clamp(-1, 1) if step == stage.config.steps else state
                    yield index, lowres
        finally:
            for module in training:
                module.training = True

    def images(
        self,
        text: Tensor,
        mask: Tensor,
        seeds: Sequence[int],
        lowres: Tensor | None = None,
        start: int = 0,
    ) -> list[Tensor]:
        """Images of captions, one batch (B, 3, side, side) in [-1, 1] for each stage that ran.

        The last entry holds the finished images. Arguments and errors are those of ``sample``.
        """
        last: dict[int, Tensor] = {}
        for index, state in self.sample(text, mask, seeds, lowres, start):
            last[index] = state
        return list(last.values())
