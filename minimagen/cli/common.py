"""What the scripts share: flags, exit codes, threads, and libraries that keep quiet."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import torch

from minimagen.training.config import to_text


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are ValueErrors of one line, without the usage.

    Flags may not be abbreviated, so that a flag added later never changes an old command.
    """

    def __init__(self, program: str, description: str) -> None:
        super().__init__(
            prog=program,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """A flag for every field of a configuration dataclass made with ``training.config.flag``."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for item in fields(config):
        name, about = item.name.upper(), item.metadata
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"])
        group = groups[about["group"]]
        names = [f"--{name}"] + ([f"-{about['short']}"] if about["short"] else [])
        unsaid = item.default is None or item.default is False  # 0 is to be told
        default = "" if unsaid else f" ({to_text(item.default)})"
        options: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS}
        options["help"] = about["help"].replace("%", "%%") + default
        if item.default is False:
            group.add_argument(*names, action="store_true", **options)
        else:
            group.add_argument(*names, metavar="X", **options)


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, object]:
    """The flags that stand in ``argv``, by field name, their values still text."""
    return vars(parser.parse_args(argv))


def run(program: str, work: Callable[[], object]) -> int:
    """Do the work of a script; the exit code, after one line on stderr if it failed.

    0: done. 2: a flag or a file is wrong (ValueError). 1: the work cannot go on (RunError, such as
    a loss that is no number; OSError, such as a full disk). 130, 143: stopped by Ctrl-C or SIGTERM.
    Anything else is a fault of ours and keeps its traceback.
    """
    from minimagen.training.loop import RunError
    from minimagen.training.stop import RunStopped

    try:
        work()
    except ValueError as error:
        print(f"{program}: error: {_line(error)}", file=sys.stderr)
        return 2
    except RunStopped as stopped:
        print(f"{program}: {_line(stopped)}", file=sys.stderr)
        return stopped.exit_code
    except (RunError, OSError) as error:
        print(f"{program}: error: {_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130
    return 0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def set_threads(threads: int | None) -> None:
    """Let torch use this many threads; None: as many as torch itself chooses."""
    if threads is not None:
        torch.set_num_threads(threads)


def quiet_libraries() -> None:
    """No advice, bars or warnings of the libraries between our own lines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning when workers fork
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for library in ("accelerate", "huggingface_hub", "httpx", "fsspec"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.showwarning = lambda text, *rest: print(f"note: {text}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|accelerate|datasets")
