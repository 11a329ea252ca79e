"""Training: decide all settings, load the data, train each stage in its own process."""

from minimagen.presets import default_architecture
from minimagen.run_directory import TrainingDirectory
from minimagen.training.cascade import train
from minimagen.training.config import TrainConfig
from minimagen.training.resolve import Plan, resolve
from minimagen.training.stop import RunError, RunStopped

__all__ = [
    "Plan",
    "RunError",
    "RunStopped",
    "TrainConfig",
    "TrainingDirectory",
    "default_architecture",
    "resolve",
    "train",
]
