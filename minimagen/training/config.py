"""The settings of a training: every flag of ``train.py``; and the model trained by default."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any, NamedTuple

from annotated_types import Interval

from minimagen.data import DEFAULT_LENGTH
from minimagen.data.shapes import WORLDS
from minimagen.devices import DeviceName, Precision
from minimagen.imagen import ImagenConfig, StageConfig
from minimagen.settings import Count, PerStage, Seed, setting, settings, to_text
from minimagen.unet import UnetConfig

AtLeast0 = Annotated[int, Interval(ge=0)]
Positive = Annotated[float, Interval(gt=0)]


@settings
class TrainConfig:
    """Every setting of a training. On the command line ``batch_size`` is --BATCH_SIZE.

    Raises ValueError, naming the setting, for a value out of range.
    """

    parameters: str | None = setting(
        None,
        "model",
        "directory with a configuration, structured like parameters/",
        "p",
        metavar="DIR",
    )
    img_side_len: Count | None = setting(
        None, "model", "side of the finished images, in pixels (the model's)", "s"
    )
    t5_name: str | None = setting(
        None,
        "model",
        "text encoder: t5_tiny, t5_small, ..., a Hub id, a directory (t5_tiny)",
        "t5",
        metavar="NAME",
    )
    max_num_words: Annotated[int, Interval(ge=2)] | None = setting(
        None, "model", "maximum caption length, in tokens (64)", "mw"
    )
    timesteps: Count | None = setting(
        None, "model", "grid of times from which samplers choose their steps (1000)", "t"
    )
    dataset: str = setting(
        "shapes",
        "data",
        f"a world of shapes ({', '.join(WORLDS)}), a data set of the Hugging Face Hub, or a local "
        "folder of images",
        metavar="NAME",
    )
    num_images: Annotated[int, Interval(ge=2)] | None = setting(
        None, "data", f"scenes of a shapes world ({DEFAULT_LENGTH}), or at most so many images"
    )
    image_column: str = setting(
        "image", "data", "column of a data set that has the images", metavar="NAME"
    )
    caption_column: str = setting(
        "text", "data", "column of a data set that has the captions", metavar="NAME"
    )
    train_valid_frac: Annotated[float, Interval(gt=0, lt=1)] = setting(
        0.9, "data", "share of the images to train on; the rest validates", "f"
    )
    valid_num: Count | None = setting(None, "data", "validate on at most so many images", "vn")
    num_workers: AtLeast0 = setting(
        0, "data", "worker processes that load images; 0 loads them in the training process", "n"
    )
    cache_directory: str | None = setting(
        ".cache",
        "data",
        "where text embeddings are kept for the next training, or none",
        None,
        True,
    )
    epochs: PerStage[Count] = setting((8,), "training", "passes over the data", "e")
    batch_size: PerStage[Count] = setting((32,), "training", "images in a batch", "b")
    optim_lr: PerStage[Positive] = setting((2e-3,), "training", "peak learning rate", "lr")
    accum_iter: Count = setting(
        1, "training", "batches whose gradients are accumulated for one step", "ai"
    )
    warmup: AtLeast0 = setting(100, "training", "steps over which the learning rate rises")
    clip_norm: Positive = setting(1.0, "training", "maximum gradient norm")
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = setting(
        0.999, "training", "decay of the moving average (EMA) of the weights"
    )
    seed: Seed = setting(0, "training", "seed of weights, data and noise")
    stages: PerStage[AtLeast0] | None = setting(
        None, "run", "train only these stages, 0 is the base: 0, or 1,2 (all)"
    )
    restart_directory: str | None = setting(
        None, "run", "go on with the training of this directory, in a new one", "rd", metavar="DIR"
    )
    training_directory: str | None = setting(
        None, "run", "train more stages of this directory, in it", "d", metavar="DIR"
    )
    chckpt_num: Count = setting(500, "run", "batches between checkpoints", "cn")
    device: DeviceName = setting("auto", "run", "where to compute")
    precision: Precision = setting(
        "auto", "run", "auto is bf16 where the hardware computes it, else fp32"
    )
    threads: Count | None = setting(None, "run", "CPU threads of all stages (torch's choice)")
    output_directory: str = setting(
        ".", "run", "where training_<TIMESTAMP>/ is made", metavar="DIR"
    )
    testing: bool = setting(
        False, "run", "a small model and little data, to see that all works", "test"
    )

    def to_text(self) -> dict[str, str]:
        """What is kept of it in a training directory: every setting of ``KEPT``, as text."""
        return {name: to_text(getattr(self, name)) for name in KEPT}


# What belongs to a training, and not to one run of it.
KEPT = tuple(
    item.name
    for item in fields(TrainConfig)
    if item.name not in ("parameters", "restart_directory", "training_directory", "stages")
)
TESTING: dict[str, object] = {  # what --TESTING sets
    "dataset": "shapes-minimal",
    "num_images": 256,
    "epochs": (2,),
    "batch_size": (16,),
    "warmup": 5,
    "chckpt_num": 50,
    "testing": True,
}


class Architecture(NamedTuple):
    """What is trained: the cascade and its U-Nets."""

    imagen: ImagenConfig
    unets: tuple[UnetConfig, ...]


def default_architecture(testing: bool = False) -> Architecture:
    """The model that is trained when nothing else is asked for; a smaller one for ``testing``."""
    # Both predict x. A large v or eps must carry the noise of every pixel through the network,
    # which a small one learns slowly. The weights spare the base most of the times at which only
    # the caption is known, and chance decides the rest; super-resolution always has an image to
    # go by.
    stages = (
        StageConfig(side=16, weighting="clamped_snr", guidance_weight=3.0, steps=20),
        StageConfig(side=32 if testing else 64, steps=16),
    )
    base = UnetConfig()
    upper = UnetConfig(
        channels=(64, 64), self_attention=(False, False), lowres=True, efficient=True, patch=2
    )
    if testing:
        small: dict[str, Any] = {"channels": (16, 32), "heads": 2, "head_dim": 16}
        base, upper = replace(base, **small), replace(upper, **small)
    return Architecture(ImagenConfig(stages), (base, upper))
