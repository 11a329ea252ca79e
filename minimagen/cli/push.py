"""``minimagen push``: upload a training to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minimagen.cli.common import Parser, run_command
from minimagen.run_directory import TrainingDirectory
from minimagen.sharing import check_push, publish

DESCRIPTION = """\
Upload a training to a model of the Hugging Face Hub, which is made if it is missing. Log in once
before, with `hf auth login`.

What is uploaded are the configuration, the best weights, the model card with its pictures, and the
logs, but no checkpoints. The logs and the configuration name folders of this machine."""


def main(argv: Sequence[str] | None = None, program: str = "minimagen push") -> int:
    """Run the command; returns its exit code, see ``common.run_command``."""
    parser = Parser(program, DESCRIPTION)
    parser.flags["push_to"] = "OWNER/NAME"
    parser.add_argument("directory", metavar="DIR", help="training directory")
    parser.add_argument("name", metavar="OWNER/NAME", help="the model on the Hub")

    def work(given: dict[str, Any]) -> None:
        directory = TrainingDirectory.open(given["directory"])
        check_push(given["name"])
        print(f"uploaded to {publish(directory, given['name'])}")

    return run_command(parser, work, argv)


if __name__ == "__main__":
    raise SystemExit(main(program="python -m minimagen.cli.push"))
