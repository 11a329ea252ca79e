"""``train.py``: train a cascade from captions and pictures."""

from __future__ import annotations

from minimagen.cli.common import Parser, add_flags, given_flags, quiet_libraries, run, set_threads
from minimagen.training.config import TrainConfig
from minimagen.training.resolve import resolve

DESCRIPTION = """\
Train a cascade of diffusion models that draws what a caption says.

Makes training_<TIMESTAMP>/ with the configuration, the best weights, the latest checkpoints and
training_progress.txt. On a CPU the stages train side by side and share its threads. A flag given
here wins over the files of --PARAMETERS, these over what --TESTING sets, and that over the defaults
in brackets."""


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns its exit code, see ``common.run``."""

    def work() -> None:
        parser = Parser("train.py", DESCRIPTION)
        add_flags(parser, TrainConfig)
        config = resolve(**given_flags(parser, argv))
        set_threads(config.threads)
        from minimagen.training.run import train

        train(config)

    quiet_libraries()
    return run("train.py", work)
