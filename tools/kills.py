"""Kill trainings at random moments, go on, and compare the end with that of a whole one.

    python tools/kills.py --kills 500 --seed 0     at random moments, until 500 kills have hit
    python tools/kills.py --operations             once at each file operation: of a new training,
                                                   of one that goes on, and of one in place

A training is tiny, and runs in a forked process, in which nothing must be imported again. Half of
the random kills come after a random time, half before a random file operation (open to write,
rename, make, remove). A training that was killed is gone on with, and that may be killed too, also
while it copies the directory before. After each kill the newest training directory must be whole;
without any, the training begins anew. Ends are compared bit for bit. The exit code is 1 if
something was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from minimagen.run_directory import TrainingDirectory
from minimagen.text import load_text_encoder
from minimagen.training import cascade, resolve, train
from tests.test_training import final_state, tiny_model, tiny_settings

HALF = 200  # a file operation in the middle of a training
OPERATIONS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}  # as Python's audit names them


def work(settings: dict[str, Any], kill_at: int = 0) -> None:
    """Train, in this process; before file operation ``kill_at`` it kills itself."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in OPERATIONS:
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    cascade._train_in_processes = cascade._train_here
    warnings.simplefilter("ignore")
    plan = resolve(**settings)
    sys.addaudithook(watch)
    train(plan, quiet=True)


def fork(settings: dict[str, Any], kill_at: int = 0, after: float | None = None) -> int:
    """Do the work in a forked process; its exit code, -9 if it was killed."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work(settings, kill_at)
            code = 0
        except BaseException as error:
            print(f"  {type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def newest(output: Path) -> TrainingDirectory | None:
    """The training directory that was made last."""
    found = sorted(output.glob("training_*"), key=lambda path: path.stat().st_mtime_ns)
    found = [path for path in found if any(path.iterdir())]  # else it is a reserved name
    return TrainingDirectory.open(found[-1]) if found else None


class Lost(Exception):
    """A kill lost something."""


def next_settings(settings: dict[str, Any], output: Path, in_place: bool) -> dict[str, Any]:
    """How to go on after a kill: from the newest directory, or anew."""
    directory = newest(output)
    if directory is None:
        return settings
    begun = any(directory.checkpoint(i).exists() for i in range(2))
    if not begun and not in_place:
        return settings
    name = "training_directory" if in_place else "restart_directory"
    return {name: str(directory.path), "output_directory": str(output)}


def same(output: Path, due: dict[str, torch.Tensor]) -> bool:
    """Whether the newest training has come to the end that is due, and left nothing else."""
    directory = newest(output)
    assert directory is not None
    found = final_state(directory)
    if list(directory.path.rglob("*.part")):
        raise Lost(f"{directory.path} has a .part file")
    return found.keys() == due.keys() and all(torch.equal(found[k], due[k]) for k in due)


def go_on_until_the_end(
    settings: dict[str, Any], output: Path, due: dict[str, torch.Tensor], kinds: Counter[str]
) -> None:
    """Without more kills."""
    code = fork(next_settings(settings, output, in_place=False))
    if code != 0:
        raise Lost(f"it cannot go on: exit code {code}")
    if not same(output, due):
        raise Lost("another end")
    kinds["same end"] += 1


def random_kills(number: int, seed: int, place: Path) -> None:
    """Kill ``number`` times."""
    rng = random.Random(seed)
    settings = training(place)
    began = time.perf_counter()
    due = whole(settings, place)
    seconds = time.perf_counter() - began
    kinds: Counter[str] = Counter()
    while kinds["kills"] < number:
        output = place / "out"
        shutil.rmtree(output, ignore_errors=True)
        settings["output_directory"] = str(output)
        code = -9
        while code == -9:
            given = next_settings(settings, output, rng.random() < 0.3)
            if rng.random() < 0.15 or kinds["kills"] >= number:
                code = fork(given)
            elif rng.random() < 0.5:
                code = fork(given, after=rng.random() * seconds)
            else:
                code = fork(given, kill_at=rng.randint(1, 150))
            if code == -9:
                kinds["kills"] += 1
                kinds["while going on"] += given is not settings
        if code != 0:
            raise Lost(f"exit code {code}")
        if not same(output, due):
            raise Lost("another end")
        kinds["same end"] += 1
    print(
        f"kills: {kinds['kills']} ({kinds['while going on']} of them while a killed training went "
        f"on), ends: {kinds['same end']}, all bit-identical"
    )


def each_operation(place: Path) -> None:
    """Kill once before each file operation."""
    settings = training(place)
    due = whole(settings, place)
    half = place / "half"
    settings["output_directory"] = str(half)
    assert fork(settings, kill_at=HALF) == -9
    (begun,) = half.glob("training_*")
    output = place / "out"
    settings["output_directory"] = str(output)
    for what in ("a new training", "one that goes on", "one in place"):
        kinds: Counter[str] = Counter()
        number = 0
        while True:
            number += 1
            shutil.rmtree(output, ignore_errors=True)
            given = settings
            if what != "a new training":
                shutil.copytree(begun, output / begun.name)
                given = next_settings(settings, output, what == "one in place")
            if fork(given, kill_at=number) == 0:  # it has fewer operations
                break
            go_on_until_the_end(settings, output, due, kinds)
        print(f"{what}: {number - 1} file operations, ends: {kinds['same end']}, all bit-identical")


def training(place: Path) -> dict[str, Any]:
    """The settings of a tiny training that saves often."""
    model = TrainingDirectory.create(place / "model")
    model.save_parameters(*tiny_model(), {})
    return tiny_settings(model.parameters, place / "whole") | {"chckpt_num": 2, "threads": 1}


def whole(settings: dict[str, Any], place: Path) -> dict[str, torch.Tensor]:
    """The end of a training that nobody kills."""
    assert fork(settings) == 0
    directory = newest(place / "whole")
    assert directory is not None
    return final_state(directory)


def main() -> int:
    """Parse the flags, and kill."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operations", action="store_true")
    flags = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    load_text_encoder("t5_tiny")  # so that its library is imported already
    with tempfile.TemporaryDirectory() as place:
        try:
            if flags.kills:
                random_kills(flags.kills, flags.seed, Path(place) / "random")
            if flags.operations:
                each_operation(Path(place) / "each")
        except Lost as error:
            print(f"LOST: {error}")
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
