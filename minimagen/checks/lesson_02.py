"""Checks of the exercises of lesson 02, reverse diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from minimagen.checks.exercise import Inputs, Lesson, close, equal, expect, pair_of
from minimagen.diffusion import Denoiser
from minimagen.samplers import ddim
from minimagen.schedules import NoiseSchedule

lesson = Lesson(2)
progress = lesson.progress

PRECISIONS = (torch.float32, torch.float64)
SHAPES = ((3, 3, 5, 8), (4, 1, 4, 4), (1, 3, 6, 2))
AT_THE_END = "only one image is at an end of the path, and all were treated like it: no if here"
Sampler = Callable[[Denoiser, Tensor, NoiseSchedule], Iterator[Tensor]]


def _turned(angle: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma), (B, 1, 1, 1), at angles (B,) of the quarter circle: 0 is clean."""
    angle = angle.reshape(-1, 1, 1, 1)
    return angle.cos(), angle.sin()


# --- 2.1 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "Four views of one prediction",
    look="z = alpha x + sigma eps, solved for x; the table in section 5 of the lesson",
)
def views(answer: Callable[..., Tensor]) -> None:
    """answer(kind, out, z, alpha, sigma) -> x_hat; out and z (B, C, H, W), levels (B, 1, 1, 1)."""
    inputs = Inputs(201)
    for dtype in PRECISIONS:
        for shape in SHAPES:
            x, eps = inputs.normal(*shape, dtype=dtype), inputs.normal(*shape, dtype=dtype)
            alpha, sigma = _turned(inputs.uniform(shape[0], low=0.2, high=1.3, dtype=dtype))
            z = alpha * x + sigma * eps
            outputs = {
                "eps": eps,
                "x": x,
                "v": alpha * eps - sigma * x,
                "score": -eps / sigma,
            }
            for kind, out in outputs.items():
                equal(
                    answer(kind, out, z, alpha, sigma),
                    x,
                    f"from kind = '{kind}' the clean image does not come back: write down what "
                    f"{kind} is, put z = alpha x + sigma eps in, and solve for x",
                    _other_views(kind, out, z, alpha, sigma),
                    case=f"kind = '{kind}', {shape[0]} images of shape {shape[1:]}",
                )
    # v keeps all its digits where hardly any of the image is left, and so does x
    x, eps = inputs.normal(2, 3, 4, 5), inputs.normal(2, 3, 4, 5)
    alpha = torch.tensor([1e-4, 0.0]).reshape(-1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    for kind, out in (("x", x), ("v", alpha * eps - sigma * x)):
        equal(
            answer(kind, out, alpha * x + sigma * eps, alpha, sigma),
            x,
            f"'{kind}' needs no division: on the way over eps one divides by alpha, and where that "
            "is nearly 0 all digits are lost",
            case=f"kind = '{kind}', alpha = 0.0001 and alpha = 0",
        )


def _other_views(
    kind: str, out: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor
) -> dict[str, Tensor]:
    """What comes out if an equation is mistaken for another."""
    swapped = "alpha and sigma are swapped: alpha belongs to the image, sigma to the noise"
    if kind == "eps":
        return {
            "with the noise taken off, alpha x is left: divide it by alpha": z - sigma * out,
            "eps is multiplied by sigma, not by sigma^2 (a variance)": (z - sigma**2 * out) / alpha,
            "the noise was added once more: take it off": (z + sigma * out) / alpha,
            swapped: (z - alpha * out) / sigma,
            "the noise in z is sigma eps, not eps": (z - out) / alpha,
            "alpha was taken as DDPM's alpha-bar: in this course it needs no square root": (
                z - (1 - alpha).sqrt() * out
            )
            / alpha.sqrt(),
        }
    if kind == "x":
        return {
            "z came back: for kind = 'x' the output is the clean image already": z,
            "for kind = 'x' the output is the clean image already; this is the noise that it "
            "implies": (z - alpha * out) / sigma,
        }
    if kind == "v":
        return {
            "the sign of v is wrong: v = alpha eps - sigma x": alpha * z + sigma * out,
            "this is eps = sigma z + alpha v, not x": sigma * z + alpha * out,
            "v was taken as if it were eps": (z - sigma * out) / alpha,
            "(alpha z - x) / sigma leads from x to v; the way back is due": (alpha * z - out)
            / sigma,
            "v was taken as eps - x, as in rectified flow; here v = alpha eps - sigma x": (
                z - sigma * out
            )
            / (alpha + sigma),
        }
    return {
        "this is eps = -sigma score, not x": -sigma * out,
        "the score is -eps / sigma, so the noise is -sigma^2 score; one sigma is missing": (
            z + sigma * out
        )
        / alpha,
        "the sign of the score is wrong: it points to the data, away from the noise": (
            z - sigma**2 * out
        )
        / alpha,
        "z + sigma^2 score is alpha x: divide it by alpha": z + sigma**2 * out,
        "the score was taken as if it were eps": (z - sigma * out) / alpha,
    }


# --- 2.2 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "One step back, if x were known",
    look="the product of two Gaussians in section 4 of the lesson; 2006.11239, eq. 6 and 7",
)
def posterior(answer: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """answer(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t) -> (mean, variance) of q(z_s | z_t, x)."""
    inputs = Inputs(202)
    two = "two tensors are due: return mean, variance"
    for dtype in PRECISIONS:
        for shape in SHAPES:
            x, z = inputs.normal(*shape, dtype=dtype), inputs.normal(*shape, dtype=dtype)
            early = inputs.uniform(shape[0], low=0.3, high=0.7, dtype=dtype)
            late = early + inputs.uniform(shape[0], low=0.2, high=0.7, dtype=dtype)
            levels = (*_turned(early), *_turned(late))
            mean, variance = pair_of(answer(x, z, *levels), two)
            case = f"{shape[0]} images of shape {shape[1:]}, two levels for each"
            right_mean, right_variance = _regression(x, z, *levels)
            equal(
                variance,
                right_variance,
                "this is not the variance of z_s once both x and z_t are known: the precisions add "
                "up, 1 / sigma_s^2 from q(z_s | x) and a^2 / b from q(z_t | z_s)",
                _other_variances(*levels),
                case=f"the variance; {case}",
            )
            equal(
                mean,
                right_mean,
                "this is not the mean of z_s once both x and z_t are known: what x says, "
                "alpha_s x, and what z_t says, z_t / a, are averaged, each weighted by its "
                "precision",
                _other_means(x, z, *levels),
                case=f"the mean; {case}",
            )
    x, z = inputs.normal(2, 3, 4, 5), inputs.normal(2, 3, 4, 5)
    clean, now = _turned(torch.tensor([0.0, 0.4])), _turned(torch.tensor([0.5, 0.9]))
    pure, then = _turned(torch.tensor([1.5, 1.2])), _turned(torch.tensor([0.9, 0.4]))
    pure[0][0], pure[1][0] = 0, 1
    for levels, ends, idea, case in (
        (
            (*clean, *now),
            (x, torch.zeros(2, 1, 1, 1)),
            "at the clean end z_s is x itself: mean x, variance 0. Multiply the fractions out, so "
            "that nothing is divided by sigma_s",
            "alpha_s = 1, sigma_s = 0",
        ),
        (
            (*then, *pure),
            (then[0] * x, then[1] ** 2),
            "if z_t is nothing but noise it says nothing: mean alpha_s x, variance sigma_s^2. "
            "Multiply the fractions out, so that nothing is divided by alpha_t",
            "alpha_t = 0, sigma_t = 1",
        ),
    ):
        found, right = pair_of(answer(x, z, *levels), two), _regression(x, z, *levels)
        for each, expected, end in zip(found, right, ends, strict=True):
            equal(each, expected, idea, {AT_THE_END: end}, case=f"{case} for the first of two")


def _regression(
    x: Tensor, z: Tensor, alpha_s: Tensor, sigma_s: Tensor, alpha_t: Tensor, sigma_t: Tensor
) -> tuple[Tensor, Tensor]:
    """By linear regression of z_s on z_t, given x: cov(z_s, z_t) = a sigma_s^2."""
    dtype = x.dtype
    x, z, alpha_s, sigma_s, alpha_t, sigma_t = (
        each.double() for each in (x, z, alpha_s, sigma_s, alpha_t, sigma_t)
    )
    covariance = alpha_t / alpha_s * sigma_s**2
    slope = covariance / sigma_t**2
    mean = alpha_s * x + slope * (z - alpha_t * x)
    return mean.to(dtype), (sigma_s**2 - slope * covariance).to(dtype)


def _other_variances(
    alpha_s: Tensor, sigma_s: Tensor, alpha_t: Tensor, sigma_t: Tensor
) -> dict[str, Tensor]:
    a = alpha_t / alpha_s
    b = sigma_t**2 - a**2 * sigma_s**2
    right = b * sigma_s**2 / sigma_t**2
    return {
        "this is b, the variance of q(z_t | z_s), a step forward; the step back also knows x": b,
        "this is sigma_s^2, the variance of q(z_s | x); z_t also tells something": sigma_s**2,
        "this is the standard deviation; the variance is due, its square": right.sqrt(),
        "this is the precision; the variance is one divided by it": 1 / right,
        "sigma where sigma^2 belongs: the factor of b is sigma_s^2 / sigma_t^2": b
        * sigma_s
        / sigma_t,
        "s and t are swapped: s is the earlier, cleaner time": sigma_t**2
        - (sigma_t**2 / (a * sigma_s)) ** 2,
        "s and t are swapped in the last factor: it is sigma_s^2 / sigma_t^2": b
        * (sigma_t / sigma_s) ** 2,
        "b was computed with a where a^2 belongs: a variance is scaled by a square": (
            sigma_t**2 - a * sigma_s**2
        )
        * sigma_s**2
        / sigma_t**2,
        "the two variances were added; it is the precisions, 1 / variance, that add up": sigma_s**2
        + b / a**2,
        "the precision of z_t is a^2 / b, not 1 / b: q(z_t | z_s) is a curve over z_t, and z_s "
        "is z_t / a": 1 / (1 / sigma_s**2 + 1 / b),
        "the precision of z_t is a^2 / b, not a / b": 1 / (1 / sigma_s**2 + a / b),
    }


def _other_means(
    x: Tensor, z: Tensor, alpha_s: Tensor, sigma_s: Tensor, alpha_t: Tensor, sigma_t: Tensor
) -> dict[str, Tensor]:
    a = alpha_t / alpha_s
    b = sigma_t**2 - a**2 * sigma_s**2
    return {
        "x and z_t are swapped: the share of x is alpha_s b / sigma_t^2": (
            alpha_s * b * z + a * sigma_s**2 * x
        )
        / sigma_t**2,
        "alpha_s is missing: q(z_s | x) has its mean at alpha_s x": (b * x + a * sigma_s**2 * z)
        / sigma_t**2,
        "the factor a is missing in front of z_t": (alpha_s * b * x + sigma_s**2 * z) / sigma_t**2,
        "alpha_t where alpha_s belongs: it is z_s that is asked for": (
            alpha_t * b * x + a * sigma_s**2 * z
        )
        / sigma_t**2,
        "sigma where sigma^2 belongs: the share of z_t is a sigma_s^2 / sigma_t^2": (
            alpha_s * b * x / sigma_t**2 + a * sigma_s / sigma_t * z
        ),
        "this is a step of DDIM, which keeps all the noise that is in z_t; the mean of q(z_s | "
        "z_t, x) keeps less of it": alpha_s * x + sigma_s * (z - alpha_t * x) / sigma_t,
        "this is the mean of q(z_s | x); z_t also tells something": alpha_s * x,
        "the weights are the variances; the one with the smaller variance is to count more": (
            alpha_s * x * sigma_s**2 + z / a * b / a**2
        )
        / (sigma_s**2 + b / a**2),
        "the sum is not normalised: multiply it by the variance": alpha_s * x / sigma_s**2
        + a * z / b,
    }


# --- 2.3 ------------------------------------------------------------------------------------------

Fit = Callable[[float, float], float]


@lesson.exercise(
    "The best possible denoiser",
    look="section 2 of the lesson: w = softmax(-|z - alpha x_k|^2 / (2 sigma^2)) over the data",
)
def best_denoiser(answer: Callable[..., Tensor]) -> None:
    """answer(z, data, alpha, sigma) -> E[x | z]; z (B, C, H, W), data (K, C, H, W)."""
    inputs = Inputs(203)
    for dtype in PRECISIONS:
        tolerance = 2e-4 if dtype == torch.float32 else 1e-9
        for shape, many in (((3, 3, 2, 4), 7), ((5, 1, 4, 4), 2), ((1, 2, 3, 1), 9)):
            data = 0.4 * inputs.normal(many, *shape[1:], dtype=dtype)
            z = inputs.normal(*shape, dtype=dtype)
            alpha, sigma = _turned(inputs.uniform(shape[0], low=0.6, high=1.3, dtype=dtype))
            equal(
                answer(z, data, alpha, sigma),
                best_guess(z, data, alpha, sigma),
                "each x_hat is to be the mean of the data, weighted by how well each of them "
                "explains this z with its own alpha and sigma",
                _other_guesses(z, data, alpha, sigma),
                case=f"{shape[0]} noisy images of shape {shape[1:]}, {many} in the data",
                tolerance=tolerance,
            )
        # hardly any noise, two images nearly the same; and a z that none of them explains well
        data = inputs.normal(6, 3, 2, 3, dtype=dtype)
        data[1] = data[0] + 0.01 * inputs.normal(3, 2, 3, dtype=dtype)
        noise = inputs.normal(4, 3, 2, 3, dtype=dtype)
        alpha, sigma = _turned(torch.tensor([1e-4, 1e-3, 0.01, 0.05], dtype=dtype))
        near, far = alpha * data[[3, 0, 5, 0]] + sigma * noise, 20 * noise
        for z, case in ((near, "close to the data"), (far, "far from all data")):
            found = answer(z, data, alpha, sigma)
            expect(
                not isinstance(found, Tensor) or bool(found.isfinite().all()),
                "not finite: with little noise exp(-|z - alpha x|^2 / (2 sigma^2)) is 0 for every "
                "image, and 0 / 0 is nan. torch.softmax subtracts the largest exponent first",
                f"Tried with:     sigma between 0.0001 and 0.05, z {case}",
            )
            equal(
                found,
                best_guess(z, data, alpha, sigma),
                "with little noise only the nearest images count, and they have to count fully: "
                "sigma may neither be kept from becoming small nor be added to",
                {
                    "all weights became 0: exp underflows when sigma is small, and nothing added "
                    "below the fraction mends that. torch.softmax subtracts the largest exponent "
                    "first": torch.zeros_like(z),
                },
                case=f"sigma between 0.0001 and 0.05, z {case}",
                tolerance=tolerance,
            )
    data, z = inputs.normal(5, 1, 3, 2), inputs.normal(2, 1, 3, 2)
    none, one = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    equal(
        answer(z, data, none, one),
        data.double().mean(0).float().expand(2, -1, -1, -1),
        "if z is nothing but noise all data explain it equally well: x_hat is their plain mean",
        case="alpha = 0, sigma = 1",
    )
    alpha, sigma = _turned(torch.tensor([0.9, 1.1]))
    twice = torch.cat([data, data[:1], data[:1]])
    equal(
        answer(z, twice, alpha, sigma),
        best_guess(z, twice, alpha, sigma),
        "an image that is in the data three times counts three times",
        {
            "an image that is in the data three times counted once": best_guess(
                z, data, alpha, sigma
            )
        },
        case="data with an image three times",
        tolerance=2e-4,
    )


def best_guess(
    z: Tensor,
    data: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    fit: Fit = lambda square, sigma: -square / (2 * sigma**2),
) -> Tensor:
    """E[x | z] by slow loops: z (B, C, H, W), data (K, C, H, W), alpha and sigma (B, 1, 1, 1)."""
    guesses = []
    for noisy, a, s in zip(z.double(), alpha.flatten(), sigma.flatten(), strict=True):
        logs = [fit(float(((noisy - a.double() * x) ** 2).sum()), float(s)) for x in data.double()]
        weights = [math.exp(log - max(logs)) for log in logs]  # the largest is 1
        mixed = sum(w * x for w, x in zip(weights, data.double(), strict=True))
        guesses.append(mixed / sum(weights))
    return torch.stack(guesses).to(z.dtype)


def _other_guesses(z: Tensor, data: Tensor, alpha: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    def guess(fit: Fit, alpha: Tensor = alpha, sigma: Tensor = sigma) -> Tensor:
        return best_guess(z, data, alpha, sigma, fit)

    gap = z[:, None] - alpha[:, None] * data  # (B, K, C, H, W)
    pixel_weights = (-(gap**2) / (2 * sigma[:, None] ** 2)).softmax(1)
    square = (gap**2).flatten(2).sum(2)  # (B, K)
    exponent = -square / (2 * sigma.reshape(-1, 1) ** 2)
    right = guess(lambda d, s: -d / (2 * s * s))
    pixels = z[0].numel()
    return {
        "softmax goes over the wrong axis: the weights of one z, over all data, add up to "
        "1": torch.einsum("bk,kchw->bchw", exponent.softmax(0), data),
        "the weights do not add up to 1: divide by their sum": torch.einsum(
            "bk,kchw->bchw", exponent.exp(), data
        ),
        "the weights do not add up to 1, because something was added below the fraction; "
        "torch.softmax needs no such thing": torch.einsum(
            "bk,kchw->bchw", exponent.exp() / (exponent.exp().sum(1, keepdim=True) + 1e-8), data
        ),
        "every pixel has weights of its own; an image has one weight: the squares of all its "
        "pixels are added up first": (pixel_weights * data).sum(1),
        "the 2 of 2 sigma^2 is missing": guess(lambda d, s: -d / (s * s)),
        "sigma where sigma^2 belongs: the exponent of a Gaussian is divided by its variance": guess(
            lambda d, s: -d / (2 * s)
        ),
        "sigma is missing": guess(lambda d, s: -d / 2),
        "the distance has to be squared": guess(lambda d, s: -math.sqrt(d) / (2 * s * s)),
        "the sign is wrong: this favours the data that are farthest away": guess(
            lambda d, s: d / (2 * s * s)
        ),
        "the squares of all pixels are added up; here their mean was taken": guess(
            lambda d, s: -d / pixels / (2 * s * s)
        ),
        "z is compared with x_k; but an image x_k would be seen as alpha x_k": guess(
            lambda d, s: -d / (2 * s * s), alpha=torch.ones_like(alpha)
        ),
        "z / alpha is compared with x_k, but then the noise is sigma / alpha": guess(
            lambda d, s: -d / (2 * s * s), sigma=sigma * alpha
        ),
        "this is the mean of alpha x, what is asked for is the mean of x": alpha * right,
        "this is the nearest image; what is asked for is the mean of all, weighted": data[
            square.argmin(1)
        ],
        "all data count the same": data.mean(0).expand_as(z),
    }


# --- 2.4 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "A step of DDIM, with or without dice",
    look="section 6 of the lesson; 2010.02502, eq. 12 and 16",
)
def ddim_step(answer: Callable[..., Tensor]) -> None:
    """answer(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise) -> z_s."""
    inputs = Inputs(204)
    for dtype in PRECISIONS:
        for shape in SHAPES:
            z, x = inputs.normal(*shape, dtype=dtype), inputs.normal(*shape, dtype=dtype)
            noise = inputs.normal(*shape, dtype=dtype)
            early = inputs.uniform(shape[0], low=0.3, high=0.7, dtype=dtype)
            late = early + inputs.uniform(shape[0], low=0.2, high=0.7, dtype=dtype)
            levels = (*_turned(late), *_turned(early))
            for eta in (0.0, 0.6, 1.0):
                equal(
                    answer(z, x, *levels, eta, noise),
                    _paper_step(z, x, *levels, eta, noise),
                    "keep x_hat and eps_hat, and mix them anew: alpha_s of the one, sigma_s of the "
                    "other"
                    if eta == 0
                    else "a share rho = eta^2 (1 - SNR_t / SNR_s) of the noise is renewed (SNR_t "
                    "is the smaller of the two): sqrt(1 - rho) of eps_hat stays, and sqrt(rho) of "
                    "the given noise is added",
                    _other_steps(z, x, *levels, eta, noise),
                    case=f"eta = {eta:g}, {shape[0]} images of shape {shape[1:]}",
                )
    z, x, noise = (inputs.normal(2, 3, 4, 5) for _ in range(3))
    levels = (*_turned(torch.tensor([0.02, 1.2])), *_turned(torch.tensor([0.0, 0.5])))
    for eta in (0.0, 1.0):
        equal(
            answer(z, x, *levels, eta, noise),
            _paper_step(z, x, *levels, eta, noise),
            "the last step leads to sigma_s = 0, and there to x_hat itself, without any noise",
            {AT_THE_END: x},
            case=f"alpha_s = 1, sigma_s = 0 for the first of two, eta = {eta:g}",
        )
    pure, then = _turned(torch.tensor([1.5, 1.2])), _turned(torch.tensor([1.3, 0.5]))
    pure[0][0], pure[1][0] = 0, 1
    for eta in (0.0, 1.0):
        equal(
            answer(z, x, *pure, *then, eta, noise),
            _paper_step(z, x, *pure, *then, eta, noise),
            "at the first step z is nothing but noise, alpha_t = 0: then eps_hat is z, and with "
            "eta = 1 all of it is renewed. Nothing may be divided by alpha_t",
            {AT_THE_END: then[0] * x + then[1] * (z if eta == 0 else noise)},
            case=f"alpha_t = 0, sigma_t = 1 for the first of two, eta = {eta:g}",
        )


def _paper_step(
    z: Tensor,
    x: Tensor,
    alpha_t: Tensor,
    sigma_t: Tensor,
    alpha_s: Tensor,
    sigma_s: Tensor,
    eta: float,
    noise: Tensor,
) -> Tensor:
    """2010.02502, eq. 12 and 16, with the paper's alpha = our alpha^2; one image by another."""
    rows = []
    for i in range(len(z)):
        bar_t, bar_s = alpha_t[i].double() ** 2, alpha_s[i].double() ** 2
        deviation = eta * ((1 - bar_s) / (1 - bar_t)).sqrt() * (1 - bar_t / bar_s).sqrt()
        eps = (z[i].double() - bar_t.sqrt() * x[i].double()) / (1 - bar_t).sqrt()
        kept = (1 - bar_s - deviation**2).clamp(min=0).sqrt()
        rows.append(bar_s.sqrt() * x[i] + kept * eps + deviation * noise[i].double())
    return torch.stack(rows).to(z.dtype)


def _other_steps(
    z: Tensor,
    x: Tensor,
    alpha_t: Tensor,
    sigma_t: Tensor,
    alpha_s: Tensor,
    sigma_s: Tensor,
    eta: float,
    noise: Tensor,
) -> dict[str, Tensor]:
    eps = (z - alpha_t * x) / sigma_t
    ratio = (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2  # SNR_t / SNR_s

    def step(kept: Tensor | float, fresh: Tensor | float, eps: Tensor = eps) -> Tensor:
        return alpha_s * x + sigma_s * (kept * eps + fresh * noise)

    rho = eta**2 * (1 - ratio)
    kept, fresh = (1 - rho).sqrt(), rho.sqrt()
    if eta == 0:
        none = torch.zeros_like(ratio)
        return {
            "this is z itself: take z apart with the levels of t, and mix anew with those of s": z,
            "s and t are swapped: z has the levels of t": alpha_t * x
            + sigma_t * (z - alpha_s * x) / sigma_s,
            "z was kept where eps_hat belongs: z = alpha_t x_hat + sigma_t eps_hat": step(1, 0, z),
            "eps_hat is (z - alpha_t x_hat) / sigma_t; alpha_t is missing": step(
                1, 0, (z - x) / sigma_t
            ),
            "eps_hat is (z - alpha_t x_hat) / sigma_t; the division is missing": step(
                1, 0, z - alpha_t * x
            ),
            "eps_hat is (z - alpha_t x_hat) / sigma_t, not divided by sigma_t^2: that is a "
            "variance": step(1, 0, eps / sigma_t),
            "sigma_s^2 where sigma_s belongs: eps_hat is multiplied by the standard "
            "deviation": alpha_s * x + sigma_s**2 * eps,
            "alpha was taken as DDPM's alpha-bar: in this course it needs no square root": (
                alpha_s.sqrt() * x
                + (1 - alpha_s).sqrt() * (z - alpha_t.sqrt() * x) / (1 - alpha_t).sqrt()
            ),
            "x_hat is missing: the new mixture is alpha_s x_hat + sigma_s eps_hat": sigma_s * eps,
            "alpha_s is missing in front of x_hat": x + sigma_s * eps,
            "with eta = 0 there are no dice: eta is ignored, noise was renewed": step(
                ratio.sqrt(), (1 - ratio).sqrt()
            ),
            "with eta = 0 there are no dice, all the noise was renewed": step(none, 1),
        }
    return {
        "eta is ignored: this is the step without dice": step(1, 0),
        "eta is ignored: this renews as much as eta = 1": step(ratio.sqrt(), (1 - ratio).sqrt()),
        "the old noise has to make room for the fresh one: sqrt(1 - rho) is missing, so there is "
        "more noise than sigma_s": step(1, fresh),
        "rho is a share of the variance; the noises are multiplied by square roots": step(
            1 - rho, rho
        ),
        "the fresh noise is multiplied by sqrt(rho), not by rho": step(kept, rho),
        "the shares are swapped: rho is the share that is renewed": step(fresh, kept),
        "rho = eta^2 (1 - SNR_t / SNR_s); eta has to be squared": step(
            (1 - eta * (1 - ratio)).sqrt(), (eta * (1 - ratio)).sqrt()
        ),
        "rho = eta^2 (1 - SNR_t / SNR_s); it is not eta^2 alone": step(math.sqrt(1 - eta**2), eta),
        "rho = eta^2 (1 - SNR_t / SNR_s); here the SNRs are not squared, alpha / sigma was "
        "taken": step(
            (1 - eta**2 * (1 - ratio.sqrt())).sqrt(), (eta**2 * (1 - ratio.sqrt())).sqrt()
        ),
        "rho = eta^2 (1 - SNR_t / SNR_s); 1 minus is missing": step(
            (1 - eta**2 * ratio).sqrt(), (eta**2 * ratio).sqrt()
        ),
        "the fresh noise is multiplied by sigma_s too: the noises together have the standard "
        "deviation sigma_s": alpha_s * x + sigma_s * kept * eps + fresh * noise,
    }


# --- 2.5 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "One loss, whatever is predicted",
    look="'Weights of the loss' in section 5 of the lesson; 2303.09556, sec. 3",
)
def min_snr(answer: Callable[..., Tensor]) -> None:
    """answer(kind, out, x, eps, alpha, sigma, gamma=5.0) -> loss (B,); kind eps, x or v."""
    inputs = Inputs(205)
    for dtype in PRECISIONS:
        for shape in SHAPES:
            x, eps = inputs.normal(*shape, dtype=dtype), inputs.normal(*shape, dtype=dtype)
            # SNR = 1 / tan^2 of the angle: from 44 to 1 / 8, so on both sides of every gamma
            alpha, sigma = _turned(torch.linspace(0.15, 1.23, shape[0], dtype=dtype))
            out = inputs.normal(*shape, dtype=dtype)
            for kind in ("eps", "x", "v"):
                for gamma in (2.0, 5.0):
                    arguments = (kind, out, x, eps, alpha, sigma)
                    found = answer(*arguments) if gamma == 5 else answer(*arguments, gamma)
                    equal(
                        found,
                        _loss_of_x(*arguments, gamma),
                        f"kind = '{kind}': each image's loss is the mean of min(SNR, gamma) "
                        "(x - x_hat)^2 over its pixels, with its own SNR",
                        _other_losses(*arguments, gamma),
                        case=f"kind = '{kind}', gamma = {gamma:g}, {shape[0]} images of shape "
                        f"{shape[1:]}",
                    )
    x, eps, out = (inputs.normal(2, 3, 4, 5) for _ in range(3))
    alpha, sigma = _turned(torch.tensor([0.3, 1.1]))
    for kind in ("eps", "x", "v"):
        learning = out.clone().requires_grad_()
        loss = answer(kind, learning, x, eps, alpha, sigma)
        expect(
            loss.requires_grad,
            "no gradient flows from the loss to out, so that nothing could be learned: leave out "
            "detach, item and no_grad",
        )
        (found,) = torch.autograd.grad(loss.sum(), learning)
        same = out.clone().requires_grad_()
        loss = _loss_of_x(kind, same, x, eps, alpha, sigma, 5.0)
        equal(
            found,
            torch.autograd.grad(loss.sum(), same)[0],
            "the loss is right, but not its gradient with respect to out",
            case=f"kind = '{kind}'",
        )
    alpha, sigma = _turned(torch.tensor([1e-3, 1.57], dtype=torch.float64))
    x, eps, out = (inputs.normal(2, 3, 4, 5, dtype=torch.float64) for _ in range(3))
    for kind in ("eps", "v"):
        equal(
            answer(kind, out, x, eps, alpha, sigma),
            _loss_of_x(kind, out, x, eps, alpha, sigma, 5.0),
            "the weight is wrong near the ends, where the SNR is huge or nearly 0",
            case=f"kind = '{kind}', SNR of a million and of nearly 0",
            tolerance=1e-6,
        )


def _loss_of_x(
    kind: str, out: Tensor, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, gamma: float
) -> Tensor:
    """By the definition: make x_hat of the output, and weigh its error; one image by another."""
    losses = []
    for i in range(len(x)):
        a, s = alpha[i].double(), sigma[i].double()
        clean, given = x[i].double(), out[i].double()
        z = a * clean + s * eps[i].double()
        x_hat = {"eps": (z - s * given) / a, "x": given, "v": a * z - s * given}[kind]
        weight = min(float((a / s) ** 2), gamma)
        losses.append(weight * ((clean - x_hat) ** 2).mean())
    return torch.stack(losses).to(x.dtype)


def _other_losses(
    kind: str, out: Tensor, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, gamma: float
) -> dict[str, Tensor]:
    v = alpha * eps - sigma * x
    goal = {"eps": eps, "x": x, "v": v}[kind]
    snr = (alpha / sigma) ** 2
    factor = {"eps": snr, "x": torch.ones_like(snr), "v": snr + 1}[kind]

    def loss(weight: Tensor | float, goal: Tensor = goal) -> Tensor:
        return (weight * (out - goal) ** 2).flatten(1).mean(1)

    capped = snr.clamp(max=gamma)
    right = capped / factor
    others = {
        "the weight is missing": loss(1.0),
        "max where min belongs: gamma caps the weight": loss(snr.clamp(min=gamma) / factor),
        "the weight is not capped by gamma": loss(snr / factor),
        "gamma is not used, 5 stands in its place": loss(snr.clamp(max=5.0) / factor),
        "this is the mean over the batch too: a number for each image is due": loss(right).mean(),
        "this is the loss of each pixel: take the mean over the pixels of an image": right
        * (out - goal) ** 2,
        "this is the sum over the pixels; their mean is due": loss(right) * x[0].numel(),
        "the errors have to be squared": (right * (out - goal).abs()).flatten(1).mean(1),
        "one weight for the whole batch: each image has its own SNR": loss(right.mean()),
    }
    for words, taken in (
        ("the squares are missing", alpha / sigma),
        ("the SNR is upside down", 1 / snr),
    ):
        weight = taken.clamp(max=gamma)  # of the error of x_hat, or of the output's own
        others[f"SNR = alpha^2 / sigma^2 in the weight: {words}"] = loss(weight / factor)
        others[f"SNR = alpha^2 / sigma^2: {words}"] = loss(
            weight / {"eps": taken, "x": torch.ones_like(snr), "v": taken + 1}[kind]
        )
    if kind != "x":
        text = "SNR" if kind == "eps" else "SNR + 1"
        others[
            f"min(SNR, gamma) is the weight of the error of x; the squared error of {kind} is "
            f"{text} times that: divide by it"
        ] = loss(capped)
        others["the output was compared with x, whatever it means: it is to be compared with its "
               "own target (or to be turned into x_hat)"] = loss(right, x)  # fmt: skip
        others["the output was compared with x, whatever it means: turn it into x_hat first"] = (
            loss(capped, x)
        )
    if kind == "eps":
        others["the squared error of eps is SNR times that of x, not SNR + 1 times"] = loss(
            capped / (snr + 1)
        )
    if kind == "v":
        others["the squared error of v is SNR + 1 times that of x, not SNR times"] = loss(
            capped / snr
        )
        others["the sign of v is wrong: v = alpha eps - sigma x"] = loss(right, -v)
        others["v = alpha eps - sigma x: here alpha and sigma are swapped"] = loss(
            right, sigma * eps - alpha * x
        )
        others["v = alpha eps - sigma x: here the two are added, that is z with its levels "
               "swapped"] = loss(right, alpha * eps + sigma * x)  # fmt: skip
    return others


# --- 2.6 ------------------------------------------------------------------------------------------

CALLS = 10
ENOUGH = 0.5  # of DDIM's distance to the exact flow


@dataclass
class World:
    """A mixture of Gaussian blobs, of which the best denoiser and the exact flow are known."""

    name: str
    centres: Tensor  # (K, C, H, W), float64
    spread: float  # standard deviation of the blobs
    schedule: NoiseSchedule

    def denoise(self, z: Tensor, t: Tensor) -> Tensor:
        """E[x | z_t], as in section 2 of the lesson."""
        alpha, sigma = self.schedule.alpha_sigma(t.double())
        return self._guess(z, alpha[:, None], sigma[:, None])

    def flow(self, z: Tensor) -> Tensor:
        """The path from z at t = 1 to t = 0, (states, B, C, H, W): Runge-Kutta of fourth order.

        The angle phi = atan(sigma / alpha) is its time, v = dz / dphi its velocity.
        """
        start = float(self.schedule.log_snr(torch.ones((), dtype=torch.float64)))
        first = math.atan(math.exp(-start / 2))
        angles = (first * torch.linspace(1, 0.03, 151, dtype=torch.float64) ** 2).tolist()
        states = [z.double()]
        for now, then in pairwise(angles):
            z, h = states[-1], then - now
            v1 = self._velocity(z, now)
            v2 = self._velocity(z + h / 2 * v1, now + h / 2)
            v3 = self._velocity(z + h / 2 * v2, now + h / 2)
            v4 = self._velocity(z + h * v3, then)
            states.append(z + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4))
        return torch.stack(states)

    def _velocity(self, z: Tensor, angle: float) -> Tensor:
        alpha, sigma = torch.tensor(math.cos(angle)), torch.tensor(math.sin(angle))
        return (alpha * z - self._guess(z, alpha.double(), sigma.double())) / sigma

    def _guess(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        points, centres = z.double().flatten(1), self.centres.flatten(1)
        variance = (alpha * self.spread) ** 2 + sigma**2
        fit = alpha * (points @ centres.T) - alpha**2 * (centres**2).sum(1) / 2  # (B, K)
        mean = torch.softmax(fit / variance, 1) @ centres
        x_hat = mean + alpha * self.spread**2 / variance * (points - alpha * mean)
        return x_hat.reshape(z.shape).to(z.dtype)


def worlds() -> tuple[World, World]:
    """The spiral of the lesson, and a dozen images of 2 x 2 pixels in colour."""
    along = torch.linspace(0.04, 1, 48, dtype=torch.float64)
    angle = 3.5 * math.pi * along.sqrt()
    spiral = along.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    images = Inputs(206).uniform(12, 3, 2, 2, low=-1, dtype=torch.float64)
    return (
        World("the spiral", spiral[..., None, None], 0.05, NoiseSchedule()),
        World("the images", images, 0.2, NoiseSchedule()),
    )


def distance(sampler: Sampler, world: World) -> float:
    """How far its samples are from where the exact flow ends, in units of DDIM's distance.

    DDIM takes as many steps as a sampler may call the denoiser, at evenly spaced times.
    """
    z = Inputs(207).normal(64, *world.centres.shape[1:], dtype=torch.float64)
    exact = world.flow(z)[-1]

    def off(states: Iterator[Tensor]) -> float:
        *_, last = states
        return float((last - exact).flatten(1).norm(dim=1).mean())

    even = torch.linspace(1, 0, CALLS + 1, dtype=torch.float64)
    plain = off(ddim(world.denoise, z, world.schedule, even))
    return off(sampler(_Counted(world.denoise, z), z, world.schedule)) / plain


class _Counted:
    """A denoiser that counts its calls, and looks at what it is asked."""

    def __init__(self, denoise: Denoiser, z: Tensor) -> None:
        self.denoise, self.shape, self.calls = denoise, z.shape, 0

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        expect(
            self.calls <= CALLS,
            f"the denoiser was called more than {CALLS} times: a step that looks twice costs two "
            "calls",
        )
        expect(
            isinstance(z, Tensor) and z.shape == self.shape,
            "denoise(z, t) takes the whole batch, with the shape of the z that you were given",
            f"Expected shape: {tuple(self.shape)}\nFound shape:    "
            f"{tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__}",
        )
        expect(
            isinstance(t, Tensor) and t.shape == self.shape[:1] and t.is_floating_point(),
            "denoise(z, t) takes one time for each image, a tensor (B,): t.expand(len(z)), or "
            "torch.full((len(z),), t, dtype=z.dtype)",
        )
        expect(((t >= 0) & (t <= 1)).all(), "a time lies in [0, 1]", f"Found:          {t[0]:.4g}")
        return self.denoise(z, t)


def _walk(answer: Sampler, world: World, z: Tensor) -> list[Tensor]:
    """All states that it yields; and that it is a generator of states."""
    denoise = _Counted(world.denoise, z)
    steps = answer(denoise, z, world.schedule)
    expect(
        isinstance(steps, Iterator),
        "a sampler is a generator: it has to yield each state, not to return the last one",
    )
    states, copies, first = [], [], -1
    for state in steps:
        first = denoise.calls if first < 0 else first
        expect(isinstance(state, Tensor), "each thing that is yielded has to be a state, a tensor")
        expect(
            state.shape == z.shape,
            "each state has to have the shape of z",
            f"Expected shape: {tuple(z.shape)}\nFound shape:    {tuple(state.shape)}",
        )
        expect(
            state.dtype == z.dtype,
            f"each state has to have the precision of z, {z.dtype}: turn the numbers from the "
            "schedule into Python floats with .item(), or into the dtype of z",
            f"Found:          {state.dtype}",
        )
        expect(state.isfinite().all(), "a state is not finite (inf or nan): is there a division "
               "by a sigma or an alpha that is 0?", f"Found:          after {denoise.calls} calls "
               "of the denoiser")  # fmt: skip
        states.append(state)
        copies.append(state.clone())
        expect(len(states) < 1000, "it never ends")
    expect(
        len(states) >= 3,
        "yield every state on the way, not the last alone: whoever plots the path needs them",
        f"Found:          {len(states)} states",
    )
    expect(
        first < denoise.calls,
        "all the work was done before the first state came out: yield each state as soon as it is "
        "there, so that one can stop on the way",
    )
    expect(
        all(torch.equal(a, b) for a, b in zip(states, copies, strict=True)),
        "a state that had been yielded was changed later, in place: write z = z + ... and not "
        "z += ...",
    )
    return states


@lesson.exercise(
    "Design: a sampler of your own",
    look="sections 6 and 7 of the lesson: which samplers are of second order, and where the last "
    "steps lie; 2211.01095; 2206.00364",
)
def own_sampler(answer: Sampler) -> None:
    """answer(denoise, z, schedule) yields states; 10 calls; half of DDIM's distance or less."""
    inputs = Inputs(208)
    spiral, images = worlds()
    z = inputs.normal(16, 2, 1, 1, dtype=torch.float64)
    states = _walk(answer, spiral, z)
    torch.manual_seed(1)
    expect(
        torch.equal(_walk(answer, spiral, z)[-1], states[-1]),
        "the same z gave two different samples: no dice here, one noise is one image",
    )
    # one point: x_hat is known and never changes, so that every solver can be exact
    point = World("one point", torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64), 0.0,
                  spiral.schedule)  # fmt: skip
    off = float((_walk(answer, point, z)[-1] - 0.5).abs().max())
    expect(
        off < 0.01,
        "in a world of one point, every path has to end there. Does the last step go to t = 0, "
        "where alpha is 1 and sigma 0?",
        f"Found:          {off:.3g} away from it",
    )
    path = spiral.flow(z)
    away = [float((path - s).flatten(2).norm(dim=2).mean(1).min()) for s in states]
    expect(
        max(away) < 0.35,
        "what was yielded does not lie on the way from the noise to the sample: yield the states "
        "z_s (not the guesses x_hat), in the order in which they come",
        f"Found:          state {away.index(max(away)) + 1} of {len(away)} is {max(away):.2g} away "
        "from the exact path",
    )
    other = World("one point", point.centres, 0.0, NoiseSchedule(shift=0.5))
    pairs = zip(_walk(answer, point, z), _walk(answer, other, z), strict=False)
    expect(
        not all(torch.equal(a, b) for a, b in pairs),
        "with another noise schedule it does just the same: take alpha and sigma from the schedule "
        "that is given, schedule.alpha_sigma(t)",
    )
    for world in (spiral, images):
        ratio = distance(answer, world)
        found = f"Found:          {ratio:.2f} of DDIM's distance to the exact flow ({world.name})"
        expect(
            ratio < 1.2,
            "it ends farther from the exact flow than DDIM does with as many calls. Give it many "
            "steps for a test: if it does not come close to ddim with 500 steps then, a step is "
            "wrong; else its steps are too long where it matters",
            found,
        )
        expect(
            ratio <= ENOUGH,
            f"that is not yet better enough than DDIM: at most {ENOUGH:g} of its distance is due. "
            "Use what the step before has shown (second order without a second call), and make "
            "the steps shorter towards t = 0",
            found,
        )
    shifted = World("another schedule", images.centres, 0.2, NoiseSchedule(shift=0.5))
    ratio = distance(answer, shifted)
    expect(
        ratio <= 1.5,
        "with another noise schedule it is much worse than DDIM: does it take alpha and sigma, "
        "everywhere, from the schedule that it is given?",
        f"Found:          {ratio:.2f} of DDIM's distance to the exact flow",
    )
    alone = _walk(answer, spiral, z[:1])[-1]
    expect(
        close(alone, states[-1][:1], 1e-6),
        "an image comes out differently when it is alone in its batch: each is to be on its own",
    )
    _walk(answer, images, inputs.normal(3, 3, 2, 2))  # in float32
