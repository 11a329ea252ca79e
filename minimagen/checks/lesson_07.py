"""Checks of the exercises of lesson 07, the cascade."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minimagen.checks.exercise import Inputs, Lesson, close, equal, expect, pair_of
from minimagen.checks.oracles import correlation, cosine_alpha_sigma
from minimagen.schedules import NoiseSchedule

lesson = Lesson(7)
progress = lesson.progress

PRECISIONS = (torch.float32, torch.float64)


# --- oracles --------------------------------------------------------------------------------------


def _means(x: Tensor, k: int) -> Tensor:
    """The mean of each square of k x k pixels, in float64."""
    return x.double().unfold(2, k, k).unfold(3, k, k).mean((-2, -1))


def _between(few: int, many: int, corners: bool = False) -> Tensor:
    """(many, few): how much of each of few pixels in a row makes each of many, by np.interp.

    Pixels are squares, and their centres lie at 1/2, 3/2, ...; corners: as with align_corners.
    """
    where = np.linspace(0, few - 1, many) if corners else (np.arange(many) + 0.5) * few / many - 0.5
    shares = [np.interp(where, np.arange(few), one) for one in np.eye(few)]
    return torch.from_numpy(np.stack(shares, axis=1))


def _enlarged(x: Tensor, height: int, width: int, corners: bool = False) -> Tensor:
    """Bilinear, in float64: linear along the columns, then along the rows."""
    rows, columns = x.shape[-2:]
    return _between(rows, height, corners) @ x.double() @ _between(columns, width, corners).T


def _nearest(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x.double(), size=(height, width), mode="nearest")


# --- 7.1 ------------------------------------------------------------------------------------------


@lesson.exercise(
    "What the next stage gets to see",
    look='minimagen.imagen.resize; "Sampling, written out" in the lesson; the documentation of '
    "F.avg_pool2d and F.interpolate",
)
def small_and_enlarged(answer: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """answer(x, k) -> (small, enlarged); x (B, C, H, W), small (B, C, H / k, W / k)."""
    inputs = Inputs(701)
    for dtype in PRECISIONS:
        for shape, k in (
            ((2, 3, 8, 12), 4),
            ((1, 1, 15, 9), 3),
            ((3, 3, 6, 4), 2),
            ((1, 3, 16, 16), 8),
            ((2, 1, 5, 7), 1),
        ):
            x = inputs.uniform(*shape, low=-1, dtype=dtype)
            height, width = shape[-2:]
            pair = answer(x, k)
            pair_of(
                pair,
                "two tensors are due, the small images and the enlarged ones: "
                "return small, enlarged",
            )
            case = f"images {height} high and {width} wide, factor {k}"
            small = _means(x, k)
            size = (height // k, width // k)
            equal(
                pair[0],
                small.to(dtype),
                "each small pixel is to be the mean of the k x k pixels in its place",
                {
                    "one pixel of each square was taken, and the others thrown away: fine lines "
                    "vanish or flicker (aliasing); take the mean of all of them": x[..., ::k, ::k],
                    "bilinear looks at the four pixels in the middle of each square only; the "
                    "mean asks all of them": F.interpolate(x, size=size, mode="bilinear"),
                    "this is antialiased bilinear: it is close, but it lets the neighbouring "
                    "squares in; here each pixel counts in one square only, and equally much": (
                        F.interpolate(x, size=size, mode="bilinear", antialias=True)
                    ),
                    "the pixels of a square are added up, but not divided by their number": (
                        small * k * k
                    ),
                    "the largest pixel of each square was taken, and not their mean": (
                        F.max_pool2d(x, k)
                    ),
                    "the image is still as large as before": x,
                    "height and width are swapped": small.transpose(2, 3),
                    "the two are in the wrong order: return small, enlarged": _enlarged(
                        small, height, width
                    ),
                },
                case=case,
            )
            expected = _enlarged(small, height, width)
            equal(
                pair[1],
                expected.to(dtype),
                "the small image is to be enlarged bilinearly, to the height and the width of x",
                {
                    "pixels were repeated (nearest): that makes blocks with hard edges, which are "
                    "not in the image; use bilinear": _nearest(small, height, width),
                    "align_corners=True puts the centres of the corner pixels onto each other, so "
                    "the image is stretched; pixels are squares, leave it False": _enlarged(
                        small, height, width, corners=True
                    ),
                    "this is bicubic: it shoots over at edges, and leaves [-1, 1]": F.interpolate(
                        small, size=(height, width), mode="bicubic"
                    ),
                    "this is x itself: the detail that the small image has lost must be lost "
                    "here too, so enlarge the small one": x,
                    "this is still the small image": small,
                    "height and width are swapped": _enlarged(small, width, height),
                    "not every image is square: the enlarged one has the wrong width": _enlarged(
                        small, height, height
                    ),
                    "not every image is square: the enlarged one has the wrong height": _enlarged(
                        small, width, width
                    ),
                },
                case=case,
            )


# --- 7.2 ------------------------------------------------------------------------------------------


def _calls(source: Callable[[], Tensor], count: int) -> Tensor:
    """(count, B, ...): what it gives at so many calls."""
    return torch.stack([source() for _ in range(count)])


def _global_state() -> tuple[bytes, bytes, object]:
    """Of the random numbers that everybody shares: torch's, numpy's, Python's."""
    numpys = np.random.get_state(legacy=False)["state"]
    words, place = numpys["key"].tobytes(), numpys["pos"]
    return torch.get_rng_state().numpy().tobytes(), words, (place, random.getstate())


