"""Checks of the exercises of lesson 06, thresholds for guided images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimagen.checks.exercise import Inputs, Lesson, close, equal, expect, pair_of
from minimagen.checks.oracles import cosine_alpha_sigma
from minimagen.data.scenes import ShapesDataset
from minimagen.data.shapes import FULL
from minimagen.schedules import NoiseSchedule

lesson = Lesson(6)
progress = lesson.progress

PRECISIONS = (torch.float32, torch.float64)


# --- what the checks share ------------------------------------------------------------------------


def _scales(x: Tensor, p: float, method: Any = "linear") -> Tensor:
    """Percentile of |x| for each image, (B, 1, 1, 1), by numpy, one after the other."""
    each = [np.quantile(np.abs(a.numpy()), p, method=method) for a in x.double()]
    return torch.tensor(each, dtype=torch.float64).reshape(-1, 1, 1, 1)


def _cut(x: Tensor, s: Tensor) -> Tensor:
    """clip(x, -s, s) / s in float64."""
    x = x.double()
    return torch.minimum(torch.maximum(x, -s), s) / s


def _dynamic(x: Tensor, p: float) -> Tensor:
    return _cut(x, _scales(x, p).clamp(min=1))


def _wild(inputs: Inputs, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Images of very different ranges, the first within [-1, 1]; channels differ, too."""
    x = inputs.normal(*shape, dtype=dtype)
    x = x * inputs.uniform(shape[0], shape[1], 1, 1, low=0.5, high=2, dtype=dtype) - 0.4
    first = 0.9 * x[:1] / x[:1].abs().max()
    sizes = torch.tensor([1, 1.4, 6, 25, 0.9], dtype=dtype)[1 : shape[0]]
    return torch.cat([first, x[1:] * sizes.reshape(-1, 1, 1, 1)])


# --- the exercises --------------------------------------------------------------------------------


@lesson.exercise(
    "Static thresholding",
    look='section "Two remedies" of the lesson; 2205.11487, sec. 2.3',
)
def static(answer: Callable[[Tensor], Tensor]) -> None:
    """answer(x) -> x in [-1, 1]; any shape."""
    inputs = Inputs(601)
    for dtype in PRECISIONS:
        for shape in ((3, 3, 4, 7), (1, 1, 5, 2), (9,)):
            for size in (3.0, 0.9):
                x = size * inputs.uniform(*shape, low=-1, dtype=dtype)
                x.flatten()[:2] = torch.tensor([-size, size], dtype=dtype)
                equal(
                    answer(x),
                    torch.from_numpy(np.clip(x.numpy(), -1, 1)),
                    "what is above 1 becomes 1, what is below -1 becomes -1, all else stays as it "
                    "is",
                    {
                        "nothing is changed": x,
                        "the range is [-1, 1] here, not [0, 1]": np.clip(x.numpy(), 0, 1),
                        "only the upper end is cut; there is a lower one": x.clamp(max=1),
                        "only the lower end is cut; there is an upper one": x.clamp(min=-1),
                        "everything is divided by the largest value; static thresholding leaves "
                        "values in range alone": x / x.abs().max().clamp(min=1),
                        "everything is divided by the largest value; values in range stay as they "
                        "are": x / x.abs().max(),
                        "tanh bends values in range too; these are to stay as they are": x.tanh(),
                        "what is out of range became 0; it should go to the nearer end": x
                        * (x.abs() <= 1),
                    },
                    case=f"x of shape {shape}, from {-size:g} to {size:g}",
                )


