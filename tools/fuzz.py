"""Damage training directories at random, go on with them and draw with them, and see what is said.

    python tools/fuzz.py --runs 200 --seed 0

A run damages a copy of a small training: bits, lengths, whole files, values in JSON, tensors and
their shapes, links, pipes. Half of the copies have no manifest, as in older versions. Then
train.py --RESTART_DIRECTORY and inference.py -d work on it, each in a forked process. What comes
out:

    same     the end, or the images, of the directory that is not damaged
    refused  one line, exit code 2, and nothing was made
    told     another end, or other images, and a line that names what was wrong
    older    the same without a line, in a directory without a manifest: it cannot be noticed

and what must not come out: a traceback, another exit code, an end by a signal, no end in a minute,
more than one line, half a directory, or another end without a line. The exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from minimagen.cli import inference as draw_command
from minimagen.cli import train as train_command
from minimagen.files import load_tensors, save_tensors
from minimagen.run_directory import TrainingDirectory
from minimagen.text import load_text_encoder
from minimagen.training import cascade, resolve, train
from tests.test_training import tiny_model, tiny_settings

SECONDS = 60  # more is no end
BAD = ("TRACEBACK", "EXIT CODE", "SIGNAL", "NO END", "LINES", "LEFT", "SILENT")


# --- damages: each changes one file ---------------------------------------------------------------


def flip(path: Path, rng: random.Random) -> None:
    """Change one to eight bits."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    """Keep only the beginning."""
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def lines(path: Path, rng: random.Random) -> None:
    """Remove, repeat or exchange lines."""
    found = path.read_bytes().split(b"\n")
    i, j = rng.randrange(len(found)), rng.randrange(len(found))
    how = rng.randrange(3)
    if how == 0:
        del found[i]
    elif how == 1:
        found.insert(j, found[i])
    else:
        found[i], found[j] = found[j], found[i]
    path.write_bytes(b"\n".join(found))


def swap(path: Path, rng: random.Random) -> None:
    """Put another file of the directory in its place."""
    root = next(parent for parent in path.parents if parent.name.startswith("training_"))
    others = [p for p in sorted(root.rglob("*")) if p.is_file() and p != path]
    shutil.copyfile(rng.choice(others), path)


VALUES: list[Any] = [
    *(None, True, "x", "", -1, 0, 1, 1.5, 10**6, 10**9, 10**30, -(10**400), 1e308),
    *(float("nan"), float("inf"), [], [1], [10**6] * 3, {}, {"a": 1}, "../..", "/dev/zero", "\x00"),
]


def value(path: Path, rng: random.Random) -> None:
    """Change a value of JSON, or of a checkpoint's state, or the shape of a tensor."""
    if ".safetensors" in path.name:
        tensors, state = load_tensors(path)
        names = [*tensors, *state] if state else list(tensors)
        name = rng.choice(names)
        if name in tensors:
            strange = [torch.zeros(()), torch.zeros(10**6), tensors[name].double(), None]
            strange += [tensors[name].float() * float("nan"), tensors[name].float().flatten()[:-1]]
            new = rng.choice(strange)
            tensors = {k: v for k, v in tensors.items() if k != name or new is not None}
            if new is not None:
                tensors[name] = new
        else:
            state = state | {name: rng.choice(VALUES)}
        save_tensors(path, tensors, state)
    elif path.suffix == ".json":
        content = json.loads(path.read_text())
        place = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                return
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            place[key] = rng.choice(VALUES)
            break
        path.write_text(json.dumps(content))
    else:
        found = path.read_text().splitlines()
        i = rng.randrange(len(found))
        found[i] = found[i].partition("=")[0] + "=" + str(rng.choice(VALUES))
        path.write_text("\n".join(found))


def deep(path: Path, rng: random.Random) -> None:
    """JSON within JSON within JSON."""
    path.write_text(rng.choice(("[", '{"a":')) * 10 ** rng.randint(3, 5))


