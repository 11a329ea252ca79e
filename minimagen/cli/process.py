"""A command as a process: what Ctrl-C, SIGTERM and a fault of ours do to it, from its first import.

Each ends it with one line and no traceback. This module imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
FAULT = 70  # exit code of a fault of ours


class Signals:
    """Handles Ctrl-C and SIGTERM; a context manager that puts back what was there before.

    They end the process at once, with exit code 128 + number. If ``interruptible`` is set, the
    first one raises KeyboardInterrupt instead, so that what was begun can be cleaned up. While
    modules are imported it should not be set: libraries turn this exception into another, or lose
    it.
    """

    def __init__(self, program: str, interruptible: bool = False) -> None:
        self.program, self.interruptible = program, interruptible
        self.number = 0  # of the signal that came last
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job in the background
                with suppress(ValueError):  # not the main thread
                    self._before[number] = signal.signal(number, self)
        return self

    def __exit__(self, *error: object) -> None:
        self.interruptible = False
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: object) -> None:
        self.number = number
        if self.interruptible:
            self.interruptible = False
            raise KeyboardInterrupt
        with suppress(OSError):
            os.write(2, f"{self.program}: stopped\n".encode())
        os._exit(128 + number)


def run(module: str, program: str, argv: Sequence[str] | None = None) -> int:
    """Run the function ``main`` of a module as all that this process does; its exit code.

    program: its name in messages; argv: None takes the arguments of the process
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    Signals(program).__enter__()
    try:
        code: int = import_module(module).main(argv, program=program)
        sys.stdout.flush()
    except Exception as error:
        code = _fault(error, program, debug="--DEBUG" in argv)
    finally:  # all is told, and the process ends in a moment: Python would end it by the signal
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)
        # It also does that after a KeyboardInterrupt within exec of a text, although it was caught,
        # until another exec is done.
        exec("")
    return code


def _fault(error: Exception, program: str, debug: bool) -> int:
    """Tell an error that nobody foresaw in one line; returns the exit code."""
    if debug:
        traceback.print_exc()
    if isinstance(error, BrokenPipeError):  # nobody reads the output, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor what Python flushes
        return 1
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, ImportError):  # something is not installed, or only half
        print(f"{program}: error: {reason}; see README.md, quick start", file=sys.stderr)
        return 1
    hint = "" if debug else "run it again with --DEBUG to see where, and "
    print(f"{program}: error: unexpected {reason}; {hint}report it", file=sys.stderr)
    return FAULT
