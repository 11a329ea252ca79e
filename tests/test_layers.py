"""The parts of a U-Net: embeddings, attention, residual blocks, resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimagen.layers import (
    SHARP_QUERIES,
    Attention,
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
    sinusoidal_embedding,
)

MASK = torch.tensor([[True] * 5, [True, True, True, False, False], [False, True] + [False] * 3])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturb(module: nn.Module) -> None:
    """Move every parameter away from zero, also those that a layer sets to zero at the start."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter += 0.2 * randn(*parameter.shape, seed=i)


# --- embeddings -----------------------------------------------------------------------------------


def test_sinusoidal_embedding_is_the_formula_of_the_transformer() -> None:
    """Sines then cosines of value / 10000^(2 i / dim), worked out number by number."""
    values, dim = [0.0, 0.3, 7.0, 999.0], 8
    rates = [10_000 ** (-2 * i / dim) for i in range(dim // 2)]
    expected = [[f(v * r) for f in (math.sin, math.cos) for r in rates] for v in values]
    ours = sinusoidal_embedding(torch.tensor(values), dim)
    torch.testing.assert_close(ours, torch.tensor(expected), atol=1e-4, rtol=0)


def test_time_embedding_tells_close_times_apart() -> None:
    """Times in [0, 1] are spread over the frequencies, so a hundredth of it is seen."""
    embedding = TimeEmbedding(16)
    perturb(embedding)
    out = embedding(torch.tensor([0.5, 0.51, 0.5]))
    assert out.shape == (3, 16)
    torch.testing.assert_close(out[0], out[2])
    assert (out[0] - out[1]).norm() > 0.1 * out[0].norm()


def test_position_features_are_a_cosine_transform_of_the_place() -> None:
    """Half are the basis of scipy's DCT-II over the rows, half over the columns."""
    height, width, dim = 6, 8, 10
    ours = position_features(height, width, dim, torch.device("cpu")).numpy()
    assert ours.shape == (dim, height, width)
    rows = scipy.fft.dct(np.eye(height), axis=1)[:, 1:6].T / 2  # (5, height), without the constant
    columns = scipy.fft.dct(np.eye(width), axis=1)[:, 1:6].T / 2
    np.testing.assert_allclose(ours[:5], np.repeat(rows[:, :, None], width, 2), atol=1e-6)
    np.testing.assert_allclose(ours[5:], np.repeat(columns[:, None], height, 1), atol=1e-6)


def test_position_features_tell_left_from_right_by_sign() -> None:
    """The first feature of each half is positive left (top) and negative right (bottom)."""
    features = position_features(4, 4, 6, torch.device("cpu"))
    assert (features[0, :2] > 0).all() and (features[0, 2:] < 0).all()
    assert (features[3, :, :2] > 0).all() and (features[3, :, 2:] < 0).all()


def test_position_features_of_a_window_are_those_of_the_whole() -> None:
    """At every resolution: a window is cut out of the features of the whole image."""
    device = torch.device("cpu")
    corner = torch.tensor([[0, 8], [12, 4], [16, 16]])
    for factor in (1, 2, 4):
        whole = position_features(32 // factor, 32 // factor, 6, device)
        window = Window(corner, 32).reduced(factor)
        side = 16 // factor
        cut = position_features(side, side, 6, device, window)
        for one, (top, left) in zip(cut, (corner // factor).tolist(), strict=True):
            due = whole[:, top : top + side, left : left + side]
            torch.testing.assert_close(one, due, rtol=0, atol=1e-6)


def correlated_text(captions: int = 400) -> Tensor:
    """Embeddings (captions, 5, 8) that vary a hundred times more in one direction."""
    mixing = randn(8, 8, seed=1) * torch.logspace(0, -2, 8)
    return randn(captions, 5, 8) @ mixing + randn(8, seed=2)


def test_whitened_text_has_numpy_s_identity_covariance() -> None:
    """Mean 0 and covariance 1, as numpy finds it, wherever the floor is small beside a variance."""
    text, whitening = correlated_text(), TextWhitening(8)
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    before = np.linalg.eigvalsh(np.cov(F.layer_norm(text, (8,)).reshape(-1, 8).T.numpy()))
    whitening.fit(text, mask, floor=1e-6)
    covariance = np.cov(whitening(text).reshape(-1, 8).T.numpy())
    assert before[-1] > 20 * before[1]  # there was something to do
    # normalised tokens have mean 0 over their features: one direction less than features
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[1:], np.ones(7), atol=0.02)
    torch.testing.assert_close(whitening(text).mean((0, 1)), torch.zeros(8), atol=1e-4, rtol=0)


def test_whitening_is_measured_on_real_tokens_alone() -> None:
    """What stands in the padding changes neither mean nor matrix."""
    text = correlated_text(3)
    clean, dirty = TextWhitening(8), TextWhitening(8)
    clean.fit(text, MASK)
    dirty.fit(torch.where(MASK[..., None], text, 100 * randn(3, 5, 8, seed=9)), MASK)
    torch.testing.assert_close(dirty.state_dict(), clean.state_dict())


def test_whitening_that_saw_nothing_only_normalises() -> None:
    """Before fit it is torch's layer norm, so that an untrained model works as well."""
    text = correlated_text(3)
    torch.testing.assert_close(TextWhitening(8)(text), F.layer_norm(text, (8,)))


# --- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK])
def test_attention_agrees_with_scaled_dot_product_attention(mask: Tensor | None) -> None:
    """Ours against torch's kernel, the width of the heads unlike that of the input."""
    attention = Attention(dim=12, context_dim=7, heads=3, head_dim=8)
    x, context = randn(3, 4, 12), randn(3, 5, 7, seed=1)
    q, k, v = (
        part.unflatten(2, (3, 8)).transpose(1, 2)  # (B, N, h*d) -> (B, h, N, d)
        for part in (attention.to_q(x), attention.to_k(context), attention.to_v(context))
    )
    allowed = None if mask is None else mask[:, None, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    expected = attention.to_out(out.transpose(1, 2).flatten(2))  # (B, N, h*d)
    torch.testing.assert_close(attention(x, context, mask), expected, atol=1e-5, rtol=1e-5)


def torch_attention(attention: Attention, dim: int, context_dim: int) -> nn.MultiheadAttention:
    """torch's own layer with the same weights; its heads together are as wide as its input."""
    reference = nn.MultiheadAttention(
        dim, attention.heads, bias=False, kdim=context_dim, vdim=context_dim, batch_first=True
    )
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    if context_dim == dim:  # torch keeps the three in one then
        parts = (attention.to_q, attention.to_k, attention.to_v)
        reference.in_proj_weight.data = torch.cat([part.weight.data for part in parts])
    else:
        for name, part in zip(names, (attention.to_q, attention.to_k, attention.to_v), strict=True):
            getattr(reference, name).data = part.weight.data
    reference.out_proj.weight.data = attention.to_out.weight.data
    return reference


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("context_dim", [12, 7])
def test_attention_agrees_with_multihead_attention(mask: Tensor | None, context_dim: int) -> None:
    """Ours against torch's layer with the same weights; torch's mask is True at padding."""
    attention = Attention(dim=12, context_dim=context_dim, heads=3, head_dim=4)
    x, context = randn(3, 4, 12), randn(3, 5, context_dim, seed=1)
    expected, _ = torch_attention(attention, 12, context_dim)(
        x, context, context, key_padding_mask=None if mask is None else ~mask
    )
    torch.testing.assert_close(attention(x, context, mask), expected, atol=1e-5, rtol=1e-5)


def test_attention_to_one_token_is_its_value() -> None:
    """With all tokens masked but one there is no choice: the softmax gives it all the weight."""
    attention = Attention(dim=8, context_dim=8, heads=2, head_dim=4)
    x, context = randn(1, 3, 8), randn(1, 5, 8, seed=1)
    expected = attention.to_out(attention.to_v(context[:, 1:2])).expand(1, 3, 8)
    torch.testing.assert_close(attention(x, context, MASK[2:]), expected)


def test_masked_tokens_get_no_attention_and_no_gradient() -> None:
    """Whatever stands in the padding: the result is the same, and nothing is learnt from it."""
    attention = Attention(dim=8, context_dim=8, heads=2, head_dim=4)
    x, context = randn(3, 4, 8), randn(3, 5, 8, seed=1).requires_grad_()
    out = attention(x, context, MASK)
    out.square().sum().backward()
    assert (context.grad[~MASK] == 0).all() and (context.grad[MASK] != 0).any()
    garbage = torch.where(MASK[:, :, None], context, 1e3 * randn(3, 5, 8, seed=2))
    torch.testing.assert_close(attention(x, garbage, MASK), out)


def test_pooling_is_torch_attention_of_learned_queries() -> None:
    """Pooling against torch's layer, mask included, and its MLP on top."""
    pooling = AttentionPooling(dim=12, out_dim=6, queries=2, heads=3, head_dim=4)
    text = randn(3, 5, 12)
    pooled, _ = torch_attention(pooling.attention, 12, 12)(
        pooling.queries.expand(3, 2, 12), text, text, key_padding_mask=~MASK
    )
    expected = pooling.mlp(pooled.flatten(1))  # (B, Q, D) -> (B, Q*D)
    out = pooling(text, MASK)
    assert out.shape == (3, 6)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_pooling_ignores_padding() -> None:
    """Fault 3: no average over padding; neither what it holds nor how much there is matters."""
    pooling = AttentionPooling(dim=8, out_dim=6, queries=3, heads=2, head_dim=4)
    text = randn(3, 5, 8)
    longer = torch.cat([text, 100 * randn(3, 20, 8, seed=1)], dim=1)
    longer[:, :5][~MASK] = -50
    out = pooling(longer, F.pad(MASK, (0, 20)))
    torch.testing.assert_close(out, pooling(text, MASK), atol=1e-5, rtol=1e-5)


def block(to_self: bool, to_text: bool) -> AttentionBlock:
    return AttentionBlock(8, text_dim=6, heads=2, head_dim=4, to_self=to_self, to_text=to_text)


def test_attention_block_starts_as_a_bystander() -> None:
    """With its zero weights it adds the same number to every pixel of a channel."""
    x = randn(2, 8, 4, 4)
    added = block(True, True)(x, randn(2, 5, 6), MASK[:2]) - x
    torch.testing.assert_close(added, added[:1, :, :1, :1].expand_as(added), atol=1e-6, rtol=0)


def words_attended(attention: Attention, x: Tensor, text: Tensor) -> float:
    """To how many words a query attends, on average: exp of the entropy of its weights."""
    q, k = (
        part.unflatten(-1, (attention.heads, -1)).transpose(1, 2)  # (B, h, N, d)
        for part in (attention.to_q(x), attention.to_k(text))
    )
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.special.entr(weights).sum(-1).exp().mean().item()


def test_attention_to_words_starts_sharp() -> None:
    """Pixels and learned queries prefer some of 12 words; with usual weights, they mix all."""
    torch.manual_seed(0)
    text, pixels = randn(8, 12, 64), randn(8, 16, 64, seed=1)
    usual = Attention(64, 64, heads=4, head_dim=32)
    assert words_attended(usual, pixels, text) > 11
    attention = AttentionBlock(64, 64, heads=4, head_dim=32, to_self=True, to_text=True)
    assert words_attended(attention.text_attention, pixels, text) < 6
    assert words_attended(attention.self_attention, pixels, text) > 11  # this is as usual
    pooling = AttentionPooling(64, 8, queries=16, heads=4, head_dim=32)
    assert words_attended(pooling.attention, pooling.queries.expand(8, -1, -1), text) < 6
    usual_queries = pooling.queries.expand(8, -1, -1) / SHARP_QUERIES
    assert words_attended(pooling.attention, usual_queries, text) > 11


@pytest.mark.parametrize("to_self", [False, True])
@pytest.mark.parametrize("to_text", [False, True])
def test_attention_block_looks_where_it_is_told(to_self: bool, to_text: bool) -> None:
    """Another pixel matters if and only if to_self, the text if and only if to_text."""
    attention = block(to_self, to_text)
    perturb(attention)
    x, text = randn(2, 8, 2, 4), randn(2, 5, 6, seed=1)
    out = attention(x, text, MASK[:2])
    assert out.shape == x.shape
    elsewhere = x.clone()
    elsewhere[:, 0, 0, 0] += 2
    moved = (attention(elsewhere, text, MASK[:2]) - out).abs()
    assert moved[:, :, 0, 0].max() > 1e-3
    assert (moved[:, :, 1, 2].max() > 1e-5) == to_self
    assert ((attention(x, text + 1 + text**2, MASK[:2]) - out).abs().max() > 1e-5) == to_text


def test_attention_block_keeps_each_pixel_in_its_place() -> None:
    """Pixels to sequence and back: shuffled pixels come out shuffled, height unlike width."""
    attention = block(True, True)
    perturb(attention)
    x, text = randn(1, 8, 2, 6), randn(1, 5, 6, seed=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))

    def shuffle(maps: Tensor) -> Tensor:
        return maps.flatten(2)[:, :, order].unflatten(2, (2, 6))  # (B, C, H, W)

    out = attention(x, text, MASK[:1])
    torch.testing.assert_close(
        attention(shuffle(x), text, MASK[:1]), shuffle(out), atol=1e-5, rtol=1e-5
    )


# --- convolutions ---------------------------------------------------------------------------------


def test_group_norm_keeps_its_digits_in_low_precision() -> None:
    """Under autocast and for bfloat16 input the sums are made in float32."""
    norm = GroupNorm(2, 4)
    x = (randn(2, 4, 8, 8) + 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.float32
    groups = x.double().unflatten(1, (2, 2))  # (B, 2, 2, H, W)
    mean = groups.mean((2, 3, 4), keepdim=True)
    std = groups.var((2, 3, 4), unbiased=False, keepdim=True).add(norm.eps).sqrt()
    torch.testing.assert_close(
        out.double(), ((groups - mean) / std).flatten(1, 2), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("out_channels", [16, 8])
def test_residual_block_starts_as_its_shortcut(out_channels: int) -> None:
    """The second convolution starts at zero: a bias at most is added to the shortcut."""
    residual = ResidualBlock(16, out_channels, cond_dim=4, dropout=0.0)
    x = randn(2, 16, 4, 4)
    added = residual(x, randn(2, 4)) - residual.shortcut(x)
    expected = residual.conv2.bias[None, :, None, None].expand_as(added)
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=0)
    assert isinstance(residual.shortcut, nn.Identity) == (out_channels == 16)


def test_residual_block_scales_and_shifts_by_the_condition() -> None:
    """(1 + scale) norm + shift, one scale and shift per image and channel."""
    residual = ResidualBlock(8, 16, cond_dim=4, dropout=0.0)
    perturb(residual)
    x, cond = randn(2, 8, 4, 4), randn(2, 4, seed=1)
    h = residual.conv1(F.silu(F.group_norm(x, 8, residual.norm1.weight, residual.norm1.bias)))
    h = F.group_norm(h, 8, residual.norm2.weight, residual.norm2.bias)
    numbers = cond @ residual.to_scale_shift.weight.T + residual.to_scale_shift.bias  # (B, 32)
    h = torch.stack(
        [(1 + numbers[b, c]) * h[b, c] + numbers[b, 16 + c] for b in range(2) for c in range(16)]
    ).reshape(2, 16, 4, 4)
    expected = residual.shortcut(x) + residual.conv2(F.silu(h))
    torch.testing.assert_close(residual(x, cond), expected, atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_alone() -> None:
    """Two passes differ in training mode and agree in eval mode."""
    residual = ResidualBlock(8, 8, cond_dim=4, dropout=0.5)
    perturb(residual)
    x, cond = randn(2, 8, 4, 4), randn(2, 4)
    assert not torch.equal(residual(x, cond), residual(x, cond))
    residual.eval()
    assert torch.equal(residual(x, cond), residual(x, cond))


def test_downsampling_halves_and_upsampling_doubles() -> None:
    """Sides of feature maps; upsampling repeats each pixel before its convolution."""
    down, up = Downsample(8, 16), Upsample(16, 8)
    x = randn(2, 8, 6, 4)
    small = down(x)
    assert small.shape == (2, 16, 3, 2)
    repeated = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(up(small), F.conv2d(repeated, up.weight, up.bias, padding=1))
    assert up(small).shape == x.shape
