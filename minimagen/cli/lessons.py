"""``minimagen lessons``: copy the lessons to a folder, and open JupyterLab there."""

from __future__ import annotations

import filecmp
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from minimagen.cli.common import Parser, count, run_command
from minimagen.course import course_file

DESCRIPTION = """\
Copy the lessons, the exercises and their solutions to a folder, and open them in JupyterLab.

A file that exists already is never changed: run the same command again to go on with your work."""

FOLDERS = ("notebooks", "exercises", "solutions")
DEFAULT = "minimagen-lessons"
FIRST = Path("notebooks") / "00_start_here.ipynb"


def main(argv: Sequence[str] | None = None, program: str = "minimagen lessons") -> int:
    """Run the command; returns its exit code, see ``common.run_command``."""
    parser = Parser(program, DESCRIPTION)
    parser.add_argument(
        "folder", nargs="?", default=DEFAULT, metavar="FOLDER", help=f"where to copy to ({DEFAULT})"
    )
    parser.add_argument("--no-lab", action="store_true", help="copy only, do not start JupyterLab")
    parser.add_argument(
        "--no-browser", action="store_true", help="start JupyterLab, but open no browser"
    )

    def work(given: dict[str, Any]) -> int:
        folder = Path(given["folder"])
        _report(copy_lessons(folder), folder)
        return 0 if given["no_lab"] else open_lab(folder, browser=not given["no_browser"])

    return run_command(parser, work, argv)


class Copied(NamedTuple):
    """The result of ``copy_lessons``, as paths within the folder."""

    new: list[Path]
    same: list[Path]  # existed already, with the same content
    differ: list[Path]  # existed already, with other content: not changed


def copy_lessons(folder: Path) -> Copied:
    """Copy the files of the course that are not in the folder yet; change no existing file.

    The whole of a file is copied, or nothing. Raises ValueError if ``folder`` is not a folder, and
    OSError if it cannot be written to.
    """
    from minimagen.files import atomic_write  # only here: this imports torch

    copied = Copied([], [], [])
    for name in FOLDERS:
        for part in (folder, folder / name):
            if part.exists() and not part.is_dir():
                raise ValueError(f"{str(part)!r} is a file, it should be a folder or not exist")
        (folder / name).mkdir(parents=True, exist_ok=True)
        for source in sorted(course_file(name).iterdir()):
            path = Path(name) / source.name
            if not source.is_file() or source.name.startswith("."):
                continue  # such as .ipynb_checkpoints
            if not os.path.lexists(folder / path):
                atomic_write(folder / path, partial(shutil.copyfile, source))
                copied.new.append(path)
            elif (folder / path).is_file() and filecmp.cmp(source, folder / path, shallow=False):
                copied.same.append(path)
            else:
                copied.differ.append(path)
    return copied


def _report(copied: Copied, folder: Path) -> None:
    if copied.new:
        print(f"copied {count(len(copied.new), 'file')} to {folder}")
    else:
        print(f"copied nothing, all lessons are in {folder} already")
    if copied.differ:
        print("these files differ from those of the course, and were not changed:")
        for path in copied.differ:
            print(f"  {path}")
        print("to get a new copy of a file, rename yours and run this command again")


def open_lab(folder: Path, browser: bool = True) -> int:
    """Run JupyterLab with ``folder`` as its root until it is stopped; returns its exit code."""
    if importlib.util.find_spec("jupyterlab") is None:
        print(
            "JupyterLab is not installed. Install it with `pip install jupyterlab` and run this "
            f"command again, or open {folder / FIRST} in another program.",
            file=sys.stderr,
        )
        return 1
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}"]
    command += [f"--LabApp.default_url=/lab/tree/{FIRST.as_posix()}"]
    command += [] if browser else ["--no-browser"]
    print(f"JupyterLab starts in {folder}, Ctrl-C stops it", flush=True)
    with subprocess.Popen(command, cwd=folder) as lab:
        # Both processes get Ctrl-C. JupyterLab asks for confirmation, so this one ignores it.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: lab.terminate())
        try:
            return lab.wait()
        finally:
            signal.signal(signal.SIGINT, before[0])
            signal.signal(signal.SIGTERM, before[1])
