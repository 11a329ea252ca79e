"""Checks of the exercises of lesson 08, training, sampling, and measuring."""

from __future__ import annotations

import copy
import functools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minimagen.checks.exercise import Inputs, Lesson, Wrong, equal, expect
from minimagen.schedules import NoiseSchedule

lesson = Lesson(8)
progress = lesson.progress


def _plain(value: Any) -> Any:
    """A number of torch or numpy as one of Python; whatever else it is, as it is."""
    return float(value) if _is_number(value) else value


def _is_number(value: object) -> bool:
    """A number, also one of torch or numpy; not a truth value."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 0
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _gradients_stay_on(call: Callable[[], Any]) -> Any:
    """What a call gives that must not leave torch's gradients switched off."""
    with torch.enable_grad():
        result = call()
        expect(
            torch.is_grad_enabled(),
            "gradients stay switched off for all that follows, training too: with torch.no_grad() "
            "switches them on again by itself",
        )
    return result


# --- 8.1 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "The learning rate: up, then down",
    look="the figure below 'The optimizer's part' in the lesson: two straight lines, of which the "
    "lower one counts",
)
def rate(answer: Callable[[int, int, float, int], float]) -> None:
    """answer(step, steps, peak, warmup) -> a number; step in 0 ... steps - 1, warmup < steps."""
    for steps, warmup, peak in ((12, 4, 1.0), (30, 1, 2.0), (9, 0, 0.5), (8, 7, 1.0)):
        found: list[float] = []
        for step in reversed(range(steps)):  # each step stands for itself
            value = answer(step, steps, peak, warmup)
            expect(
                _is_number(value),
                "a number is due, the rate of one step, such as 0.002 (is there a return in every "
                "case?)",
            )
            found.insert(0, float(value))
        at = torch.arange(steps, dtype=torch.float64)
        after_start, after_peak = at / max(warmup, 1), (steps - at) / (steps - warmup)
        expected = np.interp(at.numpy(), [-1, warmup, steps], [0.0, 1.0, 0.0])
        rise = ((at + 1) / (warmup + 1)).clamp(max=1)
        last = (steps - 1 - at) / max(steps - 1 - warmup, 1)
        cosine = (1 + torch.cos(math.pi * (1 - after_peak))) / 2
        mistakes = {
            "the first step has the rate 0, and teaches nothing: count from step + 1, so that the "
            "0 lies one step before the first": torch.minimum(after_start, after_peak),
            "off by one: the peak is reached one step too early; from 0 at step -1 to the peak at "
            "step warmup there are warmup + 1 steps": torch.minimum(
                (at + 1) / max(warmup, 1), after_peak
            ).clamp(max=1),
            "the last step has the rate 0, and teaches nothing: the 0 lies at `steps`, one step "
            "after the last": torch.minimum(rise, last),
            "the fall begins at step 0 and not at the peak: divide by steps - warmup": torch.where(
                at < warmup, rise, (steps - at) / steps
            ),
            "the fall begins at step 0 and not at the peak: divide by steps - "
            "warmup ": torch.minimum(rise, (steps - at) / steps),
            "the two factors are multiplied: the lower line counts, min(...)": rise
            * (steps - at)
            / steps,
            "after the warm-up the rate has to fall, down to 0": rise,
            "the warm-up is missing: the rate has to rise first": after_peak.clamp(max=1),
            "the fall is to be a straight line, this is a cosine": torch.where(
                at < warmup, rise, cosine
            ),
            "the rate is not limited by the peak": torch.maximum(rise, after_peak),
        }
        equal(
            torch.tensor(found, dtype=torch.float64),
            torch.from_numpy(peak * expected),
            "the rate should lie on a straight line from 0 at step -1 to the peak at step warmup, "
            "then on one to 0 at step `steps`",
            {words: peak * wrong for words, wrong in mistakes.items()}
            | {"the peak is missing: the shares are right, the rate is peak times that": expected},
            case=f"the {steps} steps from 0 on, warmup = {warmup}, peak = {peak:g}",
            tolerance=1e-6,
        )


# --- 8.2 ------------------------------------------------------------------------------------------


