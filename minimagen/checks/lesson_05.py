"""Checks of the exercises of lesson 05, noise conditioning augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minimagen.checks.exercise import Inputs, Lesson, Wrong, close, equal, expect, pair_of
from minimagen.checks.oracles import correlation, cosine_alpha_sigma
from minimagen.schedules import NoiseSchedule

lesson = Lesson(5)
progress = lesson.progress


# --- what the checks share ------------------------------------------------------------------------


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _due(found: Any, shape: tuple[int, ...], what: str, if_not: str = "") -> Tensor:
    """A floating-point tensor of this shape and finite, or Wrong."""
    expect(found is not None, "nothing came back: is there a return?")
    expect(isinstance(found, Tensor), f"a tensor is due: {what}")
    expect(
        found.shape == shape,
        if_not or f"the result has the wrong shape: {what}",
        f"Expected shape: {shape}\nFound shape:    {tuple(found.shape)}",
    )
    expect(found.is_floating_point(), f"floating-point numbers are due, not {found.dtype}")
    expect(found.isfinite().all(), "the result is not finite everywhere (inf or nan)")
    return found.detach().double()


def _fit(found: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Each image as a clean + c + rest, by least squares: (a, c, deviation of the rest), rest."""
    rows, rests = [], []
    for image, its_clean in zip(found.double(), clean.double(), strict=True):
        columns = torch.stack([its_clean.flatten(), torch.ones(its_clean.numel()).double()], dim=1)
        goal = image.flatten()[:, None]
        factors = torch.linalg.lstsq(columns, goal).solution
        rest = goal - columns @ factors
        rows.append(torch.stack([factors[0, 0], factors[1, 0], rest.std()]))
        rests.append(rest.reshape(image.shape) / rest.std().clamp(min=1e-12))
    return torch.stack(rows), torch.stack(rests)


def _parts(a: Tensor, c: Tensor | float, deviation: Tensor) -> Tensor:
    return torch.stack([a, torch.zeros_like(a) + c, deviation], dim=1)


def _same_parts(
    found: Tensor, expected: Tensor, idea: str, mistakes: Mapping[str, Tensor], tolerance: float
) -> None:
    """Hold what ``_fit`` found against what is due; told in the learner's terms."""
    if close(found, expected, tolerance):
        return
    worst = int((found - expected).abs().amax(dim=1).argmax())
    facts = "\n".join(
        f"{name:15} {row[0]:.2f} x image {'-' if row[1] < 0 else '+'} {abs(row[1]):.2f} "
        f"+ noise of deviation {row[2]:.2f}, in image {worst}"
        for name, row in (("Expected:", expected[worst]), ("Found:", found[worst]))
    )
    for words, result in mistakes.items():
        if close(found, result, tolerance):
            raise Wrong(words, facts)
    raise Wrong(idea, facts)


def _white(noise: Tensor, what: str) -> None:
    """Noise of deviation 1: its own for every image and channel, normal; or Wrong."""
    batch, channels = noise.shape[:2]
    centred = noise - noise.mean()
    for first in range(batch):
        for second in range(first):
            expect(
                (centred[first] * centred[second]).mean().abs() < 0.1,
                f"two images of the batch have the same noise {what}: draw it in the shape of "
                "the whole batch",
            )
    for channel in range(1, channels):
        expect(
            (centred[:, channel] * centred[:, 0]).mean().abs() < 0.1,
            f"the channels of an image have the same noise {what}: draw it with all channels",
        )
    far = float((noise.abs() > 2).double().mean())
    expect(
        abs(far - 0.0455) < 5 * math.sqrt(0.0455 / noise.numel()) + 0.003,
        f"the noise {what} is not normally distributed: use torch.randn",
        f"Expected:       4.6 % of it beyond two deviations\nFound:          {100 * far:.1f} %",
    )


# --- the exercises --------------------------------------------------------------------------------