@lesson.exercise(
    "How much is saturated?",
    look='sections "The model and its captions" and "The measurement" of the lesson',
)
def saturated(answer: Callable[..., Tensor]) -> None:
    """answer(x, limit=0.99) -> share of the values of each image beyond +-limit, (B,)."""
    inputs = Inputs(602)
    for dtype in PRECISIONS:
        for shape in ((4, 3, 6, 9), (3, 1, 5, 4), (1, 3, 7, 2)):
            for limit in (0.99, 0.5):
                sizes = torch.tensor([1.5, 0.9, 3.0, 1.1], dtype=dtype)[: shape[0]]
                x = inputs.normal(*shape, dtype=dtype) * sizes.reshape(-1, 1, 1, 1) + 0.2
                if limit == 0.5:
                    x = (4 * x).round() / 4  # many are 0.5 exactly
                found = answer(x) if limit == 0.99 else answer(x, limit)
                if isinstance(found, Tensor):
                    found = found.double()  # a share may have any precision
                values = x.flatten(1).double()
                counts = [sum(abs(v) > limit for v in row) for row in values.tolist()]
                share = torch.tensor(counts, dtype=torch.float64) / values.shape[1]
                equal(
                    found,
                    share,
                    "for each image, the number of values with |x| > limit, divided by the "
                    "number of all its values, is due",
                    {
                        "only the values above the limit count here; those below -limit are "
                        "saturated too": (values > limit).double().mean(1),
                        "only the values below -limit count here": (values < -limit)
                        .double()
                        .mean(1),
                        "this is the share of what is NOT saturated": 1 - share,
                        "this is the number; divide it by the number of values": torch.tensor(
                            counts
                        ),
                        "a value that is just at the limit is not beyond it: > and not >=": (
                            values.abs() >= limit
                        )
                        .double()
                        .mean(1),
                        "pixels were counted that are saturated in one of their channels; count "
                        "the values, each channel by itself": (x.abs() > limit)
                        .any(1)
                        .flatten(1)
                        .double()
                        .mean(1),
                        "one number for the whole batch; the share of each image is "
                        "due": share.mean(),
                        "each image has its own share; this is that of the batch": share.mean()
                        .expand(shape[0]),
                        "the limit that was given is ignored": (values.abs() > 0.99)
                        .double()
                        .mean(1),
                    },
                    case=f"{shape[0]} images of {shape[1:]}, limit {limit:g}",
                    tolerance=1e-6,
                )  # fmt: skip


def _wrong_dynamic(x: Tensor, p: float) -> dict[str, Tensor]:
    """What mistakes with the percentile, the cut and the division give."""
    high, percentile = x.double(), _scales(x, p)
    s, batch = percentile.clamp(min=1), _scales(x[None], p).reshape(1, 1, 1, 1)
    channels = torch.quantile(high.abs().flatten(2), p, dim=2)[:, :, None, None]
    signed = torch.quantile(high.flatten(1), p, dim=1).reshape(-1, 1, 1, 1)
    one = torch.ones_like(s)
    results = {
        "nothing is changed": high,
        "this is static thresholding: every image is cut at 1, whatever its range (p goes from 0 "
        "to 1; numpy.percentile counts to 100)": _cut(x, one),
        "one percentile was taken for the whole batch, so that an image depends on its "
        "companions: take that of each image": _cut(x, batch.clamp(min=1)),
        "the largest percentile of the batch was taken for all, so that an image depends on its "
        "companions: take that of each image": _cut(x, s.amax() * one),
        "where the percentile is below 1, nothing is cut: then s is 1, and values beyond 1 become "
        "1": torch.where(percentile > 1, _cut(x, s), high),
        "each channel has a percentile of its own, which changes the colours: take one for all "
        "channels of an image": _cut(x, channels.clamp(min=1)),
        "s is not kept at 1 or above, so that an image within [-1, 1] is stretched: take "
        "max(1, percentile)": _cut(x, percentile),
        "s is the smaller of 1 and the percentile; it is the larger": _cut(
            x, percentile.clamp(max=1)
        ),
        "the cut is missing: x / s leaves values beyond 1, those above the percentile": high / s,
        "the division is missing: after the cut at s, the image still reaches to s": _cut(x, s) * s,
        "the image is cut at 1 and then divided by s; cut at s": _cut(x, one) / s,
        "this is the percentile of x; that of |x| is due, for dark values count as much": _cut(
            x, signed.clamp(min=1)
        ),
        "s is the largest |x|: the percentile is ignored": _cut(x, _scales(x, 1).clamp(min=1)),
        "the percentile that was given is ignored": _dynamic(x, 0.95),
        "the percentile is counted from the wrong end: p = 0.95 leaves 5 % above it": _cut(
            x, _scales(x, 1 - p).clamp(min=1)
        ),
    }
    for method in ("lower", "higher", "nearest"):
        words = "the percentile lies between two values: go linearly from one to the other, as "
        words += f"torch.quantile does by itself; this is the {method} one"
        results[words] = _cut(x, _scales(x, p, method).clamp(min=1))
    return results


