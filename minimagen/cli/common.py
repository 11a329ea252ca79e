"""What the commands share: flags and their help, errors, exit codes, quiet libraries.

In the rest of the package an error names a setting in backticks: `batch_size`. Only here this
becomes the name of a flag: --BATCH_SIZE.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, get_type_hints

from minimagen.cli.process import Signals
from minimagen.notes import Note
from minimagen.settings import brief, describe, flag_name, to_text

MOST = 1000  # characters of an error that are printed


class _Help(argparse.HelpFormatter):
    """Help that wraps each paragraph of the description by itself."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are ValueErrors with one line, without the usage.

    Flags cannot be abbreviated, so that a new flag never changes what an old command means.
    """

    def __init__(self, program: str, description: str) -> None:
        super().__init__(
            prog=program, description=description, allow_abbrev=False, formatter_class=_Help
        )
        self.flags = {"debug": "--DEBUG"}  # each setting that is a flag, and the flag's name
        self.groups: dict[str, Any] = {}  # of flags in --help, by name
        self.add_argument(
            "--DEBUG",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        message = message.replace("ignored explicit argument", "it takes no value, but has")
        message = message.replace(
            "expected one argument", "expected one argument (one such as -2,1 needs =: --FLAG=-2,1)"
        )
        raise ValueError(re.sub(r"^(-\w+)/(--\w+): ", r"\2/\1: ", message))

    def as_flags(self, text: str) -> str:
        """A text with the flags of this command, see the function ``as_flags``."""
        return as_flags(text, self.flags)

    def say(self, text: str) -> None:
        """Print a line to stdout, above a progress bar if there is one."""
        from tqdm import tqdm

        tqdm.write(self.as_flags(text))
        sys.stdout.flush()


def as_flags(text: str, flags: Mapping[str, str]) -> str:
    """Replace the settings in a text by flags: `batch_size` becomes --BATCH_SIZE.

    flags: of the running command, by setting; a name that is not among them keeps its backticks
    """
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), text)


def add_flags(
    parser: Parser, kind: type, *, only: Collection[str] | None = None, skip: Collection[str] = ()
) -> None:
    """Add a flag for each setting of a class of settings, or for those of ``only``."""
    hints = get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        if item.name in skip or (only is not None and item.name not in only):
            continue
        about = item.metadata
        if about["group"] not in parser.groups:
            parser.groups[about["group"]] = parser.add_argument_group(about["group"])
        names = [f"-{about['short']}"] if about["short"] else []
        names.append(flag_name(item.name))
        no_default = item.default is None or item.default is False  # 0 is a default too
        default = "" if no_default else f" ({to_text(item.default)})"
        options: dict[str, Any] = {
            "dest": item.name,
            "default": argparse.SUPPRESS,
            "help": f"{about['help']}{default}".replace("%", "%%"),
        }
        if describe(hints[item.name])[0] == "switch":
            options["action"] = "store_true"
        else:
            options["metavar"] = _metavar(hints[item.name], about["metavar"])
        parser.groups[about["group"]].add_argument(*names, **options)
        parser.flags[item.name] = flag_name(item.name)


def _metavar(hint: Any, text: str) -> str:
    """The name of a flag's value in ``--help``: ``N``, ``N[,N...]``, ``{cpu,cuda}`` or a word."""
    kind, choices, several = describe(hint)
    one = {"choice": f"{{{','.join(choices)}}}", "number": "N"}.get(kind, text)
    if not several:
        return one
    return f"{one}[,...]" if choices else f"{one}[,{one}...]"


def given_flags(parser: Parser, argv: Sequence[str] | None) -> dict[str, object]:
    """The flags in ``argv`` but --DEBUG, by the setting's name; their values are still text."""
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        near = _near(parser, flag) if flag.startswith("--") else None
        if near:
            parser.error(f"unknown flag {flag}, did you mean {near}?")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name, value in vars(given).items():
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"`{name}` is {brief(value)}, it should be UTF-8 text")
    return {name: value for name, value in vars(given).items() if name != "DEBUG"}