@lesson.exercise(
    "A level for each image",
    look='sections "One level for each image" and "A fixed level when sampling" of the lesson',
)
def levels(answer: Callable[..., Tensor]) -> None:
    """answer(batch, generator, training, fixed=0.1) -> augmentation levels, (batch,)."""
    one_each = "one level is due for each image: a tensor of the shape (batch,)"
    for batch in (5, 1, 20_000):
        found = _due(
            answer(batch, _seeded(batch), True), (batch,), "one level for each image", one_each
        )
        again = answer(batch, _seeded(batch), True, 0.7)
        expect(
            close(again, found.float(), 1e-6),
            "in training, the same generator has to give the same levels, whatever the fixed level "
            "is: hand the generator to torch.rand, and leave the fixed level to sampling",
        )
        expect(
            not close(answer(batch, _seeded(batch + 1), True), found.float(), 1e-6),
            "in training the levels are the same each time: draw them from the generator",
        )
        expect(
            batch == 1 or bool((found != found[0]).any()),
            "in training all images of a batch got the same level: draw one for each",
        )
        expect(
            bool((found >= 0).all()) and bool((found <= 1).all()),
            "a level lies between 0 and 1",
            f"Found:          {found.min():.3g} to {found.max():.3g}",
        )
    tenths = torch.histc(found, bins=10, min=0, max=1) / len(found)
    worst = int((tenths - 0.1).abs().argmax())
    expect(
        (tenths - 0.1).abs().max() < 0.012,
        "in training every level from 0 to 1 should be as likely as any other",
        f"Expected:       10 % of the levels between {worst / 10:.1f} and {worst / 10 + 0.1:.1f}\n"
        f"Found:          {100 * tenths[worst]:.0f} %",
    )
    expect(
        (found[1:] > found[:-1]).double().mean() < 0.6
        and (found[1:] < found[:-1]).double().mean() < 0.6,
        "the levels come in order, so that an image's level depends on its place in the batch: "
        "draw them independently",
    )
    generator = _seeded(3)
    first = answer(6, generator, True)
    expect(
        not close(answer(6, generator, True), first, 1e-6),
        "two training steps, one after the other, got the same levels: do not seed the generator "
        "yourself",
    )
    for batch, fixed in ((4, 0.1), (1, 0.35), (3, 0.0), (2, 1.0)):
        generator = _seeded(4)
        before = generator.get_state()
        found = answer(batch, generator, False, *(() if fixed == 0.1 else (fixed,)))
        equal(
            found,
            torch.full((batch,), fixed),
            "when sampling, every image gets the fixed level",
            {
                "when sampling, the level is not drawn: every image gets the fixed level": (
                    torch.rand(batch, generator=_seeded(4))
                ),
                "the fixed level that was given is ignored; it may be 0 too": torch.full(
                    (batch,), 0.1
                ),
            },
            case=f"sampling {batch} images, fixed level {fixed:g}",
        )
        expect(
            torch.equal(generator.get_state(), before),
            "a fixed level needs no random numbers: when sampling, leave the generator alone, else "
            "all noise that is drawn from it afterwards changes",
        )