@lesson.exercise(
    "Dynamic thresholding",
    look='sections "Two remedies" and "One percentile for each image, not for the batch" of the '
    "lesson; 2205.11487, sec. 2.3",
)
def dynamic(answer: Callable[..., Tensor]) -> None:
    """answer(x, p=0.95) -> clip(x, -s, s) / s, s = max(1, percentile of |x|) of each image."""
    inputs = Inputs(603)
    for dtype in PRECISIONS:
        for shape in ((5, 3, 6, 9), (4, 1, 3, 4), (3, 3, 16, 8), (1, 3, 5, 4)):
            for p in (0.95, 0.8, 1.0):
                x = _wild(inputs, shape, dtype)
                if shape[0] == 1:
                    x = 4 * x  # alone, and out of range
                found = answer(x) if p == 0.95 else answer(x, p)
                equal(
                    found,
                    _dynamic(x, p).to(dtype),
                    "each image is to be cut at -s and s and divided by s, where s is the "
                    "percentile of its |x|, but at least 1",
                    _wrong_dynamic(x, p),
                    case=f"{shape[0]} images of {shape[1:]} of different ranges, p = {p:g}",
                )
                tame = _scales(x, p).flatten() <= 1
                inside = tame & (x.abs().flatten(1).amax(1) <= 1)
                expect(
                    close(found[inside], x[inside], 1e-12),
                    "an image within [-1, 1] has to stay exactly as it is, with all its digits",
                )


