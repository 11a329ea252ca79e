"""``minimagen train`` and ``train.py``: train a cascade from images with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minimagen.cli.common import Parser, add_flags, run_command, set_threads
from minimagen.sharing import train
from minimagen.training import TrainConfig, resolve

DESCRIPTION = """\
Train a cascade of diffusion models that draws images of captions.

Makes training_<TIMESTAMP>/ with the configuration, the best weights, the latest checkpoints, the
log in training_progress.txt and training_log.csv, the losses in curve.png, and a model card,
README.md. On a CPU the stages train side by side and share its threads.

A flag wins over the files of --PARAMETERS, these win over the values of --TESTING, and these win
over the defaults, which are in brackets. N[,N...] is one value for all stages, or one value per
stage."""


def main(argv: Sequence[str] | None = None, program: str = "train.py") -> int:
    """Run the command; returns its exit code, see ``common.run_command``."""
    parser = Parser(program, DESCRIPTION)
    add_flags(parser, TrainConfig)

    def work(given: dict[str, Any]) -> None:
        plan = resolve(**given)
        set_threads(plan.config.threads)
        train(plan, say=parser.say)

    return run_command(parser, work, argv)
