"""The U-Net: predicts the clean image from a noisy one, its time and its caption.

One class serves every stage of the cascade. A base stage sees noise, time and text; a
super-resolution stage also sees the low-resolution image, enlarged to its own size, and how much
noise was added to it (``augmentation``). Imagen (2205.11487), section 2.5 and appendix B.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval, Le, MultipleOf
from torch import Tensor, nn

from minimagen.layers import (
    AttentionBlock,
    AttentionPooling,
    Downsample,
    GroupNorm,
    ResidualBlock,
    TextWhitening,
    TimeEmbedding,
    Upsample,
    Window,
    position_features,
)
from minimagen.settings import settings

# Limits are several times what the largest U-Net of the Imagen paper has.
Channels = Annotated[int, Interval(ge=16), Le(16_384), MultipleOf(16)]
Even = Annotated[int, Interval(ge=2), Le(16_384), MultipleOf(2)]
Width = Annotated[int, Interval(ge=1), Le(16_384)]
Few = Annotated[int, Interval(ge=1), Le(128)]
LEVELS = 16  # maximum number of resolution levels
FINE = 16  # channels of single pixels, where the U-Net works on patches


@settings
class UnetConfig:
    """How a U-Net is built. The tuples have one entry per resolution level.

    Raises ValueError, naming the setting.
    """

    channels: tuple[Channels, ...] = (32, 64)  # of the feature maps
    blocks: tuple[Few, ...] = (1, 1)  # residual blocks on the way down; the same number up
    self_attention: tuple[bool, ...] = (False, True)  # pixels attend to pixels
    text_attention: tuple[bool, ...] = (False, True)  # pixels attend to the caption's tokens
    heads: Few = 4  # of every attention
    head_dim: Width = 32  # channels of one head
    text_dim: Width = 64  # width of the encoder's text embeddings
    pool_queries: Width = 16  # learned queries that pool the text into one vector
    cond_dim: Even = 128  # width of the condition of every block: time + pooled text
    position_dim: Even = 32  # position features at each resolution level
    lowres: bool = False  # super-resolution: conditioned on a low-resolution image
    efficient: bool = False  # downsample before the first level too; scale skips by 1/sqrt(2)
    patch: Few = 1  # side of the square of pixels that is treated as one pixel
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0  # share of features dropped in training

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("`channels` is empty, it should have one entry per level")
        if len(self.channels) > LEVELS:
            raise ValueError(
                f"`channels` has {len(self.channels)} entries, it should have at most {LEVELS}"
            )
        for name in ("blocks", "self_attention", "text_attention"):
            entries = len(getattr(self, name))
            if entries != len(self.channels):
                raise ValueError(
                    f"`{name}` has {entries} entries, it should have one per level, as `channels` "
                    f"has: {len(self.channels)}"
                )

    @property
    def side_multiple(self) -> int:
        """Sides of images must be multiples of this: the patch, doubled for each downsampling."""
        return self.patch * 2 ** (len(self.channels) - (0 if self.efficient else 1))


class ResolutionLevel(nn.Module):
    """One resolution level on the way down: position features, residual blocks, attention."""

    def __init__(self, config: UnetConfig, level: int) -> None:
        super().__init__()
        channels = config.channels[level]
        to_self, to_text = config.self_attention[level], config.text_attention[level]
        self.position = nn.Conv2d(config.position_dim, channels, 1, bias=False)
        self.to_scale = nn.Linear(config.cond_dim, config.position_dim)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, channels, config.cond_dim, config.dropout)
            for _ in range(config.blocks[level])
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(
                channels, config.text_dim, config.heads, config.head_dim, to_self, to_text
            )
            for _ in range(config.blocks[level] if to_self or to_text else 0)
        )

    def forward(
        self, x: Tensor, cond: Tensor, text: Tensor, mask: Tensor, window: Window | None = None
    ) -> list[Tensor]:
        """The feature maps after each block, (B, C, H, W), the last of them the level's output.

        window: where x lies in larger feature maps; None: x is the whole
        """
        dim = self.position.in_channels
        where = position_features(x.shape[2], x.shape[3], dim, x.device, window)
        if window is None:
            where = where[None]  # (1, C, H, W), the same for every image
        # scaled by the condition: "in the upper left corner" chooses among the positions
        x = x + self.position(where * (1 + self.to_scale(cond)[:, :, None, None]))
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x, cond)
            if self.attentions:
                x = self.attentions[i](x, text, mask)
            outputs.append(x)
        return outputs


class Unet(nn.Module):
    """The network of one stage: it predicts eps, x or v, as the stage's parameterisation says.

    Down: each resolution level except the first halves the resolution, and the output of each block
    is kept. (In the efficient variant the first level does so too: no block runs at full
    resolution.) Up: the levels in reverse order; each block also reads one of the kept outputs.
    """

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels

        self.time = TimeEmbedding(config.cond_dim)
        self.aug_level = TimeEmbedding(config.cond_dim) if config.lowres else None
        self.whitening = TextWhitening(config.text_dim)  # fitted before training
        self.text_norm = nn.LayerNorm(config.text_dim)
        self.null_text = nn.Parameter(torch.randn(config.text_dim))  # stands for "no caption"
        self.pool = AttentionPooling(
            config.text_dim, config.cond_dim, config.pool_queries, config.heads, config.head_dim
        )

        # the efficient variant has no block at full resolution, and needs fewer channels there
        outer = channels[0] // 2 if config.efficient else channels[0]
        pixels = 3 * config.patch**2
        self.stem = nn.Conv2d(2 * pixels if config.lowres else pixels, outer, 3, padding=1)
        self.downs, self.levels = nn.ModuleList(), nn.ModuleList()
        self.up_blocks, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(channels):
            resample = i > 0 or config.efficient
            before = channels[i - 1] if i > 0 else outer
            self.downs.append(Downsample(before, width) if resample else nn.Identity())
            self.levels.append(ResolutionLevel(config, i))
            self.up_blocks.append(
                nn.ModuleList(
                    ResidualBlock(2 * width, width, config.cond_dim, config.dropout)
                    for _ in range(config.blocks[i])
                )
            )
            self.ups.append(Upsample(width, before) if resample else nn.Identity())
        self.middle = ResidualBlock(channels[-1], channels[-1], config.cond_dim, config.dropout)
        self.skip_scale = 1 / math.sqrt(2) if config.efficient else 1.0
        self.out_norm = GroupNorm(8, outer)
        # Patches become pixels before the last convolution, which so sees no border between them.
        fine = outer if config.patch == 1 else FINE
        self.spread = nn.Conv2d(outer, fine * config.patch**2, 1) if config.patch > 1 else None
        self.out = nn.Conv2d(fine, 3, 3, padding=1)
        for parameter in self.out.parameters():  # the first prediction is 0, the mean image
            nn.init.zeros_(parameter)

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        text: Tensor,
        mask: Tensor,
        keep_text: Tensor | None = None,
        lowres: Tensor | None = None,
        aug_level: Tensor | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """The network's output for noisy images z, (B, 3, H, W), float32.

        z:         noisy images, (B, 3, H, W); H and W multiples of ``config.side_multiple``
        t:         their times in [0, 1], (B,)
        text:      text embeddings, (B, N, text_dim); padding may have any finite values
        mask:      True for the caption's tokens, False for padding, (B, N) bool; one True per row
        keep_text: False ignores the caption, (B,) bool; None keeps all captions
        lowres:    enlarged and augmented low-resolution images, like z
        aug_level: their augmentation levels in [0, 1], (B,)
        window:    where z lies in larger images, at multiples of ``config.side_multiple``; None: z
                   are whole images

        Raises ValueError if the side of the images does not fit, if a super-resolution U-Net lacks
        ``lowres`` or ``aug_level``, or if a base U-Net gets one of them.
        """
        multiple = self.config.side_multiple
        if z.shape[2] % multiple or z.shape[3] % multiple:
            raise ValueError(
                f"images of {z.shape[3]} x {z.shape[2]} pixels do not fit this U-Net, "
                f"sides should be multiples of {multiple}"
            )
        if (lowres is None) == self.config.lowres or (aug_level is None) == self.config.lowres:
            raise ValueError(
                "lowres and aug_level are for super-resolution U-Nets, and these need both: "
                f"config.lowres is {self.config.lowres}"
            )
        text = self.whitening(text)
        if keep_text is not None:
            # all tokens are equal then, so their number does not change the attention
            text = torch.where(keep_text[:, None, None], text, self.null_text)
        text = self.text_norm(text)
        cond = self.time(t) + self.pool(text, mask)  # (B, cond_dim)
        if self.aug_level is not None and aug_level is not None:
            cond = cond + self.aug_level(aug_level)
        cond = F.silu(cond)

        x = z if lowres is None else torch.cat([z, lowres], dim=1)
        x = F.pixel_unshuffle(x, self.config.patch)  # (B, C, H, W) -> (B, C*p*p, H/p, W/p)
        # channels last is the faster memory layout for convolutions, on CPUs and GPUs alike
        x = stem = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for down, level in zip(self.downs, self.levels, strict=True):
            x = down(x)
            here = None if window is None else window.reduced(z.shape[2] // x.shape[2])
            skips += level(x, cond, text, mask, here)
            x = skips[-1]
        x = self.middle(x, cond)
        for up, blocks in zip(reversed(self.ups), reversed(self.up_blocks), strict=True):
            for block in blocks.children():
                x = block(torch.cat([x, skips.pop() * self.skip_scale], dim=1), cond)
            x = up(x)
        x = (x + stem) * self.skip_scale  # downsampling loses single pixels
        x = F.silu(self.out_norm(x))
        if self.spread is not None:  # (B, C, H/p, W/p) -> (B, FINE, H, W)
            x = F.silu(F.pixel_shuffle(self.spread(x), self.config.patch))
        return self.out(x).float()
