"""Measures the shapes worlds, and what a trained model draws of them, beside baselines.

    python tools/measure.py true                          are true pictures read right?
    python tools/measure.py baselines DIR                 the model, and what it must be better than
    python tools/measure.py sampling DIR "w=1" "w=3" ...  the model with other settings of sampling

DIR is a training directory or the name of a shipped model. All captions have held-out combinations
of colour and shape. ``baselines`` are one evaluation of each stage, an untrained model, shuffled
captions, and the pictures of the training's data set (its validation pictures too) whose captions
are nearest to the caption for T5. A setting of ``sampling`` may have several parts: w, interval,
sampler, steps of the base; up_sampler, up_steps, aug (the level of augmentation) of the second
stage; for example "w=2 interval=0.3,1 aug=0".
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minimagen import load_imagen, load_text_encoder
from minimagen.data.scenes import ShapesDataset
from minimagen.data.shapes import WORLDS, World
from minimagen.evaluation import ATTRIBUTES, Coverage, Fidelity, caption_coverage, caption_fidelity
from minimagen.generation import draw, one_evaluation, open_model, untrained
from minimagen.imagen import Imagen, StageConfig
from minimagen.sharing import SEEDS
from minimagen.training import TrainConfig

COVERED = 24  # captions that are drawn SEEDS times
BATCH = 25
HEAD = """\
| | exact match | error of coverage | same picture | right |
| --- | --- | --- | --- | --- |"""


def interval(share: float, number: int) -> str:
    """A share with its 95 % interval (Wilson's)."""
    z = 1.96
    scale = 1 + z * z / number
    middle = (share + z * z / (2 * number)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / number + (z / number / 2) ** 2)
    return f"{share:.3f} ({max(0.0, middle - half):.2f} to {min(1.0, middle + half):.2f})"


def attributes(scores: Fidelity) -> str:
    """The shares of right attributes."""
    shares = {name: getattr(scores, name) for name in ATTRIBUTES}
    return ", ".join(f"{name} {share:.3f}" for name, share in shares.items() if share is not None)


def row(name: str, scores: Fidelity, number: int, coverage: Coverage | None) -> None:
    """Print the measures of one set of images."""
    line = f"| {name} | {interval(scores.exact_match, number)} "
    if coverage is not None:
        low, high = coverage.interval
        line += f"| {coverage.error:.2f} ({low:.2f} to {high:.2f}) | {coverage.same_picture:.3f} "
    print(f"{line}| {attributes(scores)} |", flush=True)


def true_pictures(number: int) -> None:
    """Exact match of true pictures, by attribute."""
    for world in WORLDS.values():
        for side in (16, 64):
            data = ShapesDataset(world, number, side, seed=99, held_out=True)
            images = torch.stack([item["image"] for item in data.items(range(number))])
            scores = caption_fidelity(images, data.captions)
            row(f"{world.name}, true pictures of {side} pixels", scores, number, None)


class Model:
    """A trained model, the captions that it draws, and its drawings of them."""

    def __init__(self, directory: str, number: int) -> None:
        self.imagen = load_imagen(directory)
        self.encoder = load_text_encoder(self.imagen.config.text_encoder)
        known = [field.name for field in dataclasses.fields(TrainConfig)]
        self.settings = open_model(directory).load_parameters(known).flags
        if self.settings["dataset"] not in WORLDS:
            raise ValueError(f"{directory} was not trained on a world of shapes")
        self.world: World = WORLDS[self.settings["dataset"]]
        self.number = number
        self.captions = ShapesDataset(self.world, number, 16, seed=99, held_out=True).captions
        self.covered = self.captions[: min(COVERED, number)]
        self.again = [text for text in self.covered for _ in range(SEEDS)]

    def drawn(self, imagen: Imagen) -> tuple[Tensor, Tensor]:
        """Drawings of the captions, and of the covered ones again."""

        def images(texts: list[str], first: int) -> Tensor:
            seeds = range(first, first + len(texts))
            return draw(imagen, self.encoder.encode, texts, seeds, BATCH, "bf16")[-1]

        return images(self.captions, 0), images(self.again, self.number)

    def measure(self, name: str, images: Tensor, again: Tensor) -> None:
        """Print the measures of drawings."""
        scores = caption_fidelity(images, self.captions)
        row(name, scores, self.number, caption_coverage(again, self.covered, self.world))

    def nearest(self) -> tuple[Tensor, Tensor]:
        """The data set's pictures with the nearest captions: one of each, SEEDS of covered ones."""
        side = self.imagen.config.stages[-1].side
        count, seed = int(self.settings["num_images"]), int(self.settings["seed"])
        data = ShapesDataset(self.world, count, side, seed=seed)
        known = self._means(data.captions)
        best = (self._means(self.captions) @ known.T).topk(SEEDS, dim=1).indices
        chosen = [data[int(i)]["image"] for i in best[:, 0]]
        several = [data[int(i)]["image"] for i in best[: len(self.covered)].flatten()]
        return torch.stack(chosen), torch.stack(several)

    def _means(self, captions: list[str]) -> Tensor:
        """The mean embedding of each caption, of length 1."""
        means = []
        for start in range(0, len(captions), 500):
            text, mask = self.encoder.encode(captions[start : start + 500])
            means.append((text * mask[..., None]).sum(1))
        return functional.normalize(torch.cat(means), dim=1)


def baselines(model: Model) -> None:
    """The model, and what it must be better than."""
    print(HEAD)
    images, again = model.drawn(model.imagen)
    model.measure("the model", images, again)
    shuffled = torch.roll(images, 1, 0), torch.roll(again, SEEDS, 0)
    model.measure("the same images, captions shuffled", *shuffled)
    model.measure("one evaluation of each stage", *model.drawn(one_evaluation(model.imagen)))
    model.measure("untrained", *model.drawn(untrained(model.imagen)))
    model.measure("nearest picture of the data set", *model.nearest())


PARTS: dict[str, tuple[int, str, Any]] = {  # of a setting: stage, name, from text
    "w": (0, "guidance_weight", float),
    "interval": (0, "guidance_interval", lambda text: tuple(map(float, text.split(",")))),
    "sampler": (0, "sampler", str),
    "steps": (0, "steps", int),
    "up_sampler": (1, "sampler", str),
    "up_steps": (1, "steps", int),
    "aug": (1, "aug_level", float),
}


def changed_stages(stages: tuple[StageConfig, ...], text: str) -> tuple[StageConfig, ...]:
    """The stages with the settings of a text such as "w=2 aug=0"."""
    changed = list(stages)
    for part in text.split():
        name, _, value = part.partition("=")
        if name not in PARTS:
            raise ValueError(
                f"{part!r} is no setting, it should be one of {', '.join(PARTS)}, and ="
            )
        stage, field, read = PARTS[name]
        try:
            changed[stage] = replace(changed[stage], **{field: read(value)})
        except ValueError as error:
            raise ValueError(f"{part!r}: {error}") from None
    return tuple(changed)


def sampling(model: Model, settings: list[str]) -> None:
    """The model with each of the settings. Raises ValueError, before it draws, for a wrong one."""
    changed = [changed_stages(model.imagen.config.stages, text) for text in settings]
    print(HEAD)
    for text, stages in zip(settings, changed, strict=True):
        model.imagen.config = replace(model.imagen.config, stages=stages)
        for one, config in zip(model.imagen.stages, stages, strict=True):
            one.config = config
        began = time.perf_counter()
        model.measure(text, *model.drawn(model.imagen))
        print(f"  {time.perf_counter() - began:.0f} s", file=sys.stderr)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("true", "baselines", "sampling"))
    parser.add_argument("directory", nargs="?", default="shapes")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--number", type=int, default=200, help="of captions (200)")
    given = parser.parse_args()
    try:
        if given.what == "true":
            true_pictures(given.number)
        elif given.what == "baselines":
            baselines(Model(given.directory, given.number))
        else:
            sampling(Model(given.directory, given.number), given.settings)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
