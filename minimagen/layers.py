"""The parts a U-Net is built from: embeddings, attention, residual blocks, resampling.

Feature maps are (B, C, H, W); text and other sequences are (B, N, D). A mask is boolean: True for a
token, False for padding. Padding never changes a result.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# With the usual weights at the start, a softmax over words is nearly flat: it mixes all of them,
# and is slow to learn to choose one. These factors let each query prefer some words from the start.
SHARP = 3.0  # of the weights of queries and keys, where pixels attend to words
SHARP_QUERIES = 20.0  # of the learned queries that pool the text


def sinusoidal_embedding(values: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of ``values`` at ``dim // 2`` frequencies: (B,) -> (B, dim), dim even.

    Vaswani et al. (1706.03762, section 3.5).
    """
    exponent = torch.arange(dim // 2, device=values.device) / (dim // 2)
    angles = values.float()[:, None] * max_period**-exponent  # (B, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """Embed one number in [0, 1] per image: (B,) -> (B, dim); ``dim`` is even."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        # times 1000: the frequencies suit positions 0, 1, 2, ..., such as DDPM's steps
        return self.mlp(sinusoidal_embedding(1000 * t, self.dim))


class Window(NamedTuple):
    """Where feature maps were cut out of larger ones: square windows of square images."""

    corner: Tensor  # (B, 2): the row and the column where each window begins
    side: int  # of the whole image, in pixels

    def reduced(self, factor: int) -> Window:
        """The window at a resolution that is lower by ``factor``."""
        return Window(self.corner // factor, self.side // factor)


def position_features(
    height: int, width: int, dim: int, device: torch.device, window: Window | None = None
) -> Tensor:
    """The position of each pixel, as ``dim`` smooth functions: (dim, H, W) in [-1, 1].

    Half are cosines of the row, half of the column, with 1 to dim / 2 half-waves over the image.
    The sign of the first one separates left from right (top from bottom). A convolution does not
    know where it is: without these features it could not learn what "left" means (CoordConv,
    1807.03247). ``dim`` is even. With a window, (B, dim, H, W): the positions in the whole image.
    """

    def waves(side: int, start: Tensor | int, whole: int) -> Tensor:
        place = (torch.arange(side, device=device) + start + 0.5) / whole
        order = torch.arange(1, dim // 2 + 1, device=device)
        return torch.cos(math.pi * order[:, None] * place)  # (dim / 2, side)

    if window is None:
        down, across = waves(height, 0, height), waves(width, 0, width)
    else:
        starts = window.corner[:, None, None].unbind(-1)  # row and column, each (B, 1, 1)
        down = waves(height, starts[0], window.side)  # (B, dim / 2, side)
        across = waves(width, starts[1], window.side)
    rows = down[..., :, None].expand(*down.shape, width)
    columns = across[..., None, :].expand(*across.shape[:-1], height, width)
    return torch.cat([rows, columns], dim=-3)


class Attention(nn.Module):
    """Multi-head attention of queries (B, N, dim) over a context (B, M, context_dim).

    softmax(q k^T / sqrt(d)) v (1706.03762, eq. 1) in each of ``heads`` parts of ``head_dim``
    channels. Masked context tokens get the score minus infinity, so every row of the mask,
    (B, M) bool, needs at least one True. Returns (B, N, dim).
    """

    def __init__(self, dim: int, context_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_k = nn.Linear(context_dim, heads * head_dim, bias=False)
        self.to_v = nn.Linear(context_dim, heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, h, N, M)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        out = scores.softmax(dim=-1).to(v.dtype) @ v  # (B, h, N, d)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class TextWhitening(nn.Module):
    """Whiten text embeddings (B, N, dim): mean 0, and variance 1 in every direction.

    The embeddings of a language model vary a lot along a few directions, and little along the many
    others that separate "circle" from "square". Whitening (ZCA, Bell and Sejnowski 1997) makes all
    directions equally easy to read. Before ``fit``, tokens are only normalised one by one.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    def _normalise(self, text: Tensor) -> Tensor:
        return F.layer_norm(text.float(), self.mean.shape)

    @torch.no_grad()
    def fit(self, text: Tensor, mask: Tensor, floor: float = 0.03) -> None:
        """Measure the mean and the covariance of the tokens where mask (B, N) is True.

        floor: added to each variance, > 0, so that directions with little variance stay small
        """
        tokens = self._normalise(text)[mask]  # (number of tokens, dim)
        mean = tokens.mean(0)
        covariance = (tokens - mean).T @ (tokens - mean) / len(tokens)
        variances, directions = torch.linalg.eigh(covariance)
        self.mean.copy_(mean)
        self.matrix.copy_(directions * (variances.clamp(min=0) + floor).rsqrt() @ directions.T)

    def forward(self, text: Tensor) -> Tensor:
        return (self._normalise(text) - self.mean) @ self.matrix


class AttentionPooling(nn.Module):
    """Pool a sequence (B, N, dim) into one vector (B, out_dim): learned queries attend to it.

    Imagen adds such a vector to its time embedding (2205.11487, sec. 2.5). Each query can look for
    one role, such as "the object on the left"; a mean would mix all words. mask: (B, N) bool, at
    least one True per row.
    """

    def __init__(self, dim: int, out_dim: int, queries: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(SHARP_QUERIES * torch.randn(queries, dim))
        self.attention = Attention(dim, dim, heads, head_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(queries * dim),
            nn.Linear(queries * dim, out_dim),
            nn.SiLU(),
            nn.Linear(out_dim, out_dim),
        )

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        queries = self.queries.expand(len(text), -1, -1)  # (Q, D) -> (B, Q, D)
        pooled = self.attention(queries, text, mask)
        return self.mlp(pooled.flatten(1))  # (B, Q, D) -> (B, Q*D) -> (B, out_dim)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, cross-attention to the text, a feed-forward layer.

    x (B, dim, H, W), text (B, N, text_dim), mask (B, N) bool -> (B, dim, H, W). Each part adds to a
    residual stream, and its last weights start at zero. Either attention can be left out. The text
    has its own softmax: in a common one, its few tokens would compete with the many pixels.
    """

    def __init__(
        self, dim: int, text_dim: int, heads: int, head_dim: int, to_self: bool, to_text: bool
    ) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dim) if to_self else None
        self.self_attention = Attention(dim, dim, heads, head_dim) if to_self else None
        self.text_norm = nn.LayerNorm(dim) if to_text else None
        self.text_attention = Attention(dim, text_dim, heads, head_dim) if to_text else None
        widen, narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), widen, nn.GELU(), narrow)
        for attention in (self.self_attention, self.text_attention):
            if attention is not None:
                nn.init.zeros_(attention.to_out.weight)
        if self.text_attention is not None:
            with torch.no_grad():
                self.text_attention.to_q.weight *= SHARP
                self.text_attention.to_k.weight *= SHARP
        nn.init.zeros_(narrow.weight)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        height = x.shape[2]
        h = rearrange(x, "b c h w -> b (h w) c")
        if self.self_norm is not None and self.self_attention is not None:
            normed = self.self_norm(h)
            h = h + self.self_attention(normed, normed)
        if self.text_norm is not None and self.text_attention is not None:
            h = h + self.text_attention(self.text_norm(h), text, mask)
        h = h + self.mlp(h)
        return rearrange(h, "b (h w) c -> b c h w", h=height)


class GroupNorm(nn.GroupNorm):
    """Group normalisation, always in float32.

    Its sums over thousands of pixels need this precision, and on a CPU it is faster too.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut: (B, in_channels, H, W) -> (B, out_channels, H, W).

    Both numbers of channels must be multiples of 8, the number of groups of the normalisations.

    The condition (B, cond_dim) scales and shifts the second normalisation's output, as in ADM
    (2105.05233, section 3) and Imagen's ResNet block (2205.11487, fig. A.27).
    """

    def __init__(self, in_channels: int, out_channels: int, cond_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(8, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.to_scale_shift = nn.Linear(cond_dim, 2 * out_channels)
        self.norm2 = GroupNorm(8, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv2.weight)  # a block that starts as its shortcut trains stably

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.to_scale_shift(cond)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class Downsample(nn.Conv2d):
    """Halve height and width with a strided convolution: (B, C, H, W) -> (B, C', H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Nearest neighbours, then a convolution: (B, C, H, W) -> (B, C', 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0))
