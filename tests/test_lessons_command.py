"""``minimagen lessons`` and ``minimagen check``: the course where the learner works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from minimagen.cli import command, lessons
from minimagen.course import course_file

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test begins in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def course() -> dict[str, bytes]:
    """Every file that is copied, by its path within the folder."""
    return {
        f"{name}/{path.name}": path.read_bytes()
        for name in ("notebooks", "exercises", "solutions")
        for path in course_file(name).iterdir()
        if path.is_file()
    }


def copied(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# --- lessons --------------------------------------------------------------------------------------


def test_lessons_are_copied_to_a_folder_of_their_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them, as they are, with the exercises beside: links between them lead somewhere."""
    assert command.main(["lessons", "--no-lab"]) == 0
    folder = here / "minimagen-lessons"
    assert copied(folder) == course() and len(course()) > 24
    assert capsys.readouterr() == (f"copied {len(course())} files to minimagen-lessons\n", "")
    links = set()
    for path in (folder / "notebooks").glob("*.ipynb"):
        links |= set(re.findall(r"\]\((\.\./exercises/[^)#]+)", path.read_text(encoding="utf-8")))
    assert len(links) == 8
    assert all((folder / "notebooks" / link).is_file() for link in links)


def test_work_of_the_learner_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed file stays and is named; a missing one comes back; the rest is not mentioned."""
    assert command.main(["lessons", "mine/course", "--no-lab"]) == 0
    capsys.readouterr()
    folder = here / "mine" / "course"
    (folder / "exercises" / "03_unet.ipynb").write_text("my answers")
    (folder / "notebooks" / "02_reverse_diffusion.ipynb").unlink()
    (folder / "notes.txt").write_text("my notes")
    untouched = (folder / "notebooks" / "01_forward_diffusion.ipynb").stat()
    assert command.main(["lessons", "mine/course", "--no-lab"]) == 0
    mine = {"exercises/03_unet.ipynb": b"my answers", "notes.txt": b"my notes"}
    assert copied(folder) == course() | mine
    assert (folder / "notebooks" / "01_forward_diffusion.ipynb").stat() == untouched
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"copied 1 file to {Path('mine/course')}"
    assert [Path(line.strip()).as_posix() for line in out if line.startswith("  ")] == [
        "exercises/03_unet.ipynb"
    ]


def test_nothing_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    """Called again, it says so."""
    for _ in range(2):
        assert command.main(["lessons", "--no-lab"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "copied nothing, all lessons are in minimagen-lessons already"
    ]


def test_a_link_or_folder_with_a_lesson_s_name_is_left_alone(here: Path) -> None:
    """Also one that leads nowhere."""
    (here / "to" / "exercises" / "README.md").mkdir(parents=True)
    (here / "to" / "notebooks").mkdir()
    link = here / "to" / "notebooks" / "03_unet.ipynb"
    link.symlink_to(here / "nowhere")
    done = lessons.copy_lessons(here / "to")
    assert done.differ == [Path("notebooks/03_unet.ipynb"), Path("exercises/README.md")]
    assert link.is_symlink() and not link.exists()


@pytest.mark.parametrize("file", ["folder", "folder/notebooks", "folder/solutions"])
def test_a_file_where_a_folder_should_be(
    file: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names it."""
    (here / file).parent.mkdir(exist_ok=True)
    (here / file).write_text("")
    assert command.main(["lessons", "folder", "--no-lab"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"minimagen lessons: error: {str(Path(file))!r} is a file")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything can be written to")
def test_a_folder_that_cannot_be_written_to(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and one line."""
    (here / "locked").mkdir(mode=0o500)
    assert command.main(["lessons", "locked", "--no-lab"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "locked" in err


def test_full_disk_leaves_no_half_of_a_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, one line; what was copied is whole, and the next call copies the rest."""

    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        if source.name.startswith("03"):
            raise OSError(28, "No space left on device")
        target.write_bytes(source.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        assert command.main(["lessons", "--no-lab"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err and "03_unet.ipynb" in err
    folder = here / "minimagen-lessons"
    assert len(copied(folder)) == 3 and copied(folder).items() <= course().items()
    assert command.main(["lessons", "--no-lab"]) == 0
    assert copied(folder) == course()


def test_without_jupyterlab(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lessons are there; one line says how to get it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main(["lessons"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "`pip install jupyterlab`" in err
    assert copied(here / "minimagen-lessons") == course()


@pytest.mark.skipif(os.name == "nt", reason="signals of another process are POSIX")
@pytest.mark.slow
@pytest.mark.processes
def test_jupyterlab_runs_in_the_folder_until_it_is_stopped(here: Path) -> None:
    """Its root is the folder, so that links from lessons to exercises work; it opens lesson 00."""
    pytest.importorskip("jupyterlab")
    (here / "config").mkdir()
    (here / "config" / "jupyter_server_config.json").write_text(
        '{"ServerApp": {"allow_root": true}}'  # as whom tests run in a container
    )
    quiet = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    environment = {name: str(here / path) for name, path in quiet.items()}
    argv = [sys.executable, "-m", "minimagen", "lessons", "--no-browser"]
    with open(here / "log", "w") as log:
        process = subprocess.Popen(
            argv,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )
    try:
        found, deadline = None, time.monotonic() + 120
        while found is None:
            assert process.poll() is None and time.monotonic() < deadline, log_of(here)
            time.sleep(0.2)
            found = re.search(r"http://localhost:(\d+)/lab/tree/(\S+)\?token=(\w+)", log_of(here))
        port, opened, token = found.groups()
        assert opened == "notebooks/00_start_here.ipynb"
        for path in (opened, "exercises/01_forward_diffusion.ipynb"):
            url = f"http://127.0.0.1:{port}/api/contents/{path}?content=0&token={token}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                assert answer.status == 200
    finally:
        process.terminate()
        process.wait(60)
    assert "Traceback" not in log_of(here)


def log_of(here: Path) -> str:
    return (here / "log").read_text(encoding="utf-8")


# --- check ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [".", "minimagen-lessons", "minimagen-lessons/notebooks"])
def test_check_finds_the_exercises(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that ``minimagen lessons`` copied, seen from wherever a learner may be."""
    command.main(["lessons", "--no-lab"])
    capsys.readouterr()
    monkeypatch.chdir(where)
    assert command.main(["check"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 9 and re.fullmatch(r"in all +0 of \d+ done\.", out[-1])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "there are no exercises in this folder; .*`minimagen lessons`"),
        (["nowhere"], "there is no folder nowhere"),
        (["."], r"\. has no notebooks of exercises"),
    ],
)
def test_check_without_exercises_gets_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and where exercises come from."""
    assert command.main(["check", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(f"minimagen check: error: {said}\n", err)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"cells": 1}'])
def test_check_of_a_broken_notebook(
    text: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the file."""
    (here / "broken.ipynb").write_text(text)
    assert command.main(["check", "."]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "broken.ipynb is not readable as a notebook: " in err


def test_check_skips_notebooks_of_other_things(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learner's own notebook beside the exercises does no harm."""
    source = course_file("exercises") / "01_forward_diffusion.ipynb"
    (here / source.name).write_bytes(source.read_bytes())
    nbformat.write(nbformat.v4.new_notebook(), here / "mine.ipynb")
    assert command.main(["check"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
