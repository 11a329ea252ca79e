"""``minimagen main`` and ``main.py``: train a small cascade, draw with it, and measure it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minimagen.cli.common import Parser, add_flags, run_command, set_threads
from minimagen.cli.inference import infer
from minimagen.data import make_dataset
from minimagen.data.shapes import WORLDS
from minimagen.generation import (
    GenerationConfig,
    contact_sheet,
    load,
    read_captions,
    with_sampling,
)
from minimagen.settings import flag_name, from_text, to_text
from minimagen.sharing import SEEDS, Measured, finish, follow, measure
from minimagen.training import Plan, TrainConfig, resolve

DESCRIPTION = """\
Train a small cascade on captioned shapes and draw captions with it: train.py and inference.py in
sequence. Without flags this takes three to five minutes on two CPU cores, and needs no network.

Makes training_<TIMESTAMP>/ and generated_images_<TIMESTAMP>/, see the --help of these scripts. Then
draws captions with combinations of colour and shape that are not in the training data, and prints
caption fidelity, the share of images that show what their captions say, and coverage: whether what
the captions leave open varies as it does in the data. Both have the same model with one evaluation
of each stage beside them.

Defaults are in brackets, but without --PARAMETERS and --TESTING these are others: {defaults}.
N[,N...] is one value for all stages, or one value per stage."""

DEFAULTS: dict[str, Any] = {  # unless --PARAMETERS or --TESTING is given
    "dataset": "shapes-minimal",
    "num_images": 22_500,
    "valid_num": 250,
    "batch_size": (16,),
    "epochs": (2, 1),
}
SAMPLING = ("guidance_weight", "sampler", "sampling_steps", "aug_level")
OF_TRAIN_ALONE = ("restart_directory", "training_directory", "stages")  # main.py starts a training
# The flags of inference.py that train.py does not have.
DRAWING = ("captions", "images_per_caption", *SAMPLING, "all_stages", "animation")
HELD_OUT_CAPTIONS = 200  # drawn to measure caption fidelity
HELD_OUT_SHOWN = 20  # of these on a contact sheet
COVERED_CAPTIONS = 24  # of these, the first ones, drawn again to measure coverage
REPEATED_SHOWN = 8  # of these on a sheet with all their images


def main(argv: Sequence[str] | None = None, program: str = "main.py") -> int:
    """Run the command; returns its exit code, see ``common.run_command``."""
    defaults = ", ".join(f"{flag_name(name)} {to_text(value)}" for name, value in DEFAULTS.items())
    parser = Parser(program, DESCRIPTION.format(defaults=defaults))
    add_flags(parser, TrainConfig, skip=OF_TRAIN_ALONE)
    add_flags(parser, GenerationConfig, only=DRAWING)
    # For messages such as: stopped; go on with `restart_directory`.
    train_program = "train.py" if program == "main.py" else "minimagen train"
    parser.flags |= {name: f"{train_program} {flag_name(name)}" for name in OF_TRAIN_ALONE}

    def work(given: dict[str, Any]) -> None:
        began = time.perf_counter()
        drawing = {name: given.pop(name) for name in DRAWING if name in given}
        if "parameters" not in given and "testing" not in given:
            given = DEFAULTS | given
        plan = resolve(**given)
        generation = GenerationConfig(
            seed=plan.config.seed,
            device=plan.config.device,
            precision=given.get("precision", "auto"),  # drawing has another "auto"
            threads=plan.config.threads,
            output_directory=plan.config.output_directory,
            **from_text(GenerationConfig, drawing),  # type: ignore[arg-type]
        )
        set_threads(plan.config.threads)
        train_and_draw(plan, generation, parser)
        print(f"all done in {time.perf_counter() - began:.0f} s{_peak_memory()}")

    return run_command(parser, work, argv)


def train_and_draw(plan: Plan, generation: GenerationConfig, parser: Parser) -> None:
    """Train, draw and measure. The settings of ``generation`` are checked before training."""
    read_captions(generation.captions)
    with_sampling(plan.imagen, **{name: getattr(generation, name) for name in SAMPLING})

    followed = follow(plan, say=parser.say)
    generation = replace(generation, training_directory=str(followed.directory.path))
    made = infer(generation)
    measured = None
    if plan.config.dataset in WORLDS:  # only images of shapes can be measured
        measured = measure_held_out(generation, plan.config.dataset)
        shown = measured.images[:HELD_OUT_SHOWN], measured.captions[:HELD_OUT_SHOWN]
        contact_sheet(*shown).save(made.directory / "held_out_contact_sheet.png")
        assert measured.repeated is not None
        again = measured.repeated[: REPEATED_SHOWN * SEEDS]
        texts = [text for text in measured.captions[:REPEATED_SHOWN] for _ in range(SEEDS)]
        contact_sheet(again, texts).save(made.directory / "same_captions_contact_sheet.png")
    finish(plan, followed, measured, say=parser.say)


def measure_held_out(config: GenerationConfig, world: str) -> Measured:
    """Draw captions with held-out combinations, and print how good the images are."""
    captions = make_dataset(world, 16, HELD_OUT_CAPTIONS, config.seed, held_out=True).captions
    imagen, encoder, precision, _ = load(config)
    measured = measure(
        imagen, encoder.encode, captions, config.seed, world, COVERED_CAPTIONS, precision, True
    )
    print(
        "\ncaptions with combinations that training never had, "
        f"{measured.images.shape[-1]} pixels:\n{measured}\n",
        flush=True,
    )
    return measured


def _peak_memory() -> str:
    """The peak memory, in words; "" on Windows, which does not report it.

    There are two figures, because stages may train in child processes: the peak of this process,
    and that of the largest child. They may occur at different times, so they are not added.
    """
    try:
        import resource
    except ImportError:
        return ""
    gibibyte = 2 ** (30 if sys.platform == "darwin" else 20)  # macOS counts bytes, others kibibytes
    here, children = (
        resource.getrusage(who).ru_maxrss / gibibyte
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    if not children:
        return f", with at most {here:.2f} GiB of memory"
    return (
        f", with at most {here:.2f} GiB of memory in this process and {children:.2f} GiB in its "
        "largest child process"
    )