def _all_different(answer: Callable[..., Callable[[], Tensor]]) -> None:
    """No image of noise comes twice: not at another call, for another seed or stage."""
    few, many = [*range(13), 1000, 10_000, 100_000, 999_999], list(range(1000))
    seen: dict[bytes, tuple[int, int, int]] = {}
    for seeds, stage, calls in [(few, i, 3) for i in range(10)] + [(many, i, 1) for i in (0, 1)]:
        for call, batch in enumerate(_calls(answer(seeds, (1, 3, 4), stage), calls)):
            for seed, image in zip(seeds, batch, strict=True):
                key = image.detach().numpy().tobytes()
                other_seed, other_stage, other_call = seen.setdefault(key, (seed, stage, call))
                if (seed, stage, call) == (other_seed, other_stage, other_call):
                    continue
                if seed == other_seed and call == other_call:
                    idea = "two stages get the same noise for one seed: each stage needs a stream "
                    idea += "of its own, so the stage has to go into the seed too"
                elif stage == other_stage and call == other_call:
                    idea = "two different seeds give the same noise"
                elif call == other_call:
                    idea = "another seed gives the same noise at another stage: mix seed and stage "
                    idea += "so that no two pairs meet (their sum is not enough); there are a "
                    idea += "million seeds, and ten stages"
                else:
                    idea = "the noise of one call comes again at another call, for another seed or "
                    idea += "stage: each pair of seed and stage needs a stream of its own"
                both = ((other_seed, other_stage, other_call), (seed, stage, call))
                words = [f"seed {a}, stage {b}, call {c + 1}" for a, b, c in both]
                expect(False, idea, "The same for:   " + " and ".join(words))


def _standard_normal(name: str, noise: Tensor) -> None:
    """Is it, in every image, each number drawn for itself? noise: (B, C, H, W) in float64"""
    room = 6 / noise[0].numel() ** 0.5  # at least 5 standard deviations, as below
    pairs = [(noise[..., 1:], noise[..., :-1]), (noise[:, :, 1:], noise[:, :, :-1])]
    if noise.shape[1] > 1:
        pairs.append((noise[:, 1:], noise[:, :-1]))
    expect(
        all(abs(correlation(*pair)) < room for pair in pairs),
        f"{name}: neighbouring pixels or channels have the same number or a similar one; every "
        "number is to be drawn for itself",
    )
    rows = noise.flatten(1)
    mean, spread = rows.mean(1), rows.square().mean(1).sqrt()
    expect(
        (mean.abs() < room).all() and ((spread - 1).abs() < room).all(),
        f"{name} has to have mean 0 and variance 1, in every image, as torch.randn gives it",
        f"Found:          mean {mean.mean():.3f}, variance {spread.square().mean():.3f}",
    )
    expect(
        abs(float((rows**4).mean()) - 3) < 6 * (96 / rows.numel()) ** 0.5,
        f"{name} has to be normal (Gaussian): torch.randn",
    )


