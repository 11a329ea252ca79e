"""``main.py``: train a small cascade, draw with it, and measure whether it drew what was said."""

from __future__ import annotations

import sys
import time
from dataclasses import Field, field, fields, make_dataclass, replace

import torch

from minimagen.cli.common import Parser, add_flags, given_flags, quiet_libraries, run, set_threads
from minimagen.cli.inference import infer, picture_bar
from minimagen.data import make_dataset
from minimagen.data.shapes import WORLDS
from minimagen.evaluation import caption_fidelity, chance_level
from minimagen.generation import (
    GenerationConfig,
    contact_sheet,
    draw,
    load,
    read_captions,
    untrained,
    with_sampling,
)
from minimagen.training.config import TrainConfig, parse_flag
from minimagen.training.resolve import architecture, resolve

DESCRIPTION = """\
Train a small cascade on captioned shapes and draw captions with it: train.py and inference.py in
sequence. Without flags it is done in three to five minutes on two CPU cores, without a network.

Leaves training_<TIMESTAMP>/ and generated_images_<TIMESTAMP>/, see these scripts' --help. Then it
draws captions with combinations of colour and shape that training never saw, and prints the share
of pictures that show what their captions say: caption fidelity."""

DEFAULTS: dict[str, object] = {  # unless --PARAMETERS or --TESTING is given
    "dataset": "shapes-minimal",
    "num_images": 10_000,
    "valid_num": 250,
    "batch_size": (32, 16),
    "epochs": (7, 3),
}
SAMPLING = ("guidance_weight", "sampler", "sampling_steps", "aug_level")
DRAWING = ("captions", "images_per_caption", *SAMPLING, "all_stages")  # flags of inference.py alone
HELD_OUT_CAPTIONS = 100  # drawn to measure caption fidelity
HELD_OUT_SHOWN = 20  # of these on a contact sheet
HELD_OUT_BATCH = 25  # drawn at a time


def _both() -> type:
    """A configuration with the flags of train.py, and those of inference.py that it lacks."""

    def again(item: Field[object]) -> tuple[str, object, object]:
        return item.name, item.type, field(default=item.default, metadata=item.metadata)

    ours = [again(item) for item in fields(TrainConfig) if item.name != "restart_directory"]
    ours += [again(item) for item in fields(GenerationConfig) if item.name in DRAWING]
    return make_dataclass("MainConfig", ours)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns its exit code, see ``common.run``."""

    def work() -> None:
        began = time.perf_counter()
        parser = Parser("main.py", DESCRIPTION)
        add_flags(parser, _both())
        given = given_flags(parser, argv)
        drawing = {
            name: parse_flag(GenerationConfig, name, given.pop(name))
            for name in DRAWING
            if name in given
        }
        if "parameters" not in given and "testing" not in given:
            given = DEFAULTS | given
        training = resolve(**given)
        generation = GenerationConfig(
            seed=training.seed,
            device=training.device,
            precision=training.precision,
            output_directory=training.output_directory,
            **drawing,  # type: ignore[arg-type]
        )
        set_threads(training.threads)
        train_and_draw(training, generation)
        print(f"all done in {time.perf_counter() - began:.0f} s{_peak_memory()}")

    quiet_libraries()
    return run("main.py", work)


def train_and_draw(training: TrainConfig, generation: GenerationConfig) -> None:
    """The whole job. What ``generation`` alone says is checked here, before ``train`` begins."""
    from minimagen.training.run import train

    read_captions(generation.captions)
    settings = {name: getattr(generation, name) for name in SAMPLING}
    with_sampling(architecture(training).imagen, **settings)

    directory = train(training)
    generation = replace(generation, training_directory=str(directory.path))
    made = infer(generation)
    if training.dataset not in WORLDS:
        return  # only pictures of shapes can be read back
    pictures, captions = measure(generation, training.dataset)
    sheet = contact_sheet(pictures[:HELD_OUT_SHOWN], captions[:HELD_OUT_SHOWN])
    sheet.save(made.directory / "held_out_contact_sheet.png")


def measure(config: GenerationConfig, world: str) -> tuple[torch.Tensor, list[str]]:
    """Draw captions with held-out combinations, print their fidelity; the pictures and captions.

    Beside it stand chance (perfect pictures of any scenes of the world), the same pictures beside
    each other's captions, and the same model untrained.
    """
    captions = make_dataset(world, 16, HELD_OUT_CAPTIONS, config.seed, held_out=True).captions
    imagen, encode, dtype, _ = load(config)
    seeds = range(config.seed, config.seed + len(captions))
    drawn = []
    for model, name in ((imagen, "held-out captions"), (untrained(imagen), "untrained model")):
        with picture_bar(name, len(captions)) as bar:
            stages = draw(model, encode, captions, seeds, HELD_OUT_BATCH, dtype, bar.update)
        drawn.append(stages[-1])
    trained, before = (caption_fidelity(pictures, captions) for pictures in drawn)
    chance = chance_level(captions, WORLDS[world])
    shuffled = caption_fidelity(drawn[0], [*captions[1:], captions[0]])  # each beside its neighbour
    print(
        f"\ncaptions with combinations that training never saw, {drawn[0].shape[-1]} pixels:\n"
        f"{trained}\n"
        f"exact match of the trained model {trained.exact_match:.1%}, by chance {chance:.1%}, "
        f"with the captions shuffled {shuffled.exact_match:.1%}, "
        f"of the untrained model {before.exact_match:.1%}"
    )
    return drawn[0], captions


def _peak_memory() -> str:
    """The most memory this process had, in words; nothing on Windows, which does not tell."""
    try:
        import resource
    except ImportError:
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kibibytes, but bytes on macOS
    gibibytes = peak / 2 ** (30 if sys.platform == "darwin" else 20)
    return f", with at most {gibibytes:.2f} GiB of memory"