@lesson.exercise(
    "Noise in the right place",
    look='section "Where the noise is added" of the lesson; 2205.11487, sec. 2.4',
)
def right_place(answer: Callable[..., Tensor]) -> None:
    """answer(images, size, level, schedule, generator) -> condition, (B, C, H, W).

    images: (B, C, h, w) uint8; size: (H, W); level: (B,) in [0, 1].
    """
    inputs = Inputs(502)
    for small, size, shift in (
        ((4, 3, 6, 9), (80, 120), 1.0),
        ((3, 3, 8, 7), (100, 84), 0.4),
        ((1, 1, 5, 4), (175, 120), 1.0),
    ):
        images = inputs.whole(*small, high=256).to(torch.uint8)
        batch, schedule = small[0], NoiseSchedule(shift=shift)
        case = f"{batch} images of {small[1:]}, to be {size}, level "
        scaled = images.double() / 127.5 - 1

        # level 0: the image, and noise too small to be seen
        level = torch.zeros(batch)
        found = answer(images, size, level, schedule, _seeded(1))
        large = _grow(scaled, size)
        noise = torch.randn(large.shape, generator=_seeded(1))
        equal(
            found,
            large.float(),
            "at level 0 this should be the images scaled to [-1, 1], where 0 becomes -1 and 255 "
            "becomes 1, and enlarged bilinearly; but it is not",
            {
                "alpha and sigma are swapped": noise,
                "the noise is not turned: sigma is missing": large + noise,
            }
            | _wrong_images(images, size),
            case=f"{case}0",
            tolerance=1e-3,
        )

        level = torch.tensor([0.5, 0.3, 1.0, 0.7])[:batch]
        found = answer(images, size, level, schedule, _seeded(2))
        _due(found, (*small[:2], *size), "the images at the size that was asked for")
        parts, noise = _fit(found, large)
        weak = bool((parts[:, 2] < 0.05).any())  # then ask below why
        expect(
            weak or found.abs().max() > 1.3,
            "the noisy image was clipped: a condition is no image, its noise may leave [-1, 1]",
        )
        beside, below = noise[..., 1:] * noise[..., :-1], noise[:, :, 1:] * noise[:, :, :-1]
        neighbours = max(float(beside.mean()), float(below.mean()))
        expect(
            weak or neighbours < 0.1,
            "the noise comes in blotches: neighbouring pixels have nearly the same. It was added "
            "before the image was enlarged; enlarge first",
            "Expected:       noise of neighbours correlates by 0.0\n"
            f"Found:          {neighbours:.2f}",
        )
        alpha, sigma = (part.flatten() for part in cosine_alpha_sigma(level, shift))
        plain_alpha, plain_sigma = (part.flatten() for part in cosine_alpha_sigma(level, 1.0))
        mean_alpha, mean_sigma = (
            part.flatten() for part in cosine_alpha_sigma(level.mean().expand(batch), shift)
        )
        s = level.double()
        _same_parts(
            parts,
            _parts(alpha, 0, sigma),
            "each image is to be turned down by the alpha of its level, and its noise turned up "
            "to the sigma of its level",
            {
                "the noise was added in [0, 1], before the scaling, which then makes it twice as "
                "strong: scale to [-1, 1] first": _parts(alpha, alpha - 1, 2 * sigma),
                "the image is not turned down, and the noise was added before the scaling, which "
                "makes it twice as strong": _parts(alpha**0, 0, 2 * sigma),
                "the noise was added in 0 ... 255, where it is much too weak: scale to [-1, 1] "
                "first": _parts(alpha, alpha - 1, sigma / 127.5),
                "the image is not turned down: alpha is missing": _parts(alpha**0, 0, sigma),
                "there is no noise": _parts(alpha**0, 0, 0 * sigma),
                "there is no noise ": _parts(alpha, 0, 0 * sigma),
                "the noise lies between 0 and 1: torch.rand is uniform, torch.randn is normal": (
                    _parts(alpha, sigma / 2, sigma / math.sqrt(12))
                ),
                "the noise is multiplied by sigma^2, its variance": _parts(alpha, 0, sigma**2),
                "the level is a time: sigma is what the schedule says at that time, not the level "
                "itself": _parts(alpha, 0, s),
                "the level is a time, not a share of noise: ask the schedule for its alpha and "
                "sigma": _parts(1 - s, 0, s),
                "all images are noised by the level of the first: each has its own": _parts(
                    alpha[:1].expand(batch), 0, sigma[:1].expand(batch)
                ),
                "all images are noised by the mean of the levels: each has its own": _parts(
                    mean_alpha, 0, mean_sigma
                ),
                "the schedule that was given is ignored": _parts(plain_alpha, 0, plain_sigma),
            },
            tolerance=0.09,
        )
        _white(noise, "in the condition")
        _from_generator(partial(answer, images, size, level, schedule))


def _grow(values: Tensor, size: tuple[int, int], **how: Any) -> Tensor:
    return F.interpolate(values, size=size, **({"mode": "bilinear"} | how))


