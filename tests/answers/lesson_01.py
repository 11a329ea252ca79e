"""Answers to the exercises of lesson 01, forward diffusion."""

from __future__ import annotations

import math

import torch
from einops import rearrange

from answers import right, wrong
from minimagen.checks import lesson_01 as check
from minimagen.diffusion import q_sample
from minimagen.schedules import NoiseSchedule, expand

# --- 1.1 ------------------------------------------------------------------------------------------


@right(check.noising)
def by_einops(x, eps, alpha):
    alpha = rearrange(alpha, "b -> b 1 1 1")
    return alpha * x + torch.sqrt(1 - alpha.square()) * eps


@right(check.noising)
def in_a_loop(x, eps, alpha):
    images = []
    for image, noise, a in zip(x, eps, alpha, strict=True):
        images.append(a * image + torch.sin(torch.acos(a)) * noise)
    return torch.stack(images)


@right(check.noising)
def by_rotation(x, eps, alpha):
    angle = torch.acos(alpha.reshape(-1, 1, 1, 1))
    return (torch.complex(x, eps) * torch.polar(torch.ones_like(angle), -angle)).real


@right(check.noising)
def by_the_package(x, eps, alpha):
    return q_sample(x, eps, expand(alpha, x), expand((1 - alpha**2) ** 0.5, x))


@wrong(check.noising, "that is its variance")
def sigma_squared_for_sigma(x, eps, alpha):
    alpha = alpha.reshape(-1, 1, 1, 1)
    return alpha * x + (1 - alpha**2) * eps


@wrong(check.noising, "squares that add up to 1")
def a_plain_fader(x, eps, alpha):
    alpha = alpha.reshape(-1, 1, 1, 1)
    return alpha * x + (1 - alpha) * eps


@wrong(check.noising, "as with DDPM's alpha-bar")
def alpha_as_alpha_bar(x, eps, alpha):
    alpha = alpha.reshape(-1, 1, 1, 1)
    return alpha.sqrt() * x + (1 - alpha).sqrt() * eps


@wrong(check.noising, "along the columns")
def without_new_dimensions(x, eps, alpha):
    return alpha * x + (1 - alpha**2).sqrt() * eps


@wrong(check.noising, "one alpha was taken for all")
def one_alpha_for_all(x, eps, alpha):
    return alpha[0] * x + (1 - alpha[0] ** 2).sqrt() * eps


@wrong(check.noising, "float64")
def always_single_precision(x, eps, alpha):
    alpha = alpha.float().reshape(-1, 1, 1, 1)
    return alpha * x.float() + (1 - alpha**2).sqrt() * eps.float()


@wrong(check.noising, "right to about 7 digits")
def single_precision_in_between(x, eps, alpha):
    return by_einops(x.float(), eps.float(), alpha.float()).to(x.dtype)


@wrong(check.noising, "in place")
def in_place(x, eps, alpha):
    alpha = alpha.reshape(-1, 1, 1, 1)
    x *= alpha
    return x + (1 - alpha**2).sqrt() * eps


@wrong(check.noising, "is there a return?")
def without_return(x, eps, alpha):
    by_einops(x, eps, alpha)


@wrong(check.noising, "along the colours")
def too_few_new_dimensions(x, eps, alpha):
    alpha = alpha[:, None, None]
    return alpha * x + (1 - alpha**2).sqrt() * eps


@wrong(check.noising, "sigma is sqrt(1 - alpha^2)")
def sigma_of_alpha_bar(x, eps, alpha):
    alpha = alpha.reshape(-1, 1, 1, 1)
    return alpha * x + (1 - alpha).sqrt() * eps


@wrong(check.noising, "the eps that was given")
def fresh_noise(x, eps, alpha):
    return by_einops(x, torch.randn_like(x), alpha)


@wrong(check.noising, "with alpha = 0 z is the noise itself")
def divided_by_alpha(x, eps, alpha):
    alpha = alpha.reshape(-1, 1, 1, 1)
    return alpha * (x + (1 / alpha**2 - 1).sqrt() * eps)


