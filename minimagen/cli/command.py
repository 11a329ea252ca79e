"""The command ``minimagen`` (or ``python -m minimagen``): runs one of its subcommands."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence

from minimagen.cli.process import run

COMMANDS = {  # name: (module, what it does)
    "main": ("minimagen.cli.main", "train a small cascade, draw with it, and measure it"),
    "train": ("minimagen.cli.train", "train a cascade"),
    "draw": ("minimagen.cli.inference", "draw images of captions with a trained cascade"),
    "curve": ("minimagen.cli.curve", "draw the losses of a training"),
    "push": ("minimagen.cli.push", "upload a training to the Hugging Face Hub"),
    "lessons": ("minimagen.cli.lessons", "copy the lessons to a folder and open them"),
    "check": ("minimagen.checks.__main__", "show how many exercises are done"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``minimagen COMMAND ...``; returns its exit code.

    Imports only the command that is asked for: ``minimagen --help`` needs no torch.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        return run(COMMANDS[argv[0]][0], f"minimagen {argv[0]}", argv[1:])
    if argv and argv[0] not in ("-h", "--help", "--version"):
        near = difflib.get_close_matches(argv[0], COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"minimagen: error: unknown command {argv[0]!r}, {hint}", file=sys.stderr)
        return 2
    if argv and argv[0] == "--version":
        from minimagen import __version__

        print(f"minimagen {__version__}")
        return 0
    print(_help(), end="")
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="minimagen",
        usage="minimagen COMMAND ...",
        description="Learn how the text-to-image model Imagen works, by building a small one.",
        epilog=f"commands:\n{commands}\n\n`minimagen COMMAND --help` lists the flags of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    return parser.format_help()
