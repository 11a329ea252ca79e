"""``inference.py``: draw captions with a trained cascade."""

from __future__ import annotations

import time

from tqdm import tqdm

from minimagen.cli.common import Parser, add_flags, given_flags, quiet_libraries, run, set_threads
from minimagen.generation import Generated, GenerationConfig, fidelity, generate
from minimagen.training.config import parse_flag

DESCRIPTION = """\
Draw captions with a trained cascade.

Makes generated_images_<TIMESTAMP>/ with generated_images/image_<i>.png, captions.txt (line i is the
caption of image i, both from 0), contact_sheet.png with all of them, and
imagen_training_directory.txt. GUIDANCE_WEIGHT, SAMPLER, SAMPLING_STEPS and AUG_LEVEL take one value
for all stages, or one per stage with commas between. Defaults stand in brackets."""


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns its exit code, see ``common.run``."""

    def work() -> None:
        parser = Parser("inference.py", DESCRIPTION)
        add_flags(parser, GenerationConfig)
        given = given_flags(parser, argv)
        values = {name: parse_flag(GenerationConfig, name, text) for name, text in given.items()}
        config = GenerationConfig(**values)  # type: ignore[arg-type]
        set_threads(config.threads)
        infer(config)

    quiet_libraries()
    return run("inference.py", work)


def infer(config: GenerationConfig) -> Generated:
    """Generate with a progress bar, and say where the pictures are and how good they are."""
    began = time.perf_counter()
    with picture_bar("pictures") as bar:

        def progress(worth: float, total: int) -> None:
            bar.total = total
            bar.update(worth)

        made = generate(config, progress)
    seconds = time.perf_counter() - began
    score = fidelity(made.pictures, made.captions)
    if score is not None:  # the captions are of the shapes world
        print(f"\ncaption fidelity of these pictures:\n{score}")
    print(f"drew {len(made.captions)} pictures in {seconds:.1f} s: {made.directory}")
    return made


def picture_bar(name: str, total: int | None = None) -> tqdm:
    """A bar that counts pictures, also parts of one; on terminals only."""
    return tqdm(
        desc=name,
        total=total,
        disable=None,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, "
        "{rate_fmt}]",
        unit="img",
    )
