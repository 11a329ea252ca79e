"""A training with all that lets others follow it: samples, curve, card, upload."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from accelerate import PartialState

from minimagen import training
from minimagen.data import make_dataset
from minimagen.data.shapes import WORLDS
from minimagen.files import atomic_write
from minimagen.generation import Encode, GenerationConfig, contact_sheet, draw, load, load_imagen
from minimagen.notes import note
from minimagen.run_directory import TrainingDirectory
from minimagen.settings import from_text
from minimagen.sharing.card import rename, write_card
from minimagen.sharing.curve import write_curve
from minimagen.sharing.hub import check_push, push
from minimagen.sharing.measured import Measured, measure
from minimagen.sharing.sheet import add_samples, encode
from minimagen.training import Plan, TrainConfig
from minimagen.training.config import KEPT
from minimagen.training.report import Running
from minimagen.training.resolve import launched

SHOWN = 20  # images on the sheet of the card
READABLE = range(16, 129)  # sides of images that `evaluation` can read

Say = Callable[[str], None]


class Followed(NamedTuple):
    """A training that is done. running: None if no stage had anything left to train."""

    directory: TrainingDirectory
    running: Running | None


def train(plan: Plan, quiet: bool = False, say: Say | None = None) -> TrainingDirectory:
    """Train the stages of a plan, write the curve and the model card; returns the directory.

    quiet: print no lines and show no progress bars; say: prints a line, None prints to stdout

    Raises the errors of ``training.train``, ValueError if the Hub would refuse an upload to
    `push_to`, and ConnectionError, which says how to try again, if the upload itself fails.
    """
    followed = follow(plan, quiet, say)
    finish(plan, followed, None, quiet, say)
    return followed.directory


def follow(plan: Plan, quiet: bool = False, say: Say | None = None) -> Followed:
    """Train; check `push_to` before, and draw the samples of `sample_every` meanwhile."""
    if plan.config.push_to is not None:
        check_push(plan.config.push_to)
    seen: list[Running] = []

    def after_epoch(running: Running, stage: int, epoch: int) -> str | None:
        seen[:] = [running]
        every = plan.config.sample_every
        if every is None or epoch % every:
            return None
        try:
            add_samples(running)
        except (ValueError, OSError) as error:  # no reason to end a training
            return f"samples.png: no row after epoch {epoch} of stage {stage}: {error}"
        return None

    directory = training.train(plan, quiet, say, after_epoch)
    return Followed(directory, seen[0] if seen else None)


def finish(
    plan: Plan,
    followed: Followed,
    measured: Measured | None = None,
    quiet: bool = False,
    say: Say | None = None,
) -> None:
    """Write the curve and the model card of a training, and upload it if `push_to` says so.

    measured: for the card; None: a few images are drawn for it

    Raises OSError if a file cannot be written, or if the upload fails.
    """
    if launched() and not PartialState().is_main_process:
        return
    directory, running = followed
    say = (lambda text: None) if quiet else say or print
    if running is not None:
        write_curve(directory)
        if write_about(directory, running, measured):
            say(f"model card: {directory.card}")
    if plan.config.push_to is not None:
        say(f"uploaded to {publish(directory, plan.config.push_to)}")


def write_about(
    directory: TrainingDirectory, running: Running | None = None, measured: Measured | None = None
) -> bool:
    """Write the model card and its sheet.png; whether it could be done: else a warning says why.

    running: the training that ended; measured: None draws a few images
    """
    try:
        measured = measured or _measure(directory, running)
    except ValueError as error:
        note(f"there is no model card: {error}")
        return False
    if measured is not None:
        sheet = contact_sheet(measured.images[:SHOWN], measured.captions[:SHOWN])
        atomic_write(directory.sheet, partial(sheet.save, format="PNG"))
    write_card(directory, None if running is None else running.images, measured)
    return True


def _measure(directory: TrainingDirectory, running: Running | None) -> Measured | None:
    """Images of captions that were not trained on: held-out ones in a shapes world, else those of
    validation images. None if no captions are known.

    Raises ValueError if a stage has no weights yet, or weights that are broken.
    """
    flags = directory.load_parameters(KEPT).flags
    config = TrainConfig(**from_text(TrainConfig, flags))  # type: ignore[arg-type]
    device = "auto" if running is None else running.plan.config.device
    if config.dataset in WORLDS:
        captions = make_dataset(config.dataset, 16, SHOWN, config.seed, held_out=True).captions
        source = GenerationConfig(training_directory=str(directory.path), device=device)
        imagen, encoder, precision, _ = load(source)
        embed: Encode = encoder.encode
    elif running is not None:
        captions = running.captions[:SHOWN]
        imagen, precision = load_imagen(directory, running.plan.device), "fp32"
        embed = partial(encode, running)
    else:
        return None
    if config.dataset not in WORLDS or imagen.config.stages[-1].side not in READABLE:
        seeds = range(config.seed, config.seed + len(captions))
        return Measured(draw(imagen, embed, captions, seeds, precision=precision)[-1], captions)
    return measure(imagen, embed, captions, config.seed, config.dataset, precision=precision)


def publish(directory: TrainingDirectory, name: str) -> str:
    """Upload a training, with a card, to the model ``owner/name`` of the Hub; its address.

    Raises ConnectionError, which says how to try again, if that fails.
    """
    if not directory.card.exists():
        write_about(directory)
    if directory.card.exists():
        rename(directory, name)
    return push(directory, name)
