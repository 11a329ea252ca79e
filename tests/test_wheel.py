"""The wheel: it holds all that the course needs, and notebooks run with it anywhere.

Takes about as long as the notebook that is run, and ten seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
COURSE = ("notebooks", "exercises", "solutions", "parameters", "captions.txt")
PRETRAINED = ROOT / "minimagen" / "pretrained"
NOTEBOOK = ROOT / "notebooks" / "00_start_here.ipynb"


def run(*command: str | Path, cwd: Path, seconds: int = 600) -> str:
    """The output of a command that must succeed, without this environment's paths and caches."""
    own = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, with what is not to be in it beside them."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "minimagen", *COURSE):
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy)
    for name in ("tests/test_any.py", "notebooks/.ipynb_checkpoints/a.ipynb"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).touch()
    for folder in ("minimagen", "notebooks"):
        (copy / folder / "__pycache__").mkdir()
        (copy / folder / "__pycache__" / "a.cpython-311.pyc").touch()
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    run(*build, "--wheel-dir", "built", cwd=copy)
    (built,) = (copy / "built").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fresh environment with the wheel, which finds the dependencies where they are now."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    scripts, site = (_path_in(home, name) for name in ("scripts", "purelib"))
    interpreter = scripts / ("python.exe" if os.name == "nt" else "python")
    pip = [sys.executable, "-m", "pip", "--python", interpreter]
    run(*pip, "install", "--quiet", "--no-deps", wheel, cwd=home)
    # Lines of a .pth file in the new environment are paths; .pth files in those are not read, so
    # that the editable install of this repository, if there is one, stays behind.
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(here), encoding="utf-8")
    return interpreter


def _path_in(home: Path, name: str) -> Path:
    """Where a virtual environment has its scripts or packages."""
    return Path(sysconfig.get_path(name, "venv", {"base": str(home), "platbase": str(home)}))


def test_wheel_holds_every_module_and_every_shipped_file(wheel: Path) -> None:
    """Modules, py.typed, pretrained/ and the course, whose files are those of the repository."""
    sources = [*(ROOT / "minimagen").rglob("*.py"), *PRETRAINED.rglob("*")]
    expected = {path.relative_to(ROOT).as_posix(): path for path in sources}
    for name in COURSE:
        paths = [ROOT / name, *(ROOT / name).rglob("*")]
        expected |= {f"minimagen/course/{p.relative_to(ROOT).as_posix()}": p for p in paths}
    expected["minimagen/py.typed"] = ROOT / "minimagen" / "py.typed"
    unwanted = {"__pycache__", ".ipynb_checkpoints"}
    expected = {n: p for n, p in expected.items() if p.is_file() and not unwanted & {*p.parts}}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {name for name in names if ".dist-info/" not in name} == set(expected)
        for name, path in expected.items():
            assert archive.read(name) == path.read_bytes(), name
        (scripts,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        assert "minimagen = minimagen.cli.command:main" in archive.read(scripts).decode()
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_wheel_is_small_enough_to_install_for_a_lesson(wheel: Path) -> None:
    """What is shipped takes at most 12 MB, the course 4 MB, all files of the wheel 14 MB."""
    size = {
        name: sum(path.stat().st_size for path in (ROOT / name).rglob("*") if path.is_file())
        for name in ("minimagen/pretrained", "notebooks", "exercises", "solutions")
    }
    assert size.pop("minimagen/pretrained") < 12e6
    assert sum(size.values()) < 4e6
    assert wheel.stat().st_size < 14e6


def test_installed_package_is_the_one_of_the_wheel(python: Path, tmp_path: Path) -> None:
    """From an empty directory, the package and its text encoder come out of the environment."""
    code = (
        "import minimagen, torch; from minimagen.text import load_text_encoder\n"
        "load_text_encoder('t5_tiny').encode(['a red circle'])\n"
        "print(minimagen.__file__)"
    )
    found = Path(run(python, "-c", code, cwd=tmp_path).strip()).resolve()
    assert found.is_relative_to(python.parents[1].resolve())
    assert not found.is_relative_to(ROOT)


@pytest.mark.skipif(not NOTEBOOK.is_file(), reason=f"there is no {NOTEBOOK.name}")
def test_a_lesson_runs_from_the_wheel_in_an_empty_directory(python: Path, tmp_path: Path) -> None:
    """Strict nbval passes outside the repository, with the wheel's package and nothing beside."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    check = (
        "from pathlib import Path\n"
        "import minimagen\n"
        f"home, here = Path({str(python.parents[1])!r}), Path({str(tmp_path)!r})\n"
        "assert home.resolve() in Path(minimagen.__file__).resolve().parents\n"
        "assert here.resolve() == Path.cwd().resolve()"
    )
    count = 1 + sum(cell.cell_type == "code" for cell in notebook.cells)
    notebook.cells.append(new_code_cell(check, execution_count=count))
    nbformat.write(notebook, tmp_path / NOTEBOOK.name)
    sanitize = f"--nbval-sanitize-with={ROOT / 'tests' / 'sanitize.cfg'}"
    options = ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-q", "--color=no"]
    nbval = ["--nbval", "--nbval-current-env", sanitize, NOTEBOOK.name]
    out = run(python, "-m", "pytest", *options, *nbval, cwd=tmp_path)
    assert re.search(rf"^{count} passed", out, re.M), out
    assert [path.name for path in tmp_path.iterdir()] == [NOTEBOOK.name], "it left files behind"


@pytest.mark.slow
@pytest.mark.processes
def test_each_command_works_from_the_wheel_in_an_empty_directory(
    python: Path, tmp_path: Path
) -> None:
    """Lessons, their progress, the shipped model with the default captions, and a training."""
    command = python.with_name("minimagen.exe" if os.name == "nt" else "minimagen")
    assert "COMMAND" in run(command, "--help", cwd=tmp_path)
    assert "copied" in run(command, "lessons", "--no-lab", cwd=tmp_path)
    assert "0 of 45 done" in run(command, "check", cwd=tmp_path)
    drawn = run(command, "draw", "-d", "shapes", "--SAMPLING_STEPS", "2", cwd=tmp_path)
    assert "drew 12 images" in drawn and "contact_sheet.png" in drawn
    tiny = ["--TESTING", "--NUM_IMAGES", "40", "--EPOCHS", "1", "--PRECISION", "fp32"]
    trained = run(command, "train", *tiny, cwd=tmp_path)
    assert "finished; the results are in" in trained
    (directory,) = tmp_path.glob("training_*")
    assert "drew 1 image in" in run(
        command, "draw", "-d", directory.name, "-c", "a red circle", cwd=tmp_path
    )
    assert "--EPOCHS" in run(command, "main", "--help", cwd=tmp_path)