def instead(make: Callable[[Path], object]) -> Callable[[Path, random.Random], None]:
    """Something that is no file of ours in its place."""

    def act(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return act


class Code:
    """A pickle of this would end the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (99,)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "bits": flip,
    "cut": cut,
    "lines": lines,
    "swap": swap,
    "value": value,
    "deep JSON": deep,
    "missing": instead(lambda path: None),
    "empty": instead(lambda path: path.touch()),
    "pipe": instead(os.mkfifo),
    "/dev/zero": instead(lambda path: path.symlink_to("/dev/zero")),
    "link to itself": instead(lambda path: path.symlink_to(path)),
    "folder": instead(lambda path: path.mkdir()),
    "pickle": instead(lambda path: path.write_bytes(pickle.dumps(Code()))),
    "noise": instead(lambda path: path.write_bytes(random.Random(0).randbytes(5000))),
}


# --- what comes out -------------------------------------------------------------------------------


def fork(work: Callable[[], int], answer: Path) -> None:
    """Do the work in a forked process; what it printed on stderr, and its end, as JSON."""
    process = os.fork()
    if process == 0:
        signal.alarm(SECONDS)
        err, code = io.StringIO(), 99
        try:
            with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
                code = work()
        except BaseException:
            err.write(traceback.format_exc())
        finally:
            answer.write_text(json.dumps([code, err.getvalue()]))
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status != 0:
        answer.write_text(json.dumps([status, ""]))


def content(output: Path) -> dict[str, bytes] | None:
    """What a run has made: weights and checkpoints, or images; None if it has made nothing."""
    made = [path for path in output.iterdir() if path.name != "answer.json"]
    if not made:
        return None
    kinds = ("*.safetensors", "image_*.png")
    files = [path for kind in kinds for path in sorted(output.rglob(kind))]
    return {path.name.split("_2")[0]: path.read_bytes() for path in files}


def outcome(output: Path, due: dict[str, bytes], manifest: bool) -> tuple[str, str]:
    """One word for what came out, and what was printed."""
    code, err = json.loads((output / "answer.json").read_text())
    made, said = content(output), err.strip().split("\n") if err.strip() else []
    if code == -signal.SIGALRM:
        return "NO END", err
    if code < 0:
        return "SIGNAL", err
    if "Traceback" in err or "unexpected" in err:
        return "TRACEBACK", err
    errors = [line for line in said if not line.startswith("note: ")]
    if code == 2:
        if len(errors) != 1:
            return "LINES", err
        return ("refused" if made is None else "LEFT"), err
    if code != 0 or errors:
        return "EXIT CODE", f"{code} {err}"
    if made == due:
        return "same", err
    if any("the one before it is taken" in line for line in said):
        return "told", err
    return ("SILENT" if manifest else "older"), err


def commands(directory: Path, output: Path) -> dict[str, Callable[[], int]]:
    """The two commands, as functions."""
    go_on = ["--RESTART_DIRECTORY", str(directory), "--OUTPUT_DIRECTORY", str(output)]
    draw = ["-d", str(directory), "-c", "a red circle", "--OUTPUT_DIRECTORY", str(output)]
    return {
        "go on": lambda: train_command.main(go_on, program="train.py"),
        "draw": lambda: draw_command.main(draw, program="inference.py"),
    }


def run(directory: Path, place: Path) -> dict[str, Path]:
    """Both commands on a directory; where each has written."""
    outputs = {}
    for name, work in commands(directory, place).items():
        output = place / name.replace(" ", "_")
        output.mkdir(parents=True)
        work = commands(directory, output)[name]
        fork(work, output / "answer.json")
        outputs[name] = output
    return outputs


def begin(place: Path) -> TrainingDirectory:
    """A training with two generations of everything, and the last epoch to be done again."""
    model = TrainingDirectory.create(place / "model")
    model.save_parameters(*tiny_model(), {})
    settings = tiny_settings(model.parameters, place / "begun") | {"threads": 1, "chckpt_num": 3}

    def work() -> int:
        train(resolve(**settings), quiet=True)
        return 0

    fork(work, place / "answer.json")
    (path,) = (place / "begun").glob("training_*")
    return TrainingDirectory(path)


def main() -> int:
    """Parse the flags, damage, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    load_text_encoder("t5_tiny")  # so that its library is imported already
    cascade._train_in_processes = cascade._train_here
    warnings.simplefilter("ignore")
    kinds: Counter[tuple[str, str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        whole = begin(place)
        due = {key: content(out) for key, out in run(whole.path, place / "due").items()}
        for number in range(flags.runs):
            rng = random.Random(f"{flags.seed}.{number}")
            here = place / str(number)
            damaged = here / whole.path.name
            shutil.copytree(whole.path, damaged)
            manifest = rng.random() < 0.5
            if not manifest:
                shutil.rmtree(damaged / "manifest")
                for path in damaged.rglob("*.previous"):
                    path.unlink()
            files = [p for p in sorted(damaged.rglob("*")) if p.is_file() and p.parent != damaged]
            path, damage = rng.choice(files), rng.choice(list(DAMAGES))
            with contextlib.suppress(ValueError):  # bytes that are no text
                DAMAGES[damage](path, rng)
            for command, output in run(damaged, here / "out").items():
                what, said = outcome(output, due[command] or {}, manifest)
                kinds[command, "manifest" if manifest else "older", what] += 1
                if what in BAD:
                    print(f"run {number}, {command}: {damage} of {path.name}: {what}: {said}")
            shutil.rmtree(here)
    for (command, manifest_or_not, what), count in sorted(kinds.items()):
        print(f"{command:6} {manifest_or_not:9} {what:10} {count}")
    return int(any(what in BAD for _, _, what in kinds))


if __name__ == "__main__":
    raise SystemExit(main())