@wrong(check.noising, "with alpha = 1 the image itself")
def away_from_the_ends(x, eps, alpha):
    return by_einops(x, eps, alpha.clamp(0.001, 0.999))


# --- 1.2 ------------------------------------------------------------------------------------------


@right(check.cosine)
def squares_of_cosines(t, s=0.008):
    return (torch.cos((t + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)) ** 2


@right(check.cosine)
def by_the_half_angle(t, s=0.008):
    def f(t):
        return 0.5 + 0.5 * torch.cos(math.pi * (t + s) / (1 + s))

    return f(t) / f(torch.zeros_like(t))


@right(check.cosine)
def by_tangents(t, s=0.008):
    at_t, at_0 = (t + s) / (1 + s) * math.pi / 2, s / (1 + s) * math.pi / 2
    return (1 + math.tan(at_0) ** 2) / (1 + torch.tan(at_t) ** 2)


@wrong(check.cosine, "division by f(0) is missing")
def without_f_of_0(t, s=0.008):
    return torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2


@wrong(check.cosine, "this is alpha, not alpha^2")
def not_squared(t, s=0.008):
    return squares_of_cosines(t, s).sqrt()


@wrong(check.cosine, "the offset s is ignored")
def without_offset(t, s=0.008):
    return torch.cos(t * math.pi / 2) ** 2


@wrong(check.cosine, "the share of the noise")
def sines(t, s=0.008):
    return 1 - squares_of_cosines(t, s)


@wrong(check.cosine, "1 + s is missing")
def without_1_plus_s(t, s=0.008):
    return (torch.cos((t + s) * math.pi / 2) / math.cos(s * math.pi / 2)) ** 2


@wrong(check.cosine, "it was not used")
def always_the_same_offset(t, s=0.008):
    return squares_of_cosines(t)


@wrong(check.cosine, "f(0) is not")
def only_one_square(t, s=0.008):
    return without_f_of_0(t, s) / math.cos(s / (1 + s) * math.pi / 2)


@wrong(check.cosine, "f(0) does not use it")
def f_of_0_by_heart(t, s=0.008):
    return without_f_of_0(t, s) / 0.99984458


@wrong(check.cosine, "not the first entry")
def first_time_for_time_0(t, s=0.008):
    f = without_f_of_0(t, s)
    return f / f[0]


@wrong(check.cosine, "pi where pi / 2 belongs")
def half_a_turn(t, s=0.008):
    return (torch.cos((t + s) / (1 + s) * math.pi) / math.cos(s / (1 + s) * math.pi)) ** 2


@wrong(check.cosine, "the brackets")
def brackets_missing(t, s=0.008):
    at_0 = s / (1 + s) * math.pi / 2
    return torch.cos(t + at_0) ** 2 / math.cos(at_0) ** 2


@wrong(check.cosine, "1 at t = 0 and 0 at t = 1")
def cut_off_at_the_ends(t, s=0.008):
    return squares_of_cosines(t, s).clamp(0.001, 0.999)


@wrong(check.cosine, "right to about 7 digits")
def f_of_0_in_single_precision(t, s=0.008):
    return without_f_of_0(t, s) / without_f_of_0(torch.tensor(0.0), s)


@wrong(check.cosine, "wrong shape")
def a_list_of_numbers(t, s=0.008):
    return torch.tensor([float(squares_of_cosines(u, s)) for u in t.flatten()], dtype=t.dtype)


# --- 1.3 ------------------------------------------------------------------------------------------


@right(check.alpha_sigma)
def by_exponentials(log_snr):
    return 1 / (1 + torch.exp(-log_snr)).sqrt(), 1 / (1 + torch.exp(log_snr)).sqrt()


@right(check.alpha_sigma)
def by_log_sigmoids(log_snr):
    half = torch.nn.functional.logsigmoid
    return (half(log_snr) / 2).exp(), (half(-log_snr) / 2).exp()


@right(check.alpha_sigma)
def by_softmax(log_snr):
    both = torch.softmax(torch.stack([log_snr, torch.zeros_like(log_snr)]), dim=0)
    return both.sqrt().unbind()


@right(check.alpha_sigma)
def one_from_the_other(log_snr):
    alpha = torch.sigmoid(log_snr).sqrt()
    return [alpha, alpha * torch.exp(-log_snr / 2)]


@wrong(check.alpha_sigma, "sigma loses its digits")
def sigma_from_alpha(log_snr):
    alpha = torch.sigmoid(log_snr).sqrt()
    return alpha, (1 - alpha**2).sqrt()


@wrong(check.alpha_sigma, "this is alpha^2")
def without_the_root(log_snr):
    return torch.sigmoid(log_snr), torch.sigmoid(-log_snr)


@wrong(check.alpha_sigma, "swapped")
def swapped(log_snr):
    return torch.sigmoid(-log_snr).sqrt(), torch.sigmoid(log_snr).sqrt()


@wrong(check.alpha_sigma, "read as log(alpha / sigma)")
def logarithm_of_the_ratio(log_snr):
    return torch.sigmoid(2 * log_snr).sqrt(), torch.sigmoid(-2 * log_snr).sqrt()


@wrong(check.alpha_sigma, "return alpha, sigma")
def alpha_alone(log_snr):
    return torch.sigmoid(log_snr).sqrt()


@wrong(check.alpha_sigma, "alpha loses its digits")
def alpha_from_sigma(log_snr):
    sigma = torch.sigmoid(-log_snr).sqrt()
    return (1 - sigma**2).sqrt(), sigma


@wrong(check.alpha_sigma, "alpha loses its digits")
def by_an_angle(log_snr):  # the cosine of an angle near pi / 2
    angle = torch.atan(torch.exp(-log_snr / 2))
    return torch.cos(angle), torch.sin(angle)


@wrong(check.alpha_sigma, "kept from becoming small")
def never_quite_0(log_snr):
    share = torch.sigmoid(log_snr)
    return share.sqrt(), (1 - share + 1e-8).sqrt()


@wrong(check.alpha_sigma, "add up to 1, not they themselves")
def one_minus_alpha(log_snr):
    alpha = torch.sigmoid(log_snr).sqrt()
    return alpha, 1 - alpha


@wrong(check.alpha_sigma, "this is sigma^2")
def variance_for_sigma(log_snr):
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr)


