"""Writes whatever in this repository is made from something else; the tests only compare.

    python tools/make.py notebooks run notebooks/01_forward_diffusion.ipynb ...
    python tools/make.py notebooks clean notebooks/*.ipynb
    python tools/make.py exercises [FOLDER]       exercises/*.ipynb, out of solutions/
    python tools/make.py tables                   in README.md and exercises/README.md
    python tools/make.py locks [--upgrade]        requirements.txt and requirements-dev.txt
    python tools/make.py address [OWNER/NAME]     the repository's address, wherever it stands
    python tools/make.py check-address [OWNER/NAME]

``notebooks run`` executes from the first cell to the last in a fresh kernel and keeps the outputs;
then it cleans. ``notebooks clean`` takes out what does not belong into a repository: the state of
widgets, times, and what else depends on who ran it. ``exercises`` puts a stub in place of what
stands between ### BEGIN SOLUTION and ### END SOLUTION, and drops outputs. ``tables`` writes the
flags from --help, and the exercises from their cards and the answers in tests/. ``locks`` resolves
the ranges of pyproject.toml with uv; what is pinned stays, but for --upgrade. ``address`` takes the
address out of pyproject.toml, or writes the one that is given there first; README.md and the
notebooks say in words that there is none while its owner is OWNER. ``check-address`` fails when
pyproject.toml has another address than the one that is given, or $GITHUB_REPOSITORY.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("notebooks", "exercises", "solutions")


def _write(path: Path, text: str) -> bool:
    """Write a file, with the same line ends everywhere; False: it said that already."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8", newline="\n")
    print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    return True


# --- notebooks ------------------------------------------------------------------------------------

WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")


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


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run a notebook in a folder, and keep what came out."""
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def notebooks(paths: Sequence[Path], run: bool) -> None:
    """Clean notebooks in place; ``run``: execute them before, each from its own folder."""
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        if run:
            execute(notebook, path.parent)
        clean(notebook)
        _write(path, nbformat.writes(notebook) + "\n")


def without_solution(source: str) -> str:
    """A cell's source with a stub in place of each solution."""
    lines: list[str] = []
    inside = False
    for line in source.split("\n"):
        begins, ends = "### BEGIN SOLUTION" in line, "### END SOLUTION" in line
        if begins == inside and (begins or ends):
            raise ValueError(f"### BEGIN and END SOLUTION are not in pairs:\n{source}")
        if begins:
            indent = line[: len(line) - len(line.lstrip())]
            lines += [indent + stub for stub in STUB]
        elif not inside and not ends:
            lines.append(line)
        inside = (inside or begins) and not ends
    if inside:
        raise ValueError(f"a solution has no end:\n{source}")
    return "\n".join(lines)


def exercises(folder: Path) -> None:
    """Write the notebooks of solutions/ into a folder, without their solutions and outputs."""
    for solution in sorted((ROOT / "solutions").glob("*.ipynb")):
        notebook = nbformat.read(solution, as_version=4)
        for cell in notebook.cells:  # the badge opens the notebook that it stands in
            cell.source = cell.source.replace("/blob/main/solutions/", "/blob/main/exercises/")
            if cell.cell_type == "code":
                cell.source = without_solution(cell.source)
                cell.outputs, cell.execution_count = [], None
        clean(notebook)
        _write(folder / solution.name, nbformat.writes(notebook) + "\n")


# --- tables ---------------------------------------------------------------------------------------

Flag = tuple[str, tuple[str, ...], str]  # group, names, help


def scripts() -> dict[str, Callable[[list[str]], int]]:
    """The scripts, and the functions that they call."""
    names = ("main", "train", "inference")
    return {f"{name}.py": importlib.import_module(f"minimagen.cli.{name}").main for name in names}