@lesson.exercise(
    "Noise that belongs to the image",
    look='"Image i depends on caption i and seed i" in the lesson; NoiseSource in '
    "minimagen/samplers.py",
)
def noise_per_image(answer: Callable[..., Callable[[], Tensor]]) -> None:
    """answer(seeds, shape, stage) -> source; source() -> fresh standard normal (B, *shape)."""
    seeds, shape = [7, 3, 11, 2], (3, 8, 5)
    before = _global_state()
    source = answer(seeds, shape, 0)
    expect(
        callable(source),
        "what comes back is to be called: noise = NoisePerImage(...), and then z = noise()",
    )
    expect(
        seeds == [7, 3, 11, 2], "the list of seeds was changed; whoever gave it may need it still"
    )
    first = source()
    size = (len(seeds), *shape)
    expect(isinstance(first, Tensor), "a call has to return a tensor (is there a return?)")
    expect(
        first.shape == size,
        "a call has to give one image of noise for each seed, of the shape that was asked for",
        f"Expected shape: {size}\nFound shape:    {tuple(first.shape)}",
    )
    expect(
        first.dtype == torch.float32,
        "the noise has to be float32",
        f"Found:          {first.dtype}",
    )
    copy, second = first.clone(), source()
    untouched = _global_state() == before
    expect(
        torch.equal(first, copy),
        "a second call has changed the noise that the first one returned: return a new tensor",
    )
    expect(
        not torch.equal(first, second),
        "the noise is the same at every call: seed once, when it is made, then go on drawing",
    )
    again = answer(tuple(seeds), shape, 0)
    torch.randn(3)  # somebody else draws in between
    expect(
        torch.equal(again(), first) and torch.equal(again(), second),
        "the same seeds do not give the same noise again: every image needs a generator that is "
        "seeded, and torch's global random numbers must not come in",
    )
    expect(
        untouched,
        "global random numbers are drawn or seeded: whoever else uses them is disturbed; give each "
        "image a torch.Generator of its own",
    )
    many = _calls(answer([4], (2, 3), 2), 40).flatten(1)
    expect(
        len(many.unique(dim=0)) == len(many),
        "after some calls the same noise comes again: every call has to draw afresh",
    )

    together = _calls(answer(seeds, shape, 1), 3)
    alone = torch.cat([_calls(answer([seed], shape, 1), 3) for seed in seeds], dim=1)
    expect(
        torch.equal(together, alone),
        "an image's noise depends on its neighbours in the batch, or on its place among them: "
        "with one generator for all, or one seed made of all, image i changes when its batch "
        "does",
        "Tried with:     seeds [7, 3, 11, 2] in one batch, and each seed alone",
    )
    twice = _calls(answer([5, 5], shape, 1), 2)
    expect(
        torch.equal(twice[:, 0], twice[:, 1]),
        "the same seed twice in a batch gives two different images: its seed alone should count, "
        "not its place",
    )
    mine, yours = answer(seeds, shape, 1), answer(seeds, shape, 1)
    taken = [(mine(), yours()) for _ in range(3)]
    expect(
        all(torch.equal(a, b) for a, b in taken),
        "two sources disturb each other: generators belong to the one object (self), not to all",
    )
    _all_different(answer)

    # statistics; each bound is at least 5 standard deviations of what right answers give
    draws = [_calls(answer([1, 2, 60], (3, 32, 32), stage), 2) for stage in (0, 1, 2)]
    rows = torch.stack(draws).flatten(0, 2)  # (stage, call, seed, 3, 32, 32) -> (18, 3, 32, 32)
    _standard_normal("the noise", rows.double())
    related = torch.corrcoef(rows.flatten(1)) - torch.eye(len(rows))
    expect(
        related.abs().max() < 0.12,
        "the noise of two seeds, stages or calls is related: each is to be drawn for itself",
    )
    for other in (1, 2):
        shared = torch.isin(draws[0][:, 0], draws[other][:, 0]).double().mean()
        expect(
            shared < 0.05,
            "one stage's noise holds the numbers of another's, shifted: each stage needs a stream "
            "of its own, so the stage has to go into the seed too",
        )


# --- 7.3 ------------------------------------------------------------------------------------------


class _Source:
    """Fresh noise at each call, all of which is kept."""

    def __init__(self, inputs: Inputs, *shape: int) -> None:
        self.inputs, self.shape, self.given = inputs, shape, list[Tensor]()

    def __call__(self) -> Tensor:
        self.given.append(self.inputs.normal(*self.shape))
        return self.given[-1].clone()


class _Spy:
    """A stage that notes what it is called with, and draws what was decided before."""

    def __init__(self, out: Tensor) -> None:
        self.out, self.calls = out, list[dict[str, Any]]()

    def __call__(self, text: Any, z: Any, condition: Any = None, level: Any = None) -> Tensor:
        given = {"text": text, "z": z, "condition": condition, "level": level}
        self.calls.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()})
        return self.out[: len(z)].clone() if isinstance(z, Tensor) and z.ndim else self.out.clone()


