"""The settings of a generation: every flag of ``inference.py``."""

from __future__ import annotations

from minimagen.devices import DeviceName, Precision
from minimagen.imagen import Weight
from minimagen.samplers import SAMPLERS, SamplerName
from minimagen.settings import Count, PerStage, Seed, Share, setting, settings


@settings
class GenerationConfig:
    """Every setting of a generation. On the command line ``batch_size`` is --BATCH_SIZE.

    Raises ValueError, naming the setting, for a value out of range.
    """

    training_directory: str | None = setting(
        None,
        "images",
        "training directory with the model, or the name of a shipped one",
        "d",
        metavar="DIR",
    )
    captions: str | None = setting(
        None, "images", "a caption, or a path to a .txt with one per line (captions.txt)", "c"
    )
    images_per_caption: Count = setting(1, "images", "images of each caption")
    seed: Seed = setting(0, "images", "image i is drawn from seed + i")
    guidance_weight: PerStage[Weight] | None = setting(
        None, "sampling", "how far to go where the caption points, 1 is off (the model's)"
    )
    sampler: PerStage[SamplerName] | None = setting(
        None, "sampling", f"{', '.join(SAMPLERS)} (the model's)"
    )
    sampling_steps: PerStage[Count] | None = setting(
        None, "sampling", "steps from noise to image (the model's)"
    )
    aug_level: PerStage[Share] | None = setting(
        None, "sampling", "noise on the small image before it is enlarged, 0 to 1 (the model's)"
    )
    batch_size: Count = setting(16, "run", "images drawn at a time")
    device: DeviceName = setting("auto", "run", "where to compute")
    precision: Precision = setting(
        "auto", "run", "auto is bf16 on GPUs (CUDA) that compute it, else fp32"
    )
    threads: Count | None = setting(None, "run", "CPU threads (torch's choice)")
    output_directory: str = setting(
        ".", "run", "where generated_images_<TIMESTAMP>/ is made", metavar="DIR"
    )
    all_stages: bool = setting(False, "run", "also write the images of the earlier stages")
    animation: bool = setting(False, "run", "also write a GIF of the images forming out of noise")
