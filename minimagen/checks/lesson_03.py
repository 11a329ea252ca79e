"""Checks of the exercises of lesson 03, the U-Net."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimagen.checks.exercise import Inputs, Lesson, Wrong, close, equal, expect
from minimagen.data.scenes import ShapesDataset
from minimagen.data.shapes import MINIMAL
from minimagen.diffusion import q_sample
from minimagen.schedules import NoiseSchedule, expand

lesson = Lesson(3)
progress = lesson.progress

PRECISIONS = (torch.float32, torch.float64)
Layer = Callable[[Tensor], Tensor]


# --- 3.1 ------------------------------------------------------------------------------------------


def _slow_waves(t: Tensor, dim: int) -> Tensor:
    """The definition, one number after the other, in float64."""
    rows = []
    for time in t.double().tolist():
        angles = [1000 * time / 10_000 ** (k / (dim / 2)) for k in range(dim // 2)]
        rows.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    return torch.tensor(rows, dtype=torch.float64)


def _sines_cosines(tau: Tensor, omega: Tensor) -> Tensor:
    angles = tau[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@lesson.exercise(
    "The hands of the clock",
    look="omega_k = 10000^(-k / (d/2)), tau = 1000 t, first all sines and then all cosines; "
    'section "What time is it?" of the lesson',
)
def clock(answer: Callable[[Tensor, int], Tensor]) -> None:
    """answer(t, dim) -> (B, dim); t (B,) in [0, 1], dim even."""
    inputs = Inputs(301)
    for dtype in PRECISIONS:
        for dim, batch in ((32, 5), (6, 3), (2, 4), (16, 1)):
            t = inputs.uniform(batch, dtype=dtype)
            if batch > 2:
                t[0], t[-1] = 0, 1
            half = dim // 2
            k = torch.arange(half, dtype=dtype)
            tau, omega = 1000 * t, 10_000 ** (-k / half)
            waves = partial(_sines_cosines, tau)
            expected = _slow_waves(t, dim)
            sines, cosines = expected.chunk(2, dim=1)
            equal(
                answer(t, dim),
                expected.to(dtype),
                "entry k is to be sin(omega_k tau), and entry d/2 + k is to be cos(omega_k tau)",
                {
                    "tau = 1000 t, but here t itself was put in: from 0 to 1 even the fastest wave "
                    "hardly moves": _sines_cosines(t, omega),
                    "sines and cosines take turns; here all sines come first, then all "
                    "cosines (torch.cat)": torch.stack([sines, cosines], dim=2).flatten(1),
                    "the cosines come first; sines are due first": torch.cat([cosines, sines], 1),
                    "the sines stand in both halves: the second half is cosines": torch.cat(
                        [sines, sines], 1
                    ),
                    "the exponent is -k / (d/2), and not -k / d: the waves do not become slow "
                    "enough": waves(10_000 ** (-k / dim)),
                    "all of -k / (d/2) is the exponent, so it needs brackets": waves(
                        10_000.0**-k / half
                    ),
                    "the exponent is -2k / d, and not -2k / (d/2): the waves become slow too "
                    "soon": waves(10_000 ** (-2 * k / half)),
                    "the exponent divides by d/2 - 1 (some codes do), the equation divides by "
                    "d/2": waves(10_000 ** (-k / max(half - 1, 1))),
                    "k counts from 1; it starts at 0, so that the fastest wave has omega = 1": (
                        waves(10_000 ** (-(k + 1) / half))
                    ),
                    "the sign of the exponent: the waves are to become slower with k, not "
                    "faster": waves(10_000 ** (k / half)),
                    "the base is 10000, not e": waves((-k / half).exp()),
                    "the base is 10000; here it is 1000": waves(1000 ** (-k / half)),
                    "the waves run backwards in k: the fastest comes first": waves(omega.flip(0)),
                    "the angle is omega tau alone, without 2 pi": waves(2 * math.pi * omega),
                    "tau was made a whole number: keep the time as it is, times between two steps "
                    "count too": _sines_cosines(tau.trunc(), omega),
                    "tau was rounded to a whole number: keep the time as it is, times between two "
                    "steps count too": _sines_cosines(tau.round(), omega),
                },
                case=f"t of shape ({batch},), dim = {dim}",
                tolerance=5e-4,  # angles up to 1000 have lost three digits of float32
            )


# --- 3.2 ------------------------------------------------------------------------------------------


def _normalise_slowly(h: Tensor, groups: int) -> Tensor:
    """Group normalisation by the definition: one group of one image after the other."""
    out = torch.empty_like(h)
    size = h.shape[1] // groups
    for b in range(len(h)):
        for g in range(groups):
            part = h[b, g * size : (g + 1) * size]
            mean = part.sum() / part.numel()
            variance = ((part - mean) ** 2).sum() / part.numel()
            out[b, g * size : (g + 1) * size] = (part - mean) / math.sqrt(float(variance) + 1e-5)
    return out


def _normalise(h: Tensor, *dims: int, root: float = 0.5, correction: int = 0) -> Tensor:
    variance = h.var(dims, keepdim=True, correction=correction)
    return (h - h.mean(dims, keepdim=True)) / (variance + 1e-5) ** root


@lesson.exercise(
    "Normalise, then let the time speak",
    look="(1 + a) h^ + b, h^ = group normalisation of h, from each group of channels of each "
    'image; sections "Group normalisation and SiLU" and "scale and shift" of the lesson',
)
def scale_and_shift(answer: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """answer(h, scale_shift, groups) -> (B, C, H, W); h (B, C, H, W), scale_shift (B, 2C)."""
    inputs = Inputs(302)
    for dtype in PRECISIONS:
        for shape, groups in (((3, 8, 4, 5), 2), ((2, 12, 1, 3), 3), ((1, 4, 6, 3), 4)):
            for size in (3.0, 0.01):  # at 0.01 the 1e-5 below the root counts
                h = size * (inputs.normal(*shape, dtype=dtype) + 0.5)
                h[0, : shape[1] // groups] = 0.5  # a group without variance: nothing to divide by
                scale_shift = inputs.normal(shape[0], 2 * shape[1], dtype=dtype)
                high = h.double()
                a, b = scale_shift.double()[:, :, None, None].chunk(2, dim=1)
                in_turn = scale_shift.double()[:, :, None, None]
                hat = _normalise_slowly(high, groups)
                split = high.reshape(shape[0], groups, -1, *shape[2:])
                turns = high.reshape(shape[0], -1, groups, *shape[2:])
                group = partial(_normalise, split)
                std = split.std((2, 3, 4), keepdim=True, correction=0)
                centred = split - split.mean((2, 3, 4), keepdim=True)
                squares = (split**2).mean((2, 3, 4), keepdim=True)
                not_centred = centred / (squares + 1e-5).sqrt()
                root_first = centred / (std + 1e-5)
                found = answer(h, scale_shift, groups)
                expect(
                    not (isinstance(found, Tensor) and found.isnan().any()),
                    "nan came out, where all numbers of a group are equal: their variance is 0, so "
                    "1e-5 is to be added to it, below the root",
                )
                equal(
                    found,
                    ((1 + a) * hat + b).to(dtype),
                    "mean and variance are those of one group of channels of one image; then "
                    "every channel of every image has its own scale and shift",
                    {
                        "the 1 in (1 + a) is missing: with a scale of 0, where a network starts, "
                        "the feature map would vanish": a * hat + b,
                        "scale and shift are swapped: the first C numbers are the scale": (
                            (1 + b) * hat + a
                        ),
                        "scale and shift were taken in turns; the first C numbers are the scale, "
                        "the last C the shift": (1 + in_turn[:, ::2]) * hat + in_turn[:, 1::2],
                        "the shift is scaled too: first multiply, then add": (1 + a) * (hat + b),
                        "h was not normalised": (1 + a) * high + b,
                        "scale and shift come too early: first normalise, or the normalisation "
                        "takes them away again": _normalise_slowly((1 + a) * high + b, groups),
                        "scale and shift have no influence": hat,
                        "the scale has no influence": hat + b,
                        "the shift has no influence": (1 + a) * hat,
                        "scale and shift of the first image were taken for all": (
                            (1 + a[:1]) * hat + b[:1]
                        ),
                        "the mean is taken away, but the variance is not divided away": (1 + a)
                        * centred.reshape(shape)
                        + b,
                        "a small number is missing below the root, or it is not 1e-5": (1 + a)
                        * F.group_norm(high, groups, eps=1e-6)
                        + b,
                        "the mean is not taken away": (1 + a)
                        * (split / (split.var((2, 3, 4), keepdim=True, correction=0) + 1e-5).sqrt())
                        .reshape(shape)
                        + b,
                        "divide by the square root of the variance, not by the variance": (
                            (1 + a) * group(2, 3, 4, root=1).reshape(shape) + b
                        ),
                        "the variance is a mean over all n numbers of the group: divide by n and "
                        "not by n - 1 (unbiased=False)": (
                            (1 + a) * group(2, 3, 4, correction=1).reshape(shape) + b
                        ),
                        "the variance is the mean of (h - mean)^2, and not of h^2": (
                            (1 + a) * not_centred.reshape(shape) + b
                        ),
                        "1e-5 is to be added to the variance, below the root": (
                            (1 + a) * root_first.reshape(shape) + b
                        ),
                        "mean and variance are taken over all images of the batch; each image "
                        "is normalised by itself": (1 + a) * group(0, 2, 3, 4).reshape(shape) + b,
                        "mean and variance are those of a channel in all images (batch "
                        "normalisation); they are to be those of a group of channels in one "
                        "image": (1 + a) * _normalise(high, 0, 2, 3) + b,
                        "mean and variance are taken in each channel by itself; a group has "
                        "C / groups of them": (1 + a) * _normalise(high, 2, 3) + b,
                        "mean and variance are taken over all channels together; each group has "
                        "its own": (1 + a) * _normalise(high, 1, 2, 3) + b,
                        "mean and variance are taken over the channels of each pixel by itself; "
                        "all pixels of an image count": (1 + a) * group(2).reshape(shape) + b,
                        "a group is C / groups channels that lie side by side, and not every n-th "
                        "one": (1 + a) * _normalise(turns, 1, 3, 4).reshape(shape) + b,
                        "there are `groups` groups of C / groups channels, not groups of `groups` "
                        "channels": (
                            (1 + a) * F.group_norm(high, shape[1] // groups) + b
                        ),
                    },
                    case=f"h of shape {shape}, {groups} groups, values of size {size}",
                    tolerance=1e-4 if dtype == torch.float32 else 1e-8,
                )  # fmt: skip


# --- 3.3 ------------------------------------------------------------------------------------------


def _by_torch(h: Tensor, matrices: Sequence[Tensor], heads: int) -> Tensor:
    """Torch's own attention, one image and one head after the other."""
    images = []
    for image in h:
        tokens = image.flatten(1).T  # (C, H, W) -> (H*W, C)
        q, k, v = (tokens @ matrix.T for matrix in matrices)
        shares = zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True)
        out = [F.scaled_dot_product_attention(*(part[None] for part in share)) for share in shares]
        images.append(torch.cat(out, dim=2)[0].T.unflatten(1, image.shape[1:]))
    return torch.stack(images)


