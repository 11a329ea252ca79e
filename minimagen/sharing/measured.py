"""Measure a trained cascade on captions of a shapes world that it was not trained on.

Two questions, each with its controls: does it show what is said (fidelity), and does it vary what
is not said (coverage)? The control that matters most is the same model with one evaluation of each
stage, a plain regression: what that can do does not need diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from minimagen.data.shapes import WORLDS
from minimagen.generation import Encode, draw, one_evaluation, untrained
from minimagen.imagen import Imagen

if TYPE_CHECKING:  # evaluation imports scipy: only where something is measured
    from minimagen.evaluation import Coverage, Fidelity

BATCH = 25  # images drawn at a time
SEEDS = 8  # images of each caption, to measure coverage


class Measured(NamedTuple):
    """Images of captions that a model was not trained on, and how good they are.

    The figures are None where nothing was measured, or where the captions cannot be checked.
    """

    images: Tensor  # (N, 3, side, side) in [-1, 1]
    captions: list[str]  # N
    fidelity: Fidelity | None = None
    chance: float | None = None  # exact match of perfect images of random scenes
    shuffled: float | None = None  # exact match with the captions shuffled
    control: float | None = None  # exact match of one evaluation of each stage
    untrained: float | None = None  # exact match of the same model before training
    coverage: Coverage | None = None
    control_coverage: Coverage | None = None  # of one evaluation of each stage
    repeated: Tensor | None = None  # images of the first captions, SEEDS each, (n, 3, side, side)

    def __str__(self) -> str:
        """What was measured, as a text of some lines; "" if nothing was."""
        if self.fidelity is None:
            return ""
        lines = [str(self.fidelity), ""]
        others = {
            "one evaluation of each stage": self.control,
            "captions shuffled": self.shuffled,
            "untrained model": self.untrained,
            "by chance": self.chance,
        }
        lines.append(f"exact match {self.fidelity.exact_match:.1%}; for comparison:")
        lines += [
            f"  {name:<29}{share:6.1%}" for name, share in others.items() if share is not None
        ]
        if self.coverage is not None:
            lines += ["", "coverage of what the captions leave open:", str(self.coverage)]
        if self.control_coverage is not None:
            low, high = self.control_coverage.interval
            lines.append(
                f"error of one evaluation of each stage: {self.control_coverage.error:.1f} "
                f"(95 %: {low:.1f} to {high:.1f})"
            )
        return "\n".join(lines)


def measure(
    imagen: Imagen,
    encode: Encode,
    captions: Sequence[str],
    seed: int,
    world: str,
    covered: int = 0,
    precision: str = "fp32",
    progress: bool = False,
) -> Measured:
    """Draw captions of a world and measure their fidelity, with controls; also their coverage.

    seed:     image i is drawn with the seed ``seed`` + i
    world:    the name of the world that the captions are of
    covered:  the number of captions, the first ones, whose coverage is measured, from ``SEEDS``
              images each; 0: it is not, and the untrained model is not drawn

    Raises ValueError if a caption is not of the world, or if an image is not finite.
    """
    from minimagen.evaluation import caption_coverage, caption_fidelity, chance_level

    captions = list(captions)

    def drawn(model: Imagen, texts: list[str], first: int, name: str) -> Tensor:
        seeds = range(first, first + len(texts))
        bar = name if progress else None
        return draw(model, encode, texts, seeds, BATCH, precision, progress=bar)[-1]

    images = drawn(imagen, captions, seed, "held-out captions")
    control = one_evaluation(imagen)
    regression = drawn(control, captions, seed, "one evaluation")
    measured = Measured(
        images,
        captions,
        caption_fidelity(images, captions),
        chance_level(captions, WORLDS[world]),
        caption_fidelity(images, [*captions[1:], captions[0]]).exact_match,  # shuffled by one
        caption_fidelity(regression, captions).exact_match,
    )
    if not covered:
        return measured
    before = drawn(untrained(imagen), captions, seed, "untrained model")
    few = captions[:covered]
    many = [text for text in few for _ in range(SEEDS)]
    start = seed + len(captions)
    repeated = drawn(imagen, many, start, "same captions again")
    means = drawn(control, many, start, "one evaluation")
    return measured._replace(
        untrained=caption_fidelity(before, captions).exact_match,
        coverage=caption_coverage(repeated, few, WORLDS[world]),
        control_coverage=caption_coverage(means, few, WORLDS[world]),
        repeated=repeated,
    )
