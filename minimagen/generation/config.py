"""The settings for drawing images: every flag of ``inference.py``."""

from __future__ import annotations

from minimagen.devices import DeviceName, Precision
from minimagen.imagen import Weight
from minimagen.samplers import SamplerName
from minimagen.settings import (
    Images,
    Name,
    PerStage,
    Seed,
    Share,
    Threads,
    Times,
    setting,
    settings,
)


@settings
class GenerationConfig:
    """Every setting for drawing images. On the command line ``batch_size`` is --BATCH_SIZE.

    Raises ValueError, naming the setting, for a value out of range.
    """

    training_directory: Name | None = setting(
        None,
        "images",
        "training directory of the model, a shipped model such as shapes, or owner/name on the Hub",
        "d",
        metavar="DIR",
    )
    captions: str | None = setting(
        None, "images", "a caption, or a .txt file with one caption per line (captions.txt)", "c"
    )
    t5_name: Name | None = setting(
        None,
        "images",
        "where the text encoder is now, if it is not where it was in training (the model's)",
        "t5",
        metavar="NAME",
    )
    images_per_caption: Images = setting(1, "images", "images per caption")
    seed: Seed = setting(0, "images", "seed of the first image; image i uses this seed + i")
    guidance_weight: PerStage[Weight] | None = setting(
        None, "sampling", "how strongly images follow their captions; 1 is off (the model's)"
    )
    sampler: PerStage[SamplerName] | None = setting(
        None, "sampling", "sampling method (the model's)"
    )
    sampling_steps: PerStage[Times] | None = setting(
        None, "sampling", "number of steps from noise to image (the model's)"
    )
    aug_level: PerStage[Share] | None = setting(
        None, "sampling", "level of noise added to the small image, 0 to 1 (the model's)"
    )
    batch_size: Images = setting(16, "run", "images drawn at the same time")
    device: DeviceName = setting("auto", "run", "where to compute")
    precision: Precision = setting(
        "auto", "run", "auto is bf16 on CUDA GPUs that support it, else fp32"
    )
    threads: Threads | None = setting(None, "run", "CPU threads (torch's default)")
    output_directory: Name = setting(
        ".", "run", "where to make generated_images_<TIMESTAMP>/", metavar="DIR"
    )
    all_stages: bool = setting(False, "run", "also write the images of the earlier stages")
    animation: bool = setting(
        False, "run", "also write animation.gif: the images forming out of noise"
    )
