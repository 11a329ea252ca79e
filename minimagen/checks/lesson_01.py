"""Checks of the exercises of lesson 01, forward diffusion.

Each has the same parts: inputs of several shapes and precisions (``Inputs``); what is right,
computed in another way than a learner would; and what known mistakes give, with the words for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minimagen.checks.exercise import Inputs, Lesson, equal, expect, pair_of

lesson = Lesson(1)
progress = lesson.progress

PRECISIONS = (torch.float32, torch.float64)


# --- 1.1 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "Noise a batch of images",
    look="z = alpha x + sigma eps with alpha^2 + sigma^2 = 1, section 2 of the lesson",
)
def noising(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """answer(x, eps, alpha) -> z; x and eps (B, C, H, W), alpha (B,) in [0, 1]."""
    inputs = Inputs(101)
    for dtype in PRECISIONS:
        # in the first shape, alpha fits every axis: whoever takes the wrong one gets no error
        for shape in ((3, 3, 3, 3), (2, 3, 5, 8), (4, 1, 4, 4), (1, 3, 6, 2)):
            x, eps = inputs.normal(*shape, dtype=dtype), inputs.normal(*shape, dtype=dtype)
            alpha = inputs.uniform(shape[0], low=0.1, high=0.9, dtype=dtype)
            equal(
                answer(x, eps, alpha),
                _mix(x, eps, alpha, lambda a, s: (a, s)),
                "each image is to be turned down by its own alpha, and its noise, the eps that "
                "was given, to sigma = sqrt(1 - alpha^2)",
                _other_mixtures(x, eps, alpha),
                case=f"{shape[0]} images of shape {shape[1:]}, an alpha for each",
            )
        x, eps = inputs.normal(3, 3, 5, 8, dtype=dtype), inputs.normal(3, 3, 5, 8, dtype=dtype)
        equal(
            answer(x, eps, torch.tensor([0, 0.6, 1], dtype=dtype)),
            torch.stack([eps[0], 0.6 * x[1] + 0.8 * eps[1], x[2]]),
            "with alpha = 0 z is the noise itself, and with alpha = 1 the image itself",
            case="alpha = 0, 0.6, 1",
        )


def _mix(
    x: Tensor, eps: Tensor, alpha: Tensor, factors: Callable[[float, float], tuple[float, float]]
) -> Tensor:
    """One image after the other; factors(alpha, sigma): of the image and of the noise."""
    rows = []
    for image, its_noise, a in zip(x, eps, alpha.double().tolist(), strict=True):
        signal, noise = factors(a, math.sqrt(1 - a * a))
        rows.append(signal * image + noise * its_noise)
    return torch.stack(rows)


def _other_mixtures(x: Tensor, eps: Tensor, alpha: Tensor) -> dict[str, Tensor]:
    def mix(factors: Callable[[float, float], tuple[float, float]]) -> Tensor:
        return _mix(x, eps, alpha, factors)

    others = {
        "the noise is multiplied by sigma^2 = 1 - alpha^2: that is its variance; take the square "
        "root": mix(lambda a, s: (a, s * s)),
        "the noise is multiplied by 1 - alpha: then alpha + sigma is 1, but it is their squares "
        "that add up to 1": mix(lambda a, s: (a, 1 - a)),
        "alpha was taken as alpha^2: the image is multiplied by sqrt(alpha) and the noise by "
        "sqrt(1 - alpha), as with DDPM's alpha-bar": mix(
            lambda a, s: (math.sqrt(a), math.sqrt(1 - a))
        ),
        "the noise is multiplied by sqrt(1 - alpha); sigma is sqrt(1 - alpha^2)": mix(
            lambda a, s: (a, math.sqrt(1 - a))
        ),
        "the two are swapped: alpha belongs to the image, sigma to the noise": mix(
            lambda a, s: (s, a)
        ),
        "the image is not turned down: alpha is missing": mix(lambda a, s: (1, s)),
        "the noise is as loud as ever: sigma is missing": mix(lambda a, s: (a, 1)),
        "the noise is taken off; it is to be added": mix(lambda a, s: (a, -s)),
        "one alpha was taken for all images; each has its own": _mix(
            x, eps, alpha[:1].expand_as(alpha), lambda a, s: (a, s)
        ),
        "one alpha was taken for all images, the mean; each has its own": _mix(
            x, eps, alpha.mean().expand_as(alpha), lambda a, s: (a, s)
        ),
    }
    for axis, name in ((1, "colours"), (2, "rows"), (3, "columns")):
        if x.shape[axis] == len(alpha):
            turned = x.transpose(0, axis), eps.transpose(0, axis)
            others[
                f"alpha went along the {name} of the images, not along the batch: torch aligns "
                "shapes from the right"
            ] = _mix(*turned, alpha, lambda a, s: (a, s)).transpose(0, axis)
    return others


# --- 1.2 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "The cosine schedule",
    look="2102.09672, eq. 17: f(t) = cos^2((t + s) / (1 + s) * pi / 2), alpha_t^2 = f(t) / f(0)",
)
def cosine(answer: Callable[..., Tensor]) -> None:
    """answer(t, s=0.008) -> alpha_t^2; t in [0, 1], any shape."""
    inputs = Inputs(102)
    for dtype in PRECISIONS:
        for shape in ((7,), (2, 3), ()):
            t = inputs.uniform(*shape, low=0.1, high=0.9, dtype=dtype)
            for s in (0.008, 0.1):
                equal(
                    answer(t) if s == 0.008 else answer(t, s),
                    _share(t, s).to(dtype),
                    "alpha^2 is f(t) / f(0), where f is a squared cosine",
                    _other_shares(t.double(), s),
                    case=f"t of shape {shape}, s = {s}",
                )
        equal(
            answer(torch.tensor([0, 1], dtype=dtype)),
            torch.tensor([1, 0], dtype=dtype),
            "alpha^2 has to be 1 at t = 0 and 0 at t = 1",
            case="t = 0 and t = 1",
        )


def _ratio(angle: Tensor, angle_at_0: float) -> Tensor:
    """A quotient of two squared cosines, by the half angle."""
    return (1 + torch.cos(2 * angle)) / (1 + math.cos(2 * angle_at_0))


def _share(t: Tensor, s: float) -> Tensor:
    """alpha_t^2 in float64."""
    return _ratio((t.double() + s) / (1 + s) * math.pi / 2, s / (1 + s) * math.pi / 2)


def _other_shares(t: Tensor, s: float) -> dict[str, Tensor]:
    angle, angle_at_0 = (t + s) / (1 + s) * math.pi / 2, s / (1 + s) * math.pi / 2
    right, f = _ratio(angle, angle_at_0), _ratio(angle, 0)
    others = {
        "this is alpha, not alpha^2: square it (or do not take the root)": right.sqrt(),
        "the division by f(0) is missing, so alpha is not 1 at t = 0": f,
        "f(t) is squared, f(0) is not": right * math.cos(angle_at_0),
        "f(0) is squared, f(t) is not": right.sqrt() / math.cos(angle_at_0),
        "f(0) is f at time 0, not the first entry of f(t)": f / f.flatten()[0],
        "f(0) is f at time 0, not the largest entry of f(t)": f / f.max(),
        "the offset s is ignored (or is not added to t)": _ratio(t * math.pi / 2, 0),
        "1 + s is missing below t + s, so alpha does not reach 0 at t = 1": _ratio(
            (t + s) * math.pi / 2, s * math.pi / 2
        ),
        "pi / 2 is missing": _ratio((t + s) / (1 + s), s / (1 + s)),
        "pi where pi / 2 belongs: the angle is to go to a quarter of a turn": _ratio(
            2 * angle, 2 * angle_at_0
        ),
        "the brackets are not where they belong: (t + s) / (1 + s), and all of it times pi / 2": (
            _ratio(t + angle_at_0, angle_at_0)
        ),
        "this is sigma^2, the share of the noise": 1 - right,
    }
    if s != 0.008:
        others["another s than 0.008 was given, and it was not used"] = _share(t, 0.008)
        others["another s than 0.008 was given, and f(0) does not use it"] = _ratio(
            angle, 0.008 / 1.008 * math.pi / 2
        )
    return others


# --- 1.3 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "From log-SNR to alpha and sigma",
    look="SNR = alpha^2 / sigma^2 and alpha^2 + sigma^2 = 1 give alpha^2 = sigmoid(log SNR); "
    "section 6 of the lesson",
)
def alpha_sigma(answer: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """answer(log_snr) -> (alpha, sigma); any shape, accurate in float32 from -20 to 20."""
    inputs = Inputs(103)
    for dtype in PRECISIONS:
        for log_snr in (
            inputs.uniform(9, low=-3, high=3, dtype=dtype),
            inputs.uniform(2, 1, 3, low=-3, high=3, dtype=dtype),
            torch.linspace(-20, 20, 9, dtype=dtype),
            torch.tensor(20, dtype=dtype),
        ):
            pair = pair_of(answer(log_snr), "two tensors are due: return alpha, sigma")
            names = "alpha", "sigma"
            for name, other, found, sign in zip(names, names[::-1], pair, (1, -1), strict=True):
                exact = (1 + torch.exp(-sign * log_snr.double())).rsqrt()
                equal(
                    found,
                    exact.to(dtype),
                    f"{name} does not follow from the two equations",
                    _other_levels(name, sign * log_snr.double()),
                    case=f"{name}; log_snr of shape {tuple(log_snr.shape)}",
                    tolerance=2e-3 if dtype == torch.float32 else None,
                )
                # relative to itself, for it may be small
                error = (found.detach().double() / exact - 1).abs().flatten()
                worst = int(error.argmax())
                expect(
                    error[worst] < 1e-4,
                    f"{name} loses its digits where it is small, or is kept from becoming small: "
                    f"a difference of two numbers near 1, such as 1 - {other}^2, is nearly all "
                    "rounding error. Compute each of the two by a sigmoid of its own",
                    f"Tried with:     log_snr = {log_snr.flatten()[worst]:g}, {dtype}\n"
                    f"Expected:       {name} = {exact.flatten()[worst]:.6g}\n"
                    f"Found:          {found.flatten()[worst]:.6g}",
                )


def _other_levels(name: str, log_ratio: Tensor) -> dict[str, Tensor]:
    """log_ratio: log(alpha^2 / sigma^2) for alpha, log(sigma^2 / alpha^2) for sigma."""

    def root(x: Tensor) -> Tensor:
        return torch.sigmoid(x).sqrt()

    swapped = "alpha and sigma are swapped (a large SNR is a clear image)"
    if name == "sigma":
        swapped = "this is alpha once more: sigma^2 is the sigmoid of -log_snr"
    return {
        f"{name} is the square root of a sigmoid: this is {name}^2": torch.sigmoid(log_ratio),
        swapped: root(-log_ratio),
        "the squares of alpha and sigma add up to 1, not they themselves": 1 - root(-log_ratio),
        "log_snr is the logarithm of alpha^2 / sigma^2, the ratio of the squares; here it was read "
        "as log(alpha / sigma)": root(2 * log_ratio),
        "the root of sigmoid(log_snr) is not sigmoid(log_snr / 2)": torch.sigmoid(log_ratio / 2),
        "log_snr was read as a logarithm to the base 10: it is the natural one": root(
            math.log(10) * log_ratio
        ),
        "log_snr was read as a logarithm to the base 2: it is the natural one": root(
            math.log(2) * log_ratio
        ),
    }


# --- 1.4 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "A thousand steps in one",
    look="2006.11239, eq. 4: alpha-bar_i is the product of (1 - beta_j) over the first i steps; "
    "section 4 of the lesson",
)
def many_steps(answer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """answer(betas, i) -> (signal, noise): z_i = signal x + noise eps; i in 0 ... T, any shape."""
    inputs = Inputs(104)
    for dtype in PRECISIONS:
        ddpm = torch.linspace(1e-4, 0.02, 1000, dtype=dtype)
        for betas in (inputs.uniform(7, low=0.01, high=0.3, dtype=dtype), ddpm):
            steps, right = len(betas), _chain(betas)
            # first without i = 0 and i = T: who is off by one is told so, and gets no IndexError
            for i in (
                torch.arange(1, steps),
                torch.zeros(2, dtype=torch.int64),
                torch.arange(steps + 1),
                inputs.whole(2, 3, high=steps + 1),
                torch.tensor(steps),
            ):
                pair = pair_of(
                    answer(betas, i),
                    "two tensors are due, the factors of x and of eps: return signal, noise",
                )
                idea, others = "i steps of the chain, taken one by one, do not lead there", {}
                if i.any():
                    others = _other_factors(betas, i)
                else:
                    idea = "after no step at all, i = 0, signal is 1 and noise 0: the product of "
                    idea += "nothing is 1 (and the index -1 is that of the last entry)"
                for at, name in enumerate(("signal", "noise")):
                    equal(
                        pair[at],
                        right[at][i].to(dtype),
                        idea,
                        {words: both[at] for words, both in others.items()},
                        case=f"{name}; {steps} steps, i of shape {tuple(i.shape)}",
                    )


def _chain(betas: Tensor) -> tuple[Tensor, Tensor]:
    """(signal, noise) after 0, 1, ..., T steps: the chain, one step after the other."""
    signals, variances = [1.0], [0.0]
    for beta in betas.double().tolist():
        signals.append(math.sqrt(1 - beta) * signals[-1])
        variances.append((1 - beta) * variances[-1] + beta)
    signal, variance = torch.tensor([signals, variances], dtype=torch.float64)
    return signal, variance.sqrt()


def _other_factors(betas: Tensor, i: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """For each mistake what becomes of signal and noise."""
    signal, noise = _chain(betas)
    beta = torch.cat([torch.zeros(1, dtype=torch.float64), betas.double()])
    later, earlier = (i + 1).clamp(max=len(betas)), (i - 1).clamp(min=0)
    added = beta.cumsum(0)
    multiplied = torch.cat([torch.ones(1), betas]).double().cumprod(0)
    wrong_bars = {
        "the betas are added up; but each step shrinks what is left, so (1 - beta) are "
        "multiplied": (1 - added).clamp(min=0),
        "exp(-sum of betas) is near the product of the (1 - beta), but not equal to it": (
            (-added).exp()
        ),
        "the betas are multiplied; but what a step keeps is 1 - beta": multiplied,
        "this is what the last step alone does: beta_i where alpha-bar_i, the product over all "
        "steps so far, belongs": 1 - beta,
    }
    return {
        "this is alpha-bar, or 1 - alpha-bar: x and eps are multiplied by their square roots": (
            signal[i] ** 2,
            noise[i] ** 2,
        ),
        "off by one step, one too many: after i steps the first i betas count": (
            signal[later],
            noise[later],
        ),
        "off by one step, one too few: after i steps the first i betas count": (
            signal[earlier],
            noise[earlier],
        ),
        "the factors of x and of eps are swapped": (noise[i], signal[i]),
        "the squares of signal and noise add up to 1, not they themselves": (
            1 - noise[i],
            1 - signal[i],
        ),
        "the noise of each step is added up; but the later steps turn it down as well": (
            signal[i],
            added[i].sqrt(),
        ),
    } | {words: (bar[i].sqrt(), (1 - bar[i]).sqrt()) for words, bar in wrong_bars.items()}


# --- 1.5 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "A larger image needs more noise",
    look="2301.11093, sec. 3.1: the mean over k x k pixels has its noise divided by k, so alpha / "
    "sigma is to shrink by k, and log(alpha^2 / sigma^2) by 2 log k; section 8 of the lesson",
)
def shifting(answer: Callable[..., Tensor]) -> None:
    """answer(log_snr, side, reference) -> the log-SNR for images of that side."""
    inputs = Inputs(105)
    afar = "seen from afar, both images should show equally much: alpha / sigma is to be divided "
    afar += "by side / reference"
    large = "where log_snr is large, digits get lost, or a bound cuts it off: add to it, and do "
    large += "nothing else"
    for dtype in PRECISIONS:
        for side, reference in ((64, 16), (24, 16), (16, 64), (256, 64), (64, 64)):
            for shape, size, idea in (((3, 2), 6, afar), ((7,), 20, large), ((), 6, afar)):
                log_snr = inputs.uniform(*shape, low=-size, high=size, dtype=dtype)
                # by the definition: alpha / sigma, divided by k
                ratio = (log_snr.double() / 2).exp() / (side / reference)
                equal(
                    answer(log_snr, side, reference),
                    (2 * ratio.log()).to(dtype),
                    idea,
                    _other_shifts(log_snr.double(), side, reference),
                    case=f"side {side}, reference {reference}, log_snr of shape {shape} between "
                    f"-{size} and {size}",
                )


def _other_shifts(log_snr: Tensor, side: int, reference: int) -> dict[str, Tensor]:
    k = side / reference
    others = {
        "the wrong way round: a larger image survives more noise, so it needs MORE of it, a "
        "smaller log-SNR (and a smaller image a larger one)": log_snr + 2 * math.log(k),
        "the factor 2 is missing: log_snr is the logarithm of squares": log_snr - math.log(k),
        "4 log k is too much: the noise of a mean over k^2 pixels falls by k, not by k^2": log_snr
        - 4 * math.log(k),
        "a factor on alpha / sigma becomes a summand of its logarithm; it does not divide "
        "log_snr": log_snr / k,
        "a factor on alpha^2 / sigma^2 becomes a summand of its logarithm; it does not divide "
        "log_snr": log_snr / k**2,
        "log k^2 is to be taken off, not k^2 itself": log_snr - k**2,
        "log_snr is the natural logarithm; this shift is in base 2": log_snr - 2 * math.log2(k),
        "log_snr is the natural logarithm; this shift is in base 10": log_snr - 2 * math.log10(k),
        "this is the shift from 16 to 64; side and reference are given": log_snr - math.log(16),
    }
    if side > reference:
        others["side / reference was rounded down: divide by / and not by //"] = (
            log_snr - 2 * math.log(side // reference)
        )
    others["the side length has no effect; a larger image needs more noise than the reference, a "
           "smaller one less"] = log_snr  # fmt: skip
    return others


# --- 1.6 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "Design: a schedule of your own",
    look="section 6 of the lesson; draw log_snr over t: where it is flat, time is spent",
)
def schedule(answer: Callable[[Tensor], Tensor]) -> None:
    """answer(t) -> log_snr: from 10 or more to -10 or less, most of the time in between."""
    inputs = Inputs(106)
    for dtype in PRECISIONS:
        t = torch.linspace(0, 1, 2001, dtype=dtype)  # each step is half a thousandth
        log_snr = answer(t)
        expect(isinstance(log_snr, Tensor), "a tensor is due, like t")
        expect(log_snr.shape == t.shape, "log_snr has to have the shape of t")
        expect(log_snr.dtype == dtype, "log_snr has to have the precision (dtype) of t")
        expect(log_snr.isfinite().all(), "log_snr has to be finite, at t = 0 and t = 1 too")
        first, last = float(log_snr[0]), float(log_snr[-1])
        expect(
            first > last,
            "log_snr has to fall: t = 0 is the clean image, t = 1 is noise",
            f"Found:          {first:.4g} at t = 0, {last:.4g} at t = 1",
        )
        expect(
            first > 9.999,
            "t = 0 should be clean: log_snr at least 10 there (sigma below 0.007)",
            f"Found:          {first:.4g}",
        )
        expect(
            last < -9.999,
            "t = 1 should be noise: log_snr at most -10 there (alpha below 0.007), else sampling "
            "starts from noise that training has never seen",
            f"Found:          {last:.4g}",
        )
        fall = -log_snr.diff()
        slowest = int(fall.argmin())
        expect(
            fall[slowest] >= 0.0005,
            "log_snr has to fall all the time, by 0.001 at least in a thousandth of it: where it "
            "stays or rises, two times have the same amount of noise, and a step between them does "
            "nothing or undoes noise",
            f"Found:          {log_snr[slowest]:.4g} at t = {t[slowest]:.4g}, "
            f"{log_snr[slowest + 1]:.4g} at t = {t[slowest + 1]:.4g}",
        )
        thousandth = log_snr[:-2] - log_snr[2:]
        worst = int(thousandth.argmax())
        expect(
            thousandth[worst] < 1,
            "the curve jumps: a thousandth of the time should change log_snr by less than 1",
            f"Found:          {log_snr[worst]:.4g} at t = {t[worst]:.4g}, {log_snr[worst + 2]:.4g} "
            f"at t = {t[worst + 2]:.4g}",
        )
        share = float((log_snr.abs() < 3).double().mean())
        expect(
            share > 0.599,
            "too little time in between: at least 60 % of it should be spent where neither the "
            "image nor the noise has won, |log_snr| < 3",
            f"Found:          {100 * share:.1f} %",
        )
        for shape in ((2, 1, 3), ()):
            times = inputs.uniform(*shape, dtype=dtype)
            alone = torch.stack([answer(time) for time in times.flatten()])
            equal(
                answer(times),
                alone.reshape(shape),
                "log_snr at a time may depend on that time alone, not on the other entries of t",
                case=f"t of shape {shape}, and each entry alone",
            )
