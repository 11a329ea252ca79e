"""``minimagen check`` and ``python -m minimagen.checks``: which exercises are done."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Where exercises are, seen from where a learner may be: in a clone or the folder of the lessons,
# beside that folder, in another of its folders, in the very folder.
USUAL = ("exercises", "minimagen-lessons/exercises", "../exercises", ".")


def statuses(notebook: NotebookNode) -> dict[str, str] | None:
    """What the last check of each exercise said; None for a notebook that is not of exercises."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = re.search(
        r"^from minimagen\.checks import (lesson_\d\d)\b", "\n".join(c.source for c in code), re.M
    )
    if found is None:
        return None
    lesson = importlib.import_module(f"minimagen.checks.{found[1]}").lesson
    from minimagen.checks.exercise import MARKS, NOT_YET  # only here: this imports torch

    marks = {mark: status for status, mark in MARKS.items()}
    said = {exercise.number: NOT_YET for exercise in lesson.exercises}
    text = "".join(o.text for cell in code for o in cell.outputs if o.output_type == "stream")
    for mark, number in re.findall(rf"^([{''.join(marks)}]) (\d+\.\d+) ", text, re.M):
        if number in said:
            said[number] = marks[mark]
    return said


def read_exercises(folder: Path) -> list[tuple[Path, NotebookNode]]:
    """The notebooks of exercises in a folder. Raises ValueError when there are none."""
    import nbformat  # only here: --help needs none of it

    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    notebooks = []
    for path in sorted(folder.glob("*.ipynb")):
        try:
            notebooks.append((path, nbformat.read(path, as_version=4)))
        except Exception as error:  # nbformat has no error of its own for all that may be wrong
            reason = str(error).split("\n")[0] or type(error).__name__
            raise ValueError(f"{path} is not readable as a notebook: {reason}") from None
    notebooks = [(path, notebook) for path, notebook in notebooks if statuses(notebook) is not None]
    if not notebooks:
        raise ValueError(f"{folder} has no notebooks of exercises")
    return notebooks


def run(notebook: NotebookNode, folder: Path) -> None:
    """Execute it in a fresh kernel, from its own folder; an error does not stop it."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    except (CellTimeoutError, DeadKernelError) as error:
        print(f"stopped early: {str(error).splitlines()[0]}", file=sys.stderr)


def main(
    arguments: Sequence[str] | None = None, program: str = "python -m minimagen.checks"
) -> int:
    """Print a line for each notebook of the folders, and one for each folder; the exit code."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Show how many exercises are done: a line for each notebook.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        help="with notebooks of exercises (exercises, or where `minimagen lessons` put them)",
    )
    parser.add_argument(
        "--run",
        action="store_true",
        help="run the notebooks (their code, on this machine) instead of reading the outputs that "
        "were saved with them; nothing is written",
    )
    parser.add_argument("--DEBUG", action="store_true", help="show the traceback of an error")
    given = parser.parse_args(arguments)
    try:
        folders = [Path(folder) for folder in given.folders] or [_usual_folder()]
        for folder in folders:
            _show(folder, given.run, title=len(folders) > 1)
    except (ValueError, OSError) as error:
        if given.DEBUG:
            traceback.print_exc()
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130
    return 0


def _usual_folder() -> Path:
    """The first folder of ``USUAL`` that has exercises in it."""
    for folder in map(Path, USUAL):
        code = (
            path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.ipynb")
        )
        if any("from minimagen.checks import lesson_" in text for text in code):
            return folder
    raise ValueError(
        "there are no exercises in this folder; name theirs, or get them with `minimagen lessons`"
    )


def _show(folder: Path, execute: bool, title: bool) -> None:
    """Print a line for each notebook of a folder, and one for all of them."""
    from minimagen.checks.exercise import DONE, summary

    notebooks = read_exercises(folder)
    if title:
        print(folder)
    total: dict[str, str] = {}
    width = max(len(path.stem) for path, _ in notebooks)
    for path, notebook in notebooks:
        if execute:
            run(notebook, path.parent)
        said = statuses(notebook) or {}
        total |= {f"{path.stem} {number}": status for number, status in said.items()}
        print(f"{path.stem:{width}}  {summary(said)}", flush=True)
    done = sum(status == DONE for status in total.values())
    print(f"{'in all':{width}}  {done} of {len(total)} done.")


if __name__ == "__main__":
    raise SystemExit(main())
