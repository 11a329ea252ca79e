"""The notebooks: all there, run by strict nbval (which can fail), and fit to be read as pages.

``pytest`` alone runs the notebooks themselves too, cell by cell: see ``testpaths`` and ``addopts``
in pyproject.toml. Here they are read, and only small ones are run.
"""

from __future__ import annotations

import ast
import base64
import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nbval.plugin import find_comment_markers, find_metadata_tags, get_sanitize_patterns

from tools import make

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTEST = PYPROJECT["tool"]["pytest"]["ini_options"]
REPOSITORY = make.repository()

LESSONS = (
    "00_start_here",
    "01_forward_diffusion",
    "02_reverse_diffusion",
    "03_unet",
    "04_text_conditioning",
    "05_noise_conditioning_augmentation",
    "06_dynamic_thresholding",
    "07_cascade",
    "08_train_and_sample",
)
# Each folder and the notebooks that it is to have; lesson 00 has no exercise.
FOLDERS = {"notebooks": LESSONS, "exercises": LESSONS[1:], "solutions": LESSONS[1:]}
RUN = ("notebooks", "solutions")  # by nbval; exercises wait for the learner
FOUND = {name: sorted((ROOT / name).glob("*.ipynb")) for name in FOLDERS}
MEGABYTE = 1024**2
ARXIV = r"\b\d{4}\.\d{5}\b"


