"""Answers to the exercises of lesson 03, the U-Net."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from einops import einsum, rearrange, reduce
from torch import nn

from answers import right, wrong
from minimagen.checks import lesson_03 as check
from minimagen.diffusion import eps_from_x
from minimagen.layers import (
    Attention,
    AttentionBlock,
    Downsample,
    ResidualBlock,
    TimeEmbedding,
    sinusoidal_embedding,
)
from minimagen.schedules import NoiseSchedule, expand

# --- 3.1 ------------------------------------------------------------------------------------------


@right(check.clock)
def by_the_package(t, dim):
    return sinusoidal_embedding(1000 * t, dim).to(t.dtype)


@right(check.clock)
def by_diffusers(t, dim):
    return get_timestep_embedding(1000 * t, dim, downscale_freq_shift=0).to(t.dtype)


@right(check.clock)
def one_wave_after_the_other(t, dim):
    omegas = [math.exp(-math.log(10_000) * k / (dim / 2)) for k in range(dim // 2)]
    columns = [torch.sin(1000 * t * w) for w in omegas] + [torch.cos(1000 * t * w) for w in omegas]
    return torch.stack(columns, dim=-1)


@right(check.clock)
def by_complex_numbers(t, dim):
    omega = torch.logspace(0, -4, dim // 2 + 1, dtype=t.dtype)[:-1]
    turning = torch.polar(torch.ones(len(t), dim // 2, dtype=t.dtype), 1000 * torch.outer(t, omega))
    return torch.cat([turning.imag, turning.real], dim=1)


def _waves(tau, omega):
    return torch.cat([(tau[:, None] * omega).sin(), (tau[:, None] * omega).cos()], dim=1)


def _k(t, dim):
    return torch.arange(dim // 2, dtype=t.dtype)


@wrong(check.clock, "here t itself was put in")
def without_the_thousand(t, dim):
    return _waves(t, 10_000 ** (-_k(t, dim) / (dim / 2)))


@wrong(check.clock, "take turns")
def interleaved(t, dim):
    return rearrange(by_the_package(t, dim), "b (two k) -> b (k two)", two=2)


@wrong(check.clock, "cosines come first")
def cosines_first(t, dim):
    return get_timestep_embedding(
        1000 * t, dim, flip_sin_to_cos=True, downscale_freq_shift=0
    ).to(t.dtype)  # fmt: skip


@wrong(check.clock, "and not -k / d:")
def exponent_k_over_d(t, dim):
    return _waves(1000 * t, 10_000 ** (-_k(t, dim) / dim))


@wrong(check.clock, "d/2 - 1")
def as_ddpm_has_it(t, dim):
    return get_timestep_embedding(1000 * t, dim).to(t.dtype)  # downscale_freq_shift is 1


@wrong(check.clock, "k counts from 1")
def counted_from_one(t, dim):
    return _waves(1000 * t, 10_000 ** (-(_k(t, dim) + 1) / (dim / 2)))


@wrong(check.clock, "needs brackets")
def minus_k_alone_in_the_exponent(t, dim):
    return _waves(1000 * t, 10_000.0 ** -_k(t, dim) / (dim / 2))


@wrong(check.clock, "the sign of the exponent")
def faster_and_faster(t, dim):
    return _waves(1000 * t, 10_000 ** (_k(t, dim) / (dim / 2)))


@wrong(check.clock, "not e")
def base_e(t, dim):
    return _waves(1000 * t, torch.exp(-_k(t, dim) / (dim / 2)))


@wrong(check.clock, "a whole number")
def whole_steps_only(t, dim):
    return by_the_package((1000 * t).long() / 1000, dim).to(t.dtype)


@wrong(check.clock, "second half is cosines")
def sines_alone(t, dim):
    waves = by_the_package(t, dim)[:, : dim // 2]
    return torch.cat([waves, waves], dim=1)


@wrong(check.clock, "where float64 is due")
def always_in_single_precision(t, dim):
    return sinusoidal_embedding(1000 * t, dim)


@wrong(check.clock, "is to be sin(omega_k tau)")
def divided_into_equal_steps(t, dim):
    return _waves(1000 * t, torch.linspace(1, 1e-4, dim // 2, dtype=t.dtype))


@wrong(check.clock, "wrong shape")
def twice_as_many(t, dim):
    return sinusoidal_embedding(1000 * t, 2 * dim).to(t.dtype)


@wrong(check.clock, "in place")
def time_multiplied_in_place(t, dim):
    t *= 1000
    return sinusoidal_embedding(t, dim).to(t.dtype)


@wrong(check.clock, "is to be sin(omega_k tau)")
def scaled_by_the_batch(t, dim):
    return by_the_package(t / t.max(), dim)


# --- 3.2 ------------------------------------------------------------------------------------------


def _scale_shift(scale_shift):
    return scale_shift[:, :, None, None].chunk(2, dim=1)


@right(check.scale_and_shift)
def by_torch(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    return torch.addcmul(shift, 1 + scale, F.group_norm(h, groups))


@right(check.scale_and_shift)
def by_einops(h, scale_shift, groups):
    g = rearrange(h, "b (g c) h w -> b g c h w", g=groups)
    g = g - reduce(g, "b g c h w -> b g 1 1 1", "mean")
    g = g * torch.rsqrt(reduce(g**2, "b g c h w -> b g 1 1 1", "mean") + 1e-5)
    scale, shift = rearrange(scale_shift, "b (two c) -> two b c 1 1", two=2)
    return rearrange(g, "b g c h w -> b (g c) h w") * (scale + 1) + shift


@right(check.scale_and_shift)
def image_by_image(h, scale_shift, groups):
    out, count = [], h.shape[1]
    for image, row in zip(h, scale_shift, strict=True):
        parts = []
        for part in image.split(count // groups):
            std, mean = torch.std_mean(part, correction=0)
            parts.append((part - mean) / torch.sqrt(std**2 + 1e-5))
        normed = torch.cat(parts)
        out.append(normed + row[:count, None, None] * normed + row[count:, None, None])
    return torch.stack(out)


@right(check.scale_and_shift)
def as_a_weighted_layer(h, scale_shift, groups):
    weights = (1 + scale_shift[:, : h.shape[1]], scale_shift[:, h.shape[1] :])
    one = [F.group_norm(x[None], groups, w, b) for x, w, b in zip(h, *weights, strict=True)]
    return torch.cat(one)


@wrong(check.scale_and_shift, "the 1 in (1 + a) is missing")
def without_the_one(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    return scale * F.group_norm(h, groups) + shift


@wrong(check.scale_and_shift, "are swapped")
def shift_before_scale(h, scale_shift, groups):
    shift, scale = _scale_shift(scale_shift)
    return (1 + scale) * F.group_norm(h, groups) + shift


@wrong(check.scale_and_shift, "taken in turns")
def every_second_number(h, scale_shift, groups):
    scale, shift = scale_shift[:, ::2, None, None], scale_shift[:, 1::2, None, None]
    return (1 + scale) * F.group_norm(h, groups) + shift


@wrong(check.scale_and_shift, "first multiply, then add")
def added_first(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    return (1 + scale) * (F.group_norm(h, groups) + shift)


@wrong(check.scale_and_shift, "come too early")
def normalised_last(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    return F.group_norm((1 + scale) * h + shift, groups)


@wrong(check.scale_and_shift, "over all images of the batch")
def over_the_batch(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    rows = h.reshape(len(h), groups, -1)
    mean, var = rows.mean((0, 2), keepdim=True), rows.var((0, 2), keepdim=True, unbiased=False)
    return (1 + scale) * ((rows - mean) / (var + 1e-5).sqrt()).reshape(h.shape) + shift


@wrong(check.scale_and_shift, "in each channel by itself")
def each_channel(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    return (1 + scale) * F.group_norm(h, h.shape[1]) + shift


@wrong(check.scale_and_shift, "over all channels together")
def all_channels(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    return (1 + scale) * F.group_norm(h, 1) + shift


@wrong(check.scale_and_shift, "not every n-th")
def channels_dealt_out(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    turns = rearrange(h, "b (c g) h w -> b (g c) h w", g=groups)
    normed = rearrange(F.group_norm(turns, groups), "b (g c) h w -> b (c g) h w", g=groups)
    return (1 + scale) * normed + shift


@wrong(check.scale_and_shift, "not groups of `groups` channels")
def groups_of_that_size(h, scale_shift, groups):
    return by_torch(h, scale_shift, h.shape[1] // groups)


@wrong(check.scale_and_shift, "not by n - 1")
def unbiased(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    rows = h.reshape(len(h), groups, -1)
    rows = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, keepdim=True) + 1e-5).sqrt()
    return (1 + scale) * rows.reshape(h.shape) + shift


@wrong(check.scale_and_shift, "and not of h^2")
def mean_of_the_squares(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    rows = h.reshape(len(h), groups, -1)
    variance = (rows**2).mean(-1, keepdim=True)
    rows = (rows - rows.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt()
    return (1 + scale) * rows.reshape(h.shape) + shift


@wrong(check.scale_and_shift, "batch normalisation")
def batch_normalisation(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    return (1 + scale) * F.batch_norm(h, None, None, training=True) + shift


@wrong(check.scale_and_shift, "nan came out")
def without_the_small_number(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    rows = h.reshape(len(h), groups, -1)
    rows = (rows - rows.mean(-1, keepdim=True)) / rows.std(-1, keepdim=True, unbiased=False)
    return (1 + scale) * rows.reshape(h.shape) + shift


@wrong(check.scale_and_shift, "below the root")
def small_number_outside_the_root(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    rows = h.reshape(len(h), groups, -1)
    std = rows.std(-1, keepdim=True, unbiased=False)
    return (1 + scale) * ((rows - rows.mean(-1, keepdim=True)) / (std + 1e-5)).reshape(
        h.shape
    ) + shift


@wrong(check.scale_and_shift, "of the first image were taken for all")
def condition_of_the_first_image(h, scale_shift, groups):
    return by_torch(h, scale_shift[:1].expand_as(scale_shift), groups)


@wrong(check.scale_and_shift, "the scale has no influence")
def shift_alone(h, scale_shift, groups):
    return F.group_norm(h, groups) + _scale_shift(scale_shift)[1]


@wrong(check.scale_and_shift, "those of one group of channels of one image")
def scale_by_exp(h, scale_shift, groups):
    scale, shift = _scale_shift(scale_shift)
    return scale.exp() * F.group_norm(h, groups) + shift


@wrong(check.scale_and_shift, "right to about 7 digits")
def single_precision_in_between(h, scale_shift, groups):
    return by_torch(h.float(), scale_shift.float(), groups).to(h.dtype)


@wrong(check.scale_and_shift, "in place")
def centred_in_place(h, scale_shift, groups):
    h -= h.mean()
    return by_torch(h, scale_shift, groups)


# --- 3.3 ------------------------------------------------------------------------------------------


def _parts(h, matrices, heads, split="b n (h d) -> b h n d"):
    tokens = rearrange(h, "b c h w -> b (h w) c")
    return [rearrange(tokens @ matrix.T, split, h=heads) for matrix in matrices]


def _back(out, h, join="b h n d -> b n (h d)", **sizes):
    out = rearrange(out, join, **sizes)
    return rearrange(out, "b (h w) e -> b e h w", h=h.shape[2])


@right(check.attention)
def by_torchs_attention(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    return _back(F.scaled_dot_product_attention(q, k, v), h)


@right(check.attention)
def by_the_packages_attention(h, to_q, to_k, to_v, heads):
    width, channels = to_q.shape
    layer = Attention(channels, channels, heads, width // heads).to(h.dtype)
    layer.to_out = nn.Identity()
    layer.load_state_dict(
        {"to_q.weight": to_q, "to_k.weight": to_k, "to_v.weight": to_v}, strict=True
    )
    tokens = rearrange(h, "b c h w -> b (h w) c")
    return rearrange(layer(tokens, tokens), "b (h w) e -> b e h w", h=h.shape[2]).detach()


@right(check.attention)
def by_sums_over_indices(h, to_q, to_k, to_v, heads):
    q, k, v = (
        rearrange(torch.einsum("ec,bcij->beij", m, h), "b (h d) i j -> b h d i j", h=heads)
        for m in (to_q, to_k, to_v)
    )
    scores = einsum(q, k, "b h d i j, b h d k l -> b h i j k l") / q.shape[2] ** 0.5
    weights = (scores - scores.amax((-1, -2), keepdim=True)).exp()
    weights = weights / weights.sum((-1, -2), keepdim=True)
    out = einsum(weights, v, "b h i j k l, b h d k l -> b h d i j")
    return rearrange(out, "b h d i j -> b (h d) i j")


@right(check.attention)
def head_after_head(h, to_q, to_k, to_v, heads):
    maps = []
    x = h.flatten(2)  # (B, C, N), and channels stay in front
    for q, k, v in zip(*(m.chunk(heads) for m in (to_q, to_k, to_v)), strict=True):
        scores = (k @ x).mT @ (q @ x) / math.sqrt(len(q))  # (B, keys, queries)
        maps.append((v @ x) @ scores.softmax(dim=1))
    return torch.cat(maps, dim=1).reshape(len(h), -1, *h.shape[2:])


def _attention(h, matrices, heads, scale=None, over=-1):
    q, k, v = _parts(h, matrices, heads)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return _back(scores.softmax(over) @ v, h)


@wrong(check.attention, "not divided by sqrt(d)")
def not_scaled(h, to_q, to_k, to_v, heads):
    return _attention(h, (to_q, to_k, to_v), heads, scale=1)


@wrong(check.attention, "channels of ONE head")
def scaled_by_all_channels(h, to_q, to_k, to_v, heads):
    return _attention(h, (to_q, to_k, to_v), heads, scale=len(to_q) ** -0.5)


@wrong(check.attention, "the root of C")
def scaled_by_the_channels_of_h(h, to_q, to_k, to_v, heads):
    return _attention(h, (to_q, to_k, to_v), heads, scale=h.shape[1] ** -0.5)


@wrong(check.attention, "take its square root")
def scaled_without_root(h, to_q, to_k, to_v, heads):
    return _attention(h, (to_q, to_k, to_v), heads, scale=heads / len(to_q))


@wrong(check.attention, "runs over the queries")
def softmax_over_queries(h, to_q, to_k, to_v, heads):
    return _attention(h, (to_q, to_k, to_v), heads, over=2)


@wrong(check.attention, "runs over the heads")
def softmax_over_heads(h, to_q, to_k, to_v, heads):
    return _attention(h, (to_q, to_k, to_v), heads, over=1)


@wrong(check.attention, "all heads in one")
def heads_ignored(h, to_q, to_k, to_v, heads):
    return _attention(h, (to_q, to_k, to_v), 1)


@wrong(check.attention, "a reshape alone moves nothing")
def heads_by_reshape(h, to_q, to_k, to_v, heads):
    q, k, v = (p.reshape(len(h), heads, -1, p.shape[-1] // heads)
               for p in (h.flatten(2).mT @ m.T for m in (to_q, to_k, to_v)))  # fmt: skip
    return _back(F.scaled_dot_product_attention(q, k, v), h)


@wrong(check.attention, "a reshape alone moves nothing")
def heads_by_reshape_both_ways(h, to_q, to_k, to_v, heads):
    parts = [h.flatten(2).mT @ m.T for m in (to_q, to_k, to_v)]
    q, k, v = (p.reshape(len(h), heads, -1, p.shape[-1] // heads) for p in parts)
    out = F.scaled_dot_product_attention(q, k, v).reshape(parts[0].shape)
    return out.mT.reshape(len(h), -1, *h.shape[2:])


@wrong(check.attention, "dealt out to the heads in turn")
def channels_in_turn(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads, "b n (d h) -> b h n d")
    return _back(F.scaled_dot_product_attention(q, k, v), h, "b h n d -> b n (d h)")


@wrong(check.attention, "unflatten them as (heads, d)")
def channels_in_turn_on_the_way_in(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads, "b n (d h) -> b h n d")
    return _back(F.scaled_dot_product_attention(q, k, v), h)


@wrong(check.attention, "the heads look at each other")
def heads_not_moved(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads, "b n (h d) -> b n h d")
    return _back(F.scaled_dot_product_attention(q, k, v), h, "b n h d -> b n (h d)")


@wrong(check.attention, "needs transposes to become (B, E, H, W)")
def heads_back_by_reshape(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    return F.scaled_dot_product_attention(q, k, v).reshape(len(h), -1, *h.shape[2:])


@wrong(check.attention, "needs a transpose to become (B, E, H, W)")
def pixels_back_by_reshape(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return out.reshape(len(h), -1, *h.shape[2:])


@right(check.attention)
def root_as_a_tensor(h, to_q, to_k, to_v, heads):
    """The root in float32, whatever h is."""
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    scores = q @ k.mT / torch.sqrt(torch.tensor(q.shape[-1]))
    return _back(scores.softmax(-1) @ v, h)


@wrong(check.attention, "d is E / heads")
def scaled_by_c_over_heads(h, to_q, to_k, to_v, heads):
    d = max(h.shape[1] // heads, 1)
    return _attention(h, (to_q, to_k, to_v), heads, scale=d**-0.5)


@wrong(check.attention, "joined in the wrong order")
def heads_not_moved_back(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    out = F.scaled_dot_product_attention(q, k, v).reshape(len(h), -1, len(to_q))
    return out.mT.reshape(len(h), -1, *h.shape[2:])


@wrong(check.attention, "taken for d")
def heads_taken_for_head_dim(h, to_q, to_k, to_v, heads):
    return _attention(h, (to_q, to_k, to_v), len(to_q) // heads)


@wrong(check.attention, "queries and keys are swapped")
def asked_by_the_keys(h, to_q, to_k, to_v, heads):
    return _attention(h, (to_k, to_q, to_v), heads)


@wrong(check.attention, "its own image only")
def across_the_batch(h, to_q, to_k, to_v, heads):
    line = rearrange(h, "b c h w -> 1 c (b h) w")
    out = by_torchs_attention(line, to_q, to_k, to_v, heads)
    return rearrange(out, "1 e (b h) w -> b e h w", b=len(h))


@wrong(check.attention, "column by column")
def sides_swapped_at_the_end(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    out = F.scaled_dot_product_attention(q, k, v)
    return rearrange(out, "b h (x y) d -> b (h d) y x", x=h.shape[3])


@wrong(check.attention, "your code stopped with")
def square_images_only(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    out = F.scaled_dot_product_attention(q, k, v)
    side = math.isqrt(q.shape[2])
    return rearrange(out, "b h (x y) d -> b (h d) x y", x=side, y=side)


@wrong(check.attention, "channels and pixels are mixed up")
def pixels_by_reshape(h, to_q, to_k, to_v, heads):
    tokens = h.reshape(len(h), -1, h.shape[1])
    mixed = tokens.mT.reshape(h.shape)
    return by_torchs_attention(mixed, to_q, to_k, to_v, heads)


@wrong(check.attention, "h was added")
def with_a_shortcut(h, to_q, to_k, to_v, heads):
    out = by_torchs_attention(h, to_q, to_k, to_v, heads)
    return out + h if out.shape == h.shape else out


@wrong(check.attention, "exp of a large number overflows")
def exp_by_hand(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).exp()
    return _back(weights / weights.sum(-1, keepdim=True) @ v, h)


@wrong(check.attention, "there is no softmax")
def scores_for_weights(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    return _back(q @ k.mT / math.sqrt(q.shape[-1]) @ v, h)


@wrong(check.attention, "each pixel is to receive")
def never_looks_at_itself(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    others = ~torch.eye(q.shape[2], dtype=torch.bool)
    return _back(F.scaled_dot_product_attention(q, k, v, attn_mask=others), h)


@wrong(check.attention, "each pixel is to receive")
def looks_back_only(h, to_q, to_k, to_v, heads):
    q, k, v = _parts(h, (to_q, to_k, to_v), heads)
    return _back(F.scaled_dot_product_attention(q, k, v, is_causal=True), h)


@wrong(check.attention, "each pixel is to receive")
def rows_only(h, to_q, to_k, to_v, heads):
    rows = rearrange(h, "b c h w -> (b h) c 1 w")
    out = by_torchs_attention(rows, to_q, to_k, to_v, heads)
    return rearrange(out, "(b h) e 1 w -> b e h w", b=len(h))


# --- 3.4 ------------------------------------------------------------------------------------------


class _Block(nn.Module):
    """A right block; the wrong ones change a part of it."""

    zero = ("conv2",)
    norm = staticmethod(lambda channels: nn.GroupNorm(8, channels))
    kernel = 3

    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__()
        self.norm1, self.norm2 = self.norm(in_channels), self.norm(out_channels)
        side = self.kernel
        self.conv1 = nn.Conv2d(in_channels, out_channels, side, padding=side // 2)
        self.conv2 = nn.Conv2d(out_channels, out_channels, side, padding=side // 2)
        self.linear = nn.Linear(cond_dim, 2 * out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        if in_channels == out_channels:
            self.shortcut = nn.Identity()
        for name in self.zero:
            nn.init.zeros_(getattr(self, name).weight)
            nn.init.zeros_(getattr(self, name).bias)

    def slides(self, cond):
        return self.linear(cond)[:, :, None, None].chunk(2, dim=1)

    def change(self, x, cond):
        scale, shift = self.slides(cond)
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))

    def forward(self, x, cond):
        return self.shortcut(x) + self.change(x, cond)


@right(check.residual_block)
class ThePackagesBlock(ResidualBlock):
    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__(in_channels, out_channels, cond_dim, dropout=0.1)


@right(check.residual_block)
class WithAGain(nn.Module):
    """Nothing starts at zero but one number, by which the change is multiplied."""

    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "first": nn.Sequential(
                    nn.GroupNorm(4, in_channels),
                    nn.SiLU(),
                    nn.Conv2d(in_channels, out_channels, 3, padding="same"),
                    nn.GroupNorm(4, out_channels, affine=False),
                ),
                "second": nn.Sequential(
                    nn.SiLU(), nn.Conv2d(out_channels, out_channels, 3, padding="same", bias=False)
                ),
            }
        )
        self.scale, self.shift = (
            nn.Linear(cond_dim, out_channels),
            nn.Linear(cond_dim, out_channels),
        )
        self.gain = nn.Parameter(torch.zeros(()))
        self.match = nn.Linear(in_channels, out_channels) if in_channels != out_channels else None

    def forward(self, x, cond):
        h = self.layers["first"](x)
        h = torch.addcmul(
            self.shift(cond)[..., None, None], h, 1 + self.scale(cond)[..., None, None]
        )
        x = x if self.match is None else self.match(x.movedim(1, -1)).movedim(-1, 1)
        return x + self.gain * self.layers["second"](h)


@right(check.residual_block)
def made_by_a_function(in_channels, out_channels, cond_dim):
    """Scale, shift and a gate of the condition, all starting at zero, as in DiT."""

    class Gated(_Block):
        zero = ()

        def __init__(self):
            super().__init__(in_channels, out_channels, cond_dim)
            self.linear = nn.Linear(cond_dim, 3 * out_channels)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

        def forward(self, x, cond):
            scale, shift, gate = self.linear(cond)[:, :, None, None].chunk(3, dim=1)
            h = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
            return self.shortcut(x) + gate * self.conv2(F.silu(h))

    return Gated()


@wrong(check.residual_block, "is not the identity")
class StartsAsUsual(_Block):
    zero = ()


@wrong(check.residual_block, "get no gradient")
class AllConvolutionsZero(_Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.zeros(()))  # behind conv2, which is zero too

    def forward(self, x, cond):
        return self.shortcut(x) + self.gain * self.change(x, cond)


@wrong(check.residual_block, "is not the identity")
class TheFirstIsZero(_Block):
    zero = ("conv1",)


@wrong(check.residual_block, "lets nothing of x through")
class WithoutShortcut(_Block):
    def forward(self, x, cond):
        return self.change(x, cond)


@wrong(check.residual_block, "your code stopped with RuntimeError")
class SameChannelsOnly(_Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.shortcut = nn.Identity()


@wrong(check.residual_block, "is not the identity")
class ShortcutAlwaysAConvolution(_Block):
    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__(in_channels, out_channels, cond_dim)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)


@wrong(check.residual_block, "its convolution is 1 x 1")
class ShortcutOfThreeByThree(_Block):
    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__(in_channels, out_channels, cond_dim)
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 3, padding=1)


@wrong(check.residual_block, "is not the identity")
class AddsWhatWasNormalised(_Block):
    def forward(self, x, cond):
        return self.shortcut(F.silu(self.norm1(x))) + self.change(x, cond)


@wrong(check.residual_block, "more than its shortcut")
class ActivationInTheShortcut(_Block):
    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__(in_channels, out_channels, cond_dim)
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.SiLU())


@wrong(check.residual_block, "get no gradient")
class DoesNotListen(_Block):
    def slides(self, cond):
        return 0.0, 0.0


@wrong(check.residual_block, "the condition has no influence")
class OwnSlides(_Block):
    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__(in_channels, out_channels, cond_dim)
        del self.linear
        self.slide = nn.Parameter(torch.randn(2, 1, out_channels, 1, 1))

    def slides(self, cond):
        return self.slide


@wrong(check.residual_block, "already listens to the condition")
class AddsTheConditionBehind(_Block):
    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__(in_channels, out_channels, cond_dim)
        self.behind = nn.Linear(cond_dim, out_channels)
        if in_channels == out_channels:
            nn.init.zeros_(self.behind.weight)

    def forward(self, x, cond):
        return super().forward(x, cond) + self.behind(cond)[:, :, None, None]


@wrong(check.residual_block, "see each other")
class BatchNormalisation(_Block):
    norm = nn.BatchNorm2d


@wrong(check.residual_block, "see each other")
class OneConditionForAll(_Block):
    def slides(self, cond):
        return super().slides(cond.mean(0, keepdim=True))


@wrong(check.residual_block, "where are the two SiLUs")
class WithoutActivations(_Block):
    def change(self, x, cond):
        scale, shift = self.slides(cond)
        return self.conv2(self.norm2(self.conv1(self.norm1(x))) * (1 + scale) + shift)


@right(check.residual_block)
class InPlaceInside(_Block):
    """What the block itself has made may be changed in place; and the shift comes first."""

    def change(self, x, cond):
        shift, scale = self.slides(cond)
        h = self.norm2(self.conv1(F.silu(self.norm1(x), inplace=True)))
        h *= 1 + scale
        h += shift
        return self.conv2(F.silu(h, inplace=True))


class _Changed(_Block):
    """norm2 and all that is between it and conv2 is another."""

    def between(self, h, scale, shift):
        raise NotImplementedError()

    def change(self, x, cond):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(self.between(h, *self.slides(cond)))


@wrong(check.residual_block, "the 1 in (1 + a) is missing")
class WithoutTheOne(_Changed):
    def between(self, h, scale, shift):
        return F.silu(scale * self.norm2(h) + shift)


@wrong(check.residual_block, "they belong behind it")
class NormalisedAfterwards(_Changed):
    def between(self, h, scale, shift):
        return F.silu(self.norm2((1 + scale) * h + shift))


@wrong(check.residual_block, "before the second convolution")
class WithoutTheSecondActivation(_Changed):
    def between(self, h, scale, shift):
        return (1 + scale) * self.norm2(h) + shift


@wrong(check.residual_block, "come before the SiLU")
class ActivatedTooEarly(_Changed):
    def between(self, h, scale, shift):
        return (1 + scale) * F.silu(self.norm2(h)) + shift


@wrong(check.residual_block, "only the shift")
class ShiftOnly(_Changed):
    def between(self, h, scale, shift):
        return F.silu(self.norm2(h) + shift)


@wrong(check.residual_block, "where a SiLU is due")
class AnotherActivation(_Changed):
    def between(self, h, scale, shift):
        return F.relu((1 + scale) * self.norm2(h) + shift)


@wrong(check.residual_block, "before the first convolution")
class WithoutTheFirstActivation(_Block):
    def change(self, x, cond):
        scale, shift = self.slides(cond)
        h = self.conv1(self.norm1(x))
        return self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


@wrong(check.residual_block, "does not see two pixels far")
class OneConvolutionOnly(_Block):
    def change(self, x, cond):
        scale, shift = self.slides(cond)
        return self.conv2(F.silu(self.norm2(self.conv1(x)) * (1 + scale) + shift))

    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__(in_channels, out_channels, cond_dim)
        del self.norm1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)


@wrong(check.residual_block, "does not see two pixels far")
class PixelByPixel(_Block):
    kernel = 1


@wrong(check.residual_block, "in place")
class InPlace(_Block):
    def forward(self, x, cond):
        h = self.change(x, cond)
        if x.shape == h.shape:
            x += h + 1
            return x
        return self.shortcut(x) + h


@wrong(check.residual_block, "not part of the module")
class LayersInAList(_Block):
    """The learned weights of conv1 are nowhere to be found."""

    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__(in_channels, out_channels, cond_dim)
        del self.conv1
        self.hidden = [nn.Conv2d(in_channels, out_channels, 3, padding=1)]

    def conv1(self, x):
        return self.hidden[0](x)


@wrong(check.residual_block, "two calls with the same input differ")
class DropsAlways(_Block):
    def change(self, x, cond):
        return F.dropout(super().change(x, cond), 0.5)


@wrong(check.residual_block, "where (3, 16, 5, 8) is due")
class WithoutPadding(_Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.conv1.padding = self.conv2.padding = (0, 0)

    def forward(self, x, cond):
        return self.shortcut(x)[:, :, 2:-2, 2:-2] + self.change(x, cond)


@wrong(check.residual_block, "no gradient comes back")
class GradientCut(_Block):
    def change(self, x, cond):
        return super().change(x.detach(), cond.detach()).detach() + 0 * cond.sum()


@wrong(check.residual_block, "two calls with the same input differ")
class LayerMadeInForward(_Block):
    def change(self, x, cond):
        new = nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1)
        return super().change(x, cond) + 0.1 * new(x).mean()


@wrong(check.residual_block, "get no gradient")
class Frozen(_Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.conv1.requires_grad_(False)


@wrong(check.residual_block, "see each other")
class ConditionsMixedUp(_Block):
    def forward(self, x, cond):
        return super().forward(x, cond.flip(0))


@right(check.residual_block)
class LastNormalisationStartsAtZero(_Block):
    """As Goyal et al. (1706.02677): a third normalisation, whose factors start at zero."""

    zero = ()

    def __init__(self, in_channels, out_channels, cond_dim):
        super().__init__(in_channels, out_channels, cond_dim)
        self.norm3 = nn.GroupNorm(8, out_channels)
        nn.init.zeros_(self.norm3.weight)

    def change(self, x, cond):
        return self.norm3(super().change(x, cond))


@wrong(check.residual_block, "torch module")
def a_function(in_channels, out_channels, cond_dim):
    return lambda x, cond: x


@wrong(check.residual_block, "leaves out channels of x")
class CutsChannels(_Block):
    def forward(self, x, cond):
        h = self.change(x, cond)
        return self.shortcut(x) + h if x.shape[1] <= h.shape[1] else x[:, : h.shape[1]] + h


# --- 3.5 ------------------------------------------------------------------------------------------


@right(check.skips)
def by_recursion(x, downs, halve, middle, double, ups):
    if not len(downs):
        return middle(x)
    first, *rest = downs
    skip = first(x)
    below = by_recursion(halve(skip), rest, halve, middle, double, ups[1:])
    return ups[0](torch.cat((double(below), skip), 1))


@right(check.skips)
def by_numbers(x, downs, halve, middle, double, ups):
    kept = {}
    for level in range(len(downs)):
        kept[level] = downs[level](x)
        x = halve(kept[level])
    x = middle(x)
    for level in range(len(ups) - 1, -1, -1):
        x = ups[level](torch.concat([double(x), kept[level]], dim=-3))
    return x


@right(check.skips)
def by_pairs(x, downs, halve, middle, double, ups):
    pairs = []
    for down, up in zip(downs, ups, strict=True):
        h = down(x)
        pairs.insert(0, (up, h))
        x = halve(h)
    x = middle(x)
    for up, h in pairs:
        below = double(x)
        both = x.new_empty(len(x), below.shape[1] + h.shape[1], *h.shape[2:])
        both[:, : below.shape[1]], both[:, below.shape[1] :] = below, h
        x = up(both)
    return x


def _down(x, downs, halve):
    kept = []
    for down in downs:
        kept.append(down(x))
        x = halve(kept[-1])
    return x, kept


def _up(x, kept, double, ups):
    for up, skip in zip(ups, kept, strict=True):
        x = up(torch.cat([double(x), skip], dim=1))
    return x


@wrong(check.skips, "skips.pop()")
def first_in_first_out(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    return _up(middle(x), kept, double, ups[::-1])


@wrong(check.skips, "the way up begins with the deepest level: reversed(ups)")
def ups_forwards(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    return _up(middle(x), kept[::-1], double, ups)


@wrong(check.skips, "both walked from level 0 on")
def all_forwards(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    return _up(middle(x), kept, double, ups)


@wrong(check.skips, "kept after halving")
def kept_too_late(x, downs, halve, middle, double, ups):
    kept = []
    for down in downs:
        x = halve(down(x))
        kept.append(x)
    return _up(middle(x), kept[::-1], double, ups[::-1])


@wrong(check.skips, "what went INTO the block")
def kept_too_early(x, downs, halve, middle, double, ups):
    kept = []
    for down in downs:
        kept.append(x)
        x = halve(down(x))
    return _up(middle(x), kept[::-1], double, ups[::-1])


@wrong(check.skips, "joined the other way round")
def skip_in_front(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    x = middle(x)
    for up in reversed(ups):
        x = up(torch.cat([kept.pop(), double(x)], dim=1))
    return x


@wrong(check.skips, "joined along the channels")
def skips_added(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    x = middle(x)
    for up in reversed(ups):
        x = up(double(x) + kept.pop())
    return x


@wrong(check.skips, "joined along the channels")
def joined_along_the_rows(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    x = middle(x)
    for up in reversed(ups):
        x = up(torch.cat([double(x), kept.pop()], dim=2))
    return x


@wrong(check.skips, "handed twice what comes from below")
def without_skips(x, downs, halve, middle, double, ups):
    x = middle(_down(x, downs, halve)[0])
    for up in reversed(ups):
        x = double(x)
        x = up(torch.cat([x, x], dim=1))
    return x


@wrong(check.skips, "skip of its own level")
def skips_silenced(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    return _up(middle(x), [0 * skip for skip in kept[::-1]], double, ups[::-1])


@wrong(check.skips, "middle block is left out")
def without_middle(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    return _up(x, kept[::-1], double, ups[::-1])


@wrong(check.skips, "halved too, before the middle")
def halved_in_between_only(x, downs, halve, middle, double, ups):
    kept = []
    for i, down in enumerate(downs):
        x = down(halve(x) if i else x)
        kept.append(x)
    x = middle(x)
    for i, up in enumerate(reversed(ups)):
        x = up(torch.cat([double(x) if i else x, kept.pop()], dim=1))
    return x


@wrong(check.skips, "skip of its own level")
def deepest_skip_for_all(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    return _up(middle(x), kept[-1:] * len(kept), double, ups[::-1])


@wrong(check.skips, "skips.pop()")
def skips_sorted_by_size(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    return _up(middle(x), sorted(kept, key=lambda h: h.shape[2]), double, ups[::-1])


@wrong(check.skips, "double before the block")
def doubled_too_late(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    x = middle(x)
    for up in reversed(ups):
        x = double(up(torch.cat([x, kept.pop()], dim=1)))
    return x


@wrong(check.skips, "the skip was doubled too")
def doubled_together(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    x = middle(x)
    for up in reversed(ups):
        x = up(double(torch.cat([x, kept.pop()], dim=1)))
    return x


@wrong(check.skips, "first the block, then halve")
def halved_first(x, downs, halve, middle, double, ups):
    kept = []
    for down in downs:
        x = down(halve(x))
        kept.append(x)
    return _up(middle(x), kept[::-1], double, ups[::-1])


@wrong(check.skips, "ups[0], ups[1] had no turn")
def return_in_the_loop(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    x = middle(x)
    for up in reversed(ups):
        x = up(torch.cat([double(x), kept.pop()], dim=1))
        return x


@wrong(check.skips, "gradient does not come back")
def skips_detached(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    return _up(middle(x), [skip.detach() for skip in kept[::-1]], double, ups[::-1])


@wrong(check.skips, "the lists downs and ups were changed")
def pops_the_blocks(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    x = middle(x)
    while ups:
        x = ups.pop()(torch.cat([double(x), kept.pop()], dim=1))
    return x


@wrong(check.skips, "was called 2 times")
def blocks_called_again(x, downs, halve, middle, double, ups):
    kept = []
    for down in downs:
        kept.append(down(x))
        x = halve(down(x))
    return _up(middle(x), kept[::-1], double, ups[::-1])


@wrong(check.skips, "what comes from below, doubled")
def with_a_double_of_its_own(x, downs, halve, middle, double, ups):
    x, kept = _down(x, downs, halve)
    x = middle(x)
    for up, skip in zip(reversed(ups), reversed(kept), strict=True):
        x = up(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], dim=1))
    return x


@wrong(check.skips, "not where each is half")
def sizes_made_to_fit(x, downs, halve, middle, double, ups):
    """Takes only every second of the pixels that halve had made, and repeats them."""
    x, kept = _down(x, downs, lambda h: halve(h) if h.shape[2] == 3 else h[:, :, ::2, ::2])
    return _up(middle(x), kept[::-1], double, ups[::-1])


# --- 3.6 ------------------------------------------------------------------------------------------


def _as_map(t, z):
    return t[:, None, None, None].expand(-1, 1, *z.shape[2:])


@right(check.denoiser)
class DilatedConvolutions(nn.Module):
    """No level down: holes in the kernels see as far. The time is one more channel."""

    def __init__(self, channels=24):
        super().__init__()
        self.stem, self.out = nn.Conv2d(4, channels, 3, padding=1), nn.Conv2d(channels, 3, 1)
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=d, dilation=d) for d in (1, 2, 3)
        )

    def forward(self, z, t):
        h = self.stem(torch.cat([z, _as_map(t, z)], dim=1))
        for layer in self.layers:
            h = h + layer(F.silu(F.group_norm(h, 4)))
        return self.out(F.silu(h))


@right(check.denoiser)
class PlainUnet(nn.Module):
    """Without a single part of the package: the time is added, by a linear layer of t itself."""

    def __init__(self, c=24):
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, 3, 3, padding=1)
        self.down, self.middle = nn.Conv2d(c, c, 3, 2, 1), nn.Conv2d(c, c, 3, padding=1)
        self.join, self.time = nn.Conv2d(2 * c, c, 3, padding=1), nn.Linear(1, 2 * c)
        self.norms = nn.ModuleList(nn.GroupNorm(4, c) for _ in range(3))

    def forward(self, z, t):
        here, below = self.time(t[:, None])[:, :, None, None].chunk(2, dim=1)
        skip = F.relu(self.stem(z) + here)
        h = F.relu(self.norms[0](self.down(skip)))
        h = F.relu(self.norms[1](self.middle(h)) + below)
        h = F.interpolate(h, size=z.shape[2:])
        return self.out(F.relu(self.norms[2](self.join(torch.cat([h, skip], dim=1)))))


class _Blocks(nn.Module):
    def __init__(self, channels=16, count=1):
        super().__init__()
        self.time = TimeEmbedding(16)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, channels, 16, 0.0) for _ in range(count)
        )
        self.out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z, t):
        h, cond = self.stem(z), F.silu(self.time(t))
        for block in self.blocks:
            h = block(h, cond)
        return self.out(F.silu(h))


@right(check.denoiser)
class OneResidualBlock(_Blocks):
    pass


@right(check.denoiser)
class AddsToTheNoisyImage(_Blocks):
    """alpha z + sigma F(z, t): the blocks answer with -v."""

    def __init__(self):
        super().__init__(channels=24, count=2)

    def forward(self, z, t):
        alpha, sigma = NoiseSchedule().alpha_sigma(expand(t, z))
        return alpha * z + sigma * super().forward(z, t)


@right(check.denoiser)
class Transformer(nn.Module):
    """Squares of 2 x 2 pixels as tokens, and attention between them."""

    def __init__(self, width=48):
        super().__init__()
        self.stem, self.out = nn.Conv2d(12, width, 3, padding=1), nn.Conv2d(width, 12, 3, padding=1)
        self.time = TimeEmbedding(16)
        self.slides = nn.Linear(16, 2 * width)
        self.block = AttentionBlock(width, 8, 2, 16, to_self=True, to_text=False)

    def forward(self, z, t):
        h = self.stem(F.pixel_unshuffle(z, 2))
        scale, shift = self.slides(self.time(t))[:, :, None, None].chunk(2, dim=1)
        h = self.block(F.group_norm(h, 8) * (1 + scale) + shift, None, None)
        return F.pixel_shuffle(self.out(F.silu(h)), 2)


@wrong(check.denoiser, "hardly listens to t")
class IgnoresTheTime(_Blocks):
    def forward(self, z, t):
        return super().forward(z, torch.full_like(t, 0.5))


@wrong(check.denoiser, "error is still too large")
class OneConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 5, padding=2)

    def forward(self, z, t):
        return self.conv(torch.cat([z, _as_map(t, z)], dim=1))


@wrong(check.denoiser, "error is still too large")
class ThreeConvolutions(nn.Module):
    """It knows the time, but sees three pixels far."""

    def __init__(self, c=32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, c, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c, c, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c, 3, 3, padding=1),
        )

    def forward(self, z, t):
        return self.layers(torch.cat([z, _as_map(t, z)], dim=1))


@wrong(check.denoiser, "error is still too large")
class SlidersOnly(nn.Module):
    """Each pixel by itself, though with the right factors for each time."""

    def __init__(self):
        super().__init__()
        self.time, self.slides = TimeEmbedding(16), nn.Linear(16, 6)

    def forward(self, z, t):
        scale, shift = self.slides(self.time(t))[:, :, None, None].chunk(2, dim=1)
        return z * scale + shift


@wrong(check.denoiser, "error is still too large")
class LeavesItAsItIs(nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, z, t):
        return z + self.nothing


@wrong(check.denoiser, "error is still too large")
class AnswersWithTheNoise(_Blocks):
    def forward(self, z, t):
        return eps_from_x(z, super().forward(z, t), *NoiseSchedule().alpha_sigma(expand(t, z)))


@wrong(check.denoiser, "too many parameters")
class TooLarge(_Blocks):
    def __init__(self):
        super().__init__(channels=32, count=3)


@wrong(check.denoiser, "your code stopped with RuntimeError")
class SidesOfEightOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = TimeEmbedding(64)
        self.first, self.second = nn.Linear(192, 64), nn.Linear(64, 192)

    def forward(self, z, t):
        return self.second(F.silu(self.first(z.flatten(1)) + self.time(t))).reshape(z.shape)


@wrong(check.denoiser, "no gradient comes back")
class Detached(_Blocks):
    def forward(self, z, t):
        return super().forward(z, t).detach()


@wrong(check.denoiser, "depends on the other images")
class OneTimeForTheBatch(_Blocks):
    def forward(self, z, t):
        return super().forward(z, t.mean().expand(len(t)))


@wrong(check.denoiser, "not part of the module")
class BlocksInAList(_Blocks):
    def __init__(self):
        super().__init__()
        del self.blocks
        self.blocks = [ResidualBlock(16, 16, 16, 0.0)]
        nn.init.normal_(self.blocks[0].conv2.weight, std=0.1)


@wrong(check.denoiser, "two calls with the same input differ")
class NoiseOfItsOwn(_Blocks):
    def forward(self, z, t):
        return super().forward(z + 0.1 * torch.randn_like(z), t)


@wrong(check.denoiser, "where (2, 3, 8, 12) is due")
class ForgetsToDouble(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.out = Downsample(3, 16), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z, t):
        return self.out(F.silu(self.down(z)))


@wrong(check.denoiser, "in place")
class CentresInPlace(_Blocks):
    def forward(self, z, t):
        z -= z.mean((2, 3), keepdim=True)
        return super().forward(z, t)


@wrong(check.denoiser, "torch module")
def a_function_of_z(*_):
    return lambda z, t: z