def _small_network(inputs: Inputs, dtype: torch.dtype) -> nn.Module:
    """Parameters of several shapes, also in parts of parts; buffers of whole numbers and others."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.Linear(4, 2)))
    network = network.to(dtype)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(inputs.normal(*tensor.shape, dtype=dtype))
            else:
                tensor.copy_(inputs.whole(high=100))
    return network


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def _same(tensors: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensors[name], before[name]) for name in before)


@lesson.exercise(
    "A moving average of the weights",
    look="the equation of the average below 'The optimizer's part' in the lesson, and the toy "
    "below it, whose decay starts out small",
    in_place=True,
)
def moving_average(answer: Callable[..., None]) -> None:
    """answer(average, model, step, longest=0.999): moves the module ``average``, in place."""
    inputs = Inputs(802)
    for dtype, step, longest in (
        (torch.float32, 1, 0.999),
        (torch.float64, 7, 0.999),
        (torch.float32, 5, 0.3),
        (torch.float64, 100_000, 0.999),
        (torch.float64, 20, 0.9),
    ):
        model, average = _small_network(inputs, dtype), _small_network(inputs, dtype)
        average.requires_grad_(step == 7)  # most averages are frozen, not all
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        weights, buffers = dict(average.named_parameters()), dict(average.named_buffers())
        before, its_buffers = _copies(weights), _copies(buffers)
        model_before, now = _copies(model.state_dict()), _copies(dict(model.named_parameters()))
        arguments = (average, model, step) if longest == 0.999 else (average, model, step, longest)
        _gradients_stay_on(functools.partial(answer, *arguments))

        expect(
            _same(model.state_dict(), model_before),
            "it is the model that was changed; the average follows the model, and never the other "
            "way round",
        )
        weights, buffers = dict(average.named_parameters()), dict(average.named_buffers())
        expect(
            list(weights) == list(before) and list(buffers) == list(its_buffers),
            "the average has lost parameters or buffers: write into those that are there, with "
            "copy_ or lerp_",
        )
        expect(
            not _same(weights, before),
            "the average did not move: a = ... only gives another tensor the name a; write into "
            "the tensor that is there, with a.copy_(...) or a.lerp_(...)",
        )
        old, new = _flat(before).double(), _flat(now).double()
        short = (1 + step) / (10 + step)
        decay = short if short < longest else longest

        def mixed(decay: float, old: Tensor = old, new: Tensor = new) -> Tensor:
            return decay * old + (1 - decay) * new

        mistakes = {
            "decay and 1 - decay are swapped: the average keeps the share d of itself, and takes "
            "1 - d of the weights": mixed(1 - decay),
            "d starts too large: it is the smaller of (1 + step) / (10 + step) and longest, "
            "else the average would long remember the random weights of the "
            "beginning": mixed(longest),
            "d is larger than longest: it is the smaller of (1 + step) / (10 + step) and "
            "longest": mixed(short),
            "step counts the steps that were taken, 1 after the first: neither add nor subtract "
            "one more": mixed(min(longest, (2 + step) / (11 + step))),
            "step counts the steps that were taken, 1 after the first: neither add nor subtract "
            "one more ": mixed(min(longest, step / (9 + step))),
            "the weights were copied: nothing of the average is left": new,
            "the weights are added without their factor 1 - d": decay * old + new,
            "the weights are added, and the average did not shrink by d": old + (1 - decay) * new,
        }
        equal(
            _flat(weights),
            mixed(decay).to(dtype),
            "every parameter of the average is to become d times itself plus 1 - d times the "
            "model's, with d = min(longest, (1 + step) / (10 + step))",
            mistakes,
            case=f"step {step}, longest = {longest:g}",
        )
        expect(
            all(weight.is_leaf and weight.grad_fn is None for weight in weights.values())
            and all(weight.requires_grad <= (step == 7) for weight in weights.values()),
            "gradients are recorded for the average, so that it hangs on all steps before: "
            "work under torch.no_grad()",
        )
        for name, buffer in model.named_buffers():
            found = buffers[name]
            if not torch.equal(found.double(), buffer.double()):
                left = torch.equal(found.double(), its_buffers[name].double())
                raise Wrong(
                    "the buffers are forgotten: what the model holds beside its parameters "
                    "(running means, counters) is copied as it is"
                    if left
                    else "the buffers are averaged or changed: they are not learned, copy them as "
                    "they are (a mean of two counters counts nothing)",
                    f"Tried with:     the buffer {name}\nExpected:       "
                    f"{buffer.flatten()[0].item():.6g}\nFound:          "
                    f"{found.flatten()[0].item():.6g}",
                )
        after = _copies(average.state_dict())
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1)  # the model goes on learning
        expect(
            _same(average.state_dict(), after),
            "the average shares memory with the model: when the model learns on, the average "
            "changes too; copy the values (copy_), not the tensor",
        )
        expect(
            all(w.grad is not None and bool((w.grad == 1).all()) for w in model.parameters()),
            "the gradients of the model were changed: the average has nothing to do with them",
        )
        expect(
            all(part.training for part in model.modules())
            and all(weight.requires_grad for weight in model.parameters()),
            "the model was put in eval mode, or its weights were frozen (requires_grad): it is in "
            "the middle of training",
        )


# --- 8.3 ------------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """What a network was asked."""

    z: Tensor
    t: Tensor
    training: bool
    records: bool


class _Spy(nn.Module):
    """gain z + bias + slope t, a gain for each channel; remembers what it was asked."""

    def __init__(self, batch: int, channels: int, size: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1, channels).reshape(-1, 1, 1) * size)
        self.bias = nn.Parameter(torch.tensor(0.5 * size))
        self.slope = nn.Parameter(torch.tensor(-0.2 * size))
        self.batch = batch
        self.asked: list[_Asked] = []

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        expect(
            isinstance(z, Tensor) and z.ndim == 4 and len(z) == self.batch,
            "the network is called as network(z, t), with noisy images of the shape of x",
        )
        shape = tuple(t.shape) if isinstance(t, Tensor) else ()
        expect(
            shape == (self.batch,),
            "the network wants the time of each image, t of shape (B,): draw one per image, "
            "and give alpha and sigma the dimensions of an image, not t",
            f"Expected shape: ({self.batch},)\nFound shape:    {shape}",
        )
        self.asked.append(_Asked(z.detach(), t.detach(), self.training, torch.is_grad_enabled()))
        return self.gain * z + self.bias + self.slope * t.reshape(-1, 1, 1, 1)

    def weights(self) -> Tensor:
        """All its weights as one vector: gains, bias, slope."""
        return torch.cat([weight.detach().flatten() for weight in self.parameters()]).double()


class _Truth(NamedTuple):
    """What a step should have done, from the noisy images that the network was shown."""

    losses: dict[str, Tensor]  # the loss, and wrong ones, by the target
    gradient: Tensor  # of all weights, as one vector


def _truth(weights: Tensor, x: Tensor, z: Tensor, t: Tensor) -> _Truth:
    """By hand, in float64: the noise from z, the losses, and the gradient of the right one."""
    alpha, sigma = (a.double().reshape(-1, 1, 1, 1) for a in NoiseSchedule().alpha_sigma(t))
    x, z, time = x.double(), z.double(), t.double().reshape(-1, 1, 1, 1)
    eps = (z - alpha * x) / sigma
    out = weights[:-2].reshape(-1, 1, 1) * z + weights[-2] + weights[-1] * time
    targets = {
        "v": alpha * eps - sigma * x,
        "eps": eps,
        "x": x,
        "swapped": alpha * x - sigma * eps,
        "sum": alpha * eps + sigma * x,
        "minus": sigma * x - alpha * eps,
    }
    losses = {name: ((out - target) ** 2).mean() for name, target in targets.items()}
    losses["added"] = ((out - targets["v"]) ** 2).sum()
    losses["per image"] = losses["added"] / len(x)
    losses["absolute"] = (out - targets["v"]).abs().mean()
    losses["half"] = losses["v"] / 2
    losses["not squared"] = (out - targets["v"]).mean()
    losses["squared last"] = losses["not squared"] ** 2
    noises = {  # where z was mixed in another way
        "z swapped": (z - sigma * x) / alpha,
        "z without alpha": (z - x) / sigma,
        "z with sigma squared": (z - alpha * x) / sigma**2,
        "z with 1 - alpha": (z - alpha * x) / (1 - alpha),
        "z with a minus": (alpha * x - z) / sigma,
    }
    for name, noise in noises.items():
        losses[name] = ((out - (alpha * noise - sigma * x)) ** 2).mean()
    losses["all swapped"] = ((out - (sigma * noises["z swapped"] - alpha * x)) ** 2).mean()
    losses["x hat"] = ((alpha * z - sigma * out - x) ** 2).mean()
    losses["eps hat"] = ((sigma * z + alpha * out - eps) ** 2).mean()
    slope = 2 * (out - targets["v"]) / out.numel()  # of the loss over out
    gains = (slope * z).sum((0, 2, 3))  # (C,)
    return _Truth(losses, torch.cat([gains, slope.sum()[None], (slope * time).sum()[None]]))


def _clipped(gradient: Tensor, longest: float) -> Tensor:
    return gradient * min(1.0, longest / (float(gradient.norm()) + 1e-12))


def _distance_to(values: Tensor, distribution: Callable[[Tensor], Tensor]) -> float:
    """Kolmogorov and Smirnov's distance, times the root of the number: above 3 by chance 3e-8."""
    values = values.flatten().double().sort().values
    shares = torch.arange(1, len(values) + 1) / len(values)
    return float((shares - distribution(values)).abs().max()) * math.sqrt(len(values))


