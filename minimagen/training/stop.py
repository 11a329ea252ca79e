"""How a training ends early: by an error, or by a signal, after the current step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class RunError(RuntimeError):
    """A training cannot go on; the message is one line."""


class RunStopped(RuntimeError):
    """Ctrl-C or SIGTERM stopped a training; its checkpoints are written."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def kept_from_children(number: int) -> Iterator[None]:
    """Processes that are started within it do not get this signal. (On Windows they do.)

    This process gets it as ever, at the end at the latest.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignal:
    """A context manager that stores Ctrl-C and SIGTERM in ``number``, so that a step can finish.

    A second Ctrl-C interrupts at once. Outside the main thread it changes nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread
                return self
        return self

    def _note(self, number: int, frame: object) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *error: object) -> None:
        self._restore()