def _condition(
    stages: Sequence[_Spy],
    noises: Sequence[_Source],
    levels: Sequence[float],
    shift: float,
    i: int,
) -> None:
    """Is the small image that stage i was given the right one, rightly noised?"""
    call, side, batch = stages[i].calls[0], noises[i].shape[-1], noises[i].shape[0]
    raw = stages[i - 1].out
    expect(
        len(noises[i].given) >= 2,
        f"stage {i} has to ask its noise twice: for z, and for the augmentation",
        f"Found:          {len(noises[i].given)} call of noises[{i}]",
    )
    z, noise = noises[i].given[:2]

    def level(number: float) -> tuple[Tensor, Tensor]:
        return cosine_alpha_sigma(torch.full((batch,), float(number)), shift)

    alpha, sigma = level(levels[i])
    default = cosine_alpha_sigma(torch.full((batch,), levels[i]))
    clean = _enlarged(raw.clamp(-1, 1), side, side)
    expected = (alpha * clean + sigma * noise).float()
    mistakes: dict[str, Tensor | float] = {
        "the small image is handed on without noise: the augmentation is left out, or at level "
        "0": clean,
        "the noise that the stage starts from was used for the augmentation too: then the network "
        "sees its own z in the condition; draw fresh noise": alpha * clean + sigma * z,
        "the image before is handed on as it came, beyond [-1, 1]: clamp it first": (
            alpha * _enlarged(raw, side, side) + sigma * noise
        ),
        "the pixels were repeated (nearest): enlarge bilinearly, with resize": (
            alpha * _nearest(raw.clamp(-1, 1), side, side) + sigma * noise
        ),
        "the noisy condition was clamped: clamp the image, before the noise comes; noise has no "
        "bounds": expected.clamp(-1, 1),
        "alpha and sigma are swapped: at a low level most is image": (
            sigma * clean + alpha * noise
        ),
        "noise is added, but the image is not turned down by alpha": clean + sigma * noise,
        "this is not the noise of the schedule that was given": (
            default[0] * clean + default[1] * noise
        ),
        "condition and level are in the wrong order: stages[i](text, z, condition, level)": (
            torch.full((batch,), levels[i])
        ),
    }
    for number in {*levels, 1 - levels[i]} - {levels[i], 0.0}:
        a, s = level(number)
        words = f"the condition is noised at level {number:g}; stage {i} has level {levels[i]:g}"
        mistakes[words] = a * clean + s * noise
    if i > 1:
        before = _enlarged(stages[i - 2].out.clamp(-1, 1), side, side)
        mistakes["this enlarges the base's image: each stage gets that of the stage before it"] = (
            alpha * before + sigma * noise
        )
        damaged = _enlarged(stages[i - 1].calls[0]["condition"].clamp(-1, 1), side, side)
        mistakes["the noisy condition of the stage before is handed on, and not its image"] = (
            alpha * damaged + sigma * noise
        )
    if len(noises[i - 1].given) >= 2:
        early = alpha * raw.clamp(-1, 1) + sigma * noises[i - 1].given[-1]
        mistakes["the noise comes before the enlarging, which blurs it: enlarge first"] = _enlarged(
            early, side, side
        )
    equal(
        call["condition"],
        expected,
        f"stage {i} is to see the image of stage {i - 1}: clamped, enlarged to its own side, "
        "then noised at its own level with noise of its own source (the second call)",
        mistakes,
        case=f"stage {i} of {len(stages)}, level {levels[i]:g}",
        tolerance=1e-3,
    )
    expect(
        call["level"].shape == (batch,),
        f"stage {i} has to be told its level once for each image, shape (B,)",
        f"Expected shape: {(batch,)}\nFound shape:    {tuple(call['level'].shape)}",
    )
    told = {
        "the network is told level 0, that its small image is clean: tell it the level of the "
        "noise": torch.zeros(batch),
        "the network is told the level of another stage": torch.full((batch,), levels[i - 1]),
        "the network is told 1 - level": torch.full((batch,), 1 - levels[i]),
    }
    equal(
        call["level"],
        torch.full((batch,), levels[i]),
        f"stage {i} has to be told its own level",
        told,
        case=f"stage {i} of {len(stages)}, level {levels[i]:g}",
    )


