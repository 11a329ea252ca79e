"""The command ``minimagen``: its commands, their help, their imports, and the package's names."""

from __future__ import annotations

import contextlib
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import pytest
import torch
from annotated_types import Interval

import minimagen
from minimagen.cli import command, common, process
from minimagen.cli.common import Parser, add_flags, as_flags, count, given_flags, run_command
from minimagen.cli.process import FAULT, Signals
from minimagen.notes import note
from minimagen.settings import PerStage, setting, settings
from minimagen.training import RunError, RunStopped

ROOT = Path(__file__).parents[1]
SCRIPTS = {"main.py": "main", "train.py": "train", "inference.py": "draw"}


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command keeps the handlers of its signals to the end of its process, not of these tests."""
    before = {number: signal.getsignal(number) for number in process.NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@settings
class Sample:
    """Settings of every kind."""

    batch_size: PerStage[Annotated[int, Interval(ge=1)]] = setting((32,), "one", "images", "b")
    rate: float = setting(0.0, "one", "percent: 5 %", "r")
    name: str | None = setting(None, "two", "some name", metavar="NAME")
    device: Literal["cpu", "cuda"] = setting("cpu", "two", "where")
    samplers: PerStage[Literal["a", "b"]] = setting(("a",), "two", "how")
    fast: bool = setting(False, "one", "be fast", "f")


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with the package under test, in another directory."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def help_of(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``minimagen NAME --help`` prints at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        command.main([name, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


# --- which command --------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each with a few words; without arguments too."""
    assert command.main(argv) == 0
    out = capsys.readouterr().out
    for name in ("main", "train", "draw", "lessons", "check"):
        assert re.search(rf"^  {name} +\w", out, re.M)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The package's, or that it is unknown in a clone that nobody installed."""
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"minimagen {minimagen.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+.*|unknown", minimagen.__version__)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("trian", "did you mean 'train'?"), ("sample", "the commands are main, train, draw")],
)
def test_unknown_command_gets_one_line(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what would be right."""
    assert command.main([name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"minimagen: error: unknown command {name!r}, {hint}")


@pytest.mark.parametrize("name", ["main", "train", "draw", "lessons"])
def test_errors_name_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``minimagen train: error:``, whatever its module is called."""
    assert command.main([name, "--QQQQ"]) == 2
    assert capsys.readouterr().err.startswith(f"minimagen {name}: error: unrecognized arguments: ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_six_lines_that_name_themselves_in_errors(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """main.py, train.py and inference.py are the user's contract, and have no code of their own."""
    assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) == 6
    monkeypatch.setattr(sys, "argv", [script, "--SEED", "x"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"{script}: error: --SEED is 'x', it should be ")


# --- in an empty folder ---------------------------------------------------------------------------


@pytest.mark.slow
def test_draw_in_an_empty_folder(tmp_path: Path) -> None:
    """The shipped model and the default captions are found without a clone around."""
    argv = ["draw", "-d", "shapes", "--SAMPLING_STEPS", "1", "--PRECISION", "fp32"]
    done = python("-m", "minimagen", *argv, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.iterdir()
    assert (tmp_path / done.stdout.split()[-1]).samefile(made / "contact_sheet.png")
    assert len((made / "captions.txt").read_text(encoding="utf-8").splitlines()) == 12


IMPORTS = """
import sys
from minimagen.cli.command import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("", "torch numpy pydantic argcomplete tqdm"),
        ("check", "torch numpy nbformat nbclient"),
        ("lessons", "torch numpy"),
        ("train", "transformers datasets scipy matplotlib nbformat IPython"),
        ("draw", "transformers accelerate datasets matplotlib nbformat IPython"),
        ("main", "transformers datasets matplotlib nbformat IPython"),
    ],
)
def test_help_imports_only_what_it_needs(name: str, without: str, tmp_path: Path) -> None:
    """--help takes at most half as long again as torch, which knows the devices."""
    done = python("-c", IMPORTS, *name.split(), "--help", cwd=tmp_path)
    assert "usage: minimagen" in done.stdout
    assert set(without.split()) & set(done.stderr.split()) == set()


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["main", "train", "draw", "lessons", "check"])
def test_help_fits_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line is longer, in the usage and the description neither."""
    out = help_of(name, monkeypatch, capsys)
    assert [line for line in out.splitlines() if len(line) > 80] == []


def test_help_shows_kinds_choices_and_short_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``-b N[,N...], --BATCH_SIZE N[,N...]``, and never a bare X."""
    train = help_of("train", monkeypatch, capsys)
    usage = " ".join(train.partition("\n\n")[0].split())
    for part in ("[-b N[,N...]]", "[--PRECISION {auto,fp32,bf16,fp16}]", "[-test]", "[-cn N]"):
        assert part in usage
    assert "-b N[,N...], --BATCH_SIZE N[,N...]" in train
    assert not re.search(r" X\b", train)
    draw = help_of("draw", monkeypatch, capsys)
    assert "--SAMPLER {ddpm,ddim,dpmpp,heun}[,...]" in draw


@pytest.mark.parametrize("name", ["main", "train", "draw"])
def test_help_explains_every_flag(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After each flag come some words."""
    out = help_of(name, monkeypatch, capsys)
    flags = out.partition("\n\n")[2]
    names = re.findall(r"^  (?:-\w+ ?\S*, )?(--[A-Z]\w+)", flags, re.M)
    assert {"--SEED", "--DEVICE", "--OUTPUT_DIRECTORY"} <= set(names)
    for flag in names:
        assert re.search(rf"{flag}(?: \S+)?\s+\w+ \w+", flags), flag


def test_main_takes_the_flags_of_both_but_those_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains anew and draws with what it trained."""
    out = help_of("main", monkeypatch, capsys)
    for flag in ("--EPOCHS", "--CAPTIONS", "--ANIMATION", "--ALL_STAGES", "--TESTING"):
        assert f"  {flag}" in out or f", {flag}" in out
    for flag in ("--RESTART_DIRECTORY", "--TRAINING_DIRECTORY", "--STAGES"):
        assert flag not in out


# --- flags, errors, exit codes --------------------------------------------------------------------


def sample_parser() -> Parser:
    parser = Parser("sample.py", "First paragraph.\n\nSecond.")
    add_flags(parser, Sample)
    return parser


def test_as_flags_replaces_the_settings_of_a_command() -> None:
    """What is no setting of it, and whatever stands without backticks, stays."""
    flags = {"batch_size": "--BATCH_SIZE", "seed": "train.py --SEED"}
    text = "`batch_size` is 0; batch_size, `batch`, `seed`: `pip install`"
    assert as_flags(text, flags) == "--BATCH_SIZE is 0; batch_size, `batch`, train.py --SEED: " + (
        "`pip install`"
    )


def test_flags_come_from_the_declaration() -> None:
    """Names, kinds, groups and defaults; the values stay text."""
    out = sample_parser().format_help()
    assert "-b N[,N...], --BATCH_SIZE N[,N...]" in out and "images (32)" in out
    assert "--NAME NAME" in out and "--DEVICE {cpu,cuda}" in out and "percent: 5 % (0.0)" in out
    assert "--SAMPLERS {a,b}[,...]" in out and re.search(r"-f, --FAST +be fast\n", out)
    assert "First paragraph.\n\nSecond." in out
    argv = ["-b", "1,2", "-f", "--NAME", "none", "-r", "-1"]
    given = given_flags(sample_parser(), argv)
    assert given == {"batch_size": "1,2", "fast": True, "name": "none", "rate": "-1"}


def test_some_flags_of_a_class() -> None:
    """``only`` and ``skip`` choose; two classes may share a group."""
    parser = Parser("sample.py", "")
    add_flags(parser, Sample, only={"batch_size", "name"})
    add_flags(parser, Sample, skip={"batch_size", "name", "fast", "device", "samplers"})
    assert set(parser.flags) == {"debug", "batch_size", "name", "rate"}
    assert parser.format_help().count("one:") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("-b", "--BATCH_SIZE/-b: expected one argument (one such as -2,1 needs =: --FLAG=-2,1)"),
        ("--BATCH 3", "unknown flag --BATCH, did you mean --BATCH_SIZE?"),
        ("--batch_size=3", "unknown flag --batch_size, did you mean --BATCH_SIZE?"),
        ("--SPEED 3", "unrecognized arguments: --SPEED 3"),
        ("red", "unrecognized arguments: red"),
        ("--debug", "unknown flag --debug, did you mean --DEBUG?"),
        ("--NAME caf\udce9", r"--NAME is 'caf\udce9', it should be UTF-8 text"),
        (f"--{'x' * 5000}", f"unrecognized arguments: --{'x' * 467} ... {'x' * 250}"),
    ],
)
def test_what_the_parser_says(argv: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, no usage; no abbreviations, but a hint."""
    assert run_command(sample_parser(), lambda given: None, argv.split()) == 2
    assert capsys.readouterr().err == f"sample.py: error: {said}\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("`rate` is 9\n  at all"), 2, "error: --RATE is 9 at all"),
        (RunError("`rate` is too high"), 1, "error: --RATE is too high"),
        (OSError(28, "No space left"), 1, "error: [Errno 28] No space left"),
        (RunStopped("go on with `name` x", 15), 143, "go on with --NAME x"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 1, "error: too little memory: give half the --BATCH_SIZE"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
            1,
            "error: too little memory: give half the --BATCH_SIZE",
        ),
        (RuntimeError("std::bad_alloc"), 1, "error: too little memory: give half the --BATCH_SIZE"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
            1,
            "error: too little memory: give half the --BATCH_SIZE",
        ),
        (OSError(12, "Cannot allocate"), 1, "error: too little memory: give half the --BATCH_SIZE"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of error has its exit code, and one line on stderr."""

    def work(given: dict[str, object]) -> None:
        raise error

    assert run_command(sample_parser(), work, []) == code
    assert capsys.readouterr() == ("", f"sample.py: {line}\n")


def test_only_one_process_of_a_launch_tells_a_wrong_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All find the same; an error that one of them has alone is told."""

    def work(given: dict[str, object]) -> None:
        raise given["error"]  # type: ignore[misc]

    monkeypatch.setenv("RANK", "1")
    assert run_command(sample_parser(), work, ["--nonsense"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(common, "given_flags", lambda *_: {"error": RunError("loss")})
    assert run_command(sample_parser(), work, []) == 1
    assert "loss" in capsys.readouterr().err


def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have every training fail as soon as it begins."""

    def resolve(**given: object) -> None:
        raise error

    monkeypatch.setattr("minimagen.cli.train.resolve", resolve)


def test_a_fault_of_ours_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that it is one, and how to see more; from Python it is the exception."""
    fail(monkeypatch, KeyError("a\nb"))
    assert command.main(["train"]) == FAULT == 70
    assert capsys.readouterr() == (
        "",
        "minimagen train: error: unexpected KeyError: 'a\\nb'; run it again with --DEBUG to see "
        "where, and report it\n",
    )
    with pytest.raises(KeyError):
        run_command(sample_parser(), lambda given: {}["x"], [])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("`seed` is 3"), 2, "minimagen train: error: --SEED is 3"),
        (KeyError("x"), 70, "minimagen train: error: unexpected KeyError: 'x'; report it"),
        (KeyboardInterrupt(), 130, "minimagen train: stopped"),
    ],
)
def test_debug_shows_where(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--DEBUG prints the traceback, and then the same line."""
    fail(monkeypatch, error)
    assert command.main(["train", "--DEBUG"]) == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and 'test_cli.py", line' in err
    assert err.endswith(f"\n{line}\n")


def test_debug_of_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other commands have the flag too."""
    for argv in (["check", str(tmp_path / "nowhere")], ["lessons", __file__, "--no-lab"]):
        assert command.main(argv) == command.main([*argv, "--DEBUG"]) == 2
        assert capsys.readouterr().err.count("Traceback") == 1


def test_a_package_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first that somebody sees who forgot to install."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(process, "import_module", missing)
    assert command.main(["train"]) == 1
    said = "minimagen train: error: ModuleNotFoundError: No module named 'torch'; see README.md, "
    assert capsys.readouterr().err == f"{said}quick start\n"


# --- Ctrl-C and SIGTERM ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", process.NUMBERS)
@pytest.mark.parametrize("turned", [None, ImportError("no"), RuntimeError("no"), SystemError("no")])
def test_a_signal_in_the_work_is_an_exception(
    number: int, turned: Exception | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was begun is cleaned up, also if a library turns the exception into another."""
    cleaned = False

    def work(given: dict[str, object]) -> None:
        nonlocal cleaned
        try:
            signal.raise_signal(number)
            time.sleep(10)
        except KeyboardInterrupt:
            if turned:
                raise turned from None
            raise
        finally:
            cleaned = True

    before = signal.getsignal(number)
    assert run_command(sample_parser(), work, []) == 128 + number
    assert capsys.readouterr() == ("", "sample.py: stopped\n")
    assert cleaned and signal.getsignal(number) is before


@pytest.mark.parametrize("interruptible", [False, True])
@pytest.mark.parametrize("number", process.NUMBERS)
def test_a_signal_outside_the_work_ends_the_process(
    number: int,
    interruptible: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """At once and with one line; within the work the second one does so."""
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"exit {code}", pytrace=False))
    with Signals("sample.py", interruptible):
        if interruptible:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(pytest.fail.Exception, match=f"exit {128 + number}"):
            signal.raise_signal(number)
    assert capfd.readouterr() == ("", "sample.py: stopped\n")


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGINT is in a job of the background."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
        with Signals("sample.py") as signals:
            assert signals._before == {}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="exit codes of signals are POSIX")
def test_exit_code_after_ctrl_c_within_exec(tmp_path: Path) -> None:
    """As in an import that makes a class of text; Python would end by the signal itself."""
    (tmp_path / "slow.py").write_text(
        """
from minimagen.cli.process import Signals
def main(argv, program):
    try:
        with Signals(program, interruptible=True):
            exec("import signal; signal.raise_signal(signal.SIGINT)")
    except KeyboardInterrupt:
        return 130
"""
    )
    code = "from minimagen.cli.process import run\nraise SystemExit(run('slow', 'slow.py'))"
    (tmp_path / "begin.py").write_text(code)
    done = python("-m", "begin", cwd=tmp_path)  # Python ends so with -m alone
    assert (done.returncode, done.stderr) == (130, "")


DRAW = ["-d", "shapes", "-c", "a red circle", "--SAMPLING_STEPS", "1", "--PRECISION", "fp32"]
TRAIN = ["--TESTING", "--NUM_IMAGES", "40", "--EPOCHS", "1", "--PRECISION", "fp32"]
STOPPED = {
    "train.py --help": [str(ROOT / "train.py"), "--help"],
    "inference.py": [str(ROOT / "inference.py"), *DRAW],
    "minimagen draw": ["-m", "minimagen", "draw", *DRAW],
    "train.py, 1 thread": [str(ROOT / "train.py"), *TRAIN, "--THREADS", "1"],
    "train.py, 2 threads": [str(ROOT / "train.py"), *TRAIN, "--THREADS", "2"],
}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="signals of another process are POSIX")
@pytest.mark.parametrize("name", STOPPED)
def test_signals_at_any_moment(name: str, tmp_path: Path) -> None:
    """From the first import to the end: one line and 130 or 143, or it was done already.

    One signal or two, to the process or to its group, as a terminal does it.
    """
    rng, began = random.Random(name), time.monotonic()
    assert python(*STOPPED[name], cwd=tmp_path, OMP_NUM_THREADS="1").returncode == 0
    whole = time.monotonic() - began
    for number in range(6):
        one = rng.choice(process.NUMBERS)
        numbers = rng.choice([[one], [one], [one, signal.SIGINT], [one, signal.SIGTERM]])
        send = rng.choice([os.kill, os.killpg])
        delay = 0.1 + whole * (number + rng.random()) / 6
        folder = tmp_path / str(number)
        folder.mkdir()
        with subprocess.Popen(
            [sys.executable, *STOPPED[name]],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as child:
            time.sleep(delay)
            for each in numbers:
                with contextlib.suppress(ProcessLookupError):
                    send(child.pid, each)
                time.sleep(0.1)
            err = child.communicate(timeout=120)[1]
        what = f"{numbers} after {delay:.2f} of {whole:.2f} s: {child.returncode}, {err}"
        assert child.returncode in (0, 130, 143), what
        assert err == "" if child.returncode == 0 else re.fullmatch("[^\n]+stopped[^\n]*\n", err), (
            what
        )
        if len(numbers) == 1:  # a second one ends the processes of stages at once
            assert not list(folder.rglob("*.part")), what


def test_warnings_are_notes_and_lines_have_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """Both with flags for settings; afterwards warnings are what they were before."""
    before, filters = warnings.showwarning, list(warnings.filters)
    parser = sample_parser()

    def work(given: dict[str, object]) -> int:
        warnings.warn("`rate` is high", stacklevel=1)
        warnings.warn("nobody cares", FutureWarning, stacklevel=1)
        parser.say("`device` is cpu")
        return 7

    assert run_command(parser, work, []) == 7
    assert capsys.readouterr() == ("--DEVICE is cpu\n", "note: --RATE is high\n")
    assert warnings.showwarning is before and warnings.filters == filters


def test_every_warning_of_our_own_is_printed_as_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    """Each time, in one line, and from within ``no_grad``, where it looks like torch's."""

    @torch.no_grad()
    def encode() -> None:
        note("captions are\ncut off")
        warnings.warn("advice of a library", stacklevel=2)

    def work(given: dict[str, object]) -> None:
        encode()
        encode()

    assert run_command(Parser("red", ""), work, []) == 0
    assert capsys.readouterr().err == "note: captions are cut off\n" * 2


def test_the_package_warns_with_notes_alone() -> None:
    """A bare ``warnings.warn`` may be hidden with those of libraries."""
    for path in (ROOT / "minimagen").rglob("*.py"):
        if path.name != "notes.py":
            assert "warnings.warn(" not in path.read_text(encoding="utf-8"), path


def test_train_says_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines and errors of a training get the flags of the command that runs it."""

    def train(plan: object, say: object) -> None:
        assert callable(say)
        say("`epochs` is 3")
        raise RunStopped("stopped, go on with `restart_directory` x", 2)

    plan = SimpleNamespace(config=SimpleNamespace(threads=None))
    monkeypatch.setattr("minimagen.cli.train.resolve", lambda **given: plan)
    monkeypatch.setattr("minimagen.cli.train.train", train)
    assert command.main(["train"]) == 130
    out, err = capsys.readouterr()
    assert out == "--EPOCHS is 3\n"
    assert err == "minimagen train: stopped, go on with --RESTART_DIRECTORY x\n"


def test_threads_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """None leaves torch's choice; 1 image, 2 images."""
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    common.set_threads(None)
    common.set_threads(3)
    assert asked == [3]
    assert (count(1, "image"), count(0, "image"), count(2, "file")) == (
        "1 image",
        "0 images",
        "2 files",
    )


# --- the package's names --------------------------------------------------------------------------


def test_package_hands_on_what_most_programs_need() -> None:
    """Every name of __all__ is there, is listed, and is the very one of its module."""
    from minimagen.generation import load_imagen
    from minimagen.sharing import train
    from minimagen.unet import Unet

    for name in minimagen.__all__:
        assert getattr(minimagen, name) is not None and name in dir(minimagen)
    assert (minimagen.train, minimagen.Unet, minimagen.load_imagen) == (train, Unet, load_imagen)
    with pytest.raises(AttributeError, match="'minimagen' has no attribute 'Unett'"):
        minimagen.Unett  # noqa: B018


@pytest.mark.slow
def test_package_imports_names_when_they_are_used(tmp_path: Path) -> None:
    """``import minimagen`` is quick, and star import works."""
    code = "import sys, minimagen; assert 'torch' not in sys.modules, 'torch'\n"
    code += "assert minimagen.NoiseSchedule and 'torch' in sys.modules\n"
    code += "assert 'transformers' not in sys.modules\nfrom minimagen import *\nprint(train, Unet)"
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
