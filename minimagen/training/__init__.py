"""Training: the loop, its directory, and the pre-training of the shipped text encoder."""

from minimagen.training.config import TrainConfig, default_architecture
from minimagen.training.directory import TrainingDirectory, timestamped_directory
from minimagen.training.loop import EpochRecord, RunError, StageTrainer, StepRecord
from minimagen.training.resolve import resolve
from minimagen.training.run import train
from minimagen.training.stop import RunStopped

__all__ = [
    "EpochRecord",
    "RunError",
    "RunStopped",
    "StageTrainer",
    "StepRecord",
    "TrainConfig",
    "TrainingDirectory",
    "default_architecture",
    "resolve",
    "timestamped_directory",
    "train",
]
