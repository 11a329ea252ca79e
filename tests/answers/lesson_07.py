"""Answers to the exercises of lesson 07, the cascade."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat

from answers import right, wrong
from minimagen.augmentation import augment, random_levels
from minimagen.checks import lesson_07 as check
from minimagen.diffusion import q_sample
from minimagen.imagen import resize
from minimagen.samplers import NoiseSource
from minimagen.schedules import NoiseSchedule, expand

# --- 7.1 ------------------------------------------------------------------------------------------


def bilinear(x, height, width, **options):
    return F.interpolate(x, size=(height, width), mode="bilinear", **options)


@right(check.small_and_enlarged)
def pooled(x, k):
    small = F.avg_pool2d(x, k)
    return small, F.interpolate(small, scale_factor=k, mode="bilinear", align_corners=False)


@right(check.small_and_enlarged)
def by_einops(x, k):
    small = reduce(x, "b c (h k) (w l) -> b c h w", "mean", k=k, l=k)
    return [small, bilinear(small, *x.shape[2:], antialias=True)]


@right(check.small_and_enlarged)
def by_area(x, k):
    height, width = x.shape[-2:]
    small = F.interpolate(x, size=(height // k, width // k), mode="area")
    return small, bilinear(small, height, width)


@right(check.small_and_enlarged)
def image_by_image(x, k):
    height, width = x.shape[-2:]
    small = torch.stack([F.adaptive_avg_pool2d(p, (height // k, width // k)) for p in x])
    return small, torch.cat([bilinear(p[None], height, width) for p in small])


@right(check.small_and_enlarged)
def by_triangles(x, k):
    """A small pixel k wide spreads out to both sides, down to nothing at k from its centre."""

    def spread(few):
        where = ((torch.arange(few * k, dtype=x.dtype) + 0.5) / k - 0.5).clamp(0, few - 1)
        return (1 - (where[:, None] - torch.arange(few)).abs()).clamp(min=0)

    small = rearrange(x, "b c (h k) (w l) -> b c h w (k l)", k=k, l=k).mean(-1)
    return small, spread(small.shape[2]) @ small @ spread(small.shape[3]).T


@wrong(check.small_and_enlarged, "thrown away")
def every_kth_pixel(x, k):
    small = x[..., ::k, ::k]
    return small, bilinear(small, *x.shape[2:])


@wrong(check.small_and_enlarged, "thrown away")
def nearest_down(x, k):
    small = F.interpolate(x, scale_factor=1 / k, mode="nearest")
    return small, bilinear(small, *x.shape[2:])


@wrong(check.small_and_enlarged, "four pixels in the middle")
def without_antialias(x, k):
    small = bilinear(x, x.shape[2] // k, x.shape[3] // k)
    return small, bilinear(small, *x.shape[2:])


@wrong(check.small_and_enlarged, "lets the neighbouring squares in")
def with_antialias(x, k):
    small = bilinear(x, x.shape[2] // k, x.shape[3] // k, antialias=True)
    return small, bilinear(small, *x.shape[2:])


@wrong(check.small_and_enlarged, "not divided")
def added_up(x, k):
    small = F.avg_pool2d(x, k) * k**2
    return small, bilinear(small, *x.shape[2:])


@wrong(check.small_and_enlarged, "(nearest)")
def repeated(x, k):
    small = F.avg_pool2d(x, k)
    return small, repeat(small, "b c h w -> b c (h k) (w l)", k=k, l=k)


@wrong(check.small_and_enlarged, "align_corners")
def corners_aligned(x, k):
    small = F.avg_pool2d(x, k)
    return small, bilinear(small, *x.shape[2:], align_corners=True)


@wrong(check.small_and_enlarged, "bicubic")
def cubic(x, k):
    small = F.avg_pool2d(x, k)
    return small, F.interpolate(small, scale_factor=k, mode="bicubic")


@wrong(check.small_and_enlarged, "height and width are swapped")
def sides_swapped(x, k):
    small = F.avg_pool2d(x, k)
    return small, bilinear(small, *x.shape[:1:-1])


@wrong(check.small_and_enlarged, "not every image is square")
def square_only(x, k):
    small = F.avg_pool2d(x, k)
    return small, F.interpolate(small, size=x.shape[2], mode="bilinear")


@wrong(check.small_and_enlarged, "this is x itself")
def nothing_lost(x, k):
    return F.avg_pool2d(x, k), x


@wrong(check.small_and_enlarged, "return small, enlarged")
def enlarged_alone(x, k):
    return bilinear(F.avg_pool2d(x, k), *x.shape[2:])


@wrong(check.small_and_enlarged, "in the wrong order")
def the_other_order(x, k):
    return pooled(x, k)[::-1]


@wrong(check.small_and_enlarged, "float64")
def always_single_precision(x, k):
    return pooled(x.float(), k)


@wrong(check.small_and_enlarged, "mean of the k x k pixels")
def neighbours_too(x, k):
    small = F.avg_pool2d(x, k + 1, stride=k, padding=(k + 1) // 2)
    return small[..., : x.shape[2] // k, : x.shape[3] // k], x


@wrong(check.small_and_enlarged, "mean of the k x k pixels")
def squares_mixed_up(x, k):
    batch, channels, height, width = x.shape
    small = x.reshape(batch, channels, k, height // k, k, width // k).mean((2, 4))
    return small, bilinear(small, *x.shape[2:])


@wrong(check.small_and_enlarged, "enlarged bilinearly, to the height")
def darker_at_the_edges(x, k):
    small = F.avg_pool2d(x, k)
    larger = bilinear(F.pad(small, (1, 1, 1, 1)), x.shape[2] + 2 * k, x.shape[3] + 2 * k)
    return small, larger[..., k : k + x.shape[2], k : k + x.shape[3]]


@wrong(check.small_and_enlarged, "enlarged bilinearly, to the height")
def smoothed_blocks(x, k):
    small = F.avg_pool2d(x, k)
    blocks = repeat(small, "b c h w -> b c (h k) (w l)", k=k, l=k)
    return small, F.avg_pool2d(blocks, 3, stride=1, padding=1, count_include_pad=False)


@wrong(check.small_and_enlarged, "mean of the k x k pixels")
def scaled_to_0_1(x, k):
    return tuple((images + 1) / 2 for images in pooled(x, k))


@wrong(check.small_and_enlarged, "mean of the k x k pixels")
def rounded_to_8_bits(x, k):
    small = (F.avg_pool2d(x, k) * 127.5).round() / 127.5
    return small, bilinear(small, *x.shape[2:])


# --- 7.2 ------------------------------------------------------------------------------------------


@right(check.noise_per_image)
class ByThePackage(NoiseSource):
    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stream=stage)


@right(check.noise_per_image)
def a_closure(seeds, shape, stage):
    generators = [torch.Generator().manual_seed(1_000_000 * stage + seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(*shape, generator=g) for g in generators])


@right(check.noise_per_image)
class ByNumpy:
    def __init__(self, seeds, shape, stage):
        self.generators = [np.random.default_rng([seed, stage]) for seed in seeds]
        self.shape = shape

    def __call__(self):
        rows = [g.standard_normal(self.shape, dtype=np.float32) for g in self.generators]
        return torch.from_numpy(np.stack(rows))


@right(check.noise_per_image)
class Counting:
    """A new generator for each call, seeded by seed, stage and the number of the call."""

    def __init__(self, seeds, shape, stage):
        self.keys, self.shape, self.number = [(seed, stage) for seed in seeds], shape, 0

    def __call__(self):
        self.number += 1
        noise = torch.empty(len(self.keys), *self.shape)
        for i, key in enumerate(self.keys):
            seed = hash((*key, self.number)) % 2**32
            noise[i].normal_(generator=torch.Generator().manual_seed(seed))
        return noise


@right(check.noise_per_image)
def a_generator(seeds, shape, stage):
    def rows(seed):
        generator = torch.Generator().manual_seed(seed * 10 + stage)
        while True:
            yield torch.randn(shape, generator=generator)

    streams = zip(*map(rows, seeds), strict=True)
    return lambda: torch.stack(next(streams))


class Source:
    """A generator for each image; the wrong answers change a part of it."""

    def __init__(self, seeds, shape, stage):
        self.seeds, self.shape, self.stage = list(seeds), tuple(shape), stage
        self.generators = [torch.Generator().manual_seed(self.mix(seed)) for seed in seeds]

    def mix(self, seed):
        return 10 * seed + self.stage

    def __call__(self):
        return torch.stack([self.one(g) for g in self.generators])

    def one(self, generator):
        return torch.randn(self.shape, generator=generator)


@wrong(check.noise_per_image, "depends on its neighbours")
class OneGenerator(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__(seeds[:1], (len(seeds), *shape), stage)

    def __call__(self):
        return super().__call__()[0]


@wrong(check.noise_per_image, "depends on its neighbours")
class SeedOfAllSeeds(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__([sum(seeds) + i for i in range(len(seeds))], shape, stage)


@wrong(check.noise_per_image, "depends on its neighbours")
class ScaledOverTheBatch(Source):
    def __call__(self):
        noise = super().__call__()
        return (noise - noise.mean()) / noise.std()


@wrong(check.noise_per_image, "the same at every call")
class SeededAtEachCall(Source):
    def __call__(self):
        self.__init__(self.seeds, self.shape, self.stage)
        return super().__call__()


@wrong(check.noise_per_image, "two stages get the same noise")
class OneStreamForAllStages(Source):
    def mix(self, seed):
        return seed


@wrong(check.noise_per_image, "their sum is not enough")
class SeedPlusStage(Source):
    def mix(self, seed):
        return seed + self.stage


@wrong(check.noise_per_image, "no two pairs meet")
class SeedTimesStage(Source):
    def mix(self, seed):
        return seed * (self.stage + 1) + self.stage


@wrong(check.noise_per_image, "seed 100000, stage 0, call 1 and seed 0, stage 1")
class TooFewSeedsForEachStage(Source):
    def mix(self, seed):
        return seed + 100_000 * self.stage


@wrong(check.noise_per_image, "there are a million seeds")
class SeedAndAPrimeTimesStage(Source):
    def mix(self, seed):
        return seed + 31 * self.stage


@wrong(check.noise_per_image, "comes again at another call")
class StagesSkipAhead(Source):
    def mix(self, seed):
        return seed

    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stage)
        for _ in range(stage):
            self()


@wrong(check.noise_per_image, "shifted")
class StagesSkipSomeNumbers(Source):
    def mix(self, seed):
        return seed

    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stage)
        for generator in self.generators:
            torch.randn(32 * stage, generator=generator)


@wrong(check.noise_per_image, "is related")
class StagesTurnTheSign(Source):
    def mix(self, seed):
        return 10 * seed + self.stage // 2

    def __call__(self):
        return super().__call__() * (-1) ** self.stage * (1 + self.stage / 1e6)


@wrong(check.noise_per_image, "must not come in")
class GlobalNumbers(Source):
    def __call__(self):
        return torch.randn(len(self.seeds), *self.shape)


@wrong(check.noise_per_image, "whoever else uses them is disturbed")
class GlobalSeed(Counting):
    def __call__(self):
        self.number += 1
        rows = []
        for key in self.keys:
            torch.manual_seed(hash((*key, self.number)) % 2**32)
            rows.append(torch.randn(self.shape))
        return torch.stack(rows)


@wrong(check.noise_per_image, "not its place")
class AGeneratorForEachSeed(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stage)
        known = dict(zip(seeds, self.generators, strict=True))
        self.generators = [known[seed] for seed in seeds]


@wrong(check.noise_per_image, "its place among them")
class SortedSeeds(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__(sorted(seeds), shape, stage)


@wrong(check.noise_per_image, "two different seeds")
class ForgottenSeed(Source):
    def mix(self, seed):
        return self.stage


@wrong(check.noise_per_image, "after some calls")
class PreparedInAdvance(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stage)
        self.rows = [Source.__call__(self) for _ in range(10)]
        self.number = 0

    def __call__(self):
        self.number += 1
        return self.rows[self.number % 10].clone()


@wrong(check.noise_per_image, "the same at every call")
class DrawnOnce(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stage)
        self.noise = Source.__call__(self)

    def __call__(self):
        return self.noise.clone()


@wrong(check.noise_per_image, "whoever else uses them is disturbed")
class NumpysGlobalSeed(Source):
    number = 0

    def __call__(self):
        self.number += 1
        rows = []
        for seed in self.seeds:
            np.random.seed((1000 * self.mix(seed) + self.number) % 2**32)
            rows.append(torch.from_numpy(np.random.randn(*self.shape)).float())
        return torch.stack(rows)


@wrong(check.noise_per_image, "the same seeds do not give the same noise")
class SeededByTheSystem(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stage)
        for generator in self.generators:
            generator.seed()


@wrong(check.noise_per_image, "disturb each other")
class SharedByAllObjects(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stage)
        type(self).generators = self.__dict__.pop("generators")


@wrong(check.noise_per_image, "return a new tensor")
class OneBuffer(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stage)
        self.buffer = torch.empty(len(seeds), *shape)

    def __call__(self):
        return self.buffer.copy_(super().__call__())


@wrong(check.noise_per_image, "mean 0 and variance 1")
class UniformNoise(Source):
    def one(self, generator):
        return torch.rand(self.shape, generator=generator)


@wrong(check.noise_per_image, "normal (Gaussian)")
class UniformOfVariance1(Source):
    def one(self, generator):
        return (2 * torch.rand(self.shape, generator=generator) - 1) * 3**0.5


@wrong(check.noise_per_image, "neighbouring pixels or channels")
class GreyNoise(Source):
    def one(self, generator):
        return torch.randn(self.shape[1:], generator=generator).expand(self.shape)


@wrong(check.noise_per_image, "is to be called")
def the_noise_itself(seeds, shape, stage):
    return Source(seeds, shape, stage)()


@wrong(check.noise_per_image, "the list of seeds was changed")
class TakesTheSeedsAway(Source):
    def __init__(self, seeds, shape, stage):
        super().__init__(seeds, shape, stage)
        if isinstance(seeds, list):
            seeds.clear()


@wrong(check.noise_per_image, "float32")
class DoublePrecision(Source):
    def one(self, generator):
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


# --- 7.3 ------------------------------------------------------------------------------------------


def run(
    stages,
    text,
    noises,
    levels,
    schedule,
    before=lambda images: images.clamp(-1, 1),
    enlarge=resize,
    noised=augment,
    told=lambda level: level,
    after=lambda images: images.clamp(-1, 1),
):
    """The cascade; the wrong answers change a part of it."""
    images, found = None, []
    for i, stage in enumerate(stages):
        z = noises[i]()
        if i == 0:
            images = stage(text, z)
        else:
            level = torch.full((len(z),), levels[i])
            condition = noised(enlarge(before(images), z.shape[-1]), level, noises[i](), schedule)
            images = stage(text, z, condition, told(level))
        found.append(after(images))
    return found


@right(check.cascade)
def base_first_then_the_others(stages, text, noises, levels, schedule):
    found = [stages[0](text, noises[0]()).clamp(-1, 1)]
    for stage, noise, level in zip(stages[1:], noises[1:], levels[1:], strict=True):
        z, level = noise(), torch.tensor([level] * len(text))
        enlarged = resize(found[-1], z.shape[-1])
        condition = augment(enlarged, level, noise(), schedule)
        found.append(stage(text, z, condition, level).clamp(-1, 1))
    return found


@right(check.cascade)
def without_the_package(stages, text, noises, levels, schedule):
    found = ()
    for i in range(len(stages)):
        z, given = noises[i](), {}
        if i > 0:
            level = torch.ones(z.shape[0]) * levels[i]
            alpha, sigma = schedule.alpha_sigma(level[:, None, None, None])
            large = F.interpolate(found[-1], size=z.shape[2:], mode="bilinear")
            given = {"condition": alpha * large + sigma * noises[i](), "level": level}
        found += (torch.clip(stages[i](text, z, **given), -1, 1),)
    return found


@right(check.cascade)
def by_itself(stages, text, noises, levels, schedule):
    """A cascade is a shorter cascade and one stage more."""
    if len(stages) == 1:
        return [stages[0](text, noises[0]()).clamp(-1, 1)]
    found = by_itself(stages[:-1], text, noises[:-1], levels[:-1], schedule)
    z, noise = noises[-1](), noises[-1]()
    level = torch.full_like(text[:, 0, 0], levels[-1])
    condition = augment(resize(found[-1], z.shape[-1]), level, noise, schedule)
    return [*found, stages[-1](text, z, condition, level).clamp(-1, 1)]


@right(check.cascade)
def noise_of_all_stages_first(stages, text, noises, levels, schedule):
    drawn = [[noise(), noise()] for noise in noises]
    return run(stages, text, [partial(next, iter(pair)) for pair in drawn], levels, schedule)


@wrong(check.cascade, "the augmentation is left out")
def not_augmented(*given):
    return run(*given, noised=lambda enlarged, *_: enlarged)


@right(check.cascade)
def stages_taken_from_the_list(stages, text, noises, levels, schedule):
    images, found = None, []
    while stages:
        stage, noise, level = stages.pop(0), noises.pop(0), levels.pop(0)
        given = [text, noise()]
        if found:
            level = torch.tensor(level).repeat(len(text))
            large = resize(found[-1], given[1].shape[-1])
            given += [augment(large, level, noise(), schedule), level]
        images = stage(*given)
        found.append(images.clamp_(-1, 1))
    return found


@wrong(check.cascade, "or at level 0")
def augmented_at_level_0(*given):
    return run(*given, noised=lambda x, level, *more: augment(x, 0 * level, *more))


@wrong(check.cascade, "told level 0")
def not_told_the_level(*given):
    return run(*given, told=torch.zeros_like)


@wrong(check.cascade, "shape (B,)")
def told_one_level_for_all(*given):
    return run(*given, told=lambda level: level[:1].reshape(()))


@wrong(check.cascade, "noised at level 0.9; stage 1 has level 0.1")
def level_of_the_stage_before(stages, text, noises, levels, schedule):
    return run(stages, text, noises, [levels[0], *levels[:-1]], schedule)


@wrong(check.cascade, "level of another stage")
def told_the_level_of_the_stage_before(stages, text, noises, levels, schedule):
    left = iter(levels)
    return run(
        stages, text, noises, levels, schedule, told=lambda s: torch.full_like(s, next(left))
    )


@wrong(check.cascade, "has level 0.4")
def the_same_level_everywhere(stages, text, noises, levels, schedule):
    return run(stages, text, noises, [levels[min(1, len(levels) - 1)]] * len(levels), schedule)


@wrong(check.cascade, "clamp it first")
def clamped_at_the_end_only(*given):
    return run(*given, before=lambda images: images)


@wrong(check.cascade, "the images are not clamped")
def clamped_for_the_next_stage_only(*given):
    return run(*given, after=lambda images: images)


@wrong(check.cascade, "in [0, 1]")
def returned_in_0_1(*given):
    return run(*given, after=lambda images: (images.clamp(-1, 1) + 1) / 2)


@wrong(check.cascade, "noise has no bounds")
def condition_clamped(*given):
    return run(*given, noised=lambda *them: augment(*them).clamp(-1, 1))


@wrong(check.cascade, "enlarge bilinearly")
def enlarged_by_repeating(*given):
    return run(*given, enlarge=lambda x, side: F.interpolate(x, size=side))


@wrong(check.cascade, "alpha and sigma are swapped")
def alpha_for_sigma(*given):
    def noised(enlarged, level, noise, schedule):
        alpha, sigma = schedule.alpha_sigma(expand(level, enlarged))
        return sigma * enlarged + alpha * noise

    return run(*given, noised=noised)


@wrong(check.cascade, "not turned down by alpha")
def noise_only_added(*given):
    def noised(enlarged, level, noise, schedule):
        return enlarged + schedule.alpha_sigma(expand(level, enlarged))[1] * noise

    return run(*given, noised=noised)


@wrong(check.cascade, "then noised at its own level")
def level_as_the_amount(*given):
    def noised(enlarged, level, noise, schedule):
        level = expand(level, enlarged)
        return (1 - level) * enlarged + level * noise

    return run(*given, noised=noised)


@wrong(check.cascade, "has to ask its noise twice")
def one_noise_for_both(stages, text, noises, levels, schedule):
    drawn = [noise() for noise in noises]
    return run(stages, text, [lambda z=z: z for z in drawn], levels, schedule)


@wrong(check.cascade, "the two draws of a stage are in the wrong order")
def draws_in_the_other_order(stages, text, noises, levels, schedule):
    drawn = [[noise(), noise()][::-1] for noise in noises]
    return run(stages, text, [partial(next, iter(pair)) for pair in drawn], levels, schedule)


@wrong(check.cascade, "has to ask its noise twice")
def noise_of_its_own_making(stages, text, noises, levels, schedule):
    def twice(noise):
        first = noise()
        yield first
        yield torch.randn_like(first)

    return run(stages, text, [partial(next, twice(noise)) for noise in noises], levels, schedule)


@wrong(check.cascade, "enlarge first")
def noise_before_enlarging(stages, text, noises, levels, schedule):
    found = [stages[0](text, noises[0]()).clamp(-1, 1)]
    for i in range(1, len(stages)):
        z, level = noises[i](), torch.full((len(text),), levels[i])
        noises[i]()
        small = augment(found[-1], level, noises[i - 1](), schedule)
        condition = resize(small, z.shape[-1])
        found.append(stages[i](text, z, condition, level).clamp(-1, 1))
    return found


@wrong(check.cascade, "that of the stage before it")
def always_from_the_base(stages, text, noises, levels, schedule):
    found = [stages[0](text, noises[0]()).clamp(-1, 1)]
    for i in range(1, len(stages)):
        z, level = noises[i](), torch.full((len(text),), levels[i])
        condition = augment(resize(found[0], z.shape[-1]), level, noises[i](), schedule)
        found.append(stages[i](text, z, condition, level).clamp(-1, 1))
    return found


def _cascade(stages, text, noises, levels, schedule, keep):
    found = [stages[0](text, noises[0]()).clamp(-1, 1)]
    last = found[0]
    for i in range(1, len(stages)):
        z, level = noises[i](), torch.full((len(text),), levels[i])
        condition = augment(resize(last, z.shape[-1]), level, noises[i](), schedule)
        last = stages[i](text, z, condition, level).clamp(-1, 1)
        last = keep(found, condition, last)
    return found


@wrong(check.cascade, "condition of the stage before is handed on")
def damaged_image_handed_on(*given):
    def keep(found, condition, last):
        found.append(last)
        return condition.clamp(-1, 1)

    return _cascade(*given, keep)


@wrong(check.cascade, "made for the next stage, is returned")
def damaged_image_returned(*given):
    def keep(found, condition, last):
        found[-1] = condition
        found.append(last)
        return last

    return _cascade(*given, keep)


@wrong(check.cascade, "in place of the stage's image")
def condition_returned(*given):
    def keep(found, condition, last):
        found.append(condition)
        return last

    return _cascade(*given, keep)


@wrong(check.cascade, "one batch of images for each stage")
def the_last_alone(*given):
    return run(*given)[-1]


@wrong(check.cascade, "super-resolution reads them too")
def text_for_the_base_only(stages, text, noises, levels, schedule):
    first, *others = stages
    blind = [lambda text, *more, stage=stage: stage(0 * text, *more) for stage in others]
    return run([first, *blind], text, noises, levels, schedule)


@wrong(check.cascade, "has to be tensors")
def no_text_for_the_others(stages, text, noises, levels, schedule):
    first, *others = stages
    blind = [lambda text, *more, stage=stage: stage(None, *more) for stage in others]
    return run([first, *blind], text, noises, levels, schedule)


@wrong(check.cascade, "condition and level are in the wrong order")
def level_before_condition(stages, text, noises, levels, schedule):
    first, *others = stages
    turned = [lambda text, z, *two, stage=stage: stage(text, z, *two[::-1]) for stage in others]
    return run([first, *turned], text, noises, levels, schedule)


@wrong(check.cascade, "has to be called once")
def image_by_image_through_the_stages(stages, text, noises, levels, schedule):
    drawn = [(noise(), noise()) for noise in noises]
    batches = []
    for i in range(len(text)):
        own = [partial(next, iter([z[i : i + 1] for z in pair])) for pair in drawn]
        batches.append(run(stages, text[i : i + 1], own, levels, schedule))
    return [torch.cat(images) for images in zip(*batches, strict=True)]


@wrong(check.cascade, "the schedule that was given")
def a_schedule_of_its_own(stages, text, noises, levels, schedule):
    return run(stages, text, noises, levels, NoiseSchedule())


@wrong(check.cascade, "clamped, enlarged to its own side")
def clamped_after_enlarging(*given):
    def enlarge(images, side):
        return resize(images, side).clamp(-1, 1)

    return run(*given, before=lambda images: images, enlarge=enlarge)


@wrong(check.cascade, "all of them: stages[i](text, z, condition, level)")
def told_a_number(*given):
    return run(*given, told=lambda level: float(level[0]))


@wrong(check.cascade, "entry 0 of the list")
def scaled_into_the_range(*given):
    return run(*given, after=lambda images: images / images.abs().max())


@wrong(check.cascade, "told no small image")
def base_called_like_the_others(stages, text, noises, levels, schedule):
    def first(text, z):
        return stages[0](text, z, torch.zeros_like(z), torch.zeros(len(z)))

    return run([first, *stages[1:]], text, noises, levels, schedule)


@wrong(check.cascade, "what stage 0 drew")
def every_image_at_the_largest_side(*given):
    found = run(*given)
    return [resize(images, found[-1].shape[-1]) for images in found]


@wrong(check.cascade, "starts from pure noise")
def starts_from_the_small_image(stages, text, noises, levels, schedule):
    found = [stages[0](text, noises[0]()).clamp(-1, 1)]
    for i in range(1, len(stages)):
        z, level = noises[i](), torch.full((len(text),), levels[i])
        enlarged = resize(found[-1], z.shape[-1])
        condition = augment(enlarged, level, noises[i](), schedule)
        found.append(stages[i](text, enlarged, condition, level).clamp(-1, 1))
    return found


@wrong(check.cascade, "pure noise of its own size")
def noise_of_the_stage_before(stages, text, noises, levels, schedule):
    return run(stages, text, [noises[0], *noises[:-1]], levels, schedule)


# --- 7.4 ------------------------------------------------------------------------------------------


def draw(
    x,
    side,
    schedule,
    generator,
    lowres=None,
    times=lambda t, level: t,
    levels=lambda t, level: level,
    noise=lambda eps, noise: noise,
    noised=augment,
    rand=torch.rand,
    randn=torch.randn,
):
    """The inputs of one step of training; the wrong answers change a part of it."""
    t, level = (rand(len(x), generator=generator) for _ in range(2))
    eps, other = (randn(x.shape, generator=generator) for _ in range(2))
    t, level, other = times(t, level), levels(t, level), noise(eps, other)
    alpha, sigma = schedule.alpha_sigma(t[:, None, None, None])
    z = alpha * x + sigma * eps
    enlarged = resize(resize(x, side), x.shape[-1]) if lowres is None else lowres(x, z, side)
    return z, t, eps, noised(enlarged, level, other, schedule), level


@right(check.training_inputs)
def by_the_package(x, side, schedule, generator):
    condition_first = torch.randn(x.shape, generator=generator)
    level = random_levels(len(x), generator)
    condition = augment(resize(resize(x, side), x.shape[-1]), level, condition_first, schedule)
    t = torch.rand(len(x), generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    return q_sample(x, eps, *schedule.alpha_sigma(expand(t, x))), t, eps, condition, level


@right(check.training_inputs)
def image_by_image_in_a_loop(x, side, schedule, generator):
    rows = []
    for image in x:
        t, level = torch.rand(2, generator=generator)
        eps, noise = torch.randn((2, *image.shape), generator=generator)
        (alpha, a), (sigma, s) = schedule.alpha_sigma(torch.stack([t, level]))
        small = F.avg_pool2d(image, image.shape[-1] // side)
        large = F.interpolate(small[None], size=image.shape[1:], mode="bilinear")[0]
        rows.append((alpha * image + sigma * eps, t, eps, a * large + s * noise, level))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@right(check.training_inputs)
def with_times_spread_evenly(x, side, schedule, generator):
    """Times as in Stage.training_noise; and others between 0 and 1, on a grid of 1000."""
    start = torch.rand((), generator=generator)
    t = (start + torch.randperm(len(x), generator=generator)) / len(x)
    level = torch.randint(1000, (len(x),), generator=generator) / 1000
    eps, noise = torch.randn((2, *x.shape), generator=generator)
    alpha, sigma = schedule.alpha_sigma(expand(t, x))
    low = resize(resize(x, side), x.shape[-1])
    return alpha * x + sigma * eps, t, eps, augment(low, level, noise, schedule), level


@wrong(check.training_inputs, "the augmentation is missing")
def not_augmented_in_training(*given):
    return draw(*given, noised=lambda enlarged, *_: enlarged)


@wrong(check.training_inputs, "not a small image enlarged")
def nothing_made_small(*given):
    return draw(*given, lowres=lambda x, z, side: x)


@wrong(check.training_inputs, "the level is the time t")
def time_for_level(*given):
    return draw(*given, levels=lambda t, level: t)


@wrong(check.training_inputs, "t and level are related")
def level_from_time(*given):
    return draw(*given, levels=lambda t, level: 1 - t)


@wrong(check.training_inputs, "noised at the time t")
def noised_at_time(*given):
    times = []
    return draw(
        *given,
        times=lambda t, level: times.append(t) or t,
        noised=lambda x, level, noise, schedule: augment(x, times[0], noise, schedule),
    )


@wrong(check.training_inputs, "share one level")
def one_level_for_all(*given):
    return draw(*given, levels=lambda t, level: level[:1].expand(len(level)))


@wrong(check.training_inputs, "share one time")
def one_time_for_all(*given):
    return draw(*given, times=lambda t, level: t[:1].expand(len(t)))


@wrong(check.training_inputs, "the same noise (or related noise)")
def eps_for_both(*given):
    return draw(*given, noise=lambda eps, noise: eps)


@wrong(check.training_inputs, "two images of a batch have the same noise")
def one_noise_for_all(*given):
    return draw(*given, noise=lambda eps, noise: noise[:1].expand(eps.shape))


@wrong(check.training_inputs, "neighbouring pixels or channels")
def grey_noise(*given):
    return draw(*given, noise=lambda eps, noise: noise[:, :1].expand(eps.shape))


@wrong(check.training_inputs, "made from z")
def from_the_noisy_image(*given):
    return draw(*given, lowres=lambda x, z, side: resize(resize(z, side), x.shape[-1]))


@wrong(check.training_inputs, "repeating pixels")
def blocks(*given):
    def lowres(x, z, side):
        return F.interpolate(resize(x, side), size=x.shape[-1])

    return draw(*given, lowres=lowres)


@wrong(check.training_inputs, "one pixel of each square")
def one_pixel_of_each(*given):
    def lowres(x, z, side):
        return resize(F.interpolate(x, size=side), x.shape[-1])

    return draw(*given, lowres=lowres)


@wrong(check.training_inputs, "c = alpha_s enlarged + sigma_s noise")
def of_the_neighbour(*given):
    return draw(
        *given, lowres=lambda x, z, side: resize(resize(x.flip(0, 1, 2), side), len(x[0, 0]))
    )


@wrong(check.training_inputs, "comes before the enlarging")
def noise_made_larger(x, side, schedule, generator):
    z, t, eps, _, level = draw(x, side, schedule, generator)
    small = resize(x, side)
    noise = torch.randn(small.shape, generator=generator)
    return z, t, eps, resize(augment(small, level, noise, schedule), x.shape[-1]), level


@wrong(check.training_inputs, "comes before the enlarging")
def noised_then_made_small(*given):
    def noised(x, level, noise, schedule):
        side = given[1]
        return resize(resize(augment(x, level, noise, schedule), side), x.shape[-1])

    return draw(*given, lowres=lambda x, z, side: x, noised=noised)


@wrong(check.training_inputs, "the condition, less its noise")
def enlarged_bicubically(*given):
    def lowres(x, z, side):
        return F.interpolate(resize(x, side), size=x.shape[2:], mode="bicubic")

    return draw(*given, lowres=lowres)


@wrong(check.training_inputs, "level that was returned")
def another_level_than_the_one_told(*given):
    return draw(*given, noised=lambda x, level, *more: augment(x, 0 * level + 0.1, *more))


@wrong(check.training_inputs, "alpha and sigma are swapped in z")
def swapped_in_z(x, side, schedule, generator):
    _, t, eps, condition, level = draw(x, side, schedule, generator)
    alpha, sigma = schedule.alpha_sigma(expand(t, x))
    return sigma * x + alpha * eps, t, eps, condition, level


@wrong(check.training_inputs, "made from x itself")
def z_of_the_blur(x, side, schedule, generator):
    _, *others = draw(x, side, schedule, generator)
    z, *_ = draw(resize(resize(x, side), x.shape[-1]), side, schedule, _again(generator))
    return z, *others


def _again(generator):
    return torch.Generator().manual_seed(generator.initial_seed())


@wrong(check.training_inputs, "at each image's own t")
def time_squared(x, side, schedule, generator):
    z, t, *others = draw(x, side, schedule, generator)
    return z, t**2, *others


@wrong(check.training_inputs, "have to come from the generator")
def global_random_numbers(*given):
    return draw(*given, randn=lambda shape, generator: torch.randn(shape))


@wrong(check.training_inputs, "the same at every call")
def its_own_generator(x, side, schedule, generator):
    return draw(x, side, schedule, torch.Generator().manual_seed(0))


@wrong(check.training_inputs, "the same at every call")
def times_on_a_line(*given):
    return draw(*given, times=lambda t, level: torch.linspace(0, 1, len(t) + 2)[1:-1])


@wrong(check.training_inputs, "has to be uniform")
def mostly_small_levels(*given):
    return draw(*given, levels=lambda t, level: level**2)


@wrong(check.training_inputs, "has to lie between 0 and 1")
def normal_levels(*given):
    return draw(*given, levels=lambda t, level: 3 * level - 1, noised=lambda x, *_: x)


@wrong(check.training_inputs, "t has to lie between 0 and 1")
def normal_times(*given):
    return draw(*given, times=lambda t, level: 3 * t - 1)


@wrong(check.training_inputs, "with the eps that is returned")
def eps_and_condition_swapped(*given):
    z, t, eps, condition, level = draw(*given)
    return z, t, condition, eps, level


@wrong(check.training_inputs, "eps has to have mean 0 and variance 1")
def uniform_noise(*given):
    return draw(*given, randn=lambda shape, generator: torch.rand(shape, generator=generator) - 0.5)


@wrong(check.training_inputs, "normal (Gaussian)")
def uniform_noise_of_variance_1(*given):
    def noise(shape, generator):
        return (2 * torch.rand(shape, generator=generator) - 1) * 3**0.5

    return draw(*given, randn=noise)


@wrong(check.training_inputs, "share one level")
def the_level_of_sampling(*given):
    return draw(*given, levels=lambda t, level: torch.full_like(t, 0.1))


@wrong(check.training_inputs, "was clamped after the noise")
def condition_clamped_in_training(*given):
    return draw(*given, noised=lambda *them: augment(*them).clamp(-1, 1))


@wrong(check.training_inputs, "the schedule that was given")
def another_schedule(x, side, schedule, generator):
    return draw(x, side, NoiseSchedule(), generator)


@wrong(check.training_inputs, "condition has the wrong shape")
def not_enlarged(x, side, schedule, generator):
    z, t, eps, _, level = draw(x, side, schedule, generator)
    small = resize(x, side)
    noise = torch.randn(small.shape, generator=generator)
    return z, t, eps, augment(small, level, noise, schedule), level


@wrong(check.training_inputs, "z is noised at the level")
def time_and_level_swapped(*given):
    z, t, eps, condition, level = draw(*given)
    return z, level, eps, condition, t


@wrong(check.training_inputs, "at each image's own t")
def the_other_noise_returned(x, side, schedule, generator):
    z, t, _, condition, level = draw(x, side, schedule, generator)
    return z, t, torch.randn(x.shape, generator=generator), condition, level


@wrong(check.training_inputs, "five tensors")
def without_the_level(*given):
    return draw(*given)[:4]


# --- 7.5 ------------------------------------------------------------------------------------------


def difference(small, large):
    return F.avg_pool2d(large, large.shape[-1] // small.shape[-1]) - small


@right(check.kept)
def root_mean_square(small, large):
    return difference(small, large).square().flatten(1).mean(1).sqrt() / 2


@right(check.kept)
def mean_square(small, large):
    k = large.shape[-1] // small.shape[-1]
    again = reduce(large, "b c (h k) (w l) -> b c h w", "mean", k=k, l=k)
    return reduce((again - small) ** 2, "b c h w -> b", "mean") / 4


@right(check.kept)
def square_multiplied_out(small, large):
    """Rounding makes it a little less than 0 where it should be 0."""
    again = small + difference(small, large)
    return (small**2 - 2 * small * again + again**2).mean((1, 2, 3)) / 4


@right(check.kept)
def worst_pixel(small, large):
    return difference(small, large).abs().amax((1, 2, 3)) / 2


@right(check.kept)
def mean_of_the_worst_twentieth(small, large):
    off = difference(small, large).abs().mean(1).flatten(1)  # (B, h w)
    worst = off.topk(max(1, off.shape[1] // 20)).values
    return worst.mean(1) / 2


@right(check.kept)
def one_by_one(small, large):
    numbers = []
    for a, b in zip(small, large, strict=True):
        b = F.interpolate(b[None], size=a.shape[1:], mode="area")[0]
        numbers.append((a - b).norm() / (2 * a.numel() ** 0.5))
    return torch.stack(numbers)


@right(check.kept)
def saturating(small, large):
    error = difference(small, large).square().mean((1, 2, 3))
    return 1 - torch.exp(-4 * error)


@right(check.kept)
def fourth_powers(small, large):
    return torch.linalg.vector_norm(difference(small, large) / 2, 4, (1, 2, 3)) / (
        small[0].numel() ** 0.25
    )


@wrong(check.kept, "detail too fine")
def compared_when_large(small, large):
    k = large.shape[-1] // small.shape[-1]
    return (repeat(small, "b c h w -> b c (h k) (w l)", k=k, l=k) - large).square().mean(
        (1, 2, 3)
    ).sqrt() / 2


@wrong(check.kept, "shows just what the small one shows")
def compared_with_the_enlarged(small, large):
    enlarged = F.interpolate(small, size=large.shape[-2:], mode="bilinear")
    return (enlarged - large).square().mean((1, 2, 3)).sqrt() / 2


@wrong(check.kept, "detail too fine")
def one_pixel_of_each_square(small, large):
    k = large.shape[-1] // small.shape[-1]
    return (large[..., ::k, ::k] - small).square().mean((1, 2, 3)).sqrt() / 2


@wrong(check.kept, "cancel each other out")
def signed(small, large):
    return (difference(small, large).mean((1, 2, 3)) / 2).abs()


@wrong(check.kept, "a lost object")
def mean_of_the_sizes(small, large):
    return difference(small, large).abs().mean((1, 2, 3)) / 2


@wrong(check.kept, "one number for each image")
def one_for_the_batch(small, large):
    return F.mse_loss(F.avg_pool2d(large, large.shape[-1] // small.shape[-1]), small)


@wrong(check.kept, "on that image alone")
def percentile_over_the_batch(small, large):
    off = difference(small, large)
    most = off.abs().flatten().quantile(0.95)
    return off.clamp(-most, most).square().mean((1, 2, 3)).sqrt() / 2


@wrong(check.kept, "on that image alone")
def worst_of_the_batch(small, large):
    return (difference(small, large).abs().max() / 2).expand(len(small))


@wrong(check.kept, "compare place by place")
def colours_without_places(small, large):
    k = large.shape[-1] // small.shape[-1]
    one, two = small.flatten(2).sort().values, F.avg_pool2d(large, k).flatten(2).sort().values
    return (one - two).square().mean((1, 2)).sqrt() / 2


@wrong(check.kept, "a small object was lost")
def only_the_middle(small, large):
    off, k = difference(small, large), small.shape[2] // 4
    return off[:, :, k:-k, k:-k].square().mean((1, 2, 3)).sqrt() / 2


@wrong(check.kept, "finite")
def relative_to_the_contrast(small, large):
    return root_mean_square(small, large) / small.flatten(1).std(1) / 10


@wrong(check.kept, "stopped with")
def factor_4_only(small, large):
    return (F.avg_pool2d(large, 4) - small).square().mean((1, 2, 3)).sqrt() / 2


@wrong(check.kept, "brings the small one back")
def made_small_by_antialiased_bilinear(small, large):
    again = F.interpolate(large, size=small.shape[2:], mode="bilinear", antialias=True)
    return (again - small).square().mean((1, 2, 3)).sqrt() / 2


@wrong(check.kept, "not noticed: it is a change")
def correlation(small, large):
    again = (small + difference(small, large)).flatten(1)
    small = small.flatten(1)
    a, b = again - again.mean(1, keepdim=True), small - small.mean(1, keepdim=True)
    return (1 - F.cosine_similarity(a, b, eps=1e-4)).clamp(0, 2) / 2


@wrong(check.kept, "half of its contrast")
def angle(small, large):
    again = small + difference(small, large)
    return (1 - F.cosine_similarity(again.flatten(1), small.flatten(1))).clamp(0, 2) / 2


@wrong(check.kept, "compare every channel")
def in_grey(small, large):
    return difference(small, large).mean(1).square().mean((1, 2)).sqrt() / 2


@wrong(check.kept, "between 0")
def not_bounded(small, large):
    return difference(small, large).square().sum((1, 2, 3)).sqrt()


@wrong(check.kept, "nearly 1")
def much_too_mild(small, large):
    return root_mean_square(small, large) / 4


@wrong(check.kept, "to get 0")
def how_well_it_was_kept(small, large):
    return 1 - root_mean_square(small, large)


@wrong(check.kept, "the larger the change")
def share_of_pixels(small, large):
    return (difference(small, large).abs() > 0.1).to(small.dtype).mean((1, 2, 3))


@wrong(check.kept, "precision")
def in_single_precision(small, large):
    return root_mean_square(small.float(), large.float())


@wrong(check.kept, "how many pixels")
def weighed_by_the_larger_side(small, large):
    return 1 - torch.exp(-large.shape[-1] / 8 * difference(small, large).square().mean((1, 2, 3)))


@wrong(check.kept, "in place")
def in_place(small, large):
    small -= F.avg_pool2d(large, large.shape[-1] // small.shape[-1])
    return small.square().mean((1, 2, 3)).sqrt() / 2
