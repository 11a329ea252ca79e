"""The model of the course, which is trained when nothing else is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from minimagen.imagen import ImagenConfig, StageConfig
from minimagen.unet import UnetConfig


class Architecture(NamedTuple):
    """The configuration of a model: the cascade and its U-Nets."""

    imagen: ImagenConfig
    unets: tuple[UnetConfig, ...]


def default_architecture(testing: bool = False) -> Architecture:
    """The default model; a smaller one for ``testing``."""
    # Both stages predict x. To predict v or eps, a network must carry the noise of every pixel to
    # its output, which a small network learns slowly. The base stage has a weighting that is small
    # near t = 1: there only the caption is known, and chance decides the rest. Super-resolution
    # does not need it, because it always has the low-resolution image.
    stages = (
        StageConfig(
            side=16,
            weighting="clamped_snr",
            guidance_weight=1.5,
            sampler="ddpm",
            steps=20,
        ),
        StageConfig(side=32 if testing else 64, steps=12),
    )
    base = UnetConfig(channels=(64, 64), text_attention=(True, True))
    upper = UnetConfig(self_attention=(False, False), lowres=True, efficient=True)
    if testing:
        small: dict[str, Any] = {"channels": (16, 32), "heads": 2, "head_dim": 16}
        base, upper = replace(base, **small), replace(upper, **small)
    return Architecture(ImagenConfig(stages), (base, upper))