@wrong(check.alpha_sigma, "alpha once more")
def the_sign_forgotten(log_snr):
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(log_snr).sqrt()


@wrong(check.alpha_sigma, "is not sigmoid(log_snr / 2)")
def half_for_the_root(log_snr):
    return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)


@wrong(check.alpha_sigma, "base 10")
def powers_of_ten(log_snr):
    snr = 10**log_snr
    return (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()


# --- 1.4 ------------------------------------------------------------------------------------------


@right(check.many_steps)
def by_logarithms(betas, i):
    total = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])[i]
    return (total / 2).exp(), (-torch.expm1(total)).sqrt()


@right(check.many_steps)
def a_product_for_each(betas, i):
    bars = torch.stack([torch.prod(1 - betas[: int(n)]) for n in i.flatten()]).reshape(i.shape)
    return bars**0.5, (1 - bars) ** 0.5


@right(check.many_steps)
def by_roots(betas, i):
    signal = torch.cat([torch.ones(1), torch.cumprod((1 - betas).sqrt(), 0)])[i]
    return [signal, torch.sqrt((1 - signal) * (1 + signal))]


@right(check.many_steps)
def first_steps_by_a_mask(betas, i):
    taken = torch.arange(len(betas)) < i[..., None]
    bar = torch.where(taken, 1 - betas, 1).prod(-1)
    return bar.sqrt(), (1 - bar).sqrt()


@wrong(check.many_steps, "off by one step, one too many")
def without_the_one_in_front(betas, i):
    bar = torch.cumprod(1 - betas, 0)[i]
    return bar.sqrt(), (1 - bar).sqrt()


