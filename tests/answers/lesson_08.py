"""Answers to the exercises of lesson 08, training, sampling, and measuring."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from answers import right, wrong
from minimagen.checks import lesson_08 as check
from minimagen.diffusion import diffusion_loss, q_sample, target
from minimagen.schedules import expand
from minimagen.training import loop

# --- 8.1 ------------------------------------------------------------------------------------------


@right(check.rate)
def by_the_package(step, steps, peak, warmup):
    return loop.learning_rate(step, steps, peak, warmup)


@right(check.rate)
def two_cases(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - step) / (steps - warmup)


@right(check.rate)
def by_interpolation(step, steps, peak, warmup):
    return np.interp(step, [-1, warmup, steps], [0, peak, 0])


@right(check.rate)
def as_a_tensor(step, steps, peak, warmup):
    up, down = (step + 1) / (warmup + 1), (steps - step) / (steps - warmup)
    return peak * torch.minimum(torch.tensor(up), torch.tensor(down))


@wrong(check.rate, "the first step has the rate 0")
def nothing_at_first(step, steps, peak, warmup):
    rise = step / warmup if warmup else 1.0
    return peak * min(rise, (steps - step) / (steps - warmup), 1)


@wrong(check.rate, "one step too early")
def peak_too_early(step, steps, peak, warmup):
    return peak * min((step + 1) / max(warmup, 1), (steps - step) / (steps - warmup), 1)


@wrong(check.rate, "the last step has the rate 0")
def nothing_at_last(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - 1 - step) / max(steps - 1 - warmup, 1)


@wrong(check.rate, "divide by steps - warmup")
def jump_at_the_peak(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - step) / steps


@wrong(check.rate, "the two factors are multiplied")
def a_product(step, steps, peak, warmup):
    return peak * min((step + 1) / (warmup + 1), 1) * (steps - step) / steps


@wrong(check.rate, "after the warm-up the rate has to fall")
def stays_at_the_peak(step, steps, peak, warmup):
    return peak * min((step + 1) / (warmup + 1), 1)


@wrong(check.rate, "the warm-up is missing")
def falls_only(step, steps, peak, warmup):
    return peak * min((steps - step) / (steps - warmup), 1)


@wrong(check.rate, "this is a cosine")
def falls_as_a_cosine(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@wrong(check.rate, "the peak is missing")
def without_the_peak(step, steps, peak, warmup):
    return loop.learning_rate(step, steps, 1.0, warmup)


@wrong(check.rate, "should lie on a straight line")
def a_whole_division(step, steps, peak, warmup):
    return peak * min((step + 1) // (warmup + 1), (steps - step) / (steps - warmup))


@wrong(check.rate, "should lie on a straight line")
def counts_its_calls(step, steps, peak, warmup):
    step = counts_its_calls.calls = getattr(counts_its_calls, "calls", -1) + 1
    return loop.learning_rate(step % steps, steps, peak, warmup)


@wrong(check.rate, "should lie on a straight line")
def falls_to_a_tenth(step, steps, peak, warmup):
    return max(loop.learning_rate(step, steps, peak, warmup), peak / 10)


@wrong(check.rate, "a number is due")
def the_whole_curve(step, steps, peak, warmup):
    return [loop.learning_rate(i, steps, peak, warmup) for i in range(steps)]


# --- 8.2 ------------------------------------------------------------------------------------------


def _decay(step, longest):
    return min(longest, (1 + step) / (10 + step))


def _buffers(average, model):
    for theirs, ours in zip(average.buffers(), model.buffers(), strict=True):
        theirs.copy_(ours)


@right(check.moving_average)
@torch.no_grad()
def by_lerp(average, model, step, longest=0.999):
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(m, 1 - _decay(step, longest))
    _buffers(average, model)


@right(check.moving_average)
def through_data(average, model, step, longest=0.999):
    d, ours = _decay(step, longest), dict(model.named_parameters())
    for name, weight in average.named_parameters():
        weight.data = d * weight.data + (1 - d) * ours[name].data
    _buffers(average, model)


@right(check.moving_average)
@torch.no_grad()
def all_at_once_as_the_package(average, model, step, longest=0.999):
    mine, theirs = list(average.parameters()), list(model.parameters())
    torch._foreach_lerp_(mine, theirs, 1 - _decay(step, longest))
    _buffers(average, model)


@right(check.moving_average)
def by_a_state_dict(average, model, step, longest=0.999):
    d, learned = _decay(step, longest), {name for name, _ in model.named_parameters()}
    old, new = average.state_dict(), model.state_dict()
    average.load_state_dict(
        {
            name: d * old[name] + (1 - d) * new[name] if name in learned else new[name]
            for name in new
        }
    )
    return average


@right(check.moving_average)
def with_torch_s_own(average, model, step, longest=0.999):
    update = torch.optim.swa_utils.get_ema_multi_avg_fn(_decay(step, longest))
    update(list(average.parameters()), list(model.parameters()), step)
    _buffers(average, model)


@right(check.moving_average)
def freezes_the_average(average, model, step, longest=0.999):
    by_lerp(average.requires_grad_(False), model, step, longest)


@wrong(check.moving_average, "frozen")
def freezes_the_model(average, model, step, longest=0.999):
    by_lerp(average, model.requires_grad_(False), step, longest)


@wrong(check.moving_average, "gradients stay switched off")
def gradients_left_off(average, model, step, longest=0.999):
    torch.set_grad_enabled(False)
    by_lerp(average, model, step, longest)


@wrong(check.moving_average, "decay and 1 - decay are swapped")
@torch.no_grad()
def swapped(average, model, step, longest=0.999):
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(m, _decay(step, longest))
    _buffers(average, model)


@wrong(check.moving_average, "d starts too large")
def without_the_short_start(average, model, step, longest=0.999):
    by_lerp(average, model, 10**9, longest)


@wrong(check.moving_average, "d is larger than longest")
def without_the_longest(average, model, step, longest=0.999):
    by_lerp(average, model, step, 1.0)


@wrong(check.moving_average, "d is larger than longest")
def always_the_usual_longest(average, model, step, longest=0.999):
    by_lerp(average, model, step)


@wrong(check.moving_average, "d starts too large")
@torch.no_grad()
def larger_of_the_two(average, model, step, longest=0.999):
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(m, 1 - max(longest, (1 + step) / (10 + step)))
    _buffers(average, model)


@wrong(check.moving_average, "the steps that were taken")
def one_step_ahead(average, model, step, longest=0.999):
    by_lerp(average, model, step + 1, longest)


@wrong(check.moving_average, "did not move")
def new_names_only(average, model, step, longest=0.999):
    d = _decay(step, longest)
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a = d * a + (1 - d) * m
    _buffers(average, model)


@wrong(check.moving_average, "it is the model that was changed")
def the_model_follows(average, model, step, longest=0.999):
    by_lerp(model, average, step, longest)


@wrong(check.moving_average, "a leaf Variable that requires grad")
def without_no_grad(average, model, step, longest=0.999):
    d = _decay(step, longest)
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.mul_(d).add_(m.detach(), alpha=1 - d)
    _buffers(average, model)


@wrong(check.moving_average, "gradients are recorded")
def with_a_graph(average, model, step, longest=0.999):
    d = _decay(step, longest)
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        (a.detach_() if not a.requires_grad else a.data).mul_(d)
        (a if not a.requires_grad else a.data).add_(m, alpha=1 - d)
    with torch.no_grad():
        _buffers(average, model)


@wrong(check.moving_average, "the buffers are forgotten")
@torch.no_grad()
def parameters_only(average, model, step, longest=0.999):
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(m, 1 - _decay(step, longest))


@wrong(check.moving_average, "the buffers are averaged")
def everything_averaged(average, model, step, longest=0.999):
    d, new = _decay(step, longest), model.state_dict()
    old = average.state_dict()
    average.load_state_dict({name: d * old[name] + (1 - d) * new[name] for name in new})


@wrong(check.moving_average, "shares memory with the model")
def shares_its_buffers(average, model, step, longest=0.999):
    by_lerp(average, model, step, longest)
    for mine, theirs in zip(average.modules(), model.modules(), strict=True):
        for name, buffer in theirs.named_buffers(recurse=False):
            setattr(mine, name, buffer)


@wrong(check.moving_average, "the weights were copied")
def a_mere_copy(average, model, step, longest=0.999):
    average.load_state_dict(model.state_dict())


@wrong(check.moving_average, "did not shrink by d")
@torch.no_grad()
def only_added(average, model, step, longest=0.999):
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.add_(m, alpha=1 - _decay(step, longest))
    _buffers(average, model)


@wrong(check.moving_average, "did not move")
@torch.no_grad()
def trainable_ones_only(average, model, step, longest=0.999):
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        if a.requires_grad:
            a.lerp_(m, 1 - _decay(step, longest))
    _buffers(average, model)


@wrong(check.moving_average, "every parameter of the average")
@torch.no_grad()
def first_parts_only(average, model, step, longest=0.999):
    for mine, theirs in zip(average.children(), model.children(), strict=True):
        for a, m in zip(mine.parameters(False), theirs.parameters(False), strict=True):
            a.lerp_(m, 1 - _decay(step, longest))
    _buffers(average, model)


@wrong(check.moving_average, "gradients of the model")
def clears_the_gradients(average, model, step, longest=0.999):
    by_lerp(average, model, step, longest)
    model.zero_grad()


@wrong(check.moving_average, "7 digits")
@torch.no_grad()
def decay_in_single_precision(average, model, step, longest=0.999):
    d = torch.tensor(_decay(step, longest))
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.copy_((d * a.float() + (1 - d) * m.float()).to(a.dtype))
    _buffers(average, model)


@wrong(check.moving_average, "put in eval mode")
def model_left_in_eval_mode(average, model, step, longest=0.999):
    by_lerp(average, model.eval(), step, longest)


@wrong(check.moving_average, "did not move")
def a_new_module(average, model, step, longest=0.999):
    average = copy.deepcopy(average)
    by_lerp(average, model, step, longest)
    return average


# --- 8.3 ------------------------------------------------------------------------------------------


def _drawn(x, generator):
    t = torch.rand(len(x), generator=generator)
    return t, torch.randn(x.shape, generator=generator)


def _learn(network, optimizer, loss, clip):
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return loss.item()


def _loss(network, schedule, x, t, eps):
    alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
    return ((network(alpha * x + sigma * eps, t) - (alpha * eps - sigma * x)) ** 2).mean()


@right(check.training_step)
def as_the_package(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = (expand(part, x) for part in schedule.alpha_sigma(t))
    out = network(q_sample(x, eps, alpha, sigma), t)
    loss = diffusion_loss("v", out, x, eps, alpha, sigma).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(list(network.parameters()), clip)
    optimizer.step()
    optimizer.zero_grad()  # for the next step
    return loss.detach()


@right(check.training_step)
def clipped_by_hand(network, optimizer, schedule, x, generator, clip=1.0):
    eps = torch.empty_like(x).normal_(generator=generator)
    t = torch.empty(len(x)).uniform_(generator=generator)
    log_snr = schedule.log_snr(t).reshape(-1, 1, 1, 1)
    alpha, sigma = torch.sigmoid(log_snr) ** 0.5, torch.sigmoid(-log_snr) ** 0.5
    z = alpha * x + sigma * eps
    network.zero_grad()
    loss = functional.mse_loss(network(z, t), (alpha * z - x) / sigma)
    loss.backward()
    length = sum((weight.grad**2).sum() for weight in network.parameters()).sqrt()
    for weight in network.parameters():
        weight.grad *= min(1.0, clip / float(length))
    optimizer.step()
    return loss.item()


@right(check.training_step)
def times_spread_evenly(network, optimizer, schedule, x, generator, clip=1.0):
    start = torch.rand((), generator=generator)  # one time in each part of [0, 1]
    t = (start + torch.randperm(len(x), generator=generator)) / len(x)
    eps = torch.randn(x.shape, generator=generator)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@right(check.training_step)
def gradients_by_autograd(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    weights = list(network.parameters())
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
    return loss.item()


@right(check.training_step)
def with_a_closure(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)

    def closure():
        optimizer.zero_grad()
        loss = _loss(network, schedule, x, 1 - t, eps)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        return loss

    return optimizer.step(closure).detach().numpy()


@wrong(check.training_step, "the gradient of the step before is still there")
def gradients_add_up(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return loss.item()


@wrong(check.training_step, "did not move")
def step_before_backward(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    optimizer.zero_grad()
    optimizer.step()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    return loss.item()


@wrong(check.training_step, "did not move")
def cleared_too_late(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.zero_grad()
    optimizer.step()
    return loss.item()


@wrong(check.training_step, "one time for the whole batch")
def one_time_for_all(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.rand(1, generator=generator).expand(len(x))
    eps = torch.randn(x.shape, generator=generator)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "the time of each image")
def time_with_the_dimensions_of_images(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.rand(len(x), 1, 1, 1, generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    alpha, sigma = schedule.alpha_sigma(t)
    loss = ((network(alpha * x + sigma * eps, t) - (alpha * eps - sigma * x)) ** 2).mean()
    return _learn(network, optimizer, loss, clip)


def _with_target(make):
    def step(network, optimizer, schedule, x, generator, clip=1.0):
        t, eps = _drawn(x, generator)
        alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
        out = network(alpha * x + sigma * eps, t)
        loss = ((out - make(x, eps, alpha, sigma, generator)) ** 2).mean()
        return _learn(network, optimizer, loss, clip)

    return step


@wrong(check.training_step, "compared with eps")
def target_eps(network, optimizer, schedule, x, generator, clip=1.0):
    step = _with_target(lambda x, eps, alpha, sigma, _: target("eps", x, eps, alpha, sigma))
    return step(network, optimizer, schedule, x, generator, clip)


@wrong(check.training_step, "swapped in the target")
def target_with_swapped_factors(network, optimizer, schedule, x, generator, clip=1.0):
    step = _with_target(lambda x, eps, alpha, sigma, _: alpha * x - sigma * eps)
    return step(network, optimizer, schedule, x, generator, clip)


@wrong(check.training_step, "the plain mean of")
def noise_drawn_twice(network, optimizer, schedule, x, generator, clip=1.0):
    step = _with_target(
        lambda x, _, alpha, sigma, generator: (
            alpha * torch.randn(x.shape, generator=generator) - sigma * x
        )
    )
    return step(network, optimizer, schedule, x, generator, clip)


@wrong(check.training_step, "not clipped")
def without_clipping(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    return _learn(network, optimizer, loss, math.inf)


@wrong(check.training_step, "not clipped")
def clipped_after_the_step(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    return loss.item()


@wrong(check.training_step, "each number of the gradient")
def clipped_by_value(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(network.parameters(), clip)
    optimizer.step()
    return loss.item()


@wrong(check.training_step, "the length of all together")
def each_parameter_clipped(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    optimizer.zero_grad()
    loss.backward()
    for weight in network.parameters():
        nn.utils.clip_grad_norm_([weight], clip)
    optimizer.step()
    return loss.item()


@wrong(check.training_step, "a shorter one is to stay")
def always_that_long(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    optimizer.zero_grad()
    loss.backward()
    length = torch.cat([weight.grad.flatten() for weight in network.parameters()]).norm()
    for weight in network.parameters():
        weight.grad *= clip / length
    optimizer.step()
    return loss.item()


@wrong(check.training_step, "`clip` is ignored")
def always_clipped_to_1(network, optimizer, schedule, x, generator, clip=1.0):
    return _learn(network, optimizer, _loss(network, schedule, x, *_drawn(x, generator)), 1.0)


@wrong(check.training_step, "return loss.item()")
def returns_the_graph(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    _learn(network, optimizer, loss, clip)
    return loss


@wrong(check.training_step, "draw both from `generator`")
def noise_from_elsewhere(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = torch.rand(len(x), generator=generator), torch.randn_like(x)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "two steps had the same times")
def the_same_noise_each_step(network, optimizer, schedule, x, generator, clip=1.0):
    generator.manual_seed(0)
    return _learn(network, optimizer, _loss(network, schedule, x, *_drawn(x, generator)), clip)


@wrong(check.training_step, "not rand")
def uniform_noise(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = torch.rand(len(x), generator=generator), torch.rand(x.shape, generator=generator)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "images or steps is the same")
def one_noise_for_all_images(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.rand(len(x), generator=generator)
    eps = torch.randn(x.shape[1:], generator=generator).expand(x.shape)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "images or steps is the same")
def grey_noise(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.rand(len(x), generator=generator)
    eps = torch.randn(x[:, :1].shape, generator=generator).expand(x.shape)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "images or steps is the same")
def noise_in_columns(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.rand(len(x), generator=generator)
    eps = torch.randn(x[:, :, :1].shape, generator=generator).expand(x.shape)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "of each image's own alpha and sigma")
def mixed_by_the_first_time(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = schedule.alpha_sigma(t[0])
    loss = ((network(alpha * x + sigma * eps, t) - (alpha * eps - sigma * x)) ** 2).mean()
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "along the clipped gradient")
def clipped_by_the_largest(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip, norm_type=math.inf)
    optimizer.step()
    return loss.item()


@wrong(check.training_step, "two steps had the same times")
def times_in_a_row(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.linspace(0, 1, len(x))
    eps = torch.randn(x.shape, generator=generator)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "t is not uniform")
def times_around_the_middle(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.sigmoid(torch.randn(len(x), generator=generator))
    eps = torch.randn(x.shape, generator=generator)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "swapped in z = alpha x + sigma eps")
def z_swapped(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
    loss = ((network(sigma * x + alpha * eps, t) - (alpha * eps - sigma * x)) ** 2).mean()
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "gives alpha first")
def sigma_taken_for_alpha(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    sigma, alpha = schedule.alpha_sigma(t[:, None, None, None])
    loss = ((network(alpha * x + sigma * eps, t) - (alpha * eps - sigma * x)) ** 2).mean()
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "the mean is squared")
def squared_last(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
    loss = (network(alpha * x + sigma * eps, t) - (alpha * eps - sigma * x)).mean() ** 2
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "many images have the same time")
def times_in_thousandths(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.randint(1001, (len(x),), generator=generator) / 1000
    eps = torch.randn(x.shape, generator=generator)
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "the factor sigma^2")
def z_with_sigma_squared(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
    loss = ((network(alpha * x + sigma**2 * eps, t) - (alpha * eps - sigma * x)) ** 2).mean()
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "images or steps is the same")
def the_same_noise_with_other_times(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.rand(len(x), generator=generator)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return _learn(network, optimizer, _loss(network, schedule, x, t, eps), clip)


@wrong(check.training_step, "in [0, 1]")
def times_of_ddpm(network, optimizer, schedule, x, generator, clip=1.0):
    t = torch.randint(1, 1000, (len(x),), generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    alpha, sigma = schedule.alpha_sigma((t / 1000)[:, None, None, None])
    loss = ((network(alpha * x + sigma * eps, t) - (alpha * eps - sigma * x)) ** 2).mean()
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "the clean image x")
def clean_images(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
    loss = ((network(x, t) - (alpha * eps - sigma * x)) ** 2).mean()
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "the error of x_hat")
def error_of_x(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
    z = alpha * x + sigma * eps
    loss = ((alpha * z - sigma * network(z, t) - x) ** 2).mean()
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "the plain mean of")
def weighted_by_the_snr(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = (expand(part, x) for part in schedule.alpha_sigma(t))
    out = network(alpha * x + sigma * eps, t)
    loss = diffusion_loss("v", out, x, eps, alpha, sigma, "min_snr").mean()
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "one step of the optimizer")
def two_steps(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _learn(network, optimizer, _loss(network, schedule, x, *_drawn(x, generator)), clip)
    optimizer.step()
    return loss


@wrong(check.training_step, "z has to have the shape and the precision")
def in_double_precision(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    return _learn(network, optimizer, _loss(network, schedule, x.double(), t, eps), clip)


@wrong(check.training_step, "without the optimizer")
def optimizer_not_used(network, optimizer, schedule, x, generator, clip=1.0):
    loss = _loss(network, schedule, x, *_drawn(x, generator))
    network.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    with torch.no_grad():
        for weight in network.parameters():
            weight -= optimizer.param_groups[0]["lr"] * weight.grad
    return loss.item()


@wrong(check.training_step, "the squares are added up")
def a_sum_of_squares(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
    out = network(alpha * x + sigma * eps, t)
    loss = functional.mse_loss(out, alpha * eps - sigma * x, reduction="sum")
    return _learn(network, optimizer, loss, clip)


@wrong(check.training_step, "in place")
def noise_into_the_data(network, optimizer, schedule, x, generator, clip=1.0):
    t, eps = _drawn(x, generator)
    alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
    v = alpha * eps - sigma * x
    x *= alpha
    x += sigma * eps
    return _learn(network, optimizer, ((network(x, t) - v) ** 2).mean(), clip)


# --- 8.4 ------------------------------------------------------------------------------------------


def _mean(network, batches, losses_of, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([losses_of(network, batch, generator) for batch in batches]).mean().item()


@right(check.validation)
@torch.no_grad()
def with_a_twin(network, average, batches, losses_of, seed):
    twin = copy.deepcopy(network)
    twin.load_state_dict(average)
    return _mean(twin.eval(), batches, losses_of, seed)


@right(check.validation)
@torch.inference_mode()
def with_a_twin_and_a_tensor(network, average, batches, losses_of, seed):
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    twin.load_state_dict({name: tensor.clone() for name, tensor in average.items()})
    generator = torch.Generator().manual_seed(seed)
    losses = [losses_of(twin, batch, generator) for batch in batches]
    return sum(part.sum() for part in losses) / sum(map(len, losses))


@right(check.validation)
def swapped_and_back(network, average, batches, losses_of, seed):
    own, mode = {name: v.clone() for name, v in network.state_dict().items()}, network.training
    try:
        network.load_state_dict(average)
        network.eval()
        with torch.no_grad():
            return _mean(network, batches, losses_of, seed)
    finally:
        network.load_state_dict(own)
        network.train(mode)


@right(check.validation)
@torch.no_grad()
def by_a_functional_call(network, average, batches, losses_of, seed):
    mode = network.training
    network.eval()

    def judged(batch):
        return torch.func.functional_call(network, average, (batch,))

    result = _mean(judged, batches, losses_of, seed)
    network.train(mode)
    return np.float32(result)


@wrong(check.validation, "random numbers were drawn or seeded anew")
@torch.no_grad()
def seeds_the_global_generator(network, average, batches, losses_of, seed):
    twin = copy.deepcopy(network).eval()
    twin.load_state_dict(average)
    generator = torch.manual_seed(seed)
    return torch.cat([losses_of(twin, b, generator) for b in batches]).mean().item()


@wrong(check.validation, "gradients were changed")
def freezes_the_network(network, average, batches, losses_of, seed):
    result = swapped_and_back(network, average, batches, losses_of, seed)
    network.requires_grad_(False)
    return result


@wrong(check.validation, "does not have its own weights back")
@torch.no_grad()
def a_state_dict_is_no_copy(network, average, batches, losses_of, seed):
    own, mode = network.state_dict(), network.training
    network.load_state_dict(average)
    result = _mean(network.eval(), batches, losses_of, seed)
    network.load_state_dict(own)
    network.train(mode)
    return result


@wrong(check.validation, "the network's own weights were judged")
@torch.no_grad()
def own_weights(network, average, batches, losses_of, seed):
    return _mean(copy.deepcopy(network).eval(), batches, losses_of, seed)


@wrong(check.validation, "in training mode: call eval()")
@torch.no_grad()
def without_eval(network, average, batches, losses_of, seed):
    twin = copy.deepcopy(network)
    twin.load_state_dict(average)
    return _mean(twin, batches, losses_of, seed)


@wrong(check.validation, "the mean of the batches' means")
@torch.no_grad()
def mean_of_means(network, average, batches, losses_of, seed):
    twin = copy.deepcopy(network).eval()
    twin.load_state_dict(average)
    generator = torch.Generator().manual_seed(seed)
    means = [losses_of(twin, batch, generator).mean() for batch in batches]
    return float(sum(means) / len(means))


@wrong(check.validation, "gradients are recorded")
def without_no_grad_(network, average, batches, losses_of, seed):
    twin = copy.deepcopy(network).eval()
    twin.load_state_dict(average)
    return _mean(twin, batches, losses_of, seed)


@wrong(check.validation, "left in the mode that it was in")
def always_back_to_training(network, average, batches, losses_of, seed):
    result = swapped_and_back(network, average, batches, losses_of, seed)
    network.train()
    return result


@wrong(check.validation, "left in the mode that it was in")
def left_in_eval_mode(network, average, batches, losses_of, seed):
    result = swapped_and_back(network, average, batches, losses_of, seed)
    network.eval()
    return result


@wrong(check.validation, "does not have its own weights back")
@torch.no_grad()
def averages_stay(network, average, batches, losses_of, seed):
    network.load_state_dict(average)
    result = _mean(network.eval(), batches, losses_of, seed)
    network.train()
    return result


@wrong(check.validation, "the generator begins anew for each batch")
@torch.no_grad()
def same_noise_for_each_batch(network, average, batches, losses_of, seed):
    twin = copy.deepcopy(network).eval()
    twin.load_state_dict(average)
    losses = [losses_of(twin, b, torch.Generator().manual_seed(seed)) for b in batches]
    return torch.cat(losses).mean().item()


@wrong(check.validation, "with noise from one generator of that seed")
@torch.no_grad()
def other_noise_each_time(network, average, batches, losses_of, seed):
    twin = copy.deepcopy(network).eval()
    twin.load_state_dict(average)
    generator = torch.Generator()
    generator.seed()
    return torch.cat([losses_of(twin, b, generator) for b in batches]).mean().item()


@wrong(check.validation, "parameters were replaced")
@torch.no_grad()
def assigned(network, average, batches, losses_of, seed):
    own, mode = network.state_dict(), network.training
    network.load_state_dict(average, assign=True)
    result = _mean(network.eval(), batches, losses_of, seed)
    network.load_state_dict(own, assign=True)
    network.train(mode)
    return result


@wrong(check.validation, "the averaged weights were changed")
def changes_the_averages(network, average, batches, losses_of, seed):
    result = with_a_twin(network, average, batches, losses_of, seed)
    for name, tensor in network.state_dict().items():
        average[name].copy_(tensor)
    return result


@wrong(check.validation, "the last batch is left out")
@torch.no_grad()
def full_batches_only(network, average, batches, losses_of, seed):
    full = [batch for batch in batches if len(batch) == len(batches[0])]
    return with_a_twin(network, average, full, losses_of, seed)


@wrong(check.validation, "in training mode: call eval()")
def eval_of_the_top_only(network, average, batches, losses_of, seed):
    twin = copy.deepcopy(network)
    twin.load_state_dict(average)
    twin.training = False
    with torch.no_grad():
        return _mean(twin, batches, losses_of, seed)


@wrong(check.validation, "divide by the number of images")
@torch.no_grad()
def a_sum(network, average, batches, losses_of, seed):
    return len(torch.cat(batches)) * with_a_twin(network, average, batches, losses_of, seed)


@wrong(check.validation, "as large as the first")
def all_as_large_as_the_first(network, average, batches, losses_of, seed):
    total = a_sum(network, average, batches, losses_of, seed)
    return total / (len(batches) * len(batches[0]))


@wrong(check.validation, "the seed is ignored")
def without_the_seed(network, average, batches, losses_of, seed):
    seed = torch.Generator().initial_seed()
    return with_a_twin(network, average, batches, losses_of, seed)


@wrong(check.validation, "gradients stay switched off")
def without_gradients_for_ever(network, average, batches, losses_of, seed):
    torch.set_grad_enabled(False)
    return with_a_twin(network, average, batches, losses_of, seed)


@wrong(check.validation, "gradients were changed")
def clears_gradients(network, average, batches, losses_of, seed):
    result = with_a_twin(network, average, batches, losses_of, seed)
    network.zero_grad()
    return result


# --- 8.5 ------------------------------------------------------------------------------------------


def _pairs(captions, readings):
    return list(zip(captions, readings, strict=True))


def _shares(captions, readings):
    pairs = _pairs(captions, readings)
    result = {}
    for name in {name for caption in captions for name in caption}:
        agrees = [caption[name] == reading[name] for caption, reading in pairs if name in caption]
        result[name] = sum(agrees) / len(agrees)
    return result


def _exact(captions, readings):
    pairs = _pairs(captions, readings)
    return sum(all(r[name] == value for name, value in c.items()) for c, r in pairs) / len(pairs)


@right(check.fidelity)
def in_two_parts(captions, readings):
    return {"exact match": _exact(captions, readings)} | _shares(captions, readings)


@right(check.fidelity)
def by_counting(captions, readings):
    said, agreed, exact = {}, {}, 0
    for caption, reading in zip(captions, readings, strict=True):
        exact += caption.items() <= reading.items()
        for name in caption:
            said[name] = said.get(name, 0) + 1
            agreed[name] = agreed.get(name, 0) + (caption[name] == reading[name])
    return {
        **{name: agreed[name] / said[name] for name in said},
        "exact match": exact / len(captions),
    }


@right(check.fidelity)
def with_numpy(captions, readings):
    names = sorted(set().union(*readings, *captions))
    said = np.array([[name in caption for name in names] for caption in captions])
    wrongs = np.array(
        [[n in c and c[n] != r[n] for n in names] for c, r in _pairs(captions, readings)]
    )
    result = {
        name: 1 - wrongs[:, i].sum() / said[:, i].sum() if said[:, i].any() else None
        for i, name in enumerate(names)
    }
    return result | {"exact match": (~wrongs.any(1)).mean()}


@right(check.fidelity)
def as_fractions(captions, readings):
    shares = in_two_parts(captions, readings)
    return {name: Fraction(share).limit_denominator(1000) for name, share in shares.items()}


@wrong(check.fidelity, "the key")
def another_key(captions, readings):
    shares = in_two_parts(captions, readings)
    return {name.replace(" ", "_"): share for name, share in shares.items()}


@wrong(check.fidelity, "a mean of the attributes' shares")
def mean_of_shares(captions, readings):
    shares = _shares(captions, readings)
    return {"exact match": sum(shares.values()) / len(shares)} | shares


@wrong(check.fidelity, "a mean of the shares within each image")
def partly_right(captions, readings):
    rows = [[r[n] == c[n] for n in c] for c, r in _pairs(captions, readings)]
    exact = sum(sum(row) / len(row) for row in rows) / len(rows)
    return {"exact match": exact} | _shares(captions, readings)


@wrong(check.fidelity, "what the caption leaves open counts as wrong")
def the_whole_reading_compared(captions, readings):
    exact = sum(c == r for c, r in _pairs(captions, readings)) / len(captions)
    return {"exact match": exact} | _shares(captions, readings)


@wrong(check.fidelity, "were multiplied")
def product_of_shares(captions, readings):
    shares = _shares(captions, readings)
    return {"exact match": math.prod(shares.values())} | shares


@wrong(check.fidelity, "any one thing that is right")
def any_for_all(captions, readings):
    pairs = _pairs(captions, readings)
    exact = sum(any(r[n] == c[n] for n in c) for c, r in pairs) / len(pairs)
    return {"exact match": exact} | _shares(captions, readings)


@wrong(check.fidelity, "what a caption leaves open counts as wrong")
def divided_by_all(captions, readings):
    pairs, names = _pairs(captions, readings), {n for caption in captions for n in caption}
    shares = {n: sum(n in c and c[n] == r[n] for c, r in pairs) / len(pairs) for n in names}
    return {"exact match": _exact(captions, readings)} | shares


@wrong(check.fidelity, "what a caption leaves open counts as right")
def open_is_right(captions, readings):
    pairs, names = _pairs(captions, readings), {n for caption in captions for n in caption}
    shares = {n: sum(c.get(n, r[n]) == r[n] for c, r in pairs) / len(pairs) for n in names}
    return {"exact match": _exact(captions, readings)} | shares


@wrong(check.fidelity, "what no caption speaks of")
def every_attribute_of_the_readings(captions, readings):
    shares = dict.fromkeys(readings[0], 0.0) | _shares(captions, readings)
    return {"exact match": _exact(captions, readings)} | shares


@wrong(check.fidelity, "could not be read (None) counts as right")
def unread_is_right(captions, readings):
    pairs = _pairs(captions, readings)
    exact = sum(all(r[n] in (c[n], None) for n in c) for c, r in pairs) / len(pairs)
    return {"exact match": exact} | _shares(captions, readings)


@wrong(check.fidelity, "could not be read (None) is left out")
def unread_is_left_out(captions, readings):
    shares = {}
    for name in {n for caption in captions for n in caption}:
        pairs = [(c, r) for c, r in _pairs(captions, readings) if name in c and r[name] is not None]
        shares[name] = sum(c[name] == r[name] for c, r in pairs) / len(pairs) if pairs else 0.0
    return {"exact match": _exact(captions, readings)} | shares


@wrong(check.fidelity, "share of an attribute is missing")
def attributes_of_the_first_caption(captions, readings):
    pairs, result = _pairs(captions, readings), {"exact match": _exact(captions, readings)}
    for name in captions[0]:
        agrees = [c[name] == r[name] for c, r in pairs if name in c]
        result[name] = sum(agrees) / len(agrees)
    return result


@wrong(check.fidelity, "share of an attribute is missing")
def attributes_by_heart(captions, readings):
    shares, known = _shares(captions, readings), ("count", "colour", "shape", "size", "background")
    exact = {"exact match": _exact(captions, readings)}
    return exact | {name: shares[name] for name in known if name in shares}


@wrong(check.fidelity, "not a percentage")
def percentages(captions, readings):
    return {name: 100 * share for name, share in in_two_parts(captions, readings).items()}


@wrong(check.fidelity, "everything right that their own caption says")
def rounded(captions, readings):
    return {name: round(share, 2) for name, share in in_two_parts(captions, readings).items()}


@wrong(check.fidelity, "counts the images")
def counts_for_shares(captions, readings):
    exact = sum(c.items() <= r.items() for c, r in _pairs(captions, readings))
    return {"exact match": exact} | _shares(captions, readings)


@wrong(check.fidelity, "changed the captions")
def fills_the_captions_in(captions, readings):
    result = in_two_parts(captions, readings)
    for caption, reading in zip(captions, readings, strict=True):
        caption.update({n: v for n, v in reading.items() if n not in caption})
    return result


# --- 8.6 ------------------------------------------------------------------------------------------


def _best(right, drawn):
    return max(range(len(right)), key=lambda i: right[i] / drawn[i])


def _wilson(k, n, z):
    p, shrink = k / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (p + z * z / (2 * n) - half) / shrink, (p + z * z / (2 * n) + half) / shrink


def _by_intervals(interval, right, drawn):
    spans = [interval(k, n) for k, n in zip(right, drawn, strict=True)]
    low = spans[_best(right, drawn)][0]
    return [high < low for _, high in spans]


def _by_z(right, drawn, bound, pooled=True):
    """The gap to the best, in standard deviations of a difference of two shares."""
    best, result = _best(right, drawn), []
    for k, n in zip(right, drawn, strict=True):
        p, q = k / n, right[best] / drawn[best]
        if pooled:
            both = (k + right[best]) / (n + drawn[best])
            variance = both * (1 - both) * (1 / n + 1 / drawn[best])
        else:
            variance = p * (1 - p) / n + q * (1 - q) / drawn[best]
        result.append(q - p > bound * math.sqrt(variance))
    return result


@right(check.worse)
def wilson_intervals(right, drawn):
    return _by_intervals(lambda k, n: _wilson(k, n, 1.96), right, drawn)


@right(check.worse)
def z_test_by_bonferroni(right, drawn):
    bound = stats.norm.isf(0.025 / max(len(right) - 1, 1))
    return _by_z(right, drawn, bound)


@right(check.worse)
def exact_intervals(right, drawn):
    k, n = np.array(right), np.array(drawn)
    low = np.where(k > 0, stats.beta.ppf(0.025, np.maximum(k, 1), n - k + 1), 0)
    high = np.where(k < n, stats.beta.ppf(0.975, k + 1, np.maximum(n - k, 1)), 1)
    return high < low[np.argmax(k / n)]


@right(check.worse)
def by_arcsines(right, drawn):
    angles = [2 * math.asin(math.sqrt(k / n)) for k, n in zip(right, drawn, strict=True)]
    best = _best(right, drawn)
    return [
        angles[best] - angle > 2.8 * math.sqrt(1 / n + 1 / drawn[best])
        for angle, n in zip(angles, drawn, strict=True)
    ]


@right(check.worse)
def by_simulating_a_posterior(right, drawn):
    rng = np.random.default_rng(0)
    shares = [rng.beta(k + 1, n - k + 1, 4000) for k, n in zip(right, drawn, strict=True)]
    best = shares[_best(right, drawn)]
    return tuple(bool((share < best).mean() > 0.997) for share in shares)


@right(check.worse)
def one_extra_of_each(right, drawn):  # Agresti and Coull: two more right, two more wrong
    return _by_z([k + 2 for k in right], [n + 4 for n in drawn], 2.8, pooled=False)


@right(check.worse)
def at_the_largest_variance(right, drawn):  # p (1 - p) is at most 1/4
    best = _best(right, drawn)
    return [
        right[best] / drawn[best] - k / n > 3 * math.sqrt(0.25 / n + 0.25 / drawn[best])
        for k, n in zip(right, drawn, strict=True)
    ]


@right(check.worse)
def first_all_together_then_each(right, drawn):
    table = np.array([right, [n - k for k, n in zip(right, drawn, strict=True)]])
    if not table.sum(1).all() or stats.chi2_contingency(table)[1] > 0.05:
        return torch.zeros(len(right), dtype=torch.bool)
    return torch.tensor(_by_z(right, drawn, 1.96))


@wrong(check.worse, "both shares are uncertain")
def uncertainty_of_one_of_the_two(right, drawn):
    best, result = _best(right, drawn), []
    for k, n in zip(right, drawn, strict=True):
        p = k / n
        result.append(right[best] / drawn[best] - p > 3 * math.sqrt(p * (1 - p) / n))
    return result


@wrong(check.worse, "another answer the second time")
def by_an_unseeded_simulation(right, drawn):
    shares = [np.random.default_rng().beta(k + 1, n - k + 1, 1000)
              for k, n in zip(right, drawn, strict=True)]  # fmt: skip
    best = shares[_best(right, drawn)]
    return [bool((share < best).mean() > 0.997) for share in shares]


@wrong(check.worse, "compare with the best")
def worse_than_the_mean(right, drawn):
    mean = sum(right) / sum(drawn)
    deviation = math.sqrt(mean * (1 - mean))
    return [
        mean - k / n > 2.6 * deviation / math.sqrt(n) for k, n in zip(right, drawn, strict=True)
    ]


@wrong(check.worse, "two of these four")
def only_the_worst(right, drawn):
    bad, shares = wilson_intervals(right, drawn), np.array(right) / np.array(drawn)
    return [bool(b) and i == shares.argmin() for i, b in enumerate(bad)]


@wrong(check.worse, "too many false accusations")
def not_strict_enough(right, drawn):
    return _by_intervals(lambda k, n: _wilson(k, n, 1.3), right, drawn)


@wrong(check.worse, "too many false accusations")
def each_pair_at_5_percent(right, drawn):
    return _by_z(right, drawn, 1.96)


@wrong(check.worse, "both shares are uncertain")
def outside_of_the_interval_of_the_best(right, drawn):
    best = _best(right, drawn)
    low = _wilson(right[best], drawn[best], 1.96)[0]
    return [k / n < low for k, n in zip(right, drawn, strict=True)]


@wrong(check.worse, "such a gap comes about by chance")
def lower_share(right, drawn):
    shares = [k / n for k, n in zip(right, drawn, strict=True)]
    return [share < max(shares) for share in shares]


@wrong(check.worse, "three images prove little")
def a_fixed_gap(right, drawn):
    shares = [k / n for k, n in zip(right, drawn, strict=True)]
    return [share < max(shares) - 0.1 for share in shares]


@wrong(check.worse, "too many false accusations")
def a_fixed_gap_for_ten_or_more(right, drawn):
    shares = [k / n for k, n in zip(right, drawn, strict=True)]
    gaps = [max(shares) - share for share in shares]
    return [gap > 0.1 and min(drawn) >= 10 for gap in gaps]


@wrong(check.worse, "a difference that is there is not found")
def a_large_fixed_gap(right, drawn):
    shares = [k / n for k, n in zip(right, drawn, strict=True)]
    return [min(drawn) >= 10 and share < max(shares) - 0.17 for share in shares]


@wrong(check.worse, "half of 200 images is clearly worse")
def never(right, drawn):
    return [False] * len(right)


@wrong(check.worse, "compare shares and not counts")
def counts_for_shares_(right, drawn):
    most = max(right)
    return [most - k > 3 * math.sqrt(2 * max(most, 1) * 0.2) for k in right]


@wrong(check.worse, "ZeroDivisionError")
def z_score_of_no_variance(right, drawn):
    best, result = _best(right, drawn), []
    for k, n in zip(right, drawn, strict=True):
        p, q = k / n, right[best] / drawn[best]
        deviation = math.sqrt(p * (1 - p) / n + q * (1 - q) / drawn[best])
        result.append((q - p) / deviation > 2.6)
    return result


@wrong(check.worse, "one True (worse than the best)")
def their_numbers(right, drawn):
    return [i for i, bad in enumerate(wilson_intervals(right, drawn)) if bad]


@wrong(check.worse, "half of 200 images is clearly worse")
def the_other_way_round(right, drawn):
    return [not bad for bad in wilson_intervals(right, drawn)]


@wrong(check.worse, "not the highest count")
def highest_count_taken_as_the_best(right, drawn):
    best = right.index(max(right))
    low = _wilson(right[best], drawn[best], 1.96)[0]
    return [_wilson(k, n, 1.96)[1] < low for k, n in zip(right, drawn, strict=True)]


@wrong(check.worse, "each by its own number")
def the_best_as_certain_as_the_other(right, drawn):
    shares, result = [(k + 1) / (n + 2) for k, n in zip(right, drawn, strict=True)], []
    p = max(shares)
    for q, n in zip(shares, drawn, strict=True):
        result.append(p - q > 2.8 * math.sqrt((p * (1 - p) + q * (1 - q)) / n))
    return result


@wrong(check.worse, "does the order matter?")
def first_taken_as_the_best(right, drawn):
    low = _wilson(right[0], drawn[0], 1.96)[0]
    return [_wilson(k, n, 1.96)[1] < low for k, n in zip(right, drawn, strict=True)]


@wrong(check.worse, "as good as the best are named as worse")
def all_when_any_differs(right, drawn):
    table = np.array([right, [n - k for k, n in zip(right, drawn, strict=True)]]) + 0.5
    if len(right) == 1 or stats.chi2_contingency(table)[1] > 0.05:
        return [False] * len(right)
    shares = [k / n for k, n in zip(right, drawn, strict=True)]
    return [max(shares) - share > 0.021 for share in shares]