@lesson.exercise(
    "The cascade, stage after stage",
    look='"Sampling, written out" in the lesson; 2205.11487, sec. 2.4 and 2.5',
)
def cascade(answer: Callable[..., list[Tensor]]) -> None:
    """answer(stages, text, noises, levels, schedule) -> a batch (B, 3, side, side) for each stage.

    stages[0](text, z) and stages[i](text, z, condition, level) draw; noises[i]() is fresh noise.
    """
    inputs = Inputs(703)
    for batch, sides, levels, shift in (
        (3, (4, 8, 24), (0.9, 0.1, 0.4), 1.0),
        (1, (6, 16), (0.5, 0.25), 0.5),
        (2, (8,), (0.3,), 1.0),
        (2, (2, 3, 6, 12), (0.9, 0.05, 0.6, 0.0), 1.0),
    ):
        text = inputs.normal(batch, 5, 4)
        noises = [_Source(inputs, batch, 3, side, side) for side in sides]
        outs = [inputs.normal(batch, 3, side, side) for side in sides]  # a third is beyond [-1, 1]
        stages = [_Spy(out) for out in outs]
        found = answer(list(stages), text, list(noises), list(levels), NoiseSchedule(shift=shift))
        expect(
            isinstance(found, (list, tuple)) and len(found) == len(stages),
            "a list with one batch of images for each stage is due, the base's first",
            f"Tried with:     {len(stages)} stages",
        )
        for i, stage in enumerate(stages):
            expect(
                len(stage.calls) == 1,
                f"stage {i} has to be called once, for the whole batch",
                f"Tried with:     {len(stages)} stages\nFound:          {len(stage.calls)} calls",
            )
            call = stage.calls[0]
            expect(
                all(isinstance(call[name], Tensor) for name in list(call)[: 4 if i else 2]),
                f"what stage {i} is given has to be tensors, all of them: "
                + ("stages[i](text, z, condition, level)" if i else "stages[0](text, z)"),
            )
            equal(
                call["text"],
                text,
                f"stage {i} has to be told the captions, as they are: super-resolution reads them "
                "too",
            )
            expect(noises[i].given, f"stage {i} has to start from noise, noises[{i}]()")
            starts: dict[str, Tensor | float] = {
                "the stage starts from zeros, not from noise": 0.0 * outs[i]
            }
            if len(noises[i].given) > 1:
                starts[
                    "the two draws of a stage are in the wrong order: the first one is what it "
                    "starts from, the second that of the augmentation"
                ] = noises[i].given[1]
            if i > 0:
                small = outs[i - 1].clamp(-1, 1)
                starts[
                    "super-resolution starts from pure noise, as the base does; the small image "
                    "is told beside it, as the condition"
                ] = _enlarged(small, sides[i], sides[i])
            equal(
                call["z"],
                noises[i].given[0],
                f"stage {i} has to start from pure noise of its own size, the first that "
                f"noises[{i}]() gives",
                starts,
            )
            if i > 0:
                _condition(stages, noises, levels, shift, i)
            else:
                nothing = call["condition"] is None and call["level"] is None
                expect(nothing, "the base stage is told no small image: stages[0](text, z)")
        for i, (images, out) in enumerate(zip(found, outs, strict=True)):
            wrong: dict[str, Tensor | float] = {
                "the images are not clamped: what a stage draws may leave [-1, 1]": out,
                "the images are returned in [0, 1]; everywhere else in the course they are in "
                "[-1, 1]": (out.clamp(-1, 1) + 1) / 2,
            }
            if i > 0:
                wrong["the noisy condition is returned in place of the stage's image"] = stages[
                    i
                ].calls[0]["condition"]
            if i + 1 < len(stages):
                wrong["the damaged copy, made for the next stage, is returned as the image"] = (
                    stages[i + 1].calls[0]["condition"]
                )
            equal(
                images,
                out.clamp(-1, 1),
                f"entry {i} of the list has to be what stage {i} drew, clamped to [-1, 1]",
                wrong,
                case=f"{len(stages)} stages",
            )


# --- 7.4 ------------------------------------------------------------------------------------------

PARTS = ("z", "t", "eps", "condition", "level")


def _five(found: Any, x: Tensor) -> dict[str, Tensor]:
    """The five parts of an answer, after a look at their shapes."""
    expect(
        isinstance(found, (tuple, list)) and len(found) == 5,
        "five tensors are due: return z, t, eps, condition, level",
    )
    for name, part in zip(PARTS, found, strict=True):
        due = x.shape[:1] if name in ("t", "level") else x.shape
        expect(isinstance(part, Tensor), f"{name} has to be a tensor")
        expect(
            part.shape == due,
            f"{name} has the wrong shape: one time and one level for each image, and everything "
            "else is as large as x",
            f"Expected shape: {tuple(due)}\nFound shape:    {tuple(part.shape)}",
        )
        expect(part.dtype == x.dtype, f"{name} has to have the precision (dtype) of x")
    parts = dict(zip(PARTS, found, strict=True))
    for name in ("t", "level"):
        inside = (parts[name] >= 0) & (parts[name] <= 1)
        expect(inside.all(), f"{name} has to lie between 0 and 1, and to be uniform: torch.rand")
    for name, part in parts.items():
        expect(part.isfinite().all(), f"{name} is not finite everywhere")
    return parts


