"""What a newcomer meets first: README, requirements, configuration of the package, CI, layout."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools import make

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minimagen"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
TOOLS = (ROOT / "tests", ROOT / "tools")
SOURCES = sorted(
    path
    for path in [*ROOT.glob("*.py"), *(p for f in (PACKAGE, *TOOLS) for p in f.rglob("*.py"))]
    if "__pycache__" not in path.parts
)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
INSTALL = "python -m pip install -r requirements{}.txt -e . && "
COMMANDS = {
    "main": f"{INSTALL.format('')}python main.py",
    "tests": f"{INSTALL.format('-dev')}python -m pytest",
}


# --- README ---------------------------------------------------------------------------------------


def test_readme_has_the_two_commands_that_do_everything() -> None:
    """Below each mark stands one fenced command: install, then the main job or the tests."""
    for name, command in COMMANDS.items():
        found = re.findall(rf"^<!-- ci: {name} -->\n```bash\n(.*?)^```$", README, re.M | re.S)
        assert found == [f"{command}\n"]


@pytest.mark.skipif(os.name == "nt", reason="bash may be another system's on Windows")
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_ci_takes_the_commands_out_of_the_readme() -> None:
    """.ci/run shows the commands that stand in README.md, and has no copy of its own."""
    script = ROOT / ".ci" / "run"
    shown = subprocess.run(["bash", script, "show"], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [f"{name}: {text}" for name, text in COMMANDS.items()]
    assert "install -r" not in script.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="bash may be another system's on Windows")
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_ci_refuses_a_readme_without_a_command(tmp_path: Path) -> None:
    """A mark that was lost is an error of one line, not a run that tests nothing."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "README.md").write_text(README.replace("<!-- ci: tests -->", ""), encoding="utf-8")
    done = subprocess.run(["bash", tmp_path / ".ci" / "run"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "<!-- ci: tests -->" in done.stderr and done.stderr.count("\n") == 1


def test_readme_says_how_to_get_the_files() -> None:
    """From the address in pyproject.toml; while that is not set, in words and without a link."""
    name = make.repository()
    assert PROJECT["urls"] == {"Repository": f"https://github.com/{name}"}
    said = README.split("<!-- address -->\n")[1].split("<!-- end of address -->")[0]
    assert said.strip() == make.how_to_clone(name).strip()
    unset = name.startswith(make.UNSET)
    assert ("git clone" in README) is not unset and make.UNSET not in README


def test_citation_names_the_version_and_the_address() -> None:
    """CITATION.cff is of this version, has the Imagen paper, and the address once there is one."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"] and citation["license"] == "MIT"
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2205.11487"
    name = make.repository()
    address = None if name.startswith(make.UNSET) else f"https://github.com/{name}"
    assert citation.get("repository-code") == address


def test_changelog_begins_with_this_version() -> None:
    """Who changes the version says what it brings."""
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+), ", changes, re.M)[0] == PROJECT["version"]


def test_check_address_fails_when_github_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line that says what to run; the same address passes."""
    monkeypatch.setenv("GITHUB_REPOSITORY", make.repository())
    assert make.main(["check-address"]) == 0
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/else")
    with pytest.raises(SystemExit, match=r"python tools/make\.py address someone/else") as error:
        make.main(["check-address"])
    assert "\n" not in str(error.value)


def test_the_task_file_has_the_tasks() -> None:
    """What CONTRIBUTING.md and the workflow call is in the Makefile."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    (phony,) = [line.split()[1:] for line in lines if line.startswith(".PHONY:")]
    assert phony == ["setup", "quick", "tests", "lint", "types", "tables", "exercises", "locks"]
    targets = [line.partition(":")[0].split() for line in lines if re.match("[a-z]", line)]
    assert [name for names in targets for name in names] == phony
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for command in re.findall(r"`make ([a-z ]+)`", contributing):
        assert set(command.split()) <= set(phony)


def test_readme_starts_lab_above_all_folders() -> None:
    """Started in notebooks/, Lab would not find the exercises that the lessons link to."""
    assert re.findall("^jupyter lab.*$", README, re.M) == ["jupyter lab"]


def test_readme_has_no_figure_left_to_measure() -> None:
    """Every figure in README.md was measured and filled in."""
    assert re.findall(r"«MEASURED[^»]*»?|FIGURE\([^)]*\)?", README) == []


def test_readme_links_to_files_that_are_there() -> None:
    """Images and links within the repository lead somewhere."""
    links = re.findall(r"\]\((?!https://|#)([^)]+)\)", README)
    assert "assets/contact_sheet.png" in links and "LICENSE" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_documents_every_flag_of_every_script() -> None:
    """The tables of flags are what --help says."""
    assert make.with_flag_tables(README) == README, "run: python tools/make.py tables"


def test_readme_uses_only_flags_that_exist() -> None:
    """Examples take flags of the script they call; the text names none that no script has."""
    known = {
        script: {name for _, names, _ in make.flags_of(main) for name in names}
        for script, main in make.scripts().items()
    }
    examples = re.findall(r"(train|inference|main)\.py((?: [^\n`|#;&]+)?)", README)
    for script, arguments in examples:
        used = re.findall(r"(?<!\S)--?[A-Za-z]\w*", arguments)
        assert set(used) <= known[f"{script}.py"], (script, arguments)
    named = set(re.findall(r"--[A-Z][A-Z0-9_]+", README)) - {"--FLAG"}
    assert named <= set().union(*known.values())


# --- what is installed ----------------------------------------------------------------------------


def pins(name: str) -> list[Requirement]:
    """The lines of a file of requirements, and of the file that it includes."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line[:1].isalnum()]
    included = [line.split()[1] for line in lines if line.startswith("-r ")]
    return found + [pin for other in included for pin in pins(other)]


def ranges(name: str) -> list[Requirement]:
    """What pyproject.toml asks for, of what a file of requirements pins."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["lab"], *extras["data"]]
    if name == DEVELOPER:
        lines += PYPROJECT["dependency-groups"]["dev"]
    return [Requirement(line) for line in lines]


LEARNER, DEVELOPER = "requirements.txt", "requirements-dev.txt"
both_files = pytest.mark.parametrize("name", [LEARNER, DEVELOPER])


def environments() -> Iterator[dict[str, str]]:
    """The systems and Pythons that the project is for, as markers see them."""
    systems = [
        ("linux", "Linux", "posix", "x86_64"),
        ("darwin", "Darwin", "posix", "arm64"),
        ("win32", "Windows", "nt", "AMD64"),
    ]
    for python in PYTHONS:
        for platform, system, name, machine in systems:
            yield default_environment() | {  # type: ignore[misc]
                "python_version": python,
                "python_full_version": f"{python}.9",
                "sys_platform": platform,
                "platform_system": system,
                "os_name": name,
                "platform_machine": machine,
            }


@both_files
def test_requirements_pin_every_dependency_once_for_every_system_and_python(name: str) -> None:
    """Each range of pyproject.toml has one pin within it, wherever it is used."""
    assert list(PROJECT["optional-dependencies"]) == ["lab", "data"]
    assert list(PYPROJECT["dependency-groups"]) == ["dev"]
    for environment in environments():
        valid = [p for p in pins(name) if p.marker is None or p.marker.evaluate(environment)]
        versions = {canonicalize_name(pin.name): pin.specifier for pin in valid}
        assert len(versions) == len(valid), "two versions of one package"
        for pin in valid:
            assert [spec.operator for spec in pin.specifier] == ["=="], pin
        for dependency in ranges(name):
            (pinned,) = versions[canonicalize_name(dependency.name)]
            assert dependency.specifier.contains(pinned.version), (dependency, pinned)


def test_a_learner_installs_no_tools() -> None:
    """What tests and tools need is in requirements-dev.txt alone; it begins with the other."""
    learner = {canonicalize_name(pin.name) for pin in pins(LEARNER)}
    tools = {r.name for r in ranges(DEVELOPER)} - {r.name for r in ranges(LEARNER)}
    assert tools >= {"playwright", "diffusers", "ruff", "mypy", "pytest", "nbval", "uv"}
    assert tools & learner <= {"nbconvert", "pyyaml"}, "Jupyter and transformers bring these two"
    assert "nbgrader" not in {pin.name for pin in pins(DEVELOPER)}
    text = (ROOT / DEVELOPER).read_text(encoding="utf-8")
    assert re.findall("^[^#\n].*", text, re.M)[0] == f"-r {LEARNER}"
    (torch,) = [pin for pin in pins(LEARNER) if pin.name == "torch"]
    assert str(torch.specifier) == f"=={make.TORCH}"
    assert f"torch=={make.TORCH}" in README


@both_files
def test_requirements_are_whole(name: str) -> None:
    """What a pinned package needs is pinned as well, where that package is installed here."""
    known = {canonicalize_name(pin.name) for pin in pins(name)}
    missing = set()
    for pin in pins(name):
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            installed = importlib.metadata.distribution(pin.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not pin.specifier.contains(installed.version):
            continue
        for needed in map(Requirement, installed.requires or []):
            wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if wanted and canonicalize_name(needed.name) not in known:
                missing.add(f"{pin.name} needs {needed.name}")
    for_nvidia = re.compile(f"torch needs {make.FOR_NVIDIA}")
    assert [line for line in sorted(missing) if not for_nvidia.match(line)] == []


def test_the_packages_that_the_course_is_about_are_dependencies() -> None:
    """Those that the project is to use are there, nbval for the tests of notebooks."""
    asked = "torch transformers sentencepiece einops jupyterlab matplotlib ipywidgets datasets"
    assert {requirement.name for requirement in ranges(LEARNER)} >= set(asked.split())
    assert "nbval" in {requirement.name for requirement in ranges(DEVELOPER)}


# How the packages are called that are not called as what is imported.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
UNASKED = {"google"}  # protobuf, which transformers takes for itself


def imported(paths: list[Path]) -> set[str]:
    """The packages that files import, their own folders' modules aside."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    own = {"minimagen", "tools", "tests", "answers", *(path.stem for path in paths)}
    found -= own | set(sys.stdlib_module_names) | UNASKED
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in found}


def test_what_is_imported_is_declared() -> None:
    """The package needs no more than what it asks for; tests and tools, no more than all."""
    package = [path for path in SOURCES if not any(path.is_relative_to(f) for f in TOOLS)]
    asked = {Requirement(line).name for line in PROJECT["dependencies"]}
    extra = {Requirement(line).name for line in PROJECT["optional-dependencies"]["data"]}
    assert (
        imported([path for path in package if path.name not in ("sources.py", "metadata.py")])
        <= asked
    )
    assert imported(package) <= asked | extra
    assert imported(SOURCES) <= {requirement.name for requirement in ranges(DEVELOPER)}


def test_colab_gets_no_jupyter_server() -> None:
    """JupyterLab and data sets are extras: Colab has its own server, and shapes need no data."""
    heavy = {"jupyterlab", "notebook", "jupyter", "jupyter-server", "datasets"}
    assert not heavy & {Requirement(line).name for line in PROJECT["dependencies"]}


def test_a_torch_that_is_there_already_is_kept() -> None:
    """On Colab `pip install -e .` leaves torch alone: the range admits what it may bring."""
    (torch,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch"]
    for version in ("2.5.0", "2.6.0+cu124", "2.8.0+cu126", "2.9.1", "2.10.0", "2.13.0", "2.20.0"):
        assert torch.specifier.contains(Version(version)), version


def test_environment_agrees_with_requirements_and_pyproject() -> None:
    """conda brings a Python that is allowed; all else comes from requirements.txt by pip."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, by_pip = environment["dependencies"]
    version = python.removeprefix("python=")
    assert version in PYTHONS
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version)
    assert pip == "pip"
    assert by_pip == {"pip": ["-r requirements.txt", "-e ."]}


def test_workflow_runs_the_same_script_on_every_system_and_python() -> None:
    """GitHub calls .ci/run: all of it on Linux with each Python, the tests on macOS and Windows."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert tuple(jobs["everything"]["strategy"]["matrix"]["python"]) == PYTHONS
    assert jobs["tests"]["strategy"]["matrix"]["system"] == ["macos-latest", "windows-latest"]
    runs = {name: [s["run"] for s in job["steps"] if "run" in s] for name, job in jobs.items()}
    assert runs == {
        "lint": [
            "python -m pip install --no-deps -r requirements-dev.txt",
            "make lint types",
            "python tools/make.py check-address",
        ],
        "lowest": ["bash .ci/run lowest"],
        "everything": ["bash .ci/run"],
        "tests": ["bash .ci/run tests"],
    }
    for job in jobs.values():
        (setup,) = [s["with"] for s in job["steps"] if "setup-python" in s.get("uses", "")]
        assert setup["cache"] == "pip"


def test_every_python_is_named_everywhere() -> None:
    """The oldest, and all others, in the metadata, the README, and the tools' settings."""
    oldest, newest = PYTHONS[0], PYTHONS[-1]
    assert PROJECT["requires-python"] == f">={oldest}"
    versions = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert tuple(versions) == PYTHONS
    assert f"3.{oldest[2:]} to {newest}" in README
    tool = PYPROJECT["tool"]
    assert tool["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert tool["mypy"]["python_version"] == oldest


def test_license_is_mit_in_file_and_metadata() -> None:
    """LICENSE is the MIT license, and pyproject.toml says so."""
    assert PROJECT["license"] == "MIT" and PROJECT["license-files"] == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")


def test_no_committed_file_names_this_machine_or_another_project() -> None:
    """No home or working directory of a machine, and no advice to install PyPI's `minimagen`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no clone, git cannot tell which files belong to it")
    names = [name for name in listed.decode().split("\0") if name]
    assert "pyproject.toml" in names
    private = rb"""(?<![\w.:/~<>*{}-])/(?:home|root|Users|work|workspace|mnt|opt|tmp)/\w"""
    private += rb"""|[A-Z]:\\+(?:Users|home)\b|pip install (?:-\S+ )*minimagen\b"""
    found = []
    for name in names:
        if (ROOT / name).is_file():
            for match in re.finditer(private, (ROOT / name).read_bytes()):
                found.append((name, match[0]))
    assert found == []


# --- how the package is laid out ------------------------------------------------------------------

# A module or package imports from floors below its own.
FLOORS: tuple[set[str], ...] = (
    {"settings", "devices", "randomness", "course", "files", "notes"},
    {"manifest", "schedules", "diffusion", "layers"},
    {"unet", "text", "samplers", "guidance", "thresholding", "augmentation", "data"},
    {"imagen", "optimizer"},
    {"parameters", "presets"},
    {"run_directory"},
    {"training", "generation", "evaluation"},
    {"explorer", "checks", "sharing"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


# Every module of the package by its name, such as "training.loop", "training" or, its own, "".
MODULES = {_module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(path: Path, at_load: bool) -> set[str]:
    """The modules of the package that a file imports; ``at_load``: when it is itself imported."""
    found = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), at_load):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inner = name.partition(".")
            while package == "minimagen" and inner not in MODULES:
                inner = inner.rpartition(".")[0]  # a name within a module
            if package == "minimagen":
                found.add(inner)
    return found


def _statements(node: ast.AST, at_load: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if at_load and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _statements(child, at_load)


def test_modules_import_only_from_floors_below() -> None:
    """Each module or package imports from lower floors alone, and each has its floor."""
    for name, path in MODULES.items():
        room = name.split(".")[0]
        if not room:
            continue
        assert room in FLOOR, f"{room} is on no floor"
        for other in {name.split(".")[0] for name in imports_of(path, at_load=False)} - {""}:
            lower = other in FLOOR and FLOOR[other] < FLOOR[room]
            assert lower or other == room, f"{name} imports {other}"


def test_modules_do_not_import_each_other_in_circles() -> None:
    """No module is needed to load what it needs itself."""
    needs = {name: imports_of(path, at_load=True) for name, path in MODULES.items()}
    done: set[str] = set()
    while ready := {name for name in needs.keys() - done if needs[name] <= done}:
        done |= ready
    assert needs.keys() - done == set()


def test_the_package_itself_only_hands_names_on() -> None:
    """minimagen/__init__.py imports nothing of the package until a name is asked for."""
    assert imports_of(PACKAGE / "__init__.py", at_load=True) == set()
    code = "import sys, minimagen; print(sorted(n for n in sys.modules if 'minimagen' in n))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['minimagen']\n"
    import minimagen

    for name in minimagen.__all__:
        assert getattr(minimagen, name) is not None and name in dir(minimagen)
    with pytest.raises(AttributeError, match="no attribute 'Imagine'"):
        minimagen.Imagine  # noqa: B018


def test_below_the_command_line_nobody_spells_a_flag() -> None:
    """Errors, help and docstrings name settings; settings.flag_name alone spells a flag."""
    found = []
    for name, path in MODULES.items():
        if name.split(".")[0] in ("cli", "checks", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                flags = set(re.findall(r"--[A-Z][A-Z0-9_]+", node.value)) - {"--FLAG"}
                found += [(name, flag) for flag in flags if flag != "--BATCH_SIZE"]  # the example
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_source_is_written_for_the_oldest_python(path: Path) -> None:
    """It can read every file."""
    oldest = (3, int(PYTHONS[0].partition(".")[2]))
    ast.parse(path.read_text(encoding="utf-8"), path.name, feature_version=oldest)


def test_public_functions_say_their_types() -> None:
    """py.typed is there, and every public function says the type of its arguments and result."""
    assert (PACKAGE / "py.typed").is_file()
    untyped = []
    for name, path in MODULES.items():
        for function, method in _public(ast.parse(path.read_text(encoding="utf-8"))):
            given = function.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            arguments += [extra for extra in (given.vararg, given.kwarg) if extra]
            decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
            said = arguments[1:] if method and "staticmethod" not in decorators else arguments
            if function.returns is None or any(a.annotation is None for a in said):
                untyped.append(f"{name}.{function.name}")
    assert untyped == []


def _public(
    node: ast.Module | ast.ClassDef,
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_") or child.name in ("__init__", "__call__"):
                yield child, isinstance(node, ast.ClassDef)
        elif isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _public(child)