def _near(parser: Parser, flag: str) -> str | None:
    """The known flag that is most like a wrong one, whose case may differ; None if none is."""
    elsewhere = [name for name in parser.flags.values() if name.endswith(f" {flag}")]
    if elsewhere:
        return elsewhere[0]
    near = difflib.get_close_matches(flag.upper(), parser.flags.values(), 1)
    return near[0] if near else None


def run_command(
    parser: Parser, work: Callable[[dict[str, Any]], int | None], argv: Sequence[str] | None
) -> int:
    """Run a command and return its exit code; an error is printed as one line on stderr.

    work: called with the flags that were given; returns the exit code, None means 0

    Exit codes: 0 done; 2 a flag or a file is wrong (ValueError); 1 the work cannot go on (RunError,
    such as a loss that is not finite; OSError, such as a full disk; too little memory); 130 stopped
    by Ctrl-C; 143 stopped by SIGTERM. Any other exception is a fault of ours, and is raised. With
    --DEBUG the traceback of every error is printed.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    signals = Signals(parser.prog, interruptible=True)
    try:
        with signals, warnings.catch_warnings():
            quiet_libraries(parser)
            return work(given_flags(parser, argv)) or 0
    except (Exception, KeyboardInterrupt) as error:
        if signals.number or isinstance(error, KeyboardInterrupt):  # which may have been turned
            code, line = 128 + (signals.number or 2), "stopped"  # into another error
        else:
            code, line = _code_and_line(error, parser)
        if "--DEBUG" in argv:
            traceback.print_exc()
    if code == 2 and os.environ.get("RANK", "0") != "0":  # a launcher's first process tells it
        return code
    print(f"{parser.prog}: {_shortened(parser.as_flags(line))}", file=sys.stderr)
    return code


def _code_and_line(error: Exception, parser: Parser) -> tuple[int, str]:
    """The exit code for an error and what to print, as ``run_command`` says; raises a fault."""
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError):
        return 2, f"error: {line}"
    from minimagen.devices import out_of_memory  # only here: these import torch
    from minimagen.training import RunError, RunStopped

    if isinstance(error, RunStopped):
        return error.exit_code, line
    if out_of_memory(error):
        advice = ": give half the `batch_size`" if "batch_size" in parser.flags else ""
        advice += " and twice the `accum_iter`" if "accum_iter" in parser.flags else ""
        return 1, f"error: too little memory{advice}"
    if isinstance(error, RunError | OSError) and not isinstance(error, BrokenPipeError):
        return 1, f"error: {line}"
    raise error


def _shortened(line: str) -> str:
    """A line without its middle, if it has more than ``MOST`` characters."""
    return line if len(line) <= MOST else f"{line[: MOST // 2]} ... {line[-MOST // 4 :]}"


def set_threads(threads: int | None) -> None:
    """Set the number of torch's threads; None keeps torch's default."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def quiet_libraries(parser: Parser) -> None:
    """Hide advice and progress bars of libraries; print a warning as one line, a note.

    A ``Note``, a warning of MinImagen itself, is always printed. Of libraries, a warning is hidden
    by the module that it comes from.

    This imports no library: transformers reads its verbosity when it is imported.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning when workers fork
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for library in ("accelerate", "huggingface_hub", "httpx", "fsspec"):
        logging.getLogger(library).setLevel(logging.ERROR)

    def show(message: Warning | str, *_: object, **__: object) -> None:
        line = " ".join(str(message).split())
        print(f"note: {parser.as_flags(line)}", file=sys.stderr)

    warnings.showwarning = show
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|accelerate|datasets")
    warnings.filterwarnings("always", category=Note)


def count(number: int, noun: str) -> str:
    """``count(1, "image")`` is "1 image", ``count(2, "image")`` is "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