def _chance(step: Callable[[_Spy, Tensor, torch.Generator], _Asked]) -> None:
    """Are times uniform, and is the noise standard normal, one for each pixel?"""
    number, shape = 3000, (3000, 2, 2, 2)
    inputs = Inputs(8031)
    x = inputs.whole(*shape, high=2) * 2.0 - 1
    generator = torch.Generator().manual_seed(1)
    first = step(_Spy(number, 2, 0.1), x, generator)
    second = step(_Spy(number, 2, 0.1), x, generator)
    again = step(_Spy(number, 2, 0.1), x, torch.Generator().manual_seed(1))
    t = first.t.double()
    expect(
        len(t.unique()) > number / 2,
        "many images have the same time: draw one for each, any number in [0, 1] (torch.rand)",
    )
    expect(
        torch.equal(first.t, again.t) and torch.equal(first.z, again.z),
        "with a generator of the same seed times and noise should be the same again: draw both "
        "from `generator`",
    )
    expect(
        not torch.equal(first.t, second.t) and not torch.equal(first.z, second.z),
        "two steps had the same times or the same noise: draw afresh in every step, from the "
        "generator as it is, without a seed",
    )
    expect(
        _distance_to(t, lambda values: values) < 3,
        "t is not uniform in [0, 1]: every time is to come as often (torch.rand, not randn)",
        f"Found:          mean {t.mean():.3f}, from {t.min():.3f} to {t.max():.3f}",
    )
    alpha, sigma = (a.double().reshape(-1, 1, 1, 1) for a in NoiseSchedule().alpha_sigma(first.t))
    noises = []
    for asked in (first, second):
        a, s = (part.double() for part in NoiseSchedule().alpha_sigma(asked.t))
        a, s = a.reshape(-1, 1, 1, 1), s.reshape(-1, 1, 1, 1)
        noises.append((asked.z.double() - a * x) / s)
    eps = noises[0]
    swapped = (first.z.double() - sigma * x) / alpha
    middle = (t > 0.05) & (t < 0.95)

    same = "the noise of some pixels, channels, images or steps is the same: draw a number for "
    same += "each entry of x, torch.randn(x.shape, generator=generator)"
    expect(bool((eps[middle].std(0) > 0.05).all()), same)

    def normal(values: Tensor) -> bool:
        return _distance_to(values, lambda v: torch.special.ndtr(v)) < 3

    if not normal(eps[middle]) or not normal(eps[(t > 0.05) & (t < 0.3)]):
        facts = f"Found:          mean {eps[middle].mean():.3f}, standard deviation "
        facts += f"{eps[middle].std():.3f}"
        if normal(swapped[middle]):
            raise Wrong("alpha and sigma are swapped: z = alpha x + sigma eps", facts)
        raise Wrong(
            "z is not alpha x + sigma eps with standard normal eps and the alpha and sigma of its "
            "own t: solved for eps, it has not mean 0 and standard deviation 1 (torch.randn, not "
            "rand; sigma, not sigma^2)",
            facts,
        )
    # Two entries of the same image; the same entry of neighbours, and in two steps; noise and x.
    columns = torch.cat([eps.flatten(1), eps.roll(1, 0).flatten(1), noises[1].flatten(1)], 1)
    columns = torch.cat([columns, x.double().flatten(1)], 1)[middle]
    correlation = torch.corrcoef(columns.T) - torch.eye(columns.shape[1])
    expect(bool((correlation.abs() < 6 / math.sqrt(number)).all()), same)


