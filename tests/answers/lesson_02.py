"""Answers to the exercises of lesson 02, reverse diffusion."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from einops import einsum, rearrange, reduce
from scipy.special import logsumexp
from torch import nn

from answers import right, wrong
from minimagen import diffusion, samplers
from minimagen.checks import lesson_02 as check
from minimagen.schedules import NoiseSchedule

# --- 2.1 ------------------------------------------------------------------------------------------


@right(check.views)
def by_cases(kind, out, z, alpha, sigma):
    if kind == "x":
        return out
    if kind == "v":
        return alpha * z - sigma * out
    eps = -sigma * out if kind == "score" else out
    return (z - sigma * eps) / alpha


@right(check.views)
def by_the_package(kind, out, z, alpha, sigma):
    if kind == "score":
        return diffusion.x_from_score(out, z, alpha, sigma)
    return diffusion.to_x(kind, out, z, alpha, sigma)


@right(check.views)
def by_a_table_of_factors(kind, out, z, alpha, sigma):
    of_z, of_out = {
        "x": lambda: (0.0, 1.0),
        "eps": lambda: (1 / alpha, -sigma / alpha),
        "v": lambda: (alpha, -sigma),
        "score": lambda: (1 / alpha, (1 - alpha**2) / alpha),
    }[kind]()
    return of_z * z + of_out * out


@right(check.views)
def image_by_image(kind, out, z, alpha, sigma):
    def one(out, z, angle):
        a, s = torch.cos(angle), torch.sin(angle)
        if kind == "v":
            return torch.addcmul(a * z, -s, out)
        return {"eps": lambda: z / a - angle.tan() * out, "x": lambda: out + 0.0,
                "score": lambda: (z + s * s * out) / a}[kind]()  # fmt: skip

    angle = torch.atan2(sigma, alpha)
    return torch.stack([one(*each) for each in zip(out, z, angle, strict=True)])


@wrong(check.views, "divide it by alpha")
def what_is_left(kind, out, z, alpha, sigma):
    return z - sigma * out if kind == "eps" else by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "not by sigma^2 (a variance)")
def sigma_squared_for_sigma(kind, out, z, alpha, sigma):
    return (z - sigma**2 * out) / alpha if kind == "eps" else by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "alpha-bar")
def alpha_as_alpha_bar(kind, out, z, alpha, sigma):
    if kind == "eps":
        return (z - (1 - alpha).sqrt() * out) / alpha.sqrt()
    return by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "swapped")
def swapped(kind, out, z, alpha, sigma):
    return by_cases(kind, out, z, sigma, alpha)


@wrong(check.views, "the sign of v is wrong")
def sign_of_v(kind, out, z, alpha, sigma):
    return by_cases(kind, -out if kind == "v" else out, z, alpha, sigma)


@wrong(check.views, "this is eps")
def eps_from_v(kind, out, z, alpha, sigma):
    return sigma * z + alpha * out if kind == "v" else by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "the way back is due")
def v_from_x(kind, out, z, alpha, sigma):
    return (alpha * z - out) / sigma if kind == "v" else by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "rectified flow")
def rectified(kind, out, z, alpha, sigma):
    if kind == "v":
        return (z - sigma * out) / (alpha + sigma)
    return by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "all digits are lost")
def v_by_way_of_eps(kind, out, z, alpha, sigma):
    eps = sigma * z + alpha * out
    return (z - sigma * eps) / alpha if kind == "v" else by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "'v' needs no division")
def everything_divided(kind, out, z, alpha, sigma):
    of_z, of_out = {"x": (0, alpha), "eps": (1, -sigma), "v": (alpha**2, -alpha * sigma),
                    "score": (1, sigma**2)}[kind]  # fmt: skip
    if kind == "x":
        return out
    return (of_z * z + of_out * out) / alpha


@wrong(check.views, "one sigma is missing")
def score_as_minus_eps(kind, out, z, alpha, sigma):
    return by_cases("eps", -out, z, alpha, sigma) if kind == "score" else by_cases(
        kind, out, z, alpha, sigma
    )  # fmt: skip


@wrong(check.views, "points to the data")
def downhill(kind, out, z, alpha, sigma):
    return by_cases(kind, -out if kind == "score" else out, z, alpha, sigma)


@wrong(check.views, "z + sigma^2 score is alpha x")
def tweedie_without_alpha(kind, out, z, alpha, sigma):
    return z + sigma**2 * out if kind == "score" else by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "'score'")
def tweedie_over_the_square(kind, out, z, alpha, sigma):
    if kind == "score":
        return (z + sigma**2 * out) / alpha**2
    return by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "is there a return?")
def no_score(kind, out, z, alpha, sigma):
    if kind != "score":
        return by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "this is eps = -sigma score")
def eps_from_the_score(kind, out, z, alpha, sigma):
    return -sigma * out if kind == "score" else by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "for kind = 'x'")
def z_for_x(kind, out, z, alpha, sigma):
    return z if kind == "x" else by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "from kind = 'eps'")
def one_level_for_all(kind, out, z, alpha, sigma):
    return by_cases(kind, out, z, alpha[0], sigma[0])


@wrong(check.views, "from kind = 'eps' the clean image does not come back")
def clamped(kind, out, z, alpha, sigma):
    return by_cases(kind, out, z, alpha, sigma).clamp(-1, 1)


@wrong(check.views, "in place")
def in_place(kind, out, z, alpha, sigma):
    if kind == "eps":
        return z.sub_(sigma * out).div_(alpha)
    return by_cases(kind, out, z, alpha, sigma)


@wrong(check.views, "right to about 7 digits")
def in_single_precision(kind, out, z, alpha, sigma):
    return by_cases(kind, out.float(), z.float(), alpha.float(), sigma.float()).to(z.dtype)


# --- 2.2 ------------------------------------------------------------------------------------------


@right(check.posterior)
def multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    a = alpha_t / alpha_s
    b = sigma_t**2 - a**2 * sigma_s**2
    mean = (alpha_s * b * x + a * sigma_s**2 * z_t) / sigma_t**2
    return mean, b * sigma_s**2 / sigma_t**2


@right(check.posterior)
def as_in_the_paper(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    bar_t, bar_s = alpha_t**2, alpha_s**2
    alpha = bar_t / bar_s  # the paper's alpha_t
    beta = 1 - alpha
    mean = bar_s.sqrt() * beta / (1 - bar_t) * x
    mean = mean + alpha.sqrt() * (1 - bar_s) / (1 - bar_t) * z_t
    return mean, (1 - bar_s) / (1 - bar_t) * beta


@right(check.posterior)
def by_signal_to_noise(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    share = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2  # SNR_t / SNR_s
    innovation = z_t - alpha_t * x
    mean = alpha_s * x + alpha_t / alpha_s * (sigma_s / sigma_t) ** 2 * innovation
    return [mean, sigma_s.square() * (1 - share)]


@right(check.posterior)
def by_the_package(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):  # noqa: F811
    log_snr_s, log_snr_t = 2 * (alpha_s / sigma_s).log(), 2 * (alpha_t / sigma_t).log()
    return diffusion.posterior(x, z_t, log_snr_s, log_snr_t.clamp(min=-60))  # -inf gives nan


@right(check.posterior)
def the_ends_apart(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    mean, variance = by_precisions(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    clean = sigma_s == 0
    return torch.where(clean, x, mean), torch.where(clean, 0, variance)


def _with_b(b):
    """The right answer, but for b."""

    def answer(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
        a = alpha_t / alpha_s
        it = b(a, alpha_s, sigma_s, alpha_t, sigma_t)
        mean = (alpha_s * it * x + a * sigma_s**2 * z_t) / sigma_t**2
        return mean, it * sigma_s**2 / sigma_t**2

    return answer


@wrong(check.posterior, "so that nothing is divided by sigma_s")
def by_precisions(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    a = alpha_t / alpha_s
    b = sigma_t**2 - a**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + a**2 / b)
    return variance * (alpha_s * x / sigma_s**2 + a * z_t / b), variance


@wrong(check.posterior, "all were treated like it")
def clean_if_any_is(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    if (sigma_s == 0).any():
        return x, torch.zeros_like(sigma_s)
    return by_precisions(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)


@wrong(check.posterior, "so that nothing is divided by sigma_s")
def clean_if_all_are(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    if (sigma_s == 0).all():
        return x, torch.zeros_like(sigma_s)
    return by_precisions(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)


@wrong(check.posterior, "so that nothing is divided by alpha_t")
def what_z_says_first(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    mean, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    a = alpha_t / alpha_s
    return mean + 0 * z_t / a, variance


@wrong(check.posterior, "a step forward")
def variance_of_the_forward_step(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    mean, _ = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    return mean, sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2


@wrong(check.posterior, "this is the standard deviation")
def standard_deviation(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    mean, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    return mean, variance.sqrt()


@wrong(check.posterior, "the precision; the variance is one divided by it")
def precision(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    mean, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    return mean, 1 / variance


@wrong(check.posterior, "two tensors are due")
def mean_alone(*arguments):
    return multiplied_out(*arguments)[0]


@wrong(check.posterior, "this is not the variance")
def mean_and_variance_swapped_with_shape(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    mean, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    return variance, mean


@wrong(check.posterior, "where a^2 belongs")
def a_for_a_squared(x, z_t, *levels):
    return _with_b(lambda a, a_s, s_s, a_t, s_t: s_t**2 - a * s_s**2)(x, z_t, *levels)


@wrong(check.posterior, "this is sigma_s^2")
def beta_of_the_whole_way(x, z_t, *levels):
    return _with_b(lambda a, a_s, s_s, a_t, s_t: 1 - a_t**2)(x, z_t, *levels)


@wrong(check.posterior, "this is not the variance")
def variances_subtracted(x, z_t, *levels):
    return _with_b(lambda a, a_s, s_s, a_t, s_t: s_t**2 - s_s**2)(x, z_t, *levels)


@wrong(check.posterior, "sigma where sigma^2 belongs")
def sigma_for_sigma_squared(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    mean, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    return mean, variance * sigma_t / sigma_s


@wrong(check.posterior, "swapped in the last factor")
def s_and_t_swapped_in_the_factor(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    mean, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    return mean, variance * sigma_t**4 / sigma_s**4


@wrong(check.posterior, "s and t are swapped: s is")
def s_and_t_swapped(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    return multiplied_out(x, z_t, alpha_t, sigma_t, alpha_s, sigma_s)


@wrong(check.posterior, "x and z_t are swapped")
def x_and_z_swapped(x, z_t, *levels):
    return multiplied_out(z_t, x, *levels)


@wrong(check.posterior, "a step of DDIM")
def mean_of_ddim(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    _, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    return alpha_s * x + sigma_s * (z_t - alpha_t * x) / sigma_t, variance


@wrong(check.posterior, "not the mean of z_s once both")
def mean_of_ddim_with_eta(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    _, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    eps = (z_t - alpha_t * x) / sigma_t
    return alpha_s * x + (sigma_s**2 - variance**2).sqrt() * eps, variance


@wrong(check.posterior, "this is the mean of q(z_s | x)")
def blind_to_z(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    _, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    return alpha_s * x, variance


@wrong(check.posterior, "the factor a is missing")
def without_a(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    _, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    b = variance * sigma_t**2 / sigma_s**2
    return (alpha_s * b * x + sigma_s**2 * z_t) / sigma_t**2, variance


@wrong(check.posterior, "the weights are the variances")
def weighted_by_variance(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t):
    _, variance = multiplied_out(x, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    a = alpha_t / alpha_s
    first, second = sigma_s**2, (sigma_t**2 - a**2 * sigma_s**2) / a**2
    return (first * alpha_s * x + second * z_t / a) / (first + second), variance


@wrong(check.posterior, "wrong shape")
def one_variance_for_all(*arguments):
    mean, variance = multiplied_out(*arguments)
    return mean, variance.mean()


# --- 2.3 ------------------------------------------------------------------------------------------


@right(check.best_denoiser)
def by_einops(z, data, alpha, sigma):
    gap = z[:, None] - alpha[:, None] * data
    square = reduce(gap**2, "b k c h w -> b k", "sum")
    weights = torch.softmax(-square / (2 * rearrange(sigma, "b 1 1 1 -> b 1") ** 2), dim=1)
    return einsum(weights, data, "b k, k c h w -> b c h w")


@right(check.best_denoiser)
def one_after_the_other(z, data, alpha, sigma):
    guesses = []
    for noisy, a, s in zip(z, alpha, sigma, strict=True):
        logs = -((noisy - a * data) ** 2).sum((1, 2, 3)) / (2 * s.item() ** 2)
        weights = (logs - logs.max()).exp()
        guesses.append((weights.reshape(-1, 1, 1, 1) * data).sum(0) / weights.sum())
    return torch.stack(guesses)


@right(check.best_denoiser)
def by_logsumexp(z, data, alpha, sigma):
    points, known = z.flatten(1).numpy(), data.flatten(1).numpy()
    a, s = alpha.reshape(-1, 1, 1).numpy(), sigma.reshape(-1, 1).numpy()
    logs = -((points[:, None] - a * known) ** 2).sum(2) / (2 * s**2)
    weights = torch.from_numpy(logs - logsumexp(logs, axis=1, keepdims=True)).exp()
    return (weights.to(z.dtype) @ data.flatten(1)).reshape(z.shape)


@right(check.best_denoiser)
def weights_running_along_the_data(z, data, alpha, sigma):
    top, total, mixed = None, 0, 0
    for x in data:  # as flash attention does: the largest exponent so far
        log = -(z - alpha * x).square().sum((1, 2, 3), keepdim=True) / sigma**2 / 2
        new = log if top is None else torch.maximum(top, log)
        shrink = 0 if top is None else (top - new).exp()
        total, mixed = total * shrink + (log - new).exp(), mixed * shrink + (log - new).exp() * x
        top = new
    return mixed / total


@right(check.best_denoiser)
def squares_multiplied_out(z, data, alpha, sigma):
    points, known = z.flatten(1), data.flatten(1)  # |z|^2 is the same for all data
    alpha, sigma = alpha.flatten()[:, None], sigma.flatten()[:, None]
    fit = (alpha * points @ known.T - alpha**2 * (known**2).sum(1) / 2) / sigma**2
    return (fit.softmax(-1) @ known).view_as(z)


@right(check.best_denoiser)
def by_log_densities(z, data, alpha, sigma):
    density = torch.distributions.Normal(alpha[:, None] * data, sigma[:, None])
    log_likelihood = density.log_prob(z[:, None]).sum((2, 3, 4))  # (B, K)
    posterior = torch.distributions.Categorical(logits=log_likelihood).probs
    return torch.tensordot(posterior, data, dims=1)


@right(check.best_denoiser)
def by_distances(z, data, alpha, sigma):
    far = torch.cdist(z.flatten(1)[:, None], (alpha[:, None] * data).flatten(2)).squeeze(1)
    weights = nn.functional.softmax(-0.5 * (far / sigma.flatten(1)) ** 2, dim=-1)
    return (weights @ data.flatten(1)).unflatten(1, z.shape[1:])


def _weighted(z, data, alpha, sigma, fit, axis=1):
    square = ((z[:, None] - alpha[:, None] * data) ** 2).flatten(2).sum(2)
    weights = torch.softmax(fit(square, sigma.reshape(-1, 1)), axis)
    return (weights @ data.flatten(1)).reshape(z.shape)


@wrong(check.best_denoiser, "the wrong axis")
def over_the_wrong_axis(z, data, alpha, sigma):
    return _weighted(z, data, alpha, sigma, lambda d, s: -d / (2 * s**2), axis=0)


@wrong(check.best_denoiser, "the 2 of 2 sigma^2")
def without_the_2(z, data, alpha, sigma):
    return _weighted(z, data, alpha, sigma, lambda d, s: -d / s**2)


@wrong(check.best_denoiser, "divided by its variance")
def sigma_not_squared(z, data, alpha, sigma):
    return _weighted(z, data, alpha, sigma, lambda d, s: -d / (2 * s))


@wrong(check.best_denoiser, "the distance has to be squared")
def distance_not_squared(z, data, alpha, sigma):
    return _weighted(z, data, alpha, sigma, lambda d, s: -d.sqrt() / (2 * s**2))


@wrong(check.best_denoiser, "farthest away")
def without_minus(z, data, alpha, sigma):
    return _weighted(z, data, alpha, sigma, lambda d, s: d / (2 * s**2))


@wrong(check.best_denoiser, "here their mean was taken")
def mean_square(z, data, alpha, sigma):
    pixels = z[0].numel()
    return _weighted(z, data, alpha, sigma, lambda d, s: -d / pixels / (2 * s**2))


@wrong(check.best_denoiser, "seen as alpha x_k")
def compared_with_x(z, data, alpha, sigma):
    return _weighted(z, data, torch.ones_like(alpha), sigma, lambda d, s: -d / (2 * s**2))


@wrong(check.best_denoiser, "the noise is sigma / alpha")
def scaled_back(z, data, alpha, sigma):
    return _weighted(z / alpha, data, torch.ones_like(alpha), sigma, lambda d, s: -d / (2 * s**2))


@wrong(check.best_denoiser, "0 / 0 is nan")
def by_plain_exponentials(z, data, alpha, sigma):
    square = ((z[:, None] - alpha[:, None] * data) ** 2).flatten(2).sum(2)
    weights = (-square / (2 * sigma.reshape(-1, 1) ** 2)).exp()
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("bk,kchw->bchw", weights, data)


@wrong(check.best_denoiser, "nothing added below the fraction mends that")
def with_something_below(z, data, alpha, sigma):
    square = ((z[:, None] - alpha[:, None] * data) ** 2).flatten(2).sum(2)
    weights = (-square / (2 * sigma.reshape(-1, 1) ** 2)).exp()
    weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
    return torch.einsum("bk,kchw->bchw", weights, data)


@wrong(check.best_denoiser, "kept from becoming small")
def with_something_on_sigma(z, data, alpha, sigma):
    return _weighted(z, data, alpha, sigma.clamp(min=0.3), lambda d, s: -d / (2 * s**2))


@wrong(check.best_denoiser, "this is the nearest image")
def nearest(z, data, alpha, sigma):
    return data[((z[:, None] - alpha[:, None] * data) ** 2).flatten(2).sum(2).argmin(1)]


@wrong(check.best_denoiser, "all data count the same")
def mean_of_the_data(z, data, alpha, sigma):
    return data.mean(0).expand_as(z)


@wrong(check.best_denoiser, "do not add up to 1")
def not_normalised(z, data, alpha, sigma):
    square = ((z[:, None] - alpha[:, None] * data) ** 2).flatten(2).sum(2)
    weights = (-square / (2 * sigma.reshape(-1, 1) ** 2)).exp()
    return torch.einsum("bk,kchw->bchw", weights, data)


@wrong(check.best_denoiser, "what is asked for is the mean of x")
def mean_of_alpha_x(z, data, alpha, sigma):
    return alpha * by_einops(z, data, alpha, sigma)


@wrong(check.best_denoiser, "with its own alpha and sigma")
def one_sigma_for_all(z, data, alpha, sigma):
    return by_einops(z, data, alpha, sigma[:1].expand_as(sigma))


@wrong(check.best_denoiser, "because something was added below the fraction")
def with_more_below(z, data, alpha, sigma):
    square = ((z[:, None] - alpha[:, None] * data) ** 2).flatten(2).sum(2)
    weights = (-square / (2 * sigma.reshape(-1, 1) ** 2)).exp()
    return (weights / (weights.sum(1, keepdim=True) + 1e-8) @ data.flatten(1)).view_as(z)


@wrong(check.best_denoiser, "an image has one weight")
def each_pixel_alone(z, data, alpha, sigma):
    gap = (z[:, None] - alpha[:, None] * data) ** 2  # (B, K, C, H, W)
    return (torch.softmax(-gap / (2 * sigma[:, None] ** 2), 1) * data).sum(1)


@wrong(check.best_denoiser, "counted once")
def without_doubles(z, data, alpha, sigma):
    return by_einops(z, data.unique(dim=0), alpha, sigma)


@wrong(check.best_denoiser, "right to about 7 digits")
def in_single_precision_inside(z, data, alpha, sigma):
    return by_einops(z.float(), data.float(), alpha.float(), sigma.float()).to(z.dtype)


@wrong(check.best_denoiser, "with its own alpha and sigma")
def squares_over_the_batch(z, data, alpha, sigma):
    square = ((z[:, None] - alpha[:, None] * data) ** 2).sum((0, 2, 3, 4))
    weights = torch.softmax(-square / (2 * sigma.reshape(-1, 1) ** 2), 1)
    return (weights @ data.flatten(1)).reshape(z.shape)


@wrong(check.best_denoiser, "weighted by how well")
def only_the_two_nearest(z, data, alpha, sigma):
    square = ((z[:, None] - alpha[:, None] * data) ** 2).flatten(2).sum(2)
    near, at = square.topk(2, dim=1, largest=False)
    weights = torch.softmax(-near / (2 * sigma.reshape(-1, 1) ** 2), 1)
    return torch.einsum("bk,bkchw->bchw", weights, data[at])


# --- 2.4 ------------------------------------------------------------------------------------------


@right(check.ddim_step)
def as_in_the_lesson(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    eps_hat = (z - alpha_t * x_hat) / sigma_t
    rho = eta**2 * (1 - (alpha_t / sigma_t * sigma_s / alpha_s) ** 2)
    return alpha_s * x_hat + sigma_s * ((1 - rho).sqrt() * eps_hat + rho.sqrt() * noise)


@right(check.ddim_step)
def by_standard_deviations(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    fresh = eta * sigma_s / sigma_t * torch.sqrt(1 - (alpha_t / alpha_s) ** 2)
    kept = torch.sqrt(sigma_s**2 - fresh**2)
    return alpha_s * x_hat + kept * (z - alpha_t * x_hat) / sigma_t + fresh * noise


@right(check.ddim_step)
def by_factors(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    snr_s, snr_t = alpha_s**2 / sigma_s**2, alpha_t**2 / sigma_t**2  # inf at the clean end
    angle = torch.asin(eta * torch.sqrt(1 - snr_t / snr_s))
    shrink = sigma_s * angle.cos() / sigma_t
    return shrink * z + (alpha_s - shrink * alpha_t) * x_hat + sigma_s * angle.sin() * noise


@right(check.ddim_step)
def image_by_image_in_floats(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    steps = []
    for i in range(len(z)):
        a_t, s_t, a_s, s_s = (float(q[i]) for q in (alpha_t, sigma_t, alpha_s, sigma_s))
        rho = eta * eta * (1 - (a_t * s_s) ** 2 / (s_t * a_s) ** 2)
        eps = (z[i] - a_t * x_hat[i]) / s_t
        steps.append(a_s * x_hat[i] + s_s * (math.sqrt(1 - rho) * eps + math.sqrt(rho) * noise[i]))
    return torch.stack(steps)


def _mixed(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, kept, fresh, noise):
    eps = (z - alpha_t * x_hat) / sigma_t
    return alpha_s * x_hat + sigma_s * (kept * eps + fresh * noise)


def _ratio(alpha_t, sigma_t, alpha_s, sigma_s):
    return (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2


@wrong(check.ddim_step, "z was kept where eps_hat belongs")
def z_for_eps(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    rho = eta**2 * (1 - _ratio(alpha_t, sigma_t, alpha_s, sigma_s))
    return alpha_s * x_hat + sigma_s * ((1 - rho).sqrt() * z + rho.sqrt() * noise)


@wrong(check.ddim_step, "this is z itself")
def same_levels(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return as_in_the_lesson(z, x_hat, alpha_t, sigma_t, alpha_t, sigma_t, eta, noise)


@wrong(check.ddim_step, "take z apart with the levels of t")
def apart_with_the_levels_of_s(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return alpha_s * x_hat + sigma_s * (z - alpha_s * x_hat) / sigma_s


@wrong(check.ddim_step, "all were treated like it")
def done_if_any_is(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    if (sigma_s == 0).any():
        return x_hat
    return as_in_the_lesson(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise)


@wrong(check.ddim_step, "s and t are swapped")
def levels_swapped(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return alpha_t * x_hat + sigma_t * (z - alpha_s * x_hat) / sigma_s


@wrong(check.ddim_step, "alpha_t is missing")
def eps_without_alpha(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return alpha_s * x_hat + sigma_s * (z - x_hat) / sigma_t


@wrong(check.ddim_step, "that is a variance")
def eps_over_sigma_squared(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return alpha_s * x_hat + sigma_s * (z - alpha_t * x_hat) / sigma_t**2


@wrong(check.ddim_step, "alpha-bar")
def alpha_as_alpha_bar_in_a_step(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    eps = (z - alpha_t.sqrt() * x_hat) / (1 - alpha_t).sqrt()
    return alpha_s.sqrt() * x_hat + (1 - alpha_s).sqrt() * eps


@wrong(check.ddim_step, "without dice")
def eta_ignored(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return _mixed(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, 1, 0, noise)


@wrong(check.ddim_step, "there are no dice")
def always_ddpm(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return as_in_the_lesson(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, 1.0, noise)


@wrong(check.ddim_step, "make room")
def old_noise_stays(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    rho = eta**2 * (1 - _ratio(alpha_t, sigma_t, alpha_s, sigma_s))
    return _mixed(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, 1, rho.sqrt(), noise)


@wrong(check.ddim_step, "multiplied by square roots")
def shares_without_roots(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    rho = eta**2 * (1 - _ratio(alpha_t, sigma_t, alpha_s, sigma_s))
    return _mixed(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, 1 - rho, rho, noise)


@wrong(check.ddim_step, "eta has to be squared")
def eta_not_squared(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return as_in_the_lesson(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, math.sqrt(eta), noise)


@wrong(check.ddim_step, "it is not eta^2 alone")
def rho_is_eta_squared(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    kept, fresh = math.sqrt(1 - eta**2), eta
    return _mixed(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, kept, fresh, noise)


@wrong(check.ddim_step, "1 minus is missing")
def rho_without_1_minus(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    rho = eta**2 * _ratio(alpha_t, sigma_t, alpha_s, sigma_s)
    kept, fresh = (1 - rho).sqrt(), rho.sqrt()
    return _mixed(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, kept, fresh, noise)


@wrong(check.ddim_step, "SNR_t is the smaller of the two")
def snr_upside_down(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    rho = eta**2 * (1 - 1 / _ratio(alpha_t, sigma_t, alpha_s, sigma_s))
    kept, fresh = (1 - rho).sqrt(), rho.sqrt()
    return _mixed(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, kept, fresh, noise)


@wrong(check.ddim_step, "eta is ignored")
def eta_as_a_switch(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return as_in_the_lesson(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, float(eta > 0), noise)


@wrong(check.ddim_step, "of the given noise")
def dice_of_its_own(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    noise = torch.randn_like(noise)
    return as_in_the_lesson(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise)


@wrong(check.ddim_step, "x_hat itself, without any noise")
def sigma_kept_above_0(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    sigma_s = sigma_s.clamp(min=1e-3)
    return as_in_the_lesson(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise)


@wrong(check.ddim_step, "Nothing may be divided by alpha_t")
def ratio_upside_down_twice(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    scaled = z / alpha_t  # as EDM and many a library does it
    eps = (scaled - x_hat) * alpha_t / sigma_t
    rho = eta**2 * (1 - _ratio(alpha_t, sigma_t, alpha_s, sigma_s))
    return alpha_s * x_hat + sigma_s * ((1 - rho).sqrt() * eps + rho.sqrt() * noise)


@wrong(check.ddim_step, "there are no dice, all the noise was renewed")
def noised_again(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    return diffusion.q_sample(x_hat, noise, alpha_s, sigma_s)


@wrong(check.ddim_step, "keep x_hat and eps_hat")
def guess_clamped(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    x_hat = x_hat.clamp(-1, 1)
    return as_in_the_lesson(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise)


@wrong(check.ddim_step, "keep x_hat and eps_hat")
def one_level_for_the_batch(z, x_hat, alpha_t, sigma_t, alpha_s, sigma_s, eta, noise):
    levels = (level[-1] for level in (alpha_t, sigma_t, alpha_s, sigma_s))
    return as_in_the_lesson(z, x_hat, *levels, eta, noise)


# --- 2.5 ------------------------------------------------------------------------------------------


@right(check.min_snr)
def by_its_own_error(kind, out, x, eps, alpha, sigma, gamma=5.0):
    snr = (alpha / sigma) ** 2
    goal = {"eps": eps, "x": x, "v": alpha * eps - sigma * x}[kind]
    weight = snr.clamp(max=gamma) / {"eps": snr, "x": 1, "v": snr + 1}[kind]
    return reduce(weight * (out - goal) ** 2, "b c h w -> b", "mean")


@right(check.min_snr)
def by_the_error_of_x(kind, out, x, eps, alpha, sigma, gamma=5.0):
    x_hat = diffusion.to_x(kind, out, alpha * x + sigma * eps, alpha, sigma)
    error = nn.functional.mse_loss(x_hat, x, reduction="none").mean((1, 2, 3))
    cap = torch.full_like(error, gamma)
    return torch.minimum((alpha / sigma).flatten() ** 2, cap) * error


@right(check.min_snr)
def by_the_package(kind, out, x, eps, alpha, sigma, gamma=5.0):  # noqa: F811
    return diffusion.diffusion_loss(kind, out, x, eps, alpha, sigma, "min_snr", gamma)


@right(check.min_snr)
def as_in_the_paper(kind, out, x, eps, alpha, sigma, gamma=5.0):  # noqa: F811
    losses = []
    for o, x_i, e, a, s in zip(out, x, eps, alpha.flatten(), sigma.flatten(), strict=True):
        if kind == "eps":
            losses.append((o - e).pow(2).mean() * (gamma * s * s / a / a).clamp(max=1))
        elif kind == "x":
            losses.append((o - x_i).pow(2).mean() * min((a / s).item() ** 2, gamma))
        else:
            v = a * e - s * x_i
            losses.append((o - v).pow(2).mean() * torch.minimum(a * a, gamma * s * s))
    return torch.stack(losses)


def _weighed(weight, squared=True, goal=None):
    """A loss with other weights: weight(kind, snr, gamma)."""

    def answer(kind, out, x, eps, alpha, sigma, gamma=5.0):
        v = alpha * eps - sigma * x
        target = (goal or {}).get(kind, {"eps": eps, "x": x, "v": v}[kind])
        error = (out - target) ** 2 if squared else (out - target).abs()
        return (weight(kind, (alpha / sigma) ** 2, gamma) * error).flatten(1).mean(1)

    return answer


def _own(kind, snr):
    return {"eps": snr, "x": 1, "v": snr + 1}[kind]


def _right_weight(kind, snr, gamma):
    return snr.clamp(max=gamma) / _own(kind, snr)


@wrong(check.min_snr, "the weight is missing")
def unweighted(kind, out, x, eps, alpha, sigma, gamma=5.0):
    return _weighed(lambda *_: 1.0)(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "max where min belongs")
def max_for_min(kind, out, x, eps, alpha, sigma, gamma=5.0):
    weight = _weighed(lambda kind, snr, gamma: snr.clamp(min=gamma) / _own(kind, snr))
    return weight(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "the weight of the error of x")
def same_weight_for_all(kind, out, x, eps, alpha, sigma, gamma=5.0):
    weight = _weighed(lambda kind, snr, gamma: snr.clamp(max=gamma))
    return weight(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "not SNR times")
def v_like_eps(kind, out, x, eps, alpha, sigma, gamma=5.0):
    weight = _weighed(
        lambda kind, snr, gamma: snr.clamp(max=gamma) / (1 if kind == "x" else snr)
    )  # fmt: skip
    return weight(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "the squares are missing")
def snr_without_squares(kind, out, x, eps, alpha, sigma, gamma=5.0):
    weight = _weighed(lambda kind, snr, gamma: _right_weight(kind, snr.sqrt(), gamma))
    return weight(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "upside down")
def snr_upside_down_in_the_loss(kind, out, x, eps, alpha, sigma, gamma=5.0):
    weight = _weighed(lambda kind, snr, gamma: _right_weight(kind, 1 / snr, gamma))
    return weight(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "in the weight: the squares are missing")
def snr_without_squares_for_x(kind, out, x, eps, alpha, sigma, gamma=5.0):
    x_hat = diffusion.to_x(kind, out, alpha * x + sigma * eps, alpha, sigma)
    return ((alpha / sigma).clamp(max=gamma) * (x - x_hat) ** 2).mean((1, 2, 3))


@wrong(check.min_snr, "the sign of v is wrong")
def minus_v(kind, out, x, eps, alpha, sigma, gamma=5.0):
    goal = {"v": sigma * x - alpha * eps}
    return _weighed(_right_weight, goal=goal)(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "here alpha and sigma are swapped")
def v_swapped(kind, out, x, eps, alpha, sigma, gamma=5.0):
    goal = {"v": sigma * eps - alpha * x}
    return _weighed(_right_weight, goal=goal)(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "its own target")
def always_against_x(kind, out, x, eps, alpha, sigma, gamma=5.0):
    goal = dict.fromkeys(("eps", "x", "v"), x)
    return _weighed(_right_weight, goal=goal)(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "mean over the batch too")
def one_number(*arguments):
    return by_its_own_error(*arguments).mean()


@wrong(check.min_snr, "the sum over the pixels")
def summed(kind, out, x, *rest):
    return by_its_own_error(kind, out, x, *rest) * x[0].numel()


@wrong(check.min_snr, "the loss of each pixel")
def each_pixel(kind, out, x, eps, alpha, sigma, gamma=5.0):
    goal = {"eps": eps, "x": x, "v": alpha * eps - sigma * x}[kind]
    return _right_weight(kind, (alpha / sigma) ** 2, gamma) * (out - goal) ** 2


@wrong(check.min_snr, "have to be squared")
def absolute_errors(*arguments):
    return _weighed(_right_weight, squared=False)(*arguments)


@wrong(check.min_snr, "gamma is not used")
def gamma_ignored(kind, out, x, eps, alpha, sigma, gamma=5.0):
    return by_its_own_error(kind, out, x, eps, alpha, sigma)


@wrong(check.min_snr, "one weight for the whole batch")
def mean_weight(kind, out, x, eps, alpha, sigma, gamma=5.0):
    def weight(kind, snr, gamma):
        return _right_weight(kind, snr, gamma) * torch.ones_like(snr)

    return _weighed(lambda *a: weight(*a).mean())(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "no gradient flows")
def detached(kind, out, *rest):
    return by_its_own_error(kind, out.detach(), *rest)


@wrong(check.min_snr, "not its gradient")
def gradient_halved(kind, out, *rest):
    return by_its_own_error(kind, out / 2 + out.detach() / 2, *rest)


@wrong(check.min_snr, "near the ends")
def with_an_epsilon(kind, out, x, eps, alpha, sigma, gamma=5.0):
    weight = _weighed(lambda kind, snr, gamma: _right_weight(kind, snr.clamp(min=0.1), gamma))
    return weight(kind, out, x, eps, alpha, sigma, gamma)


@wrong(check.min_snr, "each image's loss is the mean")
def root_of_the_mean(*arguments):
    return by_its_own_error(*arguments).sqrt()


@wrong(check.min_snr, "each image's loss is the mean")
def a_smooth_cap(kind, out, x, eps, alpha, sigma, gamma=5.0):
    weight = _weighed(lambda kind, snr, gamma: gamma * snr / (gamma + snr) / _own(kind, snr))
    return weight(kind, out, x, eps, alpha, sigma, gamma)


# --- 2.6 ------------------------------------------------------------------------------------------


def _level(schedule, t):
    alpha, sigma = schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    return (alpha.item(), sigma.item()) if t > 0 else (1.0, 0.0)


def _times(power=1.0, calls=10):
    return torch.linspace(1, 0, calls + 1, dtype=torch.float64) ** power


@right(check.own_sampler)
def the_package_with_other_times(denoise, z, schedule):
    yield from samplers.dpm_solver_pp_2m(denoise, z, schedule, _times(2))


@right(check.own_sampler)
def adams_bashforth_in_the_angle(denoise, z, schedule):
    last = None
    for t, s in pairwise(_times(1.5).tolist()):
        (a, b), (a_s, b_s) = _level(schedule, t), _level(schedule, s)
        v = (a * z - denoise(z, torch.full((len(z),), t, dtype=z.dtype))) / b
        h = math.atan2(b_s, a_s) - math.atan2(b, a)
        z = z + h * (v if last is None else v + h / last[0] / 2 * (v - last[1]))
        last = h, v
        yield z


@right(check.own_sampler)
def heun_in_the_angle(denoise, z, schedule):
    for t, s in pairwise(_times(2, calls=5).tolist()):
        (a, b), (a_s, b_s) = _level(schedule, t), _level(schedule, s)
        x_hat = denoise(z, torch.full((len(z),), t, dtype=z.dtype))
        if s == 0:
            z = x_hat
        else:
            h = math.atan2(b_s, a_s) - math.atan2(b, a)
            v = (a * z - x_hat) / b
            there = z + h * v
            v_there = (a_s * there - denoise(there, torch.full((len(z),), s, dtype=z.dtype))) / b_s
            z = z + h * (v + v_there) / 2
        yield z


@right(check.own_sampler)
def a_look_at_half_the_way(denoise, z, schedule):
    yield z  # the first state, too: why not?
    for t, s in pairwise(_times(2, calls=5)):
        (a, b), (a_s, b_s) = _level(schedule, t.item()), _level(schedule, s.item())
        x_hat = denoise(z, t.expand(len(z)))
        if s > 0:
            a_m, b_m = _level(schedule, (t + s).item() / 2)
            x_hat = denoise(a_m * x_hat + b_m * (z - a * x_hat) / b, ((t + s) / 2).expand(len(z)))
        z = a_s * x_hat + b_s * (z - a * x_hat) / b
        yield z


@right(check.own_sampler)
def evenly_in_log_snr(denoise, z, schedule):
    grid = torch.linspace(1, 1e-3, 4001, dtype=torch.float64)
    log_snr = schedule.log_snr(grid)
    wanted = torch.linspace(-5, 6.5, 10, dtype=torch.float64)
    wanted[0] = log_snr[0]
    times = grid[torch.searchsorted(log_snr, wanted).clamp(max=4000)]
    last = None
    for t, s in pairwise([*times.tolist(), 0.0]):
        (a, b), (a_s, b_s) = _level(schedule, t), _level(schedule, s)
        x_hat = denoise(z, z.new_full((len(z),), t))
        guess = x_hat if last is None or s == 0 else 1.5 * x_hat - 0.5 * last
        z, last = a_s * guess + b_s * (z - a * guess) / b, x_hat
        yield z


def _tenth(sampler, power=1.0, calls=10):
    return lambda denoise, z, schedule: sampler(denoise, z, schedule, _times(power, calls))


@wrong(check.own_sampler, "not yet better enough")
def plain_ddim(denoise, z, schedule):
    yield from _tenth(samplers.ddim)(denoise, z, schedule)


@wrong(check.own_sampler, "not yet better enough")
def ddim_with_other_times(denoise, z, schedule):
    yield from _tenth(samplers.ddim, 1.5)(denoise, z, schedule)


@wrong(check.own_sampler, "not yet better enough")
def evenly_spaced_2m(denoise, z, schedule):
    yield from _tenth(samplers.dpm_solver_pp_2m)(denoise, z, schedule)


@wrong(check.own_sampler, "not yet better enough")
def euler_in_the_angle_evenly_spaced(denoise, z, schedule):
    for t, s in pairwise(_times().tolist()):
        (a, b), (a_s, b_s) = _level(schedule, t), _level(schedule, s)
        v = (a * z - denoise(z, z.new_full((len(z),), t))) / b
        z = z + (math.atan2(b_s, a_s) - math.atan2(b, a)) * v
        yield z


@wrong(check.own_sampler, "farther from the exact flow than DDIM")
def heun_with_half_the_steps(denoise, z, schedule):
    yield from _tenth(samplers.heun, calls=5)(denoise, z, schedule)


@wrong(check.own_sampler, "called more than 10 times")
def heun_with_ten_steps(denoise, z, schedule):
    yield from _tenth(samplers.heun)(denoise, z, schedule)


@wrong(check.own_sampler, "no dice here")
def with_dice(denoise, z, schedule):
    def randn():
        return torch.randn(z.shape, dtype=z.dtype)

    yield from samplers.ddpm(denoise, z, schedule, _times(), randn)


@wrong(check.own_sampler, "it has to yield each state")
def returns_the_last(denoise, z, schedule):
    *_, last = the_package_with_other_times(denoise, z, schedule)
    return last


@wrong(check.own_sampler, "it has to yield each state")
def returns_a_list(denoise, z, schedule):
    return [*the_package_with_other_times(denoise, z, schedule)]


@wrong(check.own_sampler, "all the work was done before")
def yields_from_a_list(denoise, z, schedule):
    yield from [*the_package_with_other_times(denoise, z, schedule)]


@wrong(check.own_sampler, "not the last alone")
def yields_the_last(denoise, z, schedule):
    *_, last = the_package_with_other_times(denoise, z, schedule)
    yield last


@wrong(check.own_sampler, "changed later, in place")
def one_tensor_for_all_states(denoise, z, schedule):
    state = z.clone()
    for each in the_package_with_other_times(denoise, z, schedule):
        state.copy_(each)
        yield state


@wrong(check.own_sampler, "in place")
def changes_z(denoise, z, schedule):
    for each in the_package_with_other_times(denoise, z.clone(), schedule):
        z.copy_(each)
        yield each


@wrong(check.own_sampler, "not the guesses x_hat")
def yields_guesses(denoise, z, schedule):
    seen = []

    def note(z, t):
        seen.append(denoise(z, t))
        return seen[-1]

    for _ in the_package_with_other_times(note, z, schedule):
        yield seen[-1]


@wrong(check.own_sampler, "all the work was done before")
def backwards(denoise, z, schedule):
    states = [*the_package_with_other_times(denoise, z, schedule)]
    yield z
    yield from reversed(states)


@wrong(check.own_sampler, "go to t = 0")
def stops_early(denoise, z, schedule):
    times = _times(2) * 0.95 + 0.05
    yield from samplers.dpm_solver_pp_2m(denoise, z, schedule, times)


@wrong(check.own_sampler, "farther from the exact flow than DDIM")
def levels_of_one_end(denoise, z, schedule):
    for t, s in pairwise(_times(1.5).tolist()):
        (_, b), (a_s, b_s) = _level(schedule, t), _level(schedule, s)
        x_hat = denoise(z, z.new_full((len(z),), t))
        z = a_s * x_hat + b_s * (z - a_s * x_hat) / b
        yield z


@wrong(check.own_sampler, "one time for each image")
def one_time_for_all(denoise, z, schedule):
    def ask(z, t):
        return denoise(z, t[0])

    yield from the_package_with_other_times(ask, z, schedule)


@wrong(check.own_sampler, "the precision of z")
def in_double_precision(denoise, z, schedule):
    yield from the_package_with_other_times(denoise, z.double(), schedule)


@wrong(check.own_sampler, "with another noise schedule it does just the same")
def always_the_cosine(denoise, z, schedule):
    yield from the_package_with_other_times(denoise, z, NoiseSchedule())


@wrong(check.own_sampler, "takes the whole batch")
def two_looks_in_one_call(denoise, z, schedule):
    def ask(z, t):
        return denoise(torch.cat([z, z]), torch.cat([t, t]))[: len(z)]

    yield from the_package_with_other_times(ask, z, schedule)


@wrong(check.own_sampler, "not yet better enough")
def asks_at_the_wrong_time(denoise, z, schedule):
    for t, s in pairwise(_times(1.5).tolist()):
        (a, b), (a_s, b_s) = _level(schedule, t), _level(schedule, s)
        x_hat = denoise(z, z.new_full((len(z),), s))
        z = a_s * x_hat + b_s * (z - a * x_hat) / b
        yield z


@wrong(check.own_sampler, "alone in its batch")
def centred_over_the_batch(denoise, z, schedule):
    shift = 1e-3 * z.mean(0)
    yield from the_package_with_other_times(denoise, z - shift, schedule)


@wrong(check.own_sampler, "is not finite")
def divides_by_0(denoise, z, schedule):
    states = the_package_with_other_times(denoise, z, schedule)
    for state, s in zip(states, _times(2)[1:], strict=True):
        yield state / (s > 0)


_kept = []


@wrong(check.own_sampler, "two different samples")
def remembers_the_last_run(denoise, z, schedule):
    def ask(z, t):
        _kept.append(denoise(z, t))
        return (_kept[-1] + _kept[max(-11, -len(_kept))]) / 2

    yield from the_package_with_other_times(ask, z, schedule)


@wrong(check.own_sampler, "it never ends")
def without_end(denoise, z, schedule):
    yield from the_package_with_other_times(denoise, z, schedule)
    while True:
        yield z


@wrong(check.own_sampler, "each state has to have the shape of z")
def flat_states(denoise, z, schedule):
    for state in the_package_with_other_times(denoise, z, schedule):
        yield state.flatten(1)


@wrong(check.own_sampler, "has to be a state, a tensor")
def yields_pairs(denoise, z, schedule):
    yield from enumerate(the_package_with_other_times(denoise, z, schedule))
