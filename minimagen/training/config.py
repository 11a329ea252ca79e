"""The settings of a training: every flag of ``train.py``; and the default model."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

from annotated_types import Interval, Le

from minimagen.data import DEFAULT_LENGTH, Crop
from minimagen.data.shapes import WORLDS
from minimagen.devices import DeviceName, Precision
from minimagen.settings import (
    AtLeast0,
    Count,
    Images,
    Name,
    PerStage,
    Seed,
    Share,
    Side,
    Threads,
    Times,
    Tokens,
    setting,
    settings,
    to_text,
)

Positive = Annotated[float, Interval(gt=0)]
Length = Annotated[int, Interval(ge=2), Le(100_000_000)]  # of a data set


@settings
class TrainConfig:
    """Every setting of a training. On the command line ``batch_size`` is --BATCH_SIZE.

    Raises ValueError, naming the setting, for a value out of range.
    """

    parameters: Name | None = setting(
        None,
        "model",
        "directory with the configuration of the model, structured like parameters/",
        "p",
        metavar="DIR",
    )
    img_side_len: Side | None = setting(
        None, "model", "side of the finished images, in pixels (the model's)", "s"
    )
    t5_name: Name | None = setting(
        None,
        "model",
        "text encoder: t5_tiny, t5_small, ..., a Hub id or a directory (t5_tiny)",
        "t5",
        metavar="NAME",
    )
    max_num_words: Tokens | None = setting(
        None, "model", "maximum caption length, in tokens (64)", "mw"
    )
    timesteps: Times | None = setting(
        None, "model", "number of times from which samplers choose their steps (1000)", "t"
    )
    dataset: Name = setting(
        "shapes",
        "data",
        f"a world of shapes ({', '.join(WORLDS)}), a data set on the Hugging Face Hub, or a local "
        "folder or .parquet of images",
        metavar="NAME",
    )
    other_data: bool = setting(
        False, "data", "go on with a training although its images or captions have changed"
    )
    num_images: Length | None = setting(
        None,
        "data",
        f"scenes of a shapes world ({DEFAULT_LENGTH}), or maximum number of other images (all)",
    )
    image_column: Name = setting(
        "image", "data", "column of a data set with the images, or file_name", metavar="NAME"
    )
    caption_column: Name = setting(
        "text", "data", "column of a data set with the captions", metavar="NAME"
    )
    max_left_out: Share = setting(
        0.1, "data", "largest share of images that may be left out because they cannot be used"
    )
    streaming: bool = setting(
        False,
        "data",
        "read a data set of the Hub row by row, and keep only small squares",
    )
    crop: Crop = setting(
        "centre", "data", "square that an image is cut to in training; random: another each epoch"
    )
    flip: bool = setting(
        False,
        "data",
        "mirror half of the images in training, others each epoch; captions with left or right "
        "are wrong then",
    )
    train_valid_frac: Annotated[float, Interval(gt=0, lt=1)] = setting(
        0.9, "data", "share of the images for training; the rest is for validation", "f"
    )
    valid_num: Count | None = setting(
        None, "data", "maximum number of images for validation (all)", "vn"
    )
    data_license: Name | None = setting(
        None, "data", "licence of the data, for the model card (a Hub data set's own)", None, True
    )
    num_workers: Annotated[int, Interval(ge=0), Le(128)] = setting(
        0, "data", "worker processes that load images; 0 loads them in the training process", "n"
    )
    cache_directory: Name | None = setting(
        ".cache", "data", "where to keep text embeddings for later, or none", None, True, "DIR"
    )
    epochs: PerStage[Count] = setting((8,), "training", "passes over the data", "e")
    batch_size: PerStage[Images] = setting(
        (32,), "training", "images per batch, of each process", "b"
    )
    optim_lr: PerStage[Annotated[float, Interval(gt=0), Le(10)]] = setting(
        (2e-3,), "training", "peak learning rate", "lr"
    )
    accum_iter: Images = setting(
        1, "training", "batches per optimizer step (gradient accumulation)", "ai"
    )
    warmup: AtLeast0 = setting(
        100, "training", "steps over which the learning rate rises at the start"
    )
    crop_side: Side | None = setting(
        None,
        "training",
        "train stages above the base on random windows of this side, in pixels: less memory (whole "
        "images)",
    )
    clip_norm: Positive = setting(1.0, "training", "maximum gradient norm")
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = setting(
        0.999, "training", "decay of the moving average (EMA) of the weights"
    )
    seed: Seed = setting(0, "training", "seed of weights, data and noise")
    stages: PerStage[AtLeast0] | None = setting(
        None, "run", "train only these stages, such as 0 or 1,2; 0 is the base stage (all)"
    )
    restart_directory: Name | None = setting(
        None,
        "run",
        "go on with the training of this directory, in a new directory",
        "rd",
        metavar="DIR",
    )
    training_directory: Name | None = setting(
        None,
        "run",
        "train more stages of this training directory, in the same directory",
        "d",
        metavar="DIR",
    )
    chckpt_num: Count = setting(500, "run", "batches between checkpoints", "cn")
    device: DeviceName = setting("auto", "run", "where to compute")
    precision: Precision = setting(
        "auto", "run", "auto is bf16 where the hardware supports it, else fp32"
    )
    threads: Threads | None = setting(
        None, "run", "CPU threads, shared by all stages (torch's default)"
    )
    log_with: Name | None = setting(
        None, "run", "also report to a tracker: tensorboard, wandb, trackio, ...", metavar="NAME"
    )
    sample_every: Count | None = setting(
        None, "run", "epochs after which the same captions are drawn again, into samples.png"
    )
    push_to: Name | None = setting(
        None, "run", "model on the Hugging Face Hub to upload the result to", metavar="OWNER/NAME"
    )
    output_directory: Name = setting(
        ".", "run", "where to make training_<TIMESTAMP>/", metavar="DIR"
    )
    testing: bool = setting(
        False, "run", "a small model and little data, to test that everything works", "test"
    )

    def to_text(self) -> dict[str, str]:
        """The settings that a training directory keeps: all of ``KEPT``, as text."""
        return {name: to_text(getattr(self, name)) for name in KEPT}


OF_A_CALL = (  # of the command, not of the training
    "parameters",
    "restart_directory",
    "training_directory",
    "stages",
    "other_data",
    "log_with",
    "sample_every",
    "push_to",
)
KEPT = tuple(item.name for item in fields(TrainConfig) if item.name not in OF_A_CALL)
LATER = (  # those that a directory of an older version may lack
    "data_license",
    "max_left_out",
    "streaming",
    "crop",
    "flip",
    "crop_side",
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