def _wrong_images(images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """What mistakes with bytes, range and enlarging give; images uint8."""
    raw = images.double()
    grown = _grow(raw, size)
    return {
        "the images are in [0, 1]: scale them to [-1, 1], as the models of the course want "
        "them": grown / 255,
        "the images are still in 0 ... 255: scale them to [-1, 1]": grown,
        "the images are in [-0.5, 0.5]: [-1, 1] is twice as wide": grown / 255 - 0.5,
        "the images were enlarged as bytes, which rounds them to whole grey levels: turn them "
        "into floating-point numbers first": _grow(images, size).double() / 127.5 - 1,
        "2 * images does not fit into a byte, and begins again at 0 from 256 on: turn them into "
        "floating-point numbers first": _grow((2 * raw) % 256, size) / 255 - 1,
        "enlarged by repeating pixels; bilinear is asked for": _grow(raw, size, mode="nearest")
        / 127.5
        - 1,
        "enlarged with align_corners=True, which moves the image": _grow(
            raw, size, align_corners=True
        )
        / 127.5
        - 1,
    }


class _Network:
    """What stands for the U-Net: notes what it is given, and puts something out."""

    def __init__(self) -> None:
        self.weight = torch.ones((), requires_grad=True)
        self.calls: list[tuple[Any, Any, Any]] = []

    def __call__(self, inputs: Tensor, t: Tensor, level: Tensor) -> Tensor:
        self.calls.append((inputs, t, level))
        channels = inputs.shape[1] // 2
        return self.weight * 0.3 * inputs[:, :channels] - 0.2 * inputs[:, channels:] + 0.1


@lesson.exercise(
    "What the second U-Net is given",
    look='sections "What super-resolution must do" and "The model is told the level" of the '
    "lesson; 2106.15282, sec. 4",
)
def network_input(answer: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """answer(unet, x, lowres, t, level, schedule, generator) -> (out, eps).

    x, lowres: (B, C, H, W); t, level: (B,); unet(inputs, t, level) -> (B, C, H, W).
    """
    inputs = Inputs(503)
    for shape, shift in (((4, 3, 40, 64), 1.0), ((3, 3, 56, 48), 0.5), ((1, 1, 80, 96), 1.0)):
        batch, channels = shape[:2]
        x, lowres = inputs.uniform(*shape, low=-1), inputs.uniform(*shape, low=-1)
        t = torch.tensor([0.8, 0.35, 0.6, 0.15])[:batch]
        level = torch.tensor([0.3, 0.7, 0.2, 0.5])[:batch]
        given = x, lowres, t, level, NoiseSchedule(shift=shift)
        unet = _Network()
        pair = answer(unet, *given, _seeded(1))
        pair_of(
            pair,
            "two tensors are due, what the U-Net puts out and the noise of z: return out, eps",
        )
        expect(len(unet.calls) == 1, "the U-Net is to be called once", f"Found: {len(unet.calls)}")
        seen, told_t, told_level = unet.calls[0]
        expected_shape = (batch, 2 * channels, *shape[2:])
        _due(seen, expected_shape, "what the U-Net is given",
             "what the U-Net is given has the wrong shape: lay z and the condition side by side "
             "as channels, (B, 2 C, H, W); that is dimension 1")  # fmt: skip
        expect(
            not (close(told_t, level) and close(told_level, t)),
            "t and level are swapped in the call of the U-Net",
        )
        for told, due, name in (
            (told_t, t, "t, the time of z"),
            (told_level, level, "level, the noise of the condition"),
        ):
            words = f"the U-Net has to be told {name}"
            equal(_due(told, (batch,), name, f"{words}, just as it is: (B,)").float(), due, words)
        out, eps = pair
        put_out = _Network()(seen.detach(), t, level)
        expect(not close(eps, put_out), "out and eps are swapped: return out, eps")
        equal(out, put_out, "out should be what the U-Net put out, unchanged")
        expect(
            out.requires_grad,
            "out has lost its gradient (detach or no_grad): the U-Net could not be trained with it",
        )
        noise = _due(eps, shape, "eps, the noise of z")
        alpha, sigma = cosine_alpha_sigma(t, shift)
        alpha_s, sigma_s = cosine_alpha_sigma(level, shift)
        first, second = seen[:, :channels], seen[:, channels:]
        z = (alpha * x + sigma * noise).float()
        expect(
            not close(second, z, 1e-4),
            "z and the condition have changed places: z comes first, the condition behind it",
        )
        equal(
            first,
            z,
            "the first channels should be z = alpha x + sigma eps, with alpha and sigma at time t "
            "and with the eps that is returned",
            {
                "z is noised by the level; its time is t": alpha_s * x + sigma_s * noise,
                "the first channels are the clean image x: the U-Net sees z, which is noisy": x,
                "the noisy image is lowres; z is x with noise": alpha * lowres + sigma * noise,
                "all images have the time of the first": alpha[:1] * x + sigma[:1] * noise,
                "eps is multiplied by sigma^2, its variance": alpha * x + sigma**2 * noise,
            },
            case=f"{batch} images of {shape[1:]}, channels 0 to {channels - 1} of the input",
            tolerance=1e-4,
        )
        _white(noise, "in z")
        expect(
            not close(second, lowres, 1e-4),
            "the condition is clean: noise it by its level, else the U-Net learns to believe every "
            "pixel",
        )
        expect(
            _fit(second, x)[0][:, 0].abs().max() < 0.3,
            "the condition shows the large image x: the U-Net would be told what it is to find. "
            "It is made of lowres",
        )
        parts, rest = _fit(second, lowres)
        shared = (rest * noise).mean()
        expect(
            shared.abs() < 0.5,
            "z and the condition have the same noise: the U-Net could subtract one from the other. "
            "Draw twice",
            f"Expected:       the two correlate by 0.0\nFound:          {shared:.2f}",
        )
        alpha, sigma, alpha_s, sigma_s = (a.flatten() for a in (alpha, sigma, alpha_s, sigma_s))
        _same_parts(
            parts,
            _parts(alpha_s, 0, sigma_s),
            "the last channels should be alpha lowres + sigma noise, with alpha and sigma at time "
            "level, for each image its own",
            {
                "the condition is noised by t, the time of z; it has a level of its own": _parts(
                    alpha, 0, sigma
                ),
                "the level is a time: ask the schedule for its alpha and sigma": _parts(
                    1 - level.double(), 0, level.double()
                ),
                "the condition is not turned down: alpha is missing": _parts(
                    alpha_s**0, 0, sigma_s
                ),
                "all conditions are noised by the level of the first": _parts(
                    alpha_s[:1].expand(batch), 0, sigma_s[:1].expand(batch)
                ),
            },
            tolerance=0.1,
        )
        _white(rest, "in the condition")
        expect(shared.abs() < 0.1, "the noise of z and that of the condition are not independent")
        for part in (0, 1):
            _from_generator(partial(_one_of_both, part, answer, given))


def _one_of_both(
    part: int,
    answer: Callable[..., tuple[Tensor, Tensor]],
    given: Sequence[Any],
    generator: torch.Generator,
) -> Tensor:
    return answer(_Network(), *given, generator)[part]


@lesson.exercise(
    "Not all levels deserve the same effort",
    look='section "Not all levels deserve the same effort" of the lesson',
)
def weighted(answer: Callable[..., Tensor]) -> None:
    """answer(out, target, level, p) -> loss of each image, (B,); level (B,) in [0, 1], p >= 0."""
    inputs = Inputs(504)
    for dtype in (torch.float32, torch.float64):
        for shape in ((4, 3, 5, 7), (3, 1, 6, 2), (1, 3, 4, 4)):
            for p in (2.0, 0.0, 0.5, 3):
                out, target = inputs.normal(*shape, dtype=dtype), inputs.normal(*shape, dtype=dtype)
                level = torch.tensor([0.2, 0.85, 0.0, 1.0], dtype=dtype)[: shape[0]]
                pairs = zip(out.double().numpy(), target.double().numpy(), strict=True)
                error = np.array([np.mean((a - b) ** 2) for a, b in pairs])  # image by image
                weight = (p + 1) * (1 - level.double().numpy()) ** p
                pixels = math.prod(shape[1:])
                leaf = out.clone().requires_grad_()
                found = answer(leaf, target, level, p)
                if isinstance(found, Tensor) and found.ndim == 0:
                    raise Wrong(
                        "one number came back for the whole batch; the loss of each image is "
                        "due, (B,), because each has a weight of its own"
                    )
                equal(
                    found,
                    torch.tensor(weight * error).to(dtype),
                    "the loss of an image is the mean of its squared errors, times (p + 1) "
                    "(1 - s)^p with its own level s",
                    _wrong_losses(out, target, level.double().numpy(), p),
                    case=f"{shape[0]} images of {shape[1:]}, p = {p:g}",
                )
                expect(
                    found.requires_grad,
                    "the loss has lost its gradient (detach, item, numpy or no_grad): nothing "
                    "could be learnt from it",
                )
                (gradient,) = torch.autograd.grad(found.sum(), leaf)
                equal(
                    gradient,
                    (torch.tensor(weight).reshape(-1, 1, 1, 1) * 2 * (out - target) / pixels).to(
                        dtype
                    ),
                    "the loss is right, but its gradient is not: part of it was detached",
                )


def _wrong_losses(out: Tensor, target: Tensor, s: Any, p: float) -> dict[str, Tensor]:
    """What mistakes with the weight and with the mean give; s the levels in numpy."""
    gap = (out - target).double().flatten(1).numpy()
    error, weight = (gap**2).mean(1), (p + 1) * (1 - s) ** p
    results = {
        "the weight is missing": error,
        "the factor p + 1 is missing, so the weight is not 1 on average": (1 - s) ** p * error,
        "the factor is p; it has to be p + 1": p * (1 - s) ** p * error,
        "(p + 1) s^p grows with the level; the weight should fall": (p + 1) * s**p * error,
        "1 - s^p is another curve: the power belongs to (1 - s)": (p + 1) * (1 - s**p) * error,
        "the weight came inside the square: multiply the squared error by it": weight**2 * error,
        "all images have the weight of the mean level": (p + 1) * (1 - s.mean()) ** p * error,
        "the squares were added up over the image: take their mean": weight * (gap**2).sum(1),
        "the errors are not squared": weight * np.abs(gap).mean(1),
        "each image has its own error; here the mean over the batch was taken": weight
        * error.mean(),
    }
    return {words: torch.from_numpy(np.asarray(result)) for words, result in results.items()}


@lesson.exercise(
    "Design: a damage of your own",
    look='sections "The idea: teach it to distrust" and "The experiment: with and without" of the '
    "lesson; 2107.10833 (Real-ESRGAN) mixes many damages",
)
def damage(answer: Callable[[Tensor, Tensor, torch.Generator], Tensor]) -> None:
    """answer(lowres, level, generator) -> (B, C, H, W): blurred and noised, more at high levels."""
    inputs = Inputs(505)
    for shape in ((6, 3, 32, 48), (1, 1, 128, 96), (2, 3, 64, 64)):
        coarse = inputs.uniform(*shape[:2], shape[2] // 4, shape[3] // 4, low=-0.7, high=0.7)
        fine = inputs.uniform(*shape, low=-0.3, high=0.3)
        x = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3) + fine
        coarse, fine = _coarse_and_fine(x)
        batch, remains = shape[0], []
        for level in (0.0, 0.25, 0.5, 0.75, 1.0):
            found = answer(x, torch.full((batch,), level), _seeded(1))
            high = _due(found, shape, "in the shape of lowres")
            expect(found.dtype == x.dtype, "the result has to have the precision (dtype) of lowres")
            if level == 0:
                equal(
                    found,
                    x,
                    "at level 0 nothing may be damaged: sampling at level 0 means full trust",
                    tolerance=1e-3,
                )
            expect(
                high.square().mean() < 1.5,
                "the numbers grow: a network wants them of about one size, and images and "
                "standard normal noise have a mean square of 1 at most. Turn the image down as "
                "the noise is turned up",
                f"Expected:       a mean square of at most 1.5 at level {level:g}\n"
                f"Found:          {high.square().mean():.2f}",
            )
            remains.append(correlation(high, x))
            if level == 0.5:
                middle = high
        told = ", ".join(f"{r:.2f}" for r in remains)
        told = f"Found:          correlation with the undamaged image {told} at levels 0 to 1"
        expect(
            remains[-1] < 0.15,
            "at level 1 nothing should be left of the image, so that the network learns to do "
            "without",
            told,
        )
        expect(
            remains[2] > 0.15,
            "at level 0.5 the image is gone already: half of the scale would be wasted",
            told,
        )
        expect(
            all(after < before - 0.02 for before, after in pairwise(remains)),
            "the higher the level, the less of the image should be left, all the way",
            told,
        )
        half = torch.full((batch,), 0.5)
        other = _due(answer(x, half, _seeded(2)), shape, "in the shape of lowres")
        differ = float((middle - other).square().mean().sqrt())
        expect(
            differ > 0.1,
            "two draws at level 0.5 are nearly the same: a damage by chance is wanted, with noise "
            "from the generator, else the network can learn to undo it",
            f"Expected:       a difference of 0.1 at least\nFound:          {differ:.2f}",
        )
        _from_generator(partial(answer, x, half))
        changes = (middle - other).flatten(1)
        expect(
            batch == 1 or bool((torch.corrcoef(changes) < 0.9).any()),
            "all images of the batch have the same noise: draw it in the shape of the whole batch",
        )
        draws = [answer(x, half, _seeded(seed)).detach() for seed in range(20, 28)]
        left = torch.stack(draws).double().mean(0)  # the noise of one draw would blur the shares
        gains = [float((left * part).sum() / (part * part).sum()) for part in (coarse, fine)]
        expect(
            gains[1] < 0.85 * gains[0],  # 0.8 is asked for, and some chance is left
            "fine details and the coarse image fade alike, as with noise alone: at level 0.5 "
            "less should be left of what is fine. Mix the image with a blurred one, more at "
            "higher levels",
            f"Found:          {gains[0]:.2f} of the coarse (means of 4 x 4 pixels) is left, "
            f"{gains[1]:.2f} of the fine",
        )
        if batch > 2:
            _level_of_its_own(answer, x)


def _coarse_and_fine(x: Tensor) -> tuple[Tensor, Tensor]:
    """The means of 4 x 4 pixels, and what they leave out; in float64."""
    means = F.avg_pool2d(x.double(), 4)
    coarse = means.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return coarse, x.double() - coarse


def _level_of_its_own(answer: Callable[..., Tensor], x: Tensor) -> None:
    """Levels from 0 to 1 in one batch: the first image stays, the second goes; or Wrong."""
    level = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.9, 0.1])
    found = answer(x, level, _seeded(3))
    words = "each image has a level of its own, and is damaged by that one"
    expect(close(found[0], x[0], 1e-3), words, "Tried with:     levels 0, 1, 0.5 in one batch")
    expect(correlation(found[1], x[1]) < 0.2, words, "Tried with:     levels 0, 1, 0.5 together")
    swapped = answer(x, level[[1, 0, 2, 3, 4, 5]], _seeded(3))
    expect(
        close(swapped[2:], found[2:]),
        "an image's damage depends on the levels of the others: each has a level of its own",
        "Tried with:     levels 0, 1, 0.5 and then 1, 0, 0.5",
    )
    companions = x.clone()
    companions[3:] = 0.1 * companions[3:].flip(-1) + 0.8
    beside = answer(companions, level, _seeded(3))
    expect(
        close(beside[:3], found[:3]),
        "an image's damage depends on the other images of the batch: do all means and sizes "
        "for each image by itself",
    )


def _from_generator(answer: Callable[[torch.Generator], Tensor]) -> None:
    """Random numbers come from the generator alone: the same again, others with another seed."""
    first = answer(_seeded(11))
    expect(
        close(answer(_seeded(11)), first),
        "the same generator has to give the same noise: hand it to torch.randn as generator=",
    )
    expect(
        not close(answer(_seeded(12)), first),
        "the noise is the same each time: draw it from the generator, and do not seed it",
    )