class _Network:
    """What stands for the U-Net: v with a caption and without; notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def __call__(self, z: Tensor, t: Tensor, captioned: bool) -> Tensor:
        self.calls.append((z.clone(), t.clone(), bool(captioned)))
        return _velocity(z, t, bool(captioned))


def _velocity(z: Tensor, t: Tensor, captioned: bool) -> Tensor:
    time = t.reshape(-1, 1, 1, 1)
    if captioned:
        return 1.2 * torch.tanh(z) + 0.5 * time - 0.2
    return 0.7 * torch.tanh(z.flip(-1)) - 0.4 * time


@lesson.exercise(
    "The threshold in its place",
    look='sections "Guidance pushes values out of range" and "Two remedies" of the lesson; '
    "2202.00512, app. D, for v; 2205.11487, sec. 2.3",
)
def in_place_of_x(answer: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """answer(network, z, t, weight, p, schedule) -> (x, eps); network(z, t, captioned) -> v."""
    inputs = Inputs(604)
    for dtype in PRECISIONS:
        for shape, shift in (((4, 3, 6, 9), 1.0), ((3, 1, 8, 5), 0.5), ((1, 3, 4, 7), 1.0)):
            for weight, p in ((6.0, 0.95), (2.5, 0.8), (1.0, 0.9), (0.0, 0.9)):
                z = 1.5 * inputs.normal(*shape, dtype=dtype)
                t = torch.tensor([0.8, 0.35, 0.6, 0.45], dtype=dtype)[: shape[0]]
                network = _Network()
                pair = answer(network, z, t, weight, p, NoiseSchedule(shift=shift))
                pair_of(
                    pair,
                    "two tensors are due, x after the threshold and its eps: return x, eps",
                )
                _asked_rightly(network, z, t, weight)
                tolerance = 1e-9 if dtype == torch.float64 else 2e-4
                case = f"{shape[0]} images of {shape[1:]}, guidance weight {weight:g}, p = {p:g}"
                _right_pair(pair, z, t, weight, p, shift, case, tolerance)


def _asked_rightly(network: _Network, z: Tensor, t: Tensor, weight: float) -> None:
    """The network saw z and t as they are, with a caption and without (where it matters)."""
    asked = {captioned for _, _, captioned in network.calls}
    expect(
        asked == {True, False} or (weight in (0, 1) and asked == {weight == 1}),
        "guidance needs the network twice: once with the caption (True), once without (False)",
    )
    for seen_z, seen_t, _ in network.calls:
        if len(seen_z) != len(z):
            continue  # image by image, or all in one call: x will show
        expect(
            close(seen_z, z),
            "the network was given another z than yours was: z is noisy, its values may be "
            "anything, and no threshold belongs there",
        )
        expect(close(seen_t, t), "the network has to be given t as it is, (B,)")


def _right_pair(
    pair: tuple[Any, Any],
    z: Tensor,
    t: Tensor,
    weight: float,
    p: float,
    shift: float,
    case: str,
    tolerance: float,
) -> None:
    """x first, then the eps that belongs to it; or Wrong."""
    z, t = z.double(), t.double()
    alpha, sigma = cosine_alpha_sigma(t, shift)
    v_cond, v_uncond = _velocity(z, t, True), _velocity(z, t, False)

    def guided(a: Tensor, b: Tensor, w: float = weight) -> Tensor:
        return w * a + (1 - w) * b  # 2205.11487, eq. 2

    def x_of(v: Tensor) -> Tensor:
        return alpha * z - sigma * v

    v = guided(v_cond, v_uncond)
    free = x_of(v)
    x = _dynamic(free, p)
    eps = (z - alpha * x) / sigma
    plain_alpha, plain_sigma = cosine_alpha_sigma(t, 1.0)
    dtype = pair[0].dtype if isinstance(pair[0], Tensor) else torch.float64
    expect(
        not (close(pair[0], eps.to(dtype), tolerance) and close(pair[1], x.to(dtype), tolerance)),
        "x and eps are swapped: return x, eps",
    )
    equal(
        pair[0],
        x.to(torch.float64 if tolerance == 1e-9 else torch.float32),
        "x is made in this order: v with and without caption, guidance, x_hat = alpha z - sigma v, "
        "dynamic threshold",
        {
            "there is no threshold: x is as guidance left it": free,
            "the threshold came before guidance, which then drives the values out of range "
            "again: guide first": guided(
                _dynamic(x_of(v_cond), p), _dynamic(x_of(v_uncond), p)
            ),
            "the threshold came before guidance, and once more after it: guide first": _dynamic(
                guided(_dynamic(x_of(v_cond), p), _dynamic(x_of(v_uncond), p)), p
            ),
            "the threshold was put on v, what the network puts out; images have a range, v has "
            "none": x_of(_dynamic(v, p)),
            "a threshold was put on z too; images have a range, z has none": _dynamic(
                alpha * _dynamic(z, p) - sigma * v, p
            ),
            "this is the static threshold; the dynamic one is asked for": free.clamp(-1, 1),
            "a weight of 1 is off here, w v(caption) + (1 - w) v(none); you added 1 to "
            "it": _dynamic(x_of(guided(v_cond, v_uncond, weight + 1)), p),
            "with and without caption are swapped": _dynamic(x_of(guided(v_uncond, v_cond)), p),
            "there is no guidance: this is x_hat with the caption alone": _dynamic(
                x_of(v_cond), p
            ),
            "the network puts out v, not eps: x_hat is alpha z - sigma v": _dynamic(
                (z - sigma * v) / alpha, p
            ),
            "the network puts out v, not x_hat: x_hat is alpha z - sigma v": _dynamic(v, p),
            "wrong sign: x_hat is alpha z - sigma v": _dynamic(alpha * z + sigma * v, p),
            "alpha and sigma are swapped: x_hat is alpha z - sigma v": _dynamic(
                sigma * z - alpha * v, p
            ),
            "all images have the time of the first": _dynamic(
                alpha[:1] * z - sigma[:1] * v, p
            ),
            "the threshold was put on eps; images have a range, noise has none": (
                z - sigma * _dynamic(sigma * z + alpha * v, p)
            )
            / alpha,
            "the percentile that was given is ignored": _dynamic(free, 0.95),
            "the schedule that was given is ignored": _dynamic(
                plain_alpha * z - plain_sigma * v, p
            ),
            "one percentile was taken for the whole batch": _cut(
                free, _scales(free[None], p).reshape(1, 1, 1, 1).clamp(min=1)
            ),
        },
        case=case,
        tolerance=tolerance,
    )  # fmt: skip
    equal(
        pair[1],
        eps.to(pair[0].dtype),
        "x is right, but eps does not belong to it: z = alpha x + sigma eps has to hold with the x "
        "after the threshold",
        {
            "eps was made from the network's v, so it belongs to x before the threshold; a sampler "
            "that mixes the two leaves the path. Compute it anew: (z - alpha x) / sigma": sigma * z
            + alpha * v,
            "this is v of the new x, not eps": (alpha * z - x) / sigma,
            "alpha is missing: eps = (z - alpha x) / sigma": (z - x) / sigma,
            "the division by sigma is missing: eps = (z - alpha x) / sigma": z - alpha * x,
            "divided by sigma^2: eps = (z - alpha x) / sigma": (z - alpha * x) / sigma**2,
            "alpha and sigma are swapped: eps = (z - alpha x) / sigma": (z - sigma * x) / alpha,
            "this is the guided v; eps = (z - alpha x) / sigma": v,
            "a threshold was put on eps; it is noise, and has no range": _dynamic(eps, p),
            "eps was clipped; it is noise, and has no range": eps.clamp(-1, 1),
            "wrong sign: eps = (z - alpha x) / sigma": -eps,
        },
        case=case,
        tolerance=5 * tolerance,
    )


# --- design ---------------------------------------------------------------------------------------


@cache
def _guided() -> tuple[Tensor, Tensor]:
    data = ShapesDataset(FULL, 8, 32, seed=15)
    items: Sequence[Any] = data.items(range(8))
    images = torch.stack([item["image"] for item in items])
    true = (images + 1) * torch.linspace(1, 0.6, 32) - 1  # light from the left
    unguided = 0.7 * true + 0.3 * true.mean(0)  # knows half of what the caption says
    weight = torch.tensor([1.0, 2, 3, 4, 5, 6, 8, 10]).reshape(-1, 1, 1, 1)
    return weight * true + (1 - weight) * unguided, true


def guided_images() -> tuple[Tensor, Tensor]:
    """(x, true): eight images under guidance weights from 1 to 10, and what they should be."""
    x, true = _guided()
    return x.clone(), true.clone()


def measures(y: Tensor) -> tuple[float, float, float]:
    """(saturated, flat, kept) of ``guided_images`` after a threshold, y.

    saturated: share of the values beyond +-0.99
    flat: of the differences between neighbours in a row (0.02 or more), the share that is gone (1 %
        or less left)
    kept: what became of the values that were small before, |x| < 0.5, in the images that are far
        out of range (mean of these): 1 is as they were, 0.5 is half as large
    """
    x, _ = _guided()
    before, after = x.diff(dim=-1).abs(), y.diff(dim=-1).abs()
    differ = before > 0.02
    small = (x * (x.abs() < 0.5)).flatten(1)
    kept = (y.flatten(1) * small).sum(1) / small.square().sum(1)  # least squares, each image
    return (
        float((y.abs() > 0.99).float().mean()),
        float((after <= 0.01 * before)[differ].float().mean()),
        float(kept[2:].mean()),  # from a guidance weight of 3 on
    )


@lesson.exercise(
    "Design: a threshold of your own",
    look='sections "Two remedies" and "Which percentile?" of the lesson; draw what your threshold '
    "makes of the numbers from -3 to 3",
)
def own_threshold(answer: Callable[[Tensor], Tensor]) -> None:
    """answer(x) -> x in [-1, 1]: fewer saturated values than static, less fading than dynamic."""
    inputs = Inputs(605)
    for dtype in PRECISIONS:
        for shape in ((4, 3, 6, 9), (5, 1, 8, 5), (1, 3, 4, 4)):
            x = _wild(inputs, shape, dtype)
            _keeps_its_promises(answer, 30 * x if shape[0] == 1 else x)
        barely = inputs.uniform(3, 3, 7, 6, low=-1.02, high=1.02, dtype=dtype)
        barely[:, 0, 0, 0] = 1.02
        change = float((answer(barely) - barely).abs().max())
        expect(
            change <= 0.1,
            "the threshold sets in with a jump: an image that is only just out of range is "
            "changed a lot, one that is just within not at all",
            f"Tried with:     images from -1.02 to 1.02\nFound:          a change of {change:.2f}",
        )
    x, _ = guided_images()
    found, cut = measures(answer(x)), measures(x.clamp(-1, 1))
    facts = "Found:          saturated {:.2f}, flat {:.2f}, kept {:.2f}".format(*found)
    expect(
        found[0] <= cut[0] / 2,
        "too much is saturated: static thresholding leaves "
        f"{cut[0]:.2f} of the values of the guided images beyond +-0.99, yours may leave half of "
        "that. Large values have to be pressed together, not cut off",
        facts,
    )
    expect(
        found[1] <= cut[1] / 2,
        f"too much has become flat: static thresholding levels {cut[1]:.2f} of the differences "
        "between neighbours, yours may level half of that. What was different should stay "
        "different, if less so",
        facts,
    )
    expect(
        0.65 <= found[2] <= 1.35,
        "the small values fade, or are blown up: where |x| was below 0.5 nothing was wrong, and "
        "0.65 to 1.35 of it should be kept. Press the large values more than the small ones",
        facts,
    )


def _keeps_its_promises(answer: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Shape, range, images within it, order, and each image for itself; or Wrong."""
    found = answer(x)
    expect(found is not None, "nothing came back: is there a return?")
    expect(isinstance(found, Tensor), "a tensor is due, like x")
    expect(found.shape == x.shape, "the result has to have the shape of x")
    expect(found.dtype == x.dtype, "the result has to have the precision (dtype) of x")
    expect(found.isfinite().all(), "the result has to be finite everywhere (no inf or nan)")
    for i in range(len(x)):
        expect(
            close(answer(x[i : i + 1]), found[i : i + 1]),
            "an image depends on the other images of the batch: measure each by itself",
        )
    largest = float(found.abs().max())
    expect(
        largest <= 1 + 1e-5,
        "a value is still out of range: all should lie in [-1, 1]",
        f"Found:          {largest:.4g}, where |x| goes to {x.abs().max():.4g}",
    )
    for image, result in zip(x, found, strict=True):
        if image.abs().max() <= 1:
            equal(
                result,
                image,
                "an image within [-1, 1] has to stay as it is",
                case=f"an image whose largest |x| is {image.abs().max():.2f}",
            )
        order = image.flatten().argsort()
        expect(
            (result.flatten()[order].diff() > -1e-5).all(),
            "the order is lost: of two values of an image, in whichever channel, the larger one "
            "has to stay the larger one, or equal",
        )
