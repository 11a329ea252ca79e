"""At the limits: too little memory, full disks, values at the ends of their ranges."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cli import python
from test_training import at_step, parameters, tiny_settings  # noqa: F401

from minimagen.cli.inference import main as draw
from minimagen.cli.train import main as train
from minimagen.settings import to_text
from minimagen.training import cascade

ROOT = Path(__file__).parents[1]
DRAW = ["-d", "shapes", "-c", "a red circle", "--SAMPLING_STEPS", "1", "--PRECISION", "fp32"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current directory without anything in it; stages train in this process."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(cascade, "_train_in_processes", cascade._train_here)


@pytest.fixture
def tiny(parameters: Path) -> list[str]:  # noqa: F811
    """The flags of the tiny training."""
    settings = tiny_settings(parameters, Path())
    return [part for k, v in settings.items() for part in (f"--{k.upper()}", to_text(v))]


# --- too little memory ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("step", [2, 7])  # before the first checkpoint, and after it
@pytest.mark.slow
def test_too_little_memory_in_training_says_how_to_go_on(
    error: Exception,
    step: int,
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line with the flags that help and, if there is a checkpoint, the command to resume."""

    def fail() -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, fail)
        assert train(tiny) == 1
    (made,) = Path().glob("training_*")
    line = capsys.readouterr().err
    said = "train.py: error: too little memory: start again with half the --BATCH_SIZE and twice "
    assert line.startswith(f"{said}the --ACCUM_ITER") and line.count("\n") == 1
    resume = f", or free memory and go on with --RESTART_DIRECTORY {made}\n"
    assert line.endswith(resume) == (step == 7)
    if step == 7:
        assert train(["--RESTART_DIRECTORY", made.name]) == 0


class Odd(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("x"), "'x'"),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory."),
        (Odd("a", "b"), "Odd: a b"),
    ],
)
def test_errors_come_back_from_the_process_of_a_stage(error: Exception, said: str) -> None:
    """With their class if it can be pickled, and with the traceback for --DEBUG."""
    try:
        raise error
    except Exception as raised:
        sent = pickle.loads(pickle.dumps(cascade._portable(raised)))
    assert str(sent) == said
    if isinstance(error, Odd):
        assert type(sent) is RuntimeError
    else:
        assert type(sent) is type(error) and "test_limits.py" in sent.__notes__[0]


def limited(limit: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a limit of ``resource`` on its process, such as RLIMIT_AS=2**31."""
    name, value = limit.split("=")
    code = f"import resource, runpy, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "sys.dont_write_bytecode = True; sys.argv = sys.argv[1:]\n"
    code += f"resource.setrlimit(resource.{name}, ({value}, {value}))\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return python("-c", code, *argv, cwd=Path(), OMP_NUM_THREADS="1")


@posix
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit memory")
def test_too_little_memory_for_drawing_is_one_line() -> None:
    """For real: a batch that is too large. It leaves nothing."""
    many = ["--IMAGES_PER_CAPTION", "20000", "--BATCH_SIZE", "20000"]
    done = limited("RLIMIT_AS=5*2**30", str(ROOT / "inference.py"), *DRAW, *many)
    said = "inference.py: error: too little memory: give half the --BATCH_SIZE\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert not list(Path().iterdir())


# --- full disks and places that cannot be written -------------------------------------------------


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "limit", "named"),
    [
        ([], 100, "image_0.png"),
        (["--ANIMATION", "--SAMPLING_STEPS", "20"], 25_000, "animation.gif"),
    ],
)
def test_full_disk_names_the_file_of_a_drawing(flags: list[str], limit: int, named: str) -> None:
    """A limit on the size of files stands for it: the same exception, another number."""
    argv = [str(ROOT / "inference.py"), *DRAW, *flags]
    done = limited(f"RLIMIT_FSIZE={limit}", *argv)
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert (
        line.startswith("inference.py: error: generated_")
        and f"{named} cannot be written: " in line
    )
    assert "Traceback" not in done.stderr
    assert not list(Path().rglob("*.part"))


def test_output_is_checked_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading a text encoder may take minutes."""
    monkeypatch.setattr("minimagen.generation.run.load", lambda config: pytest.fail("loaded"))
    assert draw([*DRAW, "--OUTPUT_DIRECTORY", __file__]) == 2
    assert capsys.readouterr().err.startswith("inference.py: error: --OUTPUT_DIRECTORY is '")


# --- values at the ends of their ranges, for real -------------------------------------------------

LARGE = {
    "seed": 2**62 - 1,
    "batch_size": 100_000,
    "accum_iter": 100_000,
    "warmup": 10**9,
    "chckpt_num": 10**9,
    "valid_num": 10**9,
    "timesteps": 10**6,
    "max_num_words": 4096,
    "clip_norm": 1e300,
    "num_workers": 1,
    "stages": "1,0,1",
}
SMALL = {
    "optim_lr": 1e-300,
    "warmup": 0,
    "chckpt_num": 1,
    "valid_num": 1,
    "timesteps": 2,
    "max_num_words": 2,
    "clip_norm": 1e-300,
    "ema_decay": 0,
    "num_images": 2,
    "train_valid_frac": 0.5,
    "stages": "1",
}


@pytest.mark.slow
@pytest.mark.parametrize("values", [LARGE, SMALL], ids=["large", "small"])
def test_a_training_at_the_ends_of_all_ranges(
    values: dict[str, object], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is allowed works: it trains, goes on, and can be drawn with."""
    flags = [part for name, value in values.items() for part in (f"--{name.upper()}", str(value))]
    assert train([*tiny, "--EPOCHS", "1", *flags]) == 0, capsys.readouterr().err
    (made,) = Path().glob("training_*")
    assert train(["--RESTART_DIRECTORY", made.name, "--EPOCHS", "2"]) == 0
    (again,) = set(Path().glob("training_*")) - {made}
    if values is LARGE:
        assert draw(["-d", str(again), "-c", "a red circle", "--SEED", str(2**62 - 1)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--GUIDANCE_WEIGHT 1e6 --AUG_LEVEL 1",
        "--GUIDANCE_WEIGHT=-1e6,0 --AUG_LEVEL 0",
        "--SAMPLING_STEPS 1 --BATCH_SIZE 100000 --IMAGES_PER_CAPTION 3",
        "--SAMPLER heun,ddpm --SAMPLING_STEPS 2,1 --ANIMATION --ALL_STAGES",
    ],
)
def test_drawing_at_the_ends_of_all_ranges(flags: str) -> None:
    """Guidance of a million draws an image, though not a good one."""
    assert draw([*DRAW, *flags.split()]) == 0
    assert len(list(Path().glob("generated_images_*/contact_sheet.png"))) == 1


@posix
@pytest.mark.slow
@pytest.mark.processes
def test_a_thousand_threads() -> None:
    """Torch crashes with 100,000; the most that is allowed must work."""
    done = python(str(ROOT / "inference.py"), *DRAW, "--THREADS", "1024", cwd=Path())
    assert done.returncode == 0, done.stderr