def flags_of(main: Callable[[list[str]], int]) -> list[Flag]:
    """Every flag in a script's --help."""
    out, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "500"  # argparse breaks no line
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main(["--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    group = ""
    flags: list[Flag] = []
    for line in out.getvalue().split("\n\n", 1)[1].splitlines():
        if line.endswith(":") and not line.startswith(" "):
            group = line[:-1]
        elif re.match(r"  -", line):
            left, _, right = line.strip().partition("  ")
            names = tuple(sorted(re.findall(r"(?<!\S)--?[A-Za-z]\w*", left), key=len, reverse=True))
            flags.append((group, names, right.strip()))
        elif flags and line.startswith(" " * 8):
            flags[-1] = (*flags[-1][:2], f"{flags[-1][2]} {line.strip()}".strip())
    return [flag for flag in flags if "--help" not in flag[1]]


def flag_tables() -> dict[str, str]:
    """What README.md says of the flags of each script. main.py takes over most of train.py's."""
    flags = {script: flags_of(main) for script, main in scripts().items()}
    names = {script: {flag[1] for flag in found} for script, found in flags.items()}
    missing = [flag[1][0] for flag in flags["train.py"] if flag[1] not in names["main.py"]]
    added = [flag for flag in flags["main.py"] if flag not in flags["train.py"]]
    assert all(flag[1] not in names["train.py"] for flag in added)
    return {
        "main.py": f"It takes the flags of `train.py` but {', '.join(f'`{n}`' for n in missing)}, "
        f"and some of `inference.py`:\n\n{_flag_table(added)}",
        "train.py": _flag_table(flags["train.py"]),
        "inference.py": _flag_table(flags["inference.py"]),
    }


def _flag_table(flags: list[Flag]) -> str:
    lines, last = ["| flag | | what it says (default) |", "| --- | --- | --- |"], ""
    for group, names, text in flags:
        if group != last:
            lines.append(f"| **{group}** | | |")
        last, (name, *short) = group, names
        text = text.replace("|", r"\|").replace("<", r"\<")
        lines.append(f"| `{name}` | {' '.join(f'`{s}`' for s in short)} | {text} |")
    return "\n".join(lines) + "\n"


CARD = re.compile(
    r"^## Exercise (?P<number>\d\.\d): (?P<title>.+)\n\n"
    r"\*\*Difficulty (?P<difficulty>[1-5]) of 5, about (?P<minutes>\d+) minutes\.\*\* "
    r"You learn (?P<idea>[^\n]+?)\.?(?:\n|$)"
)


def exercise_table() -> str:
    """All exercises: what each is about, and how its check was tested."""
    answers = importlib.import_module("answers").ANSWERS
    rows = [
        "| exercise | idea: you learn … | difficulty | minutes | wrong answers rejected | "
        "right answers accepted |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        lesson = importlib.import_module(f"minimagen.checks.lesson_{path.name[:2]}").lesson
        importlib.import_module(f"answers.lesson_{path.name[:2]}")  # fills the list of answers
        found = [CARD.match(cell.source) for cell in nbformat.read(path, as_version=4).cells]
        cards = {card["number"]: card for card in found if card is not None}
        for exercise in lesson.exercises:
            card = cards[exercise.number]
            own = [answer.words is None for answer in answers if answer.exercise is exercise]
            rows.append(
                f"| {exercise.number} {exercise.title} | {card['idea']} | {card['difficulty']} | "
                f"{card['minutes']} | {own.count(False)} | {own.count(True)} |"
            )
    return "\n".join(rows)


def with_flag_tables(text: str) -> str:
    """README.md with its tables of flags between their marks."""
    for script, table in flag_tables().items():
        text = _between(f"<!-- flags: {script} -->", "<!-- end of flags -->", text, f"\n{table}\n")
    return text


def with_exercise_table(text: str) -> str:
    """exercises/README.md with its table between its marks."""
    return _between("<!-- exercises -->", "<!-- end -->", text, f"{exercise_table()}\n")


def _between(begin: str, end: str, text: str, new: str) -> str:
    """The text with something new between two lines of it."""
    before, found, after = text.partition(f"{begin}\n")
    if not found or end not in after:
        raise ValueError(f"there is no {begin} ... {end}")
    return f"{before}{found}{new}{end}{after.partition(end)[2]}"


def tables() -> None:
    """Write them into README.md and exercises/README.md."""
    for path, write in {
        ROOT / "README.md": with_flag_tables,
        ROOT / "exercises" / "README.md": with_exercise_table,
    }.items():
        _write(path, write(path.read_text(encoding="utf-8")))


# --- locks ----------------------------------------------------------------------------------------

TORCH = "2.13.0"  # the stored outputs of the lessons come from it
FOR_NVIDIA = r"(nvidia-|cuda-|triton)"
LOCK = """\
# {what}, each package at the version that it is tested with.
# Made by `python tools/make.py locks` from the ranges in pyproject.toml; do not edit. What torch
# brings on Linux with an NVIDIA GPU (nvidia-*, cuda-*, triton) is left out, so that pip takes what
# fits the build of torch at hand.

"""


def locks(upgrade: bool) -> None:
    """Resolve pyproject.toml for all systems and Pythons, into both files of requirements."""
    learner, developer = ROOT / "requirements.txt", ROOT / "requirements-dev.txt"
    extras = ["--extra", "lab", "--extra", "data"]
    pins = _resolve(learner, extras, [f"torch=={TORCH}"], upgrade)
    _write(learner, LOCK.format(what="What a learner needs") + "\n".join(pins) + "\n")
    more = _resolve(developer, [*extras, "--group", "dev"], pins, upgrade)
    head = LOCK.format(what="What tests and tools need besides") + "-r requirements.txt\n\n"
    _write(developer, head + "\n".join(pin for pin in more if pin not in pins) + "\n")


def _resolve(known: Path, options: list[str], constraints: list[str], upgrade: bool) -> list[str]:
    """The pins that uv finds; it keeps those of a file that is there."""
    with tempfile.TemporaryDirectory() as folder:
        lock, constraint = Path(folder) / "lock.txt", Path(folder) / "constraints.txt"
        constraint.write_text("\n".join(constraints), encoding="utf-8")
        if known.is_file() and not upgrade:
            old = known.read_text(encoding="utf-8").replace("-r requirements.txt\n", "")
            lock.write_text(old, encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *options]
        command += ["--universal", "--python-version", "3.11", "--quiet", "--no-header"]
        command += ["--no-annotate", "--constraints", str(constraint), "--output-file", str(lock)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = lock.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line[:1].isalnum() and not re.match(FOR_NVIDIA, line)]


# --- the repository's address ---------------------------------------------------------------------

REPOSITORY = re.compile(r'^Repository = "https://github\.com/([\w.-]+/[\w.-]+)"$', re.MULTILINE)
UNSET = "OWNER/"  # an address that begins so is none yet
COLAB = "https://colab.research.google.com"
BADGE = re.compile(rf"^\[!\[Open In Colab\]\({COLAB}/assets/colab-badge\.svg\)\]\(.+\)$", re.M)
NO_BADGE = "*Colab cannot open this notebook yet: the course has no address. See README.md.*"
INSTALL = re.compile(
    r'^    %pip install -q "minimagen-course @ git\+https://github\.com/.+"$', re.M
)
INSTALLS = "# On Colab this installs the course; everywhere else it does nothing.\n"
NO_INSTALL = '    print("The course has no address to install from yet: see README.md, On Colab.")'
INSTALLS_NOT = "# On Colab this says how to install the course; everywhere else it does nothing.\n"
NO_CLONE = """\
Get the files of this repository (its address will stand here once it is published) and open a
terminal in their folder.
"""


def repository() -> str:
    """``owner/name`` of the repository, from pyproject.toml."""
    found = REPOSITORY.search((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if not found:
        raise SystemExit('pyproject.toml has no line Repository = "https://github.com/..."')
    return found[1]


def with_address(notebook: NotebookNode, place: str, name: str) -> None:
    """Write the address into a notebook's badge and install cell. place: folder/file."""
    unset = name.startswith(UNSET)
    badge = f"[![Open In Colab]({COLAB}/assets/colab-badge.svg)]"
    badge += f"({COLAB}/github/{name}/blob/main/{place})"
    install = f'    %pip install -q "minimagen-course @ git+https://github.com/{name}"'
    for cell in notebook.cells:
        text = cell.source
        if cell.cell_type == "markdown":
            text = BADGE.sub(NO_BADGE, text)
            text = text if unset else text.replace(NO_BADGE, badge)
        elif text.startswith((INSTALLS, INSTALLS_NOT)):
            text = INSTALL.sub(NO_INSTALL, text).replace(INSTALLS, INSTALLS_NOT)
            if not unset:
                text = text.replace(NO_INSTALL, install).replace(INSTALLS_NOT, INSTALLS)
        cell.source = text


def how_to_clone(name: str) -> str:
    """What README.md says about how to get the files."""
    if name.startswith(UNSET):
        return NO_CLONE
    return f"""\
Get the files with [git](https://git-scm.com), and go to their folder:

```bash
git clone https://github.com/{name}
cd {name.partition("/")[2]}
```
"""


def address(name: str | None = None) -> None:
    """Write the address into README.md, CITATION.cff and all notebooks; ``name``: a new one."""
    project = ROOT / "pyproject.toml"
    if name is not None:
        line = f'Repository = "https://github.com/{name}"'
        if not REPOSITORY.fullmatch(line):
            raise SystemExit(f"{name!r} should be OWNER/NAME")
        _write(project, REPOSITORY.sub(line, project.read_text(encoding="utf-8")))
    name = repository()
    readme, citation = ROOT / "README.md", ROOT / "CITATION.cff"
    text = readme.read_text(encoding="utf-8")
    text = _between(
        "<!-- address -->", "<!-- end of address -->", text, f"\n{how_to_clone(name)}\n"
    )
    _write(readme, text)
    text = re.sub("^repository-code: .*\n", "", citation.read_text(encoding="utf-8"), flags=re.M)
    if not name.startswith(UNSET):
        text += f'repository-code: "https://github.com/{name}"\n'
    _write(citation, text)
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        with_address(notebook, f"{path.parent.name}/{path.name}", name)
        _write(path, nbformat.writes(notebook) + "\n")


def check_address(actual: str) -> None:
    """Fail when pyproject.toml has another address than GitHub."""
    if (name := repository()) != actual:
        raise SystemExit(
            f"pyproject.toml calls the repository {name}, but it is {actual}. "
            f"Run: python tools/make.py address {actual}"
        )


# --- the command line -----------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """What the command line says; returns the exit code."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    match arguments:
        case ["notebooks", "run" | "clean" as what, *names] if names:
            notebooks([Path(name) for name in names], run=what == "run")
        case ["exercises", *folder] if len(folder) < 2:
            exercises(Path(*folder) if folder else ROOT / "exercises")
        case ["tables"]:
            tables()
        case ["locks"] | ["locks", "--upgrade"]:
            locks(upgrade="--upgrade" in arguments)
        case ["address", *name] if len(name) < 2:
            address(*name)
        case ["check-address", *name] if len(name) < 2:
            check_address(name[0] if name else os.environ.get("GITHUB_REPOSITORY", repository()))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