@wrong(check.many_steps, "the index -1 is that of the last entry")
def minus_one(betas, i):
    bar = torch.cumprod(1 - betas, 0)[i - 1]
    return bar.sqrt(), (1 - bar).sqrt()


@wrong(check.many_steps, "the product of nothing is 1")
def a_zero_in_front(betas, i):
    bar = torch.cat([torch.zeros(1), torch.cumprod(1 - betas, 0)])[i]
    return bar.sqrt(), (1 - bar).sqrt()


@wrong(check.many_steps, "one too few")
def a_one_too_many(betas, i):
    bar = torch.cat([torch.ones(2), torch.cumprod(1 - betas, 0)])[i]
    return bar.sqrt(), (1 - bar).sqrt()


@wrong(check.many_steps, "this is alpha-bar")
def without_roots(betas, i):
    signal, noise = by_logarithms(betas, i)
    return signal**2, noise**2


@wrong(check.many_steps, "what the last step alone does")
def beta_for_alpha_bar(betas, i):
    beta = torch.cat([betas.new_zeros(1), betas])[i]
    return (1 - beta).sqrt(), beta.sqrt()


@wrong(check.many_steps, "by their square roots")
def variance_for_deviation(betas, i):
    signal, noise = by_logarithms(betas, i)
    return signal, noise**2


@wrong(check.many_steps, "wrong shape")
def a_whole_chain(betas, i):
    bar = torch.cumprod(1 - betas, 0)
    return bar.sqrt(), (1 - bar).sqrt()


@wrong(check.many_steps, "added up")
def betas_added(betas, i):
    left = (1 - torch.cat([betas.new_zeros(1), betas.cumsum(0)])[i]).clamp(min=0)
    return left.sqrt(), (1 - left).sqrt()


@wrong(check.many_steps, "exp(-sum of betas)")
def sums_in_the_exponent(betas, i):
    bar = torch.exp(-torch.cat([betas.new_zeros(1), betas.cumsum(0)])[i])
    return bar.sqrt(), (1 - bar).sqrt()


@wrong(check.many_steps, "the later steps turn it down")
def noise_added_up(betas, i):
    signal, _ = by_logarithms(betas, i)
    return signal, torch.cat([betas.new_zeros(1), betas.cumsum(0)])[i].sqrt()


@wrong(check.many_steps, "add up to 1, not they themselves")
def one_minus_signal(betas, i):
    signal, _ = by_logarithms(betas, i)
    return signal, 1 - signal


@wrong(check.many_steps, "wrong shape")
def one_row_of_steps(betas, i):
    return by_logarithms(betas, i.flatten())


# --- 1.5 ------------------------------------------------------------------------------------------


@right(check.shifting)
def by_the_ratio(log_snr, side, reference):
    ratio = torch.exp(log_snr / 2) * reference / side  # alpha / sigma
    return 2 * torch.log(ratio)


@right(check.shifting)
def by_the_area(log_snr, side, reference):
    return log_snr + math.log(reference**2 / side**2)


@right(check.shifting)
def by_alpha_and_sigma(log_snr, side, reference):
    alpha, sigma = by_exponentials(log_snr)
    return torch.log((alpha / side) ** 2) - torch.log((sigma / reference) ** 2)


@wrong(check.shifting, "the wrong way round")
def less_noise(log_snr, side, reference):
    return log_snr + 2 * math.log(side / reference)


@wrong(check.shifting, "the factor 2 is missing")
def without_the_square(log_snr, side, reference):
    return log_snr - math.log(side / reference)


@wrong(check.shifting, "not by")
def by_the_number_of_pixels(log_snr, side, reference):
    return log_snr - 2 * math.log((side / reference) ** 2)


@wrong(check.shifting, "becomes a summand")
def divided(log_snr, side, reference):
    return log_snr * reference / side