@lesson.exercise(
    "One training step",
    look="'One training step, in its plainest form' and 'Gradients are clipped' in the lesson; "
    "2006.11239, algorithm 1; 2202.00512, app. D for v",
)
def training_step(answer: Callable[..., float]) -> None:
    """answer(network, optimizer, schedule, x, generator, clip=1.0) -> the loss, a number."""
    inputs = Inputs(803)
    schedule = NoiseSchedule()
    for shape, size, clip in (
        ((5, 3, 4, 6), 4.0, 1.0),
        ((1, 1, 8, 8), 2.0, 0.25),
        ((3, 2, 5, 3), 0.3, 50.0),
        ((8, 1, 2, 2), 0.01, 1.0),
    ):
        network = _Spy(shape[0], shape[1], size)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.5)
        generator = torch.Generator().manual_seed(shape[0])
        moving = left = torch.zeros_like(network.weights())
        for number in (1, 2):
            x = inputs.uniform(*shape, low=-1, high=1)
            before = network.weights()
            network.asked.clear()
            if clip == 1.0:
                loss = answer(network, optimizer, schedule, x, generator)
            else:
                loss = answer(network, optimizer, schedule, x, generator, clip)
            case = f"step {number}, x of shape {shape}, clip = {clip:g}"
            expect(network.asked, "the network was not asked: its output is network(z, t)")
            expect(
                len(network.asked) == 1,
                "the network is asked more than once: one step, one network(z, t)",
            )
            asked = network.asked[0]
            expect(
                asked.z.shape == x.shape and asked.z.dtype == x.dtype,
                "z has to have the shape and the precision of x, which is that of the network",
                f"Expected:       {shape}, {x.dtype}\n"
                f"Found:          {tuple(asked.z.shape)}, {asked.z.dtype}",
            )
            expect(
                asked.training and asked.records,
                "the network is asked in eval mode or without gradients: this is training",
            )
            expect(
                shape[0] == 1 or len(asked.t.unique()) > 1,
                "one time for the whole batch: draw one for each image, t of shape (B,)",
            )
            expect(
                bool(((asked.t >= 0) & (asked.t <= 1)).all()),
                "t is a time in [0, 1]: draw it with torch.rand",
                f"Found:          {asked.t.min():.3g} to {asked.t.max():.3g}",
            )
            expect(
                not torch.equal(asked.z, x),
                "the network is shown the clean image x: it has to see z = alpha x + sigma eps",
            )
            expect(
                not (isinstance(loss, Tensor) and loss.requires_grad),
                "the loss comes back with the graph of the whole step hanging on it; whoever keeps "
                "such losses fills the memory: return loss.item()",
            )
            expect(
                bool(asked.z.isfinite().all()),
                "z is not finite: look at how alpha and sigma come from t",
            )
            truth = _truth(before, x, asked.z, asked.t)
            wrong = {
                "the network is compared with eps: the target is v = alpha eps - sigma x": "eps",
                "the network is compared with x: the target is v = alpha eps - sigma x": "x",
                "alpha and sigma are swapped in the target: v = alpha eps - sigma x": "swapped",
                "the target has a plus: v = alpha eps - sigma x": "sum",
                "the target has the wrong sign: v = alpha eps - sigma x": "minus",
                "the squares are added up: the loss is their mean, over all entries": "added",
                "the squares are added up within an image: the loss is their mean, over all "
                "entries": "per image",
                "the differences are not squared": "absolute",
                "the differences are not squared ": "not squared",
                "the mean is squared: first the square, then the mean": "squared last",
                "alpha and sigma are swapped in z = alpha x + sigma eps": "z swapped",
                "alpha and sigma are swapped: schedule.alpha_sigma(t) gives alpha "
                "first": "all swapped",
                "x lacks its factor: z = alpha x + sigma eps": "z without alpha",
                "the noise has the factor sigma^2: z = alpha x + sigma eps": "z with sigma squared",
                "the noise has the factor 1 - alpha: z = alpha x + sigma eps": "z with 1 - alpha",
                "z has a minus: z = alpha x + sigma eps": "z with a minus",
                "half of it is missing: the plain mean of the squares is due": "half",
                "this is the error of x_hat = alpha z - sigma v_hat: here the loss is the error of "
                "v itself": "x hat",
                "this is the error of eps_hat = sigma z + alpha v_hat: here the loss is the error "
                "of v itself": "eps hat",
            }
            equal(
                _plain(loss),
                float(truth.losses["v"]),
                "the loss is not the plain mean of (network(z, t) - v)^2, with z = alpha x + sigma "
                "eps and v = alpha eps - sigma x of each image's own alpha and sigma: is there a "
                "weight, or is the noise not drawn once and used in both?",
                {words: truth.losses[name] for words, name in wrong.items()},
                case=case,
                tolerance=1e-3,
            )
            gradient = truth.gradient
            parts = [gradient[:-2], gradient[-2:-1], gradient[-1:]]

            def stepped(
                gradient: Tensor, before: Tensor = before, moving: Tensor = moving
            ) -> Tensor:
                return before - 0.05 * (0.5 * moving + gradient)

            right = _clipped(gradient, clip)
            equal(
                network.weights(),
                stepped(right),
                "the weights are not where one step of the optimizer leads, along the clipped "
                "gradient of this step's loss",
                {
                    "the weights did not move: first backward, then optimizer.step(), and no "
                    "zero_grad between the two": before,
                    "the optimizer had no gradient of this step: backward comes before "
                    "optimizer.step(), and zero_grad not between the two": stepped(left),
                    "the gradient of the step before is still there, and this one is added to it: "
                    "optimizer.zero_grad() once in every step": stepped(
                        _clipped(gradient + left, clip)
                    ),
                    "the gradient is not clipped: after backward and before optimizer.step(), "
                    "clip_grad_norm_": stepped(gradient),
                    "the gradient of the step before is still there, and it is not "
                    "clipped": stepped(gradient + left),
                    "each parameter's gradient is clipped by itself: it is the length of all "
                    "together that counts": stepped(
                        torch.cat([_clipped(part, clip) for part in parts])
                    ),
                    "each number of the gradient is clipped: clip the length of the whole "
                    "(clip_grad_norm_), so that its direction stays": stepped(
                        gradient.clamp(-clip, clip)
                    ),
                    "every gradient is brought to the length `clip`; a shorter one is to stay as "
                    "it is": stepped(clip * gradient / gradient.norm()),
                    "`clip` is ignored: the gradient is always clipped to length 1": stepped(
                        _clipped(gradient, 1.0)
                    ),
                    "the step goes uphill": stepped(-right),
                    "the weights are changed without the optimizer: optimizer.step()": before
                    - 0.05 * right,
                },
                case=case,
                tolerance=3e-5,
            )
            moving, left = 0.5 * moving + right, right

    def step(network: _Spy, x: Tensor, generator: torch.Generator) -> _Asked:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        answer(network, optimizer, schedule, x, generator)
        return network.asked[-1]

    _chance(step)