def _id(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


TO_RUN = FOUND["notebooks"] + FOUND["solutions"]
every_notebook = pytest.mark.parametrize("path", TO_RUN + FOUND["exercises"], ids=_id)
every_run_notebook = pytest.mark.parametrize("path", TO_RUN, ids=_id)
every_lesson = pytest.mark.parametrize("path", FOUND["notebooks"], ids=_id)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts(notebook: NotebookNode) -> Iterator[str]:
    """Everything in the outputs that is text."""
    for output in outputs(notebook):
        yield from (output[key] for key in ("text", "evalue") if key in output)
        yield from output.get("traceback", [])
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield data if isinstance(data, str) else json.dumps(data)


def prose(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def sources(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells)


# --- which there are, and that pytest runs them ---------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_notebook_is_missing_or_unknown(folder: str) -> None:
    """The lessons are numbered 00 to 08, and each but the first has an exercise and a solution."""
    assert [name[:2] for name in LESSONS] == [f"{number:02d}" for number in range(len(LESSONS))]
    if folder != "notebooks" and not (ROOT / folder).is_dir():
        pytest.skip(f"there is no folder {folder} yet")
    assert [path.stem for path in FOUND[folder]] == list(FOLDERS[folder])
    assert sorted((ROOT / folder).rglob("[!.]*.ipynb")) == FOUND[folder], "one lies deeper"


def test_pytest_alone_runs_the_tests_and_strict_nbval() -> None:
    """pyproject.toml: both folders of notebooks are test paths; all outputs are compared."""
    assert PYTEST["testpaths"] == ["tests", *RUN]
    options = shlex.split(PYTEST["addopts"])
    assert "--nbval" in options and "--nbval-lax" not in options
    assert "--nbval-current-env" in options, "else the kernel may be of another environment"
    assert "--nbval-sanitize-with=tests/sanitize.cfg" in options
    assert not [option for option in options if re.match("-k|-m|--ignore|--deselect|-x", option)]


def nbval(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """pytest with the project's own options, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--color=no"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.skipif(not FOUND["notebooks"], reason="there are no notebooks")
def test_pytest_finds_every_code_cell() -> None:
    """Each code cell of the lessons and solutions is one test, and none of an exercise is."""
    done = nbval("--collect-only", *[name for name in RUN if FOUND[name]])
    assert done.returncode == 0, done.stdout + done.stderr
    for path in TO_RUN:
        name = path.relative_to(ROOT).as_posix()
        collected = re.findall(rf"^{re.escape(name)}::Cell \d+$", done.stdout, re.M)
        assert len(collected) == len(code_cells(read(path))), name


@pytest.mark.slow
def test_quick_tests_are_run_without_notebooks() -> None:
    """`-m "not slow"` leaves out every cell, and `-m slow` takes them all."""
    folders = [name for name in RUN if FOUND[name]]
    lesson = FOUND["notebooks"][0].relative_to(ROOT).as_posix()
    for mark, cells in {"not slow": 0, "slow": len(code_cells(read(ROOT / lesson)))}.items():
        done = nbval("--collect-only", "-m", mark, "tests/test_schedules.py", *folders)
        assert len(re.findall(rf"^{re.escape(lesson)}::Cell", done.stdout, re.M)) == cells
        assert ("test_schedules.py::" in done.stdout) is (mark == "not slow"), done.stdout


# --- nbval can fail -------------------------------------------------------------------------------


@pytest.mark.slow
def test_nbval_fails_on_a_corrupted_output(tmp_path: Path) -> None:
    """What is stored passes; one wrong figure, a lost output or a new one does not."""
    good = [
        new_code_cell(
            "print(2 + 2)", execution_count=1, outputs=[new_output("stream", text="4\n")]
        ),
        new_code_cell("x = 0.95", execution_count=2),
        new_code_cell(
            "x",
            execution_count=3,
            outputs=[new_output("execute_result", {"text/plain": "0.95"}, execution_count=3)],
        ),
    ]
    nbformat.write(new_notebook(cells=good), tmp_path / "good.ipynb")
    bad = {
        "a_figure": (0, [new_output("stream", text="5\n")]),
        "a_result": (2, [new_output("execute_result", {"text/plain": "0.94"}, execution_count=3)]),
        "one_lost": (0, []),
        "one_more": (1, [new_output("stream", text="0.95\n")]),
    }
    for name, (index, stored) in bad.items():
        notebook = read(tmp_path / "good.ipynb")
        notebook.cells[index].outputs = stored
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    done = nbval("-rfEp", tmp_path)
    ended = dict.fromkeys(["good", *bad], "")
    for how, name, cell in re.findall(
        r"^(PASSED|FAILED) \S*?(\w+)\.ipynb::Cell (\d)", done.stdout, re.M
    ):
        ended[name] += f"{cell} " if how == "FAILED" else ""
    assert "PASSED" in done.stdout and done.returncode == 1, done.stdout + done.stderr
    assert ended == {"good": ""} | {name: f"{index} " for name, (index, _) in bad.items()}


@pytest.mark.slow
def test_nbval_fails_on_a_corrupted_lesson(tmp_path: Path) -> None:
    """The first cells of a real lesson pass as stored, and fail after one stored digit changed."""
    path = FOUND["notebooks"][1]  # its first cells take no model and little time
    index, output, key, changed = _corruption(path)
    for name in ("stored", "corrupted"):
        notebook = read(path)
        if name == "corrupted":
            stored = notebook.cells[index].outputs[output]
            (stored if key == "text" else stored.data)[key] = changed
        notebook.cells = notebook.cells[: index + 1]
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    done = nbval("-rf", tmp_path)
    failed = re.findall(r"^FAILED .*?(\w+)\.ipynb::Cell (\d+)", done.stdout, re.M)
    last = len(code_cells(read(tmp_path / "stored.ipynb"))) - 1
    assert failed == [("corrupted", str(last))], done.stdout + done.stderr


def _corruption(path: Path) -> tuple[int, int, str, str]:
    """The first digit of a lesson's outputs that counts: (cell, output, key, text with another)."""
    for index, cell in enumerate(read(path).cells):
        for number, output in enumerate(cell.get("outputs", [])):
            for key, text in {**output.get("data", {}), "text": output.get("text", "")}.items():
                if key in ("text", "text/plain"):
                    changed = re.sub(r"\d", lambda d: str((int(d[0]) + 1) % 10), text, count=1)
                    if sanitize(changed) != sanitize(text):
                        return index, number, key, changed
    raise AssertionError(f"{path.name} prints no figure")


def sanitize(text: str) -> str:
    patterns = get_sanitize_patterns((ROOT / "tests/sanitize.cfg").read_text(encoding="utf-8"))
    assert patterns
    for regex, replacement in patterns:
        text = re.sub(regex, replacement, text)
    return text


def test_sanitizing_leaves_everything_but_times() -> None:
    """Figures of the lessons are compared; how long it took is not."""
    for text in ("exact match 0.95", "t = 0.5", "shape (4, 3, 64, 64)", "20 steps", "1e-6: True"):
        assert sanitize(text) == text
    for one, other in {
        "drawn in 1.5 s": "drawn in 12 s",
        "80 ms a step": "95.1 ms a step",
        "412 images/s": "97.3 images/s",
    }.items():
        assert sanitize(one) == sanitize(other) != one


@every_run_notebook
def test_all_cells_were_run_in_order(path: Path) -> None:
    """Execution counts go from 1 without a gap: nbval compares nothing in a cell without one."""
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)


@every_run_notebook
def test_at_most_one_cell_in_ten_is_left_out(path: Path) -> None:
    """Few cells are skipped, may raise, or have outputs that nbval does not compare."""
    cells = code_cells(read(path))
    marked = [
        cell.source
        for cell in cells
        if {*find_comment_markers(cell.source), *find_metadata_tags(cell.metadata)}
        - {("check", True)}
    ]
    assert len(marked) * 10 <= len(cells), marked


# --- as files -------------------------------------------------------------------------------------


@every_notebook
def test_notebook_is_valid_and_small(path: Path) -> None:
    """GitHub and Jupyter can show it: valid nbformat 4, less than 2 MB."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert notebook["nbformat"] == 4
    assert path.stat().st_size < 2 * MEGABYTE


@every_notebook
def test_notebook_is_stored_clean(path: Path, tmp_path: Path) -> None:
    """`python tools/make.py notebooks clean` finds nothing to do; no state of widgets is kept."""
    stored = tmp_path / path.name
    shutil.copy(path, stored)
    assert make.main(["notebooks", "clean", str(stored)]) == 0
    assert stored.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    assert not [o for o in outputs(notebook) if "widget" in " ".join(o.get("data", {}))]


@every_run_notebook
def test_outputs_are_free_of_errors_warnings_and_progress_bars(path: Path) -> None:
    """Nothing on stderr, no exception, no bar, no figure object's name instead of an image."""
    notebook = read(path)
    assert [o.text for o in outputs(notebook) if o.get("name") == "stderr"] == []
    assert [o.ename for o in outputs(notebook) if o.output_type == "error"] == []
    clutter = r"Warning\b|\d%\||█|\bit/s|s/it\b|\r|\x1b|<Figure|Figure\(|\bobject at 0x"
    assert [text for text in texts(notebook) if re.search(clutter, text)] == []


@every_run_notebook
def test_every_image_is_a_png_with_alt_text(path: Path) -> None:
    """Who cannot see an image is told in a sentence what it shows."""
    for output in outputs(read(path)):
        kinds = {kind for kind in output.get("data", {}) if kind.startswith("image/")}
        assert kinds <= {"image/png"}
        if kinds:
            alt = output.metadata.get("image/png", {}).get("alt", "")
            assert len(alt.split()) >= 3, f"alt text {alt!r}"
            assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")


@every_notebook
def test_no_place_of_a_machine_is_named(path: Path) -> None:
    """Neither sources nor outputs tell where, and as whom, somebody ran it."""
    notebook = read(path)
    private = r"(?<![\w.:/~<>*{}-])/(?:home|root|Users|work|workspace|mnt|opt|tmp|var)/\w"
    private += r"|[A-Z]:\\+Users\b|site-packages|ipykernel_\d"
    assert re.findall(private, "\n".join([sources(notebook), *texts(notebook)])) == []


# --- as pages -------------------------------------------------------------------------------------


def badge(path: Path, name: str) -> str:
    """What stands below a notebook's title: the way to Colab, or that there is none yet."""
    if name.startswith("OWNER/"):
        return "*Colab cannot open this notebook yet: the course has no address. See README.md.*"
    address = f"github/{name}/blob/main/{path.parent.name}/{path.name}"
    return (
        "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/{address})"
    )


def install(name: str) -> str:
    """The first cell, less empty lines."""
    does = "installs the course"
    line = f'%pip install -q "minimagen-course @ git+https://github.com/{name}"'
    if name.startswith("OWNER/"):
        does = "says how to install the course"
        line = 'print("The course has no address to install from yet: see README.md, On Colab.")'
    return (
        f"# On Colab this {does}; everywhere else it does nothing.\n"
        f'import sys\nif "google.colab" in sys.modules:\n    {line}'
    )


@every_lesson
def test_lesson_begins_with_title_badge_time_and_install_cell(path: Path) -> None:
    """A reader knows at the top what it is, how long it takes, and how to run it on Colab."""
    notebook = read(path)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} ")
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    head = "\n\n".join(cell.source for cell in notebook.cells[:first])
    assert badge(path, REPOSITORY) in head.splitlines()
    time = re.search(
        r"\*\*About \d+ minutes to read, (?:about )?(\d+) (seconds|minutes?) to run "
        r"on two CPU cores\. You need: \S",
        head,
    )
    assert time, "no line: **About N minutes to read, M seconds to run on two CPU cores. You need:"
    seconds = int(time[1]) * (1 if time[2] == "seconds" else 60)
    assert seconds <= (7 * 60 if path.stem.startswith("08") else 2 * 60)
    assert re.sub("\n+", "\n", notebook.cells[first].source) == install(REPOSITORY)


def test_all_lessons_run_within_twenty_minutes() -> None:
    """The times that the lessons state, added up."""
    total = 0
    for path in FOUND["notebooks"]:
        for number, unit in re.findall(r"(\d+) (second|minute)s? to run", prose(read(path))):
            total += int(number) * (60 if unit == "minute" else 1)
    assert total <= 20 * 60


@every_lesson
def test_lesson_ends_with_recap_links_and_references(path: Path) -> None:
    """## Recap, the exercise, the next lesson, and ## References with arXiv ids."""
    text = prose(read(path))
    recap, references = text.find("\n## Recap"), text.find("\n## References")
    assert 0 < recap < references
    number = LESSONS.index(path.stem)
    links = re.findall(r"\]\(([^)\s]+)\)", text[recap:])
    if number > 0:
        assert f"../exercises/{path.name}" in links
    if number + 1 < len(LESSONS):
        assert f"{LESSONS[number + 1]}.ipynb" in links
    assert re.search(ARXIV, text[references:])


@every_notebook
def test_links_lead_to_what_is_there_or_due(path: Path) -> None:
    """Links within the repository resolve; a link to arXiv leads to the paper that it names."""
    due = {ROOT / folder / f"{name}.ipynb" for folder, names in FOLDERS.items() for name in names}
    for label, link in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", prose(read(path))):
        if link.startswith("https://arxiv.org/"):
            assert re.fullmatch(rf"https://arxiv\.org/abs/{ARXIV}", link), link
            assert set(re.findall(ARXIV, label)) <= set(re.findall(ARXIV, link)), (label, link)
        elif not re.match("https?://|#", link):
            target = (path.parent / link.partition("#")[0]).resolve()
            assert target in due or target.exists(), link


@every_notebook
@pytest.mark.parametrize("name", [REPOSITORY, "someone/imagen.course"])
def test_the_address_is_written_into_every_notebook_and_out_again(path: Path, name: str) -> None:
    """Badge and install cell lead to it, or say that there is none; nothing else changes."""
    place = f"{path.parent.name}/{path.name}"
    before = read(path)
    after = copy.deepcopy(before)
    make.with_address(after, place, name)
    assert after == before if name == REPOSITORY else after != before
    changed = [cell for cell, old in zip(after.cells, before.cells, strict=True) if cell != old]
    assert len(changed) == (0 if name == REPOSITORY else 2)
    assert sources(after).splitlines().count(badge(path, name)) == 1
    assert re.sub("\n+", "\n", code_cells(after)[0].source) == install(name)
    places = r"(?:colab\.research\.google\.com/github/|git\+https://github\.com/)([\w.-]+/[\w.-]+)"
    assert set(re.findall(places, sources(after))) <= {name} - {"OWNER/minimagen-course"}
    make.with_address(after, place, REPOSITORY)
    assert after == before


def test_one_command_writes_the_address_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyproject.toml, README.md, CITATION.cff and notebooks; and back, to the byte."""
    monkeypatch.setattr(make, "ROOT", tmp_path)
    lesson = FOUND["notebooks"][0].relative_to(ROOT)
    (tmp_path / lesson).parent.mkdir()
    names = ("pyproject.toml", "README.md", "CITATION.cff", lesson)
    for name in names:
        shutil.copy(ROOT / name, tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for address in ("someone/course", "someone-else/imagen.course"):
        assert make.main(["address", address]) == 0
        for name in names:
            assert f"https://github.com/{address}" in (tmp_path / name).read_text("utf-8") or (
                f"/github/{address}/" in (tmp_path / name).read_text("utf-8")
            )
        assert "OWNER" not in (tmp_path / "README.md").read_text("utf-8")
    assert make.main(["address", REPOSITORY]) == 0
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    with pytest.raises(SystemExit, match="'somewhere' should be OWNER/NAME"):
        make.main(["address", "somewhere"])


# --- what is written out is compared --------------------------------------------------------------

MATHEMATICS = ("schedules", "diffusion", "layers", "unet", "samplers", "guidance", "augmentation")
COMPARES = r"\bassert|allclose|assert_close|\.equal\(|array_equal"


def _defined(tree: ast.Module) -> set[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


@every_lesson
def test_what_the_package_has_is_redefined_only_to_be_compared(path: Path) -> None:
    """A function of the package that a lesson writes out is compared within the next cells."""
    public = set()
    for room in MATHEMATICS:
        text = (ROOT / "minimagen" / f"{room}.py").read_text(encoding="utf-8")
        public |= {name for name in _defined(ast.parse(text)) if not name.startswith("_")}
    cells = [TransformerManager().transform_cell(c.source) for c in code_cells(read(path))]
    for index, source in enumerate(cells):
        for name in _defined(ast.parse(source)) & public:
            following = "\n".join(cells[index : index + 4])
            assert re.search(COMPARES, following), f"{name} is redefined and not compared"


# --- tables ---------------------------------------------------------------------------------------


def _time_to_run(path: Path) -> str:
    """As the lesson's head states it: "25 seconds"."""
    (time,) = re.findall(r"minutes to read, (?:about )?(\d+ \w+) to run", prose(read(path)))
    return time


def test_readme_lists_every_lesson_with_its_time() -> None:
    """A row for each, with the time of its head."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d\d)\]\(notebooks/(\w+)\.ipynb\) \| .+ \| (.+) \|$", readme, re.M)
    expected = [(p.stem[:2], p.stem, _time_to_run(p)) for p in FOUND["notebooks"]]
    assert rows == expected


def test_lesson_00_states_what_pyproject_asks_for() -> None:
    """Python and the two packages whose versions it checks."""
    text = sources(read(FOUND["notebooks"][0]))
    stated = dict(re.findall(r'"(torch|transformers)": "([\d.]+)"', text))
    asked = dict(re.findall(r"(\w+)>=([\d.]+)", " ".join(PYPROJECT["project"]["dependencies"])))
    assert stated and stated.items() <= asked.items()
    (python,) = re.findall(r"sys\.version_info >= \((\d+, \d+)\)", text)
    assert PYPROJECT["project"]["requires-python"] == f">={python.replace(', ', '.')}"


def test_lesson_00_names_tests_that_there_are() -> None:
    """Its table leads from each equation to a test, and its other table to every lesson."""
    text = prose(read(FOUND["notebooks"][0]))
    named = re.findall(r"\(\.\./tests/(\w+\.py)\): `(\w+)`", text)
    assert len(named) >= 15
    for file, name in named:
        test = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def test_{name}(" in test, f"{file} has no test_{name}"
    for path in FOUND["notebooks"][1:]:
        number, unit = _time_to_run(path).split()
        said = f"{number} {'s' if unit == 'seconds' else 'min'} to run"
        assert re.search(rf"\]\({path.name}\) \| .+ {said} \|", text), path.name
