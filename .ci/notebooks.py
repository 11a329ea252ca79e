"""Work on the notebooks, for those who write them.

    python .ci/notebooks.py run notebooks/01_forward_diffusion.ipynb ...   run in place, and clean
    python .ci/notebooks.py clean notebooks/*.ipynb                        clean only
    python .ci/notebooks.py exercises                                      out of the solutions
    python .ci/notebooks.py address                                        the repository's address

``run`` executes from the first cell to the last in a fresh kernel and keeps the outputs. ``clean``
takes out what does not belong into a repository: the state of widgets, times, and what else
depends on who ran it. ``exercises`` makes the notebooks in exercises/ from those in solutions/:
what stands between ### BEGIN SOLUTION and ### END SOLUTION becomes a stub (by ClearSolutions of
nbgrader), and outputs go. ``address`` writes the repository's address, which stands in
pyproject.toml, into every badge and every cell that installs the course on Colab.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("notebooks", "exercises", "solutions")
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def clean(notebook: NotebookNode) -> None:
    """Take out what differs from run to run or has no use on a page."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict(
            {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        )
        if cell.cell_type != "code":
            continue
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            last = outputs[-1] if outputs else NotebookNode()
            if output.output_type == "stream" and output.name == last.get("name"):
                last.text += output.text  # cut in two by nothing but time
            elif set(output.get("data", {"": ""})) != {WIDGET}:
                outputs.append(output)
        cell.outputs = outputs


def run(path: Path) -> None:
    """Execute a notebook from its own folder, and store what came out."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    clean(notebook)
    nbformat.write(notebook, path)


def exercises(folder: Path) -> None:
    """Write the notebooks of solutions/ into a folder, without their solutions and outputs."""
    solutions = sorted((ROOT / "solutions").glob("*.ipynb"))
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--log-level=WARN"]
    command += ["--to", "notebook"]
    command += ["--NotebookExporter.preprocessors=nbgrader.preprocessors.ClearSolutions"]
    command += ["--ClearSolutions.enforce_metadata=False", "--ClearOutputPreprocessor.enabled=True"]
    subprocess.run([*command, "--output-dir", folder, *solutions], check=True)
    for path in (folder / solution.name for solution in solutions):
        notebook = nbformat.read(path, as_version=4)
        clean(notebook)
        for cell in notebook.cells:  # the badge opens the notebook that it stands in
            cell.source = cell.source.replace("/blob/main/solutions/", "/blob/main/exercises/")
        nbformat.write(notebook, path)


def repository() -> str:
    """``owner/name`` of the repository, from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "https://github.com/([\w.-]+/[\w.-]+)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit('pyproject.toml has no line Repository = "https://github.com/..."')
    return found[1]


def address() -> None:
    """Write the repository's address into all notebooks and the README.

    It stands in badges (Colab), in cells that install (pip) and in commands (git clone).
    """
    name = repository()
    places = r"(colab\.research\.google\.com/github/|git\+https://github\.com/"
    places += r"|git clone https://github\.com/)[\w.-]+/[\w.-]+"
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))]
    for path in [*paths, ROOT / "README.md"]:
        before = path.read_text(encoding="utf-8")
        after = re.sub(places, rf"\g<1>{name}", before)
        if after != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            print(path.relative_to(ROOT))


def main(arguments: list[str]) -> int:
    """What the command line says; returns the exit code."""
    match arguments:
        case ["address"]:
            address()
        case ["exercises", *folder] if len(folder) < 2:
            exercises(Path(*folder) if folder else ROOT / "exercises")
        case ["run" | "clean" as what, *names] if names:
            for path in map(Path, names):
                if what == "run":
                    run(path)
                else:
                    notebook = nbformat.read(path, as_version=4)
                    clean(notebook)
                    nbformat.write(notebook, path)
                print(path)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