def _attend(
    h: Tensor,
    matrices: Sequence[Tensor],
    heads: int,
    *,
    scale: float | None = None,
    over: int = -1,
    split: str = "side by side",
    join: str = "side by side",
) -> Tensor:
    """Attention with one mistake, by choice."""
    batch, width = len(h), len(matrices[0])
    tokens = h.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)
    parts = []
    for matrix in matrices:
        part = tokens @ matrix.T  # (B, N, heads*d)
        if split == "side by side":
            part = part.unflatten(2, (heads, -1)).transpose(1, 2)
        elif split == "in turn":
            part = part.unflatten(2, (-1, heads)).permute(0, 3, 1, 2)
        elif split == "not moved":
            part = part.unflatten(2, (heads, -1))
        else:
            part = part.reshape(batch, heads, -1, width // heads)
        parts.append(part)  # (B, heads, N, d)
    q, k, v = parts
    scores = q @ k.transpose(-1, -2) * ((width / heads) ** -0.5 if scale is None else scale)
    out = scores.softmax(dim=over) @ v
    if join == "side by side":
        out = out.transpose(1, 2)  # (B, N, heads, d)
    elif join == "in turn":
        out = out.permute(0, 2, 3, 1)
    return out.reshape(batch, -1, width).transpose(1, 2).unflatten(2, h.shape[2:])


@lesson.exercise(
    "Every pixel asks every other",
    look="1706.03762, eq. 1, in each head by itself: softmax(q k^T / sqrt(d)) v, d channels a "
    'head; section "Self-attention" of the lesson',
)
def attention(answer: Callable[..., Tensor]) -> None:
    """answer(h, to_q, to_k, to_v, heads) -> (B, E, H, W); h (B, C, H, W), matrices (E, C)."""
    inputs = Inputs(303)
    for dtype in PRECISIONS:
        for shape, width, heads in (
            ((2, 7, 3, 4), 12, 3),  # d is a square, so that sqrt(d) has all digits in float32 too
            ((3, 4, 2, 2), 8, 2),
            ((1, 9, 5, 2), 9, 1),
            ((2, 8, 1, 7), 16, 4),
        ):
            h = inputs.normal(*shape, dtype=dtype)
            matrices = [inputs.normal(width, shape[1], dtype=dtype) / 1.5 for _ in range(3)]
            high, double = h.double(), [matrix.double() for matrix in matrices]
            attend, d = partial(_attend, high, double, heads), width // heads
            right = _by_torch(high, double, heads)
            to_q, to_k, to_v = double
            one = high.transpose(0, 1).flatten(1)[None, :, :, None]  # (1, C, B*H*W, 1)
            together = _attend(one, double, heads).unflatten(2, (-1, *shape[2:]))[0, ..., 0]
            mixed = high.reshape(shape[0], -1, shape[1]).transpose(1, 2).unflatten(2, shape[2:])
            mistakes = {
                "the scores are not divided by sqrt(d)": attend(scale=1.0),
                "the scores are divided by the root of all channels; d is the number of channels "
                "of ONE head": attend(scale=width**-0.5),
                "the scores are divided by the root of C, the channels of h; d is the number of "
                "channels of one head": attend(scale=shape[1] ** -0.5),
                "the scores are divided by the root of C / heads; d is E / heads": attend(
                    scale=max(shape[1] // heads, 1) ** -0.5
                ),
                "the scores are divided by d: take its square root": attend(scale=1 / d),
                "the scores are multiplied by sqrt(d): divide": attend(scale=d**0.5),
                "the softmax runs over the queries; the weights of ONE query, over all keys, add "
                "up to 1 (the last dimension of q k^T)": attend(over=-2),
                "the softmax runs over the heads; each head has weights of its own, over the "
                "keys": attend(over=1),
                "the softmax runs over the batch; the weights add up to 1 over the keys": attend(
                    over=0
                ),
                "all heads in one: each head is to have its own share of the channels, and its own "
                "softmax": _attend(high, double, 1),
                "one head for all, though scaled by the d of each": _attend(
                    high, double, 1, scale=d**-0.5
                ),
                "heads and pixels are mixed up: reshape to (B, N, heads, d) first, and then move "
                "the heads forward (transpose); a reshape alone moves nothing": attend(
                    split="by reshape"
                ),
                "heads and pixels are mixed up: reshape to (B, N, heads, d) first, and then move "
                "the heads forward (transpose); a reshape alone moves nothing, and none on the way "
                "back either": attend(split="by reshape", join="by reshape"),
                "the channels are dealt out to the heads in turn; head 0 has the first d channels, "
                "side by side": attend(split="in turn", join="in turn"),
                "the channels are dealt out to the heads in turn: unflatten them as (heads, d), "
                "not as (d, heads)": attend(split="in turn"),
                "at each pixel the heads look at each other: move them in front of the pixels "
                "(transpose) before q k^T": attend(split="not moved", join="by reshape"),
                "on the way back heads, pixels and channels are mixed up: (B, heads, H*W, d) needs "
                "transposes to become (B, E, H, W), and not only a reshape": right.flatten(2)
                .unflatten(1, (heads, d))
                .transpose(2, 3)
                .reshape(right.shape),
                "on the way back pixels and channels are mixed up: (B, H*W, E) needs a transpose "
                "to become (B, E, H, W), and not only a reshape": right.flatten(2)
                .transpose(1, 2)
                .reshape(right.shape),
                "the heads are joined in the wrong order: move them behind the pixels (transpose) "
                "before the last reshape": attend(join="by reshape"),
                "the channels of the heads are interleaved at the end; those of head 0 come "
                "first": attend(join="in turn"),
                "heads is the number of heads; here it was taken for d, the channels of "
                "one": _attend(high, double, d),
                "queries and keys are swapped": _attend(high, [to_k, to_q, to_v], heads),
                "values and keys are swapped": _attend(high, [to_q, to_v, to_k], heads),
                "the pixels of all images of the batch look at each other; a pixel asks its own "
                "image only": together.transpose(0, 1),
                "the rows are filled in column by column: what is flattened as (H, W) is to be "
                "unflattened as (H, W)": right.flatten(2)
                .unflatten(2, (shape[3], shape[2]))
                .transpose(2, 3),
                "channels and pixels are mixed up: (B, C, H, W) -> (B, H*W, C) needs a transpose "
                "and not only a reshape": _attend(mixed, double, heads),
                "there is no softmax: scores become weights by it": _without_softmax(
                    high, double, heads
                ),
                "only the values came back: they are to be averaged, with the weights": (
                    torch.einsum("ec,bchw->behw", to_v, high)
                ),
            }
            if width == shape[1]:
                mistakes["h was added; the task is the attention alone"] = right + high
            equal(
                answer(h, *matrices, heads),
                right.to(dtype),
                "each pixel is to receive, in each head, the mean of the values of all pixels of "
                "its image, weighted by the softmax of its scores",
                mistakes,
                case=f"h of shape {shape}, {heads} heads of {d} channels",
                tolerance=1e-4 if dtype == torch.float32 else 1e-9,
            )
    h = 40 * inputs.normal(1, 4, 3, 2)
    matrices = [inputs.normal(4, 4) for _ in range(3)]
    expect(
        answer(h, *matrices, 2).isfinite().all(),
        "large scores lead to inf or nan, because exp of a large number overflows: take softmax, "
        "or subtract the largest score of each query before exp",
        "Tried with:     scores of several thousand, float32",
    )


def _without_softmax(h: Tensor, matrices: Sequence[Tensor], heads: int) -> Tensor:
    q, k, v = (torch.einsum("ec,bchw->behw", matrix, h) for matrix in matrices)
    q, k, v = (part.flatten(2).unflatten(1, (heads, -1)) for part in (q, k, v))  # (B, h, d, N)
    out = torch.einsum("bhdn,bhdm,bhem->bhen", q, k, v) / math.sqrt(q.shape[2])
    return out.flatten(1, 2).unflatten(2, h.shape[2:])


# --- 3.4 ------------------------------------------------------------------------------------------


def _module(made: Any) -> nn.Module:
    expect(
        isinstance(made, nn.Module),
        "your class is to be a torch module: class …(nn.Module), with super().__init__() first",
    )
    return made


def _output(found: Any, shape: tuple[int, ...], case: str) -> Tensor:
    """What a module put out, if it is a float32 tensor of this shape."""
    kind = "nothing (is there a return?)" if found is None else f"a {type(found).__name__}"
    expect(isinstance(found, Tensor), f"{kind} came back, where a tensor is due", case)
    expect(
        found.shape == shape,
        f"the result has the shape {tuple(found.shape)}, where {shape} is due",
        case,
    )
    expect(found.dtype == torch.float32, f"the result is {found.dtype}, float32 is due", case)
    expect(found.isfinite().all(), "the result is not finite everywhere (inf or nan)", case)
    return found


def _without_dropout(network: nn.Module) -> nn.Module:
    """In training mode, but for what is random by intention."""
    network.train()
    for part in network.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.eval()
    return network


def _answers_twice_the_same(network: nn.Module, *given: Tensor) -> None:
    expect(
        close(network(*given), network(*given)),
        "two calls with the same input differ: no random numbers there, and no layers that are "
        "made in forward (make them in __init__); dropout as nn.Dropout",
    )


def _weights_are_registered(network: nn.Module, make: Callable[[], Any], *given: Tensor) -> None:
    """A second network with the weights of the first, as from a checkpoint, answers the same."""
    torch.manual_seed(1)
    second = _module(make())
    second.load_state_dict(network.state_dict())
    network.eval()
    second.eval()
    expect(
        close(second(*given), network(*given), 1e-4),
        "some weights are not part of the module, and would be lost with a checkpoint (and to the "
        "optimiser): make layers in __init__, as self.name = …, lists of them as nn.ModuleList, "
        "plain tensors as nn.Parameter or with register_buffer",
        "Tried with:     a second network that loads the state_dict of the first",
    )


@lesson.exercise(
    "A residual block that starts as nothing",
    look='shortcut(x) + conv2(SiLU(scale and shift(norm2(conv1(SiLU(norm1(x))))))), sections "The '
    'residual block" and "How the condition speaks to a block" of the lesson',
)
def residual_block(answer: Callable[[int, int, int], nn.Module]) -> None:
    """answer(in_channels, out_channels, cond_dim)(x, cond) -> (B, out_channels, H, W)."""
    inputs = Inputs(304)
    for before, after, cond_dim, sides in (
        (16, 16, 6, (5, 8)),
        (8, 24, 10, (7, 4)),
        (24, 8, 10, (6, 6)),
    ):
        case = f"Tried with:     {before} to {after} channels, {sides[0]} x {sides[1]} pixels"
        block = _without_dropout(_module(answer(before, after, cond_dim)))
        x, y = inputs.normal(3, before, *sides), inputs.normal(3, before, *sides)
        cond, other = inputs.normal(3, cond_dim), inputs.normal(3, cond_dim)
        x_before, cond_before = x.clone(), cond.clone()
        out = _output(block(x, cond), (3, after, *sides), case)
        _output(block(x[:1, :, :3], cond[:1]), (1, after, 3, sides[1]), case)
        expect(
            torch.equal(x, x_before) and torch.equal(cond, cond_before),
            "your block changes x or cond in place; the shortcut still needs them: no += on what "
            "was given, and no inplace=True",
        )
        _answers_twice_the_same(block, x, cond)
        _starts_as_its_shortcut(block, x, y, cond, other, case)
        _every_weight_learns(block, x, cond, inputs.normal(*out.shape), case)
        with torch.no_grad():
            out = block(x, cond)
            _answers_twice_the_same(block, x, cond)
            alone = torch.cat([block(x[i : i + 1], cond[i : i + 1]) for i in range(3)])
            expect(
                close(alone, out, 1e-4),
                "the images of a batch see each other (batch normalisation? a mean over the "
                "batch? the first image's condition for all?): each is to be treated by itself, "
                "with its own condition",
                case,
            )
            change = block(x, other) - out
            expect(
                float(change.abs().max()) > 1e-4,
                "the condition has no influence, even after three steps of training",
                case,
            )
            if before == after:
                _sees_and_bends(block, inputs.normal(1, before, 32, 32), cond[:1])
                _follows_the_equation(block, x, cond)
            _weights_are_registered(block, partial(answer, before, after, cond_dim), x, cond)


def _starts_as_its_shortcut(
    block: nn.Module, x: Tensor, y: Tensor, cond: Tensor, other: Tensor, case: str
) -> None:
    """At first: x and one constant a channel; or a linear function of x, if channels change."""
    nothing = torch.zeros_like(x)
    with torch.no_grad():
        of_x, of_nothing = block(x, cond), block(nothing, cond)
        expect(
            not close(of_x, of_nothing, 1e-4),
            "a new block lets nothing of x through: add the shortcut at the end",
            case,
        )
        if of_x.shape == x.shape:
            change = of_x - x
            expect(
                close(change, change.mean((0, 2, 3), keepdim=True).expand_as(x), 1e-4),
                "a new block is not the identity: at the end x itself has to be added (not what "
                "became of it), and the LAST convolution has to start with weights of zero, "
                "nn.init.zeros_(self.conv2.weight)",
                f"{case}\nFound:          a new block changes x by up to {change.abs().max():.3g}",
            )
        expect(
            close(block(x, other), of_x, 1e-4),
            "a new block already listens to the condition, so it is more than its shortcut: the "
            "LAST convolution has to start with weights of zero",
            case,
        )
        expect(
            close(block(x + y, cond) + of_nothing, of_x + block(y, cond), 1e-4),
            "a new block is more than its shortcut: when the number of channels changes, the "
            "shortcut is a 1 x 1 convolution of x, without activation or normalisation, and the "
            "LAST convolution of the other road has to start with weights of zero",
            case,
        )
        moved = x.clone()
        moved[:, :, 0, 0] += 1
        expect(
            close(block(moved, cond)[:, :, 1:], of_x[:, :, 1:], 1e-4),
            "the shortcut looks at the neighbours of a pixel too; its convolution is 1 x 1",
            case,
        )
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(block(x, cond).square().sum(), x)
    expect(
        (gradient.abs().amax((0, 2, 3)) > 0).all(),
        "the shortcut leaves out channels of x: a 1 x 1 convolution reads them all",
        case,
    )


def _sees_and_bends(block: nn.Module, x: Tensor, cond: Tensor) -> None:
    """One pixel of a large image is changed, so that the normalisation hardly notices."""
    step = torch.zeros_like(x)
    step[:, :, 16, 16] = 3 * x[:, :, 0, 0].sign()
    before, more, less = (block(here, cond) - here for here in (x, x + step, x - step))
    slope = (more - less).abs().amax((0, 1))  # (32, 32)
    bend = (more + less - 2 * before).abs().amax((0, 1))
    rows, columns = torch.arange(32)[:, None], torch.arange(32)
    distance = torch.maximum((rows - 16).abs(), (columns - 16).abs())
    expect(
        slope[distance == 2].max() > 5 * slope[distance >= 8].max(),
        "an output pixel does not see two pixels far: there are to be two convolutions, both "
        "3 x 3, one after the other",
    )
    expect(
        bend.max() > 0.03 * slope.max(),
        "the change is as good as linear in x: where are the two SiLUs?",
    )


def _follows_the_equation(block: nn.Module, x: Tensor, cond: Tensor) -> None:
    """What goes into the convolutions of a block that is made of just the usual parts."""
    seen: dict[type, list[tuple[Tensor, Tensor]]] = {}
    hooks = [
        part.register_forward_hook(
            lambda _, given, out, kind=kind: seen.setdefault(kind, []).append(
                (given[0].clone(), out.clone())  # what follows may change them in place
            )
        )
        for kind in (nn.GroupNorm, nn.Conv2d, nn.Linear)
        for part in block.modules()
        if isinstance(part, kind)
    ]
    block(x, cond)
    for hook in hooks:
        hook.remove()
    norms, convs, linears = (seen.get(kind, []) for kind in (nn.GroupNorm, nn.Conv2d, nn.Linear))
    if (len(norms), len(convs), len(linears)) != (2, 2, 1):
        return  # it is made in another way
    (_, first), (_, second) = norms
    (into_first, _), (into_second, _) = convs
    slides = linears[0][1]
    if slides.shape != (len(x), 2 * second.shape[1]):
        return
    one, other = slides[:, :, None, None].chunk(2, dim=1)
    known = [
        (into_first, first, "a SiLU is missing, before the first convolution"),
        (into_first, F.relu(first), "there is a ReLU, where a SiLU is due"),
        (
            into_second,
            F.silu(second),
            "scale and shift come before the second normalisation, which takes them away again: "
            "they belong behind it",
        ),
    ]
    for a, b in ((one, other), (other, one)):  # either may come first
        turned = (1 + a) * second + b
        known += [
            (into_second, turned, "a SiLU is missing, before the second convolution"),
            (into_second, F.relu(turned), "there is a ReLU, where a SiLU is due"),
            (into_second, F.silu(a * second + b), "the 1 in (1 + a) is missing"),
            (into_second, F.silu(second + b), "the scale has no influence, only the shift"),
            (into_second, (1 + a) * F.silu(second) + b, "scale and shift come before the SiLU"),
        ]
    for found, mistake, words in known:
        expect(not close(found, mistake, 1e-4), words)


def _every_weight_learns(
    block: nn.Module, x: Tensor, cond: Tensor, target: Tensor, case: str
) -> None:
    """Three steps of training: each parameter gets a gradient that is not 0 in one of them."""
    parameters = dict(block.named_parameters())
    expect(parameters, "the block has no parameters: layers are made in __init__, self.name = …")
    expect(
        block(x, cond).requires_grad,
        "no gradient comes back from the block: no detach, no data, no no_grad in it",
        case,
    )
    largest = dict.fromkeys(parameters, 0.0)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(block(x, cond), target).backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                largest[name] = max(largest[name], float(parameter.grad.abs().max()))
        optimizer.step()
    idle = [name for name, size in largest.items() if size == 0]
    expect(
        not idle,
        "some weights get no gradient in the first three steps, so they never learn: either "
        "forward does not use them (or detaches), or there are zeros behind them AND before them. "
        "Only the last convolution may start at zero",
        f"{case}\nWithout gradient: {', '.join(idle)}",
    )


# --- 3.5 ------------------------------------------------------------------------------------------


class _Block:
    """A fixed function of feature maps, each pixel by itself, that counts how often it is called.

    name: for the learner, "ups[1]"; channels: in and out
    """

    def __init__(
        self, name: str, inputs: Inputs, before: int, after: int, dtype: torch.dtype
    ) -> None:
        self.name, self.before, self.calls = name, before, 0
        self.weight = inputs.normal(after, before, dtype=dtype) / math.sqrt(before)
        self.bias = inputs.normal(after, 1, 1, dtype=dtype)

    def __call__(self, h: Tensor) -> Tensor:
        self.calls += 1
        expect(isinstance(h, Tensor), f"{self.name} was not handed a tensor")
        if h.ndim != 4 or h.shape[1] != self.before:
            joined = self.name.startswith("ups")
            raise Wrong(
                f"{self.name} was handed something that it does not fit: "
                + (
                    "it takes what comes from below AND the skip of its own level, joined along "
                    "the channels, torch.cat([…, …], dim=1)"
                    if joined
                    else "down the levels go from 0 on, up they go backwards"
                ),
                f"Expected shape: (B, {self.before}, H, W)\nFound shape:    {tuple(h.shape)}",
            )
        return torch.tanh(torch.einsum("oc,bchw->bohw", self.weight, h) + self.bias)


def _walk(
    x: Tensor,
    downs: Sequence[Layer],
    halve: Layer,
    middle: Layer,
    double: Layer,
    ups: Sequence[Layer],
    mistake: str,
) -> Tensor:
    """Through the U with one mistake; for levels that are all of one size."""
    skips: list[Tensor] = []
    levels = range(len(downs))
    last = levels[-1] if mistake == "last not halved" else None
    for level in levels:
        h = downs[level](halve(x) if mistake == "halved first" else x)
        smaller = h if level == last or mistake == "halved first" else halve(h)
        skips.append({"before the block": x, "after halving": smaller}.get(mistake, h))
        x = smaller
    x = x if mistake == "no middle" else middle(x)
    for level in levels if mistake in ("ups forwards", "all forwards") else levels[::-1]:
        skip = skips.pop(0 if mistake in ("queue", "all forwards") else -1)
        x = x if level == last or mistake in ("double late", "double both") else double(x)
        pair = [skip, x] if mistake == "joined the other way" else [x, skip]
        pair = [x, x] if mistake == "no skips" else pair
        joined = torch.cat(pair, dim=1)
        x = ups[level](double(joined) if mistake == "double both" else joined)
        x = double(x) if mistake == "double late" else x
    return x


def _nested(
    x: Tensor,
    downs: Sequence[Layer],
    halve: Layer,
    middle: Layer,
    double: Layer,
    ups: Sequence[Layer],
) -> Tensor:
    """Through the U as it is built: a U without its first level lies within."""
    if not downs:
        return middle(x)
    skip = downs[0](x)
    below = double(_nested(halve(skip), downs[1:], halve, middle, double, ups[1:]))
    return ups[0](torch.cat([below, skip], dim=1))


@lesson.exercise(
    "Down, across, and up again",
    look="what was kept last is needed first; Unet.forward in minimagen/unet.py and the map in "
    'section "The whole U-Net" of the lesson',
)
def skips(answer: Callable[..., Tensor]) -> None:
    """answer(x, downs, halve, middle, double, ups) -> (B, C, H, W); see ``_nested``."""
    inputs = Inputs(305)
    for dtype in PRECISIONS:
        for levels in (3, 2, 4, 1):
            _one_size(answer, inputs, levels, dtype)
    for channels, sides in (((4, 6, 8), (8, 24)), ((5, 3), (12, 4))):
        width = (3, *channels)
        levels = len(channels)
        down = [_Block(f"downs[{i}]", inputs, width[i], width[i + 1], torch.float32)
                for i in range(levels)]  # fmt: skip
        middle = _Block("middle", inputs, width[-1], width[-1], torch.float32)
        up = [_Block(f"ups[{i}]", inputs, 2 * width[i + 1], width[max(i, 1)], torch.float32)
              for i in range(levels)]  # fmt: skip
        halve, double = partial(F.avg_pool2d, kernel_size=2), partial(_repeat, factor=2)
        x = inputs.normal(2, 3, *sides)
        equal(
            answer(x, down, halve, middle, double, up),
            _nested(x, down, halve, middle, double, up),
            "right where all levels have one size, but not where each is half of the one before",
            case=f"{levels} levels of {channels} channels, {sides[0]} x {sides[1]} pixels",
        )


def _repeat(h: Tensor, factor: int) -> Tensor:
    return F.interpolate(h, scale_factor=float(factor))


def _one_size(
    answer: Callable[..., Tensor], inputs: Inputs, levels: int, dtype: torch.dtype
) -> None:
    """halve and double that change numbers, not sizes: so every mistake gives a result."""
    case = f"{levels} levels, all of 4 channels; halve and double keep the size here"
    down = [_Block(f"downs[{i}]", inputs, 4, 4, dtype) for i in range(levels)]
    up = [_Block(f"ups[{i}]", inputs, 8, 4, dtype) for i in range(levels)]
    middle = _Block("middle", inputs, 4, 4, dtype)
    parts = (down, lambda h: 0.6 * h - 0.3, middle, lambda h: 1.5 * h + 0.2, up)
    x = inputs.normal(2, 4, 3, 5, dtype=dtype).requires_grad_()
    given = list(down), list(up)
    found = answer(x, *parts)
    expect(
        (down, up) == given,
        "the lists downs and ups were changed; whoever calls you may call again with them: "
        "reversed(ups) or ups[::-1], and not pop or reverse",
    )
    calls = {block.name: block.calls for block in (*down, middle, *up)}
    idle = [block.name for block in (*down, *up) if not block.calls]
    expect(
        not idle,
        f"{', '.join(idle)} had no turn: each level has one on the way down and one on the way up "
        "(and a return within a loop ends it at once)",
        f"Tried with:     {case}",
    )
    expected = _nested(x, *parts)
    equal(
        found,
        expected,
        "on the way up each block is to read what comes from below, doubled, and the skip of its "
        "own level",
        {
            "the skips come in the order in which they were kept; what was kept last (the deepest) "
            "is needed first: skips.pop()": _walk(x, *parts, "queue"),
            "ups was walked from level 0 on; the way up begins with the deepest level: "
            "reversed(ups)": _walk(x, *parts, "ups forwards"),
            "skips and ups were both walked from level 0 on; the way up begins with the deepest "
            "level": _walk(x, *parts, "all forwards"),
            "the skip was kept after halving; keep what the block put out, at its full size": _walk(
                x, *parts, "after halving"
            ),
            "what went INTO the block was kept; the skip is what it put out": _walk(
                x, *parts, "before the block"
            ),
            "joined the other way round: first what comes from below, then the skip": _walk(
                x, *parts, "joined the other way"
            ),
            "the skips are not used: the block was handed twice what comes from below": _walk(
                x, *parts, "no skips"
            ),
            "double before the block, so that what comes from below is as large as the skip; "
            "here it came after it": _walk(x, *parts, "double late"),
            "the skip was doubled too: double what comes from below, then join": _walk(
                x, *parts, "double both"
            ),
            "halved before the block; level 0 is at full resolution: first the block, then "
            "halve": _walk(x, *parts, "halved first"),
            "the middle block is left out": _walk(x, *parts, "no middle"),
            "the deepest level is to be halved too, before the middle (and doubled after "
            "it)": _walk(x, *parts, "last not halved"),
        },
        case=case,
    )
    for name, number in calls.items():
        expect(number == 1, f"{name} was called {number} times; each block has its turn once", case)
    weight = inputs.normal(*expected.shape, dtype=dtype)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), x)
    backwards = torch.autograd.grad((found * weight).sum(), x) if found.requires_grad else (0 * x,)
    equal(
        backwards[0],
        gradient,
        "the numbers are right, but the gradient does not come back on every road: no detach, no "
        "data, no no_grad; training needs the skips for its way back",
        case=case,
    )