def _z_and_condition(
    parts: dict[str, Tensor], empty: Tensor, x: Tensor, side: int, shift: float
) -> Tensor:
    """Do z and the condition follow from x and what else was returned? The condition's noise.

    empty: the condition for the same random numbers and an image of zeros: nothing but noise
    """
    large = x.shape[-1]
    case = f"images of {large} pixels, {side} in the stage before"
    x, eps, condition = (part.double() for part in (x, parts["eps"], parts["condition"]))
    alpha, sigma = cosine_alpha_sigma(parts["t"], shift)
    default = cosine_alpha_sigma(parts["t"])
    a, s = cosine_alpha_sigma(parts["level"], shift)
    small = _means(x, large // side)
    clean = _enlarged(small, large, large)
    equal(
        parts["z"],
        (alpha * x + sigma * eps).float(),
        "z = alpha x + sigma eps, with the eps that is returned, and with alpha and sigma at each "
        "image's own t",
        {
            "alpha and sigma are swapped in z": sigma * x + alpha * eps,
            "z is noised at the level, which belongs to the condition; z has the time t": (
                a * x + s * eps
            ),
            "z is made from the enlarged small image; the stage is to learn the detail, so it "
            "is made from x itself": alpha * clean + sigma * eps,
            "z is x without noise": x,
            "this is not the noise of the schedule that was given": (
                default[0] * x + default[1] * eps
            ),
        },
        case=case,
        tolerance=2e-3,
    )
    expect(
        condition.abs().max() != 1, "the condition was clamped after the noise; noise has no bounds"
    )
    expect(
        empty.abs().max() > 1e-3, "the condition is not noised at all: the augmentation is missing"
    )
    equal(
        (condition - empty).float(),
        (a * clean).float(),
        "the condition, less its noise, is not x, brought down to the small side, enlarged, and "
        "turned down by alpha at the level that was returned: c = alpha_s enlarged + sigma_s noise",
        {
            "the condition is x with noise, and not a small image enlarged: it would tell the "
            "stage the detail that it is to learn": a * x,
            "the condition is noised at the time t; it has a level of its own, drawn apart from "
            "t": alpha * clean,
            "the condition was made from z, which is noised; it is made from the same clean x": (
                a * alpha * clean
            ),
            "the condition is enlarged by repeating pixels (nearest); use resize": (
                a * _nearest(small, large, large)
            ),
            "the small image takes one pixel of each square, and not the mean; use resize": (
                a * _enlarged(_nearest(x, side, side), large, large)
            ),
            "alpha and sigma are swapped in the condition": s * clean,
            "the condition is not turned down by alpha": clean,
        },
        case=case,
        tolerance=2e-3,
    )
    noise = empty / s
    expect(
        correlation(noise[..., 1:], noise[..., :-1]) < 0.3,
        "the noise of the condition comes before the enlarging, which blurs it: enlarge first, "
        "then augment",
    )
    return noise


@lesson.exercise(
    "What a super-resolution stage trains on",
    look="2106.15282 (conditioning augmentation) and 2205.11487, sec. 2.4; Stage.training_noise "
    "and Stage.forward in minimagen/imagen.py",
)
def training_inputs(answer: Callable[..., tuple[Tensor, ...]]) -> None:
    """answer(x, side, schedule, generator) -> (z, t, eps, condition, level).

    x (B, C, H, H) in [-1, 1]; side: of the images of the stage before; t and level are (B,).
    """
    inputs = Inputs(704)
    for shape, side, shift in (
        ((8, 3, 24, 24), 6, 1.0),
        ((1, 1, 32, 32), 16, 1.0),
        ((6, 1, 27, 27), 9, 0.5),
    ):
        x = inputs.normal(*shape).sign() * inputs.uniform(*shape, low=0.2)
        schedule = NoiseSchedule(shift=shift)
        for seed in (1, 2, 3):
            state = torch.get_rng_state()
            parts, again, empty = (
                _five(answer(y, side, schedule, torch.Generator().manual_seed(seed)), y)
                for y in (x, x, torch.zeros_like(x))
            )
            expect(
                all(close(parts[name], again[name]) for name in PARTS)
                and torch.equal(state, torch.get_rng_state()),
                "all random numbers have to come from the generator: give generator=generator to "
                "every torch.rand and torch.randn (also in place of randn_like)",
            )
            for name, words in (("t", "time"), ("level", "level")):
                expect(
                    2 * len(parts[name].unique()) >= len(x),
                    f"the images of a batch share one {words}: each gets its own",
                )
            expect(
                not close(parts["t"], parts["level"]),
                "the level is the time t: the two are drawn apart, so that the stage meets a "
                "noisy z with a clean condition, and the other way round",
            )
            eps = parts["eps"].double()
            noise = _z_and_condition(parts, empty["condition"].double(), x, side, shift)
            _standard_normal("eps", eps)
            _standard_normal("the noise of the condition", noise)
            rows = torch.cat([eps, noise]).flatten(1)  # (2 B, C*H*W)
            related = (torch.corrcoef(rows) - torch.eye(len(rows))).abs()
            room = 7 / rows.shape[1] ** 0.5
            expect(
                related[: len(x), len(x) :].diagonal().max() < room,
                "z and the condition have the same noise (or related noise): the network could "
                "read eps off the condition; draw noise for each",
            )
            expect(
                related.max() < room,
                "two images of a batch have the same noise (or related noise): each gets its own",
            )

    x, schedule, generator = inputs.uniform(1000, 1, 4, 4), NoiseSchedule(), torch.Generator()
    parts, later, other = (
        _five(answer(x, 2, schedule, generator.manual_seed(seed) if seed else generator), x)
        for seed in (5, None, 6)
    )
    for name in PARTS:
        expect(
            not torch.equal(parts[name], later[name]) and not torch.equal(parts[name], other[name]),
            f"{name} is the same at every call: draw from the generator that was given, and do not "
            "seed it",
        )
    for name in ("t", "level"):
        values = parts[name].double()
        mean, variance = float(values.mean()), float(values.var())
        expect(
            abs(mean - 0.5) < 0.046 and abs(variance - 1 / 12) < 0.012,  # 5 standard deviations
            f"{name} has to be uniform between 0 and 1: torch.rand",
            f"Found:          mean {mean:.3f}, variance {variance:.3f} for 1000 images, where "
            "0.5 and 0.083 are due",
        )
    expect(
        abs(correlation(parts["t"], parts["level"])) < 0.17,
        "t and level are related: the two are drawn apart, so that the stage meets a noisy z with "
        "a clean condition, and the other way round",
    )


# --- 7.5 ------------------------------------------------------------------------------------------


def _repeat(x: Tensor, k: int) -> Tensor:
    return x.repeat_interleave(k, dim=2).repeat_interleave(k, dim=3)


def _detail(inputs: Inputs, small: Tensor, k: int) -> Tensor:
    """What only the large image can show: noise whose mean over each k x k pixels is 0."""
    height, width = k * small.shape[2], k * small.shape[3]
    fine = inputs.uniform(*small.shape[:2], height, width, low=-0.2, high=0.2, dtype=small.dtype)
    return fine - _repeat(_means(fine, k).to(small.dtype), k)


def _measured(answer: Callable[[Tensor, Tensor], Tensor], small: Tensor, large: Tensor) -> Tensor:
    """The answer in float64, after a look at its shape and range."""
    found = answer(small, large)
    expect(isinstance(found, Tensor), "a tensor is due: one number for each image")
    expect(
        found.shape == small.shape[:1],
        "one number for each image is due, shape (B,)",
        f"Expected shape: {tuple(small.shape[:1])}\nFound shape:    {tuple(found.shape)}",
    )
    expect(found.dtype == small.dtype, "the result has to have the precision (dtype) of the images")
    expect(found.isfinite().all(), "the result has to be finite, for flat images too")
    expect(
        bool((found >= -1e-5).all() and (found <= 1 + 1e-5).all()),
        "the result has to lie between 0 (all is kept) and 1",
        f"Found:          {found.min():.3g} to {found.max():.3g}",
    )
    return found.detach().double()


@lesson.exercise(
    "Design: did the second stage keep the image?",
    look='SR3, 2104.07636, measures "consistency": the difference of the small image and the '
    'large one, made small again; "Who decides what?" in the lesson',
)
def kept(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """answer(small, large) -> change, (B,) in [0, 1]; (B, C, h, w) and (B, C, k h, k w)."""
    inputs = Inputs(705)
    for dtype in PRECISIONS:
        for shape, k in (((5, 3, 6, 8), 4), ((4, 1, 5, 4), 3), ((1, 3, 16, 16), 2)):
            small = inputs.uniform(*shape, low=-0.8, high=0.8, dtype=dtype)
            case = f"Tried with:     small images of shape {shape}, enlarged {k} times"
            plain = _repeat(small, k)
            detail = _detail(inputs, small, k)
            for words, large in (
                ("a large image that shows just what the small one shows has to get 0: here each "
                 "pixel was repeated k x k times, so the mean of k x k pixels brings the small one "
                 "back", plain),
                ("detail too fine for the small image has to cost nothing, for inventing it is "
                 "the second stage's work: make the large image small again (the mean of k x k "
                 "pixels) before you compare", plain + detail),
            ):  # fmt: skip
                score = _measured(answer, small, large)
                expect(score.max() < 1e-3, words, f"{case}\nFound:          {score.max():.3g}")
            signs = torch.where(torch.arange(shape[2] * shape[3]) % 2 == 0, 0.5, -0.5)
            pattern = signs.reshape(1, 1, *shape[2:]).to(dtype)
            half, strong, white = small / 2, 0.8 * small.sign(), torch.ones_like(small)
            red = torch.tensor([1, -1, -1], dtype=dtype).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
            greatest = "black that became white (or white, black) is the greatest change there is: "
            greatest += "it has to get nearly 1"
            for one, two, least, words in (
                (half, half + pattern, 0.05, "some pixels became lighter and as many darker: the "
                 "differences cancel each other out; take their size before you take the mean"),
                (half, half + 0.5, 0.05, "the whole image became lighter, and that is not "
                 "noticed: it is a change too"),
                (strong, strong / 2, 0.02, "the image lost half of its contrast, and that is not "
                 "noticed: compare values, not directions or ranks"),
                (-white, white, 0.9, greatest),
                (white, -white, 0.9, greatest),
                (red, red.flip(1), 0.1, "red became blue, and that is not noticed: compare every "
                 "channel, not the mean of the three"),
                (small, small.roll(2, 3), 0.05, "everything was moved by two pixels of the small "
                 "image, and that is not noticed: compare place by place"),
            ):  # fmt: skip
                score = _measured(answer, one, _repeat(two, k))
                facts = f"{case}\nFound:          {score.min():.3g}, where {least} at least is due"
                expect(score.min() > least, words, facts)
            target = inputs.uniform(*shape, low=-0.8, high=0.8, dtype=dtype)
            shares = (0.2, 0.4, 0.7, 1.0)
            scores = torch.stack(
                [_measured(answer, small, _repeat(small.lerp(target, w), k)) for w in shares]
            )  # (4, B)
            worst = scores.diff(dim=0).amin(0).argmin()
            expect(
                bool((scores.diff(dim=0) > 0).all() and (scores[0] > 0).all()),
                "the more of another image is mixed in, the larger the change has to be",
                f"{case}\nFound:          "
                + ", ".join(
                    f"{score:.3g} at {w:.0%}"
                    for w, score in zip(shares, scores[:, worst].tolist(), strict=True)
                ),
            )
            mixed = _repeat(small.lerp(target, 0.3), k) + detail
            together = _measured(answer, small, mixed)
            alone = [_measured(answer, a[None], b[None]) for a, b in zip(small, mixed, strict=True)]
            equal(
                together,
                torch.cat(alone),
                "an image's number has to depend on that image alone, not on the others in its "
                "batch",
                tolerance=1e-5,
                case=f"{len(small)} images together, and each alone",
            )
            equal(
                _measured(answer, small, _repeat(mixed, 2)),
                together,
                "how many pixels the large image has must not count: only what it shows",
                tolerance=1e-4,
                case=f"enlarged {k} times, and the same with each pixel repeated, {2 * k} times",
            )
            if len(small) > 1:
                near = _repeat(small.lerp(target, 0.1), k) + detail
                own = _measured(answer, small, near)
                others = [_measured(answer, small, near.roll(n, 0)) for n in range(1, len(small))]
                expect(
                    own.max() < torch.stack(others).min(),
                    "an image's own enlargement, slightly changed, has to get less than those of "
                    "all other images",
                    f"{case}\nFound:          {own.max():.3g} at most for its own, "
                    f"{torch.stack(others).min():.3g} at least for others",
                )

    ratios = []
    for top, left in ((0, 0), (7, 5), (4, 13)):
        flat = torch.full((1, 3, 16, 16), -0.5)
        drawn = flat.clone()
        drawn[..., top : top + 3, left : left + 3] = 0.5
        lost = _measured(answer, drawn, _repeat(flat, 4))
        grain = _measured(answer, drawn, _repeat(drawn + 0.05 * inputs.normal(1, 3, 16, 16), 4))
        expect(
            lost.min() > 1e-3,
            "a small object was lost, and that is not noticed: look at every place",
            f"Tried with:     3 x 3 pixels of 16 x 16, row {top}, column {left}",
        )
        ratios.append(float(lost / grain.clamp(min=1e-9)))
    expect(
        min(ratios) >= 2,
        "a lost object of 3 x 3 pixels out of 16 x 16 has to weigh at least twice as much as faint "
        "grain all over the image (standard deviation 0.05): few large differences should count "
        "more than many small ones",
        f"Found:          {min(ratios):.2f} times as much",
    )
