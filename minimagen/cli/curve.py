"""``minimagen curve``: draw the losses of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minimagen.cli.common import Parser, run_command
from minimagen.run_directory import TrainingDirectory
from minimagen.sharing import write_curve

DESCRIPTION = """\
Draw the losses of a training, from its training_log.csv, into its curve.png.

A training does this at its end; the command also does it while a training runs."""


def main(argv: Sequence[str] | None = None, program: str = "minimagen curve") -> int:
    """Run the command; returns its exit code, see ``common.run_command``."""
    parser = Parser(program, DESCRIPTION)
    parser.add_argument("directory", metavar="DIR", help="training directory")

    def work(given: dict[str, Any]) -> None:
        directory = TrainingDirectory.open(given["directory"])
        write_curve(directory)
        print(directory.curve)

    return run_command(parser, work, argv)


if __name__ == "__main__":
    raise SystemExit(main(program="python -m minimagen.cli.curve"))
