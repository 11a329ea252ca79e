"""Trackers of experiments, such as TensorBoard, through accelerate."""

from __future__ import annotations

from collections.abc import Mapping

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from minimagen.run_directory import TrainingDirectory
from minimagen.training.stop import RunError
from minimagen.training.table import Row

PROJECT = "minimagen"  # under which a tracker of a service keeps its runs


def check_tracker(name: str | None) -> None:
    """Raise ValueError, naming the setting, if there is no such tracker or it is not installed."""
    if name is None:
        return
    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(map(str, LOGGER_TYPE_TO_CLASS))
        raise ValueError(f"`log_with` is {name!r}, it should be one of {known}")
    if name not in [str(found) for found in get_available_trackers()]:
        raise ValueError(f"`log_with` is {name}, but that is not installed: pip install {name}")


class Tracker:
    """A run of a tracker, with the rows of all stages.

    A tracker that writes files writes them to a folder of its name in the training directory.

    name: as in ``TrainConfig.log_with``; settings: of the training, as text

    Raises RunError if the tracker cannot start.
    """

    def __init__(
        self, name: str, directory: TrainingDirectory, settings: Mapping[str, str], cpu: bool
    ) -> None:
        kind = LOGGER_TYPE_TO_CLASS[name]
        PartialState(cpu=cpu)  # which a tracker asks whether this is the main process
        try:
            if kind.requires_logging_directory:
                self.tracker = kind(name, str(directory.path))
            else:
                self.tracker = kind(PROJECT)
            self.tracker.start()
            self.tracker.store_init_configuration(
                {"training_directory": directory.path.name, **settings}
            )
        except Exception as error:  # of any library
            raise RunError(f"`log_with` {name} cannot start: {error}") from error
        self.name = name

    def add(self, row: Row) -> None:
        """Add a row: ``stage_0/train_loss`` and so on, at its step."""
        names = [f"stage_{row.stage}/{name}" for name in Row._fields]
        values = dict(zip(names, row, strict=True))
        known = {name: value for name, value in values.items() if value is not None}
        # wandb ignores a step below one before it, and the stages train at the same time.
        self.tracker.log(known, step=None if self.name == "wandb" else row.step)

    def finish(self) -> None:
        """End the run."""
        self.tracker.finish()
