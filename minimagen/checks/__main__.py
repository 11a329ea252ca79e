"""``python -m minimagen.checks [--run] [FOLDER ...]``: how far somebody is with the exercises."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from minimagen.checks.exercise import DONE, MARKS, NOT_YET, summary

STATUS = {mark: status for status, mark in MARKS.items()}


def statuses(notebook: NotebookNode) -> dict[str, str] | None:
    """What the last check of each exercise said; None for a notebook that is not of exercises."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = re.search(
        r"^from minimagen\.checks import (lesson_\d\d)\b", "\n".join(c.source for c in code), re.M
    )
    if found is None:
        return None
    lesson = importlib.import_module(f"minimagen.checks.{found[1]}").lesson
    said = {exercise.number: NOT_YET for exercise in lesson.exercises}
    text = "".join(o.text for cell in code for o in cell.outputs if o.output_type == "stream")
    for mark, number in re.findall(rf"^([{''.join(STATUS)}]) (\d+\.\d+) ", text, re.M):
        if number in said:
            said[number] = STATUS[mark]
    return said


def run(notebook: NotebookNode, folder: Path) -> None:
    """Execute it in a fresh kernel, from its own folder; an error does not stop it."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each notebook of the folders, and one for each folder; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m minimagen.checks",
        description="How far somebody is with the exercises: a line for each notebook.",
    )
    parser.add_argument(
        "folders", nargs="*", default=["exercises"], metavar="FOLDER", help="default: exercises"
    )
    parser.add_argument(
        "--run",
        action="store_true",
        help="run the notebooks (their code, on this machine) instead of reading the outputs that "
        "were saved with them; nothing is written",
    )
    given = parser.parse_args(arguments)
    for name in map(Path, given.folders):
        notebooks = [(p, nbformat.read(p, as_version=4)) for p in sorted(name.glob("*.ipynb"))]
        notebooks = [(p, n) for p, n in notebooks if statuses(n) is not None]
        if not notebooks:
            print(f"error: no exercise notebooks in {name}", file=sys.stderr)
            return 2
        if len(given.folders) > 1:
            print(name)
        total: dict[str, str] = {}
        width = max(len(path.stem) for path, _ in notebooks)
        for path, notebook in notebooks:
            if given.run:
                run(notebook, path.parent)
            said = statuses(notebook) or {}
            total |= {f"{path.stem} {number}": status for number, status in said.items()}
            print(f"{path.stem:{width}}  {summary(said)}", flush=True)
        done = sum(status == DONE for status in total.values())
        print(f"{'in all':{width}}  {done} of {len(total)} done.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
