"""``minimagen draw`` and ``inference.py``: draw images of captions with a trained cascade."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from minimagen.cli.common import Parser, add_flags, count, run_command, set_threads
from minimagen.generation import Generated, GenerationConfig, generate
from minimagen.settings import from_text

DESCRIPTION = """\
Draw images of captions with a trained cascade.

Makes generated_images_<TIMESTAMP>/ with generated_images/image_<i>.png, captions.txt (line i is the
caption of image i, both from 0), contact_sheet.png with all images, and
imagen_training_directory.txt. Images are written as soon as they are finished.

Defaults are in brackets. N[,N...] is one value for all stages, or one value per stage."""


def main(argv: Sequence[str] | None = None, program: str = "inference.py") -> int:
    """Run the command; returns its exit code, see ``common.run_command``."""
    parser = Parser(program, DESCRIPTION)
    add_flags(parser, GenerationConfig)

    def work(given: dict[str, Any]) -> None:
        config = GenerationConfig(**from_text(GenerationConfig, given))  # type: ignore[arg-type]
        set_threads(config.threads)
        infer(config)

    return run_command(parser, work, argv)


def infer(config: GenerationConfig) -> Generated:
    """Draw images with a progress bar; print their fidelity and the path of their directory."""
    from minimagen.evaluation import fidelity  # only here: imports scipy

    began = time.perf_counter()
    made = generate(config, progress="images")
    seconds = time.perf_counter() - began
    directory, images, captions, known = made
    score = fidelity(images, captions, known)
    if score is not None:  # the captions are of the shapes world
        print(f"\ncaption fidelity of these images:\n{score}")
    print(f"drew {count(len(captions), 'image')} in {seconds:.1f} s: {directory}")
    print(f"all of them at a glance: {directory / 'contact_sheet.png'}", flush=True)
    return made