# --- 3.6 ------------------------------------------------------------------------------------------

SIDE, STEPS, BUDGET = 8, 120, 40_000
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
# For comparison: the mean image has an error of 0.41, the best linear 3 x 3 filters, another one
# for each of the times, 0.142; a small U-Net comes to 0.09.
LIMIT = 0.115
LISTENS = 1.15  # told the wrong times, a network's error should be larger by this factor


@cache
def _images(count: int, seed: int) -> Tensor:
    data = ShapesDataset(MINIMAL, count, SIDE, seed=seed)
    items: Sequence[Any] = data.items(range(count))
    return torch.stack([item["image"] for item in items])


def _noisy(x: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    eps = torch.randn(x.shape, generator=generator)
    return q_sample(x, eps, *NoiseSchedule().alpha_sigma(expand(t, x)))


def fit(network: nn.Module) -> nn.Module:
    """Train a network(z, t) -> x_hat for 120 steps on images of 8 x 8 pixels; about a second."""
    x, generator = _images(512, 0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    network.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min((step + 1) / 10, 1 - step / STEPS)
        batch = x[torch.randint(len(x), (32,), generator=generator)]
        t = torch.rand(32, generator=generator)
        loss = F.mse_loss(network(_noisy(batch, t, generator), t), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.eval()


@torch.no_grad()
def error(
    network: Callable[[Tensor, Tensor], Tensor], told: Callable[[float], float] = float
) -> float:
    """Mean squared error of x_hat over new images at five times from 0.1 to 0.9.

    told: the time that the network is told, of the true one
    """
    x, generator = _images(128, 1), torch.Generator().manual_seed(1)
    errors = []
    for t in TIMES:
        z = _noisy(x, torch.full((len(x),), t), generator)
        x_hat = network(z, torch.full((len(x),), told(t)))
        errors.append(float(F.mse_loss(x_hat, x)))
    return sum(errors) / len(errors)


@lesson.exercise(
    "Design: a denoiser of your own",
    look='the parts of the lesson, from "Group normalisation" to "The whole U-Net"; the last '
    "section tells what they are for",
)
def denoiser(answer: Callable[[], nn.Module]) -> None:
    """answer() -> network; network(z, t) -> x_hat, (B, 3, H, W) and (B,) -> (B, 3, H, W)."""
    inputs = Inputs(306)
    network = _module(answer())
    for shape in ((2, 3, 8, 12), (1, 3, 12, 4), (3, 3, 16, 16)):
        z, t = inputs.normal(*shape), inputs.uniform(shape[0])
        z_before, t_before = z.clone(), t.clone()
        case = f"Tried with:     images of {shape[2]} x {shape[3]} pixels, {shape[0]} in a batch"
        _output(network(z, t), shape, case)
        expect(torch.equal(z, z_before) and torch.equal(t, t_before), "z or t was changed in place")
    size = sum(parameter.numel() for parameter in network.parameters())
    expect(size > 0, "there is nothing to train: make layers in __init__, as self.name = …")
    expect(
        size <= BUDGET,
        "too many parameters; convolutions cost channels in x channels out x 9",
        f"Found:          {size:,}, where {BUDGET:,} are allowed",
    )
    expect(network(z, t).requires_grad, "no gradient comes back: no detach, no no_grad in forward")
    fit(network)
    z, t = inputs.normal(3, 3, SIDE, SIDE), inputs.uniform(3)
    with torch.no_grad():
        together = _output(network(z, t), (3, 3, SIDE, SIDE), "Tried with:     after training")
        _answers_twice_the_same(network, z, t)
        alone = torch.cat([network(z[i : i + 1], t[i : i + 1]) for i in range(3)])
        expect(
            close(alone, together, 1e-3),
            "an answer depends on the other images of the batch: each image has its own noise "
            "and its own time t[i]",
        )
        _weights_are_registered(network, answer, z, t)
    found = error(network)
    expect(
        found <= LIMIT,
        f"after {STEPS} steps of training the error is still too large. Best against it: see far "
        "(a level down and up again, or attention), and group normalisation; return x_hat, not the "
        "noise",
        f"Expected:       at most {LIMIT} (the best linear filters have 0.142)\n"
        f"Found:          {found:.3f}",
    )
    lost = error(network, told=lambda t: 1 - t)
    expect(
        lost >= LISTENS * found,
        "it hardly listens to t: told 0.1 for 0.9 and so on, it answers just as well. Let the time "
        "scale and shift the features, for instance",
        f"Expected:       an error larger by {100 * (LISTENS - 1):.0f} % or more\n"
        f"Found:          {found:.3f} with the true times, {lost:.3f} with wrong ones",
    )
