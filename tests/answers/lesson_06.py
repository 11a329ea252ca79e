"""Answers to the exercises of lesson 06, thresholds for guided images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce

from answers import right, wrong
from minimagen.checks import lesson_06 as check
from minimagen.diffusion import eps_from_x, to_x, x_from_v
from minimagen.guidance import guide
from minimagen.schedules import NoiseSchedule, expand
from minimagen.thresholding import dynamic_threshold, static_threshold

# --- 6.1 ------------------------------------------------------------------------------------------


@right(check.static)
def by_the_package(x):
    return static_threshold(x)


@right(check.static)
def by_where(x):
    return torch.where(x > 1, 1.0, torch.where(x < -1, -1.0, x))


@right(check.static)
def hardtanh(x):
    return F.hardtanh(x)


@right(check.static)
def by_two_distances(x):
    return ((x + 1).abs() - (x - 1).abs()) / 2


@wrong(check.static, "in place")
def clamped_in_place(x):
    return x.clamp_(-1, 1)


@wrong(check.static, "in place")
def written_into(x):
    x[x > 1] = 1
    x[x < -1] = -1
    return x


@wrong(check.static, "not [0, 1]")
def to_0_1(x):
    return x.clamp(0, 1)


@wrong(check.static, "only the upper end")
def upper_end_only(x):
    return x.clamp(max=1)


@wrong(check.static, "only the lower end")
def lower_end_only(x):
    return x.clamp(min=-1)


@wrong(check.static, "divided by the largest value")
def divided_by_the_largest(x):
    return x / x.abs().max().clamp(min=1)


@wrong(check.static, "tanh bends")
def soft(x):
    return x.tanh()


@wrong(check.static, "became 0")
def out_of_range_is_nothing(x):
    return torch.where(x.abs() <= 1, x, 0.0)


@wrong(check.static, "what is above 1 becomes 1")
def ends_swapped(x):
    return torch.where(x.abs() > 1, -x.sign(), x)


@wrong(check.static, "float32, where float64 is due")
def in_single_precision(x):
    return x.float().clamp(-1, 1)


# --- 6.2 ------------------------------------------------------------------------------------------


@right(check.saturated)
def mean_of_flat_images(x, limit=0.99):
    return (x.abs() > limit).flatten(1).float().mean(1)


@right(check.saturated)
def by_einops(x, limit=0.99):
    outside = (x > limit) | (x < -limit)
    return reduce(outside.to(x.dtype), "b c h w -> b", "mean")


@right(check.saturated)
def counted_one_by_one(x, limit=0.99):
    return torch.stack([torch.count_nonzero(a.abs() > limit) / a.numel() for a in x])


@wrong(check.saturated, "one number for the whole batch")
def of_the_batch(x, limit=0.99):
    return (x.abs() > limit).float().mean()


@wrong(check.saturated, "this is that of the batch")
def of_the_batch_for_each(x, limit=0.99):
    return (x.abs() > limit).float().mean().repeat(len(x))


@wrong(check.saturated, "below -limit are saturated too")
def one_side(x, limit=0.99):
    return (x > limit).float().mean((1, 2, 3))


@wrong(check.saturated, "NOT saturated")
def the_rest(x, limit=0.99):
    return (x.abs() <= limit).float().mean((1, 2, 3))


@wrong(check.saturated, "divide it by the number of values")
def how_many(x, limit=0.99):
    return (x.abs() > limit).float().sum((1, 2, 3))


@wrong(check.saturated, "divide it by the number of values")
def how_many_in_whole_numbers(x, limit=0.99):
    return torch.count_nonzero(x.abs() > limit, dim=(1, 2, 3))


@wrong(check.saturated, "> and not >=")
def the_limit_too(x, limit=0.99):
    return (x.abs() >= limit).float().mean((1, 2, 3))


@wrong(check.saturated, "in one of their channels")
def pixels(x, limit=0.99):
    return (x.abs() > limit).any(1).float().mean((1, 2))


@wrong(check.saturated, "limit that was given is ignored")
def always_the_same_limit(x, limit=0.99):
    return (x.abs() > 0.99).float().mean((1, 2, 3))


@wrong(check.saturated, "wrong shape")
def of_each_channel(x, limit=0.99):
    return (x.abs() > limit).float().mean((2, 3))


@wrong(check.saturated, "of type list came back")
def as_numbers(x, limit=0.99):
    return mean_of_flat_images(x, limit).tolist()


@wrong(check.saturated, "divided by the number of all its values")
def square_images_only(x, limit=0.99):
    return (x.abs() > limit).float().sum((1, 2, 3)) / (x.shape[1] * x.shape[2] ** 2)


# --- 6.3 ------------------------------------------------------------------------------------------


def percentile_of(x, p):
    return torch.quantile(x.abs().flatten(1), p, dim=1).reshape(-1, 1, 1, 1)


def cut(x, s):
    return x.clamp(-s, s) / s


@right(check.dynamic)
def with_the_package(x, p=0.95):
    return dynamic_threshold(x, p)


@right(check.dynamic)
def divided_then_cut(x, p=0.95):
    s = percentile_of(x, p)
    return (x / torch.where(s > 1, s, 1.0)).clamp(-1, 1)


@right(check.dynamic)
def image_by_image_in_numpy(x, p=0.95):
    images = []
    for image in x.numpy():
        s = max(1.0, float(np.percentile(np.abs(image), 100 * p)))
        images.append(torch.from_numpy(np.clip(image, -s, s) / s))
    return torch.stack(images).to(x.dtype)


@right(check.dynamic)
def by_sorting(x, p=0.95):
    ordered = rearrange(x.abs(), "b c h w -> b (c h w)").sort(dim=1).values
    place = p * (ordered.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[1] - 1)
    s = torch.lerp(ordered[:, below], ordered[:, above], place - below)
    s = s.clamp(min=1)[:, None, None, None]
    return torch.minimum(torch.maximum(x, -s), s) / s


@wrong(check.dynamic, "whole batch")
def one_percentile_for_the_batch(x, p=0.95):
    return cut(x, torch.quantile(x.abs(), p).clamp(min=1))


@wrong(check.dynamic, "changes the colours")
def of_each_channel_alone(x, p=0.95):
    s = torch.quantile(x.abs().flatten(2), p, dim=2)[..., None, None]
    return cut(x, s.clamp(min=1))


@wrong(check.dynamic, "is stretched")
def without_the_one(x, p=0.95):
    return cut(x, percentile_of(x, p))


@wrong(check.dynamic, "the larger")
def the_smaller_of_both(x, p=0.95):
    return cut(x, percentile_of(x, p).clamp(max=1))


@wrong(check.dynamic, "the cut is missing")
def divided_only(x, p=0.95):
    return x / percentile_of(x, p).clamp(min=1)


@wrong(check.dynamic, "the division is missing")
def cut_only(x, p=0.95):
    s = percentile_of(x, p).clamp(min=1)
    return x.clamp(-s, s)


@wrong(check.dynamic, "this is static thresholding")
def static_after_all(x, p=0.95):
    return x.clamp(-1, 1)


@wrong(check.dynamic, "cut at 1 and then divided")
def static_and_divided(x, p=0.95):
    return x.clamp(-1, 1) / percentile_of(x, p).clamp(min=1)


@wrong(check.dynamic, "this is the percentile of x")
def with_the_sign(x, p=0.95):
    s = torch.quantile(x.flatten(1), p, dim=1).reshape(-1, 1, 1, 1)
    return cut(x, s.clamp(min=1))


@wrong(check.dynamic, "s is the largest |x|")
def by_the_largest(x, p=0.95):
    return cut(x, x.abs().amax((1, 2, 3), keepdim=True).clamp(min=1))


@wrong(check.dynamic, "percentile that was given is ignored")
def always_the_same_percentile(x, p=0.95):
    return cut(x, percentile_of(x, 0.95).clamp(min=1))


@wrong(check.dynamic, "from the wrong end")
def from_below(x, p=0.95):
    return cut(x, percentile_of(x, 1 - p).clamp(min=1))


@wrong(check.dynamic, "numpy.percentile counts to 100")
def a_hundredth_of_the_percentile(x, p=0.95):
    return cut(x, percentile_of(x, p / 100).clamp(min=1))


@wrong(check.dynamic, "linearly")
def without_interpolation(x, p=0.95):
    flat = x.abs().flatten(1)
    s = flat.sort(1).values[:, int(p * (flat.shape[1] - 1))]
    return cut(x, s.clamp(min=1).reshape(-1, 1, 1, 1))


@wrong(check.dynamic, "right to about 7 digits")
def through_single_precision(x, p=0.95):
    return dynamic_threshold(x.float(), p).to(x.dtype)


@wrong(check.dynamic, "in place")
def divided_in_place(x, p=0.95):
    x /= percentile_of(x, p).clamp(min=1)
    return x.clamp(-1, 1)


@wrong(check.dynamic, "but at least 1")
def of_each_pixel_s_norm(x, p=0.95):
    s = torch.quantile(x.norm(dim=1).flatten(1), p, dim=1).reshape(-1, 1, 1, 1)
    return cut(x, s.clamp(min=1))


@wrong(check.dynamic, "largest percentile of the batch")
def largest_percentile(x, p=0.95):
    return cut(x, percentile_of(x, p).amax().clamp(min=1))


@wrong(check.dynamic, "nothing is cut")
def uncut_where_the_percentile_is_small(x, p=0.95):
    s = percentile_of(x, p)
    return torch.where(s > 1, cut(x, s), x)


@wrong(check.dynamic, "changes the colours")
def each_channel_s_own(x, p=0.95):
    flat = x.abs().flatten(2)
    return cut(x, torch.quantile(flat, p, dim=2, keepdim=True)[..., None].clamp(min=1))


# --- 6.4 ------------------------------------------------------------------------------------------


def parts(network, z, t, schedule):
    alpha, sigma = schedule.alpha_sigma(t.reshape(-1, 1, 1, 1))
    return network(z, t, True), network(z, t, False), alpha, sigma


@right(check.in_place_of_x)
def guiding_v(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    v = v_uncond + weight * (v_cond - v_uncond)
    x = divided_then_cut(alpha * z - sigma * v, p)
    return x, (z - alpha * x) / sigma


@right(check.in_place_of_x)
def guiding_x_with_the_package(network, z, t, weight, p, schedule):
    alpha, sigma = schedule.alpha_sigma(expand(t, z))
    with_caption, without = (x_from_v(network(z, t, c), z, alpha, sigma) for c in (True, False))
    x = dynamic_threshold(guide(with_caption, without, weight), p)
    return x, eps_from_x(x, z, alpha, sigma)


@right(check.in_place_of_x)
def once_where_guidance_is_off(network, z, t, weight, p, schedule):
    alpha, sigma = schedule.alpha_sigma(expand(t, z))
    v = network(z, t, captioned=True)
    if weight != 1:
        v = guide(v, network(z, t, captioned=False), weight)
    x = dynamic_threshold(to_x("v", v, z, alpha, sigma), p)
    return x, z / sigma - alpha / sigma * x


@right(check.in_place_of_x)
def guiding_eps(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    eps = guide(sigma * z + alpha * v_cond, sigma * z + alpha * v_uncond, weight)
    x = image_by_image_in_numpy((z - sigma * eps) / alpha, p)
    return x, (z - alpha * x) / sigma


@right(check.in_place_of_x)
def image_by_image(network, z, t, weight, p, schedule):
    each = [guiding_v(network, z[i : i + 1], t[i : i + 1], weight, p, schedule)
            for i in range(len(z))]  # fmt: skip
    return tuple(torch.cat(parts) for parts in zip(*each, strict=True))


def pair(x, z, alpha, sigma):
    return x, (z - alpha * x) / sigma


@wrong(check.in_place_of_x, "threshold came before guidance, which then drives")
def threshold_before_guidance(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    x_cond = dynamic_threshold(alpha * z - sigma * v_cond, p)
    x_uncond = dynamic_threshold(alpha * z - sigma * v_uncond, p)
    return pair(guide(x_cond, x_uncond, weight), z, alpha, sigma)


@wrong(check.in_place_of_x, "and once more after it")
def threshold_before_and_after(network, z, t, weight, p, schedule):
    x, _ = threshold_before_guidance(network, z, t, weight, p, schedule)
    _, _, alpha, sigma = parts(network, z, t, schedule)
    return pair(dynamic_threshold(x, p), z, alpha, sigma)


@wrong(check.in_place_of_x, "v has none")
def threshold_on_v(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    v = dynamic_threshold(guide(v_cond, v_uncond, weight), p)
    return pair(alpha * z - sigma * v, z, alpha, sigma)


@wrong(check.in_place_of_x, "noise has none")
def threshold_on_eps(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    eps = dynamic_threshold(sigma * z + alpha * guide(v_cond, v_uncond, weight), p)
    return (z - sigma * eps) / alpha, eps


@wrong(check.in_place_of_x, "percentile that was given is ignored")
def always_the_default_percentile(network, z, t, weight, p, schedule):
    return guiding_v(network, z, t, weight, 0.95, schedule)


@wrong(check.in_place_of_x, "schedule that was given is ignored")
def always_the_default_schedule(network, z, t, weight, p, schedule):
    return guiding_v(network, z, t, weight, p, NoiseSchedule())


@wrong(check.in_place_of_x, "in place")
def z_turned_in_place(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    x = z.mul_(alpha).sub_(sigma * guide(v_cond, v_uncond, weight))
    return pair(dynamic_threshold(x, p), z, alpha, sigma)


@wrong(check.in_place_of_x, "no threshold belongs there")
def threshold_on_z(network, z, t, weight, p, schedule):
    return guiding_v(network, dynamic_threshold(z, p), t, weight, p, schedule)


@wrong(check.in_place_of_x, "there is no threshold")
def without_threshold(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    return pair(alpha * z - sigma * guide(v_cond, v_uncond, weight), z, alpha, sigma)


@wrong(check.in_place_of_x, "as it is, (B,)")
def t_in_another_shape(network, z, t, weight, p, schedule):
    return guiding_v(lambda z, t, c: network(z, expand(t, z), c), z, t, weight, p, schedule)


@wrong(check.in_place_of_x, "put on z too")
def threshold_on_z_after_the_network(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    x = alpha * dynamic_threshold(z, p) - sigma * guide(v_cond, v_uncond, weight)
    return pair(dynamic_threshold(x, p), z, alpha, sigma)


@wrong(check.in_place_of_x, "this is the static threshold")
def static_in_its_place(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    x = alpha * z - sigma * guide(v_cond, v_uncond, weight)
    return pair(x.clamp(-1, 1), z, alpha, sigma)


@wrong(check.in_place_of_x, "you added 1")
def one_plus_w(network, z, t, weight, p, schedule):
    return guiding_v(network, z, t, weight + 1, p, schedule)


@wrong(check.in_place_of_x, "with and without caption are swapped")
def captions_swapped(network, z, t, weight, p, schedule):
    return guiding_v(lambda z, t, c: network(z, t, not c), z, t, weight, p, schedule)


@wrong(check.in_place_of_x, "belongs to x before the threshold")
def eps_of_the_network(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    v = guide(v_cond, v_uncond, weight)
    return dynamic_threshold(alpha * z - sigma * v, p), sigma * z + alpha * v


@wrong(check.in_place_of_x, "v, not eps")
def v_read_as_eps(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    x = (z - sigma * guide(v_cond, v_uncond, weight)) / alpha
    return pair(dynamic_threshold(x, p), z, alpha, sigma)


@wrong(check.in_place_of_x, "wrong sign: x_hat")
def wrong_sign(network, z, t, weight, p, schedule):
    return guiding_v(lambda *asked: -network(*asked), z, t, weight, p, schedule)


@wrong(check.in_place_of_x, "return x, eps")
def eps_first(network, z, t, weight, p, schedule):
    return guiding_v(network, z, t, weight, p, schedule)[::-1]


@wrong(check.in_place_of_x, "divided by sigma^2")
def divided_by_the_variance(network, z, t, weight, p, schedule):
    x, eps = guiding_v(network, z, t, weight, p, schedule)
    return x, eps / schedule.alpha_sigma(expand(t, z))[1]


@wrong(check.in_place_of_x, "it is noise, and has no range")
def eps_clipped(network, z, t, weight, p, schedule):
    x, eps = guiding_v(network, z, t, weight, p, schedule)
    return x, eps.clamp(-1, 1)


@wrong(check.in_place_of_x, "for the whole batch")
def one_percentile_in_the_loop(network, z, t, weight, p, schedule):
    v_cond, v_uncond, alpha, sigma = parts(network, z, t, schedule)
    x = alpha * z - sigma * guide(v_cond, v_uncond, weight)
    return pair(one_percentile_for_the_batch(x, p), z, alpha, sigma)


@wrong(check.in_place_of_x, "the time of the first")
def one_time_for_all(network, z, t, weight, p, schedule):
    v = guide(network(z, t, True), network(z, t, False), weight)
    alpha, sigma = schedule.alpha_sigma(t[0])
    return pair(dynamic_threshold(alpha * z - sigma * v, p), z, alpha, sigma)


@wrong(check.in_place_of_x, "needs the network twice")
def caption_alone(network, z, t, weight, p, schedule):
    alpha, sigma = schedule.alpha_sigma(expand(t, z))
    return pair(dynamic_threshold(alpha * z - sigma * network(z, t, True), p), z, alpha, sigma)


# --- 6.5 ------------------------------------------------------------------------------------------


def largest(x):
    return x.abs().amax((1, 2, 3), keepdim=True).clamp(min=1)


def knee(x, m, k):
    """As it is up to k, then a straight line that reaches 1 at m."""
    size = x.abs()
    pressed = k + (size - k) * (1 - k) / (m - k)
    return torch.where(size > k, x.sign() * pressed, x)


@right(check.own_threshold)
def bent_at_a_half(x):
    return knee(x, largest(x), 0.5)


@right(check.own_threshold)
def bent_at_three_quarters_of_a_percentile(x):
    s = percentile_of(x, 0.98).clamp(min=1)
    return knee(torch.minimum(torch.maximum(x, -s), s), s, 0.75)


@right(check.own_threshold)
def static_and_dynamic_mixed(x):
    return (x.clamp(-1, 1) + dynamic_threshold(x, 0.97)) / 2


@right(check.own_threshold)
def a_power(x):
    m = largest(x)
    return x.sign() * (x.abs() / m) ** (1 / (1 + m.log()))


@right(check.own_threshold)
def the_more_the_larger(x):
    return x / (1 + x.abs() * (1 - 1 / largest(x)))


@right(check.own_threshold)
def image_by_image_by_interpolation(x):
    images = []
    for image in x.double():
        m = max(1.0, image.abs().max().item())
        curve = np.interp(image.numpy(), [-m, -0.6, 0.6, m], [-1, -0.6, 0.6, 1])
        images.append(torch.from_numpy(curve) if m > 1 else image)
    return torch.stack(images).to(x.dtype)


@wrong(check.own_threshold, "too much is saturated")
def static_again(x):
    return x.clamp(-1, 1)


@wrong(check.own_threshold, "the small values fade")
def dynamic_again(x):
    return dynamic_threshold(x, 0.95)


@wrong(check.own_threshold, "the small values fade")
def dynamic_with_a_small_percentile(x):
    return dynamic_threshold(x, 0.8)


@wrong(check.own_threshold, "the small values fade")
def divided_by_the_largest_of_each(x):
    return x / largest(x)


@wrong(check.own_threshold, "too much has become flat")
def cut_and_turned_down_a_little(x):
    return torch.where(largest(x) > 1, 0.98 * x.clamp(-1, 1), x)


@wrong(check.own_threshold, "has to stay as it is")
def tanh_everywhere(x):
    return x.tanh()


@wrong(check.own_threshold, "with a jump")
def tanh_where_needed(x):
    return torch.where(largest(x) > 1, x.tanh(), x)


@wrong(check.own_threshold, "still out of range")
def bent_but_not_bounded(x):
    return torch.where(x.abs() > 1, x.sign() * (1 + x.abs().log()), x)


@wrong(check.own_threshold, "depends on the other images")
def bent_by_the_batch(x):
    return knee(x, x.abs().max().clamp(min=1), 0.5)


@wrong(check.own_threshold, "order is lost")
def reflected(x):
    return torch.where(x.abs() > 1, x.sign() * (2 - x.abs()).clamp(min=-1), x)


@wrong(check.own_threshold, "order is lost")
def each_channel_by_itself(x):
    m = x.abs().amax((2, 3), keepdim=True).clamp(min=1)
    return knee(x, m, 0.5)


@wrong(check.own_threshold, "in place")
def bent_in_place(x):
    return x.copy_(bent_at_a_half(x))


@wrong(check.own_threshold, "precision")
def bent_in_single_precision(x):
    return bent_at_a_half(x.float())


@wrong(check.own_threshold, "order is lost")
def large_values_alone_made_smaller(x):
    return torch.where(x.abs() > 0.5, dynamic_threshold(x, 1.0), x)


@wrong(check.own_threshold, "the small values fade, or are blown up")
def a_power_too_strong(x):
    m = largest(x)
    return x.sign() * (x.abs() / m) ** (1 / m**2)


@wrong(check.own_threshold, "depends on the other images")
def with_noise(x):
    return bent_at_a_half(x + 1e-3 * torch.randn_like(x) * (largest(x) > 1))


@wrong(check.own_threshold, "no inf or nan")
def by_a_root_of_something_negative(x):
    return torch.where(largest(x) > 1, (1 - x).sqrt(), x)