@wrong(check.shifting, "was rounded down")
def whole_factors_only(log_snr, side, reference):
    return log_snr - 2 * math.log(max(side // reference, 1))


@wrong(check.shifting, "in place")
def shifted_in_place(log_snr, side, reference):
    log_snr -= 2 * math.log(side / reference)
    return log_snr


@wrong(check.shifting, "from 16 to 64")
def the_sides_of_the_lesson(log_snr, side, reference):
    return log_snr - math.log(16)


@wrong(check.shifting, "a smaller one less")
def larger_images_only(log_snr, side, reference):
    return log_snr - 2 * math.log(max(side / reference, 1))


@wrong(check.shifting, "base 10")
def logarithm_to_base_10(log_snr, side, reference):
    return log_snr - 2 * math.log10(side / reference)


@wrong(check.shifting, "not k^2 itself")
def without_the_logarithm(log_snr, side, reference):
    return log_snr - (side / reference) ** 2


@wrong(check.shifting, "digits get lost")
def over_alpha_alone(log_snr, side, reference):
    alpha = torch.sigmoid(log_snr).sqrt()
    return torch.log((alpha * reference / side) ** 2 / (1 - alpha**2))


@wrong(check.shifting, "a bound cuts it off")
def kept_within_20(log_snr, side, reference):
    return by_the_area(log_snr, side, reference).clamp(-20, 20)


@wrong(check.shifting, "right to about 7 digits")
def shift_in_single_precision(log_snr, side, reference):
    return log_snr - 2 * torch.log(torch.tensor(side / reference))


# --- 1.6 ------------------------------------------------------------------------------------------


@right(check.schedule)
def a_logit(t):
    t = 0.01 + 0.98 * t
    return 2.2 * torch.log((1 - t) / t)


@right(check.schedule)
def a_sinh(t):
    return torch.sinh(6 * (1 - 2 * t)) * 0.04 + 3.5 * (1 - 2 * t)


@right(check.schedule)
def just_60_percent(t):
    u = 1 - 2 * t
    return torch.where(u.abs() <= 0.6, 5 * u, torch.sign(u) * (17.5 * u.abs() - 7.5))


@right(check.schedule)
def number_by_number(t):
    numbers = [4 * u + 6 * u**9 for u in (1 - 2 * t).flatten().tolist()]  # 10 at the ends
    return torch.tensor(numbers, dtype=t.dtype).reshape(t.shape)


@wrong(check.schedule, "has to fall")
def rising(t):
    return -a_logit(t)


@wrong(check.schedule, "too little time")
def a_straight_line(t):
    return 10 - 20 * t


@wrong(check.schedule, "by 0.001 at least")
def level_in_the_middle(t):
    return 10 * (1 - 2 * t) ** 9


@wrong(check.schedule, "has to fall all the time")
def a_table_of_100(t):
    return a_logit((100 * t).round() / 100)


@wrong(check.schedule, "at most -10")
def the_logarithm_forgotten(t):
    return (1 - t) / (t + 0.01)


@wrong(check.schedule, "jumps")
def the_cosine_schedule(t):
    return NoiseSchedule().log_snr(t)


@wrong(check.schedule, "on that time alone")
def a_time_for_each_place(t):
    return a_logit(torch.linspace(0, 1, t.numel(), dtype=t.dtype).reshape(t.shape))


@wrong(check.schedule, "wrong shape")
def squeezed(t):
    return a_logit(t).squeeze()


@wrong(check.schedule, "has to be finite")
def infinite_at_the_ends(t):
    return torch.log((1 - t) / t)


@wrong(check.schedule, "jumps")
def three_pieces(t):
    u = 1 - 2 * t
    return 2.9 * u + 8 * torch.sign(u) * (u.abs() > 0.7)


@wrong(check.schedule, "has to fall all the time")
def flat_at_the_ends(t):
    return (12 * (1 - 2 * t)).clamp(-10, 10)


@wrong(check.schedule, "at least 10")
def starts_with_noise(t):
    return 5 - 16 * t


@wrong(check.schedule, "on that time alone")
def scaled_by_the_batch(t):
    return a_logit(t / t.max().clamp(min=0.5))


@wrong(check.schedule, "precision")
def in_single_precision(t):
    return a_logit(t.float())


@wrong(check.schedule, "a tensor is due")
def as_a_schedule(t):
    return NoiseSchedule()
