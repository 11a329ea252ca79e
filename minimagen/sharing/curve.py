"""The picture of a training's losses, from training_log.csv."""

from __future__ import annotations

from functools import partial
from typing import Any

from minimagen.files import atomic_write
from minimagen.run_directory import TrainingDirectory
from minimagen.training.table import Row, read_rows

TRAINING, VALIDATION = "#7570b3", "#d95f02"


def write_curve(directory: TrainingDirectory) -> None:
    """Write curve.png: for each stage the losses of training and validation against the step.

    Raises ValueError, naming the table, if it is missing, broken or empty.
    """
    rows = read_rows(directory.table)
    if not rows:
        raise ValueError(f"{directory.table} has no rows yet: no stage has been trained enough")
    from matplotlib.figure import Figure  # only here: it takes a while; no pyplot, so no backend

    stages = sorted({row.stage for row in rows})
    figure = Figure(figsize=(4.6 * len(stages), 3.2), layout="constrained")
    for axis, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        _plot(axis, [row for row in rows if row.stage == stage])
        axis.set(title=f"stage {stage}", xlabel="step", ylabel="loss")
    atomic_write(directory.curve, partial(figure.savefig, format="png", dpi=100))


def _plot(axis: Any, rows: list[Row]) -> None:
    ends = [row for row in rows if row.valid_loss is not None]
    fine = [row for row in rows if row.valid_loss is None]
    fine = fine if len(fine) > len(ends) else ends
    axis.semilogy(
        [row.step for row in fine],
        [row.train_loss for row in fine],
        color=TRAINING,
        linewidth=1,
        label="training",
    )
    axis.semilogy(
        [row.step for row in ends],
        [row.valid_loss for row in ends],
        "o-",
        color=VALIDATION,
        markersize=4,
        label="validation, averaged weights",
    )
    axis.grid(which="both", color="#e6e6e6", linewidth=0.6)
    axis.legend(fontsize=8)
