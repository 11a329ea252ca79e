"""Answers to the exercises of lesson 05, noise conditioning augmentation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce

from answers import right, wrong
from minimagen.augmentation import augment, level_weight, random_levels
from minimagen.checks import lesson_05 as check
from minimagen.diffusion import q_sample
from minimagen.schedules import NoiseSchedule, expand


def bilinear(x, size):
    return F.interpolate(x, size=size, mode="bilinear")


def scaled(images):
    return images.float() / 127.5 - 1


def noise_like(x, generator):
    return torch.randn(x.shape, generator=generator)


# --- 5.1 ------------------------------------------------------------------------------------------


@right(check.levels)
def by_the_package(batch, generator, training, fixed=0.1):
    return random_levels(batch, generator) if training else torch.full((batch,), fixed)


@right(check.levels)
def filled(batch, generator, training, fixed=0.1):
    level = torch.empty(batch)
    return level.uniform_(generator=generator) if training else level.fill_(fixed)


@right(check.levels)
def one_after_the_other(batch, generator, training, fixed=0.1):
    draws = [torch.rand((), generator=generator) if training else fixed for _ in range(batch)]
    return torch.tensor([float(level) for level in draws])


@right(check.levels)
def one_in_each_part_and_shuffled(batch, generator, training, fixed=0.1):
    if not training:
        return fixed * torch.ones(batch)
    places = torch.randperm(batch, generator=generator)
    return (places + torch.rand(batch, generator=generator)) / batch


@wrong(check.levels, "all images of a batch got the same level")
def one_for_the_batch(batch, generator, training, fixed=0.1):
    return torch.rand(1, generator=generator).repeat(batch) if training else by_the_package(
        batch, generator, training, fixed
    )  # fmt: skip


@wrong(check.levels, "one level is due for each image")
def a_single_number(batch, generator, training, fixed=0.1):
    return torch.rand((), generator=generator) if training else torch.tensor(fixed)


@wrong(check.levels, "the level is not drawn")
def drawn_when_sampling_too(batch, generator, training, fixed=0.1):
    return torch.rand(batch, generator=generator)


@wrong(check.levels, "same each time")
def fixed_when_training_too(batch, generator, training, fixed=0.1):
    return torch.full((batch,), 0.1)


@wrong(check.levels, "the same generator")
def the_two_swapped(batch, generator, training, fixed=0.1):
    return by_the_package(batch, generator, not training, fixed)


@wrong(check.levels, "hand the generator to")
def from_global_random_numbers(batch, generator, training, fixed=0.1):
    return torch.rand(batch) if training else torch.full((batch,), fixed)


@wrong(check.levels, "same each time")
def with_a_seed_of_its_own(batch, generator, training, fixed=0.1):
    return by_the_package(batch, generator.manual_seed(0), training, fixed)


@wrong(check.levels, "leave the generator alone")
def drawn_and_thrown_away(batch, generator, training, fixed=0.1):
    drawn = torch.rand(batch, generator=generator)
    return drawn if training else torch.full((batch,), fixed)


@wrong(check.levels, "it may be 0 too")
def zero_taken_for_nothing(batch, generator, training, fixed=0.1):
    return by_the_package(batch, generator, training, fixed or 0.1)


@wrong(check.levels, "between 0 and 1")
def normal_levels(batch, generator, training, fixed=0.1):
    return torch.randn(batch, generator=generator) if training else torch.full((batch,), fixed)


@wrong(check.levels, "as likely as any other")
def squared_levels(batch, generator, training, fixed=0.1):
    return by_the_package(batch, generator, training, fixed) ** (2 if training else 1)


@wrong(check.levels, "as likely as any other")
def of_a_few_steps_only(batch, generator, training, fixed=0.1):
    if not training:
        return torch.full((batch,), fixed)
    return torch.randint(0, 5, (batch,), generator=generator) / 5


@wrong(check.levels, "leave the fixed level to sampling")
def up_to_the_fixed_level(batch, generator, training, fixed=0.1):
    return by_the_package(batch, generator, training, fixed) * (fixed if training else 1)


@wrong(check.levels, "in order")
def sorted_levels(batch, generator, training, fixed=0.1):
    return by_the_package(batch, generator, training, fixed).sort().values


# --- 5.2 ------------------------------------------------------------------------------------------


@right(check.right_place)
def with_the_package(images, size, level, schedule, generator):
    large = bilinear(2 * (images / 255) - 1, size)
    return augment(large, level, noise_like(large, generator), schedule)


@right(check.right_place)
def enlarged_and_then_scaled(images, size, level, schedule, generator):
    large = bilinear(images.to(torch.float32), size) / 127.5 - 1
    alpha, sigma = schedule.alpha_sigma(level.reshape(-1, 1, 1, 1))
    return alpha * large + sigma * noise_like(large, generator)


@right(check.right_place)
def image_by_image(images, size, level, schedule, generator):
    result = []
    for image, s in zip(images, level, strict=True):
        alpha, sigma = schedule.alpha_sigma(s)
        large = bilinear(scaled(image)[None], size)[0]
        result.append(alpha * large + sigma * torch.empty_like(large).normal_(generator=generator))
    return torch.stack(result)


@right(check.right_place)
def by_log_snr_and_einops(images, size, level, schedule, generator):
    large = bilinear((images.float() - 127.5) / 127.5, size)
    log_snr = rearrange(schedule.log_snr(level), "b -> b 1 1 1")
    noise = noise_like(large, generator)
    return log_snr.sigmoid().sqrt() * large + (-log_snr).sigmoid().sqrt() * noise


def noised(large, level, schedule, generator):
    return augment(large, level, noise_like(large, generator), schedule)


@wrong(check.right_place, "twice as strong")
def noise_before_scaling(images, size, level, schedule, generator):
    return 2 * noised(bilinear(images / 255, size), level, schedule, generator) - 1


@wrong(check.right_place, "much too weak")
def noise_on_bytes(images, size, level, schedule, generator):
    return noised(bilinear(images.float(), size), level, schedule, generator) / 127.5 - 1


@wrong(check.right_place, "blotches")
def noise_before_enlarging(images, size, level, schedule, generator):
    return bilinear(noised(scaled(images), level, schedule, generator), size)


@wrong(check.right_place, "scale them to [-1, 1]")
def never_scaled(images, size, level, schedule, generator):
    return noised(bilinear(images / 255, size), level, schedule, generator)


@wrong(check.right_place, "0 ... 255")
def still_bytes(images, size, level, schedule, generator):
    return noised(bilinear(images.float(), size), level, schedule, generator)


@wrong(check.right_place, "does not fit into a byte")
def doubled_bytes(images, size, level, schedule, generator):
    return noised(bilinear(2 * images / 255 - 1, size), level, schedule, generator)


@wrong(check.right_place, "enlarged as bytes")
def enlarged_as_bytes(images, size, level, schedule, generator):
    return noised(bilinear(images, size) / 127.5 - 1, level, schedule, generator)


@wrong(check.right_place, "enlarged bilinearly; but it is not")
def bicubic(images, size, level, schedule, generator):
    large = F.interpolate(scaled(images), size=size, mode="bicubic")
    return noised(large, level, schedule, generator)


@wrong(check.right_place, "repeating pixels")
def nearest(images, size, level, schedule, generator):
    return noised(F.interpolate(scaled(images), size=size), level, schedule, generator)


@wrong(check.right_place, "alpha is missing")
def image_not_turned_down(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    sigma = schedule.alpha_sigma(level)[1].reshape(-1, 1, 1, 1)
    return large + sigma * noise_like(large, generator)


@wrong(check.right_place, "its variance")
def variance_for_deviation(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    alpha, sigma = schedule.alpha_sigma(level.reshape(-1, 1, 1, 1))
    return alpha * large + sigma**2 * noise_like(large, generator)


@wrong(check.right_place, "the level of the first")
def level_shared_by_the_batch(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    alpha, sigma = schedule.alpha_sigma(level[0])
    return alpha * large + sigma * noise_like(large, generator)


@wrong(check.right_place, "the mean of the levels")
def mean_level(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    return noised(large, level.mean().expand(len(level)), schedule, generator)


@wrong(check.right_place, "not a share of noise")
def level_as_a_fader(images, size, level, schedule, generator):
    large, s = bilinear(scaled(images), size), level.reshape(-1, 1, 1, 1)
    return (1 - s) * large + s * noise_like(large, generator)


@wrong(check.right_place, "schedule that was given is ignored")
def always_the_same_schedule(images, size, level, schedule, generator):
    return noised(bilinear(scaled(images), size), level, NoiseSchedule(), generator)


@wrong(check.right_place, "clipped")
def clipped(images, size, level, schedule, generator):
    return with_the_package(images, size, level, schedule, generator).clamp(-1, 1)


@wrong(check.right_place, "two images of the batch have the same noise")
def noise_shared_by_the_batch(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    noise = noise_like(large[:1], generator).expand_as(large)
    return augment(large, level, noise, schedule)


@wrong(check.right_place, "neighbouring pixels have nearly the same")
def one_noise_for_each_column(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    return augment(large, level, noise_like(large[:, :, :1], generator), schedule)


@wrong(check.right_place, "not turned down, and the noise")
def plain_noise_before_scaling(images, size, level, schedule, generator):
    large = bilinear(images / 255, size)
    sigma = expand(schedule.alpha_sigma(level)[1], large)
    return 2 * (large + sigma * noise_like(large, generator)) - 1


@wrong(check.right_place, "there is no noise")
def without_noise(images, size, level, schedule, generator):
    return bilinear(scaled(images), size)


@wrong(check.right_place, "channels of an image have the same noise")
def grey_noise(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    return augment(large, level, noise_like(large[:, :1], generator), schedule)


@wrong(check.right_place, "not normally distributed")
def uniform_noise(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    noise = math.sqrt(12) * (torch.rand(large.shape, generator=generator) - 0.5)
    return augment(large, level, noise, schedule)


@wrong(check.right_place, "same generator")
def global_noise(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    return augment(large, level, torch.randn_like(large), schedule)


@wrong(check.right_place, "images scaled to [-1, 1]")
def divided_by_128(images, size, level, schedule, generator):
    return noised(bilinear(images / 128 - 1, size), level, schedule, generator)


@wrong(check.right_place, "the wrong shape")
def square_images_only(images, size, level, schedule, generator):
    large = bilinear(scaled(images), (size[0], size[0]))
    return augment(large, level, noise_like(large, generator), schedule)


@wrong(check.right_place, "alpha and sigma are swapped")
def sigma_for_alpha(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    sigma, alpha = schedule.alpha_sigma(level.reshape(-1, 1, 1, 1))
    return alpha * large + sigma * noise_like(large, generator)


@wrong(check.right_place, "sigma is missing")
def noise_not_turned_down(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    return expand(schedule.alpha_sigma(level)[0], large) * large + noise_like(large, generator)


@wrong(check.right_place, "torch.randn is normal")
def noise_from_0_to_1(images, size, level, schedule, generator):
    large = bilinear(scaled(images), size)
    return augment(large, level, torch.rand(large.shape, generator=generator), schedule)


# --- 5.3 ------------------------------------------------------------------------------------------


@right(check.network_input)
def by_two_augmentations(unet, x, lowres, t, level, schedule, generator):
    eps, dirt = noise_like(x, generator), noise_like(x, generator)
    z, c = augment(x, t, eps, schedule), augment(lowres, level, dirt, schedule)
    return unet(torch.cat([z, c], dim=1), t, level), eps


@right(check.network_input)
def by_hand_and_condition_first_drawn(unet, x, lowres, t, level, schedule, generator):
    def noisy(image, time, noise):
        alpha, sigma = schedule.alpha_sigma(time[:, None, None, None])
        return alpha * image + sigma * noise

    dirt = torch.empty_like(x).normal_(generator=generator)
    eps = torch.empty_like(x).normal_(generator=generator)
    inputs = torch.hstack([noisy(x, t, eps), noisy(lowres, level, dirt)])
    return [unet(inputs, t=t, level=level), eps]


@right(check.network_input)
def both_at_once(unet, x, lowres, t, level, schedule, generator):
    clean, times = torch.stack([x, lowres]), torch.stack([t, level])  # (2, B, C, H, W), (2, B)
    noise = noise_like(clean, generator)
    alpha, sigma = schedule.alpha_sigma(times[..., None, None, None])
    inputs = rearrange(q_sample(clean, noise, alpha, sigma), "two b c h w -> b (two c) h w")
    return unet(inputs, t, level), noise[0]


@wrong(check.network_input, "(B, 2 C, H, W)")
def joined_along_the_batch(unet, x, lowres, t, level, schedule, generator):
    eps = noise_like(x, generator)
    c = noised(lowres, level, schedule, generator)
    return unet(torch.cat([augment(x, t, eps, schedule), c]), t, level), eps


@wrong(check.network_input, "(B, 2 C, H, W)")
def added_up(unet, x, lowres, t, level, schedule, generator):
    eps = noise_like(x, generator)
    c = noised(lowres, level, schedule, generator)
    return unet(augment(x, t, eps, schedule) + c, t, level), eps


@wrong(check.network_input, "changed places")
def condition_first(unet, x, lowres, t, level, schedule, generator):
    eps = noise_like(x, generator)
    c = noised(lowres, level, schedule, generator)
    return unet(torch.cat([c, augment(x, t, eps, schedule)], 1), t, level), eps


@wrong(check.network_input, "the same noise: the U-Net")
def one_noise_for_both(unet, x, lowres, t, level, schedule, generator):
    eps = noise_like(x, generator)
    inputs = torch.cat([augment(x, t, eps, schedule), augment(lowres, level, eps, schedule)], 1)
    return unet(inputs, t, level), eps


@wrong(check.network_input, "condition is clean")
def clean_condition(unet, x, lowres, t, level, schedule, generator):
    eps = noise_like(x, generator)
    return unet(torch.cat([augment(x, t, eps, schedule), lowres], 1), t, level), eps


@wrong(check.network_input, "noised by t, the time of z")
def condition_noised_like_z(unet, x, lowres, t, level, schedule, generator):
    eps = noise_like(x, generator)
    c = noised(lowres, t, schedule, generator)
    return unet(torch.cat([augment(x, t, eps, schedule), c], 1), t, level), eps


@wrong(check.network_input, "its time is t")
def z_noised_like_the_condition(unet, x, lowres, t, level, schedule, generator):
    eps = noise_like(x, generator)
    c = noised(lowres, level, schedule, generator)
    return unet(torch.cat([augment(x, level, eps, schedule), c], 1), t, level), eps


@wrong(check.network_input, "t and level are swapped")
def told_the_wrong_way_round(unet, x, lowres, t, level, schedule, generator):
    return by_two_augmentations(lambda i, t, s: unet(i, s, t), x, lowres, t, level, schedule,
                                generator)  # fmt: skip


@wrong(check.network_input, "has to be told level")
def not_told_the_level(unet, x, lowres, t, level, schedule, generator):
    def deaf(inputs, t, level):
        return unet(inputs, t, torch.zeros_like(level))

    return by_two_augmentations(deaf, x, lowres, t, level, schedule, generator)


@wrong(check.network_input, "has to be told level")
def told_t_twice(unet, x, lowres, t, level, schedule, generator):
    return by_two_augmentations(lambda i, t, _: unet(i, t, t), x, lowres, t, level, schedule,
                                generator)  # fmt: skip


@wrong(check.network_input, "just as it is")
def told_t_in_another_shape(unet, x, lowres, t, level, schedule, generator):
    return by_two_augmentations(lambda i, t, s: unet(i, t[:, None], s), x, lowres, t, level,
                                schedule, generator)  # fmt: skip


@wrong(check.network_input, "not normally distributed")
def eps_from_0_to_1(unet, x, lowres, t, level, schedule, generator):
    eps = torch.rand(x.shape, generator=generator)
    c = noised(lowres, level, schedule, generator)
    return unet(torch.cat([augment(x, t, eps, schedule), c], 1), t, level), eps


@wrong(check.network_input, "out and eps are swapped")
def eps_first(unet, x, lowres, t, level, schedule, generator):
    return by_two_augmentations(unet, x, lowres, t, level, schedule, generator)[::-1]


@wrong(check.network_input, "return out, eps")
def out_alone(unet, x, lowres, t, level, schedule, generator):
    return by_two_augmentations(unet, x, lowres, t, level, schedule, generator)[0]


@wrong(check.network_input, "the eps that is returned")
def returns_the_condition_s_noise(unet, x, lowres, t, level, schedule, generator):
    eps, dirt = noise_like(x, generator), noise_like(x, generator)
    z, c = augment(x, t, eps, schedule), augment(lowres, level, dirt, schedule)
    return unet(torch.cat([z, c], dim=1), t, level), dirt


@wrong(check.network_input, "the clean image x")
def x_for_z(unet, x, lowres, t, level, schedule, generator):
    c = noised(lowres, level, schedule, generator)
    return unet(torch.cat([x, c], 1), t, level), noise_like(x, generator)


@wrong(check.network_input, "are not independent")
def half_of_the_noise_shared(unet, x, lowres, t, level, schedule, generator):
    eps = noise_like(x, generator)
    dirt = 0.4 * eps + math.sqrt(1 - 0.16) * noise_like(x, generator)
    z, c = augment(x, t, eps, schedule), augment(lowres, level, dirt, schedule)
    return unet(torch.cat([z, c], dim=1), t, level), eps


@wrong(check.network_input, "told what it is to find")
def x_for_the_condition(unet, x, lowres, t, level, schedule, generator):
    return by_two_augmentations(unet, x, x, t, level, schedule, generator)


@wrong(check.network_input, "the eps that is returned")
def returns_eps_times_sigma(unet, x, lowres, t, level, schedule, generator):
    out, eps = by_two_augmentations(unet, x, lowres, t, level, schedule, generator)
    return out, eps * expand(schedule.alpha_sigma(t)[1], x)


@wrong(check.network_input, "lost its gradient")
def without_gradient(unet, x, lowres, t, level, schedule, generator):
    with torch.no_grad():
        return by_two_augmentations(unet, x, lowres, t, level, schedule, generator)


@wrong(check.network_input, "called once")
def called_twice(unet, x, lowres, t, level, schedule, generator):
    by_two_augmentations(unet, x, lowres, t, level, schedule, generator)
    return by_two_augmentations(unet, x, lowres, t, level, schedule, generator)


@wrong(check.network_input, "two images of the batch have the same noise in z")
def one_eps_for_the_batch(unet, x, lowres, t, level, schedule, generator):
    eps = noise_like(x[:1], generator).repeat(len(x), 1, 1, 1)
    c = noised(lowres, level, schedule, generator)
    return unet(torch.cat([augment(x, t, eps, schedule), c], 1), t, level), eps


# --- 5.4 ------------------------------------------------------------------------------------------


@right(check.weighted)
def by_the_package_s_weight(out, target, level, p):
    return level_weight(level, p) * F.mse_loss(out, target, reduction="none").mean((1, 2, 3))


@right(check.weighted)
def weight_on_every_pixel(out, target, level, p):
    weight = ((p + 1) * (1 - level) ** p)[:, None, None, None]
    return reduce(weight * (out - target).square(), "b c h w -> b", "mean")


@right(check.weighted)
def in_a_loop(out, target, level, p):
    pairs = zip(out, target, level, strict=True)
    return torch.stack([(p + 1) * (1 - s) ** p * torch.dist(a, b) ** 2 / a.numel() for a, b, s in
                        pairs])  # fmt: skip


@wrong(check.weighted, "p + 1 is missing")
def without_the_factor(out, target, level, p):
    return (1 - level) ** p * (out - target).square().flatten(1).mean(1)


@wrong(check.weighted, "grows with the level")
def level_to_the_power(out, target, level, p):
    return (p + 1) * level**p * (out - target).square().flatten(1).mean(1)


@wrong(check.weighted, "the power belongs to")
def power_in_the_wrong_place(out, target, level, p):
    return (p + 1) * (1 - level**p) * (out - target).square().flatten(1).mean(1)


@wrong(check.weighted, "the weight is missing")
def unweighted(out, target, level, p):
    return (out - target).square().flatten(1).mean(1)


@wrong(check.weighted, "inside the square")
def weight_inside_the_square(out, target, level, p):
    weight = level_weight(level, p).reshape(-1, 1, 1, 1)
    return (weight * (out - target)).square().flatten(1).mean(1)


@wrong(check.weighted, "one number came back for the whole batch")
def mean_of_the_batch(out, target, level, p):
    return by_the_package_s_weight(out, target, level, p).mean()


@wrong(check.weighted, "mean over the batch was taken")
def error_of_the_batch(out, target, level, p):
    return level_weight(level, p) * F.mse_loss(out, target)


@wrong(check.weighted, "added up over the image")
def sum_over_the_image(out, target, level, p):
    return level_weight(level, p) * (out - target).square().sum((1, 2, 3))


@wrong(check.weighted, "not squared")
def absolute_errors(out, target, level, p):
    return level_weight(level, p) * (out - target).abs().flatten(1).mean(1)


@wrong(check.weighted, "lost its gradient")
def detached(out, target, level, p):
    return by_the_package_s_weight(out, target, level, p).detach()


@wrong(check.weighted, "its gradient is not")
def partly_detached(out, target, level, p):
    return by_the_package_s_weight(out.detach(), target, level, p) + 0 * out.sum()


@wrong(check.weighted, "float32, where float64 is due")
def in_single_precision(out, target, level, p):
    return by_the_package_s_weight(out.float(), target.float(), level.float(), p)


@wrong(check.weighted, "in place")
def in_place(out, target, level, p):
    target -= out
    return level_weight(level, p) * target.square().flatten(1).mean(1)


@wrong(check.weighted, "the loss of an image is the mean")
def divided_by_the_batch_s_weights(out, target, level, p):
    weight = level_weight(level, p)
    return weight / weight.mean() * (out - target).square().flatten(1).mean(1)


# --- 5.5 ------------------------------------------------------------------------------------------


def mean_of_neighbours(x, side):
    around = side // 2
    return F.avg_pool2d(F.pad(x, (around,) * 4, mode="replicate"), side, 1)


@right(check.damage)
def a_mean_mixed_in(lowres, level, generator):
    s = expand(level, lowres)
    soft = torch.lerp(lowres, mean_of_neighbours(lowres, 3), s)
    return augment(soft, level, noise_like(lowres, generator), NoiseSchedule())


@right(check.damage)
def squares(lowres, level, generator):
    s = level.reshape(-1, 1, 1, 1)
    small = F.avg_pool2d(lowres, 4)
    blocks = F.interpolate(small, size=lowres.shape[-2:])
    mixed = (1 - s) * lowres + s * blocks
    return (1 - s**2).sqrt() * mixed + s * noise_like(lowres, generator)


@right(check.damage)
def low_frequencies_only(lowres, level, generator):
    s = level.reshape(-1, 1, 1, 1)
    height, width = lowres.shape[-2:]
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    kept = torch.exp(-((8 * s * frequency) ** 2))
    soft = torch.fft.irfft2(torch.fft.rfft2(lowres) * kept, s=(height, width))
    alpha, sigma = torch.cos(s * math.pi / 2), torch.sin(s * math.pi / 2)
    return alpha * soft + sigma * noise_like(lowres, generator)


@right(check.damage)
def wider_with_the_level(lowres, level, generator):
    images = []
    for image, s in zip(lowres, level.tolist(), strict=True):
        soft = image[None]
        for _ in range(round(6 * s)):
            soft = mean_of_neighbours(soft, 3)
        noise = noise_like(image, generator)
        images.append(math.sqrt(1 - s) * soft[0] + math.sqrt(s) * noise)
    return torch.stack(images)


@right(check.damage)
def noise_first_and_blurred_with_it(lowres, level, generator):
    s = level.reshape(-1, 1, 1, 1)
    noisy = augment(lowres, level, noise_like(lowres, generator), NoiseSchedule())
    return (1 - s) * noisy + s * mean_of_neighbours(noisy, 5)


@right(check.damage)
def fine_only_a_little_less(lowres, level, generator):
    squares = F.interpolate(F.avg_pool2d(lowres, 4), size=lowres.shape[-2:])
    mixed = torch.lerp(lowres, squares, 0.44 * expand(level, lowres))  # 0.78 of it at level 0.5
    return augment(mixed, level, noise_like(lowres, generator), NoiseSchedule())


@right(check.damage)
def noise_drawn_where_needed(lowres, level, generator):
    needed = level > 0
    noise = torch.zeros_like(lowres)
    noise[needed] = noise_like(lowres[needed], generator)
    soft = torch.lerp(lowres, mean_of_neighbours(lowres, 3), expand(level, lowres))
    return augment(soft, level, noise, NoiseSchedule())


@wrong(check.damage, "fade alike")
def noise_alone(lowres, level, generator):
    return augment(lowres, level, noise_like(lowres, generator), NoiseSchedule())


@wrong(check.damage, "nothing should be left")
def blur_alone(lowres, level, generator):
    return torch.lerp(lowres, mean_of_neighbours(lowres, 5), expand(level, lowres))


@wrong(check.damage, "a damage by chance")
def the_same_dirt_each_time(lowres, level, generator):
    return a_mean_mixed_in(lowres, level, torch.Generator().manual_seed(0))


@wrong(check.damage, "the numbers grow")
def noise_added_on_top(lowres, level, generator):
    s = expand(level, lowres)
    soft = torch.lerp(lowres, mean_of_neighbours(lowres, 3), s)
    return soft + 5 * s * noise_like(lowres, generator)


@wrong(check.damage, "at level 0 nothing may be damaged")
def always_blurred(lowres, level, generator):
    return augment(
        mean_of_neighbours(lowres, 3), level, noise_like(lowres, generator), NoiseSchedule()
    )


@wrong(check.damage, "gone already")
def on_or_off(lowres, level, generator):
    s = expand(level, lowres)
    return torch.where(s > 0, noise_like(lowres, generator) + (1 - s) * 0.1 * lowres, lowres)


@wrong(check.damage, "the less of the image should be left")
def two_stages_only(lowres, level, generator):
    return squares(lowres, (level * 2).round() / 2, generator)


@wrong(check.damage, "the less of the image should be left")
def clear_in_the_middle(lowres, level, generator):
    return squares(lowres, torch.where(level == 0.75, 0.25, level), generator)


@wrong(check.damage, "each image has a level of its own")
def level_of_the_batch(lowres, level, generator):
    return a_mean_mixed_in(lowres, level.mean().expand(len(level)), generator)


@wrong(check.damage, "depends on the levels of the others")
def blurred_by_the_level_of_the_first(lowres, level, generator):
    soft = torch.lerp(lowres, mean_of_neighbours(lowres, 3), level[0])
    return augment(soft, level, noise_like(lowres, generator), NoiseSchedule())


@wrong(check.damage, "depends on the other images")
def mixed_with_the_mean_of_the_batch(lowres, level, generator):
    s = expand(level, lowres)
    soft = torch.lerp(mean_of_neighbours(lowres, 3), lowres.mean(0, keepdim=True), 0.2)
    noise = noise_like(lowres, generator)
    return augment(torch.lerp(lowres, soft, s), level, noise, NoiseSchedule())


@wrong(check.damage, "all images of the batch have the same noise")
def one_noise_for_the_batch(lowres, level, generator):
    soft = torch.lerp(lowres, mean_of_neighbours(lowres, 3), expand(level, lowres))
    noise = noise_like(lowres[:1], generator).expand_as(lowres)
    return augment(soft, level, noise, NoiseSchedule())


@wrong(check.damage, "fade alike")
def pixels_blotted_out(lowres, level, generator):
    holes = torch.rand(lowres.shape, generator=generator) < expand(level, lowres)
    return torch.where(holes, noise_like(lowres, generator), lowres)


@wrong(check.damage, "same generator")
def without_the_generator(lowres, level, generator):
    soft = torch.lerp(lowres, mean_of_neighbours(lowres, 3), expand(level, lowres))
    return augment(soft, level, torch.randn_like(lowres), NoiseSchedule())


@wrong(check.damage, "in place")
def damaged_in_place(lowres, level, generator):
    return lowres.lerp_(a_mean_mixed_in(lowres, level, generator), 1.0)