# --- 8.4 ------------------------------------------------------------------------------------------


class _Judged(nn.Module):
    """weight x + offset; three times that when it is in training mode, as dropout might do."""

    offset: Tensor

    def __init__(self, weight: float, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.weight * x + self.offset
        return 3 * out if self.dropout.training else out


class _Losses:
    """losses_of(network, batch, generator) -> (B,); notes whether gradients were recorded."""

    def __init__(self) -> None:
        self.calls = 0
        self.records = False

    def __call__(self, network: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        self.calls += 1
        expect(
            isinstance(generator, torch.Generator),
            "losses_of is called as losses_of(network, batch, generator), with a torch.Generator",
        )
        noise = torch.rand(batch.shape, generator=generator, dtype=torch.float64)
        losses = ((network(batch) - noise) ** 2).flatten(1).mean(1)  # (B, N) -> (B,)
        self.records |= losses.requires_grad
        return losses


def _validation(
    weight: float, offset: float, batches: Sequence[Tensor], seed: int, anew: bool = False
) -> list[Tensor]:
    """The losses by hand, batch by batch; anew: the generator begins anew for each batch."""
    generator, losses = torch.Generator().manual_seed(seed), []
    for batch in batches:
        if anew:
            generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(batch.shape, generator=generator, dtype=torch.float64)
        losses.append(((weight * batch + offset - noise) ** 2).mean(1))
    return losses


@lesson.exercise(
    "Validate with the averaged weights",
    look="below 'Training the whole model' in the lesson: on other images, with the averaged "
    "weights, and always with the same noise",
)
def validation(answer: Callable[..., float]) -> None:
    """answer(network, average, batches, losses_of, seed) -> the mean loss of an image."""
    inputs = Inputs(804)
    for sizes, seed, training in (((4, 4, 1), 3, True), ((2, 5), 8, False), ((3,), 0, True)):
        batches = [inputs.uniform(size, 3, dtype=torch.float64) * (i + 1)
                   for i, size in enumerate(sizes)]  # fmt: skip
        network = _Judged(1.5, 0.25).train(training)
        network.weight.grad = torch.ones((), dtype=torch.float64)
        average = {name: tensor.detach().clone() for name, tensor in
                   _Judged(0.5, -0.5).state_dict().items()}  # fmt: skip
        kept, parameter = _copies(average), network.weight
        before, losses_of = _copies(network.state_dict()), _Losses()
        chance = torch.get_rng_state()
        found = _gradients_stay_on(
            functools.partial(answer, network, average, batches, losses_of, seed)
        )
        case = f"batches of {', '.join(map(str, sizes))} images, seed {seed}"
        expect(losses_of.calls, "losses_of was not asked: it gives the losses of a batch, (B,)")
        losses = _validation(0.5, -0.5, batches, seed)
        every = torch.cat(losses)
        own = torch.cat(_validation(1.5, 0.25, batches, seed))
        equal(
            _plain(found.detach() if isinstance(found, Tensor) else found),
            float(every.mean()),
            "the result is not the mean of the losses of all images, with the averaged weights, "
            "in eval mode, with noise from one generator of that seed",
            {
                "the network's own weights were judged, not the averaged ones: "
                "load_state_dict(average)": own.mean(),
                "the network is in training mode: call eval() before, else dropout judges "
                "too": torch.cat(_validation(1.5, -1.5, batches, seed)).mean(),
                "the network is in training mode, and has its own weights: eval(), and "
                "load_state_dict(average)": torch.cat(_validation(4.5, 0.75, batches, seed)).mean(),
                "this is the mean of the batches' means: then each image of a small last batch "
                "counts more than the others; add up the losses and divide by the number of "
                "images": torch.stack([part.mean() for part in losses]).mean(),
                "this is the sum of the losses: divide by the number of images": every.sum(),
                "the sum is divided by the number of batches, not by that of images": every.sum()
                / len(losses),
                "not all batches are as large as the first: count the images of each": every.sum()
                / (len(losses) * len(losses[0])),
                "only the last batch counts": losses[-1].mean(),
                "the last batch is left out: its few images count too": torch.cat(
                    losses[:-1] or losses
                ).mean(),
                "only the first batch counts": losses[0].mean(),
                "the generator begins anew for each batch, so that all batches have the same "
                "noise: make one generator, before the loop": torch.cat(
                    _validation(0.5, -0.5, batches, seed, anew=True)
                ).mean(),
                "the seed is ignored: torch.Generator().manual_seed(seed)": torch.cat(
                    _validation(0.5, -0.5, batches, 0)
                ).mean(),
                "the seed is ignored: torch.Generator().manual_seed(seed) ": torch.cat(
                    _validation(0.5, -0.5, batches, torch.Generator().initial_seed())
                ).mean(),
            },
            case=case,
        )
        expect(
            not losses_of.records,
            "gradients are recorded, which costs time and memory, though nothing is learned here: "
            "with torch.no_grad()",
        )
        expect(
            _same(average, kept),
            "the averaged weights were changed: they may be read only",
        )
        expect(
            network.weight is parameter and isinstance(network.weight, nn.Parameter),
            "the network's parameters were replaced by other tensors, so that the optimizer holds "
            "tensors that nobody uses: write into them (load_state_dict without assign)",
        )
        expect(
            _same(network.state_dict(), before),
            "the network does not have its own weights back. state_dict() gives no copy, but the "
            "weights themselves, which load_state_dict writes over: copy.deepcopy it before (or "
            "deepcopy the network, and judge the copy)",
            f"Tried with:     {case}",
        )
        with torch.no_grad():
            network.weight.add_(1)  # the network learns on
        expect(
            _same(average, kept),
            "the averaged weights share memory with the network: when it learns on, they change",
        )
        expect(
            all(part.training == training for part in network.modules()),
            "the network should be left in the mode that it was in: train() after a validation in "
            "the middle of training, eval() if it was in eval mode before",
            f"Expected:       {'train' if training else 'eval'} mode\n"
            f"Found:          {'train' if network.training else 'eval'} mode",
        )
        expect(
            network.weight.requires_grad
            and network.weight.grad is not None
            and bool(network.weight.grad == 1),
            "the network's gradients were changed, or its weights frozen (requires_grad): a "
            "validation leaves no trace",
        )
        expect(
            torch.equal(torch.get_rng_state(), chance),
            "torch's own random numbers were drawn or seeded anew: training would go on with other "
            "noise; make a torch.Generator()",
        )


# --- 8.5 ------------------------------------------------------------------------------------------

Said = Mapping[str, object]


def _shares(
    captions: Sequence[Said], readings: Sequence[Said], agrees: Callable[[str, Said, Said], Any]
) -> dict[str, float]:
    """The share of each attribute; agrees: right (True), wrong (False), does not count (None)."""
    shares = {}
    for name in sorted({name for caption in captions for name in caption}):
        pairs = zip(captions, readings, strict=True)
        verdicts = [agrees(name, caption, reading) for caption, reading in pairs]
        counted = [verdict for verdict in verdicts if verdict is not None]
        shares[name] = sum(counted) / len(counted)
    return shares


def _right_if_said(name: str, caption: Said, reading: Said) -> bool | None:
    return caption[name] == reading[name] if name in caption else None


def _missing_is_wrong(name: str, caption: Said, reading: Said) -> bool:
    return name in caption and caption[name] == reading[name]


def _missing_is_right(name: str, caption: Said, reading: Said) -> bool:
    return name not in caption or caption[name] == reading[name]


def _missing_as_none(name: str, caption: Said, reading: Said) -> bool:
    return caption.get(name) == reading[name]


def _unread_does_not_count(name: str, caption: Said, reading: Said) -> bool | None:
    return None if reading[name] is None else _right_if_said(name, caption, reading)


def _scenes(inputs: Inputs, number: int) -> tuple[list[Said], list[Said]]:
    """Captions that leave things open, and readings that are mostly right; 'mood' is never said."""
    attributes: dict[str, Sequence[object]] = {
        "count": (1, 2),
        "colour": ("red", "green", "blue"),
        "shape": ("circle", "star"),
        "size": ("small", "large"),
        "background": ("white", "grey", "black"),
        "texture": ("plain", "striped"),
        "mood": ("merry", "grave"),
    }
    captions: list[Said] = []
    readings: list[Said] = []
    for _ in range(number):
        caption, reading = {}, {}
        for name, values in attributes.items():
            value = values[int(inputs.whole(high=len(values)))]
            said, right, unread = (float(inputs.uniform()) for _ in range(3))
            if name in ("count", "colour") or (name != "mood" and said < 0.5):
                caption[name] = value
            other = values[int(inputs.whole(high=len(values)))]
            reading[name] = value if right < 0.8 else None if unread < 0.5 else other
        captions.append(caption)
        readings.append(reading)
    return captions, readings


@lesson.exercise(
    "Do the images show what is said?",
    look="'Do the images show what the captions say?' in the lesson: everything that a caption "
    "says must be right; what it leaves open does not count",
)
def fidelity(answer: Callable[[list[Said], list[Said]], dict[str, float]]) -> None:
    """answer(captions, readings) -> {"exact match": share, and one for each attribute said}."""
    inputs = Inputs(805)
    for number in (40, 9, 2, 1, 25):
        captions, readings = _scenes(inputs, number)
        if number == 2:  # only these two attributes are said, and one of them never shown
            captions = [{"count": 1, "shape": "star"}, {"count": 2}]
            readings = [{"count": 1, "shape": None, "size": "small"}, {"count": 2, "shape": "star",
                                                                       "size": None}]  # fmt: skip
        given = copy.deepcopy((captions, readings))
        found = answer(captions, readings)
        case = f"{number} captions and readings"
        expect(
            (captions, readings) == given,
            "your function changed the captions or readings that it was given",
        )
        expect(
            isinstance(found, dict) and "exact match" in found,
            'a dictionary with the key "exact match" is due, such as {"exact match": 0.5, '
            '"colour": 1.0}',
        )
        found = {name: _plain(share) for name, share in found.items() if share is not None}
        shares = _shares(captions, readings, _right_if_said)
        verdicts = [
            [caption[name] == reading[name] for name in caption]
            for caption, reading in zip(captions, readings, strict=True)
        ]
        exact = sum(all(row) for row in verdicts) / number
        pairs = list(zip(captions, readings, strict=True))
        unread_is_open = [
            all(reading[name] in (caption[name], None) for name in caption)
            for caption, reading in pairs
        ]
        equal(
            found["exact match"],
            exact,
            "the exact match is the share of images that have everything right that their own "
            "caption says",
            {
                "the exact match is a mean of the attributes' shares: an image with one thing "
                "wrong is no half match, all(...) must be right": sum(shares.values())
                / len(shares),
                "the exact match is a mean over single attributes: an image with one thing wrong "
                "is no match, all(...) must be right": sum(map(sum, verdicts))
                / sum(map(len, verdicts)),
                "the exact match is a mean of the shares within each image: one thing wrong, and "
                "it is no match": sum(sum(row) / len(row) for row in verdicts) / number,
                "the shares of the attributes were multiplied, as if mistakes were independent: "
                "look at each image instead": math.prod(shares.values()),
                "the exact match is the worst attribute's share: look at each image instead": min(
                    shares.values()
                ),
                "what the caption leaves open counts as wrong: only what it says is to be "
                "judged": sum(
                    all(_missing_as_none(name, *pair) for name in pair[1]) for pair in pairs
                )
                / number,
                "any one thing that is right makes a match: all of them must be": sum(
                    map(any, verdicts)
                )
                / number,
                "this counts the images: divide by how many there are": exact * number,
                "a share is due, from 0 to 1, not a percentage": exact * 100,
                "an attribute that could not be read (None) counts as right: the caption speaks of "
                "it, so it is wrong": sum(unread_is_open) / number,
            },
            case=case,
        )
        missing = sorted(set(shares) - set(found))
        expect(not missing, f"the share of an attribute is missing: {', '.join(missing)}")
        more = sorted(set(found) - set(shares) - {"exact match"}, key=str)
        expect(
            not more,
            f"there is a share of what no caption speaks of: {', '.join(map(str, more))}; nothing "
            "can be said about it, leave it out",
        )
        wrong = {
            "what a caption leaves open counts as wrong: an attribute's share is over those "
            "captions that speak of it": _missing_is_wrong,
            "what a caption leaves open counts as right: an attribute's share is over those "
            "captions that speak of it": _missing_is_right,
            "a caption that leaves an attribute open and a reading of None agree, says this; but "
            "such a caption does not count": _missing_as_none,
            "an attribute that could not be read (None) is left out: the caption speaks of it, so "
            "it is wrong": _unread_does_not_count,
        }
        seen = {name for name in shares if any(r[name] is not None for r in readings)}
        mistaken = {
            words: _shares(captions, readings, agrees)
            for words, agrees in wrong.items()
            if agrees is not _unread_does_not_count or (number > 2 and seen == set(shares))
        }
        for name, share in shares.items():
            equal(
                found[name],
                share,
                f"the share of {name!r} is that of the captions which speak of it whose image "
                "has it right",
                {words: of[name] for words, of in mistaken.items()}
                | {
                    "this counts the images: divide by how many captions speak of it": share
                    * sum(name in caption for caption in captions)
                },
                case=f"{case}, attribute {name!r}",
            )


# --- 8.6 ------------------------------------------------------------------------------------------

EQUAL = ((30, 0.5), (60, 0.9), (100, 0.95), (400, 0.7))  # images of each setting, share right
UNEQUAL = (
    (30, (0.9, 0.9, 0.15, 0.9)),
    (200, (0.95, 0.7, 0.95, 0.95, 0.75, 0.95)),
    (2000, (0.95, 0.95, 0.95, 0.95, 0.95, 0.9)),
)


def _counts(inputs: Inputs, number: int, shares: Sequence[float]) -> list[int]:
    """How many of ``number`` images are right, for each setting."""
    return [int((inputs.uniform(number) < share).sum()) for share in shares]


def _accused(answer: Callable[..., Any], right: list[int], drawn: list[int]) -> list[bool]:
    """What an answer says, as a list of truth values."""
    given = list(right), list(drawn)
    said = answer(right, drawn)
    expect((right, drawn) == given, "your function changed the lists that it was given")
    if isinstance(said, (Tensor, np.ndarray)):
        said = said.tolist()
    expect(
        isinstance(said, (list, tuple))
        and len(said) == len(right)
        and all(isinstance(one, (bool, np.bool_)) or _is_truth(one) for one in said),
        "a list is due, with one True (worse than the best) or False for each setting",
    )
    return [bool(one) for one in said]


def _is_truth(value: object) -> bool:
    """A truth value that torch or a sum made."""
    return _is_number(value) and float(value) in (0.0, 1.0)  # type: ignore[arg-type]


@lesson.exercise(
    "Design: which settings are really worse?",
    look="a share p of n images is uncertain by about sqrt(p (1 - p) / n); and of six equal "
    "settings, the luckiest is the 'best'",
)
def worse(answer: Callable[[list[int], list[int]], Sequence[bool]]) -> None:
    """answer(right, drawn) -> for each setting, whether it is significantly worse than the best."""
    for right, drawn, due, idea in (
        ([190, 100], [200, 200], [False, True],
         "half of 200 images is clearly worse than 190 of 200"),
        ([190, 186], [200, 200], [False, False],
         "186 of 200 is not clearly worse than 190 of 200: such a gap comes about by chance"),
        ([190, 100, 186, 60], [200] * 4, [False, True, False, True],
         "two of these four are clearly worse than the best, the first: 100 and 60 of 200"),
        ([60, 186, 100, 190], [200] * 4, [True, False, True, False],
         "two of these four are clearly worse than the best, the last: does the order matter?"),
        ([160] * 5 + [198], [200] * 6, [True] * 5 + [False],
         "160 of 200 is clearly worse than 198, the best, also when most are no better: compare "
         "with the best, not with the mean or the rest, and ask for no larger gap than is needed"),
        ([95, 380], [100, 400], [False, False],
         "compare shares and not counts: 95 of 100 and 380 of 400 are the same"),
        ([95, 100], [100, 200], [False, True],
         "100 of 200 is clearly worse than 95 of 100: the best has the highest share, not the "
         "highest count"),
        ([3, 880], [3, 1000], [False, False],
         "3 of 3 is the highest share, but three images prove little: both shares are uncertain, "
         "and a share of 1 too, though p (1 - p) is 0 there"),
        ([900, 3], [1000, 4], [False, False],
         "3 of 4 is less than 90 %, but four images prove little: both shares are uncertain"),
        ([8, 700], [9, 1000], [False, False],
         "700 of 1000 is less than 8 of 9, but nine images prove little: both shares are "
         "uncertain, each by its own number of images"),
        ([50, 50, 50], [50, 50, 50], [False] * 3,
         "all right in every setting: none is worse (does something divide by 0?)"),
        ([0, 0, 0], [50, 50, 50], [False] * 3,
         "nothing right in any setting: none is worse (does something divide by 0?)"),
        ([0, 50], [50, 50], [True, False],
         "nothing right is clearly worse than everything right (does something divide by 0?)"),
        ([50, 49, 50], [50, 50, 50], [False] * 3,
         "49 of 50 is not clearly worse than 50 of 50: that all 50 came out right does not make "
         "the share certain"),
        ([7], [10], [False], "a single setting is the best, and not worse than itself"),
    ):  # fmt: skip
        said = _accused(answer, right, drawn)
        facts = f"Tried with:     right = {right}, drawn = {drawn}\nExpected:       {due}\n"
        expect(said == due, idea, facts + f"Found:          {said}")
    doubtful = [190, *range(140, 188)], [200] * 49
    expect(
        all(_accused(answer, *doubtful) == _accused(answer, *doubtful) for _ in range(3)),
        "the same counts give another answer the second time: seed what you draw",
    )

    inputs, times, accused = Inputs(806), 50, 0
    for number, share in EQUAL:
        for _ in range(times):
            accused += any(_accused(answer, _counts(inputs, number, [share] * 6), [number] * 6))
    rate = accused / (times * len(EQUAL))
    expect(
        rate <= 0.2,
        "too many false accusations: where six settings are equally good, the best of them is so "
        "by luck, and five comparisons with it are five chances of a mistake. Ask for more than "
        "two standard deviations (0.05 / 5 for each comparison), and for a larger gap where few "
        "images were drawn",
        f"Expected:       in about 10 % of the experiments, at most 20 %\n"
        f"Found:          in {100 * rate:.0f} % of {times * len(EQUAL)}",
    )
    for number, shares in UNEQUAL:
        best = max(shares)
        found = wrong = 0
        for _ in range(20):
            said = _accused(answer, _counts(inputs, number, shares), [number] * len(shares))
            found += sum(said[i] for i, share in enumerate(shares) if share < best)
            wrong += any(said[i] for i, share in enumerate(shares) if share == best)
        power = found / (20 * sum(share < best for share in shares))
        facts = f"Tried with:     {number} images each, true shares {list(shares)}\n"
        expect(
            power >= 0.8,
            "a difference that is there is not found: with more images a smaller gap is enough, "
            "it shrinks like 1 / sqrt(n)",
            f"{facts}Expected:       the worse ones are named in at least 80 % of the experiments\n"
            f"Found:          in {100 * power:.0f} %",
        )
        expect(
            wrong <= 8,
            "settings that are as good as the best are named as worse, because others are",
            facts + f"Found:          in {wrong} of 20 experiments",
        )
